"""Every kind of write on a full disk, on a disk without files left, and in a full map: it comes to nothing and says why,
all that was stored stays readable, deleting works, and so does the same write once there is room.

A notebook has no small disk to mount. `KINDS` lists the writes; one more line there is one more kind."""
import ctypes, errno, gc, os, re, shutil, subprocess, time
from contextlib import ExitStack
from hashlib import sha1
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np, pytest

import parkit as pk
from helpers import Child, nobody_runs, run
from parkit.calls import _environment
from parkit.ledger import _ledger
from parkit.codecs import encode
from parkit.maintenance import _Checker
from parkit.storage import BLOBS, META, TRASH
from parkit.transactions import read

PAGE, KIB, MIB = 4096, 2**10, 2**20
INLINE = 8*KIB  # the site's limit: blobs of a few pages, so that a disk is soon just too full for each step of a write
SMALL, MEDIUM, LARGE = b'small', bytes(6*KIB), np.arange(2*KIB)  # within a page of LMDB's, in pages of its own, a blob


# --- rooms of three sorts, to be filled up and emptied

class Disk:
    "A small disk"
    options, needs_disk, durable = 'size=24m', True, True
    steps = 0, 1, 2, 4, 6, 9, 14, 30, 64, 130, 300, 1000, 3000  # pages that are left for a write
    def __init__(self, path):
        self.path, self.filler = path, path/'filler'
        path.mkdir()
        try: self.is_mounted = self._mount()
        except OSError: self.is_mounted = False
        if self.needs_disk and not self.is_mounted: pytest.skip('no disk can be mounted here')

    def _mount(self):
        command = ['mount', '-t', 'tmpfs', '-o', self.options, 'tmpfs', str(self.path)]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0

    def site(self): return pk.Site(self.path/'sites/site', inline_limit=INLINE)

    def is_worn(self):
        "Have so many pages been in use at once, which LMDB keeps, that copies find no room?"
        return sum(path.stat().st_size for path in self.path.rglob('data.mdb')) > 4*MIB

    def fill(self, fillers, pages):
        "Leave so many pages free, and none of those that LMDB has in its files"
        self._fill(0)
        for filler in fillers:
            for size in (3000, 1): fill(filler, size)
        self._fill(pages)

    def _fill(self, pages):
        with open(self.filler, 'ab') as file:
            lacking = pages - os.statvfs(self.path).f_bavail
            if lacking > 0: file.truncate(file.tell() - lacking*PAGE)
            while (free := os.statvfs(self.path).f_bavail - pages) > 0:  # again: what another process has mapped goes late
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free*PAGE)

    def empty(self): self.filler.unlink()

    def unmount(self):
        if self.is_mounted: subprocess.run(['umount', '-l', str(self.path)], check=True)

class Loop(Disk):
    "A disk with a file system of its own, which lies in a file"
    make, size = (), 0
    steps = 0, 2, 9, 64, 1000, 8000
    def _mount(self):
        with NamedTemporaryFile(dir='/dev/shm') as image:  # the mount keeps it
            image.truncate(self.size)
            return all(subprocess.run(command, capture_output=True, timeout=60).returncode == 0
                       for command in ([*self.make, image.name], ['mount', '-o', 'loop', image.name, str(self.path)]))

    def _fill(self, pages):
        "As the file system counts: what it says is free it may not give, and what was given back it may keep for a while"
        self._sync()
        with open(self.filler, 'ab') as file:
            end, size = file.tell(), 2**24
            if pages and end: os.truncate(self.filler, max(0, end - pages*PAGE))
            while not pages and size >= PAGE:
                try:
                    os.posix_fallocate(file.fileno(), end, size)
                    end += size
                except OSError as e:
                    assert e.errno == errno.ENOSPC
                    size //= 2
        self._sync()

    def empty(self):
        super().empty()
        self._sync()  # or the file system would give the room only later

    def _sync(self):
        fd = os.open(self.path, os.O_RDONLY)
        assert not ctypes.CDLL(None).syncfs(fd)
        os.close(fd)

class Btrfs(Loop):
    "One that copies what is written, also into a file that is mapped"
    make, size = ('mkfs.btrfs', '-q', '-f'), 120*MIB

class Xfs(Loop):
    make, size = ('mkfs.xfs', '-q', '-f'), 300*MIB

class Ext4(Loop):
    make, size = ('mkfs.ext4', '-q', '-F', '-m', '0'), 48*MIB

class Files(Disk):
    "A disk with much room, but for few files"
    options, durable = 'size=64m,nr_inodes=600', False
    steps = 0, 1, 2, 3, 5, 8, 20, 40, 120  # files that are left
    def fill(self, fillers, files):
        self.filler.mkdir(exist_ok=True)
        for n in range(os.statvfs(self.path).f_favail - files): os.close(os.open(f'{self.filler}/{n}', os.O_CREAT | os.O_EXCL))

    def empty(self): shutil.rmtree(self.filler)

class Map(Disk):
    "Namespaces whose maps are small"
    options, needs_disk, durable = 'size=256m', False, False
    steps = 0, 4, 60, 200  # entries that are taken out again
    def site(self): return pk.Site(self.path/'sites/site', map_size=2*MIB, inline_limit=INLINE)
    def is_worn(self): return False

    def fill(self, fillers, entries):
        self.filled = fillers
        for filler in fillers:
            for size in (6000, 3000, 1): fill(filler, size)
            for key in list(filler)[:entries]: del filler[key]

    def empty(self):
        for filler in self.filled:
            if filler.exists: filler.clear()

def fill(d, size):
    "Add entries until there is no room"
    for many in (50, 1):
        try:
            while len(d) < 10**6: d.update({len(d) + i: bytes(size) for i in range(many)})
        except pk.StorageFullError: continue
        raise AssertionError('there is always room')

def _filler(store):
    "A hidden `Dict` that takes up room in a namespace"
    d = pk.Dict.__new__(pk.Dict)
    d._open(f'{store.namespace}/_filler', True, True, None, store.site, reserved=True)
    return d


# --- what is stored, and whether it is whole

def _digest(value):
    data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    return sha1(data).hexdigest()

def contents(site):
    "Every value of every object of `site`, read as its user reads it: the same in all processes"
    found = {}
    for path in site.namespaces():
        for o in pk.Namespace(path, site=site):
            if isinstance(o, pk.Dict): values = {repr(k): _digest(v) for k, v in o.items()}
            elif isinstance(o, pk.Array): values = [_digest(v) for v in o]
            elif isinstance(o, pk.File): values = [_digest(bytes(o.content))]
            elif isinstance(o, pk.Queue): values = [o.qsize(), o.maxsize]
            else: values = [_digest(getattr(o, name, None)) for name in ('note', 'other', 'large', 'default_sync')]
            found[o.path] = [values, len(values), _digest(o.metadata), str(o.version)]
    return found

def _stores(site): return [site.store(path, True) for path in site.namespaces(reserved=True)]

def _records(store):
    "All that LMDB holds of a namespace"
    txn = store.read()
    try: return {bytes(k): bytes(v) for k, v in txn.cursor() if bytes(k) != META + b'turn'}
    finally: store.end(txn)

def _files(site):
    "The files of a site, and of what lies beside it, and their sizes; those of LMDB, and what tells who lives, aside"
    folder = Path(site.path).parent
    paths = (path for path in folder.rglob('*') if path.is_file() and path.suffix != '.mdb')
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths if path.parent.name not in ('alive', 'locks') and path.name not in ('reserve', 'setup.lock')}

def state(site):
    "All that must stay as it is when a write fails"
    return {store.namespace: _records(store) for store in _stores(site)}, _files(site)

def check(site):
    "Structure, counts, references and values are right, and the blobs on disk are those on record"
    for store in _stores(site):
        assert not read(store, lambda txn, zero_copy: _Checker(store, txn).check())
        records = _records(store)
        known = {k[1:].hex() for k in records if k[:1] == BLOBS} | {k[9:].hex() for k in records if k[:1] == TRASH}
        assert set(os.listdir(f'{store.path}/blobs')) == known and not os.listdir(f'{store.path}/new')


# --- the kinds of writes

class Noted(pk.Object):
    note = ''

class Things:
    "A site, and objects to write to"
    def __init__(self, room):
        self.room, self.site, self.is_spoilt = room, pk.set_site(room.site()), False
        pk.Namespace('n', durable=room.durable)
        self.d, self.a, self.o, self.q = pk.Dict('n/d'), pk.Array('n/a'), Noted('n/o'), pk.Queue('n/q')
        self.ring, self.event, self.file = pk.Array('n/ring', maxsize=3), pk.Event('n/event'), pk.File('n/file')
        self.d.update({'old': MEDIUM, 'old blob': LARGE, 'list': [1], 'k'*2000: 1})
        self.d.update({('many', n): bytes(n) for n in range(300)})  # a tree with branches
        self.a.extend([SMALL, LARGE])
        self.ring.extend([MEDIUM, LARGE, SMALL])
        self.o.note, self.o.large = 'a note', LARGE
        pk.Dict('kept/d').update({'old': MEDIUM, 'old blob': LARGE})
        pk.Dict('other/d')
        self.anonymous = pk.Dict()
        self.work = pk.task(name='work')(lambda v: v)
        _ledger(self.site).end_bell.ring()

    def many(self, i, kind=pk.Dict):
        "An object with many entries, of all sizes"
        o, values = kind(f'n/many {i}'), [LARGE if k % 7 == 0 else bytes(k*20) for k in range(100)]
        o.update(enumerate(values)) if kind is pk.Dict else o.extend(values)
        return o

    def claim(self):
        "Have a call that this process runs"
        trace, ledger, process = self.work(1), _ledger(self.site), self.site.alive.enter()
        while (id := ledger.claim(process, _environment()[0], time.time())) != trace.id: ledger.finish(process, id, 'finished', encode(None))
        self.id = id

    def finish(self, value):
        ledger = _ledger(self.site)
        ledger.finish(self.site.alive.enter(), self.id, 'finished', ledger._store.prepare(encode(value)))

    def together(self, i, inner, fails=True):
        "A transaction in which `inner` may fail for want of room, and that goes on: with all of that or with nothing"
        with pk.transaction(self.d):
            self.d['count'] = i
            try: inner()
            except pk.StorageFullError:
                if fails: raise

    def several(self, i):
        with pk.transaction(self.d):
            self.d['in', i] = MEDIUM
            self.a.append(LARGE + i)
            self.o.note = f'note {i}'
            del self.d['old blob']
            self.d['old blob'] = LARGE + i
            pk.Array(f'n/in {i}').append(i)

    def savepoints(self, i):
        with pk.transaction(self.d):
            self.d['outer', i] = MEDIUM
            with pk.transaction(self.d): self.d['inner', i] = LARGE
            with pk.transaction(self.d): self.d.update({('inner', i, n): MEDIUM for n in range(3)})

    def given_up(self, i):
        with pk.transaction(self.d):
            self.d['first', i] = self.d['second', i] = LARGE

    def delete_many(self, i):
        with pk.transaction(self.d):
            for n in range(10): del self.d[i, 'gone', n]

    def edit(self, i):
        with self.d.edit('list') as v: v.append(MEDIUM)

    def lock(self, i):
        with pk.Lock(f'n/lock {i}') as taken: assert taken

    def write_file(self, mode, size):
        with self.file.open(mode) as f: f.write(b'after'*size if 'b' in mode else 'text\n'*size)

    def copy_namespace(self, i): pk.Namespace('kept').copy(f'copy{i}')
    def backup(self, i): self.copied(pk.backup, f'{self.site.path}-backup-{i}')
    def restored(self, i): self.copied(pk.restore, f'{self.site.path}-source', f'{self.site.path}-restored')
    def copied(self, copy, *paths):
        copy(*paths)
        assert (pk.Dict('kept/d', site=pk.Site(paths[-1], create=False))['old blob'] == LARGE).all()
        for path in paths: self.remove(path)

    def remove(self, path):
        pk.Site(path).close()
        shutil.rmtree(path)

    def define(self, i, data=None):
        def f(n, i=i): return n + i + len(data or b'')
        pk.task(f)

    def local(self, i):
        class Local(pk.Dict): number, much = i, MEDIUM
        Local('n/local')[i] = 1

    def tidy(self):
        "Remove what the kinds have made"
        for path in set(self.site.namespaces()) - {'n', 'kept', 'other', 'task'}: pk.Namespace(path).drop()
        for name in ('n', 'other'):
            for o in list(pk.Namespace(name)):
                if ' ' in o.name or o.name == 'local': o.drop()
        for key in [k for k in self.d if isinstance(k, tuple) and k[0] != 'many' or isinstance(k, str) and len(k) > 2000]: del self.d[key]
        self.a.clear()
        self.a.extend([SMALL, LARGE])
        self.q.get_many(1000, block=False) if self.q.qsize() else None
        for path in Path(self.site.path).parent.iterdir():
            if path.name != 'site': self.remove(path)


KINDS = dict(  # each a function that makes what the write needs, if it needs something, and the write
    make_object=(None, lambda o, i: pk.Dict(f'n/new {i}', metadata=dict(i=i))),
    make_object_with_much_metadata=(None, lambda o, i: pk.Array(f'n/new {i}', metadata=dict(i=MEDIUM))),
    make_anonymous_object=(None, lambda o, i: setattr(o, 'anonymous', pk.Dict())),
    make_namespace=(None, lambda o, i: pk.Namespace(f'new{i}/below', durable=bool(i % 2))),
    make_object_in_a_new_namespace=(None, lambda o, i: pk.Dict(f'new{i}/d')),
    make_site=(None, lambda o, i: pk.Site(f'{o.site.path}-{i}')),
    **{f'{name}_{size}': (before, lambda o, i, value=value: o.d.update({(i, 'entry'): value}) if i % 2 else o.d.__setitem__((i, 'entry'), value))
       for size, value in dict(small=SMALL, medium=MEDIUM, blob=LARGE).items()
       for name, before in dict(set=None, replace_small_by=lambda o, i: o.d.__setitem__((i, 'entry'), 1), replace_blob_by=lambda o, i: o.d.__setitem__((i, 'entry'), LARGE + 1)).items()},
    set_long_key=(None, lambda o, i: o.d.__setitem__('long'*1000 + str(i), SMALL)),
    set_key_kept_as_given=(None, lambda o, i: o.d.__setitem__((i + 0.0, 'x'*300), LARGE)),
    update=(None, lambda o, i: o.d.update({(i, 'small'): 1, (i, 'medium'): MEDIUM, (i, 'blob'): LARGE, f'{i}'*2001: LARGE, 'old': LARGE})),
    setdefault=(None, lambda o, i: o.d.setdefault((i, 'default'), LARGE)),
    edit=(None, Things.edit),
    attribute=(None, lambda o, i: setattr(o.o, 'note', MEDIUM + bytes(i))),
    attribute_blob=(None, lambda o, i: setattr(o.o, 'large', LARGE + i)),
    metadata=(None, lambda o, i: setattr(o.d, 'metadata', dict(i=i, more=MEDIUM))),
    append=(None, lambda o, i: o.a.append(MEDIUM + bytes(i))),
    append_blob=(None, lambda o, i: o.a.append(LARGE + i)),
    extend=(None, lambda o, i: o.a.extend([i, MEDIUM, LARGE, LARGE, i])),
    set_item=(None, lambda o, i: o.a.__setitem__(1, LARGE + i)),
    append_to_a_full_ring=(None, lambda o, i: o.ring.append(LARGE + i)),
    transaction=(None, Things.several),
    savepoints=(None, Things.savepoints),
    goes_on_after_update=(None, lambda o, i: o.together(i, lambda: o.d.update({(i, n): LARGE for n in range(3)}), False)),
    goes_on_after_extend=(None, lambda o, i: o.together(i, lambda: o.a.extend([LARGE]*3), False)),
    goes_on_after_ring=(None, lambda o, i: o.together(i, lambda: o.ring.extend([LARGE]*3), False)),
    goes_on_after_attribute=(None, lambda o, i: o.together(i, lambda: setattr(o.o, 'large', LARGE), False)),
    goes_on_after_metadata=(None, lambda o, i: o.together(i, lambda: setattr(o.d, 'metadata', dict(i=i, more=MEDIUM)), False)),
    goes_on_after_object=(None, lambda o, i: o.together(i, lambda: pk.Dict(f'n/{"new"*100} {i}', metadata=dict(i=bytes(500))), False)),
    goes_on_after_rename=(lambda o, i: o.many(i), lambda o, i: o.together(i, lambda: pk.Dict(f'n/many {i}').rename(f'{"other"*70} {i}'), False)),
    goes_on_after_copy=(lambda o, i: o.many(i, pk.Array), lambda o, i: o.together(i, lambda: pk.Array(f'n/many {i}').copy(f'n/copy {i}'), False)),
    goes_on_after_put=(None, lambda o, i: o.together(i, lambda: o.q.put_many([LARGE]*3), False)),
    goes_on_after_savepoint=(None, lambda o, i: o.together(i, lambda: o.given_up(i), False)),
    rename=(lambda o, i: o.many(i), lambda o, i: pk.Dict(f'n/many {i}').rename(f'late {i}')),
    copy=(lambda o, i: o.many(i), lambda o, i: pk.Dict(f'n/many {i}').copy(f'n/copy {i}')),
    copy_to_another_namespace=(lambda o, i: o.many(i), lambda o, i: pk.Dict(f'n/many {i}').copy(f'other/copy {i}')),
    anonymous_copy=(lambda o, i: o.many(i), lambda o, i: setattr(o, 'anonymous', pk.Dict(f'n/many {i}').copy())),
    put=(None, lambda o, i: o.q.put((i, MEDIUM))),
    put_many=(None, lambda o, i: o.q.put_many([i, MEDIUM, LARGE, LARGE])),
    take_a_lock=(lambda o, i: pk.Lock(f'n/lock {i}'), Things.lock),
    replace_file=(None, lambda o, i: o.write_file('wb', 1 + i)),
    replace_long_file=(None, lambda o, i: o.write_file('wb', 10_000 + i)),
    append_to_file=(None, lambda o, i: o.write_file('ab', 10_000)),
    write_text=(None, lambda o, i: o.write_file('w', 9_000 + i)),
    copy_namespace=(None, Things.copy_namespace),
    rename_namespace=(lambda o, i: pk.Dict(f'early{i}/d').update(a=LARGE, b=MEDIUM), lambda o, i: pk.Namespace(f'early{i}').rename(f'late{i}')),
    compact=(None, lambda o, i: pk.compact('kept')),
    backup=(None, Things.backup),
    restore=(lambda o, i: pk.backup(f'{o.site.path}-source'), Things.restored),
    define_task=(None, Things.define),
    define_task_with_much_data=(None, lambda o, i: o.define(i, LARGE)),
    submit=(None, lambda o, i: o.work(SMALL)),
    submit_blob=(None, lambda o, i: o.work(LARGE)),
    finish=(lambda o, i: o.claim(), lambda o, i: o.finish(MEDIUM)),
    finish_with_a_blob=(lambda o, i: o.claim(), lambda o, i: o.finish(LARGE)),
    class_stored_by_value=(None, Things.local),
)

DELETIONS = dict(  # which need no room at all
    task_done=(lambda o, i: (o.q.put(i), o.q.get()), lambda o, i: o.q.task_done()),
    set_event=(lambda o, i: o.event.clear(), lambda o, i: o.event.set()),
    clear_event=(lambda o, i: o.event.set(), lambda o, i: o.event.clear()),
    delete=(lambda o, i: o.d.__setitem__((i, 'gone'), SMALL), lambda o, i: o.d.__delitem__((i, 'gone'))),
    delete_blob=(lambda o, i: o.d.__setitem__((i, 'gone'), LARGE), lambda o, i: o.d.pop((i, 'gone'))),
    delete_long_key=(lambda o, i: o.d.__setitem__('gone'*1000 + str(i), SMALL), lambda o, i: o.d.pop('gone'*1000 + str(i))),
    popitem=(lambda o, i: o.d.__setitem__(('~', i), MEDIUM), lambda o, i: o.d.popitem()),
    clear=(lambda o, i: o.many(i), lambda o, i: pk.Dict(f'n/many {i}').clear()),
    drop=(lambda o, i: o.many(i), lambda o, i: pk.Dict(f'n/many {i}').drop()),
    delete_attribute=(lambda o, i: setattr(o.o, 'other', LARGE), lambda o, i: delattr(o.o, 'other')),
    pop=(lambda o, i: o.a.append(LARGE + i), lambda o, i: o.a.pop()),
    popleft=(lambda o, i: o.many(i, pk.Array), lambda o, i: pk.Array(f'n/many {i}').popleft()),
    clear_array=(lambda o, i: o.many(i, pk.Array), lambda o, i: pk.Array(f'n/many {i}').clear()),
    get=(lambda o, i: o.q.put_many([LARGE + i, MEDIUM]), lambda o, i: o.q.get()),
    get_many=(lambda o, i: o.q.put_many([LARGE + i, MEDIUM, SMALL]*20), lambda o, i: o.q.get_many(60, block=False)),
    get_last=(lambda o, i: pk.LifoQueue(f'n/last {i}').put_many([SMALL, LARGE]), lambda o, i: pk.LifoQueue(f'n/last {i}').get()),
    shut_down=(lambda o, i: pk.Queue(f'n/line {i}').put_many([SMALL, LARGE]), lambda o, i: pk.Queue(f'n/line {i}').shutdown(immediate=True)),
    delete_many=(lambda o, i: o.d.update({(i, 'gone', n): LARGE if n % 2 else MEDIUM for n in range(10)}), Things.delete_many),
    drop_namespace=(lambda o, i: pk.Dict(f'gone{i}/d').update(a=LARGE, b=MEDIUM), lambda o, i: pk.Namespace(f'gone{i}').drop()),
)


# --- the tests

_reader = '''
from test_full_disk import contents
while path := hear():
    found = pk.Site(path, create=False)
    try: say(contents(found))
    except Exception as e: say(repr(e))
    found.close()
'''

@pytest.fixture(scope='module')
def reader():
    "Another process, that has nothing open: what it finds in a site"
    with Child('', _reader) as child:
        def read(site):
            child.say(site.path)
            return child.hear()
        yield read
        child.say('')
        child.wait()

class _Rooms:
    "One site, for as long as no test has failed on it and it is not worn"
    def __init__(self, kind, folder): self.kind, self.folder, self.things, self.made = kind, folder, None, 0
    def get(self):
        if self.things is None or self.things.is_spoilt or self.things.room.is_worn():
            self.close()
            self.made += 1
            self.things = Things(self.kind(self.folder/str(self.made)))
        return self.things

    def close(self):
        if self.things is None: return
        self.things.anonymous = None
        if not self.things.is_spoilt: self.things.site.close()
        self.things.room.unmount()

@pytest.fixture(scope='module', params=(Disk, Files, Map, Btrfs, Xfs, Ext4), ids=lambda kind: kind.__name__.lower())
def rooms(request, tmp_path_factory):
    with nobody_runs():
        rooms = _Rooms(request.param, tmp_path_factory.mktemp('rooms'))
        rooms.get()
        yield rooms
        rooms.close()

def _error_of(write, o, i):
    "The `StorageFullError` of a write, with its traceback and all that the frames hold, as a notebook keeps it"
    try: write(o, i)
    except pk.StorageFullError as e: return e

def _check_message(error, room):
    text = str(error)
    assert str(room.path) in text and ('free' in text or 'delete' in text), text
    assert re.search(r'\d+ of \d+ (bytes|files)|map has \d+ bytes', text), text

def _snapshots(site, held):
    "Snapshots, if they are to be held: nothing that is freed can then be used again"
    stack = ExitStack()
    for name in ('n', 'task', '_traces', '_anonymous') if held else ():
        store = site.store(name, True)
        stack.callback(store.end, store.read())
    return stack

def _fails(o, reader, write, i, free, held):
    "Whether a write fails for want of room; then nothing has changed, and deleting works"
    with _snapshots(o.site, held):
        o.room.fill([_filler(store) for store in _stores(o.site)], free)
        before, seen = state(o.site), held and contents(o.site)
        error = _error_of(write, o, i)
        if error is None: return False
        _check_message(error, o.room)
        assert state(o.site) == before, 'a write that failed has changed something'
        del error  # which refers to this frame, and that to it
        if held: assert contents(o.site) == reader(o.site) == seen
        del o.d['spare']
        assert 'spare' not in o.d
    return True

def _run(o, reader, kind, before, write):
    "Write with more and more room, until there is enough; returns how often it was too little"
    failures = 0
    for i, free in enumerate(o.room.steps):
        if before: before(o, i)
        o.d['spare'] = LARGE
        failed = _fails(o, reader, write, i, free, i == 0)
        o.room.empty()
        if failed: write(o, i)
        failures += failed
        if not failed and (not kind.startswith('goes_on') or i >= 7): break
    else: assert isinstance(o.room, Map) or not failed, 'no room though there is room'
    check(o.site)
    o.tidy()
    return failures

@pytest.mark.parametrize('kind', [*KINDS, *DELETIONS])
def test_trap_21_no_room(rooms, reader, kind):
    o = rooms.get()
    o.is_spoilt = True
    failures = _run(o, reader, kind, *(KINDS | DELETIONS)[kind])
    assert not failures if kind in DELETIONS else failures or type(o.room) is not Disk or kind.startswith('goes_on'), failures
    o.is_spoilt = False

@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path/'disk')
    yield disk
    disk.unmount()

def test_room_for_deleting_is_kept_again_by_those_who_did_not_use_it(disk):
    "Another process has deleted on the full disk; this one, which knew that there was room, is to find some for its own deleting later"
    site = pk.set_site(disk.site())
    d = pk.Dict('n/d')
    d.update({i: MEDIUM for i in range(20)})
    reserve = Path(d._store.path, 'reserve')
    assert reserve.stat().st_size
    with Child(site, "d = pk.Dict('n/d'); say(hear()); d.pop(0); say()") as child:
        disk.fill([_filler(d._store)], 0)
        child.say()
        child.hear(), child.hear()
        child.wait()
    assert not reserve.stat().st_size
    disk.empty()
    for i in range(2**24//len(MEDIUM)): d['much'] = MEDIUM
    assert reserve.stat().st_size
    site.close()

@pytest.mark.parametrize('kind', [Btrfs, Xfs])
def test_copy_of_a_site_that_shares_its_blocks(kind, tmp_path):
    "Of a snapshot or a copy: on a full disk, who writes to a shared block through a map would be killed"
    disk = kind(tmp_path/'disk')
    make, share = (('btrfs', 'subvolume', 'create'), ('btrfs', 'subvolume', 'snapshot')) if kind is Btrfs else (('mkdir',), ('cp', '-r', '--reflink=always'))
    try:
        paths = [f'{disk.path}/one', f'{disk.path}/two']
        subprocess.run([*make, paths[0]], check=True)
        run(f'{paths[0]}/site', "pk.Dict('n/d')['a'] = 1; say()")
        subprocess.run([*share, *paths], check=True)
        disk._fill(0)
        for path in paths:
            error = run(f'{path}/site', "say(failure(lambda: pk.Dict('n/d')['a']))")
            assert error['type'] == 'StorageFullError' and 'free some' in error['message'], error
        disk.empty()
        for path in paths: assert run(f'{path}/site', "d = pk.Dict('n/d'); d['b'] = 2; say([d['a'], len(d)])") == [1, 2]
    finally: disk.unmount()

def test_disk_that_is_gone(tmp_path):
    "A file system that has shut itself down, as XFS does when it meets an error: nothing is taken for missing or empty"
    disk = Xfs(tmp_path/'disk')
    try:
        if shutil.which('xfs_io') is None: pytest.skip('xfs_io is not installed')
        site = pk.set_site(f'{disk.path}/site')
        d, e = pk.Dict('n/d'), pk.Dict(pk.Namespace('s', durable=False).path + '/d')
        d.update(a=1, big=np.zeros(MIB))
        e['a'] = pk.Dict()
        subprocess.run(['xfs_io', '-x', '-c', 'shutdown', str(disk.path)], check=True)
        works = dict(big=lambda: d['big'], set=lambda: d.update(a=2), set_big=lambda: d.update(a=LARGE), scratch=lambda: e.update(a=2), make=lambda: pk.Dict('n/e'), namespace=lambda: pk.Dict('m/e'), drop=d.drop,
                     namespaces=pk.namespaces, check=pk.check, gc=pk.gc, doctor=pk.doctor, site=lambda: pk.Site(site.path), compact=lambda: pk.compact('n'), copy=lambda: pk.Namespace('n').copy('m'))
        for name, work in works.items():
            with pytest.raises(pk.SiteError, match='Input/output error|free') as found: work()
            assert 'dropped' not in str(found.value), (name, found.value)
        assert d['a'] == 1
        del e
        gc.collect()
        site.close()
    finally: disk.unmount()
