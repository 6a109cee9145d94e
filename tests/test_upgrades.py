"""Packages that are upgraded while workers live: the next call of a new program sees what is installed.

Real wheels, installed by pip into a virtual environment of the test's own."""
import os, subprocess, sys, venv, zipfile
from pathlib import Path

import parkit as pk, pytest
from conftest import wait_for
from task_helpers import supervisors


def _wheel(folder, version, name='demo_package', module=False):
    "A wheel of a package, or of a single module, that knows its version"
    path, info = folder/f'{name}-{version}-py3-none-any.whl', f'{name}-{version}.dist-info'
    files = {f'{name}.py' if module else f'{name}/__init__.py': f'version = {version!r}\n',
             f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n',
             f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'}
    if not module: files[f'{name}/part.py'] = f'version = {version!r}\n'
    files[f'{info}/RECORD'] = ''.join(f'{n},,\n' for n in [*files, f'{info}/RECORD'])
    with zipfile.ZipFile(path, 'w') as z:
        for n, text in files.items(): z.writestr(n, text)
    return path


class _Environment:
    "A virtual environment that has parkit, and what is installed into it"
    def __init__(self, folder):
        self.folder = folder
        venv.create(folder/'venv', with_pip=False)
        self.python, self.packages = str(folder/'venv'/'bin'/'python'), next((folder/'venv'/'lib').glob('python*/site-packages'))
        here = [p for p in sys.path if p.endswith('site-packages')]
        (self.packages/'here.pth').write_text('\n'.join([str(Path(pk.__file__).parents[1]), *here]))

    def pip(self, *arguments):
        done = subprocess.run([sys.executable, '-m', 'pip', '-q', '--python', self.python, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def install(self, version, **options): self.pip('install', '--no-deps', '--no-index', '--upgrade', str(_wheel(self.folder, version, **options)))

    def run(self, site, code):
        "What a new program says"
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PARKIT_SITE=site.path)
        done = subprocess.run([self.python, '-c', f'import os, time\nimport parkit as pk\n{code}'], env=env, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

@pytest.fixture
def environment(tmp_path, site):
    pk.Pool().resize(2)
    return _Environment(tmp_path)

_TELL = '''
@pk.task
def tell(module, which='version'):
    import importlib, os
    return f'{getattr(importlib.import_module(module), which)} {os.getpid()}'
'''


@pytest.mark.parametrize('module', ['demo_package', 'demo_package.part', 'single'])
def test_an_upgraded_package_is_seen_by_the_next_call(environment, site, module):
    "Whichever worker runs it; and nothing is replaced where nothing was upgraded"
    name, options = ('single', dict(name='single', module=True)) if module == 'single' else ('demo_package', {})
    pids = set()
    for version in ('1.0', '2.0', '1.0'):
        environment.install(version, **options)
        said = environment.run(site, f'{_TELL}\nprint(*[t.result for t in [tell({module!r}) for _ in range(10)]])')
        assert {*said[::2]} == {version}
        assert not pids & {*said[1::2]}
        pids |= {*said[1::2]}


def test_packages_that_no_worker_has_imported_replace_none(environment, site):
    environment.install('1.0')  # just before the workers begin
    code = f'{_TELL}\nfor t in [tell("demo_package") for _ in range(10)]: t.result\nwhile len(pk.Pool().status.workers) < 2: time.sleep(0.01)\n'
    before = environment.run(site, f'{code}print(*pk.Pool().status.workers)')
    environment.install('1.0', name='other')
    environment.install('2.0', name='other')
    after = environment.run(site, f'{code}print(*pk.Pool().status.workers)')
    assert after == before, [log.read_text() for log in Path(site.path).glob('@/workers.log')]
    assert environment.run(site, f'{_TELL}\nprint(tell("other").result)')[0] == '2.0'


def test_a_removed_package_is_not_there_any_longer(environment, site):
    environment.install('1.0')
    assert environment.run(site, f'{_TELL}\nprint(tell("demo_package").result)')[0] == '1.0'
    environment.pip('uninstall', '-y', 'demo_package')
    assert environment.run(site, f'{_TELL}\nt = tell("demo_package")\nt.wait(60)\nprint(type(t.error).__name__)') == ['ModuleNotFoundError']


def test_a_call_that_runs_meanwhile_goes_on_with_what_it_has(environment, site, tmp_path):
    environment.install('1.0')
    go = tmp_path/'go'
    environment.run(site, f"""
@pk.task
def waits(go):
    import demo_package, os, time
    while not os.path.exists(go): time.sleep(0.01)
    return demo_package.version
pk.Pool().resize(1)
waits({str(go)!r})
while not pk.traces(status='running'): time.sleep(0.01)
""")
    environment.install('2.0')
    queued = pk.traces(task='waits')[0]
    go.touch()
    assert queued.wait(60) and queued.result == '1.0'
    assert environment.run(site, f'{_TELL}\nprint(tell("demo_package").result)')[0] == '2.0'


def test_a_package_of_the_supervisor_itself_is_seen_too(environment, site, tmp_path):
    "Such as cloudpickle, lmdb or parkit: another supervisor comes, and a call that runs goes on"
    (environment.packages/'zzz.pth').write_text('import demo_package')  # imported as Python starts
    environment.install('1.0')
    go = tmp_path/'go'
    code = f"""
@pk.task
def waits(go):
    import demo_package, os, time
    while not os.path.exists(go): time.sleep(0.01)
    return demo_package.version
"""
    first = environment.run(site, f'{code}\nt = waits({str(go)!r})\nwhile t.status != "running": time.sleep(0.01)\nprint(pk.Pool().status.supervisor)')
    environment.install('2.0')
    said = environment.run(site, f'{_TELL}\nprint(tell("demo_package").result, pk.Pool().status.supervisor)')
    assert said[0] == '2.0' and said[2] != first[0]
    running = pk.traces(task='waits')[0]
    assert running.status == 'running'
    go.touch()
    assert running.wait(60) and running.result == '1.0'
    assert wait_for(lambda: len(supervisors(site)) == 1)
