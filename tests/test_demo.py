"The demo as a user runs it: a process of its own, since it starts kernels and has an exit code"
import copy, os, re, subprocess, sys

import demo, kernels, pytest


def _run_demo():
    return subprocess.run([sys.executable, str(kernels.root/'tools/demo.py')], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=150)


def test_demo_runs_as_the_recipes_say():
    done = _run_demo()
    summary = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.fullmatch(r'demo: (\d+) of (\d+) cells as the recipes say, 2 notebooks, [\d.]+ s', summary)
    assert counts and counts[1] == counts[2] and int(counts[1]) >= 20, summary
    for shown in ('--- notebook 1', '--- notebook 2', 'bound symbol: mysum', 'status: finished',
                  'ValueError: assignment'):
        assert shown in done.stdout


class _Scripted:
    "Stands in for a kernel: returns the outputs it was given"
    def __init__(self, name, outputs): self.name,self.pid,self.outputs = name,os.getpid(),outputs

    def run(self, source): return self.outputs[source]


def _scripted(outputs): return [_Scripted(f'notebook {i}', outputs) for i in (1, 2)]

def _stored(path): return {cell.source: cell.outputs for cell in kernels.demo_cells(kernels.read(path))}


@pytest.mark.parametrize('path', kernels.tutorials, ids=lambda path: path.stem)
def test_demo_accepts_what_is_stored(path):
    n, problems = demo.run_tutorial(path, _scripted(_stored(path)), say=lambda _: None)
    assert n and not problems


@pytest.mark.parametrize('path', kernels.tutorials, ids=lambda path: path.stem)
def test_demo_notices_each_missing_output(path):
    stored = _stored(path)
    for source in [o for o, outputs in stored.items() if outputs]:
        _, problems = demo.run_tutorial(path, _scripted({**stored, source: []}), say=lambda _: None)
        assert problems, source


def test_demo_notices_a_call_that_ran_in_a_notebook():
    stored = copy.deepcopy(_stored(kernels.tutorials[0]))
    for outputs in stored.values():
        for o in outputs:
            shown = ''.join(o.get('text', ''))
            if 'pid:' in shown: o['text'] = re.sub(r'pid: \d+', f'pid: {os.getpid()}', shown)
    _, problems = demo.run_tutorial(kernels.tutorials[0], _scripted(stored), say=lambda _: None)
    assert any('is a notebook, not a worker' in o for o in problems)
