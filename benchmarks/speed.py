"""Measure parkit beside its peers and print one table: `python benchmarks/speed.py [--huge] [--json FILE]`.

README.md beside this file says what each row measures, and how."""
import argparse, json, os, pickle, platform, random, struct, subprocess, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple

import diskcache, lmdb, psutil
import numpy as np
import parkit as pk

WORKERS = 2
ENTRIES = 10_000
VALUE = {'price': 101.5, 'volume': 300, 'venue': 'XETRA'}
KEYS = [f'instrument {n}' for n in range(ENTRIES)]
MICRO, MILLI, MEGA = 1e-6, 1e-3, 2**20


class Row(NamedTuple):
    work: str
    parkit: float         # seconds
    limit: float          # of the ratio if `relative`, else of `parkit`, in seconds
    peer: str = ''        # its name
    beside: float = 0.0   # its seconds; 0 if there is no peer
    relative: bool = False

    @property
    def ratio(self): return self.parkit/self.beside if self.beside else None
    @property
    def holds(self): return (self.ratio if self.relative else self.parkit) <= self.limit


def alternate(*works, rounds=15, choose=min):
    "Seconds that each of `works` takes, the peers' turns between ours: the least, or `choose`, of many rounds"
    seconds = [[] for _ in works]
    for _ in range(rounds):
        for work, found in zip(works, seconds):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [choose(found) for found in seconds]


def each(seconds, number): return [s/number for s in seconds]


# ---- small values

def open_bare(path, durable): return lmdb.open(str(path), map_size=2**36, sync=durable, metasync=durable)


def read_bare(env, keys):
    for key in keys:
        with env.begin() as txn: pickle.loads(txn.get(pickle.dumps(key)))


def write_bare(env, keys):
    for key in keys:
        with env.begin(write=True) as txn: txn.put(pickle.dumps(key), pickle.dumps(VALUE))


def read_all(mapping, keys):
    for key in keys: mapping[key]


def write_all(mapping, keys):
    for key in keys: mapping[key] = VALUE


def fill_bare(env):
    with env.begin(write=True) as txn:
        for key in KEYS: txn.put(pickle.dumps(key), pickle.dumps(VALUE))


def fill_cache(cache):
    with cache.transact(): write_all(cache, KEYS)


def small_value_rows(folder):
    "`d[k]` and `d[k] = v` in a scratch namespace"
    env, cache, d = open_bare(folder/'bare', False), diskcache.Cache(str(folder/'cache')), pk.Dict('scratch/prices')
    fill_bare(env), fill_cache(cache), d.update({k: VALUE for k in KEYS})
    keys = random.sample(KEYS, 1000)
    bare, cached, ours = each(alternate(lambda: read_bare(env, keys), lambda: read_all(cache, keys),
                                        lambda: read_all(d, keys), rounds=25), len(keys))
    yield Row('`d[k]`', ours, 1.4, 'bare lmdb + pickle', bare, True)
    yield Row('`d[k]`', ours, 1/5, 'diskcache', cached, True)
    bare, cached, ours = each(alternate(lambda: write_bare(env, keys), lambda: write_all(cache, keys),
                                        lambda: write_all(d, keys), rounds=25), len(keys))
    yield Row('`d[k] = v`, scratch', ours, 1.8, 'bare lmdb (sync=False) + pickle', bare, True)
    yield Row('`d[k] = v`, scratch', ours, 1/7, 'diskcache', cached, True)


def durable_row(folder):
    "`d[k] = v` in a durable namespace"
    env, d = open_bare(folder/'synced', True), pk.Dict('durable/prices')
    fill_bare(env), d.update({k: VALUE for k in KEYS})
    keys = random.sample(KEYS, 20)
    bare, ours = each(alternate(lambda: write_bare(env, keys), lambda: write_all(d, keys), choose=median), len(keys))
    yield Row('`d[k] = v`, durable', ours, 1.3, 'bare lmdb (synced) + pickle', bare, True)


def opening_rows():
    "Opening an object, and making one"
    pk.Dict('scratch/opened')
    numbers, times = count(), range(200)
    opened, = each(alternate(lambda: [pk.Dict('scratch/opened') for _ in times]), len(times))
    made, = each(alternate(lambda: [pk.Dict(f'scratch/made {next(numbers)}') for _ in times]), len(times))
    yield Row('open an existing `Dict`', opened, 20*MICRO)
    yield Row('create a `Dict`, scratch', made, 60*MICRO)


# ---- Array

def extend_bare(env, numbers, values):
    with env.begin(write=True) as txn, txn.cursor() as cursor:
        cursor.putmulti([(struct.pack('>Q', next(numbers)), pickle.dumps(v)) for v in values])


def iterate_bare(env, n):
    with env.begin() as txn, txn.cursor() as cursor:
        for _, (_, record) in zip(range(n), cursor): pickle.loads(record)


def iterate(array):
    for _ in array: pass


def array_rows(folder):
    "Extending and iterating an `Array`, by the item"
    env, grown, array = open_bare(folder/'items', False), pk.Array('scratch/grown'), pk.Array('scratch/items')
    numbers, values = count(), [n/7 for n in range(10_000)]
    array.extend(values)
    bare, ours = each(alternate(lambda: extend_bare(env, numbers, values), lambda: grown.extend(values)), len(values))
    yield Row('`Array.extend`, 10,000 floats, an item', ours, 0.7*MICRO, 'bare lmdb `putmulti` + pickle', bare)
    bare, ours = each(alternate(lambda: iterate_bare(env, len(values)), lambda: iterate(array)), len(values))
    yield Row('iterating an `Array` of 10,000, an item', ours, 0.7*MICRO, 'bare lmdb cursor + pickle', bare)


# ---- big arrays

def read_snapshot(d, keys):
    with pk.snapshot(d): read_all(d, keys)


def load_often(path, n, **options):
    for _ in range(n): np.load(path, **options)


def save_safely(path, array):
    np.save(path.with_name('new.npy'), array)
    os.replace(path.with_name('new.npy'), path)


def write_rows(d, folder, array):
    "Writing 100 MB, beside overwriting a file in place, and beside replacing it by a new one as parkit does"
    def save(): np.save(folder/'array.npy', array)
    def replace(): save_safely(folder/'replaced.npy', array)
    saved, safe, ours = alternate(save, replace, lambda: d.update(written=array), rounds=9)
    yield Row('100 MB array, write, scratch', ours, 1.3, '`numpy.save`', saved, True)
    yield Row('100 MB array, write, scratch', ours, 1.3, '`numpy.save`, `os.replace`', safe, True)


def zero_copy_rows(d, folder):
    "Reading 100 MB as a view: mapped anew, and while another view of it is held"
    times = [100]*100
    loaded, first = each(alternate(lambda: load_often(folder/'array.npy', 100, mmap_mode='r'),
                                   lambda: read_snapshot(d, times)), 100)
    with pk.snapshot(d): held = d[100]
    again, = each(alternate(lambda: read_snapshot(d, times)), 100)
    del held
    yield Row('100 MB array, zero-copy read, first', first, 25*MICRO, '`numpy.load(mmap_mode="r")`', loaded)
    yield Row('100 MB array, zero-copy read, again', again, 5*MICRO)


def plain_read_rows(d, folder):
    "Reading 100 MB as an array of one's own: alone, and while another copy of it is held"
    times = [100]*100
    loaded, = alternate(lambda: load_often(folder/'array.npy', 1), rounds=5)
    first, = each(alternate(lambda: read_all(d, times)), 100)
    held = d[100]
    again, = each(alternate(lambda: read_all(d, times)), 100)
    del held
    yield Row('100 MB array, plain read, first', first, 25*MICRO, '`numpy.load`', loaded)
    yield Row('100 MB array, plain read, again', again, 5*MICRO)


def flat_rows(d, sizes):
    "The price of a zero-copy read for each size in MB, beside that of 1 MB"
    for size in sizes:
        d[size] = np.zeros(size*MEGA, np.uint8)
        small, ours = each(alternate(lambda: read_snapshot(d, [1]*100), lambda: read_snapshot(d, [size]*100)), 100)
        yield Row(f'{size:,} MB array, zero-copy read, first', ours, 1.5, '1 MB array', small, True)
        del d[size]


def big_value_rows(folder, huge):
    d, array = pk.Dict('scratch/arrays'), np.ones(100*MEGA//8)
    yield from write_rows(d, folder, array)
    d[1], d[100] = array[:MEGA//8], array
    yield from zero_copy_rows(d, folder)
    yield from plain_read_rows(d, folder)
    yield from flat_rows(d, [100, 1000, 10_000] if huge else [100, 1000])


# ---- tasks

def nothing(): pass


def first_result():
    pk.Pool().stop()
    start = time.perf_counter()
    pk.bind_task('noop')().result
    return time.perf_counter() - start


def first_result_of_peer():
    start = time.perf_counter()
    with ProcessPoolExecutor(WORKERS) as executor:
        executor.submit(nothing).result()
        return time.perf_counter() - start


def run_many(submit, wait, n):
    for future in [submit() for _ in range(n)]: wait(future)


def cpu_seconds(pids): return sum(sum(psutil.Process(p).cpu_times()[:2]) for p in pids)


def idle_row(seconds=5):
    "What the supervisor and its workers use while there is nothing to do"
    status = pk.Pool().status
    pids = [status.supervisor, *status.workers]
    time.sleep(1)
    before = cpu_seconds(pids)
    time.sleep(seconds)
    yield Row(f'CPU used by idle workers in {seconds} s', cpu_seconds(pids) - before, 10*MILLI)


def busy_rows(executor):
    "A task that does nothing, alone and by the thousand"
    noop = pk.task(name='noop')(nothing)
    def submit(): return executor.submit(nothing)
    def run_peers(n=1000): run_many(submit, lambda future: future.result(), n)
    def run_ours(n=1000): run_many(noop, lambda trace: trace.result, n)
    run_peers(50), run_ours(50)
    peer, ours = alternate(lambda: submit().result(), lambda: noop().result, rounds=400, choose=median)
    yield Row('no-op task, round trip', ours, 0.8, '`ProcessPoolExecutor`', peer, True)
    peer, ours = each(alternate(run_peers, run_ours, rounds=7, choose=median), 1000)
    yield Row('no-op tasks by the thousand, a task', ours, 1.0, '`ProcessPoolExecutor`', peer, True)


def task_rows():
    pk.Pool().resize(WORKERS)
    with ProcessPoolExecutor(WORKERS) as executor: yield from busy_rows(executor)
    yield from idle_row()
    peer, ours = (median(first() for _ in range(5)) for first in (first_result_of_peer, first_result))
    yield Row('first result with no workers running', ours, 1.0, 'new `ProcessPoolExecutor`', peer)


# ---- import

def run_python(code):
    # as in everyday use, where the modules have been compiled before
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    subprocess.run([sys.executable, '-c', code], check=True, env={**env, 'PYTHONPATH': str(Path(pk.__file__).parents[1])})


def import_row():
    "What `import parkit` adds to the start of Python; it fails if that imports numpy"
    code = 'import sys, parkit; assert "numpy" not in sys.modules, "import parkit imports numpy"'
    bare, whole = alternate(lambda: run_python('import sys'), lambda: run_python(code), choose=median)
    yield Row('`import parkit`', whole - bare, 150*MILLI, 'start of Python', bare)


# ---- the table

def shown_time(seconds):
    for unit, factor in (('s', 1), ('ms', MILLI), ('µs', MICRO)):
        if seconds >= factor: break
    return f'{seconds/factor:.3g} {unit}'


def shown_factor(factor): return f'{factor:.2f} ×' if factor >= 0.01 else f'1/{1/factor:,.0f}'


def cells(row):
    "The row's cells, as text"
    peer = f'{row.peer}: {shown_time(row.beside)}' if row.peer else ''
    ratio = shown_factor(row.ratio) if row.peer else ''
    limit = shown_factor(row.limit) if row.relative else shown_time(row.limit)
    return [row.work, shown_time(row.parkit), peer, ratio, limit, 'yes' if row.holds else '**no**']


def show(row): print('|', ' | '.join(cells(row)), '|', flush=True)


def all_rows(folder, huge):
    pk.Namespace('scratch', durable=False)
    yield from import_row()
    yield from small_value_rows(folder)
    yield from durable_row(folder)
    yield from opening_rows()
    yield from array_rows(folder)
    yield from big_value_rows(folder, huge)
    yield from task_rows()


def measure(folder, huge):
    "All rows, each printed when it is known"
    pk.set_site(folder/'site')
    print('| work | parkit | beside it | ratio | at most | holds |\n|---|---|---|---|---|---|')
    rows = []
    try:
        for row in all_rows(folder, huge):
            show(row)
            rows.append(row)
    finally: pk.Pool().stop()
    return rows


def write_json(path, rows):
    "The rows, and where they were measured"
    where = dict(parkit=pk.__version__, python=platform.python_version(), system=platform.platform(),
                 cores=os.cpu_count(), time=time.strftime('%Y-%m-%dT%H:%M:%S%z'))
    rows = [dict(row._asdict(), ratio=row.ratio, holds=row.holds) for row in rows]
    Path(path).write_text(json.dumps(dict(where, rows=rows), indent=1) + '\n')


def main():
    parser = argparse.ArgumentParser(description='Measure parkit beside its peers.')
    parser.add_argument('--huge', action='store_true', help='also write and read an array of 10 GB')
    parser.add_argument('--json', metavar='FILE', help='write the results there, too')
    parser.add_argument('--folder', help='where to write the data; a local disk (default: the temporary folder)')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder: rows = measure(Path(folder), options.huge)
    if options.json: write_json(options.json, rows)
    print(f'\n{sum(row.holds for row in rows)} of {len(rows)} limits hold')


if __name__ == '__main__': main()
