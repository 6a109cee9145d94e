"""The decoder on bytes that nobody wrote: it returns a value or raises `DecodeError`, in little time and memory.

No pickle is run: a stub stands in for `pickle.loads`, since a pickle may run any code, and what that does is no matter of the decoder's.
`PARKIT_FUZZ=20` tries twenty times as many, new ones each time."""
import os, pickle, random, resource, struct, time
from contextlib import contextmanager
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import numpy as np, pytest

import parkit as pk
from parkit import codecs, containers, storage
from parkit.codecs import BLOB, BUFFERS, KEYED, USER, DecodeError, decode, decode_key, decode_user, encode, encode_key, encode_user, split_key, verify, with_key
from helpers import forked

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings, strategies as st

FUZZ = int(os.environ.get('PARKIT_FUZZ', 1))
ROOM = 256*2**20  # bytes that a decoder may ask for; no record here has more than some thousand
SECONDS = 2       # of processor time for one record


def _join(record): return record if isinstance(record, bytes) else record.join()

@contextmanager
def no_pickle(*allowed):
    "No pickle is run by parkit in this block, but those that are `allowed`"
    def loads(data, buffers=()): return pickle.loads(data) if bytes(data) in allowed else (bytes(data), [bytes(b) for b in buffers])
    kept = {module: module.pickle for module in (codecs, containers)}
    stub = SimpleNamespace(**{**vars(pickle), 'loads': loads})
    try:
        for module in kept: module.pickle = stub
        yield
    finally:
        for module, own in kept.items(): module.pickle = own

def _decode_all(record):
    "Everything that reads a record, read in every way"
    key, value = split_key(record)
    if key is not None: decode(key)
    value = bytes(value)
    if value[:1] != bytes((USER,)): return decode(value, True), decode(memoryview(value), False)
    metadata, payload = decode_user(value)
    return metadata, bytes(payload)


# --- what to begin with

_records = [encode(o) for o in (
    1, 'text', [1, {'a': (2.5, None)}], np.arange(5), np.zeros((2, 3), '>f4', order='F'), np.zeros((0, 2), 'M8[ns]'), np.zeros(3, 'S0'), np.array(7, 'i2'), np.array(['a', 'ü']),
    [np.arange(5), np.zeros((2, 3))], dict(a=np.ones(3), b=np.zeros(0), c=np.arange(9, dtype='u1')))]
_records += [encode_user(None, b'payload'), encode_user({'a': 1}, b''), encode_user(np.arange(3), np.arange(4)), encode_user([np.arange(3)], b'x'*70)]
RECORDS = [_join(o) for o in _records]
RECORDS += [with_key(key, record) for key in (True, 2.0, np.float32(.5), datetime(2024, 1, 1, tzinfo=timezone.utc)) for record in RECORDS[:6]]
RECORDS += [storage._BLOB.pack(BLOB, bytes(16), 300_000), with_key(1.0, storage._BLOB.pack(BLOB, bytes(16), 300_000))]
KEYS = [encode_key(o) for o in (None, 0, 1, -1, 255, 256, -257, 2**80, -2**80, 1.5, -0.1, 5e-324, 1e300, float('inf'), float('nan'), Fraction(1, 3), '', 'text', 'a\0b', b'\0\xff', (), (1, 'a'), ((1, (2,)), 'b'),
        frozenset({1, 'a'}), UUID(int=5), Path('/a/b'), datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=timezone.utc), datetime(2024, 1, 1).date(), range(3), 'x'*600)]

EXTREMES = [struct.pack(f, n) for f in ('<I', '<Q', '>I') for n in (0, 1, 2, 63, 64, 65, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)] + [struct.pack('<Q', n) for n in (2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 64)]

def mutated(data, rng, others):
    "`data` after some mishaps"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, how = rng.randrange(len(data) + 1), rng.randrange(9)
        if rng.random() < .6: at = min(at, rng.randrange(40))  # the header is where it matters
        if how == 0 and at < len(data): data[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < len(data): data[at] = rng.choice((0, 1, 2, 3, 4, 5, 6, 0x40, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif how == 2: del data[at:]
        elif how == 3: del data[at:at + rng.randrange(1, 20)]
        elif how == 4: data[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif how == 5: data[at:at + 8] = rng.choice(EXTREMES)
        elif how == 6: data[at:at + 4] = rng.choice(EXTREMES)[:4]
        elif how == 7: data += rng.randbytes(rng.randrange(1, 100))
        else:
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other)):]
    return bytes(data)


# --- the judge

def _limit_memory():
    "Let this process have little more memory than it has"
    size = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize() if os.path.exists('/proc/self/statm') else 2**33
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))

def judge(reads, samples):
    "How many of `samples` were refused, and which made `reads` do anything but return, or raise `DecodeError`, at once"
    refused, wrong = 0, {}
    with no_pickle():
        for data in samples:
            start = time.process_time()
            try: reads(data)
            except DecodeError: refused += 1
            except BaseException as e: wrong.setdefault(f'{type(e).__name__}: {e}'[:60], data.hex())
            if time.process_time() - start > SECONDS: wrong.setdefault('slow', data.hex())
    return refused, wrong

def _judged(reads, samples):
    "`judge` in a process of its own: what it does to the memory, or a crash, is seen and does no harm"
    def work():
        _limit_memory()
        return judge(reads, samples)
    refused, wrong = forked(work)
    assert not wrong, wrong
    return refused

def _seed(): return 3 if FUZZ == 1 else random.SystemRandom().random()


# --- damaged bytes

@pytest.mark.parametrize('reads, sound', [(_decode_all, RECORDS), (verify, RECORDS), (decode_key, KEYS)], ids=['records', 'verify', 'keys'])
def test_damaged_bytes(reads, sound):
    if reads is _decode_all: sound = [o for o in sound if o[0] != BLOB and split_key(o)[1][0] != BLOB]
    elif reads is verify: sound = [o for o in sound if o[0] not in (KEYED, BLOB)]
    rng, n = random.Random(_seed()), 12_000*FUZZ
    assert not judge(reads, sound)[0], 'sound ones are refused'
    refused = _judged(reads, [mutated(rng.choice(sound), rng, sound) for _ in range(n)])
    assert n/4 < refused < n, f'{refused} of {n} were refused: they are no test'


@pytest.mark.parametrize('reads', [_decode_all, verify, decode_key])
def test_every_beginning_and_every_changed_byte(reads):
    "The records one after the other, cut anywhere, and with each byte of the first 48 anything"
    sound = KEYS if reads is decode_key else [o for o in RECORDS[:16] if reads is _decode_all or o[0] != KEYED]
    samples = [o[:n] for o in sound for n in range(len(o))]
    samples += [o[:i] + bytes((b,)) + o[i + 1:] for o in sound for i in range(min(48, len(o))) for b in (0, 1, 2, 3, 4, 5, 0x10, 0x19, 0x40, 0x60, 0x7F, 0x80, 0xFE, 0xFF, o[i] ^ 1, o[i] ^ 8)]
    assert _judged(reads, samples)


def test_bytes_that_nobody_wrote():
    rng = random.Random(_seed())
    kinds = [1, 2, 3, 5, 0x80, 0, 6, 255]
    samples = [bytes((rng.choice(kinds),)) + rng.randbytes(rng.choice((0, 1, 3, 7, 12, 20, 64, 300))) for _ in range(6000*FUZZ)]
    _judged(_decode_all, samples)
    _judged(verify, samples)
    tags = [0x02, 0x05, 0x07, 0x08, 0x10, 0x11, 0x18, 0x19, 0x1A, 0x1B, 0x30, 0x31, 0x40, 0x50, 0x51, 0x52, 0x58, 0x5A, 0x60]
    _judged(decode_key, [b''.join(bytes((rng.choice(tags),)) + rng.randbytes(rng.choice((0, 0, 1, 8))) for _ in range(rng.randrange(1, 6))) for _ in range(6000*FUZZ)])


# --- headers that claim anything

_few = st.sampled_from([0, 1, 2, 3, 8, 12, 16, 24, 63, 64, 65, 128])
_sizes = st.one_of(_few, st.integers(0, 2**32 - 1))
_far = st.one_of(_few, st.integers(0, 2**64 - 1), st.sampled_from([2**32, 2**62, 2**63, 2**64 - 1]))
_specs = st.one_of(st.sampled_from([b'<f8', b'|b1', b'<U3', b'|S0', b'|V0', b'<M8[ns]', b'|O', b'O', b'<i8,O', b'(2,3)<f8', b'(1000000000,)i4', b'i4,(2,)f8', b'((((((((1))))))))', b'<M8[9999999999999ns]', b'<U999999999999', b'',
                                    b'float64', b'|V2147483648', b'<c16', b'{}', b'[("a", "i4")]', b'__import__("os")']), st.binary(max_size=12).filter(lambda s: s[:1] != b'\x80'))
_arrays = st.builds(lambda order, shape, extra, spec, pad, data: struct.pack('<BBBBI', 1, order, (len(shape) + extra)%256, 0, len(spec)) + struct.pack(f'<{len(shape)}Q', *shape) + spec + bytes(pad) + data,
                    st.integers(0, 255), st.lists(_far, max_size=5), st.sampled_from([0, 0, 0, 1, -1, 60, 250]), _specs, st.integers(0, 64), st.binary(max_size=80))
_buffers = st.builds(lambda n, size, spans, rest: struct.pack('<BxxxIQ', BUFFERS, n, size) + b''.join(struct.pack('<QQ', *s) for s in spans) + rest,
                     _sizes, _far, st.lists(st.tuples(_far, _far), max_size=40), st.binary(max_size=200))
_users = st.builds(lambda size, rest: struct.pack('<BxxxI', USER, size) + rest, _sizes, st.one_of(_arrays, _buffers, st.binary(max_size=99)))
_keyed = st.builds(lambda size, rest: struct.pack('<BxxxI', KEYED, size) + rest, _sizes, st.one_of(_arrays, _users, st.binary(max_size=99)))

@pytest.mark.parametrize('what', [_arrays, _buffers, _users, _keyed], ids=['arrays', 'buffers', 'users', 'keys'])
def test_headers_that_claim_anything(what):
    def work():
        _limit_memory()
        @settings(max_examples=300*FUZZ, derandomize=FUZZ == 1, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(what)
        def check(data):
            for reads in (_decode_all, verify):
                if reads is verify and data[0] == KEYED: continue
                _, wrong = judge(reads, [data])
                assert not wrong, wrong
        check()
    forked(work)


def test_a_key_asks_for_no_more_memory_than_it_has():
    _judged(decode_key, [b'\x07\x00\x00\x00\x00' + bytes(9), b'\x19\xff\xff\xff\xff' + bytes(9), b'\x40'*100_000, b'\x60'*100_000 + b'\0'*100_000, b'\x40\x60'*50_000])

def test_buffers_ask_for_no_more_memory_than_there_is():
    "Each of 3000 buffers claims the whole record"
    n, size = 3000, 10**6
    record = struct.pack('<BxxxIQ', BUFFERS, n, 0) + struct.pack('<QQ', 0, size)*n
    assert _judged(lambda data: decode(data, True), [record + bytes(size - len(record))])


# --- in a store

class _Own(pk.Dict):
    "Values as the user stores them"
    def encode_value(self, value): return value
    def decode_value(self, data, metadata): return bytes(data), metadata
    def get_metadata(self, value): return None

def _read_all(d, n):
    "Read entries one by one, then all, their keys and their values; returns what they raised that is no error of parkit's"
    wrong = {}
    def attempt(name, work):
        try: work()
        except (pk.ParkitError, KeyError): pass
        except BaseException as e: wrong.setdefault(f'{name}: {type(e).__name__}: {e}'[:90], None)
    for i in range(n):
        attempt('get', lambda: d[i])
        with pk.snapshot(d): attempt('zero-copy', lambda: d[i])
        attempt('range', lambda: list(d.range(i, i + 1)))
        attempt('keys', lambda: [k for k, _ in d.range(i, i + 1)])
        attempt('set', lambda: d.__setitem__(i, 'new'))
        attempt('del', lambda: d.__delitem__(i))
    for name, work in (('values', lambda: list(d.values())), ('items', lambda: list(d.items())), ('all keys', lambda: list(d)), ('clear', d.clear), ('drop', d.drop)): attempt(name, work)
    return wrong

@pytest.mark.parametrize('kind', [pk.Dict, _Own])
def test_entries_that_nobody_wrote(site, kind):
    "Damaged records lie in a real store; whatever is done with them raises errors of parkit's only"
    rng, n = random.Random(_seed()), 300*FUZZ
    d = kind('scratch/d')
    samples = [b''] + [mutated(rng.choice(RECORDS), rng, RECORDS) for _ in range(n - 1)]
    samples = [o[:1] + o[1:min(len(o), 2000)] for o in samples]
    txn = d._store.write()
    for i, record in enumerate(samples): txn.put(d._oid + encode_key(i), record)
    infos = [data for _, data in d._store.scan(txn, storage.OBJECTS, storage.CLASSES)]
    txn.commit()
    def work():
        with no_pickle(*infos): return _read_all(kind('scratch/d'), n)
    wrong = forked(work)
    assert not wrong, list(wrong)
