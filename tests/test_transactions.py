"""Transactions of several processes, threads and asyncio tasks on the same data, some waiting and some interrupted.

A notebook's cells run one after the other: none of them can wait for another, let alone be interrupted meanwhile."""
import asyncio, contextlib, os, random, re, select, signal, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import lmdb, numpy as np, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, blobs, forked, run, sleeps, waits_for_a_lock
from parkit.storage import Store, WriteTxn
from parkit.system import Listener


_holder = '''
d = pk.Dict('n/d')
with pk.transaction(d):
    d['held'] = os.getpid()
    say()
    hear()
say()
'''

@contextmanager
def _held(site, code=_holder):
    "Another process is in a transaction on the namespace `n`"
    with Child(site, code) as holder:
        holder.hear()
        yield holder


# --- waiting for the lock

_interrupted = '''
d = pk.Dict('n/d')
say()
try: d['mine'] = 1
except KeyboardInterrupt: say('interrupted')
hear()
d['mine'] = 2
say(d['mine'])
'''

def test_trap_11_interrupt_ends_the_wait_for_another_process(d):
    with _held(d.site) as holder, Child(d.site, _interrupted) as waiter:
        waiter.hear()
        assert wait_for(lambda: waits_for_a_lock(waiter.pid))
        waiter.signal(signal.SIGINT)
        assert waiter.hear() == 'interrupted' and 'held' not in d, 'while the lock is still held'
        holder.say()
        holder.hear()
        waiter.say()
        assert waiter.hear() == 2
        holder.wait()
        waiter.wait()
    assert d == {'held': holder.pid, 'mine': 2}


_interrupted_by_thread = '''
d, inside, end = pk.Dict('n/d'), threading.Event(), threading.Event()
def hold():
    with pk.transaction(d):
        d['held'] = 1
        inside.set()
        end.wait()
thread = threading.Thread(target=hold)
thread.start()
inside.wait()
say(threading.get_native_id())
try: d['mine'] = 1
except KeyboardInterrupt: say('held' in d)
end.set()
thread.join()
d['mine'] = 2
say(dict(d))
'''

def test_trap_11_interrupt_ends_the_wait_for_another_thread(d):
    with Child(d.site, _interrupted_by_thread) as child:
        thread = child.hear()
        assert wait_for(lambda: 'futex' in open(f'/proc/{child.pid}/task/{thread}/wchan').read())
        child.signal(signal.SIGINT)
        assert child.hear() is False
        assert child.hear() == {'held': 1, 'mine': 2}


_interrupted_blobs = '''
d = pk.Dict('safe/d')
for n in range(100):
    try:
        say()
        for i in range(10**9): d['a'] = np.full(2**18, i % 200, np.uint8)
    except KeyboardInterrupt:
        array = d['a']
        say(bool((array == array[0]).all()))
'''

def test_trap_11_interrupt_amid_a_commit_keeps_what_was_committed(site):
    "A durable commit is mostly a wait for the disk, so that is where most interrupts come"
    d, moments = pk.Dict('safe/d'), random.Random(0)
    d['a'] = np.zeros(2**18, np.uint8)
    with Child(site, _interrupted_blobs) as writer:
        for _ in range(100):
            writer.hear()
            time.sleep(moments.random()/100)  # not a wait: any moment will do
            assert writer.strike() is True
        writer.wait()
    with pk.transaction(d, timeout=0): d['b'] = 1
    assert d['a'][0] == d['a'][-1]


def test_timeout_names_the_process_that_holds_the_lock(d):
    with _held(d.site) as holder:
        start = time.monotonic()
        with pytest.raises(pk.TransactionTimeout, match=f"'n'.*process {holder.pid} has held it since"):
            with pk.transaction(d, timeout=0.2): pass
        assert time.monotonic() - start >= 0.2
        with pytest.raises(pk.TransactionTimeout, match=str(holder.pid)), pk.transaction('n', timeout=0): pass
        holder.say()
        holder.hear()
        with pk.transaction(d, timeout=0): d['mine'] = 1


def test_timeout_says_since_when_the_lock_is_held(d):
    "Not since when its holder has waited for it"
    with _held(d.site) as first, Child(d.site, _holder) as second:
        assert wait_for(lambda: waits_for_a_lock(second.pid))
        time.sleep(1)
        released = time.time()
        first.say()
        second.hear()
        with pytest.raises(pk.TransactionTimeout) as error, pk.transaction(d, timeout=0): pass
        shown = float(re.search(r'\(([\d.]+) s\)', str(error.value))[1])
        assert shown <= time.time() - released + 0.1, error.value


def test_timeout_says_when_the_holder_is_a_thread_of_this_process(d):
    with ThreadPoolExecutor(1) as pool, pk.transaction(d):
        def write():
            with pk.transaction(d, timeout=0.05): pass
        with pytest.raises(pk.TransactionTimeout, match='another thread of this process'): pool.submit(write).result()


_opposite = '''
a, b = sys.argv[2:]
with pk.transaction(a):
    say()
    hear()
    try:
        with pk.transaction(b, timeout=0.5): pass
        say('entered')
    except pk.TransactionTimeout as e: say(str(e))
    hear()
'''

def test_trap_10_two_namespaces_locked_in_opposite_order(site):
    for name in 'xy': pk.Namespace(name, durable=False)
    with Child(site, _opposite, 'x', 'y') as first, Child(site, _opposite, 'y', 'x') as second:
        for child in (first, second): child.hear()
        for child in (first, second): child.say()
        for mine, wanted, child, other in (('x', 'y', first, second), ('y', 'x', second, first)):
            message = child.hear()
            assert f"write lock of '{wanted}': process {other.pid}" in message, message
            assert f"holds '{mine}'" in message and 'same order' in message


def test_trap_12_new_process_opens_and_reads_while_a_transaction_is_open(d):
    code = '''
        d = pk.Dict('n/d')
        with pk.snapshot(d): found = dict(d)
        listed = [o.path for o in pk.Namespace('n')]
        missing = failure(lambda: pk.Dict('n/other', create=False))['type']
        say([found, pk.wait_until(lambda: d.get('a'), timeout=50), listed, missing])'''
    d['a'] = 1
    with pk.transaction(d):
        d['b'] = 2
        assert run(d.site, code) == [{'a': 1}, 1, ['n/d'], 'ObjectNotFoundError']


def test_writers_of_different_namespaces_do_not_wait_for_each_other(d):
    with pk.transaction(d):
        assert run(d.site, "d = pk.Dict('m/d'); d['a'] = 1; say(d['a'])") == 1


# --- updates from several processes

_plain_update = '''
d = pk.Dict('n/d')
n = d['n']  # as `d['n'] += 1` does it
say()
hear()
d['n'] = n + 1
say()
'''

def test_trap_09_update_is_lost_without_a_transaction(d):
    d['n'] = 0
    with Child(d.site, _plain_update) as child:
        child.hear()
        d['n'] += 1
        child.say()
        child.hear()
    assert d['n'] == 1, 'two were made: this is what `edit` and `transaction` are for'


_updates = dict(
    edit='''
        with d.edit('n') as n: n[0] += 1''',
    transaction='''
        with pk.transaction(d): d['n'] = [d['n'][0] + 1]''',
    nested='''
        with pk.transaction(d):
            with d.edit('n') as n: n[0] += 1''')

@pytest.mark.parametrize('kind', _updates)
def test_trap_09_no_update_is_lost_in_a_transaction(d, kind):
    d['n'] = [0]
    code = "d = pk.Dict('n/d')\nfor i in range(300):" + _updates[kind].replace('\n        ', '\n    ') + '\nsay()'
    children = [Child(d.site, code) for _ in range(4)]
    try:
        for child in children: child.hear()
    finally:
        for child in children: child.__exit__()
    assert d['n'] == [1200]


_transfers = '''
import random
d, moves, big = pk.Dict('n/d'), random.Random(int(sys.argv[2])), np.zeros(2**18, np.uint8)
say()
while True:
    with pk.transaction(d):
        a, b = moves.randrange(20), moves.randrange(20)
        d[a] -= 1
        d['big', a] = big
        d[b] += 1
'''

def test_sum_is_kept_though_writers_are_killed(d):
    "At random moments; whoever looks sees whole transactions only"
    d.update((i, 100) for i in range(20))
    moments = random.Random(1)
    def total():
        with pk.snapshot(d): return sum(d[i] for i in range(20))
    for seed in range(6):
        with Child(d.site, _transfers, seed) as first, Child(d.site, _transfers, seed + 100) as second:
            for child in (first, second): child.hear()
            deadline = time.monotonic() + 0.05 + moments.random()/10
            while time.monotonic() < deadline: assert total() == 2000
            first.kill()
            second.kill()
        with pk.transaction(d, timeout=60): assert total() == 2000


# --- what a transaction promises

def test_trap_07_inner_transaction_that_raises_is_undone_alone(d):
    d['list'] = [1]
    with pk.transaction(d):
        d['outer'] = 1
        with pytest.raises(ZeroDivisionError), pk.transaction(d):
            d['inner'] = np.ones(2**18)
            with d.edit('list') as v: v.append(2)
            with pk.transaction(d): del d['outer']
            1/0
        assert d == {'outer': 1, 'list': [1]}
        d['after'] = 2
    assert run(d.site, "say(dict(pk.Dict('n/d')))") == {'outer': 1, 'list': [1], 'after': 2}


def test_trap_08_iteration_goes_on_among_writes_of_values(d):
    d.update((i, i) for i in range(4))
    with pk.transaction(d):
        seen = []
        for k, v in d.items():
            seen.append((k, v))
            d[k], d[3] = -k, 'new'
            d[k] = -k
            pk.Dict('n/other')[k] = 1  # what happens to other objects is no matter
            with contextlib.suppress(ZeroDivisionError), pk.transaction(d):
                d[99] = 1
                1/0
        assert seen == [(0, 0), (1, 1), (2, 2), (3, 'new')] and d == {0: 0, 1: -1, 2: -2, 3: -3}


_iterations = {'keys': iter, 'values': lambda d: iter(d.values()), 'items': lambda d: iter(d.items()), 'reversed': reversed,
               'range': lambda d: d.range(0, 1000), 'range back': lambda d: d.range(0, 1000, reverse=True)}
_changes = {'insert ahead': lambda d, n: d.__setitem__(n + 100, 0), 'insert behind': lambda d, n: d.__setitem__(-1 - n, 0),
            'delete': lambda d, n: d.pop(2), 'clear': lambda d, n: d.clear(), 'update': lambda d, n: d.update({n + 100: 1}),
            'replace one by another': lambda d, n: (d.popitem(), d.__setitem__(500 - n, 0)) if 0 in d and len(d) == 4 else None,
            'replace the first by another': lambda d, n: (d.pop(d.first()[0]), d.__setitem__(100 + n, 0))}

@pytest.mark.parametrize('iterate', _iterations)
@pytest.mark.parametrize('change', _changes)
def test_trap_08_iteration_ends_where_entries_come_or_go(d, iterate, change):
    "As with a `dict`: a loop that adds to what it goes over raises, and never goes on for ever"
    d.update((i, i) for i in range(4))
    with pytest.raises(RuntimeError, match='changed size during iteration'), pk.transaction(d):
        for n, _ in enumerate(_iterations[iterate](d)):
            assert n < 5, 'it goes on'
            _changes[change](d, n)
        assert 'replace' in change and len(d) == 4, 'a dict does not see it either if as many come as go, and none ahead'
        raise RuntimeError('changed size during iteration')
    assert list(d) == [0, 1, 2, 3]

@pytest.mark.parametrize('iterate', [iter, reversed, lambda a: a.items()], ids='iter reversed items'.split())
@pytest.mark.parametrize('change', [lambda a: a.append(0), lambda a: a.popleft(), lambda a: a.pop(), lambda a: a.clear()],
                         ids='append popleft pop clear'.split())
@pytest.mark.parametrize('maxsize', [None, 4])
def test_trap_08_iteration_over_an_array_ends_where_items_come_or_go(scratch, iterate, change, maxsize):
    a = pk.Array('n/a', maxsize=maxsize)
    a.extend(range(4))
    with pytest.raises(RuntimeError, match='changed size during iteration'), pk.transaction(a):
        for n, _ in enumerate(iterate(a)):
            assert n < 5, 'it goes on'
            change(a)
    with pk.transaction(a):
        for i, v in a.items(): a[i] = -v
    assert list(a) == [0, -1, -2, -3]
    for v in a: a.append(v)  # outside, it goes over what there was when it began
    assert list(a)[-4:] == [0, -1, -2, -3]

def test_trap_08_iteration_in_an_iteration(d):
    d.update((i, i) for i in range(3))
    with pk.transaction(d):
        assert [(a, b) for a in d for b in d.range(a)] == [(a, (b, b)) for a in range(3) for b in range(a, 3)]
        outer = iter(d)
        assert next(outer) == 0
        for k in list(d): d[k + 10] = 1
        with pytest.raises(RuntimeError, match='changed size'): next(outer)
        assert len(list(d)) == 6


def test_trap_08_iteration_does_not_see_writes_of_others(d):
    "An iteration outside a transaction goes on over what there was when it began"
    d.update((i, i) for i in range(5))
    seen = []
    for k, v in d.items():
        run(d.site, "d = pk.Dict('n/d'); d.clear(); d[99] = 99; say()") if k == 0 else None
        seen.append((k, v))
    assert seen == [(i, i) for i in range(5)] and d == {99: 99}


def test_trap_27_two_iterators_are_independent(d):
    d.update((i, i) for i in range(4))
    for block in (pk.snapshot, pk.transaction):
        with block(d):
            first, second = iter(d), reversed(d)
            assert (next(first), next(second), next(first)) == (0, 3, 1)
            first.close()
            assert list(second) == [2, 1, 0]
    first, second = iter(d), iter(d.items())
    assert (next(first), next(second)) == (0, (0, 0))
    first.close()
    assert [k for k, _ in second] == [1, 2, 3]


def test_trap_19_object_whose_drop_was_rolled_back_is_as_before(d):
    d['a'] = large = np.arange(100_000)
    with pytest.raises(ZeroDivisionError), pk.transaction(d):
        d.drop()
        assert not d.exists
        1/0
    d['b'] = 2
    assert (d['a'] == large).all() and d.exists
    assert run(d.site, "d = pk.Dict('n/d', create=False); say([int(d['a'][-1]), d['b']])") == [99_999, 2]


def test_object_made_in_a_transaction_that_rolled_back_is_gone(d):
    with pytest.raises(ZeroDivisionError), pk.transaction('n'):
        new = pk.Dict('n/new')
        new['a'] = np.ones(100_000)
        1/0
    assert not new.exists
    with pytest.raises(pk.ObjectNotFoundError): new['a']
    assert [*pk.Namespace('n').names()] == ['d']


def test_trap_03_stale_reference_does_not_reach_the_new_object(d):
    stale = pk.Dict('n/d')
    d['a'] = 1
    run(d.site, "pk.Dict('n/d').drop(); pk.Dict('n/d')['a'] = 2; say()")
    for use in (lambda: stale['a'], lambda: stale.get('a'), lambda: 'a' in stale,
                lambda: len(stale), lambda: list(stale),
                lambda: stale.update(a=3), stale.clear, stale.drop, lambda: stale.version, lambda: stale.metadata):
        with pytest.raises(pk.ObjectNotFoundError): use()
    assert not stale.exists and pk.Dict('n/d') == {'a': 2}


class Counter(pk.Dict):
    "Has an attribute with an initial value"
    count = 0

def test_trap_05_attribute_with_a_class_default_is_shared(d):
    c = Counter('n/c')
    c.count += 1
    run(d.site, "from test_transactions import Counter; c = Counter('n/c'); c.count += 10; say()")
    assert c.count == 11 and Counter('n/other').count == 0 == Counter.count


def test_trap_05_name_of_a_method_is_refused(d):
    for name in ('get', 'drop', 'path', 'edit'):
        with pytest.raises(pk.AttributeNameError, match=f'{name!r} is a method or property'): setattr(d, name, 5)
    assert d.get('a', 6) == 6


# --- threads and asyncio

def test_trap_28_new_thread_uses_the_site_of_the_process(d):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: pk.Dict('n/d').site).result() is d.site


def test_thread_is_outside_the_transaction_of_another(d):
    d['a'] = 1
    with ThreadPoolExecutor(1) as pool, pk.transaction(d):
        d['a'] = 2
        assert pool.submit(lambda: (d['a'], d.is_transaction)).result() == (1, False)
        assert (d['a'], d.is_transaction) == (2, True)


def test_asyncio_tasks_take_turns(d):
    "Each in a transaction of its own across an `await`"
    d['n'] = 0
    async def add():
        async with pk.transaction(d):
            n = d['n']
            await asyncio.sleep(0)
            d['n'] = n + 1
    async def main(): await asyncio.gather(*(add() for _ in range(50)))
    asyncio.run(main())
    assert d['n'] == 50


def test_asyncio_task_that_would_wait_for_another_of_its_thread(d):
    "Waiting would hold up the very task it waits for"
    d['a'] = 0
    async def inner():
        assert d['a'] == 0 and not d.is_transaction
        with pytest.raises(pk.TransactionError, match='async with'): d['a'] = 1
    async def main():
        with pk.transaction(d):
            d['a'] = 2
            await asyncio.create_task(inner())
    asyncio.run(main())
    assert d['a'] == 2


def test_cancelled_asyncio_task_rolls_back_and_frees_the_lock(d):
    async def hold(inside):
        async with pk.transaction(d):
            d['a'] = 1
            inside.set()
            await asyncio.sleep(60)
    async def main():
        inside = asyncio.Event()
        holder = asyncio.create_task(hold(inside))
        await inside.wait()
        waiter = asyncio.create_task(hold(asyncio.Event()))
        await asyncio.sleep(0)
        for task in (waiter, holder): task.cancel()
        ends = await asyncio.gather(waiter, holder, return_exceptions=True)
        assert [type(o) for o in ends] == [asyncio.CancelledError]*2
    asyncio.run(main())
    with pk.transaction(d, timeout=0): assert 'a' not in d


# --- waking up

_pong = '''
never_look_again()
d = pk.Dict('n/d')
say()
for i in range(500):
    pk.wait_until(lambda: d.get('ping') == i)
    d['pong'] = i
say()
'''

def test_no_wake_up_is_lost(d, never_look_again):
    with Child(d.site, _pong) as child:
        child.hear()
        for i in range(500):
            d['ping'] = i
            pk.wait_until(lambda: d.get('pong') == i, 60)
        child.hear()


class _Paused:
    "LMDB's transaction, with something that happens just before its commit"
    def __init__(self, raw, before): self.raw, self.before = raw, before
    def __getattr__(self, name): return getattr(self.raw, name)
    def commit(self):
        self.before()
        self.raw.commit()

_looks = '''
never_look_again()
d = pk.Dict('n/d')
def look():
    say(d.get('k'))
    return d.get('k')
pk.wait_until(look)
'''

@pytest.mark.parametrize('durable', [False, True])
def test_bell_is_rung_when_the_commit_can_be_seen(site, monkeypatch, durable):
    "Who were woken before would look in vain, and sleep on"
    pk.Namespace('n', durable=durable)
    d = pk.Dict('n/d')
    with Child(site, _looks) as child:
        assert [child.hear(), child.hear()] == [None, None], 'it looks, listens, and looks again'
        assert sleeps(child.pid, seconds=0.2)
        def write(self, *args, write=Store.write):
            txn = write(self, *args)
            txn.raw = _Paused(txn.raw, lambda: select.select([child.process.stdout], [], [], 1))  # long enough for one who is woken to look
            return txn
        with monkeypatch.context() as m:
            m.setattr(Store, 'write', write)
            d['k'] = 1
        assert child.hear() == 1, 'it has been woken too early'
        child.wait()


@pytest.mark.parametrize('wait', [pk.wait_until, lambda *args: asyncio.run(pk.transactions.wait_until_async(*args))])
def test_change_between_looking_and_listening_is_seen(d, monkeypatch, wait):
    "Nobody rings for one who does not listen yet: so one looks again, then sleeps"
    def add(self, store, add=Listener.add):
        monkeypatch.setattr(Listener, 'add', add)
        run(d.site, "pk.Dict('n/d')['k'] = 1; say()")
        return add(self, store)
    def sleep(*_): pytest.fail('it sleeps, though it has come true')
    for name, work in dict(add=add, wait=sleep, wait_async=sleep).items(): monkeypatch.setattr(Listener, name, work)
    assert wait(lambda: d.get('k')) == 1


def test_wait_until_wakes_up_for_a_namespace_made_meanwhile(site):
    code = "never_look_again(); later = pk.Namespace('later'); say(); say(pk.wait_until(lambda: 'd' in later and later['d'].get('a')))"
    with Child(site, code) as child:
        child.hear()
        pk.Dict('later/d')['a'] = 5
        assert child.hear() == 5


def test_wait_until_is_interrupted(d):
    code = "say()\ntry: pk.wait_until(lambda: len(pk.Dict('n/d')))\nexcept KeyboardInterrupt: say('interrupted')"
    with Child(d.site, code) as child:
        child.hear()
        assert wait_for(lambda: 'poll' in open(f'/proc/{child.pid}/wchan').read())
        child.signal(signal.SIGINT)
        assert child.hear() == 'interrupted'
        child.wait()


def test_nested_transaction_that_lmdb_refuses_leaves_no_file(site, monkeypatch):
    "It refuses where memory runs out, say; the outer transaction goes on"
    d = pk.Dict('n/d')
    def refuse(self, end, end_inner=WriteTxn._end_inner):
        def fail(raw=self.raw):
            raw.abort()
            raise lmdb.MemoryError('no memory')
        end_inner(self, fail)
    with pk.transaction(d):
        d['a'] = 1
        with monkeypatch.context() as m, pytest.raises(pk.SiteError):
            m.setattr(WriteTxn, '_end_inner', refuse)
            with pk.transaction(d): d['big'] = np.zeros(10**6)
    assert dict(d) == {'a': 1} and not blobs(d._store) and not os.listdir(f'{d._store.path}/new')


def test_child_forked_in_a_transaction_may_wait_for_others(site):
    d, event = pk.Dict('n/d'), pk.Event('m/event')
    event.set()
    def wait(): return event.wait(50) and pk.wait_until(lambda: pk.Event('m/event').is_set(), 50)
    with pk.transaction(d):
        with pytest.raises(pk.TransactionError, match='waiting inside'): pk.wait_until(lambda: True)
        assert forked(wait)
