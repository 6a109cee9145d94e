"A program as users write it, which type checkers read and nobody runs: `assert_type` says what they must make of it"
from __future__ import annotations
import io
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future
from typing import IO, Any

import parkit as pk
from typing_extensions import assert_type


@pk.task
def area(width: float, height: float = 1.0, *, unit: str = 'm') -> str: return f'{width*height} {unit}'

@pk.task(name='here', default_sync=True, metadata={'library': 'math'})
def here(n: int) -> list[int]: return [n]

@pk.task(timeout=10, retries=2)
def limited(n: int) -> int: return n

@pk.task
async def fetch(url: str) -> bytes: return url.encode()

@pk.task(default_sync=True)
async def fetch_here(url: str) -> bytes: return url.encode()

@pk.task
def numbers(n: int) -> Iterator[int]: yield from range(n)

@pk.task
def untyped(x): return x


class Model:
    @pk.task
    def fit(self, rows: int) -> float: return rows/2

    @pk.task(default_sync=True)
    def score(self, rows: int) -> float: return rows/2


def tasks() -> None:
    assert_type(area(1, 2, unit='cm'), pk.AsyncTrace[str])
    assert_type(area(1).result, str)
    assert_type(area(1, sync=True), str)
    assert_type(area(1, sync=False), pk.AsyncTrace[str])
    assert_type(area.options(timeout=2, retries=1)(1), pk.AsyncTrace[str])
    assert_type(area.options(timeout=2).options(priority=1)(1, unit='cm').result, str)
    assert_type(area(1).as_future().result(), str)
    future: Future[str] = area(1).as_future()
    assert_type(future.result(), str)
    assert_type(area.version, str)
    assert_type(limited(2).result, int)
    assert_type(limited.options(timeout=2)(2).result, int)
    area.schedule(pk.Periodic(pk.Frequency.Minute), 1.0, unit='cm')

def tasks_here() -> None:
    assert_type(here(1), list[int])
    assert_type(here(1, sync=False), pk.AsyncTrace[list[int]])
    assert_type(here(1, sync=True), list[int])
    assert_type(here.options(timeout=2)(1).result, list[int])

async def coroutines() -> None:
    assert_type(fetch('x'), pk.AsyncTrace[bytes])
    assert_type(fetch('x').result, bytes)
    assert_type(await fetch('x'), bytes)
    assert_type(await fetch('x', sync=True), bytes)
    assert_type(fetch('x', sync=False).result, bytes)
    assert_type(await fetch_here('x'), bytes)
    assert_type(fetch_here('x', sync=False), pk.AsyncTrace[bytes])
    assert_type(await area(1), str)

def generators() -> None:
    assert_type(numbers(3), pk.AsyncTrace[Iterator[int]])
    assert_type([n for n in numbers(3)], list[int])
    assert_type([n for n in numbers(3).result], list[int])

def methods(model: Model) -> None:
    assert_type(model.fit(3).result, float)
    assert_type(model.score(3), float)
    assert_type(Model.fit(model, 3).result, float)

def unknown(name: str) -> None:
    found = pk.bind_task(name)
    print(found(1, 2) + 1, found(1, sync=False).result, found.version)  # its result, or a trace
    untyped(1)
    assert_type(found.options(retries=2)(1), pk.AsyncTrace[Any])

def mapped() -> None:
    assert_type(pk.map(area, [1, 2], [3, 4]), list[str])
    assert_type(pk.map(area.options(retries=1), [1, 2]), list[str])
    assert_type(pk.map(fetch, ['x']), list[bytes])
    assert_type(pk.map(here, [1]), list[list[int]])

def power(x: int, y: int = 2) -> int: return x*y

def executors() -> None:
    with pk.Executor(2) as pool:
        assert_type(pool.submit(power, 2, y=3), pk.CallFuture[int])
        assert_type(pool.submit(power, 2).result(), int)
        assert_type(list(pool.map(power, [1, 2])), list[int])
        standard: Executor = pool
        future: Future[int] = standard.submit(power, 2)

def dicts() -> None:
    d = pk.Dict[str, int]('prices')
    e: pk.Dict[str, int] = pk.Dict('prices')
    assert_type(d['a'], int)
    assert_type(e.get('a'), 'int | None')
    assert_type(d.get('a', 0), int)
    assert_type(d.get('a', 'x'), 'int | str')
    assert_type(d.pop('a'), int)
    assert_type(d.pop('a', 0), int)
    assert_type(d.pop('a', None), 'int | None')
    assert_type(d.setdefault('a', 1), int)
    assert_type(d.popitem(), tuple[str, int])
    assert_type(d.first(), tuple[str, int])
    assert_type(list(d.items()), list[tuple[str, int]])
    assert_type(list(d.range('a', 'c')), list[tuple[str, int]])
    assert_type(d | {'b': 1}, dict[str, int])
    d.update({'b': 2}, c=3)
    d.update([('b', 2)])
    lists = pk.Dict[str, list[int]]('lists')
    with lists.edit('a') as value:
        assert_type(value, list[int])
    anything = pk.Dict('anything')  # of any keys and values
    anything['x'] = 1
    anything[1] = 'x'
    assert_type(anything['x'], Any)

def arrays_and_queues() -> None:
    a: pk.Array[float] = pk.Array()
    a.extend([1.0, 2.0])
    assert_type(a[0], float)
    assert_type(a[:2], list[float])
    assert_type(a.pop(), float)
    assert_type([x for x in a], list[float])
    q = pk.Queue[str]('jobs')
    q.put('a')
    assert_type(q.get(), str)
    assert_type(q.get_many(3), list[str])
    assert_type(pk.LifoQueue[int]().get(timeout=1), int)
    anything = pk.Array()
    anything.append('x')

def files(mode: str) -> None:
    f = pk.File('report')
    with f.open() as binary: assert_type(binary.read(), bytes)
    with f.open('r') as text: assert_type(text.read(), str)
    with f.open('w', encoding='utf-8') as writer: writer.write('x')
    assert_type(f.open('wb'), io.BufferedWriter)
    assert_type(f.open('r+b'), io.BufferedRandom)
    assert_type(f.open(mode), IO[Any])
