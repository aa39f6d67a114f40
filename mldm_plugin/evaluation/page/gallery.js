// Models down, prompts across, each column from the same noise.

function gallery() {
  const keys = R.embedded.gallery;
  if (!keys.length) return null;
  const cut = keys.length < R.cases.length ? ` ${keys.length} of ${R.cases.length} prompts are shown${R.embedded.spent ? ', as many as there is room for' : ', evenly over all'}; all pictures lie in the folder of this page.` : '';
  const found = ROWS.some((row) => keys.some((key) => (pictureOf(row, key) || { faces: 0 }).faces));
  const table = h('table', { class: 'gallery' },
    h('thead', null, h('tr', null, h('td', { class: 'corner' }), keys.map(promptCell))),
    h('tbody', null, ROWS.map((row) => h('tr', null, h('th', { scope: 'row' }, rowLabel(row)),
      keys.map((key) => h('td', null, shot(row, key, keys), found && row !== MASK && faceCell(row, key)))))));
  const lead = `Every column is one prompt drawn from the same noise${R.sampling.repetitions > 1 ? `, the first of its ${R.sampling.repetitions} pictures` : ''}.`;
  const how = onScreen(`${found ? ' Hover a picture to enlarge its faces and hands, click it to see all models side by side' : ' Click a picture to enlarge it'}; arrow keys go on.`);
  const place = h('div', { class: 'scroll wide', tabindex: 0, role: 'region', 'aria-label': 'Pictures by model and prompt' }, table);
  wrapOnPaper(table, place);
  return section('gallery', 'Gallery', [lead, how, cut], personStrip(), found ? facesSwitch(table) : null, place);
}

const ON_PAPER = 6; // prompts side by side

/** Paper does not scroll: while the page is printed, the table's columns stand in several tables below each other. */
function wrapOnPaper(table, place) {
  const rows = [...table.rows].map((row) => [row, ...row.cells]);
  const part = (from) => {
    const made = rows.map(([, head, ...cells]) => h('tr', null, head.cloneNode(true), cells.slice(from, from + ON_PAPER)));
    return h('table', { class: table.className }, h('thead', null, made[0]), h('tbody', null, made.slice(1)));
  };
  addEventListener('beforeprint', () => {
    const number = rows[0].length - 2;
    place.replaceChildren(...Array.from({ length: Math.ceil(number / ON_PAPER) }, (_, i) => part(i * ON_PAPER)));
  });
  addEventListener('afterprint', () => {
    rows.forEach(([row, ...cells]) => row.replaceChildren(...cells));
    place.replaceChildren(table);
  });
}

function personStrip() {
  const photos = R.embedded.person || [];
  return photos.length ? h('figure', { class: 'person' },
    photos.map((src) => h('img', { src: DATA + src, alt: 'Photograph of the person', loading: 'lazy' })),
    h('figcaption', null, 'Photographs of the person')) : null;
}

function promptCell(key) {
  const text = wordsOf(key) || key;
  const words = hint(h('span', { class: 'prompt' }, text), () => [h('p', null, text), conditionWords(key), h('small', null, key)]);
  return h('th', { scope: 'col' }, words);
}

function faceCell(row, key) {
  const picture = pictureOf(row, key);
  return h('span', { class: 'only-face' }, picture && picture.faces ?
    h('img', { src: DATA + picture.cuts[0], alt: `Face. ${altOf(row, key)}`, loading: 'lazy' }) : h('span', { class: 'shot none' }, 'no face found'));
}

function facesSwitch(table) {
  const choose = (faces) => () => {
    table.classList.toggle('faces', faces);
    [...group.children].forEach((button, i) => button.setAttribute('aria-pressed', String(faces === Boolean(i))));
  };
  const group = h('div', { class: 'switch', role: 'group', 'aria-label': 'What the gallery shows' },
    h('button', { type: 'button', 'aria-pressed': 'true', onclick: choose(false) }, 'Pictures'),
    h('button', { type: 'button', 'aria-pressed': 'false', onclick: choose(true) }, 'Faces'));
  return group;
}
