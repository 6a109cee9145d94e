"""Arrays that are not plain ones of numpy, and their dtypes: back as they were, mapped, wherever they lie in a value.

A notebook shows an example of each; here are all dtypes and layouts, other processes, and the libraries that a reader may not have."""
import dataclasses, gc, itertools, os, sys

import numpy as np, pytest

import parkit as pk
from parkit.codecs import decode, encode
from helpers import run
from test_arrays import _maps_of

pytest.importorskip('hypothesis')
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as npst
from test_codecs import _filled, _join, dtypes, examples, layouts, same, shapes, _arranged

BIG = 300_000  # bytes, so that the value is a blob


def back(value, writable=True):
    "`value` from its record, which is read-only memory"
    return decode(memoryview(_join(encode(value))).toreadonly(), writable)

def mapped(d, array): return any(path.startswith(d.site.path) for path in _maps_of(array))


# --- dtypes

def said(dtype):
    "All that can be asked of a dtype"
    own = (dtype.str, dtype.char, dtype.num, dtype.kind, dtype.itemsize, dtype.alignment, dtype.isalignedstruct, dtype.flags, dtype.names,
           dtype.type, type(dtype), dict(dtype.metadata or {}))
    if dtype.subdtype: return own, dtype.shape, said(dtype.base)
    return own, [(name, said(inner), *rest) for name, (inner, *rest) in (dtype.fields or {}).items()]

def _with_metadata(dtype, metadata): return np.dtype(dtype, metadata=metadata) if metadata else dtype

def _structured(parts, align, metadata, titled, record):
    parts = [((f'title {i}', f'f{i}') if titled else f'f{i}', dtype, *shape) for i, (dtype, shape) in enumerate(parts)]
    dtype = np.dtype(parts, align=align)
    return _with_metadata(np.dtype((np.record, dtype)) if record else dtype, metadata)

def _apart(parts, gap):
    "Fields with bytes between them, the last first"
    at, offsets = gap, []
    for dtype, _ in parts:
        offsets.append(at)
        at += dtype.itemsize + gap
    names = [f'f{i}' for i in range(len(parts))]
    return np.dtype(dict(names=names[::-1], formats=[dtype for dtype, _ in parts][::-1], offsets=offsets[::-1], itemsize=at + gap))

metadata = st.one_of(st.none(), st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)), max_size=2))
letters = st.sampled_from([np.dtype(o) for o in '?bBhHiIlLqQefdgFDG'] + [np.dtype(o).newbyteorder('>') for o in 'hiIlqQfdgD'])
simple = st.builds(_with_metadata, st.one_of(letters, npst.scalar_dtypes(), st.sampled_from([np.dtype(o) for o in ('M8[25s]', '>m8[D]', 'U3', '>U2', 'S4', 'V5', 'M8')])), metadata)
def _parts(of): return st.lists(st.tuples(of, st.sampled_from([(), ((2,),), ((1, 3),)])), min_size=1, max_size=3)
def _of_parts(of): return st.one_of(st.builds(_structured, _parts(of), st.booleans(), metadata, st.booleans(), st.booleans()),
                                    st.builds(_apart, _parts(of), st.integers(0, 5)))
all_dtypes = st.one_of(dtypes, st.recursive(simple, _of_parts, max_leaves=4))


@examples(300)
@given(all_dtypes, st.integers(0, 3))
def test_dtype_comes_back_as_it_was(dtype, n):
    "By itself, of an array, within values, of scalars and in arrays of objects: with all there is to it, though an equal one has been there before"
    array = _filled(dtype, (n,), 0) if dtype.subdtype is None else np.zeros(n, dtype)
    assert said(back(dtype)) == said(back([dtype])[0]) == said(dtype)
    dtype = array.dtype
    for found in (back(array), back([array])[0], back({'a': (array,)})['a'][0], back([array[::2]])[0]):
        assert said(found.dtype) == said(dtype)
    records = array.view(np.recarray)
    assert same(array, back([array])[0]) and said(back(records).dtype) == said(records.dtype)
    if n:
        objects = np.empty(2, object)
        objects[:] = [array, array[0]]
        assert said(back(objects)[0].dtype) == said(dtype)
        if array[0].dtype.char != 'M' or dtype.isnative: assert type(back([array[0]])[0]) is type(array[0])


def test_one_of_equal_dtypes_does_not_stand_for_another():
    "In any order: what was stored first must not decide"
    plain = np.dtype([('a', 'i4'), ('b', 'f8')])
    equal = [plain, np.dtype([('a', 'i4', ()), ('b', 'f8')], metadata={'unit': 'm'}), np.dtype([('a', np.dtype('i4', metadata={'x': 1})), ('b', 'f8')])]
    kinds = [[np.dtype('l'), np.dtype('q'), np.dtype('l', metadata={'u': 1}), np.dtype('l', metadata={'u': 2})], equal,
             [np.dtype('i4,f8', align=True), np.dtype(dict(names=['f0', 'f1'], formats=['i4', 'f8'], offsets=[0, 8], itemsize=16))]]
    for some in kinds:
        for order in itertools.permutations(some):
            for dtype in order * 2:
                assert said(back(np.zeros(2, dtype)).dtype) == said(dtype) == said(back([np.zeros(2, dtype)])[0].dtype) == said(back(dtype))


def test_names_changed_later_are_nobody_elses(d):
    "The names of a dtype can be set in place"
    array = np.zeros(2, [('a', 'i4'), ('b', [('c', 'i4')])])
    d['x'] = array
    first, second = d['x'], d['x']
    first.dtype.names = 'u', 'v'
    first.dtype['v'].names = 'w',
    assert second.dtype.names == d['x'].dtype.names == ('a', 'b') and d['x'].dtype['b'].names == second.dtype['b'].names == ('c',)
    array.dtype.names = 'k', 'l'
    d['y'] = array
    array.dtype['l'].names = 'm',
    d['z'] = array
    assert d['y'].dtype.names == ('k', 'l') and d['y'].dtype['l'].names == ('c',) and d['z'].dtype['l'].names == ('m',)


def test_dtypes_of_ml_dtypes_keep_their_identity():
    ml_dtypes = pytest.importorskip('ml_dtypes')
    kinds = [np.dtype(o) for o in vars(ml_dtypes).values() if isinstance(o, type) and issubclass(o, np.generic)]
    assert len(kinds) > 5
    for dtype in kinds:
        array = np.arange(2).astype(dtype)
        for found in (back(array), back([array])[0], back(np.zeros(2, [('a', dtype)]))['a'], back(np.ma.array(array))):
            assert said(found.dtype) == said(dtype)
        assert back(array).tobytes() == array.tobytes() and said(back(dtype)) == said(dtype) and type(back([array[1]])[0]) is dtype.type


class _Own(np.void): pass

def test_dtype_with_a_class_of_its_own():
    dtype = np.dtype((_Own, [('a', 'i4')]))
    assert back(np.zeros(2, dtype)).dtype.type is _Own and type(back([np.zeros(2, dtype)])[0][0]) is _Own


@pytest.mark.skipif(not hasattr(np.dtypes, 'StringDType'), reason='numpy 2')
def test_text_of_any_length():
    for dtype in (np.dtypes.StringDType(), np.dtypes.StringDType(coerce=False), np.dtypes.StringDType(na_object=None), np.dtypes.StringDType(na_object=np.nan)):
        array = np.array(['a', 'b'*100, ''], dtype)
        for found in (back(array), back([array])[0]): assert found.dtype == dtype and found.tolist() == array.tolist() and found.dtype.coerce == dtype.coerce
    with pytest.raises(pk.EncodeError, match='cannot store the dtype|object'): encode(np.array(['a'], np.dtypes.StringDType(na_object=object())))


def test_what_a_dtype_cannot_keep_is_refused():
    import threading
    dtype = np.dtype('i4', metadata={'lock': threading.Lock()})
    for value in (dtype, np.zeros(2, dtype), [np.zeros(2, dtype)]):
        with pytest.raises(pk.EncodeError, match='lock'): encode(value)


# --- arrays within values

@dataclasses.dataclass
class Holder: array: object

ways = dict(list=lambda a: [a], dict=lambda a: {'k': {'a': a}}, instance=Holder, objects=lambda a: np.array([None, Holder(a)], object))
inside = dict(list=lambda v: v[0], dict=lambda v: v['k']['a'], instance=lambda v: v.array, objects=lambda v: v[1].array)

@examples(150)
@given(dtypes, shapes, layouts, st.integers(0, 9), st.sampled_from(sorted(ways)))
def test_array_within_a_value_comes_back_as_a_plain_one_does(dtype, shape, how, seed, way):
    "Byte order, memory order, and its own, whether or not the original could be written to"
    array = _arranged(_filled(dtype, shape, seed), how)
    array.flags.writeable = False
    value = ways[way](array)
    found, view = inside[way](back(value)), inside[way](back(value, False))
    assert same(array, found) and same(array, view) and found.flags.writeable and found.strides == back(array).strides
    assert not view.nbytes or not view.flags.writeable

@pytest.mark.parametrize('way', ways)
@pytest.mark.parametrize('dtype', ['f8', '>f8', 'M8[ns]', 'U8', 'i4,f8', 'S9'])
@pytest.mark.parametrize('zero_copy', [True, False])
def test_array_within_a_value_is_mapped(d, way, dtype, zero_copy):
    d['x'] = ways[way](np.zeros(BIG, dtype))
    with pk.snapshot(d, zero_copy=zero_copy): array = inside[way](d['x'])
    assert mapped(d, array) and array.flags.writeable != zero_copy
    if not zero_copy:
        array[0] = np.ones(1, dtype)[0]
        assert inside[way](d['x'])[0] == np.zeros(1, dtype)[0]


def test_what_a_snapshot_gave_is_ones_own_when_stored_elsewhere(d):
    d['x'] = {'a': np.zeros(BIG), 'm': np.ma.zeros(BIG)}
    with pk.snapshot(d): view = d['x']
    d['y'] = view
    mine = d['y']
    mine['a'][0] = mine['m'][0] = 5
    assert d['y']['a'][0] == d['y']['m'][0] == view['a'][0] == 0


# --- subclasses of ndarray

class Info(np.ndarray):
    "numpy's own example of a subclass: an attribute, and no word of pickling"
    info = None
    def __array_finalize__(self, other): self.info = getattr(other, 'info', None)

class Strict(np.ndarray):
    "Its attribute is in a slot, and it finalizes nothing"
    __slots__ = 'unit',

class Pickled(Info):
    "The known recipe for pickling one"
    def __reduce__(self):
        make, args, state = super().__reduce__()
        return make, args, (*state, self.__dict__)
    def __setstate__(self, state):
        self.__dict__.update(state[-1])
        super().__setstate__(state[:-1])

class Forgetful(Info):
    "Keeps from its pickle what it can make anew"
    def __reduce__(self):
        make, args, state = super().__reduce__()
        return make, args, (*state, self.info)
    def __setstate__(self, state):
        self.info, self.cache = state[-1], 'made anew'
        super().__setstate__(state[:-1])

def _info(cls, array, info):
    array = array.view(cls)
    array.info = info
    return array

@pytest.mark.parametrize('cls', [Info, Pickled])
@pytest.mark.parametrize('order', ['C', 'F', 'strided', '0-d', 'empty', 'objects'])
def test_subclass_keeps_its_attributes(cls, order):
    data = dict(C=np.arange(6).reshape(2, 3), F=np.asfortranarray(np.arange(6).reshape(2, 3)), strided=np.arange(9)[::2], empty=np.zeros((0, 3)),
                objects=np.array([1, 'a', None], object))
    array = _info(cls, data.get(order, np.array(3.5)), {'unit': ['m']})
    for found in (back(array), back([array])[0], back(array, False)):
        assert type(found) is cls and found.info == {'unit': ['m']} and found.shape == array.shape and found.dtype == array.dtype
        assert found.tolist() == array.tolist() and vars(found) == vars(array)

def test_subclass_with_slots():
    array = np.arange(3).view(Strict)
    array.unit = 'm'
    assert back(array).unit == 'm' and back(array).tolist() == [0, 1, 2] and not hasattr(back(np.arange(3).view(Strict)), 'unit')

def test_subclass_that_decides_for_itself_does():
    array = _info(Forgetful, np.arange(BIG), 'm')
    array.cache = lambda: None
    found = back(array)
    assert type(found) is Forgetful and (found.info, found.cache) == ('m', 'made anew') and (found == array).all()

class Difficult(np.ndarray):
    "Cannot be seen as itself, so its attributes are lost by numpy's pickle"
    def __array_finalize__(self, other):
        if other is not None and not hasattr(other, 'key'): raise ValueError('not from a plain array')

def test_attributes_that_would_be_lost_are_refused():
    array = np.ndarray.__new__(Difficult, (2,), 'i4')
    array.key = 5
    with pytest.raises(pk.EncodeError, match='cannot keep the attributes key of a Difficult; give the class a `__reduce__`'): encode(array)

@pytest.mark.parametrize('cls', [Info, Pickled, np.matrix, np.ma.MaskedArray])
@pytest.mark.parametrize('zero_copy', [True, False])
def test_subclass_is_mapped(d, cls, zero_copy):
    array = np.zeros((2, BIG)).view(cls)
    d['x'], d['y'] = array, [array]
    with pk.snapshot(d, zero_copy=zero_copy): some = d['x'], d['y'][0]
    for found in some:
        assert type(found) is cls and mapped(d, found) and found.flags.writeable != zero_copy
        if not zero_copy: found[0, 0] = 5
    assert d['x'][0, 0] == d['y'][0][0, 0] == 0

def test_matrix_record_array_and_chararray():
    for array in (np.matrix('1 2; 3 4'), np.rec.array([(1, 2.5)], dtype=[('a', 'i4'), ('b', 'f8')]), np.char.array(['a', 'bc']), np.rec.fromarrays([[1, 2], ['a', 'b']], names='x,y')):
        found = back([array])[0]
        assert type(found) is type(array) and said(found.dtype) == said(array.dtype) and found.tolist() == array.tolist()
    assert back(np.rec.array([(1, 2.5)], names='a,b')).b[0] == 2.5 and type(back(np.rec.array([(1, 2)], names='a,b'))[0]) is np.record

def test_memmap_comes_back_as_a_plain_array(d, tmp_path):
    memmap = np.memmap(tmp_path/'data', 'i4', 'w+', shape=(BIG,))
    memmap[:] = 7
    d['x'], d['y'] = memmap, {'a': memmap[1:]}
    assert type(d['x']) is np.ndarray and (d['x'] == 7).all() and type(d['y']['a']) is np.ndarray and mapped(d, d['y']['a']) and len(d['y']['a']) == BIG - 1


# --- masked arrays

def _masked(dtype, shape, seed, how, hard, mask, fill):
    data = _arranged(_filled(dtype, shape, seed), how)
    array = np.ma.array(data, mask=np.random.default_rng(seed).integers(0, 2, data.shape).astype(bool) if mask else np.ma.nomask, hard_mask=hard)
    if fill and data.size: array.fill_value = data.flat[0]
    return array

@examples(150)
@given(dtypes, shapes, st.integers(0, 9), layouts, st.booleans(), st.booleans(), st.booleans())
def test_masked_array_comes_back(dtype, shape, seed, how, hard, mask, fill):
    array = _masked(dtype, shape, seed, how, hard, mask, fill)
    for found in (back(array), back([array])[0], back(array, False)):
        assert type(found) is np.ma.MaskedArray and same(array.data, found.data) and found.hardmask == array.hardmask and found.baseclass is array.baseclass
        assert (found.mask is np.ma.nomask) == (array.mask is np.ma.nomask) and (np.asarray(found.mask) == np.asarray(array.mask)).all()
        assert same(np.asarray(array._fill_value), np.asarray(found._fill_value)) and (array._fill_value is None) == (found._fill_value is None)

def test_masked_constants_scalars_and_matrices():
    assert back(np.ma.masked) is np.ma.masked and back([np.ma.masked])[0] is np.ma.masked
    row = np.ma.array([(1, 2.)], dtype=[('a', 'i4'), ('b', 'f8')], mask=[(0, 1)])[0]
    assert type(back(row)) is type(row) and repr(back(row)) == repr(row)
    matrix = np.ma.array(np.matrix([[1, 2]]), mask=[[0, 1]])
    assert back(matrix).baseclass is np.matrix and type(back(matrix).data) is np.matrix and repr(back(matrix)) == repr(matrix)

class Named(np.ma.MaskedArray):
    "A masked array with an attribute, as the documentation makes one"
    def __new__(cls, data, mask, name):
        self = np.ma.MaskedArray.__new__(cls, data, mask)
        self._optinfo['name'] = self.name = name
        return self

def test_subclass_of_a_masked_array():
    found = back(Named([1, 2], [0, 1], 'n'))
    assert type(found) is Named and found.name == 'n' == found._optinfo['name'] and found.tolist() == [1, None]


_class_with_arrays = '''
class Model:
    weights, masked, big = np.arange(3, dtype='>i4'), np.ma.array([1, 2], mask=[0, 1], hard_mask=True), np.zeros(10**5)
    def total(self): return int(self.weights.sum()) + len(self.big)
pk.Namespace('n', durable=False)
pk.Dict('n/d')['m'] = [Model(), Model]
@pk.task
def f(model): return model.total()
say(f(Model()).result)
pk.Pool().stop()
'''

def test_arrays_of_a_class_of_a_notebook_travel_with_it(site):
    assert run(site, _class_with_arrays) == 100_003
    model, cls = pk.Dict('n/d')['m']
    assert model.total() == 100_003 and type(model) is cls and cls.masked.hardmask and cls.weights.dtype == '>i4' and cls.weights.flags.writeable
