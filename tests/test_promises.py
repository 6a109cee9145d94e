"The promises name the tests that show them"
import json, re
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
_notebook = json.loads((root/'nbs/explanations/promises.ipynb').read_text())
_text = '\n'.join(''.join(cell['source']) for cell in _notebook['cells'])
_named = sorted(set(re.findall(r'`([\w/]*test_\w+\.py)(?:::(test_\w+))?`', _text)))


@pytest.mark.parametrize(['file', 'test'], _named, ids=lambda o: o or 'all')
def test_promise_is_shown_by_a_test_that_exists(file, test):
    code = (root/'tests'/file).read_text()
    assert re.search(rf'^ *(async )?def {test or "test_"}', code, re.M), f'{file} has no {test}'


def test_every_line_names_a_test():
    rows = [line for line in _text.splitlines() if line.startswith('|') and not line.startswith(('|---', '| promise', '| what happens'))]
    assert len(rows) > 20 and not [row for row in rows if 'test_' not in row]
