// How strong each loss's gradient was, and whether it was at the start.

const percent = (share) => (!known(share) ? '–' : `${digits(Number((100 * share).toPrecision(2)))} %`);
const FEW = 40; // points of a line that are marked, as one that stands alone would not be seen
const numbers = (head, rows) => h('div', { class: 'scroll' }, h('table', { class: 'plain' },
  h('thead', null, h('tr', null, head.map((word, i) => h('th', { scope: 'col', class: i > 1 ? 'number' : null }, word)))),
  h('tbody', null, rows.map((row) => h('tr', null, row.map((cell, i) => h(i ? 'td' : 'th', { scope: i ? null : 'row', class: i > 1 ? 'number' : null }, cell)))))));

function heard() {
  if (!R.heard.length) return null;
  const said = R.heard.flatMap((one) => one.said);
  const rows = R.heard.flatMap((one) => Object.entries(one.ranges).map(([range, v], i) => [i ? '' : modelLabel(one.name), range.slice(1),
    counted(v.measured, 'picture'), digits(v.gradient), digits(v.plain), shareBar(v.share), signed(v.cosine, 2)]));
  const curves = R.heard.filter((one) => Object.values(one.share).some((line) => line.step.length > 1));
  const pairs = ALL_RANGES.filter((range) => curves.some((one) => one.share[range])).map((range) => [`t ${range.slice(1)}`, RANGE_COLOURS[ALL_RANGES.indexOf(range)]]);
  return section('heard', 'Was each loss heard?', 'What trains is a loss’s gradient at the network’s output, not its weight. It was measured now and then on a few pictures that the loss reached: '
    + 'its length beside the plain loss’s, its share of all that reaches the output, and whether the two pull the same way (cosine 1) or against each other (−1).',
    said.map((text) => h('p', { class: 'warning' }, text)),
    rows.length ? numbers(['loss', 't', 'measured', '|gradient|', '|plain|', 'share', 'cosine'], rows) : h('p', { class: 'nothing' }, 'Nothing was measured: no picture had what the losses look at, or the run was too short.'),
    h('p', { class: 'reached' }, R.heard.map((one) => `${one.name} reached ${reachedWords(one.reached)}. `)),
    curves.length ? [h('h3', null, 'Share of the gradient over the steps'), key(pairs), h('div', { class: 'curves' }, curves.map((one) =>
      panel(one.name, 'of the gradient of the pictures that it reached', stepPlot(`share of ${one.name}`, rangesOf(one.share), { raw: false, ends: [0, 1], dots: Object.values(one.share).every((line) => line.step.length <= FEW) }))))] : null);
}

const shareBar = (share) => {
  const bar = h('i', { class: 'share', 'aria-hidden': 'true' });
  bar.style.width = `${(100 * Math.min(share, 1)).toFixed(1)}%`;
  return [h('span', { class: 'share-of' }, bar), h('span', { class: 'share-number' }, percent(share))];
};
const reachedWords = ({ pictures, faces, hands }) => listed([counted(pictures, 'picture'), ...(faces ? [counted(faces, 'face')] : []), ...(hands ? [counted(hands, 'hand')] : [])]);

function proof() {
  if (!R.proof) return null;
  return section('proof', 'Start-up proof', R.proof.title.replace(/^Start-up proof */, 'Before the first step, on pictures of the training set '),
    numbers(['loss', 'verdict', 'weight', 'T', 'value', '|gradient|'], R.proof.rows.map(([loss, weight, limit, value, gradient, verdict]) =>
      [NAMES.includes(loss) ? modelLabel(loss) : loss, verdict, weight, limit, value, gradient])),
    R.proof.notes.map((note) => h('p', { class: 'reached' }, note)));
}
