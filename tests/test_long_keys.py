"""Keys of any length: as many parts as it takes, each operation in time that grows with the length only.

A key goes through a node for each 480 bytes, so one of five megabytes has more of them than Python has frames, and work that grows with the square takes minutes."""
import pytest

import parkit as pk
from helpers import wait_for
from parkit.codecs import DecodeError
from parkit.storage import KEY_LIMIT, NAMES
from parkit.transactions import read, write

pytestmark = pytest.mark.timeout(300)
LENGTHS = 470, 500, 470_000, 5_000_000  # the last two have 1,000 nodes and 10,000


def _entries(store):
    "How many entries, nodes too, the objects of a namespace have"
    return read(store, lambda txn, zero_copy: sum(1 for _ in store._steps(txn, b'', NAMES, False)))

@pytest.mark.parametrize('size', LENGTHS)
@pytest.mark.parametrize('make', [str.__mul__, lambda c, n: (c.encode()*n, 1), lambda c, n: (ord(c) << 8*n)], ids=['text', 'bytes in a tuple', 'number'])
def test_every_operation_on_a_long_key(d, make, size):
    empty = _entries(d._store)
    a, b, c = (make(o, size) for o in 'abc')
    d[b] = 1
    d[b] += 1
    assert d[b] == 2 and b in d and c not in d and d.get(a) is None and len(d) == 1
    d.update({c: 3, a: 1, 5: 0, 'z'*999_999: 9})
    known = {k: v for k, v in d.items() if k == a or k == b or k == c}
    assert known == {a: 1, b: 2, c: 3} and list(known) == [a, b, c] and list(d) == list(reversed(d))[::-1]
    assert list(d.range(a, c)) == [(a, 1), (b, 2)] and list(d.range(b, c, reverse=True)) == [(b, 2)] and not list(d.range(c, a))
    with pk.transaction(d):
        assert d.pop(b) == 2
        with pytest.raises(KeyError): del d[b]
        d[b] = 4
        assert [v for _, v in d.range(a, c)] == [1, 4]
    with d.edit(b) as v: pass
    del d[a], d[5], d['z'*999_999]
    assert d.first() == (b, 4) and d.last() == (c, 3) and d.popitem() == (c, 3)
    d.clear()
    assert not list(d) and _entries(d._store) == empty

def test_keys_that_share_all_but_their_ends(d):
    "The nodes of a key stay as long as another goes through them"
    empty, keys = _entries(d._store), ['k'*n + end for n in (400_000, 400_001, 400_480) for end in ('', 'a', 'k', 'z')]
    d.update((k, len(k)) for k in keys)
    keys = sorted(set(keys))
    assert list(d) == keys and d.first()[0] == keys[0] and d.last()[0] == keys[-1]
    for i, lo in enumerate(keys):
        assert [k for k, _ in d.range(lo)] == keys[i:] and [k for k, _ in d.range(hi=lo, reverse=True)] == keys[:i][::-1]
    while keys:
        del d[keys.pop(len(keys)//2)]
        assert list(d) == keys
    assert _entries(d._store) == empty

def test_upkeep_of_long_keys(site, tmp_path):
    d = pk.Dict('n/d')
    d['k'*470_000] = 1
    d['k'*470_000 + 'b'] = list(range(100_000))  # a blob, to be freed with it
    expected = dict(d)
    assert not pk.check() and pk.doctor() and not pk.gc()
    pk.compact('n')
    assert dict(d) == expected
    pk.Namespace('n').copy('m')
    d.rename('n/e')
    pk.Dict('n/e').copy('n/f')
    pk.backup(tmp_path/'backup')
    other = pk.Site(tmp_path/'backup')
    for found in (pk.Dict('m/d'), pk.Dict('n/e'), pk.Dict('n/f'), pk.Dict('n/e', site=other)):
        same = dict(found) == expected
        assert same, found
    other.close()
    for name in ('n/e', 'n/f'): pk.Dict(name).drop()
    assert not pk.check() and not _entries(d._store)

def test_dropping_an_anonymous_one_with_a_long_key(site):
    "What a finalizer leaves to the next write is done then; it stopped everybody who made an anonymous object"
    a = pk.Dict()
    a['k'*470_000] = 1
    store = a._store
    b = pk.Dict()
    before = _entries(store)
    del a
    b[1] = 1
    wait_for(lambda: _entries(store) < before - 900)
    assert not pk.check()

def test_long_key_that_leads_back_to_itself_is_damage(d):
    d['k'*2000] = 1
    store = d._store
    def bend(txn):
        steps = [(k, v) for k, v in store._steps(txn, b'', NAMES, False) if len(k) == KEY_LIMIT]
        ids = {v[1:]: k for k, v in steps}
        inner = next((k, v) for k, v in steps if k[:8] in ids)
        txn.put(inner[0], b'\x06' + inner[0][:8])
    write(store, bend)
    with pytest.raises(DecodeError, match='leads back to its part'): list(d)
    assert 'leads back to its part' in repr(pk.check())
    d.clear()  # ends all the same
    assert not list(d)
