"""Who else could put a site in the place of yours: directories above it that others may write to, with real accounts.

Each test runs in a forked child, which becomes the user that the test is about; pytest's own folders are closed to them."""
import ctypes, fcntl, grp, os, pickle, pwd, shutil, struct, subprocess, sys, tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Fork, forked, run, wait_for

import parkit as pk
from parkit import owners

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != 'linux' or not shutil.which('useradd'),
                                reason='only root can be somebody else')


def _administer(*command):
    "Change the accounts of the machine, one process after the other"
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f'{command}: {done.stderr}'

def _account(name, *options):
    _administer('useradd', '--no-create-home', *options, name)
    return pwd.getpwnam(name)

@pytest.fixture(scope='module')
def people(tmp_path_factory):
    "Two users with a group each, a third whose group is the first one's, and a group with the second in it"
    for work in (_use, _save): work(tmp_path_factory.mktemp('warm')/'site')  # imports all that this takes: others may not enter Python's folder
    ann, mal, eve, group = [f'{name}{os.getpid()}' for name in ('ann', 'mal', 'eve', 'group')]
    _administer('groupadd', group)
    yield SimpleNamespace(ann=_account(ann, '--user-group'), mal=_account(mal, '--user-group', '--groups', group), group=grp.getgrnam(group).gr_gid,
                          make_eve=lambda: _account(eve, '--no-user-group', '--gid', ann))
    names = {p.pw_name for p in pwd.getpwall()}
    for name in (eve, mal, ann):
        if name in names: _administer('userdel', name)
    _administer('groupdel', group)

@pytest.fixture
def folder():
    "A folder that all may enter"
    path = Path(tempfile.mkdtemp()).resolve()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)

def _become(person, work, *args):
    "Do `work` as that user; what it raises of parkit's is returned as text"
    os.setgroups([])
    os.setgid(person.pw_gid)
    os.setuid(person.pw_uid)
    for known in (owners._is_private_group, owners._home): known.cache_clear()
    try: return work(*args)
    except pk.SiteError as e: return str(e)

def _as(person, work, *args): return forked(_become, person, work, *args)

def _use(path):
    "Make or open a site, and say what is in it"
    d = pk.Dict('d', site=pk.Site(path))
    d['n'] = d.get('n', 0) + 1
    d.site.close()
    return d['n']

def _save(path):
    "Make a site, a backup of it and another site of that"
    _use(path/'a'/'b'/'site')
    pk.backup(path/'c'/'saved', site=pk.Site(path/'a'/'b'/'site'))
    pk.restore(path/'c'/'saved', path/'d'/'e').close()

def _own(path, person, mode=0o700):
    path.mkdir(exist_ok=True)
    os.chown(path, person.pw_uid, person.pw_gid)
    path.chmod(mode)
    return path

_root, _nobody = pwd.getpwnam('root'), pwd.getpwnam('nobody')

@pytest.mark.parametrize('owner, mode, wrong', [
    ('root', 0o755, ''), ('root', 0o1777, ''), ('root', 0o1775, ''), ('ann', 0o755, ''), ('ann', 0o1777, ''), ('ann', 0o775, ''), ('ann', 0o2775, ''),
    ('root', 0o777, 'by everyone (mode 777)'), ('ann', 0o777, 'by everyone (mode 777)'), ('ann', 0o757, 'by everyone (mode 757)'),
    ('mal', 0o755, 'belongs to user'), ('mal', 0o1777, 'belongs to user'), ('nobody', 0o755, 'belongs to user'),
    ('group', 0o775, 'by the group'), ('group', 0o2770, 'by the group'), ('group', 0o755, ''), ('group', 0o1775, '')])
def test_directory_above_a_site(people, folder, owner, mode, wrong):
    "When the site is made, and when one that is there is opened"
    above, group = folder/'above', SimpleNamespace(pw_uid=people.ann.pw_uid, pw_gid=people.group)
    _own(above, _root, 0o755)
    _own(above/'mine', people.ann)
    assert _as(people.ann, _use, above/'mine'/'site') == 1
    _own(above, dict(root=_root, nobody=_nobody, group=group).get(owner) or getattr(people, owner), mode)
    for path in (above/'mine'/'site', above/'mine'/'new'/'site'):
        said = _as(people.ann, _use, path)
        assert wrong in said and f'PARKIT_TRUST={above}' in said if wrong else type(said) is int, said
        os.environ['PARKIT_TRUST'] = f'~/other:{above}/'
        try: assert type(_as(people.ann, _use, path)) is int
        finally: del os.environ['PARKIT_TRUST']

def test_all_directories_are_named_at_once(people, folder):
    "So that a container, where all that is mounted has another owner, takes one setting"
    places = [folder/'a', folder/'a'/'b', folder/'a'/'b'/'c']
    for place in places: _own(place, people.mal, 0o777)
    said = _as(people.ann, _use, places[-1]/'site')
    trusted = ':'.join(map(str, places))
    assert f'{places[0]}, in which' in said and f'PARKIT_TRUST={trusted}' in said
    os.environ['PARKIT_TRUST'] = trusted
    try: assert _as(people.ann, _use, places[-1]/'site') == 1
    finally: del os.environ['PARKIT_TRUST']

def test_nothing_is_made_where_it_is_refused(people, folder):
    _own(folder/'above', _root, 0o777)
    assert 'by everyone' in _as(people.ann, _use, folder/'above'/'new'/'site') and not (folder/'above'/'new').exists()

def test_group_of_another_account(people, folder):
    "Which no list of members names: it is the group that the account begins with"
    _own(folder/'above', people.ann, 0o775)
    assert _as(people.ann, _use, folder/'above'/'site') == 1
    people.make_eve()
    assert 'by the group' in _as(people.ann, _use, folder/'above'/'site')

def test_group_where_not_all_accounts_are_in_files(people, folder, monkeypatch):
    "Only one that is named after its user is known to have nobody else in it"
    _own(folder/'above', SimpleNamespace(pw_uid=people.ann.pw_uid, pw_gid=grp.getgrnam('games').gr_gid), 0o775)
    said = []
    for all_in_files in (True, False):
        monkeypatch.setattr(owners, '_files_list_all', lambda: all_in_files)
        said.append(_as(people.ann, _use, folder/'above'/'site'))
    assert said[0] == 1 or 'games' in [p.pw_name for p in pwd.getpwall()], said
    assert 'by the group' in said[1]

@pytest.mark.parametrize('text, whole', [('passwd: files systemd\ngroup: files\n', True), ('passwd: files sss\n', False), ('', True),
                                         ('# passwd: files\npasswd:   files\ngroup: files ldap\n', False)])
def test_whether_all_accounts_are_in_files(tmp_path, text, whole):
    (tmp_path/'nsswitch.conf').write_text(text)
    assert owners._files_list_all(str(tmp_path/'nsswitch.conf')) is whole

def test_access_control_list(people, folder):
    "It shows in the mode as the right of a group, which may have nobody else in it"
    above, entry = _own(folder/'above', people.ann, 0o775), struct.Struct('<HHI')
    lets = [(1, 7, -1), (2, 7, people.mal.pw_uid), (4, 5, -1), (16, 7, -1), (32, 5, -1)]  # owner, a user, group, mask, others
    try: os.setxattr(above, 'system.posix_acl_access', struct.pack('<I', 2) + b''.join(entry.pack(tag, perm, id % 2**32) for tag, perm, id in lets))
    except OSError: pytest.skip('this file system has no access control lists')
    assert _as(people.mal, os.access, above, os.W_OK)
    assert 'by the group' in _as(people.ann, _use, above/'site')

def test_above_the_home_directory_nothing_is_looked_at(people, folder):
    "As with ssh: whoever can replace that has their code run by the next shell. The directory itself is looked at"
    above = _own(folder/'above', people.mal, 0o777)
    home, other = _own(above/'home', people.ann), _own(above/'other', people.ann)
    _administer('usermod', '--home', str(home), people.ann.pw_name)
    try:
        assert [type(_as(people.ann, _use, place/'a'/'site')) for place in (home, other)] == [int, str]
        home.chmod(0o777)
        assert f'{home}, in which this site lies, can be written to by everyone' in _as(people.ann, _use, home/'a'/'site')
    finally: _administer('usermod', '--home', people.ann.pw_dir, people.ann.pw_name)

def test_root_trusts_nobody_else(people, folder):
    _own(folder/'above', people.ann, 0o755)
    assert f'belongs to user {people.ann.pw_uid}' in _as(_root, _use, folder/'above'/'site')
    _own(folder/'above', _root, 0o775)
    assert 'by the group 0' in _as(_root, _use, folder/'above'/'site')

def test_links_lead_to_the_place_that_is_looked_at(people, folder):
    _own(folder/'open', _root, 0o777)
    _own(folder/'closed', people.ann)
    for name in ('open', 'closed'): (folder/f'to {name}').symlink_to(folder/name)
    assert 'by everyone' in _as(people.ann, _use, folder/'to open'/'site')
    (folder/'open'/'link').symlink_to(folder/'closed')
    assert _as(people.ann, _use, folder/'open'/'link'/'site') == 1

def _in_a_user_namespace(path):
    "Use a site where only this user has a number; returns also the owner of the root directory there"
    system, uid, gid = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if system.prctl(4, 1, 0, 0, 0) or system.unshare(0x10000000): return 'no namespaces'  # PR_SET_DUMPABLE; CLONE_NEWUSER
    for name, text in dict(setgroups='deny', uid_map=f'{uid} {uid} 1', gid_map=f'{gid} {gid} 1').items(): Path(f'/proc/self/{name}').write_text(text)
    owners._unmapped_owner.cache_clear()
    try: said = _use(path)
    except pk.SiteError as e: said = str(e)
    return os.stat('/').st_uid, said

def test_user_namespace_without_root(people):
    "As `unshare -r`, Apptainer and Bubblewrap make them: what belongs to root belongs to `nobody` there, and so may what belongs to others"
    folder = Path(tempfile.mkdtemp(dir='/opt'))
    try:
        folder.chmod(0o755)
        _own(folder/'ann', people.ann)
        _own(folder/'open', _root, 0o1777)
        found = [_as(people.ann, _in_a_user_namespace, folder/name/'site') for name in ('ann', 'open')]
    finally: shutil.rmtree(folder)
    if 'no namespaces' in found: pytest.skip('no user namespaces here')
    assert found[0] == (65534, 1) and f'{folder}/open, in which this site lies, belongs to user 65534' in found[1][1], found

def test_bind_mount_of_another_owner(people, folder):
    "The site's own directory, when the setting names it"
    site = _own(folder/'mounted', people.mal, 0o777)
    said = _as(people.ann, _use, site)
    assert f'belongs to user {people.mal.pw_uid}' in said and f'PARKIT_TRUST={site}' in said
    os.environ['PARKIT_TRUST'] = str(site)
    try: assert [_as(people.ann, _use, site) for _ in range(2)] == [1, 2]
    finally: del os.environ['PARKIT_TRUST']

def test_workers_trust_what_their_caller_does(tmp_path):
    "And so do the processes that `check` starts"
    (tmp_path/'open').mkdir()
    (tmp_path/'open').chmod(0o777)
    code = """
    site = pk.set_site(sys.argv[2])
    @pk.task
    def double(n): return pk.Dict('d').get('n', 0) + 2*n
    pk.Dict('d')['n'] = 1
    say([double(2).result, pk.check(), len(pk.doctor()) > 3])
    pk.Pool().stop()
    """
    assert run(None, code, tmp_path/'open'/'site', PARKIT_TRUST=str(tmp_path/'open')) == [5, [], True]


# --- while it is in use

class _Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)

def _put_another(above):
    "What an attacker does: their own site, with their code in it, in the place of the one in use"
    os.rename(above/'site', above/'away')
    d = pk.Dict('late/d', site=pk.Site(above/'site'))
    d['n'] = _Evil(above/'it has run')
    facts, known = above/'site'/'site.json', above/'known.json'
    facts.write_bytes(known.read_bytes())  # the same id as the one in use
    d.site.close()
    for path in [above/'site', *(above/'site').rglob('*')]: path.chmod(0o777 if path.is_dir() else 0o666)

@pytest.mark.parametrize('vouched', [False, True], ids=['', 'vouched for'])
def test_site_that_another_user_exchanges(people, folder, vouched):
    "The directory above is opened to all while the site is in use; a namespace that is opened later is not of the other site"
    above = _own(folder/'above', people.ann, 0o755)
    def use():
        site = pk.Site(above/'site')
        pk.Dict('early/d', site=site)['n'] = 1
        shutil.copyfile(above/'site'/'site.json', above/'known.json')
        (above/'ready').touch()
        assert wait_for((above/'exchanged').exists)
        return pk.Dict('late/d', site=site)['n']
    with Fork(_become, people.ann, use) as ann:
        assert wait_for((above/'ready').exists)
        (above/'known.json').chmod(0o644)
        above.chmod(0o777)
        os.environ['PARKIT_TRUST'] = str(above)  # of the attacker alone
        try: _as(people.mal, _put_another, above)
        finally: del os.environ['PARKIT_TRUST']
        if vouched: above.chmod(0o755)
        (above/'exchanged').touch()
        said = ann.result()
    assert (f'belongs to user {people.mal.pw_uid}' if vouched else 'by everyone') in str(said) and not (above/'it has run').exists()

def test_site_that_is_exchanged_between_the_look_and_the_opening(people, folder, monkeypatch):
    "What was opened is not used: after it, the directory is looked at once more"
    site, look = pk.Site(folder/'site'), pk.Site.check_there
    pk.Dict('d', site=site)['n'] = 1
    site.close()
    subprocess.run(['cp', '-r', folder/'site', folder/'other'], check=True)
    os.chown(folder/'other', people.mal.pw_uid, -1)
    def exchange(site):
        look(site)
        if (folder/'other').exists():
            os.rename(folder/'site', folder/'away')
            os.rename(folder/'other', folder/'site')
    monkeypatch.setattr(pk.Site, 'check_there', exchange)
    with pytest.raises(pk.SiteError, match=f'belongs to user {people.mal.pw_uid}'): pk.Dict('d', site=site)
    monkeypatch.undo()
    site.close()

def test_restored_site_is_used_on(people, folder):
    "Another directory with the same site in it, which is ours too"
    def use():
        site = pk.Site(folder/'mine'/'site')
        pk.Dict('early/d', site=site)['n'] = 1
        pk.backup(folder/'mine'/'saved', site=site)
        os.rename(folder/'mine'/'site', folder/'mine'/'old')
        os.rename(folder/'mine'/'saved', folder/'mine'/'site')
        pk.Dict('late/d', site=site)['n'] = 2
        return pk.Dict('late/d', site=site)['n'], site.is_in_place()
    _own(folder/'mine', people.ann)
    assert _as(people.ann, use) == (2, True)


# --- what is made

@pytest.mark.parametrize('umask', [0, 0o027, 0o077])
def test_new_directories_above_are_private(people, folder, umask):
    def make():
        os.umask(umask)
        _save(folder/'home')
    _own(folder/'home', people.ann, 0o755)
    _as(people.ann, make)
    found = [path for path in (folder/'home').rglob('*')]
    assert len(found) > 30 and not [path for path in found if path.stat().st_mode & 0o077]
