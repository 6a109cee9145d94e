"""A disk that the power is cut from: what has reached it for certain, what may have, and one way it could turn out.

Two readings of what a file system promises:

- `journal`: names are changed in order, as by a journal (ext4, XFS, btrfs): what reaches the disk is the beginning of all changes so far, and
  syncing a file or directory takes with it the changes up to the last that concerned it. A file grows on the disk as its data reach it.
- `posix`: nothing but what POSIX promises: a new or removed name is on disk only when its directory was synced, each name for itself, however
  well its file was, and a rename is there as a whole or not at all; a file may have its new size without its data, and then holds garbage.

In both, data that were not synced reach the disk in pieces, in any order, or not at all."""
import os
from collections import namedtuple

from power_loss.trace import MAPPED, SYNCS

LONG_AGO = 1_700_000_000  # seconds since the epoch: a machine takes its time to start again
SECTOR = 512  # bytes that a disk writes as a whole or not at all

Weather = namedtuple('Weather', 'piece names data garbage')
# piece: bytes that reach the disk together; names and data: how likely a change that was not synced is there, or `None`: up to a moment drawn for each


class _File:
    "Content on disk; what was written since, by sectors: (moment, offset, data); and new sizes: (moment, size, was it set as such?)"
    def __init__(self, content=b''): self.content, self.pending, self.sizes = bytearray(content), {}, []

    @property
    def size(self): return self.sizes[-1][1] if self.sizes else len(self.content)

    def write(self, moment, offset, data):
        at, view = offset, memoryview(data)
        while view:
            n = min(SECTOR - at % SECTOR, len(view))
            self.pending.setdefault(at//SECTOR, []).append((moment, at, view[:n]))
            at, view = at + n, view[n:]
        if at > self.size: self.sizes.append((moment, at, False))

    def resize(self, moment, n):
        self.sizes.append((moment, n, True))
        for s in [s for s in self.pending if s*SECTOR >= n]: del self.pending[s]

    def sync(self):
        size = self.size
        _put(self.content, [w for s in self.pending.values() for w in s])
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        self.pending, self.sizes = {}, []

    def sync_range(self, offset, n):
        for s in range(offset//SECTOR, (offset + n - 1)//SECTOR + 1): _put(self.content, self.pending.pop(s, []))
        self.sizes = [c for c in self.sizes if c[2] or c[1] > len(self.content)]

    def after(self, rng, weather, strict):
        "The content after the power is back"
        if not self.pending and not self.sizes: return self.content
        content, cut = bytearray(self.content), {}
        sizes = [c for c in self.sizes if c[2] or strict]  # those of a journal
        seen = _moment(rng, weather.names, sizes) if sizes else -1
        for moment, n, _ in sizes:
            if moment <= seen: content[n:] = (rng.randbytes if strict and weather.garbage else bytes)(max(0, n - len(content)))
        for s, writes in self.pending.items():
            group = s*SECTOR//weather.piece
            if group not in cut: cut[group] = _moment(rng, weather.data, writes)
            _put(content, [w for w in writes if w[0] <= cut[group]])
        return content

def _put(content, writes):
    for _, at, data in writes:
        if len(content) < at + len(data): content.extend(bytes(at + len(data) - len(content)))
        content[at:at + len(data)] = data

def _moment(rng, likely, changes):
    "Up to which moment `changes` have reached the disk"
    if likely is None: return rng.choice([-1, *(c[0] for c in changes)])
    return float('inf') if rng.random() < likely else -1


class Disk:
    "Takes the events of a record in order; `after` is a disk as the power loss could have left it at that moment"
    def __init__(self, reading, start=None):
        self.strict, self.moment = dict(posix=True, journal=False)[reading], 0
        self.files, self.folders, self.changes = {}, {0: {}}, []
        if start:  # what a `Reader` found there: all of it is on the disk
            names, content = start
            self.folders, self.files = {n: dict(o) for n, o in names.items()}, {n: _File(c) for n, c in content.items()}

    def take(self, event):
        self.moment += 1
        kind, file, args, path = event
        if kind in ('make', 'link', 'unlink', 'rename', 'exchange'):
            self.changes.append((self.moment, event))
            if kind == 'make' and args[2]: self.folders[file] = {}
            elif kind == 'make': self.files[file] = _File()
        elif kind == 'write': self.files[file].write(self.moment, *args)
        elif kind == 'size': self.files[file].resize(self.moment, *args)
        elif kind == 'range': self.files[file].sync_range(*args)
        elif kind in ('sync', 'datasync'): self._sync(file)

    def _sync(self, file):
        if file in self.files: self.files[file].sync()
        if self.strict: done = [c for c in self.changes if file in _folders(c[1])]
        else:
            last = max((m for m, e in self.changes if file == e.file or file in _folders(e)), default=-1)
            done = [c for c in self.changes if c[0] <= last]
        for c in done: _apply(self.folders, c[1])
        moments = {c[0] for c in done}
        self.changes = [c for c in self.changes if c[0] not in moments]

    def after(self, rng, weather):
        "Names and contents, after a power loss now: {path: content, or `None` for a directory}"
        folders = {n: dict(names) for n, names in self.folders.items()}
        if self.strict: self._names_one_by_one(rng, weather, folders)
        else:
            cut = _moment(rng, weather.names, self.changes)
            for m, e in self.changes:
                if m <= cut: _apply(folders, e)
        found = {}
        self._walk(0, '', folders, found, rng, weather)
        return found

    def _names_one_by_one(self, rng, weather, folders):
        group, cut = {}, {}
        for m, e in self.changes:  # the two names of a rename change together
            names = _names(e)
            for n in names: group.setdefault(n, n)
            for n in names[1:]:
                old, new = group[n], group[names[0]]
                for k in group:
                    if group[k] == old: group[k] = new
        for m, e in self.changes:
            g = group[_names(e)[0]]
            if g not in cut: cut[g] = _moment(rng, weather.names, [c for c in self.changes if group[_names(c[1])[0]] == g])
            if m <= cut[g]: _apply(folders, e)

    def _walk(self, folder, path, folders, found, rng, weather):
        for name, file in sorted(folders[folder].items()):
            p = f'{path}/{name}'.lstrip('/')
            if file in folders:
                found[p] = None
                self._walk(file, p, folders, found, rng, weather)
            else: found[p] = self.files[file].after(rng, weather, self.strict)


def _names(e): return [e.args[:2], e.args[2:]] if e.kind in ('rename', 'exchange') else [e.args[:2]]
def _folders(e): return [n[0] for n in _names(e)]

def _apply(folders, e):
    if e.kind in ('make', 'link'): folders[e.args[0]][e.args[1]] = e.file
    elif e.kind == 'unlink': folders[e.args[0]].pop(e.args[1], None)
    else:
        a, one, b, other = e.args
        if e.kind == 'exchange': folders[a][one] = folders[b][other]
        else: folders[a].pop(one, None)
        folders[b][other] = e.file


CALM = [Weather(4096, 0, 0, False), Weather(4096, 1, 1, False), Weather(4096, 1, 0, True), Weather(4096, 0, 1, False)]  # nothing, all, only names, only data

class Replay:
    "The record of a process, played to a disk up to the moment when the power fails; syncs that `forget` picks do nothing"
    calm = CALM
    def __init__(self, record, reading, forget=lambda event: False):
        self.record, self.disk, self.taken, self.reading, self.forget = record, Disk(reading, record.start), 0, reading, forget

    def moments(self): return list(self.record.moments())

    def weather(self, rng):
        "How a disk may treat what was not synced"
        likely = [None, 0, 1, .5, .1, .9]
        return Weather(rng.choice([512, 512, 4096, 2**30]), rng.choice(likely), rng.choice(likely), rng.random() < .5)

    def name(self, n):
        e = self.record.events[n - 1]
        return f'the power failed after event {n} ({e.kind} {e.path}), {self.reading}'

    def cut(self, checker, n, rng, weather):
        "What is found if the power fails after event `n`, which is no earlier than the last time"
        for e in self.record.events[self.taken:n]:
            if e.kind not in SYNCS or not self.forget(e): self.disk.take(e)
        self.taken, files = n, self.disk.after(rng, weather)
        for path, content in files.items():
            if content and os.path.basename(path) in MAPPED: files[path] = _mixed(rng, content, self.record.mapped[os.path.basename(path)])
        return checker.look_into(files, self.record.site)

def _mixed(rng, content, live):
    "A file that is written through a map: each sector as it was written, or as it is during a transaction"
    mixed = bytearray(content)
    for s in range(0, min(len(content), len(live)), SECTOR):
        if rng.random() < .5: mixed[s:s + SECTOR] = live[s:s + SECTOR]
    return mixed


def write_out(files, root):
    "Make the files of an image below `root`"
    for path, content in files.items():
        target = os.path.join(root, path)
        if content is None: os.mkdir(target, 0o700)
        else:
            fd = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                view = memoryview(content)
                while view: view = view[os.write(fd, view):]
            finally: os.close(fd)
            os.utime(target, (LONG_AGO, LONG_AGO))
