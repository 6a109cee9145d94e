"The documentation: every public name explained and shown, every link followed, every output there and stable"
import ast, inspect, json, re
from collections import Counter
from enum import Enum
from functools import cache
from pathlib import PurePosixPath

import parkit, pytest, showdoc
from bs4 import BeautifulSoup
from docs import contents
from kernels import code_cells, read, root, text
from notebooks import everything

notebooks = everything()
nbs = root/'nbs'
# of the layers above, though without an underscore
internal = {'Site.setting_up', 'Site.new_path', 'Site.sync_above', 'Site.prune', 'Site.places', 'Site.keep'}


# --- names

def public():
    "Each public name of parkit, and each public method of a public class, with what it names"
    for name in [*parkit.__all__, 'map']:  # which is no part of `import *`: it would hide Python's
        o = getattr(parkit, name)
        yield name, o
        if not inspect.isclass(o): continue
        for method, _, function in showdoc.methods(o): yield f'{name}.{method}', function
        for method in showdoc.patched(o):
            found = inspect.getattr_static(o, method)
            function = getattr(found, 'fget', None) or getattr(found, '__func__', found)
            if not method.startswith('_'): yield f'{name}.{method}', inspect.unwrap(function)

names = {name: o for name, o in public() if name not in internal}


def test_names_are_found():
    assert len(names) > 150 and {'Dict.get', 'Dict.range', 'task', 'AsyncTrace.cancel', 'Pool.resize'} <= names.keys()


def test_every_public_name_has_a_docstring():
    def own(o): return o.__doc__ if not inspect.isclass(o) or '__doc__' in vars(o) else None
    assert [name for name, o in names.items() if not (own(o) or '').strip()] == []


def _unexplained(o):
    "The parameters of `o` that neither a docment nor the docstring, in backticks, explains"
    if inspect.isclass(o):
        builtin = not inspect.isfunction(showdoc._constructor(o)) and not hasattr(o, '_fields')
        made_by_calls = o in (parkit.AsyncTrace, parkit.Schedule)
        if made_by_calls or builtin or issubclass(o, BaseException | Enum): return []
    try: parameters = inspect.signature(o).parameters.values()
    except ValueError: return []  # a subclass of str
    spans = ' '.join(re.findall('`([^`]+)`', o.__doc__ or ''))
    explained = {*showdoc.comments(o), *re.findall(r'\w+', spans), 'self', 'cls'}
    return [p.name for p in parameters if p.name not in explained and not p.name.startswith('_')]


def test_every_parameter_is_explained():
    missing = {name: found for name, o in names.items() if (found := _unexplained(o))}
    assert missing == {}, 'a comment behind each of these parameters says what it means (docments)'


def test_signatures_are_as_one_would_write_them():
    def shown(o, name): return showdoc._signature(o, name, 'class' if inspect.isclass(o) else 'def')
    assert shown(parkit.codecs.type_name, 'type_name') == 'def type_name(cls: type) -> str'
    assert shown(parkit.Frequency, 'Frequency').startswith('class Frequency(Enum):\n    Second = 1\n')
    assert 'frequency: Frequency = Frequency.Second,' in shown(parkit.Periodic, 'Periodic')
    assert shown(parkit.Dict.pop, 'Dict.pop') == 'def Dict.pop(key: K, default: Any = ...) -> Any'
    assert shown(parkit.tracing.Display, 'Display') == 'class Display(Protocol)'


def test_an_unexplained_parameter_is_noticed():
    def f(a,  # explained
          b, c=None): "Does `c`"
    assert _unexplained(f) == ['b']


@cache
def _examples():
    "The names that the cells of the documentation which run use: those that a reader sees, and all"
    seen, hidden = set(), set()
    for path in notebooks:
        for cell in code_cells(read(path)):
            if not cell.runs or any(o.startswith(('export', 'default_exp')) for o in cell.directives): continue
            source = re.sub(r'(?m)^\s*[%!].*', 'pass', cell.source)
            tree = compile(source, path.name, 'exec', ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            used = {o.id if isinstance(o, ast.Name) else o.attr for o in ast.walk(tree) if isinstance(o, ast.Name | ast.Attribute)}
            (hidden if 'hide' in cell.directives else seen).update(used)
    return seen, seen | hidden


def test_every_public_name_has_an_example_that_runs():
    _, used = _examples()
    assert [name for name in names if name.rpartition('.')[2] not in used] == [], 'no cell in nbs/ uses these'


# --- stored outputs

def _prints(cell):
    "Is it plain from its source that `cell` shows something?"
    if 'hide' in cell.directives or not cell.runs or re.search(r'(?m)^\s*[%!]', cell.source) or not cell.source.strip(): return False
    tree = compile(cell.source, 'cell', 'exec', ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    last = tree.body[-1] if tree.body else None
    shown = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call | ast.Await | ast.Yield | ast.Constant)
    return shown and not cell.source.rstrip().endswith(';') or any(
        isinstance(o, ast.Expr) and isinstance(o.value, ast.Call) and getattr(o.value.func, 'id', '') == 'print' for o in tree.body)


_unstable = {'a temporary path': r'/tmp/|/work/|/root/|/home/', 'an address': r'\b0x[0-9a-f]{6,}',
             'a time': r'\b20\d\d-\d\d-\d\d \d\d:\d\d:\d\d', 'a process id': r'(?i)\bpid:? \d+', 'a uuid': r'\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-',
             'the times of a bar': r'\[\d\d:\d\d<'}

@pytest.mark.parametrize('path', notebooks, ids=lambda o: o.stem)
def test_outputs_are_there_and_stable(path):
    for cell in code_cells(read(path)):
        assert cell.outputs or not _prints(cell), f'this cell prints and has no output; `make notebooks` stores it:\n{cell.source}'
        assert not any('display_id' in o for o in cell.outputs), f'the format of notebooks has no display_id:\n{cell.source}'
        shown = '' if 'hide' in cell.directives else text(cell.outputs)
        if shown.startswith('AsyncTrace\n'): continue  # the recipe prints it with pid and times
        found = [what for what, pattern in _unstable.items() if re.search(pattern, shown)]
        assert not found, f'the output holds {found}:\n{cell.source}\n{shown}'


# --- the built site

@pytest.fixture(scope='module')
def pages(built_site):
    return {str(o.relative_to(built_site)): BeautifulSoup(o.read_text(encoding='utf-8'), 'html.parser')
            for o in sorted(built_site.rglob('*.html'))}


def _resolved(page, href):
    parts = []
    for part in PurePosixPath(page).parent.joinpath(href).parts:
        if part == '..': parts.pop()
        else: parts.append(part)
    return '/'.join(parts)


def broken(pages, files):
    "The links of `pages` that lead nowhere; `files` are the paths that exist beside them"
    for page, soup in pages.items():
        for tag in soup.select('[href], [src]'):
            href = tag.get('href', tag.get('src'))
            if href.startswith('https://parkit.github.io'): yield f'{page}: {href} is not relative'
            if re.match(r'(https?|mailto|data):', href): continue
            target, _, anchor = href.partition('#')
            path = _resolved(page, target) if target else page
            if path not in files: yield f'{page}: there is no {href}'
            elif anchor and path in pages and not pages[path].find(id=anchor): yield f'{page}: {path} has no #{anchor}'


def test_no_link_is_broken(pages, built_site):
    files = {str(o.relative_to(built_site)) for o in built_site.rglob('*') if o.is_file()}
    assert len(pages) >= len(notebooks) and [*broken(pages, files)] == []


def test_a_broken_link_is_noticed():
    soup = BeautifulSoup('<a href="../b.html#x"></a><a href="c.html"></a><a href="https://parkit.github.io/parkit/b.html"></a><a href="#y">', 'html.parser')
    found = [*broken({'a/a.html': soup, 'b.html': BeautifulSoup('', 'html.parser')}, {'a/a.html', 'b.html'})]
    assert [o.partition(': ')[2] for o in found] == ['b.html has no #x', 'there is no c.html',
                                                     'https://parkit.github.io/parkit/b.html is not relative', 'a/a.html has no #y']


def test_no_page_shows_markup_or_addresses(pages):
    "A link that was put into code, or the address in memory of a default"
    for page, soup in pages.items():
        for tag in soup.select('main code, main p, main td, main li'):
            assert not re.search(r'\]\(\S*(//|\.html)| at 0x[0-9a-f]{6}', tag.get_text()), f'{page}: {tag.get_text()}'


def test_no_anchor_is_there_twice(pages):
    for page, soup in pages.items():
        twice = [id for id, n in Counter(o['id'] for o in soup.select('main [id]')).items() if n > 1]
        assert not twice, f'{page}: {twice}'


def test_every_notebook_is_in_the_sidebar(pages):
    listed = [o for found in contents().values() for o in found]
    assert {str(o.relative_to(nbs)) for o in notebooks} <= {*listed} and len(listed) == len({*listed})
    shown = {_resolved('index.html', o['href']) for o in pages['index.html'].select('#quarto-sidebar a')}
    assert shown == {*pages}


def test_public_names_have_an_anchor(pages):
    ids = {o['id'] for soup in pages.values() for o in soup.select('main [id]')}
    assert [name for name in names if name.lower() not in ids] == []


def test_names_in_the_text_lead_to_their_place(pages):
    links = {a.get_text(): a['href'] for a in pages['tutorials/background_work.html'].select('main p a:has(code)')}
    assert links['pk.map'] == '../notebook.html#map' and links['pk.track'] == '../progress.html#track'


def test_pages_are_there_as_markdown(pages, built_site):
    listed = re.findall(r'\]\((\S+)\)', (built_site/'llms.txt').read_text())
    assert {*listed} == {f'{o}.md' for o in pages}
    for page in pages:
        plain = (built_site/f'{page}.md').read_text()
        assert plain.startswith('# ') and not re.search(r'(?m)^:::|\{\.|^#\|', plain), page


def test_what_cells_print_is_on_the_pages(pages):
    shown = re.sub(r'\s+', ' ', pages['tutorials/zero_copy_numpy.html'].get_text())
    assert 'ValueError: assignment destination is read-only' in shown
    for path in notebooks:
        outputs = [o for cell in code_cells(read(path)) if 'hide' not in cell.directives for o in cell.outputs]
        page = next(o for o in pages if PurePosixPath(o).stem == re.sub(r'^\d+[a-z]*_', '', path.stem))
        if 'nbdev' in path.stem or not outputs: continue
        assert len(pages[page].select('.cell-output')) > 0, page


def test_search_knows_every_page(pages, built_site):
    records = json.loads((built_site/'search.js').read_text().partition('= ')[2])
    assert {o['href'].partition('#')[0] for o in records} == {*pages}
    assert any(o['title'] == 'Dict.range' for o in records)
