"""Every kind of write on a full disk, a disk without files left, and in a full map: it comes to nothing and says why,
all that was stored stays readable, deleting works, and so does the same write once there is room.

A notebook has no small disk to mount. `kinds` lists the writes; one more function there is one more kind."""
import hashlib, os, re, shutil, signal, subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np, psutil, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, forked
from parkit.codecs import BLOB, decode, encode, split_key
from parkit.objects import _HEAD, _Info
from parkit.storage import BLOBS, KEY_LIMIT, META, NAMES, OBJECTS, TRASH
from parkit.tasks import _ledger, _runner

PAGE, KIB, MIB = 4096, 2**10, 2**20
INLINE = 8*KIB  # the site's limit: blobs of a few pages, so that a disk is soon just too full for each step of a write
SMALL, MEDIUM, LARGE = b'small', bytes(6*KIB), np.arange(2*KIB)  # within a page of LMDB's, in pages of its own, a blob


# --- rooms of all kinds, to be filled up and emptied

class Disk:
    "A small disk"
    options = 'size=16m'
    steps = [*range(9), 11, 13, 16, 20, 25, 33, 45, 64, 80, 97, 110, 130, 160, 200, 300, 301]  # pages that are left for a write
    is_needed = True
    def __init__(self, path):
        self.path, self.filler = path, path/'filler'
        path.mkdir()
        command = ['mount', '-t', 'tmpfs', '-o', self.options, 'tmpfs', str(path)]
        try: self.is_mounted = subprocess.run(command, capture_output=True, timeout=10).returncode == 0
        except OSError: self.is_mounted = False
        if self.is_needed and not self.is_mounted: pytest.skip('no disk can be mounted here')

    def site(self): return pk.Site(self.path/'sites/site', inline_limit=INLINE)

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

class Inodes(Disk):
    "A disk with much room, but for few files"
    options = 'size=64m,nr_inodes=350'
    steps = [*range(9), 12, 20, 30, 31]  # files that are left
    def fill(self, fillers, files):
        "Leave so many files to be made"
        self.filler.mkdir(exist_ok=True)
        for n in range(os.statvfs(self.path).f_favail - files): os.close(os.open(f'{self.filler}/{n}', os.O_CREAT | os.O_EXCL))

    def empty(self): shutil.rmtree(self.filler)

class Map(Disk):
    "Namespaces whose maps are small"
    options = 'size=256m'
    steps = [0, 0, 1, 4, 16, 60, 61]  # entries that are taken out again; twice none, for some namespaces are made by the first write
    is_needed = False
    def site(self): return pk.Site(self.path/'sites/site', map_size=2*MIB, inline_limit=INLINE)

    def fill(self, fillers, pages):
        self.filled = fillers
        for filler in fillers:
            for size in (6000, 3000, 1): fill(filler, size)
            for key in list(filler)[:pages]: del filler[key]

    def empty(self):
        for filler in self.filled:
            if filler.exists: filler.clear()

def fill(d, size):
    "Add entries until there is no room"
    for many in (50, 1):
        try:
            while len(d) < 10_000: d.update({len(d) + i: bytes(size) for i in range(many)})
        except pk.StorageFullError: continue
        raise AssertionError('there is always room')

def _room(kind):
    @pytest.fixture
    def room(tmp_path):
        room = kind(tmp_path/'room')
        try:
            yield room
            room.site().close()
        finally: room.unmount()
    return room

disk, inodes, full_map = map(_room, (Disk, Inodes, Map))


# --- what is stored, and whether it is whole

def _digest(value):
    data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    return hashlib.sha1(data).hexdigest()

def contents(site):
    "Every value of every object of `site`, read as its user reads it: the same in all processes"
    found = {}
    for path in site.namespaces():
        for o in pk.Namespace(path, site=site):
            if isinstance(o, pk.Dict): values = {repr(k): _digest(v) for k, v in o.items()}
            elif isinstance(o, pk.Array): values = [_digest(v) for v in o]
            elif isinstance(o, pk.Task): values = [o.version, o(2, sync=True), o.default_sync]
            elif isinstance(o, pk.Queue): values = [o.qsize(), o.maxsize]
            else: values = [_digest(getattr(o, name, None)) for name in ('note', 'other', 'large')]
            found[o.path] = [values, len(values), _digest(o.metadata), o.version]
    return found

def _records(store):
    "All that LMDB holds of a namespace"
    txn = store.read()
    try: return {bytes(k): bytes(v) for k, v in txn.cursor() if bytes(k) != META + b'turn'}
    finally: store.end(txn)

def _stores(site): return [site.store(path, True) for path in site.namespaces(reserved=True)]

def tables(site): return {store.namespace: _records(store) for store in _stores(site)}

def files(site):
    "The files of a site, and of what lies beside it, and their sizes; those of LMDB, and what tells who lives, aside"
    folder = Path(site.path).parent
    paths = (path for path in folder.rglob('*') if path.is_file() and path.suffix != '.mdb')
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths if path.parent.name not in ('alive', 'locks') and path.name not in ('reserve', 'setup.lock')}

def _count(records, prefix, lowest=b''):
    "How many entries lie below an id, those below the nodes of long keys included"
    keys = [k for k in records if k.startswith(prefix) and k[8:9] >= lowest]
    return sum(_count(records, records[k][1:]) if len(k) == KEY_LIMIT else 1 for k in keys)

def _is_blob(record): return record[:1] == bytes((BLOB,))

def check_store(store):
    "The names, objects, counts and blobs of a namespace fit together"
    records = _records(store)
    names, objects, blobs, trash = ({k[1:]: v for k, v in records.items() if k[:1] == t} for t in (NAMES, OBJECTS, BLOBS, TRASH))
    infos = {oid: _Info(*decode(v)) for oid, v in objects.items()}
    assert {i.name.encode(): oid for oid, i in infos.items() if i.name} == names
    nodes = {v[1:] for k, v in records.items() if len(k) == KEY_LIMIT}
    assert {k[:8] for k in records if not k[0]} == set(infos) | nodes, 'entries of no object, or an object without a head'
    values = [bytes(split_key(v)[1]) for k, v in records.items() if not k[0] and k not in infos and v]
    assert sorted(v[1:17] for v in values if _is_blob(v)) == sorted(blobs), 'blobs are not those that entries refer to'
    on_disk = {bytes.fromhex(name) for name in os.listdir(f'{store.path}/blobs')}
    assert on_disk == set(blobs) | {k[8:] for k in trash}, 'blobs are not those on disk'
    assert not os.listdir(f'{store.path}/new'), 'left by a write that came to nothing'
    for oid, info in infos.items():
        if info.type not in ('parkit.Dict', 'parkit.Array', 'parkit.Queue', 'parkit.LifoQueue'): continue
        assert _HEAD.unpack(records[oid])[0] == _count(records, oid, b'\2'), f'the count of {info.name!r}'

def check(site):
    for store in _stores(site): check_store(store)


# --- the kinds of writes: each function makes what it needs, and returns the write, which tells whether it took effect

thorough = {'transaction', 'delete_in_a_transaction'}  # after which all that `pk.check` looks at is looked at
kinds, deletes, goes_on = {}, set(), set()

def kind(function=None, *, deletes_only=False):
    if function is None: return lambda f: kind(f, deletes_only=deletes_only)
    kinds[function.__name__] = function
    if deletes_only: deletes.add(function.__name__)
    return function

deletion = kind(deletes_only=True)


class Noted(pk.Object):
    note = ''


class Things:
    "A site on a small disk, and objects to write to"
    def __init__(self, site, durable):
        self.site = pk.set_site(site)
        pk.Namespace('n', durable=durable)
        self.d, self.a, self.o = pk.Dict('n/d'), pk.Array('n/a'), Noted('n/o')
        self.ring = pk.Array('n/ring', maxsize=3)
        self.d.update({'old': MEDIUM, 'old blob': LARGE, 'list': [1]})
        self.d['k'*2000] = 1
        self.d.update({('many', n): bytes(n) for n in range(300)})  # a tree with branches
        self.a.extend([SMALL, LARGE])
        self.ring.extend([MEDIUM, LARGE, SMALL])
        self.q = pk.Queue('n/q')
        self.o.note, self.o.large = 'a note', LARGE
        pk.Dict('kept/d').update({'old': MEDIUM, 'old blob': LARGE})

    def exhaust(self, room, free): room.fill([_filler(store) for store in _stores(self.site)], free)

    def add_spare(self): self.d['spare'] = LARGE

    def delete_spare(self):
        del self.d['spare']
        assert 'spare' not in self.d


def _filler(store):
    "A hidden `Dict` that takes up room in a namespace"
    d = pk.Dict.__new__(pk.Dict)
    d._open(f'{store.namespace}/_filler', True, True, None, store.site, reserved=True)
    return d


@kind
def make_object(o, i):
    return lambda: pk.Dict(f'n/new {i}', metadata=dict(i=i)).exists

@kind
def make_object_with_much_metadata(o, i):
    return lambda: pk.Array(f'n/new {i}', metadata=dict(i=MEDIUM)).metadata['i'] == MEDIUM

@kind
def make_anonymous_object(o, i):
    return lambda: pk.Dict().exists

@kind
def make_namespace(o, i):
    return lambda: pk.Namespace(f'new{i}/below', durable=bool(i % 2)).exists

@kind
def make_object_in_a_new_namespace(o, i):
    return lambda: pk.Dict(f'new{i}/d').exists

@kind
def make_site(o, i):
    def write():
        site = pk.Site(f'{o.site.path}-{i}')
        return site.namespaces() == []
    return write


def _setting(name, value, *old):
    "The kind of writes that set an entry to `value`, in place of an old one or not"
    def setting(o, i):
        for v in old: o.d[i, 'entry'] = v
        def write():
            o.d[i, 'entry'] = value
            return _digest(o.d[i, 'entry']) == _digest(value)
        return write
    setting.__name__ = name
    return kind(setting)

for _size, _value in dict(small=SMALL, medium=MEDIUM, blob=LARGE).items():
    _setting(f'set_{_size}', _value)
    _setting(f'replace_small_by_{_size}', _value, 1)
    _setting(f'replace_blob_by_{_size}', _value, LARGE + 1)

@kind
def set_long_key(o, i):
    def write():
        o.d['long'*1000 + str(i)] = SMALL
        return o.d['long'*1000 + str(i)] == SMALL
    return write

@kind
def set_key_kept_as_given(o, i):
    def write():
        o.d[i + 0.0, 'x'*300] = LARGE
        return (o.d[i, 'x'*300] == LARGE).all()
    return write

@kind
def update(o, i):
    new = {(i, 'small'): 1, (i, 'medium'): MEDIUM, (i, 'blob'): LARGE, f'{i}'*1000: LARGE, 'old': LARGE}
    def write():
        o.d.update(new)
        return all(_digest(o.d[k]) == _digest(v) for k, v in new.items())
    return write

@kind
def setdefault(o, i):
    return lambda: (o.d.setdefault(('default', i), LARGE) == LARGE).all()

@kind
def edit(o, i):
    o.d['edited', i] = [MEDIUM]
    def write():
        with o.d.edit(('edited', i)) as v: v.append(MEDIUM + b'1')
        return len(o.d['edited', i]) == 2
    return write

@kind
def attribute(o, i):
    def write():
        o.o.note = MEDIUM + str(i).encode()
        return o.o.note.endswith(str(i).encode())
    return write

@kind
def attribute_blob(o, i):
    def write():
        o.o.large = LARGE + i
        return (o.o.large == LARGE + i).all()
    return write

@kind
def metadata(o, i):
    def write():
        o.d.metadata = dict(i=i, more=MEDIUM)
        return o.d.metadata['i'] == i
    return write

@kind
def append(o, i):
    def write():
        o.a.append(MEDIUM + bytes(i))
        return len(o.a[-1]) == len(MEDIUM) + i
    return write

@kind
def append_blob(o, i):
    def write():
        o.a.append(LARGE + i)
        return (o.a[-1] == LARGE + i).all()
    return write

@kind
def extend(o, i):
    def write():
        o.a.extend([i, MEDIUM, LARGE, LARGE, i])
        return o.a[-1] == o.a[-5] == i
    return write

@kind
def set_item(o, i):
    def write():
        o.a[1] = LARGE + i
        return (o.a[1] == LARGE + i).all()
    return write

@kind
def append_to_a_full_ring(o, i):
    def write():
        o.ring.append(LARGE + i)
        return (o.ring[-1] == LARGE + i).all() and len(o.ring) == 3
    return write

@kind
def transaction(o, i):
    def write():
        with pk.transaction(o.d):
            o.d['in', i] = MEDIUM
            o.a.append(LARGE + i)
            o.o.note = f'note {i}'
            del o.d['old blob']
            o.d['old blob'] = LARGE + i
            pk.Array(f'n/in {i}').append(i)
        return pk.Array(f'n/in {i}')[0] == i and (o.d['old blob'] == o.a[-1]).all()
    return write

@kind
def savepoint(o, i):
    def write():
        with pk.transaction(o.d):
            o.d['outer', i] = MEDIUM
            with pk.transaction(o.d): o.d['inner', i] = LARGE
            with pk.transaction(o.d): o.d.update({('inner', i, n): MEDIUM for n in range(3)})
        return o.d['outer', i] == o.d['inner', i, 2]
    return write

@kind
def savepoint_that_is_given_up(o, i):
    def write():
        with pk.transaction(o.d):
            o.d['outer', i] = MEDIUM
            try:
                with pk.transaction(o.d):
                    o.d['first', i] = LARGE
                    o.d['second', i] = LARGE
            except pk.StorageFullError: pass
            assert (('first', i) in o.d) == (('second', i) in o.d)
        return o.d['outer', i] == MEDIUM
    return write

goes_on.add('savepoint_that_is_given_up')

def _goes_on_after(name, work):
    "The kind of transactions that catch what `work` raises, and commit: with all of it or with nothing"
    def transaction(o, i):
        pk.Array(f'n/some {i}').extend([LARGE]*3)
        def write():
            with pk.transaction(o.d):
                o.d['count'] = i
                try: work(o, i)
                except pk.StorageFullError: pass
            return o.d['count'] == i
        return write
    transaction.__name__ = f'transaction_goes_on_after_{name}'
    goes_on.add(transaction.__name__)
    return kind(transaction)

for _name, _work in dict(
    update=lambda o, i: o.d.update({(i, n): LARGE for n in range(3)}),
    extend=lambda o, i: o.a.extend([LARGE]*3),
    ring=lambda o, i: o.ring.extend([LARGE]*3),
    attribute=lambda o, i: setattr(o.o, 'large', LARGE),
    metadata=lambda o, i: setattr(o.d, 'metadata', dict(i=i, more=MEDIUM)),
    object=lambda o, i: pk.Dict(f'n/{"new"*100} {i}', metadata=dict(i=bytes(500))),
    rename=lambda o, i: o.o.rename(f'{"other"*70} {i}'),
    copy=lambda o, i: pk.Array(f'n/some {i}').copy(f'n/copy {i}'),
    put=lambda o, i: o.q.put_many([LARGE]*3),
).items(): _goes_on_after(_name, _work)


@kind
def rename(o, i):
    a = pk.Array(f'n/early {i}')
    def write():
        a.rename(f'late {i}')
        return a.name == f'late {i}' and f'early {i}' not in pk.Namespace('n')
    return write

def _copying(name, path):
    def copying(o, i):
        d = pk.Dict(f'n/source {i}')
        d.update({'a': LARGE, 'b': MEDIUM, 'k'*1000 + 'l': MEDIUM + b'1'})
        def write():
            copy = d.copy(path and path.format(i))
            return (copy['a'] == LARGE).all() and copy['b'] == copy['k'*1000 + 'l'][:-1] == MEDIUM and len(copy) == 3
        return write
    copying.__name__ = name
    return kind(copying)

_copying('copy', 'n/copy {}'), _copying('copy_to_another_namespace', 'other/copy {}'), _copying('anonymous_copy', None)

@kind
def put(o, i):
    n = o.q.qsize()
    def write():
        o.q.put((i, MEDIUM))
        return o.q.qsize() == n + 1
    return write

@kind
def put_many(o, i):
    n = o.q.qsize()
    def write():
        o.q.put_many([i, MEDIUM, LARGE, LARGE])
        return o.q.qsize() == n + 4
    return write

@deletion
def get(o, i):
    o.q.put_many([LARGE + i, MEDIUM])
    return lambda: o.q.get() is not None

@deletion
def get_many(o, i):
    o.q.put_many([LARGE + i, MEDIUM, SMALL]*20)
    return lambda: len(o.q.get_many(60, block=False)) == 60

@deletion
def get_last(o, i):
    q = pk.LifoQueue(f'n/lifo {i}')
    q.put_many([SMALL, LARGE + i])
    return lambda: (q.get() == LARGE + i).all()

@kind
def task_done(o, i):
    o.q.put(i)
    o.q.get()
    def write():
        o.q.task_done()
        return True
    return write

@deletion
def shut_down(o, i):
    q = pk.Queue(f'n/queue {i}')
    q.put_many([SMALL, LARGE])
    def write():
        q.shutdown(immediate=True)
        return q.empty()
    return write

@kind
def set_event(o, i):
    event = pk.Event(f'n/event {i}')
    def write():
        event.set()
        return event.is_set()
    return write

@deletion
def clear_event(o, i):
    event = pk.Event(f'n/event {i}')
    event.set()
    def write():
        event.clear()
        return not event.is_set()
    return write

@kind
def take_a_lock(o, i):
    lock = pk.Lock(f'n/lock {i}')
    def write():
        with lock: return lock.locked() and lock.holder == os.getpid()
    return write

def _file(name, mode, size):
    def file(o, i):
        f = pk.File(f'n/file {i}')
        with f.open('wb') as before: before.write(b'before'*size)
        def write():
            with f.open(mode) as new: new.write(b'after'*size)
            return bytes(f.content[-5:]) == b'after' and (f.size == 11*size) == (mode == 'ab')
        return write
    file.__name__ = name
    return kind(file)

_file('replace_file', 'wb', 1), _file('replace_long_file', 'wb', 10_000), _file('append_to_file', 'ab', 10_000)

@kind
def new_text_file(o, i):
    f = pk.File(f'n/text {i}')
    def write():
        with f.open('w') as new: new.write('text\n'*5000)
        with f.open('r') as new: return new.read() == 'text\n'*5000
    return write

@kind
def copy_namespace(o, i):
    def write():
        copy = pk.Namespace('kept').copy(f'copy{i}')
        done = (copy['d']['old blob'] == LARGE).all()
        copy.drop()
        return done
    return write

@kind
def rename_namespace(o, i):
    pk.Dict(f'early{i}/d').update(a=LARGE, b=MEDIUM)
    def write():
        namespace = pk.Namespace(f'early{i}')
        namespace.rename(f'late{i}')
        done = (namespace['d']['a'] == LARGE).all() and not pk.Namespace(f'early{i}').exists
        namespace.drop()
        return done
    return write

@deletion
def drop_namespace(o, i):
    pk.Dict(f'gone{i}/d').update(a=LARGE, b=MEDIUM)
    def write():
        pk.Namespace(f'gone{i}').drop()
        return f'gone{i}' not in pk.namespaces()
    return write

@kind
def compact(o, i):
    def write(): return pk.compact('kept') is not None
    return write

@kind
def back_up(o, i):
    target = f'{o.site.path}-backup-{i}'
    def write():
        pk.backup(target)
        done = (pk.Dict('kept/d', site=pk.Site(target, create=False))['old blob'] == LARGE).all()
        pk.Site(target).close()
        shutil.rmtree(target)
        return done
    return write

@kind
def restore(o, i):
    source, target = f'{o.site.path}-source-{i}', f'{o.site.path}-restored-{i}'
    pk.backup(source)
    def write():
        pk.restore(source, target)
        done = (pk.Dict('kept/d', site=pk.Site(target, create=False))['old blob'] == LARGE).all()
        for path in (source, target):
            pk.Site(path).close()
            shutil.rmtree(path)
        return done
    return write

# the tasks' own functions are called, since a pool is another process: that is below

@kind
def define_task(o, i):
    def write():
        def f(n, i=i): return n + i
        return pk.task(f)(3, sync=True) == 3 + i
    return write

@kind
def define_task_with_much_data(o, i):
    data = LARGE
    def write():
        def g(n, i=i): return n + i + int(data[0])
        return pk.task(g)(3, sync=True) == 3 + i
    return write

def _submission(name, value):
    def submission(o, i):
        f = pk.task(name='work')(lambda v: v)
        def write(): return f(value).status == 'submitted'
        return write
    submission.__name__ = name
    return kind(submission)

_submission('submit', SMALL), _submission('submit_blob', LARGE)

def _result(name, value):
    def result(o, i):
        f = pk.task(name='work')(lambda v: v)
        trace, ledger, process = f(i), _ledger(o.site), o.site.alive.enter()
        while ledger.claim(process) != trace.id: ledger.finish(process, trace.id, 'finished', b'')
        def write():
            ledger.finish(process, trace.id, 'finished', ledger._store.prepare(encode(value)))
            return trace.status == 'finished' and _digest(trace.result) == _digest(value)
        return write
    result.__name__ = name
    return kind(result)

_result('finish', SMALL), _result('finish_with_a_blob', LARGE)

def _local_class(i):
    class Local(pk.Dict):
        number, much = i, MEDIUM
        def twice(self): return 2*self.number
    return Local

@kind
def class_stored_by_value(o, i):
    return lambda: _local_class(i)(f'n/local {i}').twice() == 2*i == pk.Namespace('n')[f'local {i}'].number*2

@kind
def class_stored_anew(o, i):
    _local_class(i)(f'n/local {i}')
    d = _local_class(i + 1)(f'n/local {i}')
    def write():
        d['a'] = 1
        return pk.Namespace('n')[f'local {i}'].number == i + 1
    return write


@deletion
def delete(o, i):
    o.d['gone', i] = SMALL
    def write():
        del o.d['gone', i]
        return ('gone', i) not in o.d
    return write

@deletion
def delete_blob(o, i):
    o.d['gone', i] = LARGE
    return lambda: (o.d.pop(('gone', i)) == LARGE).all() and ('gone', i) not in o.d

@deletion
def delete_long_key(o, i):
    o.d['gone'*1000 + str(i)] = LARGE
    return lambda: (o.d.pop('gone'*1000 + str(i)) == LARGE).all()

@deletion
def popitem(o, i):
    o.d[('~', i)] = MEDIUM
    return lambda: o.d.popitem()[1] is not None

@deletion
def clear(o, i):
    d = pk.Dict(f'n/many {i}')
    d.update({k: LARGE if k % 7 == 0 else bytes(k*20) for k in range(100)})
    def write():
        d.clear()
        return len(d) == 0 == len(list(d))
    return write

@deletion
def drop(o, i):
    d = pk.Dict(f'n/many {i}')
    d.update({k: LARGE if k % 7 == 0 else bytes(k*20) for k in range(100)})
    def write():
        d.drop()
        return not d.exists and f'many {i}' not in pk.Namespace('n')
    return write

@deletion
def delete_attribute(o, i):
    o.o.other = LARGE
    def write():
        del o.o.other
        return not hasattr(o.o, 'other')
    return write

@deletion
def pop(o, i):
    o.a.append(LARGE + i)
    return lambda: (o.a.pop() == LARGE + i).all()

@deletion
def popleft(o, i):
    a = pk.Array(f'n/left {i}')
    a.extend([LARGE + i, SMALL, MEDIUM])
    return lambda: (a.popleft() == LARGE + i).all() and len(a) == 2

@deletion
def clear_array(o, i):
    a = pk.Array(f'n/left {i}')
    a.extend([LARGE, MEDIUM, SMALL]*30)
    def write():
        a.clear()
        return len(a) == 0 == len(list(a))
    return write

@deletion
def delete_in_a_transaction(o, i):
    o.d.update({('gone', i, n): LARGE if n % 2 else MEDIUM for n in range(10)})
    def write():
        with pk.transaction(o.d):
            for n in range(10): del o.d['gone', i, n]
        return not any(isinstance(k, tuple) and k[:2] == ('gone', i) for k in o.d)
    return write


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

class _Nobody:
    "Leaves calls in the queue"
    def ensure(self, site): pass

@pytest.fixture
def nobody_works():
    before, _runner[:] = _runner[:], [_Nobody()]
    yield
    _runner[:] = before

def _error_of(write):
    "The `StorageFullError` of a write, with its traceback and all that the frames hold, as a notebook keeps it"
    try: assert write(), 'it has had no effect, and not said so'
    except pk.StorageFullError as e: return e

def _check_message(error, room):
    text = str(error)
    assert str(room.path) in text and ('free' in text or 'delete' in text), text
    assert re.search(r'\d+ of \d+ (bytes|files)|map has \d+ bytes', text), text

def _snapshots(site, held):
    "Snapshots, if they are to be held: nothing that is freed can then be used again"
    stack = ExitStack()
    for name in (NAMESPACES & set(site.namespaces(True))) if held else ():
        store = site.store(name, True)
        stack.callback(store.end, store.read())
    return stack

def _fails(o, room, reader, write, free, held):
    "Whether a write fails for want of room; then nothing has changed, and deleting works"
    with _snapshots(o.site, held):
        o.exhaust(room, free)
        before = tables(o.site), files(o.site), contents(o.site)
        error = _error_of(write)
        if error is None: return False
        _check_message(error, room)
        assert (tables(o.site), files(o.site)) == before[:2], 'a write that failed has changed something'
        del error  # which refers to this frame, and that to it
        assert contents(o.site) == before[2] and (free or reader(o.site) == before[2])
        o.delete_spare()
    return True

NAMESPACES = {'n', 'task', '_traces', '_anonymous'}  # that kinds write to

# Kinds that need no room of one sort: on a full disk what deletes may use a reserve, and so may in a full map what is small
no_disk = deletes | {'replace_blob_by_small', 'replace_blob_by_medium', 'finish', 'rename', 'transaction_goes_on_after_rename'}
no_files = deletes | {'make_object', 'make_object_with_much_metadata', 'set_small', 'set_medium', 'replace_small_by_small', 'replace_small_by_medium',
                      'replace_blob_by_small', 'replace_blob_by_medium', 'set_long_key', 'attribute', 'metadata', 'append', 'rename', 'put', 'task_done',
                      'set_event', 'finish', 'class_stored_by_value', 'class_stored_anew'}
no_map = deletes | {'task_done', 'set_event', 'take_a_lock', 'make_site', 'make_namespace', 'make_object_in_a_new_namespace',
                    'back_up', 'restore', 'compact', 'copy_namespace', 'rename_namespace'}

def run_kind(room, reader, kind, durable):
    "Write with more and more room, until there is enough; returns how often it was too little"
    site = room.site()
    o, failures, successes = Things(site, durable), 0, 0
    for i, free in enumerate(room.steps):
        write = kinds[kind](o, i)
        o.add_spare()
        failed = _fails(o, room, reader, write, free, i == 0)
        room.empty()
        if failed: assert write()
        check(site)
        failures, successes = failures + failed, 0 if failed else successes + 1
        if successes == (8 if kind in goes_on else 2): break
    assert successes > 1 or kind in goes_on, 'no room though there is room'
    if kind in thorough: assert not pk.check(site)
    return failures


@pytest.mark.parametrize('kind', kinds)
def test_trap_21_no_room_on_the_disk(disk, reader, nobody_works, kind):
    failures = run_kind(disk, reader, kind, durable=True)
    assert (failures == 0) == (kind in no_disk) or kind in goes_on, failures


@pytest.mark.parametrize('kind', [kind for kind in kinds if kind not in no_files])
def test_trap_21_no_files_left_on_the_disk(inodes, reader, nobody_works, kind):
    assert run_kind(inodes, reader, kind, durable=False) or kind in goes_on


def test_trap_21_writes_that_make_no_file_need_none(inodes, nobody_works):
    o = Things(inodes.site(), durable=False)
    for i, kind in enumerate(sorted(no_files)):
        write = kinds[kind](o, i)
        o.exhaust(inodes, 0)
        print(kind)
        assert write()
        inodes.empty()
    check(o.site)


@pytest.mark.parametrize('kind', kinds)
def test_trap_21_no_room_in_the_map(full_map, reader, nobody_works, kind):
    failures = run_kind(full_map, reader, kind, durable=False)
    assert (failures == 0) == (kind in no_map) or kind in goes_on, failures


# --- the pool, whose processes have nobody to catch their errors

@pytest.fixture
def pool(disk):
    "A pool of two workers on a small disk, and a task that waits for a file before it returns what takes a page"
    pk.set_site(disk.site())
    pool = pk.Pool()
    pool.resize(2)
    yield pool
    disk.filler.unlink(missing_ok=True)
    pool.stop()

@pytest.fixture
def work(pool):
    @pk.task
    def work(n, go):
        import os, time
        while not os.path.exists(go): time.sleep(0.01)
        return n, bytes(3000)
    return work

def _exhaust(pool, disk, pages=0): disk.fill([_filler(store) for store in _stores(pool.site)], pages)

def _kept_back(pool): return Path(pool.site.path, '_traces/@/reserve').stat().st_blocks

def _busy(pool):
    "Wait until both workers have a call in hand and all is on record; returns the status"
    assert wait_for(lambda: pool.status.running == len(pool.status.workers) == 2 and _kept_back(pool))
    return pool.status

def _is_full(pool, disk):
    "Whether nothing of the disk is left, not even of what was kept back"
    return not os.statvfs(disk.path).f_bavail and not _kept_back(pool)

def test_trap_21_workers_wait_for_room(pool, work, disk, tmp_path):
    "Results that find none are kept, not lost with their worker"
    go = tmp_path/'go'
    traces = [work(n, str(go)) for n in range(150)]
    before = _busy(pool)
    _exhaust(pool, disk)
    go.touch()
    assert wait_for(lambda: _is_full(pool, disk))
    done = wait_for(lambda: sum(trace.status == 'finished' for trace in traces))
    assert done < 150 and {trace.status for trace in traces} == {'submitted', 'running', 'finished'}
    disk.empty()
    assert [trace.result[0] for trace in traces] == list(range(150))
    assert pool.status == before._replace(running=0, queued=0)


def test_trap_21_worker_killed_on_a_full_disk(pool, work, disk, tmp_path):
    traces = [work(n, str(tmp_path/'go')) for n in range(4)]
    before = _busy(pool)
    _exhaust(pool, disk)
    for pid in before.workers: os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not any(map(psutil.pid_exists, before.workers)))
    disk.empty()
    (tmp_path/'go').touch()
    assert [trace.result[0] for trace in traces[2:]] == [2, 3]
    for trace in traces[:2]:
        with pytest.raises(pk.WorkerCrashedError, match='SIGKILL'): trace.result
    assert pool.status.supervisor == before.supervisor


def test_trap_21_pool_stops_on_a_full_disk(pool, work, disk, tmp_path):
    traces = [work(n, str(tmp_path/'go')) for n in range(150)]
    before = _busy(pool)
    _exhaust(pool, disk)
    (tmp_path/'go').touch()
    assert wait_for(lambda: _is_full(pool, disk))
    pool.stop()
    assert wait_for(lambda: not any(map(psutil.pid_exists, (before.supervisor, *before.workers))))
    disk.empty()
    ended = [wait_for(lambda: trace.done and trace.status) for trace in traces]
    assert ended.count('crashed') <= 2 and set(ended) <= {'finished', 'crashed'}
    assert work(1, str(tmp_path/'go')).result[0] == 1


def test_trap_21_first_call_on_a_full_disk(pool, work, disk, tmp_path):
    "It fails at once and says why, or runs once there is room; it is not both refused and run"
    (tmp_path/'go').touch()
    for pages in range(30):
        _exhaust(pool, disk, pages)
        error = None
        try: trace = work(pages, str(tmp_path/'go'))
        except pk.StorageFullError as e: error = e
        disk.empty()
        if error is None: break
        assert str(disk.path) in str(error)
        assert not pool.status.queued and not pool.status.supervisor
    assert error is None and wait_for(lambda: trace.done, 20)
    assert trace.result[0] == pages if trace.status == 'finished' else str(disk.path) in str(trace.error)
    assert work(3, str(tmp_path/'go')).result[0] == 3


def test_trap_21_fork_on_a_full_disk(disk):
    "A child that is to hold what its parent holds is registered; that there is no room for it does not keep it from living"
    pk.set_site(disk.site())
    d, kept = pk.Dict(), pk.Dict('n/d')
    d['a'] = LARGE
    kept['a'] = LARGE
    disk.fill([], 0)
    assert forked(lambda: [(o['a'] == LARGE).all() for o in (d, kept)]) == [True, True]
    assert (d['a'] == LARGE).all()
    disk.empty()
    assert forked(lambda: d.update(b=1)) is None and d['b'] == 1
