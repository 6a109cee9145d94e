"""Objects without a name live as long as someone holds them: references, other processes, calls of tasks that have not ended.

Those who hold them fork, are killed and are collected at any moment, which a notebook cannot show."""
import copy, gc, multiprocessing, os, pickle, random, select, signal, sys, threading, time, zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np, psutil, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, Fork, blobs, forked, run
from parkit import objects
from parkit.objects import ANONYMOUS, encode_arguments, hold_for_trace, release_trace, sweep_holders
from parkit.storage import META, OBJECTS, CLASSES
from parkit.transactions import read, write
from task_helpers import ended, event_loop, started  # noqa: F401  a fixture

MIB = 2**20


def _store(site): return site.store(ANONYMOUS, True)

def settle(site):
    "A write in which what finalizers have left is done"
    gc.collect()
    write(_store(site), lambda txn: None)

def kept(site):
    "How many objects without a name there are after the next write"
    settle(site)
    return read(_store(site), lambda txn, zero_copy: sum(1 for _ in _store(site).scan(txn, OBJECTS, CLASSES)))

def left(site):
    "The keys of all that is in the namespace, but for what it knows of itself"
    return read(_store(site), lambda txn, zero_copy: [key for key, _ in _store(site)._steps(txn, b'', b'\xff'*9, False) if not key.startswith(META)])

def sweep(site):
    "Look for holders that have died, which a process does when it holds its first object, and from time to time"
    write(_store(site), sweep_holders)

def given(o):
    "The bytes of a reference as in a task's arguments, which do not keep the object"
    record = encode_arguments(o)[0]
    return record if isinstance(record, bytes) else record.join()


# --- one process

@pytest.mark.parametrize('kind', [pk.Dict, pk.Array, pk.Queue, pk.LifoQueue, pk.File, pk.Lock, pk.Event, pk.Object])
def test_object_goes_with_its_last_reference(site, kind):
    "With all it has: entries, attributes, blobs"
    o = kind()
    o.note, o.big = 'text', np.zeros(MIB)
    if kind is pk.Dict: o.update({'x'*3000: 1, 'big': np.zeros(MIB)})
    if kind in (pk.Array, pk.Queue): getattr(o, 'append', getattr(o, 'put', None))(np.ones(MIB))
    again = [o]
    uuid, names = o.uuid, blobs(o._store)
    del o
    assert kept(site) == 1 and again[0].uuid == uuid and again[0].note == 'text' and names
    del again
    assert kept(site) == 0 and left(site) == [] and blobs(_store(site)) == []


def test_finalizer_only_leaves_word(site):
    "Nothing is written, and nothing waits for a writer: that comes with the next write"
    d = pk.Dict()
    settle(site)
    store = d._store
    before = store.env.info()['last_txnid']
    with Child(site, "d = pk.Dict()\nwith pk.transaction(d): say(); hear()") as child:
        child.hear()
        del d
        gc.collect()
        assert child.process.poll() is None  # it has its transaction still: nobody waited for its end
    assert store.env.info()['last_txnid'] <= before + 2 and len(store.later) == 1  # the child's two
    sweep(site)
    assert kept(site) == 0


def test_each_of_several_references_keeps_it(site):
    d = pk.Dict()
    d['a'] = 1
    reference = given(d)
    others = [pickle.loads(reference) for _ in range(3)]
    assert all(o == d and o.uuid == d.uuid for o in others)
    del d
    assert kept(site) == 1 and others[0]['a'] == 1
    del others[1:]
    assert kept(site) == 1 and others[0]['a'] == 1
    del others
    assert kept(site) == 0
    gone = pickle.loads(reference)
    with pytest.raises(pk.ObjectNotFoundError): gone['a']
    assert not gone.exists and left(site) == []


def test_object_that_is_dropped_while_held(site):
    d = pk.Dict()
    d['a'] = np.zeros(MIB)
    other = pickle.loads(given(d))
    d.drop()
    for o in (d, other):
        with pytest.raises(pk.ObjectNotFoundError): o['a']
    assert not blobs(_store(site))
    del d, o, other
    assert kept(site) == 0 and left(site) == []


def test_copies_and_what_methods_make(site):
    d = pk.Dict()
    d['a'] = np.zeros(MIB)
    one, two = d.copy(), pk.Dict.fromkeys('ab', 1)
    named = one.copy('n/named')
    assert kept(site) == 3 and len(blobs(_store(site))) == 2
    del one, two
    assert kept(site) == 1 and len(blobs(_store(site))) == 1
    del d
    assert kept(site) == 0 and left(site) == [] and (named['a'] == 0).all()


def test_error_in_init_leaves_nothing(site):
    class Failing(pk.Dict):
        def __init__(self):
            super().__init__()
            self['a'] = 1
            raise KeyError
    with pytest.raises(KeyError) as e: Failing()
    del e
    with pytest.raises(pk.EncodeError): pk.Dict(metadata=dict(a=threading.Lock()))
    assert kept(site) == 0


def test_reference_kept_in_an_object_keeps_it_until_gc(site):
    d, inner = pk.Dict('n/d'), pk.Dict()
    inner['a'] = np.ones(MIB)
    d['inner'] = d['again'] = inner
    uuid = inner.uuid
    del inner
    assert kept(site) == 1
    assert run(site, "d = pk.Dict('n/d'); d['inner']['b'] = 2; say(int(d['again']['a'][-1]))") == 1
    assert kept(site) == 1 and d['inner']['b'] == 2 and d['inner'].uuid == uuid
    assert pk.gc(dry_run=True) == []
    del d['inner']
    assert pk.gc() == [] and d['again']['b'] == 2
    holder = d['again']
    with Child(site, "o = pk.Dict('n/d')['again']; say(o['b']); hear(); say(o['b']); hear(); del o; pk.Dict(); say()") as child:
        assert child.hear() == 2
        del d['again']
        assert pk.gc() == [] and holder['b'] == 2
        del holder
        settle(site)
        assert pk.gc() == [], 'a living process holds it'
        child.say()
        assert child.hear() == 2
        child.say()
        child.hear()
    sweep(site)
    assert kept(site) == 1, 'nothing says that nobody has stored the reference elsewhere'
    found = pk.gc(dry_run=True)
    assert [f.subject for f in found] == [f'{ANONYMOUS}/{uuid.hex}'] and kept(site) == 1
    assert pk.gc() == found and kept(site) == 0 and left(site) == [] and not blobs(_store(site))


def test_gc_follows_references_between_objects_without_a_name(site):
    d, chain, ring = pk.Dict('n/d'), [pk.Dict() for _ in range(4)], [pk.Array() for _ in range(3)]
    for one, next in zip(chain, chain[1:]): one['next'] = next
    for i, o in enumerate(ring): o.append(ring[i - 1])
    d['chain'] = [chain[0]]
    held = pk.Dict()
    held['in'] = inside = pk.Dict()
    uuids = {o.uuid.hex for o in ring}
    del chain, ring, one, next, o, inside
    assert kept(site) == 9
    assert {f.subject.rpartition('/')[2] for f in pk.gc()} == uuids
    assert kept(site) == 6 and d['chain'][0]['next']['next']['next'] == {} and held['in'] == {}


class Packed(pk.Dict):
    def encode_value(self, value): return zlib.compress(bytes(super().encode_value(value)))
    def decode_value(self, data): return super().decode_value(zlib.decompress(data))

def test_gc_does_not_see_a_reference_that_is_compressed(site):
    "It keeps the object until `gc`, as any stored reference does; one to an object with a name needs nobody to see it"
    packed = Packed('n/packed')
    packed['anonymous'], packed['named'] = pk.Dict(), pk.Dict('n/named')
    packed['anonymous']['a'] = 1
    packed['named']['a'] = 1
    assert kept(site) == 1 and packed['anonymous']['a'] == 1
    gc.collect()
    assert len(pk.gc(dry_run=True)) == 1 and kept(site) == 1
    pk.gc()
    with pytest.raises(pk.ObjectNotFoundError): packed['anonymous']['a']
    assert packed['named']['a'] == 1


def test_copy_module_keeps_it_until_gc(site):
    d = pk.Dict()
    others = copy.copy(d), copy.deepcopy([d])
    assert others[0].uuid == others[1][0].uuid == d.uuid
    del d, others
    assert kept(site) == 1 and len(pk.gc()) == 1 and kept(site) == 0


# --- transactions and snapshots

def test_object_made_in_a_transaction_that_is_rolled_back(site):
    "It never was, and no later object is taken for it"
    d = pk.Dict()
    with pytest.raises(KeyError), pk.transaction(d):
        new = pk.Dict()
        new['a'] = np.zeros(MIB)
        raise KeyError
    later = pk.Dict()
    later['a'] = 'of another'
    with pytest.raises(pk.ObjectNotFoundError): new['a']
    assert not new.exists and not blobs(_store(site))
    del new
    assert kept(site) == 2 and later['a'] == 'of another'


def test_object_released_in_a_transaction_that_is_rolled_back(site):
    "Is dropped by the next that commits"
    d, e = pk.Dict(), pk.Dict()
    e['a'] = np.zeros(MIB)
    del e
    with pytest.raises(KeyError), pk.transaction(d):
        d['a'] = 1
        raise KeyError
    assert len(blobs(_store(site))) == 1
    with pk.transaction(d):
        inner = pk.Dict()
        with pytest.raises(KeyError), pk.transaction(d):
            d['b'] = 1
            raise KeyError
        del inner
    assert kept(site) == 1 and not blobs(_store(site)) and d == {}


def test_object_in_an_explicit_transaction(site):
    d = pk.Dict()
    with pk.transaction(d):
        held = [pk.Dict() for _ in range(10)]
        for o in held: o['a'] = 1
        del o, held[3:]
        d['n'] = len(held)
    assert kept(site) == 4 and [o['a'] for o in held] == [1]*3
    with pytest.raises(pk.TransactionError), pk.snapshot(d): pk.Dict()
    assert kept(site) == 4


def test_snapshot_shows_what_is_dropped_meanwhile(site):
    d = pk.Dict()
    d['a'] = np.ones(MIB)
    reference, uuid = given(d), d.uuid
    hold_for_trace('some call', [d])
    del d
    settle(site)
    with pk.snapshot(pk.Dict()):  # of the namespace of all objects without a name
        with ThreadPoolExecutor(1) as other: other.submit(release_trace, site, 'some call').result()
        found = pickle.loads(reference)
        assert found.uuid == uuid and found['a'].all()
    assert kept(site) == 0 and not found.exists


def test_object_met_in_a_snapshot_is_held_from_the_next_write_on(site):
    with Child(site, "d = pk.Dict(); d['a'] = 1; pk.Dict('n/d')['d'] = d; say(); hear()") as child:
        child.hear()
        with pk.snapshot(pk.Dict()): found = pk.Dict('n/d')['d']
        child.kill()
    sweep(site)
    assert found['a'] == 1


# --- processes that end

@pytest.mark.parametrize('how', ['kill', 'exit', 'exec'])
def test_objects_of_a_process_that_has_ended_are_swept_by_the_next(site, how):
    end = dict(kill='hear()', exit='', exec="os.execv('/bin/sleep', ['sleep', '60'])")[how]
    with Child(site, f"held = [pk.Dict() for _ in range(5)]\nfor d in held: d['a'] = np.zeros(2**20)\nsay(len(held))\n{end}") as child:
        assert child.hear() == 5
        if how == 'kill':
            assert kept(site) == 5
            child.kill()
        elif how == 'exec': assert wait_for(lambda: psutil.Process(child.pid).name() == 'sleep')
        else: child.wait()
        run(site, "d = pk.Dict()\nwith pk.transaction(d): del d\nsay()")
        assert kept(site) == 0 and blobs(_store(site)) == []
        sweep(site)  # of the one that has swept
        assert left(site) == []


def test_process_that_goes_on_sweeps_too(site):
    "Each time it drops something, though not more often than every ten seconds"
    d = pk.Dict()
    with Child(site, "d = pk.Dict(); say(); hear()") as child:
        child.hear()
        child.kill()
    site.alive.swept -= 20
    del d
    assert kept(site) == 0


def test_object_is_held_when_the_site_is_closed(site):
    d, e = pk.Dict(), pk.Dict()
    d['a'] = 1
    site.close()
    sweep(site)
    assert d['a'] == 1 and kept(site) == 2
    del e
    site.close()
    sweep(site)
    assert d['a'] == 1 and kept(site) == 1
    del d
    site.close()
    sweep(site)
    assert kept(site) == 0 and left(site) == []


def test_processes_killed_at_any_moment_leave_nothing_for_ever(site):
    moments = random.Random(5)
    mine = [pk.Dict() for _ in range(10)]
    for i, o in enumerate(mine): o['i'] = i
    def work():
        random.seed(os.getpid())
        held = list(mine)
        while True:
            held.append(pk.Dict())
            held[-1]['a'] = np.zeros(random.choice([10, 40_000]))
            if len(held) > 13: del held[random.randrange(14)]
    for _ in range(12):
        version = _store(site).env.info()['last_txnid']
        with Fork(work) as one, Fork(work) as two:
            assert wait_for(lambda: _store(site).env.info()['last_txnid'] > version + 20, interval=0.001)
            time.sleep(moments.random()*0.004)  # not a wait: any moment will do
            one.kill()
            two.kill()
    sweep(site)
    assert kept(site) == 10 and [o['i'] for o in mine] == list(range(10))
    del mine, o
    site.alive.swept -= 20
    assert kept(site) == 0 and left(site) == []
    site.close()
    settle(site)  # the first write looks for files as well
    assert blobs(_store(site)) == []


# --- forks

class _Steps:
    "Lets processes take turns: a pipe for each step"
    def __init__(self, *names): self.pipes = {name: os.pipe() for name in names}
    def say(self, name): os.write(self.pipes[name][1], b'.')
    def hear(self, name, seconds=60):
        assert select.select([self.pipes[name][0]], [], [], seconds)[0], f'nobody says {name!r}'
        os.read(self.pipes[name][0], 1)
    def close(self):
        for pipe in self.pipes.values():
            for fd in pipe: os.close(fd)

@pytest.fixture
def steps():
    o = _Steps(*'abcd')
    yield o
    o.close()

def _run_earlier_children(n):
    "Children that have come and gone before"
    for _ in range(n): forked(int)

@pytest.mark.parametrize('end', ['returns', 'killed'])
def test_child_uses_what_its_parent_has_dropped(site, steps, end):
    o = [pk.Dict()]
    o[0]['a'] = np.ones(MIB)
    settle(site)
    def work():
        steps.hear('a')
        o[0]['child'] = int(o[0]['a'][-1])
        steps.say('b')
        steps.hear('c')
        return dict(o[0].range('b'))
    with Fork(work) as child:
        o.clear()
        assert kept(site) == 1
        steps.say('a')
        steps.hear('b')
        assert kept(site) == 1
        if end == 'killed': child.kill()
        else:
            steps.say('c')
            assert child.result() == dict(child=1)
    sweep(site)
    assert kept(site) == 0 and left(site) == [] and blobs(_store(site)) == []


def test_child_that_drops_it_first_takes_nothing_from_its_parent(site):
    o = [pk.Dict()]
    o[0]['a'] = 1
    def work():
        o.clear()
        gc.collect()
        pk.Dict()['b'] = 2
        return True
    for _ in range(3): assert forked(work)
    sweep(site)
    assert o[0]['a'] == 1
    o.clear()
    sweep(site)
    assert kept(site) == 0


@pytest.mark.parametrize('earlier', [0, 2])
def test_grandchild_uses_what_parent_and_child_have_dropped(site, steps, earlier):
    _run_earlier_children(earlier)
    o = [pk.Dict()]
    o[0]['a'] = 1
    def grandchild():
        steps.hear('b')
        return o[0]['a']
    def child():
        steps.hear('a')
        with Fork(grandchild) as one:
            o.clear()
            settle(site)
            sweep(site)
            steps.say('b')
            return one.result()
    with Fork(child) as one:
        o.clear()
        settle(site)
        steps.say('a')
        assert one.result() == 1
    sweep(site)
    assert kept(site) == 0


@pytest.mark.parametrize('earlier', [0, 2])
@pytest.mark.parametrize('forks', ['before', 'after'])
def test_generations_drop_it_from_the_eldest_down(site, forks, earlier):
    "Each has forked the next before its own parent has dropped the object, or does so after; and each has had other children"
    n, o, go = 4, [pk.Dict()], [os.pipe() for _ in range(4)]
    o[0]['a'] = 1
    def wait_for_parent(i): assert os.read(go[i][0], 1) == b'g'
    def life(i):
        "That of generation `i`, with those that come after it; returns what the last reads"
        _run_earlier_children(earlier)
        if i and forks == 'after': wait_for_parent(i - 1)
        if i == n:
            if forks == 'before': wait_for_parent(i - 1)
            assert kept(site) == 1
            return o[0]['a']
        with Fork(life, i + 1) as child:
            if i and forks == 'before': wait_for_parent(i - 1)
            o.clear()
            settle(site)
            sweep(site)
            os.write(go[i][1], b'g')
            return child.result()
    try: assert life(0) == 1
    finally:
        for fd in sum(go, ()): os.close(fd)
    sweep(site)
    assert kept(site) == 0 and left(site) == []


def test_holds_made_before_and_after_other_children(site, steps):
    "That all children of an earlier time have ended says nothing of those that come"
    early = pk.Dict()
    _run_earlier_children(3)
    o = [pk.Dict()]
    o[0]['a'] = 1
    del early
    settle(site)  # looks for children, and finds none
    def child():
        steps.hear('a')
        return o[0]['a']
    with Fork(child) as one:
        o.clear()
        settle(site)
        steps.say('a')
        assert one.result() == 1


_dies_before_its_child = '''
o, (reader, writer) = [pk.Dict()], os.pipe()
o[0]['a'] = 1
def life(i):
    "That of generation `i`: it forks the next, says so, and sleeps until it is killed; the last reads what it has from all of them"
    signal.alarm(60)
    say(os.getpid())
    if i == 4:
        os.read(reader, 1)
        say(o[0]['a'])
        os.read(reader, 1)
        os._exit(0)
    if not os.fork(): life(i + 1)
    time.sleep(600)
if not os.fork():
    os.close(writer)
    life(1)
while line := sys.stdin.readline(): os.write(writer, b'g')
'''

@pytest.mark.parametrize('order', [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_generations_are_killed(site, order):
    "In whichever order, and swept between: the last still has it"
    with Child(site, _dies_before_its_child) as eldest:
        pids = [eldest.hear() for _ in range(4)]
        for i in order:
            os.kill(pids[i], signal.SIGKILL)
            assert wait_for(lambda: psutil.Process(pids[i]).status() == psutil.STATUS_ZOMBIE if psutil.pid_exists(pids[i]) else True)
            sweep(site)
        eldest.say()
        assert eldest.hear() == 1 and kept(site) == 1
    assert wait_for(lambda: sweep(site) or kept(site) == 0) and left(site) == []


_leaves_a_child = '''
o = [pk.Dict()]
o[0]['a'] = 1
reader, writer = os.pipe()
if not os.fork():
    signal.alarm(60)
    os.close(writer)
    os.read(reader, 1)  # until nobody can write: the parent has ended
    say(o[0]['a'])
    hear()
    os._exit(0)
os.close(reader)
say()
hear()
'''

def test_child_goes_on_when_its_parent_has_died(site):
    with Child(site, _leaves_a_child) as parent:
        parent.hear()
        os.kill(parent.pid, signal.SIGSTOP)
        sweep(site)
        parent.kill()
        assert parent.hear() == 1
        sweep(site)
        assert kept(site) == 1, 'the child holds it'
        parent.say()
        assert wait_for(lambda: sweep(site) or kept(site) == 0)


def test_child_goes_on_when_what_its_dead_parent_held_was_swept(site, steps):
    "Before the child used it for the first time"
    def parent():
        o = pk.Dict()
        o['a'] = 1
        def child():
            steps.say('a')
            steps.hear('b')
            found = failure = None
            try: found = o['a']
            except pk.ObjectNotFoundError as e: failure = str(e)
            os.write(steps.pipes['c'][1], b'1' if found == 1 else b'0')
            steps.hear('d')
            return failure
        with Fork(child): time.sleep(600)
    with Fork(parent) as one:
        steps.hear('a')
        one.kill()
        sweep(site)
        steps.say('b')
        assert os.read(steps.pipes['c'][0], 1) == b'1'
        steps.say('d')
    assert wait_for(lambda: sweep(site) or kept(site) == 0)


# --- given to others

@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_multiprocessing_passes_it_and_it_stays_until_gc(site, method):
    d = pk.Dict()
    d['a'] = np.arange(MIB)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_last_item, [d, d]) == [MIB - 1]*2
        pool.close()
        pool.join()
    assert d['seen'] == MIB - 1
    del d
    sweep(site)
    assert kept(site) == 1 and len(pk.gc()) == 1 and kept(site) == 0 and not blobs(_store(site))

def _last_item(d):
    d['seen'] = int(d['a'][-1])
    return d['seen']


@pytest.fixture
def pool(single): return single

def _hold_task():
    "A task that waits for a file, uses an object, and does what it is told"
    @pk.task
    def use(folder, do, d, *more, **others):
        import os, time
        (folder/'started').touch()
        while not (folder/'go').exists(): time.sleep(0.005)
        d['used'] = d['a'] + 1
        if do == 'raise': raise KeyError(d)
        if do == 'keep':
            import parkit
            parkit.kept = d
        if do == 'exit': os._exit(1)
        return d if do == 'return' else do
    return use

def _object(a=1):
    d = pk.Dict()
    d['a'] = a
    return d

@pytest.mark.parametrize('do', ['finish', 'raise', 'exit', 'kill'])
def test_call_keeps_it_until_it_has_ended(site, pool, tmp_path, do):
    d, nested = _object(), _object()
    trace = _hold_task()(tmp_path, do, d, [d, {'nested': nested}], other=d)
    reference = given(d)
    del d, nested
    assert kept(site) == 2
    started(tmp_path/'started')
    sweep(site)
    assert kept(site) == 2 and trace.status == 'running'
    if do == 'kill': os.kill(trace.pid, signal.SIGKILL)
    else: (tmp_path/'go').touch()
    assert ended(trace) == dict(finish='finished', **{'raise': 'failed'}, exit='crashed', kill='crashed')[do]
    if do == 'raise': pk.gc()  # the error mentions it, and that is stored
    assert wait_for(lambda: sweep(site) or kept(site) == 0) if do != 'raise' else kept(site) == 1
    if do == 'raise': assert trace.error.args[0]['used'] == 2
    else:
        with pytest.raises(pk.ObjectNotFoundError): pickle.loads(reference)['a']
        assert left(site) == []


def test_call_that_waits_keeps_it_for_as_long_as_it_waits(site, pool, tmp_path):
    use = _hold_task()
    first = use(tmp_path, 'finish', _object())
    started(tmp_path/'started')
    second = use(tmp_path, 'finish', _object(41))
    os.kill(first.pid, signal.SIGSTOP)
    pool_pid = pool.status.supervisor
    for pid in (pool_pid, first.pid): os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: pool.status.supervisor is None)  # while it is dying, the pool seems to be started
    sweep(site)
    assert second.status == 'submitted' and kept(site) >= 1
    (tmp_path/'go').touch()
    pool.start()
    assert ended(second) == 'finished' and ended(first) == 'crashed'
    assert wait_for(lambda: sweep(site) or kept(site) == 0)


def test_call_that_cannot_be_made_keeps_nothing(site, pool):
    @pk.task
    def use(*args): return None
    d = _object()
    trace = use(d, threading.Lock())
    assert trace.status == 'failed'
    del d
    assert kept(site) == 0
    use(_object(), sync=True)
    assert kept(site) == 0


def test_cancelled_call_keeps_nothing(site, pool, tmp_path):
    use = _hold_task()
    first = use(tmp_path, 'finish', _object())
    started(tmp_path/'started')
    second = use(tmp_path, 'finish', _object())
    second.cancel()
    assert ended(second) == 'cancelled' and wait_for(lambda: kept(site) == 1)
    (tmp_path/'go').touch()
    assert ended(first) == 'finished' and wait_for(lambda: kept(site) == 0)


def test_task_keeps_it_in_a_global(site, pool, tmp_path):
    (tmp_path/'go').touch()
    trace = _hold_task()(tmp_path, 'keep', _object())
    assert ended(trace) == 'finished'
    @pk.task
    def look():
        import parkit
        return parkit.kept['used']
    sweep(site)
    assert kept(site) == 1 and look().result == 2
    pool.stop()
    sweep(site)
    assert kept(site) == 0


def test_task_returns_it(site, pool, tmp_path):
    (tmp_path/'go').touch()
    trace = _hold_task()(tmp_path, 'return', _object())
    assert ended(trace) == 'finished'
    pool.stop()
    sweep(site)
    assert pk.gc() == [] and trace.result['used'] == 2 and kept(site) == 1


def test_task_makes_one_and_returns_it(site, pool):
    @pk.task
    def make():
        import parkit as pk
        d = pk.Dict()
        d['made'] = 'in the worker'
        return d
    trace = make()
    assert trace.result['made'] == 'in the worker'
    pool.stop()
    sweep(site)
    assert trace.result['made'] == 'in the worker' and len(left(site)) > 0


def test_task_passes_it_on_to_another(site, pool):
    pool.resize(2)
    @pk.task
    def inner(d):
        d['inner'] = 1
        return d['outer']
    @pk.task
    def outer(d):
        import parkit as pk
        d['outer'] = 2
        return pk.bind_task('inner')(d).result
    assert outer(_object()).result == 2
    assert wait_for(lambda: sweep(site) or kept(site) == 0)


# --- threads, and the collector at any moment

def test_threads_make_and_drop_at_once(site):
    def work(seed):
        rng, held = random.Random(seed), []
        for i in range(60):
            held.append(_object((seed, i)))
            if rng.random() < 0.5: held.append(pickle.loads(given(rng.choice(held))))
            if len(held) > 5: del held[rng.randrange(len(held))]
            o = rng.choice(held)
            assert o['a'][0] == seed
        return [o['a'] for o in held]
    with ThreadPoolExecutor(6) as threads: assert all(threads.map(work, range(6)))
    assert kept(site) == 0 and left(site) == []


_gives = '''
import pickle
from parkit.objects import encode_arguments
while True:
    o = None
    hear()
    o = pk.Dict()
    o['a'] = 1
    say((pickle.dumps(o) if sys.argv[2] == 'stored' else encode_arguments(o)[0]).hex())
'''

@pytest.mark.parametrize('how', ['given', 'stored'])
def test_threads_meet_one_at_once(site, how):
    "This process does not hold it before: each of them has it, for as long as it likes"
    n, rounds, interval = 4, 60, sys.getswitchinterval()
    met, failures, reference = threading.Barrier(n + 1, timeout=60), [], []
    def work(seed):
        rng = random.Random(seed)
        for _ in range(rounds):
            met.wait()
            try:
                for _ in range(3):
                    o = pickle.loads(reference[0])
                    if rng.random() < 0.5: pk.Dict()  # a write, in which what finalizers have left is done
                    assert o['a'] == 1
                    if rng.random() < 0.5: del o
            except BaseException as e: failures.append(repr(e))
            o = None
            met.wait()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads: t.start()
    sys.setswitchinterval(1e-6)
    try:
        with Child(site, _gives, how) as giver:
            for _ in range(rounds):
                giver.say()
                reference[:] = [bytes.fromhex(giver.hear())]
                met.wait()
                met.wait()
                assert not failures
    finally:
        sys.setswitchinterval(interval)
        met.abort()
        for t in threads: t.join()
    sweep(site)
    pk.gc()
    assert kept(site) == 0 and left(site) == []


@pytest.mark.parametrize('first', [0, 1])
def test_two_threads_that_meet_one_keep_it_until_both_have_dropped_it(site, first, monkeypatch):
    "Both come to where it is not held by their process yet"
    giver = Child(site, _gives, 'given')
    with giver:
        giver.say()
        reference, met = bytes.fromhex(giver.hear()), threading.Barrier(2, timeout=1)
        def meet(*args, look=objects._Hold.__init__):
            with suppress(threading.BrokenBarrierError): met.wait()  # as one waits for the other, at most one comes here
            look(*args)
        monkeypatch.setattr(objects._Hold, '__init__', meet)
        with ThreadPoolExecutor(2) as pool: found = list(pool.map(pickle.loads, [reference]*2))
        monkeypatch.undo()
    found.pop(first)
    sweep(site)
    assert kept(site) == 1 and found[0]['a'] == 1
    found.clear()
    assert kept(site) == 0 and left(site) == []


def test_second_thread_that_meets_one_goes_on_only_when_it_is_held(site, monkeypatch):
    "The first is stopped where it is to note that this process holds it; meanwhile all others let it go"
    with Child(site, _gives, 'given') as giver, ThreadPoolExecutor(1) as pool:
        giver.say()
        reference, here, on = bytes.fromhex(giver.hear()), threading.Event(), threading.Event()
        def stop(*args):
            monkeypatch.undo()
            here.set()
            assert on.wait(60)
            write(*args)
        monkeypatch.setattr(objects, 'write', stop)
        try:
            first = pool.submit(pickle.loads, reference)
            assert here.wait(60)
            second = pickle.loads(reference)
            giver.kill()
            sweep(site)
            assert second['a'] == 1
        finally: on.set()
        assert first.result()['a'] == 1
    del first, second
    assert kept(site) == 0 and left(site) == []


def test_object_met_in_a_transaction_that_is_rolled_back_is_held(site):
    with Child(site, _gives, 'given') as giver:
        giver.say()
        reference = bytes.fromhex(giver.hear())
        with pytest.raises(ZeroDivisionError), pk.transaction(pk.Dict()):
            found = pickle.loads(reference)
            1/0
        kept(site)  # a write later
        giver.kill()
    sweep(site)
    assert found['a'] == 1
    del found
    assert kept(site) == 0 and left(site) == []


def test_collector_at_any_moment(site):
    "Finalizers run in the middle of everything: of transactions that are rolled back too"
    d, rng = pk.Dict('n/d'), random.Random(6)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for i in range(150):
            cycle = [_object(i)]
            cycle.append(cycle)  # goes only with the collector
            with pk.transaction(rng.choice([cycle[0], d])):
                d[i % 7] = [cycle[0]['a']]
                other = [pk.Dict()]
                other.append(other)
                if rng.random() < 0.5: del other
            try:
                with pk.transaction(cycle[0]):
                    cycle[0]['b'] = len(pk.Array())
                    with pk.transaction(cycle[0]): more = [pk.Array(), cycle]
                    if rng.random() < 0.5: raise KeyError
            except KeyError: pass
            assert cycle[0]['a'] == i
    finally: gc.set_threshold(*before)
    del cycle, more
    other = None
    assert kept(site) == 0 and left(site) == []


def test_finalizers_of_another_thread_during_a_transaction(site):
    "A thread drops while another writes; whoever writes next does it"
    d, stop, made = pk.Dict(), threading.Event(), []
    def drop():
        while not stop.is_set() and len(made) < 400: made.append(bool(_object()))
    thread = threading.Thread(target=drop)
    thread.start()
    try:
        for i in range(100):
            with pk.transaction(d): d[i % 5] = pk.Dict().uuid
    finally:
        stop.set()
        thread.join()
    assert kept(site) == 1 and len(d) == 5


# --- many

def _make_and_drop(site, n):
    "Make and drop `n` objects, a hundred of them at a time; returns the size of the file"
    held, start = [], time.monotonic()
    for i in range(n):
        held.append(pk.Dict(site=site))
        if len(held) == 100: held.clear()
    held.clear()
    assert kept(site) == 0 and left(site) == []
    return os.path.getsize(f'{_store(site).path}/data.mdb'), time.monotonic() - start

def test_file_does_not_grow_with_objects_that_have_gone(site, tmp_path):
    "A million in the large run, `PARKIT_MILLION=1`"
    n = 10**6 if os.environ.get('PARKIT_MILLION') else 10**5
    few = pk.Site(tmp_path/'few')
    (small, _), (large, seconds) = _make_and_drop(few, 1000), _make_and_drop(site, n)
    few.close()
    print(f'{n} objects in {seconds:.1f} s: {large} bytes, {small} after 1,000')
    assert large <= small
