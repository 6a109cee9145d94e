"""What of a function travels, when it has changed, and what it says of itself: in other processes and in live kernels."""
import asyncio, inspect, os, re, subprocess, sys, warnings

import parkit as pk, pytest
from conftest import wait_for
from helpers import nobody_runs
from kernels import notebooks, text
from parkit.tasks import _definers, _functions
from task_helpers import ended, event_loop, interpreters  # noqa: F401  a fixture


@pytest.fixture
def pool(single):
    "One worker, so that what it keeps would show in the next call"
    return single

def cell(names, source): exec(source, names)

@pytest.fixture
def notebook(site):
    "The globals of a notebook"
    return dict(pk=pk, __name__='__main__')


# --- versions

def test_history_has_each_version_that_differs_once(notebook):
    for body in ('2*n', 'n + n', '2*n', 'n + n + 0'): cell(notebook, f'@pk.task\ndef double(n):\n    "Twice"\n    return {body}')
    double = pk.bind_task('double')
    history = double.history()
    assert [v.number for v in history] == [1, 2, 3] and [v.current for v in history] == [False, False, True]
    assert history[2].version == double.version and len({v.version for v in history}) == 3
    assert {(v.signature, v.doc) for v in history} == {('(n)', 'Twice')} and history[0].created <= history[2].created


def test_rollback_holds_everywhere_until_the_task_is_defined_again(pool):
    with interpreters(2, pool.site) as (one, two):
        one.run('@pk.task\ndef price(): return "first"')
        first = one.value('price.version')
        one.run('@pk.task\ndef price(): return "second"')
        two.run('price = pk.bind_task("price")')
        assert two.value('price(sync=True), price().result') == ('second', 'second')
        two.run(f'price.rollback("{first[:6]}")')
        for o in (one, two): assert o.value('price(sync=True), price().result, price.version') == ('first', 'first', first)
        one.run('@pk.task\ndef price(): return "third"')
        for o in (one, two): assert o.value('price(sync=True), price().result') == ('third', 'third')


def test_rollback_brings_the_helper_back_that_the_version_had(pool, notebook):
    cell(notebook, 'def helper(): return "old"\n@pk.task\ndef price(): return helper()')
    price = notebook['price']
    old = price.version
    cell(notebook, 'def helper(): return "new"')
    assert (price(sync=True), price().result) == ('new', 'new') and price.version != old
    price.rollback(old)
    assert (price(sync=True), price().result) == ('old', 'old')


def test_rollback_to_what_is_not_there_says_what_is(notebook):
    cell(notebook, '@pk.task\ndef price(): return 1')
    with pytest.raises(pk.ObjectNotFoundError, match=f"no version 'xyz'; it has {notebook['price'].version}"): notebook['price'].rollback('xyz')
    cell(notebook, '@pk.task\ndef price(): return 2')
    with pytest.raises(pk.ObjectNotFoundError, match='2 versions that begin with'): notebook['price'].rollback('')


def test_pinned_task_runs_its_version_whatever_is_defined(pool, notebook):
    cell(notebook, '@pk.task\ndef price(): return "first"')
    version = notebook['price'].version
    pinned = pk.bind_task('price', version=version)
    cell(notebook, '@pk.task\ndef price(): return "second"')
    assert (pinned(sync=True), pinned().result, pinned.version) == ('first', 'first', version)
    assert pinned().version == version != notebook['price']().version
    pk.Dict('kept')['pinned'] = pinned
    with interpreters(1, pool.site) as (other,):
        assert other.value('pk.Dict("kept")["pinned"](sync=True), pk.bind_task("price")(sync=True)') == ('first', 'second')
    with pytest.raises(pk.ObjectNotFoundError, match='no version'): pk.bind_task('price', version='0')


def test_trace_keeps_the_version_it_ran(pool, notebook):
    cell(notebook, '@pk.task\ndef price(): return "first"')
    first = notebook['price']()
    assert first.result == 'first'
    cell(notebook, '@pk.task\ndef price(): return "second"')
    assert first.version == notebook['price'].history()[0].version != notebook['price'].version


def test_version_is_the_same_in_two_processes(site):
    source = ('import json\nlimits = {"b", "a", "c"}\ndef helper(x, d=(1, 2)): return json.dumps(x)\n'
              '@pk.task\ndef f(x):\n    if x in limits: return [helper(i) for i in limits]')
    with interpreters(2, site) as both:
        for o in both: o.run(source)
        assert both[0].value('f.version') == both[1].value('f.version') and len(pk.bind_task('f').history()) == 1


def test_many_versions_are_all_kept_while_they_are_young(notebook):
    cell(notebook, 'i = 0\n@pk.task\ndef f(): return i')
    for i in range(1, 80):
        notebook['i'] = 1000 + i
        notebook['f'](sync=True)
    assert len(notebook['f'].history()) == 80


def test_old_versions_go_but_never_the_current_one(notebook, monkeypatch):
    monkeypatch.setattr('parkit.tasks._FRESH', -1.0)
    cell(notebook, 'i = 1000\n@pk.task\ndef f(): return i')
    f, first = notebook['f'], notebook['f'].version
    for i in range(1, 130):
        notebook['i'] = 1000 + i
        f(sync=True)
    assert 50 <= len(f.history()) <= 61
    with pytest.raises(pk.ObjectNotFoundError): f.rollback(first)
    with pytest.raises(pk.TaskError, match='version number 1 of task/f is not kept'): f._loaded(1)


# --- no stale code

def test_redefined_helper_changes_the_next_call():
    with notebooks(1) as (kernel,):
        kernel.run('import parkit as pk\ndef inner(): return "old"')
        kernel.run('def helper(): return inner()')
        kernel.run('@pk.task\ndef price(): return helper()')
        assert text(kernel.run('price().result')) == "'old'"
        kernel.run('def inner(): return "new"')
        assert text(kernel.run('price().result, len(price.history())')) == "('new', 2)"
        kernel.run('def inner(): return "new"   # the same again')
        assert text(kernel.run('price().result, len(price.history())')) == "('new', 2)"


def test_helper_and_constant_defined_after_the_task(pool, notebook):
    cell(notebook, '@pk.task\ndef price(): return helper()*RATE')
    cell(notebook, 'RATE = 3\ndef helper(): return 7')
    assert notebook['price']().result == 21
    cell(notebook, 'RATE = 4')
    assert notebook['price']().result == 28


def test_redefined_class_and_patched_method_change_the_next_call(pool, notebook):
    cell(notebook, 'class Shape:\n    def area(self): return 1\n@pk.task\ndef area(): return Shape().area()')
    assert notebook['area']().result == 1
    cell(notebook, 'class Shape:\n    def area(self): return 2')
    assert notebook['area']().result == 2
    cell(notebook, 'def three(self): return 3\nShape.area = three')
    assert notebook['area']().result == 3


_values = '''
import collections, dataclasses, types
import numpy as np, pandas as pd
@dataclasses.dataclass
class Config:
    lr: float = 1
    layers: list = dataclasses.field(default_factory=list)
class Plain:
    def __init__(self): self.lr = 1
class Hashed(Plain):
    def __hash__(self): return 1
    def __eq__(self, other): return isinstance(other, Hashed)
class Slotted:
    __slots__ = ('lr',)
    def __init__(self): self.lr = 1
class Holder: things = {'lr': 1}
'''

_in_place = {  # the value, what the task returns, the change
    'dict': ("{'lr': 1}", 'v["lr"]', 'v["lr"] = 2'), 'new key': ('{}', 'sorted(v)', 'v["lr"] = 2'), 'nested': ("{'a': [{'b': 1}]}", 'v["a"][0]["b"]', 'v["a"][0]["b"] = 2'),
    'list': ('[1]', 'v', 'v.append(2)'), 'set': ('{1}', 'v', 'v.add(2)'), 'bytearray': ('bytearray(b"a")', 'bytes(v)', 'v += b"b"'), 'tuple': ('([1],)', 'v[0]', 'v[0].append(2)'),
    'deque': ('collections.deque([1])', 'list(v)', 'v.append(2)'), 'defaultdict': ('collections.defaultdict(list)', 'dict(v)', 'v["a"].append(1)'), 'Counter': ('collections.Counter("a")', 'dict(v)', 'v.update("ab")'),
    'ndarray': ('np.zeros(5)', 'v.tolist()', 'v[1] = 7'), 'view': ('np.arange(9).reshape(3, 3)[:, 1]', 'v.tolist()', 'v[1] = 7'), 'objects': ('np.array([[1], 2], object)', 'v[0]', 'v[0].append(1)'),
    'DataFrame': ('pd.DataFrame({"a": [1, 2]})', 'v["a"].tolist()', 'v.loc[0, "a"] = 9'), 'Series': ('pd.Series([1, 2])', 'v.tolist()', 'v.iloc[0] = 9'),
    'dataclass': ('Config()', 'v.lr', 'v.lr = 2'), 'in a dataclass': ('Config()', 'v.layers', 'v.layers.append(1)'), 'instance': ('Plain()', 'v.lr', 'v.lr = 2'), 'hashed': ('Hashed()', 'v.lr', 'v.lr = 2'),
    'slots': ('Slotted()', 'v.lr', 'v.lr = 2'), 'namespace': ('types.SimpleNamespace(lr=1)', 'v.lr', 'v.lr = 2'), 'class attribute': ('Holder', 'v.things["lr"]', 'v.things["lr"] = 2'),
    'lambdas': ('{"f": lambda: 1}', 'v["f"]()', 'v["f"] = lambda: 2'), 'bound method': ('[1].copy', 'v()', 'v.__self__.append(2)')}

@pytest.mark.parametrize('kind', _in_place)
def test_a_change_in_place_is_seen_by_the_next_call_in_the_background(pool, notebook, kind):
    value, shown, change = _in_place[kind]
    cell(notebook, f'{_values}\nv = {value}\ndef helper(): return {shown}\n@pk.task\ndef look(): return helper()')
    look = notebook['look']
    assert look().result == look(sync=True)
    before = look.version
    assert look.version == before and len(look.history()) == 1
    cell(notebook, change)
    assert look().result == look(sync=True) != 0 and look.version != before
    assert len(look.history()) == 2 and look().version == look.version

@pytest.mark.parametrize('call', ['look.options(timeout=60)().result', 'pk.map(look, [1])[0]', 'look.schedule(pk.Periodic(period=1, frequency=pk.Frequency.Day)) and pk.bind_task("look")(sync=True)',
                                  'pk.map(look, [1, 1], chunksize=2)[1]', 'next(pk.Executor().map(look, [1, 1], chunksize=2))', 'pk.Executor().submit(look).result()',
                                  'kept().result', 'kept(sync=True)', 'kept.cache.explain() and kept().result'])
def test_every_way_to_call_looks_at_what_changes_in_place(pool, notebook, call):
    cell(notebook, 'v = {"lr": 1}\n@pk.task\ndef look(n=0): return v["lr"]\n@pk.task(cache=True)\ndef kept(): return v["lr"]\nkept()')
    cell(notebook, 'v["lr"] = 2')
    assert eval(call, notebook) == 2

@pytest.mark.parametrize('where', ['def f(v=[1]): return v', 'def make(v):\n    def f(): return v\n    return f\nf = make([1])', 'def f(*, v=[1]): return v'])
def test_defaults_and_closures_change_in_place_too(pool, notebook, where):
    cell(notebook, f'{where}\ntask = pk.task(name="f")(f)')
    notebook['f'].__defaults__ and notebook['f'].__defaults__[0].append(2)
    notebook['f'].__kwdefaults__ and notebook['f'].__kwdefaults__['v'].append(2)
    notebook['f'].__closure__ and notebook['f'].__closure__[0].cell_contents.append(2)
    assert notebook['task']().result == [1, 2]

def test_only_who_defined_the_task_looks_at_what_changes_in_place(pool, notebook):
    cell(notebook, 'v = [1]\n@pk.task\ndef look(): return v')
    notebook['v'].append(2)
    with interpreters(1, pool.site) as (other,):
        assert other.value('pk.bind_task("look")().result') == [1]
        assert notebook['look']().result == [1, 2] and other.value('pk.bind_task("look")().result') == [1, 2]

def test_what_cannot_change_in_place_costs_nothing(notebook):
    cell(notebook, """
import datetime, decimal, enum, json, pathlib, re, numpy as np
class Colour(enum.Enum): red = 1
shared, numbers, when, where, pattern = pk.Dict('d'), (1, 'a', (2.0, b'')), datetime.date(2026, 1, 1), pathlib.Path('x'), re.compile('a')
def helper(): return json, np, Colour, Colour.red, decimal.Decimal(1)
@pk.task
def look(n=1, name='a'): return shared, numbers, when, where, pattern, helper(), other, print
@pk.task
def other(): return 1
""")
    mine = _definers[notebook['look'].site.path, notebook['look']._uuid]
    assert mine.watch.seen == [] and mine.watch.large == []

@pytest.mark.parametrize('value, large', [('np.zeros(8000)', False), ('np.zeros(9000)', True), ('list(range(10_000))', False), ('list(range(50_000))', True), ('{"a": {"b": b"x"*70_000}}', True),
                                          ('b"x"*70_000', False), ('pd.DataFrame({"a": np.zeros(9000)})', True), ('(1,)*100_000', False)])
def test_a_large_value_that_may_change_warns_where_the_task_is_defined(notebook, tmp_path, value, large):
    file = tmp_path/'cell.py'
    file.write_text(f'import numpy as np, pandas as pd\nv = {value}\n@pk.task\ndef look(): return len(v)\n')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        exec(compile(file.read_text(), str(file), 'exec'), notebook)
    assert [(w.filename, w.lineno in (3, 4)) for w in caught] == [(str(file), True)]*large
    assert all("the global 'v' of the task 'look' has more than 64 KiB pickled" in str(w.message) for w in caught)

def test_what_becomes_large_is_looked_at_once_more(pool, notebook):
    cell(notebook, 'v = [1]\n@pk.task\ndef look(): return len(v)')
    notebook['v'].extend(range(50_000))
    with pytest.warns(UserWarning, match='has more than 64 KiB pickled'): assert notebook['look']().result == 50_001
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        notebook['v'].append(1)
        assert notebook['look']().result == 50_001


def test_module_being_edited_reaches_the_workers(tmp_path):
    "By `from utils import`, and by `utils.`, with the cells of neither run again"
    def write(rate):
        (tmp_path/'own_utils.py').write_text(f'rate = {rate}\ndef inner():\n    return rate\ndef helper():\n    return inner()\nclass Box:\n    def content(self):\n        return rate\n')
        os.utime(tmp_path/'own_utils.py', (rate, rate))
    write(1)
    with notebooks(1, cwd=tmp_path) as (kernel,):
        kernel.run('%load_ext autoreload\n%autoreload 2\nimport parkit as pk\npk.Pool().resize(1)')
        kernel.run('import own_utils\nfrom own_utils import helper, Box')
        kernel.run('@pk.task\ndef f(box): return helper(), own_utils.helper(), own_utils.rate, box.content(), isinstance(box, Box)')
        assert text(kernel.run('f(Box()).result')) == '(1, 1, 1, 1, True)'
        write(2)
        assert text(kernel.run('f(Box()).result')) == '(2, 2, 2, 2, True)'
        first = text(kernel.run('f.history()[0].version'))
        kernel.run(f'f.rollback({first})')
        assert text(kernel.run('f(Box()).result[:3]')) == '(1, 1, 1)'  # functions go back; the class is the file's


def test_package_being_edited_reaches_the_workers(site, tmp_path):
    "A module in a package of the user's, which imports the package itself"
    pk.Pool().resize(1)
    (tmp_path/'own_package').mkdir()
    (tmp_path/'own_package'/'__init__.py').write_text('from own_package import inner, deep\n')
    (tmp_path/'own_package'/'deep.py').write_text('import threading\nlock = threading.Lock()\n')
    (tmp_path/'own_package'/'inner.py').write_text('import own_package\ndef helper():\n    with own_package.deep.lock: return "old"\n')
    with interpreters(1, site, tmp_path) as (one,):
        one.run('import own_package\n@pk.task\ndef f(): return own_package.inner.helper()')
        assert one.value('f().result') == 'old'
        one.run('def helper(): return "new"\nhelper.__module__ = "own_package.inner"\nown_package.inner.helper = helper')
        assert one.value('f().result, len(f.history())') == ('new', 2)


def test_functions_of_installed_packages_and_of_parkit_go_by_name(site):
    import json
    from parkit.functions import is_by_value, is_own_module
    assert not any(map(is_own_module, ('json', 'pytest', 'parkit.tasks', 'numpy'))) and is_own_module(__name__)
    assert not is_by_value(json.dumps) and not is_by_value(pytest.raises) and not is_by_value(pk.wait_until) and is_by_value(cell)


def test_lock_in_a_module_of_the_users_is_the_workers_own(pool, tmp_path):
    (tmp_path/'guarded_utils.py').write_text('import threading\nlock = threading.Lock()\ndef guarded(n):\n    with lock: return 2*n\n')
    with interpreters(1, pool.site, tmp_path) as (one,):
        one.run('import guarded_utils\n@pk.task\ndef f(n): return guarded_utils.guarded(n)')
        assert one.value('f(4).result') == 8


def test_check_for_stale_code_is_cheap(notebook):
    "Counted, not timed: it compares what was noted, once each"
    cell(notebook, 'import json\nRATE = 2\ndef helper(x): return json.dumps(x*RATE)\n@pk.task(default_sync=True)\ndef f(x): return helper(x)')
    anatomy = _definers[notebook['f'].site.path, notebook['f']._uuid].anatomy
    assert len([*anatomy.bindings]) == 3 and len(anatomy.bindings.codes) == 2 and not anatomy.changed()


# --- what it says of itself

def _inspected(kernel, code, detail):
    kernel.client.inspect(code, detail_level=detail)
    return re.sub(r'\x1b\[[0-9;]*m', '', kernel.client.get_shell_msg(timeout=60)['content']['data']['text/plain'])

def test_help_works_in_another_notebook():
    with notebooks(2) as (one, two):
        one.run('import parkit as pk\nimport numpy as np')
        one.run('@pk.task(name="mysum", default_sync=True)\ndef __sum__(input: pk.Array, start: int = 0, *, scale=np.float64(2)):\n    "The sum of it all"\n    # with care\n    return sum(input, start)*scale')
        two.run('import parkit as pk, inspect\npk.bind_symbol("task", "mysum")')
        assert 'start' in text(two.run('str(inspect.signature(mysum))')) and text(two.run('mysum.__doc__')) == "'The sum of it all'"
        shown, whole = _inspected(two, 'mysum', 0), _inspected(two, 'mysum', 1)
        assert 'The sum of it all' in shown and 'scale' in shown and 'start: int = 0' in shown.replace('\n', '')
        assert '# with care\n    return sum(input, start)*scale' in whole
        assert '# with care' in text(two.run('print(inspect.getsource(mysum))'))


def _completed(kernel, code):
    kernel.client.complete(code)
    return kernel.client.get_shell_msg(timeout=60)['content']['matches']

def test_keys_are_completed():
    with notebooks(1) as (kernel,):
        kernel.run("import parkit as pk\nprices = pk.Dict('shop/prices')\nprices.update({'green tea': 2, 'coffee': 3, 7: 1})\nshop = pk.Namespace('shop')")
        assert {'coffee', 'green tea'} == {o.strip("'\"]") for o in _completed(kernel, "prices['")}
        assert 'prices' in ''.join(_completed(kernel, "shop['"))


def test_what_it_says_follows_the_current_version(notebook):
    cell(notebook, '@pk.task\ndef f(a): "one"')
    f, first = notebook['f'], notebook['f'].version
    cell(notebook, '@pk.task\ndef f(a, b=2): "two"')
    assert (str(inspect.signature(f)), f.__doc__, f.__name__) == ('(a, b=2)', 'two', 'f')
    f.rollback(first)
    assert (str(inspect.signature(f)), f.__doc__) == ('(a)', 'one')
    assert pk.Task.__doc__.startswith('A shared function') and 'path' in inspect.signature(pk.Task).parameters


def test_listing_tasks_runs_none_of_their_code(site, tmp_path):
    with interpreters(1, site) as (one,):
        one.run(f'class Loud:\n    def __reduce__(self): return Path.touch, (Path({str(tmp_path/"ran")!r}),)\nloud = Loud()')
        one.run('@pk.task(metadata=dict(library="loud"))\ndef shout(n: int = 3):\n    "Shouts"\n    return loud')
    listed = [(t.name, t.metadata, t.__doc__, t.version, t.history()[0].signature, t.source) for t in pk.Namespace('task')]
    assert [o[:3] for o in listed] == [('shout', dict(library='loud'), 'Shouts')] and listed[0][4:] == ('(n: int = 3)', '')
    assert [o.name for o in pk.libraries()] == ['loud'] and not (tmp_path/'ran').exists()
    pk.bind_task('shout')(sync=True)
    assert (tmp_path/'ran').exists()


# --- what cannot be stored

def test_what_cannot_be_stored_is_named(notebook):
    cell(notebook, 'import threading, sqlite3\nconnection = sqlite3.connect(":memory:")\ndef query(): return connection.execute("")')
    with pytest.raises(pk.EncodeError, match="'connection' of 'query', which it uses, is a sqlite3.Connection: cannot pickle"): cell(notebook, '@pk.task\ndef f(): return query()')
    with pytest.raises(pk.EncodeError, match="closure variable 'lock' is a _thread.lock"):
        cell(notebook, 'def make(lock):\n    @pk.task\n    def f(): return lock\nmake(threading.Lock())')
    with pytest.raises(pk.EncodeError, match="default 'lock' is a _thread.lock"): cell(notebook, '@pk.task\ndef f(lock=threading.Lock()): pass')
    assert not list(pk.Namespace('task'))
    connection = notebook['connection']
    connection.close()


def test_helper_that_becomes_unstorable_is_an_error_at_the_call(notebook):
    cell(notebook, 'import threading\nthing = 1\n@pk.task\ndef f(): return thing')
    cell(notebook, 'thing = threading.Lock()')
    with pytest.raises(pk.EncodeError, match="its global 'thing' is a _thread.lock"): notebook['f']()


def test_big_global_warns_with_its_name_and_size(notebook):
    cell(notebook, 'import numpy as np\ntable, small = np.zeros(500_000), np.zeros(10)')
    with pytest.warns(UserWarning, match=r"the global 'table' \(4.0 MB\) is stored with each version of the task 'f'") as caught:
        cell(notebook, '@pk.task\ndef f(): return table, small')
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cell(notebook, '@pk.task\ndef g(): return small')


# --- another Python

def test_code_of_another_python_is_never_loaded(site, notebook, monkeypatch):
    "Neither of a task nor of any function or class that is stored by value"
    cell(notebook, 'def helper(n): return n\n@pk.task\ndef f(n): return helper(n)\nmade = pk.Dict("made")\nmade["function"] = lambda: 1')
    _functions.clear()
    _definers.clear()
    with monkeypatch.context() as m:
        m.setattr(sys, 'version_info', (3, 99, 0))
        with pytest.raises(pk.TaskError, match=r'defined with Python 3\.\d+, whose code Python 3\.99 cannot run'): pk.bind_task('f')(1, sync=True)
        with pytest.raises(pk.DecodeError, match=r'whose code Python 3\.99 cannot run'): pk.Dict('made')['function']
        assert str(inspect.signature(pk.bind_task('f'))) == '(n)' and pk.bind_task('f').version
    assert pk.bind_task('f')(1, sync=True) == 1


def test_call_of_another_pythons_task_is_for_the_interpreter_it_was_defined_with(site, notebook, monkeypatch):
    from parkit import calls, tasks
    cell(notebook, '@pk.task\ndef f(n): return n')
    calls._environment.cache_clear()
    theirs = calls._environment()
    with nobody_runs(), monkeypatch.context() as m:
        m.setattr(sys, 'version_info', (3, 99, 0))
        m.setattr(tasks, '_environment', lambda: (b'another!', b''))
        _definers.clear()
        trace = pk.bind_task('f')(1)
        assert trace._record.environment == theirs[0] != b'another!'


@pytest.mark.skipif('PARKIT_OTHER_PYTHON' not in os.environ, reason='PARKIT_OTHER_PYTHON names no interpreter of another version that has parkit')
def test_task_defined_with_another_python(site):
    "The real thing: its code is never loaded here, and a call of it is for that interpreter"
    code = ('import sys, parkit as pk\npk.set_site(sys.argv[1])\nsource = "@pk.task\\ndef f(n: int = 3): return n\\nclass Box:\\n    def v(self): return 1"\nexec(source)\n'
            'pk.Dict("made")["box"] = Box()\nprint(pk.calls._environment()[0].hex())')
    done = subprocess.run([os.environ['PARKIT_OTHER_PYTHON'], '-c', code, site.path], capture_output=True, text=True, cwd='/', check=True)
    f = pk.bind_task('f')
    with pytest.raises(pk.TaskError, match='call it with sync=False, and a worker with Python 3'): f(1, sync=True)
    with pytest.raises(pk.DecodeError, match='was stored by Python'): pk.Dict('made')['box']
    assert str(inspect.signature(f)) == "(n: 'int' = 3)" and len(f.history()) == 1 and list(pk.Namespace('task')) == [f]
    trace = f(1)
    assert trace._record.environment.hex() == done.stdout.strip() and trace.result == 1


# --- coroutines, generators, methods, lambdas

def test_coroutine_runs_in_the_worker_and_is_returned_here(pool):
    @pk.task
    async def add(a, b):
        import asyncio
        await asyncio.sleep(0)
        return a + b
    assert add(1, 2).result == 3
    coroutine = add(3, 4, sync=True)
    assert inspect.iscoroutine(coroutine) and asyncio.run(coroutine) == 7


def test_generator_is_read_item_by_item_while_it_runs(pool, tmp_path):
    @pk.task
    def count(path):
        import os, time
        yield 1
        while not os.path.exists(path): time.sleep(0.01)
        yield 2
    trace = count(str(tmp_path/'go'))
    items = iter(trace)
    assert next(items) == 1 and trace.status == 'running'
    (tmp_path/'go').touch()
    assert list(items) == [2] and list(items) == [] == list(trace) and ended(trace) == 'finished'
    assert list(count(str(tmp_path/'go')).result) == [1, 2] == list(count(str(tmp_path/'go'), sync=True))


def test_generator_waits_for_its_reader(pool, tmp_path):
    @pk.task
    def many(path):
        for i in range(1000):
            with open(path, 'w') as f: f.write(str(i))
            yield i
    trace, path = many(str(tmp_path/'at')), tmp_path/'at'
    from parkit.tracing import _AHEAD, _open_stream
    stream = _open_stream(trace._ledger, trace.id, False)
    assert wait_for(lambda: stream.full() and path.read_text() == str(_AHEAD))
    assert trace.status == 'running' and stream.qsize() == _AHEAD
    assert list(trace) == list(range(1000)) and not stream.exists


def test_generator_that_fails_or_dies_ends_the_stream_with_the_reason(pool):
    @pk.task
    def fails():
        yield 1
        raise ValueError('no more')
    @pk.task
    def dies():
        import os
        yield 1
        os.kill(os.getpid(), 9)
        yield 2
    for task, error in ((fails, ValueError), (dies, pk.WorkerCrashedError)):
        items = iter(task())
        assert next(items) == 1
        with pytest.raises(error): next(items)


def test_generator_is_read_in_another_process_after_its_caller_has_gone(pool):
    with interpreters(1, pool.site) as (caller,):
        caller.run('@pk.task\ndef count(n): yield from range(n)\npk.Dict("traces")["count"] = count(300)')
    assert list(pk.Dict('traces')['count']) == list(range(300))


def test_generator_can_be_cancelled_while_it_waits_for_its_reader(pool):
    @pk.task
    def forever():
        while True: yield 1
    trace = forever()
    assert next(iter(trace)) == 1 and trace.cancel()
    assert ended(trace) == 'cancelled'
    with pytest.raises(pk.TaskCancelledError): list(trace)


def test_result_of_a_function_is_nothing_to_iterate_over(pool):
    @pk.task
    def one(): return [1]
    with pytest.raises(TypeError, match='task/one is not a generator'): iter(one())


def test_method_of_an_object_is_a_task(pool, notebook):
    cell(notebook, 'class Model(pk.Object):\n    rate = 2\n    @pk.task\n    def fit(self, n):\n        self.fitted = True\n        return n*self.rate')
    model = notebook['Model']('models/first')
    model.rate = 5
    assert model.fit(3).result == 15 and model.fitted and model.fit(3, sync=True) == 15
    assert pk.bind_task('Model_fit')(model, 4).result == 20


def test_method_of_an_object_in_a_notebook_is_a_task():
    with notebooks(1) as (kernel,):
        kernel.run('import parkit as pk\nclass Model(pk.Object):\n    rate = 2\n    def scaled(self, n): return n*self.rate\n    @pk.task\n    def fit(self, n): return self.scaled(n), type(self) is Model')
        assert text(kernel.run('Model("m").fit(3).result')) == '(6, True)'


def test_lambdas_partials_and_bound_methods_are_tasks_if_they_have_a_name(pool):
    from functools import partial
    class Counter:
        def up(self, n): return n + 1
    assert pk.task(name='f')(lambda n: 2*n)(4).result == 8
    assert pk.task(name='g')(partial(pow, 2))(5).result == 32
    assert pk.task(Counter().up)(1).result == 2
    with pytest.raises(pk.InvalidNameError, match="'<lambda>' cannot name a task.*pass name="): pk.task(lambda n: n)


def test_what_cannot_be_a_task_is_refused_with_the_reason(site, notebook):
    with pytest.raises(TypeError, match="'items' a task: it is an async generator"): cell(notebook, '@pk.task\nasync def items(): yield 1')
    with pytest.raises(TypeError, match=r'uses super\(\)'): cell(notebook, 'class Model(pk.Object):\n    @pk.task\n    def fit(self): return super().fit()')
    with pytest.raises(TypeError, match='put @staticmethod above @task'): cell(notebook, 'class Model(pk.Object):\n    @pk.task\n    @staticmethod\n    def fit(): pass')


def test_cached_helper_of_a_notebook_travels(pool, notebook):
    cell(notebook, 'from functools import lru_cache\n@lru_cache(5)\ndef helper(n): return 2*n\n@pk.task\ndef f(n): return helper(n), helper.cache_info().maxsize')
    assert notebook['f'](4).result == (8, 5)
