"""Which keys are one, and in which order they come: for every type that can be a key of a `dict`.

A pool of keys of all kinds is compared pair by pair with what Python says, and hypothesis makes up more. What cannot be told in another process is refused when it is stored."""
import abc, enum, functools, ipaddress, json, math, operator, os, pickle, re, sys, types, typing, uuid
from collections import namedtuple
from dataclasses import dataclass, field, make_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from zoneinfo import ZoneInfo

import numpy as np, pytest

import parkit as pk
from helpers import run
from parkit.storage import FORMAT
from parkit.transactions import write
from parkit.codecs import EncodeError, UnorderedKeyError, decode, decode_key, encode_key, is_canonical, split_key, verify_key, with_key

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings, strategies as st

FUZZ = int(os.environ.get('PARKIT_FUZZ', 1))
def examples(n): return settings(max_examples=n*FUZZ, derandomize=FUZZ == 1, deadline=None, database=None, suppress_health_check=list(HealthCheck))


# --- classes whose instances are keys

class Colour(enum.Enum): RED, GREEN, ROUGE = 1, 2, 1
class Fruit(enum.Enum): RED, GREEN = 1, 2
class Number(enum.IntEnum): ONE, TWO = 1, 2
class Word(str, enum.Enum): A = 'a'
class Rights(enum.Flag): READ, WRITE = 1, 2
class Size(enum.Enum):
    SMALL, BIG = 'small', 'big'
    def __lt__(self, other): return self is Size.SMALL and other is Size.BIG
class Sets(enum.Enum): A, B = frozenset('abcdef'), frozenset('ghij')

Point, Pair = namedtuple('Point', 'x y'), typing.NamedTuple('Pair', [('a', object), ('b', object)])

@dataclass(frozen=True)
class P:
    x: object
    y: object = 0
@dataclass(frozen=True)
class Q:
    x: object
    y: object = 0
@dataclass(frozen=True)
class Noted:
    x: object
    note: object = field(default='', compare=False)
@dataclass(frozen=True, order=True)
class Version:
    major: int
    minor: int = 0
    label: object = field(default='', compare=False)
@dataclass(frozen=True, slots=True)
class Slots: x: object
class Sub(P): pass
@dataclass(frozen=True)
class Extended(P): z: object = 0
@dataclass(eq=False)
class ByIdentity: x: object
@dataclass(frozen=True)
class OwnEquality:
    x: str
    def __eq__(self, other): return isinstance(other, OwnEquality) and self.x.lower() == other.x.lower()
    def __hash__(self): return hash(self.x.lower())
@dataclass(frozen=True)
class OwnHash:
    x: object
    y: object = 0
    def __hash__(self): return hash(self.x)
@dataclass(unsafe_hash=True)
class Unsafe: x: object
@dataclass(eq=True)
class IdentityHash:
    x: object
    __hash__ = object.__hash__
@dataclass
class Unhashable: x: object

@dataclass(frozen=True)
class Rated:
    name: object
    rate: object
    def __lt__(self, other): return self.rate < other.rate

class Plain: pass
class Caseless:
    def __init__(self, text): self.text = text
    def __eq__(self, other): return isinstance(other, Caseless) and self.text.lower() == other.text.lower()
    def __hash__(self): return hash(self.text.lower())
    def __lt__(self, other): return self.text.lower() < other.text.lower()
    def __le__(self, other): return self.text.lower() <= other.text.lower()
class Known(Caseless): pass
class KnownSub(Known): pass
class Unrated(Caseless): pass
class Told(Known):
    def __eq__(self, other): return self is other
    def __hash__(self): return 1
class LowerText(str):
    def __eq__(self, other): return str(self).lower() == str(other).lower()
    def __hash__(self): return hash(str(self).lower())
class IntById(int):
    __eq__, __hash__ = object.__eq__, object.__hash__
class Ten:
    "A number as foreign libraries make them"
    def __init__(self, n): self.n = n
    def as_integer_ratio(self): return self.n, 1
    def __float__(self): return float(self.n)
    def __eq__(self, other): return self.n == other
    def __hash__(self): return hash(self.n)
class OddTen(Ten):
    def __hash__(self): return 5
class DateWithZone(datetime):
    def __eq__(self, other): return self is other
    def __hash__(self): return 0
class Meta(type):
    def __eq__(cls, other): return isinstance(other, Meta)
    def __hash__(cls): return 1
class WithMeta(metaclass=Meta): pass
class Abstract(abc.ABC):
    @classmethod
    def make(cls): pass
    def method(self): pass
def function(): pass
T = typing.TypeVar('T')


@pytest.fixture(autouse=True)
def known():
    from parkit import codecs
    pk.register_key(Known, lambda key: key.text.lower(), ordered=True)
    pk.register_key(Unrated, lambda key: key.text.lower())
    yield
    del codecs._encoders[Known], codecs._encoders[Unrated]


M, D = np.datetime64, np.timedelta64
hour = timezone(timedelta(hours=1))
NUMBERS = [0, -0.0, 1, 1.0, True, Decimal(1), Fraction(1), np.int8(1), np.float32(1), np.float64(1), np.longdouble(1), np.True_, np.complex64(1), 1 + 0j, Number.ONE, Ten(1),
           0.5, Fraction(1, 2), Decimal('0.50'), np.float16(.5), np.longdouble('0.1'), 0.1, 1j, complex(-0.0, 1), np.complex128(1j), np.clongdouble(1j), 1 + 1j, 2**70, float(2**70),
           math.inf, -math.inf, np.float64('inf'), Fraction(1, 3), Fraction(10**5000 + 1, 10**5000 + 3), Fraction(2**2000 + 1, 2), Decimal('1e400') + Decimal('0.5')]
TEXTS = ['', 'a', Word.A, np.str_('a'), b'', b'a', np.bytes_(b'a'), memoryview(b'a'), 'A', None, (), (1,), (1.0,), Point(1, 2), Pair(1, 2.0), (True, 2), frozenset(), frozenset({1, 'a'}), frozenset({True, 'a'}),
         frozenset({frozenset({1})}), frozenset({frozenset({1.0})}), os.terminal_size((1, 3)), (1, 3)]
MOMENTS = [datetime(2024, 1, 1), datetime(2024, 1, 1, fold=1), M('2024-01-01T00', 's'), M('2024-01-01T00', 'us'), datetime(2024, 1, 1, 0, 0, 1), M('2024-01-01T00:00:01', 's'),
           M('2024-01-01T00:00:01', 'us'), datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2024, 1, 1, 1, tzinfo=hour), date(2024, 1, 1), date(2024, 1, 2)]
NUMPY_MOMENTS = [M(s, unit) for s in ('1600-02-28', '1969-12-31', '1970-01-01', '2024-01-01', '2024-02-29', '2261-03-01') for unit in 'YMWDhms'] + [
    M('2024-01-01', 'ns'), M('2024-01-01T00:00:00.000000001', 'ns'), M('1970-01-01T00:00:00.000000001', 'ns'), M(1000, 'ps'), M(1001, 'ps'), M(10**15, 'fs'), M(1, 's'),
    M('-5000-01-01', 'D'), M('-5000', 'Y'), M('20000-01-01', 'D'), M('20000', 'Y'), M('0001', 'Y'), M('9999-12-31', 'D'), M(7, '25s'), M(175, 's')]
DURATIONS = [timedelta(0), timedelta(hours=1), timedelta(-1), timedelta(microseconds=1), D(1, 'h'), D(60, 'm'), D(3600, 's'), D(3_600_000_000, 'us'), D(1, 'D'), D(24, 'h'), D(1, 'W'), D(7, 'D')]
NUMPY_DURATIONS = [D(1, 'h'), D(3600*10**9, 'ns'), D(1, 'ns'), D(1000, 'ps'), D(1, 'ps'), D(10**6, 'as'), D(-1, 'ns'), D(1, 'us'), D(10**12, 'W'), D(7*10**12, 'D'), D(-10**12, 'W')]
MONTHS = [D(1, 'Y'), D(12, 'M'), D(1, 'M'), D(-1, 'Y'), D(0, 'Y')]
TIMES = [time(1, 2), time(1, 2, fold=1), time(1, 2, tzinfo=timezone.utc), time(2, 2, tzinfo=hour), time(0, 30, tzinfo=hour), time(23, 30, tzinfo=timezone.utc), time(1, 2, tzinfo=ZoneInfo('Europe/Paris'))]
OTHERS = [range(0), range(5, 5), range(0, 3, 2), range(0, 4, 2), range(1), range(0, 1, 7), range(2), range(0, 2, 1), (0, 1), Colour.RED, Colour.ROUGE, Colour.GREEN, Fruit.RED, Number.TWO, Rights.READ,
          Rights.READ | Rights.WRITE, Rights(3), Rights(0), Size.BIG, Sets.A, Sets.B, P(1), P(1.0), P(1, True), Q(1), Sub(1), Extended(1), Noted(1), Noted(1, 'x'), Noted(2), Version(1), Version(1, 0, 'x'), Slots(1),
          Slots(True), OwnHash(1), OwnHash(1, 2), OwnHash(1.0), Unsafe(1), Unsafe(True), P(P(1)), P(P(1.0)), P((1, 'a')), (P(1),), (P(True),), int, bool, P, Colour, Abstract, type(None), function, len, math.sin, np.sin, operator.add, Abstract.make,
          Abstract.method, ..., NotImplemented, T, list[int], list[str], tuple[int, ...], typing.List[int], typing.Dict[str, int], int | str, str | int, typing.Union[int, str], typing.Optional[int], int | None,
          re.compile('a'), re.compile('a', re.I), re.compile(b'a'), re.compile('b'), timezone.utc, timezone(timedelta(0), 'x'), hour, ZoneInfo('UTC'), ZoneInfo('Europe/Paris'), np.dtype('i4'), np.dtype('int32'),
          np.dtype('>i4'), np.dtype('M8[s]'), uuid.UUID(int=1), uuid.UUID(int=2), uuid.SafeUUID.safe, Path('a/b'), PurePosixPath('a', 'b'), PureWindowsPath('a/B'), PureWindowsPath('A\\b'), Path('a'),
          *[ipaddress.ip_address(o) for o in ('1.2.3.4', '1.2.3.5', '::1', 'fe80::1', 'fe80::1%a')], ipaddress.ip_interface('1.2.3.4/24'), ipaddress.ip_interface('1.2.3.4/25'), ipaddress.ip_network('1.2.3.0/24'),
          ipaddress.ip_network('1.2.3.0/25'), ipaddress.ip_interface('::1/64'), ipaddress.ip_network('::/64'), Known('a'), Known('A'), KnownSub('a'), Known('b')]
if slice.__hash__: OTHERS += [slice(1), slice(None, 1.0), slice(1, 2)]
POOLS = dict(numbers=[o for o in NUMBERS if not isinstance(o, (Decimal, Fraction, Ten))], decimals=[o for o in NUMBERS if not isinstance(o, (np.generic, Ten))], tens=[Ten(1), Ten(2), 1, 2, 1.0, True, Fraction(2)],
             texts=TEXTS, moments=MOMENTS, numpy_moments=NUMPY_MOMENTS, durations=DURATIONS, numpy_durations=NUMPY_DURATIONS, months=MONTHS, times=TIMES, others=OTHERS,
             all=['a', b'a', 1, .5, (1,), Point(1, 2), datetime(2024, 1, 1), date(2024, 1, 1), *TIMES, timedelta(1), *OTHERS])

def one(a, b): return len({a: 1, b: 2}) == 1


# --- equality

def _named(value): return re.sub(" at 0x[0-9a-f]+", "", str(value))  # the same in every process of xdist

@pytest.mark.parametrize('pool', list(POOLS))
def test_keys_are_one_where_a_dict_has_one(pool):
    keys = POOLS[pool]
    codes = [encode_key(key) for key in keys]
    wrong = [(a, b) for (a, x), (b, y) in combinations(zip(keys, codes), 2) if one(a, b) != (x == y)]
    assert not wrong, wrong

@pytest.mark.parametrize('pool', list(POOLS))
def test_a_dict_has_them_all(d, pool):
    "Beside a `dict` of Python: what is stored, found, deleted and comes back"
    expected = {}
    for i, key in enumerate(POOLS[pool]): expected[key] = d[key] = i
    assert len(d) == len(expected) and dict(d.items()) == expected
    assert all(d[key] == i and key in d for key, i in expected.items())
    first = {encode_key(key): key for key in expected}
    for key in d:
        kept = first[encode_key(key)]
        assert type(key) is type(kept) or isinstance(kept, memoryview)
        assert isinstance(kept, (memoryview, frozenset, Fraction)) or repr(key) == repr(kept) or 'object at' in repr(kept)
    assert not pk.check()
    for key in expected: del d[key]
    assert not list(d)

def test_moments_are_one_whatever_their_type():
    "Python's own comparisons of these are not transitive: there is no dict to follow, so what names the same moment is one key"
    pd = pytest.importorskip('pandas')
    for micros in (0, 1, 999_999):
        moment = datetime(2024, 1, 1, 0, 0, 0, micros)
        stamps = [pd.Timestamp(moment), pd.Timestamp(moment).as_unit('us'), M(moment), M(moment, 'ns')]
        assert {encode_key(o) for o in stamps} == {encode_key(moment)}
        aware = [pd.Timestamp(moment, tz='UTC'), pd.Timestamp(moment, tz='UTC').tz_convert('Europe/Paris'), moment.replace(tzinfo=timezone.utc)]
        assert len({encode_key(o) for o in aware}) == 1 and encode_key(aware[0]) != encode_key(moment)
    assert len({encode_key(o) for o in (M('2024'), M('2024-01-01'), M('2024-01-01', 'ns'), datetime(2024, 1, 1))}) == 1 != encode_key(date(2024, 1, 1))
    spans = [timedelta(hours=1), pd.Timedelta(hours=1), pd.Timedelta(hours=1).as_unit('s'), D(1, 'h'), D(3600*10**9, 'ns')]
    assert len({encode_key(o) for o in spans}) == 1
    precise = [pd.Timestamp('2024-01-01T00:00:01.123456789'), M('2024-01-01T00:00:01.123456789')]
    assert len({encode_key(o) for o in precise}) == 1 and encode_key(precise[0]) != encode_key(precise[0].floor('us'))
    both = [pd.Timestamp(2024, 10, 27, 2, 30, tz='Europe/Paris', fold=fold) for fold in (0, 1)]
    assert both[0] != both[1] and encode_key(both[0]) != encode_key(both[1])

def test_pandas_keys():
    pd = pytest.importorskip('pandas')
    keys = [pd.Period('2024-01', 'M'), pd.Period('2024-01', 'M') + 0, pd.Period('2024-02', 'M'), pd.Period('2024-01-01', 'D'), pd.Interval(0, 1), pd.Interval(0.0, 1.0), pd.Interval(0, 1, 'left'),
            pd.Interval(pd.Timestamp(2024, 1, 1), pd.Timestamp(2024, 1, 2)), pd.NA, pd.NaT, pd.Timedelta(1, 'ns'), pd.Timedelta(2, 'ns'), 0, None, 'NaT']
    for a, b in combinations(keys, 2): assert one(a, b) == (encode_key(a) == encode_key(b)), (a, b)

def test_no_time_is_one_key_as_nan_is():
    pd = pytest.importorskip('pandas')
    nats = [[M('NaT'), M('NaT', 'ns'), M('NaT', 'D')], [D('NaT'), D('NaT', 'ns')], [pd.NaT, pd.Timestamp('NaT')], [math.nan, np.float64('nan'), Decimal('nan')], [pd.NA]]
    codes = [{encode_key(o) for o in group} for group in nats]
    assert [len(c) for c in codes] == [1]*5 and len(set.union(*codes)) == 5
    moments = [M('0001'), M('2024'), M('30000', 'Y'), M('NaT')]
    assert sorted(reversed(moments), key=encode_key)[:3] == moments[:3] and encode_key(moments[2]) < encode_key(moments[3]) < encode_key(pd.NaT)

@pytest.mark.parametrize('key', [object(), Plain(), ByIdentity(1), lambda: 0, Plain().__init__, [].append, Caseless('a'), LowerText('a'), OwnEquality('a'), IntById(1), IdentityHash(1), Told('a'), OddTen(1), WithMeta, types,
                                 DateWithZone(2024, 1, 1), functools.partial(len), iter(()), make_dataclass('P', ['x'], frozen=True)(1), make_dataclass('Nowhere', ['x'], frozen=True)(1), enum.Enum('Local', 'A').A,
                                 types.new_class('Fresh'), (1, object()), frozenset({Plain()}), P(object()), memoryview(b'abcd').cast('B', (2, 2)), np.dtype('i4,f8'),
                                 Decimal('1e1000000000'), Decimal('-1e-1000000000'), Fraction(1, 3**400_000)], ids=lambda key: f'{type(key).__name__}')
def test_what_cannot_be_told_is_refused(d, key):
    for use in (encode_key, d.__getitem__, d.__contains__, d.__delitem__, lambda key: d.__setitem__(key, 1), lambda key: d.update({key: 1}), d.setdefault, d.range):
        with pytest.raises(EncodeError, match='cannot store a key') as e: use(key)
        assert isinstance(e.value, TypeError)
    assert not len(d)

@pytest.mark.parametrize('key', [[], {}, set(), Unhashable(1), ([],), P([]), bytearray(), np.zeros(1), D(5), memoryview(bytearray(b'a')), memoryview(bytes(8)).cast('d'), Decimal('sNaN')], ids=lambda key: f'{type(key).__name__}')
def test_what_a_dict_refuses(d, key):
    with pytest.raises(TypeError): d[key] = 1
    assert not len(d)

def test_a_class_with_fields_of_attrs():
    attr = pytest.importorskip('attrs')
    assert len({encode_key(o) for o in (Attrs(1), Attrs(True), Attrs(1.0, note='x'))}) == 1
    assert len({encode_key(o) for o in (Attrs(1), Attrs(2), AttrsSub(1), AttrsOf('A'), AttrsOf('b'))}) == 5 and encode_key(AttrsOf('a')) == encode_key(AttrsOf('A'))
    assert encode_key(Attrs(1)) < encode_key(Attrs(2)) and not refuses(Attrs(1))
    with pytest.raises(EncodeError): encode_key(AttrsById(1))

try: import attrs
except ImportError: pass
else:
    @attrs.frozen(order=True)
    class Attrs:
        x: object
        note: str = attrs.field(default='', eq=False)
    @attrs.frozen
    class AttrsSub(Attrs): pass
    @attrs.frozen
    class AttrsOf: x: str = attrs.field(eq=str.lower)
    @attrs.define(eq=False)
    class AttrsById: x: int


# --- order

def refuses(key):
    from parkit.codecs import check_order
    try: check_order(key)
    except UnorderedKeyError: return True
    return False

seconds = st.integers(-2**62, 2**62)
units = st.sampled_from(['s', 'ms', 'us', 'ns', 'ps', 'fs', 'as', 'D', 'h', 'm', 'W'])
ORDERS = dict(
    datetime64=units.flatmap(lambda unit: st.lists(st.one_of(seconds, st.integers(-10, 10)).map(lambda n: M(n, unit)), min_size=2)), years=st.lists(st.integers(-9999, 99999).map(lambda n: M(n, 'Y')), min_size=2),
    months=st.lists(st.integers(-99999, 99999).map(lambda n: M(n, 'M')), min_size=2), two_units=st.lists(st.builds(M, st.integers(-10**5, 10**5), st.sampled_from(['s', 'us', 'D', 'h', 'Y', 'W'])), min_size=2),
    timedelta64=units.flatmap(lambda unit: st.lists(seconds.map(lambda n: D(n, unit)), min_size=2)), calendar=st.lists(st.builds(D, st.integers(-2**40, 2**40), st.sampled_from('YM')), min_size=2),
    timedelta=st.lists(st.timedeltas(), min_size=2), time=st.lists(st.times(), min_size=2), aware_time=st.lists(st.times(timezones=st.integers(-1439, 1439).map(lambda n: timezone(timedelta(minutes=n)))), min_size=2),
    ip4=st.lists(st.ip_addresses(v=4), min_size=2), ip6=st.lists(st.ip_addresses(v=6), min_size=2), windows=st.lists(st.builds(PureWindowsPath, st.sampled_from('abAB'), st.sampled_from('abC')), min_size=2),
    interface=st.lists(st.builds(lambda a, n: ipaddress.ip_interface(f'{a}/{n}'), st.ip_addresses(v=4), st.integers(0, 32)), min_size=2),
    network=st.lists(st.builds(lambda a, n: ipaddress.ip_network(f'{a}/{n}', strict=False), st.ip_addresses(v=4), st.integers(0, 32)), min_size=2),
    dataclass=st.lists(st.builds(Version, st.integers(), st.integers(-2, 2)), min_size=2), registered=st.lists(st.builds(Known, st.text('abAB', max_size=3)), min_size=2),
    mixed_moments=st.lists(st.one_of(st.datetimes(), st.datetimes().map(lambda t: M(t, 'us'))), min_size=2), in_tuples=st.lists(st.tuples(st.times(), st.timedeltas()), min_size=2))
if slice.__hash__: ORDERS['slice'] = st.lists(st.builds(slice, st.integers(-3, 3), st.integers(-3, 3), st.just(None)), min_size=2)

@pytest.mark.parametrize('kind', list(ORDERS))
def test_bytes_are_in_the_order_of_the_keys(kind):
    @examples(60)
    @given(ORDERS[kind])
    def check(keys):
        codes = [encode_key(key) for key in keys]
        for (a, x), (b, y) in combinations(zip(keys, codes), 2): assert (a < b, a == b) == (x < y, x == y), (a, b)
        assert not any(map(refuses, keys))
    check()

@pytest.mark.parametrize('kind', ['datetime64', 'timedelta64', 'timedelta', 'time', 'ip4', 'dataclass', 'registered'])
def test_first_last_and_range(scratch, kind):
    d = pk.Dict('n/d')
    @examples(15)
    @given(ORDERS[kind], st.data())
    def check(keys, data):
        d.clear()
        d.update((key, 0) for key in keys)
        expected = sorted(set(keys))
        assert list(d) == expected and d.first()[0] == expected[0] and d.last()[0] == expected[-1]
        lo, hi = (data.draw(st.sampled_from(keys)) for _ in range(2))
        assert [k for k, _ in d.range(lo, hi)] == [k for k in expected if lo <= k < hi]
    check()

def test_a_frames_index_as_keys(scratch):
    "The case that was reported: 23 items of 100"
    pd = pytest.importorskip('pandas')
    index = pd.date_range('2024-01-01', periods=100, freq='h')
    d = pk.Dict('n/index')
    d.update(zip(index.values, range(100)))
    assert list(d.values()) == list(range(100)) and d.first()[1] == 0 and d.last()[1] == 99
    for lo, hi in ((index[10], index[33]), (index.values[10], index.values[33]), (index[10].to_pydatetime(), M(index.values[33], 'h'))):
        assert [v for _, v in d.range(lo, hi)] == list(range(10, 33))
    assert d[index[5]] == d[index.values[5]] == d[index[5].to_pydatetime()] == 5
    spans = pk.Dict('n/spans')
    spans.update(zip((index - index[50]).values, range(100)))
    assert [v for _, v in spans.range(timedelta(hours=-5), timedelta(hours=5))] == list(range(45, 55))
    periods = pk.Dict('n/periods')
    periods.update(zip(index.to_period('h'), range(100)))
    assert list(periods.values()) == list(range(100)) and list(periods) == list(index.to_period('h'))

@pytest.mark.parametrize('some', [[Size.SMALL, Size.BIG], [(1, Size.SMALL), (1, Size.BIG)], [frozenset({Size.BIG}), frozenset({Size.SMALL})], [P(Size.BIG), P(Size.SMALL)], [Rated(1, 2), Rated(2, 1)],
                                  [np.dtype('i4'), np.dtype('f8')], [Unrated('a'), Unrated('b')]], ids=_named)
def test_an_order_that_is_not_known_is_refused_by_name(d, some):
    d.update((key, i) for i, key in enumerate(some))
    assert set(d) == set(some) and list(d) == list(reversed(d))[::-1]
    for ask in (d.first, d.last, lambda: d.range(some[0]), lambda: d.range(None, some[0])):
        with pytest.raises(UnorderedKeyError, match='have an order of their own') as e: ask()
        assert isinstance(e.value, TypeError) and isinstance(e.value, pk.ParkitError) and str(e.value).split("'")[1] in ('Size', 'Rated', 'Unrated', *(type(o).__name__ for o in some))
    assert d.popitem()[0] in some
    d.first(), d.last()  # one alone is the first and the last

@pytest.mark.parametrize('some', [[Colour.RED, Colour.GREEN], [P(1), P(2)], [1j, 2j], [range(2), range(3)], [int, str], [function, len], [(1, Colour.RED), (1, Colour.GREEN)], [P, Colour.RED]], ids=_named)
def test_keys_without_an_order_come_in_one_that_stays(d, some):
    d.update((key, i) for i, key in enumerate(some))
    first, last = list(d)
    assert d.first()[0] == first and d.last()[0] == last and list(d.range(first, last)) == [d.first()] and list(reversed(d)) == [last, first]

def test_what_has_an_order_beside_it_has_it_still(d):
    d.update({1: 0, 2: 0, Size.SMALL: 0, Size.BIG: 0, (1, Size.SMALL): 0, (2, Size.BIG): 0})
    assert d.first()[0] == 1 and [k for k, _ in d.range(1, 'a')] == [1, 2] and [k for k, _ in d.range((1,), (2,))] == [(1, Size.SMALL)]
    with pytest.raises(UnorderedKeyError, match='Size'): d.last()
    del d[Size.SMALL], d[Size.BIG]
    assert d.last()[0] == (2, Size.BIG)


# --- any key

leaves = st.one_of(st.none(), st.integers(-3, 3), st.floats(allow_nan=False), st.booleans(), st.text(max_size=2), st.binary(max_size=2), st.fractions(), st.dates(), st.datetimes(), st.times(), st.timedeltas(), st.uuids(),
                   st.ip_addresses(), st.complex_numbers(allow_nan=False), st.builds(range, st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 3)), st.sampled_from(OTHERS),
                   st.integers(-2**50, 2**50).map(lambda n: M(n, 'us')), st.integers(-2**50, 2**50).map(lambda n: D(n, 'us')))
hashables = st.recursive(leaves, lambda o: st.one_of(st.tuples(o), st.tuples(o, o), st.builds(Point, o, o), st.frozensets(o, max_size=3), st.builds(P, o, o), st.builds(Noted, o, o), st.builds(Version, o, o)), max_leaves=5)

@examples(400)
@given(st.lists(hashables, min_size=2, max_size=4))
def test_any_keys_are_one_where_a_dict_has_one(keys):
    for a, b in combinations(keys, 2): assert one(a, b) == (encode_key(a) == encode_key(b)), (a, b)

@examples(300)
@given(hashables)
def test_any_key_comes_back(key):
    data = encode_key(key)
    verify_key(data)
    kept, record = split_key(with_key(key, b'\x80rest'))
    back = decode_key(data) if kept is None else decode(kept)
    assert (kept is None) == is_canonical(key) and back == key and type(back) is type(key) and encode_key(back) == data and record == b'\x80rest'

@examples(200)
@given(st.lists(hashables, min_size=1, max_size=6))
def test_order_is_known_or_refused_for_any_keys(keys):
    "Whatever is not refused is in Python's own order, where that has one"
    d = sorted({encode_key(key): key for key in keys}.items())
    for (x, a), (y, b) in zip(d, d[1:]):
        try: less = a < b
        except (TypeError, ValueError): continue
        if not isinstance(less, (bool, np.bool_)): continue  # numpy makes arrays of tuples
        if isinstance(a, frozenset) or isinstance(b, frozenset) or 'frozenset' in repr((a, b)): continue  # `<` is no order of these
        if not less and type(a) is type(b): assert refuses(a) or refuses(b), (a, b)


# --- in another process

def test_every_process_makes_the_same_bytes(d, tmp_path):
    "With other seeds of its hashes, so that sets and what is made of them come in another order"
    (tmp_path/'keys_of_mine.py').write_text('import enum\nfrom dataclasses import dataclass\nclass C(enum.Enum): A = frozenset("abcdefgh")\n@dataclass(frozen=True)\nclass P:\n    x: object\n')
    code = '''
        import keys_of_mine as m, re, ipaddress
        from datetime import time, timedelta
        keys = [m.C.A, m.P(frozenset('abcdefgh')), m.P(m.C.A), m.C, len, re.compile('a'), int | str, ipaddress.ip_address('::1'), np.datetime64('2024-01-01'), timedelta(1), time(1), ..., range(3), (m.C.A, 1)]
        say([pk.codecs.encode_key(key).hex() for key in keys])'''
    path = f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}:{":".join(sys.path)}'
    assert run(d.site, code, PYTHONHASHSEED='1', PYTHONPATH=path) == run(d.site, code, PYTHONHASHSEED='2', PYTHONPATH=path)

NOTEBOOK = '''
    import enum
    from dataclasses import dataclass
    @dataclass(frozen=True)
    class Key:
        x: object
        y: object = 0
    class Kind(enum.Enum): A, B = 1, 2
    '''
def test_keys_of_a_notebooks_classes(d):
    "By the name of the class and its fields: the same in the next kernel, and where the class is not there"
    d['plain'] = 0
    assert run(d.site, NOTEBOOK + 'd = pk.Dict("n/d"); d[Key(1)] = 1; d[Kind.A] = 2; d[Kind] = 3; d[(Key("a"), 2)] = 4; say(len(d))') == 5
    again = NOTEBOOK + 'd = pk.Dict("n/d"); say([d[Key(1.0)], d[Kind.A], d[Kind], d[(Key("a"), 2.0)], Key(2) in d, all(k in d for k in d), [k is Kind.A for k in d].count(True)])'
    assert run(d.site, again) == [1, 2, 3, 4, False, True, 1]
    keys = list(d)  # here there is no such class
    assert len(keys) == 5 and 'plain' in keys and sorted(d.values()) == [0, 1, 2, 3, 4] and not pk.check()
    assert [d[k] for k in keys] == list(d.values()), 'a key that came from here is found here'
    assert run(d.site, 'd = pk.Dict("n/d"); [d.pop(k) for k in list(d)]; say(len(d))') == 0

def test_class_that_was_redefined(d):
    "An instance of the class before is not one of the class that has the name now"
    code = NOTEBOOK + 'old = Key(1)\n    @dataclass(frozen=True)\n    class Key: x: object\n    d = pk.Dict("n/d"); d[Key(1)] = 1\n    try: d[old]\n    except TypeError as e: say(str(e))'
    assert 'is another class now' in run(d.site, code)


# --- depth and size

def _nested(kind, depth):
    key = ()
    for _ in range(depth): key = kind((key,))
    return key

@pytest.mark.parametrize('kind', [tuple, frozenset, lambda o: P(o[0]), lambda o: Point(o[0], 1)], ids=['tuple', 'frozenset', 'dataclass', 'namedtuple'])
def test_depth_has_a_limit_that_is_stated(d, kind):
    deepest = next(n for n in range(1000) if _is_refused(_nested(kind, n + 1)))
    assert deepest >= 45
    key = _nested(kind, deepest)
    d[key] = 1
    def near_the_end(frames): return near_the_end(frames - 1) if frames else (d[key], list(d) == [key])
    assert near_the_end(sys.getrecursionlimit() - 700) == (1, True) and not pk.check()
    for depth in (deepest + 1, 5000, 100_000):
        if depth > 900 and kind not in (tuple, frozenset): continue  # hashing it takes the stack itself
        if depth > 5000 and kind is frozenset: continue
        deep = _nested(kind, depth)
        with pytest.raises(EncodeError, match='deep in each other'): d[deep] = 1
        while isinstance(deep, tuple) and deep: deep = deep[0]  # to free it at once would take as deep a recursion
    assert len(d) == 1

def _is_refused(key):
    try: encode_key(key)
    except EncodeError: return True

@pytest.mark.parametrize('key', [10**100_000, -10**100_000, Fraction(10**5000, 3), Fraction(10**5000 + 1, 2), Fraction(1, 10**5000 + 1), Decimal('1e99999'), Decimal('1e-9999'), Decimal('0.' + '3'*9000), 'x'*10**6], ids=lambda key: type(key).__name__)
def test_big_numbers(d, key):
    d[key] = 1
    assert d[key] == 1 and list(d) == [key] and d.first() == (key, 1)


def test_parkits_own_objects_are_keys(site):
    q, other, task = pk.Queue('q'), pk.Queue('r'), pk.task(function)
    d = pk.Dict('d')
    d.update({q: 1, other: 2, task: 3})
    assert d[pk.Queue('q')] == 1 and d[pk.bind_task('function')] == 3 and len(d) == 3 and set(d) == {q, other, task}
    with pytest.raises(TypeError): d[d] = 1
    q.rename('elsewhere')
    assert d[pk.Queue('elsewhere')] == 1


# --- of an older parkit

def test_site_of_the_format_before(d):
    "Opened, it is of this format, so that an older parkit does not write beside it; keys that it stored as pickles are listed, and can be stored again"
    file = Path(d.site.path, 'site.json')
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(format=1)))
    assert pk.Site(d.site.path) is d.site and json.loads(file.read_text())['format'] == FORMAT == 2
    old = [Colour.RED, range(3), timedelta(1), time(1), M('2024-01-01'), M('2023-01-01')]
    for i, key in enumerate(old):
        code = b'\x70' + pickle.dumps(key, 5).replace(b'\0', b'\0\xff') + b'\0'
        write(d._store, d._put, 'x', pickle.dumps(i, 5), code)
    assert len(d) == len(old) and set(d) == set(old) and sorted(d.values()) == list(range(6)) and not pk.check()
    assert d.get(timedelta(1)) is None
    with pytest.raises(UnorderedKeyError, match='older parkit'): d.first()
    with pk.transaction(d):
        items = list(d.items())
        d.clear()
        d.update(items)
    assert [d[key] for key in old] == list(range(6)) and d.last()[0] is Colour.RED and not pk.check()
