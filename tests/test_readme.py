"README.md and CONTRIBUTING.md are what notebooks make"
import os, re, subprocess, sys

import pytest, readme


@pytest.mark.parametrize(['name', 'notebook'], readme.made.items())
def test_file_is_in_step(name, notebook):
    built = readme.build(readme.root/'nbs'/notebook)
    assert (readme.root/name).read_text(encoding='utf-8') == built, 'run `make readme`'
    for link in re.findall(r'\]\((?![a-z]+:|#)([^)#\s]+)', built): assert (readme.root/link).exists(), link


def test_two_builds_are_equal(): assert readme.build() == readme.build()


def test_readme_opens_with_the_purpose_and_the_commands():
    built = readme.build()
    parts = ['\n# parkit\n', 'Two notebooks', 'pip install .', 'make demo', 'make test', 'pk.Dict']
    places = [built.index(o) for o in parts]
    assert places == sorted(places)


_block = re.compile(r'^```python\n(.*?)^```$', re.DOTALL | re.MULTILINE)

def _pasted(blocks, site):
    "What a plain `python` prompt says of blocks that are pasted into it, line by line, each followed by Enter"
    env = {**os.environ, 'PARKIT_SITE': str(site), 'PYTHONPATH': str(readme.root), 'PYTHON_BASIC_REPL': '1'}
    lines = '\n\n'.join([*blocks, 'pk.Pool().stop()', 'print("to the end")', ''])
    return subprocess.run([sys.executable, '-i', '-q'], input=lines, capture_output=True, text=True, env=env, timeout=120)

def test_blocks_can_be_pasted_into_the_plain_prompt(tmp_path):
    blocks = _block.findall((readme.root/'README.md').read_text(encoding='utf-8'))
    done = _pasted(blocks, tmp_path/'site')
    assert len(blocks) > 8 and 'Error' not in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == 'to the end' and "{'coffee': 3.0, 'tea': 2.5}" in done.stdout and '1000.0 0.0' in done.stdout

def test_prompt_notices_a_block_that_cannot_be_pasted(tmp_path):
    for block in ('for n in (1, 2): print(n)\nprint(3)', 'def f():\n    a = 1\n\n    return a\n'):
        done = _pasted(['import parkit as pk', block], tmp_path/'site')
        assert 'SyntaxError' in done.stderr or 'IndentationError' in done.stderr, block
