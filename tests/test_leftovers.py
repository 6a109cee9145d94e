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
        pid = os.fork()
        if not pid:
            try: time.sleep(60)
            except KeyboardInterrupt: os._exit(7)
        time.sleep(0.2)  # else it comes before the child sleeps, and ends it all the same
        os.kill(pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert send(int(signal.SIGTERM)).result == -signal.SIGTERM
    assert send(int(signal.SIGINT)).result == 7
