// Photographs that are not trained on, looked at again and again at the same t and noise: is it getting better?

const ALL_T = 'all-t';
const changed = (value) => (value > 0 ? '+' : '') + digits(value);
const VERDICTS = { better: ['better', 'better'], worse: ['worse', 'worse'], 'not shown': ['not-shown', 'no change shown'] };

function validation() {
  const told = R.validation;
  if (!told) return null;
  const { quantities, steps } = told, several = steps.length > 1;
  const used = ALL_RANGES.filter((range) => quantities.some((one) => one.ranges[range]));
  const pairs = [['all t', ALL_T], ...used.map((range) => [`t ${range.slice(1)}`, RANGE_COLOURS[ALL_RANGES.indexOf(range)]])];
  const lead = [`${counted(told.photographs, 'photograph')} that ${told.photographs === 1 ? 'is' : 'are'} not trained on (${told.where}), looked at ${times(steps)}, `
    + 'each time at the same t and with the same noise, so that only the network differs. All that is measured is better when smaller. ',
  several ? `Drawn is the change since ${since(steps[0])}: below the line is better. In brackets stands the 95 % interval of the whole change, over photographs.` : 'A second look will tell whether it gets better.'];
  return section('validation', 'Is it getting better?', lead, several && told.best ? h('p', { class: 'best' }, `${capital(told.best)}.`) : null,
    several ? key(pairs) : null, h('div', { class: 'curves' }, quantities.map((one) => panel(one.title, wordsOf(one, steps),
      several ? stepPlot(`change of ${one.title}`, [...rangesOf(one.ranges), { ...one.all, label: 'all t', colour: ALL_T }], { raw: false, zero: true, dots: true }) : null))),
    changedMost(told));
}

const since = (step) => (step ? `step ${step}` : 'before training');
const times = (steps) => (steps.length === 1 ? (steps[0] ? `once, at step ${steps[0]}` : 'once, before training') : `${steps.length} times, from ${steps[0] ? `step ${steps[0]}` : 'before training'} to step ${steps[steps.length - 1]}`);

function wordsOf({ what, photographs, all, gap }, steps) {
  const last = all.value[steps.length - 1], some = photographs < R.validation.photographs ? ` (${counted(photographs, 'photograph')})` : '';
  if (!gap) return `${what}${some}: ${digits(last)}`;
  const [kind, words] = VERDICTS[gap.verdict];
  const most = Math.max(...[gap.value, gap.low, gap.high].filter(known).map(Math.abs)), decimals = most ? Math.max(1 - Math.floor(Math.log10(most)), 0) : 2;
  const ends = known(gap.low) ? ` (${signed(gap.low, decimals)} to ${signed(gap.high, decimals)})` : '';
  return [`${what}${some}`, h('span', { class: 'gap' }, `${digits(all.value[0])} → ${digits(last)}, ${signed(gap.value, decimals)}${ends} `, h('b', { class: `pill ${kind}` }, words))];
}

function changedMost({ quantities, pictures, steps }) {
  const some = quantities.filter((one) => one.better.length || one.worse.length);
  if (!some.length) return null;
  const one = ([row, first, last]) => {
    const picture = pictures[row], name = picture ? picture.name : `row ${row}`;
    return h('figure', null, picture ? h('img', { src: `data:image/jpeg;base64,${picture.src}`, alt: name, title: name, loading: 'lazy' }) : h('code', null, name),
      h('figcaption', null, `${digits(first)} → ${digits(last)}`));
  };
  const row = (title, kind, photographs) => [h('p', { class: `most ${photographs.length ? kind : 'none'}` }, photographs.length ? `${title} most` : `none ${title}`), h('div', { class: 'changed' }, photographs.map(one))];
  return [h('h3', null, 'Photographs that changed most'),
    h('p', { class: 'lead' }, `From ${since(steps[0])} to step ${steps[steps.length - 1]}, means over all t. What do those that got worse have in common?`),
    h('div', { class: 'curves' }, some.map((quantity) => panel(quantity.title, null, row('improved', 'better', quantity.better), row('worsened', 'worse', quantity.worse))))];
}
