"""CPython's own test suites for mappings, lists and queues, run against parkit's containers.

They are the suites of the Python that runs this, so they differ a little from version to version. What cannot pass stands in
`CANNOT`, with the error it ends in and the reason; it runs all the same, and must fail."""
import contextlib, gc, queue, threading, types, unittest

import pytest

mapping_tests = pytest.importorskip('test.mapping_tests', reason="this Python comes without CPython's own tests; Debian's does")
from test import list_tests, test_queue

import parkit as pk


# --- adapters: parkit's objects are made from a path, these from their content

def _by_name(cls):
    "Let a class that a suite defines in a function be imported: a key's class is stored by its name"
    if '<locals>' in cls.__qualname__:
        cls.__module__, cls.__qualname__ = __name__, cls.__name__
        globals()[cls.__name__] = cls

class Dict(pk.Dict):
    def __init__(self, *args, **named):
        super().__init__()
        self.update(*args, **named)

    def __setitem__(self, key, value):
        _by_name(type(key))
        super().__setitem__(key, value)

    def copy(self): return super().copy()  # without a path

class Array(pk.Array):
    def __init__(self, values=(), /):
        super().__init__()
        self.extend(values)

    def copy(self): return super().copy()

_queues = []  # those of the test that runs

class Queue(pk.Queue):
    def __init__(self, maxsize=0):
        super().__init__(maxsize=maxsize)
        _queues.append(self)

class LifoQueue(pk.LifoQueue):
    def __init__(self, maxsize=0):
        super().__init__(maxsize=maxsize)
        _queues.append(self)

class FailingQueue(Queue):
    "The suite's own fails in `_put` and `_get`, which are CPython's; this one in the hooks that parkit has"
    _put_fails = _get_fails = False
    fail_next_put = property(lambda self: self._put_fails, lambda self, on: setattr(self, '_put_fails', on))
    fail_next_get = property(lambda self: self._get_fails, lambda self, on: setattr(self, '_get_fails', on))

    def encode_value(self, value):
        if self._put_fails:
            self._put_fails = False
            raise test_queue.FailingQueueException
        return super().encode_value(value)

    def decode_value(self, data):
        if self._get_fails:
            self._get_fails = False
            raise test_queue.FailingQueueException
        return super().decode_value(data)

    def get(self, *args, **kwargs):
        try: return super().get(*args, **kwargs)
        except pk.DecodeError as e: raise e.__cause__ from None  # that of a hook is the cause of ours


# --- suites

ours = types.SimpleNamespace(**{**vars(queue), 'Queue': Queue, 'LifoQueue': LifoQueue})  # what stands for the module `queue`

class DictTest(mapping_tests.TestHashMappingProtocol): type2test = Dict
class ArrayTest(list_tests.CommonTest): type2test = Array
class QueueTest(test_queue.QueueTest, unittest.TestCase): queue = ours
class LifoQueueTest(test_queue.LifoQueueTest, unittest.TestCase): queue = ours
class SimpleQueueTest(test_queue.BaseSimpleQueueTest, unittest.TestCase): queue, type2test = ours, Queue
class FailingQueueTest(test_queue.FailingQueueTest, unittest.TestCase):
    def setUp(self): self.FailingQueue = FailingQueue

SUITES = [DictTest, ArrayTest, QueueTest, LifoQueueTest, SimpleQueueTest, FailingQueueTest]
for suite in SUITES: suite.__test__ = False  # collected below, not by pytest itself

_repr = AssertionError, 'a repr shows path and size: the content may be gigabytes'
_ends = 'an Array grows at its end, and shrinks by pop, popleft and clear'
_slices = TypeError, 'replace the items one by one'
_keys = TypeError, 'a key whose equality only its own __eq__ knows, or only this process, is refused where it is stored'

CANNOT = {
    mapping_tests.TestHashMappingProtocol: dict(
        test_eq         = _keys,
        test_getitem    = _keys,
        test_pop        = _keys,
        test_repr       = _repr,
        test_repr_deep  = _repr,
        test_setdefault = (IndexError, 'it runs the next one first')),
    mapping_tests.TestMappingProtocol: dict(
        test_setdefault = (IndexError, 'a value is stored when it is set: what is done to the list that setdefault returns stays in this process')),
    list_tests.CommonTest: dict(
        test_delslice   = (TypeError, f'{_ends}: no del of a slice'),
        test_exhausted_iterator = (AssertionError, 'iterates in a snapshot: what is appended meanwhile does not come'),
        test_extendedslicing    = (TypeError, f'{_ends}: no del of a slice'),
        test_index      = (AttributeError, f'{_ends}: no remove; what seq_tests has on index passes'),
        test_insert     = (AttributeError, f'{_ends}: no insert'),
        test_remove     = (AttributeError, f'{_ends}: no remove'),
        test_repr       = _repr,
        test_repr_deep  = _repr,
        test_reverse    = (AttributeError, 'no reordering in place; reversed(a) iterates the other way'),
        test_set_subscript = _slices,
        **dict.fromkeys(['test_slice_assign_iterator'][:hasattr(list_tests.CommonTest, 'test_slice_assign_iterator')], _slices),
        test_setslice   = _slices,
        test_slice      = _slices,
        test_sort       = (AttributeError, 'no reordering in place; sorted(a) gives a list')),
    test_queue.BaseQueueTestMixin: dict(
        test_shrinking_queue = (AttributeError, 'maxsize is fixed when the queue is made: other processes rely on it')),
}

def _cases():
    "Every method of every suite, and where it cannot pass the one that it overrides too"
    for suite in SUITES:
        for method in unittest.TestLoader().getTestCaseNames(suite):
            for owner in suite.__mro__:
                if method not in vars(owner): continue
                yield suite, owner, method
                if method not in CANNOT.get(owner, {}): break

def _id(value): return value if isinstance(value, str) else f'{value.__module__}.{value.__name__}'.removeprefix(f'{__name__}.').removeprefix('test.')


@pytest.fixture(scope='module', autouse=True)
def little_to_collect():
    "The suites and the leak checks collect garbage hundreds of times: what was here before is left out"
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize('suite, owner, method', list(_cases()), ids=_id)
def test_cpythons_own(suite, owner, method, site, monkeypatch):
    monkeypatch.setattr(threading.current_thread(), '_daemonic', True)  # what it starts inherits this, and cannot keep pytest from ending
    error, reason = CANNOT.get(owner, {}).get(method, (None, None))
    try: _run(suite, owner, method, error)
    finally:
        while _queues: _queues.pop().drop()  # ends the threads that a failed test has left waiting for it
        gc.collect()  # the site is left once this process holds none of its objects
    if error: pytest.xfail(reason)


def _run(suite, owner, method, error):
    case = suite(method)
    setattr(case, method, types.MethodType(getattr(owner, method), case))
    with pytest.raises(error) if error else contextlib.nullcontext(): case.debug()  # raises what the method raises


def test_the_table_of_what_cannot_pass_names_only_what_has_run():
    met = {(owner, method) for _, owner, method in _cases()}
    assert {(owner, method) for owner, rows in CANNOT.items() for method in rows} <= met
