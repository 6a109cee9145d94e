"""Files that were cut, emptied or changed while nobody used them: found when they are opened or read, or by `pk.check`; never taken for other data, never the end of the reader.

LMDB maps its file and trusts it, so each look at a damaged site is a child's. A notebook could not outlive the signals that this must not cause."""
import json, os, random, struct, warnings
from pathlib import Path

import numpy as np, pytest

import parkit as pk
from parkit import storage
from parkit.codecs import encode
from parkit.objects import _HEAD
from helpers import Child, Fork, run

FUZZ = int(os.environ.get('PARKIT_FUZZ', 1))
PAGE = 4096
BLOB = np.arange(50_000.)

def _seed(): return 3 if FUZZ == 1 else random.SystemRandom().random()


# --- what is damaged, and how it is looked at

_values = dict(text='TEXT'*30, number=2**200, array=np.arange(100), both=[np.arange(200), np.zeros(99)], blob=BLOB, nothing=None)

class _Own(pk.Dict):
    "Values as the user stores them"
    def encode_value(self, value): return value
    def decode_value(self, data, metadata): return bytes(data), metadata
    def get_metadata(self, value): return {'size': len(value)}

@pytest.fixture
def damaged(site):
    "A closed site with something of everything in one durable namespace"
    d = pk.Dict('d', metadata={'unit': 'm'})
    d.update(_values)
    d.update((i, 'v'*100) for i in range(400))
    d[True], d['x'*1500], d['x'*1500 + 'y'] = 'KEYED', 'LONG', 'LONGER'
    pk.Array('a').extend(range(200))
    _Own('own')['k'] = b'PAYLOAD'*20
    q = pk.Queue('q')
    q.put_many(range(20))
    d.unit = 'ATTRIBUTE'
    site.close()
    return site

def _file(site, name='data.mdb', namespace='default'): return Path(site.path, namespace, '@', name)

def _read_everything():
    "All that the fixture has stored, read in every way; raises whatever that raises"
    d, a = pk.Dict('d', create=False), pk.Array('a', create=False)
    for zero_copy in (False, True):
        with pk.snapshot(d, zero_copy=zero_copy):
            found = dict(d.items())
            for key in found: d[key]
            own = dict(_Own('own', create=False).items())
            assert len(d) == len(found) and len(a) == 200 and list(a) == a[:] == list(range(200))
    for key, value in _values.items(): np.testing.assert_equal(found[key], value)
    assert found[1] == 'KEYED' and found['x'*1500] == 'LONG' and own['k'] == (b'PAYLOAD'*20, {'size': 140}) and d.metadata == {'unit': 'm'} and d.unit == 'ATTRIBUTE'
    assert pk.Queue('q', create=False).qsize() == 20 and [o.name for o in pk.Namespace('default')] == ['a', 'd', 'own', 'q']
    return 'sound'

def _outcome(work=_read_everything):
    "What `work()` comes to in a child: what it returns, `found ...` for an error of parkit's, else the error or signal that ended it"
    def attempt():
        try: return work()
        except pk.ParkitError as e: return f'found {type(e).__name__}: {e}'
        except (AssertionError, KeyError) as e: return f'wrong data: {e}'[:300]
        except BaseException as e: return f'{type(e).__name__}: {e}'
    with Fork(attempt) as child:
        try: return child.result()
        except AssertionError: return f'killed by signal {os.WTERMSIG(child.status)}' if os.WIFSIGNALED(child.status) else f'ended with {child.status}'

def _is_found(outcome): return outcome.startswith('found ')

def test_sound_site_is_found_sound(damaged):
    assert _outcome() == 'sound'
    assert pk.check(damaged) == []


# --- site.json and store.json

def _spoilt(text):
    "`text`, which is JSON, in many unsound ways"
    facts = json.loads(text)
    yield from ('', ' ', text[:-1], text[:len(text)//2], '\0'*len(text), 'null', '[]', '1', '"text"', '{}', '['*100_000, text + '}', text.encode('utf-16').decode('latin-1'))
    for key in facts:
        yield json.dumps({k: v for k, v in facts.items() if k != key})
        for value in (None, [], {}, 'x' if not isinstance(facts[key], str) else 5, -1, 1.5): yield json.dumps({**facts, key: value})

def _opens(site, path):
    "Open the site anew, and read and write"
    pk.set_site(pk.Site(site.path))
    d = pk.Dict(path)
    d['new'] = 1
    return d['a']

@pytest.mark.parametrize('name, namespace', [('site.json', 'default'), ('store.json', 'default'), ('store.json', 'scratch')])
def test_facts_that_are_damaged(site, name, namespace):
    "Whatever the file says, nothing is lost, and with the right file all is there again"
    pk.Namespace('scratch', durable=False)
    pk.Dict(f'{namespace}/d')['a'] = 'kept'
    site.close()
    file = Path(site.path, name) if name == 'site.json' else _file(site, name, namespace)
    text = file.read_text()
    wrong = {}
    for spoilt in _spoilt(text):
        file.write_text(spoilt)
        outcome = _outcome(lambda: _opens(site, f'{namespace}/d'))
        if not (outcome.startswith('found SiteError') and name in outcome): wrong[spoilt[:80]] = outcome
    assert not wrong, wrong
    file.write_text(text)
    assert _outcome(lambda: _opens(site, f'{namespace}/d')) == 'kept'

def test_store_json_is_missing(site):
    "What was committed is not taken for something half made, and wiped"
    pk.Dict('d')['a'] = 'kept'
    site.close()
    file = _file(site, 'store.json')
    text = file.read_text()
    file.unlink()
    assert 'store.json' in _outcome(lambda: _opens(site, 'd'))
    assert any('store.json' in f'{o.subject} {o.what}' for o in pk.check(site))
    file.write_text(text)
    assert _outcome(lambda: _opens(site, 'd')) == 'kept'

def test_namespace_whose_maker_died_is_made_again(site):
    "Without `store.json` and without a commit it is nobody's"
    pk.Dict('d')['a'] = 1
    pk.Namespace('other', durable=True)
    site.close()
    _file(site, 'store.json', 'other').unlink()
    def work():
        pk.Dict('other/d')['a'] = 2
        return pk.Dict('other/d')['a']
    assert _outcome(work) == 2


# --- data.mdb that is too short

def _write(file, data):
    "Give `file` another content, and another inode: someone may still map the old one"
    file.unlink(missing_ok=True)
    file.write_bytes(data)

def _cut(file, size): _write(file, file.read_bytes()[:size])

def test_data_that_is_cut(damaged):
    "Found at open, before a page is touched that is not there; reading, writing and listing all the same"
    file = _file(damaged)
    whole = file.read_bytes()
    n = len(whole)
    assert n % PAGE == 0
    def write(): pk.Dict('d')['new'] = 1
    for size in (0, 1, 100, PAGE - 1, PAGE, PAGE + 1, 2*PAGE - 1, 2*PAGE, 2*PAGE + 1, 3*PAGE, n//3, n//2):  # beyond, pages may be free
        for work in (_read_everything, write):
            _write(file, whole[:size])
            outcome = _outcome(work)
            assert outcome.startswith('found SiteError') and 'data.mdb' in outcome, f'{size} of {n} bytes: {outcome}'
            assert file.stat().st_size == size, 'the damaged file was written to'
    file.unlink()
    for work in (_read_everything, write): assert 'data.mdb' in (outcome := _outcome(work)) and _is_found(outcome), outcome
    _write(file, whole)
    assert _outcome() == 'sound'

def test_data_that_is_cut_is_found_by_another_program(damaged):
    _cut(_file(damaged), _file(damaged).stat().st_size//2)
    found = run(damaged, 'say(failure(lambda: pk.Dict("d", create=False)["text"]))')
    assert found['parkit'] and found['type'] == 'SiteError'
    problems = pk.check(damaged)
    assert len(problems) == 1 and 'data.mdb' in problems[0].what

def _live_pages(file):
    "Whether each page is in use, by another program's look at it"
    verify = pytest.importorskip('lmdb.verify', reason='lmdb 2 cannot verify')
    with file.open('rb') as f:
        v = verify._Verifier(f, file.stat().st_size)
        v.verify()
        return v.live

def test_only_the_loss_of_pages_in_use_is_damage(site):
    "Pages that nobody uses may be missing: LMDB itself never writes the last ones, if they are freed in the transaction that took them"
    d = pk.Dict('d')
    rng, expected = random.Random(_seed()), {}
    short = 0
    for n in range(60):
        with pk.transaction(d):
            for _ in range(rng.choice((1, 2, 8))):
                key, size = rng.randrange(30), rng.choice((10, 1900, 5000, 60_000, 200_000))
                d[key] = expected[key] = bytes([n])*size
                if rng.random() < .5: del d[key], expected[key]
        site.close()
        file = _file(site)
        live = _live_pages(file)
        if len(live)*PAGE > file.stat().st_size:
            short += 1
            assert _outcome(lambda: dict(pk.Dict('d')) == expected) is True, f'sound, and short by {len(live) - file.stat().st_size//PAGE} pages'
    assert short, 'no file was short: this tests nothing'
    whole = file.read_bytes()
    pages = len(whole)//PAGE
    lost = 0
    for n in sorted({*range(pages - 25, pages), *(rng.randrange(2, pages) for _ in range(15*FUZZ))}):
        _write(file, whole[:n*PAGE + rng.randrange(PAGE)])
        outcome = _outcome(lambda: dict(pk.Dict('d')) == expected)
        in_use = any(live[n:])
        lost += in_use
        assert outcome.startswith('found SiteError') if in_use else outcome is True, f'{n} of {pages} pages, {"some" if in_use else "none"} lost: {outcome}'
    assert lost


# --- blobs

def _blob(site):
    [name] = os.listdir(_file(site, 'blobs'))
    path = _file(site, 'blobs')/name
    path.chmod(0o600)
    return path

def _replace(path, at, data):
    with path.open('r+b') as f:
        f.seek(at)
        f.write(data)

_blob_damage = {
    'cut by a byte': lambda path: os.truncate(path, path.stat().st_size - 1), 'cut to half': lambda path: os.truncate(path, 200_000), 'emptied': lambda path: os.truncate(path, 0),
    'longer': lambda path: os.truncate(path, path.stat().st_size + 1), 'missing': lambda path: path.unlink(), 'of another kind': lambda path: _replace(path, 0, b'\x07'), 'without a kind': lambda path: _replace(path, 0, b'\0'),
    'of too many dimensions': lambda path: _replace(path, 2, b'\x09'), 'of another shape': lambda path: _replace(path, 8, b'\x51'), 'of another dtype': lambda path: _replace(path, 17, b'z8')}

@pytest.mark.parametrize('how', _blob_damage)
def test_blob_that_is(damaged, how):
    "Its entry says so, the others can be read, and it can be replaced or deleted"
    _blob_damage[how](_blob(damaged))
    def work():
        d, found = pk.Dict('d'), []
        for zero_copy in (False, True):
            with pk.snapshot(d, zero_copy=zero_copy):
                for read in (lambda: d['blob'], lambda: list(d.values()), lambda: d.get('blob')):
                    try: found.append(repr(read()))
                    except pk.DecodeError: found.append(None)
                assert d['text'] == _values['text'] and len(list(d)) == len(d)
        assert found == [None]*6, found
        d['blob'] = 'new'
        assert d['blob'] == 'new'
        del d['blob']
        return len(list(d.values())) == len(d)
    problems = pk.check(damaged)
    assert any('blob' in o.what or 'entry' in o.what for o in problems), problems
    assert _outcome(work) is True


# --- entries, heads, infos and names, changed in the file

def _swap(site, old, new):
    "Change `old` to `new` wherever it lies in the file: older copies of a page may hold it too"
    file = _file(site)
    data = file.read_bytes()
    assert len(old) == len(new) and data.count(old), 'not in the file'
    _write(file, data.replace(old, new))

def _join(record): return record if isinstance(record, bytes) else record.join()

def _read(key): return lambda: pk.Dict('d', create=False)[key]

@pytest.mark.parametrize('key', ['text', 'number', 'array', 'both'])
def test_entry_whose_header_was_changed(damaged, key):
    "Kind, counts, sizes and dtype: each byte of them, to several others"
    file, record = _file(damaged), _join(encode(_values[key]))
    data = file.read_bytes()
    rng, fine = random.Random(_seed()), []
    fields = dict(text=[0], number=[0], array=[0, 2, 4, 5, 6, 7, 8, 9, 10, 15, 17, 18], both=[0, 4, 5, 6, 7, 8, 9, 10, 15, *range(16, 48)])[key]
    tries = [(0, kind) for kind in (0, 1, 2, 3, 4, 5, 6, 7, 0x7F, 0xFF) if kind != record[0]] + [(at, b) for at in fields[1:] for b in (record[at] ^ 0x40, record[at] + 1 & 255)]
    for at, byte in tries if FUZZ > 1 else rng.sample(tries, min(len(tries), 30)):
        changed = record[:at] + bytes((byte,)) + record[at + 1:]
        _write(file, data.replace(record, changed))
        outcome = _outcome(_read(key))
        if not _is_found(str(outcome)): fine.append((at, byte, str(outcome)[:100]))
    assert not fine, fine


def _lengths(data, record):
    "Where LMDB's nodes that hold `record` say how long it is"
    at = data.find(record)
    while at >= 0:
        for size in range(9, 60):  # the key before it, then the header
            lo, hi, flags, ksize = struct.unpack_from('<HHHH', data, at - size - 8)
            if (lo, hi, flags, ksize) == (len(record), 0, 0, size):
                yield at - size - 8
                break
        at = data.find(record, at + 1)

@pytest.mark.parametrize('key', ['text', 'array', 'number'])
def test_entry_whose_length_was_changed(damaged, key):
    file = _file(damaged)
    data, record = file.read_bytes(), _join(encode(_values[key]))
    places = list(_lengths(data, record))
    assert places
    longer = [1, 8] if key == 'array' else []  # a pickle says itself where it ends
    for size in [len(record) + n for n in longer] + [0, 1, 2, len(record)//2, len(record) - 6]:
        changed = bytearray(data)
        for at in places: struct.pack_into('<H', changed, at, size)
        _write(file, changed)
        outcome = _outcome(_read(key))
        assert _is_found(str(outcome)), f'{size} of {len(record)} bytes: {outcome}'
    assert pk.check(damaged), 'not found by check'


def _heads(site, path, kind):
    "The head of an object, as it lies in the file"
    o = kind(path)
    with pk.snapshot(o): head = pk.transactions._find(o._store).txn.get(o._oid)
    site.close()
    return head

def _work_with_array():
    a = pk.Array('a')
    for work in (lambda: a[-1], lambda: a[:], lambda: a[::-1], lambda: a.append(1), a.pop, a.popleft, lambda: a.__setitem__(-1, 1), a.clear):
        try: work()
        except pk.ParkitError as e: found = f'found {e}'
    return found

def test_array_whose_head_was_changed(damaged):
    head = _heads(damaged, 'a', pk.Array)
    size, first, next, version = _HEAD.unpack(head)
    file = _file(damaged)
    data = file.read_bytes()
    for changed in ((201, first, 201, version), (2**64 - 1, first, next, version), (size, 2**62, 2**62 + 200, version), (size, -5, 195, version), (size, first, next, 2**64 - 1)):
        _swap(damaged, head, _HEAD.pack(*changed))
        if changed[0] != size or changed[1] == 2**62: assert pk.check(damaged), changed
        assert _is_found(_outcome(_work_with_array)), changed
        _write(file, data)

def test_dict_whose_head_was_changed(damaged):
    head = _heads(damaged, 'd', pk.Dict)
    _, first, next, version = _HEAD.unpack(head)
    file = _file(damaged)
    data = file.read_bytes()
    def work():
        d = pk.Dict('d')
        for work in (lambda: d['text'], lambda: list(d), lambda: d.__setitem__('text', 1), lambda: d.__setitem__('fresh', 1), lambda: d.__delitem__('text'), d.popitem, d.clear, lambda: d.update(a=1)):
            try: work()
            except pk.ParkitError: pass
        return 'done'
    for changed in ((0, first, next, version), (2**64 - 1, first, next, version), (5, -1, -1, version), (5, first, next, 2**64 - 1)):
        _swap(damaged, head, _HEAD.pack(*changed))
        if changed[0] == 0: assert pk.check(damaged), changed
        assert _outcome(work) == 'done', changed
        _write(file, data)


def test_info_that_was_changed(damaged):
    d = pk.Dict('d')
    with pk.snapshot(d): info = pk.transactions._find(d._store).txn.get(storage.OBJECTS + d._oid)
    damaged.close()
    file = _file(damaged)
    data = file.read_bytes()
    other = _join(encode(tuple(range(5))))
    for changed in (b'\0' + info[1:], b'\1' + info[1:], info[:1] + b'\xff'*20 + info[21:], other + bytes(len(info) - len(other))):
        _swap(damaged, info, changed)
        def work():
            for work in (lambda: pk.Dict('d')['text'], lambda: pk.Dict('d', create=False), lambda: pk.Namespace('default')['d'], lambda: list(pk.Namespace('default'))):
                try: work()
                except pk.ParkitError: continue
                except Exception as e:
                    if type(e).__module__ == 'builtins' and changed[:1] == b'\x80' and changed[1:2] != b'\x05': continue  # a pickle: it may raise anything
                    raise
                return f'nothing found: {changed[:30]}'
            return 'found'
        assert _outcome(work) == 'found', changed[:40]
        assert pk.check(damaged), changed[:40]
        _write(file, data)

def test_name_that_leads_to_nothing(damaged):
    "It is not taken for a free one, under which something new could be made"
    def work():
        store = pk.Dict('d')._store
        txn = store.write()
        txn.delete(storage.OBJECTS + pk.Dict('d')._oid)
        txn.commit()
        return 'done'
    assert _outcome(work) == 'done'
    assert _is_found(_outcome(lambda: pk.Dict('d')['text']))
    assert pk.check(damaged)


# --- what only `check` can find

def _pages(data, kind):
    "The numbers of the pages of this kind: 1 branch, 2 leaf, 4 overflow"
    return [n for n in range(2, len(data)//PAGE) if struct.unpack_from('<H', data, n*PAGE + 10)[0] == kind]

def test_pages_that_were_changed(damaged):
    "Number, kind, bounds and pointers of pages in use; a page of zeros; one page in place of another"
    file = _file(damaged)
    data, live = file.read_bytes(), _live_pages(file)
    leaf, branch, overflow = (next(n for n in _pages(data, kind) if live[n]) for kind in (2, 1, 4))
    def changed(page, at, new): return data[:page*PAGE + at] + new + data[page*PAGE + at + len(new):]
    cases = dict(number=changed(leaf, 0, b'\xff\xff'), kind=changed(leaf, 10, b'\1'), lower=changed(leaf, 12, b'\xff\x7f'), pointer=changed(leaf, 16, b'\xfe\xff'), zeros=changed(leaf, 0, bytes(PAGE)),
                 other=changed(leaf, 0, data[branch*PAGE:branch*PAGE + PAGE]), child=changed(branch, PAGE - 10, b'\xff\xff\xff\xff'), overflow=changed(overflow, 10, b'\2'))
    for name, content in cases.items():
        _write(file, content)
        assert pk.check(damaged), name
    _write(file, data)
    assert not pk.check(damaged)

def test_what_a_reader_stumbles_over_is_found_by_check(damaged):
    "Bytes changed at random, in the file of LMDB and in a blob: where a child that reads all fails or dies, `check` says that there is damage"
    rng, files = random.Random(_seed()), [_file(damaged)]*4 + [_blob(damaged)]
    seen = 0
    for _ in range(14*FUZZ):
        file = rng.choice(files)
        data = bytearray(file.read_bytes())
        at = rng.randrange(len(data))
        kept = bytes(data)
        for i in range(at, min(at + rng.choice((1, 1, 8, 64)), len(data))): data[i] ^= rng.choice((1, 0x80, 0xFF))
        _write(file, data)
        outcome = _outcome()
        if outcome != 'sound':
            seen += 1
            if not outcome.startswith('wrong data'): assert pk.check(damaged), f'byte {at} of {file.name}: {outcome}'
        _write(file, kept)
    assert seen, 'no change mattered'
    assert _outcome() == 'sound'

@pytest.mark.parametrize('old, new', [(b'TEXTTEXT', b'TEXTTEXS'), (b'PAYLOADP', b'PAYLOAFP'), (np.arange(40., 50.).tobytes(), np.arange(40., 50.)[::-1].tobytes()), (b'ATTRIBUTE', b'ATTRIBUTF')], ids=['text', 'user', 'blob', 'attribute'])
def test_payload_that_was_changed_and_still_decodes(damaged, old, new):
    "Entries carry no checksum: what still decodes is taken for what was stored, but a check keeps sums for the next"
    assert pk.check(damaged) == []
    file = _blob(damaged) if len(old) == 80 else _file(damaged)
    data = file.read_bytes()
    assert old in data
    _write(file, data.replace(old, new))
    for _ in range(2): assert 'last check' in pk.check(damaged)[0].what
    _write(file, data)
    assert pk.check(damaged) == []

def test_what_was_changed_by_its_users_is_no_damage(damaged):
    "Nor is what was copied, compacted or replaced between two checks"
    for n in range(3):
        assert pk.check(damaged) == []
        d, a = pk.Dict('d'), pk.Array('a')
        d['text'], d['blob'], d.unit = n, BLOB + n, n
        a[0], d.metadata = n, {'n': n}
        if pk.Namespace('other').exists: pk.Namespace('other').drop()
        pk.Namespace('default').copy('other')
        d['blob'] = BLOB
        pk.Queue('q').get()
        if n: pk.Dict('gone').drop()
        pk.Dict('gone')['x'] = BLOB
        pk.compact('default')


# --- `check` on what is sound

def test_value_replaced_by_a_smaller_one_is_no_damage(site):
    "LMDB leaves it all its pages; `lmdb verify` of lmdb 3.0 takes that for damage"
    d = pk.Dict('d')
    with pk.transaction(d):
        for size in (200_000, 50_000, 5_000, 100): d['a'], d[size] = bytes(size), bytes(size)
        for size in (5_000, 200_000, 100): d[size] = bytes(100)
    assert pk.check(site) == []

@pytest.mark.timeout(30)
def test_check_within_ones_own_transaction_is_refused(site):
    with pk.transaction(pk.Dict('d')), pytest.raises(pk.TransactionError, match='call it outside'): pk.check(site)

_busy = '''
import random
d, r = pk.Dict('d'), random.Random(1)
d.update((i, 'v'*200) for i in range(3000))
say()
while True:
    with pk.transaction(d):
        for _ in range(r.choice([1, 20])):
            key = r.randrange(5000)
            if r.random() < .4: d.pop(key, None)
            else: d[key] = bytes(r.choice([100, 300, 300, 9000]))
'''

def test_check_while_another_process_writes(site):
    with Child(site, _busy) as writer:
        writer.hear()
        before = pk.Dict('d').version
        for _ in range(3*FUZZ): assert pk.check(site) == []
        assert pk.Dict('d').version > before


# --- pages that are damaged: LMDB has no checksums, and stops the process at some of them; what it notices is said as parkit's own error

_USES = dict(
    list=lambda: [(repr(o), o.metadata) for o in pk.Namespace('n')], get=lambda: [pk.Dict('n/d')[i] for i in range(1, 300, 3)],
    items=lambda: list(pk.Dict('n/d').items()), array=lambda: list(pk.Array('n/a')), long=lambda: pk.Dict('n/d')['k'*3000],
    set=lambda: pk.Dict('n/d').update(new=1), delete=lambda: pk.Dict('n/d').clear(), snapshot=lambda: _in_snapshot(),
    transaction=lambda: _in_transaction(), check=lambda: pk.check(), copy=lambda: pk.Namespace('n').copy('copy'))

def _in_snapshot():
    with pk.snapshot('n'): return [pk.Dict('n/d')[i] for i in range(1, 300, 3)], list(pk.Array('n/a'))

def _in_transaction():
    with pk.transaction('n'): pk.Dict('n/d').update(dict.fromkeys(range(300), 'y'))

def _error_of(use):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: _USES[use]()
        except (pk.ParkitError, KeyError): return ''
        except BaseException as e: return f'{use}: {e!r}'
    return ''

def test_what_is_noticed_of_damaged_pages_is_an_error_of_parkits(site):
    d, a = pk.Dict('n/d', metadata=dict(a=1)), pk.Array('n/a')
    d.update({i: 'x'*(i*7 % 900) for i in range(300)} | {'k'*3000: bytes(9000)})
    a.extend(range(300))
    path, rnd, noticed = Path(d._store.path, 'data.mdb'), random.Random(5), 0
    site.close()
    whole = path.read_bytes()
    for page in rnd.sample(range(2, len(whole)//4096), 24):
        other = rnd.choice([bytes(4096), rnd.randbytes(4096), whole[2*4096:3*4096], b'\xff'*4096])
        path.write_bytes(whole[:page*4096] + other + whole[page*4096 + 4096:])
        for use in rnd.sample(list(_USES), 3):
            with Fork(_error_of, use) as child:
                try: said = child.result()
                except AssertionError as e:
                    assert 'has died' in str(e)  # LMDB has stopped it
                    continue
            assert not said, (page, said)
            noticed += 1
    assert noticed > 30
    path.write_bytes(whole)
    assert pk.check() == []
