// One prompt, all models side by side, faces and hands enlarged beneath.

const PHOTOGRAPH = '', MASK = ' '; // no model is called nothing
const DATA = 'data:image/jpeg;base64,';
const BOX = document.getElementById('lightbox');
const LIT = { keys: [], at: 0, from: null };
const hasPhotographs = Object.keys(R.embedded.photographs).length > 0;
const hasMasks = Object.keys(R.embedded.conditions || {}).length > 0;
const ROWS = [...(hasPhotographs ? [PHOTOGRAPH] : []), ...(hasMasks ? [MASK] : []), ...NAMES];

const picturesOf = (row) => ({ [PHOTOGRAPH]: R.embedded.photographs, [MASK]: R.embedded.conditions })[row] || R.embedded.models[row];
const pictureOf = (row, key) => (picturesOf(row) || {})[key] || null;
const rowLabel = (row) => (NAMES.includes(row) ? modelLabel(row) : h('span', { class: 'model' }, row === MASK ? 'mask' : 'photo'));
const conditionOf = (key) => ((R.conditions_of_cases || {})[key] || {}).words || '';
const conditionWords = (key) => (conditionOf(key) ? h('p', { class: 'condition' }, conditionOf(key)) : null);
const wordsOf = (key) => (CASES.get(key) || {}).text || '';
const altOf = (row, key) => `${{ [PHOTOGRAPH]: 'The photograph', [MASK]: 'The mask that is drawn from' }[row] || `Picture by ${row}`} for: ${wordsOf(key) || key}`;
const image = (picture, row, key) =>
  h('img', { src: DATA + picture.src, alt: altOf(row, key), loading: 'lazy', decoding: 'async' });
const crops = (picture, row, key) => picture.cuts.map((cut, i) =>
  h('img', { src: DATA + cut, alt: `${i < picture.faces ? 'Face' : 'Hand'} enlarged. ${altOf(row, key)}`, class: 'face' }));

function boxes(picture) {
  return picture.boxes.map((box) => {
    const frame = h('i', { class: 'box', 'aria-hidden': 'true' });
    [['left', box[0]], ['top', box[1]], ['width', box[2] - box[0]], ['height', box[3] - box[1]]]
      .forEach(([side, part]) => { frame.style[side] = `${100 * part}%`; });
    return frame;
  });
}

/** A picture that enlarges its faces and hands on hover and opens the lightbox; `keys` is where the arrow keys go. */
function shot(row, key, keys) {
  const picture = pictureOf(row, key);
  if (!picture) return h('span', { class: 'shot none' }, notEmbedded(row, key));
  const button = h('button', { type: 'button', class: 'shot', 'aria-label': `Enlarge. ${altOf(row, key)}`,
    onclick: () => openCase(keys, keys.indexOf(key), button) }, image(picture, row, key), boxes(picture));
  button.style.aspectRatio = picture.ratio;
  return picture.cuts.length ? hint(button, () => [rowLabel(row), h('div', { class: 'crops' }, crops(picture, row, key))], { tap: false, beside: true }) : button;
}

function notEmbedded(row, key) {
  const beside = { [PHOTOGRAPH]: R.photographs_of_cases, [MASK]: R.conditions_of_cases }[row];
  const path = NAMES.includes(row) ? (R.pictures[row] || {})[key] : ((beside || {})[key] || {}).path;
  return path ? ['not in this page:', h('code', null, path)] : 'no picture';
}

function openCase(keys, at, from) {
  hideHint();
  Object.assign(LIT, { keys, at, from });
  showCase();
  if (!BOX.open) BOX.showModal();
}

function showCase() {
  const key = LIT.keys[LIT.at], one = CASES.get(key);
  const step = (by, label, sign) => h('button', { type: 'button', class: 'round', 'aria-label': label, onclick: () => go(by) }, sign);
  BOX.replaceChildren(
    h('div', { class: 'lit-head' },
      h('div', { class: 'lit-prompt' }, h('p', null, h('small', null, `${LIT.at + 1} of ${LIT.keys.length} · ${key}`), one.text || key), conditionWords(key)),
      h('div', { class: 'lit-steps' }, step(-1, 'Previous prompt', '←'), step(1, 'Next prompt', '→'),
        h('button', { type: 'button', class: 'round', 'aria-label': 'Close', onclick: () => BOX.close() }, '×'))),
    h('div', { class: 'lit-pictures' }, ROWS.map((row) => litFigure(row, key))), litValues(key));
  BOX.scrollTop = 0;
}

function litFigure(row, key) {
  const picture = pictureOf(row, key);
  return h('figure', null, h('figcaption', null, rowLabel(row)),
    picture ? h('span', { class: 'framed' }, image(picture, row, key), boxes(picture)) : h('span', { class: 'shot none' }, notEmbedded(row, key)),
    picture && picture.cuts.length ? h('div', { class: 'crops' }, crops(picture, row, key)) : null);
}

function litValues(key) {
  const at = R.cases.findIndex((one) => one.key === key), metrics = withCases();
  if (!metrics.length) return null;
  return h('div', { class: 'scroll' }, h('table', { class: 'plain' },
    h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'metric'), NAMES.map((name) => h('th', { scope: 'col', class: 'number' }, modelLabel(name))))),
    h('tbody', null, metrics.map((metric) => h('tr', null, h('th', { scope: 'row' }, `${metric.title} ${arrowOf(metric)}`),
      NAMES.map((name) => h('td', { class: 'number' }, number((metric.values[name] || [])[at], metric.decimals + 1))))))));
}

function go(by) {
  LIT.at = (LIT.at + by + LIT.keys.length) % LIT.keys.length;
  hideHint();
  showCase();
  const again = BOX.querySelectorAll('.round')[by < 0 ? 0 : 1];
  if (again) again.focus();
}

BOX.addEventListener('keydown', (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) { event.preventDefault(); go(by); }
});
BOX.addEventListener('click', (event) => event.target === BOX && BOX.close());
BOX.addEventListener('close', () => { hideHint(); if (LIT.from) LIT.from.focus(); });
