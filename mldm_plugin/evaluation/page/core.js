// What everything else stands on: the results, elements, numbers, the models' marks.

const R = JSON.parse(document.getElementById('results').textContent);
const NAMES = R.models.map((model) => model.name);
const FIRST = NAMES[0];
const OTHERS = NAMES.slice(1);
const CASES = new Map(R.cases.map((one) => [one.key, one]));
const JUDGED = R.metrics.filter((metric) => !metric.too_few);
const KINDS = [
  ['picture', 'Each picture', 'a value for each prompt, paired by prompt and noise'],
  ['set', 'All pictures together', 'a distance of all pictures to the photographs'],
  ['one_step', 'One step', 'the clean estimate of held-out photographs at the same noise, mean over t'],
];
const GLYPH = { better: '▲', worse: '▼', 'not shown': '·' };

// Elements. Strings become text nodes, so nothing that a prompt or a name says is ever read as markup.

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  filled(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

// Words and numbers.

const counted = (number, one, many) => `${number} ${number === 1 ? one : many || `${one}s`}`;
const listed = (words) =>
  words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words[words.length - 1]}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const known = (value) => value !== null && value !== undefined;

function number(value, decimals) {
  if (!known(value)) return '–';
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-6)) return value.toExponential(1).replace(/-/g, '−');
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace('-', '') : text.replace('-', '−');
}

const signed = (value, decimals) => (value > 0 ? '+' : '') + number(value, decimals);
const hasInterval = (estimate) => known(estimate) && known(estimate.low) && known(estimate.high);
const interval = (estimate, decimals, written = number) =>
  hasInterval(estimate) ? `${written(estimate.low, decimals)} to ${written(estimate.high, decimals)}` : 'no interval';
const probability = (p) => (!known(p) ? '–' : p < 0.001 ? '< 0.001' : p.toFixed(3));
const estimateOf = (metric, name) => metric.models[name] || null;
const differenceOf = (metric, name) => metric.differences[name] || null;
const verdictOf = (metric, name) => (differenceOf(metric, name) || {}).verdict || 'not shown';
const unitOf = (metric) => (metric.kind === 'one_step' ? 'photographs' : 'prompts');
const casesOf = (metric) => counted(metric.cases, metric.kind === 'one_step' ? 'photograph' : 'prompt');
const arrowOf = (metric) => (metric.better === 'smaller' ? '↓' : '↑');
const directionOf = (metric) => (metric.better === 'smaller' ? 'smaller is better' : 'larger is better');
const trainedOn = (metric) => Object.entries(metric.trained_on || {});
const ofRepetitions = () => (R.sampling.repetitions > 1 ? `, the mean of its ${R.sampling.repetitions} pictures` : '');
const withCases = () => R.metrics.filter((metric) => metric.kind === 'picture' && Object.keys(metric.values).length);

// Each model has a colour and a shape, so that neither has to say it alone.

const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
  (x, y, r) => `M${x - 0.9 * r} ${y - 0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`,
  (x, y, r) => `M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}Z`,
  (x, y, r) => `M${x} ${y - 1.2 * r}L${x + 1.15 * r} ${y + 0.9 * r}H${x - 1.15 * r}Z`,
  (x, y, r) => `M${x} ${y + 1.2 * r}L${x + 1.15 * r} ${y - 0.9 * r}H${x - 1.15 * r}Z`,
  (x, y, r) => `M${x + 1.2 * r} ${y}L${x - 0.9 * r} ${y - 1.15 * r}V${y + 1.15 * r}Z`,
  (x, y, r) => `M${x - 1.2 * r} ${y}L${x + 0.9 * r} ${y - 1.15 * r}V${y + 1.15 * r}Z`,
  (x, y, r) => `M${x - 0.6 * r} ${y - 1.1 * r}h${1.2 * r}l${0.6 * r} ${1.1 * r}l${-0.6 * r} ${1.1 * r}h${-1.2 * r}l${-0.6 * r} ${-1.1 * r}Z`,
];
const colourOf = (name) => `m${NAMES.indexOf(name) % SHAPES.length}`;
const shapeOf = (name, x, y, r) => SHAPES[NAMES.indexOf(name) % SHAPES.length](x, y, r);
const markOf = (name) =>
  s('svg', { class: 'mark', viewBox: '0 0 12 12', 'aria-hidden': 'true' }, s('path', { d: shapeOf(name, 6, 6, 4) }));
const modelLabel = (name) => h('span', { class: `model ${colourOf(name)}` }, markOf(name), h('span', null, breakable(name)));
const breakable = (name) => name.split(/(?<=_)/).flatMap((part, i) => (i ? [h('wbr'), part] : [part]));
const onScreen = (text) => h('span', { class: 'on-screen' }, text); // what paper cannot do
const legend = (names = NAMES) => h('p', { class: 'legend' }, names.map(modelLabel));

function section(id, title, lead, ...content) {
  return h('section', { id, 'aria-labelledby': `${id}-title` },
    h('h2', { id: `${id}-title` }, title), lead && h('p', { class: 'lead' }, lead), content);
}
