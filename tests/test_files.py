"""`File`: real file objects over persistent bytes, that others see whole, old or new, whoever dies while writing.

What libraries make of a file object, and what other processes see of it, is more than a notebook can show."""
import contextlib, csv, gc, gzip, importlib, io, json, os, pickle, shutil, signal, sys, tarfile, threading, warnings, zipfile

import numpy as np, pytest

import parkit as pk
from conftest import wait_for
from helpers import Child, Fork, blobs, forked, run

MIB = 2**20


@pytest.fixture(scope='module', autouse=True)
def libraries():
    "What their first import opens, and how long it takes on a new checkout, is no matter of the first test"
    for name in ('pandas', 'pyarrow.feather', 'pyarrow.parquet'):
        with contextlib.suppress(ImportError): importlib.import_module(name)


@pytest.fixture
def f(site):
    "A `File` in a namespace where writing costs least"
    pk.Namespace('n', durable=False)
    return pk.File('n/f')

def _put(f, data, mode='wb'):
    with f.open(mode) as g: g.write(data)
    return f

def _real(tmp_path, name='real'): return tmp_path/name


# --- what others make of it

_frame = dict(a=np.arange(1000), b=np.arange(1000)/3, text=[f'text {i}' for i in range(1000)])

@pytest.mark.parametrize('format, read', [('parquet', 'rb'), ('feather', 'rb'), ('csv', 'r'), ('csv', 'rb'), ('json', 'rb'), ('pickle', 'rb')])
def test_pandas(f, format, read):
    pd = pytest.importorskip('pandas')
    if format in ('parquet', 'feather'): pytest.importorskip('pyarrow')
    frame = pd.DataFrame(_frame)
    options = dict(index=False) if format == 'csv' else {}
    with f.open(read.replace('r', 'w')) as g: getattr(frame, f'to_{format}')(g, **options)
    # pyarrow reads any object of Python in a thread that may outlive it and then aborts the process: 4 of 100 scripts did with a plain file
    end = 'site.close(); os._exit(0)' if format in ('parquet', 'feather') else ''
    code = f"import pandas as pd\nwith pk.File('n/f').open('{read}') as g: frame = pd.read_{format}(g)\n"
    assert run(f.site, code + "say([len(frame), int(frame['a'].sum()), frame['text'][999]])\n" + end) == [1000, 499_500, 'text 999']
    with f.open(read) as g: pd.testing.assert_frame_equal(getattr(pd, f'read_{format}')(g), frame)
    if format in ('parquet', 'feather'): pd.testing.assert_frame_equal(getattr(pd, f'read_{format}')(io.BytesIO(f.content), columns=['b']), frame[['b']])


def test_arrow_reads_the_content_where_it_lies(f):
    pa = pytest.importorskip('pyarrow')
    table = pa.table({'a': np.arange(10**6)})
    with f.open('wb') as g, pa.ipc.new_file(g, table.schema) as writer: writer.write_table(table)
    found = pa.ipc.open_file(pa.py_buffer(f.content)).read_all()
    assert found.equals(table) and any(f.site.path in path for path in _maps_of(found['a'].chunk(0).to_numpy()))


def test_numpy(f):
    array, other = np.arange(10**6).reshape(1000, 1000), np.linspace(0, 1, 7)
    with f.open('wb') as g: np.save(g, array)
    with f.open() as g: assert (np.load(g) == array).all()
    with f.open('wb') as g: np.savez(g, array=array, other=other)
    with f.open() as g, np.load(g) as found: assert (found['array'] == array).all() and (found['other'] == other).all()
    with f.open('wb') as g: np.savez_compressed(g, other=other)
    with f.open() as g, np.load(g) as found: assert (found['other'] == other).all()
    with f.open('w') as g: np.savetxt(g, other)
    with f.open('r') as g: assert np.allclose(np.loadtxt(g), other)
    with f.open('wb') as g:
        for _ in range(2): np.save(g, other)  # one after the other
    with f.open() as g: assert all((np.load(g) == other).all() for _ in range(2))
    with f.open('wb') as g: array.tofile(g)
    with f.open() as g: assert (np.fromfile(g, array.dtype, 10, offset=80) == range(10, 20)).all()
    assert (np.frombuffer(f.content, array.dtype).reshape(1000, 1000) == array).all()


def test_zip_archive(f):
    with f.open('wb') as g, zipfile.ZipFile(g, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/one', b'one'*1000)
        with archive.open('two', 'w') as member: member.write(b'two')
    with f.open('r+b') as g, zipfile.ZipFile(g, 'a') as archive: archive.writestr('three', 'three')
    with f.open() as g, zipfile.ZipFile(g) as archive:
        assert archive.namelist() == ['a/one', 'two', 'three'] and archive.testzip() is None and archive.read('a/one') == b'one'*1000
    with zipfile.ZipFile(io.BytesIO(f.content)) as archive: assert archive.read('three') == b'three'


@pytest.mark.parametrize('compression', ['', 'gz', 'xz'])
def test_tar_archive(f, compression, tmp_path):
    (tmp_path/'member').write_bytes(b'content'*1000)
    with f.open('wb') as g, tarfile.open(fileobj=g, mode=f'w:{compression}') as archive:
        archive.add(tmp_path/'member', 'member')
        archive.addfile(tarfile.TarInfo('empty'))
    with f.open() as g, tarfile.open(fileobj=g) as archive:
        assert archive.getnames() == ['member', 'empty'] and archive.extractfile('member').read() == b'content'*1000


@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_gzip_stream(f):
    "It takes the mode from that of the file object"
    with f.open('wb') as g, gzip.GzipFile(fileobj=g) as stream: stream.write(b'content'*1000)
    with f.open() as g, gzip.GzipFile(fileobj=g) as stream: assert stream.read() == b'content'*1000
    assert f.size < 1000


def test_pickle_and_json(f):
    value = dict(a=[1, 2.5, None], b='ü')
    with f.open('wb') as g:
        for i in range(3): pickle.dump((i, value), g)
    with f.open() as g: assert [pickle.load(g) for _ in range(3)] == [(i, value) for i in range(3)]
    with f.open('w') as g: json.dump(value, g, ensure_ascii=False)
    for mode in ('r', 'rb'):
        with f.open(mode) as g: assert json.load(g) == value
    assert json.loads(bytes(f.content)) == value


def test_csv(f):
    rows = [['a', 'with "quotes"'], ['several\nlines\r\n', 'ä']]
    with f.open('w', newline='') as g: csv.writer(g).writerows(rows)
    with f.open('r', newline='') as g: assert list(csv.reader(g)) == rows


def test_copyfileobj(f, tmp_path):
    data = os.urandom(3*MIB + 5)
    _real(tmp_path).write_bytes(data)
    with open(_real(tmp_path), 'rb') as source, f.open('wb') as target: shutil.copyfileobj(source, target)
    assert f.content == data
    with f.open() as source, open(_real(tmp_path, 'other'), 'wb') as target: shutil.copyfileobj(source, target, 1000)
    assert _real(tmp_path, 'other').read_bytes() == data
    with f.open() as source, _file(f, 'n/copy').open('wb') as target: shutil.copyfileobj(source, target)
    assert pk.File('n/copy').content == data

def _file(f, path): return pk.File(path, site=f.site)


# --- like a file of the system

_TEXTS = ['', 'one', 'one\ntwo\n', 'a\r\nb\rc\n', 'äöü €\n𝄞', 'x'*100_000 + '\n' + 'y']

@pytest.mark.parametrize('options', [
    {}, dict(newline=''), dict(newline='\n'), dict(newline='\r\n'), dict(newline='\r'), dict(encoding='utf-16'), dict(encoding='utf-8-sig'),
    dict(encoding='latin-1', errors='replace'), dict(encoding='ascii', errors='xmlcharrefreplace'), dict(encoding='utf-16-le', newline='\r\n'),
], ids=str)
def test_text_is_what_a_real_file_makes_of_it(f, tmp_path, options):
    "Bytes, lines, positions; written in parts, and appended to"
    real = _real(tmp_path)
    def both(mode, work):
        with f.open(mode, **options) as g: one = work(g)
        with open(real, mode, **({'encoding': 'utf-8'} | options)) as g: two = work(g)
        assert one == two
        return one
    def all_lines(g): return [(g.readline(), g.tell()) for _ in range(5)] + [g.seek(0), list(g), g.seek(0), g.read(3), g.read(), g.newlines]
    for text in _TEXTS:
        both('w', lambda g: (g.write(text[:3]), g.write(text[3:]), g.writelines(['a\n', 'b'])))
        assert f.content == real.read_bytes()
        if 'xmlcharrefreplace' not in str(options): both('r', all_lines)
        both('a', lambda g: (g.tell() > 0, g.write('more\n'), print('printed', 1, file=g)))
        assert f.content == real.read_bytes()
        both('r+', lambda g: (g.write('X'), g.flush(), g.seek(0, os.SEEK_END), g.write('end')))
        assert f.content == real.read_bytes()


def test_iteration_by_lines(f):
    with f.open('w') as g: g.writelines(f'line {i}\n' for i in range(1000))
    with f.open('r') as g: assert [line for line in g] == [f'line {i}\n' for i in range(1000)]
    with f.open() as g: assert next(g) == b'line 0\n' and g.readlines()[-1] == b'line 999\n'
    assert run(f.site, "with pk.File('n/f').open('r') as g: say(sum(1 for _ in g))") == 1000


def _play(g, random, steps):
    "Do random things with a binary file; returns what they returned"
    out = []
    for _ in range(steps):
        work = random.choice(['read', 'write', 'seek', 'tell', 'truncate', 'readline', 'readinto', 'flush', 'peek'])
        n = random.randrange(20_000)
        try:
            if work == 'read': out.append(g.read(random.choice([n, -1, 0])))
            elif work == 'write': out.append(g.write(bytes([random.randrange(256)])*n))
            elif work == 'seek': out.append(g.seek(*random.choice([(n, 0), (0, 1), (-min(n, 5), 2), (0, 2), (0, 0)])))
            elif work == 'truncate': out.append(g.truncate(random.choice([n, None])))
            elif work == 'readinto':
                buffer = bytearray(n)
                out.append((g.readinto(buffer), bytes(buffer)))
            elif work == 'peek': out.append(hasattr(g, 'peek'))
            elif work == 'readline': out.append(g.readline(n))
            else: out.append(getattr(g, work)())
        except (OSError, ValueError) as e: out.append((type(e).__name__, str(e)))
    return out

@pytest.mark.parametrize('mode', ['rb', 'r+b', 'wb', 'w+b', 'ab', 'a+b', 'xb', 'x+b'])
def test_binary_modes_do_what_those_of_a_real_file_do(f, tmp_path, mode):
    "Reading, writing, seeking and truncating, where they are allowed and where they are refused"
    from random import Random
    for seed in range(12):
        real, content = _real(tmp_path), b'some content\n'*1000*('x' not in mode and (mode == 'rb' or seed % 4 > 0))
        _put(f, content)
        if 'x' in mode: real.unlink(missing_ok=True)
        else: real.write_bytes(content)
        with f.open(mode) as g, open(real, mode, io.DEFAULT_BUFFER_SIZE) as h:
            for o in (g, h): assert isinstance(o, io.BufferedIOBase)
            assert [g.readable(), g.writable(), g.seekable(), g.isatty(), g.mode if content else 0, g.tell()] == \
                [h.readable(), h.writable(), h.seekable(), h.isatty(), h.mode if content else 0, h.tell()]
            assert _play(g, Random(seed), 25) == _play(h, Random(seed), 25)
        assert f.content == real.read_bytes() and f.size == len(f.content)


def test_append_writes_at_the_end_wherever_it_is(f):
    _put(f, b'old')
    with f.open('a+b') as g:
        assert g.seek(0) == 0 and g.read() == b'old'
        g.seek(0)
        g.write(b' new')
    assert f.content == b'old new'


@pytest.mark.parametrize('mode', ['', 'b', 'rw', 'z', 'rbt', 'r++', 'rr', 'U', 'wa', 'wxb'])
def test_mode_that_no_file_has(f, mode):
    with pytest.raises(ValueError): f.open(mode)
    if mode == 'U' and sys.version_info < (3, 11): return  # the builtin still takes it
    with pytest.raises(ValueError): open(os.devnull, mode)


def test_binary_file_takes_no_encoding(f):
    for options in (dict(encoding='utf-8'), dict(errors='strict'), dict(newline='')):
        with pytest.raises(ValueError): f.open('wb', **options)


@pytest.mark.parametrize('options', [dict(encoding='nonsense'), dict(newline='x')])
@pytest.mark.parametrize('mode', ['w', 'r', 'a'])
def test_text_that_cannot_be_opened_leaves_nothing(f, mode, options):
    _put(f, b'old')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises((LookupError, ValueError)): f.open(mode, **options)
        gc.collect()
    assert f.content == b'old' and len(blobs(f._store)) == 1


def _failure(work):
    with pytest.raises(ValueError) as e: work()
    return type(e.value), str(e.value)

def test_closed_file_refuses_work_as_any_does(f, tmp_path):
    _real(tmp_path).write_bytes(b'old')
    for mode in ('rb', 'wb', 'r+b', 'r', 'w', 'a'):
        _put(f, b'old')
        found = []
        for o in (f.open(mode), open(_real(tmp_path), mode)):
            o.close()
            o.close()
            works = o.read, lambda: o.write('' if 'b' not in mode else b''), o.tell, lambda: o.seek(0), o.fileno, o.flush, lambda: next(o), o.__enter__, o.truncate
            found.append([o.closed] + [_failure(work) for work in works])
        assert found[0] == found[1]


def test_detached_buffer_is_stored_when_that_is_closed(f):
    text = f.open('w')
    text.write('some')
    binary = text.detach()
    del text
    binary.write(b' more')
    binary.close()
    assert f.content == b'some more'


def test_descriptor_is_real(f):
    with f.open('wb') as g:
        os.write(g.fileno(), b'by the system')
        os.ftruncate(g.fileno(), 6)
    assert f.content == b'by the'
    with f.open() as g: assert os.pread(g.fileno(), 3, 3) == b'the'
    with pytest.raises(TypeError): os.fspath(f)
    assert not isinstance(f, os.PathLike)


@pytest.mark.parametrize('mode', ['rb', 'r'])
def test_empty_file_cannot_be_written_to_by_its_readers(f, mode):
    for _ in range(2):
        with f.open(mode) as g:
            assert not g.read() and not g.writable() and g.readable() and g.seek(0) == 0
            with pytest.raises(io.UnsupportedOperation): g.write(b'x' if mode == 'rb' else 'x')
        assert (f.size, bytes(f.content), len(blobs(f._store))) == (0, b'', 0)
        _put(f, b'')  # as if nothing had ever been written


def test_size_goes_from_nothing_to_something_and_back(f):
    versions = [f.version]
    for data in (b'', b'x', b'', b'y'*MIB, b''):
        _put(f, data)
        versions.append(f.version)
        assert f.content == data and f.size == len(data) and len(blobs(f._store)) == bool(data)
        assert str(len(data)) in repr(f)
    assert versions == sorted(set(versions))


def test_three_gibibytes(f):
    "Sparse, where the file system can"
    size = 3*2**30
    with f.open('wb') as g:
        g.seek(size - 4)
        g.write(b'last')
    assert f.size == size and bytes(f.content[-4:]) == b'last' and not any(f.content[:1000])
    with f.open() as g:
        g.seek(-4, os.SEEK_END)
        assert g.tell() == size - 4 and g.read() == b'last'
    assert run(f.site, "f = pk.File('n/f'); say([f.size, bytes(f.content[-4:]).decode()])") == [size, 'last']
    f.drop()
    assert not blobs(f._store)


# --- content without a copy

def _maps_of(array):
    "The files of this process's maps that `array` lies in"
    place = np.frombuffer(array, np.uint8).__array_interface__['data'][0]
    for line in open('/proc/self/maps'):
        span, *_, path = line.split(maxsplit=5)
        lo, hi = (int(o, 16) for o in span.split('-'))
        if lo <= place < hi: yield path.strip()

_measured = '''
def anonymous():
    lines = open('/proc/self/status').read().splitlines()
    return next(1024*int(line.split()[1]) for line in lines if line.startswith('RssAnon'))
f = pk.File('n/f')
f.content
before = anonymous()
views = [f.content for _ in range(100)]
total = int(np.frombuffer(views[-1], np.uint8).sum())  # touches every page
say([total, anonymous() - before, all(v.readonly for v in views)])
'''

def test_content_is_mapped_and_takes_no_memory(f):
    _put(f, b'\1'*(64*MIB))
    assert [path.startswith(f'{f.site.path}/n/@/blobs/') for path in _maps_of(f.content)] == [True]
    total, extra, readonly = run(f.site, _measured)
    assert total == 64*MIB and extra < 4*MIB and readonly
    for view in (f.content, f.content[:0], f.content.cast('B')):
        assert view.readonly
        with pytest.raises(TypeError): view[:1] = b'x'


@pytest.mark.parametrize('size', [10, 3*MIB])
def test_content_stays_right_whatever_happens(f, size):
    "To the file, its namespace, this process's files; in a child too"
    _put(f, b'1'*size)
    view, right = f.content, b'1'*size
    with f.open() as reader, pk.snapshot(f):
        old = f.content
        for change in (lambda: _put(f, b'2'*size, 'r+b'), lambda: _put(f, b'3'), lambda: _put(f, b'')):
            run_change = threading.Thread(target=change)  # outside this snapshot
            run_change.start()
            run_change.join()
            assert view == right == old == f.content and reader.seek(0) == 0 and reader.read() == right
            assert forked(lambda: view == right and reader.seek(0) == 0 and reader.read() == right)
    assert f.content == b''
    f.drop()
    assert view == right == old
    f = _put(pk.File('n/f'), b'4'*size)
    view4 = f.content
    pk.Namespace('n').drop()
    f.site.close()
    assert view == right and view4 == b'4'*size and forked(lambda: view == right)


def test_child_writes_what_its_parent_reads(f):
    _put(f, b'parent')
    view = f.content
    def child():
        _put(f, bytes(view) + b' and child', 'wb')
        return bytes(f.content)
    assert forked(child) == b'parent and child' == f.content and view == b'parent'


# --- whole, old or new

_replaces = '''
f, size = pk.File('n/f'), int(sys.argv[2])
say()
for i in range(250):
    data = bytes([i % 256])*(size + i)
    with f.open(('wb', 'r+b', 'w+b')[i % 3]) as g:
        for at in range(0, len(data), 1000): g.write(data[at:at + 1000])
        g.truncate()
say()
'''

@pytest.mark.parametrize('size', [100, 100_000])
def test_readers_see_the_old_or_the_new_content(f, size):
    _put(f, bytes([255])*(size - 1))
    seen = 0, 0
    with Child(f.site, _replaces, size) as writer:
        writer.hear()
        while writer.process.poll() is None:
            view = f.content
            with f.open() as g: read = g.read()
            for data in (view, read):
                assert len({*bytes(data)}) == 1 and (len(data) - size) % 256 == data[0], f'a mixture of {len({*bytes(data)})} contents'
            seen = seen[0] + 1, seen[1] + (view != read)
        writer.wait()
    assert f.size == size + 249 and seen[0] > 20
    _put(f, b'last')
    assert len(blobs(f._store)) == 1, 'what was read meanwhile goes with the next'


_dies = '''
f = pk.File(f'{sys.argv[2]}/f')
g = f.open(sys.argv[3])
g.write(b'new'*10**6)
g.flush()
say(f.size)
hear()
'''

@pytest.mark.parametrize('durable', [True, False])
@pytest.mark.parametrize('mode', ['wb', 'ab', 'r+b'])
def test_killed_writer_leaves_the_old_content(site, durable, mode):
    pk.Namespace('n', durable=durable)
    f = _put(pk.File('n/f'), b'old'*1000)
    before = blobs(f._store)
    site.close()
    with Child(site, _dies, 'n', mode) as child:
        assert child.hear() == 3000
        assert len(blobs(f._store)) == 2
        child.kill()
    assert f.content == b'old'*1000
    f.note = 'the first write sweeps'
    assert blobs(f._store) == before


_dies_often = '''
f = pk.File('n/f')
say()
for i in range(10**9):
    with f.open('wb') as g: g.write(b'%9d' % (i % 10)*30_000)
'''

def test_killed_writer_leaves_a_whole_content_at_any_moment(f):
    import random, time
    moments = random.Random(3)
    _put(f, b'%9d' % 0*30_000)
    def write_for_ever():
        f = pk.File('n/f')
        for i in range(10**9):
            with f.open('wb') as g: g.write(b'%9d' % (i % 10)*30_000)
    for _ in range(25):
        seen = f.version
        with Fork(write_for_ever) as writer:
            assert wait_for(lambda: f.version > seen, interval=0.001)
            time.sleep(moments.random()*0.003)  # not a wait: any moment will do
            writer.kill()
        data = bytes(f.content)
        assert len(data) == 270_000 and data == data[:9]*30_000
    f.site.close()
    _put(f, b'last')
    assert len(blobs(f._store)) == 1


def test_exception_leaves_the_old_content(f):
    _put(f, b'old')
    before = blobs(f._store)
    for mode, data in (('wb', b'new'), ('w', 'new'), ('r+b', b'new'), ('a', 'new')):
        for error in (KeyError, KeyboardInterrupt, SystemExit):
            with pytest.raises(error), f.open(mode) as g:
                g.write(data*100_000)
                raise error
            assert g.closed and f.content == b'old' and blobs(f._store) == before
    with pytest.raises(UnicodeEncodeError), f.open('w', encoding='ascii') as g:
        g.write('new')
        g.write('ü')
    with pytest.raises(TypeError), f.open('wb') as g: g.write('text')
    assert f.content == b'old' and blobs(f._store) == before


def test_transaction_that_is_rolled_back_leaves_the_old_content(f):
    _put(f, b'old')
    before, version = blobs(f._store), f.version
    with pytest.raises(KeyError), pk.transaction(f):
        _put(f, b'new')
        _put(f, b' more', 'ab')
        assert f.content == b'new more'
        with f.open() as g: assert g.read() == b'new more'
        raise KeyError
    assert f.content == b'old' and f.version == version and blobs(f._store) == before
    with pk.transaction(f):
        _put(f, b'outer')
        with pytest.raises(KeyError), pk.transaction(f):
            _put(f, b'inner', 'ab')
            raise KeyError
        assert f.content == b'outer'
    assert f.content == b'outer' and len(blobs(f._store)) == 1
    g = f.open('wb')
    g.write(b'closed in a snapshot')
    with pk.snapshot(f), pytest.raises(pk.TransactionError): g.close()
    assert g.closed and f.content == b'outer' and len(blobs(f._store)) == 1


def test_open_file_is_no_open_transaction(f):
    "Others write meanwhile; the last to close has the last word"
    with f.open('wb') as g:
        g.write(b'mine')
        run(f.site, "d = pk.Dict('n/d'); d['a'] = 1\nwith pk.File('n/f').open('wb') as g: g.write(b'theirs')\nsay()")
        assert f.content == b'theirs'
    assert f.content == b'mine'


@pytest.mark.parametrize('mode', ['ab', 'a', 'r+b', 'r+', 'a+b'])
def test_of_two_that_update_the_second_is_refused(f, mode):
    _put(f, b'old')
    binary = 'b' in mode
    g = f.open(mode)
    g.write(b'one' if binary else 'one')
    run(f.site, f"g = pk.File('n/f').open({mode!r}); g.write({b'two' if binary else 'two'!r}); g.close(); say()")
    other = bytes(f.content)
    with pytest.raises(pk.FileChangedError, match='changed by another'): g.close()
    assert g.closed and f.content == other and b'two' in other and b'one' not in other
    assert isinstance(pk.FileChangedError(), OSError) and len(blobs(f._store)) == 1
    with f.open(mode) as g: g.write(b'one' if binary else 'one')
    assert b'one' in bytes(f.content)


def test_of_two_that_update_an_empty_file_the_second_is_refused(f):
    one, two = f.open('ab'), f.open('ab')
    for g in (one, two): g.write(b'x')
    two.close()
    with pytest.raises(pk.FileChangedError): one.close()
    assert f.content == b'x'


def test_exclusive_creation(f):
    with f.open('xb') as g: g.write(b'first')
    for mode in ('xb', 'x', 'x+b'):
        with pytest.raises(FileExistsError): f.open(mode)
    _put(f, b'')
    one, two = f.open('x'), f.open('xb')
    one.write('one')
    two.write(b'two')
    one.close()
    with pytest.raises(OSError, match='another'): two.close()
    assert f.content == b'one'


# --- what becomes of an open file

@pytest.mark.parametrize('mode', ['wb', 'w', 'r+b', 'a'])
def test_forgotten_file_is_lost_with_a_warning(f, mode):
    _put(f, b'old')
    g = f.open(mode)
    g.write(b'new' if 'b' in mode else 'new')
    with pytest.warns(UserWarning, match='n/f.*not closed'):
        del g
        gc.collect()
    assert f.content == b'old' and len(blobs(f._store)) == 1


def test_reader_outlives_object_and_namespace(f):
    _put(f, b'one'*MIB)
    g, text, empty = f.open(), f.open('r'), pk.File('n/empty').open()
    f.drop()
    pk.Namespace('n').drop()
    assert g.read() == b'one'*MIB and text.read(6) == 'oneone' and empty.read() == b''
    for o in (g, text, empty): o.close()


@pytest.mark.parametrize('what', ['object', 'namespace', 'anew'])
@pytest.mark.parametrize('mode', ['wb', 'w', 'r+b', 'a'])
def test_writer_whose_file_is_dropped_is_told_so(f, what, mode):
    _put(f, b'old')
    g = f.open(mode)
    g.write(b'new' if 'b' in mode else 'new')
    if what == 'object': f.drop()
    else: run(f.site, "pk.Namespace('n').drop(); say()")
    if what == 'anew': _put(pk.File('n/f'), b'other')
    with pytest.raises(pk.ObjectNotFoundError): g.close()
    assert g.closed
    g.close()
    for work in (lambda: f.content, lambda: f.size, f.open, lambda: f.open('wb'), lambda: f.open('a')):
        with pytest.raises(pk.ObjectNotFoundError): work()
    assert not f.exists and 'dropped' in repr(f)
    if what == 'anew': assert pk.File('n/f').content == b'other' and len(blobs(pk.File('n/f')._store)) == 1


def test_writer_goes_on_when_the_site_was_closed(f):
    "Though others, who look for what the dead have left, then write"
    g = f.open('wb')
    g.write(b'some')
    f.site.close()
    run(f.site, "pk.Dict('n/d')['a'] = 1; say()")
    g.write(b' more')
    g.close()
    assert f.content == b'some more'
    f.site.close()


def test_writer_goes_on_in_a_namespace_that_is_compacted(f):
    _put(f, b'old')
    g = f.open('ab')
    run(f.site, "pk.compact('n'); say()")
    g.write(b' new')
    g.close()
    assert f.content == b'old new'
    prepared = f._store.prepare(pk.codecs.encode(np.ones(10**6)))
    run(f.site, "pk.compact('n'); say()")
    d = pk.Dict('n/d')
    with pk.transaction(d) as t: d._put(t._frame.txn, 'a', prepared)
    assert (d['a'] == 1).all() and len(blobs(f._store)) == 2


@pytest.mark.parametrize('how', ['close', 'forget'])
@pytest.mark.filterwarnings('ignore:.*not closed')
def test_open_file_is_the_parents(f, how):
    "A child that closes or frees it stores nothing, writes nothing into it, and takes nothing away"
    _put(f, b'old')
    held = [f.open('wb')]
    held[0].write(b'parent')
    def child():
        g = held.pop()
        if how == 'close':
            with pytest.raises(pk.TransactionError, match='parent'): g.close()
        del g
        gc.collect()
        return bytes(f.content)
    assert forked(child) == b'old'
    held[0].write(b' and more')
    held[0].close()
    assert f.content == b'parent and more' and len(blobs(f._store)) == 1


def test_anonymous_file_goes_with_its_last_reference(site):
    f = _put(pk.File(), b'x'*MIB)
    store, view = f._store, f.content
    with pytest.warns(UserWarning):
        g = f.open('wb')
        del f, g
    pk.Dict()['a'] = 1
    assert not blobs(store) and view == b'x'*MIB


def test_threads_write_files_of_their_own(f):
    files, errors = [pk.File(f'n/{i}') for i in range(6)], []
    def work(f, i):
        try:
            for n in range(20):
                with f.open('ab') as g: g.write(b'%d' % i*1000)
                assert f.size == 1000*(n + 1)
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=work, args=o) for o in zip(files, range(6))]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not errors and all(f.content == b'%d' % i*20_000 for i, f in enumerate(files))


_interrupted = '''
f = pk.File('n/f')
try:
    with f.open('wb') as g:
        while True: g.write(b'new'*1000) and say() if not g.tell() else g.write(b'new')
except KeyboardInterrupt: say([g.closed, bytes(f.content).decode(), len(os.listdir(f._store.path + '/new'))])
'''

def test_interrupted_writer_leaves_the_old_content(f):
    _put(f, b'old')
    with Child(f.site, _interrupted) as child:
        child.hear()
        child.signal(signal.SIGINT)
        assert child.hear() == [True, 'old', 0]
        child.wait()
