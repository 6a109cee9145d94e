"""The types of the whole package, which no single notebook can look at."""
import importlib, inspect, pkgutil, shutil, subprocess, sys
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


@pytest.mark.timeout(300)
def test_pyright_finds_no_error():
    pyright = Path(sys.executable).with_name('pyright')
    if not pyright.exists() or not shutil.which('node'): pytest.skip('pyright needs node, which is not here')
    done = subprocess.run([pyright, '--pythonpath', sys.executable, 'parkit'], cwd=root.parent, capture_output=True, text=True)
    assert '0 errors' in done.stdout, done.stdout + done.stderr
