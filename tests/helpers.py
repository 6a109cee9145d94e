"Processes for the tests: started on a piece of code, talked to in lines, ended by real signals"
import json, os, pickle, select, signal, subprocess, sys, threading, time, traceback
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

root = Path(__file__).resolve().parent.parent
DEADLINE = 60  # seconds after which a child that says nothing has failed the test

def wait_for(condition, seconds=DEADLINE, interval=0.02):
    "Wait until `condition()` is true; returns its last value, which is false if `seconds` have passed: so many that it is no matter of speed"
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline: time.sleep(interval)
    return value


_prelude = '''
import json, os, signal, sys, threading, time, warnings
import numpy as np
import parkit as pk
site = pk.set_site(sys.argv[1]) if sys.argv[1] else None

def say(value=None): print(json.dumps(value), flush=True)
def hear(): return json.loads(sys.stdin.readline())
def fork_and_stay():
    "The pid of a forked child that keeps all it has inherited, for a minute at most"
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        time.sleep(600)
    return pid
def never_look_again():
    "As the fixture of this name"
    import parkit.system
    parkit.system.SAFETY_NET = 600.0
def failure(work):
    "What `work()` raises: the names of its type and bases, and its message"
    try: work()
    except BaseException as e: return dict(type=type(e).__name__, parkit=isinstance(e, pk.ParkitError), message=str(e))
'''


class Child:
    "A Python process running `code` with `pk`, `np` and `site` at hand; `say` and `hear` exchange values with it"
    def __init__(self, site, code, *args, command=(), **env):
        path = str(getattr(site, 'path', site or ''))
        argv = [*command, sys.executable, '-c', _prelude + dedent(code), path, *map(str, args)]
        env = {**os.environ, 'PYTHONPATH': f'{root}{os.pathsep}{root/"tests"}', **env}
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self.pid, self._unread = self.process.pid, b''

    def hear(self, seconds=DEADLINE):
        "The next value that the child says"
        limit = time.monotonic() + seconds
        while b'\n' not in self._unread:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, limit - time.monotonic()))
            assert ready, f'the child {self.pid} has said nothing for {seconds} s'
            data = os.read(self.process.stdout.fileno(), 2**16)
            assert data, f'the child {self.pid} has ended with {self.process.wait()}, and said nothing'
            self._unread += data
        line, self._unread = self._unread.split(b'\n', 1)
        return json.loads(line)

    def say(self, value=None):
        self.process.stdin.write(json.dumps(value).encode() + b'\n')
        self.process.stdin.flush()

    def signal(self, number): self.process.send_signal(number)

    def strike(self):
        """Interrupt it, and hear what it then finds. CPython drops an interrupt that comes while it frees an object
        (`Exception ignored in __del__`); a user would press Ctrl-C again, and so do we"""
        while True:
            self.signal(signal.SIGINT)
            if select.select([self.process.stdout], [], [], 30)[0]: return self.hear()

    def kill(self):
        "Kill it, and wait until it is gone"
        self.process.kill()
        self.process.wait()

    def wait(self, seconds=DEADLINE):
        "Wait until it ends by itself, in good order"
        assert self.process.wait(seconds) == 0, f'the child {self.pid} has ended with {self.process.returncode}'

    def __enter__(self): return self
    def __exit__(self, *args):
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            try: pipe.close()
            except BrokenPipeError: pass  # what was not written yet


def run(site, code, *args, **options):
    "What a child running `code` says first; it must then end in good order"
    with Child(site, code, *args, **options) as child:
        value = child.hear()
        child.wait()
    return value


class Fork:
    "A forked child that runs `work(*args)`"
    def __init__(self, work, *args):
        self._in, out = os.pipe()
        self.pid = os.fork()
        if not self.pid: _work_in_child(out, work, args)
        os.close(out)

    def result(self, seconds=DEADLINE):
        "What `work` returned; raises what it raised"
        data, limit = b'', time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self._in], [], [], max(0, limit - time.monotonic()))
            assert ready, f'the forked child {self.pid} has not ended in {seconds} s'
            part = os.read(self._in, 2**16)
            if not part: break
            data += part
        self.wait()
        assert data, f'the forked child {self.pid} has died: {self.status}'
        ok, value = pickle.loads(data)
        if not ok: raise AssertionError(f'in the forked child:\n{value}')
        return value

    def wait(self):
        os.close(self._in)
        _, self.status = os.waitpid(self.pid, 0)
        self.pid = 0

    def kill(self):
        "Kill it, and wait until it is gone"
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def __enter__(self): return self
    def __exit__(self, *args):
        if self.pid: self.kill()


def _work_in_child(out, work, args):
    "The child's side: nothing of pytest's may run here"
    try:
        try: data = pickle.dumps((True, work(*args)))
        except BaseException: data = pickle.dumps((False, traceback.format_exc()))
        while data: data = data[os.write(out, data):]
    finally: os._exit(0)


@contextmanager
def in_thread(work):
    "Run `work()` beside the block, whose end waits for it and raises what it raised; a list which then has the result"
    found = []
    def run():
        try: found.append(work())
        except BaseException as e: found.append(e)
    thread = threading.Thread(target=run)
    thread.start()
    try: yield found
    finally: thread.join(DEADLINE)
    assert not thread.is_alive(), f'still running after {DEADLINE} s'
    if isinstance(found[0], BaseException): raise found[0]


def forked(work, *args):
    "What `work(*args)` returns in a forked child"
    with Fork(work, *args) as child: return child.result()


@contextmanager
def nobody_runs():
    "No calls are run meanwhile, unless there are workers already"
    from parkit.calls import Runner, _runner
    before, _runner[:] = _runner[:], [Runner()]
    try: yield
    finally: _runner[:] = before


def blobs(store):
    "The files of the blobs of a store, those on their way in too"
    folder = Path(store.path)
    return sorted(path.name for name in ('blobs', 'new') for path in (folder/name).iterdir())


def _effort(pid):
    "What the threads of a process are doing and have done: their states, how often each has gone to sleep, and the ticks of CPU used"
    try:
        stats = [open(f'/proc/{pid}/task/{t}/stat').read().rpartition(')')[2].split() for t in os.listdir(f'/proc/{pid}/task')]
        slept = [open(f'/proc/{pid}/task/{t}/status').read().partition('\nvoluntary_ctxt_switches:')[2].split()[0] for t in os.listdir(f'/proc/{pid}/task')]
        return {o[0] for o in stats}, slept, sum(int(n) for o in stats for n in o[11:13])
    except FileNotFoundError: return set(), [], 0  # a thread has just ended

def ticks(pid):
    "The CPU time that a process has used, in 1/100 s"
    return _effort(pid)[2]

def sleeps(*pids, seconds=1.5):
    "Whether all threads of the processes come to sleep, and to do nothing at all for so long"
    def still():
        before = [_effort(pid) for pid in pids]
        if any(states != {'S'} for states, *_ in before): return False
        time.sleep(seconds)  # what is measured, not what is waited for
        return [_effort(pid) for pid in pids] == before
    return wait_for(still)

def waits_for_a_lock(pid):
    "Whether a process is in line for a lock of a file"
    return any('-> FLOCK' in line and line.split()[5] == str(pid) for line in open('/proc/locks'))
