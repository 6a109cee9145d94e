"""Processes that share objects: killed, forked, spawned, racing to be first, with classes that only one of them has.

A notebook is one process, and nothing in it survives its own SIGKILL."""
import asyncio, gc, mmap, multiprocessing, os, select, struct, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, Fork, blobs, forked, root, run, waits_for_a_lock


# --- killed

_dies = '''
d = pk.Dict(f'{sys.argv[2]}/d')
big = np.ones(2**20, np.uint8)
with pk.transaction(d):
    d['a'] = 2
    d['big'] = big
    del d['b']
    d.update((i, big) for i in range(5))
    pk.Dict(f'{sys.argv[2]}/new')['a'] = big
    with pk.transaction(d): d.count = 5
    prepared = d._store.prepare(pk.codecs.encode(big))  # a blob that no transaction knows of yet
    say()
    hear()
'''

@pytest.mark.parametrize('durable', [True, False])
def test_killed_transaction_leaves_no_trace(site, durable):
    pk.Namespace('n', durable=durable)
    d = pk.Dict('n/d')
    d.update(a=1, b=1, big=np.zeros(2**20, np.uint8))
    before = blobs(d._store)
    site.close()
    with Child(site, _dies, 'n') as child:
        child.hear()
        assert len(blobs(d._store)) > len(before)
        child.kill()
    with pk.transaction(d, timeout=0): d['next'] = 1
    assert blobs(d._store) == before, 'the first write sweeps'
    assert sorted(d) == ['a', 'b', 'big', 'next'] and d['a'] == 1 == d['b'] and not d['big'].any()
    assert [*pk.Namespace('n').names()] == ['d']
    with pytest.raises(AttributeError): d.count


def test_next_writer_goes_on_at_once_when_the_holder_is_killed(d):
    d['b'] = 1
    with Child(d.site, _dies, 'n') as holder:
        holder.hear()
        with Child(d.site, "say(); pk.Dict('n/d')['mine'] = 1; say()") as waiter:
            waiter.hear()
            assert wait_for(lambda: waits_for_a_lock(waiter.pid))
            holder.kill()
            waiter.hear()
    assert d == {'b': 1, 'mine': 1}


def test_killed_readers_do_not_keep_replaced_values(d):
    d['a'] = np.zeros(2**20)
    with Child(d.site, "d = pk.Dict('n/d')\nwith pk.snapshot(d): say(); hear()") as reader:
        reader.hear()
        for _ in range(5): d['a'] = np.ones(2**20)
        assert len(blobs(d._store)) == 6
        reader.kill()
    d['a'] = np.zeros(2**20)
    assert len(blobs(d._store)) == 1


# --- side by side

def _count(path, name, times=1000):
    "Write and read `times` times"
    d = pk.Dict(path, create=False)
    for i in range(times):
        d[name, i % 10] = i
        assert d[name, i % 10] == i and d['parent', 0] >= 0
        with d.edit('total') as total: total[0] += 1
    return os.getpid()

def _count_here(d, *results):
    "The same here, while others do it too; returns what those return"
    _count('n/d', 'parent')
    return [result() for result in results]

@pytest.fixture
def counted(d):
    "A `Dict` to count in, and a check that `n` did"
    d.update({'total': [0], ('parent', 0): 0})
    def check(n): assert d['total'] == [1000*n] and len(d) == 10*n + 1
    return d, check

def test_trap_18_parent_and_forked_child_use_one_dict(counted):
    d, check = counted
    with Fork(_count, 'n/d', 'child') as child:
        assert _count_here(d, child.result) != [os.getpid()]
    check(2)


def test_spawned_child_uses_the_same_dict(counted):
    d, check = counted
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        result = pool.apply_async(_count_spawned, (d,))
        _count_here(d, result.get)
        pool.close()
        pool.join()
    check(2)

def _count_spawned(d):
    "A `Dict` brings its site along"
    pk.set_site(d.site)
    return _count(d.path, 'child')


@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_multiprocessing_passes_objects_by_reference(d, method):
    d['a'] = np.arange(100_000)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_last_item, [d, d]) == [99_999]*2
        pool.close()
        pool.join()
    if method == 'forkserver': _stop_fork_server()
    assert d['seen'] == 99_999

def _last_item(d):
    d['seen'] = int(d['a'][-1])
    return d['seen']

def _stop_fork_server():
    from multiprocessing.forkserver import _forkserver
    _forkserver._stop()


def test_threads_use_one_dict(counted):
    d, check = counted
    with ThreadPoolExecutor(3) as pool:
        _count_here(d, *[pool.submit(_count, 'n/d', i).result for i in range(3)])
    check(4)


def test_asyncio_tasks_use_one_dict(counted):
    d, check = counted
    async def count(name):
        for i in range(1000):
            async with pk.transaction(d):
                d[name, i % 10] = i
                if i % 100 == 0: await asyncio.sleep(0)
                d['total'] = [d['total'][0] + 1]
            assert d[name, i % 10] == i
    async def main(): await asyncio.gather(*(count(name) for name in ('parent', 1, 2, 3)))
    asyncio.run(main())
    check(4)


def test_forks_while_threads_write(d):
    "Whatever lock a thread holds at that moment, the child does not wait for it"
    busy, errors = True, []
    def write(name):
        try:
            while busy: d[name] = np.zeros(2**15)
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for thread in threads: thread.start()
    try:
        for i in range(30):
            def use():
                d['child'] = i
                return d['child'], len(d) > 0
            assert forked(use) == (i, True)
    finally:
        busy = False
        for thread in threads: thread.join()
    assert not errors and d['child'] == 29


# --- forked amid something

def test_trap_18_transaction_of_the_parent_is_refused_in_the_child(d):
    d['a'] = 1
    def use():
        for work in (lambda: d['a'], lambda: d.update(a=3), lambda: pk.transaction(d).__enter__(), lambda: list(d)):
            with pytest.raises(pk.TransactionError, match='belongs to the parent'): work()
        return pk.Dict('other/d') == {}
    for block in (pk.transaction, pk.snapshot):
        with block(d):
            assert forked(use)
            if block is pk.transaction: d['a'] += 1
            assert d['a'] == 2
    assert d['a'] == 2


def _fork_inside(d):
    "Returns in two processes"
    with pk.transaction(d):
        d['parent'] = 1
        return os.fork()

def _return_twice(d):
    "The exit code of a child that leaves the block in which it was forked"
    try: pid = _fork_inside(d)
    except pk.TransactionError as e:
        d['child'] = 1  # outside the block it is a process like any other
        os._exit('belongs to the parent' not in str(e))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def test_trap_18_child_leaves_the_block_of_the_parent(d):
    assert forked(_return_twice, d) == 0
    assert d == {'child': 1, 'parent': 1}


_forks = '''
d = pk.Dict('n/d')
with pk.transaction(d):
    d['a'] = 2
    say(fork_and_stay())
    hear()
'''

def test_trap_34_lock_of_a_killed_parent_is_not_kept_by_its_child(d):
    d['a'] = 1
    with Child(d.site, _forks) as parent:
        child = parent.hear()
        try:
            parent.kill()
            assert os.path.exists(f'/proc/{child}')
            with pk.transaction(d, timeout=30): d['a'] += 10
            assert d['a'] == 11
        finally: os.kill(child, 9)


def test_trap_34_killed_parent_is_not_taken_for_alive(d):
    "Its child holds none of its descriptors"
    code = "d = pk.Dict('n/d'); say([site.alive.enter(), fork_and_stay()]); hear()"
    with Child(d.site, code) as parent:
        id, child = parent.hear()
        try:
            assert d.site.alive.is_alive(id)
            parent.kill()
            assert wait_for(lambda: not d.site.alive.is_alive(id))
        finally: os.kill(child, 9)


_forks_amid_making = """
def make():
    for i in range(100): pk.Namespace(f'made/{i}', durable=False)
maker, pids = threading.Thread(target=make, daemon=True), []
maker.start()
while maker.is_alive() and len(pids) < 30:
    pids.append(fork_and_stay())
    time.sleep(0.002)
say(pids)
maker.join(40)
say(maker.is_alive())
hear()
"""

def test_trap_34_lock_of_a_thread_that_makes_a_namespace_is_not_kept_by_a_child(site):
    with Child(site, _forks_amid_making) as parent:
        pids = parent.hear()
        try:
            assert parent.hear() is False, 'the thread waits for a lock that a child has kept'
            run(site, "pk.Dict('late/d')['a'] = 1; say()")
        finally:
            for pid in pids: os.kill(pid, 9)


def _readers(store):
    "How many snapshots this process holds, according to LMDB"
    lines = store.env.readers().splitlines()[1:]
    return sum(line.split()[0] == str(os.getpid()) and line.split()[-1].isdigit() for line in lines)

def _use_and_collect(d):
    "What a child does that knows nothing of its parent's snapshots"
    d['child'] = d.get('child', 0) + 1
    found = list(d.items())
    gc.collect()
    d.site.close()
    d['child'] += 1
    return len(found)

@pytest.mark.parametrize('frozen', [False, True])
def test_trap_35_fork_keeps_the_snapshot_of_the_parent(d, frozen):
    "Though the child uses the namespace, closes it, and ends; with `gc.freeze()` too, as servers do before they fork"
    d.update((i, i) for i in range(100))
    if frozen: gc.freeze()
    try:
        txn = d._store.read()
        for _ in range(3):
            forked(_use_and_collect, d)
            assert _readers(d._store) == 1
        for i in range(100): d[i] = -i
        d['large'] = np.zeros(2**20)
        assert d['child'] == 6 and txn.get(d._oid + b'\x30child\0') is None
        d._store.end(txn)
    finally: gc.unfreeze()


def test_trap_35_fork_keeps_the_iteration_of_the_parent(d):
    d.update((i, i) for i in range(100))
    def go_on():
        with pytest.raises(pk.TransactionError, match='before a fork'): next(items)
        items.close()
        return _use_and_collect(d)
    items = iter(d.items())
    assert next(items) == (0, 0)
    assert forked(go_on) == 101
    d.clear()
    assert list(items) == [(i, i) for i in range(1, 100)]
    assert _readers(d._store) == 0


def test_trap_35_fork_keeps_the_transaction_of_the_parent(d):
    with pk.transaction(d):
        d['a'] = np.ones(2**20, np.uint8)
        assert forked(lambda: gc.collect() >= 0)
        d['b'] = 2
    assert d['b'] == 2 and d['a'].all() and len(blobs(d._store)) == 1


def test_prepared_blob_of_the_parent_outlives_the_child(d):
    prepared = d._prepare(np.ones(2**20, np.uint8))
    assert forked(lambda: prepared.done() or True)
    with pk.transaction(d) as t: d._put(t._frame.txn, 'a', prepared)
    assert d['a'].all()


def test_prepared_blob_outlives_the_first_write_of_another_process(d):
    "Who begins to write removes what dead writers have left, and nothing else"
    prepared = d._prepare(np.ones(2**20, np.uint8))
    run(d.site, "pk.Dict('n/d')['b'] = 1; say()")
    with pk.transaction(d) as t: d._put(t._frame.txn, 'a', prepared)
    assert d['a'].all()


def test_child_is_known_while_it_writes_down_who_it_is(site, monkeypatch):
    "Who looks for the heirs of a process may read amid that, and would take what the child holds for dropped"
    held, alive, parent, (said, say), (heard, hear) = pk.Dict(), site.alive, os.getpid(), os.pipe(), os.pipe()
    def slowly(write):
        def work(fd, data, *at):
            if os.getpid() == parent or fd != alive.fd: return write(fd, data, *at)
            for i, b in enumerate(data):
                write(fd, bytes((b,)), *(a + i for a in at))
                os_write(say, b'.')
                os.read(heard, 1)
            return len(data)
        return work
    os_write = os.write
    for name in ('write', 'pwrite'): monkeypatch.setattr(os, name, slowly(getattr(os, name)))
    try:
        with Fork(lambda: held._store.site.alive.id) as child:
            n = 0
            while select.select([said, child._in], [], [], 60)[0][0] == said:
                os.read(said, 1)
                n += 1
                assert len(alive.heirs()) == 1, f'unknown after {n} bytes'
                assert [o['pid'] for o in alive.neighbours()] in ([0], [child.pid])
                os_write(hear, b'.')
            assert n > 100 and child.result()
    finally:
        for fd in (said, say, heard, hear): os.close(fd)


def test_grandchildren(d):
    def child(n):
        d[n] = os.getpid()
        return [d[n]] + (forked(child, n - 1) if n else [])
    pids = forked(child, 3)
    assert len({*pids, os.getpid()}) == 5 and [d[n] for n in (3, 2, 1, 0)] == pids


# --- at once

def _race(site, code, n=8):
    "What `n` children say who begin at the same moment"
    with ExitStack() as stack:
        children = [stack.enter_context(Child(site, 'say(); hear()\n' + code)) for _ in range(n)]
        for child in children: child.hear()
        for child in children: child.say()
        return [child.hear() for child in children]

def test_trap_20_many_processes_make_the_same_object_at_once(site):
    code = """
for i in range(20):
    d = pk.Dict(f'race/{i}', metadata=dict(i=i))
    d[os.getpid()] = str(d.uuid)
say([str(pk.Dict(f'race/{i}').uuid) for i in range(20)])"""
    found = _race(site, code)
    assert all(o == found[0] for o in found) and len(set(found[0])) == 20
    assert all(len(pk.Dict(f'race/{i}')) == 8 for i in range(20)) and len(pk.Namespace('race')) == 20


def test_trap_20_many_processes_make_the_same_site_at_once(tmp_path):
    code = """
for i in range(20):
    new = pk.Site(f'{sys.argv[2]}/{i}')
    pk.Dict('race/d', site=new)[os.getpid()] = 1
say([pk.Site(f'{sys.argv[2]}/{i}').uuid for i in range(20)])"""
    found = _race(None, f'import sys; sys.argv[2:] = [{str(tmp_path)!r}]' + code)
    assert all(o == found[0] for o in found) and len(set(found[0])) == 20


def test_trap_20_only_one_process_makes_it(site):
    code = "e = failure(lambda: pk.Dict('race/d', bind=False)); say(e and e['type'])"
    assert sorted(_race(site, code), key=str) == [None] + ['ObjectExistsError']*7


def test_threads_make_the_same_namespace_at_once(site):
    barrier = threading.Barrier(8)
    def make(i):
        barrier.wait()
        return [str(pk.Dict(f'race{n}/d').uuid) for n in range(10)]
    with ThreadPoolExecutor(8) as pool: found = list(pool.map(make, range(8)))
    assert all(o == found[0] for o in found)


class Slow:
    "Unpickling it waits until `d['go']` is set, which is after the entry has been overwritten"
    def __init__(self, path): self.path = path
    def __reduce__(self): return _wait_for_overwriting, (self.path,)

def _wait_for_overwriting(path):
    (path/'reading').touch()
    assert wait_for((path/'overwritten').exists)
    return 'slow'

_overwrites = '''
from pathlib import Path
from helpers import wait_for
d, path = pk.Dict('n/d'), Path(sys.argv[2])
say()
assert wait_for((path/'reading').exists)
for i in range(50): d['a'] = d['b'] = bytes([i])*int(sys.argv[3])
(path/'overwritten').touch()
say()
'''

@pytest.mark.parametrize('size', [100, 100_000, 2**20])
@pytest.mark.parametrize('read', ['implicit', 'snapshot', 'iteration'])
def test_trap_01_value_that_is_overwritten_while_it_is_read(d, tmp_path, size, read):
    d['a'] = [Slow(tmp_path), bytes(size), np.zeros(size, np.uint8)]
    with Child(d.site, _overwrites, tmp_path, size) as writer:
        writer.hear()
        if read == 'implicit': found = d['a']
        elif read == 'iteration': found = next(iter(d.values()))
        else:
            with pk.snapshot(d): found = d['a']
        writer.hear()
    assert found[:2] == ['slow', bytes(size)] and len(found[2]) == size and not found[2].any()
    assert d['a'] == d['b'] != bytes(size)


# --- keys

_keys = '''
from datetime import date
d = pk.Dict('n/d')
word = ''.join(['wo', 'rd'])
d[frozenset(['a', 'b', ('c', 1), 'dddd', 'eeee'])] = 'set'
d[(word, word)] = 'words'
d['x'*2000] = 'long'
d[1] = 'one'
d[date(2026, 1, 1), frozenset([frozenset('ab'), None])] = 'nested'
say([hash('a'), len(d)])
'''

def test_trap_06_keys_of_another_process_are_found(d):
    "Its strings hash otherwise, so its sets have another order; the equal strings in a tuple are two objects here"
    from datetime import date
    (one, n), (two, m) = (run(d.site, _keys, PYTHONHASHSEED=seed) for seed in ('1', '2'))
    assert one != two and n == m == 5 == len(d)
    words = tuple(''.join(o) for o in ('word', 'word'))
    assert words[0] is not words[1] and d[words] == d['word', 'word'] == 'words'
    assert d[frozenset(['eeee', ('c', 1), 'b', 'a', 'dddd'])] == 'set' and d['x'*2000] == 'long'
    assert d[date(2026, 1, 1), frozenset([None, frozenset('ba')])] == 'nested'
    for key in (1, 1.0, True, np.int64(1), np.float32(1), np.bool_(True), 1 + 0j):
        assert d[key] == 'one' and key in d
        d[key] = 'one'
    assert len(d) == 5 and [k for k in d if k == 1] == [1]
    del d[True], d['x'*2000]
    assert 1 not in d and len(d) == 3


# --- classes that only one process has

_script = '''
import sys
import parkit as pk
pk.set_site(sys.argv[1])
log = pk.Array('n/log')
limits = pk.Dict('n/limits')

class Ledger(pk.Dict):
    "Its methods mention objects of parkit, which hold locks and environments"
    opened = 0
    def book(self, name, amount):
        with pk.transaction(self):
            self[name] = self.get(name, 0) + min(amount, limits['most'])
            log.append((name, amount))
            self.opened += 1
        return helper(self)

def helper(ledger): return sum(ledger.values())

limits['most'] = 10
ledger = Ledger('n/ledger')
print(ledger.book('tea', 5))
'''

def _run_script(site, folder, script=_script):
    "What the script prints, run in a process of its own"
    file = folder/'script.py'
    file.write_text(script)
    done = subprocess.run([sys.executable, file, site.path], capture_output=True, text=True, timeout=150,
                          env={**os.environ, 'PYTHONPATH': str(root)}, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

def test_trap_38_class_of_a_script_works_in_another_process(d, tmp_path):
    assert _run_script(d.site, tmp_path) == '5'
    ledger = pk.Namespace('n')['ledger']
    assert type(ledger).__name__ == 'Ledger' and isinstance(ledger, pk.Dict) and ledger == {'tea': 5}
    assert ledger.book('tea', 100) == 15 and ledger.opened == 2
    assert list(pk.Array('n/log')) == [('tea', 5), ('tea', 100)]
    assert sorted(type(o).__name__ for o in pk.Namespace('n')) == ['Array', 'Dict', 'Dict', 'Ledger']


def test_trap_04_redefined_class_opens_what_is_stored(d, tmp_path):
    "Its attributes are kept, its new code is used, by those too who have it from the store"
    _run_script(d.site, tmp_path)
    redefined = _script.replace('return helper', 'assert self.opened == 2; return -helper')
    assert _run_script(d.site, tmp_path, redefined) == '-10'
    ledger = pk.Namespace('n')['ledger']
    assert ledger == {'tea': 10} and ledger.opened == 2
    with pytest.raises(AssertionError): ledger.book('tea', 1)  # for the third time: the new code


_private = '''
import types
module = types.ModuleType('of_no_file')
sys.modules['of_no_file'] = module
exec("import parkit as pk\\nclass Strange(pk.Dict):\\n    pass", module.__dict__)
import cloudpickle
pk.Dict('n/d')['a'] = 1
o = module.Strange('n/strange')
o['a'] = 1
txn = o._store.write()
for key, _ in list(o._store.scan(txn, b'\\x03', b'\\x04')): txn.delete(key)  # as if it could not be stored
txn.commit()
say()
'''

def test_trap_25_object_of_an_unknown_class_is_listed(d):
    run(d.site, _private)
    listed = {o.name: o for o in pk.Namespace('n')}
    assert sorted(listed) == ['d', 'strange'] and listed['d'] == {'a': 1}
    assert isinstance(listed['strange'], pk.Unknown) and listed['strange'].type == 'of_no_file.Strange'
    listed['strange'].drop()
    assert [*pk.Namespace('n').names()] == ['d']


def test_object_is_found_again_after_the_process_that_made_it(d):
    run(d.site, "d = pk.Dict('n/new', metadata=dict(a=1)); d['x'] = np.arange(10**6); d.note = 'kept'; say()")
    new = pk.Dict('n/new', create=False)
    assert (new.metadata, new.note, int(new['x'][-1])) == (dict(a=1), 'kept', 999_999)


@pytest.mark.skipif(sys.platform != 'linux', reason='macOS has no locks of open files')
def test_namespace_is_opened_again_while_a_child_is_being_forked(d):
    "Which has all descriptors of its parent, and so the locks of its open files, until it has closed them"
    d['a'] = 1
    copied = os.dup(d._store._lmdb_locks)
    try:
        d.site.close()
        assert d['a'] == 1
    finally: os.close(copied)
    assert d['a'] == 1 and run(d.site, "say(pk.Dict('n/d')['a'])") == 1


def test_site_that_another_process_makes_and_uses_meanwhile(tmp_path, monkeypatch):
    from parkit import storage
    look, looks = storage._site_facts, []
    def looks_late(path):
        found = look(path)
        if not looks:
            looks.append(found)
            run(None, f"site = pk.Site({str(tmp_path/'new')!r}); pk.Dict('n/d', site=site)['a'] = 1; say()")
        return found
    monkeypatch.setattr(storage, '_site_facts', looks_late)
    site = pk.Site(tmp_path/'new')
    assert looks == [None] and pk.Dict('n/d', site=site)['a'] == 1
    site.close()


def test_reader_whose_place_another_process_has_taken_opens_anew(d):
    "LMDB says so with an error: a reader is taken for dead that has lost its lock"
    d['a'] = 1
    assert d['a'] == 1
    path = Path(d._store.path)/'lock.mdb'
    with open(path, 'r+b') as f, mmap.mmap(f.fileno(), 0) as content:
        slots = [at for at in range(128, len(content), 64) if struct.unpack_from('<I', content, at + 8)[0] == os.getpid()]
        assert slots
        for at in slots: struct.pack_into('<qI', content, at, 5, 0)
    assert d['a'] == 1
    d['a'] = 2
    assert d['a'] == 2 and run(d.site, "say(pk.Dict('n/d')['a'])") == 2
