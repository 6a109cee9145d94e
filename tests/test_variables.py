"""The environment variables of callers: each call finds those of its own, the next one finds nothing of it, and nothing keeps them.

Real workers; they may be secrets, so the files of the site are searched for them."""
import os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import parkit as pk, pytest
from conftest import wait_for
from parkit.calls import Runner, set_runner
from parkit.ledger import _MASKED, _VARIABLES, _ledger
from parkit.transactions import read
from parkit.variables import EXCLUDED, is_excluded
from task_helpers import interpreters, started

_SECRET = 'sk-7f3a9c51e2'


@pytest.fixture
def get(single):
    "A task that tells a variable"
    @pk.task
    def get(name):
        import os
        return os.environ.get(name)
    assert get('PARKIT_NO').result is None  # so that the worker is there before any variable is set
    return get

@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv('API_KEY', _SECRET)
    return _SECRET

def _rows(site, kind=_MASKED):
    ledger = _ledger(site)
    return read(ledger._store, lambda txn, zero_copy: [bytes(value) for _, value in ledger._scan(txn, kind)])

def _holders(folder, text=_SECRET):
    "The files below `folder` that hold `text`, or name it"
    paths = [p for p in Path(folder).rglob('*') if p.is_file()]
    return [p for p in paths if text.encode() in p.read_bytes() or text in p.name]

def _holders_elsewhere(site, text=_SECRET):
    "The same, by a process that may open the files of the site"
    code = ('from pathlib import Path\n'
            f'print([str(p) for p in Path({site.path!r}).rglob("*") if p.is_file() and {text!r}.encode() in p.read_bytes()])')
    return eval(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)


# --- each call finds those of its caller

def test_a_running_worker_sees_each_change(get, monkeypatch):
    for value in ('one', 'two', 'naïve ☃', ''):
        monkeypatch.setenv('API_KEY', value)
        assert get('API_KEY').result == value
    monkeypatch.delenv('API_KEY')
    assert get('API_KEY').result is None


def test_what_was_set_when_the_call_was_made_counts(get, monkeypatch):
    monkeypatch.setenv('API_KEY', 'then')
    trace = get.options(delay=0.5)('API_KEY')
    monkeypatch.setenv('API_KEY', 'now')
    assert (trace.result, get('API_KEY').result) == ('then', 'now')


def test_callers_do_not_see_each_others(site):
    "Nor those of the one that has started the workers"
    pk.Pool().resize(1)
    code = '''
@pk.task
def get(name):
    import os
    return os.environ.get(name)
'''
    with interpreters(3, site) as made:
        for i, p in enumerate(made):
            if i < 2: p.run(f'os.environ["API_KEY"] = "{i}"; os.environ["ONLY_{i}"] = "x"')
            p.run(code)
        for _ in range(2):
            for i, p in enumerate(made):
                assert [p.value(f'get({n!r}).result') for n in ('API_KEY', 'ONLY_0', 'ONLY_1')] == [
                    [str(i), None][i == 2], 'x' if i == 0 else None, 'x' if i == 1 else None]


@pytest.mark.parametrize('way', ['call', 'options', 'map', 'executor', 'coroutine', 'generator', 'cached', 'nested', 'scratch transaction',
                                 'durable transaction', 'transaction of the ledger', 'thread', 'forked child'])
def test_they_travel_whichever_way_a_call_is_made(get, secret, way):
    @pk.task
    async def coroutine(name): return os.environ.get(name)
    @pk.task
    def generator(name): yield os.environ.get(name)
    @pk.task(cache=True)
    def cached(name): return os.environ.get(name)
    @pk.task
    def nested(name): return pk.bind_task('get')(name).result
    @pk.task
    def forked(name): return os.popen(f'echo "${name}"').read().strip()
    def inside(where):
        with pk.transaction(where): trace = get('API_KEY')
        return trace.result
    for module in (pk, os): assert module  # globals of the tasks
    ways = {'call': lambda: get('API_KEY').result, 'options': lambda: get.options(priority=3)('API_KEY').result,
            'map': lambda: pk.map(get, ['API_KEY'])[0], 'coroutine': lambda: coroutine('API_KEY').result,
            'generator': lambda: next(iter(generator('API_KEY'))), 'cached': lambda: cached('API_KEY').result,
            'nested': lambda: nested('API_KEY').result, 'thread': lambda: ThreadPoolExecutor(1).submit(lambda: get('API_KEY').result).result(),
            'forked child': lambda: forked('API_KEY').result, 'transaction of the ledger': lambda: inside(_ledger(get.site)),
            'scratch transaction': lambda: inside(pk.Dict()), 'durable transaction': lambda: inside(pk.Dict('durable'))}
    if way == 'executor':
        with pk.Executor() as executor: assert executor.submit(os.getenv, 'API_KEY').result() == secret
    else: assert ways[way]() == secret


def test_the_environment_of_a_new_program_is_what_it_was_started_with(site, get):
    code = f'import parkit as pk; print(pk.bind_task("get")("API_KEY").result)'
    for value in ('a', 'b'):
        env = dict(os.environ, PARKIT_SITE=site.path, API_KEY=value)
        assert subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout == f'{value}\n'


def test_time_zone_is_the_callers(get, monkeypatch):
    @pk.task
    def zone():
        import time
        return time.strftime('%z', time.localtime(0))
    for tz, offset in (('UTC-3', '+0300'), ('UTC+4', '-0400')):
        monkeypatch.setenv('TZ', tz)
        assert zone().result == offset
    monkeypatch.delenv('TZ')
    assert zone().result == time.strftime('%z', time.localtime(0))


# --- a call leaves nothing behind

@pytest.mark.parametrize('change', [
    'os.environ["API_KEY"] = "x"', 'del os.environ["API_KEY"]', 'os.putenv("API_KEY", "x")', 'os.unsetenv("API_KEY")', 'os.environ.clear()',
    'os.environ = {"API_KEY": "x"}', 'os.environb[b"API_KEY"] = b"x"', 'os.environ.update(API_KEY="x", OTHER="y")', 'os.putenv("OTHER", "y")',
    'os.environ["TZ"] = "UTC-7"; time.tzset()', 'os.putenv("TZ", "UTC-7"); time.tzset()', 'os.environ["API_KEY"] = "x"; 1/0',
    'os.environ["API_KEY"] = "x"; sys.exit(3)'])
@pytest.mark.parametrize('same', [True, False], ids=['same caller', 'another'])
def test_what_a_call_changes_is_undone(get, secret, monkeypatch, change, same):
    "As Python has it, and as a child process finds it"
    @pk.task
    def work(change): exec(change, dict(os=os, time=time, sys=sys))
    @pk.task
    def found():
        shell = subprocess.run(['/bin/sh', '-c', 'echo "$API_KEY-$OTHER-$TZ"'], capture_output=True, text=True).stdout.strip()
        return type(os.environ).__name__, os.environ.get('API_KEY'), os.environ.get('OTHER'), shell, time.strftime('%z', time.localtime(0))
    before = found().result
    assert before[:3] == ('_Environ', secret, None)
    assert work(change).wait(60)
    if not same: monkeypatch.setenv('API_KEY', 'another')
    assert found().result == (before if same else ('_Environ', 'another', None, before[3].replace(secret, 'another'), before[4]))


# --- what does not travel

def test_what_belongs_to_a_process_does_not_travel(get, monkeypatch):
    names = ['PWD', 'TERM', 'TERM_PROGRAM', 'COLUMNS', 'JPY_PARENT_PID', 'PYTHONHASHSEED', 'PARKIT_ANY', 'SHLVL']
    for name in names: monkeypatch.setenv(name, 'mine')
    assert 'mine' not in pk.map(get, names)
    assert all(is_excluded(n, EXCLUDED) for n in names) and not any(is_excluded(n, EXCLUDED) for n in ('HOME', 'PATH', 'DISPLAY', 'API_KEY'))


def test_a_setting_names_what_never_travels(get, monkeypatch):
    pool = pk.Pool()
    for name in ('AWS_ID', 'AWS_KEY', 'OTHER'): monkeypatch.setenv(name, 'mine')
    assert pool.excluded_variables == EXCLUDED and pk.map(get, ['AWS_ID', 'AWS_KEY', 'OTHER']) == ['mine']*3
    pool.excluded_variables += ('AWS_*',)
    assert pk.map(get, ['AWS_ID', 'AWS_KEY', 'OTHER']) == [None, None, 'mine']
    pool.excluded_variables = ('*',)
    assert pk.map(get, ['AWS_ID', 'OTHER']) == [None, None] and get('PATH').result
    pool.excluded_variables = EXCLUDED
    assert get('AWS_ID').result == 'mine'
    for wrong in ('AWS_*', [1], [b'x']):
        with pytest.raises(TypeError, match='patterns'): pool.excluded_variables = wrong


def test_nor_with_the_supervisor(single, monkeypatch):
    "Which has the variables of whoever starts it"
    monkeypatch.setenv('AWS_KEY', _SECRET)
    single.excluded_variables += ('AWS_*',)
    @pk.task
    def get(name): return os.environ.get(name)
    assert get('AWS_KEY').result is None


# --- nothing keeps them

def test_nothing_holds_a_secret_at_any_time(site, single, secret):
    "While the call waits, while it runs, when it has ended: no file of the site, no log, no backup, nothing that is shown"
    @pk.task
    def use(fail=False):
        assert os.environ['API_KEY']
        if fail: raise ValueError('no')
        return len(os.environ['API_KEY'])
    folder = Path(site.path).parent
    late = use.options(delay=3600)()
    assert not _holders_elsewhere(site) and len(_rows(site)) == 1
    pk.backup(folder/'queued')
    assert not _holders(folder/'queued')
    late.cancel()
    traces = [use() for _ in range(20)] + [use(True), use.options(retries=2)(True)]
    for t in traces: assert t.wait(60)
    assert traces[0].result == len(secret) and traces[-1].error.args == ('no',)
    for t in traces: assert secret not in f'{t!r}{t}{t.error!r}{t.output}{t._ledger.record(t.id)}'
    assert secret not in f'{pk.doctor()}{pk.check()}'
    pk.backup(folder/'after')
    assert not _holders(folder/'after') and not _holders_elsewhere(site)
    assert _rows(site) == _rows(site, _VARIABLES) == []


def test_calls_of_one_environment_keep_it_once(get, secret, monkeypatch):
    "And until the last of them has begun"
    def waiting(): return [int.from_bytes(v, 'big') for v in _rows(get.site, _VARIABLES)]
    with pk.transaction(_ledger(get.site)): traces = [get.options(delay=3600)('API_KEY') for _ in range(1000)]
    assert waiting() == [1000] and len(_rows(get.site)) == 1
    monkeypatch.setenv('API_KEY', 'another')
    traces.append(get.options(delay=3600)('API_KEY'))
    assert sorted(waiting()) == [1, 1000]
    for t in traces[1:]: t.cancel()
    assert waiting() == [1]
    traces[0].cancel()
    assert _rows(get.site) == waiting() == []


@pytest.mark.parametrize('how', ['finished', 'failed', 'crashed', 'timeout', 'cancelled', 'cancelled in the queue', 'refused', 'no workers', 'rolled back'])
@pytest.mark.parametrize('retries', [0, 2])
def test_they_go_however_a_call_ends(get, secret, monkeypatch, tmp_path, how, retries):
    "With retries, once it has begun for the last time"
    site, ready = get.site, tmp_path/'ready'
    @pk.task
    def work(how, path):
        Path(path).touch()
        with open(f'{path}-n', 'a') as f: f.write(os.environ.get('API_KEY', 'none') + '\n')
        if how == 'failed': raise ValueError
        if how == 'crashed': os.kill(os.getpid(), signal.SIGKILL)
        if how in ('timeout', 'cancelled'): time.sleep(600)
    call = work.options(retries=retries, timeout=0.2 if how == 'timeout' else None, delay=3600 if how in ('cancelled in the queue', 'no workers') else 0)
    if how == 'rolled back':
        with pytest.raises(ZeroDivisionError), pk.transaction(_ledger(site)):
            call(how, str(ready))
            1/0
    elif how == 'refused': assert call(how, (i for i in '')).wait(60)
    elif how == 'no workers':
        pk.Pool().stop()
        def fail(*args): raise pk.TaskError('no')
        monkeypatch.setattr('parkit.tasks._ensure', fail)
        assert call(how, str(ready)).status == 'failed'
    else:
        trace = call(how, str(ready))
        if how == 'cancelled': started(ready)
        if how.startswith('cancelled'): trace.cancel()
        assert trace.wait(60)
        assert trace.status == how.split()[0]
        if how not in ('cancelled in the queue', ): assert {*(tmp_path/'ready-n').read_text().split()} == {secret}
        if how in ('failed', 'crashed', 'timeout'): assert len((tmp_path/'ready-n').read_text().split()) == 1 + retries
    assert wait_for(lambda: not _rows(site) and not _rows(site, _VARIABLES))


def test_they_are_gone_while_the_last_attempt_runs_and_not_before(get, secret, tmp_path):
    @pk.task
    def work(path):
        n = len(list(Path(path).iterdir()))
        Path(path, f'ready-{n}').touch()
        while not Path(path, f'go-{n}').exists(): time.sleep(0.01)
        raise ValueError
    (tmp_path/'w').mkdir()
    trace = work.options(retries=1)(str(tmp_path/'w'))
    started(tmp_path/'w'/'ready-0')
    assert len(_rows(get.site)) == 1
    (tmp_path/'w'/'go-0').touch()
    started(tmp_path/'w'/'ready-2')
    assert not _rows(get.site) and not _rows(get.site, _VARIABLES)
    (tmp_path/'w'/'go-2').touch()
    assert trace.wait(60)


# --- calls in a transaction

def test_an_outbox_holds_none(get, secret, tmp_path):
    "Not even between the commit and the delivery; who delivers for a caller that has died has none to give"
    site = get.site
    code = f'''
import os, parkit as pk, parkit.delivery
os.environ["API_KEY"] = {secret!r}
parkit.delivery._Delivery.__call__ = lambda self: os._exit(3)
with pk.transaction(pk.Dict('durable')): trace = pk.bind_task('get')('API_KEY')
'''
    done = subprocess.run([sys.executable, '-c', code], env={k: v for k, v in dict(os.environ, PARKIT_SITE=site.path).items() if k != 'API_KEY'})
    assert done.returncode == 3 and not _holders_elsewhere(site)
    pk.Pool().stop()
    del os.environ['API_KEY']
    try: pk.Pool().start()
    finally: os.environ['API_KEY'] = secret
    assert wait_for(lambda: len(pk.traces(task='get', status='finished')) == 2)
    assert pk.traces(task='get')[0].result is None


def test_changes_in_one_transaction_are_told_apart(get, monkeypatch):
    with pk.transaction(pk.Dict('durable')):
        traces = []
        for i in range(40):
            monkeypatch.setenv('API_KEY', str(i))
            traces.append(get('API_KEY'))
    assert [t.result for t in traces] == [str(i) for i in range(40)]
    assert not _rows(get.site)


def test_files_of_noise_do_not_pile_up(get, monkeypatch):
    for i in range(300):
        monkeypatch.setenv('API_KEY', str(i))
        trace = get('API_KEY')
    assert trace.wait(60)
    folder, ledger = Path(get.site.path, '@', 'variables'), _ledger(get.site)
    assert wait_for(lambda: not _rows(get.site))
    ledger.sweep_variables()
    assert list(folder.iterdir()) == []
    assert get('API_KEY').result == '299'  # which is sent again


def test_a_schedule_runs_with_the_variables_of_the_pool(get, secret):
    "It keeps none of those of whoever has defined it"
    @pk.task
    def tell(): return os.environ.get('API_KEY')
    tell.schedule(pk.Periodic(max_times=1))
    assert wait_for(lambda: [t.status for t in pk.traces(task='tell')] == ['finished'])
    assert pk.traces(task='tell')[0].result is None
    assert not _holders_elsewhere(get.site)


def test_calls_that_are_given_to_no_workers_leave_nothing(site, secret):
    "Where something else runs them"
    set_runner(Runner())
    try:
        @pk.task
        def work(): pass
        trace = work()
        assert len(_rows(site)) == 1
        trace.cancel()
        assert not _rows(site)
    finally: set_runner(None)
