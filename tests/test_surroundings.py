"""Where parkit is used is not always a notebook on one's own machine: a daemon without streams, a script of cron, a container without a home, a shell with limits.

Each test starts a process in surroundings of its own; what cannot work says what to do."""
import errno, os, shutil, signal, subprocess, sys, zipapp
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
    code = _task + """
d, f = pk.Dict('a/b/c/x'), pk.File('a/b/c/f')
d['big'] = np.zeros(100_000)
with f.open('wb') as file: file.write(b'x'*100)
with f.open('ab') as file: file.write(b'y')
pk.Namespace('a/b/c').copy('d/e')
pk.compact('a/b/c')
with pk.Lock('a/b/c/lock'), pk.transaction(d): t = double(21)
t.wait(60)
say(t.output)
"""
    run(site, f'os.umask({umask})' + code)
    found = [*Path(site.path).rglob('*')]
    assert {'workers.log', 'outbox', 'output', 'variables'} <= {p.name for p in found} and len(found) > 50
    assert not [(p, oct(p.stat().st_mode)) for p in found if p.stat().st_mode & 0o077]

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

_started = '''import sys, parkit as pk
from parkit.calls import _environment

def main():
    pk.set_site(sys.argv[1])
    @pk.task
    def where(): return sys.prefix, __import__('os').getpid()
    print(where().result[1], _environment()[0].hex(), pk.Pool().status.supervisor)

main()
'''

@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    "A virtual environment with parkit's packages"
    folder = tmp_path_factory.mktemp('environments')/'one'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    [packages] = folder.glob('lib/python*/site-packages')
    (packages/'ours.pth').write_text('\n'.join([str(root), *(p for p in sys.path if p.endswith('site-packages'))]) + '\n')
    (folder/'script.py').write_text(_started)
    (folder/'app').mkdir()
    (folder/'app/__main__.py').write_text(_started)
    zipapp.create_archive(folder/'app', folder/'app.pyz')
    return folder

def _start(command, folder, site, **env):
    "Run a program that makes a call; the worker, the hash of the interpreter, and the supervisor"
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')} | env
    done = subprocess.run([*map(str, command), site.path], cwd=folder, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

def test_interpreter_is_one_by_whatever_path_it_is_started(site, environment):
    "So that calls of all are run by the same workers: `..` in its path, a link to the environment, relative, another name, a zip file"
    (environment.parent/'link').symlink_to(environment)
    version = f'python3.{sys.version_info[1]}'
    commands = [(environment/'bin/python', 'script.py'), (environment/'bin/../bin/python3', 'script.py'), (environment/'../one/bin/python', 'script.py'),
                (environment/'../link/bin'/version, 'script.py'), ('bin/python', 'script.py'), ('../link/../one/bin/python', '../one/script.py'),
                (environment/'bin/python', 'app.pyz'), (environment/'../one/bin/python', '-E', '-s', 'script.py')]
    found = {' '.join(map(str, c)): _start(c, environment, site) for c in commands}
    assert len({hash for _, hash, _ in found.values()}) == 1 and len({supervisor for *_, supervisor in found.values()}) == 1, found

@pytest.mark.parametrize('first', [True, False], ids=['starts the workers', 'finds workers'])
def test_interpreter_whose_home_is_set(site, first):
    "By `PYTHONHOME`, with a path that is not the shortest one; the same interpreter without needs none"
    base, packages = os.path.realpath(sys._base_executable), os.pathsep.join([str(root), *(p for p in sys.path if p.endswith('site-packages'))])
    home = f'{sys.base_prefix}/lib/..:{sys.base_exec_prefix}/lib/..'
    calls = [lambda: _start([base, '-c', _started], site.path, site, PYTHONHOME=home, PYTHONPATH=packages),
             lambda: _start([base, '-c', _started], site.path, site, PYTHONPATH=packages)]
    assert len({tuple(call()[1:]) for call in (calls if first else calls[::-1])}) == 1

def test_home_that_is_ignored_is_not_the_workers(site, environment):
    "`python -E` takes no notice of it; nor does the worker"
    assert len(_start([environment/'bin/python', '-E', 'script.py'], environment, site, PYTHONHOME='/nowhere')) == 3

def test_process_that_does_not_know_its_interpreter(site):
    "As some that embed Python: what to do is said"
    said = run(site, "sys.executable = ''" + _task + "t = double(1); t.wait(60); say(failure(lambda: t.result))")
    assert said['type'] == 'TaskError' and 'sys.executable is empty' in said['message'] and 'set it to that' in said['message']


# --- sites that are none, and sites that are gone

@pytest.mark.parametrize('url', ['postgresql://host/db', 'redis://h:6379/0', 'file:///tmp/site', 's3://bucket/x', 'sqlite:///a.db'])
def test_a_url_is_no_site(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    kind = url.partition(':')[0]
    monkeypatch.setenv('PARKIT_SITE', url)
    for attempt in (pk.Site, lambda: pk.Site(url), lambda: pk.set_site(url), lambda: pk.backup(url, site=pk.Site(tmp_path/'mine')),
                    lambda: pk.restore(tmp_path/'mine', url), lambda: pk.restore(url, tmp_path/'other')):
        with pytest.raises(pk.SiteError, match=f'no sites of the kind {kind!r}'): attempt()
    with pytest.raises(pk.SiteError, match='an empty path'): pk.Site('')
    assert os.listdir(tmp_path) == ['mine']


@pytest.mark.parametrize('again', ['', 'another site'])
@pytest.mark.parametrize('what', ['d["a"] = 2', 'del d["a"]', 'q.put(1)', 'pk.Dict("e")', 'f()', 'pk.Dict()', 's["a"] = 1',
                                  'pk.Pool().stop()', 'pk.doctor()', 'exec("with pk.transaction(d): d[1] = 1")', 'f.schedule(pk.Periodic(period=5))'])
def test_the_next_write_to_a_site_that_was_removed_is_an_error(tmp_path, what, again):
    "Whatever writes first after `rm -rf`, from this process or another"
    site, names = pk.set_site(tmp_path/'site'), dict(pk=pk)
    exec('@pk.task\ndef f(): return 1\nd, q = pk.Dict("d"), pk.Queue("q")\npk.Namespace("s", durable=False)\ns = pk.Dict("s/s")\n'
         'd["a"] = s["a"] = 1\nf().result\npk.Pool().stop()', names)
    shutil.rmtree(site.path)
    if again: subprocess.run([sys.executable, '-c', 'import parkit as pk, sys; pk.Dict("d", site=pk.Site(sys.argv[1]))["a"] = "new"', site.path],
                             check=True)
    with pytest.raises(pk.SiteError, match='this site was removed') as error: exec(what, names)
    assert isinstance(error.value, pk.ObjectNotFoundError) and isinstance(error.value, OSError)
    with pytest.raises(pk.SiteError, match='this site was removed'): names['d']['a'] = 2
    site.close()
    new = pk.set_site(site.path)
    assert pk.Dict('d').get('a') == ('new' if again else None)
    new.close()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give a directory to another account')
def test_a_backup_of_another_account_is_restored_from_a_copy(tmp_path):
    site = pk.Site(tmp_path/'site')
    pk.Dict('d', site=site)['a'] = 1
    pk.backup(tmp_path/'saved', site=site)
    site.close()
    os.chown(tmp_path/'saved', 1234, 1234)
    with pytest.raises(pk.SiteError, match='belongs to user 1234.*cp -r'): pk.restore(tmp_path/'saved', tmp_path/'again')
    subprocess.run(['cp', '-r', tmp_path/'saved', tmp_path/'copy'], check=True)
    again = pk.restore(tmp_path/'copy', tmp_path/'again')
    assert pk.Dict('d', site=again)['a'] == 1
    again.close()
