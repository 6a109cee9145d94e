"How much is kept of calls that have ended: bytes are looked at when they come, by whichever process ends a call"
import parkit as pk, pytest
from conftest import wait_for
from parkit.ledger import _TOTAL, _TOTALS, _ledger, prune
from parkit.transactions import read


def _kept(ledger):
    "Bytes of arguments, results and output of the calls that have ended"
    return read(ledger._store, lambda txn, zero_copy: _TOTALS.unpack(txn.get(ledger._key(_TOTAL, '')))[1])


@pytest.mark.parametrize('max_tasks', [1, 7, None])
@pytest.mark.parametrize('way', ['result', 'argument', 'output', 'error', 'stream'])
def test_no_more_bytes_are_kept_than_the_limit_and_the_last_record(single, way, max_tasks):
    "Whatever the bytes are of, and however few calls a worker runs; the result of the last call can be read, whatever its size"
    single.keep_bytes, single.max_tasks_per_worker, n = 8*2**20, max_tasks, 3*2**20
    @pk.task
    def result(n): return bytes(n)
    @pk.task
    def argument(n): return len(n)
    @pk.task
    def output(n): print('.'*n)
    @pk.task
    def error(n): raise ValueError('.'*(n//2))  # which is in the traceback too
    @pk.task
    def stream(n): yield len(n)
    ledger, task = _ledger(single.site), dict(result=result, argument=argument, output=output, error=error, stream=stream)[way]
    for _ in range(10):
        trace = task(bytes(n) if way in ('argument', 'stream') else n)
        assert trace.wait(60) and wait_for(lambda: _kept(ledger) <= single.keep_bytes + n + 2**16)
    assert len(pk.traces()) <= 4
    large = result(12*2**20)
    assert large.wait(60) and large.result == bytes(12*2**20)
    assert wait_for(lambda: pk.traces() == [large])
    single.stop()
    assert prune(ledger) == 0 and large.result == bytes(12*2**20)


def test_calls_cancelled_by_the_hundred_are_not_all_kept(single):
    "Also where no pool runs that would see to it"
    @pk.task
    def late(data): return None
    with pk.transaction(_ledger(single.site)): traces = [late.options(delay=3600)(bytes(2**16)) for _ in range(300)]
    single.stop()
    single.keep_bytes = 2**20
    for t in traces: t.cancel()
    assert _kept(_ledger(single.site)) <= 2*2**20


def test_cancel_in_a_transaction_that_is_rolled_back_removes_nothing(single, double):
    single.keep_traces = 0
    d, trace = pk.Dict('d'), double.options(delay=3600)(1)
    ledger = _ledger(single.site)
    ledger._unpruned = 10**6, 0
    with pytest.raises(ZeroDivisionError), pk.transaction(ledger):
        trace.cancel()
        1/0
    assert trace.status == 'submitted'
