"""Each of the system's calls fails in turn, as a disk has it that misbehaves: what is stored is the old or the new, whole, and the process
goes on.

A library that is preloaded fails them; a notebook cannot preload one. `failing/workload.py` lists the operations"""
import json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

import pytest
from helpers import Child, root

import parkit as pk

_folder = Path(__file__).parent/'failing'
pytestmark = pytest.mark.skipif(sys.platform != 'linux' or not shutil.which('cc'), reason='the library is made by a compiler, for Linux')

@pytest.fixture(scope='module')
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp('library')/'failing.so'
    subprocess.run(['cc', '-O1', '-shared', '-fPIC', '-o', path, _folder/'failing.c', '-ldl'], check=True)
    return path

@pytest.fixture
def memory():
    "A folder on a disk that syncs at once"
    shared = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared, ignore_cleanup_errors=True) as path: yield path

# refused; done, but the answer lost; refused until the operation has ended
_WAYS = [('pwrite', 'lost'), ('pwrite', 'broken'), ('fsync', 'refused'), ('fdatasync', 'broken'), ('write', 'refused'), ('open', 'refused'), ('link', 'refused'),
         ('unlink', 'refused'), ('rename', 'lost'), ('flock', 'refused'), ('mkdir', 'refused'), ('ftruncate', 'broken'), ('mmap', 'refused')]

@pytest.mark.parametrize('call, how', _WAYS, ids=lambda v: v)
def test_each_call_of_the_system_fails(library, memory, call, how):
    command = [sys.executable, _folder/'workload.py', memory, call, how]
    env = {**os.environ, 'LD_PRELOAD': str(library), 'PYTHONPATH': str(root), 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(found) > 15 and not [line for line in found if line[1] or line[2]], json.dumps(found, indent=1)

_failing = '''
import ctypes
from parkit.system import _DOUBT
library = ctypes.CDLL(None)
library.left.restype = ctypes.c_long
d, n, doubts = pk.Dict('n/d'), 0, 0
d['big'] = np.full(1000, -1)
while True:
    n += 1
    library.fail(b'pwrite', ctypes.c_long(n), 5, 0, 1)
    try: d['big'] = np.full(1000, n)
    except pk.SiteError: pass
    done = library.left() > 0
    library.fail(b'pwrite', ctypes.c_long(0), 5, 0, 0)
    doubts += bool(d._store.lock.record and d._store.lock.record[_DOUBT])
    say([n, done, doubts])
    if done: break
    assert hear() == d['b'] == n and (d['big'][0] in (-1, n)), n
    d['big'] = np.full(1000, -1)
'''

def test_commit_in_doubt_is_settled_by_the_next_writer(library, memory):
    "A process whose disk has failed at the end of a commit, and could not undo it either; another one, which had the site open, goes on"
    site = pk.set_site(pk.Site(f'{memory}/site', inline_limit=4096))
    d = pk.Dict('n/d')
    with Child(site, _failing, LD_PRELOAD=str(library)) as child:
        while True:
            n, done, doubts = child.hear()
            if done: break
            d['b'] = n
            assert d.get('big', [-1])[0] in (-1, n)
            child.say(n)
        child.wait()
    assert doubts and n > 2
    assert pk.check() == []
    pk.gc()
    assert len(os.listdir(f'{d._store.path}/blobs')) == 1
    site.close()
