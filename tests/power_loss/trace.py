"What a process asked of its files, in order and with all data: recorded by strace, and read back"
import json, os, re, shutil, subprocess
from collections import namedtuple
from pathlib import Path

import psutil

from helpers import Child

CALLS = ('open openat creat close dup dup2 dup3 fcntl lseek write writev pwrite64 pwritev pwritev2 ftruncate truncate fallocate '
         'fsync fdatasync sync syncfs msync rename renameat renameat2 link linkat unlink unlinkat rmdir mkdir mkdirat symlink symlinkat '
         'mknod mknodat sendfile copy_file_range splice io_uring_setup io_submit fork vfork clone clone3').split()

def command(log):
    "What to put before a command so that `log` becomes the record of it"
    return [shutil.which('strace'), '-f', '-qq', '-xx', '-s', str(2**28), '-e', 'signal=none', '-e', 'trace=' + ','.join(f'?{c}' for c in CALLS), '-o', str(log)]

def why_not():
    "Why nothing can be recorded here, if so"
    if not shutil.which('strace'): return 'strace is not installed'
    try: done = subprocess.run([*command('/dev/null'), 'true'], capture_output=True, text=True, timeout=20)
    except OSError as e: return f'strace does not work here: {e}'
    return f'strace does not work here: {done.stderr.strip()[-200:]}' if done.returncode else ''


# --- events: what happened to which file (a number), whatever it was called

Event = namedtuple('Event', 'kind file args path', defaults=[(), ''])
# make (parent, name, is_directory) | link (parent, name) | unlink (parent, name) | rename, exchange (parent, name, parent, name)
# write (offset, data) | size (n) | sync | datasync | range (offset, n): that much is synced | said (value)
SYNCS = 'sync', 'datasync', 'range'
MAPPED = 'lock.mdb', 'write.lock'  # written through maps, which no call shows

class _Opened:
    "An open file description: duplicates share its offset"
    def __init__(self, file, flags): self.file, self.flags, self.offset = file, flags, 0

class NotModelled(Exception):
    "The process did something to its files that the replay does not know"


class Reader:
    "Follows the calls of a process below one directory, which is as it is when this is made; `tree` is what the process sees"
    def __init__(self, root):
        self.root, self.events, self.unsaid = os.path.realpath(root), [], b''
        self.tree, self.content, self.names, self.tables = {0: {}}, {}, {0: ''}, {}
        self._load(0, self.root)
        self.events.clear()
        self.start = {n: dict(o) for n, o in self.tree.items()}, {n: bytes(c) for n, c in self.content.items()}

    def _load(self, folder, path):
        known = {}
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            number = entry.inode()
            if number in known: self.tree[folder][entry.name] = known[number]
            known[number] = file = self._new((folder, entry.name), entry.is_dir())
            if entry.is_dir(): self._load(file, entry.path)
            else: self.content[file][:] = Path(entry.path).read_bytes()

    def read(self, log):
        calls = list(_calls(log))
        parents = {}
        for pid, name, args, result in calls:
            if name in ('clone', 'clone3', 'fork', 'vfork') and result > 0: parents[result] = pid, 'CLONE_FILES' in args
        for pid, name, args, result in calls:
            if pid not in self.tables: self.tables[pid] = self._inherited(*parents.get(pid, (None, False)))
            if result < 0 and name != 'msync': continue
            getattr(self, '_' + name, self._unknown)(self.tables[pid], args, result)
        return self.events

    def _inherited(self, parent, shared):
        table = self.tables.get(parent, {})
        return table if shared else dict(table)

    # names

    def _split(self, fds, at, path):
        "The directory's number and the name, or `None` for what lies elsewhere"
        if not path.startswith('/'):
            if at == 'AT_FDCWD': return None
            opened = fds.get(int(at))
            return None if opened is None else (opened.file, path)
        if path != self.root and not path.startswith(self.root + '/'): return None
        *folders, name = [p for p in path[len(self.root):].split('/') if p] or ['.']
        folder = 0
        for f in folders: folder = self.tree[folder][f]
        return folder, name

    def _find(self, place): return place[0] if place[1] == '.' else self.tree[place[0]].get(place[1])
    def _event(self, kind, file, *args): self.events.append(Event(kind, file, args, self.names.get(file, '')))

    def _new(self, place, directory):
        file = len(self.names)
        self.names[file] = f'{self.names[place[0]]}/{place[1]}'.lstrip('/')
        if directory: self.tree[file] = {}
        else: self.content[file] = bytearray()
        self.tree[place[0]][place[1]] = file
        self._event('make', file, *place, directory)
        return file

    # calls: the arguments are as strace prints them

    def _unknown(self, fds, args, result): raise NotModelled(f'a call on files: {args[:200]}')

    def _open_at(self, fds, at, path, flags, result):
        place = self._split(fds, at, path)
        if place is None: return fds.pop(result, None)
        file = self._find(place)
        if file is None: file = self._new(place, False)
        if 'O_TRUNC' in flags and self.content[file]: self._set_size(file, 0)
        fds[result] = _Opened(file, flags)

    def _open(self, fds, a, result): self._open_at(fds, 'AT_FDCWD', _text(a[0]), a[1], result)
    def _openat(self, fds, a, result): self._open_at(fds, a[0], _text(a[1]), a[2], result)
    def _creat(self, fds, a, result): self._open_at(fds, 'AT_FDCWD', _text(a[0]), 'O_WRONLY|O_CREAT|O_TRUNC', result)
    def _close(self, fds, a, result): fds.pop(int(a[0]), None)
    def _dup(self, fds, a, result):
        if int(a[0]) in fds: fds[result] = fds[int(a[0])]
        else: fds.pop(result, None)
    _dup2 = _dup3 = _dup
    def _fcntl(self, fds, a, result):
        if 'F_DUPFD' in a[1]: self._dup(fds, a, result)
    def _lseek(self, fds, a, result):
        if int(a[0]) in fds: fds[int(a[0])].offset = result
    def _ignore(self, fds, a, result): pass
    _clone = _clone3 = _fork = _vfork = _msync = _ignore  # a shared map that is written is a lock's: nobody needs it after a power loss

    def _put(self, fds, fd, data, result, offset=None):
        opened, data = fds.get(fd), data[:result]
        if opened is None:
            if fd == 1: self._said(data)
            return
        if 'O_APPEND' in opened.flags: opened.offset = len(self.content[opened.file])
        at = opened.offset if offset is None else offset
        if offset is None: opened.offset += result
        content = self.content[opened.file]
        if len(content) < at + result: content.extend(bytes(at + result - len(content)))
        content[at:at + result] = data
        self._event('write', opened.file, at, data)
        if 'O_DSYNC' in opened.flags or 'O_SYNC' in opened.flags: self._event('range', opened.file, at, result)

    def _said(self, data):
        *lines, self.unsaid = (self.unsaid + data).split(b'\n')
        for line in lines: self._event('said', None, json.loads(line))

    def _write(self, fds, a, result): self._put(fds, int(a[0]), _bytes(a[1]), result)
    def _pwrite64(self, fds, a, result): self._put(fds, int(a[0]), _bytes(a[1]), result, int(a[3]))
    def _writev(self, fds, a, result): self._put(fds, int(a[0]), _vector(a[1]), result)
    def _pwritev(self, fds, a, result): self._put(fds, int(a[0]), _vector(a[1]), result, int(a[3]))
    def _pwritev2(self, fds, a, result):
        if a[4] != '0': raise NotModelled('pwritev2 with flags')
        self._pwritev(fds, a, result)

    def _copy_range(self, fds, source, at, target, to, result):
        if target not in fds: return
        if source not in fds: raise NotModelled('a copy of a file that is elsewhere')
        opened = fds[source]
        start = opened.offset if at == 'NULL' else int(re.search(r'\d+', at).group())
        if at == 'NULL': opened.offset += result
        self._put(fds, target, bytes(self.content[opened.file][start:start + result]), result, None if to == 'NULL' else int(re.search(r'\d+', to).group()))

    def _sendfile(self, fds, a, result): self._copy_range(fds, int(a[1]), a[2], int(a[0]), 'NULL', result)
    def _copy_file_range(self, fds, a, result): self._copy_range(fds, int(a[0]), a[1], int(a[2]), a[3], result)

    def _set_size(self, file, n):
        content = self.content[file]
        del content[n:]
        content.extend(bytes(n - len(content)))
        self._event('size', file, n)

    def _ftruncate(self, fds, a, result):
        if int(a[0]) in fds: self._set_size(fds[int(a[0])].file, int(a[1]))
    def _truncate(self, fds, a, result):
        if place := self._split(fds, 'AT_FDCWD', _text(a[0])): self._set_size(self._find(place), int(a[1]))
    def _fallocate(self, fds, a, result):
        if int(a[0]) not in fds: return
        if a[1] == 'FALLOC_FL_KEEP_SIZE': return  # room behind the end of the file
        if a[1] != '0': raise NotModelled(f'fallocate with {a[1]}')
        file = fds[int(a[0])].file
        if len(self.content[file]) < int(a[2]) + int(a[3]): self._set_size(file, int(a[2]) + int(a[3]))

    def _fsync(self, fds, a, result, kind='sync'):
        if int(a[0]) in fds: self._event(kind, fds[int(a[0])].file)
    def _fdatasync(self, fds, a, result): self._fsync(fds, a, result, 'datasync')

    def _rename_at(self, fds, at, old, to, new):
        source, target = self._split(fds, at, old), self._split(fds, to, new)
        if source is None and target is None: return
        if source is None or target is None: raise NotModelled(f'a rename across the edge of the record: {old} to {new}')
        file = self.tree[source[0]].pop(source[1])
        self.tree[target[0]][target[1]] = file
        self._event('rename', file, *source, *target)
    def _rename(self, fds, a, result): self._rename_at(fds, 'AT_FDCWD', _text(a[0]), 'AT_FDCWD', _text(a[1]))
    def _renameat(self, fds, a, result): self._rename_at(fds, a[0], _text(a[1]), a[2], _text(a[3]))
    def _renameat2(self, fds, a, result):
        if a[4] == 'RENAME_EXCHANGE': return self._exchange(self._split(fds, a[0], _text(a[1])), self._split(fds, a[2], _text(a[3])))
        if a[4] not in ('0', 'RENAME_NOREPLACE'): raise NotModelled(f'renameat2 with {a[4]}')
        self._renameat(fds, a, result)

    def _exchange(self, one, other):
        if one is None and other is None: return
        file = self._find(one)
        self.tree[one[0]][one[1]], self.tree[other[0]][other[1]] = self._find(other), file
        self._event('exchange', file, *one, *other)

    def _link_at(self, fds, at, old, to, new):
        source, target = self._split(fds, at, old), self._split(fds, to, new)
        if source is None and target is None: return
        if source is None or target is None: raise NotModelled(f'a link across the edge of the record: {old} to {new}')
        file = self._find(source)
        self.tree[target[0]][target[1]] = file
        self._event('link', file, *target)
    def _link(self, fds, a, result): self._link_at(fds, 'AT_FDCWD', _text(a[0]), 'AT_FDCWD', _text(a[1]))
    def _linkat(self, fds, a, result): self._link_at(fds, a[0], _text(a[1]), a[2], _text(a[3]))

    def _unlink_at(self, fds, at, path):
        if place := self._split(fds, at, path): self._event('unlink', self.tree[place[0]].pop(place[1]), *place)
    def _unlink(self, fds, a, result): self._unlink_at(fds, 'AT_FDCWD', _text(a[0]))
    def _unlinkat(self, fds, a, result): self._unlink_at(fds, a[0], _text(a[1]))
    _rmdir = _unlink

    def _mkdir(self, fds, a, result):
        if place := self._split(fds, 'AT_FDCWD', _text(a[0])): self._new(place, True)
    def _mkdirat(self, fds, a, result):
        if place := self._split(fds, a[0], _text(a[1])): self._new(place, True)


def _bytes(arg): return bytes.fromhex(arg.strip('"').replace('\\x', ''))
def _text(arg): return _bytes(arg).decode()
def _vector(arg): return b''.join(_bytes(m) for m in re.findall(r'iov_base=("[^"]*")', arg))

def _arguments(text):
    "Split at the commas that are in no bracket; strings are hexadecimal and hold none"
    if '[' not in text and '{' not in text: return [a.strip() for a in text.split(',')]
    found, depth, start = [], 0, 0
    for m in re.finditer(r'[\[\]{},]', text):
        c = m.group()
        depth += (c in '[{') - (c in ']}')
        if c == ',' and not depth:
            found.append(text[start:m.start()].strip())
            start = m.end()
    return [*found, text[start:].strip()]

def _calls(log):
    "(pid, name, arguments, result) of each call, in the order in which they ended"
    begun = {}
    with open(log) as lines:
        for line in lines:
            pid, _, text = line.rstrip('\n').partition(' ')
            text = text.lstrip()
            if text.startswith(('+++', '---')): continue
            if text.endswith('<unfinished ...>'):
                begun[pid] = text[:-len('<unfinished ...>')].rstrip()
                continue
            if text.startswith('<... '): text = begun.pop(pid) + text.partition(' resumed>')[2]
            call, _, result = text.rpartition(' = ')
            name, _, args = call.rstrip().partition('(')
            if result.startswith('?'): continue  # it was killed in it
            yield int(pid), name, _arguments(args.rstrip(')') if name not in ('clone', 'clone3') else args), int(result.split()[0], 0)


# --- records

class Record:
    "All that a process running `code` does to the files below `folder`; `site` is the path of its site in there"
    def __init__(self, folder, site, code, plan, args=()):
        folder, self.site, self.mapped = Path(folder), site, {}
        reader, log, commits = Reader(folder), folder.with_suffix('.log'), folder.with_suffix('.json')
        self.start, self.new = reader.start, not (folder/site).exists()
        commits.write_text(json.dumps(plan.commits))
        with Child('', code, folder/site, commits, *args, command=command(log), OPENBLAS_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1') as child:
            try:
                while 'holding' not in child.hear(): pass
                self.mapped = {path.name: path.read_bytes() for path in sorted(folder.rglob('*')) if path.name in MAPPED}
                child.say()
                child.wait()
            finally:  # what strace watches outlives it
                for process in psutil.Process(child.pid).children(recursive=True) if child.process.poll() is None else []: process.kill()
        self.events, self.names = reader.read(log), reader.names
        _compare(reader, folder)

    def moments(self):
        "When the power may fail: after how many events, with which commit done, and which begun"
        done = begun = -2 if self.new else -1
        for i, e in enumerate(self.events):
            if e.kind == 'said': done, begun = e.args[0].get('done', done), e.args[0].get('begin', begun)
            yield i + 1, done, begun

def _compare(reader, folder):
    "Nothing may have happened to the files but what was recorded"
    def names(n, path=''):
        for name, o in reader.tree[n].items():
            yield f'{path}{name}', o
            if o in reader.tree: yield from names(o, f'{path}{name}/')
    known = dict(names(0))
    assert known.keys() == {str(p.relative_to(folder)) for p in folder.rglob('*')}
    for path, n in known.items():
        if n not in reader.tree and os.path.basename(path) not in MAPPED: assert reader.content[n] == (folder/path).read_bytes(), path
