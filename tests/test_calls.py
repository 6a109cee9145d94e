"Calls in the background: how they end, how they are run, what is kept of them; real workers"
import asyncio, os, pickle, signal, threading, time
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np, parkit as pk, pytest
from conftest import wait_for
from helpers import in_thread, run
from parkit import calls
from parkit.calls import _environment
from parkit.codecs import decode_plain, encode
from parkit.ledger import _ledger, prune
from parkit.tracing import TraceFuture, _Futures
from task_helpers import ended, interpreters, is_gone, started


@pytest.fixture
def gate(single, tmp_path):
    "Calls that wait for a file: the trace, and the file"
    @pk.task
    def gate(ready, go):
        import time
        from pathlib import Path
        Path(ready).touch()
        while not Path(go).exists(): time.sleep(0.01)
    def call(name='one', **options):
        ready, go = tmp_path/f'{name}-ready', tmp_path/f'{name}-go'
        trace = gate.options(**options)(str(ready), str(go))
        return trace, ready, go
    return call

@pytest.fixture
def flaky(site):
    "A task that fails until it has been begun `good` times"
    @pk.task
    def flaky(path, good, how='raise'):
        import os, signal, time
        with open(path, 'a') as f: f.write('x')
        n = os.path.getsize(path)
        if n >= good: return n
        if how == 'raise': raise ConnectionResetError(f'attempt {n}')
        if how == 'die': os.kill(os.getpid(), signal.SIGKILL)
        if how == 'hang': time.sleep(600)
    return flaky


# --- how they end

def test_each_way_to_end_has_a_status_and_all_are_done(single, double, gate):
    @pk.task
    def fail(): raise ZeroDivisionError('no')
    @pk.task
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    @pk.task
    def hang(): time.sleep(600)
    trace, ready, go = gate()
    waiting = double(1)
    started(ready)
    assert (trace.status, waiting.status, waiting.done) == ('running', 'submitted', False)
    assert waiting.cancel() and waiting.status == 'cancelled'
    go.touch()
    traces = [double(2), fail(), die(), hang.options(timeout=0.2)(), waiting]
    assert [t.wait(60) for t in traces] == [True]*5 and all(t.done for t in traces)
    assert [t.status for t in traces] == ['finished', 'failed', 'crashed', 'timeout', 'cancelled']
    assert [type(t.error).__name__ for t in traces] == ['NoneType', 'ZeroDivisionError', 'WorkerCrashedError', 'TaskTimeoutError', 'TaskCancelledError']
    assert 'raise ZeroDivisionError' in traces[1].traceback or 'in fail' in traces[1].traceback
    assert traces[0].traceback is None and isinstance(traces[1].error.__cause__, pk.RemoteTraceback)


def test_wait_with_a_limit_says_whether_it_has_ended(gate):
    trace, ready, go = gate()
    started(ready)
    assert trace.wait(0) is False and trace.wait(0.1) is False
    with in_thread(lambda: trace.wait(60)): go.touch()
    assert trace.wait(0) is True


def test_trace_tells_arguments_attempt_and_parent(single, double):
    @pk.task
    def outer(n): return pk.bind_task('double')(n)
    trace = outer(n=4)
    inner = trace.result
    assert trace.args == () and trace.kwargs == {'n': 4} and trace.attempt == 1 and trace.parent is None
    assert inner.parent == trace and inner.result == 8 and inner.args == (4,)
    assert trace.submitted <= trace.start <= trace.end <= datetime.now()


def test_await_and_asyncio(single, double, gate):
    async def both(): return await asyncio.gather(double(1), double(2))
    assert asyncio.run(both()) == [2, 4]
    @pk.task
    def fail(): raise KeyError('gone')
    async def one(): await fail()
    with pytest.raises(KeyError, match='gone'): asyncio.run(one())


def test_futures(single, double, gate):
    @pk.task
    def fail(): raise KeyError('gone')
    trace, ready, go = gate()
    first, second = trace.as_future(), double(1).as_future()
    started(ready)
    assert first.running() and not second.running() and not first.cancel()
    assert second.cancel() and second.cancelled()
    go.touch()
    assert first.result(60) is None
    futures = [double(i).as_future() for i in range(200)] + [fail().as_future()]
    assert [f.result(60) for f in futures[:-1]] == [2*i for i in range(200)]
    with pytest.raises(KeyError): futures[-1].result(60)
    assert double(3).as_future().result(60) == 6
    assert wait_for(lambda: not any(t.name == 'parkit-futures' for t in threading.enumerate()))


def test_what_cannot_be_pickled_is_named(single, double):
    @pk.task
    def whole(x, y=1): return threading.Lock()
    lock = threading.Lock()
    assert str(whole(1, lock).error).startswith('argument 2 of task/whole cannot be stored')
    assert str(whole(1, y=lock).error).startswith("the argument 'y' of task/whole cannot be stored")
    trace = whole(1)
    with pytest.raises(pk.TaskError, match='the result of the task could not be stored'): trace.result
    assert double(1).result == 2 and double(1).pid in (None, trace.pid)


# --- options

def test_retries_only_if_asked_for(single, flaky, tmp_path):
    trace = flaky(str(tmp_path/'a'), 2)
    with pytest.raises(ConnectionResetError, match='attempt 1'): trace.result
    assert trace.attempt == 1
    trace = flaky.options(retries=2, backoff=0.01)(str(tmp_path/'b'), 3)
    assert trace.result == 3 and trace.attempt == 3 and trace.status == 'finished'
    trace = flaky.options(retries=2)(str(tmp_path/'c'), 9)
    with pytest.raises(ConnectionResetError, match='attempt 3'): trace.result


def test_retry_on_goes_by_the_class_and_its_bases(single, flaky, tmp_path):
    assert flaky.options(retries=1, retry_on=ConnectionError)(str(tmp_path/'a'), 2).result == 2
    assert flaky.options(retries=1, retry_on=(KeyError, OSError))(str(tmp_path/'b'), 2).result == 2
    with pytest.raises(ConnectionResetError): flaky.options(retries=1, retry_on=KeyError)(str(tmp_path/'c'), 2).result


def test_call_of_a_killed_worker_is_run_again_only_if_asked_for(single, flaky, tmp_path):
    with pytest.raises(pk.WorkerCrashedError): flaky(str(tmp_path/'a'), 2, 'die').result
    assert flaky.options(retries=1)(str(tmp_path/'b'), 2, 'die').result == 2
    assert flaky.options(retries=1, retry_on=pk.WorkerCrashedError)(str(tmp_path/'c'), 2, 'die').result == 2
    with pytest.raises(pk.WorkerCrashedError): flaky.options(retries=1, retry_on=ConnectionError)(str(tmp_path/'d'), 2, 'die').result


def test_call_that_ran_too_long_can_be_run_again(single, flaky, tmp_path):
    trace = flaky.options(timeout=3, retries=1)(str(tmp_path/'a'), 2, 'hang')
    assert trace.result == 2 and trace.attempt == 2


def test_transaction_of_a_killed_worker_is_undone_before_the_call_runs_again(single, site, tmp_path):
    d = pk.Dict('counts')
    @pk.task
    def count(path):
        import os, signal
        from pathlib import Path
        with pk.transaction('default'):
            d = pk.Dict('counts')
            d['n'] = d.get('n', 0) + 1
            if not Path(path).exists():
                Path(path).touch()
                os.kill(os.getpid(), signal.SIGKILL)
    trace = count.options(retries=1)(str(tmp_path/'once'))
    assert trace.wait(60) and trace.status == 'finished' and trace.attempt == 2 and dict(d) == {'n': 1}


def test_cancelled_call_is_not_run_again(gate):
    trace, ready, go = gate(retries=5)
    started(ready)
    trace.cancel()
    assert ended(trace) == 'cancelled' and trace.attempt == 1


def test_time_limit_where_the_interpreter_cannot_be_interrupted(single, double):
    @pk.task
    def stuck():
        print('begun', flush=True)
        return sum(range(10**12))  # one call of C that never looks for signals
    before = double(1)
    assert before.result == 2
    trace = stuck.options(timeout=0.3)()
    assert trace.wait(60) and trace.status == 'timeout'
    with pytest.raises(TimeoutError, match='nor when it was interrupted'): trace.result
    assert wait_for(lambda: is_gone(trace.pid)) and double(2).result == 4
    assert trace.output.startswith('begun\n') and 'in stuck' in trace.output  # where it was


def test_time_limit_of_a_call_that_swallows_the_interrupt(single, double):
    @pk.task
    def stubborn():
        while True:
            try: time.sleep(600)
            except BaseException: pass
    trace = stubborn.options(timeout=0.2)()
    assert trace.wait(60) and trace.status == 'timeout' and double(2).result == 4


def test_time_limit_ends_with_the_call(single):
    @pk.task
    def left(): return os.getpid(), *signal.getitimer(signal.ITIMER_REAL)
    pid, seconds, _ = left.options(timeout=100)().result
    assert 0 < seconds <= 100 and left().result == (pid, 0, 0)


def test_priorities_and_then_the_order_of_submission(gate, tmp_path):
    trace, ready, go = gate()
    started(ready)
    @pk.task
    def note(path, what):
        with open(path, 'a') as f: f.write(what)
    path = str(tmp_path/'notes')
    traces = [note.options(priority=p)(path, what) for p, what in [(0, 'c'), (-128, 'e'), (5, 'b'), (0, 'd'), (127, 'a')]]
    go.touch()
    for t in traces: t.result
    assert Path(path).read_text() == 'abcde'


def test_delay(single, double):
    trace = double.options(delay=0.5)(1)
    assert trace.result == 2 and (trace.start - trace.submitted).total_seconds() >= 0.5
    far = double.options(delay=timedelta(days=1))(1)
    assert double(2).result == 4 and far.status == 'submitted' and single.status.queued == 1
    assert _ledger(single.site).next_due() > time.time() + 80000
    assert far.cancel() and far.done and single.status.queued == 0


def test_options_of_the_task_and_of_the_call(single, tmp_path):
    @pk.task(retries=1, timeout=60)
    def flaky(path, good):
        with open(path, 'a') as f: f.write('x')
        if os.path.getsize(path) < good: raise ValueError('no')
    a = flaky(str(tmp_path/'a'), 2)
    a.result
    with pytest.raises(ValueError): flaky.options(retries=0)(str(tmp_path/'b'), 2).result
    assert pk.bind_task('flaky')(str(tmp_path/'c'), 2).result is None


def test_options_that_cannot_be(single, double):
    for bad in (dict(timeout=0), dict(timeout=-1), dict(retries=-1), dict(priority=200), dict(delay=-1), dict(backoff=-0.1)):
        with pytest.raises(ValueError, match=next(iter(bad)).rstrip('s')): double.options(**bad)
    with pytest.raises(TypeError): double.options(speed=3)
    with pytest.raises(TypeError, match='sync'): double.options(retries=1)(1, sync=True)


def test_a_hundred_thousand_waiting_calls(site, double):
    "The claim of the next is as quick as of a few, and none is counted one by one"
    ledger, me = _ledger(site), site.alive.enter()
    first = double(0)
    assert first.wait(60)
    pk.Pool().stop()  # nobody takes any of them
    record = ledger.record(first.id)
    call = ledger._store.prepare(pickle.dumps(((1,), {})))
    for at in range(0, 100_000, 10_000):
        with pk.transaction(ledger):
            for i in range(10_000): ledger.submit(f'{time.time_ns():016x}{at + i:08x}', record._replace(status='submitted'), call, {})
    assert ledger.count_queued() == 100_000
    start = time.process_time()
    for _ in range(100):
        id = ledger.claim(me, _environment()[0], time.time())
        ledger.finish(me, id, 'finished', ledger._store.prepare(b'\x00N.'))
        ledger.count_queued(), ledger.environments(), ledger.next_due()
    seconds = (time.process_time() - start)/100
    print(f'{1e6*seconds:.0f} µs of CPU for a claim, an end and three questions')
    assert seconds < 0.05


# --- listing

def test_traces_from_any_process_and_the_newest_first(single, double):
    @pk.task
    def fail(): 1/0
    begun = datetime.now()
    with interpreters(1, single.site) as (other,):
        other.run('double = pk.bind_task("double")')
        other.value('double(1).result')
    a, b = double(2), fail()
    a.wait(60), b.wait(60)
    late = datetime.now()
    c = double(3)
    assert c.result == 6
    assert pk.traces()[:3] == [c, b, a] and len(pk.traces()) == 4
    assert pk.traces(status='failed') == [b] and pk.traces(task='double') == double.traces == pk.traces(task=double)
    assert [t.args for t in double.traces] == [(3,), (2,), (1,)]
    assert pk.traces(since=late) == [c] and pk.traces(since=begun) == pk.traces(since=3600) == pk.traces(since=timedelta(hours=1)) == pk.traces()
    with pytest.raises(ValueError, match="'lost' is not a status; the statuses are submitted, running"): pk.traces(status='lost')
    assert run(single.site, 'say([t.args for t in pk.traces(task="double", status="finished")])') == [[3], [2], [1]]


# --- what is kept

def test_old_calls_go_with_their_output(single, double, gate):
    single.keep_traces = 20
    @pk.task
    def talk(n):
        print('line', n)
        return bytes(2**19)
    first = talk(0)
    assert first.wait(60) and first.output == 'line 0\n'
    trace, ready, go = gate()
    started(ready)
    folder = Path(single.site.path, '@', 'output')
    single.resize(2)
    for i in range(200): last = talk(i)
    assert last.wait(60) and wait_for(lambda: len(pk.traces()) <= 20 + 64)
    prune(_ledger(single.site))
    assert len(pk.traces()) == 21 and trace.status == 'running' and pk.traces()[0] == last and trace in pk.traces()  # the running one always
    with pytest.raises(pk.ObjectNotFoundError, match='does not exist'): first.status
    assert len([p for p in folder.iterdir() if len(p.name) == 24]) == 20
    single.keep_traces = 20  # a write: what some worker was just reading goes with it
    assert wait_for(lambda: prune(_ledger(single.site)) == 0 and len(list(Path(single.site.path, '_traces', '@', 'blobs').iterdir())) <= 21)
    go.touch()
    assert last.result == bytes(2**19)


def test_calls_are_kept_by_age_and_size(single, double):
    @pk.task
    def big(n): return bytes(n)
    ledger = _ledger(single.site)
    traces = [big(1000) for _ in range(10)]
    for t in traces: t.wait(60)
    single.keep_bytes = 5500
    assert prune(ledger) == 5 and len(pk.traces()) == 5 and pk.traces()[0] == traces[-1]
    single.keep_days = 0
    assert prune(ledger) == 5 and pk.traces() == [] and prune(ledger) == 0
    assert (single.keep_traces, single.keep_bytes, single.keep_days) == (100_000, 5500, 0.0)


def test_map_takes_each_result_when_it_is_there(single, double):
    "Though fewer calls are kept than it makes"
    single.keep_traces = 100
    assert pk.map(double, range(1000)) == [2*i for i in range(1000)]
    assert len(pk.traces()) < 1000


def test_traces_are_shown_one_a_line_and_few(single, double):
    assert repr(pk.traces()) == '[]'
    traces = [double(i) for i in range(12)]
    assert traces[-1].wait(60)
    assert repr(pk.traces()[:2]).count('AsyncTrace(task/double, finished)') == 2
    assert repr(pk.traces()) == '[' + 'AsyncTrace(task/double, finished),\n '*10 + '… 12 in all]' and pk.traces() == traces[::-1]
    single.keep_traces = 0
    prune(_ledger(single.site))
    assert repr(traces[0]) == f'AsyncTrace({traces[0].id}, not kept any longer)'


def test_future_of_a_call_that_is_not_kept_is_an_error_and_harms_no_other(single, double):
    gone = double(1)
    assert gone.wait(60)
    single.keep_traces = 0
    prune(_ledger(single.site))
    with pytest.raises(pk.ObjectNotFoundError): gone.as_future()
    single.keep_traces = 100
    assert double(4).as_future().result(60) == 8


def test_future_whose_call_is_removed_before_it_was_noticed(single, double):
    trace, futures = double(1), _Futures(_ledger(single.site))
    assert trace.wait(60)
    future = TraceFuture(trace)
    futures.open[trace.id] = [future]
    single.keep_traces = 0
    prune(_ledger(single.site))
    futures._loop()
    with pytest.raises(pk.ObjectNotFoundError): future.result(0)


def test_future_fails_when_no_worker_can_be_started(single, double, monkeypatch):
    "And those that come later are followed again"
    class Broken(calls.Runner):
        def attend(self, *args):
            if threading.current_thread().name == 'parkit-futures': raise pk.TaskError('there are none')
    with monkeypatch.context() as m:
        m.setattr(calls, '_runner', [Broken()])
        future = double(1).as_future()
        with pytest.raises(pk.TaskError, match='there are none'): future.result(60)
    assert double(2).as_future().result(60) == 4


def test_future_of_a_call_made_in_a_transaction_comes_after_it(single, double):
    with pk.transaction('default'):
        trace = double(1)
        with pytest.raises(pk.TransactionError, match='only when that has ended'): trace.as_future()
    assert trace.as_future().result(60) == 2


def test_traceback_begins_with_the_task(single):
    @pk.task
    def fail(n): return 1/n
    @pk.task
    async def fail_later(n): return 1/n
    @pk.task(cache=True)
    def fail_once(n): return 1/n
    for task in (fail, fail_once):
        lines = _traceback(task(0)).splitlines()
        assert lines[0].startswith('Traceback') and f'in {task.name}' in lines[1], lines
    assert 'in fail_later' in _traceback(fail_later(0))
    with pk.Executor() as e: text = str(e.submit(divmod, 1, 0).exception(60).__cause__)
    assert 'ZeroDivisionError' in text

def _traceback(trace):
    assert trace.wait(60)
    return trace.traceback


# --- many

def test_map_returns_results_in_order(single, double):
    assert pk.map(double, range(1000)) == [2*i for i in range(1000)]
    assert pk.map(double.options(priority=3), []) == []


def _runs(traces): return [t.items or 1 for t in traces[::-1]]

@pytest.mark.parametrize('chunksize, runs', [(1, [1]*10), (4, [4, 4, 2]), (3, [3, 3, 3, 1]), (100, [10])])
def test_map_gives_a_call_as_many_items_as_it_is_told(single, double, chunksize, runs):
    assert pk.map(double, range(10), chunksize=chunksize) == [2*i for i in range(10)]
    assert _runs(pk.traces()) == runs


def test_map_makes_few_calls_of_short_items_and_one_of_each_long(single, double):
    @pk.task
    def slow(i): time.sleep(0.1); return i
    assert pk.map(double, range(5000)) == [2*i for i in range(5000)] and len(pk.traces()) < 500
    assert pk.map(slow, range(8)) == list(range(8)) and _runs(pk.traces(task='slow')) == [1]*8


@pytest.mark.parametrize('chunksize', [0, -1, 1.5, 'all', None])
def test_map_refuses_what_is_no_chunksize(single, double, chunksize):
    with pytest.raises(ValueError, match='chunksize is a whole number'): pk.map(double, [1], chunksize=chunksize)


@pytest.mark.parametrize('chunksize', ['auto', 1, 5])
def test_map_of_every_kind_of_task(single, chunksize):
    "Those whose items are each a call of their own have no chunks"
    @pk.task
    async def later(i): return i + 1
    @pk.task
    def count(n): yield from range(n)
    @pk.task(cache=True)
    def kept(i): return i - 1
    assert pk.map(later, range(20), chunksize=chunksize) == list(range(1, 21))
    for task in (count, kept):
        if chunksize == 5:
            with pytest.raises(ValueError, match='each of its items is a call'): pk.map(task, range(4), chunksize=5)
    if chunksize == 5: return
    assert pk.map(kept, [1, 2, 1, 2], chunksize=chunksize) == [0, 1, 0, 1]
    assert [list(items) for items in pk.map(count, range(4), chunksize=chunksize)] == [list(range(n)) for n in range(4)]


@pytest.mark.parametrize('chunksize', ['auto', 1, 7])
def test_map_says_which_item_has_failed(single, chunksize):
    @pk.task
    def fail_at(i, at):
        if i == at: raise ValueError('no')
        return i
    with pytest.raises(ValueError, match='no') as caught: pk.map(fail_at, range(50), [31]*50, chunksize=chunksize)
    if hasattr(caught.value, 'add_note'): assert caught.value.__notes__ == ['item 31 of map, counted from 0']
    assert all(ended(t) for t in pk.traces())


def test_map_says_among_which_items_a_worker_has_died(single):
    @pk.task
    def die(i):
        if i == 5: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(pk.WorkerCrashedError) as caught: pk.map(die, range(9), chunksize=3)
    if hasattr(caught.value, 'add_note'): assert caught.value.__notes__ == ['one of the items 3 to 5 of map, which are one call']


def test_items_of_a_call_are_run_again_together(single):
    ran = pk.Array('ran')
    @pk.task(retries=1)
    def once(i):
        ran.append(i)
        if len(ran) == 2: raise OSError
        return i
    assert pk.map(once, range(3), chunksize=3) == [0, 1, 2] and list(ran) == [0, 1, 0, 1, 2]


def test_timeout_of_a_task_holds_for_each_item_on_average(single):
    @pk.task(timeout=1)
    def slow(i): time.sleep(0.4); return i
    assert pk.map(slow, range(5), chunksize=5) == list(range(5))
    with pytest.raises(pk.TaskTimeoutError, match='within 0.6 s'): pk.map(slow.options(timeout=0.2), range(3), chunksize=3)


@pytest.mark.parametrize('chunksize', ['auto', 1, 2])
def test_map_gives_up_after_its_timeout(single, chunksize):
    @pk.task
    def slow(i): time.sleep(600*i)
    with pytest.raises(TimeoutError, match='of 4 items had their results'): pk.map(slow, [0, 1, 1, 1], chunksize=chunksize, timeout=1.5)
    assert wait_for(lambda: all(ended(t) for t in pk.traces()))


@pytest.mark.parametrize('chunksize', ['auto', 1, 2])
def test_map_in_a_task_is_the_progress_of_that_task(site, chunksize):
    pk.Pool().resize(2)
    @pk.task
    def double(i): return 2*i
    @pk.task
    def outer(n, chunksize): return sum(pk.map(pk.bind_task('double'), range(n), chunksize=chunksize))
    trace = outer(20, chunksize)
    assert trace.result == 380 and trace.progress[:2] == (20, 20)


def test_map_raises_the_first_failure_and_cancels_the_rest(single, tmp_path):
    @pk.task
    def slow(i, path):
        if i == 3: raise ValueError('the third')
        with open(path, 'a') as f: f.write('x')
        if i > 3: time.sleep(600)
    path = tmp_path/'ran'
    with pytest.raises(ValueError, match='the third'): pk.map(slow, range(50), [str(path)]*50, chunksize=1)
    assert all(ended(t) for t in pk.traces())
    assert 3 <= len(path.read_text()) <= 4 and len(pk.traces(status='cancelled')) == 46


# --- numbers of other kinds

def test_options_and_settings_may_be_numbers_of_any_kind(single, double):
    "Of numpy, or fractions: what is kept of a call, a pool or a schedule are plain numbers, which every process can read"
    how = dict(timeout=Fraction(41, 2), retries=np.int64(2), priority=np.int8(3), delay=np.float32(.01))
    trace = double.options(**how)(2)
    assert trace.result == 4 and [type(o) for o in trace._record.how] == [float, int, float, tuple, int, float]
    for name, value in dict(keep_days=np.float64(3), keep_traces=np.int64(100), max_memory=np.int64(2**40), idle_timeout=Fraction(600)).items():
        setattr(single, name, value)
    assert (single.keep_days, single.keep_traces, single.max_memory, single.idle_timeout) == (3, 100, 2**40, 600)
    assert pk.Array('a', maxsize=np.int64(3)).maxsize == pk.Queue('q', maxsize=np.int16(3)).maxsize == 3
    schedule = double.schedule(pk.Periodic(period=np.int64(2), max_times=np.int64(1), start=datetime(2099, 1, 1)), 5)
    assert repr(schedule) in repr(pk.schedules()) and 'period=2' in repr(schedule)
    assert run(single.site, "say([pk.Pool().keep_days, repr(pk.schedules()), len(pk.traces()), pk.Array('a').maxsize])") == [3, repr(pk.schedules()), 1, 3]
    double.unschedule()

def test_numbers_that_an_older_parkit_has_stored_as_they_were(site):
    from parkit import arrays  # noqa: F401  whose codec of dtypes is then used
    for value in (np.int64(-3), np.float32(1.5), np.bool_(True), np.dtype('>i4').type(7), np.uint8(9), np.str_('ü')):
        assert decode_plain(pickle.dumps((value,), 5)) == decode_plain(encode((value,))) == (value,)
    for value in (np.dtype('O'), np.array([1]), np.datetime64('2026-01-01')):
        with pytest.raises(pk.DecodeError, match='where only plain values are kept'): decode_plain(pickle.dumps(value, 5))
