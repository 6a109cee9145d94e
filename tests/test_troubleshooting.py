"Each message of an error or a warning of parkit, and its cure, is on the page `nbs/howto/troubleshooting.ipynb`"
import ast, builtins, json, re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

root = Path(__file__).resolve().parent.parent
_trees = {path.name: ast.parse(path.read_text()) for path in sorted((root/'parkit').rglob('*.py')) if path.name != '_modidx.py'}
_cells = json.loads((root/'nbs/howto/troubleshooting.ipynb').read_text())['cells']


def _plain(text: str) -> str: return re.sub(r'\s+', ' ', text.replace(r'\|', '|').replace('`', ''))


_lines = [line for cell in _cells if cell['cell_type'] == 'markdown' for line in ''.join(cell['source']).splitlines() if line.startswith('|')]
_rows = [[c.strip() for c in re.split(r'(?<!\\)\|', line)[1:-1]] for line in _lines]
_known = [_plain(row[0]) for row in _rows if row]


def _errors() -> set[str]:
    "The names of `ParkitError` and all classes that derive from it"
    bases = {node.name: {ast.unparse(b) for b in node.bases} for tree in _trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found = {'ParkitError'}
    while more := {name for name, of in bases.items() if of & found} - found: found |= more
    return found


_functions = defaultdict(list)
for _tree in _trees.values():
    for _node in ast.walk(_tree):
        if isinstance(_node, ast.FunctionDef): _functions[_node.name].append(_node)


def _fragments(e: ast.expr | None) -> Iterator[list[str]]:
    "For each message that an expression can be: its fixed parts"
    if isinstance(e, ast.Constant) and isinstance(e.value, str): yield re.split(r'\{[^}]*\}', e.value)
    elif isinstance(e, ast.JoinedStr): yield [str(v.value) for v in e.values if isinstance(v, ast.Constant)]
    elif isinstance(e, ast.IfExp): yield from (*_fragments(e.body), *_fragments(e.orelse))
    elif isinstance(e, ast.BinOp): yield [part for side in (e.left, e.right) for parts in _fragments(side) for part in parts]
    elif isinstance(e, ast.Call) and isinstance(e.func, ast.Attribute) and e.func.attr == 'format': yield from _fragments(e.func.value)
    elif isinstance(e, ast.Call) and isinstance(e.func, ast.Name):  # a function that makes the message
        for f in _functions[e.func.id]:
            for node in ast.walk(f):
                if isinstance(node, ast.Return): yield from _fragments(node.value)


def _said(tree: ast.Module, errors: set[str]) -> Iterator[ast.Call]:
    "The calls that make an error, also through a variable such as `kind` in `raise kind(...)`"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split('.')[-1] in errors: yield node
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            if node.exc.func.id.islower() and node.exc.func.id not in _functions and not hasattr(builtins, node.exc.func.id): yield node.exc


def _fits(parts: list[str], text: str) -> bool:
    "Whether a message of the page has all these fixed parts, in this order"
    return bool(re.search('.*'.join(re.escape(p) for p in parts), text))


def _messages() -> list[tuple[str, list[str]]]:
    "Where each message of an error or a warning is given, and its fixed parts"
    errors, found = _errors() | {'warn'}, []
    for name, tree in _trees.items():
        for call in _said(tree, errors):
            said = [[p for p in map(_plain, parts) if re.search('[a-z]', p)] for a in call.args[:2] for parts in _fragments(a)]
            found += [(f'{name}:{call.lineno}', [p.strip() for p in parts]) for parts in said if parts]
    return found


_all = _messages()


def test_messages_are_found():
    said = [' '.join(parts) for _, parts in _all]
    assert len(said) > 100
    for known in ('always lock namespaces in the same order', 'leave out create=False to make it', 'cannot use this directory as a site:', 'Make it inside the function'):
        assert [text for text in said if known in text], f'the messages found lack {known!r}'


def test_each_message_has_its_cure():
    lacking = [f'parkit/{where}: {" … ".join(parts)}' for where, parts in _all if not any(_fits(parts, text) for text in _known)]
    assert not lacking, 'nbs/howto/troubleshooting.ipynb has no row `message | what happened | what to do` for\n' + '\n'.join(lacking)


def test_every_row_says_what_to_do():
    assert len(_rows) > 100
    for row in _rows: assert len(row) == 3 and all(row), f'not `message | what happened | what to do`: {row}'
