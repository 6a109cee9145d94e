"""`Queue` and `LifoQueue` between processes: who waits sleeps and is woken, and no item is lost or taken twice, whoever dies.

In a notebook nobody is killed, and nobody waits for another process."""
import asyncio, os, queue, random, signal, sys, threading, time
from contextlib import ExitStack, suppress

import multiprocessing, numpy as np, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, Fork, blobs, forked, run, sleeps

BOTH = pytest.mark.parametrize('kind', [pk.Queue, pk.LifoQueue])


@pytest.fixture
def q(scratch): return pk.Queue('n/q')

def _drain(q):
    "What is left, in the order in which it is taken"
    items = []
    with suppress(queue.Empty):
        while True: items += q.get_many(1000, block=False)
    return items


# --- waiting

_waits = '''
import asyncio
never_look_again()
kind = sys.argv[2]
q = pk.Queue(f'n/{kind}', create=False)
work = dict(get=q.get, put=lambda: q.put(1), join=q.join, aget=lambda: asyncio.run(q.aget()), aput=lambda: asyncio.run(q.aput(1)))[kind]
for _ in range(4):
    say()
    work()
    say('woken')
'''

def _full(name):
    q = pk.Queue(name, maxsize=1)
    q.put(0)
    return q

def _put_undone(q): q.put(1)

def test_waiting_takes_no_cpu_and_ends_at_once(scratch):
    "No polling: the processes do not run at all until the bell rings, and nothing else wakes them"
    queues = dict(get=pk.Queue('n/get'), put=_full('n/put'), join=pk.Queue('n/join'), aget=pk.Queue('n/aget'), aput=_full('n/aput'))
    release = dict(get=lambda q: q.put(1), put=lambda q: q.get(), join=lambda q: q.task_done(), aget=lambda q: q.put(1), aput=lambda q: q.get())
    queues['join'].put(1)
    with ExitStack() as stack:
        children = {kind: stack.enter_context(Child(scratch, _waits, kind)) for kind in queues}
        for child in children.values(): child.hear()
        assert sleeps(*(child.pid for child in children.values()))
        for kind, child in children.items():
            for i in range(4):
                if i: child.hear()
                if not i or kind != 'join': release[kind](queues[kind])  # later nothing is unfinished: `join` does not wait again
                assert child.hear() == 'woken', kind
            child.wait()


def _took(work, error):
    "Seconds until `work()` raises `error`"
    start = time.monotonic()
    with pytest.raises(error): work()
    return time.monotonic() - start

@BOTH
def test_timeout(scratch, kind, never_look_again, monkeypatch):
    q = kind('n/q', maxsize=1)
    assert _took(lambda: q.get(timeout=0.2), queue.Empty) >= 0.2
    q.put(1)
    assert _took(lambda: q.put(2, timeout=0.2), queue.Full) >= 0.2
    assert _took(lambda: q.join(0.2), pk.WaitTimeout) >= 0.2
    monkeypatch.setattr('parkit.system.Listener.wait', lambda *args: pytest.fail('it waits'))
    for work in (lambda: q.put_nowait(2), lambda: q.put(2, timeout=0), lambda: q.put_many([2], False)):
        with pytest.raises(queue.Full): work()
    assert q.get_nowait() == 1
    for work in (q.get_nowait, lambda: q.get(False), lambda: q.get(timeout=0), lambda: q.get_many(3, False)):
        with pytest.raises(queue.Empty): work()
    for work in (lambda: q.get(timeout=-1), lambda: q.put(1, timeout=-1), lambda: q.get_many(0)):
        with pytest.raises(ValueError): work()


def test_timeout_is_not_put_off_by_others_who_ring(q, never_look_again):
    "Each of their commits wakes the waiter, whose time goes on"
    with Child(q.site, "d = pk.Dict('n/d'); say()\nwhile True: d['a'] = 1; time.sleep(0.001)") as child:
        child.hear()
        assert _took(lambda: q.get(timeout=0.5), queue.Empty) >= 0.5


def test_waiting_inside_a_transaction_is_refused(scratch):
    q = pk.Queue('n/q', maxsize=1)
    with pk.transaction(q):
        for work in (q.get, lambda: q.get(timeout=1), lambda: q.get_many(2), lambda: q.put_many([]) or q.get()):
            with pytest.raises(pk.TransactionError, match='would never end'): work()
        with pytest.raises(queue.Empty): q.get(block=False)
        q.put(1)
        with pytest.raises(pk.TransactionError, match='would never end'): q.put(2)
        with pytest.raises(pk.TransactionError, match='would never end'): q.join()
        with pytest.raises(queue.Full): q.put_nowait(2)
        assert q.get() == 1
    with pk.snapshot(q), pytest.raises(pk.TransactionError): q.put(1)
    assert q.empty()


def test_transaction_takes_and_puts_in_asyncio_what_needs_no_waiting(q):
    q.put(1)
    async def main():
        async with pk.transaction(q):
            assert await q.aget() == 1
            await q.aput(2)
            assert q.get() == 2
            with pytest.raises(pk.TransactionError, match='would never end'): await q.aget()
            await q.aput(3)
        return await q.aget()
    assert asyncio.run(main()) == 3


_interrupted = '''
q = pk.Queue('n/q')
say()
try: q.get()
except KeyboardInterrupt: say(q.get())
'''

def test_trap_11_interrupt_ends_a_waiting_get(q):
    with Child(q.site, _interrupted) as child:
        child.hear()
        assert sleeps(child.pid, seconds=0.2)
        child.signal(signal.SIGINT)
        q.put('kept')
        assert child.hear() == 'kept'
        child.wait()


# --- many at once

_produces = '''
import asyncio
q, me, n = pk.Queue('n/q'), int(sys.argv[2]), int(sys.argv[3])
def produce(name):
    for i in range(n): q.put((name, i))
async def produce_async(name):
    for i in range(n): await q.aput((name, i))
async def both(): await asyncio.gather(produce_async((me, 'a')), produce_async((me, 'b')))
say(); hear()
threads = [threading.Thread(target=produce, args=((me, i),)) for i in range(2)]
for t in threads: t.start()
asyncio.run(both())
for t in threads: t.join()
say()
'''

_consumes = '''
import asyncio
q, n = pk.Queue('n/q'), 0
def consume(out):
    while True:
        try: out.append(q.get())
        except pk.QueueShutDown: return
async def consume_async(out):
    while True:
        try: out.append(await q.aget())
        except pk.QueueShutDown: return
async def both(*outs): await asyncio.gather(*map(consume_async, outs))
outs = [[] for _ in range(4)]
say(); hear()
threads = [threading.Thread(target=consume, args=(out,)) for out in outs[:2]]
for t in threads: t.start()
asyncio.run(both(*outs[2:]))
for t in threads: t.join()
say(outs)
'''

@pytest.mark.parametrize('maxsize', [0, 5])
def test_processes_threads_and_asyncio_tasks_share_the_items(scratch, maxsize):
    "Each item is taken once, and each taker sees the items of one producer in their order"
    q, n = pk.Queue('n/q', maxsize=maxsize), 60
    with ExitStack() as stack:
        producers = [stack.enter_context(Child(scratch, _produces, i, n)) for i in range(2)]
        consumers = [stack.enter_context(Child(scratch, _consumes)) for i in range(2)]
        for child in producers + consumers: child.hear()
        for child in producers + consumers: child.say()
        for child in producers: child.hear()
        q.shutdown()  # what is left is taken first
        outs = [out for child in consumers for out in child.hear()]
    taken = [(tuple(name), i) for out in outs for name, i in out]
    assert sorted(taken, key=str) == sorted((((p, t), i) for p in range(2) for t in (0, 1, 'a', 'b') for i in range(n)), key=str)
    for out in outs:
        for name in {tuple(name) for name, _ in out}:
            numbers = [i for o, i in out if tuple(o) == name]
            assert numbers == sorted(numbers)


def test_waiting_threads_get_one_item_each(q):
    taken, threads = [], []
    for _ in range(8): threads.append(threading.Thread(target=lambda: taken.append(q.get())))
    for t in threads: t.start()
    q.put_many(range(7))
    assert wait_for(lambda: len(taken) == 7)
    q.put(7)
    for t in threads: t.join(60)
    assert sorted(taken) == list(range(8)) and q.empty()


def test_threads_whose_first_use_is_at_once_leave_no_lock_behind(q):
    "One waits and another writes: both open the file of the write lock"
    start, rounds, lock = threading.Barrier(2), 300, q._store.lock
    def listen():
        with suppress(threading.BrokenBarrierError):
            for _ in range(rounds):
                start.wait()
                lock.listen()
                start.wait()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    listener = threading.Thread(target=listen)
    listener.start()
    try:
        for i in range(rounds):
            q.site.close()
            start.wait()
            with pk.transaction(q, timeout=60): q.put(i)
            start.wait()
            assert lock.held_by() is None
    finally:
        start.abort()
        listener.join(60)
        sys.setswitchinterval(interval)


_churns = '''
q = pk.Queue('n/q')
errors = []
def churn():
    try:
        for i in range(10**9):
            q.put(i)
            q.get()
            if stop: return
    except BaseException as e: errors.append(repr(e))
stop, threads = False, [threading.Thread(target=churn) for _ in range(6)]
for t in threads: t.start()
say()
hear()
stop = True
for t in threads: t.join()
say(errors)
'''

def test_namespace_is_compacted_while_threads_of_others_put_and_get(q):
    "They go on with the files that have come in the place of the old ones"
    q.put(1)
    with Child(q.site, _churns) as child:
        child.hear()
        def compacts():
            try: pk.compact('n')
            except pk.TransactionError: return False  # somebody was just reading
            return True
        for done in range(8):
            assert wait_for(compacts)
            seen = q.version
            assert wait_for(lambda: q.version > seen), f'nobody writes any longer, after {done} rounds'
        child.say()
        assert child.hear() == []
        child.wait()


def _is_blocked(thread):
    "Whether a thread sleeps, and has not run for a moment"
    file = f'/proc/self/task/{thread.native_id}/status'
    one = open(file).read()
    time.sleep(0.02)
    return 'State:\tS' in one and one == open(file).read()

@pytest.mark.parametrize('what', ['compact', 'drop'])
def test_thread_that_waits_for_another_while_the_files_are_replaced(q, what):
    "The other finds that out, and lets go of the old ones"
    store, failures = q._store, []
    def put():
        try: q.put('late')
        except pk.ObjectNotFoundError as e: failures.append(e)
    thread = threading.Thread(target=put)
    with store.lock.mutex:  # as if this thread were writing
        thread.start()
        assert wait_for(lambda: _is_blocked(thread))
        run(q.site, "pk.compact('n') if sys.argv[2] == 'compact' else pk.Namespace('n').drop(); say()", what)
        if what == 'compact': store.renew()
        else:
            with pytest.raises(pk.ObjectNotFoundError): store.renew()
    thread.join(60)
    assert not thread.is_alive() and len(failures) == (what == 'drop')
    if what == 'drop': q = pk.Queue('n/q')
    assert store.lock.held_by() is None
    with pk.transaction(q, timeout=60): q.put('more')
    run(q.site, "q = pk.Queue('n/q')\nwith pk.transaction(q, timeout=50): q.put('last')\nsay()")
    assert _drain(q) == ['late']*(what == 'compact') + ['more', 'last']


@BOTH
def test_order_between_processes(scratch, kind):
    q = kind('n/q')
    for i in range(3): run(scratch, f"q = pk.{kind.__name__}('n/q'); q.put({i}); q.put_many([{i} + 0.25, {i} + 0.5]); say()")
    expected = [i + part for i in range(3) for part in (0, 0.25, 0.5)]
    assert q.qsize() == 9
    found = run(scratch, f"q = pk.{kind.__name__}('n/q'); say([q.get(), *q.get_many(3), q.get_nowait()])") + _drain(q)
    assert found == (expected if kind is pk.Queue else expected[::-1])


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_multiprocessing_passes_a_queue(q, method):
    done = pk.Queue('n/done')
    child = multiprocessing.get_context(method).Process(target=_double, args=(q, done))
    child.start()
    q.put_many([1, 2, 3])
    assert [done.get(timeout=60) for _ in range(3)] == [2, 4, 6]
    q.shutdown()
    child.join(60)
    assert child.exitcode == 0
    child.close()

def _double(q, done):
    with suppress(pk.QueueShutDown):
        while True: done.put(2*q.get())


# --- asyncio

async def _until_waiting(loops=50):
    "Let the tasks begin, and come to where they wait"
    for _ in range(loops): await asyncio.sleep(0)

@pytest.mark.parametrize('steps', range(8))
@pytest.mark.parametrize('nested', [False, True])
def test_cancelled_aget_loses_no_item(q, steps, nested):
    "Cancelled at each step between the ring of the bell and the item's arrival"
    async def main():
        getter = asyncio.ensure_future(asyncio.wait_for(q.aget(), 60) if nested else q.aget())
        await _until_waiting()
        q.put('item')
        for _ in range(steps): await asyncio.sleep(0)
        getter.cancel()
        try: return await getter
        except asyncio.CancelledError: return q.get_nowait()
    assert asyncio.run(main()) == 'item' and q.empty()


def test_cancelled_aput_puts_all_or_nothing(scratch):
    q = _full('n/q')
    async def main(steps):
        putter = asyncio.ensure_future(q.aput(steps))
        await _until_waiting()
        assert q.get() == 0
        for _ in range(steps): await asyncio.sleep(0)
        putter.cancel()
        try: await putter
        except asyncio.CancelledError: return False
        return True
    outcomes = []
    for steps in range(8):
        outcomes.append(asyncio.run(main(steps)))
        assert _drain(q) == [steps]*outcomes[-1]
        q.put(0)
    assert not outcomes[0] and not blobs(q._store)


_trickles = '''
import random
q = pk.Queue('n/q')
say(); hear()
for i in range(150):
    q.put(i)
    time.sleep(random.random()*0.004)
'''

def test_aget_that_times_out_loses_no_item(q):
    "`asyncio.wait_for` gives up at any moment, as the items come"
    taken, given_up = [], 0
    async def take(random):
        nonlocal given_up
        while len(taken) < 150:
            try: taken.append(await asyncio.wait_for(q.aget(), random.random()*0.004))
            except asyncio.TimeoutError: given_up += 1
    async def main(): await asyncio.wait_for(asyncio.gather(*(take(random.Random(i)) for i in range(3)), _stop_at_end()), 120)
    async def _stop_at_end():
        while len(taken) < 150: await asyncio.sleep(0.01)
    with Child(q.site, _trickles) as child:
        child.hear()
        child.say()
        asyncio.run(main())
        child.wait()
    assert sorted(taken) == list(range(150)) and given_up > 10 and q.empty()


def test_other_tasks_run_while_one_waits(q):
    async def main():
        getter, ticks = asyncio.ensure_future(q.aget()), 0
        while ticks < 20:
            await asyncio.sleep(0.001)
            ticks += 1
        await q.aput('item')
        return await getter
    assert asyncio.run(main()) == 'item'


# --- killed

def _journal(path, item):
    "Write a line that the system keeps, whatever becomes of this process"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f'{item}\n'.encode())
    os.close(fd)

def _lines(path): return list(map(int, path.read_text().split())) if path.exists() else []

def _take_and_note(path):
    q = pk.Namespace('n')['q']
    while True: _journal(path, q.get())

def _move(path):
    "Take items into a `Dict`, each in a transaction"
    q, d = pk.Namespace('n')['q'], pk.Dict('n/moved')
    while True:
        with pk.transaction(q):
            for item in q.get_many(3, block=False): d[item] = os.getpid()

def _kill_again_and_again(random, times, work, path, progress):
    "Start two processes that do `work` and kill one of them, at some moment after some progress; `times` over. Returns how many were killed"
    workers = []
    try:
        for _ in range(times):
            while len(workers) < 2: workers.append(Fork(work, path))
            seen = progress()
            assert wait_for(lambda: progress() > seen, interval=0.001), 'nobody does anything'
            time.sleep(random.random()*0.004)  # not a wait: any moment will do
            workers.pop(random.randrange(2)).kill()
    finally:
        for worker in workers: worker.kill()
    return times + 1

@BOTH
@pytest.mark.parametrize('work', [_take_and_note, _move])
def test_killed_consumers_lose_one_item_each_at_most(scratch, tmp_path, work, kind):
    "That is, what was on its way to one who dies; nothing at all if it is taken in a transaction"
    q, n, journal = kind('n/q'), 50_000, tmp_path/'journal'
    moved = pk.Dict('n/moved')
    q.put_many(range(n))
    kills = _kill_again_and_again(random.Random(1), 25, work, journal, lambda: n - q.qsize())
    left = _drain(q)  # first: what a writer has committed who was killed before LMDB had noted it is seen from the next write on
    taken = _lines(journal) if work is _take_and_note else [*moved]
    assert len({*taken, *left}) == len(taken) + len(left), 'some item was taken twice'
    assert left == sorted(left, reverse=kind is pk.LifoQueue) and left and len(taken) > kills
    lost = n - len(taken) - len(left)
    assert 0 <= lost <= (kills if work is _take_and_note else 0), f'{lost} items lost in {kills} kills'


def _put_batches(path):
    q = pk.Queue('n/q')
    for i in range(10**6):
        q.put_many([(os.getpid(), i, j) for j in range(7)])
        _journal(path, i)

def test_killed_producers_put_whole_batches(q, tmp_path):
    "A batch that was acknowledged is there; one that was not is there as a whole or not at all"
    journal = tmp_path/'journal'
    kills = _kill_again_and_again(random.Random(2), 15, _put_batches, journal, q.qsize)
    items, batches = _drain(q), len(_lines(journal))
    assert len(items) % 7 == 0 and batches <= len(items)//7 <= batches + kills
    assert [items[i:i + 7] for i in range(0, len(items), 7)] == [[(pid, i, j) for j in range(7)] for pid, i, _ in items[::7]]


_takes_in_transaction = '''
q = pk.Queue(f'{sys.argv[2]}/q')
with pk.transaction(q):
    q.put('new')
    say([q.get(), q.get_many(2)[1][-1].item()])
    hear()
'''

@pytest.mark.parametrize('durable', [True, False])
def test_items_taken_in_a_transaction_that_is_killed_are_still_there(site, durable):
    "In their place, with their blobs"
    pk.Namespace('n', durable=durable)
    q = pk.Queue('n/q', maxsize=5)
    q.put_many(['first', 'second', np.arange(100_000), 'last'])
    with Child(site, _takes_in_transaction, 'n') as child:
        assert child.hear() == ['first', 99_999]
        assert q.qsize() == 4 and len(blobs(q._store)) == 1
        child.kill()
    assert q.get(timeout=5) == 'first' and q.qsize() == 3
    q.put('after')
    second, array, *rest = _drain(q)
    assert second == 'second' and array[-1] == 99_999 and rest == ['last', 'after'] and not blobs(q._store)


@BOTH
def test_items_taken_in_a_transaction_that_is_rolled_back_are_still_there(scratch, kind):
    q = kind('n/q')
    q.put_many([1, np.arange(100_000), 3])
    before, seen = blobs(q._store), q.version
    with pytest.raises(KeyError), pk.transaction(q):
        assert len(q.get_many(2)) == 2 and q.get() is not None and q.empty()
        q.task_done()
        raise KeyError
    with pk.transaction(q):
        with pytest.raises(KeyError), pk.transaction(q):
            q.get()
            raise KeyError
        assert q.qsize() == 3
    assert blobs(q._store) == before and q.version == seen
    items = q.get_many(9)
    assert [type(o) is int and o for o in items] == ([1, False, 3] if kind is pk.Queue else [3, False, 1]) and items[1].sum() > 0
    for _ in range(3): q.task_done()
    q.join(5)


_fills = '''
q = pk.Queue(f'{sys.argv[2]}/q', maxsize=100)
q.put_many(range(50))
q.get_many(10)
q.task_done()
q.put(np.full(10**6, 7))
say(); hear()
'''

@pytest.mark.parametrize('durable', [True, False])
def test_queue_outlives_the_process_that_filled_it(site, durable):
    pk.Namespace('n', durable=durable)
    with Child(site, _fills, 'n') as child:
        child.hear()
        child.kill()
    q = pk.Queue('n/q', create=False)
    assert (q.qsize(), q.maxsize) == (41, 100)
    with pytest.raises(pk.ObjectExistsError): pk.Queue('n/q', maxsize=7)
    site.close()
    *items, array = _drain(q)
    assert items == list(range(10, 50)) and (array == 7).all()
    for _ in range(50): q.task_done()
    q.join(5)
    with pytest.raises(ValueError, match='more often'): q.task_done()


# --- room

_crowds = '''
import queue
q, put = pk.Queue('n/q'), []
def crowd(name):
    for i in range(20):
        try: q.put_nowait((name, i))
        except queue.Full: return
        put.append((name, i))
say(); hear()
threads = [threading.Thread(target=crowd, args=(i,)) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
say(len(put))
'''

def test_maxsize_holds_for_all_processes_together(scratch):
    q = pk.Queue('n/q', maxsize=25)
    with Child(scratch, _crowds) as one, Child(scratch, _crowds) as two:
        for child in (one, two): child.hear()
        for child in (one, two): child.say()
        assert one.hear() + two.hear() == 25 == q.qsize() and q.full()
    _drain(q)
    assert not q.full() and q.maxsize == 25


def test_put_many_waits_for_room_for_all(scratch):
    q = pk.Queue('n/q', maxsize=5)
    q.put_many([0, 1, 2])
    with pytest.raises(queue.Full): q.put_many([3, 4, 5], timeout=0.1)
    with pytest.raises(ValueError, match='never fit'): q.put_many(range(6))
    assert q.qsize() == 3
    with Child(scratch, "q = pk.Queue('n/q'); say(); q.put_many([3, 4, 5]); say(q.qsize())") as child:
        child.hear()
        assert sleeps(child.pid, seconds=0.2) and q.qsize() == 3
        assert q.get() == 0
        assert child.hear() == 5
    assert _drain(q) == [1, 2, 3, 4, 5]


_batches = '''
q = pk.Queue('n/q')
say(); hear()
for i in range(150): q.put_many([(i, j) for j in range(4)])
'''

def test_get_many_takes_whole_batches(q):
    "They are put in one commit, so nobody ever sees a part of one"
    taken = []
    with Child(q.site, _batches) as child:
        child.hear()
        child.say()
        while len(taken) < 600:
            size = q.qsize()
            assert size % 4 == 0
            items = q.get_many(8, timeout=60)
            assert len(items) in (4, 8)
            taken += items
        child.wait()
    assert taken == [(i, j) for i in range(150) for j in range(4)]


def test_put_many_of_what_cannot_be_stored_puts_nothing(q):
    with pytest.raises(pk.EncodeError): q.put_many([1, np.zeros(10**6), threading.Lock(), 2])
    with pytest.raises(ZeroDivisionError): q.put_many(1//i for i in (1, 0))
    q.put_many([])
    assert q.empty() and not blobs(q._store)


# --- join, shut down

_works = '''
q = pk.Queue('n/q')
say()
for _ in range(10):
    q.get()
    hear()
    q.task_done()
'''

def test_join_waits_for_workers_in_other_processes(q):
    q.put_many(range(10))
    joined = threading.Event()
    joiner = threading.Thread(target=lambda: (q.join(60), joined.set()))
    with Child(q.site, _works) as worker:
        worker.hear()
        joiner.start()
        for _ in range(9): worker.say()
        assert wait_for(q.empty)
        assert not joined.wait(0.3)
        worker.say()
        joiner.join(60)
        worker.wait()
    assert joined.is_set()
    q.join(0)


_ended = '''
import asyncio
empty, full = pk.Queue('n/empty'), pk.Queue('n/full', maxsize=1)
work = dict(get=empty.get, put=lambda: full.put(2), aget=lambda: asyncio.run(empty.aget()), aput=lambda: asyncio.run(full.aput(2)), join=full.join)
say()
say(failure(work[sys.argv[2]]))
'''

def _ends(site, code, kinds, end):
    "What processes say who wait, each in its way, when `end()` has been called"
    with ExitStack() as stack:
        children = [stack.enter_context(Child(site, code, kind)) for kind in kinds]
        for child in children: child.hear()
        assert sleeps(*(child.pid for child in children), seconds=0.3)
        end()
        return {kind: child.hear() for kind, child in zip(kinds, children)}

def test_shutdown_wakes_all_who_wait(scratch):
    empty, full = pk.Queue('n/empty'), _full('n/full')
    def end():
        empty.shutdown()
        full.shutdown(immediate=True)
    found = _ends(scratch, _ended, ['get', 'put', 'aget', 'aput', 'join'], end)
    assert found.pop('join') is None and full.empty()
    assert {o['type'] for o in found.values()} == {'QueueShutDown'} and all(o['parkit'] for o in found.values())


def test_shut_down_queue_gives_what_it_holds(q):
    q.put_many([1, 2])
    q.shutdown()
    for put in (lambda: q.put(3), lambda: q.put_nowait(3), lambda: q.put_many([3, 4]), lambda: q.put_many([])):
        with pytest.raises(pk.QueueShutDown): put()
    assert run(q.site, "q = pk.Queue('n/q'); say([q.get(), q.get(timeout=1), failure(q.get)['type'], failure(q.get_nowait)['type']])") \
        == [1, 2, 'QueueShutDown', 'QueueShutDown']
    with pytest.raises(getattr(queue, 'ShutDown', RuntimeError)): q.get()
    q.task_done()
    q.task_done()
    q.join(1)


@pytest.mark.parametrize('what', ['objects', 'namespace'])
def test_drop_wakes_all_who_wait(scratch, what):
    queues = pk.Queue('n/empty'), _full('n/full')
    def end():
        if what == 'namespace': return pk.Namespace('n').drop()
        for q in queues: q.drop()
    found = _ends(scratch, _ended, ['get', 'put', 'aget', 'aput', 'join'], end)
    assert {o['type'] for o in found.values()} == {'ObjectNotFoundError'}
    for q in queues:
        for work in (q.get_nowait, lambda: q.put(1), q.qsize, q.join, q.shutdown, q.task_done):
            with pytest.raises(pk.ObjectNotFoundError): work()


_drops = '''
from contextlib import suppress
say()
while True:
    with suppress(pk.ObjectNotFoundError): pk.Queue('n/q').put(1)
    with suppress(pk.ObjectNotFoundError): pk.Namespace('n').drop()
'''

def test_namespace_is_dropped_and_made_again_while_others_use_it(scratch):
    "They get `ObjectNotFoundError` or what is there, and nothing else"
    gone = 0
    with Child(scratch, _drops) as child:
        child.hear()
        def meets():
            nonlocal gone
            try:
                q = pk.Queue('n/q')
                for _ in range(3):
                    q.put(2)
                    assert q.get() in (1, 2) and q.qsize() >= 0
            except pk.ObjectNotFoundError: gone += 1
            return gone == 15
        assert wait_for(meets, interval=0)
        assert child.process.poll() is None, 'the one who drops has failed'
    pk.Queue('n/q').put(3)
    assert _drain(pk.Queue('n/q'))[-1] == 3


# --- values

class Poison:
    "Cannot be read while the file `path` exists"
    def __init__(self, path): self.path = path
    def __reduce__(self): return _read_poison, (str(self.path),)

def _read_poison(path):
    if os.path.exists(path): raise RuntimeError('poison')
    return 'healed'

@BOTH
def test_item_that_cannot_be_read_is_not_lost(scratch, tmp_path, kind):
    q, path = kind('n/q'), tmp_path/'poison'
    path.touch()
    items = [1, [Poison(path), np.zeros(10**6)], 3]
    q.put_many(items if kind is pk.Queue else items[::-1])
    assert q.get() == 1
    before = q.version
    for work in (q.get, q.get_nowait, lambda: q.get_many(2), lambda: asyncio.run(q.aget()), lambda: q.get(timeout=1)):
        with pytest.raises(pk.DecodeError, match='poison') as caught: work()
        assert type(caught.value.__cause__) is RuntimeError and 'n/q' in str(caught.value)
    assert q.qsize() == 2 and q.version == before and len(blobs(q._store)) == 1
    path.unlink()
    (healed, array), last = q.get_many(2)
    assert healed == 'healed' and len(array) == 10**6 and last == 3 and not blobs(q._store)


_strange = '''
import types
module = types.ModuleType('of_no_file')
sys.modules['of_no_file'] = module
exec("class Strange: pass", module.__dict__)
q = pk.Queue('n/q')
q.put_many([1, module.Strange(), 3])
say(); hear()
say([q.get(timeout=1).__class__.__name__, q.get()])
'''

def test_item_that_only_another_process_can_read_waits_for_that(q):
    with Child(q.site, _strange) as child:
        child.hear()
        assert q.get() == 1
        with pytest.raises(pk.DecodeError, match='of_no_file'): q.get()
        with pytest.raises(pk.DecodeError, match='of_no_file'): q.get_many(2)
        child.say()
        assert child.hear() == ['Strange', 3]


@BOTH
def test_blobs_go_with_their_items(scratch, kind):
    q = kind('n/q')
    q.put_many([np.full(10**6, i, np.uint8) for i in range(6)])
    assert len(blobs(q._store)) == 6
    first, others = q.get(), q.get_many(2)
    first[0] = 99  # it is the taker's own
    assert len(blobs(q._store)) == 3
    assert [int(o[-1]) for o in (first, *others)] == ([0, 1, 2] if kind is pk.Queue else [5, 4, 3])
    q.shutdown(immediate=True)
    assert not blobs(q._store) and first[1] == first[-1]
    q = kind('n/other')
    q.put(np.zeros(10**6))
    q.drop()
    assert not blobs(q._store)


@pytest.mark.parametrize('how', ['at once', 'timeout', 'asyncio'])
def test_blob_of_an_item_that_finds_no_room_goes_at_once(scratch, how):
    "Though the traceback is kept, as a notebook keeps it"
    q, big = pk.Queue('n/q', maxsize=1), np.zeros(10**6)
    q.put(1)
    works = {'at once': lambda: q.put_nowait(big), 'timeout': lambda: q.put(big, timeout=0.1), 'asyncio': lambda: asyncio.run(asyncio.wait_for(q.aput(big), 0.1))}
    with pytest.raises((queue.Full, asyncio.TimeoutError)) as kept: works[how]()
    assert not os.listdir(f'{q._store.path}/new'), kept


def test_snapshot_keeps_what_is_taken_meanwhile(q):
    q.put_many([np.full(10**6, 1, np.uint8), 2])
    with pk.snapshot(q):
        assert run(q.site, "say(int(pk.Queue('n/q').get().sum()))") == 10**6
        assert q.qsize() == 2
    assert q.qsize() == 1 and q.get() == 2
    q.put(np.zeros(10**6))
    q.get()
    assert not blobs(q._store), 'the next blob that goes takes the others along'


def test_child_goes_on_with_the_queue_of_its_parent(q):
    "While a thread of the parent waits: the child has nothing of that"
    taken = []
    waiter = threading.Thread(target=lambda: taken.append(q.get()))
    waiter.start()
    def child():
        q.put('from the child')
        return q.qsize() <= 1
    assert forked(child)
    waiter.join(60)
    assert taken == ['from the child'] and q.empty()
