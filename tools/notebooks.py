"""Run the notebooks of `nbs/`, each on a new site.

`test` runs `nbdev_test` over all of them, with a time limit. `save` executes them (or those named) in real kernels and
stores the outputs; an output that differs only in process ids, times or addresses is left as it was. `check` executes
them as well, and says which outputs are no longer those stored."""
import argparse, json, os, re, signal, subprocess, sys, tempfile, time
from pathlib import Path

from kernels import code_cells, demo_cells, normal, notebooks, read, root, terminated_cleanly, text


def _tool(name): return str(Path(sys.executable).with_name(name))


def test(seconds, workers):
    "Run `nbdev_test`; whatever it started is stopped after `seconds`. Returns the exit code"
    command = [_tool('nbdev_test'), '--n_workers', str(workers), '--do_print', '--timing']
    with tempfile.TemporaryDirectory(prefix='parkit-') as folder:
        env = dict(os.environ, PARKIT_SITE=str(Path(folder)/'site'))
        # a session of its own, so that the time limit and Ctrl-C reach the processes that run the notebooks too
        process = subprocess.Popen(command, cwd=root, env=env, start_new_session=True)
        try: return process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f'nbdev_test has not finished in {seconds} s; '
                  'a notebook that is Starting above but not Completed is the one', file=sys.stderr)
            return 124
        finally:
            if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def results(path, notebook):
    "Run the cells of `notebook` on a new site; yields each with its outputs and what is wrong with them, or None"
    cells = [o for o in code_cells(notebook) if o.runs]
    if not cells: return
    several = max(o.notebook for o in cells)  # 2 for a tutorial whose cells name the notebook they run in
    if several > 1: cells = demo_cells(notebook)
    with notebooks(max(several, 1), cwd=path.parent) as kernels:
        for cell in cells:
            outputs = kernels[max(cell.notebook, 1) - 1].run(cell.source, timeout=600)
            raised = any(o['output_type'] == 'error' for o in outputs)
            wrong = raised != ('raises' in cell.directives) and (text(outputs) if raised else 'did not raise')
            yield cell, outputs, f'{path.name}, in this cell: {wrong}\n{cell.source}' if wrong else None
            if raised and wrong: return


_bar = re.compile(r'(\d+%)\|[^|\n]*\| (\d+/\d+) \[[^]\n]*\]')

def _lined(output):
    "`output` with its texts in lines, as Jupyter stores them; of a bar, neither the place where it was shown nor its times"
    output = {k: v for k, v in output.items() if k != 'display_id'}
    if 'text' in output: return {**output, 'text': output['text'].splitlines(True)}
    if 'data' not in output: return output
    return {**output, 'data': {k: _bar.sub(r'\1|##########| \2', v).splitlines(True) if isinstance(v, str) and not k.startswith('image/p') else v
                               for k, v in output['data'].items()}}


def execute(path):
    "Execute the notebook at `path`, store its outputs, and return the errors that no cell announces"
    notebook, errors = read(path), []
    for cell, outputs, wrong in results(path, notebook):
        if wrong: errors.append(wrong)
        same = text(outputs) and normal(text(outputs)) == normal(text(cell.outputs))
        if not same or any('image/png' in o.get('data', {}) for o in outputs): cell.raw['outputs'] = [_lined(o) for o in outputs if o.get('text', 'x').strip()]
    if not errors: path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    return errors


def stale(path):
    "Execute the notebook at `path`, and return what differs from the outputs stored in it"
    found = []
    for cell, outputs, wrong in results(path, read(path)):
        # what goes to stderr, such as a progress bar, is drawn as often as there is time for
        stored, now = (normal(text([o for o in shown if o.get('name') != 'stderr'])) for shown in (cell.outputs, outputs))
        if wrong: found.append(wrong)
        elif stored != now and 'hide' not in cell.directives:
            found.append(f'{path.name}, this cell:\n{cell.source}\n--- prints now:\n{now}\n--- and not, as stored:\n{stored}')
    return found


def everything():
    "All notebooks of the documentation"
    return sorted(o for o in (root/'nbs').rglob('*.ipynb')
                  if not any(part.startswith(('_', '.')) for part in o.relative_to(root).parts))


def save(paths):
    "Execute and store the notebooks at `paths`, then clean them; returns the exit code"
    errors = []
    for path in paths:
        print('executing', path.relative_to(root), flush=True)
        errors += execute(path)
        # only this one: someone may be editing the others
        subprocess.run([_tool('nbdev_clean'), '--fname', str(path)], cwd=root, check=True)
    for error in errors: print(error, file=sys.stderr)
    return 1 if errors else 0


def check(paths):
    "Execute the notebooks at `paths`, and say which outputs are not those stored; returns the exit code"
    found = []
    for path in paths:
        start = time.monotonic()
        found += stale(path)
        print(f'{path.relative_to(root)}: {time.monotonic() - start:.0f} s', flush=True)
    for difference in found: print(difference, file=sys.stderr)
    return 1 if found else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('test')
    one.add_argument('--seconds', type=int, default=600, help='time limit for all notebooks together')
    one.add_argument('--workers', type=int, default=2, help='notebooks run at once')
    two = commands.add_parser('save')
    three = commands.add_parser('check')
    for o in (two, three):
        o.add_argument('paths', nargs='*', type=lambda o: Path(o).resolve(), help='notebooks (all unless given)')
    args = parser.parse_args()
    with terminated_cleanly():
        if args.command == 'test': return test(args.seconds, args.workers)
        if args.command == 'check': return check(args.paths or everything())
        return save(args.paths or everything())


if __name__ == '__main__': sys.exit(main())
