"""Workers and their supervisor: started when first needed, replaced when killed, gone when idle.

Real processes, real signals, real kernels; none of it is a notebook's."""
import concurrent.futures, os, random, signal, tempfile, time
from contextlib import suppress
from pathlib import Path

import parkit as pk, psutil, pytest
from conftest import wait_for
from helpers import Child, in_thread
from kernels import Kernel, notebooks, root, text
from parkit.system import SAFETY_NET
from parkit.workers import _Control
from task_helpers import (ended, event_loop, interpreters, is_gone, kill_pool, pool_processes, remove,  # noqa: F401  a fixture
                          settled_workers, started, supervisors)


@pytest.fixture
def pool(site):
    pool = pk.Pool()
    pool.resize(2)
    return pool

@pytest.fixture
def busy(site):
    "A task that makes one file and then waits for another"
    @pk.task
    def busy(ready, go):
        import os, time
        from pathlib import Path
        Path(ready).touch()
        while not os.path.exists(go): time.sleep(0.01)
        return os.getpid()
    return busy

@pytest.fixture
def call_busy(busy, tmp_path):
    "Calls the busy task, waits until it runs, and returns its trace and the file it waits for"
    def call(name='one'):
        ready, go = tmp_path/f'{name}-ready', tmp_path/f'{name}-go'
        trace = busy(str(ready), str(go))
        started(ready)
        return trace, go
    return call


# --- beginning and end

def test_first_call_starts_the_workers(pool, double, record_property):
    assert not pool_processes(pool.site)
    began = time.monotonic()
    assert double(4).result == 8
    seconds = time.monotonic() - began
    print(f'first result after {seconds:.3f} s')
    record_property('seconds', seconds)
    settled_workers(pool, 2)


def test_pool_starts_before_the_first_call(pool):
    assert pool.status == (None, (), 0, 0) and 'stopped' in repr(pool)
    pool.start()
    assert 'running' in repr(pool) and wait_for(lambda: supervisors(pool.site) == [pool.status.supervisor])
    settled_workers(pool, 2)


def test_two_processes_make_the_first_call_at_once(pool, double):
    with interpreters(2, pool.site) as both:
        for o in both: o.run('double = pk.bind_task("double")')
        for o in both: o.send('double(4).result', 'eval')
        assert [o.receive() for o in both] == [8, 8]
        assert wait_for(lambda: len(supervisors(pool.site)) == 1)
        settled_workers(pool, 2)


def test_two_threads_make_the_first_call_at_once(pool, double):
    with in_thread(lambda: double(3).result): assert double(4).result == 8
    assert wait_for(lambda: len(supervisors(pool.site)) == 1)
    settled_workers(pool, 2)


def test_workers_outlive_their_caller(pool, double):
    with interpreters(1, pool.site) as (caller,):
        assert caller.value('pk.bind_task("double")(4).result') == 8
    workers = settled_workers(pool, 2)
    assert double(5).result == 10 and pool.status.workers == workers


def test_idle_supervisor_leaves_and_the_next_call_brings_it_back(pool, double):
    pool.idle_timeout = 0.3
    first = double(4)
    assert first.result == 8
    assert wait_for(lambda: not pool_processes(pool.site))
    assert pool.status == (None, (), 0, 0)
    second = double(5)
    assert second.result == 10 and second.pid != first.pid


def test_supervisor_does_not_leave_while_a_call_runs(single, call_busy):
    single.idle_timeout = 0.1
    trace, go = call_busy()
    before = supervisors(single.site)
    time.sleep(1)  # ten times the limit
    assert supervisors(single.site) == before and trace.status == 'running'
    go.touch()
    assert trace.result == trace.pid
    assert wait_for(lambda: not pool_processes(single.site))


def test_call_that_meets_a_leaving_supervisor_is_not_lost(single, double):
    single.idle_timeout = 0.05
    chance, lost = random.Random(1), []
    for i in range(30):
        trace = double(i)
        if ended(trace) != 'finished': lost.append((i, trace.status))
        time.sleep(chance.uniform(0, 0.15))  # around the moment at which it leaves
    assert not lost


def test_workers_leave_when_their_site_is_removed(tmp_path):
    folder = tmp_path/'site'
    with interpreters(1, folder) as (caller,):
        caller.run('@pk.task\ndef double(n): return 2*n')
        assert caller.value('double(4).result') == 8 and len(pool_processes(folder)) > 1
        remove(folder)
        assert wait_for(lambda: not pool_processes(folder))


def test_workers_leave_when_their_site_is_replaced_by_another(tmp_path):
    folder = tmp_path/'site'
    with interpreters(2, folder) as (caller, other):
        caller.run('@pk.task\ndef double(n): return 2*n')
        assert caller.value('double(4).result') == 8
        old = {o.pid for o in pool_processes(folder)}
        remove(folder)
        other.run('pk.set_site(os.environ["PARKIT_SITE"])\n@pk.task\ndef double(n): return 2*n')
        try: assert wait_for(lambda: all(map(is_gone, old)))
        finally: remove(folder)
        assert wait_for(lambda: not pool_processes(folder))


def test_late_supervisor_does_not_bring_a_removed_site_back(tmp_path):
    "Both workers start one when theirs is killed, and the later one must not outlast the stop of the other"
    folder = tmp_path/'site'
    with interpreters(1, folder) as (caller,):
        caller.run('import signal\npool = pk.Pool()\npool.resize(2)\npool.start()')
        caller.run('pk.wait_until(lambda: len(pool.status.workers) == 2, 50)\nold = pool.status.supervisor')
        caller.run('os.kill(old, signal.SIGKILL)')
        caller.run('while pool.status.supervisor in (None, old): time.sleep(0.005)')
        caller.run('pool.stop()')
    remove(folder)
    gone = wait_for(lambda: not pool_processes(folder))
    for process in pool_processes(folder):
        with suppress(psutil.NoSuchProcess): process.kill()
    assert gone


def test_site_that_was_removed_can_be_closed(tmp_path):
    with interpreters(1, tmp_path/'site') as (caller,):
        caller.run('d = pk.Dict()\nsite = pk.set_site(os.environ["PARKIT_SITE"])')
        remove(tmp_path/'site')
        caller.run('site.close()')


def test_log_of_an_ordinary_life_is_empty(pool, double):
    assert double(4).result == 8
    pool.stop()
    assert Path(pool.site.path, '@', 'workers.log').read_text() == ''


# --- order and number

def test_a_thousand_calls_run_in_the_order_of_their_submission(single):
    @pk.task
    def nothing(): pass
    traces = [nothing() for _ in range(1000)]
    pk.wait_until(lambda: traces[-1].done, timeout=150)
    assert {o.status for o in traces} == {'finished'} and len({o.pid for o in traces}) == 1
    starts = [o.start for o in traces]
    assert starts == sorted(starts) and all(one.end <= two.start for one, two in zip(traces, traces[1:]))
    assert single.status[2:] == (0, 0)


def test_calls_run_side_by_side(pool, call_busy):
    one, go_one = call_busy('one')
    two, go_two = call_busy('two')  # returns once it runs
    assert pool.status.running == 2 and one.pid != two.pid
    for o in (go_one, go_two): o.touch()
    assert {one.result, two.result} == {one.pid, two.pid}


def test_pool_grows_and_shrinks(single, double):
    assert double(1).result == 2
    first = set(settled_workers(single, 1))
    single.resize(3)
    grown = set(settled_workers(single, 3))
    assert first < grown and single.size == 3
    single.resize(1)
    assert set(settled_workers(single, 1)) < grown
    assert double(2).result == 4


def test_shrinking_lets_calls_finish(pool, call_busy):
    (one, go_one), (two, go_two) = call_busy('one'), call_busy('two')
    pool.resize(1)
    for o in (go_one, go_two): o.touch()
    assert (one.result, two.result) == (one.pid, two.pid)
    settled_workers(pool, 1)


def test_pool_of_no_workers_is_refused(pool):
    with pytest.raises(ValueError, match='at least 1'): pool.resize(0)


# --- stopping

def test_stop_lets_a_call_finish_and_leaves_the_queue(pool, call_busy, double):
    (one, go_one), (two, go_two) = call_busy('one'), call_busy('two')
    waiting = double(4)
    with in_thread(pool.stop):
        for o in (go_one, go_two): o.touch()  # at once: they have 5 s
    assert wait_for(lambda: not pool_processes(pool.site)) and one.status == two.status == 'finished'
    if waiting.status == 'submitted': assert pool.status.queued == 1
    assert waiting.result == 8


def test_stop_ends_a_call_that_goes_on(single, call_busy):
    trace, _ = call_busy()
    single.stop()
    assert wait_for(lambda: not pool_processes(single.site))
    assert trace.status == 'crashed' and trace.done
    with pytest.raises(pk.WorkerCrashedError, match='stopped') as caught: trace.result
    assert 'memory' not in str(caught.value)


def test_stop_returns_though_another_process_waits_for_a_call(single, call_busy, double):
    trace, go = call_busy()
    with interpreters(1, single.site) as (other,):
        other.run('double = pk.bind_task("double")')
        other.send('double(5).result', 'eval')
        assert wait_for(lambda: single.status.queued == 1)
        with in_thread(single.stop): go.touch()
        single.start()
        assert other.receive() == 10
    assert trace.result == trace.pid


def test_stop_of_a_supervisor_that_is_just_starting_is_heeded(pool):
    "From another process, which can be killed if it waits for ever"
    for _ in range(3):
        with interpreters(1, pool.site) as (other,), in_thread(pool.start):
            other.run('from parkit.workers import is_supervised\nsite = pk.set_site(os.environ["PARKIT_SITE"])')
            other.run('while not is_supervised(site): time.sleep(0.002)')
            other.send('pk.Pool().stop()')
            other.receive()
        assert wait_for(lambda: not pool_processes(pool.site))


@pytest.mark.parametrize('delay', [0, 0.3])
def test_a_call_that_is_made_while_the_pool_stops_is_run(single, call_busy, double, delay):
    "Though nobody waits for it or calls again; also one that is to begin later"
    _, go = call_busy()
    with in_thread(single.stop):
        assert wait_for(lambda: _Control(single.site).wanted == 'stop')
        late = double.options(delay=delay)(4)
        go.touch()
    assert ended(late) == 'finished' and late.result == 8
    single.stop()
    assert wait_for(lambda: not pool_processes(single.site))


def test_calls_at_any_moment_of_a_stop_are_run(single, double):
    "Just before and just after the supervisor has gone"
    for i in range(12):
        assert double(i).result == 2*i
        with in_thread(single.stop):
            assert wait_for(lambda: _Control(single.site).wanted == 'stop', interval=0.0005)
            time.sleep(0.005*i)
            late = double(i)
        assert ended(late) == 'finished'


def test_a_stop_is_heeded_by_a_supervisor_that_others_are_started_beside(pool, double):
    "One of another interpreter, say, may look again only when somebody has started the workers anew"
    assert double(1).result == 2
    supervisor, control = pool.status.supervisor, _Control(pool.site)
    with pk.transaction(control):
        control.order_stop()
        control.wanted = 'run'
    assert wait_for(lambda: is_gone(supervisor))
    assert double(2).result == 4


def test_a_task_that_calls_on_and_on_can_be_stopped(single, double, tmp_path):
    "What a call in hand calls while the pool stops waits in the queue, as what waited before"
    @pk.task
    def on(ready, go):
        import os, time
        from pathlib import Path
        Path(ready).touch()
        while not os.path.exists(go): time.sleep(0.01)
        pk.bind_task('on')(ready, go)
    trace = on(str(tmp_path/'ready'), str(tmp_path/'go'))
    started(tmp_path/'ready')
    with in_thread(single.stop):
        assert wait_for(lambda: _Control(single.site).wanted == 'stop')
        (tmp_path/'go').touch()
    assert trace.status == 'finished' and single.status.queued == 1
    assert wait_for(lambda: not pool_processes(single.site)) and single.status.queued == 1


def test_another_stop_stops_what_was_called_during_the_first(single, call_busy, double):
    _, go = call_busy()
    with in_thread(single.stop):
        assert wait_for(lambda: _Control(single.site).wanted == 'stop')
        late, order = [double(4) for _ in range(4)], _Control(single.site).stopped
        with in_thread(single.stop):
            assert wait_for(lambda: _Control(single.site).stopped != order)
            go.touch()
    assert wait_for(lambda: not pool_processes(single.site)) and late[-1].status == 'submitted'  # a worker may take one more before it leaves
    assert late[-1].result == 8  # whoever waits for it has it run


def test_stop_of_a_stopped_pool_does_nothing(pool):
    pool.stop()
    pool.stop()


# --- death

def test_killed_worker_is_replaced(pool, double):
    assert double(1).result == 2
    one, two = settled_workers(pool, 2)
    os.kill(one, signal.SIGKILL)
    assert wait_for(lambda: is_gone(one))
    workers = settled_workers(pool, 2)
    assert two in workers and one not in workers
    assert double(2).result == 4


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='looks for descriptors on Linux')
def test_worker_that_is_dying_is_marked_when_it_is_known_how(pool, tmp_path):
    "A process lets go of its locks before its parent can collect it, and another may have died meanwhile"
    @pk.task
    def let_go(folder):
        import os, time
        for fd in os.listdir('/proc/self/fd'):
            if os.path.exists(f'/proc/self/fd/{fd}') and '/alive/' in os.readlink(f'/proc/self/fd/{fd}'): os.close(int(fd))
        (folder/'gone').touch()
        while True: time.sleep(0.01)
    @pk.task
    def wait():
        import time
        while True: time.sleep(0.01)
    pool.resize(2)
    first, second = let_go(tmp_path), wait()
    assert wait_for((tmp_path/'gone').exists) and wait_for(lambda: second.status == 'running')
    os.kill(second.pid, signal.SIGKILL)
    with pytest.raises(pk.WorkerCrashedError, match='SIGKILL'): second.result
    assert first.status == 'running'
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(pk.WorkerCrashedError, match='SIGKILL'): first.result


def test_worker_killed_inside_a_transaction_leaves_nothing_of_it(pool, double, tmp_path):
    d, ready = pk.Dict('prices'), tmp_path/'ready'
    @pk.task
    def interrupted(d, ready):
        import parkit as pk, time
        from pathlib import Path
        with pk.transaction(d):
            d['tea'] = 2.5
            d['large'] = bytes(2**20)
            Path(ready).touch()
            time.sleep(600)
    trace = interrupted(d, str(ready))
    started(ready)
    worker = trace.pid
    os.kill(worker, signal.SIGKILL)
    with pk.transaction(d, timeout=60): d['coffee'] = 3.5
    assert ended(trace) == 'crashed' and dict(d) == dict(coffee=3.5)
    with pytest.raises(pk.WorkerCrashedError, match=f'{worker}.*SIGKILL.*interrupted'): trace.result
    assert trace.pid == worker and trace.start <= trace.end
    assert worker not in settled_workers(pool, 2) and double(2).result == 4


def test_call_whose_maker_is_killed_just_after_its_commit_is_run(single, double):
    "By the worker that sleeps, and before anyone looks of his own accord"
    assert double(1).result == 2
    with Child(single.site, '''
import os, signal, parkit.tasks
parkit.tasks._see_to = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
pk.bind_task('double')(21)
''') as child: assert child.process.wait(60) == -signal.SIGKILL
    call = pk.traces()[0]
    assert ended(call, SAFETY_NET/2) == 'finished' and call.args == (21,)


def test_trap_15_exit_in_a_task(single, double):
    @pk.task
    def leave():
        import sys
        sys.exit(3)
    trace = leave()
    assert ended(trace) == 'failed'
    with pytest.raises(pk.TaskError, match='SystemExit.*3'): trace.result
    assert double(2).result == 4 and single.status.workers == (trace.pid,)


def test_trap_15_abrupt_exit_in_a_task(single, double):
    @pk.task
    def leave():
        import os
        os._exit(3)
    trace = leave()
    assert ended(trace) == 'crashed'
    with pytest.raises(pk.WorkerCrashedError, match=f'{trace.pid}.*exit code 3'): trace.result
    assert double(2).result == 4 and trace.pid not in settled_workers(single, 1)


@pytest.mark.parametrize('number', [signal.SIGSEGV, signal.SIGTERM, signal.SIGINT], ids=lambda o: o.name)
def test_signal_in_a_task_harms_no_other(single, double, number):
    @pk.task
    def hit(number):
        import os, time
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    trace, good = hit(int(number)), double(2)
    assert good.result == 4
    assert ended(trace) == {'SIGSEGV': 'crashed', 'SIGTERM': 'finished', 'SIGINT': 'finished'}[number.name]
    if number == signal.SIGSEGV: assert 'SIGSEGV' in str(trace.error)
    settled_workers(single, 1)


def test_trap_16_waiting_for_a_cancelled_call_ends(single, call_busy, double):
    running, go = call_busy()
    waiting = double(2)
    with pytest.raises(pk.TaskCancelledError, match='call of task/double was cancelled'), in_thread(lambda: waiting.result):
        assert waiting.cancel() and waiting.done and waiting.status == 'cancelled'
    assert isinstance(waiting.error, concurrent.futures.CancelledError)
    go.touch()
    assert running.result and running.cancel() is False and running.status == 'finished'


def test_trap_16_cancelled_call_is_interrupted_in_its_worker(single, call_busy, double):
    "And in no other: the worker goes on with what is next"
    running, _ = call_busy()
    worker, after = running.pid, double(2)
    assert running.cancel()
    with pytest.raises(pk.TaskCancelledError): running.result
    assert running.status == 'cancelled' and after.result == 4 and after.pid == worker


def test_call_that_does_not_heed_signals_is_cancelled_by_a_kill(single, double, tmp_path):
    @pk.task
    def deaf(ready):
        import signal, time
        from pathlib import Path
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        Path(ready).touch()
        time.sleep(600)
    trace = deaf(str(tmp_path/'ready'))
    started(tmp_path/'ready')
    assert trace.cancel() and ended(trace) == 'cancelled' and double(2).result == 4


def test_trap_17_idle_workers_bring_a_killed_supervisor_back(pool, double):
    assert double(1).result == 2
    workers, old = settled_workers(pool, 2), pool.status.supervisor
    os.kill(old, signal.SIGKILL)
    assert wait_for(lambda: supervisors(pool.site) not in ([], [old]) and all(map(is_gone, workers)))
    assert not set(settled_workers(pool, 2)) & set(workers)
    assert double(2).result == 4 and wait_for(lambda: len(supervisors(pool.site)) == 1)


def test_trap_17_nothing_queued_is_lost_with_the_supervisor(single, call_busy, double):
    trace, go = call_busy()
    waiting = [double(n) for n in range(5)]
    os.kill(single.status.supervisor, signal.SIGKILL)
    go.touch()
    assert ended(trace) == 'finished'
    assert [ended(o) for o in waiting] == ['finished']*5 and [o.result for o in waiting] == [0, 2, 4, 6, 8]


def test_trap_17_a_call_brings_back_a_supervisor_killed_with_all_workers(single, call_busy, double):
    trace, _ = call_busy()
    waiting = double(4)
    worker = trace.pid
    kill_pool(single)
    assert not pool_processes(single.site)
    later = double(5)
    assert ended(later) == ended(waiting) == 'finished' and (waiting.result, later.result) == (8, 10)
    assert ended(trace) == 'crashed' and str(worker) in str(trace.error)


# --- no start

def test_start_that_fails_is_a_failed_trace_with_the_reason_and_the_log(single, double, tmp_path):
    mark = tmp_path/'mark'
    with interpreters(1, single.site) as (caller,):
        caller.run('sys.executable = "/bin/false"\n@pk.task\ndef touch(path): Path(path).touch()')
        caller.run(f'trace = touch({str(mark)!r})')
        assert caller.value('trace.status, trace.done') == ('failed', True)
        reason = caller.value('str(trace.error)')
        assert 'workers.log' in reason and ('exit code 1' in reason or '/bin/false' in reason)
        caller.run('pk.Dict("traces")["refused"] = trace')
    assert double(4).result == 8
    assert pk.Dict('traces')['refused'].status == 'failed' and not mark.exists(), 'a failed call was run later'


def test_start_without_an_interpreter_is_a_failed_trace(single, double):
    with interpreters(1, single.site) as (caller,):
        caller.run('sys.executable = "/nowhere/python"\ntrace = pk.bind_task("double")(4)')
        assert caller.value('trace.status') == 'failed' and '/nowhere/python' in caller.value('str(trace.error)')


# --- notebooks

_define = '''
import os, time
import parkit as pk
from pathlib import Path

@pk.task
def busy(ready, go):
    Path(ready).touch()
    while not os.path.exists(go): time.sleep(0.01)
    return os.getpid()
'''

def test_trap_39_interrupts_the_kernel(tmp_path):
    ready, go, waits = (tmp_path/o for o in ('ready', 'go', 'waits'))
    with notebooks(2) as (one, two):
        one.run(_define)
        one.run(f'trace = busy({str(ready)!r}, {str(go)!r})\npk.Dict("traces")["one"] = trace')
        started(ready)
        worker = int(text(one.run('trace.pid')))
        def interrupt():
            started(waits)
            os.killpg(os.getpgid(one.pid), signal.SIGINT)  # as Jupyter does
        with in_thread(interrupt): outputs = one.run(f'Path({str(waits)!r}).touch()\ntrace.result')
        assert text(outputs).startswith('KeyboardInterrupt') and not is_gone(worker)
        go.touch()
        assert text(one.run('trace.result')) == str(worker)
        two.run('import parkit as pk\ntrace = pk.Dict("traces")["one"]')
        assert text(two.run('trace.result, trace.status')) == f"({worker}, 'finished')"


def test_trap_39_restarts_the_kernel(tmp_path):
    ready, go = (tmp_path/o for o in ('ready', 'go'))
    with notebooks(2) as (one, two):
        one.run(_define)
        one.run(f'trace = busy({str(ready)!r}, {str(go)!r})\npk.Dict("traces")["one"] = trace')
        started(ready)
        worker = int(text(one.run('trace.pid')))
        one.manager.restart_kernel(now=True)
        one.client.wait_for_ready(timeout=60)
        assert not is_gone(worker)
        go.touch()
        two.run('import parkit as pk\ntrace = pk.Dict("traces")["one"]')
        assert text(two.run('trace.result')) == str(worker)
        one.run('import parkit as pk')
        assert text(one.run('pk.Dict("traces")["one"].status')) == "'finished'"


def test_trap_39_pipes_of_a_dead_kernel_close(tmp_path):
    ready, go = (tmp_path/o for o in ('ready', 'go'))
    folder = Path(tempfile.mkdtemp(prefix='parkit-'))  # a short path: sockets lie there
    reader, writer = os.pipe()
    kernel = Kernel('notebook 1', folder, root, stdout=writer, stderr=writer)
    os.close(writer)
    try:
        kernel.run(_define)
        kernel.run(f'trace = busy({str(ready)!r}, {str(go)!r})')
        started(ready)
        worker = int(text(kernel.run('trace.pid')))
        os.kill(kernel.pid, signal.SIGKILL)
        with in_thread(lambda: list(iter(lambda: os.read(reader, 4096), b''))): pass  # to the end
        assert not is_gone(worker)
    finally:
        go.touch()
        os.close(reader)
        kernel.stop()
        remove(folder)
    assert wait_for(lambda: not pool_processes(folder/'site'))
