"""A call leaves nothing behind for the next one in its worker: forked children, directories, the state of the process, threads, processes.

Real workers; each test makes its own site. A pool of one worker has the next call meet whatever the one before has left."""
import os, signal, sys, time
from pathlib import Path

import parkit as pk, parkit.tasks, psutil, pytest
from conftest import wait_for
from task_helpers import ended, event_loop, is_gone, pool_processes, settled_workers, started  # noqa: F401  a fixture


# --- forked children

def collect(pid):
    "The exit code of a child"
    import os
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def forks_and(end, layers=0):
    "Fork; the parent returns the exit code of the child, which does what `end` says below so many functions"
    import os, sys
    if layers:
        try: return forks_and(end, layers - 1)
        finally: os.environ['layer'] = str(layers)
    pid = os.fork()
    if pid: return collect(pid)
    if end == 'exit': sys.exit(3)
    if end == 'message': sys.exit('sorry')
    if end == 'raise': raise ValueError('from the child')
    if end == 'interrupt': raise KeyboardInterrupt
    return 'a result of the child'

class Forking:
    "A value that forks when a worker pickles it, and whenever it is unpickled"
    def __init__(self, end): self.end = end
    def __reduce__(self): return made_by_fork, (self.end, forks_and(self.end) if parkit.tasks._worker[0] else None)

def made_by_fork(end, code): return forks_and(end) if parkit.tasks._worker[0] else code

def in_function(end): return forks_and(end)
def in_nested_functions(end): return forks_and(end, 3)
def in_generator(end):
    yield 'first'
    yield forks_and(end)
    yield 'last'
async def in_coroutine(end):
    import asyncio
    await asyncio.sleep(0)
    return forks_and(end)
async def in_another_coroutine(end):
    import asyncio
    async def fork(): return forks_and(end)
    return await asyncio.create_task(fork())
def in_transaction(end):
    d = pk.Dict('from_child')
    with pk.transaction('default'):
        d['parent'] = forks_and(end)
    return d['parent']
def in_result(end): return Forking(end)
def in_exception(end): raise RuntimeError(Forking(end))
def in_thread(end):
    import threading
    codes = []
    thread = threading.Thread(target=lambda: codes.append(forks_and(end)))
    thread.start()
    thread.join()
    return codes
def in_process(end):
    import multiprocessing, sys
    def leave():
        if end == 'raise': raise ValueError('from the child')
        sys.exit(dict(exit=3, message='sorry').get(end, 0))
    process = multiprocessing.get_context('fork').Process(target=leave)
    process.start()
    process.join()
    return process.exitcode

codes = {'exit': 3, 'message': 1, 'raise': 1, 'interrupt': 1, 'return': 0}
ways = [in_function, in_nested_functions, in_generator, in_coroutine, in_another_coroutine, in_transaction, in_result, in_process]

@pytest.fixture(autouse=True)
def by_value():
    "Functions of this file go to the workers by value"
    import cloudpickle
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

@pytest.mark.parametrize('end', codes)
@pytest.mark.parametrize('way', ways, ids=lambda f: f.__name__)
def test_child_of_a_task_ends_where_its_parent_would_return(single, double, way, end):
    if way is in_process and end == 'interrupt': pytest.skip('multiprocessing catches what it knows')
    worker = double(1)
    assert worker.result == 2
    trace = pk.task(way)(end, sync=False)
    result = list(trace)[1] if way is in_generator else trace.result
    expected = 0 if way is in_process and end == 'return' else codes[end]
    if way is in_another_coroutine and end in ('exit', 'message', 'interrupt'): expected = 1  # which cancel the coroutine that waits
    if way is in_transaction: expected = 1  # a child may not leave the block of its parent's
    if way is in_result and end == 'raise': expected = 0  # who stores a result takes it for one that cannot be stored
    assert result == expected and trace.pid == worker.pid and trace.status == 'finished'
    assert [double(i).result for i in range(20)] == [2*i for i in range(20)]
    assert len(pool_processes(single.site)) == 2 and settled_workers(single, 1) == (worker.pid,)
    assert len(pk.traces()) == 22 and all(t.status == 'finished' for t in pk.traces())
    if end == 'raise' and way not in (in_result, in_transaction): assert 'ValueError: from the child' in trace.output

def test_child_of_a_thread_of_a_task(single, double):
    "Nobody catches what it ends by: the thread is all that there is of it"
    trace = pk.task(in_thread)('exit', sync=False)
    assert trace.result == [0]
    assert [double(i).result for i in range(20)] == [2*i for i in range(20)] and len(pool_processes(single.site)) == 2

def test_child_made_by_an_argument_or_an_exception(single, double):
    trace = pk.task(in_exception)('raise', sync=False)
    assert ended(trace) == 'failed' and trace.error is not None
    take = pk.task(lambda value: value, name='take')
    assert take(Forking('raise'), sync=False).result == 0  # what keeps arguments from being read is an error of the call
    assert [double(i).result for i in range(20)] == [2*i for i in range(20)] and len(pool_processes(single.site)) == 2

def test_child_of_a_task_does_not_touch_what_the_worker_has(single, double):
    "Its output file, its place in the register, its pipes: a task that forks goes on, and its output is whole"
    @pk.task
    def fork_and_go_on():
        import os, sys
        print('before')
        pid = os.fork()
        if not pid: sys.exit()
        os.waitpid(pid, 0)
        print('after')
        return os.getpid()
    for _ in range(3):
        trace = fork_and_go_on()
        assert trace.result == trace.pid and trace.output == 'before\nafter\n'
    assert double(2).result == 4 and settled_workers(single, 1) == (trace.pid,)

def test_child_of_a_cached_call_leaves_no_result(single):
    @pk.task(cache=True)
    def fork_once(n):
        import os
        pid = os.fork()
        if not pid: return 'of the child'
        os.waitpid(pid, 0)
        return 'of the parent'
    assert fork_once(1, sync=False).result == 'of the parent' == fork_once(1, sync=False).result

def test_child_takes_signals_as_any_program(single):
    @pk.task
    def send(number):
        import os, time
        ready, begun = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(begun, b'.')
                time.sleep(60)
            except KeyboardInterrupt: os._exit(7)
        os.read(ready, 1)
        os.kill(pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert send(int(signal.SIGTERM)).result == -signal.SIGTERM
    assert send(int(signal.SIGINT)).result == 7


# --- the state of the process

class Changes:
    "Each changes the state of the process; the function of its name below says what a call sees of it"
    def directory(): os.chdir('/')
    def import_path(): sys.path.insert(0, '/nowhere')
    def another_import_path(): sys.path = ['/nowhere']
    def command_line(): sys.argv = ['program', '-x']
    def umask(): os.umask(0o077)
    def warning_filters():
        import warnings
        warnings.simplefilter('error')
    def warnings_caught_for_ever():
        import warnings
        warnings.catch_warnings(record=True).__enter__()
        warnings.simplefilter('error')
    def captured_warnings():
        import logging
        logging.captureWarnings(True)
    def decimal_context():
        import decimal
        decimal.getcontext().prec = 3
        decimal.getcontext().traps[decimal.Inexact] = True
    def another_decimal_context():
        import decimal
        decimal.setcontext(decimal.Context(prec=3))
    def locale():
        import locale
        locale.setlocale(locale.LC_ALL, next(name for name in ('C', 'C.UTF-8', 'POSIX') if locale.setlocale(locale.LC_ALL) != name))
    def recursion_limit(): sys.setrecursionlimit(300)
    def switch_interval(): sys.setswitchinterval(1)
    def stack_size():
        import threading
        threading.stack_size(2**20)
    def garbage_collection():
        import gc
        gc.disable()
        gc.set_threshold(1)
        gc.set_debug(gc.DEBUG_UNCOLLECTABLE)
    def fault_handler():
        import faulthandler
        (faulthandler.disable if faulthandler.is_enabled() else faulthandler.enable)()
    def hooks():
        import builtins, threading
        sys.excepthook = sys.unraisablehook = sys.displayhook = sys.breakpointhook = threading.excepthook = print
        sys.tracebacklimit = 0
    def trace_functions():
        sys.settrace(lambda *args: None)
        sys.setprofile(lambda *args: None)
    def profiler():
        import cProfile
        cProfile.Profile().enable()
    def tracemalloc():
        import tracemalloc
        tracemalloc.start()
    def signal_handlers():
        import signal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM): signal.signal(number, signal.SIG_IGN)
    def handlers_of_a_loop():
        import asyncio, signal
        loop = asyncio.new_event_loop()
        loop.add_signal_handler(signal.SIGTERM, print)
        loop.close()
    def blocked_signals():
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
    def alarm():
        import signal
        signal.signal(signal.SIGALRM, lambda *args: 1/0)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    def timers():
        import signal
        for timer, number in ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_VIRTUAL, signal.SIGVTALRM)):
            signal.signal(number, signal.SIG_IGN)
            signal.setitimer(timer, 0.001, 0.001)
    def logging_of_the_root():
        import logging
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    def logging_of_others():
        import logging
        logger = logging.getLogger('some.library')
        logger.addHandler(logging.StreamHandler())
        logger.propagate = False
        logging.getLogger('another').setLevel(logging.ERROR)
    def logging_disabled():
        import logging
        logging.disable(logging.CRITICAL)
        logging.setLogRecordFactory(dict)
    def event_loop():
        import asyncio
        asyncio.run(asyncio.sleep(0))
    def context_variable():
        import numpy
        numpy.seterr(all='raise')
    def limits():
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    def limits_for_good():
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    def niceness(): os.nice(1)
    def processors():
        if hasattr(os, 'sched_setaffinity'): os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    def closed_streams():
        with sys.stdout as out: out.write('bye\n')
        sys.stderr.close()
        sys.stdin.close()
    def detached_streams():
        sys.stdout.detach()
        sys.__stderr__.detach()
    def replaced_streams():
        import io
        sys.stdin, sys.stdout, sys.stderr = io.StringIO('x'), io.StringIO(), None
        sys.__stdout__ = None
    def configured_streams():
        sys.stdout.reconfigure(encoding='ascii', errors='strict', line_buffering=False)
        sys.stderr.reconfigure(encoding='latin-1', write_through=True)
    def closed_descriptors():
        for n in range(3): os.close(n)
    def led_descriptors():
        null = os.open(os.devnull, os.O_RDWR)
        for n in range(3): os.dup2(null, n)
    def left_transaction(): pk.transaction('elsewhere').__enter__()
    def left_snapshot(): pk.snapshot(pk.Dict('elsewhere/d')).__enter__()
    def transaction_of_a_generator():
        def items():
            with pk.transaction('elsewhere'): yield 1
        sys.left = items()
        next(sys.left)
    def lock(): pk.Lock('lock').acquire()
    def thread():
        import threading, time
        def speak():
            while True:
                print('spam')
                time.sleep(0.001)
        threading.Thread(target=speak).start()
    def daemon_thread():
        import threading, time
        def speak():
            while True:
                print('spam')
                time.sleep(0.001)
        threading.Thread(target=speak, daemon=True).start()
    def work_of_an_executor():
        import concurrent.futures, time
        def speak():
            for i in range(3000):
                print('spam')
                time.sleep(0.001)
        sys.left = concurrent.futures.ThreadPoolExecutor(1)
        sys.left.submit(speak)
    def timer():
        import threading
        threading.Timer(0.05, print, ['spam']).start()
    def finders():
        sys.meta_path.append(object())
        sys.path_hooks.insert(0, print)
    def built_in_names():
        import builtins
        builtins.display, builtins.print = print, lambda *args, **named: None
        del builtins.exit
    def settings_of_modules():
        import csv, decimal, logging, multiprocessing, socket, ssl, tempfile, urllib.request
        socket.setdefaulttimeout(0.001)
        csv.field_size_limit(3)
        decimal.DefaultContext.prec, decimal.DefaultContext.traps[decimal.Inexact] = 3, True
        ssl._create_default_https_context = ssl._create_unverified_context
        urllib.request.install_opener(urllib.request.build_opener())
        tempfile.tempdir, tempfile.template = '/nowhere', 'x'
        multiprocessing.set_start_method('spawn')
        logging.addLevelName(20, 'NOTE')
    def settings_of_pandas():
        import pandas
        pandas.set_option('display.max_rows', 3, 'display.html.border', 7, 'mode.sim_interactive', True)
    def hooks_of_coroutines():
        sys.set_asyncgen_hooks(print, print)
        sys.set_coroutine_origin_tracking_depth(5)
    def callbacks_of_collections():
        import gc
        gc.callbacks.append(print)
    def prompts(): sys.ps1 = sys.ps2 = '? '
    def talking_child():
        import subprocess
        sys.left = subprocess.Popen('while true; do echo spam; sleep 0.01; done', shell=True)

def observe():
    "What a call finds, and what it can do"
    import asyncio, builtins, cProfile, csv, decimal, faulthandler, gc, locale, logging, multiprocessing, resource, signal, socket, ssl, subprocess, tempfile
    import threading, time, tracemalloc, urllib.request, warnings
    import numpy, pandas
    fds = [os.readlink(f'/proc/self/fd/{n}') if os.path.isdir('/proc/self') else '' for n in range(3)]
    loggers = [logging.getLogger(name) for name in ('root', 'some.library', 'another')]
    hooks = [getattr(o, n, None) for o, n in ((sys, 'excepthook'), (sys, 'unraisablehook'), (sys, 'displayhook'), (sys, 'breakpointhook'),
             (threading, 'excepthook'), (warnings, 'showwarning'), (sys, 'tracebacklimit'))]
    os.umask(mask := os.umask(0))
    seen = dict(
        directory=os.getcwd(), path=sys.path[:], argv=sys.argv[:], umask=mask, filters=[str(f) for f in warnings.filters],
        decimal=repr(decimal.getcontext()), locale=locale.setlocale(locale.LC_ALL), recursion=sys.getrecursionlimit(),
        switch=sys.getswitchinterval(), stack=threading.stack_size(), gc=(gc.isenabled(), gc.get_threshold(), gc.get_debug()),
        fault=faulthandler.is_enabled(), hooks=repr([getattr(h, '__qualname__', h) for h in hooks]), trace=(sys.gettrace(), sys.getprofile()),
        memory=tracemalloc.is_tracing(), mask=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        signals=[str(getattr(h, '__qualname__', h)) for n in range(1, 32) for h in [signal.getsignal(n)]],
        timers=[signal.getitimer(n) for n in range(3)], wakeup=signal.set_wakeup_fd(-1) >= 0,
        loggers=[(o.level, o.handlers, o.propagate, o.disabled, o.isEnabledFor(logging.ERROR)) for o in loggers],
        finders=(len(sys.meta_path), len(sys.path_hooks)), names=sorted(vars(builtins)), print=repr(print), prompts=(hasattr(sys, 'ps1'), hasattr(sys, 'ps2')),
        settings=(socket.getdefaulttimeout(), csv.field_size_limit(), repr(decimal.DefaultContext), ssl._create_default_https_context.__name__,
                  urllib.request._opener is None, tempfile.tempdir, tempfile.template, multiprocessing.get_start_method(allow_none=True), logging.getLevelName(20),
                  [pandas.get_option(name) for name in ('display.max_rows', 'display.html.border', 'mode.sim_interactive')]),
        coroutines=(repr(sys.get_asyncgen_hooks()), sys.get_coroutine_origin_tracking_depth()), callbacks=len(gc.callbacks),
        record=logging.getLogRecordFactory().__name__, floats=str(numpy.geterr()),
        limits=[resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith('RLIMIT_')],
        nice=os.nice(0), affinity=hasattr(os, 'sched_getaffinity') and os.sched_getaffinity(0), group=os.getpgrp() == os.getpid(),
        streams=[(s.encoding, s.errors, s.line_buffering, s.write_through, s.closed, type(s).__name__) for s in (sys.stdout, sys.stderr, sys.__stdout__)],
        stdin=(sys.stdin.read(), fds[0]), same=sys.stdout is sys.__stdout__, fds=fds[1] == fds[2] and 'output' in fds[1])
    if sys.version_info < (3, 12): asyncio.get_event_loop_policy().get_event_loop().close()  # as in a fresh program: one is made
    profile = cProfile.Profile()
    profile.enable()
    profile.disable()
    print('größe', flush=True)
    subprocess.run('echo from a child', shell=True)
    print('error', file=sys.stderr)
    pid = os.fork()
    if not pid: sys.exit()
    os.waitpid(pid, 0)
    with pk.transaction('elsewhere', timeout=5): pk.Dict('elsewhere/d')['x'] = 1
    lock = pk.Lock('lock')
    assert lock.acquire(timeout=5)
    lock.release()
    time.sleep(0.1)  # for whoever is still there to print
    return seen

changes = [f for f in vars(Changes).values() if callable(f) and not isinstance(f, type)]
# what only another process can be without
replaced = {'limits_for_good', 'left_transaction', 'left_snapshot', 'transaction_of_a_generator', 'lock', 'thread', 'daemon_thread',
            'work_of_an_executor', 'timer'}

def test_call_finds_nothing_of_the_one_before(single):
    "Neither what it reads nor what it can do differs from what the first call finds"
    observer, wrong = pk.task(observe), {}
    pk.Namespace('elsewhere', durable=False)
    first = observer(sync=False).result
    observer(sync=False).result  # imports are done now
    for change in changes:
        name, before = change.__name__, single.status.workers
        assert ended(pk.task(change)(sync=False)) in ('finished', 'failed'), name
        trace = observer(sync=False)
        if trace.error is not None: wrong[name] = str(trace.error)
        else:
            wrong |= {f'{name}: {key}': (first[key], value) for key, value in trace.result.items() if value != first[key]}
            if trace.output != 'größe\nfrom a child\nerror\n': wrong[f'{name}: output'] = trace.output[:200]
        if (settled_workers(single, 1) == before) != (name not in replaced): wrong[f'{name}: worker'] = name in replaced
    assert not wrong, "\n".join(f"{k}: {v}" for k, v in wrong.items())

@pytest.mark.parametrize('library', ['random', 'numpy', 'torch'])
def test_numbers_of_a_call_do_not_follow_from_a_seed_of_another(single, library):
    if library == 'torch': pytest.importorskip('torch')
    @pk.task
    def draw(seed=None):
        import os, random
        import numpy as np
        if library == 'torch': import torch
        if seed is not None: (random.seed if library == 'random' else np.random.seed if library == 'numpy' else torch.manual_seed)(seed)
        return [random.random() if library == 'random' else np.random.random() if library == 'numpy' else torch.rand(1).item() for _ in range(2)], os.getpid()
    (first, pid), (after, _), (again, _), (later, same) = [t.result for t in (draw(5), draw(), draw(5), draw())]
    assert first == again and len({*first, *after, *later}) == 6 and pid == same

def test_settings_of_torch_end_with_their_call(single):
    pytest.importorskip('torch')
    @pk.task
    def look(change=False):
        import os, torch
        found = str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        if change:
            torch.set_default_dtype(torch.float64), torch.set_grad_enabled(False), torch.set_num_threads(found[2] + 1), torch.use_deterministic_algorithms(True)
        return found, os.getpid()
    assert look().result == look(True).result == look().result

def test_log_says_why_a_worker_was_replaced(single):
    @pk.task
    def leave_a_thread():
        import threading, time
        threading.Thread(target=time.sleep, args=[60], name='heartbeat').start()
    trace = leave_a_thread()
    trace.wait()
    log = Path(single.site.path)/'@'/'workers.log'
    assert wait_for(lambda: log.exists() and f'worker {trace.pid} leaves, for what call {trace.id}' in log.read_text())
    assert 'task/leave_a_thread has left: thread heartbeat' in log.read_text()

def test_threads_of_libraries_that_rest_do_not_cost_a_worker(single):
    @pk.task
    def use_threads():
        import asyncio, concurrent.futures, os, sys, threading
        sys.executor = concurrent.futures.ThreadPoolExecutor(2)
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        return list(sys.executor.map(abs, [-1, -2])), asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 3), loop).result()
    first, second = use_threads(), use_threads()
    assert first.result == second.result == ([1, 2], 3) and first.pid == second.pid

def test_cancel_is_quick_after_a_call_that_ignored_signals(single, tmp_path):
    pk.task(Changes.signal_handlers)(sync=False).wait()
    @pk.task
    def sleep(path):
        import time
        from pathlib import Path
        Path(path).touch()
        time.sleep(60)
    trace = sleep(str(tmp_path/'began'))
    started(tmp_path/'began')
    began = time.monotonic()
    trace.cancel()
    assert ended(trace) == 'cancelled' and time.monotonic() - began < 4  # and not the 5 s after which it would be killed

@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder with a module whose import changes the process, where the calls are made"
    (tmp_path/'changing.py').write_text('''
import decimal, logging, os, sys, warnings
warnings.filterwarnings('ignore', message='of the module')
sys.path.append('/added/by/the/module')
sys.setrecursionlimit(4321)
os.environ['OF_THE_MODULE'] = 'kept'
decimal.getcontext().prec = 7
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
logging.getLogger('changing').setLevel(logging.DEBUG)
''')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path

def look(change):
    import decimal, logging, sys, warnings
    if change:
        warnings.filterwarnings('ignore', message='of the call')
        sys.path.append('/added/by/the/call')
        decimal.getcontext().prec = 5
        logging.getLogger('call').setLevel(logging.DEBUG)
        os.environ['OF_THE_CALL'] = 'gone'
    import changing  # noqa: F401
    logging.getLogger('changing').debug('a line')
    return ([m.pattern for _, m, *_ in warnings.filters if m and m.pattern.startswith('of the')], sys.path[-1], sys.getrecursionlimit(),
            decimal.getcontext().prec, logging.getLogger('call').level, os.environ.get('OF_THE_MODULE'), os.environ.get('OF_THE_CALL'))

def test_what_a_module_changes_while_it_is_imported_stays(single, folder):
    "It would not do so again; what the call had changed before is gone"
    looks = pk.task(look)
    first, second = looks(True, sync=False), looks(False, sync=False)
    assert first.result == (['of the module', 'of the call'], '/added/by/the/module', 4321, 7, 10, 'kept', 'gone')
    assert second.result == (['of the module'], '/added/by/the/module', 4321, 7, 0, 'kept', None) and first.pid == second.pid
    assert first.output == second.output == 'DEBUG:changing:a line\n'

def test_what_a_module_of_another_caller_has_changed_is_gone(single, folder, tmp_path_factory, monkeypatch):
    def limits():
        import sys, warnings
        return sys.getrecursionlimit(), [m.pattern for _, m, *_ in warnings.filters if m and m.pattern.startswith('of the')]
    limits = pk.task(limits)
    first = limits(sync=False).result
    with_module = pk.task(look)(False, sync=False)
    assert with_module.result[2] == 4321
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
    trace = limits(sync=False)
    assert trace.result == first and trace.pid == with_module.pid


# --- the working directory

@pytest.fixture
def where(site):
    @pk.task
    def where():
        import os, pathlib
        pathlib.Path('found').touch()
        return os.getcwd()
    return where

def test_directory_that_a_call_has_left_is_that_of_the_next(single, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = where()
    assert worker.result == str(tmp_path)
    pk.task(lambda: os.chdir('/'), name='leave')(sync=False).wait()
    again = where()
    assert again.result == str(tmp_path) and again.pid == worker.pid

def test_directory_that_was_made_again(single, where, tmp_path, monkeypatch):
    folder = tmp_path/'folder'
    for _ in range(3):
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert where().result == str(folder) and (folder/'found').exists()
        (folder/'found').unlink()
        folder.rmdir()

def test_directory_that_is_another_each_time(single, where, tmp_path, monkeypatch):
    "A link that leads elsewhere now"
    link = tmp_path/'link'
    for name in 'ab':
        (tmp_path/name).mkdir()
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path/name)
        monkeypatch.setenv('PWD', str(link))
        monkeypatch.chdir(link)
        assert where().result == str(tmp_path/name)

@pytest.mark.parametrize('hindrance', ['gone', 'a file', 'closed'])
def test_directory_that_cannot_be_used_when_a_call_runs(single, where, tmp_path, monkeypatch, hindrance):
    "An error that names it, and never the directory of another caller"
    if hindrance == 'closed' and os.getuid() == 0: pytest.skip('root may enter everything')
    other, folder = tmp_path/'other', tmp_path/'folder'
    other.mkdir()
    folder.mkdir()
    monkeypatch.chdir(other)
    assert where().result == str(other)
    (other/'found').unlink()
    monkeypatch.chdir(folder)
    trace = where.options(delay=0.5)()
    if hindrance == 'closed': folder.chmod(0)
    else: folder.rmdir()
    if hindrance == 'a file': folder.touch()
    assert ended(trace) == 'failed' and not (other/'found').exists()
    message = str(trace.error)
    assert 'the working directory that the call was made in' in message and str(folder) in message and 'make it again' in message
    if hindrance == 'gone':
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert where().result == str(folder)


# --- processes

def start_all(folder):
    "Start processes in all the ways that there are; each writes down its pid"
    import multiprocessing, os, pathlib, signal, subprocess, sys, time
    write, rest = f'echo $$ > {folder}/', 'while true; do sleep 1; done'
    def stay(name):
        pathlib.Path(folder, f'{name}.new').write_text(str(os.getpid()))
        os.rename(f'{folder}/{name}.new', f'{folder}/{name}')
        while True: time.sleep(1)
    def stubborn(name):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stay(name)
    sys.left = [subprocess.Popen(f'{write}popen; {rest}', shell=True),
                subprocess.Popen(['sh', '-c', f'sh -c "echo \\$\\$ > {folder}/grandchild; {rest}" & {write}parent; {rest}'])]
    subprocess.run(f'(echo > /dev/null; exec sh -c "echo \\$\\$ > {folder}/orphan; {rest}") &', shell=True)
    context = multiprocessing.get_context('fork')
    for target, name in ((stay, 'process'), (stubborn, 'stubborn')):
        sys.left.append(context.Process(target=target, args=[name], daemon=True))
        sys.left[-1].start()
    if not (pid := os.fork()):
        if os.fork(): os._exit(0)
        stay('forked_twice')
    os.waitpid(pid, 0)

names = ['popen', 'grandchild', 'parent', 'orphan', 'process', 'stubborn', 'forked_twice']

def start_all_and_stay(folder):
    import time
    start_all(folder)
    while True: time.sleep(0.01)

@pytest.fixture
def processes(tmp_path):
    "A folder where processes write down their pids, and what waits until all have"
    folder = tmp_path/'processes'
    folder.mkdir()
    def pids():
        def read():
            found = {name: (folder/name).read_text().strip() for name in names if (folder/name).exists()}
            return len(found) == len(names) and all(found.values()) and found
        found = wait_for(read)
        assert found, os.listdir(folder)
        return {name: int(pid) for name, pid in found.items()}
    return folder, pids

def gone(pids):
    assert wait_for(lambda: all(is_gone(pid) for pid in pids.values()), 30), {n: p for n, p in pids.items() if not is_gone(p)}

@pytest.mark.parametrize('end', ['cancel', 'timeout', 'kill', 'exit', 'stop', 'orphan', 'orphan_killed'])
def test_processes_that_a_call_has_started_end_with_it(single, double, processes, end):
    folder, pids = processes
    trace = pk.task(start_all_and_stay).options(timeout=3 if end == 'timeout' else None)(str(folder))
    found = pids()
    supervisor = single.status.supervisor
    if end == 'cancel': trace.cancel()
    elif end == 'kill': os.kill(trace.pid, signal.SIGKILL)
    elif end == 'exit': os.kill(trace.pid, signal.SIGSEGV)
    elif end == 'stop': single.stop()
    elif end.startswith('orphan'):
        os.kill(supervisor, signal.SIGKILL)
        assert wait_for(lambda: is_gone(supervisor))
        double(1)
        assert wait_for(lambda: single.status.supervisor not in (None, supervisor))
        if end == 'orphan': trace.cancel()
        else: os.kill(trace.pid, signal.SIGKILL)
    gone(found)
    assert ended(trace) == dict(cancel='cancelled', timeout='timeout', orphan='cancelled').get(end, 'crashed')
    assert double(4).result == 8

@pytest.mark.parametrize('end', ['stop', 'idle', 'replaced', 'supervisor killed'])
def test_processes_that_a_call_has_left_end_with_its_worker(single, double, processes, end):
    "They are part of what stays, as a pool of processes that a library keeps; no later than the worker do they end"
    folder, pids = processes
    trace = pk.task(start_all)(str(folder), sync=False)
    trace.wait()
    found = pids()
    assert double(4).result == 8 and single.status.workers == (trace.pid,) and not any(map(is_gone, found.values()))
    if end == 'stop': single.stop()
    elif end == 'idle': single.idle_timeout = 0.2
    elif end == 'replaced': single.max_tasks_per_worker = 1
    else: os.kill(single.status.supervisor, signal.SIGKILL)
    gone(found)
    assert is_gone(trace.pid)

def test_process_in_a_session_of_its_own_goes_on(single, tmp_path):
    "This is how to detach one"
    @pk.task
    def detach():
        import subprocess
        return subprocess.Popen(['sleep', '1000'], start_new_session=True).pid
    pid = detach().result
    try:
        single.stop()
        assert wait_for(lambda: not pool_processes(single.site)) and not is_gone(pid)
    finally: os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: is_gone(pid))


# --- the end of a worker

@pytest.mark.parametrize('end', ['stop', 'idle', 'replaced'])
def test_worker_ends_as_a_program_does(single, tmp_path, end):
    @pk.task
    def prepare(folder):
        import atexit, logging, logging.handlers, multiprocessing.util, pathlib, tempfile, threading, time, weakref
        folder = pathlib.Path(folder)
        atexit.register((folder/'atexit').touch)
        multiprocessing.util.Finalize(None, (folder/'finalizer').touch, exitpriority=1)
        weakref.finalize(prepare.__class__, (folder/'weakref').touch)
        memory = logging.handlers.MemoryHandler(100, target=logging.FileHandler(folder/'log'))
        memory.handle(logging.LogRecord('x', 30, 'x', 1, 'flushed', (), None))
        logging.left = memory
        pathlib.Path(folder/'temporary').mkdir()
        logging.directory = tempfile.TemporaryDirectory(dir=folder/'temporary')
        def work():
            time.sleep(0.2)
            (folder/'thread').touch()
        threading.Thread(target=work).start()
    if end == 'replaced': single.max_tasks_per_worker = 1
    trace = prepare(str(tmp_path))
    trace.wait()
    if end == 'stop': single.stop()
    elif end == 'idle': single.idle_timeout = 0.2
    assert wait_for(lambda: is_gone(trace.pid))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ('site', 'processes')) == ['atexit', 'finalizer', 'log', 'temporary',
                                                                                                'thread', 'weakref']
    assert not list((tmp_path/'temporary').iterdir()) and (tmp_path/'log').read_text() == 'flushed\n'

def test_exit_handler_that_does_not_end_holds_up_nothing(single, double):
    @pk.task
    def hang():
        import atexit, threading, time
        atexit.register(time.sleep, 1000)
        threading.Thread(target=time.sleep, args=[1000]).start()
    trace = hang()
    trace.wait()
    assert double(4).result == 8
    assert not is_gone(trace.pid)  # another has come in its place at once
    assert wait_for(lambda: is_gone(trace.pid), 30) and double(5).result == 10

@pytest.mark.skipif(sys.platform != 'linux', reason='looks where Linux keeps named semaphores')
def test_loky_leaves_neither_processes_nor_files(single):
    pytest.importorskip('joblib')
    @pk.task
    def fit():
        import joblib, numpy, psutil
        sums = joblib.Parallel(n_jobs=2, max_nbytes=1000)(joblib.delayed(numpy.sum)(numpy.ones(10000)) for _ in range(4))
        return sums, [p.pid for p in psutil.Process().children(recursive=True)]
    trace = fit()
    sums, pids = trace.result
    def files(): return list(Path('/dev/shm').glob(f'*loky*-{trace.pid}-*')) + list(Path('/dev/shm').glob(f'joblib*_{trace.pid}_*'))
    assert sums == [10000]*4 and len(pids) >= 3 and files()
    again = fit()
    assert set(pids) <= set(again.result[1])  # a pool that a library keeps is there for the next call
    single.stop()
    assert wait_for(lambda: all(map(is_gone, pids))) and wait_for(lambda: not files())

def test_what_an_initializer_changes_is_there_for_all_calls_of_its_loop_and_no_other(single):
    joblib = pytest.importorskip('joblib')
    def prepare(folder):
        import decimal, logging, warnings
        (Path(folder)/str(time.monotonic())).touch()
        warnings.filterwarnings('ignore', message='of the initializer')
        logging.basicConfig(level=logging.DEBUG)
        os.environ['INITIALIZED'] = 'yes'
        sys.setrecursionlimit(4321)
        decimal.getcontext().prec = 7
    def look():
        import decimal, logging, warnings
        return (any(m and m.pattern == 'of the initializer' for _, m, *_ in warnings.filters), logging.root.level, os.environ.get('INITIALIZED'),
                sys.getrecursionlimit() == 4321, decimal.getcontext().prec)
    folder = Path(single.site.path).parent/'initialized'
    folder.mkdir()
    before = pk.task(look)(sync=False).result
    with pk.joblib_backend(n_jobs=2, initializer=prepare, initargs=(str(folder),)):
        found = joblib.Parallel(batch_size=1)(joblib.delayed(look)() for _ in range(5))
    assert found == [(True, 10, 'yes', True, 7)]*5 and len(list(folder.iterdir())) == len({t.pid for t in pk.traces()})
    assert pk.task(look)(sync=False).result == before == (False, 30, None, False, 28)


def test_a_child_that_is_signalled_as_soon_as_it_is_forked_ends(single):
    "As `multiprocessing.Pool.terminate` does, which then waits for it"
    @pk.task
    def ends(number, count):
        import os, time
        codes = []
        for _ in range(count):
            pid = os.fork()
            if not pid:
                time.sleep(1)
                os._exit(7)
            os.kill(pid, number)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return codes
    assert ends(signal.SIGTERM, 20).result == [-signal.SIGTERM]*20
    assert single.status.workers  # which still heeds its own
