"""Processes do all they can do to shared objects while others are killed amid it; afterwards nothing may be lost, double, torn or left.

`PARKIT_TORTURE=600` goes on for as many seconds, in rounds of a minute at most, each with a new site;
`PARKIT_SEED=7` makes the same decisions again, though the kernel may mix the processes otherwise. The short pass always makes the
same ones; a longer one makes others each time."""
import ctypes, json, os, random, select, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import pytest

from conftest import holders, wait_for
from helpers import root
from journal import Journal, now

here, _libc = Path(__file__).resolve().parent, ctypes.CDLL(None)
SECONDS = float(os.environ.get('PARKIT_TORTURE', 15))
SEED = int(os.environ.get('PARKIT_SEED') or (time.time_ns() % 10**6 if 'PARKIT_TORTURE' in os.environ else 101))
PROCESSES, ROUND = 3, 60  # seconds
PATIENCE = 60             # seconds in which a process must get on, however busy the machine


def start(code, log, *args, **options):
    env = {**os.environ, 'PYTHONPATH': f'{root}{os.pathsep}{here}', 'OPENBLAS_NUM_THREADS': '1'}
    with open(log, 'a') as stderr: return subprocess.Popen([sys.executable, here/f'{code}.py', *map(str, args)], env=env, stderr=stderr, **options)


class Round:
    "A site, the processes that torture it, and the one who kills them"
    def __init__(self, folder, seed, seconds):
        self.site, self.journals, self.seed, self.seconds = folder/'site', folder/'journals', seed, seconds
        self.rng, self.generation, self.workers, self.done = random.Random(f'{seed}/killer'), [0]*PROCESSES, {}, Counter()
        self.problems = []
        self.journals.mkdir(parents=True)
        self.log = folder/'stderr'

    def start(self, slot):
        "The next process in this place"
        name = f'w{slot}.{self.generation[slot]}'
        self.generation[slot] += 1
        self.workers[slot] = name, start('torturer', self.log, self.site, self.journals, name, self.seed, self.deadline, pass_fds=[self.lifeline])

    def is_ready(self, slot): return (self.journals/self.workers[slot][0]).exists()

    def reap(self, slot, allowed):
        "Wait for the end of a process, and note when it came"
        name, process = self.workers.pop(slot)
        try: code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.hangs(name, process)
            code = process.wait()
        self.journal.write('reaped', 0, now(), name, code)
        if code not in allowed: self.problems.append(('crash', f'{name} has ended with {code}'))

    def hangs(self, name, process):
        "Have a process that does not get on say where it is, and end it"
        process.send_signal(signal.SIGUSR1)
        time.sleep(1)  # to write it down
        process.kill()
        self.problems.append(('hang', f'{name} does not get on; see stderr'))

    def kill(self, slot):
        self.workers[slot][1].kill()
        self.reap(slot, [-9])
        self.start(slot)

    def interrupt(self, slot): self.workers[slot][1].send_signal(signal.SIGINT)

    def retire(self, slot):
        self.workers[slot][1].terminate()
        self.reap(slot, [0])
        self.start(slot)

    def pause(self, slot):
        "The others must wait for one that sleeps amid a transaction"
        process = self.workers[slot][1]
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0, 0.3))
        process.send_signal(signal.SIGCONT)

    def run(self):
        assert start('torturer', self.log, self.site).wait(PATIENCE) == 0
        self.deadline, self.journal = now() + int(self.seconds*1e9), Journal(self.journals, 'driver.0')
        end, self.lifeline = os.pipe()
        self.adopt(True)
        try:
            for slot in range(PROCESSES): self.start(slot)
            while now() < self.deadline:
                time.sleep(self.rng.expovariate(4))  # any moment will do: it is the point
                slot, act = self.rng.randrange(PROCESSES), self.rng.choices([self.kill, self.interrupt, self.retire, self.pause], [4, 4, 1, 1])[0]
                if self.is_ready(slot) and now() < self.deadline:
                    act(slot)
                    self.done[act.__name__] += 1
                for slot in range(PROCESSES):
                    if self.workers[slot][1].poll() is not None and now() < self.deadline: self.reap(slot, [-9]); self.start(slot)
            for slot in range(PROCESSES): self.reap(slot, [0])
        finally:
            for name, process in self.workers.values(): process.kill(); process.wait()
            os.close(self.lifeline)  # the last who has it is gone when its other end can be read
            if not wait_for(lambda: select.select([end], [], [], 0)[0], PATIENCE): self.problems.append(('hang', 'forked children have not ended'))
            os.close(end)
            self.adopt(False)
            self.journal.close()

    def adopt(self, begin):
        "Be the one who learns how children have ended whose parent is dead"
        _libc.prctl(36, int(begin), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        for name in () if begin else os.listdir(self.journals):
            try: pid, status = os.waitpid(json.loads((self.journals/name).read_bytes().partition(b'\n')[0])[3]['pid'], os.WNOHANG)
            except (ChildProcessError, ValueError): continue
            if pid: self.journal.write('reaped', 0, now(), name, os.waitstatus_to_exitcode(status))

    def judge(self):
        "All problems there are, and what the journals count"
        judge = start('judge', self.log, self.site, self.journals, stdout=subprocess.PIPE)
        data, _ = judge.communicate()
        if judge.returncode: return dict(problems=self.problems + [('crash', 'the judge could not end; see stderr')], ops={}, losses=0, in_flight=0, forks=0, killed=0)
        report = json.loads(data)
        report['problems'] = self.problems + report['problems']
        if left := holders(self.site): report['problems'].append(('process', f'{left} still hold the site'))
        return report



@pytest.mark.timeout(3*SECONDS + 300)
def test_nothing_is_lost_double_torn_or_left(tmp_path, capsys):
    begun, ops, done, rest = time.monotonic(), Counter(), Counter(), Counter()
    seeds = range(SEED, SEED + max(1, round(SECONDS/ROUND)))
    for seed in seeds:
        r = Round(tmp_path/str(seed), seed, SECONDS/len(seeds))
        r.run()
        report = r.judge()
        ops.update(report.pop('ops'))
        done.update(r.done)
        problems = report.pop('problems')
        rest.update(report)
        if problems: break
    said = (f'torture: seed {SEED}, {len(seeds)} round(s), {time.monotonic() - begun:.0f} s: {sum(ops.values())} operations, {done["kill"]} processes killed, {rest["forks"]} forked '
            f'({rest["killed"]} killed), {done["interrupt"]} interrupted, {rest["in_flight"]} operations cut off; losses: {rest["losses"]}')
    with capsys.disabled(): print(f'\n{said}\n  {", ".join(f"{n} {name}" for name, n in ops.most_common())}')
    assert not problems, '\n'.join([said, f'to repeat it: PARKIT_SEED={seed} PARKIT_TORTURE={SECONDS/len(seeds):g} pytest {here.relative_to(root)}; what is left is in {tmp_path/str(seed)}',
                                    *(f'{kind}: {text}' for kind, text in problems[:20]), f'({len(problems)} problems)', r.log.read_text()[-8000:]])
