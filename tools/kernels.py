"Real Jupyter kernels on a site of their own, for the demo, for storing outputs and for the tests"
import json, os, re, shutil, signal, sys, tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

root = Path(__file__).resolve().parent.parent
tutorials = [root/'nbs/tutorials'/f'{name}.ipynb' for name in ('sharing_libraries', 'zero_copy_numpy')]


class _ThisPython(KernelSpecManager):
    "Knows one kernel: the interpreter that runs this, whatever kernels the user has installed"
    def get_kernel_spec(self, kernel_name):
        argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
        return KernelSpec(argv=argv, display_name=kernel_name, language='python')


def kernel_env(folder):
    "The environment of a kernel whose site and whose IPython profile lie in `folder`"
    env = dict(os.environ, PARKIT_SITE=str(folder/'site'), IPYTHONDIR=str(folder/'ipython'),
               PYDEVD_DISABLE_FILE_VALIDATION='1')
    try: distribution('parkit')
    except PackageNotFoundError: env['PYTHONPATH'] = os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')])
    return env


class Kernel:
    "One live kernel, called `name`, in the working directory `cwd`; further arguments are those of its process"
    def __init__(self, name, folder, cwd, **kwargs):
        self.name = name
        # sockets and connection file lie in `folder`: neither the network nor a home directory is needed
        self.manager = KernelManager(kernel_name=name, kernel_spec_manager=_ThisPython(), transport='ipc',
                                     connection_file=str(folder/f'{name.replace(" ", "-")}.json'))
        self.manager.start_kernel(env=kernel_env(folder), cwd=str(cwd), **kwargs)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.pid = int(text(self.run('import os; print(os.getpid())', store_history=False)))

    def run(self, source, timeout=60, store_history=True, look=lambda outputs: None):
        "Run one cell and return its outputs, in the notebook format; `look` is called with those that there are, whenever there is more"
        outputs = []
        def collect(message):
            _add_output(outputs, message['msg_type'], message['content'])
            look(outputs)
        try:
            self.client.execute_interactive(source, store_history=store_history, allow_stdin=False,
                                            timeout=timeout, output_hook=collect)
        except TimeoutError:
            raise TimeoutError(f'{self.name} has not finished this cell in {timeout} s:\n{source}') from None
        return outputs

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=not self.manager.is_alive())
        self.client.context.destroy(linger=0)


_overwritten = re.compile(r'[^\n]*\r(?=[^\n\r])')  # the earlier states of a progress bar

def _add_output(outputs, kind, content):
    if kind == 'stream':
        last = outputs[-1] if outputs else {}
        if last.get('name') != content['name']: outputs.append(last := dict(output_type=kind, name=content['name'], text=''))
        last['text'] = _overwritten.sub('', last['text'] + content['text'])
    elif kind in ('execute_result', 'display_data'):
        result = dict(output_type=kind, data=content['data'], metadata=content['metadata'])
        if kind == 'execute_result': result['execution_count'] = None
        place = content.get('transient', {}).get('display_id')
        if place is not None: result['display_id'] = place
        outputs.append(result)
    elif kind == 'update_display_data':
        for o in outputs:
            if o.get('display_id') == content['transient']['display_id']: o.update(data=content['data'], metadata=content['metadata'])
    elif kind == 'error':
        traceback = [_ansi.sub('', line).replace(f'{root}/', '') for line in content['traceback']]
        outputs.append(dict(output_type=kind, ename=content['ename'], evalue=content['evalue'], traceback=traceback))


@contextmanager
def notebooks(n=2, cwd=root):
    "`n` live kernels, 'notebook 1' to 'notebook n', on a new site; at the end all of it is stopped and removed"
    folder = Path(tempfile.mkdtemp(prefix='parkit-')).resolve()
    kernels = []
    try:
        for i in range(n): kernels.append(Kernel(f'notebook {i + 1}', folder, cwd))
        yield kernels
    finally:
        if kernels: _stop_pool(kernels[0])
        for kernel in kernels: kernel.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _stop_pool(kernel):
    # a kernel that hangs or has died cannot stop the pool; the supervisor leaves by itself when its site is gone
    with suppress(Exception):
        kernel.run("import sys\nif 'parkit' in sys.modules: sys.modules['parkit'].Pool().stop()",
                   timeout=20, store_history=False)


@contextmanager
def terminated_cleanly():
    "Let SIGTERM unwind the stack, so that kernels and sites are removed"
    def leave(signum, frame): sys.exit(128 + signum)
    before = signal.signal(signal.SIGTERM, leave)
    try: yield
    finally: signal.signal(signal.SIGTERM, before)


# --- cells

@dataclass
class Cell:
    "A code cell: its source without directives, the directives, and the notebook that a first comment names"
    raw: dict
    source: str = ''
    directives: set = field(default_factory=set)
    notebook: int = 0

    def __post_init__(self):
        lines = _text(self.raw['source']).splitlines()
        while lines and lines[0].lstrip().startswith('#|'):
            self.directives.add(' '.join(lines.pop(0).replace('#|', '').replace(':', ' ').split()))
        self.source = '\n'.join(lines)
        if named := re.match(r'#\s*notebook (\d+)', self.source): self.notebook = int(named[1])

    @property
    def outputs(self): return self.raw.get('outputs', [])

    @property
    def runs(self):
        "Is it run when outputs are stored? One that must raise is, though `nbdev_test` has to skip it"
        if 'nbdev_export(' in self.source: return False
        return 'eval false' not in self.directives or 'raises' in self.directives


def read(path): return json.loads(Path(path).read_text(encoding='utf-8'))

def code_cells(notebook):
    "The code cells of `notebook` that are not empty; `Cell.raw` is the part of `notebook` itself"
    return [Cell(o) for o in notebook['cells'] if o['cell_type'] == 'code' and o['source']]

def demo_cells(notebook):
    "The cells of a tutorial that a reader sees, each of which names its notebook"
    cells = [o for o in code_cells(notebook) if 'hide' not in o.directives and o.runs]
    for cell in cells:
        if not cell.notebook: raise ValueError(f"no '# notebook 1' or the like begins this cell:\n{cell.source}")
    return cells


# --- outputs as text, and as text that two runs have in common

_ansi = re.compile(r'\x1b\[[0-9;]*m')
_changing = [
    (r'(?m)^(\s*pid:) \d+$', r'\1 PID'),
    (r'(?m)^(\s*(?:start|end):) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?$', r'\1 TIME'),
    (r'\b0x[0-9a-fA-F]+\b', '0x'),
    (r'(?m)^.*\d+%\|[^|\n]*\| \d+/\d+.*$', ''),  # a bar, which is drawn as often as there is time for
]

def _text(lines): return lines if isinstance(lines, str) else ''.join(lines)

def text(outputs):
    "What `outputs` show as plain text, or as Markdown where that only names a type; of an error its last line"
    parts = []
    for o in outputs:
        kind = o['output_type']
        if kind == 'stream': parts.append(_text(o['text']))
        elif kind == 'error': parts.append(f'{o["ename"]}: {o["evalue"]}')
        elif (plain := _text(o['data'].get('text/plain', ''))).startswith('<IPython.'): parts.append(_text(o['data'].get('text/markdown', plain)))
        else: parts.append(plain)
    return '\n'.join(part.strip('\n') for part in parts if part.strip())

def normal(shown):
    "`shown` without what differs from run to run: process ids, times, addresses, blank lines and line ends"
    for pattern, replacement in _changing: shown = re.sub(pattern, replacement, _ansi.sub('', shown))
    return '\n'.join(line.rstrip() for line in shown.splitlines() if line.strip())
