"Where tasks were defined: a definition from another notebook or file than the one before it warns"
import json, os, shutil, subprocess, sys

import parkit as pk, pytest
from helpers import root
from kernels import notebooks, text
from task_helpers import event_loop  # noqa: F401  a fixture

_script = '''
import json, sys, warnings
import parkit as pk
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    @pk.task{options}
    def process(x): return x{change}
print(json.dumps([[str(w.message), w.filename, w.lineno] for w in caught]))
'''

def write(path, change='', options=''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_script.format(change=change, options=options))
    return path

def start(site, path, *args, cwd=None):
    "The warnings of a script that defines `process`"
    env = {k: v for k, v in os.environ.items() if k != 'JPY_SESSION_NAME'} | dict(PYTHONPATH=str(root), PARKIT_SITE=site.path)
    done = subprocess.run([sys.executable, *args, path], cwd=cwd or path.parent, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

def test_another_file_warns_and_names_both(site, tmp_path):
    one, two = write(tmp_path/'one/tasks.py'), write(tmp_path/'two/tasks.py', '+1')
    assert start(site, one) == []
    [[message, file, line]] = start(site, two)
    assert str(one) in message and str(two) in message and "task 'process'" in message and site.path in message
    assert (file, _script.splitlines()[line - 1]) in [(str(two), '    @pk.task{options}'), (str(two), '    def process(x): return x{change}')]
    assert start(site, two) == []
    assert len(start(site, one)) == 1  # and so do those who change it back

def _again(one): return write(one, '+1')
def _moved(one):
    two = write(one.parent.parent/'moved/other.py', '+1')
    one.unlink()
    return two
def _the_same_code(one): return write(one.parent.parent/'two/tasks.py')
def _other_options(one): return write(one.parent.parent/'two/tasks.py', options='(default_sync=True, metadata={"a": 1})')
def _a_comment(one): return write(one.parent.parent/'two/tasks.py', '  # the same')
def _by_a_link(one):
    os.symlink(one.parent, one.parent.parent/'link')
    write(one, '+1')
    return one.parent.parent/'link/tasks.py'

@pytest.mark.parametrize('change', [_again, _moved, _the_same_code, _other_options, _a_comment, _by_a_link])
def test_no_warning(site, tmp_path, change):
    one = write(tmp_path/'one/tasks.py')
    start(site, one)
    assert start(site, change(one)) == []

def git(folder, *command):
    settings = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'init.defaultBranch=main']
    subprocess.run(['git', *settings, '-C', folder, *command], check=True, capture_output=True)

@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
@pytest.mark.parametrize('kind', ['clone', 'worktree', 'clones of one', 'branch', 'other'])
def test_a_second_checkout_of_one_repository_is_the_same_place(site, tmp_path, kind):
    one, two = write(tmp_path/'one/src/tasks.py'), tmp_path/'two'
    for command in ('init', 'add .', 'commit -m a'): git(tmp_path/'one', *command.split())
    if kind == 'clones of one':
        git(tmp_path, 'clone', tmp_path/'one', tmp_path/'three')
        one = tmp_path/'three/src/tasks.py'
    start(site, one)
    if kind == 'branch':
        git(tmp_path/'one', 'checkout', '-b', 'b')
        two = tmp_path/'one'
    elif kind == 'worktree': git(tmp_path/'one', 'worktree', 'add', two)
    elif kind == 'other':
        two.mkdir()
        git(two, 'init')
    else: git(tmp_path, 'clone', tmp_path/'one', two)
    assert len(start(site, write(two/'src/tasks.py', '+1'))) == (kind == 'other')

def test_a_directory_stands_for_the_notebooks_in_it(site, tmp_path):
    "Where a notebook's name is not known, its directory stands for it"
    one = write(tmp_path/'one/tasks.py')
    start(site, one)
    code = ['-c', _script.format(change='+1', options='')]
    assert start(site, '', *code, cwd=one.parent) == [] and start(site, '', *code, cwd=tmp_path) == []
    (tmp_path/'two').mkdir()
    start(site, write(one, '+2'))
    code = ['-c', _script.format(change='+3', options='')]
    [[message, *_]] = start(site, '', *code, cwd=tmp_path/'two')
    assert f'of {tmp_path}' in message and str(tmp_path/'two') in message

def test_a_worker_that_imports_a_module_neither_warns_nor_replaces(site, tmp_path):
    one, two = write(tmp_path/'one/tasks.py'), write(tmp_path/'two/apart.py', '+1')
    start(site, one)
    @pk.task
    def imports(folder):
        import sys
        sys.path.insert(0, folder)
        import apart
        return apart.caught == [], apart.process(1, sync=True)
    assert imports(str(two.parent)).result == (True, 1)

@pytest.mark.parametrize('name', ['JPY_SESSION_NAME', '__session__', '__vsc_ipynb_file__'])
def test_notebooks(site, tmp_path, monkeypatch, name):
    "Two notebooks, one after the other; and each of them once more in a new kernel"
    def run(notebook, change):
        notebook.parent.mkdir(exist_ok=True)
        notebook.write_text('{}')
        if name == 'JPY_SESSION_NAME': monkeypatch.setenv(name, str(notebook))
        with notebooks(1, cwd=tmp_path) as [kernel]:
            kernel.run(f'import parkit as pk; pk.set_site({site.path!r}); {name} = {str(notebook)!r}')
            return json.loads(text(kernel.run(_script.format(change=change, options=''))))
    one, two = tmp_path/'one/a.ipynb', tmp_path/'two/a.ipynb'
    assert run(one, '') == [] and run(one, '+1') == []
    [[message, *_]] = run(two, '+2')
    assert str(one) in message and str(two) in message
    assert run(two, '+3') == []
