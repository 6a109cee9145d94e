"""Tasks as their callers see them: what is defined, what is called, what comes back.

Most of this takes workers, and workers are processes; so it is here and not in a notebook."""
import os, pickle, re, signal, subprocess, sys, threading
from datetime import datetime
from textwrap import dedent

import parkit as pk, pytest
from conftest import wait_for
from helpers import Fork, forked
from kernels import notebooks, text
from task_helpers import ended, event_loop, interpreters  # noqa: F401  a fixture


@pytest.fixture
def pool(single):
    "One worker, so that what harms the worker harms the next call"
    return single

@pytest.fixture
def double(pool):
    @pk.task
    def double(n): return 2*n
    return double

@pytest.fixture
def wait_for_file(pool):
    @pk.task
    def wait_for_file(path):
        import os, time
        while not os.path.exists(path): time.sleep(0.01)
    return wait_for_file


# --- definitions

def test_bare_decorator_takes_the_name_of_the_function(site):
    @pk.task
    def double(n): return 2*n
    assert (double.name, double.namespace, double.path) == ('double', 'task', 'task/double')
    assert not double.default_sync and double.metadata == {} and list(pk.Namespace('task')) == [double]


def test_a_synchronous_call_runs_here(site):
    @pk.task(default_sync=True)
    def where(): return os.getpid()
    assert where() == os.getpid()


def test_sync_can_be_chosen_for_each_call(pool):
    @pk.task(default_sync=True)
    def where():
        import os
        return os.getpid()
    assert where(sync=False).result != where() == where(sync=True) == os.getpid()


def test_version_changes_with_the_code_only(site):
    def define(source):
        names = dict(pk=pk)
        exec(compile(dedent(source), f'cell {os.urandom(4).hex()}', 'exec'), names)
        return names['double']
    first = define('@pk.task\ndef double(n): return 2*n').version
    again = define('# a comment\n\n@pk.task(default_sync=True)\ndef double(n): return 2*n')
    function = again.__wrapped__
    assert again.version == first
    assert define('@pk.task\ndef double(n): return n+n').version != first == pk.task(function).version


def test_default_sync_takes_effect_though_the_code_is_the_same(pool):
    def where():
        import os
        return os.getpid()
    pk.task(where)
    bound = pk.bind_task('where')
    version = bound.version
    assert isinstance(bound(), pk.AsyncTrace) and not bound.default_sync
    pk.task(default_sync=True)(where)
    assert bound() == os.getpid() and bound.default_sync and bound.version == version


def test_metadata_takes_effect_though_the_code_is_the_same(site):
    def double(n): return 2*n
    made = pk.task(metadata=dict(library='arithmetic'))(double)
    version = made.version
    pk.task(metadata=dict(library='math', stable=True))(double)
    assert pk.bind_task('double').metadata == made.metadata == dict(library='math', stable=True)
    assert made.version == version


def test_bound_task_calls_the_new_version_that_another_process_defined(pool):
    with interpreters(2, pool.site) as (one, two):
        one.run('@pk.task\ndef price(): return "old"')
        two.run('price = pk.bind_task("price")')
        assert two.value('price(sync=True), price().result') == ('old', 'old')
        one.run('@pk.task\ndef price(): return "new"')
        assert two.value('price(sync=True), price().result') == ('new', 'new')


def test_queued_call_runs_the_version_that_was_called(wait_for_file, tmp_path):
    go = tmp_path/'go'
    @pk.task
    def price(): return 'old'
    blocking, called = wait_for_file(str(go)), price()
    @pk.task
    def price(): return 'new'
    later = price()
    go.touch()
    assert (called.result, later.result) == ('old', 'new') and called.version != later.version
    assert blocking.result is None


def test_trap_20_two_processes_define_one_task(site):
    with interpreters(2, site) as both:
        for i in range(10):
            for o in both: o.send(f'made = pk.task(name="shared{i}")(lambda n: n + {o.pid})')
            for o in both: o.receive()
            one, two = (o.value('str(made.uuid)') for o in both)
            assert one == two == str(pk.bind_task(f'shared{i}').uuid)


def test_task_that_does_not_exist_is_an_error(site):
    with pytest.raises(pk.ObjectNotFoundError): pk.bind_task('nothing')


@pytest.mark.parametrize('name', ['two words', '_hidden', 'a/b', '1st'])
def test_name_that_cannot_be_a_symbol_is_refused(site, name):
    with pytest.raises(pk.InvalidNameError): pk.task(name=name)(lambda: 1)


def test_dropped_task_cannot_be_called(double):
    bound = pk.bind_task('double')
    double.drop()
    with pytest.raises(pk.ObjectNotFoundError): bound(1)
    with pytest.raises(pk.ObjectNotFoundError): bound(1, sync=True)


def test_task_pickles_by_reference(double):
    assert pickle.loads(pickle.dumps(double)) == double and pickle.loads(pickle.dumps(double))(4, sync=True) == 8


# --- bind_symbol

def test_bind_symbol_in_a_module_binds_in_that_module(double, tmp_path, monkeypatch):
    (tmp_path/'library_of_symbols.py').write_text(
        'import parkit as pk\ndef load(**kwargs): return pk.bind_symbol("task", "double", **kwargs)\n')
    monkeypatch.syspath_prepend(tmp_path)
    import library_of_symbols
    before = set(globals())
    library_of_symbols.double = 'taken'
    assert not library_of_symbols.load() and library_of_symbols.load(overwrite=True)
    assert library_of_symbols.double(4, sync=True) == 8 and set(globals()) == before


def test_bind_symbol_in_a_notebook_binds_in_the_notebook():
    with notebooks(1) as (kernel,):
        assert not text(kernel.run('import parkit as pk\n@pk.task\ndef double(n): return 2*n\ndel double'))
        assert text(kernel.run('pk.bind_symbol("task", "double"), double(4, sync=True)')) == '(True, 8)'


def test_bind_symbol_keeps_a_name_that_is_taken(double):
    names = dict(pk=pk, double='mine')
    exec('bound = pk.bind_symbol("task", "double")', names)
    assert names['bound'] is False and names['double'] == 'mine'


def test_bind_symbol_overwrites_if_told_to(double):
    names = dict(pk=pk, double='mine')
    exec('bound = pk.bind_symbol("task", "double", overwrite=True)', names)
    assert names['bound'] is True and names['double'] == double


def test_bind_symbol_of_nothing_is_an_error(site):
    with pytest.raises(pk.ObjectNotFoundError): pk.bind_symbol('task', 'nothing')


def test_bind_symbol_knows_the_site_of_a_namespace(site, tmp_path):
    other = pk.Site(tmp_path/'other')
    pk.set_site(other)
    pk.task(name='elsewhere', default_sync=True)(lambda: 'other')
    task = pk.bind_task('elsewhere')
    pk.set_site(site)
    names = dict(pk=pk, namespace=task.namespace)
    exec('pk.bind_symbol(namespace, "elsewhere")', names)
    assert names['elsewhere']() == 'other'
    other.close()


# --- traces

def test_trace_prints_as_in_the_recipe(double):
    trace = double(4)
    assert trace.result == 8
    time = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})?'
    block = f'AsyncTrace\ntask: task/double\nstatus: finished\npid: {trace.pid}\nstart: {time}\nend: {time}'
    assert re.fullmatch(block, str(trace)) and trace.pid != os.getpid()
    assert isinstance(trace.start, datetime) and trace.start <= trace.end <= datetime.now()


def test_trace_that_waits_has_neither_process_nor_times(wait_for_file, tmp_path):
    first, second = wait_for_file(str(tmp_path/'go')), wait_for_file(str(tmp_path/'go'))
    assert str(second) == 'AsyncTrace\ntask: task/wait_for_file\nstatus: submitted\npid: None\nstart: None\nend: None'
    assert not second.done and second.error is None
    assert wait_for(lambda: first.status == 'running') and first.end is None and first.error is None
    (tmp_path/'go').touch()
    assert second.result is None and second.done


def test_trace_in_a_dict_opens_in_another_process(double):
    pk.Dict('traces')['double'] = double(4)
    with interpreters(1, double.site) as (other,):
        assert other.value('pk.Dict("traces")["double"].result') == 8
        assert other.value('repr(pk.Dict("traces")["double"])') == 'AsyncTrace(task/double, finished)'


def test_trace_opens_after_its_caller_has_gone(double):
    with interpreters(1, double.site) as (caller,):
        caller.run('pk.Dict("traces")["double"] = pk.bind_task("double")(4)')
    trace = pk.Dict('traces')['double']
    assert trace.result == 8 and pickle.loads(pickle.dumps(trace)) == trace


def test_exception_of_a_task_comes_back_with_its_traceback(pool):
    @pk.task
    def divide(numerator, denominator):
        return numerator/denominator  # the line that fails
    trace = divide(1, 0)
    with pytest.raises(ZeroDivisionError) as caught: trace.result
    cause = caught.value.__cause__
    assert isinstance(cause, pk.RemoteTraceback)
    assert 'return numerator/denominator  # the line that fails' in str(cause) and 'in divide' in str(cause)
    assert trace.status == 'failed' and isinstance(trace.error, ZeroDivisionError) and trace.done


def test_traceback_of_a_cell_shows_the_line_that_failed():
    with notebooks(1) as (kernel,):
        kernel.run('import parkit as pk\n@pk.task\ndef divide(n):\n    return n/0  # the line that fails')
        kernel.run('trace = divide(1)\npk.wait_until(lambda: trace.done)')
        assert 'return n/0  # the line that fails' in text(kernel.run('print(trace.error.__cause__)'))


def test_exception_of_a_class_of_the_caller_comes_back(pool):
    class OutOfTea(Exception): pass
    @pk.task
    def pour(): raise OutOfTea('the pot is empty')
    with pytest.raises(OutOfTea, match='the pot is empty'): pour().result


def test_result_inside_a_transaction_is_refused_while_it_is_not_there(wait_for_file, tmp_path):
    trace = wait_for_file(str(tmp_path/'go'))
    with pk.transaction(), pytest.raises(pk.TransactionError): trace.result
    (tmp_path/'go').touch()
    assert trace.result is None


# --- what can be passed and returned

def test_trap_13_argument_of_a_class_of_the_notebook():
    with notebooks(2) as (one, two):
        two.run('import parkit as pk\n@pk.task(name="area")\ndef _(shape): return shape.width*shape.height')
        one.run('import parkit as pk\nclass Shape:\n    width, height = 3, 4')
        assert text(one.run('pk.bind_task("area")(Shape()).result')) == '12'
        assert text(two.run('class Shape:\n    width, height = 5, 6\npk.bind_task("area")(Shape()).result')) == '30'


def test_trap_13_argument_that_cannot_be_unpickled(double):
    def explode(): raise ValueError('poison')
    class Poison:
        def __reduce__(self): return explode, ()
    assert double(1).result == 2
    worker = double(1).pid
    poisoned = [double(Poison()) for _ in range(3)]
    good = double(2)
    assert good.result == 4 and good.pid in (worker, poisoned[0].pid)
    assert {o.status for o in poisoned} == {'failed'} and {o.pid for o in poisoned} == {good.pid}
    with pytest.raises(pk.TaskError, match='arguments of the call could not be read: .*poison'): poisoned[0].result


def test_trap_13_argument_whose_unpickling_kills_the_worker(double):
    def end():
        import os
        os._exit(7)
    class Poison:
        def __reduce__(self): return end, ()
    poisoned, good = double(Poison()), double(2)
    assert good.result == 4 and ended(poisoned) == 'crashed' and 'exit code 7' in str(poisoned.error)


def test_argument_that_cannot_be_pickled_is_a_failed_trace(double):
    trace = double(threading.Lock())
    assert trace.done and trace.status == 'failed' and 'lock' in str(trace.error)


@pytest.mark.parametrize('make', ['threading.Lock()', '(n for n in "ab")', 'Refusing()', 'nested(100_000)'])
def test_trap_14_returns_what_cannot_be_pickled(double, make):
    @pk.task
    def build(make):
        import threading
        class Refusing:
            def __reduce__(self): raise ValueError('this object refuses to be stored')
        def nested(depth):
            found = []
            for _ in range(depth): found = [found]
            return found
        return eval(make, dict(threading=threading, Refusing=Refusing, nested=nested))
    trace = build(make)
    assert ended(trace) == 'failed', trace.error
    with pytest.raises(pk.TaskError, match='result .* could not be stored'): trace.result
    assert double(2).result == 4 and pk.Pool().status.workers == (trace.pid,)


def test_trap_14_raises_what_cannot_be_pickled(double):
    @pk.task
    def fail():
        import threading
        class Locked(Exception): pass
        raise Locked('no key', threading.Lock())
    trace = fail()
    assert ended(trace) == 'failed'
    with pytest.raises(pk.TaskError, match='Locked.*could not be stored') as caught: trace.result
    assert 'raise Locked' in str(caught.value.__cause__)
    assert double(2).result == 4 and pk.Pool().status.workers == (trace.pid,)


def test_trap_14_raises_what_pickle_cannot_make_anew(double):
    @pk.task
    def fail():
        class TwoArguments(Exception):
            def __init__(self, one, two):
                super().__init__(f'{one} and {two}')
                self.one, self.two = one, two
        try: 1/0
        except ZeroDivisionError as e: raise TwoArguments(1, 2) from e
    trace = fail()
    assert ended(trace) == 'failed'
    with pytest.raises(Exception, match='^1 and 2$') as caught: trace.result
    assert type(caught.value).__name__ == 'TwoArguments' and (caught.value.one, caught.value.two) == (1, 2)
    assert 'raise TwoArguments(1, 2)' in str(caught.value.__cause__)
    with pytest.raises(Exception, match='^1 and 2$'): trace.as_future().result(60)
    assert double(2).result == 4


def test_trap_14_raises_what_can_neither_be_pickled_nor_shown(double):
    @pk.task
    def fail():
        import threading
        class Unspeakable(Exception):
            def __init__(self): self.lock = threading.Lock()
            def __str__(self): raise ValueError('no words')
        raise Unspeakable
    trace = fail()
    assert ended(trace) == 'failed'
    with pytest.raises(pk.TaskError, match='Unspeakable'): trace.result
    assert double(2).result == 4 and pk.Pool().status.workers == (trace.pid,)


_is_copied = '''
def lies(array):
    "The file that the memory of `array` is mapped from, and how many of its kilobytes are this process's own"
    path, address = None, array.ctypes.data
    for line in open('/proc/self/smaps'):
        if '-' in line.split()[0]:
            first, end = (int(o, 16) for o in line.split()[0].split('-'))
            if path: break
            if first <= address < end: path = line.split(maxsplit=5)[5].strip()
        elif path and line.startswith('Anonymous:'): return path, int(line.split()[1])
'''
_names = {}
exec(_is_copied, _names)

@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
@pytest.mark.parametrize('wrap', ['array', '[array]', 'dict(prices=array)'])
def test_array_argument_is_mapped_in_the_worker(pool, wrap):
    import numpy as np
    @pk.task
    def inspect(value, source):
        names = {}
        exec(source, names)
        array = value['prices'] if isinstance(value, dict) else value[0] if isinstance(value, list) else value
        total = float(array.sum())
        return total, *names['lies'](array), bool(array.flags.writeable)
    total, path, copied, writable = inspect(eval(wrap, dict(array=np.ones(2**22))), _is_copied).result
    assert path.startswith(pool.site.path) and copied == 0 and writable and total == 2**22


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_array_result_is_mapped_in_the_caller(pool):
    @pk.task
    def make(n):
        import numpy as np
        return np.ones(n), dict(also=np.zeros(n))
    trace = make(2**20)
    ones, also = trace.result[0], trace.result[1]['also']
    assert ones.sum() == 2**20 and also.sum() == 0
    for array in (ones, also):
        path, copied = _names['lies'](array)
        assert path.startswith(pool.site.path) and copied == 0
    ones[:] = 2
    assert trace.result[0].sum() == 2**20


def test_objects_are_passed_by_reference(pool):
    @pk.task
    def fill(d): d['from'] = 'a worker'
    d = pk.Dict()
    assert fill(d).result is None and d == {'from': 'a worker'}


# --- calls from within calls, and from anywhere

def test_task_calls_itself(pool):
    @pk.task
    def factorial(n): return 1 if n < 2 else n*factorial(n - 1, sync=True)
    assert factorial(5, sync=True) == 120
    assert factorial(5).result == 120


def test_task_of_a_notebook_calls_itself_when_first_defined():
    with notebooks(1) as (kernel,):
        kernel.run('import parkit as pk')
        kernel.run('@pk.task\ndef factorial(n): return 1 if n < 2 else n*factorial(n - 1, sync=True)')
        assert text(kernel.run('factorial(5).result')) == '120'


def test_task_calls_another_without_waiting(double):
    @pk.task
    def start(n):
        import parkit as pk
        return pk.bind_task('double')(n)
    inner = start(4).result
    assert isinstance(inner, pk.AsyncTrace) and inner.result == 8


def test_task_calls_another_that_is_a_global_of_its_notebook(pool):
    with interpreters(1, pool.site) as (one,):
        one.run('@pk.task(default_sync=True)\ndef double(n): return 2*n')
        one.run('@pk.task\ndef quadruple(n): return double(double(n))')
        assert one.value('quadruple(4).result') == 16


def test_forked_child_calls(double):
    assert double(1).result == 2
    assert forked(lambda: (double(20).result, double(4, sync=True))) == (40, 8)
    assert double(3).result == 6


def test_forked_child_waits_for_a_call_of_its_parent(double):
    trace = double(1)
    with Fork(lambda: trace.result) as child: assert trace.result == 2 == child.result()


def test_many_threads_call_at_once(double):
    results = {}
    def work(i): results[i] = [double(n).result for n in range(10*i, 10*i + 10)]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for o in threads: o.start()
    for o in threads: o.join(60)
    assert results == {i: [2*n for n in range(10*i, 10*i + 10)] for i in range(8)}


def test_worker_has_the_working_directory_and_import_path_of_the_caller(pool, tmp_path):
    (tmp_path/'conversion_helper.py').write_text('rate = 1.25\n')
    with interpreters(1, pool.site, tmp_path) as (caller,):
        caller.run('@pk.task\ndef convert(n):\n    import os, conversion_helper\n'
                   '    return n*conversion_helper.rate, os.getcwd()')
        assert caller.value('convert(4).result') == (5.0, str(tmp_path))


def test_two_callers_each_have_their_own_helper_module(pool, tmp_path):
    "Two notebooks in two folders, each with its `my_rates.py`"
    for rate in (1, 2):
        (tmp_path/f'{rate}').mkdir()
        (tmp_path/f'{rate}'/'my_rates.py').write_text(f'rate = {rate}\n')
    with interpreters(1, pool.site, tmp_path/'1') as (one,), interpreters(1, pool.site, tmp_path/'2') as (two,):
        one.run('@pk.task\ndef rate():\n    import my_rates\n    return my_rates.rate')
        assert one.value('rate().result') == 1
        assert two.value('pk.bind_task("rate")().result') == 2


def test_call_from_a_directory_that_is_gone(double, tmp_path):
    (tmp_path/'folder').mkdir()
    with interpreters(1, double.site, tmp_path/'folder') as (caller,):
        (tmp_path/'folder').rmdir()
        assert caller.value('pk.bind_task("double")(4).result') == 8


_sample = '''
import os
import parkit as pk

offset = 10

class Point:
    def __init__(self, x): self.x = x

def shifted(n): return n + offset

@pk.task
def move(point, by=1): return Point(shifted(point.x) + by), os.getpid()

def check():
    pk.Pool().resize(1)
    moved, pid = move(Point(1), by=2).result
    assert type(moved) is Point and moved.x == 13, moved
    assert pid != os.getpid()
    assert type(move(Point(1), sync=True)[0]) is Point
    try: move('no point').result
    except AttributeError as e: assert 'has no attribute' in str(e), e
    else: raise AssertionError('no error')
    print('as everywhere')
'''

@pytest.mark.parametrize('how', ['script', 'IPython', 'pytest'])
def test_trap_29_tasks_from(site, tmp_path, how):
    path = tmp_path/'test_sample.py'
    path.write_text(_sample + ('def test_sample(): check()' if how == 'pytest' else 'check()') + '\n')
    command = dict(script=[path], IPython=['-m', 'IPython', '--no-banner', path],
                   pytest=['-m', 'pytest', '-q', '-s', '-p', 'no:cacheprovider', path])[how]
    env = dict(os.environ, PARKIT_SITE=site.path, IPYTHONDIR=str(tmp_path/'ipython'))
    done = subprocess.run([sys.executable, *map(str, command)], env=env, cwd=tmp_path, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=150)
    assert done.returncode == 0 and 'as everywhere' in done.stdout, done.stdout + done.stderr


def test_trap_29_tasks_from_a_notebook():
    with notebooks(1) as (kernel,):
        kernel.run(_sample)
        assert text(kernel.run('check()')) == 'as everywhere'


def test_worker_that_imports_a_module_does_not_define_its_tasks_again(pool, tmp_path, monkeypatch):
    "A newer definition, made in a notebook, would be lost"
    (tmp_path/'library_of_rates.py').write_text(dedent('''
        import parkit as pk
        class Rate:
            value = 1
        @pk.task
        def rate(r): return 'from the module', r.value
    '''))
    monkeypatch.syspath_prepend(tmp_path)
    import library_of_rates
    @pk.task
    def rate(r): return 'from the notebook', r.value
    assert rate(library_of_rates.Rate()).result == ('from the notebook', 1)
    assert rate(library_of_rates.Rate()).result == ('from the notebook', 1)


def test_task_may_use_a_pool_of_multiprocessing(pool):
    @pk.task
    def squares(n):
        import multiprocessing, operator
        with multiprocessing.get_context("fork").Pool(2) as inner:
            found = inner.starmap(operator.pow, [(i, 2) for i in range(n)])
        inner.join()
        return found
    trace = squares(5)
    assert ended(trace) == 'finished'
    assert trace.result == [0, 1, 4, 9, 16]


def test_task_ends_a_child_process_of_its_own(pool):
    @pk.task
    def end():
        import multiprocessing, time
        context = multiprocessing.get_context('fork')
        ready = context.Event()
        def sleep():
            ready.set()
            time.sleep(600)
        child = context.Process(target=sleep)
        child.start()
        ready.wait(60)
        child.terminate()
        child.join(60)
        code = child.exitcode
        child.kill()
        child.join()
        return code
    assert end().result == -signal.SIGTERM


def test_wrong_name_or_option_is_named(site):
    with pytest.raises(pk.ObjectNotFoundError, match=r"there is no task 'nothing' in .*; list\(pk.Namespace\('task'\)\)"): pk.bind_task('nothing')
    with pytest.raises(TypeError, match="there is no option 'nam'; calls have timeout, retries"): pk.task(nam='x')
    with pytest.raises(TypeError, match=r"got str: 'x'; a name is given as @task\(name=...\)"): pk.task('x')
