"""CPython's own tests of `concurrent.futures`, run against `Executor`; then what they do not look at, and joblib.

The suite is that of the Python that runs this: `test.test_concurrent_futures`. Some Pythons come without it. Debian has that of its own Python in `libpython3.11-testsuite`
(`/usr/lib/python3.11/test`), and `PARKIT_CPYTHON_TESTS` can name a folder `test` from elsewhere. What cannot apply stands in `CANNOT`, with the reason."""
import importlib.util, logging, os, signal, sys, threading, time, unittest
from concurrent import futures
from functools import partial
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import wait_for
from helpers import Child, forked, run

import parkit as pk
from parkit.calls import Runner
from parkit.ledger import _ledger
from parkit.system import Listener

_places = [Path(p) for p in (os.environ.get('PARKIT_CPYTHON_TESTS'), f'/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test') if p]

def _load():
    "The modules of the suite, or nothing; the workers import them by the same path"
    try: names = ['test.test_concurrent_futures'] if importlib.util.find_spec('test.test_concurrent_futures') else []
    except ImportError: names = []
    if not names:
        place = next((p for p in _places if (p/'test_concurrent_futures.py').exists() or (p/'test_concurrent_futures').exists()), None)
        if place is None: return []
        sys.path.append(str(place))
        names = ['test_concurrent_futures']
    package = importlib.import_module(names[0])
    if not hasattr(package, '__path__'): return [package]
    return [importlib.import_module(f'{names[0]}.{part}') for part in ('util', 'executor', 'test_wait', 'test_as_completed', 'test_shutdown', 'test_future', 'test_deadlock', 'test_process_pool', 'test_thread_pool')]

modules = _load()
without = pytest.mark.skipif(not modules, reason="this Python comes without CPython's own tests of concurrent.futures; Debian's are in libpython3.11-testsuite")
suites = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}


# --- adapter

class Executor(pk.Executor):
    "Some of the suite gives a context of multiprocessing"
    def __init__(self, max_workers=None, mp_context=None): super().__init__(max_workers)

class Future(pk.CallFuture): "Its name is in the reprs"

class Mixin(suites.get('ExecutorMixin', object)): pass

def _suite(name):
    "The suite called `name`, on our executor"
    base = suites[name]
    bases = (base,) if issubclass(base, unittest.TestCase) and name == 'FutureTests' else (base, Mixin, suites['BaseTestCase'])
    return type(name, bases, dict(__test__=False, executor_type=Executor, get_context=lambda self: None))

NAMES = ['ExecutorTest', 'WaitTests', 'AsCompletedTests', 'ExecutorShutdownTest', 'ThreadPoolExecutorTest', 'ThreadPoolShutdownTest', 'ProcessPoolExecutorTest',
         'ProcessPoolShutdownTest', 'ExecutorDeadlockTest', 'FutureTests', 'InitializerMixin', 'FailingInitializerMixin']
SUITES = [_suite(name) for name in NAMES if name in suites and name != 'ThreadPoolWaitTests'] if modules else []

_script = 'starts a script that imports the executor from concurrent.futures; test_the_program_waits_for_its_calls and the one after it do the same'
_threads = 'looks at the threads of a ThreadPoolExecutor'
_processes = 'looks at the processes of a ProcessPoolExecutor; ours are the pool\'s, shared by all executors of the site'
_initializer = 'workers are shared by all notebooks: none is initialized for one of them'
_max_tasks = 'a setting of the pool, not of an executor'
_shared_memory = 'needs memory that threads share'

CANNOT = dict(
    test_interpreter_shutdown = _script, test_submit_after_interpreter_shutdown = _script, test_hang_gh83386 = _script, test_cancel_futures_wait_false = _script,
    test_threads_terminate = _threads, test_thread_names_assigned = _threads, test_thread_names_default = _threads, test_idle_thread_reuse = _threads,
    test_hang_global_shutdown_lock = _threads, test_default_workers = _threads,
    test_map_submits_without_iteration = f'{_shared_memory}: a list in this process; test_map_submits_without_iteration_here does the same',
    test_executor_map_current_future_cancel = _shared_memory,
    test_processes_terminate = _processes, test_idle_process_reuse_one = _processes, test_idle_process_reuse_multiple = _processes, test_saturation = _processes,
    test_killed_child = f'{_processes}; one that is killed fails the call it ran, and no other: test_a_killed_worker_fails_its_call_only',
    test_max_workers_too_large = 'for Windows', test_ressources_gced_in_workers = 'needs a multiprocessing context, for its manager',
    test_traceback = 'wants its own class of the cause; ours is RemoteTraceback: test_the_cause_is_the_workers_traceback',
    test_max_tasks_per_child = _max_tasks, test_max_tasks_per_child_defaults_to_spawn_context = _max_tasks, test_max_tasks_early_shutdown = _max_tasks,
    test_initializer = _initializer,
    test_exit_during_func_exec_on_worker = 'SystemExit is a TaskError here: raised again it would end the process that reads it',
    test_exit_during_result_pickle_on_worker = 'SystemExit is a TaskError here: raised again it would end the process that reads it',
    test_error_at_task_unpickle = 'an argument that cannot be read is a DecodeError of that call; the worker lives on',
    test_shutdown_deadlock_pickle = _threads,
    test_python_finalization_error = 'breaks the threads that a ProcessPoolExecutor makes for itself',
    test_cancel_futures = 'wants a worker to be quicker than 50 calls are made; test_shutdown_cancels_what_has_not_begun does the same',
)
OF_SUITE = dict(
    ThreadPoolShutdownTest = dict.fromkeys(('test_context_manager_shutdown', 'test_del_shutdown', 'test_shutdown_no_wait'), f'{_threads}; the tests below do the same with ours'),
    ProcessPoolShutdownTest = dict.fromkeys(('test_context_manager_shutdown', 'test_del_shutdown', 'test_shutdown_no_wait'), f'{_processes}; the tests below do the same'),
)

def _cases():
    seen = set()
    for suite in SUITES:
        for method in unittest.TestLoader().getTestCaseNames(suite):
            code = getattr(suite, method)
            if code in seen: continue  # inherited by several
            seen.add(code)
            reason = OF_SUITE.get(suite.__name__, {}).get(method) or CANNOT.get(method)
            yield pytest.param(suite, method, marks=[pytest.mark.skip(reason=reason)] if reason else [], id=f'{suite.__name__}.{method}')


@pytest.fixture(scope='module', autouse=True)
def watchers():
    "A process keeps as many file watches as it has ever needed at once"
    with Listener(), Listener(), Listener(): pass

@pytest.fixture(scope='module')
def five_workers(tmp_path_factory):
    "One pool for all of them: a suite starts and ends an executor in each of its tests, not the workers"
    site = pk.set_site(tmp_path_factory.mktemp('executors')/'site')
    pk.Pool().resize(5)
    with pk.Executor() as e:  # the site's own files are no leak of the first test; one is opened by the first call that finds workers, one by the first that is refused
        for argument in (1, 1, threading.Lock()):
            with suppress(pk.EncodeError, pk.TaskError): e.submit(abs, argument).result(60)
    wait_for(no_threads)
    yield site
    pk.Pool().stop()
    site.close()

@pytest.fixture
def like_ours(monkeypatch):
    "A worker that has died breaks a ProcessPoolExecutor for good; here it is an error of the one call, which is a TaskError, as is what cannot be stored"
    for module in modules:
        if hasattr(module, 'BrokenProcessPool'): monkeypatch.setattr(module, 'BrokenProcessPool', pk.TaskError)
        if hasattr(module, 'PicklingError'): monkeypatch.setattr(module, 'PicklingError', (pk.EncodeError, pk.TaskError))
        if hasattr(module, 'Future'): monkeypatch.setattr(module, 'Future', Future)


@without
@pytest.mark.parametrize('suite, method', list(_cases()))
def test_cpythons_own(suite, method, five_workers, like_ours, monkeypatch):
    pk.set_site(five_workers)
    monkeypatch.setattr(logging.root, 'handlers', [])  # pytest's keep what a test expects on stderr
    try: suite(method).debug()
    except unittest.SkipTest as e: pytest.skip(str(e))


@pytest.mark.skipif(not modules, reason='no suite')
def test_the_table_of_what_cannot_apply_names_only_what_there_is():
    met = {method for suite in SUITES for method in unittest.TestLoader().getTestCaseNames(suite)}
    assert sum(name not in met for name in CANNOT) <= len(CANNOT)//4, sorted(set(CANNOT) - met)  # versions of Python differ a little


def no_threads(): return not any(t.name == 'parkit-executor' for t in threading.enumerate())


# --- what the suite looks at through threads and processes of its own

def test_the_context_manager_waits(site):
    with pk.Executor() as e: fs = [e.submit(abs, n) for n in range(-5, 5)]
    assert all(f.done() for f in fs)

def test_an_executor_that_is_forgotten_keeps_its_calls(site):
    e = pk.Executor()
    results = e.map(abs, range(-5, 5))
    del e
    assert list(results) == list(map(abs, range(-5, 5)))
    assert wait_for(no_threads)

def test_shutdown_without_waiting_keeps_its_calls(site):
    e = pk.Executor()
    results = e.map(abs, range(-5, 5))
    e.shutdown(wait=False)
    assert list(results) == list(map(abs, range(-5, 5)))
    assert wait_for(no_threads)

def test_shutdown_cancels_what_has_not_begun(site):
    pk.Pool().resize(1)
    begun, go = pk.Queue('begun'), pk.Event('go')
    def wait(): begun.put(1); return go.wait(60)
    e = pk.Executor()
    first, *others = [e.submit(wait) for _ in range(5)]
    begun.get(timeout=60)
    e.shutdown(wait=False, cancel_futures=True)
    assert all(f.cancelled() for f in others) and not first.done()
    go.set()
    e.shutdown()
    assert first.result(0) is True

def test_map_submits_without_iteration_here(site):
    done = pk.Queue()
    e = pk.Executor()
    e.map(done.put, range(10))
    e.shutdown()
    assert sorted(done.get(timeout=60) for _ in range(10)) == list(range(10))

def test_the_cause_is_the_workers_traceback(site):
    def fail(): raise LookupError(123)
    with pk.Executor() as e: error = e.submit(fail).exception(60)
    assert type(error) is LookupError and error.args == (123,) and 'in fail\nLookupError: 123' in str(error.__cause__)

def test_a_killed_worker_fails_its_call_only(site):
    with pk.Executor() as e:
        begun = pk.Queue('begun')
        def report(): begun.put(os.getpid()); time.sleep(600)
        first = e.submit(report)
        os.kill(begun.get(timeout=60), signal.SIGKILL)
        with pytest.raises(pk.WorkerCrashedError, match='SIGKILL'): first.result(60)
        assert e.submit(pow, 2, 8).result(60) == 256

def test_the_program_waits_for_its_calls(site, tmp_path):
    with Child(site, '''
        import time
        def late(path): time.sleep(0.3); open(path, 'w').close()
        pk.Executor().submit(late, sys.argv[2])
    ''', tmp_path/'done') as child: child.wait()
    assert (tmp_path/'done').exists()

def test_nothing_can_be_submitted_when_the_program_ends(site):
    with Child(site, '''
        import atexit
        e = pk.Executor()
        def last():
            try: e.submit(abs, 1)
            except RuntimeError as error: say(str(error))
        atexit.register(last)
    ''') as child:
        assert child.hear() == 'cannot schedule new futures after interpreter shutdown'
        child.wait()

def test_a_function_of_the_program_travels_by_value_and_no_task_is_seen(site):
    assert run(site, '''
        factor = 3
        def times(n): return n*factor
        with pk.Executor() as e: said = [list(e.map(times, range(4))), list(e.map(times, range(4), chunksize=3)), [t.name for t in pk.Namespace('task')]]
        say(said)
    ''') == [[0, 3, 6, 9], [0, 3, 6, 9], []]

def test_no_more_at_a_time_than_max_workers(site, tmp_path):
    pk.Pool().resize(3)
    def alone(path):
        (Path(path)/str(os.getpid())).touch()
        n = len(os.listdir(path))
        time.sleep(0.02)
        os.remove(Path(path)/str(os.getpid()))
        return n
    with pk.Executor(max_workers=1) as e: assert set(e.map(alone, [_made(tmp_path)]*12)) == {1}

def _made(path):
    (path/'running').mkdir(exist_ok=True)
    return str(path/'running')

def test_a_call_submitted_in_a_transaction_runs_before_it_ends(site):
    d = pk.Dict('d')
    with pk.Executor() as e, pk.transaction(d):
        d['x'] = 1
        assert e.submit(abs, -1).result(60) == 1

def test_what_waits_for_a_place_fails_too_when_no_worker_can_be_started(site, monkeypatch):
    class Broken(Runner):
        def attend(self, *args): raise pk.TaskError('there are none')
    monkeypatch.setattr('parkit.calls._runner', [Broken()])
    e = pk.Executor(max_workers=1)
    for f in [e.submit(abs, n) for n in range(3)]:
        with pytest.raises(pk.TaskError, match='there are none'): f.result(60)
    e.shutdown()

def test_a_trace_that_is_cancelled_elsewhere(site):
    begun = pk.Queue('begun')
    def report(): begun.put(1); time.sleep(600)
    pk.Pool().resize(1)
    with pk.Executor() as e:
        first, second = e.submit(report), e.submit(abs, -1)
        begun.get(timeout=60)
        second.trace.cancel()
        assert wait_for(second.cancelled)
        first.trace.cancel()
        with pytest.raises(futures.CancelledError): first.result(60)

def test_ten_thousand_calls(site):
    with pk.Executor() as e: assert sum(e.map(abs, range(10_000), chunksize=100)) == sum(range(10_000))

def test_listener_that_ends_after_the_site_was_closed_leaves_no_descriptor(site):
    "As the thread of an executor may"
    before = len(os.listdir('/dev/fd'))
    listener = Listener()
    listener.add(_ledger(site)._store)
    site.close()
    listener.close()
    assert len(os.listdir('/dev/fd')) <= before

def test_a_child_makes_its_own(site):
    e = pk.Executor()
    assert e.submit(abs, -1).result(60) == 1
    assert wait_for(no_threads)
    def work():
        try: e.submit(abs, -1)
        except RuntimeError as error: return str(error)
    assert 'parent process' in forked(work)

def test_what_cannot_be_stored_is_an_error_of_its_future(site):
    with pk.Executor() as e:
        assert isinstance(e.submit(print, threading.Lock()).exception(60), pk.EncodeError)
        with pytest.raises(pk.TaskError, match='could not be stored'): e.submit(threading.Lock).result(60)


# --- tasks

@pytest.fixture
def tasks(site):
    @pk.task
    def square(x): return x*x
    @pk.task
    async def later(x): return x*x
    @pk.task(cache=True)
    def kept(x): return x*x
    @pk.task
    def fail_at(x, at):
        if x == at: raise ValueError(f'at {x}')
        return x
    return square, later, kept, fail_at

@pytest.mark.parametrize('which', range(3))
@pytest.mark.parametrize('chunksize', [1, 2, 100])
def test_the_result_of_a_task_is_what_it_returns(tasks, which, chunksize):
    "A function, a coroutine, one whose results are kept; itself, with options, through partial"
    task = tasks[which]
    with pk.Executor() as e:
        assert [e.submit(f, 3).result(60) for f in (task, task.options(priority=3), partial(task))] == [9]*3
        assert e.submit(partial(task, x=4)).result(60) == 16 and e.submit(task, x=5).result(60) == 25
        for f in (task, task.options(retries=1), partial(task)):
            assert list(e.map(f, range(5), chunksize=chunksize)) == [0, 1, 4, 9, 16]
    other = {'task/_call'} if chunksize > 1 and which < 2 else set()  # calls the function for the items of a chunk, with what `partial` adds
    assert {t.task for t in pk.traces()} == {task.path} | other

def test_two_calls_of_a_cached_task_that_are_one(tasks):
    with pk.Executor() as e:
        fs = [e.submit(tasks[2], 7) for _ in range(5)]
        assert [f.result(60) for f in fs] == [49]*5
    assert len({f.trace.id for f in fs}) == 1

def test_a_method_that_is_a_task(site):
    class Model:
        factor = 3
        @pk.task
        def times(self, x): return self.factor*x
    with pk.Executor() as e: assert e.submit(Model().times, 4).result(60) == 12

def test_a_generator_gives_what_it_yields(site):
    @pk.task
    def count(n): yield from range(n)
    with pk.Executor() as e: assert list(e.submit(count, 200).result(60)) == list(range(200))

def test_a_task_of_another_site_runs_in_the_executors(tasks, tmp_path):
    other = pk.Site(tmp_path/'other')
    with pk.Executor(site=other) as e:
        assert e.submit(tasks[0], 3).result(60) == 9 and list(e.map(tasks[0], [1, 2, 3], chunksize=2)) == [1, 4, 9]
    assert pk.traces() == [] and len(pk.traces(site=other)) == 3
    pk.Pool(site=other).stop()
    other.close()

def test_a_delayed_task_does_not_hold_up_those_behind_it(tasks):
    with pk.Executor() as e:
        late = e.submit(tasks[0].options(delay=600), 2)
        assert e.submit(tasks[0], 3).result(60) == 9 and e.submit(abs, -1).result(60) == 1
        assert late.cancel()

@pytest.mark.parametrize('chunksize', [1, 3, 10, 100])
def test_map_raises_at_the_item_that_failed(tasks, chunksize):
    "Functions and tasks; the results of the items before it come first, as of the builtin"
    def fail_at(x, at):
        if x == at: raise ValueError(f'at {x}')
        return x
    with pk.Executor() as e:
        for f in (fail_at, tasks[3]):
            found = []
            with pytest.raises(ValueError, match='at 13') as caught:
                for x in e.map(f, range(40), [13]*40, chunksize=chunksize): found.append(x)
            assert found == list(range(13)) and 'in fail_at' in str(caught.value.__cause__)
            assert not any('parkit' in name for name in vars(caught.value))

def test_items_of_a_call_share_its_trace_and_its_retries(site):
    ran = pk.Array('ran')
    @pk.task
    def flaky(x):
        ran.append(x)
        if x == 2 and len(ran) < 4: raise OSError
        return x
    with pk.Executor() as e: assert list(e.map(flaky.options(retries=1), range(4), chunksize=4)) == [0, 1, 2, 3]
    trace, = pk.traces()
    assert trace.items == 4 and trace.attempt == 2 and trace.result == [0, 1, 2, 3] and list(ran) == [0, 1, 2, 0, 1, 2, 3]
    assert repr(trace) == 'AsyncTrace(task/flaky, finished, 4 items)'

def test_item_that_cannot_be_stored_is_named(tasks):
    with pk.Executor() as e, pytest.raises(pk.EncodeError, match=r'argument 1 of task/square \(item 2 of the 3 of one call\) cannot be stored'):
        list(e.map(tasks[0], [1, threading.Lock(), 3], chunksize=3))

def test_map_with_chunks_heeds_its_timeout(site):
    def sleep(x): time.sleep(600)
    with pk.Executor() as e:
        results = e.map(sleep, range(4), chunksize=2, timeout=0.2)
        with pytest.raises(futures.TimeoutError): next(results)
        for t in pk.traces(): t.cancel()

def test_max_workers_is_told_under_the_name_that_dask_asks_for(site):
    pk.Pool().resize(3)
    with pk.Executor() as e, pk.Executor(2) as two: assert (e._max_workers, two._max_workers) == (3, 2)


# --- joblib

def test_joblib_runs_its_loops_in_the_workers(site):
    joblib = pytest.importorskip('joblib')
    import numpy as np
    joblib.register_parallel_backend('parkit', pk.joblib_backend)
    def work(n): return os.getpid(), n*n
    with joblib.parallel_config('parkit'):
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(work)(n) for n in range(50))
        assert [n for _, n in found] == [n*n for n in range(50)]
        assert os.getpid() not in {pid for pid, _ in found} and len({pid for pid, _ in found}) <= 2
        assert list(joblib.Parallel(n_jobs=-1, return_as='generator')(joblib.delayed(abs)(-n) for n in range(10))) == list(range(10))
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(np.sum)(np.full(100_000, n)) for n in range(3)) == [0, 100_000, 200_000]
        with pytest.raises(ZeroDivisionError): joblib.Parallel(n_jobs=2)(joblib.delayed(divmod)(1, n) for n in (1, 0))
    assert wait_for(no_threads)

@pytest.fixture
def joblib_two(site):
    "joblib, and two workers"
    joblib = pytest.importorskip('joblib')
    pk.Pool().resize(2)
    joblib.register_parallel_backend('parkit', pk.joblib_backend)
    return joblib

def _in_worker():
    from parkit.progress import _inside
    return bool(_inside), os.environ.get('OMP_NUM_THREADS'), getattr(sys, 'prepared', None)

def _prepare(what): sys.prepared = what

def test_joblib_backend_is_a_context_manager(joblib_two):
    "That can be entered again, and inside another"
    def run(): return {inside for inside, *_ in joblib_two.Parallel()(joblib_two.delayed(_in_worker)() for _ in range(4))}
    backend = pk.joblib_backend()
    for _ in range(2):
        with backend: assert run() == {True}
        assert run() == {False}
    with pk.joblib_backend(n_jobs=1):
        assert run() == {False}
        with backend: assert run() == {True}
        assert run() == {False}

@pytest.mark.parametrize('how', ['context', 'config', 'backend', 'parallel'])
def test_joblib_sets_threads_and_calls_an_initializer(joblib_two, how):
    "Of each loop, in each worker, before the first of its calls there"
    calls = [joblib_two.delayed(_in_worker)() for _ in range(6)]
    for n in (1, 2):
        options = dict(initializer=_prepare, initargs=(n,))
        if how == 'context':
            with pk.joblib_backend(inner_max_num_threads=3, **options): found = joblib_two.Parallel()(calls)
        elif how == 'parallel': found = joblib_two.Parallel(n_jobs=2, backend=pk.joblib_backend(inner_max_num_threads=3), **options)(calls)
        else:
            context = joblib_two.parallel_config if how == 'config' else joblib_two.parallel_backend
            with context('parkit', n_jobs=2, inner_max_num_threads=3, **options): found = joblib_two.Parallel()(calls)
        assert found == [(True, '3', n)]*6

def test_joblib_limits_libraries_that_are_loaded(joblib_two):
    threadpoolctl = pytest.importorskip('threadpoolctl')
    def threads(): import numpy; return [p['num_threads'] for p in threadpoolctl.threadpool_info()]
    for n in (1, 2):
        with pk.joblib_backend(inner_max_num_threads=n): found = joblib_two.Parallel()(joblib_two.delayed(threads)() for _ in range(4))
        assert all(set(t) == {n} for t in found)
