"""Who waits for other processes is told for whom, and stops waiting when he has said so; and who only looks holds up nobody.

A notebook has no process to stop."""
import os, signal
from pathlib import Path

import pytest

import parkit as pk
from helpers import Child, in_thread, run, wait_for, waits_for_a_lock
from parkit import maintenance, system

def _is_stopped(pid): return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'T'

_holds = dict(
    write="txn = site.store('n').write()\nsay()\nhear()",
    setup="with site.setting_up():\n    say()\n    hear()")

@pytest.fixture(params=_holds)
def stopped(request, site):
    "A process that was stopped while it had a lock: `lock` says which"
    pk.Dict('n/d')['a'] = pk.Dict()
    with Child(site, _holds[request.param]) as child:
        child.hear()
        child.signal(signal.SIGSTOP)
        assert wait_for(lambda: _is_stopped(child.pid))
        child.lock = request.param
        yield child

def _names(found, child):
    "Whether what was found names the process, says that it is stopped, and what to do"
    return [f for f in found if f'process {child.pid}, which is stopped (kill -CONT {child.pid} lets it go on), has held' in f.what and f.advice]

def test_maintenance_names_who_is_stopped_and_does_the_rest(site, stopped):
    os.makedirs(f'{site.path}/empty/folder')
    assert _names(pk.doctor(timeout=0.2), stopped) and _names(pk.gc(timeout=0.2), stopped)
    assert {f.subject for f in _names(pk.check(timeout=0.2), stopped)} <= {'n', site.path}
    assert os.path.exists(f'{site.path}/empty') == (stopped.lock == 'setup')
    stopped.signal(signal.SIGCONT)
    stopped.say()
    stopped.wait()
    pk.gc()
    assert pk.check() == [] == pk.gc() and not os.path.exists(f'{site.path}/empty') and not _names(pk.doctor(), stopped)

def test_doctor_waits_for_nobody_for_long(site, stopped):
    "Unless told to; also where another thread of its process waits already"
    with in_thread(lambda: pk.Dict('n/d').update(b=1) if stopped.lock == 'write' else pk.Namespace('n').copy('m')):
        assert wait_for(lambda: waits_for_a_lock(os.getpid()))
        assert _names(pk.doctor(), stopped)
        stopped.signal(signal.SIGCONT)
        stopped.say()
        stopped.wait()

def test_compact_names_who_is_stopped(site, stopped):
    with pytest.raises(pk.TransactionTimeout, match=f'process {stopped.pid}, which is stopped'): pk.compact('n', timeout=0.2)
    stopped.signal(signal.SIGCONT)
    stopped.say()
    stopped.wait()
    assert pk.compact('n', timeout=60) >= 0

def test_backup_needs_no_lock(site, stopped, tmp_path):
    pk.backup(tmp_path/'backup', timeout=0.2)

def test_all_waits_of_a_block_are_one(site):
    "What it has waited for the first lock it does not wait again for the second; an inner block does not prolong it"
    for name in ('n', 'm'): pk.Dict(f'{name}/d')['a'] = 1
    with Child(site, "txns = [site.store(name).write() for name in ('n', 'm')]\nsay()\nhear()") as child:
        child.hear()
        with system.at_most(0.3), system.at_most(None):
            for name in ('n', 'm'):
                with system.at_most(100), pytest.raises(pk.TransactionTimeout): pk.Dict(f'{name}/d')['a'] = 2
                assert system.seconds_left() == 0
        assert system.seconds_left() is None

def test_waits_without_a_limit_end_as_before(site):
    with Child(site, "with site.setting_up():\n    say()\n    hear()") as child:
        child.hear()
        with in_thread(lambda: pk.Namespace('x', durable=False)):
            assert wait_for(lambda: waits_for_a_lock(os.getpid()))
            child.say()
    assert pk.Namespace('x').exists


# --- check

_verifies = '''
from lmdb import verify
from parkit import storage
walk = verify._Verifier._walk_page
def wait_once(self, *args):
    verify._Verifier._walk_page = walk
    say()
    hear()
    return walk(self, *args)
verify._Verifier._walk_page = wait_once
from parkit import maintenance
say([list(f) for f in maintenance._check_namespace(site.store('n'))])
'''

def test_check_holds_up_no_writer(site):
    "And is not led astray by what is written meanwhile, over all pages that were freed"
    pytest.importorskip('lmdb.verify')
    pk.Namespace('n', durable=False)
    d = pk.Dict('n/d')
    d.update((i, bytes(3000)) for i in range(500))
    for i in range(0, 500, 2): del d[i]
    with Child(site, _verifies) as child:
        child.hear()
        for n in range(30):
            with pk.transaction(d, timeout=20):
                for i in range(0, 500, 7): d[i] = bytes(1000 + 100*n)
            for i in range(3): d[n*3 + i] = os.urandom(5000)
        child.say()
        assert child.hear() == []
        child.wait()

def test_check_of_a_busy_namespace(site):
    "Whose pages change all the time"
    pk.Namespace('n', durable=False)
    pk.Dict('n/d').update((i, bytes(3000)) for i in range(300))
    with Child(site, "d = pk.Dict('n/d')\nimport random\nsay()\nwhile True: d[random.randrange(300)] = os.urandom(random.randrange(6000))") as child:
        child.hear()
        for _ in range(5): assert pk.check() == []
        assert child.process.poll() is None

def test_check_looks_at_many_namespaces_in_one_process(site, monkeypatch):
    "And in another one after each that has killed it"
    for n in range(8): pk.Dict(f'n{n}/d').update((i, bytes(3000)) for i in range(100))
    site.close()
    started = []
    def run(command, *args, run=maintenance.subprocess.run, **options):
        started.append(command)
        command[2] = command[2].replace('; _check_namespaces', """
from parkit import storage
find, at = storage.find_page_errors, os.path.basename
storage.find_page_errors = lambda path: os.kill(os.getpid(), 11) if '/n3/' in path or '/n6/' in path else find(path)
_check_namespaces""").replace('import sys', 'import os, sys', 1)
        return run(command, *args, **options)
    monkeypatch.setattr(maintenance.subprocess, 'run', run)
    found = pk.check()
    assert [f.subject for f in found] == ['n3', 'n6'] and all('killed' in f.what and 'SIGSEGV' in f.what for f in found) and len(started) == 3

def test_values_that_print_when_they_are_read_are_no_findings(site):
    run(site, """
class Loud:
    def __reduce__(self): return eval, ("print('[[1, 2, 3]]') or __import__('os').write(1, b'[]')",)
pk.Dict('n/d')['x'] = Loud()
pk.Dict('m/d')['x'] = 1
say()""")
    assert pk.check() == []

def test_a_damaged_namespace_is_refused_without_waiting_for_its_writer(site):
    "Of a file that is too short it is looked whether what is missing is needed"
    pk.Dict('n/d').update((i, bytes(3000)) for i in range(100))
    site.close()
    with Child(site, "txn = site.store('n').write()\nsay()\nhear()") as child:
        child.hear()
        data = f'{site.path}/n/@/data.mdb'
        os.truncate(data, os.path.getsize(data)//2//4096*4096)
        with pytest.raises(pk.SiteError, match='is shorter than its .* pages: it is damaged'): pk.Dict('n/d')
