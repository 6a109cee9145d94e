"""What each process of the torture set out to do, and what it then knows to be done: written to files of its own,
line by line, so that whoever reads them later can tell what was acknowledged from what a kill has cut off"""
import hashlib, json, os, time
from pathlib import Path

def now(): return time.monotonic_ns()  # one clock for all processes of the machine


class Journal:
    "The journal of one actor: a process's main thread, another of its threads, or a forked child"
    def __init__(self, folder, actor, **facts):
        self.fd = os.open(Path(folder)/actor, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self.write('start', 0, now(), dict(pid=os.getpid(), **facts))

    def write(self, *record): os.write(self.fd, json.dumps(record).encode() + b'\n')
    def close(self): os.close(self.fd)


def stem(actor):
    "What the tags of all values of an actor begin with"
    return int.from_bytes(hashlib.blake2b(actor.encode(), digest_size=5).digest(), 'big') | 1 << 39

def tag(stem, n, i=0):
    "A number no other value has: value `i` of operation `n`; from 8 on `i` is of one that is rolled back"
    return stem << 24 | n << 4 | i

def parts(tag): return tag >> 24, tag >> 4 & 0xFFFFF, tag & 15


class Op:
    "One operation, from its journal: when it began, when it had ended at the latest, and what became of it"
    __slots__ = 'actor', 'n', 'name', 'args', 'start', 'end', 'state', 'result'
    def __init__(self, actor, n, start, name, args):
        self.actor, self.n, self.name, self.args, self.start = actor, n, name, args, start
        self.end, self.state, self.result = float('inf'), 'open', None
    def __repr__(self): return f'{self.actor}:{self.n} {self.name}{self.args} -> {self.state} {self.result}'


class Story:
    "A journal that has been read"
    def __init__(self, path):
        self.actor, self.ops, self.notes, self.facts, self.ended = path.name, [], [], {}, False
        for line in path.read_bytes().split(b'\n')[:-1]:  # what follows the last newline is torn, or nothing
            kind, n, at, *rest = json.loads(line)
            if kind == 'begin': self.ops.append(Op(self.actor, n, at, *rest))
            elif kind in ('done', 'cut', 'error'):
                op = next(o for o in reversed(self.ops) if o.n == n)
                op.end, op.state, op.result = at, kind, rest[0]
            elif kind == 'start': self.facts = rest[0]
            elif kind == 'end': self.ended, self.facts = True, self.facts | rest[0]
            else: self.notes.append((kind, n, at, *rest))


def stories(folder):
    "All journals; what was open when its process was killed has ended with it"
    found = {path.name: Story(path) for path in sorted(Path(folder).iterdir()) if '.' in path.name}
    deaths = {}
    for story in found.values():
        deaths |= {who: at for kind, _, at, who, *_ in story.notes if kind == 'reaped'}
    for story in found.values():
        for op in story.ops:
            if op.state == 'open': op.end = deaths.get(process(story.actor), op.end)
    return found

def process(actor):
    "The actor of the main thread of the process: a thread's name ends in t and a number"
    head, _, last = actor.rpartition('.')
    return process(head) if last.startswith('t') else actor
