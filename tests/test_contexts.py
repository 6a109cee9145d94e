"Which worker runs which call: of several callers with folders of their own, each finds what it has loaded; nobody waits for long"
import os, signal, time

import parkit as pk, pytest
from conftest import wait_for
from contextlib import ExitStack
from parkit import ledger as ledger_module
from parkit.calls import Runner, _environment, set_runner
from parkit.codecs import encode
from parkit.ledger import _WORKER, _ledger
from parkit.transactions import read
from task_helpers import Interpreter, settled_workers

_model = '''
import time
time.sleep(0.1)
open('loads', 'a').write('x')
'''

_program = '''
@pk.task(name='use_{name}')
def use(i):
    import model
    time.sleep(0.01)
    return os.getpid()
'''


@pytest.fixture
def notebooks(site, tmp_path):
    "Processes in folders of their own, each with a task that loads what lies there; and how often each has been loaded"
    with ExitStack() as stack:
        def start(n):
            folders = [tmp_path/chr(ord('a') + i) for i in range(n)]
            for folder in folders:
                folder.mkdir()
                (folder/'model.py').write_text(_model)
            made = [Interpreter(site, cwd=folder) for folder in folders]
            for p in made: stack.callback(p.close)
            for p, folder in zip(made, folders):
                p.run('sys.path.insert(0, os.getcwd())')
                p.run(_program.replace('{name}', folder.name))
            return made, lambda: [len((folder/'loads').read_text()) for folder in folders]
        yield start


@pytest.mark.parametrize('n', [2, 3])
def test_each_of_several_notebooks_keeps_the_worker_that_has_loaded_its_model(notebooks, site, n):
    "Whether they call in turn or at the same time; on a busy machine a worker may now and then be late, and another helps"
    pool = pk.Pool(site=site)
    pool.resize(n)
    made, loads = notebooks(n)
    for i in range(6):
        for p in made: p.run(f'use({i}).result')
    assert sum(loads()) <= n + 2
    for p in made: p.send('for i in range(20): use(i).result')
    for p in made: p.receive()
    assert sum(loads()) <= n + 4


def test_one_worker_serves_two_notebooks_in_turn(notebooks, single):
    "There is nobody to leave a call to"
    made, loads = notebooks(2)
    for p in made: p.run('use(0).result')
    for p in made: p.run('use(0).result')
    assert loads() == [2, 2]


def test_a_call_whose_own_worker_does_not_come_is_run_by_another(notebooks, site):
    "It is stopped here, and noted as idle"
    pool = pk.Pool(site=site)
    pool.resize(2)
    made, loads = notebooks(2)
    pids = [p.value('use(0).result') for p in made]
    assert len({*pids}) == 2
    os.kill(pids[0], signal.SIGSTOP)
    try: assert made[0].value('use(1).result') == pids[1] and loads() == [2, 1]
    finally: os.kill(pids[0], signal.SIGCONT)


def test_a_killed_worker_is_no_longer_one_to_leave_a_call_to(notebooks, site):
    pool = pk.Pool(site=site)
    pool.resize(2)
    made, _ = notebooks(1)
    ledger, pid = _ledger(site), made[0].value('use(0).result')
    def noted(): return read(ledger._store, lambda txn, zero_copy: [key for key, _ in ledger._scan(txn, _WORKER)])
    before = noted()
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: len({*before} - {*noted()}) == 1) and settled_workers(pool, 2)
    pool.stop()
    pool.start()
    assert wait_for(lambda: len(noted()) == 2 and not {*before} & {*noted()})


def test_a_notebook_that_never_stops_calling_keeps_no_other_waiting(notebooks, single, tmp_path):
    "Each of its calls is followed by another before it ends"
    made, _ = notebooks(2)
    made[1].run('use(0).result')
    made[0].send('''
traces, end = [use(i) for i in range(5)], time.monotonic() + 60
while time.monotonic() < end and not Path('stop').exists():
    traces.append(use(0))
    traces.pop(0).wait()
''')
    assert wait_for(lambda: len(pk.traces(task='use_a', status='finished')) > 10)
    begun = time.monotonic()
    made[1].run('use(1).result')
    assert time.monotonic() - begun < 30
    (tmp_path/'a'/'stop').touch()
    made[0].receive()


# --- the order, claim by claim

@pytest.fixture
def ledger(site):
    "A ledger whose calls nobody runs"
    set_runner(Runner())
    yield _ledger(site)
    set_runner(None)

class _Queue:
    "Calls of contexts `a` and `b`, claimed by workers in either"
    def __init__(self, ledger, task): self.ledger, self.task, self.me = ledger, task, ledger.site.alive.enter()

    def put(self, contexts, **options):
        for c in contexts:
            trace = (self.task.options(**options) if options else self.task)(c)
            record = self.ledger.record(trace.id)
            self.ledger.withdraw(trace.id, record)
            self.ledger.submit(trace.id, record._replace(context=c.encode()*16), encode((c,)), {})

    def take(self, context, patient=True, name=''):
        "The letter of the call that is claimed, `-` if it was left to another worker"
        me = name or self.me
        id = self.ledger.claim(me, _environment()[0], time.time(), True, context=context.encode()*16, patient=patient)
        if id is None: return '-' if self.ledger._left else ''
        letter = self.ledger.record(id).context[:1].decode()
        self.ledger.finish(me, id, 'finished', encode(None))
        return letter

@pytest.fixture
def queue(ledger, double): return _Queue(ledger, double)


def test_a_worker_takes_first_what_is_of_its_context(queue):
    queue.put('ababab')
    assert ''.join(queue.take('b') for _ in range(6)) == 'bbbaaa'
    queue.put('ab', delay=1e-6)
    assert ''.join(queue.take('b') for _ in range(2)) == 'ba'


def test_priority_goes_before_context(queue):
    queue.put('b')
    queue.put('a', priority=1)
    assert ''.join(queue.take('b') for _ in range(2)) == 'ab'


def test_what_is_first_in_line_is_passed_over_for_a_second_at_most(queue, monkeypatch):
    queue.put('abbbb')
    assert queue.take('b') == queue.take('b') == 'b'
    monkeypatch.setattr(ledger_module, '_PATIENCE', 0.0)
    assert queue.take('b') == 'a' and queue.take('b') == 'b'


def test_a_worker_looks_no_farther_than_some_calls(queue, monkeypatch):
    monkeypatch.setattr(ledger_module, '_NEAR', 3)
    queue.put('aaab')
    assert queue.take('b') == 'a' and queue.take('b') == 'b'


@pytest.mark.parametrize('mine, other, wanted, left', [('a', 'b', 'b', True), ('a', '', 'b', True), ('a', 'c', 'b', False), ('', 'b', 'b', True),
                                                       ('', '', 'b', False), ('b', 'b', 'b', False), ('a', 'a', 'b', False)])
def test_a_call_is_left_to_an_idle_worker_that_suits_it_better(queue, mine, other, wanted, left):
    "One that has its context, or none yet; not one that is busy"
    queue.take(other, name='f'*32)
    queue.ledger._noted = b''  # that was another process
    queue.put(wanted)
    assert queue.take(mine) == ('-' if left else wanted)
    assert not left or queue.take(mine, patient=False) == wanted
    queue.put(wanted*2)
    assert queue.ledger.claim('f'*32, _environment()[0], time.time())
    assert queue.take(mine) == wanted
