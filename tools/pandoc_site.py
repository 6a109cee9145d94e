"""The site where Quarto is missing: nbdev's processed notebooks (`_proc/`) through pandoc.

It stands in for `quarto render`, reads what Quarto reads (`_quarto.yml` with its metadata files, front matter, cell
options, fenced divs) and names classes as Quarto does, so nothing in a notebook is written for it. In short:
notebook -> Markdown (`Page.markdown`) -> pandoc -> BeautifulSoup (links, callouts, tables) -> `site/page.html`."""
import base64, json, os, re, shutil, subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath

import yaml

here = Path(__file__).resolve().parent/'site'
_ansi = re.compile(r'\x1b\[[0-9;]*m')
_front_matter = re.compile(r'\A---\n(.*?)\n---\s*', re.DOTALL)
_include = re.compile(r'\{\{< include (\S+) >\}\}')
_images = {'image/png': 'png', 'image/jpeg': 'jpg'}


def config(folder):
    "`_quarto.yml` in `folder`, with what its `metadata-files` add"
    found = yaml.safe_load((folder/'_quarto.yml').read_text(encoding='utf-8'))
    for name in found.get('metadata-files', []):
        if (folder/name).exists(): found = _merged(found, yaml.safe_load((folder/name).read_text(encoding='utf-8')))
    return found

def _merged(a, b):
    return {**a, **{k: _merged(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v for k, v in b.items()}}


# --- notebook to Markdown

def _text(lines): return lines if isinstance(lines, str) else ''.join(lines)

def _fenced(text, attributes=''):
    ticks = '`'*max([3, *(len(o) + 1 for o in re.findall('`+', text))])
    return f'{ticks}{attributes}\n{text.rstrip()}\n{ticks}'

def _div(classes, body): return f'::: {{{classes}}}\n{body}\n:::'

def options(source):
    "The cell options (`#| echo: false`) that begin `source`, and the rest of it"
    lines, found = source.splitlines(), {}
    while lines and (m := re.match(r'#\|\s*([\w-]+):\s*(.*)', lines[0])):
        found[m[1]] = yaml.safe_load(m[2])
        lines.pop(0)
    return found, '\n'.join(lines)


class Page:
    "One page: `source` is the path of a notebook or Markdown file in `folder`"
    def __init__(self, folder, source):
        self.folder, self.source, self.files = folder, PurePosixPath(source), {}
        text = _include.sub(lambda m: ((folder/source).parent/m[1]).read_text(encoding='utf-8'),
                            (folder/source).read_text(encoding='utf-8'))
        if self.source.suffix == '.ipynb': self.cells = [o for o in json.loads(text)['cells'] if _text(o['source']).strip()]
        else: self.cells = [dict(cell_type='markdown', source=text)]
        first = _text(self.cells[0]['source']) if self.cells else ''
        self.meta = yaml.safe_load(m[1]) if (m := _front_matter.match(first)) else {}
        if 'title' not in self.meta and (m := re.match(r'\s*# (.+)\n', first)):  # Quarto's title then
            self.meta['title'], self.cells[0]['source'] = m[1], first[m.end():]
        name = self.meta.get('output-file', self.source.with_suffix('.html').name)
        self.path = str(self.source.with_name(name))
        self.title, self.description = self.meta.get('title', self.source.stem), self.meta.get('description', '')

    @cached_property
    def markdown(self):
        "The page as Quarto's Markdown; images of outputs come to lie in `files`"
        parts = [_front_matter.sub('', _text(o['source'])) if o['cell_type'] != 'code' else self._code(o)
                 for o in self.cells if o['cell_type'] in ('markdown', 'code') or o is self.cells[0]]
        return '\n\n'.join(o.strip('\n') for o in parts if o.strip())

    def _code(self, cell):
        cfg, source = options(_text(cell['source']))
        if cfg.get('include') is False: return ''
        asis = cfg.get('output') == 'asis'
        outputs = [] if cfg.get('output') is False else [self._output(o, asis, cfg.get('fig-alt', '')) for o in cell.get('outputs', [])]
        if asis: return '\n\n'.join(outputs)
        code = '' if cfg.get('echo') is False else _fenced(source, ' {.python .cell-code}')
        if code and cfg.get('code-fold') not in (None, False):
            opened = ' open' if cfg['code-fold'] == 'show' else ''
            code = f'<details{opened}>\n<summary>{cfg.get("code-summary", "Code")}</summary>\n\n{code}\n\n</details>'
        return _div('.cell', '\n\n'.join(o for o in (code, *outputs) if o)) if code or outputs else ''

    def _output(self, output, asis, alt):
        kind = output['output_type']
        if kind == 'stream':
            text = _ansi.sub('', _text(output['text']))
            return text if asis else _div(f'.cell-output .cell-output-{output["name"]}', _fenced(text))
        if kind == 'error':
            text = _ansi.sub('', '\n'.join(output['traceback']))
            return _div('.cell-output .cell-output-error', _fenced(text))
        data = {k: _text(v) if not isinstance(v, dict) else v for k, v in output['data'].items()}
        if 'text/markdown' in data and (asis or 'text/html' not in data): shown = data['text/markdown']
        elif 'text/html' in data: shown = _fenced(data['text/html'], '{=html}')
        elif 'image/svg+xml' in data: shown = _fenced(data['image/svg+xml'], '{=html}')
        elif found := [o for o in _images if o in data]:
            name = f'{PurePosixPath(self.path).stem}_files/{len(self.files)}.{_images[found[0]]}'
            self.files[name] = base64.b64decode(data[found[0]])
            shown = f'![]({name})' + ('{alt=' + json.dumps(alt, ensure_ascii=False) + '}' if alt else '')
        else: shown = _fenced(_ansi.sub('', data.get('text/plain', '')))
        return shown if asis else _div('.cell-output .cell-output-display', shown)

    @property
    def plain(self):
        "The page as Markdown to be read as it stands: no fenced divs, no attributes"
        text = re.sub(r'(?m)^:::.*\n?', '', self.markdown)
        text = re.sub(r'(?m)^(`{3,})\s*\{\.python[^}]*\}', r'\1python', re.sub(r'(?<=[)\]\w])\s?\{[.#][^}\n]*\}', '', text))
        heading = f'# {self.title}\n\n' + (f'> {self.description}\n\n' if self.description else '')
        return heading + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


# --- Markdown to HTML

def pandoc(markdown):
    "`markdown` as a fragment of HTML, preceded by its table of contents"
    import pypandoc
    command = [pypandoc.get_pandoc_path(), '--from=markdown+lists_without_preceding_blankline', '--to=html5',
               '--wrap=none', '--columns=10000', '--toc', '--toc-depth=3', '--standalone', f'--template={here/"pandoc.html"}', '--metadata=title:_']
    done = subprocess.run(command, input=markdown, capture_output=True, text=True, encoding='utf-8')
    if done.returncode: raise RuntimeError(f'pandoc: {done.stderr}')
    return done.stdout.split('<!-- toc above, body below -->')


def relative(target, page): return os.path.relpath(target, PurePosixPath(page).parent).replace(os.sep, '/')


class Site:
    "The site that `folder`, nbdev's `_proc`, describes"
    def __init__(self, folder, sources):
        self.config = config(folder)
        self.website = self.config['website']
        self.folder, self.pages = folder, [Page(folder, o) for o in sources]
        self.by_source = {str(o.source): o for o in self.pages}

    def sections(self, contents=None):
        "The sidebar: pairs of a title and the pages below it; pages outside of a section have the title ''"
        loose = []
        for item in self.website['sidebar']['contents'] if contents is None else contents:
            if isinstance(item, dict) and 'section' in item:
                if loose: yield '', loose
                loose = []
                for title, pages in self.sections(item['contents']): yield title or item['section'], pages
            else: loose.append(self.by_source[item if isinstance(item, str) else item['href']])
        if loose: yield '', loose

    def link(self, href, page):
        "`href`, as a page's source has it, as the built page has to have it"
        base = self.website['site-url'].rstrip('/') + '/'
        if href.startswith(base):  # a symbol, by nbdev
            return relative(href.removeprefix(base) or 'index.html', page.path)
        if re.match(r'[a-z]+:|#|//', href): return href
        target, hash, anchor = href.partition('#')
        source = os.path.normpath(page.source.parent/target) if not target.startswith('/') else target[1:]
        if source in self.by_source: return relative(self.by_source[source].path, page.path) + hash + anchor
        # what is no page lies in the repository
        if source.startswith('..') or not (self.folder/source).is_file() and (self.folder.parent/'nbs'/source).exists():
            source = os.path.relpath(self.folder.parent/'nbs'/source, self.folder.parent)
            return f'{self.website["repo-url"]}/blob/{self.website["repo-branch"]}/{source}{hash}{anchor}'
        return relative(source, page.path) + hash + anchor

    def fragment(self, page):
        "The body and the table of contents of `page`, as parsed HTML"
        from bs4 import BeautifulSoup
        toc, body = (BeautifulSoup(o, 'html.parser') for o in pandoc(page.markdown))
        for a in body.find_all('a', href=True):
            symbol = a['href'].startswith(self.website['site-url'])
            a['href'] = self.link(a['href'], page)
            if symbol: a['class'] = 'symbol-link'
        for callout in body.select('div[class*=callout-]'): _set_callout(body, callout)
        for table in body.find_all('table'): table.wrap(body.new_tag('div', attrs={'class': 'table-responsive'}))
        for code in body.select('td code'):  # a long name may break, where its words meet
            if code.string and len(code.string) > 24:
                parts = re.split(r'(?<=[_/:.])(?=\w)', code.string)
                code.clear()
                code.extend([o for part in parts for o in (part, body.new_tag('wbr'))][:-1])
        for o in body.select('pre, .table-responsive'): o['tabindex'] = '0'  # so that keys can scroll it
        for heading in body.select('h2[id], h3[id], h4[id]'):
            heading.append(body.new_tag('a', attrs={'class': 'anchor', 'href': f'#{heading["id"]}', 'aria-label': 'Link here'}))
        for image in body.select('img[src$=".svg"]'):  # inline, so that it takes the colours of the page
            file = self.folder/page.source.parent/image['src']
            if not file.exists(): continue
            svg = BeautifulSoup(re.sub(r'<\?xml.*?\?>', '', file.read_text(encoding='utf-8')), 'html.parser').svg
            svg['role'], svg['aria-label'] = 'img', image.get('alt', '')
            image.replace_with(svg)
        return body, toc

    def build(self, out):
        "Write the site into `out`"
        from jinja2 import Environment, FileSystemLoader
        shutil.rmtree(out, ignore_errors=True)
        environment = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.filters['inline'] = _inline
        template = environment.get_template('page.html')
        with ThreadPoolExecutor(os.cpu_count()) as pool: fragments = [*pool.map(self.fragment, self.pages)]
        ids = {f'{page.path}#{o["id"]}' for page, (body, _) in zip(self.pages, fragments) for o in body.select('[id]')}
        for page, (body, _) in zip(self.pages, fragments): _drop_dead(page, body, ids)
        sections, style = [*self.sections()], self.config['format']['html']['css']
        for page, (body, toc) in zip(self.pages, fragments):
            html = template.render(page=page, body=str(body), toc=str(toc), sections=sections, website=self.website, style=style,
                                   url=lambda target, page=page: relative(target, page.path))
            write(out/page.path, html)
        index = [o for page, (body, _) in zip(self.pages, fragments) for o in _sections(page, body)]
        write(out/'search.js', f'window.searchSections = {json.dumps(index, ensure_ascii=False)}\n')
        for file in [*self.folder.rglob('*.svg'), *self.folder.rglob('*.png'), self.folder/style]:
            write(out/file.relative_to(self.folder), file.read_bytes())
        for name in ('site.css', 'site.js', 'minisearch.js'): shutil.copy(here/name, out/name)


def _drop_dead(page, body, ids):
    "nbdev links every symbol of the modules; private ones and special methods are shown on no page"
    for a in body.select('a.symbol-link'):
        if os.path.normpath(PurePosixPath(page.path).parent/a['href']) not in ids: a.unwrap()

def _inline(text):
    "A title or description, which may hold code"
    from markupsafe import Markup, escape
    return Markup(re.sub('`([^`]+)`', r'<code>\1</code>', str(escape(text))))

def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)

def _set_callout(soup, callout):
    "A callout as Quarto lays it out: its heading, or its kind, is the title"
    kind = next(o for o in callout['class'] if o.startswith('callout-')).removeprefix('callout-')
    first = callout.find(True, recursive=False)
    title = soup.new_tag('div', attrs={'class': 'callout-title'})
    if first is not None and re.fullmatch('h[1-6]', first.name): title.extend([*first.extract().contents])
    else: title.string = callout.get('title') or kind.capitalize()
    callout['class'] = ['callout', *callout['class']]
    callout.insert(0, title)

def _sections(page, body):
    "What the search finds of `page`: a record for each of its sections"
    from bs4 import Tag
    title, href, texts = '', page.path, [page.description]
    for o in body.find_all(['h2', 'h3', 'h4', 'p', 'li', 'pre', 'td', 'dt', 'dd']):
        if isinstance(o, Tag) and o.name in ('h2', 'h3', 'h4') and o.get('id'):
            yield dict(page=page.title, title=title, href=href, text=' '.join(texts)[:1500])
            title, href, texts = o.get_text().strip(), f'{page.path}#{o["id"]}', []
        elif not o.find_parent(['p', 'li', 'pre', 'td', 'dd']) and not o.select('.source-link'): texts.append(' '.join(o.get_text().split()))
    yield dict(page=page.title, title=title, href=href, text=' '.join(texts)[:1500])
