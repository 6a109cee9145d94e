"The built site in a real browser, opened from the file system: Debian's Chromium, without a screen"
import re, shutil
from contextlib import contextmanager
from pathlib import Path

import psutil, pytest

playwright = pytest.importorskip('playwright.sync_api')
expect = playwright.expect  # waits until it is so
chromium = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [pytest.mark.skipif(not chromium, reason='no chromium here; on Debian `apt install chromium` brings it'), pytest.mark.timeout(300)]
# no sandbox, since CI is root in a container; the others keep it from looking for its maker's servers
_flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
          '--disable-component-update', '--disable-sync']


@pytest.fixture(autouse=True)
def no_leaks(): "A browser starts and ends its processes as it likes; `browser` looks for them at the end"


@pytest.fixture(scope='module')
def browser():
    before = {*psutil.Process().children(recursive=True)}
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=_flags)
        yield browser
        browser.close()
    _, alive = psutil.wait_procs({*psutil.Process().children(recursive=True)} - before, timeout=60)
    assert alive == []


class Visit:
    "Pages opened one after the other in one tab of `browser`, and what went wrong with them"
    def __init__(self, browser, site, width=1280, scheme='light'):
        self.site, self.wrong = site, []
        self.context = browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme)
        self.tab = self.context.new_page()
        self.tab.on('console', lambda o: self.wrong.append(o.text) if o.type in ('error', 'warning') else None)
        self.tab.on('pageerror', lambda o: self.wrong.append(str(o)))
        self.tab.on('requestfailed', lambda o: self.wrong.append(f'{o.url}: {o.failure}'))
        self.tab.on('request', lambda o: None if o.url.startswith(('file:', 'data:')) else self.wrong.append(f'asks for {o.url}'))

    def open(self, page):
        self.tab.goto((self.site/page).as_uri())
        return self.tab

    @property
    def page(self): return str(Path(re.sub(r'^file://|#.*', '', self.tab.url)).relative_to(self.site))


@contextmanager
def visit(*args, **kwargs):
    o = Visit(*args, **kwargs)
    try: yield o
    finally: o.context.close()
    assert o.wrong == []


def pages(site): return sorted(str(o.relative_to(site)) for o in site.rglob('*.html'))


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_every_page_loads_and_fits(browser, built_site, width, scheme):
    "No error in the console, no failed request, and no sideways scrolling of the page"
    wide = []
    with visit(browser, built_site, width, scheme) as v:
        for page in pages(built_site):
            tab = v.open(page)
            assert tab.locator('h1.title').count() == 1
            if (found := tab.evaluate('document.documentElement.scrollWidth')) > width: wide.append((page, found))
            assert tab.evaluate('document.body.className') == f'quarto-{scheme}'
    assert wide == []


def test_code_of_the_guides_needs_no_scrolling(browser, built_site):
    with visit(browser, built_site) as v:
        wide = {page: found for page in pages(built_site) if page == 'index.html' or '/' in page if (found := v.open(page).evaluate(
            '[...document.querySelectorAll("main div.sourceCode pre")].filter(o => o.scrollWidth > o.clientWidth).map(o => o.innerText)'))}
    assert wide == {}


def test_the_sidebar_leads_to_every_page(browser, built_site):
    with visit(browser, built_site) as v:
        v.open('index.html')
        seen = []
        for i in range(v.tab.locator('#quarto-sidebar a').count()):
            link = v.tab.locator('#quarto-sidebar a').nth(i)
            title = link.inner_text()
            link.click()
            expect(v.tab.locator('h1.title')).to_have_text(title)
            expect(v.tab.locator('[aria-current=page]')).to_have_text(title)
            seen.append(v.page)
    assert sorted(seen) == pages(built_site)


@pytest.mark.parametrize(['words', 'page', 'anchor'], [
    ('dict.range', 'containers.html', '#dict.range'), ('wait_until', 'transactions.html', '#wait_until'),
    ('AsyncTrace', 'tracing.html', '#asynctrace'), ('numpy without copy', 'tutorials/zero_copy_numpy.html', ''),
    ('transction', 'transactions.html', '')])
def test_the_search_leads_to_the_right_page(browser, built_site, words, page, anchor):
    "From a page in a folder too, by the keyboard, and though a word is misspelt"
    with visit(browser, built_site) as v:
        tab = v.open('tutorials/zero_copy_numpy.html')
        tab.keyboard.press('/')
        tab.keyboard.type(words)
        tab.locator('#found a').first.wait_for()
        with tab.expect_navigation(url=re.compile(re.escape(page))) if v.page != page else nothing(): tab.keyboard.press('Enter')
        assert v.page == page and (not anchor or tab.url.endswith(anchor)), tab.url
        if anchor: expect(tab.locator(f'[id="{anchor[1:]}"]')).to_be_visible()


@contextmanager
def nothing(): yield


def test_the_search_says_when_there_is_nothing(browser, built_site):
    with visit(browser, built_site) as v:
        v.open('index.html').fill('#search input', 'xyzzyplugh')
        expect(v.tab.locator('#found')).to_have_text('Nothing found')


def test_the_zero_copy_page_shows_the_error(browser, built_site):
    with visit(browser, built_site) as v:
        shown = v.open('tutorials/zero_copy_numpy.html').locator('.cell-output-error')
        expect(shown).to_be_visible()
        expect(shown).to_contain_text('ValueError: assignment destination is read-only')


def test_the_menu_of_a_narrow_page(browser, built_site):
    with visit(browser, built_site, 390) as v:
        tab = v.open('index.html')
        expect(tab.locator('#quarto-sidebar')).to_be_hidden()
        tab.click('#menu')
        tab.click('#quarto-sidebar a[href="containers.html"]')
        tab.wait_for_url('**/containers.html')
        expect(tab.locator('#quarto-sidebar')).to_be_hidden()


def test_the_switch_is_remembered(browser, built_site):
    def background(tab): return tab.evaluate('getComputedStyle(document.body).backgroundColor')
    with visit(browser, built_site) as v:
        light = background(v.open('index.html'))
        v.tab.click('#scheme')
        dark = background(v.tab)
        assert dark != light and background(v.open('tutorials/zero_copy_numpy.html')) == dark
        figure = v.open('explanations/how_it_works.html').locator('main svg').first
        assert figure.evaluate('o => getComputedStyle(o.querySelector("text")).fill') == v.tab.evaluate('getComputedStyle(document.body).color')


def test_the_copy_button_copies_the_code(browser, built_site):
    with visit(browser, built_site) as v:
        v.context.grant_permissions(['clipboard-read', 'clipboard-write'])
        block = v.open('tutorials/zero_copy_numpy.html').locator('div.sourceCode').first
        block.hover()
        block.locator('button').click()
        block.locator('button:text("Copied")').wait_for()
        assert v.tab.evaluate('navigator.clipboard.readText()').strip() == block.locator('code').inner_text().strip()


def test_text_can_be_read(browser, built_site):
    "The contrast of all text and its background is at least 4.5, as WCAG asks, in light and in dark"
    for scheme in ('light', 'dark'):
        with visit(browser, built_site, scheme=scheme) as v:
            for page in ('index.html', 'containers.html', 'tutorials/zero_copy_numpy.html'):
                assert v.open(page).evaluate(_faint) == [], (scheme, page)


_faint = '''() => {
  const rgb = text => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data] }
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v/12.92 : ((v + 0.055)/1.055)**2.4); return 0.2126*r + 0.7152*g + 0.0722*b }
  const behind = o => { for (; o; o = o.parentElement) { const c = rgb(getComputedStyle(o).backgroundColor); if (c[3] > 200) return c } return [255, 255, 255] }
  const found = new Set(), seen = new Map()
  for (const o of document.querySelectorAll('main *, nav *, aside *')) {
    if (![...o.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || !o.checkVisibility({opacityProperty: true}) || o.closest('svg')) continue
    const style = getComputedStyle(o), key = style.color + [...o.classList] + o.tagName + o.parentElement.className
    if (seen.has(key)) continue
    seen.set(key, 1)
    const [a, b] = [light(rgb(style.color)), light(behind(o))].sort((x, y) => y - x)
    if ((a + 0.05)/(b + 0.05) < 4.5) found.add(`${o.tagName} ${o.className}: ${style.color}, ${((a + 0.05)/(b + 0.05)).toFixed(2)}`)
  }
  return [...found]
}'''
