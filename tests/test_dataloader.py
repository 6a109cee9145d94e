"""A PyTorch `DataLoader` whose workers, forked or spawned, read their samples from a `Dict`.

PyTorch is a large thing to install for a notebook; these tests are skipped where it is missing."""
import gc, os, signal, warnings

import numpy as np, pytest
from conftest import wait_for
from helpers import Child

import parkit as pk

torch = pytest.importorskip('torch', reason='PyTorch is not installed')
from torch.utils.data import DataLoader, Dataset  # noqa: E402

WORKERS, SAMPLES, BIG = 8, 48, 300_000  # BIG: bytes, so that a sample is a blob


class Samples(Dataset):
    "Images in one `Dict`, labels in another"
    def __init__(self, images, labels): self.images, self.labels = images, labels
    def __len__(self): return SAMPLES
    def __getitem__(self, i):
        with pk.snapshot(self.images): total = int(self.images[i].sum(dtype=np.int64))  # a view, mapped from the file
        image = torch.from_numpy(self.images[i])  # a private map of one's own: torch does not warn
        return i, image[:100], total, self.labels[i], _held(self.images.site.path), os.getpid()

def _held(path):
    "How many descriptors this process has open in a site, and how many maps of its blobs"
    descriptors = 0
    for name in os.listdir('/proc/self/fd'):
        try: descriptors += os.readlink(f'/proc/self/fd/{name}').startswith(path)
        except OSError: pass  # the one that lists them
    return descriptors, sum(f'{path}/images/@/blobs/' in line for line in open('/proc/self/maps'))

def _fill(images, labels, factor):
    for i in range(SAMPLES):
        images[i] = np.full(BIG, factor*i % 251, np.uint8)
        labels[i] = np.arange(3.0)*i*factor

@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more workers than cores
@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_eight_workers_read_what_the_parent_writes_meanwhile(site, start):
    pk.Namespace('images', durable=False)
    images, labels = pk.Dict('images/train'), pk.Dict()  # one with a name, one without
    loader = DataLoader(Samples(images, labels), SAMPLES//WORKERS, shuffle=True, num_workers=WORKERS,
                        multiprocessing_context=start, persistent_workers=True)
    pids, held = set(), []
    for epoch in (1, 2, 3):
        _fill(images, labels, epoch)
        seen, totals, most = [], [], (0, 0)
        for indexes, parts, sums, rows, counts, workers in loader:
            for i, part, row in zip(indexes.tolist(), parts, rows):
                assert (part == epoch*i % 251).all() and row.tolist() == [0, i*epoch, 2*i*epoch]
            seen += indexes.tolist()
            totals += sums.tolist()
            pids |= set(workers.tolist())
            most = tuple(max(m, int(o.max())) for m, o in zip(most, counts))
            images['seen', epoch, len(seen)] = totals  # the parent goes on
            assert images['seen', epoch, len(seen)] == totals and (images[seen[0]] == epoch*seen[0] % 251).all()
        assert sorted(seen) == list(range(SAMPLES)) != seen
        assert totals == [BIG*(epoch*i % 251) for i in seen]
        held.append(most)
    assert len(pids) == WORKERS and held[2] == held[1] == held[0], 'a worker keeps what it has read'
    assert len(images) == SAMPLES + 3*WORKERS and (images[1] == 3).all() and len(labels) == SAMPLES
    del loader, counts, workers, indexes, parts, part, sums, rows, row
    gc.collect()
    assert wait_for(lambda: not any(os.path.exists(f'/proc/{pid}/exe') for pid in pids))
    del labels
    pk.gc()  # a pickled reference, such as spawned workers are given, keeps an object without a name until here
    assert not _anonymous(site)

def _anonymous(site):
    "The objects without a name"
    store = site.store('_anonymous', True)
    txn = store.read()
    try: return [key for key, _ in store.scan(txn, b'\x02', b'\x03')]
    finally: store.end(txn)


# --- arrays as tensors

@pytest.fixture
def d(site):
    pk.Namespace('n', durable=False)
    d = pk.Dict('n/d')
    d['a'] = np.arange(10**6)
    torch.set_warn_always(True)  # else PyTorch says a thing once
    yield d
    torch.set_warn_always(False)

def test_plain_read_becomes_a_tensor_without_a_copy(d):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        array = d['a']
        tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data
    del array
    tensor[0] = 7
    assert int(tensor.sum()) == sum(range(10**6)) + 7 and d['a'][0] == 0
    with pk.snapshot(d, zero_copy=False): assert torch.from_numpy(d['a'])[1] == 1


def test_tensor_of_a_view_warns_that_it_is_read_only(d):
    with pk.snapshot(d), pytest.warns(UserWarning, match='not writable'): tensor = torch.from_numpy(d['a'])
    assert int(tensor.sum()) == sum(range(10**6))


_writes_to_a_view = '''
import torch, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
d = pk.Dict('n/d')
warnings.simplefilter('ignore')
with pk.snapshot(d): tensor = torch.from_numpy(d['a'])
say()
tensor[0] = 7
say('written')
'''

def test_write_to_a_tensor_of_a_view_ends_the_process_and_changes_nothing(d):
    "PyTorch has no read-only tensors, and heeds neither numpy's flag nor a buffer's: the memory itself is protected"
    with Child(d.site, _writes_to_a_view) as child:
        child.hear()
        assert child.process.wait(60) == -signal.SIGSEGV
    assert d['a'][0] == 0 and d.version == 1


def test_copies_of_views_are_tensors_of_ones_own(d):
    "What may be done with a view in a snapshot"
    with warnings.catch_warnings(), pk.snapshot(d):
        warnings.simplefilter('error')
        for tensor in (torch.tensor(d['a']), torch.from_numpy(d['a'].copy()), torch.utils.data.default_collate([d['a'].copy()])[0]):
            tensor[0] = 7
            assert tensor[0] == 7 and d['a'][0] == 0


def test_tensors_are_stored(d):
    for tensor in (torch.arange(10**6), torch.ones(3, 4), torch.tensor(1.5), torch.ones(2, 3).T):
        d['tensor'] = tensor
        assert torch.equal(d['tensor'], tensor)
