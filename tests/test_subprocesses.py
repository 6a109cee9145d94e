"Processes that a task starts by multiprocessing: functions and classes of the notebook work in them, however they are started"
import pytest
from task_helpers import interpreters

# what a notebook has in its cells; `{start}` is how processes are started
_CELLS = '''
import multiprocessing, threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from enum import Enum

start = {start!r}
array, factor, calls = None, 3, 0

@dataclass
class Point:
    x: int
    def moved(self, by): return Point(self.x + by)
    @staticmethod
    def doubled(x): return 2*x

class Colour(Enum):
    RED = 1

class Wrong(Exception): pass

def helper(x): return x*factor
def recursive(n): return 0 if n == 0 else 1 + recursive(n - 1)
def with_helper(x, y=1): return helper(x) + y
def begin(values):
    global array
    array = values
def element(i): return array[i]
def counted(_):
    global calls
    calls += 1
    return calls
def move(p): return Point(p.x + 1)
def paint(c): return c is Colour.RED, c
def fails(x): raise Wrong(x)
def put(queue, x): queue.put(move(Point(x)))
'''

_WORK = {
    'map': 'pool.map(helper, range(5))', 'a helper of the helper': 'pool.map(with_helper, range(3))', 'recursive': 'pool.map(recursive, [3])',
    'partial': 'pool.map(partial(with_helper, y=5), range(3))', 'starmap': 'pool.starmap(with_helper, [(1, 2), (3, 4)])',
    'apply_async': 'pool.apply_async(helper, (4,)).get(60)', 'lambda': 'pool.map(lambda x: x + factor, range(3))',
    'method': 'pool.map(Point(1).moved, range(3))', 'static method': 'pool.map(Point.doubled, range(3))', 'instances': 'pool.map(move, [Point(1), Point(2)])',
    'class': 'pool.map(Point, range(3))', 'enum': 'pool.map(paint, [Colour.RED])', 'imap': 'list(pool.imap_unordered(helper, [7]))',
}
_VALUES = {
    'map': [0, 3, 6, 9, 12], 'a helper of the helper': [1, 4, 7], 'recursive': [3], 'partial': [5, 8, 11], 'starmap': [5, 13], 'apply_async': 12,
    'lambda': [3, 4, 5], 'method': 'Points(1, 2, 3)', 'static method': [0, 2, 4], 'instances': 'Points(2, 3)', 'class': 'Points(0, 1, 2)',
    'enum': True, 'imap': [21],
}

_METHODS = ['fork', 'spawn', 'forkserver']


@pytest.fixture(params=_METHODS)
def notebook(request, single):
    with interpreters(1, single.site) as (p,):
        p.run(_CELLS.format(start=request.param))
        yield p


def test_pool_of_the_notebooks_functions_and_classes(notebook):
    "Whatever is sent, and whatever comes back"
    uses = 'helper, recursive, with_helper, move, paint, Point, Colour, partial, factor, isinstance'
    notebook.run(f'''
def shown(value):
    if isinstance(value, list) and isinstance(value[0], Point): return 'Points(' + ', '.join(str(p.x) for p in value) + ')'
    if isinstance(value, list) and isinstance(value[0], tuple): return value[0][0] and value[0][1] is Colour.RED
    return value
@pk.task
def in_pool(works):
    names = dict(zip({uses.split(", ")!r}, ({uses})))
    with multiprocessing.get_context(start).Pool(2) as pool: return {{name: shown(eval(work, dict(names, pool=pool))) for name, work in works.items()}}
''')
    assert notebook.value(f'in_pool({_WORK!r}).result') == _VALUES


def test_initializer_and_what_it_sets(notebook):
    "Which the functions of the pool find, though the notebook has it too; and each child keeps its own globals"
    notebook.run('''
@pk.task
def in_pool():
    context = multiprocessing.get_context(start)
    with context.Pool(1, initializer=begin, initargs=([1, 2, 3],)) as pool:
        found = pool.map(element, range(3))
        return found, [pool.apply(counted, (0,)) for _ in range(3)], array
@pk.task
def in_executor():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start), initializer=begin, initargs=([1, 2, 3],)) as pool:
        return list(pool.map(element, range(3))), pool.submit(helper, 2).result(), pool.submit(move, Point(1)).result() == Point(2)
''')
    assert notebook.value('in_pool().result') == ([1, 2, 3], [1, 2, 3], None)
    assert notebook.value('in_executor().result') == ([1, 2, 3], 6, True)


def test_processes_and_queues_and_errors(notebook):
    notebook.run('''
@pk.task
def work():
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    process = context.Process(target=put, args=(queue, 1))
    process.start()
    found = queue.get(timeout=60)
    process.join()
    with context.Pool(1) as pool:
        try: pool.map(fails, [1])
        except Wrong as e: return isinstance(found, Point), found.x, e.args
''')
    assert notebook.value('work().result') == (True, 2, (1,))


def test_functions_of_a_module_that_lies_beside_the_notebook(notebook, tmp_path):
    "Which go by value too, and not as what the name means in the module"
    (tmp_path/'my_tools.py').write_text('def double(x): return 2*x\n')
    notebook.run(f'sys.path.insert(0, {str(tmp_path)!r})')
    notebook.run('''
from my_tools import double
import my_tools
@pk.task
def work():
    with multiprocessing.get_context(start).Pool(1) as pool: return pool.map(double, [1, 2]), pool.map(my_tools.double, [3])
''')
    assert notebook.value('work().result') == ([2, 4], [6])


def test_functions_among_the_arguments(notebook):
    "And those that an executor calls"
    notebook.run('''
@pk.task
def apply(function, values):
    with multiprocessing.get_context(start).Pool(1) as pool: return pool.map(function, values)
def here(values):
    with multiprocessing.get_context(start).Pool(1, initializer=begin, initargs=(values,)) as pool: return pool.map(element, [0, 1])
''')
    assert notebook.value('apply(helper, [1, 2]).result') == [3, 6]
    notebook.run('with pk.Executor() as executor: found = executor.submit(here, [5, 6]).result()')
    assert notebook.value('found') == [5, 6]


def test_what_cannot_be_sent_says_so(notebook):
    notebook.run('''
lock = threading.Lock()
def make():
    lock = threading.Lock()
    return lambda x: lock
@pk.task
def work():
    with multiprocessing.get_context(start).Pool(1) as pool: return pool.map(make(), [1])
trace = work()
trace.wait(60)
''')
    assert 'cannot be sent to a process that multiprocessing starts' in notebook.value('str(trace.error)')


def test_a_forked_child_does_not_get_what_it_has(single):
    "A global of 100 MB is not sent with each call"
    with interpreters(1, single.site) as (p,):
        p.run(_CELLS.format(start='fork') + '''
big = bytes(10**8)
def size(i):
    return len(big) + i
unsendable = None
def use(i): return unsendable is not None
@pk.task
def work():
    global unsendable
    unsendable = threading.Lock()
    with multiprocessing.get_context('fork').Pool(2) as pool: return pool.map(size, range(3), chunksize=1), pool.map(use, range(2))
''')
        assert p.value('work().result') == ([10**8, 10**8 + 1, 10**8 + 2], [True, True])


_PICKLING = """
import io, joblib, pickle, pickletools
class Model:
    kind = 1
    def __init__(self, n): self.n = n
class Part(Model):
    class Inner: pass
def helper(x): return x + 1
def stored(value):
    made = pickle.loads(pickle.dumps(value))
    file = io.BytesIO()
    joblib.dump(value, file)
    return type(made) is type(value), pickle.dumps(value)
@pk.task
def named(): return stored(Model(3)), stored(helper), stored([Part(2), Part.Inner()])
@pk.task
def given(values): return stored(values)
@pk.task
def among(**values): return stored(values['model'])
"""

def test_pickle_finds_names(single):
    "As it does in the notebook, which can read what was pickled; also of what the function itself does not name"
    with interpreters(1, single.site) as (p,):
        p.run(_PICKLING)
        p.run('(a, one), (b, two), (c, three) = named().result')
        assert p.value('a and b and c and type(pickle.loads(one)) is Model and pickle.loads(one).n == 3 and pickle.loads(two) is helper')
        assert p.value('type(pickle.loads(three)[1]) is Part.Inner')
        for call in ('given([Part(1), helper]).result', 'given({"a": [Part.Inner(), Part(1)]}).result', 'among(model=Model(1)).result'):
            p.run(f'same, data = {call}')
            assert p.value('same') and b'__main__' in p.value('data')
        p.run('with pk.Executor() as executor: same, data = executor.submit(stored, Part(4)).result()')
        assert p.value('same and pickle.loads(data).n == 4')
        p.run('class Model:\n    kind = 2\n    def __init__(self, n): self.n = n')  # another version, in the worker that had the first
        assert p.value('pickle.loads(among(model=Model(1)).result[1]).kind') == 2


def test_nothing_of_it_is_left_for_the_next_call(single):
    "Another notebook's function of the same name is another, and what only one has the other does not see"
    with interpreters(2, single.site) as made:
        for i, p in enumerate(made):
            p.run(f'''
import multiprocessing
def helper(x): return x + {i}
def only_{i}(): pass
@pk.task(name='work_{i}')
def work():
    import __main__
    with multiprocessing.get_context('fork').Pool(1) as pool: found = pool.map(helper, [10])
    return found, __main__.helper is helper, [hasattr(__main__, f'only_{{n}}') for n in (0, 1)], only_{i}()
''')
        for _ in range(2):
            for i, p in enumerate(made): assert p.value('work().result') == ([10 + i], True, [i == 0, i == 1], None)
