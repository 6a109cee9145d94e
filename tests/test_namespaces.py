"""Namespaces and objects that are renamed, copied, compacted and dropped while other processes have them open.

A notebook has nobody else who uses what it drops, and cannot be killed in the middle."""
import os, pickle, signal, sys, threading, time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np, pytest

import parkit as pk
from conftest import in_memory, wait_for
from helpers import Child, Fork, blobs, forked, run, waits_for_a_lock
from parkit import storage

LARGE = 2**16  # numbers in an array that is a blob
tmp_path = in_memory


@pytest.fixture
def n(site):
    "A scratch namespace with one object of each kind"
    pk.Namespace('n', durable=False)
    return _fill()

def _fill(namespace='n', text='old', site=None):
    d = pk.Dict(f'{namespace}/d', site=site)
    d.update(small=text, large=np.arange(LARGE))
    d.note = text
    pk.Array(f'{namespace}/a', site=site).extend([text]*3)
    for kind, name in ((pk.Queue, 'q'), (pk.LifoQueue, 's')): kind(f'{namespace}/{name}', site=site).put_many([text]*3)
    with pk.File(f'{namespace}/f', site=site).open('w') as file: file.write(text)
    pk.Lock(f'{namespace}/l', site=site), pk.Event(f'{namespace}/e', site=site)
    return d

def _is_whole(namespace, text='old', site=None):
    "Whether the namespace holds all that `_fill` has stored, and nothing more"
    d, a, q, f = (pk.Namespace(namespace, site=site)[name] for name in 'daqf')
    return ([*pk.Namespace(namespace, site=site).names()] == [*'adeflqs'] and list(d) == ['large', 'small'] and d['small'] == text
            and (d['large'] == np.arange(LARGE)).all() and d.note == text and list(a) == [text]*3 and q.qsize() == 3
            and bytes(f.content) == text.encode() and len(blobs(d._store)) == 2)  # the array and the file

def _gone(work):
    "Whether `work()` finds nothing"
    try: work()
    except pk.ObjectNotFoundError: return True
    return False


# --- dropped while others have it open

_open = '''
import asyncio, pickle
d, a, q, s = pk.Dict('n/d'), pk.Array('n/a'), pk.Queue('n/q'), pk.LifoQueue('n/s')
f, l, e = pk.File('n/f'), pk.Lock('n/l'), pk.Event('n/e')
'''

_use = _open + '''
def block(kind):
    with kind(d): d['small']
def transact():
    with pk.transaction(d): d['new'] = 1
def edit():
    with d.edit('small') as value: pass
async def enter():
    async with pk.transaction(d): d['new'] = 1
def store_file(mode):
    with f.open(mode) as file: file.write('new')
async def changed():
    async for change in d.changes(): return change
uses = dict(
    read=lambda: d['small'], large=lambda: d['large'], get=lambda: d.get('x'), has=lambda: 'x' in d, len=lambda: len(d),
    iterate=lambda: list(d), items=lambda: list(d.items()), range=lambda: list(d.range()), first=d.first, equal=lambda: d == {},
    write=lambda: d.update(new=1), write_large=lambda: d.update(new=np.zeros(2**16)), delete=lambda: d.pop('small'), clear=d.clear,
    default=lambda: d.setdefault('x', 1), edit=edit, attribute=lambda: d.note, assign=lambda: setattr(d, 'note', 1),
    metadata=lambda: d.metadata, describe=lambda: setattr(d, 'metadata', {}), version=lambda: d.version, created=lambda: d.created,
    append=lambda: a.append(1), extend=lambda: a.extend([np.zeros(2**16)]*2), item=lambda: a[0], slice=lambda: a[:], pop=a.popleft,
    put=lambda: q.put(1), put_large=lambda: q.put(np.zeros(2**16)), take=lambda: q.get(), nowait=lambda: s.get_nowait(), size=q.qsize,
    full=q.full, done=q.task_done, join=q.join, shutdown=q.shutdown, aget=lambda: asyncio.run(q.aget()),
    aput=lambda: asyncio.run(q.aput(1)), open=lambda: f.open(), content=lambda: f.content, store=lambda: store_file('w'),
    add=lambda: store_file('a'), acquire=lambda: l.acquire(timeout=1), attempt=lambda: l.acquire(False), is_set=e.is_set, set=e.set,
    wait=lambda: e.wait(1), transaction=transact, enter=lambda: asyncio.run(enter()), snapshot=lambda: block(pk.snapshot),
    until=lambda: pk.wait_until(lambda: d.get('x'), 1), changes=lambda: asyncio.run(changed()), rename=lambda: d.rename('other'),
    copy=lambda: d.copy('copies/d'), copy_within=lambda: d.copy('n/copy'), drop=d.drop, follow=lambda: pickle.loads(reference)['small'])
def use_all():
    if sys.argv[2] == 'closed': site.close()
    return {name: failure(work) for name, work in uses.items()}
def report():
    if sys.argv[2] != 'forked': return use_all()
    from helpers import forked
    return forked(use_all)
reference = pickle.dumps(d)
say()
hear()
say([report(), d.exists, repr(d), d.name, [o is not None for o in map(pk.Namespace('n').get, 'daq')], pk.namespaces()])
'''

def _drop(): pk.Namespace('n').drop()
def _rename(): pk.Namespace('n').rename('m')

def _make_anew():
    _drop()
    _fill(text='new')

def _copy_back():
    pk.Namespace('n').copy('copy')
    _drop()
    pk.Namespace('copy').rename('n')

_ways = dict(dropped=_drop, renamed=_rename, anew=_make_anew, back=_copy_back)
_left = dict(dropped=[], renamed=['m'], anew=['n'], back=['n'])  # the namespaces then

@pytest.mark.parametrize('state', ['open', 'closed', 'forked'])
@pytest.mark.parametrize('way', _ways)
def test_trap_03_dropped_namespace_is_not_found(n, way, state):
    "Whatever a process does with objects it had open; nothing brings the namespace back, and what has its path is another"
    with Child(n.site, _use, state) as other:
        other.hear()
        _ways[way]()
        other.say()
        found, exists, shown, name, listed, namespaces = other.hear()
    assert {use: e and e['type'] for use, e in found.items() if not e or e['type'] != 'ObjectNotFoundError'} == {}
    assert not exists and 'dropped' in shown and name == 'd' and listed == ['n' in _left[way]]*3
    assert namespaces == pk.namespaces() == _left[way]
    assert all(_is_whole(there, 'new' if way == 'anew' else 'old') for there in namespaces)


@pytest.mark.parametrize('way', _ways)
def test_own_references_to_a_dropped_namespace(n, way):
    stale, references = [pk.Namespace('n')[name] for name in 'adeflqs'], pickle.dumps(list(pk.Namespace('n')))
    _ways[way]()
    for o in stale + pickle.loads(references):
        uses = [lambda: o.version, lambda: setattr(o, 'x', 1), o.drop, lambda: o.copy('n/new')]
        assert not o.exists and all(map(_gone, uses))
    assert all(_gone(lambda: o.rename('new')) for o in stale)
    assert pk.namespaces() == _left[way] and all(_is_whole(there, 'new' if way == 'anew' else 'old') for there in _left[way])
    assert pk.gc() == []


def test_dropped_namespace_is_made_anew_by_who_asks_for_it(n):
    "Also by one who does not know yet that it was dropped"
    def make(): return pk.Dict('n/new')
    def transact():
        with pk.transaction('n'): return pk.Dict('n/new')
    def copy(): return other.copy('n/new')
    other = pk.Dict('m/other')
    for work in (make, transact, copy):
        run(n.site, "pk.Namespace('n').drop(); say()")
        assert work() == {} and run(n.site, "say(pk.Dict('n/new', create=False) == {})")


def test_tasks_can_be_defined_after_their_namespace_was_dropped(site):
    for drop in (lambda: pk.Namespace('task').drop(), lambda: run(site, "pk.Namespace('task').drop(); say()")):
        f = pk.task(name='f')(lambda: 1)
        assert f(sync=True) == 1
        drop()
        assert _gone(lambda: f(sync=True))
    assert pk.task(name='f')(lambda: 2)(sync=True) == 2


def test_what_does_not_exist_cannot_be_dropped(n):
    for work in (lambda o: o.drop(), lambda o: o.rename('m'), lambda o: o.copy('m'), lambda o: pk.compact(o)):
        assert _gone(lambda: work(pk.Namespace('nowhere')))
    assert pk.namespaces() == ['n'] and sorted(os.listdir(n.site.path)) == ['@', '_making', 'n', 'site.json']


@pytest.mark.parametrize('work', [lambda o: o.drop(), lambda o: o.rename('m'), pk.compact], ids='drop rename compact'.split())
def test_refused_while_this_process_reads(n, work, monkeypatch):
    "Nothing is changed then"
    monkeypatch.setattr(storage, '_PATIENCE', 0.05)
    def refused(message): pytest.raises(pk.TransactionError, work, pk.Namespace('n')).match(message)
    with pk.snapshot(n): refused('1 open snapshots.*end them')
    with pk.transaction(n): refused('has a transaction')
    iteration = iter(n)
    next(iteration)
    refused('1 open snapshots.*end them')
    iteration.close()
    assert pk.namespaces() == ['n'] and _is_whole('n') and pk.gc() == []
    work(pk.Namespace('n'))


_keeps = """
with pk.snapshot('n'):
    say()
    hear()
"""

def test_compacting_is_refused_while_another_process_reads(n, monkeypatch):
    "The others may be dropped or renamed under it"
    monkeypatch.setattr(storage, '_PATIENCE', 0.05)
    with Child(n.site, _keeps) as reader:
        reader.hear()
        with pytest.raises(pk.TransactionError, match=f'processes {reader.pid} have snapshots open'): pk.compact('n')
        assert _is_whole('n') and pk.gc() == []
        reader.say()
        reader.wait()
    pk.compact('n')
    assert _is_whole('n')


# --- dropped in the middle of something

_waits = _open + '''
never_look_again()
q, full = pk.Queue('n/empty'), pk.Queue('n/full', maxsize=1)
full.put(1)
async def changed():
    async for change in d.changes(): return bool(change)
ways = dict(get=q.get, get_many=lambda: q.get_many(3)[0], aget=lambda: asyncio.run(q.aget()), put=lambda: full.put(2), join=full.join,
            until=lambda: pk.wait_until(lambda: d.get('x')), event=e.wait, changes=lambda: asyncio.run(changed()),
            until_async=lambda: asyncio.run(pk.transactions.wait_until_async(lambda: d.get('x'))),
            lock=lambda: l.acquire(timeout=600), length=lambda: pk.wait_until(lambda: 'new' in pk.Namespace('n'), 600))
alone = threading.Lock()
def wait(name):
    try: outcome = ways[name]()
    except BaseException as error: outcome = type(error).__name__
    with alone: say([name, outcome])
threads = [threading.Thread(target=wait, args=[name], daemon=True) for name in ways]
for thread in threads: thread.start()
say(len(ways))
for thread in threads: thread.join()
'''

def _are_asleep(pid, threads):
    "Whether all threads of a process sleep, at several looks"
    def looks(): return [file.read_text().rsplit(')')[1].split()[0] for file in Path(f'/proc/{pid}/task').glob('*/stat')]
    states = [looks() for _ in range(5) if not time.sleep(0.01)]
    return all(len(o) > threads and set(o) == {'S'} for o in states)

@contextmanager
def _waiters(site):
    "A function that returns how each of the threads has ended that wait, in another process, for all that can be waited for"
    with Child(site, _waits) as child:
        n = child.hear()
        assert wait_for(lambda: _are_asleep(child.pid, n))
        yield lambda: dict(child.hear() for _ in range(n))

@pytest.mark.parametrize('way', ['dropped', 'renamed', 'back'])
def test_who_waits_in_a_dropped_namespace_is_woken(n, way):
    "One who waits for a name to appear may wait on: the namespace can be made anew"
    lock = pk.Lock('n/l')
    lock.acquire()
    with _waiters(n.site) as outcomes:
        _ways[way]()
        pk.Dict('n/new')
        found = outcomes()
        assert found.pop('length') is True and len(found) == 10 and set(found.values()) == {'ObjectNotFoundError'}
    with suppress(pk.ObjectNotFoundError): lock.release()
    with pytest.raises(RuntimeError, match='not held'): lock.release()


def test_who_waits_in_a_compacted_namespace_is_woken(n):
    "By what happens in the new files, at once"
    lock, full = pk.Lock('n/l'), pk.Queue('n/full', maxsize=1)
    lock.acquire()
    with _waiters(n.site) as outcomes:
        for _ in range(3): pk.compact('n')
        pk.Queue('n/empty').put_many([7]*5)
        n['x'] = 7
        pk.Event('n/e').set()
        assert full.get() == 1 and full.get() == 2
        for _ in range(2): full.task_done()
        pk.Dict('n/new')
        assert lock.locked()
        lock.release()
        sevens = dict.fromkeys(['get', 'get_many', 'aget', 'until', 'until_async'], 7)
        assert outcomes() == sevens | dict(put=None, join=None, event=True, changes=True, lock=True, length=True)


_reads = _open + """
with pk.snapshot(d):
    array, items = d['large'], iter(d.items())
    say()
    hear()
    error = failure(lambda: say(bytes(f.content) == b'old'))
    if error: say(error['type'] == 'ObjectNotFoundError')
    say([d['small'], d.note, len(a), bool((array == np.arange(2**16)).all()), d['large'] is not None and [k for k, v in items]])
say([failure(lambda: d['small']), bool((array == np.arange(2**16)).all()), failure(lambda: q.qsize())])
"""

@pytest.mark.parametrize('way', _ways)
def test_trap_02_snapshot_of_a_dropped_namespace(n, way):
    "What lies in LMDB's file is there until its end, views stay as they are, and a blob is there or said to be gone"
    with Child(n.site, _reads, way) as reader:
        reader.hear()
        _ways[way]()
        reader.say()
        assert reader.hear() is True
        assert reader.hear() == ['old', 'old', 3, True, ['large', 'small']]
        after, same, size = reader.hear()
    assert after['type'] == size['type'] == 'ObjectNotFoundError' and same
    assert pk.namespaces() == _left[way]


def test_iteration_over_a_dropped_namespace(n):
    "Goes on over what was there; a read beside it does not"
    n.clear()
    n.update((i, i) for i in range(1000))
    items = iter(n.items())
    assert next(items) == (0, 0)
    run(n.site, "pk.Namespace('n').drop(); pk.Dict('n/d').update((i, -i) for i in range(1000)); say()")
    assert _gone(lambda: n[1]) and list(items) == [(i, i) for i in range(1, 1000)] and _gone(lambda: next(iter(n)))
    assert pk.Dict('n/d')[1] == -1


_transacts = _open + """
with pk.transaction(d):
    d['small'] = 'old'
    d['committed'] = np.ones(2**16)
    say()
    hear()
say()
hear()
say(failure(lambda: d.update(late=1)))
"""

@pytest.mark.parametrize('way', _ways)
def test_transaction_under_way_is_waited_for(n, way):
    "And nothing that it has committed is lost"
    with Child(n.site, _transacts) as writer:
        writer.hear()
        n._store.open()
        dropper = threading.Thread(target=_ways[way])
        dropper.start()
        assert wait_for(lambda: waits_for_a_lock(os.getpid())) and 'committed' not in n and n['small'] == 'old'
        writer.say()
        writer.hear()
        dropper.join(60)
        writer.say()
        assert writer.hear()['type'] == 'ObjectNotFoundError'
    assert not dropper.is_alive() and pk.namespaces() == _left[way]
    if way == 'renamed': assert (pk.Dict('m/d')['committed'] == 1).all()


# --- met between the last commit to the old files and the new ones

_meets = _open + """
works = dict(read=lambda: d['small'], write=lambda: d.update(small='old'), put=lambda: q.put('old'), large=lambda: d['large'].sum(),
             store=lambda: d.update(large=np.arange(2**16)), list=lambda: [o.path for o in pk.Namespace('n')], iterate=lambda: list(d),
             snapshot=lambda: pk.snapshot(d).__enter__().__exit__(), make=lambda: pk.Dict('n/made'), fresh=lambda: pk.Dict('n/d', create=False))
found, alone = {}, threading.Lock()
def work(name): found[name] = failure(works[name])
threads = [threading.Thread(target=work, args=[name]) for name in works]
say()
hear()
for thread in threads: thread.start()
say(len(threads))
for thread in threads: thread.join()
say({name: e and e['type'] + e['message'] for name, e in found.items()})
say([q.qsize(), d['small'], int(d['large'].sum())] if sys.argv[2] == 'compacted' else failure(lambda: d['small'])['type'])
"""

@pytest.mark.parametrize('way', ['compacted', 'dropped', 'renamed'])
def test_met_in_the_middle(n, way, monkeypatch):
    "Who comes between the last commit to the old files and their removal waits for the end"
    arrived, go, make_way = threading.Event(), threading.Event(), storage._Opening._make_way
    def pause(self, heir):
        arrived.set()
        assert go.wait(60)
        make_way(self, heir)
    monkeypatch.setattr(storage._Opening, '_make_way', pause)
    with Child(n.site, _meets, way) as other:
        other.hear()
        worker = threading.Thread(target=dict(_ways, compacted=lambda: pk.compact('n'))[way])
        worker.start()
        assert arrived.wait(60)
        other.say()
        threads = other.hear()
        assert wait_for(lambda: _are_asleep(other.pid, threads//2))
        go.set()
        worker.join(60)
        found, after = other.hear(), other.hear()
    made = {name for name, error in found.items() if error is None}
    if way == 'compacted': assert made == {*found} and after == [4, 'old', sum(range(LARGE))] and 'made' in pk.Namespace('n')
    else:
        # what asks for the namespace alone, and comes late, may find the one that was made anew
        assert made <= {'make', 'list', 'snapshot'} and 'make' in made and after == 'ObjectNotFoundError'
        assert [*pk.Namespace('n').names()] == ['made']
    assert all(error is None or error.startswith('ObjectNotFoundError') for error in found.values()), found
    assert pk.gc() == []


# --- compacted, copied, renamed while others go on

_goes_on = _open + """
draft, prepared = f.open('w'), d._prepare(np.ones(2**16))
draft.write('written ')
listing = iter(pk.Namespace('n'))
seen = [next(listing).name]
l.acquire()
say()
for i in range(2):
    hear()
    from parkit.transactions import write
    if prepared: write(d._store, d._put, 'prepared', prepared)
    prepared = None
    seen += [o.name for o in listing]
    d['rounds'] = d.get('rounds', 0) + 1
    d['large'] = np.full(2**16, i)
    d.note = d.note + '.'
    a.append(i)
    q.put(i)
    draft.write('on ')
    say([d['rounds'], int(d['large'].sum())//2**16, d.note, a[-1], q.get(), s.get() and s.qsize(), e.is_set(), l.locked(),
         d.name, len(list(d)), pk.Dict('n/d').uuid == d.uuid, pk.namespaces(), seen])
draft.close()
l.release()
say(bytes(f.content).decode())
"""

@pytest.mark.parametrize('by', ['another', 'itself', 'its fork'])
def test_compaction_goes_unnoticed(n, by):
    "By one who reads, writes, lists, holds a lock, and has a file and a blob half written"
    for i in range(1000): n['filler', i] = bytes(1000)
    n.clear()
    n.update(small='old', large=np.arange(LARGE))
    def compact():
        freed = pk.compact('n')
        assert (freed > 10**6 or freed < 10**5) and not pk.Lock('n/l').acquire(False) and pk.Lock('n/l').locked()
    with Child(n.site, _goes_on) as other:
        other.hear()
        for i in range(2):
            if by == 'another': run(n.site, "pk.compact('n'); say()")
            elif by == 'itself': compact()
            else: forked(compact)
            assert not pk.Lock('n/l').acquire(False) and os.path.getsize(f'{n._store.path}/data.mdb') < 10**6
            other.say()
            assert other.hear() == [i + 1, i, 'old' + '.'*(i + 1), i, 'old', 2 - i, False, True, 'd', 4, True, ['n'], [*'adeflqs']]
            assert n['rounds'] == i + 1 and n.note == 'old' + '.'*(i + 1)
        assert other.hear() == 'written on on '
        other.wait()
    lock = pk.Lock('n/l')
    assert lock.acquire(False) and (n['prepared'] == 1).all() and len(blobs(n._store)) == 3
    lock.release()
    assert pk.gc() == [] and (by != 'another' or pk.check() == [])


def test_compaction_beside_busy_threads(n, monkeypatch):
    "No error, no lost write, whatever the threads do"
    monkeypatch.setattr(storage, '_PATIENCE', 60.0)
    busy, errors, counts, q = True, [], [0]*6, pk.Queue('n/busy')
    def count(i):
        n[i] = counts[i] + 1
        counts[i] += 1
        assert n[i] == counts[i]
    def store(i):
        n['blob'] = np.full(LARGE, 7)
        assert (n['blob'] == 7).all()
    def pass_on(i):
        q.put(counts[i])
        assert q.get(timeout=60) == counts[i]
        counts[i] += 1
    def look(i): assert {'small', 'large'} <= set(n) and len(n) >= 2 and n.note == 'old' and [*pk.Namespace('n').names()]
    def transact(i):
        with pk.transaction(n): n['sum'] = n.get('sum', 0) + 1
        counts[i] += 1
    def work(i, kind):
        try:
            while busy: kind(i)
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=work, args=o) for o in enumerate([count, count, store, pass_on, look, transact])]
    for thread in threads: thread.start()
    try:
        for _ in range(12):
            if errors: break
            before = min(counts[:2])
            pk.compact('n')
            wait_for(lambda: errors or min(counts[:2]) > before)
    finally:
        busy = False
        for thread in threads: thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)
    assert [n[0], n[1], n['sum']] == [counts[0], counts[1], counts[5]] and min(counts[:2]) >= 12 and q.empty()
    assert pk.check() == [] == pk.gc()


_counts = _open + """
name, i = sys.argv[2], 0
d[name] = 0
say()
while not os.path.exists(sys.argv[3]):
    with pk.transaction(d):
        d[name] += 1
        d['left'], d['right'] = d.get('left', 0) + 1, d.get('right', 0) - 1
    if i % 10 == 0: d[name, 'large'] = np.full(2**16, i)
    with pk.snapshot(d): assert d['left'] == -d['right'] and d[name] <= d['left']
    assert d['small'] == 'old'
    i += 1
say(i)
"""

def test_compaction_beside_busy_processes(n, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, '_PATIENCE', 60.0)
    with Child(n.site, _counts, 'one', tmp_path/'stop') as one, Child(n.site, _counts, 'two', tmp_path/'stop') as two:
        for child in (one, two): child.hear()
        for _ in range(10): pk.compact('n')
        before = n['left']
        assert wait_for(lambda: n['left'] > before)
        for _ in range(10): pk.compact('n')
        (tmp_path/'stop').touch()
        done = [child.hear() for child in (one, two)]
        for child in (one, two): child.wait()
    assert [n['one'], n['two']] == done and n['left'] == -n['right'] == sum(done)
    assert pk.check() == [] == pk.gc()  # which also empties the trash: a busy writer may have left that to a later one
    assert len(blobs(n._store)) == 4


@pytest.mark.parametrize('failure', ['unsupported', 'interrupted', 'copying'])
def test_compaction_that_fails_loses_nothing(n, failure, monkeypatch):
    "On a file system that cannot exchange two directories, at Ctrl-C just before that, and while copying"
    def fail(*args): raise dict(unsupported=pk.SiteError(22, 'cannot'), interrupted=KeyboardInterrupt, copying=OSError(28, 'No space'))[failure]
    with monkeypatch.context() as patched:
        if failure == 'unsupported': patched.setattr(storage, '_exchange', fail)
        elif failure == 'interrupted': patched.setattr(storage._Opening, '_make_way', fail)
        else: patched.setattr(storage, 'copy_file', fail)
        error = dict(unsupported=pk.SiteError, interrupted=KeyboardInterrupt, copying=pk.StorageFullError)[failure]
        with pytest.raises(error): pk.compact('n')
    n['after'] = 1
    assert n.pop('after') == 1 and _is_whole('n')
    assert run(n.site, "d = pk.Dict('n/d'); d['small'] = 'old'; say(len(d))") == 2 and _is_whole('n')
    pk.compact('n')
    assert _is_whole('n') and pk.gc() == []


def test_rename_that_fails_loses_nothing(n, monkeypatch):
    put = storage.WriteTxn.put
    def fail(txn, key, value, freeing=False):
        if txn.store is n._store: raise OSError(28, 'No space left')
        put(txn, key, value, freeing)
    with monkeypatch.context() as patched:
        patched.setattr(storage.WriteTxn, 'put', fail)
        with pytest.raises(pk.StorageFullError): pk.Namespace('n').rename('m')
    assert pk.namespaces() == ['n'] and _is_whole('n') and pk.gc() == []
    pk.Dict('m/d')
    with pytest.raises(pk.ObjectExistsError, match="'m' exists already"): pk.Namespace('n').rename('m')
    with pytest.raises(pk.ObjectExistsError): pk.Namespace('n').copy('n')
    with pytest.raises(pk.InvalidNameError): pk.Namespace('n').rename('_m')
    assert pk.namespaces() == ['m', 'n'] and _is_whole('n') and pk.gc() == []


def test_everything_doctor_names_can_be_compacted(n):
    "Beneath idle workers, too, who are then woken as before, and not only by their safety net of 30 s"
    f = pk.task(name='f')(lambda x: x + 1)
    array = pk.Array()
    array.append(1)
    assert f(1).result == 2
    for _ in range(2):
        found = {o.subject for o in pk.doctor() if 'durable, ' in o.what or 'scratch, ' in o.what}
        assert found == {'_anonymous', '_pool', '_traces', 'n', 'task'}
        for namespace in sorted(found): pk.compact(namespace)
        start = time.monotonic()
        trace = f(len(array))
        assert trace.result == 2 and time.monotonic() - start < 25 and list(array) == [1]
        assert trace.status == 'finished'
    assert pk.gc() == []


# --- killed at every step

_CHANGES = {'os.mkdir', 'os.rename', 'os.link', 'os.remove', 'os.rmdir', 'os.truncate', 'os.chmod', 'shutil.copyfile'}

def _die_at(n, work):
    "Do `work()`, killed just before its `n`th change to a file or directory, or before or after a commit or exchange"
    steps = 0
    def step(*args):
        nonlocal steps
        if steps == n: os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
    def look(event, args):
        if event in _CHANGES or event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT): step()
    def between(owner, name):
        original = getattr(owner, name)
        def stepping(*args, **kwargs):
            step()
            try: return original(*args, **kwargs)
            finally: step()
        setattr(owner, name, stepping)
    for owner, name in ((storage.WriteTxn, 'commit'), (storage.Store, 'ring'), (storage, '_exchange'), (storage, '_sync')): between(owner, name)
    sys.addaudithook(look)
    work()

def _deaths(work):
    "Do `work` in one forked child after the other, each killed one step later than the one before, until one is not; yields each time"
    for n in range(1000):
        with Fork(_die_at, n, work) as child: child.wait()
        yield n
        if not os.WIFSIGNALED(child.status): break
        assert os.WTERMSIG(child.status) == signal.SIGKILL
    assert n >= 10

def _files(site):
    "What there is in a site, its own files and those of locks left out, blobs without their names"
    paths = [path.relative_to(site.path) for path in Path(site.path).rglob('*')]
    return sorted(str(path.with_name('?') if path.parent.name in ('blobs', 'new') else path) for path in paths if path.parts[0] not in ('@', 'site.json') and 'locks' not in path.parts)

def _clean(namespaces):
    "What there is to be for some namespaces as `_fill` makes them"
    inside = ['@', *(f'@/{name}' for name in ('bell', 'blobs', 'blobs/?', 'blobs/?', 'data.mdb', 'lock.mdb', 'new', 'reserve', 'store.json', 'write.lock'))]
    return sorted(['_making', *namespaces, *(f'{namespace}/{name}' for namespace in namespaces for name in inside)])

def _state(namespaces=('n', 'm')):
    "Which of the namespaces there are, all whole; nothing is in the others"
    there = [name for name in namespaces if 'd' in pk.Namespace(name)]
    assert all(map(_is_whole, there)) and not [name for name in namespaces if name not in there and len(pk.Namespace(name))]
    return there

@pytest.fixture
def survived(n):
    "A function that looks, in this process and in a new one, at what the dead one has left, and at what is left then"
    os.makedirs(f'{n.site.path}/_making', 0o700, exist_ok=True)
    def look(step, *allowed):
        looks = [_state, lambda: forked(_state)]
        first, second = [look() for look in (looks if step % 2 else looks[::-1])]
        assert first == second and first in allowed, (step, first, second)
        pk.gc()
        for name in first:
            d = pk.Dict(f'{name}/d')
            d['after'] = 1  # writing works, and finds the bell and the lock
            del d['after']
        assert _files(n.site) == _clean(first) and (step % 7 or pk.gc() == []), step
        return first
    return look

def test_killed_while_it_drops_a_namespace(n, survived):
    for step in _deaths(lambda: pk.Namespace('n').drop()):
        if not survived(step, ['n'], []):
            assert _gone(lambda: n['small']) and pk.namespaces() == []
            n = _fill()
    assert n.exists


def test_killed_while_it_compacts_a_namespace(n, survived):
    for step in _deaths(lambda: pk.compact('n')):
        survived(step, ['n'])
        assert n['small'] == 'old'


def test_killed_while_it_copies_a_namespace(n, survived):
    for step in _deaths(lambda: pk.Namespace('n').copy('m')):
        if survived(step, ['n'], ['n', 'm']) == ['n', 'm']: pk.Namespace('m').drop()


def test_killed_while_it_renames_a_namespace(n, survived):
    "There may be two then, but never none"
    for step in _deaths(lambda: pk.Namespace('n').rename('m')):
        there = survived(step, ['n'], ['n', 'm'], ['m'])
        if 'n' not in there:
            assert _gone(lambda: n['small'])
            pk.Namespace('m').rename('n')
            assert n['small'] == 'old'  # the same object again
        elif 'm' in there: pk.Namespace('m').drop()


@pytest.mark.parametrize('work', [lambda d: d.rename('x'), lambda d: d.copy('n/x'), lambda d: d.copy('m/x'), lambda d: d.drop()],
                         ids='rename copy across drop'.split())
def test_killed_while_it_changes_an_object(n, work):
    def look():
        there = [o for namespace in ('n', 'm') for o in pk.Namespace(namespace) if o.name in 'dx']
        assert all(o['small'] == 'old' and (o['large'] == np.arange(LARGE)).all() and len(o) == 2 for o in there)
        return [o.path for o in there]
    for step in _deaths(lambda: work(n)):
        there = look()
        assert there == forked(look) and there in (['n/d'], ['n/d', 'n/x'], ['n/d', 'm/x'], ['n/x'], [])
        pk.gc()
        assert sum(len(blobs(n.site.store(name))) for name in ('n', 'm') if pk.Namespace(name).exists) == len(there) + 1  # and the file's
        if there == ['n/x']: n.rename('d')
        elif there: [pk.Dict(path).drop() for path in there[1:]]
        else:
            n = pk.Dict('n/d')
            n.update(small='old', large=np.arange(LARGE))
    assert pk.gc() == []


# --- copies and names

def test_nested_namespaces_are_independent(site):
    for path in ('a', 'a/b', 'a/b/c'): pk.Dict(f'{path}/d')['path'] = path
    inner = pk.Dict('a/b/d')
    pk.Namespace('a').drop()
    assert pk.namespaces() == ['a/b', 'a/b/c'] and inner['path'] == 'a/b'
    pk.Namespace('a/b').rename('a')
    assert pk.namespaces() == ['a', 'a/b/c'] and pk.Dict('a/d')['path'] == 'a/b' and _gone(lambda: inner['path'])
    pk.Namespace('a').copy('a/b/c/d/e')
    pk.Namespace('a').rename('a/b')
    pk.compact('a/b')
    assert pk.namespaces() == ['a/b', 'a/b/c', 'a/b/c/d/e'] and inner['path'] == 'a/b'
    pk.Namespace('a/b/c/d/e').drop()
    assert sorted(os.listdir(f'{site.path}/a/b/c')) == ['@']
    pk.Namespace('a/b/c').drop()
    pk.Namespace('a/b').drop()
    assert pk.namespaces() == [] and sorted(os.listdir(site.path)) == ['@', '_making', 'site.json']


@pytest.fixture
def elsewhere(tmp_path, tmp_path_factory):
    "A site on another file system"
    folder = tmp_path_factory.mktemp('elsewhere')
    if os.stat(folder).st_dev == os.stat(tmp_path).st_dev: pytest.skip('there is no other file system')
    site = pk.Site(folder/'site')
    yield site
    site.close()

def _inodes(store): return {os.stat(f'{store.path}/blobs/{name}').st_ino for name in os.listdir(f'{store.path}/blobs')}

@pytest.mark.parametrize('where', ['same', 'beside', 'other'])
def test_copy_of_a_namespace(n, where, elsewhere, tmp_path, request):
    "It is independent; blobs share their files on one file system, and outlive each other"
    beside = pk.Site(tmp_path/'beside')
    request.addfinalizer(beside.close)
    site = dict(same=n.site, beside=beside, other=elsewhere)[where]
    copy = pk.Namespace('n').copy('m', site=site)
    assert copy.path == 'm' and copy.path.site is site and not copy.durable and _is_whole('m', site=site) and _is_whole('n')
    e = pk.Dict('m/d', site=site)
    assert (_inodes(e._store) == _inodes(n._store)) is (where != 'other')
    assert e.uuid != n.uuid and not {o.uuid for o in copy} & {o.uuid for o in pk.Namespace('n')}
    assert not [path for path in Path(e._store.path).rglob('*') if path.stat().st_mode & 0o077]
    e['small'], n['new'] = 'changed', 1
    assert n['small'] == 'old' and 'new' not in e
    del e['large'], e['small'], n['new']
    with pk.File('m/f', site=site).open('w') as file: file.write('changed')
    assert _is_whole('n')
    pk.Namespace('n').copy('m2', site=site)
    pk.Namespace('n').drop()
    assert _is_whole('m2', site=site) and pk.check(site) == []
    back = pk.Namespace('m2', site=site).copy('n', site=n.site)
    assert _is_whole('n') and not back.durable and _gone(lambda: n['small']) and pk.gc() == [] == pk.gc(site=site)


_writes_pairs = """
d, i = pk.Dict('n/d'), 0
say()
while not os.path.exists(sys.argv[2]):
    with pk.transaction(d):
        d[i % 50], d['other', i % 50], d['last'] = i, -i, i
        if i % 5 == 0: d['large'], d['number'] = np.full(2**15, i), i
    i += 1
"""

def test_copies_amid_writing_are_consistent(n, tmp_path):
    with Child(n.site, _writes_pairs, tmp_path/'stop') as writer:
        writer.hear()
        assert wait_for(lambda: 'last' in n)
        for i in range(4):
            before = n['last']
            pk.Namespace('n').copy(f'copy{i}')
            o = n.copy('copies/d')
            for copy in (pk.Dict(f'copy{i}/d'), o):
                assert before <= copy['last'] <= n['last'] and (copy['large'] == copy['number']).all()
                assert all(copy['other', k] == -copy[k] for k in copy.keys() if isinstance(k, int))
            o.drop()
            if i: pk.Namespace(f'copy{i}').drop()
        (tmp_path/'stop').touch()
        writer.wait()
    assert pk.check() == [] == pk.gc()


@pytest.mark.parametrize('durable', [True, False])
def test_durable_and_scratch_stay_what_they_are(site, durable):
    pk.Namespace('n', durable=durable)
    pk.Dict('n/d')['a'] = 1
    pk.Namespace('n').copy('copy')
    pk.Namespace('copy').rename('renamed')
    pk.compact('renamed')
    pk.compact('n')
    code = "say([[pk.Namespace(p).durable, pk.Dict(f'{p}/d')['a']] for p in ('n', 'renamed')])"
    assert run(site, code) == [[durable, 1]]*2
    assert not (pk.Namespace('n').durable ^ durable) and pk.namespaces() == ['n', 'renamed']
    with pytest.raises(pk.ObjectExistsError): pk.Namespace('renamed', durable=not durable)
    for kind in (True, False):  # an object's copy is of the namespace's kind that it comes to
        pk.Namespace('other', durable=kind)
        pk.Dict('n/d').copy('other/d')
        assert pk.Namespace('other').durable == kind
        pk.Namespace('other').drop()


def test_stored_references(n):
    "Survive a compaction, do not follow a namespace to its new path, and mean the originals in a copy"
    pk.Dict('refs/d').update(d=n, anonymous=pk.Array())
    pk.Dict('refs/d')['anonymous'].append(1)
    n['me'] = n
    pk.compact('n')
    pk.compact('refs')
    pk.compact(pk.Dict())
    def follow():
        refs = pk.Dict('refs/d')
        return refs['d']['small'], refs['d']['me'].path, list(refs['anonymous'])
    assert follow() == forked(follow) == ('old', 'n/d', [1])
    pk.Namespace('n').copy('m')
    assert pk.Dict('m/d')['me'].path == 'n/d'
    pk.Namespace('n').rename('k')
    assert _gone(lambda: pk.Dict('refs/d')['d']['small']) and _gone(lambda: pk.Dict('m/d')['me']['small'])
    pk.Namespace('m').rename('n')
    assert _gone(lambda: pk.Dict('refs/d')['d']['small'])  # another object of the same name
    pk.Namespace('n').drop()
    pk.Namespace('k').rename('n')
    assert follow() == ('old', 'n/d', [1])


_sees = _open + """
say()
for _ in range(3):
    hear()
    say([d.name, d.path, repr(d), d['small'], failure(lambda: pk.Dict('n/d', create=False)) and True, [*pk.Namespace('n').names()]])
"""

def test_new_name_of_an_object(n):
    "Who has it open goes on with it, though another takes the old name, and the namespace is compacted"
    with Child(n.site, _sees) as other:
        other.hear()
        n.rename('z')
        other.say()
        assert other.hear() == ['z', 'n/z', "Dict('n/z', 2 entries)", 'old', True, [*'aeflqsz']]
        n.rename('n/y')
        pk.Dict('n/d')['small'] = 'of another'
        other.say()
        assert other.hear() == ['y', 'n/y', "Dict('n/y', 2 entries)", 'old', None, [*'adeflqsy']]
        pk.compact('n')
        n.rename('x')
        other.say()
        assert other.hear()[:4] == ['x', 'n/x', "Dict('n/x', 2 entries)", 'old']
    for name, error in dict(d=pk.ObjectExistsError, x=pk.ObjectExistsError, _x=pk.InvalidNameError).items():
        with pytest.raises(error): n.rename(name)
    with pytest.raises(pk.InvalidNameError, match='copy it'): n.rename('m/x')
    with pytest.raises(pk.InvalidNameError, match='anonymous'): pk.Dict().rename('x')
    with pk.transaction(n), suppress(KeyError):
        with pk.transaction(n):
            n.rename('undone')
            raise KeyError
    assert n.path == 'n/x' and pk.Dict('n/d')['small'] == 'of another'


class Account(pk.Dict):
    "A class that others cannot import"
    owner = 'nobody'
    def total(self): return sum(self.values())

def _with(o, fill):
    fill(o)
    return o

def _write(o):
    with o.open('wb') as file: file.write(b'x'*2**19)

_makers = dict(
    Dict=lambda: _with(pk.Dict('n/o'), lambda o: o.update({'a': 1, 'x'*2000: 'long', ('t', 1.5): np.arange(LARGE), True: 'kept'})),
    Array=lambda: _with(pk.Array('n/o', maxsize=3), lambda o: o.extend([1, 2, 3, np.arange(LARGE)])),
    Queue=lambda: _with(pk.Queue('n/o', maxsize=5), lambda o: (o.put_many([1, np.arange(LARGE), 3]), o.get(), o.task_done())),
    LifoQueue=lambda: _with(pk.LifoQueue('n/o'), lambda o: (o.put_many([1, 2, 3]), o.get(), o.put(np.arange(LARGE)))),
    File=lambda: _with(pk.File('n/o'), _write), Lock=lambda: pk.Lock('n/o'), Event=lambda: _with(pk.Event('n/o'), lambda o: o.set()),
    Object=lambda: pk.Object('n/o'), Account=lambda: _with(Account('n/o'), lambda o: o.update(a=1, b=2)))

def _content(o):
    "What an object holds, as something that can be compared"
    if isinstance(o, pk.Dict): found = list(o.items())
    elif isinstance(o, pk.Array): found = [o.maxsize, *o]
    elif isinstance(o, pk.Queue): found = [o.maxsize, o.qsize(), o.full(), *[o.get() for _ in range(o.qsize())]]
    elif isinstance(o, pk.File): found = bytes(o.content)
    elif isinstance(o, pk.Event): found = o.is_set()
    else: found = o.locked() if isinstance(o, pk.Lock) else None
    return repr(found), o.metadata, o.note.tolist(), type(o).__name__

@pytest.mark.parametrize('kind', _makers)
def test_copy_of_an_object(site, elsewhere, kind):
    "Within the namespace, to others, to another site, and without a name"
    o = _makers[kind]()
    o.metadata, o.note = dict(of='the original'), np.arange(5)
    copies = [o.copy('n/copy'), o.copy('m/copy'), o.copy('n/copy', site=elsewhere), o.copy(), o.copy(site=elsewhere)]
    expected = _content(o.copy())
    for copy in copies:
        assert type(copy) is type(o) and copy.exists and copy.version == o.version and copy.created >= o.created
        assert _content(copy.copy()) == expected
    assert len({x.uuid for x in [o, *copies]}) == 6 and [x.path for x in copies] == ['n/copy', 'm/copy', 'n/copy', None, None]
    assert _content(pk.Namespace('n', site=elsewhere)['copy']) == expected
    for x in copies[:3]:
        with pytest.raises(pk.ObjectExistsError, match='exists already'): o.copy(x.path, site=x.site)
    o.note = 'changed'
    o.drop()
    assert all(np.array_equal(x.note, np.arange(5)) for x in copies) and pk.gc() == []
    for x in copies[:2] + copies[3:4]: x.drop()
    assert blobs(site.store('n')) == blobs(site.store('m')) == blobs(site.store('_anonymous', True)) == []


# --- at random

_roams = _open + """
import random
rng, done = random.Random(int(sys.argv[2])), 0
names = [f'x{i}' for i in range(6)]
say()
hear()
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end or done < 20:
    name = rng.choice(names)
    try:
        action = rng.random()
        if action < 0.1: pk.Namespace(name).rename(rng.choice(names))
        elif action < 0.2: pk.compact(name)
        elif action < 0.25: site.close()
        else:
            d = pk.Dict(f'{name}/d', create=False)
            with pk.transaction(d):
                d['left'] += 1
                d['right'] -= 1
                if action < 0.4: d['large'] = np.full(2**15, d['left'])
            done += 1
            with pk.snapshot(d): assert d['left'] == -d['right'] and (d['large'] <= d['left']).all()
    except (pk.ObjectNotFoundError, pk.ObjectExistsError): pass
    except pk.TransactionError as e: assert 'while it is read' in str(e), e
say(done)
"""

@pytest.mark.parametrize('seed', range(int(os.environ.get('PARKIT_TORTURE', 1))))
def test_processes_that_rename_and_compact_at_random(n, seed):
    "Each transaction is in the end where its namespace has come to; nothing is lost, doubled or left"
    for i in range(3):
        pk.Namespace(f'x{i}', durable=False)
        pk.Dict(f'x{i}/d').update(left=0, right=0, large=np.zeros(2**15), i=i)
    with ExitStack() as stack:
        children = [stack.enter_context(Child(n.site, _roams, 10*seed + i, 1.5)) for i in range(3)]
        for child in children: child.hear()
        for child in children: child.say()
        done = [child.hear() for child in children]
        for child in children: child.wait()
    there = [path for path in pk.namespaces() if path != 'n']
    found = [pk.Dict(f'{path}/d') for path in there]
    assert len(there) == 3 and sorted(d['i'] for d in found) == [0, 1, 2]
    assert sum(d['left'] for d in found) == sum(done) and all(d['left'] == -d['right'] for d in found)
    assert all(len(blobs(d._store)) == 1 for d in found) and pk.gc() == [] == pk.check()


def test_scratch_namespace_that_is_dropped_while_it_is_asked_for_is_made_as_asked(site, monkeypatch):
    there = storage.Store.is_on_disk
    monkeypatch.setattr(storage.Store, 'is_on_disk', lambda self: monkeypatch.setattr(storage.Store, 'is_on_disk', there) or True)
    assert not pk.Namespace('n', durable=False).durable


def test_class_that_an_older_parkit_has_stored(site):
    "Its record had no hash before it"
    from parkit.codecs import _join, encode
    from parkit.objects import CLASSES
    run(site, "class Counter(pk.Dict):\n    def total(self): return sum(self.values())\nCounter('n/c')['a'] = 5\nsay()")
    store = site.store('n')
    def work(txn):
        for key, value in list(store.scan(txn, CLASSES, CLASSES + b'\xff')): txn.put(key, value[32:])
    from parkit.transactions import write
    write(store, work)
    assert pk.Namespace('n')['c'].total() == 5
    run(site, "class Counter(pk.Dict):\n    def total(self): return 7\nCounter('n/c')['a'] = 6\nsay()")
    assert run(site, "say(pk.Namespace('n')['c'].total())") == 7
