"Cuts the power at many moments of a record, opens what is left in a process for each, and judges it"
import hashlib, json, os, random, select, shutil, signal, subprocess, sys, traceback
from pathlib import Path

from helpers import root
from power_loss import workload
from power_loss.disk import write_out


# --- in the processes that look

def _look(path):
    "What the site at `path` holds, found by opening it, and then by writing to it"
    import parkit as pk
    found = dict(seen=None, left=[], scratch=[])
    try: site = pk.Site(path, create=False)
    except pk.SiteError as e:
        if e.errno != 2 or os.path.exists(os.path.join(path, 'site.json')): raise
    else: found['seen'] = workload.observe(site)
    site = pk.set_site(path)
    names = [*map(str, pk.namespaces(site)), 'fresh']
    for n in names[:-1]:
        if not pk.Namespace(n, site=site).durable: found['scratch'] += [[o.path, workload.observed(o)] for o in pk.Namespace(n, site=site)]
    for again in range(2):
        for n in [*names, None]:
            small, big, d = bytes([again])*40, bytes([again])*300_000, pk.Dict(n and f'{n}/after')
            d['small'], d['big'] = small, big
            assert d['small'] == small and d['big'] == big
            del d
        site.close()
    if _left(site, names):
        pk.gc(site=site)  # what it leaves then is left for ever
        site.close()
        found['left'] = _left(site, names)
    now = {n: {k: v for k, v in o.items() if k != 'after'} for n, o in workload.observe(site).items()}
    before = {n: o for n, o in (found['seen'] or {}).items() if o}
    assert {n: o for n, o in now.items() if o} == before, f'writing changed what was there: {now} instead of {before}'
    site.close()
    return found

def _left(site, names):
    "Files that nobody needs"
    making, names = os.path.join(site.path, '_making'), [*names, '_anonymous']
    left = [f'process {id}' for id in os.listdir(site.alive.directory)] + (os.listdir(making) if os.path.exists(making) else [])
    left += [f'{n}: {o}' for n in names for o in workload.leftovers(site.store(n, True))]
    site.close()
    return left

def _serve(boot):
    import parkit  # once, not in each child
    from parkit import storage, system
    print(json.dumps('ready'), flush=True)
    for line in sys.stdin:
        path = json.loads(line)
        pipe, out = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(pipe)
            signal.alarm(60)
            if boot: storage._boot_id = system._boot_id = lambda: boot
            try: data = json.dumps(_look(path))
            except BaseException: data = json.dumps(dict(failed=traceback.format_exc()[-1500:]))
            with os.fdopen(out, 'w') as f: f.write(data)
            os._exit(0)
        os.close(out)
        with os.fdopen(pipe) as f: data = f.read()
        _, status = os.waitpid(pid, 0)
        print(data or json.dumps(dict(failed=f'the process that looked died: status {status}')), flush=True)


# --- in the process that judges

class Checker:
    "Starts the processes that look; on another boot of the machine, unless `boot` is empty"
    def __init__(self, folder, boot='another boot'):
        env = {**os.environ, 'PYTHONPATH': f'{root}{os.pathsep}{root/"tests"}', 'OPENBLAS_NUM_THREADS': '1'}
        self.folder, self.known, self.images = Path(folder), {}, 0
        self.process = subprocess.Popen([sys.executable, '-m', 'power_loss.check', boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert self._hear() == 'ready'

    def _hear(self):
        ready, _, _ = select.select([self.process.stdout], [], [], 90)
        assert ready, 'the process that looks at what is left has said nothing for 90 s'
        return json.loads(self.process.stdout.readline())

    def look(self, path):
        "What is found in the site at `path`"
        self.images += 1
        self.process.stdin.write(json.dumps(str(path)).encode() + b'\n')
        self.process.stdin.flush()
        return self._hear()

    def look_into(self, files, site):
        "What is found in the site at `site` among `files`; what was seen before is not opened again"
        h = hashlib.sha1()
        for path, content in files.items():
            h.update(f'{path}:{content if content is None else len(content)}\0'.encode())
            if content is not None: h.update(content)
        if h.digest() not in self.known:
            target = self.folder/'left'
            target.mkdir()
            try:
                write_out(files, target)
                self.known[h.digest()] = self.look(target/site)
            finally: shutil.rmtree(target)
        return self.known[h.digest()]

    def __enter__(self): return self
    def __exit__(self, *args):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout): pipe.close()


def loss(found, plan, done, begun):
    "What is wrong with what was found, or `None`"
    if 'failed' in found: return f'it cannot be used: {found["failed"]}'
    if found['scratch']: return f'scratch namespaces are not empty: {str(found["scratch"])[:1000]}'
    if plan.allows(found['seen'], done, begun): return None
    states = (str(plan.states[i] if i >= 0 else plan.start if i == -1 else None)[:1000] for i in (done, begun))
    return f'found was {str(found["seen"])[:1000]}, not {" or ".join(states)}'


class Result:
    "What came out: power losses, commits acknowledged before them, what was lost, and files left over"
    def __init__(self): self.points, self.commits, self.left, self.losses = 0, 0, [], []

    def add(self, done, found, why):
        self.points, self.commits = self.points + 1, self.commits + max(0, done + 1)
        self.left += found.get('left', [])
        if why: self.losses.append(why)

    def __repr__(self):
        return (f'{self.points} power losses, {self.commits} commits checked, {len(self.losses)} losses, {len(self.left)} files left over'
                + ''.join(f'\n{o}' for o in (*self.losses[:3], *self.left[:5])))


def campaign(checker, replay, plan, points, seed, first=False):
    """Cut the power `points` times, over all moments of a replay; `first` ends at the first loss.

    Half of them are kind: of what was not synced there is all or nothing. Half are not."""
    rng, moments, result = random.Random(seed), replay.moments(), Result()
    calm = [(m, w) for m in moments for w in replay.calm]
    chosen = rng.sample(calm, min(points//2, len(calm)))
    chosen += [(rng.choice(moments), replay.weather(rng)) for _ in range(points - len(chosen))]
    for (n, done, begun), weather in sorted(chosen, key=lambda c: c[0][0]):
        found = replay.cut(checker, n, rng, weather)
        why = loss(found, plan, done, begun)
        result.add(done, found, why and f'{replay.name(n)}, commit {done} done, {begun} begun, {weather}: {why}')
        if why and first: break
    return result


if __name__ == '__main__': _serve(sys.argv[1])
