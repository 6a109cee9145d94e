"""Where parkit is used is not always a notebook on one's own machine: a daemon without streams, a script of cron, a container without a home, a shell with limits.

Each test starts a process in surroundings of its own; what cannot work says what to do."""
import errno, os, signal, subprocess, sys
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import wait_for
from helpers import Child, root, run

import parkit as pk
from parkit import storage

linux = pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc, or needs a limit that only Linux keeps')
_task = '''
@pk.task
def double(n):
    print('gr\\xf6\\xdfer', 2*n)
    return 2*n
'''


# --- the file system

@pytest.mark.parametrize('umask', [0, 0o077])
def test_all_is_for_its_owner_only_whatever_the_umask(site, umask):
    "The site's directory may be opened to readers; the ones in it must not be open to writers then"
    run(site, f'os.umask({umask})' + _task + "pk.Dict('a/b/c/x')['big'] = np.zeros(100_000); pk.Namespace('a/b/c').copy('d/e'); t = double(21); t.wait(60); say(t.output)")
    found = [p for p in Path(site.path).rglob('*') if p.is_dir()]
    assert len(found) > 10 and not [p for p in found if p.stat().st_mode & 0o077]

def test_site_with_any_name_and_any_locale(tmp_path):
    "A name that the locale cannot express, and py-lmdb cannot take as text, is a path all the same"
    site = pk.Site(tmp_path/'sité mit ü 日本')
    pk.Dict('x', site=site)['ä'] = 'ö'
    site.close()
    locale = dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    code = _task + "d = pk.Dict('x'); pk.compact('default'); t = double(d.get('n', 21)); t.wait(60); pk.Pool().stop(); say([d['\\xe4'], t.output, len(pk.check(site))])"
    assert run(site, code, **locale) == ['ö', 'größer 42\n', 0]

def test_site_that_cannot_be_written_to(site):
    store = site.store('default')
    for number in (errno.EACCES, errno.EROFS):
        assert 'must be writable for you, for reading too' in str(store.explain(OSError(number, os.strerror(number), store.path)))

@pytest.mark.parametrize('found', ['~/.local/share/parkit', RuntimeError('could not determine the home directory')])
def test_user_without_a_home(monkeypatch, found):
    "As in a container that runs with a user id of its own; platformdirs has said so in either way"
    def user_data_dir(name):
        if isinstance(found, str): return found
        raise found
    monkeypatch.setattr('platformdirs.user_data_dir', user_data_dir)
    monkeypatch.delenv('PARKIT_SITE')
    with pytest.raises(pk.SiteError, match='no home directory.*set PARKIT_SITE'): storage._default_path()


# --- limits

@linux
def test_too_little_address_space(tmp_path):
    code = '''
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    error = failure(lambda: pk.Dict('x'))
    pk.set_site(pk.Site(sys.argv[2], map_size=2**27))
    pk.Dict('x')['a'] = 1
    say([error, pk.Dict('x')['a']])
    '''
    error, value = run(tmp_path/'site', code, tmp_path/'small')
    assert error['type'] == 'SiteError' and 'ulimit -v' in error['message'] and 'smaller map_size' in error['message'] and value == 1

def test_too_few_files(site):
    "It works again once there are more"
    code = '''
    import resource
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    def open_with(more):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, before[1]))
        try: pk.Dict('other/x')
        finally: resource.setrlimit(resource.RLIMIT_NOFILE, before)
    say([[failure(lambda: open_with(n)) for n in range(1, 6)], pk.Dict('other/x').exists])
    '''
    pk.Dict('other/x')
    errors, exists = run(site, code)
    assert exists and all(e['type'] == 'SiteError' and 'Too many open files' in e['message'] for e in errors), errors


# --- what a process inherits

@pytest.mark.parametrize('closed', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_started_without_streams(site, closed):
    "Nothing of a site may have the number of a standard stream: what a library writes there would be in a database"
    code = f'''import os, sys, parkit as pk\nsite = pk.set_site(sys.argv[1])\n{_task}
d = pk.Dict('x')
t = double(21)
d['result'] = t.result
d['streams'] = [os.path.samestat(os.fstat(n), os.stat(os.devnull)) or not os.path.realpath(f'/proc/self/fd/{{n}}').startswith(site.path) for n in range(3)]
pk.Pool().stop()'''
    subprocess.run(['sh', '-c', f'exec "$@" {closed}', 'sh', sys.executable, '-c', code, site.path], cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60, check=True)
    d = pk.Dict('x')
    assert d['result'] == 42 and d['streams'] == [True, True, True]

def test_started_with_nothing_in_the_environment(site):
    code = f"import sys, parkit as pk\npk.set_site(sys.argv[1])\n{_task}\nprint(double(21).result)\npk.Pool().stop()"
    done = subprocess.run([sys.executable, '-c', code, site.path], cwd=root, env={}, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ('42\n', '')

def test_signals_that_the_caller_blocks_reach_the_workers(site):
    "Else the end of a worker, or of a call's time, would be noticed at the next look after 30 s"
    code = _task + dedent('''
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    @pk.task
    def blocked(): return sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    say([blocked().result, pk.Pool().status.supervisor])
    hear()
    ''')
    with Child(site, code) as child:
        blocked, supervisor = child.hear()
        assert blocked == []
        def lines(): return Path(f'/proc/{supervisor}/status').read_text().splitlines()
        if sys.platform == 'linux': assert wait_for(lambda: 'SigBlk:\t0000000000000000' in lines()), lines()
        child.say()
        child.wait()


# --- how Python is started

@pytest.mark.parametrize('flags', [['-I', '-O'], ['-X', 'dev', '-X', 'warn_default_encoding']], ids=' '.join)
def test_flags_of_python(site, tmp_path, flags):
    "None changes what happens, and there is nothing to warn of"
    script = tmp_path/'script.py'
    script.write_text(f'''import sys, numpy as np, parkit as pk
site = pk.set_site(sys.argv[1])
{_task}
def main():
    d, q = pk.Dict('x'), pk.Queue('q')
    d['big'] = np.zeros(100_000)
    q.put(d['big'].sum())
    with pk.File('f').open('wb') as f: f.write(b'content')
    with pk.Lock('l'): pass
    results = list(pk.map(double, [1, 2, 3]))
    pk.backup(sys.argv[1] + '-copy')
    print(results, q.get(), pk.check(site))
    pk.Pool().stop()

main()
''')
    done = subprocess.run([sys.executable, *flags, script, site.path], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.stdout.endswith('[2, 4, 6] 0.0 nothing found\n') and done.returncode == 0, (done.stdout, done.stderr)
    assert not [line for line in done.stderr.splitlines() if 'Warning' in line and f'{root}/parkit/' in line], done.stderr
