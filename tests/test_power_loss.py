"""What a durable namespace holds after the plug was pulled, at any moment.

A notebook cannot lose its power. Here a process writes; what it asks of its files is recorded, call by call or, on real file systems, block by
block; then disks are made as a power loss could have left them, and each is opened by parkit after a restart. `PARKIT_POWER_LOSS=3000` cuts
the power that often in each reading of the record."""
import json, os, random, re, shutil, tempfile
from pathlib import Path

import pytest

from helpers import Child
from power_loss import blocks, trace
from power_loss.check import Checker, campaign
from power_loss.disk import CALM, Disk, Replay, write_out
from power_loss.trace import Record
from power_loss.workload import Plan

POINTS = int(os.environ.get('PARKIT_POWER_LOSS', 40))
SEED = int(os.environ.get('PARKIT_POWER_LOSS_SEED', 1))
READINGS = ['journal', 'posix']  # see `power_loss.disk`
SITE = 'new/site'  # the directory above is new, too

no_strace = trace.why_not()
recorded_calls = pytest.mark.skipif(bool(no_strace), reason=no_strace or '')


@pytest.fixture(scope='module')
def folder():
    "In memory where there is room: a disk that really syncs is slow"
    memory = '/dev/shm' if os.path.isdir('/dev/shm') and shutil.disk_usage('/dev/shm').free > 2**30 else None
    folder = Path(tempfile.mkdtemp(prefix='power-loss-', dir=memory))
    yield folder
    shutil.rmtree(folder)

@pytest.fixture(scope='module')
def checker(folder):
    with Checker(folder) as checker: yield checker

_write = '''
    from power_loss import workload
    workload.run(sys.argv[2], json.load(open(sys.argv[3])), say, *sys.argv[4:])
    with pk.transaction('prices/eu'), pk.snapshot():
        say(dict(holding=True))
        hear()
'''

@pytest.fixture(scope='module')
def plan(): return Plan(SEED, 60)

@pytest.fixture(scope='module')
def record(folder, plan):
    (folder/'first').mkdir()
    return Record(folder/'first', SITE, _write, plan)

def _show(result):
    print(result)
    return result


# --- calls

@recorded_calls
@pytest.mark.parametrize('reading', READINGS)
def test_every_commit_survives(checker, record, plan, reading):
    result = _show(campaign(checker, Replay(record, reading), plan, POINTS, SEED))
    assert result.points == POINTS and result.commits > 15*POINTS
    assert not result.losses and not result.left, result


@recorded_calls
@pytest.mark.parametrize('reading', READINGS)
def test_power_fails_again(folder, checker, record, plan, reading):
    "The site of a writer that died with the machine, just before a commit that refers to a blob, is opened, written to, and loses power again"
    links = [n for n, e in enumerate(record.events, 1) if e.kind == 'link' and record.names[e.args[0]].endswith('/prices/eu/@/blobs')]
    n, done, _ = next(m for m in record.moments() if m[0] == links[-1])
    disk, start = Disk(reading), folder/f'again {reading}'
    for e in record.events[:n]: disk.take(e)
    start.mkdir()
    write_out(disk.after(random.Random(SEED), CALM[1]), start)
    assert os.listdir(start/SITE/'prices/eu/@/new') and (start/SITE/'fast/@/store.json').exists()
    plan = Plan(SEED + 1, 25, plan, done)
    again = Record(start, SITE, _write, plan, ['second boot'])
    result = _show(campaign(checker, Replay(again, reading), plan, POINTS//2, SEED))
    assert result.commits > POINTS
    assert not result.losses and not result.left, result


_two_writers = '''
    import subprocess
    folder, sync = f'{sys.argv[2]}/shared/@', os.fsync
    def fsync(fd):
        if os.readlink(f'/proc/self/fd/{fd}') == folder and os.path.exists(f'{folder}/store.json'):
            os.fsync = sync
            code = 'import json, sys; from power_loss import workload; workload.run(sys.argv[1], json.load(open(sys.argv[2])), lambda o: print(json.dumps(o), flush=True))'
            subprocess.run([sys.executable, '-c', code, *sys.argv[2:]], check=True)
            say(dict(power='off'))
        return sync(fd)
    say(dict(begin=-1))
    site = pk.set_site(sys.argv[2])
    say(dict(done=-1))
    os.fsync = fsync
    pk.Namespace('shared', durable=True)
    assert os.fsync is sync, 'the other writer had no chance'
    with pk.transaction('shared'), pk.snapshot('shared'):
        say(dict(holding=True))
        hear()
'''

@recorded_calls
@pytest.mark.parametrize('reading', READINGS)
def test_commit_while_the_namespace_is_being_made(folder, checker, reading):
    "Another process writes to a namespace that has its name, when the one who makes it has not synced that yet"
    (folder/f'two {reading}').mkdir()
    plan = Plan()
    for i, step in enumerate([('make', 'shared/d', 'Dict', []), ('set', 'shared/d', 1, 1, 50), ('set', 'shared/d', 2, 2, 300_000)]): plan.add(step)
    record = Record(folder/f'two {reading}', SITE, _two_writers, plan)
    record.events = record.events[:next(i for i, e in enumerate(record.events) if e.kind == 'said' and 'power' in e.args[0])]
    result = _show(campaign(checker, Replay(record, reading), plan, POINTS//2, SEED))
    assert not result.losses and not result.left, result


_back_up = '''
    from power_loss import workload
    workload.run(f'{sys.argv[2]}-in-use', json.load(open(sys.argv[3])), lambda o: None)
    say(dict(begin=-1))
    pk.backup(sys.argv[2])
    say(dict(done=-1))
    with pk.transaction(), pk.snapshot():
        say(dict(holding=True))
        hear()
'''

@recorded_calls
@pytest.mark.parametrize('reading', READINGS)
def test_backup_survives(folder, checker, reading):
    "It is there as a whole, once `backup` has returned, or not at all"
    (folder/f'backup {reading}').mkdir()
    plan, made = Plan(SEED, 15), Plan()
    record, made.start = Record(folder/f'backup {reading}', SITE, _back_up, plan), plan.states[-1]
    result = _show(campaign(checker, Replay(record, reading), made, POINTS//2, SEED))
    assert not result.losses and not result.left, result


# --- that it can fail

_syncs = {  # what is forgotten: in which readings that must show
    'anything': (r'.*', READINGS),
    'pages of the tables': (r'datasync .*data\.mdb', READINGS),
    'the root of the tables': (r'range .*data\.mdb', READINGS),
    'blobs': (r'sync .*/new/.*', READINGS),
    'names of blobs': (r'sync .*/blobs', READINGS),
    'what a namespace is': (r'sync .*/store\.json.*', READINGS),
    'what a site is': (r'sync .*/site\.json.*', READINGS),
    'names in a namespace': (r'sync .*/@', ['posix']),
    'names of namespaces': (r'sync new/site(/prices)?', ['posix']),
    'the name of the site': (r'sync new', ['posix']),
}

@recorded_calls
@pytest.mark.parametrize('reading', READINGS)
@pytest.mark.parametrize('what', _syncs)
def test_each_sync_counts(checker, record, plan, what, reading):
    "If the disk does not sync this when asked to, the same record shows losses"
    pattern, readings = _syncs[what]
    if reading not in readings: pytest.skip('a journal has synced that by another sync')
    forget = lambda e: re.fullmatch(pattern, f'{e.kind} {e.path}')  # noqa: E731
    assert any(map(forget, record.events))
    assert campaign(checker, Replay(record, reading, forget), plan, 2*POINTS, SEED, first=True).losses


@recorded_calls
def test_scratch_namespaces_would_be_torn(folder, record, plan):
    "They are not synced. Were they not wiped after a restart, which the boot id tells, some could not be read"
    with Checker(folder, boot='') as checker: result = campaign(checker, Replay(record, 'journal'), plan, POINTS, SEED)
    assert [o for o in result.losses if 'scratch namespaces are not empty' in o], result
    assert [o for o in result.losses if 'it cannot be used' in o and 'fast' in o], result


# --- blocks

_write_in_step = '''
    from power_loss import workload
    def tell(value):
        say(value)
        hear()
    workload.run(sys.argv[2], json.load(open(sys.argv[3])), tell)
    say(dict(end=True))
'''

@pytest.mark.parametrize('kind', blocks.SIZES)
def test_real_file_system(folder, checker, plan, kind):
    "Every commit survives in what a real file system makes of its blocks; and does not, if the disk forgets to flush"
    if reason := blocks.why_not(kind): pytest.skip(reason)
    folder, said = folder/kind, []
    folder.mkdir()
    (folder/'plan').write_text(json.dumps(plan.commits))
    with blocks.recorded(folder, kind), Child('', _write_in_step, folder/'mounted'/SITE, folder/'plan') as child:
        while 'end' not in (what := child.hear()):
            said.append((os.path.getsize(folder/'log'), what))
            child.say()
        said.append((os.path.getsize(folder/'log'), what))
        child.wait()
    result = _show(campaign(checker, blocks.Replay(folder, kind, said, SITE), plan, POINTS//3, SEED))
    assert result.commits > 10*POINTS//3
    assert not result.losses, result
    assert not [o for o in result.left if 'process' not in o], result  # those are too young to be gone
    assert campaign(checker, blocks.Replay(folder, kind, said, SITE, forget=True), plan, POINTS, SEED, first=True).losses
