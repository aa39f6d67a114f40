// Photographs that are not trained on, looked at again and again at the same t and noise: is it getting better?

const ALL_T = 'all-t';
const changed = (value) => (value > 0 ? '+' : '') + digits(value);
const VERDICTS = { better: ['better', 'better'], worse: ['worse', 'worse'], 'not shown': ['not-shown', 'no change shown'], 'too few': ['not-shown', 'too few to tell'], 'not finite': ['worse', 'not finite'] };

function validation() {
  const told = R.validation, title = 'Is it getting better?';
  if (!told) return null;
  if (told.unread) return section('validation', title, told.unread);
  const { quantities, steps } = told, several = steps.length > 1;
  const used = ALL_RANGES.filter((range) => quantities.some((one) => one.ranges[range]));
  const pairs = [['all t', ALL_T], ...used.map((range) => [`t ${range.slice(1)}`, RANGE_COLOURS[ALL_RANGES.indexOf(range)]])];
  const lead = [`${counted(told.photographs, 'photograph')} that ${told.photographs === 1 ? 'is' : 'are'} not trained on (`, breakablePath(told.where), `), looked at ${times(steps)}, `
    + 'each time at the same t and with the same noise, so that only the network differs. '];
  if (!quantities.length) return section('validation', title, [...lead, 'Nothing that was measured was finite.']);
  return section('validation', title, [...lead, `All that is measured is better when smaller. ${several ? drawn(quantities, steps) : 'A second look will tell whether it gets better.'}`],
    several && told.best ? h('p', { class: 'best' }, `${capital(told.best)}.`) : null,
    several ? key(pairs) : null, h('div', { class: 'curves level' }, quantities.map((one) => quantityPanel(one, several))), changedMost(told));
}

const since = (step) => (step ? `step ${step}` : 'before training');
const times = (steps) => (steps.length === 1 ? `once, ${steps[0] ? 'at ' : ''}${since(steps[0])}` : `${steps.length} times, from ${since(steps[0])} to step ${steps[steps.length - 1]}`);
const drawn = (quantities, steps) => `Drawn is the change since ${since(steps[0])}: below the line is better.`
  + (quantities.some((one) => known(one.gap.low)) ? ' In brackets stands the 95 % interval of the whole change, over photographs.' : '');

function quantityPanel(one, several) {
  const { title, what, photographs, all, ranges, gap } = one, last = all.value[all.value.length - 1];
  const some = photographs < R.validation.photographs ? ` (${counted(photographs, 'photograph')})` : '';
  if (!several) return panel(title, `${what}${some}: ${digits(last)}`);
  const [kind, words] = VERDICTS[gap.verdict], decimals = decimalsOf([gap.value, gap.low, gap.high], 2);
  const ends = known(gap.low) ? ` (${signed(gap.low, decimals)} to ${signed(gap.high, decimals)})` : '';
  const lines = [...rangesOf(ranges), { ...all, label: 'all t', colour: ALL_T }].filter((line) => line.smooth.some(known));
  return panel([h('span', { class: 'title' }, title), h('span', { class: `pill ${kind}` }, words)],
    [`${what}${some}`, h('span', { class: 'gap' }, fromTo(all.value[0], last), known(gap.value) ? `, ${signed(gap.value, decimals)}${ends}` : '')],
    lines.length ? stepPlot(`change of ${title}`, lines, { raw: false, zero: true, dots: true }) : null);
}

/** How many decimals show so many digits of the largest. */
function decimalsOf(values, digitsShown) {
  const most = Math.max(...values.filter(known).map(Math.abs), 0);
  return most ? Math.min(Math.max(digitsShown - 1 - Math.floor(Math.log10(most)), 0), 9) : digitsShown;
}

/** Both with the same decimals: three digits of the larger, or as many as tell them apart. */
function fromTo(first, last) {
  const apart = known(first) && known(last) ? decimalsOf([last - first], 1) : 0;
  const decimals = Math.max(decimalsOf([first, last], 3), first === last ? 0 : apart);
  return `${number(first, decimals)} → ${number(last, decimals)}`;
}

const breakablePath = (path) => path.split(/(?<=[/\\])/).flatMap((part, i) => (i ? [h('wbr'), part] : [part]));

function changedMost({ quantities, pictures, steps }) {
  const some = quantities.filter((one) => one.better.length || one.worse.length);
  if (!some.length) return null;
  const rows = some.flatMap((one) => [...one.better, ...one.worse]).map(([row]) => row);
  const away = rows.some((row) => !pictures[row]) ? ' Those that are not on this machine, or no longer as they were, are named by their rows.' : '';
  const one = ([row, first, last]) => {
    const picture = pictures[row], name = picture ? picture.name : `row ${row}`;
    return h('figure', null, picture ? h('img', { src: `data:image/jpeg;base64,${picture.src}`, alt: name, title: name }) : null,
      h('figcaption', null, h('span', { class: 'file', title: name }, name.split('/').pop()), h('span', null, fromTo(first, last))));
  };
  const row = (title, kind, photographs) => [h('p', { class: `most ${photographs.length ? kind : 'none'}` }, photographs.length ? `${title} most` : `none ${title}`), h('div', { class: 'changed' }, photographs.map(one))];
  return [h('h3', null, 'Photographs that changed most'),
    h('p', { class: 'lead' }, `From ${since(steps[0])} to step ${steps[steps.length - 1]}, means over all t. What do those that got worse have in common?${away}`),
    h('div', { class: 'curves' }, some.map((quantity) => panel(quantity.title, null, row('improved', 'better', quantity.better), row('worsened', 'worse', quantity.worse))))];
}
