"""The types of the whole package, which no single notebook can look at."""
import importlib, inspect, json, pkgutil, re, shutil, subprocess, sys
from pathlib import Path

import pytest

import parkit

root = Path(parkit.__file__).parent


def modules(): return [parkit] + [importlib.import_module(f'parkit.{m.name}') for m in pkgutil.iter_modules(parkit.__path__) if m.name != '_modidx']


def functions():
    "Every function and method that parkit defines, with where it stands"
    for module in modules():
        for name, o in vars(module).items():
            if getattr(o, '__module__', None) != module.__name__: continue
            members = vars(o).items() if inspect.isclass(o) else [(name, o)]
            for member, f in members:
                f = getattr(f, 'fget', None) or getattr(f, '__func__', f)
                if inspect.isfunction(f) and f.__code__.co_filename.startswith(str(root)): yield f'{module.__name__}.{name}.{member}', f


def test_every_parameter_and_result_has_a_type():
    found = list(functions())
    assert len(found) > 200
    def untyped(f):
        names = [n for n, p in inspect.signature(f).parameters.items() if n not in ('self', 'cls')]
        return f.__name__ != '<lambda>' and not {*names, 'return'} <= f.__annotations__.keys()
    assert [where for where, f in found if untyped(f)] == []


def test_every_public_name_says_what_it_is():
    def silent(o): return callable(o) and not (o.__doc__ or '').strip()
    assert [n for n in parkit.__all__ if silent(getattr(parkit, n))] == []
    public = [(where, f) for where, f in functions() if not any(p.startswith('_') for p in where.split('.'))]
    assert [where for where, f in public if not (f.__doc__ or '').strip()] == []


def test_types_are_marked_as_such(): assert (root/'py.typed').exists()


typed = Path(__file__).with_name('typed')

def _pyright(*paths):
    "What pyright finds: pairs of a line and what is said of it"
    pyright = Path(sys.executable).with_name('pyright')
    if not pyright.exists() or not shutil.which('node'): pytest.skip('pyright needs node, which is not here')
    done = subprocess.run([pyright, '--pythonpath', sys.executable, '--outputjson', *paths], cwd=root.parent, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found['summary']['filesAnalyzed'] > 0, done.stdout + done.stderr
    return [(d['range']['start']['line'] + 1, d['message']) for d in found['generalDiagnostics'] if d['severity'] == 'error']

def _mypy(*paths):
    "What mypy finds, as `_pyright` says it"
    pytest.importorskip('mypy')
    done = subprocess.run([sys.executable, '-m', 'mypy', '--strict', '--allow-untyped-defs', '--follow-imports', 'silent', *paths],
                          cwd=root.parent, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [(int(line), message) for line, message in re.findall(r':(\d+): error: (.*)', done.stdout)]

checkers = pytest.mark.parametrize('checker', [_pyright, _mypy])

@pytest.mark.timeout(300)
def test_pyright_finds_no_error(): assert _pyright('parkit') == []


@checkers
@pytest.mark.timeout(300)
def test_checkers_know_the_types_that_a_program_uses(checker): assert checker(typed/'sample.py') == []


@checkers
@pytest.mark.timeout(300)
def test_checkers_find_mistakes(checker):
    lines = (typed/'mistakes.py').read_text().splitlines()
    wrong = {i for i, line in enumerate(lines, 1) if line.endswith('# wrong')}
    found = dict(checker(typed/'mistakes.py'))
    assert len(wrong) > 30
    assert (wrong - found.keys(), found.keys() - wrong) == (set(), set()), found


def test_what_is_generic_can_be_subscripted_and_is_the_same_class(site):
    d = parkit.Dict[str, int]('prices')
    d['a'] = 1
    assert type(d) is parkit.Dict and dict(parkit.Dict('prices')) == {'a': 1}
    assert type(parkit.Queue[str]('jobs')) is parkit.Queue and type(parkit.Array[float]()) is parkit.Array
    class Prices(parkit.Dict[str, float]): "One of a user's"
    assert isinstance(Prices('mine'), parkit.Dict) and {o.name for o in parkit.Namespace('default')} == {'prices', 'jobs', 'mine'}
    assert parkit.Task[[int], str] and parkit.Task[..., str] and parkit.AsyncTrace[int] and parkit.LifoQueue[int]


def test_map_is_public_and_import_star_leaves_pythons_own_alone():
    names = {}
    exec('from parkit import *', names)
    assert 'map' not in names and 'Dict' in names and callable(parkit.map)
