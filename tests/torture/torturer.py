"""A process of the torture: random operations on objects that many such processes share, until it is told to leave or dies.

Each operation is a generator: it decides everything by its actor's own random numbers, yields the decision, which goes into
the journal, then does what it has decided, and returns what it found, which goes into the journal too. An exception that
it does not expect is a failure of parkit's."""
import asyncio, contextlib, contextvars, faulthandler, gc, os, pickle, queue, random, shutil, signal, sys, threading, traceback
from contextlib import ExitStack, nullcontext
from datetime import date
from decimal import Decimal

import numpy as np

import parkit as pk
from journal import Journal, now, stem, tag
from parkit.codecs import encode_key

KEYS = [0, 1, 2, -3, 2**70, 2.5, 'a', 'b', 'ab', ('t', 1), ('t', 'u'), b'bytes', Decimal(7), frozenset('xy'), date(2026, 1, 1), None,
        'L'*600, 'L'*600 + 'a', 'L'*1500, ('p', 'L'*900), ('p', 'L'*901)]  # the last five are longer than LMDB's
KINDS = ['small']*6 + ['text']*2 + ['inline']*2 + ['blob']*2 + ['parts', 'bytes']
ACCOUNTS, MONEY, THINGS, RING, ROOM = 8, 1000, 3, 40, 30


class Wrong(AssertionError):
    "Something was read that cannot be"

class Undo(Exception):
    "Leaves a transaction that is to be rolled back"


# --- values that tell who wrote them, and whether they are whole

def row(tag, n): return np.arange(n, dtype=np.uint64) + np.uint64(tag)

def make(tag, kind):
    "A value of the kind, that can be told from all others"
    if kind == 'small': return [tag]
    if kind == 'text': return [tag, chr(97 + tag % 26)*(tag % 5000)]
    if kind == 'bytes': return [tag, tag.to_bytes(8, 'big')*40_000]
    if kind == 'parts': return dict(tag=tag, a=row(tag, 20_000), b=row(tag, 20_000 + tag % 1000))
    return row(tag, 1000 if kind == 'inline' else 2**15 + tag % 2**15)

def tag_of(value):
    "The tag of a value, every byte of which is looked at"
    if isinstance(value, np.ndarray):
        found = int(value[0])
        if not np.array_equal(value, row(found, len(value))): raise Wrong(f'an array of {len(value)} is torn: {value[:3]}, {value[-3:]}')
        return found
    if isinstance(value, dict):
        if {tag_of(value['a']), tag_of(value['b'])} != {value['tag']}: raise Wrong(f'parts of different values: {value}')
        return value['tag']
    found = value[0]
    for rest in value[1:]:
        whole = found.to_bytes(8, 'big')*40_000 if isinstance(rest, bytes) else chr(97 + found % 26)*(found % 5000)
        if rest != whole: raise Wrong(f'a value is torn: {str(value)[:100]}')
    return found

def arrays(value): return [value] if isinstance(value, np.ndarray) else [value['a'], value['b']] if isinstance(value, dict) else []

def retag(value, new):
    "Change a value in place into the one that has the tag `new`"
    for a in arrays(value): a[:] = row(new, len(a))
    if isinstance(value, dict): value['tag'] = new
    elif isinstance(value, list): value[:] = [new]


# --- processes and actors

class Process:
    "What the actors of one process share"
    def __init__(self, site, folder, seed, deadline):
        self.site, self.folder, self.seed, self.deadline = site, folder, seed, deadline
        self.handles, self.kept, self.stale, self.anonymous = {}, [], [], []
        self.threads, self.children, self.leaving, self.interruptible, self.struck = [], {}, False, False, 0
        self.last_error, self.inherited = None, set()

    def on_interrupt(self, *_):
        "Ctrl-C, but only ever amid an operation, never amid a line of the journal"
        if self.interruptible:
            self.interruptible = False
            self.struck += 1
            raise KeyboardInterrupt

    def leave(self, *_): self.leaving = True
    def is_over(self): return self.leaving or now() > self.deadline


class Actor:
    "One thread of operations, with random numbers, a journal and a name of its own"
    def __init__(self, process, name, depth=0, **facts):
        self.process, self.name, self.depth, self.stem = process, name, depth, stem(name)
        self.rng, self.journal = random.Random(f'{process.seed}/{name}'), Journal(process.folder, name, **facts)
        self.n, self.born, self.own, self.held = 0, 0, {}, []

    def step(self, ops=None):
        "One operation"
        names, weights = ops or (NAMES, WEIGHTS)
        op, p = OPS[self.rng.choices(names, weights)[0]], self.process
        self.n += 1
        n, run = self.n, op.work(self)
        decided = next(run)
        self.journal.write('begin', n, now(), op.work.__name__, decided)
        try:
            p.interruptible = threading.current_thread() is threading.main_thread() and not self.held
            try: next(run)
            finally: p.interruptible = False
        except StopIteration as e: return self.journal.write('done', n, now(), e.value)
        except KeyboardInterrupt as e: at, p.last_error = now(), e  # whose traceback keeps all frames alive, as it does in a notebook
        except BaseException as e: return self.journal.write('error', n, now(), f'{type(e).__name__}: {e}\n{traceback.format_exc(limit=-6)}')
        self.journal.write('cut', n, at, {ns: self.mark(ns) for ns in STORES} if op.marked else None)

    def run(self, steps=2**60):
        "Operations until the process is to leave, so many at most"
        while steps and not self.process.is_over():
            self.step()
            steps -= 1

    # decisions

    def ns(self):
        "A namespace; while a snapshot of one is held, the other"
        ns = self.rng.choice(['fast', 'fast', 'safe'])
        return STORES[ns == STORES[0]] if ns in self.held else ns

    def key(self): return self.rng.randrange(len(KEYS))
    def kind(self): return self.rng.choice(KINDS)
    def some(self, n): return self.rng.sample(range(len(KEYS)), n)
    def maybe(self, p): return self.rng.random() < p
    def value(self, kind='small', i=0): return make(self.tag(i), kind)
    def tag(self, i=0): return tag(self.stem, self.n, i)

    # objects

    def get(self, ns, name, cls=None, **options):
        "An object: the one this process has opened before, now and then one opened anew or by its reference"
        found = self.process.handles.get((ns, name))
        if found is None or self.n % 13 == 0:
            found = (cls or pk.Dict)(f'{ns}/{name}', **options)
            if self.n % 2: found = pickle.loads(pickle.dumps(found))
            self.process.handles[ns, name] = found
        return found

    def mark(self, ns, i=None):
        "Note in the namespace, in the transaction that is open, that it is number `i` of this operation; what was last noted, if there is no `i`"
        marks = self.get(ns, 'marks')
        if i is None: return marks.get(self.name)
        marks[self.name] = [self.n, i]

    def keep(self, value, shared):
        "Hold arrays for later"
        for a in arrays(value):
            if len(self.process.kept) < 40: self.process.kept.append([a, int(a[0]), shared])


STORES = ['fast', 'safe']  # a scratch and a durable namespace, each with all of the objects
OPS, NAMES, WEIGHTS = {}, [], []

class Kind:
    def __init__(self, work, marked): self.work, self.marked = work, marked

def op(weight, marked=False):
    "An operation, `weight` times as frequent as others; one that is `marked` leaves its mark in its transaction"
    def add(work):
        OPS[work.__name__] = Kind(work, marked)
        NAMES.append(work.__name__)
        WEIGHTS.append(weight)
        return work
    return add


# --- registers: a `Dict` in which all overwrite each other's values

@op(8)
def set_value(a):
    ns, i, kind = a.ns(), a.key(), a.kind()
    yield ns, i
    a.get(ns, 'reg')[KEYS[i]] = a.value(kind)

@op(3)
def delete(a):
    ns, i = a.ns(), a.key()
    yield ns, i
    try: del a.get(ns, 'reg')[KEYS[i]]
    except KeyError: return False
    return True

@op(3)
def pop(a):
    ns, i = a.ns(), a.key()
    yield ns, i
    found = a.get(ns, 'reg').pop(KEYS[i], None)
    if found is None: return None
    a.keep(found, False)
    return tag_of(found)

@op(1)
def pop_item(a):
    ns = a.ns()
    yield ns,
    try: key, found = a.get(ns, 'reg').popitem()
    except KeyError: return None
    return KEYS.index(key), tag_of(found)

@op(3)
def set_default(a):
    ns, i, kind = a.ns(), a.key(), a.kind()
    yield ns, i
    return tag_of(a.get(ns, 'reg').setdefault(KEYS[i], a.value(kind)))

@op(3)
def update(a):
    ns, keys, kinds = a.ns(), a.some(4), [a.kind() for _ in range(4)]
    yield ns, keys
    a.get(ns, 'reg').update((KEYS[k], a.value(kind, i)) for i, (k, kind) in enumerate(zip(keys, kinds)))

@op(3)
def edit(a):
    ns, i = a.ns(), a.key()
    yield ns, i
    try:
        with a.get(ns, 'reg').edit(KEYS[i]) as v:
            found = tag_of(v)
            retag(v, a.tag())
    except KeyError: return None
    return found

@op(0.2)
def clear(a):
    ns = a.ns()
    yield ns,
    a.get(ns, 'reg').clear()

@op(10)
def read_value(a):
    ns, i, how = a.ns(), a.key(), a.rng.choice(['plain', 'plain', 'snapshot', 'copy', 'transaction'])
    yield ns, i
    d = a.get(ns, 'reg')
    if how == 'plain': found = d.get(KEYS[i])
    else:
        block = pk.transaction(d) if how == 'transaction' else pk.snapshot(d, zero_copy=how == 'snapshot')
        with block:
            found = d.get(KEYS[i])
            if (KEYS[i] in d) is (found is None): raise Wrong(f'{KEYS[i]!r} is and is not there')
    a.keep(found, how in ('snapshot', 'transaction'))
    return found if found is None else tag_of(found)

@op(2)
def scan(a):
    ns, how = a.ns(), a.rng.choice(['plain', 'snapshot', 'reverse', 'transaction'])
    yield ns,
    return all_of(a, ns, how)

def all_of(a, ns, how):
    "The tags in the registers, by key"
    d = a.get(ns, 'reg')
    with ExitStack() as stack:
        if how in ('snapshot', 'transaction'):
            stack.enter_context(getattr(pk, how)(d))
            size = len(d)
        else: size = None
        found = [*reversed(d.items())][::-1] if how == 'reverse' else list(d.items())
        if size not in (None, len(found)): raise Wrong(f'{size} entries are counted, {len(found)} found')
        codes = [encode_key(k) for k, _ in found]
        if codes != sorted(set(codes)): raise Wrong(f'keys out of order or double: {[k for k, _ in found]}')
        return [(KEYS.index(k), tag_of(v)) for k, v in found]

@op(4, True)
def transact(a):
    "Several changes at once, some of them in an inner transaction that is rolled back, or all of them rolled back"
    ns, keys, kinds, acts = a.ns(), a.some(5), [a.kind() for _ in range(5)], [a.rng.choice('sssd') for _ in range(5)]
    fails, inner = a.maybe(0.3), a.maybe(0.4)
    acts, undone = acts[:3], acts[3:] if inner else []
    yield ns, keys[:3], acts, fails
    d = a.get(ns, 'reg')
    def change(k, act, kind, i):
        if act == 's': d[KEYS[k]] = a.value(kind, i + 8*fails)
        else: return d.pop(KEYS[k], None) is not None
    try:
        with pk.transaction(d):
            a.mark(ns, 0)
            found = [change(k, act, kind, i) for i, (k, act, kind) in enumerate(zip(keys, acts, kinds))]
            seen = all_of(a, ns, 'plain')
            try:
                with pk.transaction(d):
                    for i, (k, act, kind) in enumerate(zip(keys[3:], undone, kinds[3:]), 11): change(k, act, kind, i)
                    if inner: d['void'] = a.value('blob', 13)
                    raise Undo
            except Undo: pass
            if all_of(a, ns, 'plain') != seen: raise Wrong('an inner transaction was not undone')
            if fails: raise Undo
    except Undo: pass
    return found

@op(0.5, True)
def transact_async(a):
    ns, n = a.ns(), a.rng.randrange(2, 4)
    yield ns, n
    async def add():
        async with pk.transaction(ns):
            counts = a.get(ns, 'counts')
            counts['async'] = [counts['async'][0] + 1]
            await asyncio.sleep(0)
            a.mark(ns, len(done))
            done.append(counts['async'][0])
    async def main(): await asyncio.gather(*(add() for _ in range(n)))
    done = []
    asyncio.run(main())
    return done

@op(1)
def give_up(a):
    "Wait for the lock, but not for long"
    ns, i = a.ns(), a.key()
    yield ns, i
    try:
        with pk.transaction(ns, timeout=0.002): a.get(ns, 'reg')[KEYS[i]] = a.value()
    except pk.TransactionTimeout: return False
    return True


# --- counters, accounts, pairs

@op(4)
def count(a):
    ns, i = a.ns(), a.rng.randrange(3)
    yield ns, i
    with a.get(ns, 'counts').edit(i) as v:
        v[0] += 1
        return v[0]

@op(4, True)
def count_marked(a):
    ns, i, fails = a.ns(), a.rng.randrange(3), a.maybe(0.2)
    yield ns, i, fails
    d, state = a.get(ns, 'counts'), a.get(ns, 'state')
    try:
        with pk.transaction(d):
            a.mark(ns, 0)
            d[i] = [d[i][0] + 1]
            state.counted += 1
            if fails: raise Undo
            return d[i][0]
    except Undo: return None

@op(5, True)
def transfer(a):
    ns, (i, j), amount = a.ns(), a.rng.sample(range(ACCOUNTS), 2), a.rng.randrange(1, 50)
    fails, blob = a.maybe(0.2), a.maybe(0.1)
    yield ns, i, j, amount, fails
    bank = a.get(ns, 'bank')
    try:
        with pk.transaction(bank):
            bank[i] -= amount
            try:
                with pk.transaction(bank):
                    bank[j] += 10*amount
                    raise Undo
            except Undo: pass
            if blob: a.get(ns, 'receipts')[i] = a.value('blob', 8*fails)
            bank[j] += amount
            a.mark(ns, 0)
            if fails: raise Undo
    except Undo: pass

@op(4)
def audit(a):
    ns, how = a.ns(), a.rng.choice(['plain', 'snapshot'])
    yield ns,
    bank = a.get(ns, 'bank')
    if how == 'plain': total = sum(bank.values())
    else:
        with pk.snapshot(bank): total = sum(bank[i] for i in range(ACCOUNTS))
    if total != MONEY*ACCOUNTS: raise Wrong(f'the accounts sum up to {total}')

@op(3, True)
def pair(a):
    "The same in two `Dict`s and in an attribute"
    ns, kind, fails = a.ns(), a.kind(), a.maybe(0.2)
    yield ns, fails
    try:
        with pk.transaction(ns):
            for name in ('left', 'right'): a.get(ns, name)['same'] = a.value(kind, 8*fails)
            a.mark(ns, 0)
            a.get(ns, 'state').same = a.tag(8*fails)
            if fails: raise Undo
    except Undo: pass

@op(3)
def compare(a):
    ns = a.ns()
    yield ns,
    with pk.snapshot(ns): found = [tag_of(a.get(ns, name)['same']) for name in ('left', 'right')] + [a.get(ns, 'state').same]
    if len(set(found)) != 1: raise Wrong(f'half of a transaction: {found}')
    return found[0]

@op(5)
def own_value(a):
    "Entries that nobody else touches, in namespaces that many make at once"
    made = a.rng.randrange(24)
    ns = a.ns() if made >= 6 else f'made/{made}'
    i, act, kind = a.rng.randrange(3), a.rng.choice('ssd'), a.kind()
    yield ns, i, act
    if made < 6: pk.Namespace(ns, durable=made % 2 == 0)
    d, key, at = a.get(ns, 'own'), (a.name, i), (ns, i)
    known = a.own.get(at, [None])  # what it may be: more than one value after an interrupt
    found = d.get(key)
    if (None if found is None else tag_of(found)) not in known: raise Wrong(f'{found} is not one of {known}, which was put there last')
    new = a.tag() if act == 's' else None
    a.own[at] = [*known, new]
    if act == 's': d[key] = a.value(kind)
    else: d.pop(key, None)
    a.own[at] = [new]


# --- lists

@op(4)
def append(a):
    ns, kind = a.ns(), a.kind()
    yield ns,
    a.get(ns, 'log', pk.Array).append(a.value(kind if a.n % 4 == 0 else 'small'))

@op(2)
def extend(a):
    ns, n = a.ns(), a.rng.randrange(1, 8)
    yield ns, n
    a.get(ns, 'log', pk.Array).extend(a.value(i=i) for i in range(n))

@op(2, True)
def append_marked(a):
    ns, fails = a.ns(), a.maybe(0.3)
    yield ns, fails
    log = a.get(ns, 'log', pk.Array)
    try:
        with pk.transaction(log):
            a.mark(ns, 0)
            log.append(a.value(i=8*fails))
            try:
                with pk.transaction(log):
                    log.append(a.value(i=9))
                    raise Undo
            except Undo: pass
            if fails: raise Undo
    except Undo: pass

@op(1)
def read_log(a):
    ns, how, back = a.ns(), a.rng.choice(['plain', 'snapshot', 'slice']), a.rng.randrange(1, 30)
    yield ns,
    log = a.get(ns, 'log', pk.Array)
    if how == 'slice': return [tag_of(v) for v in log[-back:]]
    if how == 'plain': return [tag_of(v) for v, _ in zip(reversed(log), range(back))][::-1]
    with pk.snapshot(log):
        found, size = log[-back:], len(log)
        if len(found) != min(size, back) or found and tag_of(log[size - 1]) != tag_of(found[-1]): raise Wrong(f'{size} items are counted, {len(found)} found')
        return [tag_of(v) for v in found]

@op(4)
def line_up(a):
    ns, n, kind = a.ns(), a.rng.randrange(1, 5), a.kind()
    yield ns, n
    line = a.get(ns, 'line', pk.Array)
    if n == 1: line.append(a.value(kind))
    else: line.extend(a.value(kind if i == 0 else 'small', i) for i in range(n))

@op(4)
def pop_left(a):
    ns = a.ns()
    yield ns,
    try: return tag_of(a.get(ns, 'line', pk.Array).popleft())
    except IndexError: return None

@op(3, True)
def move(a):
    "An item from one list to another"
    ns, fails = a.ns(), a.maybe(0.2)
    yield ns, fails
    line, moved = a.get(ns, 'line', pk.Array), a.get(ns, 'moved', pk.Array)
    try:
        with pk.transaction(line):
            if not line: return None
            a.mark(ns, 0)
            item = line.popleft()
            moved.append(item)
            if fails: raise Undo
            return tag_of(item)
    except Undo: return None

@op(2)
def go_round(a):
    "A ring that keeps the last items"
    ns, n, kind = a.ns(), a.rng.randrange(1, 6), a.kind()
    yield ns, n
    ring = a.get(ns, 'ring', pk.Array, maxsize=RING)
    ring.extend(a.value(kind if i == 0 else 'small', i) for i in range(n))
    found = ring[:]
    if len(found) > RING: raise Wrong(f'{len(found)} items in a ring for {RING}')
    return [tag_of(v) for v in found]

@op(1, True)
def replace_item(a):
    "Items of a list that is never shorter, and of one that is often cleared"
    ns, i, kind = a.ns(), a.rng.randrange(4), a.kind()
    yield ns, i
    with pk.transaction(ns):
        a.mark(ns, 0)
        a.get(ns, 'slots', pk.Array)[i] = a.value(kind)
        cleared = a.get(ns, 'cleared', pk.Array)
        if len(cleared) > 5: cleared.clear()
        cleared.append(a.value(kind, 1))


# --- queues

def any_queue(a): return a.rng.choice([pk.Queue, pk.LifoQueue])

def patience(a):
    "Seconds to wait for an item or for room; none in a block, where that is refused"
    timeout = a.rng.choice([0, 0.02])
    return 0 if a.held else timeout

def line_of(a, ns, cls): return a.get(ns, cls.__name__, cls, maxsize=ROOM)

@op(4)
def put(a):
    ns, cls, kind, timeout = a.ns(), any_queue(a), a.kind(), patience(a)
    yield ns, cls.__name__
    try: line_of(a, ns, cls).put(a.value(kind), timeout > 0, timeout or None)
    except queue.Full: return False
    return True

@op(2)
def put_many(a):
    ns, cls, n, kind, timeout = a.ns(), any_queue(a), a.rng.randrange(1, 8), a.kind(), patience(a)
    yield ns, cls.__name__, n
    try: line_of(a, ns, cls).put_many([a.value('small' if i else kind, i) for i in range(n)], timeout > 0, timeout or None)
    except queue.Full: return False
    return True

@op(4)
def take(a):
    ns, cls, timeout = a.ns(), any_queue(a), patience(a)
    yield ns, cls.__name__, 1
    try: return [tag_of(line_of(a, ns, cls).get(timeout > 0, timeout or None))]
    except queue.Empty: return []

@op(3)
def take_many(a):
    ns, cls, n, timeout = a.ns(), any_queue(a), a.rng.randrange(1, 8), patience(a)
    yield ns, cls.__name__, n
    try: return [tag_of(v) for v in line_of(a, ns, cls).get_many(n, timeout > 0, timeout or None)]
    except queue.Empty: return []

@op(0.3)
def put_async(a):
    ns, cls, kind = a.ns(), any_queue(a), a.kind()
    yield ns, cls.__name__
    return asyncio.run(in_time(line_of(a, ns, cls).aput(a.value(kind)), True))

@op(0.3)
def take_async(a):
    ns, cls = a.ns(), any_queue(a)
    yield ns, cls.__name__, 1
    found = asyncio.run(in_time(line_of(a, ns, cls).aget()))
    return [tag_of(found)] if found is not False else []

async def in_time(work, *value):
    try:
        found = await asyncio.wait_for(work, 0.02)
        return value[0] if value else found
    except asyncio.TimeoutError: return False

@op(2, True)
def take_over(a):
    "From the queue to a list, or not at all"
    ns, fails = a.ns(), a.maybe(0.2)
    yield ns, fails
    line, taken = line_of(a, ns, pk.Queue), a.get(ns, 'taken', pk.Array)
    try:
        with pk.transaction(ns):
            a.mark(ns, 0)
            item = line.get_nowait()
            taken.append(item)
            if fails: raise Undo
            return tag_of(item)
    except (Undo, queue.Empty): return None


# --- objects that come and go

@op(2)
def open_thing(a):
    ns, name, new = a.ns(), f'thing{a.rng.randrange(THINGS)}', a.maybe(0.3)
    yield ns, name
    try: thing = pk.Dict(f'{ns}/{name}', bind=not new, metadata=dict(a=1) if a.n % 2 else None)
    except pk.ObjectExistsError: return None
    a.process.stale = a.process.stale[-7:] + [thing]
    return str(thing.uuid)

def known_thing(a, i):
    found = a.process.stale[i % len(a.process.stale)] if a.process.stale else None
    return None if found is None or found.namespace in a.held else found

@op(4)
def use_thing(a):
    i, kind = a.rng.randrange(8), a.kind()
    thing = known_thing(a, i)
    uuid = None if thing is None else str(thing.uuid)
    yield thing is not None and thing.path, uuid
    if thing is None: return None
    try:
        if thing.get('uuid', uuid) != uuid or getattr(thing, 'mine', uuid) != uuid: raise Wrong(f'{uuid} holds what is of {thing["uuid"]}')
        thing.update(uuid=uuid, value=a.value(kind))
        thing.mine = uuid
        tag_of(thing['value'])
    except pk.ObjectNotFoundError: return 'gone'
    return 'ok'

@op(1)
def drop_thing(a):
    thing = known_thing(a, a.rng.randrange(8))
    yield None if thing is None else str(thing.uuid),
    if thing is None: return None
    try: thing.drop()
    except pk.ObjectNotFoundError: return 'gone'
    return 'dropped'

@op(1, True)
def renew_thing(a):
    "Another object under the same name, at once"
    ns, name, fails = a.ns(), f'thing{a.rng.randrange(THINGS)}', a.maybe(0.5)
    yield ns, name, fails
    old = new = None
    try:
        with pk.transaction(ns):
            a.mark(ns, 0)
            old = pk.Dict(f'{ns}/{name}')
            old['uuid'] = str(old.uuid)
            old.drop()
            new = pk.Dict(f'{ns}/{name}', bind=False)
            new.update(uuid=str(new.uuid), value=a.value('blob', 8*fails))
            if fails: raise Undo
    except Undo: pass
    a.process.stale = a.process.stale[-7:] + [new]  # rolled back, it is one that never was
    return [str(old.uuid), str(new.uuid)]

@op(1)
def copy(a):
    "All registers at once, files of arrays and all, to another name or to none"
    ns, to, name = a.ns(), a.ns(), a.rng.choice([None, f'copy{a.rng.randrange(3)}'])
    yield ns, name and f'{to}/{name}'
    try: made = a.get(ns, 'reg').copy(name and f'{to}/{name}')
    except pk.ObjectExistsError: return None
    found = [(KEYS.index(k), tag_of(v)) for k, v in made.items()]
    made.drop()
    return found

@op(1)
def rename(a):
    "One object with one of two names"
    ns = a.ns()
    yield ns,
    with pk.transaction(ns):
        here = [name for name in ('this', 'that') if name in pk.Namespace(ns)]
        if len(here) != 1: raise Wrong(f'one object has the names {here}')
        o = pk.Dict(f'{ns}/{here[0]}', create=False)
        o.rename('that' if here == ['this'] else 'this')
        if o['uuid'] != str(o.uuid): raise Wrong(f'{o} is another')

@op(2)
def write_file(a):
    "All of a file's content anew, or changed in place; not at all if the block is left by an exception"
    ns, mode, size, fails = a.ns(), a.rng.choice(['wb', 'r+b']), a.rng.choice([10, 1000, 50_000]), a.maybe(0.2)
    yield ns, fails
    try:
        with a.get(ns, 'file', pk.File).open(mode) as f:
            if mode == 'r+b': tag_of(np.frombuffer(f.read(), np.uint64))
            f.seek(0)
            f.truncate()
            for part in np.array_split(row(a.tag(8*fails), size), 3): f.write(part)
            if fails: raise Undo
    except Undo: return False
    except pk.FileChangedError: return False
    return True

@op(2)
def read_file(a):
    ns, how = a.ns(), a.rng.choice(['content', 'rb', 'snapshot'])
    yield ns,
    file = a.get(ns, 'file', pk.File)
    if how == 'rb':
        with file.open() as f: return tag_of(np.frombuffer(f.read(), np.uint64))
    with pk.snapshot(ns) if how == 'snapshot' else nullcontext(): found = np.frombuffer(file.content, np.uint64)
    a.keep(found, True)
    return tag_of(found)

@op(2)
def count_under_lock(a):
    "Read and write, in two steps that only the lock keeps together"
    ns = a.ns()
    yield ns,
    lock, d = a.get(ns, 'lock', pk.Lock), a.get(ns, 'guarded')
    if not (lock.acquire(False) if a.held else lock.acquire(timeout=0.02)): return None  # nobody waits in a snapshot
    try:
        n = d['n'] + 1
        d['n'] = n
        return n
    finally: lock.release()

@op(1)
def use_event(a):
    ns, act = a.ns(), a.rng.choice(['set', 'clear', 'wait'])
    yield ns, act
    event = a.get(ns, 'event', pk.Event)
    if act == 'wait': return not a.held and event.wait(0.005)
    getattr(event, act)()

# --- namespaces that come and go

@op(1.5)
def use_space(a):
    "Two that are the same in each namespace, wherever it has been moved, copied or compacted to"
    path, kind = f'space/{a.rng.randrange(3)}', a.kind()
    yield path,
    try:
        pk.Namespace(path, durable=False)
        with pk.transaction(path):
            left, right = pk.Dict(f'{path}/left'), pk.Dict(f'{path}/right')
            for d in (left, right): d['same'] = a.value(kind)
        with pk.snapshot(path):
            left, right = (pk.Dict(f'{path}/{name}', create=False) for name in ('left', 'right'))
            if tag_of(left['same']) != tag_of(right['same']): raise Wrong('half of a transaction')
            a.keep(left['same'], True)
    except pk.ObjectNotFoundError: return 'gone'
    except pk.TransactionError as e: return str(e)

@op(0.6)
def move_space(a):
    act = a.rng.choice(['drop', 'rename', 'copy', 'compact'])
    i, j = a.rng.sample(range(3), 2)
    yield act, i, j
    here = pk.Namespace(f'space/{i}')
    try:
        if act == 'compact': pk.compact(here.path)
        else: getattr(here, act)(*[f'space/{j}']*(act != 'drop'))
    except (pk.ObjectNotFoundError, pk.ObjectExistsError): return 'not there'
    except pk.TransactionError as e: return str(e)  # someone reads it

@op(0.15)
def compact(a):
    ns = a.ns()
    yield ns,
    try: pk.compact(ns)
    except pk.TransactionError as e: return str(e)  # someone reads it

@op(0.1)
def back_up(a):
    "The copy is sound, and of one moment in each namespace"
    yield None,
    path = f'{a.process.folder}-backup-{a.name}-{a.n}'
    pk.backup(path)
    site = pk.Site(path, create=False)
    try:
        if (total := sum(pk.Dict('safe/bank', site=site).values())) != ACCOUNTS*MONEY: raise Wrong(f'the accounts in a backup sum up to {total}')
        left, right = (tag_of(pk.Dict(f'safe/{name}', site=site)['same']) for name in ('left', 'right'))
        if left != right: raise Wrong('half of a transaction in a backup')
        for v in pk.Dict('safe/reg', site=site).values(): tag_of(v)
    finally:
        site.close()
        shutil.rmtree(path)

@op(0.1)
def look_after(a):
    "What one does now and then"
    act = a.rng.choice(['gc', 'doctor'])
    yield act,
    getattr(pk, act)()

@op(2)
def use_anonymous(a):
    "An object without a name lives as long as someone holds it"
    kind, shares = a.kind(), a.maybe(0.3)
    yield kind,
    d = pk.Dict()
    d.update(value=a.value(kind), uuid=str(d.uuid))
    d.note = 'mine'
    a.process.anonymous.append(d)
    if shares: a.get('fast', 'refs')[a.n % 4] = d
    for o in a.process.anonymous[-4:]:  # a child holds those of its parent's too
        if o['uuid'] != str(o.uuid) or o.note != 'mine': raise Wrong(f'{o} is another')
        tag_of(o['value'])
    del a.process.anonymous[:-6]  # and with that those that nobody else has

@op(1)
def follow(a):
    "A reference to another process's object without a name"
    i = a.rng.randrange(4)
    yield i,
    o = a.get('fast', 'refs').get(i)
    if o is None: return None
    try:
        if o['uuid'] != str(o.uuid): raise Wrong(f'{o} is another')
        tag_of(o['value'])
    except pk.ObjectNotFoundError: return 'gone'
    return 'ok'


# --- what is held for long

@op(3)
def look_at_kept(a):
    i, n, change, forget = a.rng.randrange(100), a.rng.randrange(1, 10), a.maybe(0.3), a.maybe(0.6)
    yield len(a.process.kept),
    a.process.interruptible, kept = False, a.process.kept
    look_again(a, kept[i % 40:i % 40 + n], change)
    if forget: del kept[:n]

def look_again(a, kept, change=False):
    "Arrays kept are what they were; a private one can be changed, and nobody else sees it"
    for item in kept:
        array, known, shared = item
        if int(array[0]) != known or tag_of(array) != known: raise Wrong(f'a kept array has changed: {array[:3]}, not {known}')
        if array.flags.writeable is shared: raise Wrong(f'an array from a {"zero-copy read" if shared else "plain read"} has writeable={array.flags.writeable}')
        if change and not shared and threading.active_count() == 1:
            array[:] = row(a.tag(), len(array))
            item[1] = a.tag()

@op(0.7)
def hold(a):
    "A snapshot that stays open while this process and the others go on"
    ns, steps = a.ns(), a.rng.randrange(1, 8)
    yield ns, steps
    if a.held: return None
    a.process.interruptible = False
    def view():
        counts = [v[0] for v in a.get(ns, 'counts').values()]
        return all_of(a, ns, 'plain'), sum(a.get(ns, 'bank').values()), counts, len(a.get(ns, 'log', pk.Array)), a.get(ns, 'state').same
    with pk.snapshot(ns, zero_copy=a.n % 2 == 0):
        a.held.append(ns)
        try:
            seen = view()
            others = [(name, weight) for name, weight in zip(NAMES, WEIGHTS) if name not in _ALONE]
            for _ in range(steps): a.step([*zip(*others)])
            again = view()
        finally: a.held.pop()
    if again != seen: raise Wrong(f'a snapshot has changed: {seen} is now {again}')
    return seen[0]

_ALONE = {'hold', 'close', 'start_thread', 'fork_inside', 'use_anonymous', 'wait', 'put_async', 'take_async', 'compact', 'look_after', 'back_up'}  # not while a snapshot is held

@op(0.5)
def wait(a):
    ns, timeout = a.ns(), a.rng.choice([0.01, 0.05])
    yield ns,
    counts = a.get(ns, 'counts')
    seen = counts[0][0]
    try: return pk.wait_until(lambda: (v := counts[0][0]) > seen and v, timeout)
    except pk.WaitTimeout: return None

@op(0.7)
def close(a):
    "Close the site, which is open again at the next use; what was read stays"
    yield None,
    if a.held: return None
    try: a.process.site.close()
    except pk.TransactionError: return 'busy'  # another thread is amid something
    look_again(a, a.process.kept)

# --- processes and threads

@op(0.25)
def start_thread(a):
    steps = a.rng.randrange(10, 60)
    yield steps,
    p = a.process
    p.threads = [t for t in p.threads if t.is_alive()]
    if a.depth or p.threads or a.held: return None
    a.born += 1
    actor = Actor(p, f'{a.name}.t{a.born}', depth=1)
    def work():
        actor.run(steps)
        finish_journal(actor)
    p.threads.append(threading.Thread(target=work, name=actor.name))
    p.threads[-1].start()
    return actor.name

def finish_journal(actor, **facts):
    actor.journal.write('end', actor.n, now(), facts)
    actor.journal.close()

@op(1)
def fork_off(a):
    "A child that uses what it inherits: it leaves by itself, is killed, or dies at a line of parkit that the dice choose"
    fate, steps = a.rng.choice(['leaves', 'killed', 'doomed', 'doomed', 'struck' if os.environ.get('PARKIT_TORTURE') else 'killed']), a.rng.randrange(5, 40)
    line = int(2**a.rng.uniform(3, 12))
    yield fate, steps, line
    if a.depth > 1 or len(a.process.children) > 1: return None
    a.born += 1
    name, p = f'{a.name}.f{a.born}', a.process
    p.interruptible = False
    pid = os.fork()
    if not pid: _child(a, name, fate, steps, line)
    p.children[pid] = name, fate, a.n + line % 20  # killed at this operation of its parent's, or later
    return name

@op(0.3)
def fork_inside(a):
    "A child forked amid a transaction has no part in it"
    ns = a.ns()
    yield ns,
    if a.depth > 1 or a.held: return None
    d = a.get(ns, 'counts')
    a.process.interruptible = False
    with pk.transaction(d):
        v = d[1][0]
        pid = os.fork()
        if not pid:
            try:
                try: d[1] = [v + 100]
                except pk.TransactionError: os._exit(0)
                os._exit(3)
            except BaseException: os._exit(4)
        d[1] = [v + 1]
        _, status = os.waitpid(pid, 0)
    if status: raise Wrong(f'a child wrote into the transaction of its parent: {status}')
    return v + 1

def _child(a, name, fate, steps, line):
    "The life of a forked child, which never returns"
    p, code = a.process, 0
    stand()  # the parent may be doomed, but not this one
    try:
        p.threads, p.children, p.struck = [], {}, 0
        p.inherited = set(descriptors())
        actor = Actor(p, name, depth=a.depth + 1, doomed=fate == 'doomed' and line)
        look_again(actor, p.kept)
        if fate in ('doomed', 'struck'): fall(line, signal.SIGKILL if fate == 'doomed' else signal.SIGINT)
        contextvars.Context().run(actor.run, steps)  # not in the block of the parent's snapshot
        stand()
        finish(actor)
    except BaseException:
        traceback.print_exc()
        code = 71
    finally: os._exit(code)

def fall(n, number, folders=(os.path.dirname(pk.__file__), contextlib.__file__)):
    """Have this process hit by a signal: SIGKILL at the `n`th line of parkit's that it comes to; another at the `n`th moment
    at which Python looks for signals amid parkit's code, or contextlib's: as a function begins, or one of C's has returned"""
    def look(frame, event, arg):
        nonlocal n
        if not frame.f_code.co_filename.startswith(folders): return None
        n -= event in seen
        if n <= 0:
            watch(None)
            os.kill(os.getpid(), number)
        return look
    watch, seen = (sys.settrace, ['line']) if number == signal.SIGKILL else (sys.setprofile, ['call', 'c_return'])
    watch(look)

def stand():
    "No more of that"
    sys.settrace(None)
    sys.setprofile(None)

def tend(a, all_of_them=False):
    "Kill the children whose time has come, and see how they have died"
    for pid, (name, fate, when) in list(a.process.children.items()):
        if fate == 'killed' and (a.n >= when or all_of_them):
            os.kill(pid, signal.SIGKILL)
            a.journal.write('killed', a.n, now(), name)
        done, status = os.waitpid(pid, 0 if all_of_them or fate == 'killed' and a.n >= when else os.WNOHANG)
        if done:
            del a.process.children[pid]
            a.journal.write('reaped', a.n, now(), name, os.waitstatus_to_exitcode(status))

def descriptors():
    "What is open, by descriptor and file: a path can change"
    found = {}
    for fd in os.listdir('/proc/self/fd'):
        try: found[fd, os.fstat(int(fd)).st_dev, os.fstat(int(fd)).st_ino] = os.readlink(f'/proc/self/fd/{fd}')
        except OSError: pass  # the descriptor that listed the directory
    return found

def finish(actor):
    "Leave in good order: nothing may be left of this process but its journal"
    p = actor.process
    for t in p.threads: t.join()
    tend(actor, True)
    look_again(actor, p.kept)
    p.last_error = None
    for held in (p.handles, p.stale, p.anonymous): held.clear()
    gc.collect()
    p.site.close()
    open_now = [path for fd, path in descriptors().items() if fd not in p.inherited and (p.site.path in path or 'inotify' in path)]
    finish_journal(actor, open=open_now, struck=p.struck, threads=threading.active_count())

def main(path, folder, name, seed, deadline):
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    p = Process(pk.set_site(path), folder, seed, int(deadline))
    signal.signal(signal.SIGINT, p.on_interrupt)
    signal.signal(signal.SIGTERM, p.leave)
    actor = Actor(p, name)
    while not p.is_over():
        actor.step()
        tend(actor)
    finish(actor)

def prepare(path):
    "What is there before the torture begins"
    pk.set_site(path)
    for ns in STORES:
        pk.Namespace(ns, durable=ns == 'safe')
        pk.Dict(f'{ns}/bank').update((i, MONEY) for i in range(ACCOUNTS))
        pk.Dict(f'{ns}/counts').update({i: [0] for i in range(3)}, **{'async': [0]})
        pk.Array(f'{ns}/slots').extend([[0]]*4)
        for name in ('left', 'right'): pk.Dict(f'{ns}/{name}')['same'] = [0]
        for name in ('reg', 'marks', 'receipts', 'own'): pk.Dict(f'{ns}/{name}')
        for name in ('log', 'line', 'moved', 'cleared', 'taken'): pk.Array(f'{ns}/{name}')
        pk.Array(f'{ns}/ring', maxsize=RING)
        for cls in (pk.Queue, pk.LifoQueue): cls(f'{ns}/{cls.__name__}', maxsize=ROOM)
        pk.Dict(f'{ns}/refs')
        pk.Dict(f'{ns}/guarded')['n'] = 0
        pk.Lock(f'{ns}/lock'), pk.Event(f'{ns}/event')
        with pk.File(f'{ns}/file').open('wb') as f: f.write(row(0, 10))
        state, this = pk.Dict(f'{ns}/state'), pk.Dict(f'{ns}/this')
        state.counted, state.same, this['uuid'] = 0, 0, str(this.uuid)

if __name__ == '__main__': prepare(sys.argv[1]) if len(sys.argv) == 2 else main(*sys.argv[1:])
