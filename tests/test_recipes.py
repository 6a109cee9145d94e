"""The user's own two recipes, unchanged, in two live kernels.

They lie beside the checkout, not in it; `make demo` runs our retelling of them."""
import re
from dataclasses import dataclass
from textwrap import dedent, indent

import pytest
from jupyter_core.utils import ensure_event_loop
from kernels import normal, notebooks, root, text

recipes = root.parent/'shared/recipes.md'
pytestmark = pytest.mark.skipif(not recipes.exists(), reason=f'{recipes} is not here')


@pytest.fixture(scope='module', autouse=True)
def event_loop():
    "jupyter_client makes one for the whole process when first needed, and keeps it"
    ensure_event_loop()


@dataclass
class Block:
    "One cell of a recipe: its source, the output it shows, and the notebooks it runs in"
    source: str
    expected: str
    notebooks: tuple


def _expected(shown):
    "The output that the indented lines of `shown` hold; of an error the last line, as `kernels.text` gives it"
    lines = [line for line in shown.splitlines() if line.startswith('    ')]
    expected = dedent('\n'.join(lines)).strip('\n')
    is_error = 'Traceback (most recent call last)' in expected
    return expected.strip().splitlines()[-1] if is_error else expected

def _blocks(recipe):
    "The cells of `recipe`; a comment naming a notebook holds until the next, and cells before the first run in both"
    where, two = None, 'notebook 2' in recipe
    cells = re.findall(r'```python\n(.*?)\n```\n(.*?)(?=```python|\Z)', recipe, re.DOTALL)
    for source, shown in cells:
        if named := re.search(r'#.*\bnotebook ([12])\b', source): where = int(named[1])
        yield Block(source, _expected(shown), (where,) if where else (1, 2) if two else (1,))

def _recipes():
    whole = recipes.read_text(encoding='utf-8')
    return [list(_blocks(o)) for o in re.split(r'^## ', whole, flags=re.M)[1:]]


def test_recipes_are_read_whole():
    sharing, arrays = _recipes()
    assert [block.notebooks for block in sharing] == [(1, 2)]*2 + [(1,)]*2 + [(2,)]*3 + [(1,)] + [(2,)]*2
    assert [normal(block.expected).splitlines()[:1] for block in sharing if block.expected] == [
        ['15'], ['importing library math'], ['15'], ['AsyncTrace'], ['15']]
    assert [o.expected for o in arrays if o.expected][-1] == 'ValueError: assignment destination is read-only'
    assert recipes.read_text(encoding='utf-8').count('```python') == len(sharing) + len(arrays)


@pytest.mark.timeout(170)
def test_recipes_run_unchanged():
    with notebooks(2) as kernels:
        pids = {kernel.pid for kernel in kernels}
        for block in [o for recipe in _recipes() for o in recipe]:
            for number in block.notebooks:
                shown = text(kernels[number - 1].run(block.source))
                assert normal(shown) == normal(block.expected), f'notebook {number}:\n{indent(block.source, "    ")}'
                if pid := re.search(r'^pid: (\d+)$', shown, re.MULTILINE): assert int(pid[1]) not in pids
