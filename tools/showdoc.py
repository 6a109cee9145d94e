"""How the API pages show a symbol: the processor that settings.ini puts in the place of nbdev's `exec_show_docs`.

nbdev's own runs the exported cells and the imports of a notebook, and then shows a class without its methods, though
its links point at them (`containers.html#dict.get`). This one runs nothing: it shows the symbol that the module
exports, and below a class its public methods, each with signature, docstring and a table of its docments."""
import ast, inspect, io, re, sys, textwrap, tokenize
from enum import Enum
from importlib import import_module
from pathlib import Path

from nbdev.doclinks import NbdevLookup, patch_name
from nbdev.process import Processor


_found = NbdevLookup.__getitem__

def _public(self, name): return _found(self, name.removeprefix('pk.'))

NbdevLookup.__getitem__ = _public  # `pk.map` in a text leads where `map` does


class show_docs(Processor):
    "Give the `show_doc` cells of a notebook their outputs"
    def begin(self):
        found = re.search(r'#\| *default_exp +(\w+)', Path(self.nb.path_).read_text(encoding='utf-8'))
        self.seen = set()  # nbdev asks for a function with overloads once for each of them
        self.module = import_module('parkit' if found[1] == '__init__' else f'parkit.{found[1]}') if found else None

    def cell(self, cell):
        shown = cell.cell_type == 'code' and re.search(r'^show_doc\(([\w.]+)', cell.source or '', re.MULTILINE)
        if not shown: return
        cell.outputs = []
        if shown[1] in self.seen: return
        self.seen.add(shown[1])
        found = self.module
        for part in shown[1].split('.'): found = inspect.getattr_static(found, part)
        text = NbdevLookup().linkify(entry(_function(found), shown[1]))
        cell.outputs = [dict(output_type='display_data', metadata={}, data={'text/markdown': text.splitlines(True)})]


def _function(found): return inspect.unwrap(getattr(found, 'fget', None) or getattr(found, '__func__', found))


def _bases(cls):
    "The public classes of the library that `cls` derives from directly, its private bases passed over"
    return [o for b in cls.__bases__ for o in ([b] if not b.__name__.startswith('_') else _bases(b))
            if o.__module__.startswith('parkit')]

def _body(cls):
    "The names that the body of `cls` and of private bases which no public base has define, in their order"
    names, theirs = {}, {o for base in _bases(cls) for o in base.__mro__}
    for base in cls.__mro__:
        if base in theirs or not base.__module__.startswith('parkit'): continue
        tree = ast.parse(inspect.getsource(sys.modules[base.__module__]))
        here = [o for o in tree.body if isinstance(o, ast.ClassDef) and o.name == base.__name__]
        functions = (o for node in here for o in node.body if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)))
        for node in functions: names.setdefault(node.name, base)
    return names


def patched(cls):
    "The names that `@patch` adds to `cls`: each has an entry of its own on the page"
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    names = [o for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
             for o in (patch_name(node) or ())]
    return {o.partition('.')[2] for o in names if o.startswith(f'{cls.__name__}.')}


def methods(cls):
    "The public methods and properties of `cls` that its page shows: pairs of name and function"
    for name in _body(cls):
        found = inspect.getattr_static(cls, name)
        function = getattr(found, 'fget', None) or getattr(found, '__func__', None) or found
        if not name.startswith('_') and name not in patched(cls) and inspect.isfunction(inspect.unwrap(function)):
            yield name, found, inspect.unwrap(function)


def _parameter(p):
    "A parameter as its source has it"
    text = str(p.replace(annotation=p.empty, default=p.empty))
    if p.annotation is not p.empty: text += f': {_written(p.annotation)}'
    if p.default is p.empty: return text
    return text + (f' = {_default(p.default)}' if ':' in text else f'={_default(p.default)}')

def _default(value):
    "A default as one would write it"
    if isinstance(value, Enum): return str(value)
    if inspect.isbuiltin(value): return f'{value.__module__}.{value.__name__}'
    name = getattr(value, '__qualname__', None) or repr(value)
    return '...' if '<' in name else name

def _written(annotation): return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

def _signature(symbol, name, kind):
    "The line that defines `symbol`; one parameter a line where it is long"
    if kind == 'class' and issubclass(symbol, BaseException):
        return f'class {name}({", ".join(o.__name__ for o in symbol.__bases__)})'
    if kind == 'class' and issubclass(symbol, Enum): return '\n'.join([f'class {name}(Enum):', *(f'    {o.name} = {o.value!r}' for o in symbol)])
    if kind == 'class' and getattr(symbol, '_is_protocol', False): return f'class {name}(Protocol)'
    signature = inspect.signature(symbol)
    result = '' if signature.return_annotation in (signature.empty, symbol) else _written(signature.return_annotation)
    if kind == 'property': return f'{name}: {result}' if result else name
    parameters, kinds = [], [o.kind for o in signature.parameters.values()]
    for i, p in enumerate(signature.parameters.values()):
        if kind != 'class' and '.' in name and i == 0 and p.name in ('self', 'cls'): continue
        if p.kind is p.KEYWORD_ONLY and not {p.KEYWORD_ONLY, p.VAR_POSITIONAL} & set(kinds[:i]): parameters.append('*')
        parameters.append(_parameter(p))
        if p.kind is p.POSITIONAL_ONLY and kinds[i + 1:i + 2] != [p.kind]: parameters.append('/')
    start, end = f'{kind} {name}(', ')' + (f' -> {result}' if result and kind != 'class' else '')
    line = start + ', '.join(parameters) + end
    return line if len(line) < 90 else start + ''.join(f'\n    {o},' for o in parameters).rstrip(',') + '\n' + end


def _has_fields(cls):
    "Are the parameters of `cls` the fields of a named tuple or dataclass?"
    return hasattr(cls, '_fields') or hasattr(cls, '__dataclass_fields__') and '<' in cls.__init__.__code__.co_filename

def _constructor(cls): return cls.__new__ if cls.__init__ is object.__init__ else cls.__init__

def comments(symbol):
    "The docments of `symbol`: the comment behind each parameter, and behind the result"
    # fastcore's docments knows no positional-only parameters, and no fields of named tuples
    fields = inspect.isclass(symbol) and _has_fields(symbol)
    found = symbol if fields else inspect.unwrap(_constructor(symbol) if inspect.isclass(symbol) else symbol)
    if not fields and not inspect.isfunction(found): return {}
    source = textwrap.dedent(inspect.getsource(found))
    [node] = ast.parse(source).body
    if fields: lines, end = {o.lineno: o.target.id for o in node.body if isinstance(o, ast.AnnAssign)}, 10**9
    elif isinstance(node, ast.Lambda | ast.Assign): return {}
    else:
        o = node.args
        arguments = [*o.posonlyargs, *o.args, *filter(None, [o.vararg]), *o.kwonlyargs, *filter(None, [o.kwarg])]
        returns = {node.returns.end_lineno: 'return'} if node.returns else {}
        lines, end = {**returns, **{a.lineno: a.arg for a in arguments}}, node.body[0].lineno
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    inherited = comments(symbol.__base__) if fields and hasattr(symbol.__base__, '__dataclass_fields__') else {}
    return inherited | {lines[t.start[0]]: t.string.lstrip('# ').strip() for t in tokens
            if t.type == tokenize.COMMENT and t.start[0] in lines and t.start[0] < end}


def _table(symbol):
    rows = [f'| {"**Returns**" if name == "return" else f"`{name}`"} | {_escaped(text)} |'
            for name, text in comments(symbol).items()]
    return '\n'.join(['| | |', f'|{"-"*15}|{"-"*60}|', *rows]) if rows else ''

def _escaped(text): return text.replace('|', '\\|')


def entry(symbol, name, level=3):
    "`symbol` and, if it is a class, its methods, as Markdown"
    below = methods(symbol) if inspect.isclass(symbol) else ()
    kind = 'class' if inspect.isclass(symbol) else _def(symbol)
    return '\n\n'.join([_entry(symbol, name, kind, '#'*level),
                        *(_entry(function, f'{name}.{method}', 'property' if isinstance(found, property) else _def(function),
                                 '#'*(level + 1)) for method, found, function in below)])


def _def(function): return 'async def' if inspect.iscoroutinefunction(function) else 'def'

def _entry(symbol, name, kind, hashes):
    source = NbdevLookup().code(getattr(symbol, '__qualname__', name))
    own = not inspect.isclass(symbol) or '__doc__' in vars(symbol)
    bases = [f'`{o.__name__}`' for o in _bases(symbol)] if inspect.isclass(symbol) and not issubclass(symbol, Exception) else []
    parts = [f'{hashes} {name} {{.symbol}}',
             f'[source]({source}){{.source-link target="_blank"}}' if source else '']
    try: parts += [f'```python\n{_signature(symbol, name, kind)}\n```']
    except (ValueError, TypeError): pass  # no signature to be had
    parts += [inspect.cleandoc(symbol.__doc__ or '') if own else '', _table(symbol),
              f'It has what {" and ".join(bases)} has as well.' if bases else '']
    return '\n\n'.join(o for o in parts if o)
