"Files in a site that are not parkit's: a desktop's, an editor's, a copy that went wrong. They harm nobody, and nobody removes them"
import os
from pathlib import Path

import numpy as np, pytest
from helpers import run

import parkit as pk
from parkit.ledger import _ledger, sweep_output
from parkit.delivery import deliver_all

_NAMES = ['.DS_Store', 'README', 'notes.txt', 'a.b.c', '.nfs000000000123', 'deadbeef', 'x'*200, 'ü~']

@pytest.fixture
def littered(site):
    "A site with foreign files, and a folder with one, wherever parkit lists files; returns their paths"
    d, n = pk.Dict('d'), pk.Dict('n/d')
    pk.Lock('n/lock')
    d.update(a=1, big=np.arange(10**5))
    n['big'] = np.arange(10**5)
    @pk.task
    def f(): return 1
    with pk.transaction('n'): f()
    f().wait(60)
    pk.Pool().stop()
    site.close()
    places = [Path(site.path, p) for p in ('', '@', '@/alive', '@/outbox', '@/output', '@/variables', '_making', 'n', 'default')]
    places += [Path(site.path, n, '@', p) for n in ('default', 'n', '_traces') for p in ('', 'new', 'blobs', 'locks')]
    made = []
    for place in places:
        if not place.is_dir(): continue
        for name in _NAMES: (place/name).write_text('somebody else\'s')
        (place/'own').mkdir()
        (place/'own/file').write_text('somebody else\'s')
        made += [place/name for name in [*_NAMES, 'own/file']]
    (Path(site.path)/'my notes'/'@').mkdir(parents=True)
    assert len(made) > 150
    return made

_USES = '''
def use():
    d, n = pk.Dict('d'), pk.Dict('n/d')
    d['b'] = n['b'] = 2
    d['big'] = n['big'] = np.arange(10**5) + 1
    del d['big']
    d['big'] = np.arange(10**5)
    with pk.Lock('n/lock'): pass
    @pk.task
    def f(x): return x + 1
    with pk.transaction('n'): call = f(1)
    return [call.result, len(list(pk.Namespace('n'))), pk.namespaces(), int(n['big'][0])]
say(use())
'''

def test_foreign_files_harm_nobody(site, littered, tmp_path):
    assert run(site, _USES) == [2, 2, ['default', 'n', 'task'], 1]
    pk.Pool().stop()
    assert 'nothing' not in repr(pk.doctor()) and pk.check() == []
    assert not [f for f in pk.gc() if any(str(f.subject) in str(p) or Path(f.subject) in p.parents for p in littered)]
    sweep_output(_ledger(site))
    deliver_all(site)
    _ledger(site).sweep_variables()
    assert pk.backup(tmp_path/'saved') == ['default', 'n', 'task']
    pk.Namespace('n').copy('m')
    pk.compact('default')
    site.close()
    left = [p for p in littered if not p.exists() and 'default/@' not in str(p)]  # which was written anew
    assert [p for p in left if 'outbox' not in str(p)] == []
    assert run(site, _USES) == [2, 2, ['default', 'm', 'n', 'task'], 1]
    pk.Namespace('n').rename('r')
    pk.Namespace('m').drop()
    assert pk.Dict('r/d')['b'] == 2 and pk.namespaces() == ['default', 'r', 'task']
