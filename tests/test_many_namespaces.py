"""A thousand namespaces in one process that may open 256 or 1,024 files: what was not used for longest is closed, and nobody notices.

A notebook should not lower the limits of its process, so these set them in children."""
import os, shutil, tempfile, threading

import pytest

import parkit as pk
from helpers import Child, run, sleeps

_limited = '''
import resource
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
def is_open(n): return site.store(f'n{n}').env is not None
def descriptors(): return sum(os.path.islink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd'))
def value(n): return pk.Dict(f'n{n}/d')['i']
'''

@pytest.fixture(scope='module')
def thousand(tmp_path_factory):
    folder = tempfile.mkdtemp(dir='/dev/shm') if os.path.isdir('/dev/shm') else tmp_path_factory.mktemp('many')
    site = pk.set_site(f'{folder}/site')
    run(site, _limited + """
for n in range(1000):
    pk.Namespace(f'n{n}', durable=n % 100 == 0)
    pk.Dict(f'n{n}/d')['i'] = n
say()""", 1024)
    yield site
    shutil.rmtree(folder)

@pytest.fixture
def many(thousand):
    "A site with very many namespaces, one in a hundred of them durable; the default one while it is used"
    yield pk.set_site(thousand)
    thousand.close()

@pytest.fixture(params=[256, 1024])
def limit(request): return request.param


_works = '''
assert [value(n) for n in range(1000)] == list(range(1000)) and descriptors() < limit*0.8
for n in range(1000): pk.Dict(f'n{n}/d')['j'] = n
assert [pk.Dict(f'n{n}/d')['j'] for n in range(1000)] == list(range(1000))
assert [o.name for path in pk.namespaces() for o in pk.Namespace(path)] == ['d']*1000
names = [f'n{n}' for n in range(20)]
from contextlib import ExitStack
for block in (pk.transaction, pk.snapshot):
    with ExitStack() as stack:
        for name in names: stack.enter_context(block(name))
        assert [value(n) for n in range(1000)] == list(range(1000))
        if block is pk.transaction: pk.Dict('n3/d')['k'] = 3
assert pk.Dict('n3/d')['k'] == 3 and descriptors() < limit*0.8
say()
'''

def test_reads_writes_listing_and_transactions(many, limit): run(many, _limited + _works, limit)


_maintains = '''
import tempfile
value(1), value(2)
before = descriptors(), [n for n in range(1000) if is_open(n)]
folder = tempfile.mkdtemp()
assert len(pk.backup(folder + '/backup')) == 10 and pk.gc() == [] == pk.check()
assert len({f.subject for f in pk.doctor()}) > 1000
pk.compact('n1'), pk.compact('n500')
assert len(pk.namespaces()) == 1000
assert before[1] == [1, 2] and [n for n in range(1000) if is_open(n)] == [2], 'compact has the files replaced, and closes them'
assert descriptors() <= before[0]
import shutil
shutil.rmtree(folder)
say()
'''

def test_maintenance_works_and_closes_what_it_has_opened(many, limit): run(many, _limited + _maintains, limit)


def test_what_was_used_longest_ago_is_closed_first(many):
    run(many, _limited + '''
value(0)
env, d = site.store('n0').env, pk.Dict('n1/d')
for n in range(2, 1000):
    value(n)
    assert value(0) == 0
    if n % 5 == 0: d['j'] = n
    assert is_open(n) and is_open(n - 1)
assert site.store('n0').env is env and is_open(1) and not is_open(2)
say()''', 256)


def test_waiting_for_many_sleeps_and_is_woken(many, limit):
    code = _limited + '''
never_look_again()
site.close()
say()
found = pk.wait_until(lambda: [n for n in range(1000) if pk.Dict(f'n{n}/d').get('x')])
say(found)
for n in found: del pk.Dict(f'n{n}/d')['x']'''
    with Child(many, code, limit) as child:
        child.hear()
        assert sleeps(child.pid)
        pk.Dict('n7/d')['y'] = 1  # which wakes it for nothing
        assert sleeps(child.pid)
        pk.Dict('n993/d')['x'] = 1
        assert child.hear() == [993]
        child.wait()


@pytest.mark.parametrize('replaced', [False, True])
def test_who_waits_for_a_namespace_that_was_closed_meanwhile(many, replaced):
    "Also if others put new files into its place"
    q = pk.Queue('n5/q')
    code = _limited + '''
never_look_again()
def wait(): say(pk.Queue('n5/q').get())
thread = threading.Thread(target=wait)
thread.start()
pk.wait_until(lambda: site.store('n5').lock.is_listened())
for n in range(10, 300): value(n)
say(is_open(5))
thread.join()'''
    with Child(many, code, 256) as child:
        assert child.hear() is False and sleeps(child.pid)
        if replaced:
            pk.compact('n5')
            assert sleeps(child.pid)
        q.put('woken')
        assert child.hear() == 'woken'
        child.wait()


def test_what_is_in_use_stays_and_what_was_read_is_kept(many):
    "Snapshots, iterations, arrays of closed namespaces, objects without a name"
    run(many, _limited + '''
pk.Dict('n1/d')['array'] = np.arange(200_000)
view = pk.Dict('n1/d')['array']
pk.Dict('n2/d').update((f'key {n}', n) for n in range(3000))
items, nameless = iter(pk.Dict('n2/d').items()), pk.Dict()
next(items)
nameless['a'] = 1
with pk.snapshot('n3'):
    pk.Dict('n3/d')['i']
    for n in range(10, 300): value(n)
    assert is_open(3) and not is_open(1)
    assert pk.Dict('n3/d')['i'] == 3
assert sum(1 for _ in items) == len(pk.Dict('n2/d')) - 1 >= 3000 and nameless['a'] == 1
assert not (left := pk.gc()), left
assert (view == np.arange(200_000)).all() and (pk.Dict('n1/d')['array'] == view).all()
for n in range(300, 600): value(n)
assert not is_open(3)
for name in ('n1', 'n2'):
    d = pk.Dict(f'{name}/d')
    for key in list(d):
        if key != 'i': del d[key]
say()''', 256)


def test_forked_children_have_room_too(many, limit):
    "Though they cannot close what they have inherited"
    run(many, _limited + '''
def works():
    for n in range(1000): assert value(n) == n
    pk.Dict(f'n{limit}/d')[str(os.getpid())] = 1
works()
for generation in range(3):  # each a child of the one before
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        if generation: os._exit(status >> 8 or status)
        break
    works()
    if generation == 2: os._exit(0)
say(status)''', limit)


def test_threads_beside_each_other(many):
    "Each closes what another is about to use"
    run(many, _limited + '''
import random
failed = []
def work(seed):
    rng = random.Random(seed)
    try:
        for i in range(1500):
            n = rng.randrange(100)
            if i % 5 == 0: pk.Dict(f'n{n}/d')[seed] = i
            elif i % 31 == 0:
                with pk.snapshot(f'n{n}'): assert value(n) == n and value((n + 1) % 100) == (n + 1) % 100
            else: assert value(n) == n
    except BaseException as e:
        failed.append(repr(e))
        raise
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for t in threads: t.start()
for t in threads: t.join()
for n in range(100):
    for seed in range(4): pk.Dict(f'n{n}/d').pop(seed, None)
say(failed)''', 256)


def test_who_comes_while_a_namespace_is_closed_waits_for_that(many):
    "LMDB must not begin a transaction while it closes"
    pk.Dict('n4/d')['i']
    store, began = many.store('n4'), []
    def close(close=store._close_files):
        reader.start()
        reader.join(0.2)
        began.append(reader.is_alive())
        close()
    reader = threading.Thread(target=lambda: began.append(pk.Dict('n4/d')['i']))
    store._close_files = close
    try: assert store.rest()
    finally: del store._close_files
    reader.join()
    assert began == [True, 4]


def test_when_others_in_the_process_have_most_of_its_files(many):
    "And nearly all of them: that is told, with what to do"
    found = run(many, _limited + '''
for n in range(30): value(n)
held = []
try:
    while True: held.append(open('/dev/null'))
except OSError: pass
assert [value(n) for n in range(100)] == list(range(100))
for n in range(16):  # what was just closed is taken, too
    try:
        while True: held.append(open('/dev/null'))
    except OSError: pass
    problem = failure(lambda: [value(n) for n in range(100, 300)])
    if problem: break
del held
assert [value(n) for n in range(300)] == list(range(300))
say(problem)''', 256)
    assert found['parkit'] and 'ulimit -n' in found['message'], found


def test_when_there_is_little_address_space(many):
    "Each namespace takes up 64 GiB of it"
    run(many, _limited + '''
resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))
assert [value(n) for n in range(1000)] == list(range(1000))
say()''', 1024)
