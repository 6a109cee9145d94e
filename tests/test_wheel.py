"The built wheel, installed in an empty environment with fastcore 2, and what an import costs"
import email, json, os, re, shutil, subprocess, sys, tarfile, zipfile

import pytest
from kernels import root
from test_testing import check_run, make_project, run_pytest

_smoke = '''
import sys
import parkit as pk
assert not {'numpy', 'IPython'} & set(sys.modules), 'importing parkit imported one of these'

import fastcore, numpy as np, os
assert fastcore.__version__.startswith('2.'), fastcore.__version__
assert not pk.__file__.startswith(sys.argv[1]), 'this is the checkout, not the wheel'

site = pk.set_site(sys.argv[2])
d = pk.Dict('prices')
d['tea'] = 2.5
assert dict(pk.Dict('prices')) == {'tea': 2.5}

d['large'] = np.arange(1_000_000)
with pk.snapshot(d): large = d['large']
assert large.sum() == 499_999_500_000 and not large.flags.writeable
assert d['large'].flags.writeable

@pk.task(name='mysum', default_sync=True)
def total(numbers): return sum(numbers), os.getpid()

numbers = pk.Array()
numbers.extend([1, 2, 3, 4, 5])
assert total(numbers) == (15, os.getpid())
trace = pk.bind_task('mysum')(numbers, sync=False)
value, pid = trace.result
assert value == 15 and pid == trace.pid != os.getpid(), trace
pk.Pool().stop()
site.close()
print('smoke test passed')
'''


def _run(*command, **kwargs):
    kwargs = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280) | kwargs
    done = subprocess.run([str(o) for o in command], **kwargs)
    assert done.returncode == 0, f'{command}:\n{done.stdout}{done.stderr}'
    return done.stdout

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel made, by way of a source distribution, from a copy: a `build/` here could hold old files"
    folder = tmp_path_factory.mktemp('wheel')
    unwanted = ['.*', 'build', 'dist', '*.egg-info', '__pycache__', '_proc', '_docs', 'nbs']
    shutil.copytree(root, folder/'source', ignore=shutil.ignore_patterns(*unwanted))
    _run(sys.executable, '-m', 'build', '--outdir', folder/'dist', folder/'source')
    return next((folder/'dist').glob('*.whl'))


@pytest.mark.timeout(600)
def test_trap_31_wheel_in_an_empty_environment(wheel, tmp_path):
    inside = zipfile.ZipFile(wheel).namelist()
    modules = {f'parkit/{o.name}' for o in (root/'parkit').glob('*.py')} | {'parkit/py.typed'}
    assert modules <= set(inside) and not any(o.startswith(('tests/', 'tools/')) for o in inside)

    _run(sys.executable, '-m', 'venv', tmp_path/'venv')
    python = tmp_path/'venv/bin/python'
    _run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', wheel, 'fastcore>=2')
    elsewhere = tmp_path/'elsewhere'
    elsewhere.mkdir()
    (elsewhere/'smoke.py').write_text(_smoke)
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PARKIT_SITE', 'VIRTUAL_ENV')}
    assert 'smoke test passed' in _run(python, 'smoke.py', root, tmp_path/'site', cwd=elsewhere, env=env, timeout=100)

    # the recipes, in kernels of that environment
    _run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', f'{wheel}[demo]')
    shutil.copytree(root/'tools', elsewhere/'tools')
    shutil.copytree(root/'nbs/tutorials', elsewhere/'nbs/tutorials')
    assert re.search(r'demo: (\d+) of \1 cells as the recipes say', _run(python, 'tools/demo.py', cwd=elsewhere, env=env))

    # the plugin, which pytest finds by itself
    _run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', 'pytest')
    (tmp_path/'project').mkdir()
    make_project(tmp_path/'project')
    check_run(tmp_path/'project', run_pytest(tmp_path/'project', python=python, plugin=()))


def test_metadata_is_complete(wheel):
    with zipfile.ZipFile(wheel) as z:
        [name] = [o for o in z.namelist() if o.endswith('.dist-info/METADATA')]
        found = email.message_from_bytes(z.read(name))
        assert any(o.endswith('/LICENSE') for o in z.namelist())
    assert found['License-Expression'] == 'Apache-2.0' and found['License'] is None and found['Requires-Python'] == '>=3.10' and found['Author'] and found['Keywords']
    assert {o.partition(',')[0] for o in found.get_all('Project-URL')} >= {'Documentation', 'Source', 'Changelog', 'Issues'}
    assert found.get_payload().lstrip().startswith('# parkit') and '](nbs/' not in found.get_payload()
    classifiers = found.get_all('Classifier')
    assert {o for o in classifiers if 'Python :: 3.' in o} == {f'Programming Language :: Python :: 3.{n}' for n in range(10, 16)}
    assert not [o for o in classifiers if o.startswith('License')]  # the expression says it


def test_source_distribution_has_what_the_package_needs_and_no_tests(wheel):
    "They need the whole repository: without it, those that setuptools adds by itself can only fail"
    [path] = wheel.parent.glob('*.tar.gz')
    with tarfile.open(path) as t: names = {o.partition('/')[2] for o in t.getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'LICENSE', 'CHANGELOG.md', 'README.md', 'parkit/__init__.py', 'parkit/py.typed'} <= names
    assert not [o for o in names if o.startswith(('tests', 'test_'))]


def test_import_brings_in_neither_numpy_nor_ipython():
    "In the development environment, where both are installed"
    code = 'import json, sys, parkit; print(json.dumps(sorted({o.split(".")[0] for o in sys.modules})))'
    assert not {'numpy', 'IPython'} & set(json.loads(_run(sys.executable, '-c', code, cwd=root)))
