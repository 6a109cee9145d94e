"A site for each test, and nothing left behind by any"
import gc, multiprocessing.resource_tracker, os, shutil, subprocess, sys, tempfile, threading
from pathlib import Path

import psutil, pytest
from helpers import wait_for

# no test may touch the user's own site, whichever way pytest is started
_folder = tempfile.mkdtemp(prefix='parkit-tests-')
os.environ['PARKIT_SITE'] = str(Path(_folder)/'site')

def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes long or needs much disk; `-m "not slow"` leaves it out')
    # Python keeps this process and its pipe from the first spawned process on
    multiprocessing.resource_tracker.ensure_running()

# one of these that began last would keep the other processes waiting
_LONG = ('test_full_disk.py', 'torture/test_mutants.py', 'test_leftovers.py', 'test_executors.py', 'test_by_value.py', 'test_anonymous.py', 'test_namespaces.py',
         'test_interrupts.py', 'test_transactions.py', 'test_site.py', 'test_classes.py', 'test_workers.py', 'test_subprocesses.py', 'test_browser.py', 'test_run_all.py', 'test_outputs.py',
         'test_upgrades.py', 'test_functions.py', 'test_variables.py', 'test_wheel.py', 'test_processes.py', 'test_types.py', 'torture/test_torture.py')

def pytest_collection_modifyitems(items):
    places = {name: n for n, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition('::')[0].removeprefix('tests/'), len(places)))

def pytest_unconfigure(config): shutil.rmtree(_folder, ignore_errors=True)


# --- leaks

def _descriptors():
    open_now = []
    for name in os.listdir('/dev/fd'):
        try:
            os.fstat(int(name))
            open_now.append(f'{name} -> {os.readlink(f"/dev/fd/{name}") if sys.platform == "linux" else "?"}')
        except OSError: pass  # the descriptor that listed the directory
    return open_now

def _children():
    found = []
    for child in psutil.Process().children(recursive=True):
        try: found.append(f'{child.pid} {child.status()} {" ".join(child.cmdline())[:200]}')
        except psutil.NoSuchProcess: pass
    return found

def _threads(): return [f'{o.ident} {o.name}' for o in threading.enumerate()]

_kinds = dict(descriptors=_descriptors, threads=_threads, processes=_children)

@pytest.fixture(autouse=True)
def no_leaks():
    "As many descriptors, threads and child processes after the test as before"
    before = {kind: count() for kind, count in _kinds.items()}
    gc.freeze()  # what is there now, libraries above all, is not looked through after each test
    yield
    def leaked():
        return {kind: sorted(set(now) - set(before[kind])) for kind, count in _kinds.items()
                if len(now := count()) > len(before[kind])}
    gc.collect()
    wait_for(lambda: not leaked(), 30)
    assert not leaked(), f'left behind by the test: {leaked()}'


# --- sites

def _uses(process, prefix):
    "Whether `process`, a folder of /proc, has a file below `prefix` mapped or open"
    try:
        if prefix in (process/'maps').read_text(): return True
        return any(os.readlink(fd).startswith(prefix) for fd in (process/'fd').iterdir())
    except OSError: return False  # it has ended

def holders(folder):
    "Processes other than this one that have a file below `folder` open or mapped, on Linux"
    prefix, processes = f'{Path(folder).resolve()}/', Path('/proc').glob('[0-9]*')
    return [int(p.name) for p in processes if int(p.name) != os.getpid() and _uses(p, prefix)]

@pytest.fixture
def site(tmp_path):
    "A site of the test's own, the default one while it runs; then its pool is stopped and no process may hold it"
    import parkit as pk
    site = pk.set_site(tmp_path/'site')
    yield site
    pk.Pool(site=site).stop()
    site.close()
    wait_for(lambda: not holders(tmp_path), 30)
    assert not holders(tmp_path), f'processes that still hold the site: {holders(tmp_path)}'


@pytest.fixture
def in_memory(tmp_path_factory):
    "A folder in memory, where there is a file system there: the `tmp_path` of tests that are not about disks"
    folder = Path(tempfile.mkdtemp(dir='/dev/shm')) if os.path.isdir('/dev/shm') else tmp_path_factory.mktemp('disk')
    yield folder
    shutil.rmtree(folder)

@pytest.fixture
def scratch(site):
    "The site, with a namespace `n` where writing costs least"
    import parkit as pk
    pk.Namespace('n', durable=False)
    return site

@pytest.fixture
def d(scratch):
    import parkit as pk
    return pk.Dict('n/d')

@pytest.fixture
def never_look_again(monkeypatch):
    "Who waits in this process looks again only when told to: a wake-up that is lost lets the test hang, and needs no clock to be seen"
    monkeypatch.setattr('parkit.system.SAFETY_NET', 600.0)


@pytest.fixture(scope='session')
def built_site(tmp_path_factory):
    "The folder of the documentation site, built once for all tests that look at it"
    out, root = tmp_path_factory.mktemp('docs')/'built', Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, root/'tools/docs.py', '--site-only', '--out', out], cwd=root,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f'`make docs` fails:\n{done.stdout[-2000:]}{done.stderr[-6000:]}'
    return out

@pytest.fixture
def single(site):
    "A pool of one worker"
    import parkit as pk
    pool = pk.Pool()
    pool.resize(1)
    return pool

@pytest.fixture
def double(site):
    "A task"
    import parkit as pk
    @pk.task
    def double(n): return 2*n
    return double
