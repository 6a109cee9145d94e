// What the pages do by themselves: copy buttons, the colour scheme, the menu, the table of contents, the search.
const $ = (selector, root = document) => root.querySelector(selector)
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)]
const make = (tag, attributes = {}, ...children) => {
  const o = Object.assign(document.createElement(tag), attributes)
  o.append(...children)
  return o
}

// --- copy buttons
for (const block of $$('div.sourceCode')) {
  const button = make('button', {type: 'button', className: 'code-copy-button', textContent: 'Copy', title: 'Copy this code'})
  button.onclick = async () => {
    await copy($('code', block).innerText)
    button.textContent = 'Copied'
    setTimeout(() => button.textContent = 'Copy', 1500)
  }
  block.append(button)
}

async function copy(text) {
  if (navigator.clipboard) try { return await navigator.clipboard.writeText(text) } catch {}
  const area = make('textarea', {value: text})  // no clipboard without a permission, or outside of a secure origin
  document.body.append(area)
  area.select()
  document.execCommand('copy')
  area.remove()
}

// --- colour scheme
$('#scheme').onclick = () => {
  const dark = document.body.classList.toggle('quarto-dark')
  document.body.classList.toggle('quarto-light', !dark)
  try { localStorage.setItem('colour-scheme', dark ? 'dark' : 'light') } catch {}
}

// --- menu, on narrow screens
function menu(open) {
  document.body.classList.toggle('menu-open', open)
  $('#menu').setAttribute('aria-expanded', open)
  $('#shade').hidden = !open
}
$('#menu').onclick = () => menu(!document.body.classList.contains('menu-open'))
$('#shade').onclick = () => menu(false)
addEventListener('keydown', e => { if (e.key == 'Escape') menu(false) })
$('#quarto-sidebar [aria-current]')?.scrollIntoView({block: 'center'})
scrollTo(0, 0)
if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView()

// --- the entry of the table of contents whose section is on the screen
const entries = new Map($$('#TOC a').map(a => [decodeURIComponent(a.hash.slice(1)), a]))
function mark() {
  const above = [...entries.keys()].filter(id => document.getElementById(id)?.getBoundingClientRect().top < 120)
  for (const [id, a] of entries) a.classList.toggle('active', id == above.at(-1))
}
addEventListener('scroll', mark, {passive: true})
mark()

// --- search: MiniSearch over the records of search.js, indexed when first needed
const box = $('#search input'), list = $('#found')
let index = null

function find(text) {
  if (!index) {
    index = new MiniSearch({fields: ['title', 'page', 'text'], storeFields: ['title', 'page', 'href', 'text'],
                            tokenize: text => text.split(/[^\p{L}\p{N}_]+/u).filter(Boolean)})
    index.addAll(searchSections.map((o, id) => ({id, ...o})))
  }
  return index.search(text, {prefix: true, fuzzy: word => word.length > 4 ? 0.2 : 0, combineWith: 'AND',
                             boost: {title: 6, page: 3}}).slice(0, 12)
}

function excerpt(text, words) {
  const at = Math.max(0, Math.min(...words.map(o => text.toLowerCase().indexOf(o)).filter(o => o >= 0), text.length) - 40)
  return (at ? '… ' : '') + text.slice(at == text.length ? 0 : at, at + 130)
}

function show() {
  const text = box.value.trim(), results = text ? find(text) : []
  list.replaceChildren(...results.map(o => make('li', {}, make('a', {href: document.body.dataset.root + o.href},
    make('b', {textContent: o.title || o.page}), make('i', {textContent: o.title ? o.page : ''}),
    make('span', {textContent: excerpt(o.text, o.terms)})))))
  if (text && !results.length) list.append(make('li', {className: 'none', textContent: 'Nothing found'}))
  list.hidden = !text
}

if (box) {
  box.oninput = show
  box.onfocus = show
  addEventListener('keydown', e => {
    if (e.key == '/' && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { e.preventDefault(); box.focus() }
    if (e.key == 'Escape') { list.hidden = true; box.blur() }
    if (!$('#search').contains(document.activeElement) || list.hidden) return
    const links = $$('a', list), at = links.indexOf(document.activeElement)
    if (e.key == 'ArrowDown') { e.preventDefault(); links[Math.min(at + 1, links.length - 1)]?.focus() }
    if (e.key == 'ArrowUp') { e.preventDefault(); (at > 0 ? links[at - 1] : box).focus() }
    if (e.key == 'Enter' && document.activeElement == box) links[0]?.click()
  })
  addEventListener('click', e => { if (!$('#search').contains(e.target) || e.target.closest('#found a')) list.hidden = true })
}
