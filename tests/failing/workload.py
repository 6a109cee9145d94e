"""Operations on a site, during each of which the n-th call of one of the system's functions fails, for all n: run with `failing.c` preloaded.

    workload.py FOLDER FUNCTION MODE"""
import ctypes, errno, json, os, sys, traceback

import numpy as np

import parkit as pk

library = ctypes.CDLL(None)
library.fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
library.left.restype = ctypes.c_long

folder, function, mode = sys.argv[1:]
names = {}

def fail(n): library.fail(names.setdefault(function, function.encode()), n, errno.EIO, mode == 'lost', mode == 'broken')

MOST = 60  # what could not be removed is left to the next, which has one more to remove
BIG = np.arange(1000)  # more than the site's inline limit

class Site:
    "A site, and what the operations use of it"
    def __init__(self, name):
        self.site = pk.Site(f'{folder}/{name}', inline_limit=4096)
        for namespace in 'ns': pk.Namespace(namespace, durable=namespace == 'n', site=self.site)
        self.d(), self.d('s'), self.a(), self.q(), self.open(pk.File, 'n/file')

    def open(self, kind, path): return kind(path, site=self.site)
    def d(self, namespace='n'): return self.open(pk.Dict, f'{namespace}/d')
    def a(self): return self.open(pk.Array, 'n/a')
    def q(self): return self.open(pk.Queue, 'n/q')

    def view(self):
        "All that is stored"
        found = {}
        for namespace in pk.namespaces(site=self.site):
            for o in pk.Namespace(namespace, site=self.site):
                if isinstance(o, pk.Dict): found[o.path] = {str(k): np.asarray(v).tolist() for k, v in o.items()}
                elif isinstance(o, pk.Array): found[o.path] = [np.asarray(v).tolist() for v in o]
                elif isinstance(o, pk.Queue): found[o.path] = o.qsize()
                elif isinstance(o, pk.File): found[o.path] = bytes(o.content).decode()
        return found

def several(site, i):
    d = site.d()
    with pk.transaction(d):
        d['big', i] = BIG + i
        d['small'] = i
        site.a().append(BIG)
        with pk.transaction(d): d['inner'] = BIG - i

def write_file(site, i):
    with site.open(pk.File, 'n/file').open('w') as file: file.write('x'*(5000 + i))

def closed(site, i):
    site.site.close()
    site.d()['k'] = i

OPERATIONS = dict(
    set=lambda site, i: site.d().__setitem__('k', i),
    set_scratch=lambda site, i: site.d('s').__setitem__('k', BIG + i),
    set_big=lambda site, i: site.d().__setitem__('big', BIG + i),
    several=several,
    delete=lambda site, i: site.d().pop(('big', i), None) is None or site.d().clear(),
    append=lambda site, i: site.a().extend([i, BIG + i]),
    shorten=lambda site, i: site.a().pop(),
    put=lambda site, i: site.q().put([i, BIG]),
    get=lambda site, i: site.q().get(block=False),
    make=lambda site, i: site.open(pk.Dict, f'n/made {i}'),
    drop=lambda site, i: site.open(pk.Dict, f'n/made {i}').drop(),
    namespace=lambda site, i: pk.Namespace(f'new{i}/below', site=site.site),
    drop_namespace=lambda site, i: pk.Namespace(f'new{i}/below', site=site.site).drop(),
    copy_namespace=lambda site, i: pk.Namespace('n', site=site.site).copy(f'copy{i}'),
    compact=lambda site, i: pk.compact(site.d()),
    gc=lambda site, i: (pk.set_site(site.site), pk.gc()),
    file=write_file,
    closed=closed,
)
FIRST = dict(delete=lambda site, i: site.d().__setitem__(('big', i), BIG), shorten=lambda site, i: site.a().extend([BIG, BIG]),
             get=lambda site, i: site.q().put(BIG), drop=lambda site, i: site.open(pk.Dict, f'n/made {i}').update(a=BIG, b=1),
             drop_namespace=lambda site, i: pk.Dict(f'new{i}/below/d', site=site.site).update(a=BIG),
             several=lambda site, i: site.d().clear(), append=lambda site, i: site.a().clear(),
             copy_namespace=lambda site, i: i and f'copy{i - 1}' in pk.namespaces(site=site.site) and pk.Namespace(f'copy{i - 1}', site=site.site).drop())

def attempt(name, site, i, n):
    "Do an operation whose `n`-th call fails; return whether it failed, or succeeded all the same, and the error"
    fail(n)
    try:
        OPERATIONS[name](site, i)
        error = None
    except Exception as e: error = e
    finally:
        left = library.left()
        fail(0)
    return left == 0, error

def run(name, one, two):
    "An operation, on two sites of the same content: on one of them each of its calls fails in turn"
    said, n = [], 0
    while True:
        n += 1
        if name in FIRST:
            for site in (one, two): FIRST[name](site, n)
        old = one.view()
        assert old == two.view(), (name, n, 'not the same to begin with')
        OPERATIONS[name](two, n)
        new = two.view()
        failed, error = attempt(name, one, n, n)
        try: now = one.view()
        except Exception as e:
            said.append((name, n, f'cannot be read after {error!r}: {e!r}'))
            return said
        if now not in (old, new): said.append((name, n, f'half of it after {error!r}'))
        elif error is None and now != new: said.append((name, n, 'nothing was done, and nothing said'))
        if error is not None and not isinstance(error, pk.ParkitError): said.append((name, n, 'raises ' + ''.join(traceback.format_exception(error))[-600:]))
        if error is not None and not failed: said.append((name, n, f'raises without a reason: {error!r}'))
        if now != new:
            try: OPERATIONS[name](one, n)
            except Exception as e:
                said.append((name, n, 'does not go on: ' + ''.join(traceback.format_exception(e))[-900:]))
                return said
            if one.view() != new: said.append((name, n, 'is not done when it is done again'))
        if not failed or n == MOST: return said

if __name__ == '__main__':
    one, two = Site('one'), Site('two')
    for name in OPERATIONS:
        said = run(name, one, two)
        problems = [str(p) for p in pk.set_site(one.site) and pk.check()]
        print(json.dumps([name, said, problems]), flush=True)
        if one.view() != two.view(): break
