"""What `doctor`, `check`, `backup`, `restore`, `compact` and `gc` find and do while others use the site, die or damage it.

A notebook has one process, and no damaged files to show."""
import json, os, pickle, random, re, shutil, signal, struct, subprocess
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np, pytest

import parkit as pk
from conftest import in_memory, wait_for
from helpers import Child, blobs, forked, run
from parkit import maintenance, storage
from parkit.tasks import _functions
from parkit.ledger import _ledger
from parkit.tracing import AsyncTrace
from test_namespaces import _deaths, _files

MIB = 2**20
tmp_path = in_memory


@pytest.fixture
def disk(tmp_path):
    "A disk of 16 MiB"
    path = tmp_path/'disk'
    path.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', str(path)], capture_output=True).returncode: pytest.skip('no disk can be mounted here')
    yield path
    subprocess.run(['umount', '-l', path], check=True)

def _said(subject=None, site=None):
    "What `doctor` says about one subject"
    return [f'{o.what} -> {o.advice}' for o in pk.doctor(site) if subject in (None, o.subject)]

def _matches(said, pattern): return [o for o in said if re.search(pattern, o)]


# --- doctor

def _everything(site):
    "All that is stored in a site, and when it was changed"
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(Path(site.path).rglob('*'))
            if path.is_file() and path.name not in ('lock.mdb', 'write.lock') and 'alive' not in path.parts}

def test_doctor_finds_nothing_to_do_and_changes_nothing(d):
    "In a site with something of everything, from a process that has not used it yet"
    d.update(a=1, large=np.ones(MIB, np.uint8))
    pk.Dict('durable/d')['a'] = 1
    pk.Array().append(1)
    lock = pk.Lock('n/l')
    lock.acquire()
    d.site.close()
    before = _everything(d.site)
    found = run(d.site, 'say([list(pk.doctor()) for _ in range(2)][1])')
    assert _everything(d.site) == before
    assert not [o for o in found if o[2]] and {o[0] for o in found} == {d.site.path, 'n', 'n/l', 'durable', '_anonymous'}
    texts = [o[1] for o in found if o[0] == 'n']
    assert re.match(r'scratch, [\d.]+ KiB of 64.0 GiB, [\d.]+ \w+ of it free; 1 blob of 1.0 MiB', texts[0]) and len(texts) == 1
    assert [o[1] for o in found if o[0] == 'durable'][0].startswith('durable, ') and 'format 2' in found[0][1]
    lock.release()


_reads = '''
d = pk.Dict('n/d')
with pk.snapshot(d):
    say()
    hear()
'''

def test_doctor_says_who_reads_and_what_that_keeps(d):
    d['a'] = np.zeros(MIB, np.uint8)
    with Child(d.site, _reads) as reader:
        reader.hear()
        [said] = _matches(_said('n'), 'snapshot')
        assert re.match(rf'process {reader.pid} has a snapshot open for \d+ s, 0 commits old.*-> $', said)
        for i in range(5): d['a'] = np.full(MIB, i, np.uint8)
        said = _said('n')
        [about] = _matches(said, 'has a snapshot')
        match = re.match(rf"process {reader.pid} has a snapshot open for (\d+) s, (\d+) commits old; it keeps 5.0 MiB .*-> end its `with`", about)
        assert match and int(match[1]) < 60 and int(match[2]) >= 5
        assert _matches(said, '5 replaced blobs of 5.0 MiB are still on disk')
        with pk.snapshot(d): assert _matches(_said('n'), f'process {os.getpid()} has a snapshot')
    d['a'] = 1
    assert not _matches(_said('n'), 'snapshot|replaced')


_holds = '''
d = pk.Dict('n/d')
lock = pk.Lock('n/l')
lock.acquire()
with pk.transaction(d):
    say()
    hear()
'''

def test_doctor_says_who_holds_locks(d):
    "And waits for none of them"
    with Child(d.site, _holds) as holder:
        holder.hear()
        [said] = _matches(_said('n'), 'write lock')
        assert re.match(rf'process {holder.pid} has held the write lock for \d+ s -> wait for it, or end it', said)
        assert _said('n/l') == [f'is held by process {holder.pid} -> ']
        assert str(holder.pid) in _matches(_said(d.site.path), 'processes use it')[0]
    assert not _matches(_said('n'), 'write lock') and not _said('n/l')
    with pk.transaction(d): assert _matches(_said('n'), f'process {os.getpid()} has held')


_calls = '''
pk.calls.set_runner(pk.calls.Runner())
f = pk.bind_task('f')
traces = [f() for _ in range(3)]
say()
'''

def test_doctor_says_what_the_workers_do(site):
    f, pool = pk.task(name='f')(lambda: 1), pk.Pool()
    pool.resize(1)
    assert f().result == 1
    [said] = _said('pool')
    assert said == f'supervisor {pool.status.supervisor}, workers {pool.status.workers[0]}; 0 calls running, 0 queued -> '
    pool.stop()
    assert _said('pool') == ['no workers; 0 calls running, 0 queued -> ']
    run(site, 'import parkit.tasks' + _calls)
    assert _said('pool') == ['no workers; 0 calls running, 3 queued -> pk.Pool().start() starts them']


_leaves = """
d, lock, anonymous = pk.Dict('n/d'), pk.Lock('n/l'), pk.Dict()
pk.objects._remove_file = lambda *args: None  # killed just before it
lock.drop()
prepared = d._prepare(np.zeros(2**20))
block = pk.transaction(d)
block.__enter__()
d['uncommitted'] = np.zeros(2**20)
pk.storage.Store.write = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
pk.Namespace('m').copy('copy')
"""

def test_doctor_and_gc_find_what_the_dead_have_left(d):
    "A blob written but not stored, one stored but not committed, a lock's file, an object, a copy, and a folder of no namespace"
    d['a'] = np.zeros(MIB)
    pk.Dict('m/d')['a'] = 1
    pk.Dict()
    pk.gc()
    before = _files(d.site)
    with Child(d.site, _leaves) as child: assert child.process.wait(60) == -signal.SIGKILL
    os.makedirs(f'{d.site.path}/half/made/@/blobs')
    assert _matches(_said('n'), '1 files that no entry refers to -> .*pk.gc removes them')
    [copy] = os.listdir(f'{d.site.path}/_making')
    assert _said(f'{d.site.path}/_making/{copy}') == ['was left by a process that died -> pk.gc removes it']
    left, dry = _files(d.site), pk.gc(dry_run=True)
    kinds = sorted(os.path.relpath(os.path.dirname(o.subject), d.site.path) for o in dry if o.subject.startswith('/'))
    assert kinds == ['.', '_making', 'n/@/blobs', 'n/@/locks', 'n/@/new', 'n/@/new'] and len(dry) == 7
    assert _files(d.site) == left and sorted(pk.gc()) == sorted(dry) and pk.gc() == [] == pk.check()
    assert {*_files(d.site)} - {*before} <= {'_making', 'n/@/locks'} and len(blobs(d._store)) == 1 and (d['a'] == 0).all()
    assert not _matches(_said(), 'left|refers')


def test_doctor_says_that_the_map_is_nearly_full(tmp_path):
    site = pk.Site(tmp_path/'small', map_size=4*MIB)
    d = pk.Dict('n/d', site=site)
    with suppress(pk.StorageFullError):
        for i in range(1000): d[i] = bytes(10_000)
    [said] = _matches(_said('n', site), 'of its map')
    assert re.match(r'(8|9)\d % of its map is used -> delete entries, then compact; or make a site with a larger map_size', said)
    d.clear()
    pk.compact(d)
    assert not _matches(_said('n', site), 'of its map')
    site.close()


def test_doctor_advises_to_compact(d):
    for i in range(30): d[i] = np.zeros(200_000, np.uint8)*1
    d.update((i, bytes(200_000)) for i in range(120))
    d.clear()
    [said] = _matches(_said('n'), 'scratch')
    assert said.endswith('-> pk.compact gives it back') and '2' in said
    size = os.path.getsize(f'{d._store.path}/data.mdb')
    freed = pk.compact('n')
    assert freed == size - os.path.getsize(f'{d._store.path}/data.mdb') > 20*MIB
    assert not _matches(_said('n'), 'pk.compact')


def test_doctor_counts_the_snapshots(d):
    d['a'] = 1
    held = [d._store.read() for _ in range(1700)]
    assert _matches(_said('n'), r'17\d\d of 2048 slots for snapshots are taken -> end some')
    while held: d._store.end(held.pop())
    assert not _matches(_said('n'), 'slots')


def test_doctor_says_that_the_disk_is_nearly_full(disk):
    site = pk.Site(disk/'site')
    pk.Dict('n/d', site=site)['a'] = 1
    assert _matches(_said(site.path, site), r'1\d\.\d MiB of 16.0 MiB of the disk are free \(tmpfs\) -> free some room soon')
    site.close()


_drops = '''
say()
while not os.path.exists(sys.argv[2]):
    d = pk.Dict('n/d')
    d['large'] = d['again'] = np.zeros(2**15)
    with pk.Lock('n/l'): d['anonymous'] = pk.Dict()
    pk.Namespace('n').rename('m')
    pk.Namespace('m').drop()
'''

def test_doctor_backup_and_gc_while_namespaces_come_and_go(site, tmp_path):
    pk.Dict('stays/d').update(a=np.arange(2**16), b=pk.Array())
    with Child(site, _drops, tmp_path/'stop') as other:
        other.hear()
        for i in range(15):
            pk.doctor()
            pk.backup(tmp_path/f'backup{i}')
            pk.gc()
        (tmp_path/'stop').touch()
        other.wait()
    pk.gc()
    assert pk.gc() == [] == pk.check() and (pk.Dict('stays/d')['a'] == np.arange(2**16)).all() and pk.Dict('stays/d')['b'] == []


# --- backup

_writes = '''
d, a, q = pk.Dict('n/d'), pk.Array('n/a'), pk.Queue('n/q')
i = 0
say()
while not os.path.exists(sys.argv[2]):
    with pk.transaction(d):
        d['left', i % 20], d['right', i % 20] = i, -i
        d['count'] = d.get('count', 0) + 1
        a.append(i)
        q.put(i)
        if q.qsize() > 5: q.get()
        if i % 3 == 0: d['large'], d['number'] = np.full(2**16, i), i
    i += 1
say(i)
'''

def _holds_together(site):
    "Whether what `_writes` writes is all of one moment"
    d, a, q = (kind(f'n/{name}', site=site, create=False) for kind, name in ((pk.Dict, 'd'), (pk.Array, 'a'), (pk.Queue, 'q')))
    items = q.get_many(10)
    return (all(d['left', i] == -d['right', i] for i in range(20)) and list(a) == list(range(d['count']))
            and items == list(a)[-len(items):] and (d['large'] == d['number']).all())

def test_backup_amid_writing_is_of_one_moment(site, tmp_path):
    "Blobs included, which are its own"
    with Child(site, _writes, tmp_path/'stop') as writer:
        writer.hear()
        assert wait_for(lambda: ('right', 19) in pk.Dict('n/d'))
        for i in range(3):
            before = pk.Dict('n/d')['count']
            assert pk.backup(tmp_path/f'b{i}') == ['n']
            assert before <= pk.Dict('n/d', site=pk.Site(tmp_path/f'b{i}', create=False))['count'] <= pk.Dict('n/d')['count']
        (tmp_path/'stop').touch()
        assert writer.hear() == pk.Dict('n/d')['count']
        writer.wait()
    for i in range(3):
        saved = pk.Site(tmp_path/f'b{i}', create=False)
        assert pk.check(saved) == [] or i and pk.gc(site=saved) == []
        restored = pk.restore(saved.path, tmp_path/f'r{i}')
        assert _holds_together(restored) and _holds_together(saved)
        for o in (saved, restored): o.close()
    assert _holds_together(site) and sorted(os.listdir(tmp_path)) == sorted(['b0', 'b1', 'b2', 'r0', 'r1', 'r2', 'site', 'stop'])


def _damage(path):
    os.chmod(path, 0o600)
    with open(path, 'r+b') as file: file.write(os.urandom(os.path.getsize(path)))

def test_backup_and_original_are_independent(site, tmp_path):
    "Damage to the blobs of one does not show in the other, nor in what was restored"
    d = pk.Dict('n/d')
    d['large'] = np.arange(2**16)
    pk.Namespace('scratch', durable=False)
    pk.Dict('scratch/d')['a'] = 1
    pk.backup(tmp_path/'saved')
    restored = pk.restore(tmp_path/'saved', tmp_path/'restored')
    saved = pk.Site(tmp_path/'saved', create=False)
    stores = [o.store('n') for o in (site, saved, restored)]
    files = [f'{store.path}/blobs/{blobs(store)[0]}' for store in stores]
    assert len({os.stat(file).st_ino for file in files}) == 3
    assert not [path for path in Path(saved.path).rglob('*') if path.is_file() and path.stat().st_mode & 0o077] and os.stat(saved.path).st_mode & 0o777 == 0o700
    _damage(files[0])
    assert all((pk.Dict('n/d', site=o)['large'] == np.arange(2**16)).all() for o in (saved, restored))
    _damage(files[1])
    assert (pk.Dict('n/d', site=restored)['large'] == np.arange(2**16)).all()
    assert pk.namespaces(saved) == pk.namespaces(restored) == ['n']  # as a reboot would leave them
    for o in (saved, restored): o.close()


def test_site_restored_to_where_it_was(site, tmp_path):
    "Stored references work again, tasks too"
    d = pk.Dict('n/d')
    d.update(me=d, list=[1, 2])
    pk.task(name='f')(lambda d: d['list'])
    pk.backup(tmp_path/'saved')
    site.close()
    os.rename(site.path, tmp_path/'lost')
    with pytest.raises(pk.SiteError, match='no site here'): pk.Site(site.path, create=False)
    os.environ['PARKIT_SITE'], before = site.path, os.environ['PARKIT_SITE']
    try: again = pk.restore(tmp_path/'saved')
    finally: os.environ['PARKIT_SITE'] = before
    pk.set_site(again)
    assert again.path == site.path and pk.Dict('n/d')['me'].path == 'n/d' and pk.Dict('n/d')['me']['list'] == [1, 2]
    assert pk.bind_task('f')(pk.Dict('n/d')).result == [1, 2] and pk.check() == []
    pk.Pool().stop()
    again.close()
    pk.Site(tmp_path/'saved').close()


def test_restored_site_beside_the_original(site, tmp_path):
    "Each has its own tasks, calls and workers"
    f = pk.task(name='f')(lambda: 'original')
    pk.backup(tmp_path/'saved')
    other = pk.restore(tmp_path/'saved', tmp_path/'other')
    try:
        pk.task(name='f')(lambda: 'redefined')
        f = pk.bind_task('f', site=site)  # which stays there; what @task returns follows this process
        pk.set_site(other)
        pk.task(name='f')(lambda: 'redefined there')
        g = pk.bind_task('f')
        assert [f(sync=True), g(sync=True)] == ['redefined', 'redefined there']
        traces = [f(), g()]
        assert [t.result for t in traces] == ['redefined', 'redefined there']
        assert [run(o, 'say(pk.Pool().status.supervisor)') for o in (site, other)] == [pk.Pool(site=o).status.supervisor for o in (site, other)]
        assert pk.Pool(site=site).status.supervisor != pk.Pool(site=other).status.supervisor
    finally:
        pk.Pool(site=other).stop()
        pk.set_site(site)
        for o in (other, pk.Site(tmp_path/'saved')): o.close()


def test_backups_that_are_refused(site, tmp_path):
    "And leave nothing behind"
    pk.Dict('n/d')['a'] = 1
    (tmp_path/'full').mkdir()
    (tmp_path/'full/thesis.tex').touch()
    (tmp_path/'file').touch()
    (tmp_path/'empty').mkdir()
    before = sorted(Path(tmp_path).rglob('*'))
    for path in ('full', 'file', 'site', 'site/n', 'site/backup', ''):
        with pytest.raises((pk.SiteError, OSError)): pk.backup(tmp_path/path)
    for source, path in (('full', 'new'), ('nowhere', 'new'), ('file', 'new')):
        with pytest.raises(pk.SiteError): pk.restore(tmp_path/source, tmp_path/path)
    assert sorted(Path(tmp_path).rglob('*')) == before
    pk.backup(tmp_path/'empty')
    with pytest.raises(pk.SiteError, match='holds something'): pk.restore(tmp_path/'empty', site.path)
    with pytest.raises(pk.SiteError, match='holds something'): pk.backup(tmp_path/'empty')
    file = tmp_path/'empty/site.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'format': 999}))
    with pytest.raises(pk.SiteError, match='format 999'): pk.restore(tmp_path/'empty', tmp_path/'new')
    assert pk.Dict('n/d')['a'] == 1 and pk.namespaces() == ['n'] and not (tmp_path/'new').exists()


def test_backup_to_a_full_disk(site, disk):
    pk.Dict('n/d').update((i, np.zeros(MIB)) for i in range(4))
    with pytest.raises(pk.StorageFullError): pk.backup(disk/'saved')
    assert os.listdir(disk) == []


def test_killed_while_it_makes_a_backup(site, tmp_path):
    "There is a whole one or none; what is left has the name of the backup in front, and is in nobody's way"
    pk.Dict('n/d').update(a=1, large=np.arange(2**16))
    target = tmp_path/'backups/saved'
    for step in _deaths(lambda: pk.backup(target)):
        there = os.listdir(target.parent) if target.parent.exists() else []
        assert all(re.fullmatch(r'saved(\.[0-9a-f]{32})?', name) for name in there) and len(there) <= 2
        if target.exists():
            saved = pk.Site(target, create=False)
            d = pk.Dict('n/d', site=saved)
            assert (d['large'] == np.arange(2**16)).all() and d['a'] == 1
            saved.close()
        if target.parent.exists(): shutil.rmtree(target.parent)
    assert pk.gc() == []


# --- compact

def test_compacting_on_a_full_disk(disk):
    "There is no room for the new file: nothing changes, and there is afterwards"
    site = pk.Site(disk/'site')
    d = pk.Dict('n/d', site=site)
    d.update((i, bytes(100_000)) for i in range(90))
    with pytest.raises(pk.StorageFullError, match='free'): pk.compact(d)
    assert len(d) == 90 and all(v == bytes(100_000) for v in d.values()) and run(site, "say(len(pk.Dict('n/d')))") == 90
    for i in range(80): del d[i]
    assert pk.compact(d) > 5*MIB and sorted(d) == list(range(80, 90)) and pk.gc(site=site) == []
    site.close()


# --- check

_works = """
import asyncio
d, a, q, s, f = pk.Dict('n/d'), pk.Array('n/a', maxsize=20), pk.Queue('n/q'), pk.LifoQueue('n/s'), pk.File('n/f')
i = 0
say()
while not os.path.exists(sys.argv[2]):
    with pk.transaction(d):
        d[i % 20] = bytes(50_000)
        d[i % 20] = bytes(i % 5000)  # keeps its pages
    d['long'*500, i % 5] = d[1.5, i % 7, True] = np.full(2**16 if i % 4 == 0 else 10, i)
    if i % 3 == 0: d.pop(('long'*500, (i + 2) % 5), None)
    a.append([i])
    q.put(np.zeros(2**15*(i % 3)))
    s.put_many([i]*3)
    s.get_many(2)
    if i % 4 == 0: q.get()
    if i % 20 == 0: d['anonymous', i % 3] = d.note = pk.Array()
    d.note.append(d)
    with f.open('wb') as file: file.write(bytes(i % 5*100_000))
    i += 1
say(i)
"""

def test_check_finds_nothing_in_a_busy_site(site, tmp_path):
    "With every type of object, tasks and calls among them, long keys, gaps in a LifoQueue, files, and changes under way"
    f = pk.task(name='f')(lambda a: (len(a), pk.Dict()))
    a = pk.Array()
    a.append(np.zeros(MIB))
    pk.Lock('n/l'), pk.Event('n/e').set(), pk.Object('n/o')
    with Child(site, _works, tmp_path/'stop') as worker, pk.Lock('n/l'):
        worker.hear()
        assert f(a).result[0] == 1
        waiting = pk.task(name='waits')(lambda: pk.wait_until(pk.Event('n/stop').is_set) and None)
        traces = [waiting() for _ in range(9)]
        pk.wait_until(lambda: traces[0].status == 'running')
        assert pk.check() == []  # with calls that run, and others that wait
        pk.gc()
        pk.Event('n/stop').set()
        assert [t.result for t in traces] == [None]*9
        (tmp_path/'stop').touch()
        assert worker.hear() > 10
        worker.wait()
    pk.Pool().stop()
    pk.gc()
    assert pk.gc() == []


@pytest.mark.parametrize('again', [False, True])
def test_check_while_a_namespace_is_dropped(site, monkeypatch, again):
    "Between the listing and the look; what is made in its place is looked at"
    for path in ('a/d', 'b/d', 'c/d'): pk.Dict(path)[1] = 1
    def run(command, *args, run=subprocess.run, **options):
        pk.Namespace('b').drop()
        if again: pk.Dict('b/d')[1] = 1
        return run(command, *args, **options)
    monkeypatch.setattr(maintenance.subprocess, 'run', run)
    assert pk.check() == []

def test_check_while_a_namespace_is_compacted(d, monkeypatch):
    "What the look at pages finds then, of files that are just removed, or with others who write, is no damage"
    looks = []
    def verify(path, here):
        looks.append(path)
        if len(looks) == 1:
            pk.compact(d)
            return 'a page of a file that is gone'
        return ''
    monkeypatch.setattr(maintenance, 'verify_pages', verify)
    assert maintenance._check_namespace(d._store) == [] and len(looks) == 2


def _raw(o, work):
    "Have `work(txn, store)` change what lies beneath an object"
    txn = o._store.write()
    work(txn.raw, o._store)
    txn.commit()

def _head(o, change):
    def work(txn, store):
        fields = list(struct.unpack('>QqqQ', txn.get(o._oid)))
        change(fields)
        txn.put(o._oid, struct.pack('>QqqQ', *fields))
    _raw(o, work)

def _entry(o): return next(key for key, _ in _scanned(o) if key[8:9] != b'\1')
def _scanned(o):
    txn = o._store.read()
    try: return list(o._store.scan(txn, o._oid + b'\1', storage._after(o._oid)))
    finally: o._store.end(txn)

def _blob(o): return o._store.blob_of(dict(_scanned(o))[_entry(o)])
def _set_head(i, value): return lambda o: _head(o, lambda fields: fields.__setitem__(i, value))
def _change(key, change): return lambda o: _raw(o, lambda txn, store: txn.put(key(o), change(txn.get(key(o)))))
def _delete(key): return lambda o: _raw(o, lambda txn, store: txn.delete(key(o)))
def _put_stray(o): _raw(o, lambda txn, store: txn.put(storage._ID.pack(99) + b'\x30x\0', b'\x80\x05K\x01.'))
def _put_lost_blob(o): _raw(o, lambda txn, store: txn.put(storage.BLOBS + bytes(16), bytes(8)))
def _overwrite(o, data):
    os.chmod(_blob(o), 0o600)
    Path(_blob(o)).write_bytes(data)

_made = dict(small=lambda o: o.update(a=[1, 2, 3], b=2), large=lambda o: o.update(a=np.zeros(MIB)), text=lambda o: o.update(a='x'*MIB),
             long=lambda o: o.update({'x'*2000: 1}), kept=lambda o: o.update({True: 1}))
_damages = dict(  # what is made, how it is damaged, what is said about it
    count=('small', _set_head(0, 7), 'holds 2 entries, and its head says 7'),
    entry=('small', _delete(_entry), 'holds 1 entry, and its head says 2'),
    head=('small', _delete(lambda o: o._oid), 'the head is missing or damaged'),
    short_head=('small', _change(lambda o: o._oid, lambda data: data[:9]), 'the head is missing or damaged'),
    order=('small', _set_head(2, 1), 'its head is damaged'),
    record=('small', _delete(lambda o: storage.OBJECTS + o._oid), '/record: the name leads to no object'),
    unnamed=('small', _delete(lambda o: storage.NAMES + b'unnamed'), 'the object cannot be found by its name'),
    misnamed=('small', _change(lambda o: storage.NAMES + b'misnamed', lambda data: bytes(8)), '/misnamed: the name leads to no object'),
    broken=('small', _change(lambda o: storage.OBJECTS + o._oid, lambda data: data[:-9]), 'the record of object .* is damaged'),
    cut=('small', _change(_entry, lambda data: data[:-3]), 'the entry .* is damaged'),
    kind=('small', _change(_entry, lambda data: b'\x77' + data[1:]), 'the entry .* is damaged'),
    key=('kept', _change(_entry, lambda data: data[:14] + b'\0' + data[15:]), 'the entry .* is damaged'),
    node=('long', _change(lambda o: o._oid + b'\x30' + b'x'*471, lambda data: data[:1] + bytes(8)), 'holds 0 entries, and its head says 1'),
    attribute=('small', lambda o: (setattr(o, 'x', [1]), _change(lambda o: o._oid + b'\1x', lambda data: data[:-2])(o)), 'the entry .* is damaged'),
    missing=('large', lambda o: os.unlink(_blob(o)), 'the blob .* is missing'),
    short=('large', lambda o: _overwrite(o, bytes(1000)), 'has 1000 bytes, its entry says'),
    garbage=('large', lambda o: _overwrite(o, b'\x77'*os.path.getsize(_blob(o))), 'the entry .* is damaged'),
    text=('text', lambda o: _overwrite(o, Path(_blob(o)).read_bytes()[:-1] + b'x'), 'the entry .* is damaged'),
    unrecorded=('large', _delete(lambda o: storage.BLOBS + bytes.fromhex(os.path.basename(_blob(o)))), 'its blob .* is not on record'),
    stray=('small', _put_stray, 'there are entries of .*, which is no object'),
    lost=('small', _put_lost_blob, 'the blob 0+ is in no entry'))

def test_check_finds_every_kind_of_damage(site):
    "And says of each where it is; what is beside it is sound"
    pk.Dict('sound/d').update(a=1, large=np.zeros(MIB))
    for name, (made, damage, _) in _damages.items():
        o = pk.Dict(f'n/{name}')
        _made[made](o)
        damage(o)
    pk.Dict('file/d')
    site.close()
    Path(site.path, 'file/@/store.json').write_text('{')
    found = [f'{o.subject}: {o.what} -> {o.advice}' for o in pk.check()]
    for name, (_, _, said) in _damages.items():
        assert [o for o in found if re.search(said, o) and (f'/{name}:' in o or o.startswith('n:'))], (name, found)
    assert [o for o in found if o.startswith('file: it cannot be read: .*store.json is damaged') or 'file: ' in o]
    assert not [o for o in found if o.startswith('sound')] and all(o.rpartition(' -> ')[2] for o in found)
    named = {o.partition(':')[0].partition('/')[2] for o in found} - {''}
    assert named <= {*_damages} and len(found) <= len(_damages) + 8


def test_check_in_a_transaction_is_refused(d):
    "It would wait for itself; one of another process it waits for"
    d['a'] = 1
    with pk.transaction(d), pytest.raises(pk.TransactionError, match='outside'): pk.check()
    with pk.snapshot(d): assert pk.check() == []


def _read_all(path, site):
    "All that a namespace holds, read in a process that may die of it"
    code = f"say([sorted([o.name, [[repr(k), repr(v)] for k, v in o.items()]] for o in pk.Namespace('{path}'))])"
    with Child(site, code) as child:
        try: return child.hear()
        except AssertionError: return None

@pytest.mark.parametrize('seed', range(int(os.environ.get('PARKIT_TORTURE', 1))))
def test_check_of_pages_overwritten_with_anything(site, seed):
    "Nothing found means that all can be read as it was; whatever there is, `check` itself ends well"
    rng = random.Random(seed)
    for i in range(20): pk.Dict(f'n/{i}').update((f'key {k}', [i, k]) for k in range(60))
    pk.Namespace('n').copy('whole')
    whole = _read_all('whole', site)
    for i in range(6): pk.Namespace('whole').copy(f'x{i}')
    for name in ('n', 'whole'): pk.Namespace(name).drop()
    site.close()
    changed = []
    for i in range(6):
        with open(f'{site.path}/x{i}/@/data.mdb', 'r+b') as file:
            pages = os.fstat(file.fileno()).st_size//4096
            page, size = rng.randrange(pages), rng.choice([4096, 2000, 300])
            file.seek(4096*page + rng.randrange(4097 - size))
            file.write(rng.randbytes(size))
            changed.append((page, pages, size))
    found = pk.check()
    blamed = {o.subject.partition('/')[0] for o in found}
    assert blamed <= {f'x{i}' for i in range(6)} and len(blamed) > 2, (found, changed)
    for i in {*range(6)} - {int(o[1:]) for o in blamed}: assert _read_all(f'x{i}', site) == whole, changed[i]


@pytest.mark.parametrize('verifies', [True, False])
def test_check_survives_what_kills_a_reader(site, tmp_path, monkeypatch, verifies):
    "A file that ends before its last page; also with an lmdb that cannot verify pages"
    for name in ('short', 'sound'): pk.Dict(f'{name}/d').update((i, bytes(3000)) for i in range(100))
    site.close()
    file = f'{site.path}/short/@/data.mdb'
    os.truncate(file, os.path.getsize(file)//2//4096*4096)
    with Child(site, "sum(map(len, pk.Dict('short/d').values()))") as reader: assert reader.process.wait(60) in (-signal.SIGBUS, 1)
    if not verifies:
        (tmp_path/'sitecustomize.py').write_text("import sys\nsys.modules['lmdb.verify'] = None")
        monkeypatch.syspath_prepend(tmp_path)
    [found] = pk.check()
    assert found.subject == 'short' and 'restore it' in found.advice
    assert 'data.mdb are damaged: ' in found.what, found.what


# --- gc

def _given(site, where):
    "Store a reference to an anonymous object somewhere, and return a function that follows it, and one that removes it"
    o, d, a, q = pk.Dict(), pk.Dict('n/d'), pk.Array('n/a'), pk.Queue('n/q')
    o['found'] = where
    if where == 'entry':
        d['x'] = o
        return lambda: d['x'], lambda: d.pop('x')
    if where == 'deep in an entry':
        d['x'] = {'list': [1, (o, 2)]}
        return lambda: d['x']['list'][1][0], lambda: d.clear()
    if where == 'key':
        queue = pk.Queue()
        queue.put(o)
        d['in a tuple', queue] = 1
        return lambda: _peek(next(iter(d))[1]), d.clear
    if where == 'blob':
        d['x'] = ['x'*MIB, o]
        return lambda: d['x'][1], lambda: d.pop('x')
    if where == 'blob with buffers':
        d['x'] = [np.zeros(MIB), o]
        return lambda: d['x'][1], lambda: d.pop('x')
    if where == 'array of objects':
        a.append(np.array([None, o], dtype=object))
        return lambda: a[0][1], a.clear
    if where == 'queue':
        q.put([o])
        return lambda: _peek(q)[0], q.get
    if where == 'attribute':
        d.x = o
        return lambda: d.x, lambda: delattr(d, 'x')
    if where == 'metadata':
        d.metadata = dict(x=o)
        return lambda: d.metadata['x'], lambda: setattr(d, 'metadata', {})
    if where == 'file':
        f = pk.File('n/f')
        with f.open('wb') as file: file.write(b'\1' + bytes(MIB) + pickle.dumps(o))
        return lambda: pickle.loads(bytes(f.content)[MIB + 1:]), f.drop
    if where == 'nested':
        outer = pk.Array()
        outer.append(pk.Dict())
        outer[0].x = [o]
        o['me'], o['outer'] = o, outer  # a circle
        d['x'] = outer
        return lambda: d['x'][0].x[0], lambda: d.pop('x')
    if where == 'function':
        pk.task(name='f')(lambda: o)
        code = "say(pk.bind_task('f')(sync=True)['found'])"
        return lambda: dict(found=run(site, code)), lambda: pk.Namespace('task')['f'].drop()
    if where == 'bytes':
        d['x'] = pickle.dumps([o])
        return lambda: pickle.loads(d['x'])[0], lambda: d.pop('x')
    assert where == 'other namespace'
    pk.Dict('m/k/d')['x'*3000] = o
    return lambda: pk.Dict('m/k/d')['x'*3000], lambda: pk.Namespace('m/k').drop()

def _peek(q):
    items = q.get_many(9)
    q.put_many(items)
    return items[0]

_places = ['entry', 'deep in an entry', 'key', 'blob', 'blob with buffers', 'array of objects', 'queue', 'attribute', 'metadata', 'file', 'nested',
           'function', 'bytes', 'other namespace']

def test_gc_keeps_what_is_referred_to(site):
    "For as long as it is, wherever that is; a dry run says the same and drops nothing"
    other = pk.Dict()
    other['held'] = 1
    for where in _places:
        follow, remove = _given(site, where)
        _functions.clear()
        assert pk.gc(dry_run=True) == [] == pk.gc() and follow()['found'] == where, where
        forked(lambda: [pk.compact(namespace) for namespace in pk.namespaces()])  # which this process has not noticed yet
        assert pk.gc() == [] and follow()['found'] == where, where
        remove()
        _functions.clear()
        dry = pk.gc(dry_run=True)
        assert len(dry) == dict(nested=3, key=2).get(where, 1), where
        assert all('without a name that nothing refers to' in o.what and o.subject.startswith('_anonymous/') for o in dry)
        assert pk.gc(dry_run=True) == dry == pk.gc() and pk.gc() == [], where
    assert other['held'] == 1 and pk.check() == []


_keeps = """
d = pk.Dict('n/d')
held = [d['mine'], pk.Dict(), pk.Queue()]
del d['mine']
held[1]['a'] = 1
say()
hear()
say([held[0]['a'], held[1]['a'], held[2].qsize()])
hear()
"""

def test_gc_keeps_what_a_process_holds(site):
    "Its own, and what it has taken out of an entry that is gone; until it ends, or its fork does"
    d = pk.Dict('n/d')
    d['mine'] = pk.Dict()
    d['mine']['a'] = 1
    with Child(site, _keeps) as holder:
        holder.hear()
        assert pk.gc(dry_run=True) == [] == pk.gc()
        holder.say()
        assert holder.hear() == [1, 1, 0]
        holder.kill()
    dry = pk.gc(dry_run=True)
    assert len(dry) == 3 and sorted(dry) == sorted(pk.gc()) and pk.gc() == []


def test_gc_keeps_what_calls_need(site):
    "Arguments until the call has ended, results for as long as the trace"
    run(site, 'import parkit.tasks\nf = pk.task(name="f")(lambda a: [a, pk.Dict.fromkeys("xy", 1)])\n' + _calls.replace(
        "f() for _ in range(3)", "f(a) for a in [pk.Dict.fromkeys('ab', 2)]").replace("f = pk.bind_task('f')\n", '').replace("say()", "say(traces[0].id)"))
    assert pk.gc(dry_run=True) == [] == pk.gc()
    ledger = _ledger(site)
    trace = AsyncTrace(ledger, ledger.queued())
    result = trace.result
    assert [dict(o) for o in result] == [dict(a=2, b=2), dict(x=1, y=1)]
    pk.Pool().stop()
    del result
    assert pk.gc() == [] and [dict(o) for o in trace.result] == [dict(a=2, b=2), dict(x=1, y=1)]


_passes_on = """
import random
d, e, rng = pk.Dict('n/d'), pk.Dict('m/d'), random.Random(int(sys.argv[3]))
i = 0
say()
while i < 30 or not os.path.exists(sys.argv[2]):
    key = os.getpid(), rng.randrange(20)
    if rng.random() < 0.5:
        o = pk.Dict()
        o['i'] = key[1]
        d[key] = o
    else:
        o = d.get(key)
        if o is not None:
            assert o['i'] == key[1]
            e[key] = [o]
    if rng.random() < 0.1: e.pop(key, None)
    del o
    i += 1
assert all(o['i'] == key[1] for key, o in d.items() if key[0] == os.getpid())
assert all(o['i'] == key[1] for key, [o] in e.items() if key[0] == os.getpid())
say(i)
"""

def test_gc_beside_busy_processes(site, tmp_path):
    "Nothing that is needed goes; what is not, goes in the end"
    pk.Namespace('n', durable=False), pk.Namespace('m', durable=False)
    with Child(site, _passes_on, tmp_path/'stop', 1) as one, Child(site, _passes_on, tmp_path/'stop', 2) as two:
        for child in (one, two): child.hear()
        for _ in range(15): pk.gc()
        assert wait_for(pk.gc)  # it has dropped something
        (tmp_path/'stop').touch()
        for child in (one, two): child.hear()
        for child in (one, two): child.wait()
    pk.gc()
    assert pk.gc() == [] == pk.check()
    assert run(site, "say(all(o['i'] == k[1] for k, o in pk.Dict('n/d').items()) and len(pk.Dict('m/d')))") > 0


def test_backup_removes_what_a_killed_one_has_left(site, tmp_path):
    "But not what one that is still at work has made so far"
    pk.Dict('n/d')['a'] = 1
    target, stop = tmp_path/'copy', '''
        import parkit.maintenance as m
        m._sync = lambda path: (say(path), hear())
        pk.backup(sys.argv[2])'''
    def left(): return [p.name for p in tmp_path.iterdir() if p.name.startswith('copy.')]
    with Child(site, stop, target) as killed: killed.hear()
    assert len(left()) == 1
    with Child(site, stop, target) as other:
        mine = os.path.basename(other.hear())
        assert left() == [mine]
        pk.backup(target)
        assert left() == [mine] and pk.Dict('n/d', site=pk.Site(target))['a'] == 1
    pk.Site(target).close()


# --- a big value whose file is gone

def test_missing_blob_keeps_nobody_from_the_rest(site, tmp_path):
    "`gc`, `compact`, `copy` and `backup` do what they can, and say what is missing"
    d, other = pk.Dict('n/d'), pk.Dict('n/other')
    d.update(small=1, gone=np.zeros(MIB), kept=np.ones(MIB))
    other['small'] = 2
    store = d._store
    path = next(p for p in Path(store.path, 'blobs').iterdir() if not p.read_bytes()[-1])
    path.unlink()
    assert any('are missing' in f.what and f.subject == 'n' for f in pk.gc())
    with pytest.warns(RuntimeWarning, match='1 big values of .n. are missing'): pk.compact('n')
    with pytest.warns(RuntimeWarning, match='are missing'): pk.Namespace('n').copy('copy')
    with pytest.warns(RuntimeWarning, match='are missing'): assert pk.backup(tmp_path/'backup') == ['copy', 'n']
    for found in (pk.Dict('n/d'), pk.Dict('copy/d'), pk.Dict('n/d', site=pk.Site(tmp_path/'backup'))):
        assert found['small'] == 1 and (found['kept'] == 1).all()
        with pytest.raises(pk.DecodeError, match='is missing; take it from a backup, or delete the entry'): found['gone']
        del found['gone']
        assert sorted(found) == ['kept', 'small']
    pk.Site(tmp_path/'backup').close()
    assert pk.check() == []
