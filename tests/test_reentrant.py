"""Writes from signal handlers, finalizers and weakref callbacks, which come in the middle of a write of their own thread"""
import gc, signal, sys, warnings, weakref
from types import MethodType

import pytest

import parkit as pk
from helpers import forked, run

_beating = '''
class Beat: n = 0
def beat(*args):
    "The next one may come in the middle of this one"
    n = Beat.n = Beat.n + 1
    beats[n] = n
    log.append(n)
    o.last = n
    q.put(n)
beats, log, q, o, d = pk.Dict(ns + '/beats'), pk.Array(ns + '/log'), pk.Queue(ns + '/q'), pk.Object(ns + '/o'), pk.Dict(ns + '/d')
signal.signal(signal.SIGALRM, beat)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
i = 0
while Beat.n < 300:
    work(i)
    i += 1
signal.setitimer(signal.ITIMER_REAL, 0)
d['end'] = i
n = Beat.n
numbers = list(range(1, n + 1))
say([n, list(beats) == numbers and len(beats) == n, sorted(log) == numbers and len(log) == n, o.last in numbers,
     sorted(q.get_many(n + 9)) == numbers, len(d) == len(list(d)), i])
'''

_WRITERS = {
    'writes': "def work(i): d[i % 50] = i",
    'writes to the same object': "def work(i): beats[-1] = i; del beats[-1]",
    'transactions': """
def work(i):
    with pk.transaction(d):
        for k in range(20): d[k] = i; beats[-k - 1] = i
        for k in range(20): del beats[-k - 1]
""",
    'savepoints': """
def work(i):
    with pk.transaction(d):
        for k in range(5):
            with pk.transaction(d): d[k] = i; log.extend([])
            beats.update({-1: 1}); beats.pop(-1)
""",
    'reads': "def work(i): d.get(i); list(d.items()); len(beats)",
}

@pytest.mark.parametrize('writer', _WRITERS)
def test_no_beat_of_a_signal_handler_is_lost(site, writer):
    pk.Namespace('n', durable=False)
    n, *right, rounds = run(site, "ns = 'n'\nwarnings.simplefilter('error')\n" + _WRITERS[writer] + _beating)
    assert n >= 300 and all(right) and rounds, (n, right)
    assert pk.check() == []

def _at_instruction(k, work, handler):
    "Do `work()`, and `handler()` before the `k`-th instruction of parkit's code; was there one?"
    seen = 0
    def look(frame, event, arg):
        nonlocal seen
        if frame.f_globals.get('__package__') != 'parkit': return None
        frame.f_trace_opcodes = True
        if event == 'opcode' and (seen := seen + 1) == k + 1: handler()
        return look
    before = sys.gettrace()
    sys.settrace(look)
    try: work()
    finally: sys.settrace(before)
    return seen > k

def _write(d, log, n):
    d[n] = n
    log.append(n)

def _in_savepoints(d, log):
    with pk.transaction(d):
        with pk.transaction(d): _write(d, log, 1)
        d.update({2: 2})
        log.append(2)

_WORKS = {
    'writes': lambda d, log: (_write(d, log, 1), _write(d, log, 2)),
    'savepoints': _in_savepoints,
    'handlers': lambda d, log: (_in_the_middle(d, lambda: _write(d, log, 1)), d.update({2: 2}), log.append(2)),
    'handlers of transactions': lambda d, log: _amid_transaction(d, lambda: (_write(d, log, 1), _write(d, log, 2))),
}

def _amid_transaction(d, work):
    "Do `work()` in a transaction, in the middle of its operations on `d`"
    from parkit.transactions import write
    with pk.transaction(d): write(d._store, MethodType(lambda d, txn: work(), d))

@pytest.mark.parametrize('work', _WORKS)
def test_no_write_of_a_handler_is_lost_wherever_it_comes(scratch, work):
    "In the middle of another handler's write, too"
    d, log, k = pk.Dict('n/d'), pk.Array('n/log'), 0
    while _at_instruction(k, lambda: _WORKS[work](d, log), lambda: _write(d, log, 3)):
        assert sorted(d) == [1, 2, 3] and sorted(log) == [1, 2, 3], k
        d.clear()
        log.clear()
        k += 1
    assert k > 50

class Session:
    def __init__(self, sessions, n): self.sessions, self.n, self.me = sessions, n, self
    def __del__(self): self.sessions.append(self.n)

@pytest.mark.parametrize('explicit', [False, True])
def test_no_write_of_a_finalizer_is_lost(scratch, explicit):
    "They run when the garbage is collected, which may be in the middle of anything"
    ended, d = pk.Array('n/ended'), pk.Dict('n/d')
    before = gc.get_threshold()
    gc.set_threshold(7)
    try:
        for n in range(250):
            Session(ended, n)
            if explicit:
                with pk.transaction(d): d[n] = [n]; ended.extend([])
            else: d[n] = [n]
    finally: gc.set_threshold(*before)
    gc.collect()
    assert sorted(ended) == list(range(250)) and len(d) == 250 == len(list(d))

def _in_the_middle(d, work):
    "What `work()` returns, or raises, in the middle of a write to `d`"
    found = []
    def put(txn):
        try: found.append(work())
        except Exception as e: found.append(e)
    from parkit.transactions import write
    write(d._store, put)
    return found[0]

def test_what_needs_an_answer_is_refused_with_the_reason(d):
    d['a'] = 1
    a, q = pk.Array('n/a'), pk.Queue('n/q')
    q.put(1)
    for work in (lambda: d.pop('a'), lambda: d.setdefault('b', 1), lambda: a.pop(), lambda: q.get(), lambda: pk.transaction(d).__enter__(),
                 lambda: pk.Dict('n/new'), lambda: d.popitem()):
        error = _in_the_middle(d, work)
        assert isinstance(error, pk.TransactionError), error
        assert all(part in str(error) for part in ('in the middle of a write', "'n'", '__del__')) and 'asyncio' not in str(error)
    assert d == {'a': 1} and q.qsize() == 1

def test_reads_from_there(d):
    "They give what was committed, until something was written from there: that must not be taken for unwritten"
    d['a'] = 1
    assert _in_the_middle(d, lambda: d['a']) == 1
    error = _in_the_middle(d, lambda: (d.update(a=2), d['a']))
    assert isinstance(error, pk.TransactionError) and 'in the middle of a write' in str(error)
    assert d['a'] == 2 and d._store.begin == d._store.env.begin

def test_the_write_itself_goes_on_reading(site):
    "A write was put off in its middle, and it opens what an item refers to"
    d, q = pk.Dict('n/d'), pk.Queue('n/q')
    q.put([pk.Dict('n/other'), pk.Dict('m/other')])
    pk.Dict('n/other')['a'] = pk.Dict('m/other')['a'] = 1
    store, take = d._store, q._take
    def taking(txn, *args):
        d['from a handler'] = True
        return take(txn, *args)
    q._take = taking
    assert [o['a'] for o in q.get()] == [1, 1] and d == {'from a handler': True}

class Looks:
    "Reads another object as it is unpickled"
    def __reduce__(self): return _look, ()

def _look(): return pk.Dict('n/other')['a']

def test_code_that_the_write_itself_calls_goes_on_reading(scratch):
    d, q, other = pk.Dict('n/d'), pk.Queue('n/q'), pk.Dict('n/other')
    other['a'] = 1
    q.put(Looks())
    take = q._take
    def handler(): d['from a handler'] = True
    def taking(txn, *args):
        handler()
        return take(txn, *args)
    q._take = taking
    assert q.get() == 1 and d == {'from a handler': True}

def test_a_second_handler_does_not_read_what_the_first_will_have_written(d):
    "Or one of two that count would be lost without a word"
    d['n'] = 0
    refused = []
    def count():
        try: d['n'] = d['n'] + 1
        except pk.TransactionError as e: refused.append(e)
    _in_the_middle(d, lambda: (count(), count()))
    assert d['n'] + len(refused) == 2 and d['n'] >= 1

def test_an_interrupt_keeps_no_other_from_being_done(d):
    def stop(): raise KeyboardInterrupt
    def work():
        d._store.put_off_write(stop)
        d['x'] = 1
    with pytest.raises(KeyboardInterrupt): _in_the_middle(d, work)
    assert d == {'x': 1} and not d._store.put_off

def test_an_error_of_what_follows_a_commit_keeps_none_from_being_done(d):
    from parkit.transactions import write
    def work(txn):
        txn.then.append(lambda: 1/0)
        d['x'] = 1
    with pytest.raises(ZeroDivisionError): write(d._store, work)
    assert d == {'x': 1}

@pytest.mark.parametrize('how', [lambda: pk.compact('n'), lambda: pk.Namespace('n').rename('other'), lambda: pk.Namespace('n').drop()], ids=['compact', 'rename', 'drop'])
def test_writes_that_come_while_files_are_replaced_are_done_or_told_of(d, how, monkeypatch):
    "By a signal handler, say"
    from parkit.storage import Store
    made = Store._make_way
    def make_way(self, *args):
        if self.namespace == 'n': d['from a handler'] = True
        return made(self, *args)
    monkeypatch.setattr(Store, '_make_way', make_way)
    d['a'] = 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        how()
    assert not d._store.put_off
    found = pk.Dict('n/d')
    assert ('from a handler' in found) != any('has failed' in str(w.message) for w in told), (dict(found), told)

def test_an_error_of_what_was_put_off_is_none_of_the_write(d):
    "Nor does an interrupt that comes then keep from being done what is to be done after a commit"
    from parkit.transactions import write
    done = []
    def work(txn):
        txn.then.append(lambda: done.append(1))
        d['x'] = 1
    def interrupted(work): raise KeyboardInterrupt
    d._store.attempt = interrupted
    try:
        with pytest.raises(KeyboardInterrupt): write(d._store, work)
    finally: del d._store.attempt
    assert done == [1]
    d['y'] = 2
    assert d == {'y': 2} and d._store.begin == d._store.env.begin

def test_a_child_does_not_wait_for_what_its_parent_was_doing(d):
    def work():
        d['x'] = 1
        return 2
    d._store._doing_put_off = True  # as in the middle of it
    try: assert forked(lambda: (_in_the_middle(d, work), dict(d))) == (2, {'x': 1})
    finally: d._store._doing_put_off = False
    assert d == {'x': 1}

def test_items_that_are_set_and_removed_from_there(scratch):
    a, q, d = pk.Array('n/a'), pk.Queue('n/q'), pk.Dict('n/d')
    a.extend([1, 2, 3])
    def work():
        a[0] = 5
        del a[-1]
        a.last = 1
        q.put(1)
        d.clear()
    assert _in_the_middle(a, work) is None
    assert list(a) == [5, 2] and a.last == 1 and q.qsize() == 1
    with pk.transaction(a): assert _in_the_middle(a, lambda: a.__setitem__(0, 7)) is None
    assert a[0] == 7

def test_error_of_a_write_that_was_put_off_is_a_warning(d):
    with pytest.warns(RuntimeWarning, match="has failed: KeyError: 'x'"): _in_the_middle(d, lambda: d.__delitem__('x'))
    with pytest.raises(KeyError): del d['x']

def test_weakref_callbacks(d):
    class Held: pass
    held = Held()
    ref = weakref.ref(held, lambda _: d.__setitem__('gone', True))
    def work():
        nonlocal held
        held = None
    _in_the_middle(d, work)
    assert d == {'gone': True} and ref() is None
