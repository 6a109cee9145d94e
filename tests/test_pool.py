"""The pool under what happens to it: calls that wait for calls, workers that end, environments, and a hundred thousand calls.

Real processes, real signals; how workers begin and end is in test_workers.py."""
import os, random, shutil, signal, subprocess, sys, time
from itertools import accumulate
from pathlib import Path

import parkit as pk, psutil, pytest
from conftest import wait_for
from helpers import in_thread, nobody_runs, sleeps
from kernels import root
from parkit.ledger import _ledger, prune
from parkit.workers import _Control, _how
from task_helpers import ended, is_gone, pool_processes, settled_workers, started, supervisors


# --- calls that wait for calls

def test_calls_that_wait_for_calls_do_not_fill_the_pool(single):
    "Also with one worker, also ten deep; and the pool is then as small as before"
    @pk.task
    def depth(n):
        import parkit as pk
        return 0 if n == 0 else 1 + pk.bind_task('depth')(n - 1).result
    assert depth(10).result == 10
    settled_workers(single, 1)


@pytest.mark.parametrize('wait', ['trace.wait()', 'pk.wait_until(lambda: trace.done)', 'asyncio.run(wait(trace))',
                                  'pk.wait_until(lambda: trace.status == "finished" or trace.done)'])
def test_every_way_to_wait_gives_the_place_away(single, double, wait):
    @pk.task
    def outer(wait):
        import asyncio
        import parkit as pk
        async def waiting(trace): return await trace
        trace = pk.bind_task('double')(21)
        exec(wait, dict(pk=pk, trace=trace, asyncio=asyncio, wait=waiting))
        return trace.result
    assert outer(wait).result == 42
    settled_workers(single, 1)


def test_many_calls_that_each_wait_for_one_do_not_all_begin(single):
    "The calls that others wait for go first, so that there are few processes at any time"
    @pk.task
    def outer(n):
        import parkit as pk
        return 1 + pk.bind_task('middle')(n).result
    @pk.task
    def middle(n):
        import parkit as pk
        return 1 + pk.bind_task('leaf')(n).result
    @pk.task
    def leaf(n): return n
    with pk.transaction(_ledger(single.site)): traces = [outer(-i) for i in range(1, 31)]
    assert [t.result for t in traces] == [2 - i for i in range(1, 31)]
    begun = sorted([(t.start, 1) for t in pk.traces()] + [(t.end, -1) for t in pk.traces()])
    assert max(accumulate(n for _, n in begun)) <= 20  # 3, and those that come back from their wait; without the order there are 31


def test_map_in_a_call_gives_the_place_away(single, double):
    @pk.task
    def outer(n):
        import parkit as pk
        return sum(pk.map(pk.bind_task('double'), range(n)))
    assert outer(5).result == 20


def test_generator_that_waits_for_its_reader_gives_the_place_away(single):
    "Its reader may be a call that waits for the place"
    @pk.task
    def count(n): yield from range(n)
    @pk.task
    def add(trace): return sum(trace.result)
    assert add(count(300)).result == sum(range(300))
    settled_workers(single, 1)


def test_cancelling_what_is_not_kept_any_longer_ends_no_supervisor(single, double):
    trace = double(1)
    assert trace.wait(60)
    single.keep_traces = 0
    prune(_ledger(single.site))
    supervisor, control = single.status.supervisor, _Control(single.site)
    with pk.transaction(control): control.to_cancel = (trace.id,)  # as one does whose call ends just then
    assert wait_for(lambda: control.to_cancel == ())
    single.keep_traces = 100
    assert double(2).result == 4 and single.status.supervisor == supervisor
    with pytest.raises(pk.ObjectNotFoundError): trace.cancel()


def test_two_calls_never_run_at_once_in_a_pool_of_one(single, tmp_path):
    "A worker that waits gives its place to one more, not to any number"
    @pk.task
    def leaf(folder):
        import os, time
        from pathlib import Path
        mine = Path(folder, str(os.getpid()))
        mine.touch()
        time.sleep(0.01)
        n = len(list(Path(folder).iterdir()))
        mine.unlink()
        return n
    @pk.task
    def outer(folder):
        import parkit as pk
        return max(trace.result for trace in [pk.bind_task('leaf')(folder) for _ in range(5)])
    folder = tmp_path/'running'
    folder.mkdir()
    assert outer(str(folder)).result == 1


def test_waiting_worker_whose_supervisor_is_killed_brings_another(single, double, tmp_path):
    "The nested call would wait for ever: nobody but the worker that waits is left"
    @pk.task
    def outer(ready, go):
        import os, time
        import parkit as pk
        from pathlib import Path
        Path(ready).touch()
        while not os.path.exists(go): time.sleep(0.01)
        return pk.bind_task('double')(4).result
    trace = outer(str(tmp_path/'ready'), str(tmp_path/'go'))
    started(tmp_path/'ready')
    old = single.status.supervisor
    os.kill(old, signal.SIGKILL)
    assert wait_for(lambda: is_gone(old))
    (tmp_path/'go').touch()
    assert ended(trace) == 'finished' and trace.result == 8
    assert wait_for(lambda: len(supervisors(single.site)) == 1)
    settled_workers(single, 1)


# --- death

def test_all_processes_killed_at_once_and_nothing_is_lost(site, never_look_again):
    "Queued calls run, running ones are crashed, and who waits is woken by their death"
    pool = pk.Pool()
    pool.resize(2)
    @pk.task
    def slow(n):
        import time
        time.sleep(0.05)
        return n
    chance = random.Random(1)
    for turn in range(3):
        traces = [slow(i) for i in range(10)]
        pk.wait_until(lambda: any(o.done for o in traces), 60)
        time.sleep(chance.uniform(0, 0.2))
        with in_thread(lambda: traces[-1].wait()):
            time.sleep(0.1)  # it sleeps by now, most likely
            for process in pool_processes(site): process.kill()
        statuses = [ended(o) for o in traces]
        assert set(statuses) <= {'finished', 'crashed'} and statuses.count('crashed') <= 2, statuses
        assert all(o.result == i for i, o in enumerate(traces) if o.status == 'finished')


def test_supervisors_killed_again_and_again_and_each_call_runs_once(site, tmp_path):
    pool = pk.Pool()
    pool.resize(2)
    @pk.task
    def mark(file):
        with open(file, 'a') as f: f.write('x')
    chance, traces = random.Random(2), []
    for i in range(60):
        traces.append(mark(str(tmp_path/str(i))))
        if i % 10 == 5:
            time.sleep(chance.uniform(0, 0.1))
            if (pid := pool.status.supervisor) and not is_gone(pid): os.kill(pid, signal.SIGKILL)
    for i, trace in enumerate(traces):
        trace.wait(60)
        assert (trace.status, (tmp_path/str(i)).read_text()) == ('finished', 'x')
    assert wait_for(lambda: len(supervisors(site)) == 1)


@pytest.fixture
def orphaned(single, tmp_path):
    "A call that stays, whose supervisor was killed"
    @pk.task
    def stay(ready):
        import time
        from pathlib import Path
        Path(ready).touch()
        time.sleep(600)
    trace = stay(str(tmp_path/'ready'))
    started(tmp_path/'ready')
    os.kill(single.status.supervisor, signal.SIGKILL)
    return trace

def test_orphan_that_dies_is_noticed(orphaned, double):
    "The worker of a supervisor that was killed has another one to tell of its death"
    assert double(4).result == 8  # by a new one
    os.kill(orphaned.pid, signal.SIGKILL)
    assert ended(orphaned) == 'crashed' and orphaned.status == 'crashed'


def test_orphan_can_be_cancelled(orphaned, double):
    assert double(4).result == 8
    assert orphaned.cancel() and ended(orphaned) == 'cancelled'


def test_crashed_call_tells_signal_and_peak_memory(single):
    @pk.task
    def grow():
        import os, signal
        held = bytearray(300*2**20)
        for i in range(0, len(held), 4096): held[i] = 1
        os.kill(os.getpid(), signal.SIGSEGV)
    trace = grow()
    assert ended(trace) == 'crashed'
    message = str(trace.error)
    assert 'was killed by SIGSEGV' in message
    assert int(message.split('memory was ')[1].split(' MiB')[0]) >= 300


def test_only_what_the_system_has_killed_is_likely_out_of_memory():
    assert 'likely out of memory' in _how(signal.SIGKILL, starved=True)
    assert 'memory' not in _how(signal.SIGKILL, starved=False) and 'memory' not in _how(signal.SIGSEGV, starved=True)


# --- workers that have done enough

def test_worker_is_replaced_after_so_many_calls(single):
    single.max_tasks_per_worker = 3
    @pk.task
    def who():
        import os
        return os.getpid()
    pids = [trace.result for trace in [who() for _ in range(9)]]
    assert [pids.count(p) for p in dict.fromkeys(pids)] == [3, 3, 3]
    before = settled_workers(single, 1)
    single.max_tasks_per_worker = None
    assert wait_for(lambda: settled_workers(single, 1) != before)  # who was made with other limits is replaced
    assert len({who().result for _ in range(7)}) == 1


def test_worker_that_keeps_too_much_memory_is_replaced(single, double):
    single.max_memory = 500*2**20
    @pk.task
    def keep(n):
        import os, sys
        sys.kept = b'x'*n
        return os.getpid()
    small, big = keep(2**20).result, keep(600*2**20).result
    assert small == big
    assert wait_for(lambda: is_gone(big)) and double(4).result == 8


@pytest.mark.parametrize('name', ['max_tasks_per_worker', 'max_memory'])
def test_limits_must_be_positive(single, name):
    with pytest.raises(ValueError, match=f'{name} must be at least 1, or None'): setattr(single, name, 0)


# --- environments

def _environment_with(folder, name, python=sys.executable):
    "A virtual environment that has parkit's own packages, and one more, called `name`"
    subprocess.run([python, '-m', 'venv', '--without-pip', folder], check=True)
    packages = subprocess.run([folder/'bin'/'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], capture_output=True, text=True, check=True).stdout.strip()
    Path(packages, f'{name}.py').write_text(f'where = {str(folder)!r}\n')
    ours = [p for p in sys.path if p.endswith('site-packages')]
    Path(packages, 'ours.pth').write_text('\n'.join([str(root), *ours]) + '\n')
    return folder/'bin'/'python'


_calls = '''
import sys
import parkit as pk
from parkit.calls import Runner, set_runner
if sys.argv[2] == 'waits for nothing': set_runner(Runner())
pk.set_site(sys.argv[1])
@pk.task
def elsewhere():
    import only_here, os, sys
    return only_here.where, sys.prefix, os.getpid()
trace = pk.Dict('found')['trace'] = elsewhere()
if sys.argv[2] == 'waits': trace.result
'''

def _call_from(python, site, how='waits for nothing'):
    "Have another interpreter make a call of a task of its own, and start workers if it waits for that; returns the trace"
    done = subprocess.run([python, '-c', _calls, site.path, how], capture_output=True, text=True, cwd='/', env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'})
    assert done.returncode == 0, done.stderr
    return pk.Dict('found')['trace']


def test_each_environment_has_workers_of_its_own(single, double, tmp_path):
    assert double(1).result == 2
    python = _environment_with(tmp_path/'other', 'only_here')
    trace = _call_from(python, single.site, 'waits')
    where, prefix, pid = trace.result
    assert wait_for(lambda: len(supervisors(single.site)) == 2)
    assert where == prefix == str(tmp_path/'other') and pid == trace.pid and pid not in single.status.workers
    single.stop()
    assert wait_for(lambda: not pool_processes(single.site))


def test_waiting_for_a_call_of_another_environment_starts_its_workers(single, tmp_path):
    "Its caller is gone, and all its workers were killed"
    trace = _call_from(_environment_with(tmp_path/'other', 'only_here'), single.site)
    assert trace.status == 'submitted' and not pool_processes(single.site)
    assert trace.result[0] == str(tmp_path/'other')
    assert single.status.supervisor is None and wait_for(lambda: len(supervisors(single.site)) == 1)


def test_environment_that_is_gone_is_an_error_that_names_it(single, tmp_path):
    trace = _call_from(_environment_with(tmp_path/'other', 'only_here'), single.site)
    shutil.rmtree(tmp_path/'other')
    with pytest.raises(pk.TaskError, match='could not be started.*other/bin/python.*is gone; define the task anew'): trace.result

def test_environment_that_was_replaced_says_what_to_do(single, tmp_path):
    "By another Python, or by one that finds its packages elsewhere"
    python = _environment_with(tmp_path/'other', 'only_here')
    trace = _call_from(python, single.site)
    python.unlink()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(pk.TaskError, match='is no longer the one that the calls were made with.*define the task anew'): trace.result


# --- rest

@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_idle_pool_is_not_switched_to(single, double):
    "Nor is it by calls of others: the supervisor sleeps through them"
    single.resize(2)
    assert double(4).result == 8
    settled_workers(single, 2)
    assert sleeps(*(o.pid for o in pool_processes(single.site)), seconds=5)
    supervisor = psutil.Process(single.status.supervisor)
    before = supervisor.num_ctx_switches().voluntary
    for i in range(50): assert double(i).result == 2*i
    assert supervisor.num_ctx_switches().voluntary - before < 25


def test_very_many_calls(site):
    "PARKIT_CALLS=100000 for the whole"
    pool, n = pk.Pool(), int(os.environ.get('PARKIT_CALLS', 5000))
    pool.resize(2)
    @pk.task
    def nothing(): pass
    pool.stop()
    tenth, times = n//10, []
    with nobody_runs():
        for part in range(10):
            began = time.perf_counter()
            traces = [nothing() for _ in range(tenth)]
            times.append((time.perf_counter() - began)/tenth)
        began = time.perf_counter()
        status = pool.status
        looked = time.perf_counter() - began
    assert status.queued == n
    began = time.perf_counter()
    assert not traces[-1].done
    pk.wait_until(lambda: traces[-1].done, 600)
    drained = time.perf_counter() - began
    print(f'{n} calls: submitted in {1e6*times[0]:.0f} µs each at first, {1e6*times[-1]:.0f} µs in the end; status in {1e6*looked:.0f} µs; drained in {1e6*drained/n:.0f} µs each')
    assert wait_for(lambda: pool.status.queued == pool.status.running == 0)


# --- threads of libraries

def test_libraries_of_a_worker_have_its_share_of_the_cores(site, monkeypatch):
    "A caller's own variables come first; of one caller they hold for no other"
    from parkit.calls import THREAD_VARIABLES
    from parkit.workers import _cores
    for name in THREAD_VARIABLES: monkeypatch.delenv(name, raising=False)
    @pk.task
    def threads(names): return [os.environ.get(n) for n in names]
    pool = pk.Pool()
    pool.resize(1)
    monkeypatch.setenv('MKL_NUM_THREADS', '77')  # of the one who starts the workers
    share, pool_threads = str(_cores()), pool.threads_per_worker
    assert pool_threads is None and threads(THREAD_VARIABLES).result == [{'MKL_NUM_THREADS': '77'}.get(n, share) for n in THREAD_VARIABLES]
    monkeypatch.delenv('MKL_NUM_THREADS')
    assert threads(THREAD_VARIABLES).result == [share]*7
    pool.threads_per_worker = 5
    assert wait_for(lambda: threads(THREAD_VARIABLES).result == ['5']*7)
    monkeypatch.setenv('OMP_NUM_THREADS', '9')
    assert threads(THREAD_VARIABLES).result == ['9'] + ['5']*6
    with pytest.raises(ValueError, match='at least 1'): pool.threads_per_worker = 0

def test_more_workers_than_cores_have_one_thread_each(site, monkeypatch):
    from parkit.workers import _cores
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    pk.Pool().resize(3*_cores())
    @pk.task
    def threads(): return os.environ['OMP_NUM_THREADS']
    assert threads().result == '1'
