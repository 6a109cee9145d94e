"""A class that is made where nobody has defined it is what it was: with its members, attributes and bases, and without running its hooks again."""
import json, os, subprocess, sys

import pytest
from parkit.by_value import identity_of
from task_helpers import event_loop, interpreters  # noqa: F401  a fixture

# the definition of a class, what makes an instance (or a member), and an expression that is true of it wherever it is read
MADE = {
    'planet': ('''
import enum
class P(enum.Enum):
    A = (1., 2.); B = (2., 3.)
    def __init__(self, m, r): self.m = m; self.r = r
    @property
    def g(self): return self.m/self.r
''', 'P.A', 'v.g == .5 and v.m == 1. and type(v)["B"].r == 3. and type(v)((2., 3.)).m == 2.'),
    'enum_alias': ('''
import enum
class P(enum.Enum):
    A = 1; B = 2; C = 1
''', 'P.A', 'type(v)["C"] is v and type(v).C is v and list(type(v).__members__) == ["A", "B", "C"] and [m.name for m in type(v)] == ["A", "B"]'),
    'enum_new': ('''
import enum
class P(str, enum.Enum):
    def __new__(cls, v, label):
        o = str.__new__(cls, v); o._value_ = v; o.label = label; return o
    A = ("a", "one"); B = ("b", "two")
''', 'P.B', 'v.label == "two" and v == "b" and type(v).A.label == "one" and type(v)("a").label == "one" and v.value == "b"'),
    'enum_new_obj': ('''
import enum
class P(enum.Enum):
    def __new__(cls, code, label):
        o = object.__new__(cls); o._value_ = code; o.label = label; return o
    A = (1, "one"); B = (2, "two")
''', 'P.B', 'v.label == "two" and type(v)(1).label == "one"'),
    'enum_dc': ('''
import enum
from dataclasses import dataclass
@dataclass(frozen=True)
class Planet:
    mass: float; r: float
class P(Planet, enum.Enum):
    A = 1., 2.; B = 2., 3.
    @property
    def g(self): return self.mass/self.r
''', 'P.A', 'v.g == .5'),
    'enum_date': ('''
import enum, datetime
class P(datetime.date, enum.Enum):
    A = 2024, 1, 2
''', 'P.A', 'v.year == 2024 and v.day == 2'),
    'enum_tuple': ('''
import enum
class P(tuple, enum.Enum):
    A = 1, 2
    B = 3, 4
''', 'P.A', 'v[1] == 2 and len(v) == 2'),
    'enum_float': ('''
import enum
class P(float, enum.Enum): A = 1.5; B = 2
''', 'P.B', 'v + 1 == 3.0'),
    'enum_bytes': ('''
import enum
class P(bytes, enum.Enum):
    def __new__(cls, value, code):
        obj = bytes.__new__(cls, [value]); obj._value_ = value; obj.code = code
        return obj
    A = 66, 4
''', 'P.A', 'v == b"B" and v.code == 4 and v.value == 66'),
    'enum_autonumber': ('''
import enum
class Auto(enum.Enum):
    def __new__(cls, *args):
        value = len(cls.__members__) + 1
        obj = object.__new__(cls)
        obj._value_ = value
        return obj
class P(Auto):
    def __init__(self, pantone="unknown"): self.pantone = pantone
    A = "1234"
    B = "abc"
    C = ()
''', 'P.B', 'v.pantone == "abc" and type(v).A.pantone == "1234" and type(v).C.pantone == "unknown" and v.value == 2'),
    'enum_ignore': ('''
import enum, datetime
class P(datetime.timedelta, enum.Enum):
    "different lengths of time"
    _ignore_ = "P i"
    P = vars()
    for i in range(3): P["day_%d" % i] = i
''', 'P.day_1', 'v.days == 1 and len(type(v)) == 3'),
    'enum_private': ('''
import enum
class P(enum.Enum):
    _order_ = "A B"
    __secret = 5
    A = 1; B = 2
    def s(self): return self.__secret
''', 'P.A', 'v.s() == 5'),
    'flag_alias': ('''
import enum
class P(enum.Flag):
    A = 1; B = 2; AB = 3; NONE = 0
''', 'P.A', 'type(v).AB == type(v).A | type(v).B and type(v)["AB"].value == 3 and type(v).NONE.value == 0 and list(type(v)) == [type(v).A, type(v).B] and (~type(v).A) is type(v).B and str(type(v)(3)) == "P.AB"'),
    'intflag': ('''
import enum
class P(enum.IntFlag):
    R = 4; W = 2; X = 1; RWX = 7
''', 'P.R|P.X', 'v == 5 and type(v).RWX == 7 and type(v).R in v and str(~type(v).R)'),
    'flag_boundary': ('''
import enum
class P(enum.Flag, boundary=enum.KEEP):
    A = enum.auto(); B = enum.auto(); AB = A | B
''', 'P.A', 'type(v)(16).value == 16 and type(v)._boundary_ is not None and type(v).AB.value == 3'),
    'flag_attrs': ('''
import enum
class P(enum.Flag):
    def __new__(cls, v, label=None):
        o = object.__new__(cls); o._value_ = v; o.label = label; return o
    A = 1, "a"; B = 2, "b"
''', 'P.A', 'v.label == "a" and type(v).B.label == "b"'),
    'enum_unhashable': ('''
import enum
class P(enum.Enum): A = [1]; B = {"a": [2]}; C = [1]
''', 'P.B', 'v.value == {"a": [2]} and type(v)([1]) is type(v).A and type(v).C is type(v).A'),
    'enum_missing': ('''
import enum
class P(enum.Enum):
    A = 1
    @classmethod
    def _missing_(cls, v): return cls.A
''', 'P.A', 'type(v)(99) is v'),
    'enum_nonmember': ('''
import enum
class P(enum.Enum):
    A = 1
    @enum.nonmember
    class Z: q = 1
    k = enum.nonmember(4)
''', 'P.A', 'type(v).k == 4 and type(v).Z.q == 1 and len(type(v)) == 1'),
    'enum_partial': ('''
import enum, functools
def f(a, x): return a + x
class P(enum.Enum):
    A = enum.member(functools.partial(f, 1)); B = enum.member(functools.partial(f, 2))
    def __call__(self, *a): return self.value(*a)
''', 'P.A', 'v(3) == 4 and type(v).B(3) == 5 and v is type(v).A'),
    'enum_member_fn': ('''
import enum, functools
class P(enum.Enum):
    A = enum.member(lambda x: x+1)
    @enum.member
    def B(x): return x
    @staticmethod
    def st(): return 3
''', 'P.A', 'v.value(3) == 4 and type(v).st() == 3'),
    'enum_obj': ('''
import enum
class V:
    def __init__(s, x): s.x = x
class P(enum.Enum):
    A = V(1); B = V(2); N = object()
''', 'P.B', 'v.value.x == 2 and v is type(v).B and type(v).N is not None'),
    'enum_str_format': ('''
import enum
class P(enum.IntEnum):
    A = 1
    def __str__(self): return "str" + self.name
    def __repr__(self): return "rep"
    def __format__(self, s): return "fmt"
''', 'P.A', 'str(v) == "strA" and repr(v) == "rep" and f"{v}" == "fmt"'),
    'enum_meta': ('''
import enum
class M(enum.EnumMeta):
    def __contains__(cls, x): return x in cls._value2member_map_
    def __getitem__(cls, n): return super().__getitem__(n.upper())
class P(enum.Enum, metaclass=M): A = 1; B = 2
''', 'P.A', '1 in type(v) and type(v)["b"].value == 2'),
    'enum_abc': ('''
import enum, abc
class M(abc.ABCMeta, enum.EnumMeta): pass
class I(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
class P(I, enum.Enum, metaclass=M):
    A = 1; B = 2
    def f(self): return 1
''', 'P.A', 'v.f() == 1'),
    'enum_init_sub': ('''
import enum
class B(enum.Enum):
    def __init_subclass__(cls, **k): super().__init_subclass__(**k); cls.reg = [m.name for m in cls]
class P(B): A = 1; B = 2
''', 'P.A', 'type(v).reg == []  or type(v).reg == ["A", "B"]'),
    'enum_cached': ('''
import enum, functools
class P(enum.Enum):
    A = 1
    @functools.cached_property
    def d(self): return [self.value]
''', 'P.A', 'v.d == [1] and v.d is v.d'),
    'enum_member_attr': ('''
import enum
class P(enum.Enum):
    A = 1; B = 2
P.A.label = "first"
P.B.partner = P.A
''', 'P.A', 'v.label == "first" and type(v).B.partner is v'),
    'enum_dict': ('''
import enum
class P(dict, enum.Enum):
    A = {"a": 1}; B = {"b": 2}
''', 'P.A', 'v["a"] == 1'),
    'enum_complex': ('''
import enum
class P(complex, enum.Enum):
    I = 1j
''', 'P.I', 'v*v == -1'),
    'enum_nt': ('''
import enum
from typing import NamedTuple
class V(NamedTuple):
    x: int; y: int
class P(V, enum.Enum):
    A = 1, 2; B = 3, 4
''', 'P.A', 'v.x == 1 and type(v).B.y == 4'),
    'enum_nt_val': ('''
import enum
from typing import NamedTuple
class V(NamedTuple):
    x: int; y: int
class P(enum.Enum):
    A = V(1, 2); B = V(3, 4)
    @property
    def x(self): return self.value.x
''', 'P.A', 'v.x == 1 and type(v).B.value.y == 4 and type(v.value).__name__ == "V"'),
    'newtype_field': ('''
from typing import NewType
from dataclasses import dataclass
UserId = NewType("UserId", int)
@dataclass
class P:
    id: UserId
    ids: list[UserId] = None
    def make(self): return UserId(3)
''', 'P(UserId(3))', 'v.id == 3 and v.make() == 3'),
    'paramspec': ('''
from typing import ParamSpec, TypeVar, Callable, Generic, Concatenate, TypeVarTuple, Unpack
PS = ParamSpec("PS"); T = TypeVar("T"); Ts = TypeVarTuple("Ts")
class P(Generic[PS, T]):
    def __init__(self, f: Callable[PS, T]): self.f = f
    def __call__(self, *a: PS.args, **k: PS.kwargs) -> T: return self.f(*a, **k)
    def con(self, f: Callable[Concatenate[int, PS], T]): ...
class Q(Generic[Unpack[Ts]]):
    def f(self, *a: Unpack[Ts]): return a
''', '[P(len), Q()][0]', 'v([1]) == 1'),
    'typevartuple': ('''
from typing import TypeVarTuple, Unpack, Generic, LiteralString, Never, Self, TypeGuard, ClassVar
Ts = TypeVarTuple("Ts")
class P(Generic[Unpack[Ts]]):
    k: ClassVar[int] = 1
    def f(self, *a: Unpack[Ts]) -> tuple[Unpack[Ts]]: return a
    def g(self) -> Self: return self
''', 'P()', 'v.f(1) == (1,)'),
    'init_sub_count': ('''
class B:
    count = 0
    def __init_subclass__(cls, **k): B.count += 1; cls.number = B.count
class P(B): pass
class Q(B): pass
''', '(Q(), P())[1]', 'v.number == 1 and type(v).__mro__[1].count == 2'),
    'slots_init_sub': ('''
class B:
    __slots__ = ()
    count = 0
    def __init_subclass__(cls, **k): B.count += 1
class P(B): __slots__ = ("a",)
''', 'P()', 'type(v).__mro__[1].count == 1'),
    'set_name_strict': ('''
class D:
    def __set_name__(self, o, n):
        if hasattr(self, "n"): raise RuntimeError("twice")
        self.n = n
    def __get__(self, o, t=None): return self.n
class P:
    a = D()
''', 'P()', 'v.a == "a"'),
    'meta_reg': ('''
class M(type):
    reg = []
    def __init__(cls, *a, **k): super().__init__(*a, **k); M.reg.append(cls.__name__)
    def __new__(m, name, bases, ns, **k): return super().__new__(m, name, bases, ns)
class P(metaclass=M, kw=1): pass
''', 'P()', 'type(type(v)).reg == ["P"]'),
    'meta_ns': ('''
class M(type):
    def __new__(m, name, bases, ns):
        assert "needed" in ns, "needs it"
        return super().__new__(m, name, bases, ns)
class P(metaclass=M):
    needed = 1
''', 'P()', 'v.needed == 1'),
    'abc_registered_later': ('''
import abc
class I(abc.ABC): pass
class P:
    i = I
I.register(P)
''', 'P()', 'isinstance(v, v.i)'),
    'singledispatch': ('''
import functools
@functools.singledispatch
def show(x): return "any"
@show.register
def _(x: int): return "int"
class P:
    def s(self): return show(1), show("")
''', 'P()', 'v.s() == ("int", "any")'),
    'sdmethod': ('''
import functools
class P:
    @functools.singledispatchmethod
    def m(self, x): return "any"
    @m.register
    def _(self, x: int): return "int"
    @functools.singledispatchmethod
    @classmethod
    def c(cls, x): return "any"
    @c.register
    @classmethod
    def _(cls, x: int): return "int"
''', 'P()', 'v.m(1) == "int" and v.m("") == "any" and v.c(1) == "int"'),
    'meta_frozen': ('''
class M(type):
    def __setattr__(cls, k, v): raise AttributeError("frozen " + k)
    def __delattr__(cls, k): raise AttributeError("frozen " + k)
class P(metaclass=M):
    a = 1
    def f(self): return 2
''', 'P()', 'v.f() == 2'),
    'doc': ('''
class P:
    """A doc"""
    def f(self): "fd"
class Q(P): pass
''', 'P()', 'type(v).__doc__ == "A doc" and type(v).f.__doc__ == "fd" and type(v).f.__qualname__ == "P.f"'),
    'weakset_attr': ('''
import weakref
class P:
    alive = weakref.WeakSet()
    def __init__(self): P.alive.add(self)
''', 'P()', 'True'),
    'weakvalue_attr': ('''
import weakref
class P:
    alive = weakref.WeakValueDictionary()
    def __init__(self): P.alive[1] = self
''', 'P()', 'True'),
    'make_dataclass': ('''
from dataclasses import make_dataclass
P = make_dataclass("P", [("x", int)])
''', 'P(1)', 'v.x == 1 and v == type(v)(1)'),
    'classes in a list': ('''
def make_class(i):
    class P:
        n = i
    P.__name__ = P.__qualname__ = f"P{i}"
    return P
X = [make_class(i) for i in range(3)]
''', 'X[1]()', 'v.n == 1'),
    'a dataclass with slots of one with slots': ('''
from dataclasses import dataclass, field
@dataclass(slots=True, kw_only=True)
class B:
    x: int = 1
    def f(self): return 1
@dataclass(slots=True, kw_only=True, order=True)
class P(B):
    y: list = field(default_factory=list)
    def f(self): return 1 + super(P, self).f()
''', 'P(x=3, y=[1])', '(v.x, v.y, v.f(), type(v).__mro__[1].__name__) == (3, [1], 2, "B")'),
    'partialmethod': ('''
import functools
class P:
    def base(self, a, b=1, *, c=2): return a, b, c
    two = functools.partialmethod(base, 2, c=9)
''', 'P()', 'v.two() == (2, 1, 9)'),
    'a class that is false': ('''
class M(type):
    def __bool__(cls): return False
class P(metaclass=M): pass
''', 'P()', 'type(type(v)).__name__ == "M"'),
    'hooks with bases of many kinds': ('''
import abc
from typing import Generic, TypeVar
T = TypeVar("T")
class Hook:
    __slots__ = ()
    told = []
    def __init_subclass__(cls, **k): Hook.told.append(cls.__name__)
class A(Hook): pass
class D(dict, Hook): __slots__ = ()
class E(Hook, Exception): pass
class I(Hook, abc.ABC): pass
class G(Hook, Generic[T]): pass
class S(Hook): __slots__ = "s"
class P(Hook):
    all = A, D, E, I, G, S
''', 'P()', """(type(v).__mro__[1].told == [*"ADEIGSP"] and type(v).all[1](a=1) == {"a": 1} and not hasattr(type(v).all[5](), "__dict__")
    and [c.__bases__[-1].__name__ for c in type(v).all] == ["Hook", "Hook", "Exception", "ABC", "Generic", "Hook"])"""),
}


_ROLES = 'writer', 'no cell', 'same cell', 'after it was stored again'
_CODE = '''
import json, sys, parkit as pk
kinds, role, found = json.loads(sys.argv[1]), sys.argv[2], {}
for kind, (definition, make, check) in kinds.items():
    keep = set(globals())
    d = pk.Dict('made/' + kind)
    try:
        if role in ('writer', 'same cell'):
            exec(definition, globals())
            own = eval(make)
            if role == 'writer':
                v = own
                assert eval(check), 'what is checked is not true'
                d['v'] = own
            assert type(d['v']) is type(own), 'another class'
        v = d['v']
        assert eval(check), 'it is not what it was'
        d['v'] = v
        assert type(d['v']) is type(v), 'two classes'
        v = d['v']
        assert eval(check), 'it is not what it was, stored again'
        found[kind] = 'right'
    except Exception as e: found[kind] = f'{type(e).__name__}: {e}'
    for name in set(globals()) - keep: del globals()[name]
print(json.dumps(found))
'''

@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    "What a process says for each role, one after the other; none has anything but the site"
    env = dict(os.environ, PARKIT_SITE=str(tmp_path_factory.mktemp('made')/'site'))
    kinds = {k: v for k, v in MADE.items() if sys.version_info >= (3, 11) or not any(n in v[0] for n in _NEWER)}
    def told(role):
        done = subprocess.run([sys.executable, '-c', _CODE, json.dumps(kinds), role], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return {role: told(role) for role in _ROLES}

_NEWER = 'P(dict', 'TypeVarTuple', 'enum.member', 'enum.nonmember', 'boundary', 'Self'  # of Python 3.11

@pytest.mark.parametrize('kind', MADE)
def test_a_class_is_what_it_was(answers, kind):
    if kind not in answers['writer']: pytest.skip('of Python 3.11')
    assert {role: found[kind] for role, found in answers.items()} == dict.fromkeys(_ROLES, 'right')


def test_members_of_an_enumeration_in_a_worker(single):
    with interpreters(1, single.site) as (one,):
        for kind in ('planet', 'enum_alias', 'enum_new', 'enum_dc', 'flag_alias', 'enum_partial', 'enum_member_attr'):
            definition, make, check = MADE[kind]
            if any(n in definition for n in _NEWER): continue
            one.run(definition + f'@pk.task\ndef look(v): return {check}, v, v is {make}\nv = {make}')
            assert one.value('look(v).result == (True, v, True) and look(v).result[1] is v') is True
            one.run('look.drop()')


def test_an_attribute_of_a_member_is_content(site):
    "It makes no other class, and the one stored last is read"
    with interpreters(2, site) as (one, two):
        one.run('import enum\nclass P(enum.Enum):\n    A = 1; B = 2\nd = pk.Dict("d"); d["p"] = P.A')
        two.run('d = pk.Dict("d"); p = d["p"]')
        for change, shown in (('P.A.n = 1', 1), ('P.A.n = 2', 2), ('del P.A.n', None)):
            one.run(change + '; d["p"] = P.A')
            assert two.value('d["p"] is p, getattr(p, "n", None)') == (True, shown)


def test_a_function_of_singledispatch_is_stored_with_what_is_registered(single):
    with interpreters(1, single.site) as (one,):
        one.run("""
import functools
@functools.singledispatch
def show(x): return 'other'
@show.register
def _(x: list): return [show(i) for i in x]
class P: pass
@pk.task
def look(x): return show(x)
""")
        assert one.value('look([1, [P()]]).result') == ['other', ['other']]
        one.run('before = look.version\n@show.register\ndef _(x: P): return "P"')
        assert one.value('look([1, [P()]]).result, look.version != before') == (['other', ['P']], True)
        one.run('after = look.version\nshow([1, P()]), show("a")\nP.more = show')
        assert one.value('look([P()]).result, look.version == after') == (['P'], False)
        one.run('after = look.version; show({}), show(3.5)')
        assert one.value('look.version == after') is True


def test_a_class_of_a_function_follows_the_cell_that_is_run_again(site):
    with interpreters(1, site) as (one,):
        define = 'def make(n):\n    class P:\n        def get(self): return n\n    return P\nL = make(3)\n'
        one.run(define + 'd = pk.Dict("d"); d["v"] = L()')
        one.run('kept = [L]\n' + define)
        assert one.value('type(d["v"]) is L, L is kept[0]') == (True, False)


def test_the_number_that_attrs_draws_by_lot_does_not_count():
    found = []
    for number in (-12345, 67890):
        names = {'__name__': '__main__'}
        exec('class P: pass', names)
        exec(compile(f'def __hash__(self): return hash(({number}, self.x))', '<attrs generated methods __main__.P>', 'exec'), names)
        names['P'].__hash__ = names['__hash__']
        found.append(identity_of(names['P']))
    assert found[0] == found[1]
