"Cached tasks: run once by whoever calls, whatever dies on the way; and why a call misses"
import asyncio, functools, os, signal, threading
from typing import NamedTuple

import numpy as np, pytest
from conftest import wait_for
from helpers import Child, run
from test_scheduling import reboot

import parkit as pk
from parkit.caching import _Results, _results, digest


def runs(): return len(pk.Array('runs'))

def slow_task():
    "A task that says that it has begun, and ends when it may"
    @pk.task(cache=True)
    def slow(x, y=2, **more):
        pk.Array('runs').append(os.getpid())
        pk.wait_until(lambda: 'go' in pk.Dict('d'), 60)
        return x*y
    return slow

def let_go(): pk.Dict('d')['go'] = True


def test_two_callers_get_one_trace(site):
    slow = slow_task()
    first, second = slow(1), slow(x=1, y=2)
    other = slow(1, 3)
    assert first == second != other
    let_go()
    assert first.result == 2 and other.result == 3 and runs() == 2
    assert slow(1) == first and slow(1, sync=True) == 2 and slow.options(priority=3)(1) == first and runs() == 2
    assert len(slow.cache) == 2 and not pk.check(site)

@pytest.mark.parametrize('sync', [False, True])
def test_many_processes_call_at_once(site, sync):
    pk.Dict('d')
    slow_task()
    code = '''
        say()
        hear()
        slow = pk.bind_task('slow')
        say(slow(7, sync=True) if sys.argv[2] == 'True' else slow(7).result)
    '''
    children = [Child(site, code, sync) for _ in range(4)]
    try:
        for c in children: c.hear()
        for c in children: c.say()
        assert wait_for(lambda: runs() >= 1)
        let_go()
        assert [c.hear() for c in children] == [14]*4
        for c in children: c.wait()
    finally:
        for c in children: c.__exit__()
    assert runs() == 1

def test_one_that_runs_here_and_one_in_the_background(site):
    slow = slow_task()
    with Child(site, '''
        say()
        say(pk.bind_task('slow')(7, sync=True))
    ''') as child:
        child.hear()
        assert wait_for(lambda: runs() == 1)
        trace = slow(7)
        let_go()
        assert trace.result == 14 == child.hear()
        child.wait()
    assert runs() == 1

def test_who_computes_is_killed_and_who_waits_goes_on(site):
    slow = slow_task()
    with Child(site, "pk.bind_task('slow')(7, sync=True)") as child:
        assert wait_for(lambda: runs() == 1)
        assert slow.cache.explain(7) == 'it is being computed'
        found = []
        waiting = threading.Thread(target=lambda: found.append(slow(7, sync=True)))
        waiting.start()
        child.kill()
        assert wait_for(lambda: runs() == 2)  # while the other one has not ended
        let_go()
        waiting.join(60)
    assert found == [14] and runs() == 2 and len(slow.cache) == 1

def test_a_worker_that_is_killed_leaves_nothing_in_the_way(site):
    slow = slow_task()
    trace = slow(7)
    assert wait_for(lambda: runs() == 1)
    os.kill(trace.pid, signal.SIGKILL)
    with pytest.raises(pk.WorkerCrashedError): trace.result
    assert slow.cache.explain(7) == 'the process that computed it has died'
    let_go()
    again = slow(7)
    assert again != trace and again.result == 14 and runs() == 2

def test_a_queued_call_that_is_cancelled(site):
    slow = slow_task()
    pk.Pool().resize(1)
    slow(0)
    trace = slow(7)
    assert trace.cancel()
    again = slow(7)
    assert again != trace
    let_go()
    assert again.result == 14

def test_two_threads(site):
    slow = slow_task()
    found = []
    threads = [threading.Thread(target=lambda: found.append(slow(3, sync=True))) for _ in range(4)]
    for t in threads: t.start()
    assert wait_for(lambda: runs() == 1)
    let_go()
    for t in threads: t.join(60)
    assert found == [6]*4 and runs() == 1

def test_a_failed_run_is_not_kept(site):
    @pk.task(cache=True)
    def share(x):
        pk.Array('runs').append(x)
        return 1/x
    for _ in range(2):
        with pytest.raises(ZeroDivisionError): share(0, sync=True)
    with pytest.raises(ZeroDivisionError): share(0).result
    assert share.cache.explain(0) == 'the last call with these arguments failed: ZeroDivisionError: division by zero'
    assert runs() == 3 and len(share.cache) == 0

def test_what_cannot_be_kept_is_returned(site):
    @pk.task(cache=True)
    def lock(): return threading.Lock()
    assert lock(sync=True) and len(lock.cache) == 0 and 'could not be stored' in lock.cache.explain()

def test_what_cannot_be_told_from_others(site):
    slow = slow_task()
    with pytest.raises(pk.EncodeError, match="the argument 'x' of task/slow cannot be told"): slow(threading.Lock(), sync=True)
    assert isinstance(slow(threading.Lock()).error, pk.EncodeError)
    with pytest.raises(TypeError, match='missing'): slow(sync=True)


# --- what is the same, and why it is not

def test_the_same_arguments_spelled_differently(site):
    let_go()
    slow = slow_task()
    slow(1, 2, a=1, b=2, sync=True)
    slow(1, b=2, a=1, sync=True)
    slow(y=2, x=1, b=2, a=1, sync=True)
    assert runs() == 1
    array = np.arange(6).reshape(2, 3)
    slow(array, sync=True)
    slow(np.asfortranarray(array), sync=True)
    slow(np.arange(12)[::2].reshape(2, 3)//2, sync=True)
    assert runs() == 2

def test_another_process_computes_the_same_digest(site):
    code = "from parkit.caching import digest\nsay(digest(({'b', 'a', 'c'}, dict(x=1, y=np.arange(3)), lambda n: n + 1)).hex())"
    assert len({run(site, code, PYTHONHASHSEED=str(n)) for n in range(3)}) == 1

def test_pandas_and_pyarrow_by_their_content():
    pd, pa = pytest.importorskip('pandas'), pytest.importorskip('pyarrow')
    def frame(): return pd.DataFrame(dict(a=[1, 2], b=['x', 'y'], c=pd.date_range('2026-01-01', periods=2, tz='Europe/Berlin')), index=list('ab'))
    one, two = frame(), frame()
    two.shape, two.columns, two['a'].sum(), two.loc['a']  # what a look leaves behind does not count
    assert digest(one) == digest(two) != digest(frame().assign(a=[1, 3])) and digest(one) != digest(frame().rename(columns=dict(a='z')))
    assert digest(pa.table(dict(a=[1, 2]))) == digest(pa.table(dict(a=[1, 2]))) != digest(pa.table(dict(a=[1, 3])))

@pytest.mark.parametrize('member', ['@property\n    def y(self): return {}', '@staticmethod\n    def y(): return {}', '@classmethod\n    def y(cls): return {}',
                                    '@cached_property\n    def y(self): return {}'], ids=lambda o: o.split()[0][1:])
def test_class_of_the_notebook_counts_with_all_its_members(member):
    def box(n):
        names = dict(__name__='__main__', cached_property=functools.cached_property)
        exec(f'class Box:\n    {member.format(n)}', names)
        return names['Box']()
    assert digest(box(1)) == digest(box(1)) != digest(box(2))

def test_named_tuple_of_the_notebook():
    names = dict(__name__='__main__', NamedTuple=NamedTuple)
    exec('class Point(NamedTuple):\n    x: int\n    y: int', names)
    assert digest(names['Point'](1, 2)) == digest(names['Point'](1, 2)) != digest(names['Point'](1, 3))

def test_explain(site):
    let_go()
    slow = slow_task()
    d = pk.Dict('argument')
    assert slow.cache.explain(1) == 'task/slow has never been called, or its cache was cleared'
    slow(1, sync=True)
    assert slow.cache.explain(1) == 'the result is there'
    assert slow.cache.explain(1, 5) == "'y' differs from that of the nearest call that is known"
    assert slow.cache.explain(1, z=1) == "'more' differs from that of the nearest call that is known"
    @pk.task(cache=True)
    def size(d): return len(d)
    size(d, sync=True)
    d['x'] = 1
    assert size.cache.explain(d).startswith("'d' has changed: it was at version 0, and is at ")
    size([d], sync=True)
    d['x'] = 2
    assert size.cache.explain([d]) == "an object in 'd' has changed"
    before = size.version
    @pk.task(cache=True)
    def size(d): return len(d) + 1
    assert size.cache.explain([d]) == f"the code has changed from version {before} to {size.version}; an object in 'd' has changed"
    @pk.task
    def plain(): pass
    assert 'is not cached' in plain.cache.explain()

def test_another_version_of_the_code_has_results_of_its_own(site):
    def define(n):
        if n == 1:
            @pk.task(cache=True)
            def f(x): pk.Array('runs').append(1); return x + 1
        else:
            @pk.task(cache=True)
            def f(x): pk.Array('runs').append(2); return x + 2
        return f
    assert [define(n)(1, sync=True) for n in (1, 2, 1, 2)] == [2, 3, 2, 3] and runs() == 2
    assert pk.bind_task('f').cache.clear() == 2 and define(1)(1, sync=True) == 2 and runs() == 3

def test_a_redefinition_without_cache(site):
    let_go()
    slow = slow_task()
    slow(1, sync=True)
    @pk.task
    def slow(x): pk.Array('runs').append(x); return x
    assert [slow(1, sync=True) for _ in range(2)] == [1, 1] and runs() == 3


# --- transactions, reboots, the rest

def test_nothing_is_kept_of_what_is_undone(site):
    @pk.task(cache=True, default_sync=True)
    def names(d): return list(d)
    d = pk.Dict('d')
    with pytest.raises(LookupError):
        with pk.transaction(d):
            d['x'] = 1
            undone = d.version
            assert names(d) == ['x']
            raise LookupError
    d['y'] = 1
    assert d.version == undone and names(d) == ['y']
    with pk.transaction(d):
        assert names(d) == ['y'] and len(names.cache) == 1  # what is known is found there
        d['z'] = 1
        trace = names(d, sync=False)
    assert trace.result == ['y', 'z'] and len(names.cache) == 1  # made in a transaction, it is not kept

def test_results_survive_a_reboot(site):
    let_go()
    slow = slow_task()
    assert slow(7).result == 14
    code = "slow = pk.bind_task('slow')\nsay([slow.cache.explain(7), slow(7, sync=True), slow(7).status, slow(7).result, slow(7) == slow(7), len(pk.Array('runs'))])"
    assert reboot(site, code) == ['the result is there', 14, 'finished', 14, True, 1]

def test_cleared_while_it_runs(site):
    slow = slow_task()
    trace = slow(7)
    assert wait_for(lambda: runs() == 1)
    slow.cache.clear()
    let_go()
    assert trace.result == 14 and len(slow.cache) == 0

@pytest.mark.parametrize('how', ['here', 'in a transaction', 'background'])
def test_cleared_just_before_it_is_read(site, how, monkeypatch):
    @pk.task(cache=True)
    def twice(x):
        pk.Array('runs').append(x)
        return 2*x
    twice(4, sync=True)
    def load(self, key, load=_Results.load):
        monkeypatch.undo()
        twice.cache.clear()
        return load(self, key)
    monkeypatch.setattr(_Results, 'load', load)
    if how == 'in a transaction':
        with pk.transaction('n'): assert twice(4, sync=True) == 8
    else: assert twice(4, sync=True) == 8 if how == 'here' else twice(4).result == 8
    assert runs() == 2

def test_what_finds_no_room_is_returned(site, monkeypatch):
    "And a task's own error is what is raised"
    @pk.task(cache=True, default_sync=True)
    def share(x): return 1/x
    def full(*args): raise pk.StorageFullError(28, 'no room')
    monkeypatch.setattr(_Results, '_finish', full)
    monkeypatch.setattr(_Results, '_fail', full)
    assert share(4) == 0.25 and len(share.cache) == 0
    with pytest.raises(ZeroDivisionError): share(0)
    monkeypatch.undo()
    assert share(4) == 0.25 and len(share.cache) == 1

def test_a_dropped_task_leaves_nothing(site):
    let_go()
    slow = slow_task()
    slow(np.ones(100_000), sync=True)
    uuid = slow._uuid
    slow.drop()
    assert _results(site).of(uuid) == [] and not pk.check(site)

def test_a_function_that_calls_itself(site):
    @pk.task(cache=True, default_sync=True)
    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
    assert fib(30) == 832040 and len(fib.cache) == 31

def test_big_results_are_mapped(site):
    @pk.task(cache=True)
    def ones(n): return np.ones(n)
    assert ones(300_000).result.sum() == 300_000 == ones(300_000, sync=True).sum()
    assert not pk.check(site)

def test_coroutines_and_generators(site):
    @pk.task(cache=True)
    async def later(x):
        pk.Array('runs').append(x)
        return x
    assert later(1).result == 1 == later(1).result and runs() == 1
    assert asyncio.run(later(1, sync=True)) == 1 and runs() == 2  # an awaitable is no result
    with pytest.raises(TypeError, match='it is a generator'):
        @pk.task(cache=True)
        def numbers(): yield 1


def test_digest_of_arrays_of_any_library_is_of_what_they_show():
    "Whatever memory they look into; equal arrays with dtypes that are called otherwise are one"
    digest = pk.caching.digest
    data = np.arange(12)
    assert digest(np.zeros(2, 'q')) == digest(np.zeros(2, 'l')) != digest(np.zeros(2, '>i8'))
    assert digest(np.zeros(2, np.dtype('i4', metadata={'unit': 'm'}))) == digest(np.zeros(2, 'i4'))
    def masked(hard=False): return np.ma.array(data[:2], mask=[0, 1], hard_mask=hard)
    assert digest(masked()) == digest(masked()) != digest(masked(True))
    assert digest(np.matrix([[1, 2]])) == digest(np.matrix([[1, 2]])) != digest(np.array([[1, 2]]))
    for library, make in dict(torch=lambda m: [m.arange(12)[:3], m.arange(3), m.arange(1, 4)], polars=lambda m: [m.Series(range(12))[:3], m.Series(range(3)), m.Series(range(1, 4))],
                              jax=lambda m: [m.numpy.arange(12)[:3], m.numpy.arange(3), m.numpy.arange(1, 4)]).items():
        try: module = __import__('jax.numpy' if library == 'jax' else library)
        except ImportError: continue
        part, same, other = make(module)
        assert digest(part) == digest(same) != digest(other), library
