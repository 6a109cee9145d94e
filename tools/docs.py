"""Build the documentation site into `_docs/`, and README.md and CONTRIBUTING.md at the root.

Where `quarto` is on the PATH, nbdev builds the site with it (`nbdev_docs`). Elsewhere `pandoc_site` takes Quarto's
place, over the same notebooks that nbdev has processed (`_proc/`). Both read `nbs/_quarto.yml`, and the sidebar that
is written here. Afterwards both sites get the same: links that work under any path, and each page as Markdown."""
import argparse, functools, http.server, json, os, re, shutil, subprocess, sys, threading
from pathlib import Path

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
# the sections of the sidebar, in order, each with the files of its pages
sections = {'Get started': ['index.ipynb'], 'Tutorials': ['tutorials/*.ipynb'], 'Explanations': ['explanations/*.ipynb'],
            'How-to': ['howto/*.ipynb'], 'API': ['10_parkit.ipynb', '[0-9]*.ipynb'],
            'Project': ['contributing.ipynb', 'changelog.qmd']}


def _order(path):
    "Pages with `- order: n` below their title come first, the others by name"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells'] if path.suffix == '.ipynb' else []
    found = [m for o in cells[:3] if o['cell_type'] == 'markdown'
             if (m := re.search(r'(?m)^- order: *(\d+)', ''.join(o['source'])))]
    return int(found[0][1]) if found else 1000, path.name


def contents(folder=nbs):
    "The pages of the site by section, as paths below `folder`"
    seen, found = set(), {}
    for title, globs in sections.items():
        paths = [o for glob in globs for o in sorted(folder.glob(glob), key=_order) if not o.name.startswith(('_', '.'))]
        found[title] = [str(o.relative_to(folder)) for o in dict.fromkeys(paths) if o not in seen]
        seen |= {*paths}
    return {title: pages for title, pages in found.items() if pages}


def write_sidebar():
    "Write `nbs/sidebar.yml`, as Quarto reads it; a new notebook is in it by lying in its folder"
    import yaml
    entries = [dict(section=title, contents=pages) for title, pages in contents().items()]
    text = yaml.safe_dump(dict(website=dict(sidebar=dict(contents=entries))), sort_keys=False)
    file = nbs/'sidebar.yml'
    if not file.exists() or file.read_text(encoding='utf-8') != text: file.write_text(text, encoding='utf-8')


def process(force=False):
    "Run nbdev's processors over the notebooks that have changed; returns the folder of the result"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    write_sidebar()
    folder, tools = root/'_proc', [o.stat().st_mtime for o in (root/'tools/showdoc.py', root/'settings.ini')]
    shutil.rmtree(folder/'_docs', ignore_errors=True)
    return proc_nbs(force=force or folder.exists() and folder.stat().st_mtime < max(tools))


def site():
    "The site as `pandoc_site` sees it"
    from pandoc_site import Site
    return Site(root/'_proc', [page for pages in contents().values() for page in pages])


def build(out=root/'_docs', force=False):
    "Build the site into `out`, with Quarto where it is installed; returns the `Site`"
    os.chdir(root)  # nbdev looks for settings.ini from the working directory upwards
    process(force)
    built = site()
    if shutil.which('quarto'):
        subprocess.run([Path(sys.executable).with_name('nbdev_docs')], check=True, env={**os.environ, 'PYTHONPATH': str(root/'tools')})
        if out != root/'_docs': shutil.copytree(root/'_docs', out, dirs_exist_ok=True)
        make_relative(built, out)
    else: built.build(out)
    write_markdown(built, out)
    return built


def make_relative(site, out):
    "nbdev links symbols by the site's address: make these links relative in what Quarto has built"
    for file in out.rglob('*.html'):
        page = str(file.relative_to(out))
        def here(m, page=page): return f'{m[1]}{"../"*page.count("/")}{m[2]}'
        text = file.read_text(encoding='utf-8')
        base = re.escape(site.website['site-url'].rstrip('/') + '/')
        file.write_text(re.sub(rf'(<a [^>]*href="){base}([^"]*)', here, text), encoding='utf-8')


def write_markdown(site, out):
    "Each page as Markdown beside its HTML (`dict.html.md`), and `llms.txt`, which lists them"
    from pandoc_site import write
    lines = [f'# {site.website["title"]}', '', f'> {site.website["description"]}']
    for title, pages in site.sections():
        lines += ['', f'## {title}', '']
        lines += [f'- [{o.title}]({o.path}.md)' + (f': {o.description}' if o.description else '') for o in pages]
    write(out/'llms.txt', '\n'.join(lines) + '\n')
    def linked(page, m): return f']({site.link(m[1], page)})'
    for page in site.pages:
        text = re.sub(r'\]\(([^)\s]+)\)', functools.partial(linked, page), page.plain)
        write(out/f'{page.path}.md', text)
        for name, data in page.files.items(): write((out/page.path).parent/name, data)


def preview(port):
    "Serve the site on `port` of this machine, and build it anew when something changes"
    from watchfiles import watch
    build()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root/'_docs')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f'http://127.0.0.1:{port}/ (Ctrl-C ends it)', flush=True)
    for changes in watch(nbs, root/'tools', root/'_quarto.yml', raise_interrupt=False):
        if {Path(path).name for _, path in changes} <= {'sidebar.yml', 'nbdev.yml'}: continue  # the build writes these
        print('building:', ', '.join(sorted(Path(path).name for _, path in changes)), flush=True)
        # in a process of its own: the tools may have changed
        subprocess.run([sys.executable, __file__, '--site-only'])
    server.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preview', action='store_true', help='serve the site, and rebuild it on changes')
    parser.add_argument('--port', type=int, default=3000, help='of the preview')
    parser.add_argument('--out', type=Path, default=root/'_docs', help='folder of the site')
    parser.add_argument('--site-only', action='store_true', help='leave README.md and CONTRIBUTING.md alone')
    parser.add_argument('--force', action='store_true', help='process all notebooks anew')
    args = parser.parse_args()
    if args.preview: return preview(args.port)
    built = build(args.out.resolve(), args.force)
    if not args.site_only:  # afterwards: nbdev makes other ones of its own with Quarto
        import readme
        readme.main()
    print(f'{len(built.pages)} pages in {args.out}')


if __name__ == '__main__': main()
