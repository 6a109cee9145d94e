"""Make README.md from nbs/index.ipynb, and CONTRIBUTING.md from nbs/contributing.ipynb.

nbdev makes its README by running Quarto over the notebook that its processors return. Here nbconvert takes Quarto's
place, so that nothing but Python packages is needed. Two of the processors are left out: the one that links names to
pages of the documentation, because what it finds depends on the packages installed and the README has to be the same
everywhere; and the one that runs cells to document functions, because a README documents none."""
import os, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
made = {'README.md': 'index.ipynb', 'CONTRIBUTING.md': 'contributing.ipynb'}
_leading_directives = re.compile(r'\A(?:\s*#\|.*\n?)+')
_relative_link = re.compile(r'(?<=\]\()(?![a-z]+:|[#/])[^)\s]+')
_warning = '<!-- Made from {name} by `make readme`: edit the notebook, not this file. -->\n'


def processed(path):
    "The notebook at `path` as nbdev's documentation processors leave it"
    from execnb.nbio import read_nb
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults, add_links, exec_show_docs, insert_warning

    unwanted = (add_links, exec_show_docs, insert_warning)

    class Filter(FilterDefaults):
        def base_procs(self): return [o for o in super().base_procs() if o not in unwanted]

        def xtra_procs(self): return []

        def nb_proc(self, nb): return NBProcessor(nb=nb, procs=self.procs())

    notebook = read_nb(path)
    Filter()(notebook)
    return notebook


def _from_root(link): return {'nbs/changelog.qmd': 'CHANGELOG.md'}.get(path := os.path.normpath(f'nbs/{link[0]}'), path)

def _heading(frontmatter):
    description = f'\n> {frontmatter["description"]}\n' if 'description' in frontmatter else ''
    return f'# {frontmatter["title"]}\n{description}' if 'title' in frontmatter else ''


def _shown(cell):
    "A cell, or what it has made if its code is not to be seen"
    import nbformat
    if cell.cell_type != 'code' or not re.search(r'^#\|\s*echo:\s*false', cell.source, re.MULTILINE): return cell
    return nbformat.v4.new_markdown_cell('\n'.join(o.data['text/markdown'] for o in cell.outputs))


def build(path=root/'nbs/index.ipynb'):
    "The README that the notebook at `path` makes"
    import nbformat
    from execnb.nbio import nb2str
    from nbconvert import MarkdownExporter

    path = Path(path)
    here = Path.cwd()
    os.chdir(root)  # nbdev looks for settings.ini from the working directory upwards
    try: notebook = processed(path)
    finally: os.chdir(here)
    heading = _heading(getattr(notebook, 'frontmatter_', {}))
    plain = nbformat.reads(nb2str(notebook), as_version=4)
    plain.cells = [o for o in plain.cells if o.cell_type != 'raw']
    plain.cells = [_shown(o) for o in plain.cells]
    for cell in plain.cells:
        if cell.cell_type == 'code': cell.source = _leading_directives.sub('', cell.source)
        if cell.cell_type == 'markdown': cell.source = _relative_link.sub(_from_root, cell.source)
    plain.metadata['language_info'] = {'name': 'python'}  # `nbdev_clean` strips it; it names the code blocks
    body, resources = MarkdownExporter().from_notebook_node(plain)
    if files := resources.get('outputs'): raise ValueError(f'{path.name}: a README cannot hold the outputs {[*files]}')
    name = path.relative_to(root) if path.is_relative_to(root) else path.name
    whole = f'{_warning.format(name=name)}\n{heading}\n{body}'
    lines = '\n'.join(line.rstrip() for line in whole.splitlines())
    return re.sub(r'\n{3,}', '\n\n', lines).strip() + '\n'


def main():
    for name, notebook in made.items():
        (root/name).write_text(build(root/'nbs'/notebook), encoding='utf-8')
        print('wrote', root/name)


if __name__ == '__main__': sys.exit(main())
