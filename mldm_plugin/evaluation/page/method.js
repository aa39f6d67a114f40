// How it was made.

function method() {
  const software = Object.entries(R.versions).map(([name, version]) => `${name} ${version}`).join(' · ');
  const said = [['command', h('pre', null, R.command || '–')], ['sampler', sampler()],
    ['prompts', `${R.cases.length}${R.sampling.repetitions > 1 ? `, ${R.sampling.repetitions} pictures of each` : ''}`],
    ['photographs', known(R.photographs) ? String(R.photographs) : 'none'], ['made', R.made], ['software', software]];
  return section('method', 'How it was made', null,
    h('dl', { class: 'how' }, said.map(([name, value]) => [h('dt', null, name), h('dd', null, value)])),
    h('h3', null, 'Models'), h('div', { class: 'scroll' }, modelsTable()), proofs(),
    h('h3', null, 'What the metrics mean'), h('div', { class: 'scroll' }, metricsTable()),
    h('h3', null, 'Statistics'), h('p', { class: 'prose' }, STATISTICS.join(' ')));
}

const STATISTICS = [
  'Differences are paired, prompt by prompt from the same noise, with 95 % intervals from a bootstrap over prompts; '
  + 'distances of sets have a jackknife over groups of prompts, and models with several training seeds Student’s t over prompts and seeds.',
  'A difference is called better or worse only where its interval leaves out zero and its p, corrected by Holm for the number of metrics, is below 0.05 '
  + '(metrics of so few cases that their p could never be below 0.05 are not counted, and never called either); '
  + 'where it is not shown, the number of prompts is told that would show a true difference of the size that was seen in four of five evaluations.',
];

/** What each training showed before its first step: that its losses reach the network. */
function proofs() {
  const told = R.models.flatMap((model) => model.runs.filter((run) => run.proof).map((run) => [model.name, run.proof]));
  return told.length ? [h('h3', null, 'Start-up proofs'), told.map(([name, proof]) =>
    h('details', null, h('summary', null, modelLabel(name)), h('div', { class: 'scroll' }, h('pre', { class: 'proof' }, proof))))] : null;
}

function modelsTable() {
  const runs = R.models.flatMap((model) => model.runs.map((run, i) => h('tr', null,
    i === 0 && h('th', { scope: 'row', rowspan: model.runs.length }, modelLabel(model.name)),
    h('td', null, run.kind), h('td', null, h('code', null, run.what)), h('td', null, run.base ? h('code', null, run.base) : '–'),
    h('td', null, run.digest ? h('code', null, run.digest) : '–'))));
  return h('table', { class: 'plain' },
    h('thead', null, h('tr', null, ['model', 'kind', 'source', 'base', 'digest'].map((word) => h('th', { scope: 'col' }, word)))), h('tbody', null, runs));
}

function metricsTable() {
  const kinds = Object.fromEntries(KINDS.map(([kind, title]) => [kind, title.toLowerCase()]));
  const what = Object.fromEntries((R.curves || []).map((curve) => [curve.name, curve.what]));
  return h('table', { class: 'plain' },
    h('thead', null, h('tr', null, ['metric', 'title', 'better', 'of', 'networks'].map((word) => h('th', { scope: 'col' }, word)))),
    h('tbody', null, R.metrics.map((metric) => h('tr', { id: `means-${metric.name}` },
      h('th', { scope: 'row' }, h('a', { href: `#metric-${metric.name}` }, h('code', null, metric.name))),
      h('td', null, metric.title, what[metric.name] ? h('small', null, ` ${what[metric.name]}`) : null),
      h('td', null, `${arrowOf(metric)} ${metric.better}`), h('td', null, kinds[metric.kind]),
      h('td', null, (metric.networks || []).join(', ') || '–')))));
}
