// Where a model is farthest from the first, in both directions.

const CARDS = 4;

function extremes() {
  const metrics = withCases();
  if (!metrics.length) return null;
  const names = OTHERS.length ? OTHERS : NAMES;
  const place = h('div', { class: 'extremes' });
  const chosen = h('p', { class: 'on-paper' });
  const draw = () => {
    const shown = R.metrics.find((one) => one.name === metric.value);
    chosen.textContent = `${capital(shown.title)}${names.length > 1 ? `, ${model.value}` : ''}.`;
    place.replaceChildren(...columns(shown, model.value));
  };
  const metric = choice('Metric', metrics.map((one) => [one.name, one.title]), draw);
  const model = choice('Model', names.map((name) => [name, name]), draw);
  metric.value = (metrics.find((one) => names.some((name) => verdictOf(one, name) !== 'not shown')) || metrics[0]).name;
  model.value = names[names.length - 1];
  draw();
  const lead = OTHERS.length ? `The prompts in which a model differs most from ${FIRST}, for better and for worse${ofRepetitions() ? `; values are means over ${R.sampling.repetitions} pictures, of which the first is shown` : ''}.` : 'The prompts with the best and the worst values.';
  return section('extremes', 'Best and worst', lead,
    h('p', { class: 'choices' }, h('label', null, 'Metric ', metric), names.length > 1 && h('label', null, 'Model ', model)), chosen, place);
}

const choice = (label, options, onchange) =>
  h('select', { 'aria-label': label, onchange }, options.map(([value, text]) => h('option', { value }, text)));

/** Cases with how good they are: the gain over the first model, or the value where there is one model. */
function ranked(metric, name) {
  const sign = metric.better === 'smaller' ? -1 : 1, one = metric.values[name] || [], first = metric.values[FIRST] || [];
  return R.cases.map((given, i) => ({ key: given.key, value: one[i], first: first[i] }))
    .filter((each) => known(each.value) && (name === FIRST || known(each.first)))
    .map((each) => ({ ...each, gain: sign * (name === FIRST ? each.value : each.value - each.first) }))
    .sort((a, b) => b.gain - a.gain);
}

function columns(metric, name) {
  const order = ranked(metric, name), alone = name === FIRST;
  const best = order.filter((one) => alone || one.gain > 0).slice(0, CARDS);
  const worst = order.filter((one) => !best.includes(one) && (alone || one.gain < 0)).slice(-CARDS).reverse();
  const keys = [...best, ...worst].map((one) => one.key);
  const column = (word, title, some) => h('div', { class: `column ${word}` },
    h('h3', null, h('span', { class: `pill ${word}` }, h('span', { 'aria-hidden': 'true' }, `${GLYPH[word]} `), word), ` ${title}`),
    some.length ? some.map((one) => card(metric, name, one, keys)) : h('p', { class: 'nothing' }, 'There is no such prompt.'));
  return [column('better', alone ? 'the best values' : `${name} gains most`, best),
    column('worse', alone ? 'the worst values' : `${name} loses most`, worst)];
}

function card(metric, name, one, keys) {
  const digits = metric.decimals + 1, rows = name === FIRST ? [name] : [FIRST, name];
  const value = { [FIRST]: one.first, [name]: one.value };
  const gap = name === FIRST ? null : h('b', { class: 'number' }, signed(one.value - one.first, digits));
  return h('article', { class: 'card' },
    h('div', { class: 'pair' }, rows.map((row) => h('figure', null, shot(row, one.key, keys),
      h('figcaption', null, modelLabel(row), h('span', { class: 'number' }, number(value[row], digits)))))),
    h('p', null, gap, hint(h('span', { class: 'prompt' }, wordsOf(one.key) || one.key), () => h('p', null, wordsOf(one.key) || one.key))));
}
