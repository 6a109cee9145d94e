"""What one Python stores, read by another: values of the standard library, and what is refused.

Runs over the Pythons that are to be had: `PARKIT_OTHER_PYTHON`, `python3.10` and so on in the path, and those of pyenv. They need nothing installed:
parkit's codecs alone, without LMDB, are loaded in them."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest
from helpers import root

_values = r'''
pathlib.PurePosixPath('/a/b') | pathlib.PosixPath('/a/b') | pathlib.PureWindowsPath('a/b') | [pathlib.Path('a'), {'p': pathlib.Path('.')}] | {pathlib.Path('a'): 1}
pathlib.Path | pathlib.PurePath | decimal.Decimal('1.5') | decimal.Context(prec=5) | fractions.Fraction(1, 3) | datetime.date(2024, 1, 2) | datetime.timedelta(1, 2, 3)
datetime.datetime(2024, 1, 2, 3, 4, 5, 6, fold=1) | datetime.datetime(2024, 1, 2, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')) | datetime.time(1, tzinfo=datetime.timezone.utc)
datetime.timezone(datetime.timedelta(hours=1), 'x') | zoneinfo.ZoneInfo('UTC') | uuid.UUID(int=5) | uuid.SafeUUID.safe | collections.OrderedDict(a=1)
collections.deque([1], 3) | collections.Counter('aab') | collections.defaultdict(list, a=[1]) | collections.ChainMap({1: 2}) | collections.UserDict(a=1) | range(3)
slice(1, 2) | types.SimpleNamespace(a=1) | array.array('d', [1.0]) | ipaddress.ip_address('1.2.3.4') | ipaddress.ip_network('::/64') | re.compile('a+', re.I)
re.IGNORECASE | re.IGNORECASE | re.MULTILINE | http.HTTPStatus.OK | signal.SIGTERM | socket.AF_INET | time.gmtime(0) | os.terminal_size((80, 25)) | ssl.TLSVersion.TLSv1_2
urllib.parse.urlsplit('http://a/b?c#d') | email.message_from_string('a: b\n\nc') | inspect.Parameter('a', inspect.Parameter.KEYWORD_ONLY, annotation=int)
inspect.signature(inspect.cleandoc) | functools.partial(int, base=2) | operator.itemgetter(1) | operator.attrgetter('a.b') | list[int] | typing.Optional[int]
typing.Literal['a'] | typing.List[int] | collections.abc.Callable[[int], str] | random.Random(1) | statistics.NormalDist(1, 2) | string.Template('$a') | calendar.MONDAY
calendar.Calendar() | xml.etree.ElementTree.fromstring('<a b="1"/>') | logging.LogRecord('a', 10, 'p', 1, 'm', (), None) | subprocess.CompletedProcess(['a'], 1)
platform.uname() | argparse.Namespace(a=1) | textwrap.TextWrapper(10) | tarfile.TarInfo('x') | io.StringIO('abc') | io.BytesIO(b'abc') | iter([1, 2])
OSError(2, 'x', 'f') | UnicodeDecodeError('utf-8', b'x', 0, 1, 'r') | SyntaxError('x', ('f', 1, 2, 'l')) | ImportError('x', name='n') | KeyError('x')
json.JSONDecodeError('m', 'd', 0) | subprocess.TimeoutExpired('a', 1) | sqlite3.OperationalError('x') | struct.error('x') | re.error('x', 'p', 1) | shutil.Error('x')
ssl.SSLError(1, 'x') | socket.gaierror(1, 'x') | queue.Empty() | asyncio.IncompleteReadError(b'x', 5) | concurrent.futures.CancelledError() | zipfile.Path | dict | len
'''
VALUES = [v.strip() for line in _values.strip().splitlines() for v in line.split(' | ')]

_program = r'''
import json, importlib, sys, types
package = types.ModuleType('parkit')
package.__path__ = [sys.argv[1] + '/parkit']
sys.modules['parkit'] = package
from parkit.codecs import DecodeError, decode, encode
names = {m.split('.')[0]: importlib.import_module(m) for m in sys.argv[3].split()}
for m in sys.argv[3].split(): names[m.split('.')[0]] = sys.modules[m.split('.')[0]]
def write(values):
    record = lambda v: encode(v) if isinstance(encode(v), bytes) else encode(v).join()
    return {v: record(eval(v, names)).hex() for v in values}
def read(records):
    found = {}
    for v, record in records.items():
        try: made = decode(bytes.fromhex(record))
        except BaseException as e: found[v] = f'{type(e).__name__}: {e}'
        else:
            if repr(made).startswith('<') or 'Error' in v or v.startswith(('calendar', 're.')): continue
            if repr(made) != repr(eval(v, names)): found[v] = repr(made)
    return found
print(json.dumps((write if sys.argv[2] == 'write' else read)(json.load(sys.stdin))))
'''


def pythons():
    "The interpreters to be had, by version"
    named = [os.environ.get('PARKIT_OTHER_PYTHON', ''), *(shutil.which(f'python3.{n}') or '' for n in range(10, 17)), sys.executable]
    named += map(str, Path(os.environ.get('PYENV_ROOT', Path.home()/'.pyenv'), 'versions').glob('3.1?.*/bin/python'))
    found = {}
    for path in filter(os.path.exists, named):
        done = subprocess.run([path, '-c', 'import sys, sqlite3, ssl; print(*sys.version_info[:2])'], capture_output=True, text=True)
        if done.returncode == 0 and (version := tuple(map(int, done.stdout.split()))) >= (3, 10): found[version] = path
    return dict(sorted(found.items()))

def _run(python, what, given):
    modules = 'argparse array asyncio calendar collections collections.abc concurrent.futures datetime decimal email fractions functools http inspect io ipaddress ' \
              'json logging operator os pathlib platform queue random re shutil signal socket sqlite3 ssl statistics string struct subprocess tarfile textwrap time ' \
              'types typing urllib.parse uuid xml.etree.ElementTree zipfile zoneinfo'
    done = subprocess.run([python, '-c', _program, str(root), what, modules], input=json.dumps(given), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f'{python}:\n{done.stderr}'
    return json.loads(done.stdout)


@pytest.mark.timeout(400)
def test_values_of_the_standard_library_are_read_by_every_python():
    found = pythons()
    if len(found) < 2: pytest.skip('there is one Python here only')
    written = {version: _run(path, 'write', VALUES) for version, path in found.items()}
    unread = {f'{a} -> {b}': _run(path, 'read', written[a]) for a in found for b, path in found.items()}
    assert {k: v for k, v in unread.items() if v} == {}


def test_path_as_python_313_has_stored_it():
    "Whichever Python this is"
    from pathlib import PosixPath
    from parkit.codecs import DecodeError, decode
    stored = b'\x80\x05\x95\x2c\x00\x00\x00\x00\x00\x00\x00\x8c\x0epathlib._local\x94\x8c\tPosixPath\x94\x93\x94\x8c\x01/\x94\x8c\x01a\x94\x86\x94R\x94.'
    assert decode(stored) == PosixPath('/a') and type(decode(stored)) is PosixPath
    for missing in (b'pathlib._nothing\nNothing', b'pathlib\nNothing', b'no_such_package.pathlib\nPath'):
        with pytest.raises(DecodeError, match='othing|no_such'): decode(b'\x80\x05c' + missing + b'\n.')
