"Tasks of the tests of clocks, for any process of theirs"
import os
import parkit as pk


@pk.task
def hold(key):
    "Wait until `key` is in the dict of the tests"
    d = pk.Dict('d')
    d['held'] = 1
    pk.wait_until(lambda: key in d)
    return key

@pk.task
def note(value=None, fail=0):
    "Note that it has run; fail as often as it is to"
    pk.Array('noted').append(value)
    if list(pk.Array('noted')).count(value) <= fail: raise ValueError(value)
    return value
