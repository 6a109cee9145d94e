"What the process does that is to lose power, what its site must then hold, and what it does hold"
import hashlib, os, random
from functools import lru_cache

import numpy as np

import parkit as pk
from parkit import storage, system
from parkit.storage import BLOBS, META, TRASH

SCRATCH = 'fast'
SIZES = {3: 4, 40: 4, 2000: 3, 9000: 2, 2**18 - 3000: 1, 2**18 + 5: 2, 300_000: 2}  # bytes: inline, on pages of their own, blobs; and how often


@lru_cache(None)
def value(seed, size):
    "Some value of about `size` bytes, the same for the same seed"
    data = _data(seed, size)
    return [data, np.frombuffer(data, np.uint8), dict(seed=seed, data=data)][seed % 3]

def _data(seed, size): return random.Random(seed).randbytes(size)

def digest(value):
    "A short string that tells `value` from any other"
    if isinstance(value, dict): return f'dict:{value["seed"]}:{digest(value["data"])}'
    return f'{type(value).__name__}:{len(value)}:{hashlib.sha1(value).hexdigest()[:12]}'

def key(n): return [n, f'k{n}', ('long', 'x'*(n % 7)*150, n), n + 0.5][n % 4]

def namespace_of(path): return path.rpartition('/')[0] or 'default'
def renamed(path, name): return path[:len(path) - len(path.rpartition('/')[2])] + name


# --- what is done: a commit is a list of steps, the same for parkit's objects and for their model

class _Dict(dict):
    "A `Dict` of digests"
    def __init__(self, options=(), items=()): super().__init__(items)
    def shown(self): return sorted([repr(k), v] for k, v in self.items())

class _Queue(list):
    "A `Queue` of digests"
    def __init__(self, options=(), items=()): super().__init__(items)
    put, put_many = list.append, list.extend
    def get(self): return self.pop(0)
    def shown(self): return list(self)

class _Array(list):
    "An `Array` of digests"
    def __init__(self, options=(), items=()):
        super().__init__(items)
        self.options, self.maxsize = options, dict(options).get('maxsize')
    def popleft(self): return self.pop(0)
    def append(self, item): self.extend([item])
    def extend(self, items):
        super().extend(items)
        if self.maxsize: del self[:-self.maxsize]
    def shown(self): return list(self)

class _File(list):
    "A `File` as the parts that were written to it"
    def __init__(self, options=(), items=()): super().__init__(items)
    def shown(self): return digest(b''.join(_data(*part) for part in self))

class _Model:
    "Does the steps on plain Python objects"
    kinds = dict(Dict=_Dict, Array=_Array, Queue=_Queue, File=_File)
    value = staticmethod(lambda *spec: digest(value(*spec)))
    def make(self, objects, path, kind, options): objects[path] = self.kinds[kind](options)
    def drop(self, objects, path): del objects[path]
    def copy(self, objects, path, new):
        o = objects[path]
        objects[new] = made = type(o)(getattr(o, 'options', ()), o)
        if hasattr(o, 'note'): made.note = o.note
    def rename(self, objects, path, name): objects[renamed(path, name)] = objects.pop(path)
    def write(self, objects, path, mode, *spec): objects[path][:] = [*([] if mode == 'wb' else objects[path]), spec]
    def copy_namespace(self, objects, path, new):
        for p in [p for p in objects if namespace_of(p) == path]: self.copy(objects, p, f'{new}/{p.rpartition("/")[2]}')
    def drop_namespace(self, objects, path):
        for p in [p for p in objects if namespace_of(p) == path]: del objects[p]
    def compact(self, objects, path): pass

class _Real:
    "Does them on parkit's"
    value = staticmethod(value)
    def make(self, objects, path, kind, options): objects[path] = getattr(pk, kind)(path, **dict(options))
    def drop(self, objects, path): objects.pop(path).drop()
    def copy(self, objects, path, new): objects[new] = objects[path].copy(new)
    def rename(self, objects, path, name):
        objects[path].rename(name)
        objects[renamed(path, name)] = objects.pop(path)
    def write(self, objects, path, mode, *spec):
        with objects[path].open(mode) as f: f.write(_data(*spec))
    def copy_namespace(self, objects, path, new): pk.Namespace(path).copy(new)
    def drop_namespace(self, objects, path): pk.Namespace(path).drop()
    def rename_namespace(self, objects, path, new): pk.Namespace(path).rename(new)
    def compact(self, objects, path): pk.compact(path)

def _do(world, objects, kind, path, *args):
    if hasattr(world, kind) and kind != 'value': getattr(world, kind)(objects, path, *args)
    elif kind == 'note': objects[path].note = world.value(*args)  # an attribute
    elif kind == 'set': objects[path][key(args[0])] = world.value(*args[1:])
    elif kind == 'assign': objects[path][args[0]] = world.value(*args[1:])
    elif kind == 'delete': del objects[path][key(args[0])]
    elif kind == 'update': objects[path].update({key(n): world.value(*spec) for n, *spec in args})
    elif kind in ('append', 'put'): getattr(objects[path], kind)(world.value(*args))
    elif kind in ('extend', 'put_many'): getattr(objects[path], kind)([world.value(*spec) for spec in args])
    else: getattr(objects[path], kind)()  # clear, popleft, pop, get


class _Choices(random.Random):
    "Chooses the next step for the objects as they are"
    def spec(self): return self.randrange(10**6), self.choices([*SIZES], [*SIZES.values()])[0]
    def specs(self): return [self.spec() for _ in range(3)]
    def name(self): return f'n{self.randrange(10**6)}'

    def step(self, objects, kinds, path):
        o, kind = objects[path], kinds[path]
        if self.random() < .05: return 'note', path, *self.spec()
        if kind == 'File': return 'write', path, self.choice(['wb', 'wb', 'ab']), *self.spec()
        if kind == 'Dict':
            known = [n for n in range(40) if key(n) in o]
            todo = self.choice(['set']*6 + ['update'] + ['delete', 'again']*2*bool(known) + ['clear']*(self.random() < .1))
            if todo == 'set': return 'set', path, self.randrange(40), *self.spec()
            if todo == 'again': return 'set', path, self.choice(known), *self.spec()
            if todo == 'delete': return todo, path, self.choice(known)
            if todo == 'update': return (todo, path, *((n, *self.spec()) for n in self.sample(range(40), 3)))
        elif kind == 'Array':
            todo = self.choice(['append']*4 + ['extend'] + ['assign', 'popleft', 'pop']*bool(o) + ['clear']*(self.random() < .1))
            if todo == 'append': return todo, path, *self.spec()
            if todo == 'extend': return todo, path, *self.specs()
            if todo == 'assign': return todo, path, self.randrange(len(o)), *self.spec()
        else:
            todo = self.choice(['put']*3 + ['put_many'] + ['get']*3*bool(o))
            if todo == 'put': return todo, path, *self.spec()
            if todo == 'put_many': return todo, path, *self.specs()
        return todo, path

    def namespace_step(self, objects):
        every = sorted({namespace_of(p) for p in objects} - {SCRATCH})
        mine = [n for n in every if '/n' in n]
        todo = self.choice(['copy_namespace', 'compact', 'compact'] + ['rename_namespace', 'drop_namespace']*bool(mine))
        if todo == 'compact': return todo, self.choice(every)
        if todo == 'copy_namespace': return todo, self.choice(every), f'copies/{self.name()}'
        if todo == 'rename_namespace': return todo, self.choice(mine), f'prices/{self.name()}'
        return todo, self.choice(mine)


class Plan:
    "Commits, each a dict of its `steps` and how to do them, and what durable namespaces hold after each"
    def __init__(self, seed=0, n=0, before=None, kept=-1):
        self.commits, self.states, self.between, self.objects = [], [], {}, {}
        for c in before.commits[:kept + 1] if before else []:  # of an earlier life, cut short after commit `kept`
            for s in [] if c.get('undone') else c['steps']: self._step(*s)
        for path in [p for p in self.objects if namespace_of(p) == SCRATCH]: del self.objects[path]
        self.start = self._state()
        if n: self._fill(_Choices(seed), n)

    def add(self, *steps, **how):  # how: `scratch`, the namespace to make so; `undone`; `together`, in one transaction
        for s in steps if not how.get('undone') else []: self._step(*s)
        self.commits.append(dict(steps=steps, **how))
        self.states.append(self._state())

    def _step(self, kind, path, *args):
        if kind == 'rename_namespace':  # it copies, and then drops
            _do(_Model(), self.objects, 'copy_namespace', path, *args)
            self.between[len(self.commits)] = self._state()
            kind, args = 'drop_namespace', ()
        _do(_Model(), self.objects, kind, path, *args)

    def _state(self):
        found = {}
        for path, o in self.objects.items():
            if namespace_of(path) != SCRATCH: found.setdefault(namespace_of(path), {})[path.rpartition('/')[2]] = [o.shown(), getattr(o, 'note', None)]
        return found

    def _fill(self, rng, n):
        add, objects = self.add, self.objects
        new = [('d', 'Dict'), ('prices/eu/d', 'Dict'), ('prices/eu/a', 'Array'), ('q', 'Queue'), ('prices/eu/f', 'File'), ('prices/eu/ring', 'Array')]
        for path, kind in new if not objects else []: add(('make', path, kind, [['maxsize', 3]]*(path[-4:] == 'ring')))
        add(scratch=SCRATCH)
        add(('make', f'{SCRATCH}/d', 'Dict', []))
        middle = len(self.commits) + (n - len(self.commits))//2
        while len(self.commits) < n:
            kinds = {p: type(o).__name__[1:] for p, o in objects.items()}
            if len(self.commits) == middle: add(('make', f'late/n{n}/d', 'Dict', []), ('set', f'late/n{n}/d', 1, 7, 300_000), together=True)
            path, chance = rng.choice(sorted(kinds)), rng.random()
            near = [p for p in sorted(kinds) if namespace_of(p) == namespace_of(path) and kinds[p] != 'File'][:5]
            if chance < .5 or not near: add(rng.step(objects, kinds, path))
            elif chance < .6: add(*(rng.step(objects, kinds, p) for p in near), undone=True)
            elif chance < .65: add(('drop', near[0]), ('make', near[0], kinds[near[0]], []), together=True)
            elif chance < .7: add(('copy', path, f'{rng.choice(["prices/eu", "copies"])}/{rng.name()}'))
            elif chance < .75: add(('rename', path, rng.name()))
            elif chance < .9: add(*(rng.step(objects, kinds, p) for p in near), together=True)
            else: add(rng.namespace_step(objects))

    def allows(self, seen, done, begun):
        "Whether a site may hold `seen` once commit `done` was acknowledged and `begun` was begun; -1 is the site itself, `None` is no site"
        known = {-2: None, -1: self.start, **dict(enumerate(self.states))}
        allowed = [known[done], known[begun]] + ([self.between[begun]] if begun > done and begun in self.between else [])
        return any(seen == o or seen and o is not None and {n: x for n, x in seen.items() if x or n in o} == o for o in allowed)  # one without objects is on its way


def _specs(kind, path, *args):
    if kind in ('set', 'append', 'assign', 'put', 'note', 'write'): return [args[-2:]]
    return [v[-2:] for v in args] if kind in ('update', 'extend', 'put_many') else []


def run(path, commits, say, boot=None):
    "Open or make the site at `path` and do the commits, saying before each that it begins and after each that it is done"
    if boot: storage._boot_id = system._boot_id = lambda: boot
    for spec in (spec for c in commits for step in c['steps'] for spec in _specs(*step)): value(*spec)  # no time for that while recording
    say(dict(begin=-1))
    pk.set_site(path)
    say(dict(done=-1))
    objects = _Objects()
    for i, commit in enumerate(commits):
        say(dict(begin=i))
        _commit(objects, **commit)
        say(dict(done=i))

class _Objects(dict):
    "Objects by their paths; opened when first needed"
    def __missing__(self, path):
        self[path] = pk.Namespace(namespace_of(path))[path.rpartition('/')[2]]
        return self[path]
    def pop(self, path):
        self[path]
        return super().pop(path)

class _Undo(Exception): pass

def _commit(objects, steps, scratch=None, undone=False, together=False):
    if scratch: pk.Namespace(scratch, durable=False)
    elif not undone and not together: _do(_Real(), objects, *steps[0])
    else:
        try:
            with pk.transaction(namespace_of(steps[0][1])):
                for s in steps: _do(_Real(), objects, *s)
                if undone: raise _Undo
        except _Undo: pass


# --- what is there

def observe(site):
    "All that the durable namespaces of a site hold"
    found = {}
    for n in pk.namespaces(site):
        space = pk.Namespace(n, site=site)
        if space.durable: found[str(n)] = {o.name: observed(o) for o in space}
    return found

def observed(o):
    "What an object holds, and its attribute"
    note = getattr(o, 'note', None)
    return [_content(o), None if note is None else digest(note)]

def _content(o):
    if isinstance(o, pk.File):
        with o.open() as f: return digest(f.read())
    if isinstance(o, pk.Queue): items, size = _queued(o), o.qsize()
    elif isinstance(o, pk.Array): items, size = [digest(v) for v in o], len(o)
    else:
        items, size = sorted([repr(k), digest(v)] for k, v in o.items()), len(o)
        assert items == sorted([repr(k), digest(o[k])] for k in o)
    assert len(items) == size
    return items

def _queued(q):
    "The items of a queue, taken in a transaction that comes to nothing: there is no other way to see them all"
    items = []
    try:
        with pk.transaction(q):
            if q.qsize(): items = [digest(v) for v in q.get_many(q.qsize(), block=False)]
            raise _Undo
    except _Undo: return items

def leftovers(store):
    "Files of blobs that nothing refers to, those on their way in too, and references whose file is missing"
    txn = store.read()
    try:
        used = {k[1:].hex() for k, _ in store.scan(txn, BLOBS, TRASH)}
        trash = {k[9:].hex() for k, _ in store.scan(txn, TRASH, META)}
    finally: store.end(txn)
    there, new = ({*os.listdir(os.path.join(store.path, name))} for name in ('blobs', 'new'))
    return [*(f'{n} belongs to nothing' for n in there - used - trash), *(f'{n} is missing' for n in used - there), *(f'{n} is left in new' for n in new)]
