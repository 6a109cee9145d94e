"""Libraries of tasks: bound, imported and written out, in other processes and notebooks."""
import os, subprocess, sys
from textwrap import dedent

import parkit as pk, pytest
from kernels import notebooks, text
from task_helpers import event_loop, interpreters  # noqa: F401  a fixture

_math = '''
import json
from collections import Counter as Count
RATE = {'a': 2}
class Rated:
    def __init__(self, n): self.n = n
    def value(self): return json.loads(json.dumps(self.n*RATE['a']))
def rated(n, scale=RATE): return Rated(n)
@pk.task(metadata=dict(library='math'), name='mysum', default_sync=True)
def __sum__(items, start: int = 0) -> int:
    "The sum of it all"
    return sum(items, start)
mysum = __sum__
@pk.task(metadata=dict(library='math'), default_sync=True)
def most(items: list) -> Count: return Count(items).most_common(1)[0][0]
@pk.task(metadata=dict(library='math'), default_sync=True)
def total(items): return mysum(rated(i).value() for i in items)
'''


def test_libraries_lists_and_binds(site):
    exec(_math, dict(pk=pk))
    pk.task(name='other', metadata=dict(library='other'))(lambda: 1)
    pk.task(name='alone')(lambda: 1)
    assert [o.name for o in pk.libraries()] == ['math', 'other']
    assert [t.name for t in pk.libraries()[0].tasks] == ['most', 'mysum', 'total'] and repr(pk.libraries()[0]) == "Library('math': most, mysum, total)"
    names = dict(pk=pk, most='mine')
    exec('bound = pk.libraries()[0].bind(overwrite=False)', names)
    assert names['bound'] == ['mysum', 'total'] and names['most'] == 'mine' and names['mysum']([1, 2]) == 3
    exec('bound = pk.libraries()[0].bind()', names)
    assert names['bound'] == ['most', 'mysum', 'total'] and names['most']('aab') == 'a'


def test_import_is_live_in_another_notebook():
    with notebooks(2) as (one, two):
        one.run('import parkit as pk')
        one.run(_math)
        assert text(two.run('from parkit.library.math import mysum\nmysum([1, 2, 3])')) == '6'
        assert text(two.run('import parkit.library.math as m\nm.total([1, 2]), dir(m)')) == "(6, ['most', 'mysum', 'total'])"
        one.run('@pk.task(metadata=dict(library="math"), name="mysum", default_sync=True)\ndef _(items): return "new"')
        one.run('@pk.task(metadata=dict(library="math"), default_sync=True)\ndef later(): return "later"')
        assert text(two.run('mysum([1]), m.later(), m.mysum([1])')) == "('new', 'later', 'new')"
        assert text(two.run('from parkit.library.math import *\nlater(), most("b")')) == "('later', 'b')"
        assert "the library 'math' has no 'median'; it has later, most, mysum, total" in text(two.run('m.median'))
        assert 'ImportError' in text(two.run('from parkit.library.math import median'))
        assert "ModuleNotFoundError: there is no library 'maths'; there is math" in text(two.run('import parkit.library.maths'))


def test_autoreload_leaves_libraries_alone():
    with notebooks(1) as (kernel,):
        kernel.run('%load_ext autoreload\n%autoreload 2\nimport parkit as pk\n@pk.task(metadata=dict(library="math"), default_sync=True)\ndef one(): return 1')
        kernel.run('from parkit.library.math import one\nimport parkit.library.math as m')
        assert text(kernel.run('one(), m.one()')) == '(1, 1)'


def test_worker_imports_a_library(site):
    pk.Pool().resize(1)
    with interpreters(1, site) as (one,):
        one.run(_math)
        one.run('import parkit.library.math as m\n@pk.task\ndef f(items):\n    from parkit.library.math import most\n    return m.mysum(items), most(items)')
        assert one.value('f([1, 2, 2]).result') == (5, 2)


def test_library_is_of_the_site_that_is_set(site, tmp_path):
    exec(_math, dict(pk=pk))
    from parkit.library import math as m
    assert m.mysum([1]) == 1
    other = pk.set_site(tmp_path/'other')
    with pytest.raises(AttributeError, match="has no 'mysum'; it has nothing"): m.mysum
    pk.set_site(site)
    other.close()
    assert m.mysum([1]) == 1


def test_import_of_parkit_costs_no_more(site):
    code = 'import sys, parkit; assert sys.meta_path[-1].__name__ == "_Finder"; print([m for m in ("numpy", "cloudpickle", "IPython") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'


def test_exported_library_runs_without_parkit(tmp_path):
    "Written from a notebook, where classes have no file; imported by an interpreter that has no parkit"
    with notebooks(1, cwd=tmp_path) as (kernel,):
        kernel.run('import parkit as pk')
        kernel.run(_math)
        assert text(kernel.run('pk.export_library("math", "my_math.py")')) == ''
    written = (tmp_path/'my_math.py').read_text()
    assert '@pk.task' not in written and written.count('class Rated') == 1 and 'import parkit' not in written
    code = 'import my_math; print(my_math.total([1, 2]), my_math.most("aab"), my_math.mysum([1, 2], 3), my_math.mysum.__doc__, my_math.__all__)'
    done = subprocess.run([sys.executable, '-S', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "6 a 6 The sum of it all ['most', 'mysum', 'total']\n", done.stderr + written


def test_export_that_cannot_be_put_in_its_place_leaves_nothing(site, tmp_path):
    pk.task(name='f', metadata=dict(library='one'))(abs_of)
    (tmp_path/'folder').mkdir()
    with pytest.raises(IsADirectoryError): pk.export_library('one', tmp_path/'folder')
    assert os.listdir(tmp_path) == ['folder', 'site'] or sorted(os.listdir(tmp_path)) == ['folder', 'site']


@pytest.mark.parametrize('name', ['my "best" tasks', 'a\\b', 'größer'])
def test_export_of_a_library_of_any_name(site, tmp_path, name):
    pk.task(name='f', metadata=dict(library=name))(abs_of)
    pk.export_library(name, tmp_path/'one.py')
    names = {}
    exec((tmp_path/'one.py').read_text(), names)
    assert names['f'](-2) == 2 and names['__doc__'] == f'The library {name}, as parkit had it'

def abs_of(n): return abs(n)


def test_export_says_what_cannot_be_written_and_writes_nothing(site, tmp_path):
    path = tmp_path/'shapes.py'
    with interpreters(1, site, tmp_path) as (one,):
        one.run('(Path("cell.py")).write_text(%r)' % dedent('''
            import parkit as pk
            class Shape: pass
            shape, d = Shape(), pk.Dict()
            @pk.task(metadata=dict(library='shapes'))
            def one(): return shape, d
            two = pk.task(name='two', metadata=dict(library='shapes'))(lambda: 1)
            @pk.task(metadata=dict(library='shapes'))
            def three(): return two(sync=True)
        '''))
        one.run('exec(compile(Path("cell.py").read_text(), str(Path("cell.py").absolute()), "exec"))')
    with pytest.raises(pk.TaskError) as caught: pk.export_library('shapes', path)
    assert [line.partition(':')[0] for line in str(caught.value).splitlines()[1:]] == ['- one', '- one', '- three', '- two'], str(caught.value)
    for part in ('shape is a Shape, and it is not known how it was made', 'd is a Dict that cannot be opened by a name', 'passes sync= to a task'): assert part in str(caught.value)
    assert not path.exists() and os.listdir(tmp_path).count('cell.py') == 1
    with pytest.raises(pk.ObjectNotFoundError, match="no library 'shape'; there is shapes"): pk.export_library('shape', path)
