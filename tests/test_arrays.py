"""Big arrays: memory and maps as the system counts them, held across processes, forks and limits.

A notebook has one process, whose limits cannot be lowered and whose memory holds much else."""
import os, resource, statistics, time, uuid

import numpy as np, pytest

import parkit as pk
from parkit import storage
from helpers import Child, Fork, blobs, forked, run

MIB, GIB = 2**20, 2**30
SIZES = [800, 4096, 100_000, MIB]  # bytes: copied below 256 KiB, mapped from there up


@pytest.fixture
def d(site):
    "A `Dict` in a scratch namespace, where writing costs least"
    pk.Namespace('scratch', durable=False)
    return pk.Dict('scratch/d')

def _view(d, key):
    "A zero-copy view, kept after its snapshot"
    with pk.snapshot(d): return d[key]


# --- size

def test_big_file_gets_its_room_at_once(d, monkeypatch):
    "`numpy.save` asks for it too; written piece by piece, a file of 100 MB takes half as long again"
    seen = []
    def write_all(fd, buffers, write=storage._write_all):
        found = os.fstat(fd)
        seen.append((found.st_size, found.st_blocks*512))
        write(fd, buffers)
    monkeypatch.setattr(storage, '_write_all', write_all)
    array = np.arange(2*MIB)
    d['big'] = array
    size, room = seen.pop()
    assert size == 0 and room >= array.nbytes
    assert (d['big'] == array).all()


_five_gibibytes = '''
size, peak, busy = 5*2**30, 0, True
def anonymous():
    lines = open('/proc/self/status').read().splitlines()
    return next(1024*int(line.split()[1]) for line in lines if line.startswith('RssAnon'))
def watch():
    global peak
    while busy:
        peak = max(peak, anonymous())
        time.sleep(0.005)

d = pk.Dict('scratch/d')
places = [0, 12_345, 2**32 + 1, size - 1]
source = np.zeros(size, np.uint8)  # the system gives these zeros no memory
source[places] = [1, 2, 3, 4]
before, watcher = anonymous(), threading.Thread(target=watch)
watcher.start()
d['large'] = source
with pk.snapshot(d): view = d['large']
plain = d['large']
plain[places[0]] = 9
found = [[int(o[p]) for p in places] + [int(o[::2**24].sum()), len(o)] for o in (view, plain)]
busy = False
watcher.join()
say([found, peak - before])
'''

@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_gibibytes_take_no_memory(d):
    with Child(d.site, _five_gibibytes) as child: found, extra = child.hear(540)
    assert found == [[1, 2, 3, 4, 1, 5*GIB], [9, 2, 3, 4, 9, 5*GIB]]
    assert extra < 100*MIB, f'{extra} bytes of anonymous memory'
    d.clear()
    assert not blobs(d._store)


def _fill(d, **sizes):
    for key, size in sizes.items(): d[key] = np.ones(size, np.uint8)

def _plain(d, key): return d[key]

@pytest.mark.parametrize('read', [_view, _plain])
def test_trap_32_reading_costs_the_same_for_any_size(d, read):
    _fill(d, small=100*10**6, large=10**9)
    times = dict(small=[], large=[])
    for _ in range(500):
        for key, taken in times.items():
            start = time.thread_time()
            read(d, key)
            taken.append(time.thread_time() - start)
    small, large = (statistics.median(o) for o in times.values())
    assert large/small < 2, f'{small*1e6:.1f} µs and {large*1e6:.1f} µs'


@pytest.mark.parametrize('read', [_view, _plain])
def test_trap_32_reading_touches_no_page(d, read):
    _fill(d, large=100*10**6)
    read(d, 'large')
    def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    before = faults()
    for _ in range(100): read(d, 'large')
    assert faults() - before < 100*20, 'page faults; the array has 24,414 pages'


# --- held for as long as you like

_overwrite = '''
d, size = pk.Dict('scratch/d'), int(sys.argv[2])
value = np.empty(size, np.uint8)
say()
for i in range(3_000):
    value.fill(i%250 + 2) if size <= 4096 else value[::997].fill(i%250 + 2)
    d['a'] = value
    if i%10 == 9: del d['a']
'''

def _stays(arrays, goes_on):
    "Whether `arrays` hold ones for as long as `goes_on()`; each look takes turns with the others"
    while goes_on():
        if not all((o == 1).all() for o in arrays): return False
    return all((o == 1).all() for o in arrays)

@pytest.mark.parametrize('size', SIZES)
def test_trap_02_view_never_changes(d, size):
    d['a'] = np.ones(size, np.uint8)
    view, plain = _view(d, 'a'), d['a']
    with Child(d.site, _overwrite, size) as writer:
        parent = os.getpid()
        def is_writing(): return os.path.exists(f'/proc/{writer.pid}/exe') and os.getppid() == parent
        with Fork(_stays, [view, plain], is_writing) as child:
            writer.hear()
            assert _stays([view, plain], lambda: writer.process.poll() is None)
            writer.wait()
            assert child.result() and 'a' not in d


@pytest.mark.parametrize('size', SIZES)
def test_trap_02_view_outlives_its_object_and_its_site_directory(site, size, tmp_path):
    other = pk.Site(tmp_path/'other')
    d = pk.Dict('d', site=other)
    d['a'] = np.ones(size, np.uint8)
    view, plain = _view(d, 'a'), d['a']
    d.drop()
    pk.Dict('d', site=other)['b'] = np.zeros(size, np.uint8)
    other.close()
    (tmp_path/'other').rename(tmp_path/'gone')
    assert (view == 1).all() and (plain == 1).all()


@pytest.mark.parametrize('size', SIZES)
def test_plain_array_is_ones_own(d, size):
    d['a'] = np.ones(size, np.uint8)
    plain, view = d['a'], _view(d, 'a')
    plain[:] = 5
    assert (view == 1).all() and (d['a'] == 1).all() and (plain == 5).all()
    with pytest.raises(ValueError, match='read-only'): view[0] = 5


@pytest.mark.parametrize('size', SIZES)
def test_trap_02_child_changes_its_own_copy_only(d, size):
    d['a'] = np.ones(size, np.uint8)
    plain = d['a']
    def change():
        plain[:] = 7
        return int(plain.sum())
    assert forked(change) == 7*size
    assert (plain == 1).all() and (d['a'] == 1).all()


# --- maps

def _maps_of(array):
    "The files of this process's maps that `array` lies in"
    place = array.__array_interface__['data'][0]
    for line in open('/proc/self/maps'):
        span, *_, path = line.split(maxsplit=5)
        lo, hi = (int(o, 16) for o in span.split('-'))
        if lo <= place < hi: yield path.strip()

@pytest.mark.parametrize('read', [_view, _plain])
def test_mapped_array_lies_in_a_file_of_the_site(d, read):
    _fill(d, small=100_000, large=MIB)
    large, small = read(d, 'large'), read(d, 'small')
    assert [path.startswith(f'{d.site.path}/scratch/@/blobs/') for path in _maps_of(large)] == [True]
    assert not any(path.startswith(d.site.path) for path in _maps_of(small))


_share = '''
d = pk.Dict('scratch/d')
if sys.argv[2] == 'view':
    with pk.snapshot(d): array = d['a']
else: array = d['a']
total = int(array.sum())  # touches every page
say(total)
hear()
found, mine = dict(Rss=0, Pss=0), False
for line in open('/proc/self/smaps'):
    name, *rest = line.split()
    if not name.endswith(':'): mine = '/scratch/@/blobs/' in line
    elif mine and name[:-1] in found: found[name[:-1]] += 1024*int(rest[0])
say(found)
hear()
'''

@pytest.mark.parametrize('kind', ['view', 'plain'])
def test_eight_processes_share_the_memory_of_an_array(d, kind):
    size = 32*MIB
    _fill(d, a=size)
    children = [Child(d.site, _share, kind) for _ in range(8)]
    try:
        assert [child.hear() for child in children] == [size]*8
        for child in children: child.say()
        for found in [child.hear() for child in children]:
            assert size <= found['Rss'] < 1.01*size
            assert found['Pss'] == pytest.approx(found['Rss']/8, rel=0.05)
    finally:
        for child in children: child.__exit__()


_hold = '''
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
d = pk.Dict('scratch/d')
if sys.argv[2] == 'view':
    with pk.snapshot(d): held = [d[i % 100] for i in range(10_000)]
else: held = [d[i % 100] for i in range(10_000)]
say([sum(int(array[-1]) for array in held), len({array.ctypes.data for array in held})])
'''

@pytest.mark.parametrize('kind, maps', [('view', 100), ('plain', 10_000)])  # views of one entry share its map
def test_trap_36_ten_thousand_arrays_held_at_once(d, kind, maps):
    for i in range(100): d[i] = np.full(300_000, i, np.uint8)
    assert run(d.site, _hold, kind) == [100*sum(range(100)), maps]


def _memory():
    "Bytes of memory and swap"
    lines = dict(line.split(':') for line in open('/proc/meminfo'))
    return sum(1024*int(lines[name].split()[0]) for name in ('MemTotal', 'SwapTotal'))

def _put_sparse(d, size):
    "Make `d['a']` an array of `size` zeros whose blob is a sparse file: its header and nothing more"
    from parkit.codecs import encode
    from parkit.storage import Blob
    hollow = np.ndarray(size, np.uint8, np.memmap(f'{d.site.path}/scratch/hollow', np.uint8, 'w+', shape=size))
    os.unlink(f'{d.site.path}/scratch/hollow')
    record, id, store = encode(hollow), uuid.uuid4().bytes, d._store
    path = f'{store.path}/new/{id.hex()}.{d.site.alive.enter()}'
    with open(path, 'wb') as file:
        file.write(next(iter(record.buffers)))
        file.truncate(len(record))
    with pk.transaction(d) as t: d._put(t._frame.txn, 'a', Blob(id, len(record), path))

def test_trap_37_private_array_larger_than_memory(d):
    size = _memory() + 4*GIB
    try: _put_sparse(d, size)
    except OSError as e: pytest.skip(f'no sparse file of {size} bytes can be made here: {e}')
    array = d['a']
    array[::size//100] = 7
    assert len(array) == size and int(array[::size//1000].sum()) > 0 and array[-1] == 0 and array.flags.writeable


# --- what a subclass may return

class Encoded(pk.Dict):
    "Stores arrays as `encode_value` gets them: whatever order they have"
    def encode_value(self, value): return value
    def decode_value(self, bytestring): return np.frombuffer(bytestring, np.int64)

@pytest.mark.parametrize('n', [10, 300])  # the second is mapped
@pytest.mark.parametrize('make', [
    np.asfortranarray, lambda a: a[::2, 1::3], lambda a: a[:0], lambda a: a[::-1], lambda a: a.T, lambda a: a[3, 4],
], ids='fortran strided empty reversed transposed scalar'.split())
def test_trap_40_encode_value_may_return_any_array(d, n, make):
    encoded, array = Encoded('scratch/encoded'), make(np.arange(n*n).reshape(n, n))
    encoded['a'] = array
    assert (encoded['a'] == array.ravel()).all()
    with pk.snapshot(encoded):
        assert encoded['a'].tobytes() == array.tobytes() and not encoded['a'].flags.writeable


# --- buffers of other libraries

def _is_mapped(d, array): return any(path.startswith(d.site.path) for path in _maps_of(array))


@pytest.mark.parametrize('zero_copy', [True, False])
def test_columns_of_a_data_frame_are_mapped(d, zero_copy):
    pd = pytest.importorskip('pandas')
    d['frame'] = pd.DataFrame({'a': np.arange(10**6), 'b': np.arange(10**6)/2})
    with pk.snapshot(d, zero_copy=zero_copy): frame = d['frame']
    assert frame['b'].sum() == np.arange(10**6).sum()/2 and frame['a'][999_999] == 999_999
    assert all(_is_mapped(d, frame[c].to_numpy()) for c in 'ab')


def test_columns_of_an_arrow_table_are_mapped(d):
    pa = pytest.importorskip('pyarrow')
    d['table'] = pa.table({'a': np.arange(10**6), 'text': ['some text']*10**5*10})
    with pk.snapshot(d): table = d['table']
    assert table['a'].to_numpy().sum() == np.arange(10**6).sum() and table['text'][999_999].as_py() == 'some text'
    assert _is_mapped(d, table['a'].chunk(0).to_numpy())


def test_arrays_inside_a_dict_are_mapped(d):
    d['x'] = dict(big=np.arange(10**6), small=[np.arange(3)], text='text')
    with pk.snapshot(d): view = d['x']
    assert _is_mapped(d, view['big']) and not view['big'].flags.writeable and view['small'][0].tolist() == [0, 1, 2]
    mine = d['x']['big']
    mine[0] = 5
    assert d['x']['big'][0] == 0



def test_ndarray_of_an_array_is_one_read_of_it(site):
    "Item by item, each would be a snapshot of its own: slow, and torn where another process writes"
    a = pk.Array('numbers')
    a.extend(range(1000))
    reads, real = [], pk.Array.__getitem__
    class Counted(pk.Array):
        def __getitem__(self, i): reads.append(i); return real(self, i)
    b = Counted()
    b.extend(a)
    for made in (np.asarray(a), np.array(b), np.asarray(b, dtype='f4'), np.add(a, 0), np.concatenate([a, b])[:1000]):
        assert type(made) is np.ndarray and made.tolist() == list(range(1000)) and made.flags.writeable
    assert reads == [] and np.asarray(b, 'f4').dtype == 'f4' and np.asarray(pk.Array()).shape == (0,)
    with pytest.raises(ValueError, match='has no memory of one piece'): np.array(a, copy=False)
