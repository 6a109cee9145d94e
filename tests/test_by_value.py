"""A class by value is one class: in the process that defined it, in others that ran the same cell, in those that did not, and in workers."""
import json, os, subprocess, sys

import parkit as pk, pytest
from kernels import notebooks, text
from parkit.by_value import Content, digest_of, identity_of
from parkit.codecs import decode, encode
from task_helpers import event_loop, interpreters  # noqa: F401  a fixture

# each defines a class P and what it needs, and makes an instance that is equal to its like
KINDS = {
    'plain': ('''
class P:
    def __init__(self, x): self.x = x
    def __eq__(self, o): return type(o) is type(self) and o.x == self.x
''', 'P(5)'),
    'dataclass': ('''
from dataclasses import dataclass, field
@dataclass
class P:
    x: int
    y: list = field(default_factory=list)
''', 'P(5)'),
    'slots': ('''
from dataclasses import dataclass
@dataclass(slots=True, frozen=True)
class P:
    x: int
    y: float = 1.5
''', 'P(5)'),
    'slot_str': ('''
class P:
    __slots__ = 'a'
    def __init__(self, a): self.a = a
    def __eq__(self, o): return isinstance(o, P) and o.a == self.a
''', 'P(5)'),
    'slot_private': ('''
class P:
    __slots__ = ('__a', 'b')
    def __init__(self, a): self.__a = a
    def __eq__(self, o): return isinstance(o, P) and o.__a == self.__a
''', 'P(5)'),
    'slot_dict': ('''
class P:
    __slots__ = {'a': 'doc', '__dict__': ''}
    def __init__(self, a): self.a = a; self.z = 3
    def __eq__(self, o): return isinstance(o, P) and (o.a, o.z) == (self.a, self.z)
''', 'P(5)'),
    'enum': ('''
import enum
class P(enum.Enum):
    A = 1
    B = "b"
    C = A
    def twice(self): return self.value*2
''', 'P.B'),
    'flag': ('''
import enum
class P(enum.Flag):
    A = 1
    B = 2
''', 'P.A | P.B'),
    'intenum': ('''
import enum
class P(enum.IntEnum):
    A = 1
    @property
    def up(self): return self + 1
''', 'P.A'),
    'strenum': ('''
import enum
class P(str, enum.Enum):
    A = "a"
    @classmethod
    def _missing_(cls, v): return cls.A
''', 'P.A'),
    'enum_of_dataclass': ('''
import enum
from dataclasses import dataclass
@dataclass(frozen=True)
class Planet: mass: float; radius: float
class P(Planet, enum.Enum):
    A = 1., 2.
    B = 2., 3.
''', 'P.A'),
    'auto_enum': ('''
import enum
class P(enum.Enum):
    def _generate_next_value_(n, s, c, l): return n.lower()
    A = enum.auto()
''', 'P.A'),
    'namedtuple': ('''
from collections import namedtuple
P = namedtuple("P", "x y", defaults=[1])
''', 'P(5)'),
    'NamedTuple': ('''
from typing import NamedTuple
class P(NamedTuple):
    x: int
    y: str = "q"
    def both(self): return (self.x, self.y)
''', 'P(5)'),
    'generic': ('''
from typing import Generic, TypeVar
T = TypeVar("T")
class P(Generic[T]):
    def __init__(self, x: T): self.x = x
    def __eq__(self, o): return isinstance(o, P) and self.x == o.x
''', 'P[int](5)'),
    'meta': ('''
class M(type):
    def __call__(cls, *a): o = super().__call__(*a); o.tag = 1; return o
class P(metaclass=M):
    def __init__(self, x): self.x = x
    def __eq__(self, o): return isinstance(o, P) and vars(o) == vars(self)
''', 'P(5)'),
    'nested': ('''
class Outer:
    class P:
        def __init__(self, x): self.x = x
        def __eq__(self, o): return isinstance(o, Outer.P) and o.x == self.x
''', 'Outer.P(5)'),
    'recursive': ('''
class P:
    kids: "list[P]"
    def __init__(self, *k): self.k = k
    def leaf(self): return P()
    def __eq__(self, o): return isinstance(o, P) and o.k == self.k
''', 'P(P(), P(P()))'),
    'mutual': ('''
class A:
    def b(self): return B()
class B(A):
    def a(self): return A()
    def __eq__(self, o): return type(o) is B
''', 'B()'),
    'abc': ('''
import abc
class I(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
class P(I):
    def f(self): return 1
    def __eq__(self, o): return isinstance(o, I) and isinstance(o, P)
''', 'P()'),
    'abc_registered': ('''
import abc
class I(abc.ABC): pass
@I.register
class P:
    def __eq__(self, o): return isinstance(o, I) and type(o) is P
''', 'P()'),
    'exception': ('''
class P(ValueError):
    def __init__(self, a, b): super().__init__(a); self.b = b
    def __reduce__(self): return P, (self.args[0], self.b)
    def __eq__(self, o): return type(o) is P and o.b == self.b
''', 'P(1, 2)'),
    'subclass_dict': ('''
class P(dict):
    def hi(self): return 1
''', 'P(a=1)'),
    'subclass_int': ('''
class P(int):
    def __add__(self, o): return P(int(self) + o)
''', 'P(3)'),
    'counting': ('''
class P:
    n = 0
    def __init__(self): P.n += 1; self.i = 7
    def __eq__(self, o): return type(o) is P and o.i == self.i
''', 'P()'),
    'counting_cls': ('''
class P:
    n = 0
    @classmethod
    def make(cls): cls.n += 1; return cls()
    def __eq__(self, o): return type(o) is P
''', 'P.make()'),
    'property': ('''
import functools
class P:
    def __init__(self): self.a = 2
    @property
    def b(self): return self.a
    @functools.cached_property
    def c(self): return self.b + 1
    @staticmethod
    def s(): return 1
    def __eq__(self, o): return type(o) is P and o.c == self.c
''', 'P()'),
    'super': ('''
class B:
    def f(self): return 1
class P(B):
    def f(self): return super().f() + 1
    def __eq__(self, o): return type(o) is P and o.f() == self.f()
''', 'P()'),
    'global': ('''
LIMIT = {1, 2, "a", "b", ("x", 3)}
import json
def helper(x): return json.dumps(sorted(map(str, LIMIT)))
class P:
    def f(self): return helper(1)
    def __eq__(self, o): return type(o) is P and o.f() == self.f()
''', 'P()'),
    'set_of_members': ('''
import enum
class E(enum.Enum):
    A = 1; B = 2; C = 3
    D = 4
GOOD = frozenset((E.A, E.B, E.C, E.D))
class P:
    good = GOOD
    def f(self): return E.A in GOOD
    def __eq__(self, o): return type(o) is P and o.f()
''', 'P()'),
    'local': ('''
def make(n):
    class P:
        def f(self): return n
        def __eq__(self, o): return type(o) is type(self) and o.f() == self.f()
    return P
L = make(3)
''', 'L()'),
    'lambda_attr': ('''
class P:
    key = staticmethod(lambda x: x + 1)
    table = {"a": lambda: 1}
    def __eq__(self, o): return type(o) is P
''', 'P()'),
    'protocol': ('''
from typing import Protocol, runtime_checkable
@runtime_checkable
class I(Protocol):
    def f(self) -> int: ...
class P:
    def f(self) -> int: return 1
    def __eq__(self, o): return isinstance(o, I) and type(o) is P
''', 'P()'),
    'typeddict': ('''
from typing import TypedDict
class T(TypedDict, total=False):
    a: int
class P:
    shape: T = T(a=1)
    def __eq__(self, o): return type(o) is P
''', 'P()'),
    'init_subclass': ('''
class B:
    kinds = []
    def __init_subclass__(cls, kind="x", **k): super().__init_subclass__(**k); cls.kind = kind
class P(B, kind="y"):
    def __eq__(self, o): return type(o) is P and o.kind == self.kind == "y"
''', 'P()'),
    'descriptor': ('''
class D:
    def __set_name__(self, o, n): self.n = "_" + n
    def __get__(self, o, t=None): return self if o is None else getattr(o, self.n, None)
    def __set__(self, o, v): setattr(o, self.n, v)
class P:
    a = D()
    def __init__(self): self.a = 4
    def __eq__(self, o): return type(o) is P and o.a == self.a
''', 'P()'),
    'dataclass_meta': ('''
from dataclasses import dataclass, field, KW_ONLY, InitVar
from typing import ClassVar, Annotated
class Unit:
    def __init__(self, n): self.n = n
@dataclass(order=True)
class P:
    x: Annotated[int, Unit("m")] = field(metadata={"u": 1})
    _: KW_ONLY
    y: int = 3
    z: InitVar[int] = 1
    c: ClassVar[int] = 4
    def __post_init__(self, z): self.w = z
''', 'P(5)'),
    'total_ordering': ('''
import functools
@functools.total_ordering
class P:
    def __init__(self): self.x = 1
    def __eq__(self, o): return type(o) is P and self.x == o.x
    def __lt__(self, o): return self.x < o.x
''', 'P()'),
}


# --- each kind of class, in three processes that share nothing but the site, and not even the seed of their hashes

_PROLOGUE = '''
import json, sys, parkit as pk
from parkit.by_value import identity_of
KINDS = json.loads(sys.argv[1])
found = {}
def attempt(kind):
    keep = dict(globals())
    d = pk.Dict('kinds/' + kind)
    try:
        work(d, *KINDS[kind])
        found[kind] = identity_of(type(v))
    except Exception as e: found[kind] = f'{type(e).__name__}: {e}'
    finally:
        for name in set(globals()) - set(keep): del globals()[name]
'''
_ROLES = {
    'writer': '''
def work(d, definition, make):
    exec(definition, globals())
    globals()['v'] = eval(make)
    d['v'], d['many'] = v, [eval(make), {'k': eval(make)}]
    assert type(d['v']) is type(v) and d['v'] == v == d['many'][1]['k'], 'it reads back something else'
''',
    'same cell': '''
def work(d, definition, make):
    exec(definition, globals())
    globals()['v'] = eval(make)
    assert type(d['v']) is type(v) is type(d['many'][0]), 'another class'
    assert d['v'] == v and v == d['v'] and d['many'][1]['k'] == v, 'not equal'
''',
    'no cell': '''
def work(d, definition, make):
    globals()['v'] = d['v']
    assert type(d['v']) is type(v) is type(d['many'][0]), 'two classes'
    assert d['v'] == v == d['many'][1]['k'], 'not equal'
    d['again'] = v
    assert type(d['again']) is type(v), 'another class after it was stored again'
'''}


def _told(site, role, seed):
    code = _PROLOGUE + _ROLES[role] + '\nfor kind in KINDS: attempt(kind)\nprint(json.dumps(found))'
    env = dict(os.environ, PARKIT_SITE=str(site), PYTHONHASHSEED=str(seed))
    done = subprocess.run([sys.executable, '-c', code, json.dumps(KINDS)], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    site = tmp_path_factory.mktemp('kinds')/'site'
    return {role: _told(site, role, seed) for seed, role in enumerate(_ROLES, 1)}

@pytest.mark.parametrize('kind', KINDS)
def test_one_class_in_every_process(answers, kind):
    said = {role: found[kind] for role, found in answers.items()}
    assert len(set(said.values())) == 1 and len(said['writer']) == 32, said


# --- in tasks

CLASSES = '''
import enum
from dataclasses import dataclass
class Colour(enum.Enum): RED = 1; BLUE = 2
class MyError(Exception):
    def __init__(self, a, b): super().__init__(a, b); self.b = b
@dataclass(slots=True)
class Point: x: int; y: object = None
class Plain:
    def __init__(self, x): self.x = x
    def __eq__(self, o): return isinstance(o, Plain) and o.x == self.x
'''
TASK = '''
@pk.task
def look(p, c, plain, e):
    try: raise e
    except MyError as caught: right = caught.b
    return isinstance(p, Point), c is Colour.RED, p == Point(5, Colour.BLUE), plain == Plain(1), right
@pk.task
def give(): return Point(5, Colour.RED), Plain(1)
@pk.task
def fail(): raise MyError(1, 2)
'''
LOOK = '''
assert look(Point(5, Colour.BLUE), Colour.RED, Plain(1), MyError(1, 2)).result == (True, True, True, True, 2), look.traces[0].result
p, plain = give().result
assert isinstance(p, Point) and p.y is Colour.RED and p == Point(5, Colour.RED) and plain == Plain(1)
try: fail().result
except MyError as e: assert e.b == 2
with pk.Executor() as executor:
    assert executor.submit(lambda p: isinstance(p, Point) and p.y is Colour.RED, Point(1, Colour.RED)).result()
    assert list(executor.map(lambda p: p == Point(1), [Point(1), Point(2)])) == [True, False]
'''

def test_cells_run_again_restarted_kernels_and_second_kernels_meet_one_class_in_workers(single):
    with interpreters(2, single.site) as (one, two):
        one.run(CLASSES + TASK + LOOK)
        one.run(CLASSES + LOOK)                  # the cell of the classes again, unchanged; the workers live on
        one.run(TASK + LOOK)
        two.run(CLASSES + LOOK.replace('look(', 'pk.bind_task("look")(').replace('give(', 'pk.bind_task("give")(')
                .replace('fail(', 'pk.bind_task("fail")(').replace('look.traces', 'pk.bind_task("look").traces'))
        two.run(CLASSES + TASK + LOOK)           # it runs all the cells of the first
    with interpreters(1, single.site) as (three,): three.run(CLASSES + TASK + LOOK)


def test_live_kernels():
    "Two kernels with one site, the second started after the first has gone; its workers live on"
    define, look = CLASSES + TASK, LOOK + '\nprint("right")'
    with notebooks(2) as kernels:
        for kernel in (*kernels, kernels[0]):
            kernel.run('import parkit as pk')
            for cell in (define, look, CLASSES, look): said = kernel.run(cell)
            assert text(said) == 'right', said
        kernels[0].manager.restart_kernel(now=True)
        kernels[0].client.wait_for_ready(timeout=60)
        kernels[0].run('import parkit as pk\n' + define)
        assert text(kernels[0].run(look)) == 'right'
        kernels[0].run('pk.Pool().stop()')


def test_containers_and_queues_meet_one_class(site):
    with interpreters(2, site) as (one, two):
        for o in (one, two): o.run(CLASSES)
        one.run('pk.Dict("d")["k"] = {"p": [Point(1, Colour.RED)]}; pk.Array("a").append(Plain(3)); pk.Queue("q").put(Colour.BLUE)')
        assert two.value('pk.Dict("d")["k"]["p"][0] == Point(1, Colour.RED), pk.Array("a")[0] == Plain(3), pk.Queue("q").get() is Colour.BLUE') \
            == (True, True, True)


# --- nothing is written over

def test_a_class_that_is_there_stays_as_it_is(site):
    "test: its methods count in a global, and see a helper that is defined later"
    with interpreters(1, site) as (one,):
        one.run('count = 0\ndef helper(): return "old"\nclass P:\n    def tick(self):\n        global count\n        count += 1\n        return helper()')
        one.run('d, p = pk.Dict("d"), P()\nbefore = dict(vars(P))\nd["p"] = p\nq = d["p"]')
        noted = '{"__slotnames__": [], "__annotate_func__": None, "__annotations_cache__": {}}'  # by Python itself, the last two from 3.14 on
        assert one.value(f'type(q) is P and {{k: v for k, v in vars(P).items() if (k, v) not in {noted}.items()}} == before') is True
        one.run('q.tick(); p.tick(); d["p"].tick()\nassert count == 3\ndef helper(): return "new"')
        assert one.value('d["p"].tick(), count') == ('new', 4)


def test_ones_own_redefinition_wins(site):
    with interpreters(2, site) as (one, two):
        one.run('class P:\n    def name(self): return "first"\nd = pk.Dict("d"); d["p"] = P()')
        one.run('class P:\n    def name(self): return "second"')
        assert one.value('d["p"].name(), type(d["p"]) is P') == ('second', True)
        two.run('d = pk.Dict("d"); p = d["p"]')
        assert two.value('p.name()') == 'first'
        two.run('class P:\n    def name(self): return "mine"')
        assert two.value('d["p"].name(), isinstance(d["p"], P), p.name()') == ('mine', True, 'first')


def test_a_changed_helper_makes_another_class_where_there_is_no_definition(site):
    with interpreters(2, site) as (one, two):
        one.run('def helper(): return 1\nclass P:\n    def get(self): return helper()\nd = pk.Dict("d"); d["a"] = P()')
        one.run('def helper(): return 2\nd["b"] = P()')
        one.run('P.get = lambda self: 3\nd["c"] = P()')
        two.run('d = pk.Dict("d")')
        assert two.value('[d[k].get() for k in "abc"], len({type(d[k]) for k in "abc"})') == ([1, 2, 3], 3)


def test_two_classes_of_one_name_from_a_function_stay_two(site):
    with interpreters(2, site) as (one, two):
        one.run('def make(n):\n    class P:\n        def get(self): return n\n    return P\nA, B = make(1), make(2)\npk.Dict("d")["v"] = [A(), B(), A()]')
        assert one.value('[type(o) for o in pk.Dict("d")["v"]] == [A, B, A]') is True
        assert two.value('[o.get() for o in pk.Dict("d")["v"]]') == [1, 2, 1]


def test_a_function_and_a_class_share_a_global_in_a_worker(single):
    "The classes of a task lie amid its functions: what one of them writes to a global, the other reads"
    with interpreters(1, single.site) as (one,):
        one.run('found = []\ncount = 0\nclass Visitor:\n    def visit(self, x):\n        global count\n        count += 1\n        found.append(x)')
        one.run('@pk.task\ndef visits(n):\n    global count\n    count = 0\n    found.clear()\n    for i in range(n): Visitor().visit(i)\n    return found, count')
        assert one.value('visits(3).result') == ([0, 1, 2], 3) == one.value('visits(3).result')


# --- what changes as a program runs: attributes and globals, which are no part of what a class is

# how class P and what it needs are defined, what changes, and what shows it in an instance `p`
STATES = {
    'counter': ('class P:\n    n = 0\n    def __init__(self): P.n += 1', 'P()', 'type(p).n'),
    'counter of cls': ('class P:\n    n = 0\n    @classmethod\n    def make(cls): cls.n += 1', 'P.make()', 'type(p).n'),
    'counter of type': ('class P:\n    n = 0\n    def __init__(self): type(self).n += 1', 'P()', 'type(p).n'),
    'counter of a base': ('class Base:\n    n = 0\n    def __init__(self): type(self).n += 1\nclass P(Base): pass', 'P()', 'type(p).n'),
    'counter in a base': ('class Base:\n    n = 0\n    def __init__(self): Base.n += 1\nclass P(Base): pass', 'P()', 'type(p).n'),
    'counter of a metaclass': ('class M(type):\n    def __call__(cls, *a):\n        cls.n = getattr(cls, "n", 0) + 1\n        return super().__call__(*a)\n'
                               'class P(metaclass=M): pass', 'P()', 'type(p).n'),
    'setattr': ('class P:\n    def __init__(self): setattr(P, "made", getattr(P, "made", 0) + 1)', 'P()', 'type(p).made'),
    'a counter in a closure': ('def counted(f):\n    n = 0\n    def wrapper(self):\n        nonlocal n\n        n += 1\n        return n\n    return wrapper\n'
                               'class P:\n    @counted\n    def tick(self): pass', 'P().tick()', 'p.tick()'),
    'global counter': ('n = 0\nclass P:\n    def __init__(self):\n        global n\n        n += 1\n    def get(self): return n', 'P()', 'p.get()'),
    'global set by a cell': ('rate = 1\nclass P:\n    def get(self): return rate', 'rate = 2', 'p.get()'),
    'global changed in place': ('rates = {"a": 1}\nclass P:\n    def get(self): return rates', 'rates["b"] = 2', 'p.get()'),
    'array changed in place': ('import numpy as np\nclass P:\n    table = np.zeros(3)', 'P.table[1] = 5', 'type(p).table.tolist()'),
    'cache': ('class P:\n    cache = {}\n    def get(self, x): return self.cache.setdefault(x, len(self.cache))', 'P().get("a"); P().get("b")', 'p.get("b")'),
    'registry': ('class P:\n    known = []\n    def __init_subclass__(cls, **k): P.known.append(cls.__name__)', 'class Q(P): pass', 'type(p).known'),
    'registry in a global': ('known = {}\ndef register(cls):\n    known[cls.__name__] = len(known)\n    return cls\n@register\nclass P:\n    def get(self): return sorted(known)',
                             '@register\nclass Q: pass', 'p.get()'),
    'numbers': ('import itertools\nclass P:\n    numbers = itertools.count()\n    def __init__(self): self.n = next(self.numbers)', 'P(), P()', 'next(type(p).numbers)'),
    'singleton': ('class P:\n    one = None\n    def __new__(cls):\n        if cls.one is None: cls.one = object.__new__(cls)\n        return cls.one', 'P().x = 1', 'type(p).one is not None'),
    'lru_cache': ('import functools\nclass P:\n    @functools.lru_cache\n    def get(self): return 1\n    def __eq__(self, o): return True\n    def __hash__(self): return 1', 'P().get()', 'p.get()'),
    'attribute set from outside': ('class P:\n    lr = 0.1', 'P.lr = 0.5', 'p.lr'),
    'attribute set by a method': ('class P:\n    lr = 0.1\n    @classmethod\n    def use(cls, lr): cls.lr = lr', 'P.use(0.5)', 'p.lr'),
    'a new attribute': ('class P: pass', 'P.more = 4', 'getattr(p, "more", 0)'),
    'a removed attribute': ('class P: more = 4', 'del P.more', 'hasattr(p, "more")'),
    'ClassVar': ('from dataclasses import dataclass\nfrom typing import ClassVar\n@dataclass\nclass P:\n    x: int = 1\n    n: ClassVar[int] = 0\n'
                 '    def __post_init__(self): P.n += 1', 'P()', 'type(p).n'),
    'registered': ('import abc\nclass I(abc.ABC): pass\nclass P:\n    def get(self): return isinstance(1, I)', 'I.register(int)', 'p.get()'),
    'an attribute of an enumeration': ('import enum\nclass P(enum.Enum):\n    A = 1\n    @classmethod\n    def use(cls): cls.seen = cls.A.value', 'P.use()', 'getattr(type(p), "seen", 0)'),
    'a default': ('class P:\n    def add(self, x, found=[]): found.append(x); return found', 'P().add(1)', 'p.add(2)[:2]'),
}

@pytest.fixture(scope='module')
def states(tmp_path_factory):
    "Two processes and a worker for all kinds"
    site = pk.Site(tmp_path_factory.mktemp('states')/'site')
    pk.Pool(site=site).resize(1)
    with interpreters(2, site) as found: yield found
    pk.Pool(site=site).stop()
    site.close()

@pytest.mark.parametrize('kind', STATES)
def test_a_class_stays_one_class_as_a_program_runs(states, kind):
    "For who defined it, for who did not, and in a worker, which see what it has come to"
    if kind == 'numbers' and sys.version_info >= (3, 14): pytest.skip('iterators of itertools cannot be pickled there')
    (one, two), (definition, change, shown) = states, STATES[kind]
    make = 'P.A' if 'Enum' in definition else 'P()'
    one.run(f'{definition}\nd = pk.Dict("{kind}")\nd["before"] = {make}')
    two.run(f'd = pk.Dict("{kind}")\nbefore = d["before"]')
    one.run(f"""
@pk.task
def compare(p): return isinstance(p, P), isinstance(pk.Dict("{kind}")["before"], P), {shown}
@pk.task
def look(p): return {shown}
def here(p): return {shown}
p = d["before"]
first = compare(p).result
exec({change!r})
d["after"], now = p, [compare(p).result, look(p).result, {shown}]""")
    assert one.value('first[:2] == now[0][:2] == (True, True)') is True
    counts = kind in ('a counter in a closure', 'numbers', 'a default')  # who looks changes it, in the worker alone
    assert one.value(f'now[0][2] == now[2] and ({counts} or now[1] == now[2])') is True, one.value('first, now')
    two.run('after = d["after"]; p = after')
    assert two.value('type(before) is type(after) is type(d["before"])') is True
    two.run('after = d["after"]')
    if not counts: assert two.value(shown) == one.value('now[2]')
    one.run('compare.drop(), look.drop()')


def test_tasks_that_share_a_class_each_share_its_globals(single):
    "Whichever of them ran before"
    with interpreters(1, single.site) as (one,):
        one.run('count = 0\nfound = []\nclass Visitor:\n    def visit(self):\n        global count\n        count += 1\n        found.append(count)')
        for name, start in (('first', 10), ('second', 20)):
            one.run(f'@pk.task\ndef {name}(d=None):\n    global count\n    count = {start}\n    found.clear()\n    Visitor().visit()\n'
                    f'    d and d["v"]\n    Visitor().visit()\n    return count, found')
        one.run('d = pk.Dict("d"); d["v"] = Visitor()')
        for arguments in ('', 'd'):
            for _ in range(2):
                assert one.value(f'first({arguments}).result, second({arguments}).result') == ((12, [11, 12]), (22, [21, 22]))
        one.run('@pk.task\ndef outer():\n    global count\n    count = 1\n    inner = pk.bind_task("first")(sync=True)\n    Visitor().visit()\n    return inner[0], count')
        assert one.value('outer().result') == (12, 2)
        one.run('def work(start):\n    global count\n    count = start\n    Visitor().visit()\n    d["v"]\n    Visitor().visit()\n    return count')
        with_executor = 'with pk.Executor() as e: said = [e.submit(work, n).result() for n in (1, 5)] + [e.submit(lambda: work(8)).result()]'
        one.run(with_executor)
        assert one.value('said') == [3, 7, 10]


def test_each_version_of_a_task_has_its_classes_attributes(single):
    with interpreters(1, single.site) as (one,):
        one.run('class Config:\n    lr = 0.1\n    sizes = [1]\n@pk.task\ndef look(): return Config.lr, Config.sizes, Config().lr')
        one.run('look().result; old = pk.bind_task("look", version=look.version)\nConfig.lr, Config.sizes = 0.5, [1, 2]\nConfig.extra = 1')
        for _ in range(2): assert one.value('look().result, old().result') == ((0.5, [1, 2], 0.5), (0.1, [1], 0.1))


def test_what_a_task_has_changed_stays_in_its_worker_until_other_content_is_stored(single):
    with interpreters(1, single.site) as (one,):
        one.run('class P:\n    n = 0\n@pk.task\ndef tick(p):\n    P.n += 1\n    return P.n, type(p).n\np = P()')
        assert one.value('[tick(p).result for _ in range(3)]') == [(1, 1), (2, 2), (3, 3)]
        one.run('P.n = 10')
        assert one.value('[tick(p).result for _ in range(2)]') == [(11, 11), (12, 12)]


def test_two_classes_with_one_name_in_a_notebook_stay_two(site):
    define = 'from collections import namedtuple\nP = namedtuple("P", "x y")\nQ = namedtuple("P", "a b c")\n'
    with interpreters(3, site) as (one, two, three):
        one.run(define + 'd = pk.Dict("d"); d["p"], d["q"] = P(1, 2), Q(1, 2, 3)')
        two.run(define)
        for o in (one, two):
            assert o.value('type(pk.Dict("d")["q"]) is Q, type(pk.Dict("d")["p"]) is P, pk.Dict("d")["q"].c') == (True, True, 3)
        assert three.value('pk.Dict("d")["q"].c, pk.Dict("d")["p"].y, type(pk.Dict("d")["q"]) is type(pk.Dict("d")["p"])') == (3, 2, False)
        two.run('Q = namedtuple("P", "a b c d")')
        assert two.value('type(pk.Dict("d")["p"]) is P') is True


def test_threads_that_load_functions_with_one_class_get_one(site):
    with interpreters(2, site) as (one, two):
        one.run('class P: pass\nfor i in range(30): exec(f"class C{i}(P): pass\\n@pk.task\\ndef f{i}(): return C{i}\\n@pk.task\\ndef g{i}(): return C{i}", globals())')
        two.run("""
from concurrent.futures import ThreadPoolExecutor
import threading
gate, found = threading.Barrier(8), []
tasks = {n: pk.bind_task(n) for i in range(30) for n in (f"f{i}", f"g{i}")}
def read(n):
    for i in range(30):
        gate.wait()
        found.append((i, tasks[f"{'fg'[n % 2]}{i}"](sync=True)))
with ThreadPoolExecutor(8) as threads: list(threads.map(read, range(8)))
""")
        assert two.value('len({c for _, c in found}), len(found), len({c.__mro__[1] for _, c in found})') == (30, 240, 1)


# --- identities

def test_lines_do_not_matter():
    "From Python 3.13 on a class notes its first line, in its namespace and in the code of the function that it lies in"
    source = 'def make():\n    class P:\n        def get(self): return 1\n    return P\nP = make()\nclass Q:\n    def get(self): return make'
    found = []
    for lines in (0, 20):
        names = {'__name__': '__main__'}
        exec(compile('\n'*lines + source, f'cell{lines}', 'exec'), names)
        found.append([Content(names[k]).digest for k in ('make', 'P', 'Q')])
    assert found[0] == found[1]

@pytest.mark.parametrize('line', [5, 300])
def test_a_number_that_is_that_of_a_line_matters(line):
    "Also in a class that begins at that line"
    def digest(line, number):
        names = {'__name__': '__main__'}
        exec(compile('\n'*(line - 2) + f'def make():\n    class P:\n        x = {number}\n    return P', 'cell', 'exec'), names)
        return Content(names['make']).digest
    assert digest(line, line) == digest(line + 1, line) != digest(line + 1, line + 1) == digest(line, line + 1)


def test_what_a_class_keeps_about_itself_is_no_part_of_it():
    names = {'__name__': '__main__'}
    exec('import enum, abc\nclass F(enum.Flag): A = 1; B = 2\nclass C(abc.ABC):\n    n = 0\n    def __init__(self): C.n += 1', names)
    F, C = names['F'], names['C']
    before, codes = [Content(c).digest for c in (F, C)], [identity_of(c) for c in (F, C)]
    F(3), isinstance(1, C), encode(C)
    assert [Content(c).digest for c in (F, C)] == before
    C.register(int)
    assert Content(C).digest != before[1]
    C()
    assert [identity_of(c) for c in (F, C)] == codes


def test_the_content_of_a_set_has_no_order():
    code = ('import enum, sys\nfrom parkit.by_value import Content\nclass E(enum.Enum): A = "a"; B = "b"; C = "c"\n'
            'S = frozenset(E)\nT = ({("a", 1), ("b", 2), ("c", 3)}, S)\ndef f(x): return x in {"a", "b", "c"} and S and T\nprint(Content(f).digest)')
    found = {subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONHASHSEED=str(seed)), capture_output=True, text=True,
                            check=True).stdout for seed in range(5)}
    assert len(found) == 1


def test_what_a_class_names_is_not_kept_for_it():
    import gc, weakref, numpy as np
    names = {'__name__': '__main__', 'frame': np.zeros(1000)}
    exec('class P:\n    def get(self): return frame', names)
    identity_of(names['P'])
    array, cls = weakref.ref(names['frame']), weakref.ref(names['P'])
    del names['frame']
    gc.collect()
    assert array() is None
    names.clear()
    gc.collect()
    assert cls() is None


def test_classes_of_another_process_end_when_nobody_has_them(site):
    "Also those that were stored again, and name themselves in methods of every kind, in a dispatcher and in members"
    with interpreters(2, site) as (one, two):
        one.run('''
import enum, functools
d = pk.Dict('d')
for i in range(5): exec(f"""
def helper{i}(): return C{i}
@functools.singledispatch
def show{i}(x): return C{i}
@show{i}.register
def _(x: int): return C{i}
class C{i}:
    n = {i}
    def make(self): return C{i}, helper{i}(), show{i}(1)
    @property
    def p(self): return C{i}
    @classmethod
    def c(cls): return C{i}
    @staticmethod
    def s(): return C{i}
    @functools.cached_property
    def cp(self): return C{i}
    @functools.lru_cache
    def lru(self): return C{i}
class E{i}(enum.Enum):
    A = {i}
    def me(self): return E{i}
""", globals()); d[i] = eval(f'C{i}(), E{i}.A')
''')
        two.run('import gc\nd = pk.Dict("d")\nfor i in range(5): d[i] = d[i]; d[i]')
        two.run('gc.collect()\nleft = [o.__name__ for o in gc.get_objects() if isinstance(o, type) and o.__module__ == "__main__"]')
        assert two.value('left') == []


def test_threads_that_meet_a_class_at_once_get_one(site):
    with interpreters(2, site) as (one, two):
        one.run(CLASSES + 'd = pk.Dict("d")\nfor i in range(50): exec(f"class C{i}: x = {i}", globals()); d[i] = eval(f"C{i}()")')
        two.run('''
from concurrent.futures import ThreadPoolExecutor
import threading
d, gate, found = pk.Dict("d"), threading.Barrier(8), []
def read(n):
    for i in range(50):
        gate.wait()
        found.append((i, d[i]))
with ThreadPoolExecutor(8) as threads: list(threads.map(read, range(8)))
''')
        assert two.value('len({type(o) for _, o in found}), len(found)') == (50, 400)


def test_a_class_of_another_python_is_told_before_anything_of_it_is_looked_at(monkeypatch):
    "The version stands before the class: what comes after it may need modules that this Python does not have"
    names = {'__name__': '__main__'}
    exec('from dataclasses import dataclass\n@dataclass\nclass Elsewhere: x: int\ndef f(): return Elsewhere', names)
    for value in (names['Elsewhere'](1), names['f']):
        record = encode(value)
        theirs = record.replace(b'K\x03K' + bytes([sys.version_info[1]]), b'K\x03K\x63')
        assert theirs != record
        monkeypatch.setattr('parkit.codecs.find_class', lambda *name: None)
        with pytest.raises(pk.DecodeError, match='3.99'): decode(theirs.replace(b'dataclasses', b'datxclasses'))


def test_an_object_without_a_name_that_a_class_names_is_held_for_each_value_that_holds_the_class(site):
    "Also if the class was an argument of a call before"
    with interpreters(1, site) as (one,):
        one.run('from parkit.objects import encode_arguments\nlog = pk.Dict()\nclass P:\n    def get(self): return log')
        assert [one.value('encode_arguments(P())[1] == [log]') for _ in range(2)] == [True, True]
        one.run('pk.Dict("d")["p"] = P()')
        assert one.value('log._hold.kept') is True


_BODY = '''
import abc, enum, functools, numpy as np
from dataclasses import dataclass
K = {k}
A = np.arange(K)
def helper(x=None): return K
class Base:
    def base(self): return {base}
class P(Base):
    'doc'
    limit = {limit}
    def get(self, a={default}): return {get}
    @property
    def prop(self): return {prop}
    @functools.cached_property
    def cached(self): return {cached}
    @staticmethod
    def static(): return {static}
    @classmethod
    def cls_(cls): return {cls}
    @functools.lru_cache
    def lru(self): return {lru}
    def uses(self): return helper(), A, {inner}
    def note(self, x: {note}): return [y for y in x if {comp}]
    table = {{'f': lambda: {lam}}}
'''
_PARTS = dict(k=3, base=1, limit=1, default=1, get=1, prop=1, cached=1, static=1, cls=1, lru=1, inner=1, note='int', comp=1, lam=1)

@pytest.mark.parametrize('part', _PARTS)
def test_each_part_of_a_class_counts(part):
    "Whatever of its code is changed, it is another class, and the same one with the same code; whatever it consists of counts when it is stored"
    found = []
    for parts in (_PARTS, _PARTS | {part: 'str' if part == 'note' else 2}, _PARTS):
        names = {'__name__': '__main__'}
        exec(_BODY.format(**parts), names)
        found.append((identity_of(names['P']), Content(names['P']).digest, digest_of(names['P'])))
    assert found[0] == found[2] and found[0][1] != found[1][1] and found[0][2] != found[1][2]
    assert (found[0][0] == found[1][0]) is (part == 'k')  # no name leads to it: with one, attributes do not count


def test_a_class_of_the_notebook_follows_a_module_that_is_edited_and_loaded_again(single, tmp_path):
    "In the notebook it has the old base until its cell is run again, as in plain Python; so it has in a worker, however long that lives"
    with interpreters(1, single.site, tmp_path) as (one,):
        one.run("""
import importlib
sys.path.insert(0, os.getcwd())
def write(n):
    Path('mixed.py').write_text(f'class Mix:\\n    def get(self): return {n}\\n')
    importlib.invalidate_caches()
write(1)
import mixed
@pk.task
def look(p): return p.get(), isinstance(p, P), isinstance(p, mixed.Mix)
""")
        define, shown = 'class P(mixed.Mix): pass', 'look(P()).result, (P().get(), True, isinstance(P(), mixed.Mix))'
        one.run(define)
        assert one.value(shown) == ((1, True, True),)*2
        one.run('write(22)\nimportlib.reload(mixed)')
        assert one.value(shown) == ((1, True, False),)*2
        one.run(define)
        assert one.value(shown) == ((22, True, True),)*2
        one.run('write(333)\nimportlib.reload(mixed)\n' + define)
        assert one.value(shown) == ((333, True, True),)*2


def test_an_object_of_a_class_of_the_notebook_is_of_that_class_in_a_task(single):
    "Also if the class was defined anew since the object was written last"
    with interpreters(1, single.site) as (one,):
        define = 'class Conf(pk.Dict):\n    def top(self): return {}\n'
        one.run(define.format(1) + 'c = Conf("conf"); c["a"] = 1')
        one.run('@pk.task\ndef look(c): return isinstance(c, Conf), type(c) is Conf, c.top(), isinstance(pk.Namespace("default")["conf"], Conf)')
        assert one.value('look(c).result') == (True, True, 1, True)
        one.run(define.format(2) + 'c = Conf("conf")')
        for _ in range(2): assert one.value('look(c).result') == (True, True, 2, True)


# each makes classes A and B that differ in nothing but what the function was given
_LOOK = '@pk.task\ndef look(a, b): return isinstance(a, A), isinstance(b, B), isinstance(a, B), a.limit, b.limit, (a, b)'
FACTORIES = {
    'attribute': 'def make(n):\n    class P: limit = n\n    return P\nA, B = make(3), make(4)',
    'mutable closure': 'def make(n):\n    found = [n]\n    class P:\n        @property\n        def limit(self): return found[0]\n    return P\nA, B = make(3), make(4)',
    'rebound closure': 'def make(n):\n    def later():\n        nonlocal n\n        n += 0\n    class P:\n        @property\n        def limit(self): return n\n    return P\nA, B = make(3), make(4)',
    'default': 'def make(n):\n    class P:\n        def get(self, found=[n]): return found[0]\n        limit = property(get)\n    return P\nA, B = make(3), make(4)',
    'base': 'def make(n):\n    class P: limit = n\n    return P\nclass A(make(3)): pass\ndef again():\n    class A(make(4)): pass\n    A.__qualname__ = "A"\n    return A\nB = again()',
    'type': 'A, B = type("P", (), {"limit": 3}), type("P", (), {"limit": 4})',
    'a name of its own': 'P = type("P", (), {"limit": 5})\nA, B = type("P", (), {"limit": 3}), type("P", (), {"limit": 4})',
    'enum': 'import enum\nA, B = enum.Enum("P", {"x": 1}), enum.Enum("P", {"x": 2})\nA.limit, B.limit = 3, 4',
    'in a dict': 'def make(n):\n    class P: limit = n\n    return P\nclasses = {n: make(n) for n in (3, 4)}\nA, B = classes.values()',
}

@pytest.mark.parametrize('kind', FACTORIES)
def test_classes_that_one_function_has_made_are_told_apart(states, kind):
    "By who made them, by who did not, and in a worker"
    (one, two), define = states, FACTORIES[kind]
    made = '(A.x, B.x)' if kind == 'enum' else '(A(), B())'
    one.run(f'{define}\nd = pk.Dict("made by {kind}")\nd["both"], d["a"], d["b"] = {made}, *{made}')
    one.run(_LOOK)
    right = (True, True, False, 3, 4)
    for _ in range(2):
        one.run(f'now, read, both = look(*{made}).result, look(d["a"], d["b"]).result, look(*d["both"]).result')
        assert one.value('now[:5], read[:5], both[:5]') == (right,)*3
        assert one.value('[type(o) for o in (*d["both"], d["a"], d["b"], *now[5])] == [A, B]*3') is True
        one.run(define + '\n' + _LOOK)  # the same cell again
    two.run(f'd = pk.Dict("made by {kind}"); a, b = d["both"]')
    assert two.value('a.limit, b.limit, type(a) is type(d["a"]), type(b) is type(d["b"]), type(a) is type(b)') == (3, 4, True, True, False)
    one.run('look.drop()')


def test_a_class_of_a_function_that_has_changed_as_it_ran_is_found_by_who_ran_the_cell(site):
    with interpreters(2, site) as (one, two):
        define = 'def make():\n    class P:\n        n = 0\n        def __init__(self): type(self).n += 1\n    return P\nL = make()\n'
        one.run(define + 'd = pk.Dict("d"); L(); L(); d["a"] = L(); L(); d["b"] = L()')
        one.run(define)
        two.run(define + 'd = pk.Dict("d")')
        for o in (one, two): assert o.value('type(d["a"]) is L, type(d["b"]) is L') == (True, True)
