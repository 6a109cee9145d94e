"""No-op tasks in parkit and its peers, in turns in one run: `python benchmarks/tasks.py`. A peer that is not installed is left out."""
import tempfile, time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import parkit as pk

WORKERS, TRIPS, CALLS, ROUNDS = 2, 200, 1000, 5

def nothing(): pass


def executor_peer(executor): return lambda: executor.submit(nothing), lambda future: future.result()

def parkit_peer(stack):
    pk.set_site(Path(stack.enter_context(tempfile.TemporaryDirectory()))/'site')
    pk.Pool().resize(WORKERS)
    stack.callback(pk.Pool().stop)
    return pk.task(name='noop')(nothing), lambda trace: trace.result

def futures_peer(stack): return executor_peer(stack.enter_context(ProcessPoolExecutor(WORKERS)))

def loky_peer(stack):
    import loky
    return executor_peer(stack.enter_context(loky.ProcessPoolExecutor(WORKERS)))

def dask_peer(stack):
    import distributed
    client = stack.enter_context(distributed.Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None))
    return lambda: client.submit(nothing, pure=False), lambda future: future.result()

def ray_peer(stack):
    import ray
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    stack.callback(ray.shutdown)
    return ray.remote(nothing).remote, ray.get

PEERS = {'parkit': parkit_peer, 'ProcessPoolExecutor': futures_peer, 'loky': loky_peer, 'Dask (distributed)': dask_peer, 'Ray': ray_peer}


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

def run_many(submit, wait, n):
    for call in [submit() for _ in range(n)]: wait(call)

def open_peers(stack):
    for name, peer in PEERS.items():
        try: yield name, peer(stack)
        except ImportError: print(f'{name} is not installed')

def main():
    with ExitStack() as stack:
        peers = dict(open_peers(stack))
        for submit, wait in peers.values(): run_many(submit, wait, 50)
        trips, many = {name: [] for name in peers}, {name: [] for name in peers}
        for _ in range(TRIPS):
            for name, (submit, wait) in peers.items(): trips[name].append(timed(lambda: wait(submit())))
        for _ in range(ROUNDS):
            for name, (submit, wait) in peers.items(): many[name].append(timed(lambda: run_many(submit, wait, CALLS))/CALLS)
        print('| | round trip | × | of 1,000, each | × |\n|---|---|---|---|---|')
        base = [median(o['ProcessPoolExecutor']) for o in (trips, many)]
        for name in peers:
            t, m = median(trips[name]), median(many[name])
            print(f'| {name} | {1e6*t:.0f} µs | {t/base[0]:.2f} | {1e6*m:.0f} µs | {m/base[1]:.2f} |')


if __name__ == '__main__': main()
