"""Containers beside those of Python that they follow: random sequences of all that one can do; both must always agree.

`PARKIT_FUZZ=20 python -m pytest tests/test_properties.py` tries twenty times as many, and others each time."""
import base64, contextvars, datetime as dt, http, os, pickle, queue, reprlib, uuid
from collections import deque
from copy import copy
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from threading import Lock, Thread
from typing import Any
from urllib import parse

import hypothesis.strategies as st, numpy as np, pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (RuleBasedStateMachine, initialize, invariant, precondition, rule,
                                 run_state_machine_as_test)

import parkit as pk
from helpers import Child, blobs, forked
from parkit.codecs import encode_key
from parkit.storage import BLOBS, META, TRASH
from parkit.transactions import read

FUZZ = int(os.environ.get('PARKIT_FUZZ', 0))
STEPS = 40     # rules in a sequence at most
LIMIT = 2**10  # bytes from which a value is a blob here
pytestmark = pytest.mark.timeout(900 + 600*FUZZ)  # a failure is reduced to its shortest form, which takes minutes


# --- values and keys

def _array(n, size=2000): return np.full(size, n, np.uint8)
def _reversed(n): return _array(n).reshape(40, 50)[:, ::-1]
def _big_endian(n): return _array(n).astype('>f8')
def _inside(n): return {'an': [_array(n), n]}
def _bytes(n): return bytes([n])*3000
def _text(n): return chr(n)*5000

_small = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=3),
    st.binary(max_size=3), st.lists(st.integers(0, 3), max_size=3), st.tuples(st.integers(0, 3), st.text(max_size=1)))
_makers = _array, _reversed, _big_endian, _inside, _bytes, _text
_big = st.one_of(*(st.builds(make, st.integers(0, 255)) for make in _makers))
_arrays = st.builds(_array, st.integers(0, 255), st.sampled_from([0, 10, 2000]))
_about_the_limit = st.integers(LIMIT - 50, LIMIT + 50).map(bytes)
values = st.one_of(_small, _small, _big, _arrays, _about_the_limit)

def is_big(value):
    "Whether a value is big enough for a blob; ours are all far from the limit, but for `bytes`"
    if isinstance(value, np.ndarray): return value.nbytes > 1500
    return isinstance(value, dict) or len(pickle.dumps(value, 5)) >= LIMIT

def plain(value):
    "What `value` is, type and all, for a comparison with `==`"
    if isinstance(value, np.ndarray): return 'array', value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict): return type(value), [(plain(k), plain(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)): return type(value), [plain(v) for v in value]
    if isinstance(value, frozenset): return type(value), sorted(repr(v) for v in value)
    return type(value), repr(value)

def agree(found, expected, where=''):
    "Raise unless both are the same, types and all. Quicker than `assert`, whose account of a difference takes seconds"
    if plain(found) == plain(expected): return
    if isinstance(found, (list, tuple)) and type(found) is type(expected) and len(found) == len(expected):
        for i, (f, e) in enumerate(zip(found, expected)): agree(f, e, f'{where}[{i}]')
    found, expected = (f'{reprlib.repr(v)} of {type(v)}' for v in (found, expected))
    raise AssertionError(f'{where} {found} is not {expected}')

def has_arrays(items): return any(isinstance(v, (np.ndarray, dict)) for v in items)


class Text(str): "For looking keys up"

NAN = float('nan')  # one object: in a dict of Python's, each other NaN is another key
def one_nan(key): return NAN if key != key else tuple(map(one_nan, key)) if isinstance(key, tuple) else key

_numbers = [
    0, 0.0, -0.0, False, 1, 1.0, True, Decimal(1), np.int64(1), np.bool_(True), Fraction(1), complex(1), 0.5,
    Decimal('0.5'), np.float64(0.5), 200, http.HTTPStatus.OK, -1, -1.5, 255, 256, -256, 2**53 + 1, float(2**53), 2**70,
    float(2**70), -2**70, float('inf'), float('-inf'), NAN]
_fractions = [
    0.1, Decimal('0.1'), Fraction(1, 10), Fraction(1, 3), Fraction(1, 3) + Fraction(1, 10**60), 1e-300,
    Decimal('1e-100'), Decimal('2e-100'), Decimal('-1e-100'), Decimal('-1e-200'), 1/Decimal(3)**400]
_texts = ['', 'a', 'ab', 'a\0', 'a\0b', 'ä', '\ud800', '\uffff', '😀', np.str_('a')]
_bytes_ = [b'', b'a', b'a\0', b'\xff', np.bytes_(b'a')]
_tuples = [(), (1,), (1.0, 'a'), (True, 'a'), (1, 2), ('a', None), ('a', 'b'), ((1,), 'x'), (NAN,)]
_tuples += [parse.DefragResult('a', 'b')]
_sets = [frozenset(), frozenset({1, 2}), frozenset({True, 2.0}), frozenset({'a', None}), (frozenset({1}),)]
_times = [
    dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, fold=1), dt.datetime.max, dt.date(2020, 1, 1), dt.date.min,
    dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc),
    dt.datetime(2020, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))]
_others = [None, uuid.UUID(int=1), Path('a/b'), Path('a', 'b'), PurePath('a'), uuid.SafeUUID.safe, 1 + 2j, int, np.timedelta64(1, 'h')]
_lengths = 469, 470, 471, 479, 480, 942, 1000  # about those at which keys are split
_long = [c*n + end for c in 'kl' for n in _lengths for end in ('', 'a')]
_long += [b'k'*1500, ('k'*480, 1), ('k'*480, 1.0), (1,)*500]
_pools = _numbers, _fractions, _texts + _bytes_, _tuples + _sets, _times + _others, _long, _long
def _one_of(pool): return st.integers(0, len(pool) - 1).map(lambda i: pool[i])  # `sampled_from` would show them all
keys = st.one_of(*map(_one_of, _pools), st.integers(), st.text(max_size=2), st.floats(allow_nan=False),
                 st.tuples(st.integers(), st.text(max_size=2)))
keys_or_old = st.tuples(keys, st.none() | st.integers(0, 20))  # the number of one that is there already, if any is

def order(key):
    "Where `key` lies among all keys, found without the code under test, to which only types without an order are left"
    if isinstance(key, complex): key = key if key.imag else key.real
    if key is None: return 0, 0
    if isinstance(key, (int, float, Decimal, Fraction, np.number, np.bool_)) and not isinstance(key, np.timedelta64):
        if key != key: return 4, 0
        if key in (float('inf'), float('-inf')): return (3 if key > 0 else 1), 0
        return 2, Fraction(*key.as_integer_ratio()) if hasattr(key, 'as_integer_ratio') else int(key)
    if isinstance(key, str): return 5, [ord(c) for c in key]
    if isinstance(key, bytes): return 6, key
    if isinstance(key, tuple): return 7, [order(k) for k in key]
    if isinstance(key, dt.datetime): return (9, key) if key.tzinfo else (8, key)
    for rank, cls in ((10, dt.date), (11, uuid.UUID)):
        if isinstance(key, cls): return rank, key
    if isinstance(key, PurePath): return 12, key.parts
    if isinstance(key, frozenset): return 13, sorted(order(k) for k in key)
    return 14, encode_key(key)


# --- what all machines share

@dataclass
class State:
    "The model: what the object holds at one time"
    content: Any
    version: int = 0
    attributes: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
    name: str = 'o'
    def copy(self): return replace(self, content=copy(self.content), attributes=dict(self.attributes))

def facts(o):
    "What an object says that any object has, in one `dict`"
    attributes = {name: plain(v) for name in 'xy' if (v := getattr(o, name, None)) is not None}
    return dict(version=o.version, attributes=attributes, metadata=o.metadata, name=o.name)

_child = '''
import base64, contextvars, pickle
held, o = [], None
def shown(): return [o.qsize()] if isinstance(o, pk.Queue) else list(o.items()) if isinstance(o, pk.Dict) else list(o)
def look(): return shown(), o.version
def hold():
    context, snapshot = contextvars.Context(), pk.snapshot(o)
    context.run(snapshot.__enter__)
    held.append((context, snapshot))
def look_again(): return held[0][0].run(look)
def release():
    context, snapshot = held.pop()
    context.run(snapshot.__exit__, None, None, None)
def call(method, *args): return getattr(o, method)(*args)
def close():
    global o
    o = None
    site.close()
while True:
    o, command, *args = pickle.loads(base64.b64decode(hear()))
    result = globals()[command](*args)
    say(base64.b64encode(pickle.dumps(result, 5)).decode())  # protocol 4 would turn the bytes of numbers round
'''


class Machine(RuleBasedStateMachine):
    """An object and its model. Snapshots and iterators stay open while both change; references come and go; another
    process looks on"""
    cls: Any = None

    def __init__(self, site, namespace, child):
        super().__init__()
        self.site, self.namespace, self.child = site, namespace, child
        self.blocks = []     # open transactions, with the state each began with
        self.snapshots = []  # contexts in which one is open, with the state of that time
        self.iterators = []  # begun outside any transaction, with what is still to come
        self.kept = []       # arrays read at some time, with what they held then
        self.seen_by_child = None
        self.wrote = False   # is the version to rise?
        self.dirty = False   # may blobs that nobody needs any longer wait for the next commit?

    def new(self, content, **arguments):
        "Make the object"
        self.arguments = arguments
        self.o = self.cls(f'{self.namespace}/o', bind=False, **arguments)
        self.references = [self.o]
        self.state = State(content, self.o.version)

    @property
    def content(self): return self.state.content
    def committed(self): return self.blocks[0][1] if self.blocks else self.state

    # --- of the subclasses

    def read(self): return list(self.o)
    def model(self, content): return list(content)  # what `read` must return
    def stored(self, content): return list(content)
    def shown(self): return self.read()             # to those who must not write
    def expected(self, content): return self.model(content)
    def check_content(self, content):
        agree(self.read(), self.model(content))
        assert len(self.o) == len(content)

    # --- after each step

    def check(self, state):
        "What this code sees of the object is `state`"
        self.check_content(state.content)
        expected = {name: plain(v) for name, v in state.attributes.items() if v is not None}
        assert facts(self.o) == dict(version=state.version, attributes=expected, metadata=state.metadata,
                                     name=state.name)

    def did(self, wrote=True):
        "Note that the step was a write"
        self.wrote = self.wrote or wrote

    def raises_alike(self, theirs, mine, *errors):
        "Do the same on both sides, which must return the same, or raise the same. Returns whether there was no error"
        try: expected = theirs()
        except errors as e:
            with pytest.raises(type(e)): mine()
            return False
        agree(mine(), expected)
        return True

    @invariant()
    def content_and_version_are_right(self):
        if not hasattr(self, 'o'): return
        version = self.o.version
        before = self.state.version
        assert version > before if self.wrote else version == before, (before, version, self.wrote)
        self.state.version, self.wrote = version, False
        self.check(self.state)

    @invariant()
    def what_was_seen_stays(self):
        for context, _, state in self.snapshots: context.run(self.check, state)
        for array, content in self.kept: assert array.tobytes() == content
        if self.seen_by_child: agree(self.ask('look_again'), self.seen_by_child)

    @invariant()
    def blobs_are_those_referred_to(self):
        if not hasattr(self, 'o'): return
        store = self.o._store
        def ids(txn, zero_copy, lo, hi): return [key[-16:].hex() for key, _ in store.scan(txn, lo, hi)]
        used, trash = read(store, ids, BLOBS, TRASH), read(store, ids, TRASH, META)
        on_disk = blobs(store)
        if self.blocks: on_disk = sorted({name.partition('.')[0] for name in on_disk})  # until the commit, two names
        assert on_disk == sorted(used + trash)
        assert len(used) == sum(map(is_big, [*self.state.attributes.values(), *self.stored(self.content)]))
        assert not trash or self.blocks or self.snapshots or self.seen_by_child or self.iterators or self.dirty
        self.dirty = self.dirty and bool(trash)

    # --- transactions

    @precondition(lambda self: len(self.blocks) < 3)
    @rule(zero_copy=st.booleans(), by_path=st.booleans())
    def begin(self, zero_copy, by_path):
        block = pk.transaction(self.o.namespace if by_path else self.o, zero_copy=zero_copy)
        block.__enter__()
        self.blocks.append((block, self.state.copy()))

    @precondition(lambda self: self.blocks)
    @rule(how=st.sampled_from(['commit', 'roll_back']))
    def end(self, how):
        block, before = self.blocks.pop()
        if how == 'commit': block.__exit__(None, None, None)
        else:
            self.state = before
            block.__exit__(LookupError, LookupError('rolled back'), None)

    # --- what is held open

    @rule(i=st.integers(0, 2), hold=st.booleans(), zero_copy=st.booleans())
    def hold_or_release_a_snapshot(self, i, hold, zero_copy):
        "Of what is committed, as another thread or asyncio task would have it"
        if hold and len(self.snapshots) < 3:
            context, snapshot = contextvars.Context(), pk.snapshot(self.o, zero_copy=zero_copy)
            context.run(snapshot.__enter__)
            self.snapshots.append((context, snapshot, self.committed().copy()))
        elif self.snapshots:
            context, snapshot, _ = self.snapshots.pop(i % len(self.snapshots))
            context.run(snapshot.__exit__, None, None, None)
            self.dirty = True

    @rule(close=st.booleans())
    def another_process_holds_or_releases_a_snapshot(self, close):
        if self.seen_by_child:
            self.ask('release')
            self.seen_by_child, self.dirty = None, True
        elif close: self.ask('close')
        else:
            self.ask('hold')
            self.seen_by_child = self.as_shown(self.committed())

    # --- references and facts

    @rule(how=st.sampled_from(['one we have', 'path', 'namespace', 'pickle', 'close']), i=st.integers(0, 3))
    def take_another_reference(self, how, i):
        if how == 'one we have': self.o = self.references[i % len(self.references)]
        if how == 'path': self.refer(self.cls(f'{self.namespace}/{self.state.name}', create=False))
        if how == 'namespace': self.refer(pk.Namespace(self.o.namespace)[self.state.name])
        if how == 'pickle': self.refer(pickle.loads(pickle.dumps(self.o)))
        if how == 'close' and not self.blocks: self.close_site()

    def refer(self, o):
        assert type(o) is self.cls and o.uuid == self.o.uuid
        self.references = [*self.references[-3:], o]
        self.o = o

    def close_site(self):
        "It opens again at the next use"
        if self.iterators or self.snapshots:
            with pytest.raises(pk.TransactionError, match='open transactions'): self.site.close()
            self.iterators.clear()
        if self.snapshots: return
        self.site.close()
        self.dirty = True

    @rule(how=st.sampled_from(['set', 'set', 'delete', 'metadata', 'rename']), name=st.sampled_from('xy'), value=values)
    def change_facts(self, how, name, value):
        attributes, wrote = self.state.attributes, True
        if how == 'set':
            setattr(self.o, name, value)
            attributes[name] = value
            with pytest.raises(TypeError): self.o.x = Lock()
        if how == 'delete':
            def theirs():
                if name not in attributes: raise AttributeError
                del attributes[name]
            wrote = self.raises_alike(theirs, partial(delattr, self.o, name), AttributeError)
        if how == 'metadata': self.o.metadata = self.state.metadata = {name: name}
        if how == 'rename': wrote = self.rename(name)
        self.did(wrote)

    def rename(self, name):
        if name == self.state.name:
            with pytest.raises(pk.ObjectExistsError): self.o.rename(name)
            return False
        self.o.rename(name)
        with pytest.raises(pk.ObjectNotFoundError): self.cls(f'{self.namespace}/{self.state.name}', create=False)
        self.state.name = name
        return True

    # --- looking, here and elsewhere

    @rule(data=st.data())
    def look_around(self, data): getattr(self, data.draw(st.sampled_from(self.looks)))(data.draw)

    looks = ['look_elsewhere', 'look_in_a_snapshot', 'keep_an_array', 'look_at_a_copy']

    def look_in_a_snapshot(self, draw):
        "One inside a transaction sees what the transaction has written, and none can write"
        with pk.snapshot(self.o):
            self.check(self.state)
            with pytest.raises(pk.TransactionError): self.o.x = 1
            with pytest.raises(pk.TransactionError), pk.transaction(self.o): pass

    def look_at_a_copy(self, draw):
        "It has all that this one has, and nothing of it stays"
        path, mine = draw(st.sampled_from([f'{self.namespace}/copy', 'other/copy', None])), self.o
        self.o = mine.copy(path)
        self.check(replace(self.state, version=self.o.version, name=path and 'copy'))
        self.o.drop()
        if self.o._store is not mine._store: assert blobs(self.o._store) == []
        self.o, self.dirty = mine, True

    def keep_an_array(self, draw):
        "Whatever happens to its entry from now on"
        private = draw(st.booleans())
        with pk.snapshot(self.o, zero_copy=not private): found = self.values_read()
        found = [v for v in found if isinstance(v, np.ndarray)]
        self.kept = [*self.kept[-3:], *((v, v.tobytes()) for v in found[:2])]
        assert all(v.flags.writeable == private for v in found if v.size)

    def values_read(self): return self.read()

    def ask(self, *command):
        "What the other process answers"
        self.child.say(base64.b64encode(pickle.dumps((self.o, *command), 5)).decode())
        return pickle.loads(base64.b64decode(self.child.hear()))

    def do_elsewhere(self, who, work):
        "What `work()` returns in a thread or a fork"
        if who == 'fork': return pickle.loads(forked(lambda: pickle.dumps(work(), 5)))
        found = []
        thread = Thread(target=lambda: found.append(work()))
        thread.start()
        thread.join()
        return found[0]

    def call_elsewhere(self, who, method, *args):
        if who == 'process': return self.ask('call', method, *args)
        return self.do_elsewhere(who, partial(getattr(self.o, method), *args))

    def as_shown(self, state): return self.expected(state.content), state.version

    def look_elsewhere(self, draw):
        who = draw(elsewhere)
        def look(): return self.shown(), self.o.version
        def refused():
            with pytest.raises(pk.TransactionError, match='parent'): self.o.version
        if who == 'fork' and self.blocks: return self.do_elsewhere(who, refused)
        found = self.ask('look') if who == 'process' else self.do_elsewhere(who, look)
        agree(found, self.as_shown(self.committed()))

    # --- the end

    def teardown(self):
        "Drop the object: nothing of it is left, and no reference to it finds the next one of its name"
        if self.seen_by_child: self.another_process_holds_or_releases_a_snapshot(False)
        while self.snapshots: self.hold_or_release_a_snapshot(0, False, False)
        self.iterators.clear()
        while self.blocks: self.end('roll_back')
        if not hasattr(self, 'o'): return
        for size in (3000, 4000): self.o.x = bytes(size)  # with the trash of the second goes what readers had kept
        self.state.attributes['x'], self.dirty = bytes(4000), False
        self.blobs_are_those_referred_to()
        self.o.drop()
        store, references = self.o._store, self.references
        self.new(self.content, **self.arguments)
        for o in references:
            with pytest.raises(pk.ObjectNotFoundError): o.version
            with pytest.raises(pk.ObjectNotFoundError): o.x = 1
        self.o.drop()
        assert blobs(store) == [] and len(pk.Namespace(self.namespace)) == 0

elsewhere = st.sampled_from(['process', 'thread', 'process', 'thread', 'fork'])


class Iterated(Machine):
    "What can be iterated, too"
    def first(self, shown): return shown  # of an item of `read`, what an iteration yields
    def iterate(self, reverse): return reversed(self.o) if reverse else iter(self.o)

    @rule(n=st.integers(0, 5), i=st.integers(0, 1), reverse=st.booleans())
    def begin_or_go_on_iterating(self, n, i, reverse):
        "Outside a transaction an iteration has a snapshot of its own, from its first item on"
        if n and self.iterators: self.go_on_iterating(n, i % len(self.iterators))
        elif not self.blocks and len(self.iterators) < 2:
            iterator, expected = self.iterate(reverse), list(map(self.first, self.model(self.content)))
            if reverse: expected.reverse()
            agree(list(islice(iterator, 1)), expected[:1])
            if expected: self.iterators.append((iterator, expected[1:]))

    def go_on_iterating(self, n, i):
        iterator, expected = self.iterators[i]
        found = list(islice(iterator, n))
        agree(found, expected[:n])
        del expected[:n]
        if len(found) < n: del self.iterators[i]
        self.dirty = True

    @precondition(lambda self: self.blocks and len(self.model(self.content)) > 0)
    @rule(reverse=st.booleans(), how=st.sampled_from(['commit', 'roll_back']))
    def iterate_beyond_the_transaction(self, reverse, how):
        iterator = self.iterate(reverse)
        next(iterator)
        self.end(how)
        with pytest.raises(RuntimeError): next(iterator)

    looks = [*Machine.looks, 'iterate_around_a_savepoint']

    def iterate_around_a_savepoint(self, draw):
        "An iteration of the transaction goes on after it, and not in it"
        reverse = draw(st.booleans())
        expected = list(map(self.first, self.model(self.content)))[::-1 if reverse else 1]
        if not self.blocks or not expected: return
        within, after = self.iterate(reverse), self.iterate(reverse)
        for iterator in (within, after): agree(next(iterator), expected[0])
        with pk.transaction(self.o):
            with pytest.raises(RuntimeError): next(within)
        agree(list(after), expected[1:])


def search(machine, site, examples, durable=False):
    "Run random sequences of the rules of `machine`"
    namespace = pk.Namespace('n', durable=durable)
    pk.Namespace('other', durable=False)
    phases = [Phase.generate] if os.environ.get('PARKIT_FUZZ_QUICK') else [Phase.generate, Phase.shrink]
    with Child(site, _child) as child:
        run_state_machine_as_test(lambda: machine(site, namespace.path, child), settings=settings(
            max_examples=examples*max(FUZZ, 1), stateful_step_count=STEPS, derandomize=not FUZZ, database=None,
            deadline=None, print_blob=True, phases=phases, suppress_health_check=list(HealthCheck)))

@pytest.fixture
def site(site):
    "The same in little: blobs begin at a kibibyte"
    small = pk.set_site(pk.Site(f'{site.path}-small', inline_limit=LIMIT))
    yield small
    small.close()


# --- Dict

class Dicts(Iterated):
    "A `Dict` beside a `dict`"
    cls = pk.Dict

    @initialize(pairs=st.lists(st.tuples(keys, values), max_size=10))
    def start(self, pairs):
        self.new({})
        self.update(pairs, 'pairs')

    def first(self, shown): return shown[0]
    def read(self): return list(self.o.items())
    def stored(self, content): return list(content.values())
    def values_read(self): return list(self.o.values())
    def model(self, content): return sorted(content.items(), key=lambda pair: order(pair[0]))
    def sorted_keys(self): return [k for k, _ in self.model(self.content)]

    def chosen(self, key):
        "One that the `Dict` has, where `key` says so"
        key, i = key
        return key if i is None or not self.content else self.sorted_keys()[i % len(self.content)]

    @rule(key=keys_or_old, value=values)
    def set(self, key, value):
        key = self.chosen(key)
        self.o[key] = self.content[key] = value
        self.did()

    @rule(key=keys_or_old, how=st.sampled_from(['del', 'pop', 'pop default', 'popitem']))
    def remove(self, key, how):
        key = self.chosen(key)
        had = key in self.content
        def without(entries): return partial(entries.__delitem__, key)
        if how == 'del': self.raises_alike(without(self.content), without(self.o), KeyError)
        elif how == 'popitem': had = self.raises_alike(self.popitem, self.o.popitem, KeyError)
        else:
            default = (None,) if how == 'pop default' else ()
            self.raises_alike(lambda: self.content.pop(key, *default), lambda: self.o.pop(key, *default), KeyError)
        self.did(had)

    def popitem(self):
        "The model's: of the last in the order of the keys"
        key = self.sorted_keys()[-1] if self.content else 'none'
        return key, self.content.pop(key)

    @rule(key=keys_or_old, value=values)
    def setdefault(self, key, value):
        key = self.chosen(key)
        had = key in self.content
        agree(self.o.setdefault(key, value), self.content.setdefault(key, value))
        self.did(not had)

    @rule(pairs=st.lists(st.tuples(keys, values), max_size=8),
          kind=st.sampled_from(['mapping', 'pairs', 'names', '|=', 'itself', 'bad', 'bad']))
    def update(self, pairs, kind):
        if kind == 'bad': return self.update_with_what_cannot_be_stored(pairs)
        if kind == 'itself': pairs = list(self.content.items())
        if kind == 'names': pairs = [(f'n{i}', v) for i, (_, v) in enumerate(pairs)]
        if kind == 'itself': self.o.update(self.o)
        elif kind == 'names': self.o.update(**dict(pairs))
        elif kind == '|=': self.o |= dict(pairs)
        else: self.o.update(dict(pairs) if kind == 'mapping' else iter(pairs))
        self.content.update(pairs if kind == 'pairs' else dict(pairs))
        self.did(bool(pairs))

    def update_with_what_cannot_be_stored(self, pairs):
        "Nothing is"
        for bad in ([*pairs, ([], 1)], [*pairs, ('a', Lock())], [*pairs, 5]):
            with pytest.raises(TypeError): self.o.update(bad)
        with pytest.raises(TypeError): self.o['a'] = Lock()

    @rule(i=st.integers(0, 5))
    def clear(self, i):
        if self.content and i: return  # seldom
        self.o.clear()
        self.did(bool(self.content))
        self.content.clear()

    @rule(key=keys_or_old, fails=st.booleans())
    def edit(self, key, fails):
        key = self.chosen(key)
        if key not in self.content:
            with pytest.raises(KeyError), self.o.edit(key): pass
            return
        value = self.content[key]
        try:
            with self.o.edit(key) as found:
                agree(found, value)
                if isinstance(found, list): found.append(1)
                if isinstance(found, np.ndarray) and found.size: found.flat[0] = 7
                if fails: raise LookupError
        except LookupError: return
        if isinstance(value, list): self.content[key] = [*value, 1]
        if isinstance(value, np.ndarray) and value.size:
            self.content[key] = value.copy()
            self.content[key].flat[0] = 7
        self.did()

    @rule(reverse=st.booleans(), changes=st.lists(st.tuples(st.booleans(), keys_or_old, values), max_size=6))
    def write_while_iterating(self, reverse, changes):
        "Elsewhere the iteration goes on showing what was there; in a transaction it raises, as that of a dict, once keys have come or gone"
        before, seen, raised = dict(self.content), [], False
        entries = iter(reversed(self.o.items()) if reverse else self.o.items())
        while True:
            if raised := self.blocks and len(self.content) != len(before):
                with pytest.raises(RuntimeError, match='changed size during iteration'): next(entries)
                break
            try: key, value = next(entries)
            except StopIteration: break
            key = one_nan(key)
            seen.append(key)
            agree(value, (self.content if self.blocks else before)[key])
            if not changes: continue
            delete, key, value = changes.pop()
            key = self.chosen(key)
            if delete: self.remove((key, None), 'pop default')
            else: self.set((key, None), value)
        self.dirty = True
        ranks = [order(k) for k in seen]
        assert ranks == sorted(ranks, reverse=reverse) and all(a != b for a, b in zip(ranks, ranks[1:]))
        assert raised or len(seen) == len(before)

    @precondition(lambda self: not self.blocks)
    @rule(who=elsewhere, key=keys_or_old, value=values)
    def write_elsewhere(self, who, key, value):
        key = self.chosen(key)
        self.call_elsewhere(who, '__setitem__', key, value)
        self.content[key] = value
        self.did()

    @rule(key=keys_or_old, other=st.lists(keys, max_size=4), lo=keys_or_old, hi=keys_or_old, reverse=st.booleans())
    def look(self, key, other, lo, hi, reverse):
        self.look_up(self.chosen(key))
        self.look_at_views()
        self.look_at_ranges(self.chosen(lo), self.chosen(hi), reverse)
        nan = any(k != k or isinstance(k, tuple) and NAN in k for k in self.content)
        if not nan: self.compare(other)  # one that was read is another object, and so another key to Python

    def look_up(self, key):
        agree(self.o.get(key, 'nothing'), self.content.get(key, 'nothing'))
        assert (key in self.o) == (key in self.content)
        self.raises_alike(lambda: self.content[key], lambda: self.o[key], KeyError)
        for text in ('a', 'ab', 'k'*480): assert (Text(text) in self.o) == (text in self.content)

    def look_at_views(self):
        o, content, expected = self.o, self.content, self.sorted_keys()
        for found in (o.keys(), o, [*reversed(o.keys())][::-1], [*reversed(o)][::-1]): agree(list(found), expected)
        for found in (list(o.values()), list(reversed(o.values()))[::-1], [o[k] for k in expected]):
            agree(found, [content[k] for k in expected])
        agree(list(reversed(o.items()))[::-1], [(k, content[k]) for k in expected])
        assert len(o.keys()) == len(o.values()) == len(o.items()) == len(content) and bool(o) == bool(content)

    def compare(self, other):
        o, content = self.o, self.content
        assert o.keys() & other == content.keys() & other and o.keys() - other == content.keys() - set(other)
        assert o.keys() == content.keys() and o.keys().isdisjoint(other) == content.keys().isdisjoint(other)
        if has_arrays(content.values()): return
        assert o == content and content == o and o.items() == content.items() and o != {**content, 'more': 1}
        assert all((k, v) in o.items() and v in o.values() for k, v in content.items())
        agree(o | {'a': 1}, dict(self.model(content)) | {'a': 1})

    def look_at_ranges(self, lo, hi, reverse):
        items = self.model(self.content)
        for end, method in ((0, self.o.first), (-1, self.o.last)):
            self.raises_alike(lambda: items[end] if items else {}['none'], method, KeyError)
        above, below = [p for p in items if order(lo) <= order(p[0])], [p for p in items if order(p[0]) < order(hi)]
        both = [p for p in above if order(p[0]) < order(hi)]
        for bounds, expected in ((dict(lo=lo), above), (dict(hi=hi), below), (dict(lo=lo, hi=hi), both)):
            if None in bounds.values(): continue  # that is no bound
            agree(list(self.o.range(**bounds, reverse=reverse)), expected[::-1] if reverse else expected)


def test_dict_is_like_dict(site): search(Dicts, site, 60)

def test_dict_is_like_dict_in_a_durable_namespace(site): search(Dicts, site, 5, durable=True)


# --- Array

bounds = st.tuples(*[st.none() | st.integers(-9, 9)]*3)

class Arrays(Iterated):
    "An `Array` beside a `list`, or one with a `maxsize` beside a `deque`"
    cls = pk.Array

    def start(self, maxsize, items):
        self.new([] if maxsize is None else deque(maxlen=maxsize), maxsize=maxsize)
        self.extend(items, 'list')

    @rule(value=values)
    def append(self, value):
        self.o.append(value)
        self.content.append(value)
        self.did()

    @rule(items=st.lists(values, max_size=6), kind=st.sampled_from(['list', 'generator', 'itself', '+=', 'bad']))
    def extend(self, items, kind):
        if kind == 'bad': return self.extend_with_what_cannot_be_stored(items)
        if kind == 'itself' and len(self.content) > 10: return
        if kind == 'itself': items = list(self.content)
        if kind == '+=': self.o += items
        else: self.o.extend(self.o if kind == 'itself' else items if kind == 'list' else iter(items))
        self.content.extend(items)
        self.did(bool(items))

    def extend_with_what_cannot_be_stored(self, items):
        "Nothing is"
        with pytest.raises(TypeError): self.o.extend([*items, Lock()])
        with pytest.raises(TypeError): self.o.append(Lock())

    @rule(left=st.booleans())
    def pop(self, left):
        def theirs():
            if not left or not self.content: return self.content.pop()
            first = self.content[0]
            del self.content[0]
            return first
        self.did(self.raises_alike(theirs, self.o.popleft if left else self.o.pop, IndexError))

    @rule(i=st.integers(-8, 8), value=values)
    def set(self, i, value):
        theirs, mine = (partial(items.__setitem__, i, value) for items in (self.content, self.o))
        self.did(self.raises_alike(theirs, mine, IndexError))

    @rule(i=st.integers(0, 5))
    def clear(self, i):
        if self.content and i: return  # seldom
        self.o.clear()
        self.did(bool(self.content))
        self.content.clear()

    @rule(reverse=st.booleans(),
          changes=st.lists(st.tuples(st.sampled_from(['append', 'pop', 'popleft', 'set', '']), values), max_size=8))
    def write_while_iterating(self, reverse, changes):
        "Elsewhere the iteration goes on showing what was there; in a transaction it raises once items have come or gone"
        before, seen, changed = list(self.content), [], False
        items = iter(self.iterate(reverse))
        while True:
            if self.blocks and changed:
                with pytest.raises(RuntimeError, match='changed size during iteration'): next(items)
                break
            try: value = next(items)
            except StopIteration: break
            seen.append(value)
            if self.blocks: agree(value, self.content[-len(seen) if reverse else len(seen) - 1])
            change, new = changes.pop() if changes else ('', None)
            changed = changed or change in ('append', 'pop', 'popleft')
            if change == 'append': self.append(new)
            if change == 'set' and self.content: self.set(-1, new)
            if change in ('pop', 'popleft'): self.pop(change == 'popleft')
        self.dirty = True
        if not self.blocks: agree(seen, before[::-1] if reverse else before)
        elif not changed: assert len(seen) == len(self.content)

    @precondition(lambda self: not self.blocks)
    @rule(who=elsewhere, value=values)
    def write_elsewhere(self, who, value):
        self.call_elsewhere(who, 'append', value)
        self.content.append(value)
        self.did()

    @rule(i=st.integers(-8, 8), parts=st.lists(bounds, max_size=3), value=_small)
    def look(self, i, parts, value):
        items = list(self.content)
        self.raises_alike(lambda: items[i], lambda: self.o[i], IndexError)
        for s in (slice(*each) for each in parts): self.raises_alike(lambda: items[s], lambda: self.o[s], ValueError)
        agree(list(reversed(self.o)), items[::-1])
        assert bool(self.o) == bool(items)
        if has_arrays(items): return
        assert self.o == items and self.o != [*items, 1] and (value in self.o) == (value in items)
        for v in (*items[:1], value):
            assert self.o.count(v) == items.count(v)
            self.raises_alike(lambda: items.index(v), lambda: self.o.index(v), ValueError)

class Lists(Arrays):
    @initialize(items=st.lists(values, max_size=8))
    def begin_with(self, items): self.start(None, items)

class Rings(Arrays):
    @initialize(maxsize=st.integers(1, 5), items=st.lists(values, max_size=7))
    def begin_with(self, maxsize, items): self.start(maxsize, items)


def test_array_is_like_list(site): search(Lists, site, 40)

def test_array_with_maxsize_is_like_deque(site): search(Rings, site, 40)

def test_array_is_like_list_in_a_durable_namespace(site): search(Lists, site, 5, durable=True)


# --- queues

class _Model:
    "What Python's queues lack: copies and, until 3.13, an end"
    closed = False
    def __copy__(self):
        other = type(self)(self.maxsize)
        other.queue, other.unfinished_tasks, other.closed = copy(self.queue), self.unfinished_tasks, self.closed
        return other

class Line(_Model, queue.Queue): pass
class Stack(_Model, queue.LifoQueue): pass


class Queues(Machine):
    "A `Queue` beside a `queue.Queue`, or a `LifoQueue` beside its like"
    cls: Any = pk.Queue
    theirs: Any = Line

    @initialize(maxsize=st.sampled_from([None, 0, 1, 3]), items=st.lists(values, max_size=4))
    def start(self, maxsize, items):
        self.new(self.theirs(maxsize or 0), maxsize=maxsize)
        self.put_many(items)

    def stored(self, content): return list(content.queue)
    def model(self, content): return list(content.queue)[::-1 if self.theirs is Stack else 1]
    def shown(self): return [self.o.qsize()]
    def expected(self, content): return [content.qsize()]

    def check_content(self, content):
        o = self.o
        assert (o.qsize(), o.maxsize) == (content.qsize(), content.maxsize)
        assert (o.empty(), o.full()) == (content.empty(), content.full())
        try:
            with pk.transaction(o):
                agree(o.get_many(100, block=False) if content.queue else [], self.model(content))
                raise LookupError  # put them back
        except LookupError: pass
        except pk.TransactionError: pass  # nothing can be taken in a snapshot

    def fail(self, is_put, n=1):
        "Raise what a queue raises that has no room, or no items, or an end"
        q = self.content
        if q.closed and (is_put or q.empty()): raise pk.QueueShutDown
        if is_put and 0 < q.maxsize < q.qsize() + n: raise queue.Full
        if not is_put and q.empty(): raise queue.Empty

    def waiting(self, method, *args, timeout):
        "Call a method that may wait; in a transaction that would be for ever"
        if timeout is None: return getattr(self.o, f'{method}_nowait')(*args)
        try: return getattr(self.o, method)(*args, timeout=timeout)
        except pk.TransactionError: assert self.blocks
        return getattr(self.o, method)(*args, block=False)

    @rule(value=values, timeout=st.sampled_from([None, 0, 0.001]))
    def put(self, value, timeout):
        def theirs():
            self.fail(True)
            self.content.put_nowait(value)
        def mine(): return self.waiting('put', value, timeout=timeout)
        self.did(self.raises_alike(theirs, mine, queue.Full, pk.QueueShutDown))

    @rule(timeout=st.sampled_from([None, 0, 0.001]))
    def get(self, timeout):
        def theirs():
            self.fail(False)
            return self.content.get_nowait()
        def mine(): return self.waiting('get', timeout=timeout)
        self.did(self.raises_alike(theirs, mine, queue.Empty, pk.QueueShutDown))

    @rule(items=st.lists(values, max_size=4))
    def put_many(self, items):
        "All or nothing"
        def theirs():
            if len(items) > 1 and 0 < self.content.maxsize < len(items): raise ValueError
            self.fail(True, len(items))
            for item in items: self.content.put_nowait(item)
        def mine(): return self.o.put_many(iter(items), block=False)
        self.did(self.raises_alike(theirs, mine, queue.Full, pk.QueueShutDown, ValueError) and bool(items))
        with pytest.raises(TypeError): self.o.put_many([*items, Lock()], block=False)
        with pytest.raises(ValueError): self.o.put(1, timeout=-1)

    @rule(n=st.integers(0, 5))
    def get_many(self, n):
        def theirs():
            if not n: raise ValueError
            self.fail(False)
            return [self.content.get_nowait() for _ in range(min(n, self.content.qsize()))]
        def mine(): return self.o.get_many(n, block=False)
        self.did(self.raises_alike(theirs, mine, queue.Empty, pk.QueueShutDown, ValueError))

    @rule()
    def task_done(self):
        self.did(self.raises_alike(self.content.task_done, self.o.task_done, ValueError))
        self.join()

    @rule(immediate=st.booleans(), keep=st.integers(0, 5))
    def shutdown(self, immediate, keep):
        "Mostly it is undone: there is little to be seen of a queue afterwards"
        self.begin(True, False)
        self.o.shutdown(immediate)
        q = self.content
        q.closed = True
        while immediate and not q.empty():
            q.get_nowait()
            q.unfinished_tasks = max(0, q.unfinished_tasks - 1)
        self.did()
        self.content_and_version_are_right()
        self.join()
        self.end('roll_back' if keep else 'commit')

    @precondition(lambda self: not self.blocks)
    @rule(who=elsewhere, value=values, put=st.booleans())
    def put_or_get_elsewhere(self, who, value, put):
        q = self.content
        if put and not q.closed and not q.full():
            self.call_elsewhere(who, 'put_nowait', value)
            q.put_nowait(value)
        elif not q.empty(): agree(self.call_elsewhere(who, 'get_nowait'), q.get_nowait())
        else: return
        self.did()

    @rule()
    def join(self):
        if not self.content.unfinished_tasks: return self.o.join()
        with pytest.raises(pk.TransactionError if self.blocks else pk.WaitTimeout): self.o.join(timeout=0)

    def keep_an_array(self, draw):
        "Whatever becomes of the queue"
        if self.content.empty(): return
        taken = self.o.get()
        agree(taken, self.content.get_nowait())
        if isinstance(taken, np.ndarray): self.kept = [*self.kept[-3:], (taken, taken.tobytes())]
        self.did()

class Stacks(Queues): cls, theirs = pk.LifoQueue, Stack


def test_queue_is_like_queue(site): search(Queues, site, 60)

def test_lifo_queue_is_like_lifo_queue(site): search(Stacks, site, 30)

def test_queue_is_like_queue_in_a_durable_namespace(site): search(Queues, site, 5, durable=True)
