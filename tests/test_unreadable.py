"""Entries that cannot be read: the error names the place, and no other entry suffers.

Their classes lie in a module that is there while they are stored and gone, or broken, afterwards."""
import asyncio, contextlib, enum, importlib, queue, sys, types

import numpy as np, pytest

import parkit as pk
from helpers import blobs, run
from parkit.codecs import encode
from parkit.objects import _encode_info
from parkit.storage import BLOBS, CLASSES, OBJECTS
from parkit.transactions import read, write

pytestmark = pytest.mark.filterwarnings('ignore:it was set aside:RuntimeWarning')

class NeedsMore(Exception):
    def __init__(self, text, more): super().__init__(text)

_code = '''
import enum
from dataclasses import dataclass
@dataclass(unsafe_hash=True)
class Plain: n: object
class Color(enum.Enum): RED = 1
class Level(enum.IntEnum): LOW = 7
class Broken(Plain):
    def __reduce__(self): return Broken, (self.n,)
    def __setstate__(self, state): pass
'''

@pytest.fixture
def module():
    "A module with classes; `lose` takes it away"
    made = types.ModuleType('here_and_gone')
    made.__spec__ = None
    exec(_code, vars(made))
    sys.modules['here_and_gone'] = made
    made.lose = lambda: sys.modules.pop('here_and_gone')
    made.bring_back = lambda: sys.modules.__setitem__('here_and_gone', made)
    yield made
    sys.modules.pop('here_and_gone', None)

KINDS = {  # a value, and what makes it unreadable
    'class is gone': (lambda m: m.Plain(1), lambda m, store: m.lose()),
    'class with arrays is gone': (lambda m: [m.Plain(1), np.zeros(10**5)], lambda m, store: m.lose()),
    'class has changed': (lambda m: m.Color.RED, lambda m, store: setattr(m, 'Color', enum.Enum('Color', dict(BLUE=5)))),
    'constructor raises': (lambda m: m.Broken(1), lambda m, store: setattr(m.Broken, '__init__', lambda self: None)),
    'exception that wants more': (lambda m: NeedsMore('text', 1), lambda m, store: None),
    'blob is lost': (lambda m: np.arange(10**6), lambda m, store: [(store.path, __import__('os').unlink(p)) for p in _blob_paths(store)]),
}

def _blob_paths(store): return [f'{store.path}/blobs/{name}' for name in blobs(store)]

@pytest.fixture(params=KINDS)
def kind(request, module):
    make, ruin = KINDS[request.param]
    return types.SimpleNamespace(value=make(module), ruin=lambda store: ruin(module, store), name=request.param)

def _fails(work, *parts):
    with pytest.raises(pk.DecodeError) as caught: work()
    assert all(p in str(caught.value) for p in parts), caught.value
    assert isinstance(caught.value.__cause__, Exception)
    return caught.value

@pytest.fixture
def ruined(kind, d):
    "A Dict of three entries, the second of which cannot be read"
    d.update({'a': 1, 'b': kind.value, 'c': 3})
    kind.ruin(d._store)
    return d


def test_reading_says_where(ruined):
    for work in (lambda: ruined['b'], lambda: ruined.get('b'), lambda: ruined.setdefault('b', 1), lambda: list(ruined.values()),
                 lambda: list(ruined.items()), lambda: list(ruined.range('b')), lambda: ruined == {}, lambda: ruined.pop('b'),
                 lambda: ruined.pop('b', None), lambda: dict(ruined), lambda: ruined.edit('b').__enter__()):
        _fails(work, "Dict('n/d')['b']", 'delete it')
        assert len(ruined) == 3 and 'b' in ruined

def test_it_hides_no_other(ruined):
    assert list(ruined) == ['a', 'b', 'c'] and ruined['c'] == 3 and ruined.first() == ('a', 1) and ruined.last() == ('c', 3)
    assert list(ruined.items(errors='skip')) == list(ruined.range(errors='skip')) == [('a', 1), ('c', 3)]
    assert list(reversed(ruined.items(errors='skip'))) == [('c', 3), ('a', 1)] and list(ruined.values(errors='skip')) == [1, 3]
    (_, a), (key, error), (_, c) = ruined.items(errors='return')
    assert (a, key, c) == (1, 'b', 3) and isinstance(error, pk.DecodeError) and error.__cause__ is not None
    assert [type(v) for v in ruined.values(errors='return')] == [int, pk.DecodeError, int]
    with pytest.raises(ValueError, match="'skip'"): ruined.items(errors='ignore')

@pytest.mark.parametrize('remove, left', [(lambda d: d.__delitem__('b'), dict(a=1, c=3)), (lambda d: d.clear(), {}), (lambda d: d.drop(), None),
                                          (lambda d: d.update(b=2), dict(a=1, b=2, c=3)), (lambda d: d.__setitem__('b', 2), dict(a=1, b=2, c=3))],
                         ids='del clear drop update overwrite'.split())
def test_it_can_be_removed(ruined, remove, left):
    store = ruined._store
    remove(ruined)
    assert (dict(ruined) if ruined.exists else None) == left and not blobs(store)

def test_it_can_be_removed_in_a_transaction(ruined):
    with pk.transaction(ruined):
        _fails(lambda: ruined.pop('b'), "['b']")
        del ruined['b']
        ruined['d'] = 4
    assert ruined == {'a': 1, 'c': 3, 'd': 4}

def test_copies_keep_it(ruined, kind, module):
    if kind.name == 'blob is lost': pytest.skip('a copy wants all blobs')
    copied = ruined.copy('n/copy')
    _fails(lambda: copied['b'], "Dict('n/copy')['b']")
    assert copied['c'] == 3


# --- arrays

@pytest.fixture
def array(kind, scratch):
    a = pk.Array('n/a')
    a.extend([0, 1, kind.value])
    kind.ruin(a._store)
    return a

def test_array(array):
    array.append(3)
    for work in (lambda: array[2], lambda: list(array), lambda: array[1:], lambda: array[::2], lambda: array.index(3), lambda: array == [1]):
        _fails(work, "Array('n/a')[2]")
    _fails(lambda: list(reversed(array)), "Array('n/a')[-2]")
    _fails(lambda: array[-2], "Array('n/a')[-2]")
    assert list(array.items(errors='skip')) == [(0, 0), (1, 1), (3, 3)]
    assert [type(v) for _, v in array.items(errors='return')] == [int, int, pk.DecodeError, int]
    assert array.pop() == 3
    _fails(array.pop, "[-1]")
    assert len(array) == 3
    del array[-1]
    assert list(array) == [0, 1] and not blobs(array._store)

def test_first_item_of_an_array(kind, scratch):
    a = pk.Array('n/a', maxsize=3)
    a.extend([kind.value, 1, 2])
    kind.ruin(a._store)
    _fails(a.popleft, '[0]')
    a.append(3)  # pushes it out
    assert list(a) == [1, 2, 3]
    a[0] = 5
    assert a.popleft() == 5

def test_overwritten_item_of_an_array(array):
    array[2] = 2
    assert list(array) == [0, 1, 2] and not blobs(array._store)


# --- queues

@pytest.fixture(params=[pk.Queue, pk.LifoQueue])
def line(request, kind, scratch):
    "A queue that gives 1, what cannot be read, 3"
    q = request.param('n/q')
    q.put_many([1, kind.value, 3][::1 if request.param is pk.Queue else -1])
    kind.ruin(q._store)
    return q

def test_queue_raises_and_keeps_it(line):
    assert line.get() == 1
    for work in (line.get, line.get_nowait, lambda: line.get_many(5), lambda: asyncio.run(line.aget())):
        _fails(work, "n/q", 'discard()', "errors='skip'")
    assert line.qsize() == 2 and not line.dead_letters()

def test_queue_gives_what_comes_before(line):
    assert line.get_many(3) == [1] and line.qsize() == 2

def test_queue_discards(line):
    assert line.get() == 1
    line.discard()
    assert line.get() == 3 and not blobs(line._store)
    with pytest.raises(queue.Empty): line.discard()
    for _ in range(2): line.task_done()
    line.join(timeout=10)

@pytest.mark.parametrize('get', [lambda q: [q.get(errors='skip'), q.get(errors='skip')], lambda q: q.get_many(3, errors='skip'),
                                 lambda q: [asyncio.run(q.aget(errors='skip')) for _ in range(2)]], ids='get get_many aget'.split())
@pytest.mark.parametrize('explicit', [False, True])
def test_queue_sets_aside(line, get, explicit, request):
    if explicit and 'aget' in request.node.callspec.id: pytest.skip('another asyncio task would wait for the end of the transaction')
    with pk.transaction(line) if explicit else contextlib.nullcontext(): assert get(line) == [1, 3]
    error, = line.dead_letters()
    assert isinstance(error, pk.DecodeError) and 'n/q' in str(error) and line.empty()
    for _ in range(2): line.task_done()
    line.join(timeout=10)

def test_queue_of_nothing_else(line):
    assert line.get() == 1
    line.get_many(2, errors='skip')
    with pytest.raises(queue.Empty): line.get(False, errors='skip')

def test_dead_letters_come_back(line, kind, module):
    line.get_many(3, errors='skip')
    module.bring_back()
    module.Broken.__init__ = module.Plain.__init__
    assert line.restore_dead_letters() == 1 and line.dead_letters() == [] and line.restore_dead_letters() == 0
    assert line.qsize() == 1 and line.unfinished_tasks == 3
    if kind.name in ('class is gone', 'constructor raises'): assert line.get() == kind.value
    else: line.get_many(1, False, errors='skip') if 'arrays' in kind.name else line.discard()

def test_dead_letters_come_back_as_far_as_there_is_room(scratch, module):
    q = pk.Queue('n/q', maxsize=2)
    for n in range(3):
        q.put(module.Plain(n))
        module.lose()
        with pytest.raises(queue.Empty): q.get(False, errors='skip')
        module.bring_back()
    q.put(5)
    assert q.restore_dead_letters() == 1 and q.full() and q.restore_dead_letters() == 0 and len(q.dead_letters()) == 2
    assert [q.get(False), q.get(False)] == [5, module.Plain(0)]
    assert q.restore_dead_letters() == 2 and q.get_many(9) == [module.Plain(1), module.Plain(2)]

def test_dead_letters_go(line):
    line.get_many(3, errors='skip')
    assert line.discard_dead_letters() == 1 and not line.dead_letters() and not blobs(line._store)

def test_dead_letters_go_with_the_queue(line):
    line.get_many(3, errors='skip')
    line.drop()
    assert not blobs(line._store)


# --- keys

@pytest.mark.parametrize('make', [lambda m: m.Plain(1), lambda m: (1, m.Plain(1)), lambda m: m.Color.RED, lambda m: m.Level.LOW,
                                  lambda m: frozenset([m.Plain(1)])], ids='object tuple enum intenum frozenset'.split())
def test_key_that_cannot_be_read(d, module, make):
    key = make(module)
    d.update({'a': 1, key: 2, ('z',): 3, 'u': 4})
    module.lose()
    for work in (lambda: list(d), lambda: list(d.items()), lambda: dict(d)): _fails(work, "Dict('n/d')[")
    assert set(d.keys(errors='skip')) == {'a', ('z',), 'u'} and len(d) == 4
    assert set(d.items(errors='skip')) == {('a', 1), (('z',), 3), ('u', 4)} and sorted(d.values()) == [1, 2, 3, 4]
    found = [k for k in d.keys(errors='return') if isinstance(k, pk.UnreadableKey)]
    assert len(found) == 1 and isinstance(found[0].error, pk.DecodeError)
    assert (found[0], 2) in list(d.items(errors='return')) and found[0] in d and d[found[0]] == 2
    d[found[0]] = 5
    module.bring_back()
    assert d[key] == 5
    module.lose()
    with pk.transaction(d): assert d.pop(found[0]) == 5
    assert set(d) == {'a', ('z',), 'u'}

def test_key_and_value_that_cannot_be_read(d, module):
    d.update({module.Plain(1): module.Plain(2), 'a': 1})
    module.lose()
    (k, error), = [(k, v) for k, v in d.items(errors='return') if k != 'a']
    assert type(k) is pk.UnreadableKey and isinstance(error, pk.DecodeError)
    del d[k]
    assert dict(d) == {'a': 1}


# --- attributes, metadata

def test_attribute(kind, scratch):
    o = pk.Object('n/o')
    o.good, o.bad = 1, kind.value
    kind.ruin(o._store)
    _fails(lambda: o.bad, "Object('n/o').bad")
    assert o.good == 1
    del o.bad
    with pytest.raises(AttributeError): o.bad
    o.bad = 2
    assert o.bad == 2 and not blobs(o._store)

def test_metadata(scratch, module):
    d = pk.Dict('n/d', metadata=dict(owner=module.Plain(1)))
    pk.Dict('n/e')
    assert d.metadata == dict(owner=module.Plain(1))
    module.lose()
    _fails(lambda: d.metadata, "Dict('n/d').metadata")
    same = pk.Dict('n/d')
    same['a'] = 1
    assert [o.path for o in pk.Namespace('n')] == ['n/d', 'n/e'] and d['a'] == 1 and same.name == 'd'
    assert pk.gc() == [] and pk.doctor()
    d.rename('other')
    copied = d.copy('n/copied')
    module.bring_back()
    assert copied.metadata == d.metadata == dict(owner=module.Plain(1))
    module.lose()
    copied.drop()
    d.metadata = dict(owner=2)
    assert pk.Dict('n/other').metadata == dict(owner=2)

def test_metadata_of_an_older_parkit(scratch, module):
    "They lay in the record of the object itself: who lists it reads the rest of that all the same"
    d = pk.Dict('n/d')
    old = encode((d._uuid, 'parkit.Dict', 'd', 1e9, dict(owner=module.Plain(1)), {}))
    write(d._store, lambda txn: txn.put(OBJECTS + d._oid, old if isinstance(old, bytes) else old.join()))
    module.lose()
    assert pk.Dict('n/d').created.year == 2001 and [o.path for o in pk.Namespace('n')] == ['n/d']
    _fails(lambda: pk.Dict('n/d').metadata, "Dict('n/d').metadata")
    assert pk.gc() == [] and pk.doctor() and 'damaged' not in repr(pk.check())
    d.rename('other')
    copied = d.copy('n/copied')
    module.bring_back()
    assert copied.metadata == pk.Dict('n/other').metadata == dict(owner=module.Plain(1))

def test_metadata_that_are_damaged(scratch):
    d = pk.Dict('n/d', metadata=dict(text='a'*100))
    pk.Dict('n/e')
    info = read(d._store, d._read_info)
    write(d._store, lambda txn: txn.put(OBJECTS + d._oid, _encode_info(info._replace(metadata=info.metadata[:-20]))))
    assert [(f.subject, 'metadata are damaged' in f.what) for f in pk.check()] == [('n/d', True)]
    assert [o.name for o in pk.Namespace('n')] == ['d', 'e'] and pk.doctor() and pk.gc() == []


# --- classes of objects

@pytest.mark.parametrize('text', ['raise RuntimeError("not today")', 'import sys; sys.exit(3)', '1/0', 'def f(:', 'import nowhere_to_be_found', 'Thing = 5'])
def test_class_whose_module_cannot_be_imported(scratch, tmp_path, monkeypatch, text):
    "Whichever way that fails: the object is listed with its type, opened, and dropped"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path/'fragile.py').write_text('import parkit as pk\nclass Thing(pk.Dict): pass\n')
    import fragile
    thing = fragile.Thing('n/thing')
    thing.update(a=1)
    pk.Dict('n/d')['thing'] = thing
    write(thing._store, lambda txn: [txn.delete(k) for k, _ in list(txn.store.scan(txn, CLASSES, BLOBS))])
    del sys.modules['fragile']
    (tmp_path/'fragile.py').write_text(f'{text}  # longer than what it was before')
    importlib.invalidate_caches()
    try:
        assert repr(list(pk.Namespace('n'))) == "[Dict('n/d', 1 entry), Unknown('n/thing', type='fragile.Thing')]"
        found = pk.Namespace('n')['thing']
        assert type(found) is pk.Unknown and pk.Dict('n/d')['thing'] == found and pk.doctor() and pk.gc() == [] and pk.check() == []
        found.drop()
        assert [*pk.Namespace('n').names()] == ['d']
    finally: sys.modules.pop('fragile', None)

class Name(str, enum.Enum): PRICES = 'n/prices'; SHORT = 'short'

def test_only_the_text_of_a_name_is_stored(scratch):
    "A member of an enum of texts is a path, and nobody needs the enum to list what it names"
    for name in (Name.PRICES, Name.SHORT): pk.Dict(name)['a'] = 1
    pk.Namespace('n')['prices'].rename(Name.SHORT)
    pk.Dict('n/x', metadata={Name.SHORT: Name.PRICES})
    run(scratch, "pk.doctor(); pk.gc(); say([o.name for o in [*pk.Namespace('default'), *pk.Namespace('n')]])")
    assert [(type(o.name), o.name) for o in [*pk.Namespace('default'), *pk.Namespace('n')]] == [(str, 'short'), (str, 'short'), (str, 'x')]


# --- hooks, and errors that are about something else

def test_hook_that_raises(scratch):
    class Fussy(pk.Dict):
        def decode_value(self, data): return super().decode_value(data) if len(data) < 10 else 1/0
    d = Fussy('n/f')
    d.update(a=1, b='x'*100)
    error = _fails(lambda: d['b'], "Fussy('n/f')['b']")
    assert type(error.__cause__) is ZeroDivisionError
    assert list(d.items(errors='skip')) == [('a', 1)]

class Interrupting:
    def __reduce__(self): return _interrupt, ()

def _interrupt(): raise KeyboardInterrupt

def test_interrupts_are_no_damage(d):
    d['a'] = Interrupting()
    with pytest.raises(KeyboardInterrupt): d['a']
    with pytest.raises(KeyboardInterrupt): list(d.items(errors='skip'))


# --- check, which looks in a process of its own

def test_check_lists_what_cannot_be_read(site, module):
    module.lose()
    sys.modules['here_and_gone'] = module
    d, a, o = pk.Dict('n/d'), pk.Array('n/a'), pk.Object('n/o')
    d.update({'a': 1, 'gone': module.Plain(1), 'wants': NeedsMore('text', 1), module.Plain(5): 1, 'list': [module.Plain(1), np.zeros(10**5)],
              'fine': np.zeros(10**5), 'reference': pk.Dict()})
    a.extend([0, module.Plain(1)])
    o.bad = module.Plain(1)
    q = pk.Queue('n/q')
    q.put(NeedsMore('text', 1))
    with pytest.raises(queue.Empty): q.get(False, errors='skip')
    found = [f for f in pk.check() if f.subject.startswith('n/')]
    assert len(found) == 7 and all('is whole, but cannot be read' in f.what and 'delete' in f.advice for f in found), found
    assert sorted(f.subject for f in found) == ['n/a', *['n/d']*4, 'n/o', 'n/q']
    text = repr(found)
    assert 'damaged' not in text
    for part in ("entry 'gone'", "entry 'list'", "entry 'wants'", 'entry 1 ', 'entry bad ', 'the dead letter 0 '): assert part in text, text


# --- tasks

def test_task_with_arguments_that_cannot_be_read(single, site):
    @pk.task
    def f(x): return x
    trace = f(NeedsMore('text', 1))
    error = pytest.raises(pk.TaskError, lambda: trace.result).value
    assert 'arguments' in str(error) and 'more' in str(error)
    assert f(1).result == 1

def test_result_that_cannot_be_read(single, site):
    @pk.task
    def f(n): return NeedsMore('text', n)
    trace = f(2)
    trace.wait(60)
    error = _fails(lambda: trace.result, trace.id, 'result')
    assert type(error.__cause__) is TypeError
