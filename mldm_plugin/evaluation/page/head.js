// What was compared, what came out, and what must not be overlooked.

function head() {
  return h('header', { class: 'head', id: 'top' },
    h('p', { class: 'kicker' }, `mldm evaluate · ${day(R.made)}`),
    h('h1', null, OTHERS.length ? [whoIsCompared(), h('small', null, ' against '), h('span', null, FIRST)] : FIRST),
    OTHERS.length ? h('div', { class: 'verdicts' }, OTHERS.map(verdict)) :
      h('p', { class: 'lead' }, 'There is one model: its values stand alone, and nothing is better or worse.'),
    h('p', { class: 'abstract' }, whatWasCompared()),
    alerts());
}

/** What came out, in words, a line each; what is better and worse begins in its colour. */
function conclusion(name) {
  return R.conclusion[name].map((text) => {
    const [, word, rest] = /^(Better|Worse)?(.*)$/s.exec(text);
    return h('p', { class: word ? 'shown' : 'rest' }, word && h('strong', { class: word.toLowerCase() }, word), rest);
  });
}

const whoIsCompared = () => (OTHERS.length > 3 ? `${OTHERS.length} models` : OTHERS.map(inHeading));
const inHeading = (name, i) => [i ? (i === OTHERS.length - 1 ? h('small', null, ' and ') : h('small', null, ', ')) : null, h('span', null, name)];

const day = (made) => {
  const date = new Date(made);
  return Number.isNaN(date.getTime()) ? made :
    date.toLocaleDateString('en-GB', { day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' });
};

function sampler() {
  const how = R.sampling;
  return [how.sampler, `${how.steps} steps`, known(how.guidance) ? `guidance ${how.guidance}` : 'the pipeline’s guidance',
    how.eta ? `eta ${how.eta}` : false, `seed ${how.seed}`, known(how.resolution) && `${how.resolution} pixels`].filter(Boolean).join(', ');
}

function whatWasCompared() {
  const prompts = counted(R.cases.length, 'prompt'), again = R.sampling.repetitions;
  const drawn = R.models.some((model) => model.runs.some((run) => run.kind !== 'pictures'));
  const once = R.metrics.find((metric) => metric.kind === 'one_step');
  if (once && !R.cases.length) return `${NAMES.length === 1 ? 'One model' : `${NAMES.length} models`} looked at ${counted(once.cases, 'held-out photograph')} in single steps, with the same noise, by ${counted(R.metrics.length, 'metric')}; nothing was drawn.`;
  const times = again > 1 ? `, ${again} times each,` : '';
  const whose = NAMES.length === 1 ? 'One model' : `${NAMES.length} models`;
  const begin = drawn ? `${whose} drew ${NAMES.length > 1 ? 'the same ' : ''}${prompts}${times} from the same noise (${sampler()})` :
    `Pictures of ${prompts} by ${NAMES.length === 1 ? 'one model' : `${NAMES.length} models`} were measured`;
  const measured = `${drawn ? '; ' : ' by '}${counted(R.metrics.length, 'metric')}${drawn ? ' look at what came out' : ''}`;
  const photographs = once ? `, ${R.metrics.filter((metric) => metric.kind === 'one_step').length} of them at single steps from ${counted(once.cases, 'held-out photograph')}` : '';
  return `${begin}${measured}${photographs}.`;
}

function verdict(name) {
  const told = JUDGED.filter((metric) => differenceOf(metric, name));
  const of = (word) => told.filter((metric) => verdictOf(metric, name) === word);
  const [better, worse, rest] = [of('better'), of('worse'), of('not shown')];
  const own = better.filter((metric) => trainedOn(metric).some(([, models]) => models.includes(name)));
  return h('article', { class: `verdict ${colourOf(name)}` },
    OTHERS.length > 1 && h('p', { class: 'whose' }, h('b', null, name), ` against ${FIRST}`),
    h('div', { class: 'conclusion' }, conclusion(name)),
    h('p', { class: 'sentence' }, h('b', null, name),
      better.length ? [' is ', h('strong', { class: 'better' }, `better than ${FIRST} in ${better.length}`)] :
        [` is better than ${FIRST} in none`],
      ` of ${counted(told.length, 'metric')}, `,
      worse.length ? h('strong', { class: 'worse' }, `worse in ${worse.length}`) : 'worse in none',
      rest.length ? `; ${rest.length === told.length ? 'no' : `in the other ${rest.length} no`} difference is shown.` : '.',
      own.length ? h('em', { class: 'own' }, ` ${own.length} of those ${better.length} ${own.length === 1 ? 'looks' : 'look'} with a network that its own loss trained on.`) : null),
    h('p', { class: 'tally' }, [better, worse, rest].map((some) => some.map((metric) => tile(metric, name)))));
}

function tile(metric, name) {
  const word = verdictOf(metric, name), gap = differenceOf(metric, name);
  const link = h('a', { class: `tile ${word.replace(' ', '-')}`, href: `#metric-${metric.name}`, 'aria-label': `${metric.title}: ${word}` },
    GLYPH[word], trainedOn(metric).length ? h('i', { 'aria-hidden': 'true' }, '!') : null);
  return hint(link, () => [h('b', null, metric.title),
    h('p', null, `${word}: ${signed(gap.value, metric.decimals)} (${interval(gap, metric.decimals, signed)})`)], { tap: false });
}

function alerts() {
  const found = [...judges()].map(([network, [models, titles]]) => {
    const one = titles.length === 1;
    return [`${capital(listed(titles))} ${one ? 'is no independent judge' : 'are no independent judges'}.`,
      ` ${one ? 'It looks' : 'They look'} with ${network}, the network that the loss of ${listed(models)} trained on: a gain there may be the loss learnt by heart.`];
  });
  for (const [strong, reason] of R.warnings) found.push([strong, ` ${reason}`]);
  for (const [name, reason] of Object.entries(R.failed)) found.push([`The model ${name} failed`, ` and is left out: ${reason}`]);
  return [found.length ? h('div', { class: 'alert', role: 'note', 'aria-label': 'Warnings' },
    h('p', { class: 'alert-title' }, h('span', { 'aria-hidden': 'true' }, '⚠ '), found.length > 1 ? `${found.length} warnings` : 'Warning'),
    h('ul', null, found.map(([strong, text]) => h('li', null, h('b', null, strong), text)))) : null, ...R.notes.map(note), notMeasured()];
}

/** Folded: where there is too little to say much. */
function note([strong, reason]) {
  return h('details', { class: 'alert mild' }, h('summary', { class: 'alert-title' }, strong), h('p', null, reason));
}

/** Folded: which metrics are missing, those of one reason together. */
function notMeasured() {
  const names = Object.keys(R.missing), reasons = new Map();
  for (const name of names) reasons.set(R.missing[name], [...(reasons.get(R.missing[name]) ?? []), name]);
  return names.length ? h('details', { class: 'alert mild' },
    h('summary', { class: 'alert-title' }, `${counted(names.length, 'metric')} not measured: ${listed(names)}`),
    h('ul', null, [...reasons].map(([reason, some]) => h('li', null, h('b', null, listed(some)), `: ${reason}`)))) : null;
}

/** network → the models whose losses trained on it, the titles of the metrics that look with it. */
function judges() {
  const found = new Map();
  for (const metric of R.metrics) {
    for (const [network, models] of trainedOn(metric)) {
      if (!found.has(network)) found.set(network, [models, []]);
      found.get(network)[1].push(metric.title);
    }
  }
  return found;
}
