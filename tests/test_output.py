"What calls write and how far they have come: kept with the trace, followed as it comes, shown to who waits"
import errno, os, re, signal, sys, time
from pathlib import Path

import parkit as pk, pytest
from conftest import wait_for
from helpers import Child, run, sleeps
from kernels import notebooks
from parkit.ledger import _ledger
from parkit.notebook import _Bar
from parkit.output import _keep_output, _output_path
from parkit.progress import Progress
from parkit.transactions import write
from task_helpers import ended, event_loop, started  # noqa: F401  a fixture


@pytest.fixture
def stepwise(single, tmp_path):
    "A task that writes a line for each file that is made; its trace, and what makes the next file"
    @pk.task
    def stepwise(folder, n):
        import time
        from pathlib import Path
        for i in range(n):
            Path(folder, f'ready-{i}').touch()
            while not Path(folder, f'go-{i}').exists(): time.sleep(0.005)
            print('line', i)
    def call(n):
        trace = stepwise(str(tmp_path), n)
        return trace, lambda i: (started(tmp_path/f'ready-{i}'), (tmp_path/f'go-{i}').touch())
    return call


# --- kept

def test_everything_that_a_call_writes(single):
    @pk.task
    def talk():
        import logging, os, subprocess, sys
        print('printed')
        print('an error', file=sys.stderr)
        os.write(1, b'to descriptor 1\n')
        os.write(2, b'to descriptor 2\n')
        subprocess.run(['sh', '-c', 'echo from a subprocess; echo its error >&2'])
        logging.getLogger('x').warning('logged')
        sys.stdout.write('no newline, größer')
    trace = talk()
    trace.result
    assert trace.output == ('printed\nan error\nto descriptor 1\nto descriptor 2\nfrom a subprocess\nits error\n'
                            'logged\nno newline, größer')
    assert run(single.site, 'say(pk.traces()[0].output)') == trace.output
    single.stop()
    assert trace.output.startswith('printed') and Path(single.site.path, '@', 'workers.log').read_text() == ''


def test_output_of_one_call_is_not_that_of_the_next(single):
    @pk.task
    def talk(text):
        if text: print(text)
        return os.getpid()
    traces = [talk(text) for text in ('a', '', 'b', '', '')]
    assert len({t.result for t in traces}) == 1
    assert [t.output for t in traces] == ['a\n', '', 'b\n', '', '']
    def files(): return {p.name for p in Path(single.site.path, '@', 'output').iterdir()}
    assert wait_for(lambda: len(files()) == 3) and {traces[0].id, traces[2].id} < files()  # and that of the worker


def test_output_of_calls_that_fail_crash_or_are_cancelled(single):
    @pk.task
    def talk(how):
        print('before', how, flush=True)
        if how == 'fail': 1/0
        if how == 'die': os.kill(os.getpid(), signal.SIGKILL)
        if how == 'exit': os._exit(3)
        time.sleep(600)
    for how in ('fail', 'die', 'exit'):
        trace = talk(how)
        assert trace.wait(60) and trace.output == f'before {how}\n', how
    trace = talk('wait')
    assert wait_for(lambda: trace.output)  # while it runs
    trace.cancel()
    assert ended(trace) == 'cancelled' and trace.output == 'before wait\n'


def test_output_of_all_attempts(single, tmp_path):
    @pk.task
    def again(path):
        with open(path, 'a') as f: f.write('x')
        n = os.path.getsize(path)
        print('attempt', n, flush=True)
        if n == 1: raise ValueError
        if n == 2: os.kill(os.getpid(), signal.SIGKILL)
    trace = again.options(retries=2)(str(tmp_path/'n'))
    assert ''.join(trace.follow()) == 'attempt 1\nattempt 2\nattempt 3\n' == trace.output and trace.status == 'finished'


def test_output_of_a_further_attempt_on_a_full_disk_is_what_it_takes(site, monkeypatch):
    "And no reason for the worker to die"
    os.makedirs(Path(_output_path(site, '')))
    Path(_output_path(site, 'call')).write_text('first ')
    Path(_output_path(site, 'worker')).write_text('second')
    def copy(source, target):
        target.write(source.read(3))
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('shutil.copyfileobj', copy)
    assert _keep_output(site, 'worker', 'call') == 3
    assert Path(_output_path(site, 'call')).read_text() == 'first sec' and not os.path.exists(_output_path(site, 'worker'))


def test_stream_that_a_task_has_replaced_is_back_in_the_next(single):
    @pk.task
    def replace():
        import io, sys
        sys.stdout = sys.stderr = io.StringIO()
        print('lost')
    @pk.task
    def talk(): print('heard')
    replace().result
    trace = talk()
    trace.result
    assert trace.output == 'heard\n'


def test_worker_in_a_task_that_forks_shares_the_output(single):
    @pk.task
    def talk():
        import multiprocessing
        with multiprocessing.get_context('fork').Pool(2) as pool: pool.map(print, ['child']*2)
    trace = talk()
    trace.result
    assert sorted(trace.output.split()) == ['child', 'child']


# --- followed

def test_follow_gives_each_line_when_it_is_written(stepwise):
    trace, go = stepwise(3)
    pieces = trace.follow()
    for i in range(3):
        go(i)
        assert next(pieces) == f'line {i}\n'
    assert list(pieces) == [] and trace.done and list(trace.follow()) == [f'line {i}\n' for i in range(3)]


def test_follow_from_another_process(single, stepwise):
    trace, go = stepwise(2)
    with Child(single.site, 'for piece in pk.traces()[0].follow(): say(piece)\nsay(None)') as child:
        go(0)
        assert child.hear() == 'line 0\n'
        go(1)
        assert child.hear() == 'line 1\n' and child.hear() is None


def test_follower_sleeps_while_nothing_is_written(single, stepwise):
    trace, go = stepwise(2)
    with Child(single.site, 'for piece in pk.traces()[0].follow(): say(piece)\nsay(None)') as child:
        go(0)
        assert child.hear() == 'line 0\n'
        assert sleeps(child.pid)
        go(1)
        assert child.hear() == 'line 1\n' and child.hear() is None


# --- progress

def test_progress_of_track_and_of_tqdm(single, tmp_path):
    @pk.task
    def work(how, path):
        from pathlib import Path
        if how == 'tqdm': from tqdm import tqdm
        for i in pk.track(range(5), description='items') if how == 'track' else tqdm(range(5), desc='items', mininterval=0):
            for _ in range(3):
                if how == 'tqdm': list(tqdm(range(2), desc='inner', leave=False))  # of nested ones, the outermost
            if i == 3:
                Path(path).touch()
                time.sleep(0.15)  # words come 10 times a second at most
            if i == 4:
                while Path(path).exists(): time.sleep(0.01)
        print('over')
    for how in ('track', 'tqdm'):
        path = tmp_path/how
        trace = work(how, str(path))
        assert trace.progress is None or trace.progress.total == 5
        started(path)
        assert wait_for(lambda: trace.progress and trace.progress.n == 4) and trace.status == 'running'
        path.unlink()
        assert trace.wait(60) and trace.output == 'over\n', trace.output
        p = trace.progress
        assert (p.n, p.total) == (5, 5) and p.rate > 0 and p.elapsed > 0 and p.description.rstrip(': ') == 'items'


def test_progress_is_written_a_few_times_a_second(single):
    @pk.task
    def work():
        for _ in pk.track(range(200_000)): pass
    def commits(): return _ledger(single.site)._store.env.info()['last_txnid']
    before, trace = commits(), work()
    assert trace.wait(120) and trace.progress[:2] == (200_000, 200_000) and commits() - before < 2000


def test_track_outside_a_call_gives_the_items(site):
    assert list(pk.track(iter(range(3)))) == [0, 1, 2]


def test_progress_after_the_end_of_the_call_is_of_nothing(single):
    "What a thread goes on with that the task has left behind"
    @pk.task
    def leave():
        import sys
        sys.left = iter(pk.track(range(3)))
        return next(sys.left)
    @pk.task
    def go_on():
        import sys
        from parkit.progress import _inside
        mine = _inside[:]
        _inside.clear()
        try: return list(sys.left)
        finally: _inside[:] = mine
    assert (leave().result, go_on().result) == (0, [1, 2])


# --- shown

@pytest.mark.parametrize('total', [None, 0, 8])
def test_bar_of_any_total(total, capsys, monkeypatch):
    "One of tqdm is false if it has nothing to do, and neither true nor false if it does not know"
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    with _Bar('row') as bar:
        bar.update(None, 0)
        for n in (3, 5): bar.update(Progress(n, total), 2)
        bar.write('hello\n')
    written = capsys.readouterr()
    assert written.out == 'hello\n' and ('5/8' if total else '5row') in written.err

def _streams(outputs, name): return ''.join(o['text'] for o in outputs if o.get('name') == name)

def test_notebook_that_waits_shows_output_and_one_bar(tmp_path):
    with notebooks(1) as (kernel,):
        kernel.run('import os, time, parkit as pk\n@pk.task\ndef work(n):\n    for i in pk.track(range(n), description="work"):\n        print("line", i)\n        time.sleep(0.05)\n    return n')
        kernel.run('@pk.task\ndef seen(path):\n    print("ready", flush=True)\n    while not os.path.exists(path): time.sleep(0.01)\n    return work(5, sync=True)')
        def go(outputs): 'ready' in _streams(outputs, 'stdout') and (tmp_path/'go').touch()  # someone looks
        outputs = kernel.run(f'trace = seen({str(tmp_path/"go")!r})\ntrace.result', look=go)
        *shown, bar, result = [o['data']['text/plain'] if 'data' in o else o['text'] for o in outputs]
        assert '\n'.join(shown).split() == ['ready', *' '.join(f'line {i}' for i in range(5)).split()]
        assert '5/5' in bar and 'work' in bar and result == '5' and not _streams(outputs, 'stderr')
        outputs = kernel.run('trace.result')  # it has ended: there is nothing to wait for
        assert [o['output_type'] for o in outputs] == ['execute_result']
        outputs = kernel.run('pk.map(work, [1, 2, 3])')
        bar, result = [o['data']['text/plain'] for o in outputs]
        assert '3/3' in bar and 'item' in bar and result == '[1, 2, 3]'
        bar, result = [o['data']['text/plain'] for o in kernel.run('sum(pk.track(range(20), description="here"))')]
        assert '20/20' in bar and 'here' in bar and result == '190'
        outputs = kernel.run('trace = work(10**6)\ntrace.wait(0.01), trace.cancel()')
        assert outputs[-1]['data']['text/plain'] == '(False, True)'


def test_much_output_keeps_one_bar_below_it():
    "Each line of which once froze a bar; a line that is written over is shown as it is left"
    with notebooks(1) as (kernel,):
        kernel.run('import time, sys, parkit as pk\n@pk.task\ndef work(n):\n    for i in pk.track(range(n)):\n        print("x"*99, i, flush=True)\n        if not i % 20: time.sleep(0.12)\n    sys.stdout.write("old\\rnew\\n")')
        *shown, bar = [o['data']['text/plain'] if 'data' in o else o['text'] for o in kernel.run('trace = work(400)\ntrace.wait()')][:-1]
        assert '400/400' in bar and '\n'.join(t.removesuffix('\n') for t in shown).splitlines() == [*(f'{"x"*99} {i}' for i in range(400)), 'new']
        assert 2 <= len(shown) <= 20


def test_time_of_a_bar_counts_from_the_beginning_of_the_call(single, capsys, monkeypatch):
    "Not from that of the wait"
    from parkit.notebook import _Shown
    monkeypatch.delenv('TQDM_DISABLE', raising=False)
    @pk.task
    def work(path):
        import os, time
        for i in pk.track(range(3)):
            if i < 2: time.sleep(0.2)
            while i == 2 and not os.path.exists(path): time.sleep(0.01)
    path = single.site.path + '/go'
    trace = work(path)
    assert wait_for(lambda: trace.progress and trace.progress.n == 2)
    ledger = _ledger(single.site)
    record = ledger.record(trace.id)
    write(ledger._store, ledger._put_record, trace.id, record._replace(start=record.start - 3600))
    assert not _Shown().show(trace, 0.3)
    assert re.search(r'\b1:00:\d\d', capsys.readouterr().err)
    open(path, 'w').close()


def test_terminal_shows_output_above_one_bar(tmp_path):
    "A line without an end too"
    import pty
    program = """
import fcntl, struct, sys, termios, parkit as pk
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 100, 0, 0))
pk.set_site(sys.argv[1])
@pk.task
def work(n):
    for i in pk.track(range(n), description='work'): print('line', i, flush=True)
    print('last', end='')
    return n
assert work(3).result == 3 and pk.map(work, [1, 1]) == [1, 1]
pk.Pool().stop()
"""
    (tmp_path/'program.py').write_text(program)
    written = []
    def read(fd):
        data = os.read(fd, 4096)
        written.append(data)
        return data
    env = os.environ.pop('TQDM_DISABLE', None)
    try: assert pty.spawn([sys.executable, str(tmp_path/'program.py'), str(tmp_path/'site')], read) == 0
    finally:
        if env is not None: os.environ['TQDM_DISABLE'] = env
    lines = re.sub(r'[^\n]*\r(?=[^\n\r])', '', b''.join(written).decode().replace('\r\n', '\n')).splitlines()
    lines = [l.strip() for l in lines if l.strip()]
    assert [l for l in lines if 'line' in l or l == 'last'] == ['line 0', 'line 1', 'line 2', 'last'], lines
    assert sum('3/3' in l for l in lines) == 1 and sum('2/2' in l for l in lines) == 1, lines


def test_interrupt_of_a_notebook_that_watches_leaves_the_call_running():
    with notebooks(1) as (kernel,):
        kernel.run('import parkit as pk, time, os\nfrom pathlib import Path\n@pk.task\ndef work(path):\n    print("begun", flush=True)\n    while not os.path.exists(path): time.sleep(0.01)\n    return 7')
        path = kernel.run('path = str(pk.Dict("x").site.path) + "/go"\ntrace = work(path)\nprint(path)')[0]['text'].strip()
        struck = []
        def interrupt(outputs):
            if 'begun' in _streams(outputs, 'stdout') and not struck: struck.append(os.kill(kernel.pid, signal.SIGINT))
        outputs = kernel.run('trace.result', look=interrupt)
        assert outputs[-1]['ename'] == 'KeyboardInterrupt' and 'begun' in _streams(outputs, 'stdout')
        assert kernel.run('trace.status')[0]['data']['text/plain'] == "'running'"
        Path(path).touch()
        assert kernel.run('trace.result')[-1]['data']['text/plain'] == '7'


def test_script_whose_errors_go_elsewhere_is_shown_nothing(single):
    @pk.task
    def talk(): print('hello')
    with Child(single.site, 'say(pk.bind_task("talk")().result)') as child: assert child.hear() is None


def test_output_of_calls_and_workers_that_are_gone_is_removed(single):
    @pk.task
    def talk(): print('hello')
    trace = talk()
    trace.result
    folder = Path(single.site.path, '@', 'output')
    (folder/('0'*24)).touch()   # of a call that is not known
    (folder/('0'*32)).touch()   # of a process that is dead
    single.stop()
    assert [p.name for p in folder.iterdir()] == [trace.id] and trace.output == 'hello\n'
