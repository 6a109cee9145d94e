"""Sites on disks that are full, foreign, remote or damaged, limits reached, and machines that were restarted.

A notebook has no second user, no small disk to mount, and no second process to stand in the way."""
import hashlib, json, os, re, shutil, signal, subprocess, sys, threading, warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, blobs, forked, run
from parkit.storage import FORMAT, Store

MIB = 2**20
is_root = pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a file away or mount a disk')


def _fails(error, *parts):
    "The block raises `error`, a `ParkitError`, whose message has all `parts`"
    assert issubclass(error, pk.ParkitError)
    return pytest.raises(error, match='.*'.join(map(re.escape, parts)) or None)

def _command_works(*command):
    try: return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except OSError: return False


# --- where a site may lie

def test_file_in_the_way(tmp_path):
    (tmp_path/'file').touch()
    for path in (tmp_path/'file', tmp_path/'file/below'):
        with _fails(pk.SiteError, str(path)): pk.Site(path)


def test_directory_of_other_things_is_left_alone(tmp_path):
    (tmp_path/'thesis.tex').touch()
    with _fails(pk.SiteError, 'thesis.tex', 'choose an empty or a new one'): pk.Site(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


@is_root
def test_site_of_another_user(site):
    pk.Dict('d')['a'] = 1
    site.close()
    os.chown(site.path, 12345, -1)
    with _fails(pk.SiteError, 'user 12345', 'you are 0'): pk.Site(site.path)
    os.chown(site.path, 0, -1)
    assert pk.Dict('d', site=pk.Site(site.path))['a'] == 1


@pytest.mark.parametrize('mode', [0o777, 0o770, 0o702])
def test_site_writable_by_others(site, mode):
    pk.Dict('d')['a'] = 1
    os.chmod(site.path, mode)
    with _fails(pk.SiteError, f'mode {mode:o}', 'chmod 700'): pk.Site(site.path)
    os.chmod(site.path, 0o700)
    assert pk.Dict('d', site=pk.Site(site.path))['a'] == 1


def test_new_site_is_for_its_owner_only(site):
    pk.Dict('d')['a'] = np.zeros(MIB)
    assert Path(site.path).stat().st_mode & 0o777 == 0o700
    below = [path for path in Path(site.path).rglob('*') if path.is_file()]
    assert below and not [path for path in below if path.stat().st_mode & 0o077]


def test_site_of_a_newer_parkit(site):
    pk.Dict('d')['a'] = 1
    file = Path(site.path, 'site.json')
    text = file.read_text()
    file.write_text(json.dumps({**json.loads(text), 'format': 999}))
    with _fails(pk.SiteError, 'format 999', f'up to {FORMAT}', 'upgrade'): pk.Site(site.path)
    file.write_text(text)
    assert pk.Dict('d', site=pk.Site(site.path))['a'] == 1


@pytest.mark.parametrize('text', ['', '{"format": 1', '[]', '{"format": 1}', '{"format": "one", "uuid": 1}'])
def test_damaged_site(site, text):
    Path(site.path, 'site.json').write_text(text)
    with _fails(pk.SiteError, 'site.json is damaged'): pk.Site(site.path)


def test_damaged_namespace(site):
    pk.Dict('sound/d')['a'] = 1
    pk.Dict('broken/d')['a'] = 1
    site.close()
    file = Path(site.path, 'broken/@/store.json')
    text = file.read_text()
    file.write_text(text[:10])
    with _fails(pk.SiteError, 'store.json is damaged'): pk.Dict('broken/d')
    assert pk.Dict('sound/d')['a'] == 1
    file.write_text(text)
    assert pk.Dict('broken/d')['a'] == 1


def test_data_that_is_no_database(site):
    pk.Dict('d')['a'] = 1
    site.close()
    Path(site.path, 'default/@/data.mdb').write_bytes(b'no database'*1000)
    with _fails(pk.SiteError, 'default'): pk.Dict('d')


_sftp = next((o for o in ('/usr/lib/openssh/sftp-server', '/usr/libexec/sftp-server') if os.path.exists(o)), None)

@contextmanager
def _remote(folder, mount):
    "`folder` seen through sshfs, whose server is at the other end of a pipe"
    to_server, to_client = os.pipe(), os.pipe()
    server = subprocess.Popen([_sftp], stdin=to_server[0], stdout=to_client[1])
    client = subprocess.Popen(['sshfs', f':{folder}', mount, '-f', '-o', 'passive'],
                              stdin=to_client[0], stdout=to_server[1])
    for descriptor in (*to_server, *to_client): os.close(descriptor)
    try:
        if not wait_for(lambda: os.path.ismount(mount) or client.poll() is not None) or client.poll() is not None:
            pytest.skip('sshfs cannot mount here')
        yield mount
    finally:
        subprocess.run(['fusermount', '-u', mount], capture_output=True)
        for process in (client, server):
            process.terminate()
            process.wait()

@pytest.mark.skipif(not (shutil.which('sshfs') and _sftp), reason='sshfs and sftp-server are not installed')
def test_site_on_a_network_file_system(tmp_path):
    (tmp_path/'folder').mkdir()
    (tmp_path/'mount').mkdir()
    with _remote(tmp_path/'folder', tmp_path/'mount') as mount:
        with _fails(pk.SiteError, 'local disk', 'fuse.sshfs'): pk.Site(mount/'site')


def test_site_whose_directory_is_gone_can_be_closed(tmp_path):
    site = pk.Site(tmp_path/'site')
    pk.Dict('d', site=site)['a'] = 1
    shutil.rmtree(site.path)
    site.close()


def test_opening_and_closing_a_hundred_times_leaves_nothing(site):
    def use():
        d = pk.Dict('d')
        d['a'] = np.zeros(MIB)
        pk.wait_until(lambda: 'a' in d)
        site.close()
    def count():
        folders = ('/proc/self/fd', f'{site.path}/@/alive')
        return threading.active_count(), *[len(os.listdir(o)) for o in folders]
    use()
    before = count()
    for _ in range(100): use()
    assert count() == before


# --- names

@pytest.mark.parametrize('path', [
    '', '/d', 'd/', '../d', './d', 'a/../d', 'a b/d', 'a//d', '@/d', 'a/@/d', 'é/d', '_pool/d', 'a/_b/d',
    '_d', 'a/_d', '\0/d', 'x'*401, '\ud800'*401, 'a\n/d'])
def test_trap_26_path_that_is_refused(site, path):
    pk.Dict('d')['a'] = 1
    before = sorted(Path(site.path).parent.rglob('*'))
    with pytest.raises(pk.InvalidNameError) as error: pk.Dict(path)
    assert re.search('must be|begin with "_"|no name|at most', str(error.value))
    assert sorted(Path(site.path).parent.rglob('*')) == before and pk.Dict('d')['a'] == 1


@pytest.mark.parametrize('path', [
    'a b', 'é', '..', 'a\nb', '@', 'A-b_c.9/d', 'a/b/c/d', 'a.b/..', 'x'*400, '\ud800', '\0'])
def test_trap_26_path_that_is_allowed(site, path):
    pk.Dict(path)['a'] = path
    found = pk.Dict(path, create=False)
    assert found['a'] == path and found.name in pk.Namespace(found.namespace)


def test_home_directory_in_a_path(tmp_path, monkeypatch):
    "`~` is the home directory, as in a shell, and never a directory of that name"
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('PARKIT_SITE', '~/one')
    monkeypatch.chdir(tmp_path)
    one, two = pk.Site(), pk.Site('~/two')
    pk.Dict('d', site=one)['a'] = 1
    pk.backup('~/copy', site=one)
    again = pk.restore('~/copy', '~/again')
    assert sorted(o.name for o in tmp_path.iterdir()) == ['again', 'copy', 'one', 'two'] and pk.Dict('d', site=again)['a'] == 1
    for o in (one, two, again): o.close()


def test_unknown_name(site):
    for path in ('d', 'nowhere/d'):
        with _fails(pk.ObjectNotFoundError, path, 'create=False'): pk.Dict(path, create=False)
    assert not pk.namespaces()
    with _fails(pk.ObjectNotFoundError, 'x'): pk.Namespace('nowhere')['x']


def test_wrong_type(site):
    pk.Dict('d')['a'] = 1
    with _fails(pk.ObjectTypeError, 'd', 'parkit.Dict', 'parkit.Array', "pk.Namespace('default')['d']"): pk.Array('d')
    assert issubclass(pk.ObjectTypeError, TypeError) and pk.Dict('d')['a'] == 1


def test_trap_25_listing_an_unknown_namespace_makes_nothing(site):
    n = pk.Namespace('nowhere')
    assert list(n) == [] == list(n.names()) and len(n) == 0 and 'x' not in n and n.get('x') is None and not n.exists
    assert pk.namespaces() == [] and os.listdir(site.path) == run(site, 'import os; say(os.listdir(site.path))')


# --- scratch and durable

def _other_boot(store):
    "Have the namespace come from an earlier run of the machine"
    file = Path(store.path, 'store.json')
    file.write_text(json.dumps({**json.loads(file.read_text()), 'boot': 'an earlier one'}))

@pytest.mark.parametrize('durable', [True, False])
def test_reboot_wipes_scratch_only(site, durable):
    namespace = pk.Namespace('n', durable=durable)
    d = pk.Dict('n/d')
    d.update(small=1, large=np.ones(MIB, np.uint8))
    store = d._store
    site.close()
    _other_boot(store)
    assert pk.Namespace('n').names() is not None and [*pk.Namespace('n').names()] == ['d']*durable
    assert len(blobs(store)) == durable and namespace.durable == durable
    d = pk.Dict('n/d')
    assert ('small' in d) == ('large' in d) == durable
    d['small'] = 2
    assert run(site, "say(pk.Dict('n/d')['small'])") == 2


def test_scratch_held_by_another_machine_is_not_wiped(site):
    "As where a sandbox with a boot id of its own shares the directory"
    pk.Namespace('n', durable=False)
    pk.Dict('n/d')['a'] = 1
    store = pk.Dict('n/d')._store
    site.close()
    with Child(site, "d = pk.Dict('n/d'); say(site.alive.enter()); hear(); say(d['a'])") as holder:
        id = holder.hear()
        _other_boot(store)
        file = Path(site.path, '@/alive', id)
        file.write_text(json.dumps({**json.loads(file.read_text()), 'boot': 'an earlier one'}) + '\n')
        with _fails(pk.SiteError, str(holder.pid), 'an earlier one'): pk.Dict('n/d')
        holder.say()
        assert holder.hear() == 1
        holder.wait()


def test_scratch_is_known_as_such_in_a_new_process(site):
    pk.Namespace('n', durable=False)
    assert run(site, "say(pk.Namespace('n').durable)") is False
    with _fails(pk.ObjectExistsError, 'durable=False'): pk.Namespace('n', durable=True)


# --- a full map

@pytest.fixture
def small(tmp_path):
    "A site whose namespaces hold 16 MiB, in one where writing costs least"
    site = pk.Site(tmp_path/'small', map_size=16*MIB)
    pk.Namespace('default', durable=False, site=site)
    yield site
    site.close()

def _fill(d, size=10_000):
    "Add values until there is no room; returns how many, and the error"
    n = len(d)
    with pytest.raises(pk.StorageFullError) as error:
        while True:
            d[n] = bytes(size)
            n += 1
    assert len(d) == n
    return n, str(error.value)

def test_trap_21_full_map(small):
    d = pk.Dict('d', site=small)
    n, message = _fill(d)
    assert n*10_000 > 8*MIB and re.search(rf'\d+ of {16*MIB} bytes', message) and 'delete' in message
    assert d[0] == d[n - 1] == bytes(10_000) and n not in d and len(list(d)) == n


@pytest.mark.parametrize('free', [lambda d: d.clear(), lambda d: d.drop(), lambda d: [d.pop(k) for k in list(d)],
                                  lambda d: [d.__delitem__(k) for k in list(d)]], ids='clear drop pop del'.split())
def test_trap_21_deleting_makes_room_in_a_full_map(small, free):
    d = pk.Dict('d', site=small)
    before, _ = _fill(d)
    free(d)
    assert _fill(pk.Dict('d', site=small))[0] > 0.9*before


def test_trap_21_full_map_is_freed_by_another_process(small):
    d = pk.Dict('d', site=small)
    n, _ = _fill(d)
    assert run(small, "d = pk.Dict('d'); [d.pop(i) for i in range(100)]; say(len(d))") == n - 100
    d['new'] = bytes(10_000)


def test_trap_21_transaction_that_fills_the_map_rolls_back(small):
    d = pk.Dict('d', site=small)
    d['kept'] = 1
    with _fails(pk.StorageFullError, str(16*MIB)), pk.transaction(d):
        del d['kept']
        for i in range(5000): d[i] = bytes(10_000)
    assert d == {'kept': 1}
    d['next'] = 2


def test_trap_21_replacement_that_finds_no_room_keeps_the_old_value(small):
    "Though the error is caught inside the transaction"
    d = pk.Dict('d', site=small)
    old = np.arange(MIB)
    d['a'] = old
    _fill(d, 1000)
    with pk.transaction(d):
        with _fails(pk.StorageFullError): d['a'] = bytes(200_000)
        with _fails(pk.StorageFullError):
            for i in range(1000): d['x', i] = np.ones(2**18, np.uint8)
    assert (d['a'] == old).all()
    assert len(blobs(d._store)) == 1 + sum(1 for k in d if isinstance(k, tuple)), 'a blob without an entry'


def test_blobs_take_no_room_in_the_map(small):
    d = pk.Dict('d', site=small)
    for i in range(40): d[i] = np.full(MIB, i, np.uint8)
    assert all((d[i] == i).all() for i in range(40))


# --- a full disk

@pytest.fixture
def disk(tmp_path):
    "A disk of 16 MiB"
    path = tmp_path/'disk'
    path.mkdir()
    if not _command_works('mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', str(path)):
        pytest.skip('no disk can be mounted here')
    yield path
    subprocess.run(['umount', '-l', path], check=True)

@pytest.fixture
def on_disk(disk):
    "A site on a disk of 16 MiB"
    site = pk.Site(disk/'site')
    yield site
    site.close()

def _fill_disk(disk):
    "Leave not one byte"
    with open(disk/'filler', 'ab', buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True: file.write(bytes(size))
            except OSError: pass

@pytest.mark.parametrize('durable', [True, False])
@pytest.mark.parametrize('size', [100_000, MIB])  # in LMDB's file, and each in one of its own
def test_trap_21_full_disk(on_disk, size, durable):
    pk.Namespace('n', durable=durable, site=on_disk)
    d = pk.Dict('n/d', site=on_disk)
    n, message = _fill(d, size)
    assert n*size > 8*MIB and re.search(rf'\d+ of {16*MIB} bytes are free', message)
    assert all(len(d[i]) == size for i in range(n))
    del d[0], d[1]
    d['new'] = bytes(size)
    assert len(d) == n - 1


@pytest.mark.parametrize('size', [100_000, MIB])
def test_trap_21_clearing_makes_room_on_a_full_disk(on_disk, size):
    d = pk.Dict('n/d', site=on_disk)
    n, _ = _fill(d, size)
    d.clear()
    assert _fill(d, size)[0] > 0.7*n


def test_trap_21_transaction_that_fills_the_disk_rolls_back(on_disk):
    d = pk.Dict('n/d', site=on_disk)
    d['kept'] = np.ones(MIB, np.uint8)
    with _fails(pk.StorageFullError, 'no room on the disk'), pk.transaction(d):
        del d['kept']
        for i in range(1000): d[i] = bytes(MIB) if i%2 else bytes(100_000)
    assert list(d) == ['kept'] and (d['kept'] == 1).all() and len(blobs(d._store)) == 1
    d['next'] = 2


_use_full = '''
d = pk.Dict('n/d', create=False)
found = int(d['a'].sum())
say([found, failure(lambda: d.update(b=bytes(10**6)))])
'''

def test_trap_21_new_process_on_a_disk_without_one_free_byte(on_disk, disk):
    "It can read; a write that finds no room is an error"
    pk.Dict('n/d', site=on_disk)['a'] = np.ones(MIB, np.uint8)
    on_disk.close()
    _fill_disk(disk)
    found, error = run(on_disk, _use_full)
    assert found == MIB and error['type'] == 'StorageFullError', error


_first = '''
pk.Dict('other/d')['a'] = 1  # this process is known to the site
say()
hear()
if sys.argv[2] == 'write': say(failure(lambda: pk.Dict('n/d')))
else: say(failure(lambda: pk.wait_until(lambda: len(pk.Namespace('n')), timeout=0.1)))
'''

@pytest.mark.parametrize('use', ['write', 'wait'])
def test_trap_21_first_use_of_a_namespace_on_a_full_disk(on_disk, disk, use):
    "Files that are mapped have their blocks before: a sparse one is a SIGBUS"
    pk.Namespace('n', site=on_disk, durable=True)
    with Child(on_disk, _first, use) as child:
        child.hear()
        _fill_disk(disk)
        child.say()
        assert child.hear()['type'] == dict(write='StorageFullError', wait='WaitTimeout')[use]
        child.wait()


def test_trap_21_new_namespace_on_a_full_disk(on_disk, disk):
    pk.Dict('n/d', site=on_disk)['a'] = 1
    _fill_disk(disk)
    with _fails(pk.StorageFullError, 'free'): pk.Dict('other/d', site=on_disk)
    assert pk.Dict('n/d', site=on_disk)['a'] == 1
    (disk/'filler').unlink()
    pk.Dict('other/d', site=on_disk)['a'] = 2
    assert pk.namespaces(on_disk) == ['n', 'other']


def test_trap_21_new_namespace_on_an_almost_full_disk(on_disk, disk):
    "Wherever in its making the disk is full, it is then made, for this process and others"
    for pages in range(50):
        _fill_disk(disk)
        os.truncate(disk/'filler', (disk/'filler').stat().st_size - pages*4096)
        try: pk.Dict(f'n{pages}/d', site=on_disk)['a'] = 1
        except pk.StorageFullError: pass
        (disk/'filler').unlink()
        pk.Dict(f'n{pages}/d', site=on_disk)['a'] = 2
    assert run(on_disk, "say([pk.Dict(f'n{i}/d')['a'] for i in range(50)])") == [2]*50


def test_trap_21_new_site_on_a_full_disk(disk):
    _fill_disk(disk)
    with pytest.raises(pk.ParkitError, match='0 of 16777216 bytes are free'): pk.Site(disk/'site')
    (disk/'filler').unlink()
    site = pk.Site(disk/'site')
    pk.Dict('d', site=site)['a'] = 1
    site.close()


def test_trap_21_deleting_works_on_a_disk_without_one_free_byte(on_disk, disk):
    d = pk.Dict('n/d', site=on_disk)
    d.update({i: np.ones(MIB, np.uint8) for i in range(4)})
    for i in range(100): d[i % 4, 'small'] = i  # LMDB has pages to use again
    _fill_disk(disk)
    for i in range(4): del d[i]
    d['new'] = np.ones(MIB, np.uint8)
    assert 0 not in d and (d['new'] == 1).all()


# --- snapshots

_keep_snapshot = '''
d = pk.Dict('n/d')
with pk.snapshot(d):
    say(int(d['a'][0]))
    hear()
    say([int(d['a'][0]), int(d['a'][-1])])
'''

def test_trap_22_old_snapshot_while_large_values_are_overwritten(site):
    pk.Namespace('n', durable=False)
    d = pk.Dict('n/d')
    value = np.zeros(8*MIB, np.uint8)
    d['a'] = value
    with Child(site, _keep_snapshot) as reader, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert reader.hear() == 0
        for i in range(1, 61): d['a'] = value + i
        assert len(blobs(d._store)) == 61
        reader.say()
        assert reader.hear() == [0, 0]
        reader.wait()
    messages = [str(o.message) for o in caught if issubclass(o.category, ResourceWarning)]
    messages = [o for o in messages if 'older snapshot' in o]
    assert 1 < len(messages) < 10 and all(str(reader.pid) in message for message in messages)
    d['a'] = value
    assert len(blobs(d._store)) == 1


_snapshots = '''
store = pk.Dict('n/d')._store
held = [store.read() for _ in range(int(sys.argv[2]))]
say()
hear()
'''

def test_trap_23_snapshots_up_to_the_limit_over_all_processes(site):
    d = pk.Dict('n/d')
    d['a'] = 1
    store, held = d._store, []
    with Child(site, _snapshots, 1000) as other:
        other.hear()
        try:
            held += [store.read() for _ in range(2048 - 1000 - 1)]
            with pk.snapshot(d): assert d['a'] == 1
            with pk.snapshot(d), _fails(pk.TransactionError, '2048 snapshots', 'end some'): store.read()
            held.append(store.read())
            with _fails(pk.TransactionError, '2048 snapshots', 'end some'): d['a']
            d['b'] = 2  # writing needs none
            store.end(held.pop())
            assert d['b'] == 2
            held.append(store.read())
            other.kill()
            assert d['a'] == 1  # those of dead processes are taken back
            held += [store.read() for _ in range(500)]
        finally:
            while held: store.end(held.pop())


_enlarge = '''
import lmdb
store = site.store('n')
pk.Dict('n/d')['from'] = 'there'
site.close()
options = dict(lib_version=0) if hasattr(lmdb.Environment, 'lib_version') else {}
with lmdb.open(store.path, map_size=64*2**20, max_readers=2048, **options) as env:
    with env.begin(write=True) as txn: txn.put(b'\\x07beyond', bytes(24*2**20))
say()
'''

@pytest.fixture
def enlarged(small):
    "A `Dict` open here, and a function that has another process enlarge its map"
    d = pk.Dict('n/d', site=small)
    d['a'] = 1
    def enlarge(): run(small, _enlarge)
    return d, enlarge

def test_trap_24_enlarged_map_is_adopted_by_a_read(enlarged):
    d, enlarge = enlarged
    enlarge()
    assert d['a'] == 1 and d['from'] == 'there'


def test_trap_24_enlarged_map_is_adopted_by_a_write(enlarged):
    d, enlarge = enlarged
    enlarge()
    d['b'] = 2
    assert dict(d) == {'a': 1, 'b': 2, 'from': 'there'}


def test_trap_24_enlarged_map_is_adopted_amid_reading_threads(enlarged):
    d, enlarge = enlarged
    errors, busy = [], True
    def look():
        try:
            while busy: assert d['a'] == 1
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads: thread.start()
    try:
        enlarge()
        d['b'] = 2
    finally:
        busy = False
        for thread in threads: thread.join()
    assert not errors and d['from'] == 'there'


def test_trap_24_enlarged_map_is_not_adopted_under_a_snapshot(enlarged):
    d, enlarge = enlarged
    done = []
    def write():
        with _fails(pk.TransactionError, 'enlarged the map', 'no transaction'): d['b'] = 2
        done.append(True)
    with pk.snapshot(d):
        enlarge()
        assert d['a'] == 1 and 'from' not in d
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert done and d['a'] == 1
    assert d['from'] == 'there'
    d['b'] = 2


def test_trap_24_replaced_database_is_opened_anew(site):
    "A file put in place of another, as by a restored backup, counts from the next opening on"
    pk.Dict('n/d')['a'] = 1
    site.close()
    shutil.copytree(site.path + '/n', site.path + '/copy')
    pk.Dict('n/d')['a'] = 2
    site.close()
    shutil.rmtree(site.path + '/n')
    os.rename(site.path + '/copy', site.path + '/n')
    assert pk.Dict('n/d')['a'] == 1


# --- locks of the system

def _locks(path):
    "This process's POSIX locks on a file, as the kernel lists them"
    inode = os.stat(path).st_ino
    lines = (line.split() for line in open('/proc/locks'))
    mine = (o for o in lines if o[1] == 'POSIX' and o[4] == str(os.getpid()) and o[5].endswith(f':{inode}'))
    return sorted((o[3], o[6], o[7]) for o in mine)

def test_trap_33_nothing_drops_the_locks_of_lmdb(site):
    d = pk.Dict('n/d')
    d['a'] = np.zeros(MIB)
    before = _locks(f'{d._store.path}/lock.mdb')
    assert before, 'LMDB holds a lock for as long as it is open'
    assert forked(lambda: len(pk.Dict('n/d'))) == 1
    with pk.snapshot(d):
        run(site, "d = pk.Dict('n/d'); d['b'] = 1; say(); site.close()")
        assert 'd' not in pk.Namespace('other') and pk.namespaces() == ['n']
        assert [o.path for o in pk.Namespace('n')] == ['n/d']
        assert 'n/d' in repr(d) and d.exists and d.version and pk.Site(site.path) is site
    pk.wait_until(lambda: 'b' in d)
    pk.Pool().status
    with pytest.raises(pk.ObjectTypeError): pk.Array('n/d')
    assert _locks(f'{d._store.path}/lock.mdb') == before


def _hash(folder):
    for path in Path(folder).rglob('*'):
        if path.is_file(): hashlib.sha256(path.read_bytes())

_look_at_files = {
    'zip': lambda folder, out: shutil.make_archive(out, 'zip', folder),
    'tar': lambda folder, out: shutil.make_archive(out, 'tar', folder),
    'copytree': lambda folder, out: shutil.copytree(folder, out),
    'hash': lambda folder, out: _hash(folder),
    'open and close': lambda folder, out: [os.close(os.open(p, os.O_RDONLY)) for p in Path(folder).rglob('*.mdb')],
}

_overwrite = """
d = pk.Dict('n/d')
for n in range(20):
    with pk.transaction(d):
        for i in range(200): d[i] = ('new', i, 'y'*1000)
say()
"""

@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has locks that belong to an open file')
@pytest.mark.parametrize('look', _look_at_files)
def test_trap_33_files_of_the_site_are_read_by_other_means(site, tmp_path, look):
    "Another process opens the site and writes; a snapshot, and the process's own place among the readers, stay"
    pk.Namespace('n', durable=False)
    d = pk.Dict('n/d')
    d.update({i: ('old', i, 'x'*1000) for i in range(200)})
    with pk.snapshot(d):
        assert d[0][0] == 'old'
        _look_at_files[look](site.path, tmp_path/'out')
        run(site, _overwrite)
        assert {d[i][:2] for i in range(200)} == {('old', i) for i in range(200)}
    assert {v[0] for v in d.values()} == {'new'}
    with pk.snapshot(d):  # nothing is opened anew: the locks last
        run(site, _overwrite)
        assert d[0][0] == 'new' and len(list(d.values())) == 200

def test_trap_33_reader_that_is_killed_is_forgotten(site):
    "The locks that stay end with the process, though it leaves a forked child"
    d = pk.Dict('n/d')
    d['a'] = 1
    with Child(site, "d = pk.Dict('n/d'); s = pk.snapshot(d); s.__enter__(); d['a']; say(fork_and_stay())") as reader:
        child = reader.hear()
        assert str(reader.pid) in d._store.env.readers()
        reader.kill()
        env = d._store.env
        try: assert wait_for(lambda: (env.reader_check(), str(reader.pid) not in env.readers())[1])  # the child drops them as it begins
        finally: os.kill(child, signal.SIGKILL)


_unshare = ('unshare', '--pid', '--fork', '--mount-proc', '--kill-child')
needs_unshare = pytest.mark.skipif(not _command_works(*_unshare, 'true'), reason='no pid namespace can be made here')

@needs_unshare
def test_trap_30_two_containers_with_one_pid(site):
    use = "d = pk.Dict('n/d'); d['a'] = os.getpid(); say(d['a']); hear()"
    with Child(site, use, command=_unshare) as first:
        pid = first.hear()
        error = run(site, "say(failure(lambda: pk.Dict('n/d')['a']))", command=_unshare)
        assert error['type'] == 'SiteError' and f'({pid})' in error['message'] and '--pid=host' in error['message']
        first.kill()
    with Child(site, use, command=_unshare) as second: assert second.hear() == pid


@needs_unshare
def test_trap_30_a_container_beside_the_machine(site):
    "With other pids they share the site, and each sees that the other lives"
    d = pk.Dict('n/d')
    with Child(site, "d = pk.Dict('n/d'); d['a'] = site.alive.enter(); say(); hear()", command=_unshare) as container:
        container.hear()
        assert site.alive.is_alive(d['a'])
        container.kill()
        assert wait_for(lambda: not site.alive.is_alive(d['a']))


_wait_without = '''
warnings.simplefilter('always')
d = pk.Dict('n/d')
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for i in range(3):
        say()
        pk.wait_until(lambda: d.get('a') == i, timeout=30)
say([str(o.message) for o in caught])
'''

def test_trap_41_no_inotify_instance_left(site):
    "In a user namespace that allows none, so that the processes of this user keep theirs"
    limit = '/proc/sys/user/max_inotify_instances'
    command = ('unshare', '--user', '--map-root-user', 'sh', '-c', f'echo 0 > {limit} && exec "$@"', '-')
    if not _command_works(*command, 'true'): pytest.skip('no user namespace can be made here')
    d = pk.Dict('n/d')
    with Child(site, _wait_without, command=command) as waiter:
        for i in range(3):
            waiter.hear()
            d['a'] = i
        messages = waiter.hear()
        waiter.wait()
    assert len(messages) == 1 and 'max_user_instances' in messages[0], messages


def test_read_while_another_thread_closes_the_files(d, monkeypatch):
    "It waits until that is done, and opens them again"
    arrived, go, found = threading.Event(), threading.Event(), []
    d['a'] = 1
    def reset(self, reset=Store._reset_files):
        arrived.set()
        assert go.wait(60)
        reset(self)
    monkeypatch.setattr(Store, '_reset_files', reset)
    closer, reader = threading.Thread(target=d._store.close), threading.Thread(target=lambda: found.append(d['a']))
    closer.start()
    assert arrived.wait(60)
    reader.start()
    reader.join(0.2)  # it has met closed files, and does not end
    go.set()
    for thread in (closer, reader): thread.join(60)
    assert found == [1]
