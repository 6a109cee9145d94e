"Other processes for the tests of tasks: interpreters that run what they are told, and a look at a site's workers"
import ast, json, os, select, shutil, signal, subprocess, sys
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil, pytest
from helpers import wait_for
from jupyter_core.utils import ensure_event_loop
from kernels import root
from parkit.workers import is_supervised

_loop = '''
import json, sys, traceback
for _line in sys.stdin:
    _kind, _source = json.loads(_line)
    try: _answer = repr(eval(_source)) if _kind == 'eval' else exec(_source)
    except BaseException: print(json.dumps(['error', traceback.format_exc()]), flush=True)
    else: print(json.dumps(['answer', _answer]), flush=True)
'''


class Interpreter:
    "A process that runs one piece of code after the other in its `__main__`, as a kernel does"
    def __init__(self, site, cwd=root):
        env = dict(os.environ, PARKIT_SITE=str(getattr(site, 'path', site)))
        self.process = subprocess.Popen([sys.executable, '-c', _loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=env, cwd=cwd)
        self.pid = self.process.pid
        self.run('import os, sys, time\nimport parkit as pk\nfrom pathlib import Path')

    def send(self, source, kind='exec'):
        "Have it run `source`, without waiting"
        self.process.stdin.write(json.dumps([kind, source]) + '\n')
        self.process.stdin.flush()

    def receive(self, seconds=60):
        "The answer to what was sent; raises what it raised"
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f'process {self.pid} has not answered in {seconds} s')
        kind, answer = json.loads(self.process.stdout.readline())
        if kind == 'error': raise RuntimeError(answer)
        return None if answer is None else ast.literal_eval(answer)

    def run(self, source):
        self.send(source)
        self.receive()

    def value(self, expression):
        self.send(expression, 'eval')
        return self.receive()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope='module', autouse=True)
def event_loop():
    "jupyter_client makes one for the whole process when first needed, and keeps it"
    ensure_event_loop()


@contextmanager
def interpreters(n, site, cwd=root):
    "`n` interpreters that use `site`"
    started = []
    try:
        for _ in range(n): started.append(Interpreter(site, cwd))
        yield started
    finally:
        for o in started: o.close()


def is_gone(pid):
    "Has the process ended? One that nobody has collected yet has"
    try: return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return True

def pool_processes(site):
    "The living supervisor and workers of `site`, which have one command line"
    path, found = repr(str(getattr(site, 'path', site))), []
    for process in psutil.process_iter():
        try:
            line = ' '.join(process.cmdline())
            if 'parkit.workers' in line and path in line and not is_gone(process.pid): found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied): pass
    return found

def supervisors(site):
    "The pids of those pool processes whose parent is none"
    parents = {}
    for process in pool_processes(site):
        with suppress(psutil.NoSuchProcess): parents[process.pid] = process.ppid()
    return sorted(pid for pid, parent in parents.items() if parent not in parents)


def settled_workers(pool, n):
    "Wait until exactly `n` workers live and are known; returns their pids"
    def settled():
        pids = pool.status.workers
        return len(pids) == n and not any(map(is_gone, pids)) and len(pool_processes(pool.site)) == n + 1
    assert wait_for(settled), (pool.status, pool_processes(pool.site))
    return pool.status.workers

def kill_pool(pool):
    "Kill the supervisor and its workers so that none of them brings another one back"
    supervisor, workers = pool.status.supervisor, pool.status.workers
    os.kill(supervisor, signal.SIGSTOP)  # so that it cannot replace them
    for pid in (*workers, supervisor): os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: all(map(is_gone, (*workers, supervisor))) and not is_supervised(pool.site))

def ended(trace, seconds=60):
    "Wait until the call has ended, and do nothing to bring that about; returns its status"
    wait_for(lambda: trace.status not in ('submitted', 'running'), seconds)
    return trace.status

def started(path):
    "Wait until a task has made the file at `path`"
    assert wait_for(Path(path).exists), f'{path} was not made'

def remove(folder):
    "Remove `folder`, whose files may be going away at the same time"
    while os.path.exists(folder): shutil.rmtree(folder, ignore_errors=True)
