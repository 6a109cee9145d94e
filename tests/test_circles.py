"""Calls and cached results that wait for each other in a circle: the wait that closes it is an error. And only that.

Real processes; a notebook has only its own."""
from contextlib import ExitStack

import parkit as pk, pytest
from helpers import Child, run, wait_for
from parkit.ledger import _WAITS, _ledger
from parkit.transactions import read


def _ring(names, how='sync'):
    "Cached tasks each of which calls the next, once all have begun"
    for name, after in zip(names, names[1:] + names[:1]):
        source = f'''
def {name}(n):
    import parkit as pk
    pk.Event('begun/{name}').set()
    for other in {names}: pk.Event('begun/' + other).wait()
    return {dict(sync=f"pk.bind_task('{after}')(n, sync=True)", trace=f"pk.bind_task('{after}')(n, sync=False).result",
                 map=f"pk.map(pk.bind_task('{after}'), [n])",
                 wait=f"pk.bind_task('{after}')(n, sync=False).wait()")[how]}'''
        made = {}
        exec(source, made)
        pk.task(cache=True)(made[name])

def _left(site):
    "The notes of waits that are in the ledger still"
    ledger = _ledger(site)
    return read(ledger._store, lambda txn, zero_copy: [key for key, _ in ledger._scan(txn, _WAITS)])


_calls = "say(failure(lambda: pk.bind_task(sys.argv[2])(1, sync=True)))"

@pytest.mark.parametrize('names', [['f', 'g'], ['f', 'g', 'h']], ids=len)
def test_cached_tasks_of_several_processes(site, names):
    _ring(names)
    with ExitStack() as stack:
        children = [stack.enter_context(Child(site, 'sys.setrecursionlimit(150)\n' + _calls, name)) for name in names]
        found = [child.hear() for child in children]
        for child in children: child.wait()
    assert any(o['type'] == 'CircularWaitError' for o in found), found
    assert all(o['type'] in ('CircularWaitError', 'RecursionError') for o in found), found
    message = next(o['message'] for o in found if o['type'] == 'CircularWaitError')
    assert message.startswith('this wait would never end: task/') and all(f'waits for task/{name}' in message for name in names)
    assert not _left(site)


def test_threads_of_one_process(site):
    _ring(['f', 'g'])
    code = """
sys.setrecursionlimit(150)
found = []
def work(name): found.append(failure(lambda: pk.bind_task(name)(1, sync=True))['type'])
threads = [threading.Thread(target=work, args=(name,)) for name in 'fg']
for t in threads: t.start()
for t in threads: t.join()
say(found)"""
    found = run(site, code)
    assert set(found) <= {'CircularWaitError', 'RecursionError'} and 'CircularWaitError' in found


@pytest.mark.parametrize('how', ['trace', 'sync', 'map', 'wait'])
def test_calls_in_the_background(site, how):
    "Which wait for the trace of the other, for its result, or for several"
    pk.Pool().resize(2)
    _ring(['f', 'g'], how)
    one, two = pk.bind_task('f')(1, sync=False), pk.bind_task('g')(1, sync=False)
    for trace in (one, two): assert wait_for(lambda: trace.done)
    errors = [trace.error for trace in (one, two) if trace.error]
    assert any(isinstance(e, pk.CircularWaitError) for e in errors) and all(isinstance(e, RecursionError) for e in errors), errors
    pk.Pool().stop()
    assert not _left(site)


def test_coroutines(site):
    @pk.task(cache=True)
    async def f(n): return await pk.bind_task('g')(n, sync=False)
    @pk.task(cache=True)
    async def g(n): return await pk.bind_task('f')(n, sync=False)
    with pytest.raises(pk.CircularWaitError): f(1).result


def test_a_call_that_waits_for_itself(site):
    @pk.task(cache=True)
    def f(n): return pk.bind_task('f')(n, sync=False).result
    with pytest.raises(pk.CircularWaitError, match='task/f waits for task/f;'): f(1).result


def test_a_circle_through_a_call_that_is_not_cached_and_this_process(site):
    "Here, in a worker, and in another worker"
    @pk.task(cache=True)
    def f(n): return pk.bind_task('plain')(n).result
    @pk.task
    def plain(n): return pk.bind_task('other')(n).result
    @pk.task
    def other(n): return pk.bind_task('f')(n, sync=True)
    with pytest.raises(pk.CircularWaitError) as caught: f(1, sync=True)
    words = str(caught.value)
    assert all(step in words*2 for step in ('task/f waits for task/plain', 'task/plain waits for task/other', 'task/other waits for task/f')), words


# --- no false alarm

_busy = '''
import random
from parkit import waits, caching
waits._LOOK = caching._LOOK = 0.003  # all waits are long ones
rng = random.Random(int(sys.argv[2]))
def work():
    for i in range(40):
        n = rng.randrange(30)
        assert pk.bind_task('grid')(n, i // 10, sync=True) == n
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
say(failure(work))
'''

def test_long_waits_without_a_circle_are_none(site):
    "Each result needs some of those below it, and is computed by whoever comes first, of several threads of several processes"
    @pk.task(cache=True)
    def grid(n, turn):
        import random, time
        time.sleep(0.005)
        for _ in range(2):
            if n: pk.bind_task('grid')(random.randrange(n), turn, sync=True)
        return n
    with ExitStack() as stack:
        children = [stack.enter_context(Child(site, _busy, seed)) for seed in range(3)]
        assert [child.hear() for child in children] == [None]*3
        for child in children: child.wait()
    assert not _left(site)


def test_a_wait_with_a_limit_is_no_circle(site):
    "It ends"
    @pk.task(cache=True)
    def f(n):
        ended = pk.bind_task('f')(n, sync=False).wait(timeout=1.5)
        return ended, pk.bind_task('f')(n, sync=False).result if ended else n
    assert f(1, sync=True) == (False, 1)


def test_what_a_dead_process_has_waited_for_does_not_count(site):
    "Though another one computes the same now, and is waited for by whom the dead one has waited for"
    @pk.task(cache=True)
    def f(n):
        if not pk.Event('again').is_set(): return pk.bind_task('g')(n, sync=True)
        pk.Event('f').set()
        pk.Event('finish').wait()
        return n
    @pk.task(cache=True)
    def g(n):
        pk.Event('g').set()
        pk.Event('go').wait()
        return pk.bind_task('f')(n, sync=True)
    code = "say(pk.bind_task(sys.argv[2])(1, sync=True))"
    with Child(site, code, 'g') as one, Child(site, "pk.Event('g').wait()\n" + code, 'f') as dead:
        assert wait_for(lambda: _left(site))
        before = _left(site)
        dead.kill()
        pk.Event('again').set()
        with Child(site, code, 'f') as other:
            assert wait_for(pk.Event('f').is_set)
            pk.Event('go').set()
            assert wait_for(lambda: set(_left(site)) - set(before)) and not set(_left(site)) & set(before)
            pk.Event('finish').set()
            assert [child.hear() for child in (one, other)] == [1, 1]
            for child in (one, other): child.wait()
    assert not _left(site)
