package dashboard

import "github.com/stretchr/testify/require"

// accessible demands what a person needs who does not see the page, sees it badly or
// uses no mouse. It computes contrasts from the styles that the browser computed.
func (b *tab) accessible() {
	b.t.Helper()
	var faults []string
	b.eval(accessScript, &faults)
	require.Empty(b.t, faults)
}

// Contrast and its limits are those of WCAG 2.2, 1.4.3.
const accessScript = `(() => {
  const faults = [];
  const name = (e) => (e.getAttribute('aria-label') || document.getElementById(e.getAttribute('aria-labelledby') || '')?.textContent ||
    (e.id && document.querySelector('label[for="' + e.id + '"]')?.textContent) || e.textContent || '').trim();
  if (!document.documentElement.lang) faults.push('no language');
  if (!document.title) faults.push('no title');
  for (const mark of ['header', 'main', 'nav', 'footer']) if (document.querySelectorAll(mark).length !== 1) faults.push('landmark ' + mark);
  let level = 0;
  for (const h of document.querySelectorAll('h1,h2,h3,h4,h5,h6')) {
    const n = Number(h.tagName[1]);
    if (n > level + 1) faults.push('heading ' + h.textContent + ' skips a level');
    if (!h.textContent.trim()) faults.push('empty heading');
    level = n;
  }
  if (document.querySelectorAll('h1').length !== 1) faults.push('not one h1');
  for (const e of document.querySelectorAll('a,button,input:not([type=hidden]),select,textarea,progress,nav,section,svg[role=img],[role=region]')) {
    if (e.tagName === 'PROGRESS' ? !(e.getAttribute('aria-label') || document.querySelector('label[for="' + e.id + '"]')) : !name(e)) faults.push('no name: ' + e.outerHTML.slice(0, 120));
  }
  for (const t of document.querySelectorAll('table')) {
    if (!t.caption || !t.caption.textContent.trim()) faults.push('table without caption');
    for (const th of t.querySelectorAll('th')) if (!th.scope) faults.push('th without scope');
  }
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((x) => x === id).length > 1) faults.push('id twice: ' + id);
  for (const c of document.getElementById('main').children) if (!c.id) faults.push('a part of main without id: ' + c.outerHTML.slice(0, 80));
  if (document.documentElement.scrollWidth > innerWidth + 1) faults.push('wider than the window: ' + document.documentElement.scrollWidth + ' > ' + innerWidth);

  const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return { r: m[0], g: m[1], b: m[2], a: m.length > 3 ? m[3] : 1 }; };
  const light = (c) => { const f = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }; return 0.2126 * f(c.r) + 0.7152 * f(c.g) + 0.0722 * f(c.b); };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a === 1) return c; if (c.a > 0) return null; } return { r: 255, g: 255, b: 255, a: 1 }; };
  let looked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const e = n.parentElement;
    if (!n.nodeValue.trim() || e.closest('noscript,script,.visually-hidden,.skip,[hidden]') || !e.checkVisibility()) continue;
    const style = getComputedStyle(e), back = ground(e), fore = parse(style.color);
    if (!back || fore.a < 1) { faults.push('a colour that shines through: ' + n.nodeValue); continue; }
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), big = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700;
    const ratio = (a + 0.05) / (b + 0.05);
    looked++;
    if (ratio < (big ? 3 : 4.5)) faults.push('contrast ' + ratio.toFixed(2) + ': ' + n.nodeValue.trim().slice(0, 40) + ' in ' + e.className);
  }
  if (looked < 5) faults.push('only ' + looked + ' texts were looked at');
  return faults;
})()`
