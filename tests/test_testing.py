"The pytest plugin `parkit.testing` in pytest runs of their own, and tasks that follow the process's site"
import os, pickle, subprocess, sys

import parkit as pk, psutil, pytest
from helpers import wait_for

_library = '''
import os
import parkit as pk

@pk.task
def helper(n): return n + 1

@pk.task
def total(name): return helper(sum(pk.Dict(name).values()), sync=True), os.getpid()

@pk.task(cache=True)
def squared(n): return n*n
'''
_tests = '''
import os, sys
import parkit as pk, pytest
from library import helper, squared, total  # at collection, as everybody does it

@pytest.mark.parametrize('n', [1, 2])
def test_a_site_of_its_own(parkit_site, n):
    assert not list(pk.Namespace('default')) and total.site is parkit_site
    pk.Dict('numbers')['n'] = n
    pk.Pool().resize(1)
    value, pid = total('numbers').result
    assert value == n + 1 and pid != os.getpid()
    assert pk.map(helper, [1, 2]) == [2, 3] and squared(n).result == n*n and len(squared.cache) == 1
    print('\\nPOOL', *pk.Pool().status.workers, pk.Pool().status.supervisor)

def test_of_the_run():
    assert os.environ['PARKIT_SITE'] == pk.Dict('x').site.path
    assert helper(1, sync=True) == 2
    print('\\nSITE', pk.Dict('x').site.path)
'''

def make_project(folder):
    for name, text in (('library.py', _library), ('conftest.py', 'import library'), ('test_library.py', _tests)): (folder/name).write_text(text)

@pytest.fixture
def project(tmp_path):
    make_project(tmp_path)
    return tmp_path

def run_pytest(folder, *args, python=sys.executable, plugin=('-p', 'parkit.testing')):
    env = {k: v for k, v in os.environ.items() if not k.startswith(('PYTEST', 'PYTHONPATH'))}
    done = subprocess.run([python, '-m', 'pytest', '-q', '-s', '-p', 'no:cacheprovider', *plugin, *args], cwd=folder, text=True, capture_output=True,
                          env={**env, 'PARKIT_SITE': str(folder/'mine')}, timeout=280, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

def check_run(project, said):
    "The user's site was not touched, and neither a worker nor the site of the run is left"
    assert '3 passed' in said and not (project/'mine').exists()
    pids = [int(p) for line in said.splitlines() if line.startswith('POOL') for p in line.split()[1:]]
    assert len(pids) == 4
    wait_for(lambda: not any(map(psutil.pid_exists, pids)))
    assert not any(map(psutil.pid_exists, pids))
    [site] = [line.split()[1] for line in said.splitlines() if line.startswith('SITE')]
    assert not os.path.exists(os.path.dirname(site))

@pytest.mark.timeout(300)
def test_each_test_has_a_site_and_the_users_is_not_touched(project): check_run(project, run_pytest(project))

@pytest.mark.timeout(300)
def test_pytest_inside_a_process_that_has_a_site(site, project, monkeypatch):
    "As ipytest does: afterwards the process has the site that it had"
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    @pk.task
    def mine(): return 1
    before = os.environ['PARKIT_SITE']
    (project/'test_inner.py').write_text('import os\ndef test_it(parkit_site): assert os.environ["PARKIT_SITE"] != parkit_site.path\n')
    assert pytest.main(['-q', '-p', 'parkit.testing', '-p', 'no:cacheprovider', '--noconftest', str(project/'test_inner.py')]) == 0
    assert os.environ['PARKIT_SITE'] == before and pk.Dict('x').site is site and mine.site is site


# --- tasks follow the site

@pytest.fixture
def other(tmp_path):
    other = pk.Site(tmp_path/'other')
    yield other
    pk.Pool(site=other).stop()
    other.close()

def names(site): return [o.name for o in pk.Namespace('task', site=site)]

_uses = dict(sync=lambda t: t(2, sync=True), background=lambda t: t(2).result, options=lambda t: t.options(timeout=60)(2).result, map=lambda t: pk.map(t, [2]),
             version=lambda t: t.version, history=lambda t: t.history(), traces=lambda t: t.traces, metadata=lambda t: t.metadata, uuid=lambda t: t.uuid,
             exists=lambda t: t.exists, signature=lambda t: __import__('inspect').signature(t), doc=lambda t: t.__doc__, pickle=pickle.dumps, site=lambda t: t.site,
             source=lambda t: t.source, schedule=lambda t: t.schedule(pk.Periodic(period=1, frequency=pk.Frequency.Day), 2), equal=lambda t: t == pk.Dict('x'),
             argument=lambda t: call(t, 2).result)

@pk.task
def call(other, n): return other(n, sync=True)

@pytest.mark.parametrize('use', _uses)
def test_a_task_follows_the_site_with_whatever_is_done_first(site, other, use):
    @pk.task(metadata=dict(library='l'))
    def twice(n):
        "Twice"
        return 2*n
    pk.Pool(site=other).resize(1)
    table, first = {twice: 1}, twice.uuid
    pk.set_site(other)
    _uses[use](twice)
    assert 'twice' in names(other) and twice.site is other and twice.uuid != first and table[twice] == 1
    assert (twice.metadata, twice.version, twice.path) == (dict(library='l'), pk.bind_task('twice', site=site).version, 'task/twice')
    pk.set_site(site)
    assert twice.site is site and twice.uuid == first and len(twice.history()) == 1

def test_a_task_that_follows_defines_itself_once_on_each_site(site, other):
    @pk.task
    def f(n): return n
    pk.set_site(other)
    f(1, sync=True)
    @pk.task(name='f')
    def newer(n): return -n
    pk.set_site(site)
    assert f(1, sync=True) == 1
    pk.set_site(other)
    assert f(1, sync=True) == -1 == newer(1, sync=True) and len(f.history()) == 2  # as before the switch: the newest of that site

def test_a_renamed_or_dropped_task_keeps_that_to_its_site(site, other):
    @pk.task
    def f(n): return n
    f.rename('g')
    pk.set_site(other)
    assert f.path == 'task/f' and f(1, sync=True) == 1
    f.drop()
    with pytest.raises(pk.ObjectNotFoundError, match='it was dropped'): f(1, sync=True)
    pk.set_site(site)
    assert f.path == 'task/g' and f(1, sync=True) == 1

def test_a_changed_global_is_a_version_of_the_site_of_the_call(site, other):
    names = dict(pk=pk, __name__='__main__')
    exec('RATE = 1\n@pk.task\ndef price(n): return RATE*n', names)
    pk.set_site(other)
    names['RATE'] = 3
    assert names['price'](2, sync=True) == 6 and names['price'](2).result == 6
    assert len(names['price'].history()) == 1
    pk.set_site(site)
    assert names['price'](2).result == 6 and len(names['price'].history()) == 2

def test_references_stay_with_their_site(site, other):
    @pk.task
    def f(n): return n
    bound, there = pk.bind_task('f'), pickle.loads(pickle.dumps(f))
    pk.set_site(other)
    assert bound.site is site and there.site is site and bound(1, sync=True) == 1 and 'f' not in names(other)
    @pk.task
    def g(n): return n
    assert pk.bind_task('f', site=site) == bound and 'g' not in names(site)

def test_a_redefined_task_belongs_to_the_site_that_is_current_then(site, other):
    @pk.task
    def f(n): return n
    pk.set_site(other)
    @pk.task
    def f(n): return n + 1
    assert f(1, sync=True) == 2 and pk.bind_task('f', site=site)(1, sync=True) == 1

def test_an_older_definition_does_not_replace_a_newer_one_on_another_site(site, tmp_path):
    other = pk.Site(tmp_path/'other')
    first = pk.task(name='f', default_sync=True)(lambda: 'first')
    pk.set_site(other)
    pk.task(name='f', default_sync=True)(lambda: 'newer')
    assert first() == pk.bind_task('f')() == 'newer'
    pk.set_site(site)
    assert first() == 'first'
    other.close()

def test_a_new_site_gets_the_newest_definition_from_an_older_task_too(site, tmp_path):
    old = pk.task(name='f', default_sync=True)(lambda: 'first')
    newer = pk.task(name='f', default_sync=True)(lambda: 'newer')
    other = pk.set_site(pk.Site(tmp_path/'other'))
    assert old() == newer() == pk.bind_task('f')() == 'newer' and len(old.history()) == 1
    pk.set_site(site)
    other.close()
