"""`Lock` and `Event` between processes: who waits sleeps, and is woken when the holder releases the lock or dies.

In a notebook nobody is killed, forked or interrupted while another waits."""
import asyncio, fcntl, multiprocessing, os, signal, threading, time
from contextlib import ExitStack

import pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, Fork, forked, run, sleeps, ticks, waits_for_a_lock
from parkit import storage


@pytest.fixture
def lock(scratch): return pk.Lock('n/lock')

@pytest.fixture
def event(scratch): return pk.Event('n/event')

def _is_free(lock):
    "Whether another process can take the lock"
    return run(lock.site, f"lock = pk.Lock({lock.path!r}); say(lock.acquire(False))")


# --- a lock as `threading` has it

def test_lock_is_one_of_threading(lock):
    for o in (threading.Lock(), lock):
        assert not o.locked() and o.acquire() is True and o.locked()
        assert o.acquire(False) is False and o.acquire(blocking=False) is False and o.acquire(True, 0) is False and o.acquire(timeout=0.01) is False
        o.release()
        assert not o.locked() and o.acquire(False) is True
        o.release()
        with pytest.raises(RuntimeError): o.release()
        with o as taken: assert taken is True and o.locked()
        with pytest.raises(KeyError), o: raise KeyError
        assert not o.locked()
        for bad in (dict(blocking=False, timeout=1), dict(timeout=-2), dict(timeout=-0.5)):
            with pytest.raises(ValueError): o.acquire(**bad)
    assert lock.holder is None


def test_other_thread_may_release_it(lock):
    lock.acquire()
    assert forked(lambda: pk.Lock('n/lock').acquire(False)) is False
    threading.Thread(target=lock.release).start()
    assert lock.acquire(timeout=60)
    lock.release()


def test_one_thread_at_a_time(lock):
    "Through one object or several"
    inside, most, done = 0, 0, []
    def work(lock):
        nonlocal inside, most
        for _ in range(30):
            with lock:
                inside += 1
                most = max(most, inside)
                time.sleep(0.0001)
                inside -= 1
        done.append(1)
    threads = [threading.Thread(target=work, args=(o,)) for o in (lock, lock, pk.Lock('n/lock'), pk.Lock('n/lock'))]
    for t in threads: t.start()
    for t in threads: t.join()
    assert most == 1 and len(done) == 4 and not lock.locked()


def test_thread_that_takes_it_at_once_through_the_same_object_keeps_it(lock, monkeypatch):
    "Who releases it must not forget, after that, that another thread has just taken it: all would wait for ever"
    def unlock(fd, how, flock=fcntl.flock):
        flock(fd, how)
        if how == fcntl.LOCK_UN: thread.join()
    thread = threading.Thread(target=lock.acquire)
    lock.acquire()
    with monkeypatch.context() as m:
        m.setattr(fcntl, 'flock', unlock)
        thread.start()
        assert wait_for(lambda: waits_for_a_lock(os.getpid()))
        lock.release()
    assert not _is_free(lock)
    lock.release()
    assert _is_free(lock)


def test_two_threads_that_release_it_at_once(lock, monkeypatch):
    "One of them does; the other is told that it is not held, and does nothing to what is opened and locked meanwhile"
    said = []
    def release():
        try: said.append(lock.release())
        except RuntimeError as e: said.append(type(e))
    def pwrite(fd, data, at, pwrite=os.pwrite):
        monkeypatch.undo()
        second.start()
        second.join(0.5)  # it has to wait, and does not end
        return pwrite(fd, data, at)
    lock.acquire()
    second = threading.Thread(target=release)
    monkeypatch.setattr(os, 'pwrite', pwrite)
    release()
    second.join()
    assert len(said) == 2 and set(said) == {None, RuntimeError}  # in whichever order they get to say it
    assert lock.acquire(False) and not _is_free(lock)
    lock.release()


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_error_amid_a_release_leaves_nothing(lock, monkeypatch, error):
    "A full disk, or Ctrl-C: the lock is free, its file closed"
    lock.acquire()
    lock.release()
    before = _descriptors()
    lock.acquire()
    def pwrite(fd, data, at, pwrite=os.pwrite):
        monkeypatch.undo()
        pwrite(fd, data, at)
        raise error
    monkeypatch.setattr(os, 'pwrite', pwrite)
    with pytest.raises(error): lock.release()
    assert _descriptors() == before and not lock.locked() and _is_free(lock)
    with pytest.raises(RuntimeError): lock.release()


def test_released_though_nobody_can_be_woken(lock):
    "No snapshot is to be had; what was released is released"
    lock.acquire()
    store, readers = lock._store, []
    try:
        with pytest.raises(pk.TransactionError, match='snapshots open'):
            while True: readers.append(store.read())
        lock.release()
    finally:
        while readers: store.end(readers.pop())
    assert not lock.locked() and _is_free(lock)


_counts = '''
lock, path = pk.Lock('n/lock'), sys.argv[2]
say(); hear()
for i in range(100):
    with lock:
        n = int(open(path).read())
        open(path, 'w').write(str(n + 1))
say()
'''

def test_one_process_at_a_time(lock, tmp_path):
    "Each reads a number from a file and writes the next"
    path, n = tmp_path/'count', 4
    path.write_text('0')
    with ExitStack() as stack:
        children = [stack.enter_context(Child(lock.site, _counts, path)) for _ in range(n)]
        for child in children: child.hear()
        for child in children: child.say()
        for child in children: child.hear()
    assert path.read_text() == str(100*n)


def test_locked_and_holder_are_seen_by_all(lock):
    with Child(lock.site, "lock = pk.Lock('n/lock'); lock.acquire(); say(); hear(); lock.release(); say(); hear()") as child:
        child.hear()
        assert lock.locked() and lock.holder == child.pid and lock.acquire(False) is False
        child.say()
        child.hear()
        assert not lock.locked() and lock.holder is None
    with lock: assert run(lock.site, "lock = pk.Lock('n/lock'); say([lock.locked(), lock.holder])") == [True, os.getpid()]


def test_waiting_inside_a_transaction_is_refused(lock):
    "Whoever holds the lock may be waiting for the transaction to end"
    with Child(lock.site, "lock = pk.Lock('n/lock'); lock.acquire(); say(); hear()") as child:
        child.hear()
        with pk.transaction(lock):
            assert lock.acquire(False) is False
            for work in (lambda: lock.acquire(timeout=5), lock.acquire):
                with pytest.raises(pk.TransactionError, match='would never end'): work()
    with pk.transaction(lock): assert lock.acquire()
    lock.release()


# --- waiting

_waits = '''
import asyncio
never_look_again()
lock, kind = pk.Lock('n/lock'), sys.argv[2]
async def enter():
    async with lock: return True
work = dict(forever=lock.acquire, timeout=lambda: lock.acquire(timeout=600), asyncio=lambda: asyncio.run(enter()))[kind]
say()
say(work())
if kind != 'asyncio': lock.release()
'''

@pytest.mark.parametrize('how', ['release', 'kill', 'exit'])
def test_lock_passes_on_at_once(lock, how):
    "Also when its holder is killed; and nobody works while they wait"
    holds = "lock = pk.Lock('n/lock'); lock.acquire(); say(); hear()\nif sys.argv[2] == 'release': lock.release(); say(); hear()"
    with ExitStack() as stack:
        holder = stack.enter_context(Child(lock.site, holds, how))
        holder.hear()
        waiters = {kind: stack.enter_context(Child(lock.site, _waits, kind)) for kind in ('forever', 'timeout', 'asyncio')}
        for child in waiters.values(): child.hear()
        assert wait_for(lambda: waits_for_a_lock(waiters['forever'].pid))
        if how == 'release':
            assert sleeps(waiters['forever'].pid)
            def rest():
                before = [ticks(child.pid) for child in waiters.values()]
                time.sleep(1.5)  # what is measured, not what is waited for
                return max(ticks(child.pid) - b for child, b in zip(waiters.values(), before)) <= 2  # of 10 ms in 1.5 s
            assert wait_for(rest)
        holder.kill() if how == 'kill' else holder.say()
        for child in waiters.values():
            assert child.hear() is True
            child.wait()
    assert not lock.locked() and lock.acquire(False)
    lock.release()


def test_timeout(lock, never_look_again):
    with Child(lock.site, "lock = pk.Lock('n/lock'); lock.acquire(); say(); hear(); lock.release(); say(); hear()") as holder:
        holder.hear()
        start = time.monotonic()
        assert lock.acquire(timeout=0.4) is False
        assert time.monotonic() - start >= 0.4
        holder.say()
        holder.hear()
        assert lock.acquire(timeout=600)  # at once, not when the time is over
    lock.release()


_interrupted = '''
never_look_again()
lock = pk.Lock('n/lock')
say()
try: lock.acquire(timeout=float(sys.argv[2]))
except KeyboardInterrupt: say('interrupted')
hear()
say(lock.acquire())
'''

@pytest.mark.parametrize('timeout', [-1, 600])
def test_trap_11_interrupt_ends_the_wait(lock, timeout):
    lock.acquire()
    with Child(lock.site, _interrupted, timeout) as child:
        child.hear()
        assert wait_for(lambda: waits_for_a_lock(child.pid)) if timeout == -1 else sleeps(child.pid, seconds=0.1)
        child.signal(signal.SIGINT)
        assert child.hear() == 'interrupted'
        lock.release()
        assert lock.acquire(False), 'the interrupted one has taken nothing'
        child.say()
        lock.release()
        assert child.hear() is True


# --- processes that fork, die, close

def test_child_does_not_hold_the_lock_of_its_parent(lock):
    "Nor keep it when the parent dies"
    code = "lock = pk.Lock('n/lock'); lock.acquire(); say(fork_and_stay()); hear()"
    with Child(lock.site, code) as parent:
        child = parent.hear()
        try:
            assert lock.acquire(False) is False
            parent.kill()
            assert os.path.exists(f'/proc/{child}') and lock.acquire(timeout=30)
            lock.release()
        finally: os.kill(child, signal.SIGKILL)


def test_child_waits_for_its_parent_and_cannot_release(lock):
    lock.acquire()
    def child():
        with pytest.raises(RuntimeError): lock.release()
        assert lock.locked() and lock.acquire(False) is False and lock.acquire(timeout=0.01) is False
        return True
    assert forked(child) and lock.locked() and not _is_free(lock)
    with Fork(lambda: lock.acquire(timeout=50)) as waiter:
        lock.release()
        assert waiter.result() is True
    assert wait_for(lambda: not lock.locked()) and lock.acquire(False), 'the child has ended without releasing'
    lock.release()


def test_child_that_is_interrupted_keeps_nothing(lock):
    "The descriptor it waits with may have the number of the one that its parent holds the lock with"
    def child():
        lock.holder  # opens what there is to be opened
        number, fillers = lock._held[0], []
        while not fillers or fillers[-1] < number: fillers.append(os.open(os.devnull, os.O_RDONLY))
        os.close(fillers.pop())
        if fillers[-1] == number: os.close(fillers.pop())
        def strike(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, strike)
        before = _descriptors()
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
        with pytest.raises(KeyboardInterrupt): lock.acquire()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return _descriptors() - before
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]  # so that its number is a high one
    lock.acquire()
    for fd in fillers: os.close(fd)
    assert forked(child) == 0
    lock.release()


def test_program_that_is_started_does_not_hold_the_lock(lock):
    "Descriptors are not inherited"
    import subprocess
    with lock: sleeper = subprocess.Popen(['sleep', '60'], close_fds=False)
    try: assert _is_free(lock)
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_multiprocessing_passes_lock_and_event(lock, event, method):
    lock.acquire()
    child = multiprocessing.get_context(method).Process(target=_set_when_free, args=(lock, event))
    child.start()
    assert not event.wait(0.1)
    lock.release()
    assert event.wait(60)
    child.join(60)
    assert child.exitcode == 0 and not lock.locked()
    child.close()

def _set_when_free(lock, event):
    with lock: event.set()


def test_holders_killed_at_random_moments_never_keep_it(lock, tmp_path):
    import random
    moments, path = random.Random(4), tmp_path/'log'
    path.touch()
    def work():
        lock = pk.Lock('n/lock')
        while True:
            with lock: path.open('a').write('x')
    for _ in range(20):
        size = path.stat().st_size
        with Fork(work) as one, Fork(work) as two:
            assert wait_for(lambda: path.stat().st_size > size + 5, interval=0.001)
            time.sleep(moments.random()*0.003)  # not a wait: any moment will do
            one.kill()
            size = path.stat().st_size
            assert wait_for(lambda: path.stat().st_size > size + 5, interval=0.001), 'the other waits for ever'
            two.kill()
        assert lock.acquire(timeout=60)
        lock.release()
        assert not lock.locked()


def test_lock_is_kept_when_the_site_is_closed(lock):
    lock.acquire()
    lock.site.close()
    assert not _is_free(lock) and lock.locked()
    lock.release()
    assert _is_free(lock)


@pytest.mark.parametrize('what', ['compact', 'rename'])
def test_lock_is_kept_when_its_namespace_gets_other_files(lock, what):
    lock.acquire()
    if what == 'compact': pk.compact('n')
    else: pk.Namespace('n').rename('m')
    other = pk.Lock('n/lock' if what == 'compact' else 'm/lock', create=False)
    assert other.locked() and other.acquire(False) is False and not _is_free(other)
    lock.release()
    assert other.acquire(timeout=60) and not _is_free(other)
    other.release()


@pytest.mark.parametrize('what', ['compact', 'rename'])
def test_lock_that_is_first_taken_while_its_namespace_gets_other_files(lock, what, monkeypatch):
    "Just after the files of locks were given to the new namespace"
    holder = None
    def link_all(source, target, folder, link_all=storage._link_all):
        nonlocal holder
        link_all(source, target, folder)
        if folder == 'locks' and holder is None:
            holder = stack.enter_context(Child(lock.site, "say(pk.Lock('n/lock').acquire(False)); hear()"))
            assert holder.hear()
    monkeypatch.setattr(storage, '_link_all', link_all)
    with ExitStack() as stack:
        if what == 'compact': pk.compact('n')
        else: pk.Namespace('n').rename('m')
        assert not pk.Lock('n/lock' if what == 'compact' else 'm/lock', create=False).acquire(False)
        holder.say()


def test_lock_is_kept_by_garbage_collection(lock):
    "A lock that is dropped takes its file along, unless that is undone; `gc` finds nothing, and lets the others be"
    gone = pk.Lock('n/gone')
    for o in (lock, gone): o.acquire()
    gone.release()
    file = gone._lock_path()
    with pytest.raises(ZeroDivisionError), pk.transaction(gone):
        gone.drop()
        1/0
    assert os.path.exists(file)
    gone.drop()
    assert not os.path.exists(file) and pk.gc() == []
    assert not _is_free(lock)
    lock.release()
    assert _is_free(lock)


def test_file_of_a_lock_that_was_dropped_goes_though_its_dropper_is_killed(lock):
    "Just after the commit: the next process that writes there removes it"
    file, other = lock._lock_path(), pk.Lock('n/other')._lock_path()
    with Child(lock.site, "pk.objects._remove_file = lambda *_: os.kill(os.getpid(), 9)\npk.Lock('n/lock').drop()") as child:
        assert child.process.wait(60) == -signal.SIGKILL
    assert not lock.exists and os.path.exists(file)
    run(lock.site, "pk.Event('n/event').set(); say()")
    assert not os.path.exists(file) and os.path.exists(other) and pk.gc() == []
    pk.Lock('n/other').drop()
    pk.Event('n/event').clear()
    txn = lock._store.read()
    assert not list(lock._store.scan(txn, storage.DROPPED, storage._DROPPED_END)), 'nothing is kept of them'
    lock._store.end(txn)


_is_dropped = _waits.replace('say(work())', 'say(failure(work))').replace("if kind != 'asyncio': lock.release()", '')

@pytest.mark.parametrize('what', ['object', 'namespace'])
def test_drop_ends_the_wait(lock, what):
    "At the latest when the holder releases what is no lock any longer"
    lock.acquire()
    kinds = ['forever', 'timeout', 'asyncio']
    with ExitStack() as stack:
        children = [stack.enter_context(Child(lock.site, _is_dropped, kind)) for kind in kinds]
        for child in children: child.hear()
        assert wait_for(lambda: waits_for_a_lock(children[0].pid))
        lock.drop() if what == 'object' else pk.Namespace('n').drop()
        assert [child.hear()['type'] for child in children[1:]] == ['ObjectNotFoundError']*2
        lock.release()
        assert children[0].hear()['type'] == 'ObjectNotFoundError'
    for work in (lock.acquire, lambda: lock.acquire(False), lambda: lock.acquire(timeout=1), lock.__enter__):
        with pytest.raises(pk.ObjectNotFoundError): work()
    with pytest.raises(RuntimeError): lock.release()
    with pk.Lock('n/lock') as taken: assert taken, 'a new one of the same name is another'


# --- asyncio

def test_asyncio_tasks_take_turns(lock):
    inside, most, order = 0, 0, []
    async def work(i):
        nonlocal inside, most
        for _ in range(5):
            async with lock as taken:
                assert taken is True
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.0005)
                inside -= 1
                order.append(i)
    async def main(): await asyncio.wait_for(asyncio.gather(*map(work, range(5))), 60)
    asyncio.run(main())
    assert most == 1 and sorted(order) == sorted([*range(5)]*5) and not lock.locked()


def _descriptors(): return len(os.listdir('/dev/fd'))

@pytest.mark.parametrize('steps', range(8))
def test_cancelled_task_takes_nothing(lock, steps):
    "Cancelled at each step between the release and its turn"
    async def main():
        entered = False
        async def enter():
            nonlocal entered
            async with lock: entered = True
        lock.acquire()
        waiter = asyncio.ensure_future(enter())
        for _ in range(50): await asyncio.sleep(0)
        lock.release()
        for _ in range(steps): await asyncio.sleep(0)
        waiter.cancel()
        results = await asyncio.gather(waiter, return_exceptions=True)
        assert entered == (results == [None])
        assert not lock.locked() and lock.acquire(False)
        lock.release()
    asyncio.run(main())
    lock.site.close()
    before = _descriptors()
    asyncio.run(main())
    lock.site.close()
    assert _descriptors() == before


def test_other_tasks_run_while_one_waits_for_the_lock(lock):
    async def main():
        async def enter():
            async with lock: return 'taken'
        lock.acquire()
        waiter = asyncio.ensure_future(enter())
        for _ in range(20): await asyncio.sleep(0.001)
        assert not waiter.done()
        lock.release()
        return await asyncio.wait_for(waiter, 60)
    assert asyncio.run(main()) == 'taken'


# --- events

def test_event_is_one_of_threading(event):
    for o in (threading.Event(), event):
        assert not o.is_set() and o.wait(0) is False and o.wait(0.01) is False
        for _ in range(2):
            o.set()
            assert o.is_set() and o.wait() is True and o.wait(0) is True and o.wait(timeout=1) is True
        for _ in range(2):
            o.clear()
            assert not o.is_set() and o.wait(timeout=0.01) is False


_event_waits = '''
import asyncio
never_look_again()
event, kind = pk.Event('n/event'), sys.argv[2]
work = dict(forever=event.wait, timeout=lambda: event.wait(600), asyncio=lambda: asyncio.run(event.wait_async()),
            until=lambda: pk.wait_until(event.is_set))[kind]
say()
say(work())
'''

def test_set_wakes_all_who_wait_and_they_sleep_until_then(event):
    with ExitStack() as stack:
        children = [stack.enter_context(Child(event.site, _event_waits, kind)) for kind in ('forever', 'timeout', 'asyncio', 'until')]
        for child in children: child.hear()
        assert sleeps(*(child.pid for child in children))
        event.set()
        for child in children:
            assert child.hear() is True
            child.wait()
    event.clear()
    assert run(event.site, "event = pk.Event('n/event'); say([event.is_set(), event.wait(0.05)])") == [False, False]


def test_event_that_is_cleared_at_once_wakes_those_who_waited(event):
    "As one of `threading` does: set and cleared in one commit, it is never seen to be set"
    async def both(): return await asyncio.gather(event.wait_async(), event.wait_async(60))
    works, found = [event.wait, lambda: event.wait(60), lambda: asyncio.run(both()) == [True, True]], []
    threads = [threading.Thread(target=lambda work=work: found.append(work())) for work in works]
    for t in threads: t.start()
    def pulse():  # again and again: who comes late waits for the next
        with pk.transaction(event):
            event.set()
            event.clear()
        return len(found) == len(threads)
    assert wait_for(pulse), 'someone is not woken'
    for t in threads: t.join()
    assert found == [True]*3 and not event.is_set()
    assert event.wait(0.01) is False and event.wait(0) is False, 'who comes later waits'
    with pytest.raises(KeyError), pk.transaction(event):
        event.set()
        raise KeyError
    assert event.wait(0.01) is False, 'what was rolled back has never been'


def test_event_in_a_transaction(event):
    with pytest.raises(KeyError), pk.transaction(event):
        event.set()
        assert event.is_set() and event.wait() is True
        raise KeyError
    assert not event.is_set()
    with pk.transaction(event), pytest.raises(pk.TransactionError, match='would never end'): event.wait(1)
    with pk.snapshot(event), pytest.raises(pk.TransactionError): event.set()
    before = event.version
    event.clear()
    assert event.version == before, 'nothing changed'


@pytest.mark.parametrize('durable', [True, False])
def test_event_stays_set_after_its_setter_is_killed(site, durable):
    pk.Namespace('n', durable=durable)
    with Child(site, "pk.Event('n/event').set(); say(); hear()") as child:
        child.hear()
        child.kill()
    event = pk.Event('n/event', create=False)
    assert event.wait(0)
    site.close()
    assert event.is_set()
    event.clear()
    site.close()
    assert not pk.Event('n/event').is_set()


_event_is_dropped = _event_waits.replace('say(work())', 'say(failure(work))')

@pytest.mark.parametrize('what', ['object', 'namespace'])
def test_drop_wakes_who_waits_for_the_event(event, what):
    with ExitStack() as stack:
        children = [stack.enter_context(Child(event.site, _event_is_dropped, kind)) for kind in ('forever', 'timeout', 'asyncio')]
        for child in children: child.hear()
        assert sleeps(*(child.pid for child in children), seconds=0.2)
        event.drop() if what == 'object' else pk.Namespace('n').drop()
        assert {child.hear()['type'] for child in children} == {'ObjectNotFoundError'}
    for work in (event.is_set, event.set, event.clear, event.wait, lambda: event.wait(1)):
        with pytest.raises(pk.ObjectNotFoundError): work()


_answers = '''
never_look_again()
ping, pong = pk.Event('n/ping'), pk.Event('n/pong')
say()
for _ in range(200):
    ping.wait()
    ping.clear()
    pong.set()
'''

def test_two_processes_answer_each_other(scratch, never_look_again):
    "No wake-up is lost: there is no safety net"
    ping, pong = pk.Event('n/ping'), pk.Event('n/pong')
    with Child(scratch, _answers) as child:
        child.hear()
        for _ in range(200):
            ping.set()
            assert pong.wait(60)
            pong.clear()
        child.wait()


def test_asyncio_waits_for_an_event(event):
    async def main():
        waiters = [asyncio.ensure_future(event.wait_async(o)) for o in (None, 60, 0.05)]
        for _ in range(50): await asyncio.sleep(0)
        assert not any(o.done() for o in waiters[:2])
        assert await waiters[2] is False
        event.set()
        assert await asyncio.gather(*waiters[:2]) == [True, True] and await event.wait_async() is True
        event.clear()
        waiter = asyncio.ensure_future(event.wait_async())
        await asyncio.sleep(0.01)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError): await waiter
    asyncio.run(main())


def test_interrupt_ends_waiting_for_an_event(event):
    code = "never_look_again(); event = pk.Event('n/event'); say()\ntry: event.wait()\nexcept KeyboardInterrupt: say('interrupted')"
    with Child(event.site, code) as child:
        child.hear()
        assert sleeps(child.pid, seconds=0.1)
        child.signal(signal.SIGINT)
        assert child.hear() == 'interrupted'
        child.wait()


# --- changes

_changes_it = '''
d = pk.Dict('n/d')
for i in range(200):
    d['i'] = i
    if i % 20 == 0: hear()  # until the last change was seen
hear()
d.drop()
'''

def test_changes_of_other_processes_are_all_seen_in_their_order(scratch):
    "Several at once as one; the last is never missed, and who waits is told of the drop"
    d = pk.Dict('n/d')
    async def main(child):
        chain = [d.version]
        with pytest.raises(pk.ObjectNotFoundError):
            child.say()
            async for now, previous in d.changes():
                assert previous == chain[-1] < now
                chain.append(now)
                if now % 20 == 1 and now > 1 or now == 200: child.say()  # it waits there
        return chain
    with Child(scratch, _changes_it) as child:
        chain = asyncio.run(asyncio.wait_for(main(child), 60))
        child.wait()
    assert chain[-1] == 200 and len(chain) >= 10


def test_waiting_for_changes_takes_no_cpu(scratch):
    code = """
        import asyncio
        d = pk.Dict('n/d')
        async def main():
            async for change in d.changes(): return change.version
        say()
        say(asyncio.run(main()))"""
    d = pk.Dict('n/d')
    with Child(scratch, code) as child:
        child.hear()
        assert sleeps(child.pid)
        d['a'] = 1
        assert child.hear() == 1
