"""Ctrl-C at any moment of a write, which takes a process of its own to be interrupted."""
import asyncio, dis, gc, json, os, subprocess, sys, threading, time

import parkit as pk, pytest
from helpers import Child, root, sleeps
from parkit.storage import BLOBS, TRASH, Store

_writer = '''
pk.Dict('scratch/d')
d, big, struck = pk.Dict('scratch/d'), np.zeros(40_000), 0
while struck < 200:
    try:
        say('writing')
        while True:
            d['a'] = struck
            with pk.transaction(d):
                d['b'] = struck
                d['c'] = struck
            with pk.transaction(d):
                with pk.transaction(d): d['big'] = big
    except KeyboardInterrupt:
        struck += 1
        with pk.snapshot(d): say([d.get('b'), d.get('c')])
'''


def test_interrupted_writes_are_whole_or_undone_and_hold_no_lock(site):
    pk.Namespace('scratch', durable=False)
    with Child(site, _writer) as child:
        for i in range(200):
            assert child.hear() == 'writing'
            time.sleep(i*7e-5 % 0.003)  # not a wait: any moment will do
            b, c = child.strike()
            assert b == c, 'half a transaction was committed'
            with pk.transaction('scratch', timeout=60): pk.Dict('scratch/d')['mine'] = i
        child.wait()
    store = pk.Dict('scratch/d')._store
    pk.Dict('scratch/d')['last'] = 1  # the next writer sweeps what a dead one left
    txn = store.read()
    known = len(list(store.scan(txn, BLOBS, TRASH))) + len(list(store.scan(txn, TRASH, b'\x06')))
    store.end(txn)
    assert os.listdir(os.path.join(store.path, 'new')) == []
    assert len(os.listdir(os.path.join(store.path, 'blobs'))) <= known


class _Interrupted:
    "LMDB's transaction, with an interrupt just after its commit"
    def __init__(self, raw): self.raw = raw
    def __getattr__(self, name): return getattr(self.raw, name)
    def commit(self):
        self.raw.commit()
        raise KeyboardInterrupt

def test_interrupt_just_after_a_commit_wakes_those_who_wait(site, monkeypatch):
    "What they wait for is there: without the bell they would sleep until the safety net wakes them"
    d = pk.Dict('n/d')
    with Child(site, "never_look_again(); d = pk.Dict('n/d'); say(); say(pk.wait_until(lambda: d.get('k')))") as child:
        child.hear()
        assert sleeps(child.pid)
        def write(self, *args, write=Store.write):
            txn = write(self, *args)
            txn.raw = _Interrupted(txn.raw)
            return txn
        with monkeypatch.context() as m:
            m.setattr(Store, 'write', write)
            with pytest.raises(KeyboardInterrupt): d['k'] = 1
        assert child.hear() == 1
        child.wait()


@pytest.mark.parametrize('after', ['lock', 'env'])
def test_interrupt_while_files_are_closed_takes_nothing_closed_for_open(site, after):
    d = pk.Dict('n/d')
    store = d._store
    class Closing:
        def __init__(self, o): self.o = o
        def __getattr__(self, name): return getattr(self.o, name)
        def close(self):
            self.o.close()
            raise KeyboardInterrupt
    whole = getattr(store, after)
    setattr(store, after, Closing(whole))
    try:
        with pytest.raises(KeyboardInterrupt): store._close_files()
    finally:
        if after == 'lock': store.lock = whole
    d['k'] = 1
    assert d['k'] == 1


@pytest.mark.timeout(400)
@pytest.mark.parametrize('works', ['small several undone put', 'snapshot locked reopen new_space new_site make'])
def test_interrupt_at_every_moment_leaves_nothing_half_done_nor_locked(tmp_path, works):
    """One after the other, at every moment at which Python looks for signals in parkit's code. Afterwards, though the traceback is kept as a notebook keeps it, this thread and another can
    write, the lock is free, the site can be closed (so nothing of LMDB's is open), and what is stored is what was before or what was to be. Other works: `torture/moments.py`"""
    torture = root/'tests'/'torture'
    env = {**os.environ, 'PYTHONPATH': f'{root}{os.pathsep}{torture}', 'OPENBLAS_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, torture/'moments.py', tmp_path/'site', 'interrupt', '1', '1', *works.split()], env=env, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found['moments'] > 100*len(works.split()) and not found['problems'], '\n'.join(found['problems'])


# --- at every place where Python may deliver one, in one process: traced, so not where a real signal comes, but everywhere

_CHECKS = ('RESUME', 'CALL', 'CALL_FUNCTION', 'CALL_METHOD', 'CALL_FUNCTION_EX', 'CALL_KW', 'JUMP_BACKWARD', 'JUMP_ABSOLUTE')

def _interrupt(k, work):
    "Do `work()`, and raise `KeyboardInterrupt` at the `k`-th place of parkit's code after which CPython looks for signals; was there one?"
    seen, last = 0, {}
    def look(frame, event, arg):
        nonlocal seen
        if frame.f_globals.get('__package__') != 'parkit': return None
        frame.f_trace_opcodes = True
        if event == 'return':
            last.pop(frame, None)
            last[frame.f_back] = 'returned'  # from a function of Python's: nothing is looked for
        if event != 'opcode': return look
        before, last[frame] = last.get(frame), dis.opname[frame.f_code.co_code[frame.f_lasti]]
        if before in _CHECKS and (seen := seen + 1) == k + 1: raise KeyboardInterrupt
        return look
    was = sys.gettrace()
    sys.settrace(look)
    try: work()
    except KeyboardInterrupt: pass
    finally: sys.settrace(was)
    return seen > k

def _is_free(d):
    "Can another thread of this process write, at once?"
    found = []
    def write():
        with pk.transaction(d, timeout=0): found.append(True)
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    return bool(found)

async def _in_async_block(d, k):
    async with pk.transaction(d): d['a'] = d['b'] = k

@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited')
@pytest.mark.parametrize('how', ['write', 'block', 'async block', 'async write'])
def test_interrupt_at_each_place_leaves_no_lock_behind(scratch, how):
    d, q, k = pk.Dict('n/d'), pk.Queue('n/q'), 0
    async def put(): await q.aput(k)
    def block():
        with pk.transaction(d): d['a'] = d['b'] = k
    def in_loop(coroutine):
        loop = asyncio.new_event_loop()
        try: loop.run_until_complete(coroutine)
        finally: loop.close()
    works = {'write': lambda: d.update(a=k, b=k), 'block': block, 'async block': lambda: in_loop(_in_async_block(d, k)), 'async write': lambda: in_loop(put())}
    d.update(a=-1, b=-1)
    while _interrupt(k, works[how]):
        gc.collect()
        assert _is_free(d), k
        assert d['a'] == d['b']
        k += 1
    assert k > 20
