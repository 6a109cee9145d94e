"""Run both tutorials in two live notebooks, show every cell, and check what it prints.

Each cell runs in the kernel that its first comment names. Its output has to be the one stored in the tutorial, and,
in order, the outputs that the recipes promise (`promises` below) have to appear."""
import re, sys, time
from textwrap import indent

from kernels import demo_cells, normal, notebooks, read, terminated_cleanly, text, tutorials

_zeros = '\n'.join(['[[0. 0. 0. 0. 0. 0. 0. 0. 0. 0.]', *[' [0. 0. 0. 0. 0. 0. 0. 0. 0. 0.]']*8,
                    ' [0. 0. 0. 0. 0. 0. 0. 0. 0. 0.]]'])
_trace = 'AsyncTrace\ntask: task/mysum\nstatus: finished\npid: PID\nstart: TIME\nend: TIME'

promises = dict(
    sharing_libraries=[(1, '15'), (2, 'importing library math\nbound symbol: mysum'), (2, '15'),
                       (2, _trace), (2, '15')],
    zero_copy_numpy=[(1, '[1, 2, 3]'), (1, _zeros), (1, 'ValueError: assignment destination is read-only'),
                     (1, '[1. 1. 1. 1. 1. 1. 1. 1. 1. 1.]'), (1, '[1. 1. 1. 1. 1. 1. 1. 1. 1. 1.]')],
)


def wrong(cell, shown, pids):
    "What is wrong with `shown`, the output of `cell`, or None; `pids` are those that no worker can have"
    expected = normal(text(cell.outputs))
    if normal(shown) != expected: return f'the tutorial shows:\n{indent(expected or "(nothing)", "  ")}'
    if (pid := re.search(r'^pid: (\d+)$', shown, re.MULTILINE)) and int(pid[1]) in pids:
        return f'process {pid[1]} is a notebook, not a worker'


def run_tutorial(path, kernels, say=print):
    "Run the cells of the tutorial at `path`; returns how many ran and what went wrong"
    say(f'\n=== {path.stem}')
    cells, problems = demo_cells(read(path)), []
    pending = list(promises[path.stem])
    for cell in cells:
        kernel = kernels[cell.notebook - 1]
        shown = text(kernel.run(cell.source))
        say(f'\n--- {kernel.name}\n{cell.source}')
        if shown: say(indent(shown, '    '))
        if problem := wrong(cell, shown, [o.pid for o in kernels]):
            say(f'!!! not as expected: {problem}')
            problems.append(problem)
        if pending and pending[0] == (cell.notebook, normal(shown)): pending.pop(0)
    for number, promise in pending[:1]:
        say(f'!!! the recipe goes on, in notebook {number}, with:\n{indent(promise, "    ")}')
        problems.append(promise)
    return len(cells), problems


def main():
    "Run everything and return the exit code: 0 if every output was as the recipes say"
    began = time.monotonic()
    cells, problems = 0, []
    with terminated_cleanly(), notebooks(2, cwd=tutorials[0].parent) as kernels:
        for path in tutorials:
            n, wrong_here = run_tutorial(path, kernels)
            cells, problems = cells + n, problems + wrong_here
    good = max(cells - len(problems), 0)
    print(f'\ndemo: {good} of {cells} cells as the recipes say, {len(kernels)} notebooks, '
          f'{time.monotonic() - began:.1f} s')
    return 1 if problems or not cells else 0


if __name__ == '__main__': sys.exit(main())
