"""Every tutorial, how-to and explanation runs from its first cell to its last, as Run All in Jupyter and `nbconvert --execute` run it.

One kernel has all the cells, a cell that raises ends the run unless its tag says that it must, and the site is the one that a user would have set."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest
from kernels import code_cells, read, root

import parkit as pk

pages = sorted(path for folder in ('tutorials', 'howto', 'explanations') for path in (root/'nbs'/folder).glob('*.ipynb'))


def _run_all(path, folder):
    "What `jupyter nbconvert --execute` says and makes of a notebook, with this interpreter's kernel and a site in `folder`"
    env = {**os.environ, **{name: str(folder/name.lower()) for name in ('PARKIT_SITE', 'IPYTHONDIR', 'JUPYTER_DATA_DIR', 'JUPYTER_CONFIG_DIR')},
           'PYDEVD_DISABLE_FILE_VALIDATION': '1', 'PYTHONPATH': os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')])}
    command = [sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--output-dir', folder, '--output', 'executed.ipynb', path]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    site = pk.Site(folder/'parkit_site')  # what the page has left running there
    pk.Pool(site=site).stop()
    site.close()
    return done, read(folder/'executed.ipynb')['cells'] if done.returncode == 0 else []

@pytest.mark.timeout(600)
@pytest.mark.parametrize('path', pages, ids=lambda path: path.stem)
def test_page_runs_to_its_end(path, tmp_path):
    if any('torch' in cell.directives for cell in code_cells(read(path))): pytest.importorskip('torch')
    done, cells = _run_all(path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or not source.strip(): continue
        raised = any(o['output_type'] == 'error' for o in cell['outputs'])
        assert cell['execution_count'] and raised == ('raises-exception' in cell['metadata'].get('tags', [])) == ('#| raises' in source), source


def test_cell_that_raises_without_the_tag_ends_the_run(tmp_path):
    def cell(source, **metadata): return dict(cell_type='code', id=f'c{len(source)}', metadata=metadata, execution_count=None, source=source, outputs=[])
    path = tmp_path/'page.ipynb'
    for tags in (['raises-exception'], []):
        path.write_text(json.dumps(dict(cells=[cell('1/0', tags=tags), cell('print("after")')], metadata={}, nbformat=4, nbformat_minor=5)))
        done, cells = _run_all(path, tmp_path)
        if tags: assert ''.join(cells[1]['outputs'][0]['text']) == 'after\n'
        else: assert done.returncode and 'ZeroDivisionError' in done.stderr


def test_tags_are_kept_when_notebooks_are_cleaned(tmp_path):
    "`nbdev_clean` drops what `settings.ini` does not name"
    path = tmp_path/'page.ipynb'
    shutil.copy(root/'nbs/tutorials/zero_copy_numpy.ipynb', path)
    subprocess.run([Path(sys.executable).with_name('nbdev_clean'), '--fname', path], cwd=root, check=True)
    assert [cell for cell in read(path)['cells'] if 'raises-exception' in cell['metadata'].get('tags', [])]
