"""A real file system on a disk that records what is written to it, block by block, and what is flushed.

The disk is a file of a small FUSE file system, which a loop device turns into a block device. Only root can do that."""
import ctypes, os, shutil, stat, struct, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path

from power_loss.disk import SECTOR

SIZES = dict(ext4=48, xfs=320, btrfs=128)  # MiB; what `mkfs` wants at least
MKFS = dict(ext4=['-q', '-F', '-E', 'lazy_itable_init=0,lazy_journal_init=0'], xfs=['-q', '-f'], btrfs=['-q', '-f'])
PIECES = dict(btrfs=[4096, 4096, 2**30])  # it cannot be mounted when its own 4 KiB superblock is torn
WRITE, FLUSH = 1, 2
_ENTRY = struct.Struct('<BQI')  # kind, offset, bytes that follow


# --- the disk: a process that answers the kernel

_IN, _OUT = struct.Struct('<IIQQIIII'), struct.Struct('<IiQ')
_ATTRIBUTES = struct.Struct('<6Q10I')

class _Server:
    "Speaks the FUSE protocol: a directory with one file, `disk`, kept in the file at `image`; each write and flush goes to `log` first"
    def __init__(self, fd, image, log):
        self.fd, self.image, self.log = fd, os.open(image, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.size = os.path.getsize(image)

    def serve(self):
        while True:
            try: request = os.read(self.fd, 2**20 + 4096)
            except OSError: return  # unmounted
            _, code, unique, node, *_ = _IN.unpack_from(request)
            answer = self.answers.get(code, lambda *_: -38)(self, node, memoryview(request)[_IN.size:])  # ENOSYS
            if answer is None: continue
            error, data = (answer, b'') if isinstance(answer, int) else (0, answer)
            os.write(self.fd, _OUT.pack(_OUT.size + len(data), error, unique) + data)
            if code == 38: return

    def attributes(self, node):
        mode, size = (stat.S_IFDIR | 0o755, 0) if node == 1 else (stat.S_IFREG | 0o600, self.size)
        return _ATTRIBUTES.pack(node, size, size//512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def begin(self, node, data):
        ahead = struct.unpack_from('<4I', data)[2]
        return struct.pack('<4I2H2I2H8I', 7, 31, ahead, 1 << 5 | 1 << 22, 16, 12, 2**20, 1, 256, 0, *[0]*8)  # big writes, of 256 pages

    def lookup(self, node, data):
        if bytes(data) != b'disk\0': return -2
        return struct.pack('<4Q2I', 2, 0, 3600, 3600, 0, 0) + self.attributes(2)

    def write(self, node, data):
        _, offset, size = struct.unpack_from('<QQI', data)
        data = data[40:40 + size]
        os.write(self.log, _ENTRY.pack(WRITE, offset, size) + data)
        os.pwrite(self.image, data, offset)
        return struct.pack('<II', size, 0)

    def flush(self, node, data):
        os.write(self.log, _ENTRY.pack(FLUSH, 0, 0))
        return b''

    answers = {26: begin, 1: lookup, 2: lambda *_: None, 42: lambda *_: None, 16: write, 20: flush,
               3: lambda self, node, data: struct.pack('<QII', 3600, 0, 0) + self.attributes(node),
               4: lambda self, node, data: struct.pack('<QII', 3600, 0, 0) + self.attributes(node),
               14: lambda *_: struct.pack('<QII', 0, 0, 0), 27: lambda *_: struct.pack('<QII', 0, 0, 0),
               15: lambda self, node, data: os.pread(self.image, struct.unpack_from('<QQI', data)[2], struct.unpack_from('<QQI', data)[1]),
               17: lambda *_: struct.pack('<5Q4I6I', *[0]*5, 4096, 255, 4096, *[0]*7),
               18: lambda *_: b'', 25: lambda *_: b'', 29: lambda *_: b'', 34: lambda *_: b'', 38: lambda *_: b''}


def _mount_fuse(fd, folder):
    libc = ctypes.CDLL(None, use_errno=True)
    options = f'fd={fd},rootmode=40000,user_id=0,group_id=0,max_read={2**20}'
    if libc.mount(b'recorder', os.fsencode(folder), b'fuse', 6, options.encode()): raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# --- its user

def _run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    if done.returncode: raise OSError(f'{" ".join(map(str, command))}: {done.stderr.strip()}')
    return done.stdout.strip()

def why_not(kind):
    "Why there can be no such file system on such a disk here, if so"
    if sys.platform != 'linux' or os.geteuid(): return 'only root on Linux can mount a file system'
    for tool in (f'mkfs.{kind}', 'losetup', 'mount'):
        if not shutil.which(tool): return f'{tool} is not installed'
    if not os.path.exists('/dev/fuse'): return 'there is no /dev/fuse'
    try:
        with tempfile.TemporaryDirectory() as folder, recorded(Path(folder), kind): pass
    except (OSError, subprocess.TimeoutExpired) as e: return f'{kind} cannot be mounted here: {e}'

@contextmanager
def mounted(image, folder):
    "The file system in `image` at `folder`"
    _run('mount', '-o', 'loop', image, folder)
    try: yield
    finally: _run('umount', folder)

@contextmanager
def recorded(folder, kind):
    "A new file system at `folder/mounted` whose disk is recorded in `folder/log`; `folder/start` is the disk at the beginning"
    image, start, log, fuse, at = (folder/name for name in ('image', 'start', 'log', 'fuse', 'mounted'))
    for new in (fuse, at): new.mkdir()
    with open(start, 'wb') as f: f.truncate(SIZES[kind]*2**20)
    _run(f'mkfs.{kind}', *MKFS[kind], start)
    _run('cp', '--sparse=always', start, image)
    server = subprocess.Popen([sys.executable, '-m', 'power_loss.blocks', fuse, image, log], stdout=subprocess.PIPE,
                              env={**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent)})
    device = ''
    try:
        if server.stdout.readline() != b'ready\n': raise OSError('FUSE cannot be mounted')
        device = _run('losetup', '--find', '--show', fuse/'disk')
        _run('mount', device, at)
        try: yield
        finally: _run('umount', at)
    finally:
        try:
            if device: _run('losetup', '--detach', device)
            if os.path.ismount(fuse): _run('umount', fuse)
        finally:
            server.stdout.close()
            server.terminate()
            server.wait()

def entries(log):
    "The record: (where it ends in the file, kind, offset, data)"
    data, at = memoryview(log.read_bytes()), 0
    while at < len(data):
        kind, offset, size = _ENTRY.unpack_from(data, at)
        start, at = at + _ENTRY.size, at + _ENTRY.size + size
        yield at, kind, offset, data[start:at]


class Platter:
    "Takes the entries of a record in order; `after` writes the disk as the power loss could have left it at that moment"
    def __init__(self, start):
        self.size, self.safe, self.pending = start.stat().st_size, {}, {}
        with open(start, 'rb') as f:
            for n in range(self.size//CHUNK):
                chunk = f.read(CHUNK)
                if chunk != _ZEROS: self.safe[n] = bytearray(chunk)

    def take(self, kind, offset, data):
        if kind == FLUSH:
            for at, chain in self.pending.items(): self._put(self.safe, at, chain[-1])
            self.pending = {}
        for at in range(0, len(data), SECTOR): self.pending.setdefault(offset + at, []).append(data[at:at + SECTOR])

    def _put(self, chunks, at, sector):
        chunks.setdefault(at//CHUNK, bytearray(CHUNK))[at % CHUNK:at % CHUNK + SECTOR] = sector

    def after(self, rng, path, piece, likely):
        "`piece`: bytes that reach the disk together; `likely`: how probable that is for what was not flushed, `None`: any of what was written there"
        chunks, cut = dict(self.safe), {}
        for at, chain in self.pending.items():
            g = at//piece
            if g not in cut: cut[g] = rng.random() if likely is None else float(rng.random() < likely)
            kept = round(cut[g]*len(chain))
            if not kept: continue
            if chunks.get(at//CHUNK) is self.safe.get(at//CHUNK): chunks[at//CHUNK] = bytearray(self.safe.get(at//CHUNK, _ZEROS))
            self._put(chunks, at, chain[kept - 1])
        with open(path, 'wb') as f:
            f.truncate(self.size)
            for n, chunk in chunks.items():
                f.seek(n*CHUNK)
                f.write(chunk)

CHUNK = 2**16
_ZEROS = bytes(CHUNK)


class Replay:
    "The record of a disk, played up to the moment when the power fails; `said` is what the process said, and where the record ended then"
    calm = [(4096, 0), (4096, 1)]  # nothing, all
    def __init__(self, folder, kind, said, site, forget=False):
        self.folder, self.kind, self.said, self.site, self.forget = folder, kind, said, site, forget
        self.entries, self.platter, self.taken = list(entries(folder/'log')), Platter(folder/'start'), 0

    def moments(self):
        found, said, done, begun = [], list(self.said), -2, -2
        for i, (end, *_) in enumerate(self.entries):
            while said and said[0][0] <= end:
                done, begun = said[0][1].get('done', done), said[0][1].get('begin', begun)
                del said[0]
            if not said: break  # the process has ended, and the file system is about to
            if begun > -2: found.append((i + 1, done, begun))
        return found

    def weather(self, rng): return rng.choice(PIECES.get(self.kind, [512, 512, 4096, 2**30])), rng.choice([None, .5, .1, .9])
    def name(self, n): return f'the power failed after block event {n}'

    def cut(self, checker, n, rng, weather):
        for _, kind, offset, data in self.entries[self.taken:n]:
            if kind == WRITE or not self.forget: self.platter.take(kind, offset, data)
        self.taken, image, at = n, self.folder/f'left{checker.images}', self.folder/'mounted'  # a new file: the loop device of the last one may be slow to go
        self.platter.after(rng, image, *weather)
        try:
            with mounted(image, at): return checker.look(at/self.site)
        except OSError as e: return dict(failed=str(e))
        finally: image.unlink()


if __name__ == '__main__':
    folder, image, log = sys.argv[1:]
    fd = os.open('/dev/fuse', os.O_RDWR)
    _mount_fuse(fd, folder)
    print('ready', flush=True)
    _Server(fd, image, log).serve()
