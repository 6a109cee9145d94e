"""A namespace of 100,000 named objects: opening one costs what it costs among a hundred, and listing them streams.

A notebook has no time to make them."""
import statistics, time, tracemalloc
from itertools import islice
from random import Random

import pytest

import parkit as pk
from helpers import run

MANY, FEW = 100_000, 100


def _name(i): return f'object {i:06}'

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A site with many objects in one namespace and few in another"
    site = pk.set_site(tmp_path_factory.mktemp('many')/'site')
    for path, n in (('many', MANY), ('few', FEW)):
        pk.Namespace(path, durable=False)
        for lo in range(0, n, 10_000):
            with pk.transaction(path):
                for i in range(lo, min(n, lo + 10_000)): pk.Dict(f'{path}/{_name(i)}')
        pk.Dict(f'{path}/{_name(n//2)}')['a'] = 1
    yield site
    site.close()

@pytest.fixture
def many(site): return pk.Namespace('many')

def _ratio(work, rounds=1500):
    "How much longer `work(namespace, name)` takes among many objects than among few: medians of turns that alternate"
    times, random = dict(many=[], few=[]), Random(7)
    for _ in range(rounds):
        for path, n in (('many', MANY), ('few', FEW)):
            name = _name(random.randrange(n))
            start = time.perf_counter()
            work(path, name)
            times[path].append(time.perf_counter() - start)
    many, few = (statistics.median(times[path])*1e6 for path in ('many', 'few'))
    print(f'{many:.1f} µs among {MANY}, {few:.1f} µs among {FEW}')
    return many/few


@pytest.mark.parametrize('work', [
    lambda path, name: pk.Dict(f'{path}/{name}'),
    lambda path, name: pk.Namespace(path)[name],
    lambda path, name: name in pk.Namespace(path),
    lambda path, name: pk.Dict(f'{path}/{name}').get('a'),
], ids='open by_name in read'.split())
def test_one_of_many_objects_opens_as_fast_as_one_of_few(site, work):
    assert _ratio(work) < 4


def test_writing_to_one_of_many_objects_is_as_fast_as_to_one_of_few(site):
    assert _ratio(lambda path, name: pk.Dict(f'{path}/{name}').update(b=1), 500) < 4


def test_making_one_more_object_is_as_fast_among_many(site):
    numbers = iter(range(10**6))
    assert _ratio(lambda path, name: pk.Dict(f'{path}/{name} {next(numbers)}').drop(), 500) < 4


_open_one = '''
d = pk.Dict('many/object 050000', create=False)
found = d['a']
pages = mine = 0
for line in open('/proc/self/smaps'):
    name, *rest = line.split()
    if not name.endswith(':'): mine = line.rstrip().endswith('/many/@/data.mdb')
    elif mine and name == 'Rss:': pages += 1024*int(rest[0])
import os
say([found, pages, os.path.getsize(site.path + '/many/@/data.mdb')])
'''

def test_new_process_reads_few_pages_to_open_one(site):
    found, read, size = run(site, _open_one)
    assert found == 1 and size > 20*2**20 and read < size/10, f'{read} of {size} bytes are in memory'


# --- listing

def test_listing_is_whole_and_in_order(many):
    assert list(many.names()) == [_name(i) for i in range(MANY)] and len(many) == MANY
    assert [o.name for o in islice(many, 3)] == [_name(i) for i in range(3)]
    assert sum(type(o) is pk.Dict for o in many) == MANY


@pytest.mark.parametrize('listing', [lambda namespace: namespace.names(), iter, lambda namespace: iter([len(namespace)])], ids='names objects len'.split())
def test_listing_takes_little_memory(many, listing):
    next(listing(many))
    tracemalloc.start()
    try:
        for _ in listing(many): pass
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert peak < 2*2**20, f'{peak} bytes for {MANY} objects'


@pytest.mark.parametrize('listing', [lambda namespace: namespace.names(), lambda namespace: (o.name for o in namespace)], ids='names objects'.split())
def test_listing_begins_before_it_has_read_the_rest(many, listing):
    "What changes further on while it runs is met, and no snapshot stays open"
    names, store = listing(many), many.path._store
    assert next(names) == _name(0) and not store.active
    pk.Dict('many/zzz')
    pk.Dict(f'many/{_name(MANY - 1)}').rename('zzzz')
    try: assert list(names)[-3:] == [_name(MANY - 2), 'zzz', 'zzzz']
    finally:
        pk.Dict('many/zzz').drop()
        pk.Dict('many/zzzz').rename(_name(MANY - 1))


def test_listing_from_another_process(site):
    assert run(site, "n = pk.Namespace('many'); say([len(n), next(iter(n)).name, 'object 099999' in n, 'x' in n])") == [MANY, _name(0), True, False]
