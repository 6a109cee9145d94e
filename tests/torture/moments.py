"""Each kind of change, cut off at each moment: by SIGKILL in a child, line by line, or by Ctrl-C here, at each point at
which Python takes a signal. What is there afterwards must be what was before or what was to be, and all must go on.

A notebook keeps the traceback of an interrupt, and with it all frames that it went through; so does this."""
import faulthandler, gc, json, os, random, shutil, signal, sys, threading, traceback

import numpy as np

import parkit as pk
from torturer import Undo, fall, row, stand

big, other = row(1, 40_000), row(2, 40_000)


class Scene:
    "A namespace with something of everything"
    def __init__(self, path):
        self.site = pk.set_site(path)
        pk.Namespace('n', durable=False)
        self.d, self.e, self.items = pk.Dict('n/d'), pk.Dict('n/e'), pk.Array('n/items')
        self.ring, self.queue, self.lifo = pk.Array('n/ring', maxsize=3), pk.Queue('n/queue'), pk.LifoQueue('n/lifo')
        self.file, self.lock, self.event = pk.File('n/file'), pk.Lock('n/lock'), pk.Event('n/event')

    def reset(self):
        "As it is before each change"
        for name in [name for name in pk.Namespace('n').names() if name in ('new', 'copy', 'renamed')]: pk.Namespace('n')[name].drop()
        if not self.e.exists: self.e = pk.Dict('n/e')
        if pk.Namespace('m').exists: pk.Namespace('m').drop()
        if pk.Namespace('o').exists: pk.Namespace('o').drop()
        shutil.rmtree(f'{self.site.path}.other', ignore_errors=True)
        self.d.clear()
        self.d.update({'a': 1, 'big': big, 'L'*900: big, 'list': [1]})
        self.e.update(a=big, b=1)
        self.d.x = 1
        self.items.clear()
        self.items.extend([1, big, 3])
        self.ring.clear()
        self.ring.extend([1, big, 3])
        for q in (self.queue, self.lifo):
            while not q.empty(): q.get_many(9, False)
            q.put_many([1, big, 3])
        with self.file.open('wb') as f: f.write(big)
        self.event.clear()

    def state(self):
        "All there is"
        def seen(v): return f'array {v[0]} {len(v)} {np.array_equal(v, row(int(v[0]), len(v)))}' if isinstance(v, np.ndarray) else v
        def of_queue(q): return [seen(q._value(r, False)) for _, r, _ in q._entries(q._oid + b'\2', pk.objects._after(q._oid))]
        found = {o.name: [(k, seen(v)) for k, v in o.items()] for o in pk.Namespace('n') if isinstance(o, pk.Dict)}
        found |= {o.name: [seen(v) for v in o] for o in pk.Namespace('n') if isinstance(o, pk.Array)}
        found |= dict(queue=of_queue(self.queue), lifo=of_queue(self.lifo), x=self.d.x, file=seen(np.frombuffer(self.file.content, np.uint64)), event=self.event.is_set())
        for ns in 'mo': found[ns] = [f'{o.name} {[(k, seen(v)) for k, v in o.items()] if isinstance(o, pk.Dict) else o}' for o in pk.Namespace(ns)] if pk.Namespace(ns).exists else None
        return json.dumps(found)

    def sound(self, swept):
        "What is wrong with the files: there is one for each blob, and no other but those whose writers will be swept"
        store = self.d._store
        txn = store.read()
        used = {key[1:].hex() for key, _ in store.scan(txn, pk.storage.BLOBS, pk.storage.TRASH)}
        trash = {key[9:].hex() for key, _ in store.scan(txn, pk.storage.TRASH, pk.storage.META)}  # whose files may be gone: they are unlinked before the commit that forgets them
        store.end(txn)
        files, new = set(os.listdir(f'{store.path}/blobs')), {name[:32] for name in os.listdir(f'{store.path}/new')}
        if used - files: return f'blobs without a file: {used - files}'
        if files - used - trash - (set() if swept else new): return f'files without an entry: {files - used - trash}'
        if swept and new: return f'left in new/: {new}'


# --- what is cut off

def small(s): s.d['a'] = 2
def blob(s): s.d['big'] = other
def long_key(s): s.d['L'*900] = other
def away(s): del s.d['big']
def pop(s): s.d.pop('big')
def update(s): s.d.update({'a': 2, 'big': other, 'L'*901: 3, 'new': big})
def clear(s): s.d.clear()
def default(s): s.d.setdefault('new', other)
def attribute(s): s.d.x = 2
def edit(s):
    with s.d.edit('list') as v: v.append(2)

def several(s):
    with pk.transaction('n'):
        s.d['a'] = 2
        s.d['big'] = other
        with pk.transaction('n'):
            s.e['a'] = 2
            s.items.append(other)
        s.e['b'] = 2

def undone(s):
    try:
        with pk.transaction('n'):
            s.d['big'] = other
            try:
                with pk.transaction('n'):
                    s.d['new'] = other
                    raise Undo
            except Undo: pass
            del s.e['a']
            raise Undo
    except Undo: pass

def half_undone(s):
    with pk.transaction('n'):
        s.d['a'] = 2
        try:
            with pk.transaction('n'):
                s.d['big'] = other
                pk.Dict('n/new')['a'] = other
                raise Undo
        except Undo: pass
        s.e['b'] = 2

def extend(s): s.items.extend([4, other, 6])
def popleft(s): s.items.popleft()
def turn(s): s.ring.extend([4, other])
def put(s): s.queue.put_many([4, other])
def take(s): s.queue.get_many(2)
def take_last(s): s.lifo.get()
def write(s):
    with s.file.open('wb') as f: f.write(other)
def change(s):
    with s.file.open('r+b') as f: f.write(other[:100])
def given_up(s):
    try:
        with s.file.open('wb') as f:
            f.write(other)
            raise Undo
    except Undo: pass
def locked(s):
    with s.lock: pass
def event(s): s.event.set()
def make(s): pk.Dict('n/new', metadata=dict(a=1))
def drop(s): s.e.drop()
def rename(s): s.e.rename('renamed')
def copy(s): s.d.copy('n/copy')
def nameless(s): pk.Dict().update(a=big)
def snapshot(s):
    with pk.snapshot('n'): return s.d['a'], s.d['big']
def iterate(s): return [*s.d.items()], [*s.items]
def wait(s): pk.wait_until(lambda: s.d['a'] == 1)
def reopen(s):
    s.site.close()
    s.d['a'] = 2
def new_space(s): pk.Namespace('m', durable=True)
def new_site(s): pk.Site(f'{s.site.path}.other').close()
def copy_space(s): pk.Namespace('n').copy('m')
def compact(s): pk.compact('n')

WORKS = [small, blob, long_key, away, pop, update, clear, default, attribute, edit, several, undone, half_undone, extend, popleft, turn, put, take, take_last, write, change,
         given_up, locked, event, make, drop, rename, copy, nameless, snapshot, iterate, wait, reopen, new_space, new_site, copy_space, compact]


# --- how it is cut off

def kill(scene, work, n):
    "In a child, at line `n`; returns whether it ended before"
    pid = os.fork()
    if not pid:
        try:
            fall(n, signal.SIGKILL)
            work(scene)
            stand()
            os._exit(0)
        except BaseException: traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    if status not in (0, 9): raise AssertionError(f'the child has ended with {status}')
    return status == 0

def interrupt(scene, work, n):
    "Here, at point `n`; returns whether it ended before, and the exception, whose traceback is kept"
    fall(n, signal.SIGINT)
    try: work(scene)
    except KeyboardInterrupt as e: return False, e
    finally: stand()
    return True, None

def goes_on(scene):
    "Whether this thread and another can write, and the site can be closed"
    with pk.transaction('n', timeout=30): scene.d['after'] = 1
    thread = threading.Thread(target=scene.d.__delitem__, args=('after',), daemon=True)
    thread.start()
    thread.join(30)
    if thread.is_alive(): return 'another thread cannot write'
    if not scene.lock.acquire(timeout=30): return 'the lock is held'
    scene.lock.release()
    scene.site.close()

def cut(scene, work, n, how):
    "Cut `work` off at its moment `n`; returns what is wrong afterwards, and whether the work had ended before"
    faulthandler.dump_traceback_later(120, exit=True)  # it hangs: a lock is held still
    scene.reset()
    before = scene.state()
    scene.site.close()  # so that what makes it usable again is cut off too
    if how == 'kill': ended, e = kill(scene, work, n), None
    else: ended, e = interrupt(scene, work, n)
    wrong, where = [], [f'{os.path.basename(f.filename)}:{f.lineno}' for f in traceback.extract_tb(e.__traceback__)[1:-1]] if e else ''
    try:
        wrong.append(goes_on(scene))
        wrong.append(scene.sound(how == 'kill'))
        after = scene.state()
        if not ended and after not in (before, AFTER[work]): wrong.append(f'half of it is done: {after}')
        if ended: AFTER[work] = after
    except Exception as x: wrong.append(f'{type(x).__name__}: {x}')
    return [f'{work.__name__} at {n} {where}: {w}' for w in wrong if w], ended

AFTER = {}

def main(path, how, part, seed, *names):
    "Every moment, or one of each `part` of them, of the works that have these names, or of all"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scene, rng, moments, problems = Scene(path), random.Random(seed), 0, []
    try:
        for work in [w for w in WORKS if not names or w.__name__ in names]:
            wrong, _ = cut(scene, work, 10**9, how)  # uninterrupted
            problems += wrong
            n, ended = rng.randrange(int(part)) + 1, False
            if os.environ.get('PARKIT_SAY'): print(work.__name__, file=sys.stderr, flush=True)
            while not ended and len(problems) < 20:
                wrong, ended = cut(scene, work, n, how)
                moments, problems, n = moments + 1, problems + wrong, n + int(part)
            gc.collect()
    finally: print(json.dumps(dict(moments=moments, problems=problems)))
    scene.reset()
    scene.site.close()

if __name__ == '__main__': main(*sys.argv[1:])
