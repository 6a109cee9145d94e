"""What is only looked at runs nothing: whatever lies in a site, listings, reprs, `doctor` and `gc` call none of it.

A pickle is a program. Each test puts some that write to a file into a site, and lets a process look that has made none of them."""
import pytest
from helpers import run

import parkit as pk
from parkit.codecs import encode
from parkit.objects import _HELD
from parkit.storage import CLASSES, OBJECTS
from parkit.transactions import write

# a module of the children's: its values write to a file when they are unpickled
_loud = '''
import os
class Loud:
    def __init__(self, file): self.file = file
    def __reduce__(self): return eval, (f'open({self.file!r}, "a").write("I run") and "quiet"',)
    def __hash__(self): return 1
    def __eq__(self, other): return isinstance(other, Loud)
'''

_fill = _loud + '''
from parkit.objects import _class_key
loud = Loud(sys.argv[2])
pk.register_key(Loud, lambda o: 1)
class Ledger(pk.Dict):
    def total(self): return loud and sum(self.values())
d = pk.Dict('n/d', metadata=dict(library=loud, at=loud))
d.update({'value': loud, 'big': [loud, np.zeros(10**5)], loud: 'key', ('a', 1): 'other'})
d.loud = loud
a, q, f, o = pk.Array('n/a', metadata=dict(x=loud)), pk.Queue('n/q', metadata=dict(x=loud)), pk.File('n/f', metadata=dict(x=loud)), pk.Object('n/o')
a.append(loud)
q.put(loud)
o.loud = loud
pk.Lock('n/lock', metadata=dict(x=loud))
d['reference'] = pk.Dict(metadata=dict(x=loud))
pk.Dict()['x'] = loud
ledger = Ledger('n/ledger', metadata=dict(x=loud))
ledger['tea'] = 5
txn = ledger._store.write()
txn.put(_class_key('__main__.Loud'), b'x'*32 + parkit.codecs._join(parkit.codecs.encode(loud)))
txn.commit()
odd = pk.Dict('n/kept')
txn = odd._store.write()
info = parkit.objects._info(txn, odd._oid)
txn.put(b'\\x02' + odd._oid, parkit.objects._encode_info(info._replace(type='__main__.Loud')))
txn.commit()
@pk.task(metadata=dict(library='tools', more=loud), cache=True)
def kept(x): return x
kept(3).wait(60)
@pk.task(metadata=dict(library='tools', more=loud))
def work(x=1, y=loud): return loud
trace = work(loud)
trace.wait(60)
schedule = work.schedule(pk.Periodic(start=__import__('datetime').datetime(2099, 1, 1)), loud)
schedule.pause()
with pk.transaction('n'): work.options(delay=10_000)(loud)  # stays in the outbox, and waits
pk.Pool().stop()
say()
'''
_fill = _fill.replace('import os\n', 'import os, parkit\n')

_LOOKS = {
    'list': "list(pk.Namespace('n'))", 'list tasks': "list(pk.Namespace('task'))", 'names': "[*pk.Namespace('n').names(), len(pk.Namespace('n'))]",
    'reprs': "repr(list(pk.Namespace('n')))", 'in': "'ledger' in pk.Namespace('n') and 'd' in pk.Namespace('n')", 'namespaces': 'repr(pk.namespaces())',
    'facts': "[(o.path, o.name, o.uuid, o.version, o.created, o.exists, o.namespace) for o in pk.Namespace('n')]",
    'types': "[o.type for o in pk.Namespace('n') if isinstance(o, pk.Unknown)]",
    'open': "[cls(f'n/{name}', create=False) for name, cls in dict(d=pk.Dict, a=pk.Array, q=pk.Queue, f=pk.File, o=pk.Object).items()]",
    'sizes': "[len(pk.Dict('n/d')), len(pk.Array('n/a')), pk.Queue('n/q').qsize(), 'value' in pk.Dict('n/d')]",
    'completions': "[pk.Dict('n/d')._ipython_key_completions_(), pk.Namespace('n')._ipython_key_completions_()]",
    'libraries': '[(repr(o), o.tasks) for o in pk.libraries()]', 'tasks': "[(repr(t), t.version, t.__doc__, t.source, t.history()) for t in pk.Namespace('task')]",
    'traces': '[repr(pk.traces()), *map(str, pk.traces())]', 'schedules': 'repr(pk.schedules())', 'pool': '[repr(pk.Pool()), pk.Pool().status, pk.Pool().keep_days]',
    'doctor': 'repr(pk.doctor())', 'gc': 'repr([pk.gc(dry_run=True), pk.gc()])', 'copy': "pk.Namespace('n').copy('copied')", 'compact': "pk.compact('n')",
    'backup': 'pk.backup(sys.argv[3])', 'drop': "[o.drop() for o in pk.Namespace('n')] and list(pk.Namespace('n'))"}

_look = f'''
found, looks = {{}}, {_LOOKS!r}
for name, look in looks.items():
    try: eval(look)
    except Exception as e: found[name] = f'{{type(e).__name__}}: {{e}}'
    if os.path.exists(sys.argv[2]):
        found[name] = 'it has run'
        os.unlink(sys.argv[2])
say(found)
'''

@pytest.fixture
def file(site, tmp_path):
    "The file that tells that something has run; the site is full of what would write to it"
    run(site, _fill, tmp_path/'said')
    (tmp_path/'said').unlink(missing_ok=True)  # the worker has read arguments
    return tmp_path/'said'

def test_looking_runs_nothing(site, file, tmp_path):
    assert run(site, _look, file, tmp_path/'saved') == {}

def test_reading_runs_what_is_read(site, file):
    "A listed object gets its class when something is asked of it that takes one; who only looks at it has it as `Unknown`"
    code = """
    def runs(work):
        before = [os.path.exists(sys.argv[2]), work(), os.path.exists(sys.argv[2])]
        if before.pop(): os.unlink(sys.argv[2]); before.append('ran')
        return before[1:]
    ledger = [o for o in pk.Namespace('n') if o.name == 'ledger'][0]
    shown = repr(ledger), isinstance(ledger, pk.Dict)
    say([runs(lambda: pk.Dict('n/d')['value']), shown, runs(lambda: ledger.total()), isinstance(ledger, pk.Dict), len(ledger),
         [type(o).__name__ for o in pk.Namespace('n') if o.name == 'ledger'], runs(lambda: pk.Namespace('n')['kept'].exists)])
    """
    assert run(site, code, file) == [['quiet', 'ran'], ["Unknown('n/ledger', type='__main__.Ledger')", False], [5, 'ran'], True, 1, ['Ledger'], [True, 'ran']]

@pytest.mark.parametrize('ask', ["ledger['tea']", 'len(ledger)', 'list(ledger)', "'tea' in ledger", "ledger.get('tea')", "ledger.__setitem__('a', 1)"])
def test_an_object_that_is_listed_can_be_used_as_what_it_is(site, file, ask):
    assert run(site, f"ledger = [o for o in pk.Namespace('n') if o.name == 'ledger'][0]; {ask}; say(type(ledger).__name__)", file) == 'Ledger'

def test_an_object_whose_class_is_not_to_be_had_says_so(site, file):
    o = {o.name: o for o in pk.Namespace('n')}['kept']
    with pytest.raises(AttributeError, match="no attribute 'total'"): o.total()
    with pytest.raises(TypeError, match='its class is not to be had in this process'): o['a']
    assert type(o) is pk.Unknown and o.exists
    o.x = 1
    assert o.x == 1

_TAMPERED = {  # what parkit keeps for itself, by the beginning of its key in a namespace: a record of another kind
    'info': ('n', OBJECTS), 'holders': ('_anonymous', None), 'ledger': ('_traces', None), 'pool': ('_pool', None), 'plans': ('_schedules', None),
    'tasks': ('task', None), 'results': ('_cache', None), 'outbox': ('n', b'\x06o')}

@pytest.mark.filterwarnings('ignore:calls made in a transaction:RuntimeWarning')
@pytest.mark.parametrize('what', _TAMPERED)
def test_what_parkit_keeps_for_itself_runs_nothing(site, file, what, tmp_path):
    "Though somebody has written a pickle of theirs over it: it cannot be read then, and is called damaged"
    namespace, table = _TAMPERED[what]
    store, tampered = site.store(namespace, True), encode(_Loud(file))
    def tamper(txn):
        for key, value in list(store.scan(txn, table or bytes(8), table + b'\xff' if table else b'\x01')):
            if value[:1] == b'\x80': txn.put(key, tampered)
        if what == 'holders':
            for key, _ in list(store.scan(txn, OBJECTS, CLASSES)): txn.put(key[1:] + _HELD, tampered)
    if store.exists(): write(store, tamper)
    site.close()
    assert 'it has run' not in run(site, _look, file, tmp_path/'saved').values()
    if store.exists(): store.drop()  # the pool is to be stopped after the test

class _Loud:
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return eval, (f'open({self.file!r}, "a").write("I run") and "quiet"',)
