"""One suite for each contract, run against each object in every state it can be in: fresh, opened again, anonymous,
inside a transaction that commits or rolls back, in another thread or process, in a scratch and in a durable namespace.

Each function below that `of` marks states one thing that must hold of a new, empty object, wherever that is."""
import asyncio, base64, copy, gc, io, os, pickle, queue, shutil, tempfile, threading, traceback, zipfile
from collections import deque
from collections.abc import MutableMapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

import numpy as np, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, in_thread
from parkit.transactions import in_transaction

suites = {name: [] for name in 'Object Dict Array Queue LifoQueue File Lock Event'.split()}

def of(*names):
    "The function is part of the contract of these classes"
    def add(function):
        assert function.__name__ not in globals(), 'the second process finds it by its name'
        for name in names: suites[name].append(function)
        return function
    return add


# --- help for the contracts

def again(o):
    "Another reference to `o`"
    found = type(o)(o.path, create=False) if o.path else pickle.loads(pickle.dumps(o))
    assert found is not o and found.uuid == o.uuid
    return found

def another(o, **arguments):
    "A new object of the same class, near `o`"
    return type(o)(o.path and f'{o.path}-{os.urandom(4).hex()}', **arguments)

def inside(o):
    "Whether this code is in a transaction, where nobody else sees what it does, and nothing that others do is seen"
    return in_transaction(o._store)

@contextmanager
def changed(o, by=True):
    "The block changes the version of `o`, or not"
    version = o.version
    yield
    assert (o.version > version) is by, 'the version has not risen' if by else 'the version has risen'

@contextmanager
def rolled_back(o):
    "The block's writes are undone, by a savepoint if it is in a transaction already"
    with suppress(_Undo), pk.transaction(o, timeout=60):
        yield
        raise _Undo

class _Undo(Exception): pass

def shown(o):
    "All that `o` holds, as a text"
    if not o.exists: return 'dropped'
    attributes = {name: getattr(o, name, None) for name in ('x', 'y', 'big')}
    content = {
        pk.Dict: lambda: list(o.items()), pk.Array: lambda: list(o), pk.Queue: lambda: _items(o),
        pk.File: lambda: bytes(o.content), pk.Event: lambda: o.is_set()}
    found = [content[cls]() for cls in type(o).__mro__ if cls in content]
    return repr((o.name, o.version, o.metadata, attributes, found))

def _items(q):
    items = []
    with rolled_back(q):
        while not q.empty(): items += q.get_many(100)
    return items


# --- what holds of any object

@of('Object')
def says_what_it_is(o):
    assert isinstance(o, pk.Object) and o.exists and not o.uuid.int == 0 and repr(o).startswith(f'{type(o).__name__}(')
    assert o.anonymous == (o.name is None) == (o.path is None) and o.path in (None, f'{o.namespace}/{o.name}')
    assert isinstance(o.namespace, str) and o.namespace.site is o.site
    assert abs(datetime.now() - o.created) < timedelta(hours=1) and (o.path is None or repr(o.path) in repr(o))

@of('Object')
def cannot_say_that_it_is_something_else(o):
    for name in ('path', 'name', 'namespace', 'site', 'uuid', 'anonymous', 'exists', 'version', 'created'):
        with pytest.raises(AttributeError): setattr(o, name, 'x')

@of('Object')
def is_found_by_its_path(o):
    if o.anonymous: return
    assert again(o).uuid == o.uuid and type(o)(o.path, bind=True, create=True).uuid == o.uuid
    with pytest.raises(pk.ObjectExistsError, match=o.name): type(o)(o.path, bind=False)
    with pytest.raises(pk.ObjectExistsError, match='metadata'): type(o)(o.path, metadata=dict(a=1))
    with pytest.raises(TypeError, match=o.name): (pk.Dict if not isinstance(o, pk.Dict) else pk.Array)(o.path)
    with pytest.raises(pk.ObjectNotFoundError): type(o)(f'{o.path}-not', create=False)

@of('Object')
def is_listed(o):
    space = pk.Namespace(o.namespace)
    names = list(space.names())
    assert names == sorted(names) and (o.name in names) == (not o.anonymous)
    if o.anonymous: return
    found = space[o.name]
    assert o.name in space and type(found) is type(o) and found.uuid == o.uuid
    assert o.uuid in [each.uuid for each in space]

@of('Object')
def keeps_attributes(o):
    with changed(o): o.x = [1, 2]
    assert o.x == again(o).x == [1, 2]
    with changed(o): again(o).x = 'new'
    assert o.x == 'new'
    with changed(o): del o.x
    for each in (o, again(o)):
        with pytest.raises(AttributeError, match="'x'"): each.x
        with pytest.raises(AttributeError, match="'x'"), changed(o, False): del each.x

@of('Object')
def keeps_big_attributes(o):
    o.big = np.arange(50_000)
    assert (again(o).big == np.arange(50_000)).all() and again(o).big.flags.writeable != inside(o)
    o.big = np.arange(60_000)
    assert len(again(o).big) == 60_000
    del o.big
    assert not hasattr(again(o), 'big')

@of('Object')
def gives_copies_of_attributes(o):
    o.x = [1]
    o.x.append(2)
    assert o.x == [1]

@of('Object')
def keeps_underscored_attributes_to_itself(o):
    with changed(o, False): o._mine = lambda: 5
    assert o._mine() == 5 and not hasattr(again(o), '_mine')
    del o._mine
    assert not hasattr(o, '_mine')

@of('Object')
def refuses_names_of_methods(o):
    with changed(o, False):
        with pytest.raises(AttributeError, match='drop'): o.drop = 5
        with pytest.raises(AttributeError, match='another name'): o.copy = lambda: None
    assert callable(again(o).drop)

@of('Object')
def refuses_what_cannot_be_stored(o):
    o.x = 1
    with changed(o, False), pytest.raises(TypeError, match='lock'): o.x = threading.Lock()
    assert o.x == 1

@of('Object')
def has_metadata(o):
    assert o.metadata == {}
    with changed(o): o.metadata = dict(a=[1])
    assert again(o).metadata == dict(a=[1])
    with changed(o, False): o.metadata['b'] = 1
    assert o.metadata == dict(a=[1])
    made = another(o, metadata=dict(c=2))
    assert made.metadata == dict(c=2)
    if made.path: assert type(o)(made.path, metadata=dict(c=2)).uuid == made.uuid

@of('Object')
def does_not_change_when_it_is_read(o):
    o.x, o.metadata = 1, dict(a=1)
    with changed(o, False): again(o), shown(o), o.x, o.metadata, o.created, o.exists, repr(o), pickle.dumps(o)

@of('Object')
def is_pickled_by_reference(o):
    o.x = 1
    for found in (pickle.loads(pickle.dumps(o)), copy.deepcopy(o), copy.copy(o)):
        assert type(found) is type(o) and found.uuid == o.uuid and found.x == 1
        found.x += 1
        assert o.x == 2
        o.x = 1

@of('Object')
def can_be_stored_in_another(o):
    holder = pk.Dict('scratch/holder-' + o.uuid.hex)
    holder['o'] = holder.o = [o]
    assert holder['o'][0].uuid == holder.o[0].uuid == o.uuid and type(holder['o'][0]) is type(o)
    o.x = 3
    assert holder['o'][0].x == 3
    holder.drop()

@of('Object')
def is_gone_once_it_is_dropped(o):
    other, stale = again(o), pickle.dumps(o)
    uses = [use for cls in type(o).__mro__ for use in uses_of.get(cls.__name__, [])]
    o.big = np.arange(50_000)
    o.drop()
    for each in (o, other, pickle.loads(stale), pickle.loads(pickle.dumps(other))):
        assert not each.exists and each.uuid == o.uuid and repr(each)
        for use in uses:
            with pytest.raises(pk.ObjectNotFoundError): use(each)
    if o.path is None: return
    space = pk.Namespace(o.namespace)
    assert o.name not in space and o.name not in list(space.names()) and o.uuid not in [each.uuid for each in space]
    with pytest.raises(pk.ObjectNotFoundError, match='there is no object'): type(o)(o.path, create=False)

@of('Object')
def is_not_found_in_place_of_another(o):
    if o.anonymous: return
    old = again(o)
    o.drop()
    new = type(o)(o.path, bind=False)
    new.x = 1
    assert new.exists and new.uuid != old.uuid and not old.exists
    for use in (lambda: old.x, lambda: old.version, old.drop, lambda: setattr(old, 'x', 2)):
        with pytest.raises(pk.ObjectNotFoundError): use()
    assert new.x == 1

@of('Object')
def comes_back_when_a_drop_is_undone(o):
    o.x = 1
    before = shown(o)
    with rolled_back(o):
        o.drop()
        assert not o.exists
    assert shown(o) == before == shown(again(o))
    o.x = 2

@of('Object')
def takes_back_what_is_undone(o):
    o.x, o.metadata = 1, dict(a=1)
    before = shown(o)
    with rolled_back(o):
        o.x, o.big, o.metadata = 2, bytes(300_000), {}
        if o.path: o.rename(f'{o.name}-new')
        assert o.x == 2
    assert shown(o) == before == shown(again(o))

@of('Object')
def can_be_renamed(o):
    if o.anonymous:
        with pytest.raises(ValueError, match='anonymous'): o.rename('new')
        return
    other, path, name = again(o), o.path, f'{o.name}-new'
    with changed(o): o.rename(name)
    assert o.name == other.name == name and other.path == f'{o.namespace}/{name}' and again(o).uuid == other.uuid
    with pytest.raises(pk.ObjectNotFoundError): type(o)(path, create=False)
    taken = another(o)
    with changed(o, False), pytest.raises(pk.ObjectExistsError, match=taken.name): o.rename(taken.name)
    for bad in ('_mine', '', 'elsewhere/name'):
        with pytest.raises(ValueError): o.rename(bad)
    o.rename(f'{o.namespace}/{name}-2')
    assert other.name == f'{name}-2'

@of('Object')
def can_be_copied(o):
    o.x, o.big, o.metadata = 1, np.arange(50_000), dict(a=1)
    for path in (None, o.path and f'{o.path}-copy', f'scratch/copy-{o.uuid.hex}', f'durable/copy-{o.uuid.hex}'):
        made = o.copy(path) if path else o.copy()
        assert type(made) is type(o) and made.uuid != o.uuid and made.path == path and made.anonymous == (path is None)
        assert (made.x, made.metadata) == (1, dict(a=1)) and (made.big == np.arange(50_000)).all()
        made.x, made.big = 2, None
        assert o.x == 1 and len(o.big) == 50_000
        if path:
            with pytest.raises(pk.ObjectExistsError): o.copy(path)
        made.drop()

@of('Object')
def is_equal_to_itself(o):
    other = another(o)
    assert o == again(o) and not o != again(o) and o != 5 and o != None  # noqa: E711
    if isinstance(o, (pk.Dict, pk.Array)):
        assert o == other
        with pytest.raises(TypeError, match='unhashable'): hash(o)
    else: assert o != other and hash(o) == hash(again(o)) and {o, again(o), other} == {o, other}

@of('Object')
def announces_changes(o):
    if inside(o): return  # nobody else sees them before the commit, and asyncio's tasks are not in it
    async def main():
        seen, changes = o.version, o.changes()
        waiting = asyncio.ensure_future(changes.__anext__())
        await asyncio.sleep(0)
        assert not waiting.done()
        with pk.transaction(o): o.x, o.y = 1, 2
        change = await asyncio.wait_for(waiting, 60)
        assert change.previous == seen and change.version == o.version > seen
        waiting = asyncio.ensure_future(changes.__anext__())
        await asyncio.sleep(0)
        o.drop()
        with pytest.raises(pk.ObjectNotFoundError): await asyncio.wait_for(waiting, 60)
    asyncio.run(main())

uses_of = {'Object': [  # each of which needs an object that exists
    lambda o: o.x, lambda o: o.version, lambda o: o.metadata, lambda o: o.created, lambda o: o.drop(),
    lambda o: o.copy(), lambda o: setattr(o, 'x', 1), lambda o: delattr(o, 'x'), lambda o: setattr(o, 'metadata', {}),
    lambda o: o.changes()]}


# --- Dict

@of('Dict')
def has_entries(d):
    assert isinstance(d, MutableMapping) and len(d) == 0 and not d and list(d) == []
    with changed(d): d['a'] = 1
    with changed(d): d['a'] = 2
    with changed(d): d['b'] = None
    assert (d['a'], d['b'], len(d), bool(d), 'a' in d, 'c' in d) == (2, None, 2, True, True, False) and again(d) == d
    with changed(d): del d['a']
    assert 'a' not in again(d) and again(d).get('a') is None and d.get('a', 5) == 5 and d.get('b', 5) is None

@of('Dict')
def raises_key_errors(d):
    with changed(d, False):
        for use in (lambda: d['no'], lambda: d.__delitem__('no'), lambda: d.pop('no')):
            with pytest.raises(KeyError) as error: use()
            assert error.value.args == ('no',) and not isinstance(error.value, pk.ParkitError)
        for use in (d.popitem, d.first, d.last):
            with pytest.raises(KeyError): use()
        with pytest.raises(KeyError), d.edit('no'): pass

@of('Dict')
def refuses_unhashable_keys(d):
    d['a'] = 1
    with changed(d, False):
        for key in ([], {}, set(), bytearray(b'a'), (1, [2])):
            for use in (d.__getitem__, d.__contains__, d.get, d.setdefault, d.__delitem__, lambda key: d.pop(key, 0),
                        lambda key: d.__setitem__(key, 1), lambda key: d.update([('b', 1), (key, 1)])):
                with pytest.raises(TypeError): use(key)
    assert d == {'a': 1}

@of('Dict')
def follows_pythons_equality_of_keys(d):
    for keys in ((1, 1.0, True, Decimal(1), np.int64(1), 1 + 0j), (0, -0.0, False), ('a', np.str_('a')),
                 ((1, 'b'), (True, 'b')), (frozenset({1, 2}), frozenset({2.0, True}))):
        d[keys[0]] = 0
        for n, key in enumerate(keys):
            assert d[key] == n and key in d
            d[key] = n + 1
        assert len(d) == 1 and list(d) == [keys[0]] and type(next(iter(d))) is type(keys[0])
        del d[keys[-1]]
        assert not d

@of('Dict')
def is_in_the_order_of_its_keys(d):
    keys = [None, -2**70, -1.5, 0, 1, 1.5, 2**70, '', 'a', 'a\0', 'ab', 'b', 'x'*1000, 'x'*1000 + 'y', 'y', b'', b'a']
    keys += [(), (1,), (1, 'a'), (2,)]
    for key in reversed(keys): d[key] = repr(key)
    assert list(d) == list(d.keys()) == keys and list(reversed(d)) == list(reversed(d.keys())) == keys[::-1]
    values, items = list(map(repr, keys)), [(k, repr(k)) for k in keys]
    assert list(d.values()) == values and list(reversed(d.values())) == values[::-1]
    assert list(d.items()) == items and list(reversed(d.items())) == items[::-1]

@of('Dict')
def has_ranges(d):
    d.update({n: str(n) for n in range(10)})
    assert d.first() == (0, '0') and d.last() == (9, '9')
    assert list(d.range(8)) == [(8, '8'), (9, '9')] and list(d.range(hi=2)) == [(0, '0'), (1, '1')]
    assert list(d.range()) == list(d.items())
    assert [k for k, _ in d.range(3, 6)] == [3, 4, 5] and [k for k, _ in d.range(3, 6, reverse=True)] == [5, 4, 3]
    assert list(d.range(6, 3)) == []

@of('Dict')
def has_live_views(d):
    keys, values, items = d.keys(), d.values(), d.items()
    d.update(a=1, b=2)
    assert 'a' in keys and 2 in values and ('a', 1) in items and len(keys) == len(values) == len(items) == 2
    assert keys & {'a', 'c'} == {'a'} and keys | {'c'} == {'a', 'b', 'c'} and keys - {'a'} == keys ^ {'a'} == {'b'}
    assert keys == {'a', 'b'} and keys.isdisjoint(['c'])
    assert items == {('a', 1), ('b', 2)} and ('a', 2) not in items and repr(keys) == "dict_keys(['a', 'b'])"
    d.clear()
    assert not keys and list(items) == []

@of('Dict')
def is_changed_as_a_dict_is(d):
    with changed(d): assert d.setdefault('a', 1) == 1
    with changed(d, False): assert d.setdefault('a', 2) == 1 and d.pop('no', 5) == 5
    with changed(d): d.update(dict(b=2), c=3)
    with changed(d): d.update([('d', 4)])
    with changed(d): assert d.pop('a') == 1
    with changed(d): assert d.popitem() == ('d', 4)
    with changed(d): d |= dict(e=5)
    assert d == dict(b=2, c=3, e=5) and dict(d) == {**d} == dict(b=2, c=3, e=5)
    with changed(d): d.clear()
    with changed(d, False): d.clear(), d.update(), d.update({})
    assert d == {}

@of('Dict')
def is_compared_by_content(d):
    other = another(d)
    d.update(a=1, b=[2])
    assert d == dict(b=[2], a=1) and dict(a=1, b=[2]) == d and d != other and d != dict(a=1) and d != [('a', 1)]
    other.update(d)
    assert d == other and d | dict(c=1) == dict(a=1, b=[2], c=1) and dict(a=5, c=1) | d == dict(a=1, b=[2], c=1)

@of('Dict')
def makes_others(d):
    made = type(d).fromkeys('ab', 1)
    assert type(made) is type(d) and made == dict(a=1, b=1) and made.anonymous
    d.update(made)
    other = d.copy()
    other['c'] = 1
    assert d == dict(a=1, b=1) and other == dict(a=1, b=1, c=1)

@of('Dict')
def holds_values_of_any_kind(d):
    values = [None, True, 1, -2**80, 1.5, 'text', '', b'bytes', [1, [2]], (1, (2,)), {1: {2: 3}}, {1, 2}]
    values += [frozenset('ab'), datetime(2020, 1, 1), Decimal('1.10'), range(3), len, pk.Dict, ...]
    for n, value in enumerate(values): d[n] = value
    assert list(again(d).values()) == values and [type(v) for v in d.values()] == list(map(type, values))

@of('Dict')
def gives_copies_of_values(d):
    d['a'] = value = [1]
    value.append(2)
    d['a'].append(3)
    assert d['a'] == [1] and d.get('a') is not d.get('a')

@of('Dict')
def edits_values_in_place(d):
    d['a'] = [1]
    with changed(d), d.edit('a') as value: value.append(2)
    with changed(d, False), suppress(_Undo), d.edit('a') as value:
        value.append(3)
        d['b'] = 1
        raise _Undo
    assert again(d) == dict(a=[1, 2])

@of('Dict')
def updates_all_or_nothing(d):
    d['a'] = 1
    with changed(d, False):
        for bad in ([('a', 2), ('b', threading.Lock())], [('a', 2), ([], 1)], [('a', 2), 5], iter([('a', 2), ('b',)])):
            with pytest.raises((TypeError, ValueError)): d.update(bad)
    assert d == dict(a=1)

@of('Dict')
def holds_big_values(d):
    for n in range(3): d[n] = np.full(50_000, n)
    d[0] = np.full(50_000, 7)
    del d[2]
    for each in (d, again(d)): assert [int(v.sum()) for v in each.values()] == [350_000, 50_000]
    mine = d[0] if not inside(d) else d[0].copy()
    mine[0] = 1
    assert d[0][0] == 7

@of('Dict')
def keeps_what_was_read(d):
    "A view never changes, and nobody can write to it"
    d['small'], d['big'] = np.arange(10), np.arange(50_000)
    with pk.snapshot(d): views = [d['small'], d['big']]
    with pk.snapshot(d, zero_copy=False): copies = [d['small'], d['big']]
    d['small'], d['big'] = np.zeros(10), np.zeros(50_000)
    d.clear()
    for found in (views, copies): assert [int(v.sum()) for v in found] == [45, 1_249_975_000]
    for view in views:
        with pytest.raises(ValueError, match='read-only'): view[0] = 1
    for mine in copies: mine[0] = 1

@of('Dict')
def can_be_written_to_while_it_is_iterated(d):
    d.update({n: n for n in range(5)})
    seen = []
    with pytest.raises(RuntimeError, match='changed size during iteration') if inside(d) else nullcontext():
        for key in d:
            seen.append(key)
            d.pop(key)
            d[key + 10] = key
    assert seen == [0, 1, 2, 3, 4] and list(d) == [10, 11, 12, 13, 14]

@of('Dict')
def has_independent_iterators(d):
    d.update(a=1, b=2)
    first, second = iter(d), iter(d)
    assert next(first) == next(second) == 'a'
    first.close()
    assert list(second) == ['b']

@of('Dict', 'Array', 'Queue', 'LifoQueue')
def refuses_writes_in_a_snapshot(o):
    add = dict(Dict=lambda: o.__setitem__('a', 1), Array=lambda: o.append(1)).get(_base(o), lambda: o.put(1))
    with pk.snapshot(o):
        with changed(o, False), pytest.raises(pk.TransactionError, match='snapshot'): add()
        with pytest.raises(pk.TransactionError), pk.transaction(o): pass
    with changed(o): add()

def _base(o): return next(cls.__name__ for cls in type(o).__mro__ if cls.__name__ in suites)

uses_of['Dict'] = [
    len, bool, list, dict, lambda d: list(reversed(d)), lambda d: d['a'], lambda d: d.get('a'), lambda d: 'a' in d,
    lambda d: d.__setitem__('a', 1), lambda d: d.__delitem__('a'), lambda d: d.pop('a'), lambda d: d.pop('a', 1),
    lambda d: d.popitem(), lambda d: d.setdefault('a', 1), lambda d: d.update(a=1), lambda d: d.update(),
    lambda d: d.clear(), lambda d: d.first(), lambda d: d.last(), lambda d: list(d.range(1, 2)),
    lambda d: list(d.keys()), lambda d: list(d.values()), lambda d: list(d.items()),
    lambda d: d.edit('a').__enter__(), lambda d: d == {}, lambda d: d | {}]


# --- Array

@of('Array')
def has_items(a):
    assert isinstance(a, Sequence) and len(a) == 0 and not a and list(a) == [] and a.maxsize is None
    with changed(a): a.append('a')
    with changed(a): a.extend(iter('bc'))
    with changed(a): a += 'd'
    assert list(again(a)) == list('abcd') and len(a) == 4 and a
    assert (a[0], a[-1], a[np.int64(1)], a[True]) == ('a', 'd', 'b', 'b')
    with changed(a): a[1] = a[-1] = 'x'
    assert again(a) == ['a', 'x', 'c', 'x'] and list(reversed(a)) == ['x', 'c', 'x', 'a'] and 'x' in a and 'b' not in a
    assert a.index('x') == 1 and a.index('x', 2) == 3 and a.count('x') == 2
    with pytest.raises(ValueError): a.index('no')

@of('Array')
def gives_items_up_at_both_ends(a):
    a.extend(range(5))
    with changed(a): assert a.pop() == 4
    with changed(a): assert a.popleft() == 0
    assert a == [1, 2, 3] and a[0] == 1 and a[-1] == 3
    a.append(7)
    assert a == [1, 2, 3, 7]
    with changed(a): a.clear()
    with changed(a, False):
        a.clear(), a.extend([]), a.extend(iter(()))
        for use in (a.pop, a.popleft):
            with pytest.raises(IndexError, match='empty'): use()
    a.append(1)
    assert a == [1] and a.popleft() == 1 and not a
    a.extend(range(6))
    assert [a.pop(0), a.pop(-5), a.pop(3), a.pop(-1)] == [0, 1, 5, 4] and a == [2, 3]
    a.append(4)
    with changed(a, False):
        for i, error in ((1, TypeError), (-2, TypeError), (3, IndexError), (-4, IndexError), ('a', TypeError)):
            with pytest.raises(error): a.pop(i)

@of('Array')
def is_repeated(a):
    a.extend(['a', np.arange(50_000)])
    with changed(a, False):
        assert [len(a*3), len(2*a), a*0, a*-1] == [6, 4, [], []] and type(a*1) is list
        with pytest.raises(TypeError): a*1.5
    same = a
    with changed(a): a *= 2
    assert a is same and len(again(a)) == 4 and a[2] == 'a' and a[3][-1] == 49_999
    a *= 1
    assert len(a) == 4
    a *= 0
    assert a == [] and a is same
    with pytest.raises(TypeError): a *= 'b'

@of('Array')
def has_slices(a):
    items = list(range(7))
    a.extend(range(-3, 7))
    for _ in range(3): a.popleft()  # so that the first item is not the first ever
    bounds = (None, -9, -7, -2, 0, 1, 3, 7, 9)
    for start in bounds:
        for stop in bounds:
            for step in (None, 1, 2, -1, -3): assert a[start:stop:step] == items[start:stop:step], (start, stop, step)
    with pytest.raises(ValueError): a[::0]

@of('Array')
def refuses_bad_indexes(a):
    a.extend('abc')
    with changed(a, False):
        for i in (3, -4, 10**30):
            with pytest.raises(IndexError): a[i]
            with pytest.raises(IndexError): a[i] = 1
        for i in ('a', 1.0, None):
            with pytest.raises(TypeError): a[i]
            with pytest.raises(TypeError): a[i] = 1
        with pytest.raises(TypeError): a[0:1] = [1]
    assert a == list('abc')

@of('Array')
def is_compared_as_a_list_is(a):
    other = another(a)
    a.extend([1, 2])
    assert a == [1, 2] and [1, 2] == a and a != [1] and a != (1, 2) and a != other and a != 'ab'
    other.extend(a)
    assert a == other

@of('Array')
def extends_all_or_nothing(a):
    a.append(1)
    def broken():
        yield 2
        raise KeyError('broken')
    with changed(a, False):
        with pytest.raises(TypeError): a.extend([2, threading.Lock()])
        with pytest.raises(TypeError): a.extend(5)
        with pytest.raises(KeyError): a.extend(broken())
    assert a == [1]

@of('Array')
def can_be_extended_by_itself(a):
    a.extend([1, 2])
    a.extend(a)
    a += a
    assert a == [1, 2]*4

@of('Array')
def holds_big_items(a):
    a.extend(np.full(50_000, n) for n in range(3))
    a[0] = np.full(50_000, 7)
    assert [int(v[0]) for v in again(a)] == [7, 1, 2] and (a.pop() == 2).all() and (a.popleft() == 7).all()
    with pk.snapshot(a): view = a[0]
    a.clear()
    assert view.sum() == 50_000
    with pytest.raises(ValueError, match='read-only'): view[0] = 5

@of('Array')
def drops_from_the_left_with_a_maxsize(a):
    ring, model = another(a, maxsize=3), deque(maxlen=3)
    assert ring.maxsize == again(ring).maxsize == 3
    for items in ([1, 2], [3, 4], range(10), [], 'a'):
        ring.extend(items)
        model.extend(items)
        assert ring == list(model) and ring[0] == model[0]
    with changed(ring): ring.append('b')
    assert ring == [9, 'a', 'b'] and ring[-3:] == ring[:] and ring.pop() == 'b'
    if ring.path:
        with pytest.raises(pk.ObjectExistsError, match='maxsize'): type(a)(ring.path, maxsize=4)
        assert type(a)(ring.path, maxsize=3) == ring
    for bad in (0, -1):
        with pytest.raises(ValueError, match='maxsize'): another(a, maxsize=bad)

@of('Array')
def can_be_appended_to_while_it_is_iterated(a):
    a.extend(range(3))
    seen = []
    with pytest.raises(RuntimeError, match='changed size during iteration') if inside(a) else nullcontext():
        for n in a:
            seen.append(n)
            a.append(n + 3)
    assert (seen, list(a)) == (([0], [*range(4)]) if inside(a) else ([0, 1, 2], [*range(6)]))

uses_of['Array'] = [
    len, bool, list, lambda a: list(reversed(a)), lambda a: a[0], lambda a: a[:], lambda a: a.__setitem__(0, 1),
    lambda a: a.append(1), lambda a: a.extend([1]), lambda a: a.extend([]), lambda a: a.__iadd__([1]),
    lambda a: a.pop(), lambda a: a.popleft(), lambda a: a.clear(), lambda a: a.index(1), lambda a: a.count(1),
    lambda a: 1 in a, lambda a: a == [], lambda a: a.maxsize]


# --- Queue and LifoQueue

def _order(q, items): return list(items)[::-1] if isinstance(q, pk.LifoQueue) else list(items)

@of('Queue', 'LifoQueue')
def gives_items_in_order(q):
    assert (q.qsize(), q.empty(), q.full(), q.maxsize) == (0, True, False, 0)
    for n in range(3):
        with changed(q): q.put(n)
    with changed(q): q.put_many(iter([3, 4]))
    assert (again(q).qsize(), q.empty(), q.full()) == (5, False, False)
    with changed(q): first = again(q).get()
    with changed(q): some = q.get_many(3)
    assert [first, *some, q.get_nowait()] == _order(q, range(5)) and q.empty()

@of('Queue', 'LifoQueue')
def gives_each_item_once(q):
    q.put_many(range(50))
    taken = [r.get() for r in [q, again(q), pickle.loads(pickle.dumps(q))]*10 for _ in range(2) if not q.empty()]
    assert taken == _order(q, range(50)) and q.empty()

@of('Queue', 'LifoQueue')
def is_empty_at_last(q):
    with changed(q, False):
        for use in (q.get_nowait, lambda: q.get(False), lambda: q.get(block=False), lambda: q.get_many(3, False)):
            with pytest.raises(queue.Empty): use()
        with pytest.raises(ValueError): q.get(timeout=-1)
        with pytest.raises(ValueError): q.get_many(0)
        with pytest.raises(pk.TransactionError if inside(q) else queue.Empty): q.get(timeout=0.01)

@of('Queue', 'LifoQueue')
def is_full_at_its_maxsize(q):
    small = another(q, maxsize=2)
    assert small.maxsize == again(small).maxsize == 2
    small.put_many([1, 2])
    assert small.full() and again(small).full()
    with changed(small, False):
        for use in (lambda: small.put_nowait(3), lambda: small.put(3, False), lambda: small.put_many([3], block=False)):
            with pytest.raises(queue.Full): use()
        with pytest.raises(pk.TransactionError if inside(small) else queue.Full): small.put(3, timeout=0.01)
        with pytest.raises(ValueError, match='never fit'): small.put_many([1, 2, 3])
    first = small.get()
    with changed(small, False), pytest.raises(queue.Full): small.put_many([3, 4], block=False)
    small.put(3)
    assert [first, *small.get_many(5)] == ([2, 3, 1] if isinstance(q, pk.LifoQueue) else [1, 2, 3])
    if small.path:
        with pytest.raises(pk.ObjectExistsError, match='maxsize'): type(q)(small.path, maxsize=3)

@of('Queue', 'LifoQueue')
def has_no_limit_with_a_maxsize_of_0(q):
    for maxsize in (0, -1, None): assert another(q, maxsize=maxsize).maxsize == 0

@of('Queue', 'LifoQueue')
def puts_all_or_nothing(q):
    with changed(q, False):
        with pytest.raises(TypeError): q.put_many([1, threading.Lock()])
        with pytest.raises(TypeError): q.put(threading.Lock())
        q.put_many([])
    assert q.empty()

@of('Queue', 'LifoQueue')
def waits_for_an_item(q):
    if inside(q): return  # it would be for ever, which is refused: `is_empty_at_last`
    with in_thread(lambda: [q.get(timeout=60), *again(q).get_many(5, timeout=60)]) as found:
        q.put('a')
        wait_for(q.empty)
        q.put('b')
    assert found == [['a', 'b']]

@of('Queue', 'LifoQueue')
def waits_for_room(q):
    if inside(q): return
    small = another(q, maxsize=1)
    small.put(1)
    with in_thread(lambda: (small.put(2, timeout=60), again(small).put_many([3], timeout=60))):
        assert [small.get(timeout=60) for _ in range(3)] == [1, 2, 3]

@of('Queue', 'LifoQueue')
def waits_in_asyncio(q):
    if inside(q): return
    async def main():
        small = another(q, maxsize=1)
        getting = asyncio.ensure_future(small.aget())
        await small.aput(1)
        assert await asyncio.wait_for(getting, 60) == 1
        await small.aput(2)
        putting = asyncio.ensure_future(small.aput(3))
        await asyncio.sleep(0)
        assert not putting.done() and await small.aget() == 2
        await asyncio.wait_for(putting, 60)
        assert small.get() == 3
    asyncio.run(main())

@of('Queue', 'LifoQueue')
def counts_what_is_to_be_done(q):
    q.join()
    with changed(q, False), pytest.raises(ValueError): q.task_done()
    q.put_many('ab')
    q.get()
    with changed(q): q.task_done()
    with pytest.raises(pk.TransactionError if inside(q) else pk.WaitTimeout): q.join(timeout=0.01)
    again(q).task_done()  # as `queue.Queue`, it does not look whether the item was taken
    q.join(timeout=0)
    with pytest.raises(ValueError, match='more often'): q.task_done()

@of('Queue', 'LifoQueue')
def joins_when_all_is_done(q):
    if inside(q): return
    q.put_many('ab')
    with in_thread(lambda: q.join(timeout=60)):
        for _ in range(2): q.get(), q.task_done()

@of('Queue', 'LifoQueue')
def ends(q):
    q.put_many('ab')
    with changed(q): q.shutdown()
    for use in (lambda: q.put('c'), lambda: again(q).put_nowait('c'), lambda: q.put_many(['c'])):
        with pytest.raises(pk.QueueShutDown): use()
    assert q.get_many(5) == _order(q, 'ab')
    for use in (q.get, q.get_nowait, lambda: q.get(timeout=1), lambda: q.get_many(2)):
        with pytest.raises(pk.QueueShutDown): use()
    other = another(q)
    other.put('a')
    other.shutdown(immediate=True)
    assert other.empty()
    other.join(timeout=0)
    with pytest.raises(pk.QueueShutDown): other.get()

@of('Queue', 'LifoQueue')
def wakes_who_waits_when_it_ends(q):
    if inside(q): return
    def get():
        with pytest.raises(pk.QueueShutDown): q.get(timeout=60)
    with in_thread(get): q.shutdown()

@of('Queue', 'LifoQueue')
def gets_back_what_was_taken_in_vain(q):
    q.put_many('abc')
    before = shown(q)
    with rolled_back(q):
        q.get_many(2)
        q.put('d')
        q.task_done()
        q.shutdown()
    assert shown(q) == before and q.get_many(5) == _order(q, 'abc')

@of('Queue', 'LifoQueue')
def holds_big_items_until_they_are_taken(q):
    q.put_many([np.full(50_000, 1), np.full(50_000, 2)])
    mine = q.get()
    mine[0] = 7
    assert mine.sum() == 50_000*mine[1] + 7 - mine[1] and len(q.get()) == 50_000 and q.empty()

uses_of['Queue'] = [
    lambda q: q.put(1), lambda q: q.put_nowait(1), lambda q: q.put_many([1]), lambda q: q.put_many([]),
    lambda q: q.get(), lambda q: q.get(False), lambda q: q.get(timeout=1), lambda q: q.get_nowait(),
    lambda q: q.get_many(2), lambda q: q.qsize(), lambda q: q.empty(), lambda q: q.full(), lambda q: q.maxsize,
    lambda q: q.task_done(), lambda q: q.join(), lambda q: q.shutdown()]


# --- File

@of('File')
def is_empty_at_first(f):
    assert bytes(f.content) == b'' and f.size == 0 and f.content.readonly
    with f.open() as file: assert file.read() == b''

@of('File')
def stores_what_is_written(f):
    for data in (b'some bytes', bytes(range(256))*2000, b''):
        with changed(f), f.open('wb') as file: assert file.write(data) == len(data)
        assert bytes(f.content) == bytes(again(f).content) == data and f.size == len(data)
        with again(f).open('rb') as file: assert file.read() == data

@of('File')
def is_stored_when_it_is_closed(f):
    file = f.open('wb')
    file.write(b'new')
    with changed(f, False): file.flush()
    assert f.size == 0
    with changed(f): file.close()
    with changed(f, False): file.close()
    assert bytes(f.content) == b'new' and file.closed

@of('File')
def forgets_what_was_written_in_vain(f):
    with f.open('wb') as file: file.write(b'old')
    for mode, data in (('wb', b'new'), ('r+b', b'new'), ('ab', b'new'), ('w', 'new')):
        with changed(f, False), suppress(_Undo), f.open(mode) as file:
            file.write(data)
            raise _Undo
    assert bytes(f.content) == b'old'

@of('File')
def is_a_file_object(f):
    with f.open('w+b') as file:
        assert isinstance(file, io.IOBase) and file.readable() and file.writable() and file.seekable()
        file.write(b'0123456789')
        assert file.seek(-3, os.SEEK_END) == 7 and file.tell() == 7 and file.read(2) == b'78'
        file.seek(2)
        file.write(b'ab')
        assert file.truncate(6) == 6 and file.seek(0) == 0 and file.read() == b'01ab45'
    with f.open('rb') as file:
        assert not file.writable() and list(file) == [b'01ab45'] and file.readinto(bytearray(3)) == 0
        with pytest.raises(io.UnsupportedOperation): file.write(b'a')
    assert bytes(f.content) == b'01ab45'

@of('File')
def opens_in_every_mode(f):
    with pytest.raises(FileExistsError) if f.size else f.open('xb') as file: file.write(b'a')
    with pytest.raises(FileExistsError), f.open('xb'): pass
    with f.open('ab') as file: file.write(b'b')
    with f.open('r+b') as file:
        assert file.read(1) == b'a'
        file.seek(0)
        file.write(b'c')
    with f.open('a+b') as file:
        file.seek(0)
        assert file.read() == b'cb'
    assert bytes(f.content) == b'cb'
    for mode in ('', 'z', 'rw', 'rbt', 'b', '+', 'rb+w'):
        with pytest.raises(ValueError): f.open(mode)
    for mode in ('rb', 'wb'):
        with pytest.raises(ValueError): f.open(mode, encoding='utf-8')

@of('File')
def holds_text(f):
    with f.open('w', newline='\r\n') as file: file.write('ä\nb\n')
    assert bytes(f.content) == 'ä\r\nb\r\n'.encode()
    with f.open('r') as file: assert file.read() == 'ä\nb\n'
    with f.open('w', encoding='latin-1') as file: print('ö', file=file)
    with f.open('r', encoding='latin-1') as file: assert list(file) == ['ö\n']
    with f.open('r', errors='replace') as file: assert file.read() == '\ufffd\n'
    with f.open('a', encoding='latin-1') as file: file.write('ü')
    assert bytes(f.content) == 'ö\nü'.encode('latin-1')

@of('File')
def keeps_the_content_that_was_read(f):
    with f.open('wb') as file: file.write(b'old'*50_000)
    content, reader = f.content, f.open()
    assert reader.read(3) == b'old'
    with f.open('wb') as file: file.write(b'new')
    assert bytes(content) == b'old'*50_000 and reader.read() == b'old'*49_999 and bytes(f.content) == b'new'
    reader.close()
    with pytest.raises(TypeError): content[0] = 1

@of('File')
def refuses_to_undo_anothers_change(f):
    with f.open('wb') as file: file.write(b'old')
    for mode in ('r+b', 'ab'):
        file = f.open(mode)
        file.write(b'mine')
        with again(f).open('wb') as other: other.write(b'theirs')
        with pytest.raises(pk.FileChangedError): file.close()
        assert file.closed and bytes(f.content) == b'theirs'

@of('File')
def takes_back_what_was_stored_in_vain(f):
    with f.open('wb') as file: file.write(b'old')
    with rolled_back(f):
        with f.open('wb') as file: file.write(b'new'*100_000)
        assert f.size == 300_000
    assert bytes(f.content) == bytes(again(f).content) == b'old'

@of('File')
def serves_other_libraries(f):
    with f.open('wb') as file: np.save(file, np.arange(1000))
    with f.open() as file: assert (np.load(file) == np.arange(1000)).all()
    with f.open('w+b') as file, zipfile.ZipFile(file, 'w') as archive: archive.writestr('a', 'text')
    with f.open() as file, zipfile.ZipFile(file) as archive: assert archive.read('a') == b'text'
    target = io.BytesIO()
    with f.open() as file: shutil.copyfileobj(file, target)
    assert target.getvalue() == bytes(f.content)

@of('File')
def is_copied_with_its_content(f):
    with f.open('wb') as file: file.write(b'old')
    other = f.copy()
    with f.open('wb') as file: file.write(b'new')
    assert bytes(other.content) == b'old'

uses_of['File'] = [
    lambda f: f.content, lambda f: f.size, lambda f: f.open(), lambda f: f.open('r'), lambda f: f.open('wb'),
    lambda f: f.open('ab')]


# --- Lock

@of('Lock')
def is_held_by_one(k):
    assert not k.locked() and k.acquire() is True and k.locked() and again(k).locked()
    for arguments in (dict(blocking=False), dict(timeout=0)): assert again(k).acquire(**arguments) is False
    assert again(k).acquire(False) is False
    k.release()
    assert not k.locked() and k.acquire(timeout=0) is True and k.acquire(False) is False
    k.release()

@of('Lock')
def is_released_at_the_end_of_a_block(k):
    with k as held: assert held is True and k.locked()
    with suppress(_Undo), k: raise _Undo
    assert not again(k).locked()

@of('Lock')
def refuses_to_be_released_by_who_does_not_hold_it(k):
    with pytest.raises(RuntimeError): k.release()
    with k, pytest.raises(RuntimeError): again(k).release()
    with pytest.raises(RuntimeError): k.release()

@of('Lock')
def refuses_odd_arguments(k):
    with pytest.raises(ValueError): k.acquire(False, 1)
    with pytest.raises(ValueError): k.acquire(True, -2)
    assert not k.locked()

@of('Lock')
def says_who_holds_it(k):
    assert k.holder is None
    with k: assert again(k).holder == os.getpid()
    assert again(k).holder is None

@of('Lock')
def waits_for_the_holder(k):
    if inside(k): return  # the other thread would not find a lock that was made in this transaction
    k.acquire()
    other, events = again(k), []
    def wait():
        with other: events.append('taken')
    with in_thread(wait):
        assert not again(k).acquire(timeout=0.01)
        events.append('released')
        k.release()
    assert events == ['released', 'taken']

@of('Lock')
def waits_for_the_holder_in_asyncio(k):
    async def main():
        other, events = again(k), []
        async def wait():
            async with other: events.append('taken')
        async with k:
            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(0.01)
            events.append('released')
        await asyncio.wait_for(waiting, 60)
        assert events == ['released', 'taken'] and not k.locked()
    if not inside(k): asyncio.run(main())

@of('Lock')
def is_free_again_once_it_is_dropped(k):
    if k.anonymous: return
    with k:
        again(k).drop()
        with type(k)(k.path): pass

uses_of['Lock'] = [
    lambda k: k.acquire(), lambda k: k.acquire(False), lambda k: k.acquire(timeout=1), lambda k: k.__enter__(),
    lambda k: k.locked(), lambda k: k.holder]


# --- Event

@of('Event')
def is_set_and_cleared(e):
    assert e.is_set() is False
    with changed(e): e.set()
    with changed(e, False): e.set()
    assert again(e).is_set() is True and e.wait() is True and again(e).wait(0) is True
    with changed(e): e.clear()
    with changed(e, False): e.clear()
    assert not again(e).is_set()

@of('Event')
def gives_up_waiting_in_time(e):
    if inside(e):
        with pytest.raises(pk.TransactionError): e.wait(0.01)
    else: assert e.wait(0.01) is False and e.wait(0) is False

@of('Event')
def wakes_who_waits(e):
    if inside(e): return
    with in_thread(lambda: again(e).wait(60)) as found: e.set()
    assert found == [True]

@of('Event')
def wakes_who_waits_in_asyncio(e):
    async def main():
        waiting = asyncio.ensure_future(e.wait_async(30))
        await asyncio.sleep(0)
        again(e).set()
        assert await waiting is True
        e.clear()
        assert await e.wait_async(0.01) is False
    if not inside(e): asyncio.run(main())

@of('Event')
def takes_back_what_was_set_in_vain(e):
    with rolled_back(e): e.set()
    assert not e.is_set()
    e.set()
    with rolled_back(e): e.clear()
    assert again(e).is_set()

uses_of['Event'] = [
    lambda e: e.is_set(), lambda e: e.set(), lambda e: e.clear(), lambda e: e.wait(), lambda e: e.wait(0)]


# --- classes with code of their own, which keep the contract

class Counted(pk.Object):
    "With an attribute that has an initial value, and a method"
    count = 0
    def add(self): self.count += 1

class Scrambled:
    "Stores each value as bytes that nobody else can read, some of them with metadata"
    def get_metadata(self, value): return dict(kind='list') if isinstance(value, list) else None
    def encode_value(self, value): return bytes(super().encode_value(value))[::-1]
    def decode_value(self, bytestring, metadata):
        data = bytes(bytestring)[::-1]
        value = super().decode_value(memoryview(data) if isinstance(bytestring, memoryview) else data)
        assert (metadata == dict(kind='list')) == isinstance(value, list)
        return value

class ScrambledDict(Scrambled, pk.Dict): pass
class ScrambledArray(Scrambled, pk.Array): pass
class ScrambledQueue(Scrambled, pk.Queue): pass
class ScrambledLifoQueue(Scrambled, pk.LifoQueue): pass

class Hooked(pk.Dict):
    "Gives what its hook is given"
    def get_metadata(self, value): return type(value).__name__
    def decode_value(self, bytestring, metadata):
        return [type(bytestring), metadata, self.is_transaction, super().decode_value(bytestring)]

subclasses = dict(Dict=[ScrambledDict], Array=[ScrambledArray], Queue=[ScrambledQueue], LifoQueue=[ScrambledLifoQueue])

def counts(o):
    with changed(o, False): assert o.count == Counted.count == 0
    with changed(o): o.add()
    assert again(o).count == 1 and o.copy().count == 1
    del o.count
    assert again(o).count == 0

def gives_hooks_what_they_need(d):
    d['a'] = [1]
    assert d['a'] == [memoryview if inside(d) else bytes, 'list', inside(d), [1]]
    with pk.snapshot(d): assert list(d.values()) == [[memoryview, 'list', True, [1]]]
    with pk.snapshot(d, zero_copy=False): assert d.get('a') == [bytes, 'list', True, [1]]
    d['big'] = 'x'*300_000
    assert d['big'][1:] == ['str', inside(d), 'x'*300_000]
    d.clear()


# --- the states

def _name(): return 'o' + os.urandom(6).hex()

def fresh(cls, space, contract): contract(cls(f'{space}/{_name()}'))

def opened_again(cls, space, contract):
    made = cls(f'{space}/{_name()}')
    made.site.close()
    contract(cls(made.path, create=False))

def anonymous(cls, space, contract): contract(cls())

def made_in_a_transaction(cls, space, contract):
    path = f'{space}/{_name()}'
    with pk.transaction(space, timeout=60):
        contract(cls(path))
        o = pk.Namespace(space).get(path.partition('/')[2])
        before = shown(o) if o is not None else ''
    if o is not None: assert shown(again(o)) == before

def in_a_transaction_that_commits(cls, space, contract):
    o = cls(f'{space}/{_name()}')
    with pk.transaction(o):
        contract(o)
        before = shown(o)
    assert shown(o) == before

def in_a_transaction_that_rolls_back(cls, space, contract):
    o = cls(f'{space}/{_name()}')
    o.x = 1
    before = shown(o)
    with rolled_back(o):
        del o.x
        contract(o)
    assert shown(o) == before == shown(again(o))

def in_a_savepoint_that_is_undone(cls, space, contract):
    with pk.transaction(space, timeout=60): in_a_transaction_that_rolls_back(cls, space, contract)

def a_copy(cls, space, contract): contract(cls(f'{space}/{_name()}').copy(f'{space}/{_name()}'))

def in_a_transaction_of_asyncio(cls, space, contract):
    async def main():
        async with pk.transaction(space, timeout=60): contract(cls(f'{space}/{_name()}'))
    asyncio.run(main())

def anonymous_in_a_transaction(cls, space, contract):
    o = cls()
    with pk.transaction(o): contract(o)

def anonymous_in_a_transaction_that_rolls_back(cls, space, contract):
    o = cls()
    before = shown(o)
    with rolled_back(o): contract(o)
    assert shown(o) == before

def in_a_thread(cls, space, contract):
    with in_thread(partial(contract, cls(f'{space}/{_name()}'))): pass

def in_a_second_process(cls, space, contract): _elsewhere(cls(f'{space}/{_name()}'), contract)
def in_a_fork(cls, space, contract): _elsewhere(cls(f'{space}/{_name()}'), contract, fork=True)

def anonymous_in_a_second_process(cls, space, contract):
    o = cls()
    _elsewhere(o, contract)

def _in(space, *states): return [(state, space) for state in states]

states = [
    *_in('scratch', fresh, opened_again, a_copy, made_in_a_transaction, in_a_transaction_that_commits,
         in_a_transaction_that_rolls_back, in_a_savepoint_that_is_undone, in_a_transaction_of_asyncio, in_a_thread,
         in_a_fork, in_a_second_process),
    *_in('durable', fresh, opened_again, in_a_transaction_that_commits, in_a_transaction_that_rolls_back,
         in_a_second_process),
    *_in('', anonymous, anonymous_in_a_transaction, anonymous_in_a_transaction_that_rolls_back,
         anonymous_in_a_second_process)]

_server = '''
import base64, pickle, traceback, test_conformance
from helpers import forked
while True:
    contract, site, reference, fork = hear()
    contract, site = getattr(test_conformance, contract), pk.set_site(site)
    o = pickle.loads(base64.b64decode(reference))
    try:
        forked(contract, o) if fork else contract(o)
        failure = ''
    except BaseException: failure = traceback.format_exc()
    del o
    site.close()
    say(failure)
'''

def _elsewhere(o, contract, fork=False):
    "Run the contract in the second process"
    _child[0].say([contract.__name__, o.site.path, base64.b64encode(pickle.dumps(o)).decode(), fork])
    failure = _child[0].hear()
    if failure: raise AssertionError(f'in the second process:\n{failure}')

_child = []

@pytest.fixture(scope='module', autouse=True)
def second_process():
    with Child(None, _server) as child:
        _child[:] = [child]
        yield
        _child.clear()

@pytest.fixture
def site():
    "In memory, where nothing waits for the disk"
    folder = tempfile.mkdtemp(prefix='parkit-conformance-', dir='/dev/shm' if os.access('/dev/shm', os.W_OK) else None)
    site = pk.set_site(f'{folder}/site')
    pk.Namespace('scratch', durable=False)
    pk.Namespace('durable', durable=True)
    yield site
    gc.collect()  # anonymous objects in cycles hold the site
    site.close()
    shutil.rmtree(folder)


def _parts():
    "Each part of a contract, with the classes that must keep it"
    found = {contract: [Counted] for contract in suites['Object']}
    found |= {counts: [Counted], gives_hooks_what_they_need: [Hooked]}
    for name, contracts in suites.items():
        cls = getattr(pk, name)
        for contract in suites['Object']: found[contract].append(cls)
        for contract in contracts if name != 'Object' else ():
            found.setdefault(contract, []).extend([cls, *subclasses.get(name, ())])
    return found

def _id(contract): return '-'.join([*(name for name in suites if contract in suites[name]), contract.__name__])

parts = _parts()

@pytest.mark.parametrize('contract', parts, ids=_id)
def test_contract(site, contract):
    failures = {}  # text of the traceback -> where it came
    for cls in parts[contract]:
        for state, space in states:
            try: state(cls, space, contract)
            except (Exception, pytest.fail.Exception):
                text = traceback.format_exc().partition(f'in {contract.__name__}\n')
                failures.setdefault(text[2] or text[0], []).append(f'{cls.__name__} {state.__name__} {space}')
    report = [f'{", ".join(where)}:\n{text}' for text, where in failures.items()]
    if report: pytest.fail('\n'.join(report), pytrace=False)


def test_every_class_has_its_suite():
    public = {name for name in pk.__all__ if isinstance(cls := getattr(pk, name), type) and issubclass(cls, pk.Object)}
    assert public - {'Unknown', 'Task'} == {name for name in suites if suites[name]}
