"""Values and keys of every kind, made up by hypothesis: back from their bytes as they were, keys equal and in order as Python's are.

A notebook shows examples; these look for the ones that nobody thinks of. `PARKIT_FUZZ=20` tries twenty times as many, new ones each time."""
import array, enum, math, os, struct, threading
from collections import namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PosixPath, PurePath
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np, pytest

import parkit as pk
from parkit.codecs import (ALIGNMENT, ARRAY, BUFFERS, EncodeError, apart, as_bytes, decode, decode_key, decode_user, encode, encode_key,
                           encode_user, split_key, verify, with_key)
from helpers import run

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, example, given, settings, strategies as st
from hypothesis.extra import numpy as npst

FUZZ = int(os.environ.get('PARKIT_FUZZ', 1))

def examples(n): return settings(max_examples=n*FUZZ, derandomize=FUZZ == 1, deadline=None, database=None, suppress_health_check=list(HealthCheck))


# --- what there is to store

def _floats(a): return struct.pack('<d', a) if a == a else 'nan'

def same(a, b):
    "Whether `b` is what `a` was: type, content and order, all the way down; NaN is NaN, and -0.0 is not 0.0"
    if type(a) is not type(b): return False
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict): return same(list(a.items()), list(b.items()))
    if isinstance(a, float): return _floats(a) == _floats(b)
    if isinstance(a, complex): return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, (set, frozenset)): return a == b and sorted(map(_typed, a)) == sorted(map(_typed, b))
    if isinstance(a, np.ndarray): return _same_array(a, b)
    if isinstance(a, np.generic): return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, (Decimal, datetime)): return repr(a) == repr(b)
    return a == b

def _typed(o): return f'{type(o)}{sorted(map(_typed, o)) if isinstance(o, frozenset) else list(map(_typed, o)) if isinstance(o, tuple) else repr(o)}'

def _same_array(a, b):
    if (a.dtype, a.shape) != (b.dtype, b.shape) or a.dtype.isnative != b.dtype.isnative: return False
    if a.dtype.hasobject: return same(a.tolist(), b.tolist())
    if a.dtype.fields: return all(_same_array(a[name], b[name]) for name in a.dtype.names)  # what lies between the fields is nobody's
    return a.tobytes() == b.tobytes()

zones = st.one_of(st.none(), st.builds(timezone, st.integers(-1439, 1439).map(lambda n: timedelta(minutes=n))), st.sampled_from(['UTC', 'Europe/Paris', 'America/New_York']).map(ZoneInfo))
moments = st.builds(lambda t, zone, fold: t.replace(tzinfo=zone, fold=fold), st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)), zones, st.integers(0, 1))
text = st.text(st.one_of(st.characters(), st.characters(categories=['Cs']), st.sampled_from('\0\x01a\xff\uffff\U0010ffff')))
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.integers().map(lambda n: n**31), st.floats(), text, st.binary())
scalars = st.one_of(plain, st.complex_numbers(), st.fractions(), st.decimals(), st.dates(), moments, st.times(), st.timedeltas(), st.uuids(), st.sampled_from([..., range(5), int, len, Path('a'), PurePath('/a/b')]))
def _is_itself(o):
    try: return o == o
    except ArithmeticError: return False  # the signalling NaN of `decimal`

hashables = st.recursive(scalars.filter(_is_itself), lambda o: st.one_of(st.tuples(o), st.tuples(o, o), st.frozensets(o, max_size=3)), max_leaves=4)

number_types = st.one_of(npst.scalar_dtypes(), st.sampled_from([np.dtype(o) for o in ('g', 'G', 'e', '>e', 'V7', 'M8', 'm8', 'M8[25s]', '>M8[ns]', 'U0', 'S0', 'V0')]))
dtypes = st.one_of(number_types, npst.unicode_string_dtypes(), npst.byte_string_dtypes(), npst.array_dtypes(npst.scalar_dtypes(), allow_subarrays=True),
                   npst.nested_dtypes(npst.scalar_dtypes(), max_leaves=3), st.sampled_from([np.dtype('i1,f8', align=True), np.dtype([(('title', 'a'), '>i4')])]))
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)

def _filled(dtype, shape, seed):
    "An array whose bytes are anything"
    size, random = math.prod(shape)*dtype.itemsize, np.random.default_rng(seed)
    data = random.integers(0, 0x110000, size//4).astype(dtype.byteorder + 'u4').tobytes() if dtype.kind == 'U' else random.bytes(size)
    return np.ndarray(shape, dtype, data or bytes(1)).copy()

def _arranged(array, how):
    "`array` in another layout"
    if how == 'broadcast': return np.broadcast_to(array, (2, *array.shape))
    if not array.ndim: return array
    if how == 'F': return np.asfortranarray(array)
    if how == 'T': return array.T
    if how == 'reversed': return array[(slice(None, None, -1),)*array.ndim]
    if how == 'every second': return array[(slice(None, None, 2),)*array.ndim]
    if how == 'inner': return array[..., 1:]
    if how == 'swapped': return array.swapaxes(0, -1)
    return array

def _is_buffer(array):
    "Whether numpy's own pickle leaves the bytes where they are"
    try: return bool(array.flags.forc and memoryview(array).nbytes and array.dtype.kind != 'U')
    except ValueError: return False  # dates have no format that a buffer could state

layouts = st.sampled_from(['C', 'F', 'T', 'reversed', 'every second', 'inner', 'broadcast', 'swapped'])
arrays = st.builds(_arranged, st.builds(_filled, dtypes, shapes, st.integers(0, 99)), layouts)
buffers = st.one_of(st.binary(), st.binary().map(bytearray), st.builds(array.array, st.just('h'), st.lists(st.integers(-9, 9))),
                    st.binary().map(memoryview), st.binary(min_size=12).map(lambda b: memoryview(b)[::3]), arrays.filter(lambda a: a.dtype.kind in 'biuf' and a.dtype.isnative))
inner = arrays.filter(lambda a: a.dtype.isnative or _is_buffer(a))  # what numpy's own pickle copies, it turns into the machine's byte order
values = st.recursive(st.one_of(scalars, inner, st.binary().map(bytearray), st.builds(array.array, st.just('d'), st.lists(st.floats(width=32, allow_nan=False)))),
                      lambda o: st.one_of(st.lists(o, max_size=4), st.tuples(o, o), st.dictionaries(hashables, o, max_size=3), st.frozensets(hashables, max_size=3),
                                          st.sets(hashables, max_size=3)), max_leaves=8)


# --- values

def _join(record): return record if isinstance(record, bytes) else record.join()

def _bytes_of(value):
    "The record of `value`, whose length was known before it was written"
    record = encode(value)
    data = _join(record)
    assert len(data) == len(record)
    return data

@examples(200)
@given(values)
def test_value_comes_back(value): assert same(value, decode(_bytes_of(value)))

@examples(250)
@given(arrays)
def test_array_comes_back(array):
    data = _bytes_of(array)
    assert data[0] == ARRAY
    for copy in (decode(data), decode(memoryview(data), False)):
        assert same(array, copy) and copy.strides == array.copy('F' if array.flags.fnc else 'C').strides


@examples(100)
@given(inner, st.booleans())
def test_copy_is_writable_and_view_is_not(array, inside):
    data = bytearray(_bytes_of([array] if inside else array))
    kept = bytes(data)
    record = memoryview(data).toreadonly()
    def get(writable):
        found = decode(record, writable)
        return found[0] if inside else found
    copy, view = get(True), get(False)
    assert same(array, copy)
    if array.flags.writeable or not inside: assert copy.flags.writeable  # a read-only one inside a value stays so, by numpy's own pickle
    if copy.nbytes and copy.flags.writeable:
        copy.view(np.uint8, np.ndarray).fill(7) if copy.flags.c_contiguous and copy.ndim and not copy.dtype.hasobject else copy.fill(copy.flat[0])
        assert data == kept, 'the record was written to'
    if data[0] == ARRAY and array.nbytes:
        place = view.__array_interface__['data'][0] - np.frombuffer(record, np.uint8).__array_interface__['data'][0]
        assert not view.flags.writeable and 0 < place < len(data) and not place % ALIGNMENT


@examples(60)
@given(st.lists(arrays.filter(_is_buffer), min_size=1, max_size=4))
def test_arrays_within_a_value_lie_at_multiples_of_64_bytes(some):
    data = _bytes_of(some)
    assert data[0] == BUFFERS
    start = np.frombuffer(data, np.uint8).__array_interface__['data'][0]
    for found, one in zip(decode(memoryview(data), False), some):
        assert same(one, found)
        if found.base is not None and not found.flags.writeable: assert not (found.__array_interface__['data'][0] - start)%ALIGNMENT


@examples(40)
@given(st.integers(), st.lists(inner, max_size=3), st.integers(1, 5))
def test_one_array_met_twice_stays_one(n, some, times):
    found = decode(_bytes_of([some]*times + [{n: some}]))
    assert all(o is found[0] for o in found[:-1]) and found[-1][n] is found[0] and same(some, found[0])


@examples(100)
@given(st.one_of(st.none(), st.dictionaries(st.text(), values, max_size=3)), buffers)
def test_user_record_comes_back(metadata, payload):
    record = encode_user(metadata, payload)
    data = _join(record)
    meta, found = decode_user(data)
    assert len(record) == len(data) and same(metadata, meta)
    expected = payload.tobytes() if isinstance(payload, (np.ndarray, memoryview, array.array)) else bytes(payload)
    assert bytes(found) == bytes(as_bytes(payload)) == expected
    start = np.frombuffer(data, np.uint8).__array_interface__['data'][0]
    if expected: assert not (np.frombuffer(found, np.uint8).__array_interface__['data'][0] - start)%ALIGNMENT


def test_what_cannot_be_stored():
    for value in ((o for o in 'ab'), threading.Lock(), [1, {'deep': threading.Lock()}]):
        with pytest.raises(EncodeError, match='cannot store a value of type'): encode(value)


@examples(25)
@given(st.data())
def test_frame_comes_back(data):
    pd = pytest.importorskip('pandas')
    from hypothesis.extra.pandas import column, data_frames
    kinds = st.sampled_from(['int64', 'float32', 'bool', 'datetime64[ns]', 'complex128', 'uint8', 'timedelta64[ns]'])
    columns = [column(f'c{i}', dtype=np.dtype(kind)) for i, kind in enumerate(data.draw(st.lists(kinds, max_size=4)))]
    frame = data.draw(data_frames(columns))
    frame['text'], frame['kind'] = 'é', pd.Categorical(['a']*len(frame), ['a', 'b'])
    frame.attrs['unit'] = 'm'
    record = _bytes_of(frame)
    for found in (decode(record), decode(memoryview(record), False)):
        pd.testing.assert_frame_equal(frame, found)
        assert found.attrs == frame.attrs and list(found.dtypes) == list(frame.dtypes)


def test_arrow_and_indexed_frames_come_back():
    pd = pytest.importorskip('pandas')
    pytest.importorskip('pyarrow')
    frame = pd.DataFrame(dict(a=pd.array([1, None, 3], 'int64[pyarrow]'), b=pd.array(['x', None, 'yy'], 'string[pyarrow]'), c=pd.array([1, None, 3], 'Int64')),
                         index=pd.MultiIndex.from_product([['p'], pd.date_range('2024-03-31', periods=3, freq='h', tz='Europe/Paris')]))
    pd.testing.assert_frame_equal(frame, decode(_bytes_of(frame)))
    assert not len(decode(_bytes_of(frame[:0]))) and decode(_bytes_of(frame.b)).equals(frame.b)


def test_record_cut_short_is_found():
    "Every beginning of a record that holds nothing of a user's class is refused, at the latest by `verify`"
    user = _join(encode_user({'a': 1}, b'payload'))
    for data in [_bytes_of(o) for o in ([1, 'text', 2.5, None, {b'k': (1,)}], np.arange(5), [np.arange(5), np.zeros((2, 3))], 'a'*300, 7, b'', None)] + [user]:
        for n in range(len(data) if data is not user else user.index(b'payload')):
            with pytest.raises(pk.ParkitError):
                verify(data[:n])
                decode_user(data[:n]) if data is user else decode(data[:n])


# --- in a `Dict`

@pytest.fixture
def d(tmp_path):
    "A `Dict` in a scratch namespace of a site where values from 200 bytes up are blobs"
    site = pk.set_site(pk.Site(tmp_path/'site', inline_limit=200))
    pk.Namespace('scratch', durable=False)
    yield pk.Dict('scratch/d')
    site.close()

def test_value_comes_back_from_a_dict(d):
    "Small ones and blobs, plain and from a snapshot; then once more, all of them in another process"
    kept = {}
    @examples(60)
    @given(st.lists(values, min_size=1, max_size=5))
    def check(some):
        for i, value in enumerate(some):
            d[i] = value
            assert same(value, d[i])
        with pk.snapshot(d): assert all(same(value, d[i]) for i, value in enumerate(some))
        kept[len(kept)] = some
    check()
    d['kept'] = dict(list(kept.items())[:40])
    assert run(d.site, 'd = pk.Dict("scratch/d"); from test_codecs import same; kept = d["kept"]; d["again"] = kept; say(len(kept))') == min(40, len(kept))
    assert same(d['kept'], d['again'])


class _Text(pk.Dict):
    "Values are text, stored as the user pleases"
    def encode_value(self, value): return value.encode('utf-16', 'surrogatepass')
    def decode_value(self, data, metadata=None): return bytes(data).decode('utf-16', 'surrogatepass'), metadata
    def get_metadata(self, value): return {'length': len(value)}

def test_users_own_encoding_comes_back_from_a_dict(d):
    t = _Text('scratch/t')
    @examples(60)
    @given(hashables, text)
    def check(key, value):
        t[key] = value
        assert t[key] == (value, {'length': len(value)})
        with pk.snapshot(t): assert t[key] == (value, {'length': len(value)})
    check()


# --- keys: equality

class Colour(enum.IntEnum): RED = 1
class Mood(str, enum.Enum): GOOD = 'good'
class Text(str): pass
class Octets(bytes): pass
Point = namedtuple('Point', 'x y')

few = st.integers(-2, 2)
alike = st.one_of(few, few.map(float), few.map(Fraction), few.map(complex), st.sampled_from([True, False, -0.0, Colour.RED, Fraction(1, 2), .5, 1j, complex(-0.0, 1), math.inf, -math.inf]),
                  st.sampled_from(['', 'good', '\0', Mood.GOOD, Text('good'), np.str_('good'), Text(''), b'', b'good', Octets(b'good'), np.bytes_(b'good'), b'\0', None, ()]),
                  st.sampled_from([datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2024, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), date(2024, 1, 1)]),
                  st.sampled_from([UUID(int=1), UUID(int=2), Path('a/b'), Path('a', 'b'), PurePath('a/b'), PurePath('a'), Path('/a'), Path()]))
decimals = st.one_of(alike, few.map(Decimal), st.sampled_from([Decimal('0.50'), Decimal('-0'), Decimal('Infinity')]))
numpys = st.one_of(alike, few.map(np.int8), few.map(np.float32), few.map(np.float64), st.sampled_from([np.True_, np.False_, np.float16(.5), np.complex64(1j), np.float64('inf')]))
def _collections(of): return st.recursive(of, lambda o: st.one_of(st.tuples(o), st.tuples(o, o), st.builds(Point, o, o), st.frozensets(o, max_size=3)), max_leaves=5)
families = _collections(decimals), _collections(numpys)  # `Decimal(1) == np.int8(1)` is a TypeError

@examples(800)
@given(st.one_of(*[st.tuples(o, o) for o in families]))
@example((np.str_('good'), 'good'))
@example((np.bytes_(b'good'), b'good'))
@example((complex(-0.0, 1), 1j))
@example((np.longdouble(1), 1))
def test_trap_06_keys_are_equal_where_pythons_are(pair): assert len({encode_key(o) for o in pair}) == len(set(pair))

@examples(300)
@given(moments, st.sampled_from(['same', 'utc', 'fold', 'later']))
def test_moments_are_equal_where_pythons_are(a, how):
    b = dict(same=a, utc=a.astimezone(timezone.utc) if a.tzinfo else a, fold=a.replace(fold=1 - a.fold), later=a + timedelta(microseconds=1))[how]
    if a != b and hash(a) == hash(b) and how in ('utc', 'fold'): return  # in an hour that comes twice; see below
    assert (encode_key(a) == encode_key(b)) == (a == b)

def test_hour_that_comes_twice():
    "To Python the two are one key"
    first = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo('Europe/Paris'))
    second = first.replace(fold=1)
    assert {first: 1, second: 2} == {first: 2} and encode_key(first) == encode_key(second)
    assert second != second.astimezone(timezone.utc) and encode_key(second) != encode_key(second.astimezone(timezone.utc))

@examples(300)
@given(hashables)
def test_no_two_keys_share_their_bytes(key):
    "What a key's bytes say is that key, or one equal to it"
    again = decode_key(encode_key(key))
    if isinstance(key, datetime): return  # an aware one comes back as UTC without its zone
    if type(key) in (int, float, str, bytes, bool, type(None), UUID, PosixPath, date): assert again == key


def test_every_nan_is_one_key():
    assert len({encode_key(o) for o in (math.nan, float('nan'), -math.nan, np.float64('nan'), np.float32('nan'), Decimal('NaN'), np.longdouble('nan'))}) == 1


def test_other_keys(d):
    for key in (int, float, np.timedelta64(5, 's'), np.datetime64('2020-01-01'), timedelta(1), len, ..., range(3), Colour, time(1, 2), np.dtype('i4'), slice, (int, float)):
        d[key] = 1
        assert d[key] == 1 and list(d) == [key] and same(next(iter(d)), key)
        d.clear()


def test_what_cannot_be_a_key():
    for key in ([], {}, set(), (1, []), Decimal('sNaN'), bytearray(b'a'), np.zeros(2), np.array([5]), np.array(5)):
        with pytest.raises(TypeError): encode_key(key)


# --- keys: order

numbers = st.one_of(st.integers(), st.integers(-2**70, 2**70), st.integers().map(lambda n: n**31), st.floats(allow_nan=False), st.fractions(), st.fractions(max_denominator=30), st.decimals(allow_nan=False),
                    st.builds(lambda n, e: Decimal(n).scaleb(e), st.integers(-10**9, 10**9), st.integers(-400, 60)), st.builds(lambda n, e: Fraction(n, 3)*Fraction(2)**e, st.integers(-9, 9), st.integers(-400, 9)))
orders = dict(number=numbers, text=text, bytes=st.one_of(st.binary(), st.lists(st.sampled_from(b'\0\x01\xfe\xff')).map(bytes)), bool=st.booleans(), uuid=st.uuids(), date=st.dates(), naive=st.datetimes(),
              aware=st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.builds(timezone, st.integers(-1439, 1439).map(lambda n: timedelta(minutes=n)))))
for kind in list(orders): orders[f'({kind}, int)'] = st.tuples(orders[kind], st.integers(-300, 300))
orders['(number, text)'] = st.tuples(numbers, text)
orders['tuple of text'] = st.lists(text, max_size=3).map(tuple)
orders['tuple of numbers'] = st.lists(numbers, max_size=3).map(tuple)
orders['nested'] = st.tuples(st.lists(text, max_size=2).map(tuple), st.tuples(st.integers(), st.lists(st.integers(0, 3), max_size=3).map(tuple)))

def _rank(key):
    "What Python can compare exactly, whatever the kinds of numbers"
    if isinstance(key, tuple): return tuple(map(_rank, key))
    return key if not isinstance(key, (int, float, Decimal, Fraction)) or abs(key) == math.inf else Fraction(key)

@examples(1000)
@given(st.sampled_from(list(orders)).flatmap(lambda kind: st.lists(orders[kind], min_size=2, max_size=8)))
def test_keys_keep_their_order(keys): assert list(map(_rank, sorted(keys, key=encode_key))) == sorted(map(_rank, keys))

def test_tiny_numbers_keep_their_order():
    keys = [Decimal('1e-400'), Decimal('3e-400'), Decimal('1e-100'), 1e-90, Decimal('1.1e-90'), Fraction(1, 3*2**280), Decimal('1e-80'), Fraction(1, 3), .5]
    assert sorted(reversed(keys), key=encode_key) == keys

@examples(150)
@given(st.lists(st.one_of(st.none(), numbers, text, st.binary(), st.tuples(numbers), st.datetimes(), st.dates(), st.uuids(), st.sampled_from([Path('a/b'), PurePath('c')]), st.frozensets(text)), max_size=12))
def test_types_have_an_order_of_their_own(keys):
    places = [type(None), (int, float, Fraction, Decimal), str, bytes, tuple, datetime, date, UUID, PurePath, frozenset]
    found = [next(i for i, t in enumerate(places) if isinstance(k, t)) for k in sorted(keys, key=encode_key)]
    assert found == sorted(found)


# --- keys: back again

@examples(300)
@given(st.one_of(hashables, *families))
@example(np.complex64(1j))
@example(complex(-0.0, 1))
@example(Fraction(10**400*2 + 1, 2))
def test_key_comes_back_as_first_stored(key):
    kept, record = split_key(with_key(key, b'\x80rest'))
    assert record == b'\x80rest' and same(key, decode_key(encode_key(key)) if kept is None else decode(kept))

def test_keys_come_back_from_a_dict(d):
    @examples(80)
    @given(st.one_of(st.lists(st.one_of(hashables, families[0]), max_size=12), st.lists(families[1], max_size=12)), st.integers(0, 10**6))
    def check(keys, size):
        d.clear()
        expected = {}
        for i, key in enumerate(keys):
            expected[key] = d[key] = 'v'*(size % 400) + str(i)
        found = dict(d)
        assert found == expected and len(d) == len(expected)
        first = {encode_key(k): k for k in expected}
        assert all(same(first[encode_key(k)], k) for k in found)
        assert [encode_key(k) for k in d] == sorted(first)
        for key in expected: del d[key]
        assert not len(d) and not list(d)
    check()


# --- long keys

ends = st.sampled_from(['', '\0', 'a', 'aa', 'b', '\uffff'])
lengths = st.sampled_from([0, 1, 100, 467, 468, 469, 470, 471, 472, 473, 480, 941, 942, 943, 1000, 1500])
long_text = st.builds(lambda n, end, m, more: 'x'*n + end + 'x'*m + more, lengths, ends, lengths, ends)
longs = dict(text=long_text, bytes=long_text.map(lambda s: s.encode()), tuple=st.tuples(long_text, st.integers(0, 3), long_text), integer=st.builds(lambda n, m: (1 << 8*n) + m, lengths, st.integers(-2, 2)))

def test_long_keys_keep_their_order(d):
    @examples(80)
    @given(st.sampled_from(list(longs)), st.data())
    def check(kind, data):
        keys = data.draw(st.lists(longs[kind], max_size=12, unique=True))
        d.clear()
        d.update((k, i) for i, k in enumerate(keys))
        expected = sorted(keys)
        assert list(d) == expected and list(reversed(d)) == expected[::-1] and dict(d) == {k: i for i, k in enumerate(keys)}
        if not keys: return
        assert d.first()[0] == expected[0] and d.last()[0] == expected[-1]
        lo, hi = sorted(data.draw(st.tuples(*[st.one_of(longs[kind], st.sampled_from(keys))]*2)))
        for a, b in ((lo, hi), (None, hi), (lo, None), (hi, lo)):
            part = [k for k in expected if (a is None or k >= a) and (b is None or k < b)]
            assert [k for k, _ in d.range(a, b)] == part and [k for k, _ in d.range(a, b, reverse=True)] == part[::-1]
        for key in data.draw(st.lists(st.sampled_from(keys), unique=True)):
            del d[key]
            expected.remove(key)
        assert list(d) == expected and len(d) == len(expected)
        if expected: assert d.popitem()[0] == expected[-1]
    check()


# --- what a record calls is called once

class Unready:
    made = []
    def __init__(self, error): self.error = error
    def __reduce__(self): return Unready.make, (self.error,)
    @staticmethod
    def make(error):
        Unready.made.append(1)
        raise error('no')

@pytest.mark.parametrize('error', [AttributeError, ImportError, ModuleNotFoundError, ValueError])
@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: [o, np.ones(9)], lambda o: [apart((o, []))]], ids=['alone', 'with buffers', 'apart'])
def test_code_of_the_users_that_fails_as_it_is_unpickled_has_run_once(error, wrap):
    Unready.made.clear()
    with pytest.raises(pk.DecodeError, match='no'): decode(_join(encode(wrap(Unready(error)))))
    assert len(Unready.made) == 1
