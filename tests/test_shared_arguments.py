"Big buffers among the arguments of calls: each is kept once, by its content, as long as a call is kept that was given it; real workers"
import os, signal

import numpy as np, parkit as pk, pytest
from conftest import wait_for
from helpers import Child
from parkit.codecs import decode, encode, encode_buffer, take_out
from parkit.ledger import _TOTAL, _TOTALS, _ledger, _remove, prune
from parkit.transactions import read

SIZE = 2**17  # float64: a mebibyte


def _blobs(site):
    folder = os.path.join(_ledger(site)._store.path, 'blobs')
    return sorted(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) if os.path.exists(folder) else []

def _kept(site):
    ledger = _ledger(site)
    return _TOTALS.unpack(read(ledger._store, lambda txn, zero_copy: txn.get(ledger._key(_TOTAL, ''))))

@pytest.fixture
def total(site):
    pk.Pool().resize(2)
    @pk.task
    def total(a, k=0):
        a = np.asarray(a)
        a += 1  # of its own
        return float(a.sum())
    return total


# --- records

def _values():
    import pandas as pd
    a = np.arange(SIZE, dtype=float)
    return dict(array=a, fortran=np.asfortranarray(a.reshape(2**9, -1)), readonly=np.frombuffer(a.tobytes()), nested=dict(x=[a, (a[:10], a*2)]),
                frame=pd.DataFrame(dict(x=a, y=a)), small=a[:10], none=None, twice=[a, a], bytearray=bytearray(a.tobytes()))

@pytest.mark.parametrize('name', ['array', 'fortran', 'readonly', 'nested', 'frame', 'small', 'none', 'twice', 'bytearray'])
def test_buffers_that_are_taken_out_of_a_record_are_put_back(name):
    value = _values()[name]
    rest, taken = take_out(encode(((value,), {})), 2**18)
    rest = rest if isinstance(rest, bytes) else rest.join()
    assert (len(rest) < 2**16) or name == 'bytearray'
    found = decode(rest, taken={n: decode(encode_buffer(view).join()) for n, view in taken.items()})[0][0]
    assert repr(found) == repr(value) and encode(found) is not None
    if name == 'array':
        found += 1  # it accepts writes
        assert np.array_equal(found, value + 1)
    if name == 'twice': assert found[0] is found[1]


# --- calls

def _loop(task, a, n): return [t.result for t in [task(a, k=i) for i in range(n)]]
def _options(task, a, n): return [t.result for t in [task.options(priority=2)(a, k=i) for i in range(n)]]
def _map(task, a, n): return pk.map(task, [a]*n, range(n))
def _chunks(task, a, n): return pk.map(task, [a]*n, range(n), chunksize=3)
def _function(a, k): return float(np.asarray(a).sum() + np.asarray(a).size)
def _submit(task, a, n):
    with pk.Executor() as e: return [f.result(60) for f in [e.submit(task, a, i) for i in range(n)]]
def _executor_map(task, a, n):
    with pk.Executor() as e: return list(e.map(_function, [a]*n, range(n)))
def _executor_chunks(task, a, n):
    with pk.Executor() as e: return list(e.map(_function, [a]*n, range(n), chunksize=3))
def _joblib(task, a, n):
    joblib = pytest.importorskip('joblib')
    with pk.joblib_backend(): return joblib.Parallel()(joblib.delayed(_function)(a, i) for i in range(n))

@pytest.mark.parametrize('call', [_loop, _options, _map, _chunks, _submit, _executor_map, _executor_chunks, _joblib])
def test_one_array_given_to_many_calls_is_stored_once(total, call):
    a = np.ones(SIZE)
    assert call(total, a, 7) == [2.0*SIZE]*7 and np.all(a == 1)
    big = [size for size in _blobs(total.site) if size > 2**18]
    assert len(big) == 1 and 0 <= big[0] - a.nbytes < 1000

def test_an_array_changed_between_calls_is_another(total):
    "By whoever: each call has what it was given when it was made"
    a, traces = np.zeros(SIZE), []
    for i in range(5):
        traces.append(total(a))
        a[0] += 1
    assert [t.result for t in traces] == [SIZE + float(i) for i in range(5)]
    assert [t.args[0][0] for t in traces] == [0, 1, 2, 3, 4] and len(_blobs(total.site)) == 5

def test_equal_content_of_other_shape_type_or_place_is_shared(total):
    a = np.zeros(SIZE)
    for given in (a, a.copy(), a.reshape(2**7, -1), a.astype('int64')): assert total(given).result == SIZE
    assert len(_blobs(total.site)) == 1

def test_processes_that_give_the_same_at_once_share_it(total):
    code = 'import numpy as np\nt = pk.bind_task("total")\nsay([t(np.ones(2**17), k=i).result for i in range(10)])'
    with Child(total.site, code) as one, Child(total.site, code) as two: assert one.hear() == two.hear() == [2.0*SIZE]*10
    assert len(_blobs(total.site)) == 1

def test_a_call_that_is_run_again_has_what_it_was_given(site):
    @pk.task(retries=2)
    def flaky(a, path):
        a += 1
        with open(path, 'a') as f: f.write('x')
        if os.path.getsize(path) == 1: raise OSError
        if os.path.getsize(path) == 2: os.kill(os.getpid(), signal.SIGKILL)
        return float(a[0])
    assert flaky(np.ones(SIZE), site.path + '/n').result == 2


# --- what is kept

def test_a_buffer_goes_with_the_last_call_that_was_given_it(total):
    "And counts as kept, once, when all of these have ended"
    pk.Pool().resize(1)
    ledger, a = _ledger(total.site), np.ones(SIZE)
    traces = [total(a) for _ in range(4)]
    assert all(t.wait(60) for t in traces) and wait_for(lambda: a.nbytes < _kept(total.site)[1] < 2*a.nbytes)
    pk.Pool().keep_traces = 1
    assert prune(ledger) == 3 and len(_blobs(total.site)) == 1 and traces[-1].args[0][0] == 1
    pk.Pool().keep_traces = 0
    assert prune(ledger) == 1 and _kept(total.site) == (0, 0)
    assert total(np.ones(3)).result == 6 and wait_for(lambda: not _blobs(total.site))  # the next write removes the file
    assert total(a).result == 2.0*SIZE

def test_no_more_calls_are_removed_than_the_limit_asks_for(total):
    "Calls without such a buffer stay"
    pk.Pool().resize(1)
    a = np.ones(SIZE)
    big, small = [total(a) for _ in range(3)], [total(np.ones(3), k=i) for i in range(5)]
    assert all(t.wait(60) for t in big + small)
    pk.Pool().keep_bytes = a.nbytes//2
    prune(_ledger(total.site))
    assert pk.traces() == small[::-1] and _kept(total.site)[1] < a.nbytes//2

def test_what_waits_or_runs_is_not_kept_of_ended_calls(site, tmp_path):
    pk.Pool().resize(1)
    @pk.task
    def wait(a, path):
        import time
        while not os.path.exists(path): time.sleep(0.01)
    a, go = np.ones(SIZE), str(tmp_path/'go')
    first, second = wait(a, str(tmp_path)), wait(a, go)
    assert first.wait(60) and wait_for(lambda: _kept(site)[0] == 1) and _kept(site)[1] < 2**16
    third = wait(np.ones(SIZE), go)
    third.cancel()
    assert _kept(site)[1] < 2**16
    second.cancel()
    assert wait_for(lambda: a.nbytes < _kept(site)[1] < 2*a.nbytes)

@pytest.mark.parametrize('how', ['cancelled', 'killed', 'failed', 'pruned in between'])
def test_however_calls_end_nothing_is_left(site, how, monkeypatch):
    @pk.task
    def work(a, how):
        if how == 'killed': os.kill(os.getpid(), signal.SIGKILL)
        if how == 'failed': raise OSError
    if how == 'cancelled': pk.Pool().stop()
    ledger, a = _ledger(site), np.ones(SIZE)
    for _ in range(3):
        trace = work.options(delay=600 if how == 'cancelled' else None)(a, how)
        if how == 'cancelled': trace.cancel()
        assert trace.wait(60)
        if how == 'pruned in between': ledger.keep_traces = 0; prune(ledger); ledger.keep_traces = 100
    assert len(_blobs(site)) <= 3
    ledger.keep_traces = 0
    prune(ledger)
    assert _kept(site) == (0, 0)
    pk.Dict('other', site=site)
    assert pk.check(site=site) == []

def test_removed_between_the_look_and_the_call(total, monkeypatch):
    "Then it is stored after all"
    ledger, a = _ledger(total.site), np.ones(SIZE)
    old = total(a)
    assert old.result == 2.0*SIZE
    unknown, looks = ledger._unknown, []
    def look(txn, zero_copy, digests):
        looks.append(found := unknown(txn, zero_copy, digests))
        return found
    monkeypatch.setattr(type(ledger), '_unknown', lambda self, *args: look(*args))
    share = type(ledger)._share
    def late(self, txn, record, prepared):
        if len(looks) == 1: _remove(txn, self, [old.id])
        return share(self, txn, record, prepared)
    monkeypatch.setattr(type(ledger), '_share', late)
    assert total(a).result == 2.0*SIZE and looks[0] == [] and len(looks) == 2

def test_a_call_made_in_a_transaction_has_its_arguments(total):
    a = np.ones(SIZE)
    with pk.transaction('default'): trace = total(a)
    assert trace.result == 2.0*SIZE


# --- items of one call

@pytest.mark.parametrize('chunksize', ['auto', 1, 5])
def test_items_of_one_call_share_no_object(site, chunksize):
    "What one of them does to its argument, or to the result of another, is not seen by the others"
    class Model:
        def __init__(self): self.seen, self.data = [], np.zeros(SIZE)
    @pk.task
    def fit(model, i):
        model.seen.append(i)
        model.data += 1
        return model
    found = pk.map(fit, [Model()]*10, range(10), chunksize=chunksize)
    assert [m.seen for m in found] == [[i] for i in range(10)] and all(m.data[0] == 1 for m in found) and len({id(m) for m in found}) == 10
    if chunksize == 'auto': return
    with pk.Executor() as e:
        for f in (fit, lambda m, i: m.seen.append(i) or m):
            assert [m.seen for m in e.map(f, [Model()]*10, range(10), chunksize=chunksize)] == [[i] for i in range(10)]
