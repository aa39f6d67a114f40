// Models down, prompts across, each column from the same noise.

function gallery() {
  const keys = R.embedded.gallery;
  if (!keys.length) return null;
  const cut = keys.length < R.cases.length ? ` ${keys.length} of ${R.cases.length} prompts are shown${R.embedded.spent ? ', as many as there is room for' : ', evenly over all'}; all pictures lie in the folder of this page.` : '';
  const found = ROWS.some((row) => keys.some((key) => (pictureOf(row, key) || { faces: 0 }).faces));
  const table = h('table', { class: 'gallery' },
    h('thead', null, h('tr', null, h('td', { class: 'corner' }), keys.map(promptCell))),
    h('tbody', null, ROWS.map((row) => h('tr', null, h('th', { scope: 'row' }, rowLabel(row)),
      keys.map((key) => h('td', null, shot(row, key, keys), found && faceCell(row, key)))))));
  const lead = `Every column is one prompt drawn from the same noise${R.sampling.repetitions > 1 ? `, the first of its ${R.sampling.repetitions} pictures` : ''}.${found ? ' Hover a picture to enlarge its faces and hands' : ' Click a picture to enlarge it'}${found ? ', click it to see all models side by side' : ''}; arrow keys go on.${cut}`;
  return section('gallery', 'Gallery', lead, personStrip(), found ? facesSwitch(table) : null,
    h('div', { class: 'scroll wide', tabindex: 0, role: 'region', 'aria-label': 'Pictures by model and prompt' }, table));
}

function personStrip() {
  const photos = R.embedded.person || [];
  return photos.length ? h('figure', { class: 'person' },
    photos.map((src) => h('img', { src: DATA + src, alt: 'Photograph of the person', loading: 'lazy' })),
    h('figcaption', null, 'Photographs of the person')) : null;
}

function promptCell(key) {
  const text = wordsOf(key) || key;
  const words = hint(h('span', { class: 'prompt' }, text), () => [h('p', null, text), h('small', null, key)]);
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
