"""Annotations that cannot be evaluated, as Python 3.14 has them (PEP 649): what is imported for type checkers only, or defined later.

Before 3.14, `from __future__ import annotations` makes text of them all, so the same holds there."""
import sys

import pytest
from task_helpers import event_loop, interpreters  # noqa: F401  a fixture

import parkit as pk

_future = '' if sys.version_info >= (3, 14) else 'from __future__ import annotations\n'
_cells = _future + '''
import dataclasses, enum, functools, inspect, pickle, typing
if typing.TYPE_CHECKING: import pandas as pd

def plain(x: pd.DataFrame, *more: list[Later], **named: pd.Index) -> Later: return x

def counted(f):
    @functools.wraps(f)
    def inner(*args, **kwargs): return f(*args, **kwargs)
    return inner

@counted
def wrapped(x: pd.DataFrame) -> Later: return x

class Model:
    frame: pd.DataFrame
    later: list[Later] = []
    def fit(self, y: pd.DataFrame) -> Later: return y
    @property
    def rank(self) -> Later: return 7
    @staticmethod
    def static(y: Later) -> Later: return y

@dataclasses.dataclass
class Data:
    frame: pd.DataFrame
    n: int = 1
    more: list[Later] = dataclasses.field(default_factory=list)

@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    frame: pd.DataFrame
    n: int = 1

class Named(typing.NamedTuple):
    frame: pd.DataFrame
    n: int = 1

class Dictlike(typing.TypedDict):
    frame: pd.DataFrame

class Kind(enum.Enum):
    A = 1
    def of(self, x: Later) -> Later: return x

def outer(n):
    def inner(x: Later) -> n_of_nothing: return x + n
    return inner

async def co(x: Later) -> pd.Series: return x
def gen(n: Later) -> pd.Series: yield from range(n)
d = pk.Dict('d')
'''

_values = {'plain': '(1)', 'wrapped': '(1)', 'Model()': '.fit(1)', 'Model().fit': '(1)', 'Model': '.static(1)', 'Data(1)': '.frame', 'Slotted(1)': '.n', 'Named(1)': '.n',
           'Kind.A': '.of(1)', 'outer(0)': '(1)', 'functools.partial(plain, 1)': '()', '[Model(), plain]': '[1](1)', 'lambda: plain(1)': '()'}

@pytest.fixture(scope='module')
def programs(tmp_path_factory):
    site = pk.Site(str(tmp_path_factory.mktemp('lazy')/'site'))
    with interpreters(2, site) as (one, two):
        one.run(_cells)
        two.run('import parkit as pk\nd = pk.Dict("d")')
        yield one, two
        one.run('pk.Pool().stop()')
    site.close()

@pytest.mark.parametrize('value', _values)
def test_values_of_functions_and_classes(programs, value):
    "Stored by one process, and used by another that has none of the definitions"
    one, two = programs
    one.run(f'd[{value!r}] = {value}')
    for reader in programs: assert reader.value(f'd[{value!r}]{_values[value]}') == 1

@pytest.mark.parametrize('value', ['plain', 'Model', 'Data', 'Dictlike'])
def test_annotations_come_along_as_text_or_forward_references(programs, value):
    one, two = programs
    one.run(f'd["it"] = {value}')
    two.run(f'found = d["it"].__annotations__')
    assert two.value('all(getattr(v, "__forward_arg__", v) for v in found.values()) and "pd.DataFrame" in repr(found)') is True

@pytest.mark.parametrize('name', ['plain', 'wrapped', 'Model().fit', 'outer(0)', 'functools.partial(plain)', 'lambda x: plain(x)', 'co', 'Model.static'])
def test_tasks(programs, name):
    "Defined, run here and in the background, looked at, and defined again, which makes no new version"
    one, two = programs
    define = f't = pk.task(name="t")({name})'
    one.run(define)
    assert one.value('t(1).result') == 1 and two.value('pk.bind_task("t")(1).result') == 1
    for program in programs: assert program.value('bool(str(__import__("inspect").signature(pk.bind_task("t"))))') is True
    assert one.value('"0x" in pk.bind_task("t").history()[-1].signature') is False
    version = one.value('t.version')
    one.run(define)
    assert one.value('t.version') == version
    one.run('t.drop()')

def test_signature_of_a_task_is_as_it_is_written(programs):
    one, two = programs
    one.run('t = pk.task(plain)')
    for program in programs: assert program.value('pk.bind_task("plain").history()[-1].signature.replace(chr(39), "")') == '(x: pd.DataFrame, *more: list[Later], **named: pd.Index) -> Later'
    one.run('t.drop()')

def test_generators_caches_executors_and_maps(programs):
    one, _ = programs
    assert one.value('list(pk.task(gen)(3).result)') == [0, 1, 2]
    one.run('kept = pk.task(name="kept", cache=True)(plain)')
    assert one.value('kept(1).result, kept(1).result, len(kept.cache)') == (1, 1, 1)
    assert one.value('pk.map(kept, [1, 2]), pk.Executor().submit(plain, 3).result()') == ([1, 2], 3)
    one.run('from parkit.caching import digest')
    assert one.value('digest(Model()) == digest(Model())') is True

def test_exported_library_can_be_imported(programs, tmp_path):
    "By a Python that evaluates annotations at once, too"
    one, two = programs
    (tmp_path/'cells.py').write_text(_future + 'import typing\nimport parkit as pk\nif typing.TYPE_CHECKING: import pandas as pd\n\nclass Model:\n    frame: pd.DataFrame\n'
                                     "    def fit(self, y: 'Later') -> pd.Series: return y\n\n@pk.task(metadata=dict(library='lazy'))\n"
                                     'def exported(x: pd.DataFrame, model: Model = None) -> Later: return Model().fit(x)\n')
    one.run(f'import runpy, linecache\nsource = open({str(tmp_path/"cells.py")!r}).read()\nexec(compile(source, {str(tmp_path/"cells.py")!r}, "exec"))')
    target = tmp_path/'lazy_library.py'
    one.run(f'pk.export_library("lazy", {str(target)!r})')
    text = target.read_text()
    assert 'from __future__ import annotations' in text
    names = {}
    exec(compile(text, str(target), 'exec'), names)
    assert names['exported'](5) == 5

@pytest.mark.skipif(sys.version_info < (3, 14), reason='annotations are evaluated at once')
def test_a_function_is_left_as_it_is(programs):
    "What its annotations name may be defined later"
    one, _ = programs
    one.run('def early(x: Defined) -> Defined: return x\nd["early"] = early\npk.task(early).drop()\nclass Defined: pass')
    assert one.value('early.__annotations__["x"] is Defined') is True
    one.run('d["early"] = early')
    assert one.value('d["early"].__annotations__["x"] is Defined') is True
