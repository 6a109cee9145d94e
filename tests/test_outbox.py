"""A call made in a transaction is queued if and only if that commits, exactly once, whoever dies when.

Real processes, killed at the moments between the commit and the delivery."""
import errno, json, os, shutil, signal
from pathlib import Path

import numpy as np, parkit as pk, pytest
from conftest import wait_for
from helpers import Child, run
from parkit import calls, delivery
from parkit.outbox import _posted
from parkit.delivery import deliver_all
from parkit.ledger import _Ledger, _ledger
from parkit.transactions import read
from task_helpers import ended, is_gone


@pytest.fixture
def note(site, tmp_path):
    "A task that appends to a file, and what the file holds"
    @pk.task
    def note(path, what):
        with open(path, 'a') as f: f.write(f'{what} ')
        return what
    path = tmp_path/'notes'
    return lambda what, **options: note.options(**options)(str(path), what), lambda: path.read_text().split() if path.exists() else []

def _outbox(store): return [p.id for p in read(store, lambda txn, zero_copy: _posted(store, txn))]

_caller = '''
note, d = (pk.bind_task('note') if pk.Namespace('task').get('note') else None), pk.Dict(sys.argv[2] + '/d')
from parkit import delivery
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
'''


# --- in a living process

@pytest.mark.parametrize('durable', [True, False])
def test_call_is_queued_when_the_transaction_commits(single, note, durable):
    call, notes = note
    pk.Namespace('n', durable=durable)
    d = pk.Dict('n/d')
    with pk.transaction(d):
        trace = call('a')
        d['trace'] = trace
        assert trace.status == 'submitted' and not trace.done and trace.args[1] == 'a' and pk.traces() == []
        with pytest.raises(pk.TransactionError, match='wait'): trace.result
        with pytest.raises(pk.TransactionError, match='wait'): trace.wait(0.1)
        with pytest.raises(pk.TransactionError, match='undo the transaction'): trace.cancel()
        assert single.status.queued == 0 and single.status.supervisor is None
    assert trace.result == 'a' == d['trace'].result and notes() == ['a'] and pk.traces() == [trace]
    assert wait_for(lambda: not _outbox(d._store))


def test_call_of_a_transaction_that_is_undone_is_not_queued(single, note):
    call, notes = note
    d = pk.Dict('n/d')
    with pytest.raises(KeyError):
        with pk.transaction(d):
            trace = call('a')
            raise KeyError
    with pytest.raises(pk.ObjectNotFoundError, match='undone'): trace.status
    assert call('b').result == 'b' and notes() == ['b'] and len(pk.traces()) == 1


def test_savepoints(single, note):
    call, notes = note
    d = pk.Dict('n/d')
    with pk.transaction(d):
        call('a')
        try:
            with pk.transaction(d):
                lost = call('b')
                raise KeyError
        except KeyError: pass
        with pk.transaction(d): call('c')
        with pytest.raises(pk.ObjectNotFoundError): lost.status
    assert wait_for(lambda: len(notes()) == 2) and notes() == ['a', 'c']
    assert len(pk.traces()) == 2


def test_innermost_of_two_namespaces_decides(single, note):
    call, notes = note
    a, b = pk.Dict('a/d'), pk.Dict('b/d')
    try:
        with pk.transaction(a):
            lost = call('a')
            with pk.transaction(b): kept = call('b')
            raise KeyError
    except KeyError: pass
    assert kept.result == 'b' and notes() == ['b']
    with pytest.raises(pk.ObjectNotFoundError): lost.status


def test_options_order_and_a_thousand_calls_in_one_transaction(single, note):
    call, notes = note
    d = pk.Dict('n/d')
    with pk.transaction(d):
        for i in range(300): call(i)
        call('first', priority=9)
        call('late', delay=3)
    assert wait_for(lambda: len(notes()) == 302) and notes() == ['first', *map(str, range(300)), 'late']
    assert wait_for(lambda: not _outbox(d._store))


def test_blobs_among_the_arguments(single):
    @pk.task
    def total(a, b): return float(a.sum() + b.sum())
    big, small = np.ones(2**18), np.ones(3)
    d = pk.Dict('n/d')
    with pk.transaction(d):
        d['big'] = big
        trace = total(big, small)
        assert trace.args[0].sum() == 2**18
    assert trace.result == 2**18 + 3 and trace.args[0].sum() == 2**18
    assert wait_for(lambda: not _outbox(d._store))
    folder = Path(d._store.path, 'blobs')
    with pk.transaction(d): d['x'] = 1
    assert wait_for(lambda: len(list(folder.iterdir())) == 1)  # the one of `d['big']`
    del d['big']
    assert wait_for(lambda: not list(folder.iterdir())) and trace.args[0].sum() == 2**18


def test_anonymous_objects(single):
    @pk.task
    def fill(d, n): d['n'] = n
    d = pk.Dict()
    with pk.transaction(d):
        d['m'] = 1
        trace = fill(d, 2)
    trace.result
    assert dict(d) == dict(m=1, n=2)


def test_call_in_a_transaction_of_a_task(single):
    @pk.task
    def inner(n): return n + 1
    @pk.task
    def outer():
        with pk.transaction('n'):
            pk.Dict('n/d')['x'] = 1
            return pk.bind_task('inner')(1)
    trace = outer()
    assert trace.result.result == 2 and trace.result.parent == trace


# --- killed

@pytest.mark.parametrize('durable', [True, False])
@pytest.mark.parametrize('moment', ['inside', 'after the commit', 'after the delivery'])
@pytest.mark.parametrize('next_', ['opens', 'starts the workers'])
def test_killed(single, note, durable, moment, next_):
    call, notes = note
    path = call('warm up').args[0]
    assert wait_for(lambda: notes() == ['warm', 'up'])
    single.stop()
    pk.Namespace('n', durable=durable)
    with Child(single.site, _caller + '''
moment, path = sys.argv[3:]
if moment == 'after the commit': delivery.deliver = die
if moment == 'after the delivery': delivery._ensure = delivery._write_if_free = die
with pk.transaction(d):
    d['x'] = note(path, 'once')
    if moment == 'inside': die()
''', 'n', moment, path) as child: assert child.process.wait(60) == -signal.SIGKILL
    assert notes() == ['warm', 'up']
    if next_ == 'opens': run(single.site, 'say(list(pk.Dict("n/d")))')
    else: single.start()
    if moment == 'inside':
        assert call('later').result == 'later' and notes() == ['warm', 'up', 'later'] and 'x' not in pk.Dict('n/d')
    else:
        trace = pk.Dict('n/d')['x']
        assert ended(trace) == 'finished' and trace.result == 'once'
        assert call('later').result == 'later' and notes() == ['warm', 'up', 'once', 'later']
    assert wait_for(lambda: not _outbox(single.site.store('n')))  # at the latest, when the supervisor looks again
    single.stop()
    single.start()
    assert call('last').result == 'last' and notes().count('once') == (moment != 'inside')


def test_supervisor_that_runs_finds_what_a_dead_process_has_left(single, note):
    "It looks now and then; here by hand"
    call, notes = note
    path = call('a').args[0]
    assert wait_for(lambda: notes() == ['a'])
    with Child(single.site, _caller + '''
delivery.deliver = die
with pk.transaction(d): note(sys.argv[3], 'b')
''', 'n', path) as child: child.process.wait(60)
    assert notes() == ['a'] and len(os.listdir(Path(single.site.path, '@', 'outbox'))) == 1
    deliver_all(single.site)
    assert wait_for(lambda: notes() == ['a', 'b'])
    wait_for(lambda: not _outbox(single.site.store('n')))
    deliver_all(single.site)
    assert not os.listdir(Path(single.site.path, '@', 'outbox'))


def test_two_processes_deliver_at_once(single, note):
    call, notes = note
    path = call('a').args[0]
    assert wait_for(lambda: notes() == ['a'])
    for i in range(5):
        with Child(single.site, _caller + '''
delivery.deliver = die
with pk.transaction(d): [note(sys.argv[3], f'{sys.argv[4]}-{i}') for i in range(20)]
''', 'n', path, i) as child: child.process.wait(60)
        others = [Child(single.site, 'hear()\nd = pk.Dict("n/d")\nsay(len(d))\nhear()') for _ in range(3)]
        for o in others: o.say()
        for o in others: o.hear()
        for o in others: o.__exit__()
    assert wait_for(lambda: len(notes()) == 101)
    assert sorted(notes()[1:]) == sorted(f'{i}-{j}' for i in range(5) for j in range(20))


# --- a reboot

def _reboot(site):
    "What the next process finds: scratch namespaces of another boot"
    site.close()
    for path in Path(site.path).rglob('store.json'): path.write_text(json.dumps({**json.loads(path.read_text()), 'boot': 'an earlier one'}))


def test_after_a_reboot_what_had_not_ended_is_delivered_again(site, tmp_path):
    "A durable namespace keeps it; scratch ones and the ledger are wiped"
    code = _caller + '''
pk.Pool().resize(1)
@pk.task
def gate(path):
    while not os.path.exists(path): time.sleep(0.01)
    return 'open'
@pk.task
def quick(): return 'done'
pk.Namespace('scratch', durable=False)
with pk.transaction(d):
    d['quick'] = quick()
    d['gate'] = gate(sys.argv[3])
with pk.transaction('scratch'): d['lost'] = gate(sys.argv[3])
d['quick'].result
while d['gate'].status != 'running': time.sleep(0.01)
from parkit.outbox import _is_posted
while _is_posted(d.site, 'n', d['quick'].id): time.sleep(0.01)  # the worker takes it out after it has taken the next
say(pk.Pool().status.workers + (pk.Pool().status.supervisor,))
hear()
'''
    with Child(site, code, 'n', tmp_path/'go') as child:
        pids = child.hear()
    for pid in reversed(pids): os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: all(map(is_gone, pids)))
    _reboot(site)
    d = pk.Dict('n/d')
    assert d['gate'].status in ('submitted', 'running')
    (tmp_path/'go').touch()
    assert d['gate'].result == 'open'
    for name in ('quick', 'lost'):
        with pytest.raises(pk.ObjectNotFoundError): d[name].status
    assert wait_for(lambda: not _outbox(d._store)) and len(pk.traces()) == 1


# --- what else looks into a namespace

def test_check_copy_and_rename_know_the_outbox(single, tmp_path):
    @pk.task
    def gate(path, x):
        import os, time
        while not os.path.exists(path): time.sleep(0.01)
        return len(x)
    d = pk.Dict('n/d')
    with pk.transaction(d): d['t'] = gate(str(tmp_path/'go'), np.zeros(2**17))
    assert _outbox(d._store) == [d['t'].id] and not pk.check()
    pk.Namespace('n').copy('copied')
    assert _outbox(single.site.store('copied')) == [] and not pk.check()
    pk.Namespace('n').rename('renamed')
    moved = pk.Dict('renamed/d')
    assert _outbox(moved._store) == [moved['t'].id]
    (tmp_path/'go').touch()
    assert moved['t'].result == 2**17
    run(single.site, 'say(len(pk.Dict("renamed/d")))')  # its opening finds that the call has ended
    assert wait_for(lambda: not _outbox(moved._store)) and len(pk.traces()) == 1 and not pk.check()


# --- what goes wrong between the commit and the queue

def test_delivery_that_fails_is_made_up_for_and_undoes_nothing(single, note, monkeypatch):
    "The transaction was committed: to make it again would do all of it twice"
    call, notes = note
    d = pk.Dict('n/d')
    def full(*args): raise pk.StorageFullError(errno.ENOSPC, 'no room for the ledger')
    with monkeypatch.context() as m:
        m.setattr(_Ledger, '_deliver', full)
        with pytest.warns(RuntimeWarning, match='was committed.*no room for the ledger'), pk.transaction(d):
            d['k'], trace = 1, call('a')
    assert d['k'] == 1 and trace.status == 'submitted' and _outbox(d._store)
    deliver_all(d.site)
    assert trace.result == 'a' and notes() == ['a']


def test_trap_12_reading_waits_for_no_writer_of_the_queue(site, note, monkeypatch):
    "Though there is something in the outbox of the namespace that is opened"
    call, _ = note
    d = pk.Dict('n/d')
    monkeypatch.setattr(calls, '_runner', [calls.Runner()])
    with pk.transaction(d): d['k'], _ = 1, call('a')
    txn = _ledger(site)._store.write()
    try: assert run(site, "say(pk.Dict('n/d')['k'])") == 1
    finally: txn.close()


def test_two_processes_find_an_outbox_empty_at_once(site, monkeypatch):
    store = pk.Dict('n/d')._store
    delivery._mark(store)
    path = Path(delivery._marks(site), 'n')
    monkeypatch.setattr(delivery, 'deliver', lambda store: path.unlink())  # as the other process does meanwhile
    deliver_all(site)
    assert not path.exists()


def test_full_disk_that_keeps_no_mark(site, note, monkeypatch):
    "A call in a transaction comes to nothing and says why; reading goes on"
    call, _ = note
    d = pk.Dict('n/d')
    monkeypatch.setattr(calls, '_runner', [calls.Runner()])
    with pk.transaction(d): d['k'], _ = 1, call('a')
    shutil.rmtree(delivery._marks(site))
    site.close()
    def mkdir(path, *args, mkdir=os.mkdir, **options):
        if 'outbox' in str(path): raise OSError(errno.ENOSPC, 'No space left on device')
        mkdir(path, *args, **options)
    monkeypatch.setattr(os, 'mkdir', mkdir)
    assert d['k'] == 1
    with pytest.raises(pk.StorageFullError), pk.transaction(d):
        d['k'] = 2
        call('b')
    assert d['k'] == 1
