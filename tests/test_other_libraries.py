"""Tensors, frames and arrays of other libraries, and the hook by which any library can say how its values are stored.

Each library is large, and its tests are skipped where it is missing. Two processes take part: what writes, and what reads with or without the library."""
import copyreg, importlib, os, signal, sys

import numpy as np, pytest

import parkit as pk
from parkit.codecs import BUFFERS, decode, encode
from helpers import Child, blobs, run
from test_other_arrays import BIG, back, mapped
from test_codecs import _join, examples
from hypothesis import given, strategies as st

try: import polars
except ImportError: pass
else: polars.DataFrame({'a': [1]}).lazy().collect()  # its threads open descriptors, once


# --- torch

@pytest.fixture
def torch(): return pytest.importorskip('torch')

layouts = dict(
    plain=lambda t: t, transposed=lambda t: t.mT if t.ndim > 1 else t, row=lambda t: t[0] if t.ndim and len(t) else t, every_second=lambda t: t[::2] if t.ndim else t,
    expanded=lambda t: t.unsqueeze(0).expand(3, *t.shape), one=lambda t: t.reshape(-1)[:1].expand(4) if t.numel() else t, column=lambda t: t[..., :1] if t.ndim else t,
    channels_last=lambda t: t.reshape(1, 2, -1, 1).contiguous(memory_format=__import__('torch').channels_last) if t.numel() % 2 == 0 and t.numel() else t,
    windows=lambda t: t.reshape(-1).unfold(0, 2, 1) if t.numel() > 1 else t, empty=lambda t: t.reshape(-1)[:0], cube=lambda t: t.permute(tuple(reversed(range(t.ndim)))))
dtypes = ('float64', 'float32', 'float16', 'bfloat16', 'float8_e5m2', 'float8_e4m3fn', 'complex64', 'complex128', 'bool', 'uint8', 'int8', 'int16', 'int32', 'int64', 'uint16', 'uint32', 'uint64')

def is_same_tensor(a, b):
    import torch
    own = [(type(o), o.dtype, o.shape, o.requires_grad, o.is_leaf, o.device, o.layout, vars(o)) for o in (a, b)]
    def content(o): return o.detach().as_subclass(torch.Tensor).resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist() if o.numel() else []
    return own[0] == own[1] and content(a) == content(b) and (a.grad is None) == (b.grad is None) and (a.grad is None or is_same_tensor(a.grad, b.grad))

@examples(250)
@given(st.sampled_from(dtypes), st.lists(st.integers(0, 4), max_size=4), st.sampled_from(sorted(layouts)), st.booleans(), st.booleans(), st.integers(0, 9))
def test_tensor_comes_back(name, shape, layout, writable, conj, seed):
    torch = pytest.importorskip('torch')
    tensor = torch.arange(seed, seed + int(np.prod(shape))).to(getattr(torch, name)).reshape(shape)
    tensor = layouts[layout](tensor)
    if conj and tensor.is_complex(): tensor = tensor.conj()
    for found in (back(tensor, writable), back([{'t': tensor}], writable)[0]['t']):
        assert is_same_tensor(tensor, found)
        if layout not in ('row', 'every_second', 'column', 'windows'): assert found.stride() == tensor.stride()
        assert found.untyped_storage().nbytes() <= max(tensor.numel(), 1)*tensor.element_size()
        if found.numel() and layout not in ('expanded', 'one'): found.zero_()
    assert is_same_tensor(tensor, back(tensor))

def test_tensor_keeps_grad_attributes_and_class(torch):
    class Mine(torch.Tensor): pass
    leaf = torch.ones(2, 3, requires_grad=True)
    (leaf*2).sum().backward()
    parameter = torch.nn.Parameter(torch.ones(3).half(), requires_grad=False)
    mine = torch.ones(2).as_subclass(Mine)
    leaf.note = mine.note = ['a']
    for tensor in (leaf, parameter, mine, torch.nn.Parameter(torch.eye(3))):
        for found in (back(tensor), back([tensor])[0], back(tensor, False)): assert is_same_tensor(tensor, found)
    assert (back(leaf).grad == 2).all() and isinstance(back(parameter), torch.nn.Parameter)
    one, other = back([leaf, leaf])
    assert one is other

def test_model_and_its_state_come_back(torch, d):
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300))
    model[0].weight.data = model[0].weight.data.clone()
    d['model'], d['state'] = model, model.state_dict()
    x = torch.randn(4, 300)
    assert torch.equal(model.eval()(x), d['model'].eval()(x))
    with pk.snapshot(d): state, found = d['state'], d['model']
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and mapped(d, state['0.weight'].numpy()) and mapped(d, found[0].weight.detach().numpy())
    optimizer = torch.optim.SGD(found.parameters(), lr=1)  # trains in memory of its own
    found.train()(x).sum().backward()
    optimizer.step()
    assert torch.equal(d['state']['0.weight'], model[0].weight) and not torch.equal(found[0].weight, model[0].weight)

@pytest.mark.parametrize('make, words', [
    (lambda torch: torch.ones(2, requires_grad=True)*2, 'with the graph that it was computed by: store tensor.detach()'),
    (lambda torch: _hooked(torch), 'with hooks: remove them, or store tensor.detach()')])
def test_what_a_tensor_would_lose_is_refused(torch, make, words):
    for value in (make(torch), [make(torch)]):
        with pytest.raises(pk.EncodeError) as caught: encode(value)
        assert words in str(caught.value)
    assert back(make(torch).detach()).tolist() == make(torch).detach().tolist()

def _hooked(torch):
    tensor = torch.ones(2, requires_grad=True)
    tensor.register_hook(print)
    return tensor

def test_what_is_left_to_torch_comes_back(torch):
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(back(sparse).to_dense(), torch.eye(3)) and back(torch.empty(3, device='meta')).device.type == 'meta'
    assert back([torch.float32, torch.device('cpu'), torch.Size([2])]) == [torch.float32, torch.device('cpu'), torch.Size([2])]

def test_rows_of_a_tensor_take_the_room_of_rows(torch, d):
    tensor = torch.zeros(200, 2**14)
    for i, row in enumerate(tensor): d[i] = row
    size = sum(len(encode(row)) for row in tensor)
    assert tensor.nbytes < size < 1.05*tensor.nbytes and len(encode([tensor[0], tensor[1]])) < 3*tensor[0].nbytes

@pytest.mark.parametrize('zero_copy', [True, False])
@pytest.mark.parametrize('n', [10, BIG])
@pytest.mark.parametrize('inside', [True, False])
def test_tensor_can_be_written_to_wherever_it_was_read(torch, d, zero_copy, n, inside):
    "A tensor over a read-only map would end the process at the first write"
    tensor = torch.zeros(n, dtype=torch.int32)
    d['t'] = {'t': tensor, 'a': np.zeros(n)} if inside else tensor
    def read(): return d['t']['t'] if inside else d['t']
    with pk.snapshot(d, zero_copy=zero_copy):
        first, second = read(), read()
        first += 1
        if inside and zero_copy: assert not d['t']['a'].flags.writeable
    with pk.transaction(d): third = read()
    third += 2
    assert (first == 1).all() and (second == 0).all() and (third == 2).all() and (read() == 0).all()
    assert mapped(d, first.numpy()) == (n == BIG)

def test_tensor_stays_right_when_its_entry_is_gone(torch, d):
    d['t'] = torch.arange(BIG)
    with pk.snapshot(d): tensor = d['t']
    plain = d['t']
    d['t'] = torch.zeros(BIG)
    del d['t']
    pk.gc()
    assert torch.equal(tensor, torch.arange(BIG)) and torch.equal(plain, tensor)

def test_reading_a_tensor_costs_the_same_for_any_size(torch, d):
    "In page faults: 100 MB are 24,414 pages"
    import resource
    d['t'] = torch.zeros(25*10**6)
    for zero_copy in (True, False):
        with pk.snapshot(d, zero_copy=zero_copy):
            d['t']
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10): d['t']
            assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10*100


# --- JAX

@pytest.mark.parametrize('zero_copy', [True, False])
def test_arrays_of_jax(d, zero_copy):
    jax = pytest.importorskip('jax')
    jnp = jax.numpy
    some = [jnp.arange(6.).reshape(2, 3), jnp.arange(6.).reshape(2, 3).T, jnp.ones((2, 3), jnp.bfloat16), jnp.zeros((0, 3)), jnp.array(True), jnp.asarray(3), jnp.ones(BIG), jnp.float8_e5m2(1)]
    d['x'] = dict(enumerate(some))
    with pk.snapshot(d, zero_copy=zero_copy): found = d['x']
    for i, array in enumerate(some):
        assert isinstance(found[i], jax.Array) and (found[i].dtype, found[i].shape, found[i].weak_type) == (array.dtype, array.shape, array.weak_type)
        assert np.asarray(found[i]).tobytes() == np.asarray(array).tobytes()
    assert mapped(d, np.asarray(found[6]))
    step = jax.jit(lambda a: a.at[0].set(9), donate_argnums=0)  # may write where its argument lies
    assert step(found[6])[0] == 9 and d['x'][6][0] == 1
    key = jax.random.key(3)
    assert (jax.random.key_data(back(key)) == jax.random.key_data(key)).all()

def test_array_that_jax_would_narrow_is_refused(d):
    jax = pytest.importorskip('jax')
    assert not jax.config.jax_enable_x64
    with jax.enable_x64(True): d['x'] = jax.numpy.arange(3)
    with pytest.raises(pk.DecodeError, match='JAX makes int32 of this array of int64; set jax_enable_x64'): d['x']
    with jax.enable_x64(True): assert d['x'].dtype == np.int64


# --- Arrow, polars, pandas

def _all_kinds_of_arrow(pa):
    import datetime, decimal
    return pa.table({'i': pa.array([1, None, 3]*1000), 's': ['a', None, 'b'*20]*1000, 'd': pa.array([datetime.datetime(2026, 1, 1)]*3000), 'l': [[1], None, [2, 3]]*1000,
                     'c': pa.array(['x', 'y', None]*1000).dictionary_encode(), 'n': pa.array([decimal.Decimal('1.5')]*3000), 'b': [True, None, False]*1000,
                     'st': [{'a': 1, 'b': 'x'}]*3000})

@pytest.mark.parametrize('take', [lambda t: t, lambda t: t.slice(2998), lambda t: t.slice(1, 1), lambda t: t.slice(5, 0)])
def test_tables_of_arrow_and_slices_of_them(take):
    pa = pytest.importorskip('pyarrow')
    table = take(_all_kinds_of_arrow(pa))
    some = [table, *table.columns, *(c.chunk(0) for c in table.columns if c.num_chunks), *table.to_batches()]
    for value in some:
        for found in (back(value), back([value], False)[0]):
            assert type(found) is type(value) and found.equals(value)
            found.validate(full=True)
    assert back(table).schema.equals(table.schema, check_metadata=True)

@pytest.mark.parametrize('library', ['pyarrow', 'polars', 'pandas'])
def test_rows_of_a_table_take_the_room_of_rows(library):
    lib, pa = pytest.importorskip(library), pytest.importorskip('pyarrow')
    columns = {'a': np.arange(10**5), 't': [f'a text of some length {i}' for i in range(10**5)]}
    if library == 'pyarrow':
        table = pa.table(columns)
        some = [table.slice(7, 1), table.slice(7, 1).to_batches()[0], table['t'].chunk(0)[7:8], table['t'].slice(7, 1)]
    elif library == 'polars': some = [lib.DataFrame(columns)[7:8], lib.DataFrame(columns)['t'][7:8], lib.DataFrame(columns)['a'][7:8]]
    else: some = [lib.DataFrame(columns).iloc[7:8], lib.DataFrame(columns)['t'].iloc[7:8], lib.DataFrame(columns).astype('string[pyarrow]')['t'].iloc[7:8].array]
    assert all(len(encode(value)) < 10_000 for value in some), [len(encode(value)) for value in some]

def _all_kinds_of_polars(pl):
    import datetime
    return pl.DataFrame({'i': [1, None, 3], 's': ['a', None, 'b'*20], 'd': [datetime.date(2026, 1, 1)]*3, 't': [datetime.datetime(2026, 1, 1)]*3, 'l': [[1], None, [2, 3]],
                         'c': pl.Series(['x', 'y', None], dtype=pl.Categorical), 'e': pl.Series(['x', 'y', None], dtype=pl.Enum(['y', 'x'])), 'b': [True, None, False],
                         'st': [{'a': 1, 'b': 'x'}]*3, 'z': pl.Series([None]*3), 'dec': pl.Series(['1.5']*3).cast(pl.Decimal(10, 2)), 'u': pl.Series([1, 2, 3], dtype=pl.UInt8),
                         'bin': [b'a', b'', None], 'dur': [datetime.timedelta(seconds=1)]*3, 'arr': pl.Series([[1, 2]]*3, dtype=pl.Array(pl.Int8, 2)), 'time': [datetime.time(1)]*3,
                         'zone': pl.Series([datetime.datetime(2026, 1, 1)]*3).dt.replace_time_zone('Europe/Paris'), 'i128': pl.Series([1, 2, 3], dtype=pl.Int128),
                         'le': pl.Series([['x'], [], None], dtype=pl.List(pl.Enum(['y', 'x'])))})

def test_frames_of_polars(d):
    pl = pytest.importorskip('polars')
    frame = _all_kinds_of_polars(pl)
    for value in (frame, frame[1:], frame[:0], frame.select('i'), pl.DataFrame(), frame.clear(), pl.concat([frame, frame], rechunk=False)):
        d['x'] = value
        for found in (back(value), back([value], False)[0], d['x']):
            assert found.schema == value.schema and found.equals(value) and found.height == value.height
    ordered = pl.Series('n', [3, 1, 2]).sort(descending=True)
    for series in (ordered, ordered.sort(), pl.Series('n', [3, 1, 2]), *frame.get_columns()):
        found = back(series)
        assert found.name == series.name and found.equals(series) and found.dtype == series.dtype
        assert {k: v for k, v in found.flags.items() if k.startswith('SORTED')} == {k: v for k, v in series.flags.items() if k.startswith('SORTED')}
    with pytest.raises(pk.EncodeError, match='data of type Object is not supported'): encode(frame.with_columns(pl.Series('o', [object()]*3, dtype=pl.Object)))
    assert back(frame.lazy()).collect().equals(frame)

def test_frame_of_polars_is_mapped(d):
    pl = pytest.importorskip('polars')
    d['x'] = pl.DataFrame({'a': np.arange(BIG), 's': ['text']*BIG})
    with pk.snapshot(d): frame = d['x']
    assert mapped(d, frame['a'].to_numpy()) and frame['a'].sum() == sum(range(BIG))
    changed = frame.with_columns(pl.col('a') + 1)
    series = frame['a'].clone()
    series[0] = 5
    assert changed['a'][0] == 1 and series[0] == 5 and d['x']['a'][0] == 0 and frame['a'][0] == 0

@pytest.mark.parametrize('zero_copy', [True, False])
def test_columns_of_any_kind_of_a_frame_of_pandas_are_mapped(d, zero_copy):
    pd = pytest.importorskip('pandas')
    pytest.importorskip('pyarrow')
    n = BIG
    frame = pd.DataFrame({'f': np.arange(n)/2, 't': pd.date_range('2026', periods=n, freq='s'), 'I': pd.array(np.arange(n), 'Int64'),
                          'p': pd.array(np.arange(n), 'int64[pyarrow]'), 'c': pd.Categorical(['a', 'b']*(n//2))})
    d['x'] = frame
    with pk.snapshot(d, zero_copy=zero_copy): found = d['x']
    pd.testing.assert_frame_equal(frame, found)
    arrays = dict(f=found['f'].to_numpy(), t=found['t'].array._ndarray, I=found['I'].array._data, p=found['p'].array._pa_array.chunk(0).to_numpy(), c=found['c'].array._codes)
    assert [name for name, array in arrays.items() if not mapped(d, array)] == []


# --- where values are stored

def _some():
    "A value of each library that there is, and how it is told that one is like it"
    yield 'masked', np.ma.array([1, 2], mask=[0, 1], hard_mask=True), lambda o: (type(o), o.tolist(), o.hardmask)
    for name, make, told in [('torch', lambda m: m.ones(2, 3, dtype=m.bfloat16).T, lambda o: (o.tolist(), o.dtype, o.stride())),
                             ('polars', lambda m: m.DataFrame({'a': [1, None]}), lambda o: (o.schema, o.rows())),
                             ('jax', lambda m: m.numpy.arange(3.), lambda o: (str(type(o)), o.tolist(), o.dtype))]:
        try: module = importlib.import_module(name)
        except ImportError: continue
        if name == 'jax': importlib.import_module('jax.numpy')
        yield name, make(module), told

def test_everywhere_a_value_can_be(scratch):
    d, array, queue = pk.Dict('n/d'), pk.Array('n/a'), pk.Queue('n/q')
    @pk.task
    def echo(value, *, wrapped): return value, wrapped
    for name, value, told in _some():
        d[name] = value
        array.append([value])
        queue.put({'v': value})
        d.attribute = value
        trace = echo(value, wrapped={'v': [value]})
        result, wrapped = trace.result
        assert {*map(repr, map(told, [d[name], array[-1][0], queue.get()['v'], d.attribute, result, wrapped['v'][0]]))} == {repr(told(value))}, name
        assert [repr(told(v)) for v in next(iter(array[-1:]))] == [repr(told(value))]

def test_task_without_a_worker_process_keeps_what_it_is_given(site):
    "A tensor that is a global of a function, and one in a class of `__main__`, go through cloudpickle"
    torch = pytest.importorskip('torch')
    code = '''
import torch
weights = torch.ones(2, 3).T
class Net:
    def __init__(self): self.w, self.m = torch.ones(4)[::2], np.ma.array([1, 2], mask=[0, 1], hard_mask=True)
@pk.task
def f(net): return weights.stride(), net.w.tolist(), net.m.hardmask, net
pk.Namespace('n', durable=False)
pk.Dict('n/d')['net'] = Net()
found = f(Net()).result
say([list(found[0]), found[1], found[2], found[3].w.tolist(), pk.Dict('n/d')['net'].w.tolist()])
pk.Pool().stop()
'''
    assert run(site, code) == [[1, 3], [1, 1], True, [1, 1], [1, 1]]


_without = '''
sys.modules.update(dict.fromkeys(sys.argv[2].split(',')))  # as if they were not installed
d = pk.Dict('n/d')
say([failure(lambda: d['x']), failure(lambda: d['y']), d['z'], failure(lambda: list(d.values()))])
'''

@pytest.mark.parametrize('library', ['torch', 'jax', 'polars', 'pyarrow'])
def test_reader_without_the_library_is_told_which_it_takes(d, library):
    module = pytest.importorskip(library)
    make = dict(torch=lambda: module.ones(3), jax=lambda: __import__('jax.numpy').numpy.ones(3), polars=lambda: module.Series([1]), pyarrow=lambda: module.table({'a': [1]}))
    d['x'], d['y'], d['z'] = make[library](), {'deep': [make[library]()]}, 5
    first, second, third, _ = run(d.site, _without, library)
    assert first['type'] == second['type'] == 'DecodeError' and third == 5
    assert all(f"reading this value takes the module '{library}" in found['message'] for found in (first, second))


# --- the hook

class Cloud:
    "Points in one buffer"
    def __init__(self, name, data): self.name, self.data = name, data
class Named(Cloud): pass
class Special(Named): pass

def take_cloud(cloud): return (type(cloud), cloud.name), [cloud.data]
def make_cloud(state, buffers): return state[0](state[1], *buffers)
def take_named(cloud): return NotImplemented if cloud.name == 'itself' else take_cloud(cloud)
def make_named(state, buffers): return state[0]('named ' + state[1], *buffers)

@pytest.fixture
def codecs():
    "Codecs registered by a test are forgotten after it"
    from parkit import codecs
    before = dict(codecs._codecs)
    yield
    codecs._codecs.clear()
    codecs._codecs.update(before)
    codecs._known_codecs.clear()
    codecs._reducers.clear()

def test_registered_type_is_stored_by_its_codec(codecs, d):
    assert type(_join(encode(Cloud('a', b'x')))) is bytes and encode([Cloud('a', b'x')])[0] != BUFFERS  # known as a type without one, first
    pk.register_codec(Cloud, take_cloud, make_cloud)
    for data in (b'abc', bytearray(b'abc'), memoryview(b'aXbXc')[::2], np.arange(6, dtype='>i2').reshape(2, 3).T, np.zeros((2, 3), 'M8[s]')[:, ::2], b''):
        expected = data.tobytes() if hasattr(data, 'tobytes') else bytes(data)
        for found in (back(Cloud('a', data)), back([Cloud('a', data)])[0], back(Named('a', data))):
            assert found.name == 'a' and type(found.data) is memoryview and found.data.tobytes() == expected and not found.data.readonly
        assert back(Cloud('a', data), False).data.readonly or not expected
    d['x'] = {'c': Named('a', bytes(BIG))}
    with pk.snapshot(d): view = d['x']['c']
    assert type(view) is Named and view.data.readonly and mapped(d, np.frombuffer(view.data, np.uint8))

def test_nearest_registered_base_decides_and_may_decline(codecs):
    pk.register_codec(Named, take_named, make_named)
    pk.register_codec(f'{__name__}.Cloud', take_cloud, make_cloud)
    assert back(Special('a', b'')).name == 'named a' and back(Cloud('a', b'')).name == 'a' and back([Special('itself', b'x')])[0].name == 'itself'
    pk.register_codec(Named, take_cloud, make_cloud)
    assert back(Special('a', b'')).name == 'a', 'the newest counts'
    copyreg.pickle(Special, lambda o: (Special, ('by copyreg', b'')))
    try:
        pk.register_codec(Named, take_named, make_named)
        assert back(Special('itself', b'')).name == 'by copyreg'
    finally: del copyreg.dispatch_table[Special]

def test_types_of_copyreg_and_classes_with_a_metaclass_are_pickled_as_ever(codecs):
    class Meta(type): pass
    class Plain:
        def __reduce__(self): return str, ('reduced',)
    assert back(Plain()) == 'reduced' and back([complex(1, 2), slice(1), range(3), ..., Cloud, int]) == [complex(1, 2), slice(1), range(3), ..., Cloud, int]
    assert back([Cloud('a', b'')])[0].name == 'a'
    copyreg.pickle(Cloud, lambda o: (Cloud, ('by copyreg', b'')))
    try: assert back([Cloud('a', b'')])[0].name == 'by copyreg'
    finally: del copyreg.dispatch_table[Cloud]
    assert back([Cloud('a', b'')])[0].name == 'a'

def test_private_codec_gets_memory_that_it_may_write_to(codecs, d):
    pk.register_codec(Cloud, take_cloud, make_cloud, private=True)
    for n in (10, BIG):
        d['x'] = [Cloud('a', bytes(n)), Cloud('b', b'x'*n)]
        with pk.snapshot(d): some = d['x']
        for cloud in some: cloud.data[0] = 7
        assert [c.data[0] for c in some] == [7, 7] and [(c.data[0], c.data[-1]) for c in d['x']] == [(0, 0), (120, 120)]
        assert some[1].data[1] == some[1].data[-1] == 120

def test_codec_that_fails_names_the_value(codecs):
    def fail(value): raise ValueError('no room for clouds')
    pk.register_codec(Cloud, fail, make_cloud)
    with pytest.raises(pk.EncodeError, match='no room for clouds'): encode([Cloud('a', b'')])

_writes = '''
class Cloud:
    def __init__(self, n, data): self.n, self.data = n, data
def make(n, buffers): return Cloud(n + 1, buffers[0])
pk.register_codec(Cloud, lambda c: (c.n, [c.data]), make)
pk.Namespace('n', durable=False)
pk.Dict('n/d')['x'] = [Cloud(1, np.arange(3, dtype='u1'))]
@pk.task
def f(cloud): return cloud.n, bytes(cloud.data).hex(), [cloud]
found = f(Cloud(5, b'abc')).result
say([found[0], found[1], found[2][0].n])
pk.Pool().stop()
'''

def test_codec_of_a_notebook_needs_nothing_of_who_reads(site):
    "Neither a worker nor another notebook has registered it"
    assert run(site, _writes)[:2] == [6, b'abc'.hex()]
    assert run(site, 'c = pk.Dict("n/d")["x"][0]; say([type(c).__name__, c.n, list(c.data)])') == ['Cloud', 2, [0, 1, 2]]

def test_codecs_import_no_library():
    code = ('import sys, parkit as pk, dataclasses, tempfile; from parkit.codecs import encode\n'
            'encode([{1: dataclasses.field()}, {"a": [1]*30}]); encode(pk.Namespace)\n'
            'print([m for m in ("numpy", "torch", "jax", "polars", "pyarrow", "cloudpickle") if m in sys.modules])')
    import subprocess
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert found.stdout.strip() in ("[]", "['cloudpickle']"), found
