"""Workers on a full disk: what they have found out waits for room, or says that there was none; the pool goes on, and can be stopped.

Real processes and a real small disk, which a notebook cannot mount."""
import os, signal, time

import psutil, pytest

import parkit as pk
from conftest import wait_for
from helpers import forked
from task_helpers import event_loop, pool_processes, started  # noqa: F401  a fixture
from test_full_disk import LARGE, Btrfs, Disk, _filler, _stores


@pytest.fixture(params=(Disk, Btrfs), ids=lambda kind: kind.__name__.lower())
def disk(request, tmp_path):
    disk = request.param(tmp_path/'disk')
    try: yield disk
    finally: disk.unmount()

@pytest.fixture
def pool(disk):
    "A pool of two workers on a small disk"
    site = pk.set_site(disk.site())
    pool = pk.Pool()
    pool.resize(2)
    yield pool
    disk.filler.unlink(missing_ok=True)
    pool.stop()
    assert wait_for(lambda: not pool_processes(site))
    site.close()

@pytest.fixture
def work(pool, tmp_path):
    "A task that waits for a file before it returns what takes a page; or a blob"
    @pk.task
    def work(n, go=str(tmp_path/'go'), large=False):
        import os, time
        import numpy as np
        while not os.path.exists(go): time.sleep(0.01)
        return n, np.arange(10_000) if large else bytes(3000)
    return work

@pytest.fixture
def go(tmp_path): return (tmp_path/'go').touch

def _exhaust(pool, disk, pages=0): disk.fill([_filler(store) for store in _stores(pool.site)], pages)

def _busy(pool):
    "Wait until both workers have a call in hand and all is on record; returns the status"
    assert wait_for(lambda: pool.status.running == len(pool.status.workers) == 2)
    return pool.status

def _settled(value, seconds=2.5):
    "Wait until `value()` has stayed the same for longer than workers wait before they try again; returns it"
    last, since = value(), time.monotonic()
    while time.monotonic() < since + seconds:
        time.sleep(0.05)
        if (now := value()) != last: last, since = now, time.monotonic()
    return last

def _finished(traces): return sum(trace.status == 'finished' for trace in traces)


def test_trap_21_workers_wait_for_room(pool, work, go, disk):
    "Results that find none are kept, not lost with their worker; calls that wait go on"
    traces = [work(n) for n in range(150)]
    before = _busy(pool)
    _exhaust(pool, disk)
    go()
    assert _settled(lambda: _finished(traces)) < 150 and {trace.status for trace in traces} <= {'submitted', 'running', 'finished'}
    assert pool.status.supervisor == before.supervisor and pool.status.workers == before.workers
    disk.empty()
    assert wait_for(lambda: _finished(traces) == 150) and [trace.result[0] for trace in traces] == list(range(150))
    assert wait_for(lambda: pool.status == before._replace(running=0, queued=0))


def test_trap_21_large_result_fails_with_the_reason(pool, work, go, disk):
    traces = [work(n, large=True) for n in range(2)]
    before = _busy(pool)
    _exhaust(pool, disk)
    go()
    _settled(lambda: [trace.status for trace in traces])
    disk.empty()
    assert wait_for(lambda: all(trace.done for trace in traces))
    for trace in traces:
        with pytest.raises(pk.TaskError, match=f'result of the task could not be stored: .*{disk.path}'): trace.result
    assert work(5, large=True).result[0] == 5 and pool.status.workers == before.workers


@pytest.mark.parametrize('pages', [7, 13])
def test_trap_21_large_result_with_little_room(pool, work, go, disk, pages):
    "For the file, perhaps, and not for the commit: either it is stored or it is said that it could not be"
    trace, other = work(1, large=True), work(2, large=True)
    before = _busy(pool)
    _exhaust(pool, disk, pages)
    go()
    _settled(lambda: trace.status)
    disk.empty()
    for n, t in enumerate((trace, other), 1):
        assert wait_for(lambda: t.done)
        assert t.result[0] == n if t.status == 'finished' else f'{disk.path}' in str(t.error)
    assert pool.status.workers == before.workers


def test_trap_21_worker_killed_on_a_full_disk(pool, work, go, disk):
    "Its supervisor remembers how, until that can be noted; its place is taken"
    traces = [work(n) for n in range(4)]
    before = _busy(pool)
    _exhaust(pool, disk)
    for pid in before.workers: os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not any(map(psutil.pid_exists, before.workers)))
    disk.empty()
    go()
    assert [trace.result[0] for trace in traces[2:]] == [2, 3]
    for trace in traces[:2]:
        with pytest.raises(pk.WorkerCrashedError, match='SIGKILL'): trace.result
    assert pool.status.supervisor == before.supervisor


@pytest.mark.parametrize('killed', [False, True])
def test_trap_21_pool_stops_on_a_full_disk(pool, work, go, disk, killed):
    "Also while the death of a worker is yet to be noted"
    traces = [work(n) for n in range(150)]
    before = _busy(pool)
    _exhaust(pool, disk)
    if killed: os.kill(before.workers[0], signal.SIGKILL)
    go()
    _settled(lambda: _finished(traces), 1.5)
    store = pool.site.store('_pool', True)
    snapshot = store.read()  # what is freed cannot be used again
    try: pool.stop()
    finally: store.end(snapshot)
    assert wait_for(lambda: not any(map(psutil.pid_exists, (before.supervisor, *before.workers))))
    disk.empty()
    assert wait_for(lambda: all(trace.done for trace in traces))
    ended = [trace.status for trace in traces]
    assert ended.count('crashed') <= 2 and set(ended) <= {'finished', 'crashed'}
    assert work(1).result[0] == 1


def test_trap_21_first_call_on_a_full_disk(pool, work, go, disk):
    "It fails at once and says why, or runs once there is room; it is not both refused and run"
    go()
    for pages in range(60):
        _exhaust(pool, disk, pages)
        error = trace = None
        try: trace = work(pages)
        except pk.StorageFullError as e: error = e
        disk.empty()
        if error is None: break
        pool.keep_traces = 10_000  # an ordinary write, with which room for deleting is kept again
        assert str(disk.path) in str(error)
        assert not pool.status.queued and not pool.status.supervisor
    assert trace is not None and pages and wait_for(lambda: trace.done)
    assert trace.result[0] == pages if trace.status == 'finished' else str(disk.path) in str(trace.error)
    assert work(3).result[0] == 3


def test_trap_21_call_that_finds_no_workers_and_no_room_is_not_made(pool, work, go, disk, monkeypatch):
    "There is room for the call, but none for what starts the workers"
    def ensure(site):
        _exhaust(pool, disk)
        raise pk.TaskError('there are none'*2000)  # more than fits into pages that are in use
    monkeypatch.setattr('parkit.tasks._ensure', ensure)
    with pytest.raises(pk.StorageFullError, match=str(disk.path)): work(1)
    monkeypatch.undo()
    assert not pool.status.queued and pk.traces() == []
    disk.empty()
    go()
    assert work(2).result[0] == 2


def test_trap_21_fork_on_a_full_disk(disk):
    "A child that is to hold what its parent holds is registered; that there is no room for it does not keep it from living"
    site = pk.set_site(disk.site())
    d, kept = pk.Dict(), pk.Dict('n/d')
    d['a'] = LARGE
    kept['a'] = LARGE
    disk.fill([], 0)
    assert forked(lambda: [(o['a'] == LARGE).all() for o in (d, kept)]) == [True, True]
    assert (d['a'] == LARGE).all()
    disk.empty()
    assert forked(lambda: d.update(b=1)) is None and d['b'] == 1
    del d
    site.close()
