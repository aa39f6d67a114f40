// What the run is, what there is to say of it, its pictures, and how to repeat it.

const GRADES = [['wrong', 'wrong'], ['worth a look', 'look'], ['fine', 'fine']];

function head() {
  const { done, asked } = R.steps;
  const steps = done ? (asked && asked !== done ? `${done} of ${asked} steps` : counted(done, 'step')) : 'no step yet';
  return h('header', { class: 'head', id: 'top' },
    h('p', { class: 'kicker' }, `mldm report · ${when(R.made)}${R.again ? ' · still training' : ''}`),
    h('h1', null, breakable(R.name)),
    h('p', { class: `outcome ${R.wrong ? 'bad' : ''}`, id: 'verdict' }, `${R.verdict} `, h('span', null, `${capital(steps)}.`)),
    h('dl', { class: 'how settings' }, R.settings.map(([name, text]) => [h('dt', null, name), h('dd', null, text)])));
}

const when = (made) => {
  const date = new Date(made);
  return Number.isNaN(date.getTime()) ? made : date.toLocaleString('en-GB', { day: 'numeric', month: 'long', year: 'numeric', hour: '2-digit', minute: '2-digit' });
};

function findings() {
  if (!R.said.length) return null;
  return section('findings', 'What there is to say', null, h('ul', { class: 'said' }, GRADES.flatMap(([grade, name]) =>
    R.said.filter((one) => one.grade === grade).map((one) => h('li', { class: name }, h('b', { class: 'grade' }, grade),
      h('div', null, one.text, one.names.length ? h('small', null, one.names.join(', ')) : null))))));
}

function data() {
  if (!R.data) return null;
  const { counts, tiles, spreads } = R.data;
  return section('data', 'Pictures and masks', 'The training set as a trainer reads it: how much there is, how it is spread, and some rows beside their people, faces and hands.',
    h('dl', { class: 'counts' }, Object.entries(counts).map(([what, count]) => h('div', null, h('dd', null, count.toLocaleString('en-GB')), h('dt', null, what)))),
    h('div', { class: 'tiles' }, tiles.map((one) => h('figure', { class: one.faults.length ? 'faulty' : null },
      h('img', { src: `data:image/jpeg;base64,${one.src}`, alt: `${one.name}, and its people, faces and hands` }),
      h('figcaption', null, h('span', { class: 'prompt' }, one.caption || one.name), one.faults.map((fault) => h('span', { class: 'fault' }, fault)))))),
    h('div', { class: 'histograms' }, spreads.map((spread) => h('figure', null, h('figcaption', null, spread.title),
      h('div', { class: 'bars' }, spread.bars.map(([label, count, height]) => {
        const bar = h('i');
        bar.style.height = `${Math.max(100 * height, count ? 3 : 0)}%`;
        return h('div', null, h('small', null, count || ''), h('span', null, bar), h('small', null, label));
      }))))));
}

function again() {
  const rows = [['folder', h('code', null, R.folder)], ['page made', R.made], ...(R.command ? [['command', [h('pre', null, R.command), copyButton(R.command)]]] : []), ...Object.entries(R.machine || {})];
  return section('repeat', 'How to repeat it', R.command ? 'All flags of the run, so that later defaults change nothing. Give it another --output_dir.' :
    'The run’s own records do not say with which command it was started.', h('dl', { class: 'how' }, rows.map(([name, text]) => [h('dt', null, name), h('dd', null, text)])));
}

function copyButton(text) {
  const button = h('button', { type: 'button', class: 'pill copy on-screen', onclick: async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = 'copied'; } catch { button.textContent = 'select it and copy'; }
  } }, 'copy');
  return button;
}
