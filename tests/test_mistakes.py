"What people type though it is not what parkit has: it works, or the message says what was meant"
import inspect, math, operator, traceback, warnings
from pathlib import Path

import parkit as pk, pytest
from helpers import Child, nobody_runs, root, run
from kernels import notebooks
from task_helpers import event_loop  # noqa: F401  a fixture

# --- a trace taken for the result

@pytest.fixture
def trace(double):
    "Of a call that waits"
    with nobody_runs(): yield double(21)

_uses = {
    '+': lambda t: t + 1, 'r+': lambda t: 1 + t, '-': lambda t: t - 1, '*': lambda t: 2*t, '/': lambda t: t/2, '//': lambda t: t//2, '%': lambda t: t % 2, '**': lambda t: 2**t,
    '@': lambda t: t @ [1], '&': lambda t: t & 1, '|': lambda t: 1 | t, '^': lambda t: t ^ 1, '<<': lambda t: t << 1, '>>': lambda t: t >> 1, 'divmod': lambda t: divmod(t, 2),
    '+=': lambda t: operator.iadd(t, 1), '<': lambda t: t < 1, '>': lambda t: 1 > t, '<=': lambda t: t <= 1, '>=': lambda t: t >= 1, 'neg': lambda t: -t, '+t': lambda t: +t,
    '~': lambda t: ~t, 'abs': abs, 'int': int, 'float': float, 'complex': complex, 'round': round, 'sqrt': math.sqrt, 'ceil': math.ceil, 'range': range, 'len': len, 'if': bool,
    'not': lambda t: not t, 'and': lambda t: t and 1, '[0]': lambda t: t[0], "['a']": lambda t: t['a'], '[:2]': lambda t: t[:2], 'set': lambda t: operator.setitem(t, 0, 1),
    'del': lambda t: operator.delitem(t, 0), 'for': list, 'sum': sum, 'in': lambda t: 1 in t, 'unpack': lambda t: [a for a, b in [t]], 'sorted': lambda t: sorted([t, t]), 'max': lambda t: max(t, 3),
    'format': lambda t: f'{t:.2f}', 'reversed': reversed, 'concat': lambda t: [1] + t, 'text': lambda t: 'a' + t, 'numpy': lambda t: __import__('numpy').arange(3) + t}

@pytest.mark.parametrize('use', _uses)
def test_a_trace_taken_for_the_result(trace, use):
    with pytest.raises(TypeError, match=r'AsyncTrace\(task/double, submitted\) is the record of a call in the background, not what the task returns: \.result waits'):
        _uses[use](trace)

@pytest.mark.parametrize('name', ['shape', 'mean', 'keys'])
def test_an_attribute_that_only_the_result_has(trace, name):
    with pytest.raises(AttributeError, match=f"'AsyncTrace' object has no attribute '{name}'; .* is the record of a call") as e: getattr(trace, name)
    assert (e.value.name, e.value.obj) == (name, trace) and not hasattr(trace, '_repr_png_')

@pytest.mark.parametrize('name, meant', [('exception', 'error'), ('get', 'result'), ('running', "status == 'running'"), ('add_done_callback', r'as_future\(\)')])
def test_an_attribute_that_futures_elsewhere_have(trace, name, meant):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; trace.{meant} is what it has"): getattr(trace, name)

def test_what_a_trace_can_do_it_still_can(trace, double):
    import copy, pickle, numpy as np
    assert trace == pickle.loads(pickle.dumps(trace)) == copy.copy(trace) and trace in [1, trace] and {trace: 1}[trace] == 1 and not trace == 42
    assert f'{trace}' == str(trace) and np.asarray(trace, object).shape == () and np.array([trace, None], object).shape == (2,)
    assert pk.Dict('d').setdefault('t', trace) == trace and list(filter(lambda t: t is not None, [trace])) == [trace]

def test_an_attribute_error_of_the_task_is_raised_as_it_is(site, single):
    @pk.task
    def fails(): return None.missing
    trace = fails()
    for read in (lambda: trace.result, lambda: trace.result()):
        with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'missing'$"): read()

def test_a_generator_is_iterated_over(site, single):
    @pk.task
    def count(n): yield from range(n)
    assert list(count(3)) == [0, 1, 2] and list(count(2).result()) == [0, 1]


# --- the methods of futures

_RESULTS = '''
import types
@pk.task
def double(n): return 2*n
@pk.task
def maker(n): return 'abc'.split if n else len
@pk.task
def fails(): raise KeyError('k')
pk.Pool().resize(1)
def plain(t): return t.result
def timed(t): return t.result(timeout=60)
def placed(t): return t.result(60)
def empty(t): return t.result()
def inside(t): return [x.result(timeout=len([1, 2])*30) for x in [t]][0]
trace = double(21)
for _ in range(200): assert (plain(trace), timed(trace), placed(trace), empty(trace), inside(trace)) == (42,)*5  # specialised meanwhile
assert getattr(trace, 'result') == 42 and trace.result.bit_length() == 6 and str(trace.result) == '42'
assert trace.done is True and trace.done() is True and (lambda: trace.done)() is True
assert trace.result(timeout=None) == 42 and eval('trace.result(timeout=1)') == 42
m = maker(1)
assert m.result('b') == ['a', 'c'] and maker(0).result([1, 2]) == 2  # what can be called is called, as ever
failures = [failure(lambda: trace.result('x')), failure(lambda: trace.result(1, 2)), failure(lambda: trace.result(time=1)), failure(lambda: fails().result(timeout=60))]
say(failures)
'''

def test_result_and_done_can_be_called_as_those_of_a_future(site):
    wrong, *others, failed = run(site, _RESULTS)
    assert all(o['type'] == 'TypeError' and 'all it can be given is a timeout, as in trace.result(timeout=1)' in o['message'] for o in (wrong, *others))
    assert failed['type'] == 'KeyError'

def test_what_pytest_makes_of_asserts(site, single, double):
    trace = double(21)
    assert trace.result() == 42 and trace.result(timeout=60) == trace.result(60) == 42 and 42 == trace.result
    assert trace.done() and trace.done is True and str(trace.result) == '42' and not trace.result(timeout=len('abc')) != 42

def test_a_result_that_does_not_come_in_time(trace):
    with pytest.raises(pk.WaitTimeout, match=r'AsyncTrace\(task/double, submitted\) has not ended within 0.05 s; it goes on'): trace.result(timeout=0.05)
    with pytest.raises(TimeoutError): trace.result(0)
    with pytest.raises(TimeoutError): assert trace.result(timeout=0) == 42  # of which pytest makes something else
    assert trace.done() is False and trace.status == 'submitted'


# --- content, sizes and modes given to a constructor

_misuses = [
    (lambda: pk.Dict(a=1), "Dict(a=)", "d.update(a=1)"), (lambda: pk.Dict('x', {'a': 1}), 'Dict(str, dict)', 'd.update'), (lambda: pk.Dict({'a': 1}), 'Dict(dict)', 'd.update'),
    (lambda: pk.Dict([('a', 1)]), 'Dict(list)', 'd.update'), (lambda: pk.Dict('x', a=1), 'Dict(str, a=)', 'd.update'), (lambda: pk.Dict(Path('x')), 'Dict(PosixPath)', 'path of an object, a str'),
    (lambda: pk.Dict(path='x'), 'Dict(path=)', 'd.update'), (lambda: pk.Dict(None, {}), 'Dict(NoneType, dict)', 'd.update'),
    (lambda: pk.Array([1, 2]), 'Array(list)', 'a.extend'), (lambda: pk.Array(10), 'Array(int)', 'a.extend'), (lambda: pk.Array('x', [1]), 'Array(str, list)', 'a.extend'),
    (lambda: pk.Array((3, 3), dtype=float), 'Array(tuple, dtype=)', 'a.extend'), (lambda: pk.Queue(10), 'Queue(int)', 'maxsize=10'), (lambda: pk.Queue('x', 10), 'Queue(str, int)', 'maxsize=10'),
    (lambda: pk.LifoQueue(maxlen=10), 'LifoQueue(maxlen=)', "pk.LifoQueue('name', maxsize=10)"), (lambda: pk.File('x', 'w'), 'File(str, str)', "f.open('wb')"), (lambda: pk.File('x', mode='w'), 'File(str, mode=)', "f.open('wb')"),
    (lambda: pk.Lock(timeout=1), 'Lock(timeout=)', 'lock.acquire(timeout=1)'), (lambda: pk.Event(True), 'Event(bool)', 'e.set()'), (lambda: pk.Object(x=1), 'Object(x=)', 'o.x = 1'),
    (lambda: pk.Pool(4), 'Pool(int)', 'pk.Pool().resize(4)'), (lambda: pk.Pool(processes=4), 'Pool(processes=)', 'resize'), (lambda: pk.Task(len), 'Task(builtin_function_or_method)', '@pk.task')]

@pytest.mark.parametrize('make, given, cure', _misuses, ids=[m[1] for m in _misuses])
def test_constructors(site, make, given, cure):
    with pytest.raises(TypeError) as e: make()
    assert str(e.value).startswith(given + ': it takes ') and cure in str(e.value) and e.value.__cause__ is None and e.value.__suppress_context__
    assert len(traceback.extract_tb(e.tb)) <= 4

def test_a_constructor_of_a_subclass_and_errors_inside_one(site):
    class Named(pk.Dict):
        def __init__(self, name, more=()):
            super().__init__(f'named/{name}')
            self.update(more)
    assert dict(Named('a', {'b': 1})) == {'b': 1}
    with pytest.raises(TypeError, match="named.*__init__|Named.__init__"): Named()
    with pytest.raises(TypeError, match='iterable'): Named('b', 3)
    pk.Array('here')
    with pytest.raises(pk.ObjectTypeError): pk.Dict('here')
    assert str(inspect.signature(pk.Queue)).startswith("(path: 'str | None' = None, /, *, create: 'bool' = True")


# --- tracebacks

_ERRORS = '''
import asyncio, traceback
@pk.task
def inner(n): return 1/n
@pk.task
def outer(n): return inner(n, sync=True)
@pk.task
async def later(n):
    await asyncio.sleep(0)
    return 1/n
@pk.task(cache=True)
def kept(n): return 1/n
@pk.task
def items(n):
    yield 1
    yield 1/n
def inverse(n): return 1/n
pk.Pool().resize(1)
def frames(work):
    try: work()
    except ZeroDivisionError as e:
        cause = str(e.__cause__) if e.__cause__ else ''
        say([[f.filename.partition('/parkit/')[2] for f in traceback.extract_tb(e.__traceback__)], cause])
    else: say('no error')
def go():
    async def wait(t): return await t
    future = inner(0).as_future()
    executor = pk.Executor()
    with executor:
        for work in (lambda: inner(0, sync=True), lambda: outer(0, sync=True), lambda: kept(0, sync=True), lambda: asyncio.run(later(0, sync=True)),
                     lambda: inner(0).result, lambda: inner(0).result(timeout=60), lambda: outer(0).result, lambda: later(0).result, lambda: kept(0).result, lambda: list(items(0)),
                     lambda: asyncio.run(wait(inner(0))), lambda: pk.map(inner, [0]), lambda: pk.map(outer, [1, 0]), future.result, lambda: executor.submit(inverse, 0).result(),
                     lambda: list(executor.map(inverse, [0]))): frames(work)
go()
'''

def test_tracebacks_show_no_frames_of_parkit_above_the_users_last(site):
    with Child(site, _ERRORS) as child:
        for kind in ('sync', 'sync', 'sync', 'sync coroutine', *['background']*12):
            said = child.hear()
            files, cause = said
            ours = [i for i, f in enumerate(files) if f.endswith('.py')]
            if kind == 'sync': assert len(ours) == 1 and ours[0] < len(files) - 1, said  # the call itself, which IPython and pytest hide
            elif kind == 'sync coroutine': assert not ours, said
            else:
                assert len(ours) <= 1 and ours in ([], [len(files) - 1]), said  # where it is raised again
                assert 'ZeroDivisionError' in cause and '/parkit/' not in cause and 'asyncio' not in cause, cause
        child.wait()

def test_a_notebook_shows_only_the_users_lines(site):
    with notebooks(1) as [kernel]:
        kernel.run('import parkit as pk\n@pk.task\ndef inner(n): return 1/n\n@pk.task\ndef outer(n): return inner(n, sync=True)')
        for call in ('inner(0, sync=True)', 'outer(0, sync=True)'):
            [error] = kernel.run(call)
            shown = '\n'.join(error['traceback'])
            assert 'return 1/n' in shown and call in shown and 'parkit/' not in shown, shown
        [error] = [o for o in kernel.run('inner(0).result') if o['output_type'] == 'error']
        shown = '\n'.join(error['traceback'])
        assert 'return 1/n' in shown and shown.count('parkit/') == 1, shown


# --- warnings point at the cell

_definitions = ['@pk.task\ndef f(): return table', '@pk.task(default_sync=True)\ndef f(): return table', 'def g(): return table\nf = pk.task(name="f")(g)',
                'class M(pk.Object):\n    @pk.task\n    def f(self): return table', 'f()\nf.version', 'f.options(timeout=60)()', 'pk.map(f, [])\nf()']

@pytest.mark.parametrize('n', range(len(_definitions)))
def test_the_warning_of_a_large_global_points_at_the_cell(site, single, n):
    names = dict(pk=pk, __name__='__main__', table=bytes(2_000_000) if n < 4 else [1])
    if n >= 4:
        exec('@pk.task\ndef f(): return len(table)', names)
        names['table'].extend(range(500_000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        exec(compile(_definitions[n], 'the cell', 'exec'), names)
    assert caught and {w.filename for w in caught} == {'the cell'}, [str(w) for w in caught]

def test_every_warning_is_given_at_the_line_outside():
    "With a fixed `stacklevel` it would point into parkit on one way or another; the one of a `File` comes from the garbage collection"
    found = [line.strip() for path in sorted((root/'parkit').glob('*.py')) for line in path.read_text().splitlines() if 'warnings.warn(' in line]
    assert [line for line in found if 'was opened for writing and not closed' not in line] == [] and len(found) == 1
