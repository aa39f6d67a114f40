// The losses over the steps, and over the steps by range of t.

const RANGE_COLOURS = ['m1', 'm3', 'm5', 'm2', 'm4'];
const rangesOf = (lines) => Object.entries(lines).map(([range, line]) => ({ ...line, label: `t ${range.slice(1)}`, colour: RANGE_COLOURS[ALL_RANGES.indexOf(range) % 5] }));
const ALL_RANGES = ['t0-99', 't100-199', 't200-399', 't400-699', 't700-999'];
const TITLES = { loss: 'loss', ldm: 'plain loss', lr: 'learning rate' };
const WHAT = { ldm: 'of all pictures' };

function curves() {
  if (!R.curves.length) return null;
  const thinned = R.curves.some((curve) => curve.thinned) ? ` Drawn are ${R.points} points of each curve, means of neighbouring steps.` : '';
  const lead = `Faint is every step, which jumps with the t that it drew; bold is the mean of a tenth of the run around it.${thinned}`;
  return section('losses', 'Losses', [lead, onScreen(' Hover, or focus a plot and use the arrow keys, to read values.')],
    h('div', { class: 'curves' }, R.curves.map((curve) => {
      const reached = R.steps.reached[curve.name];
      const of = known(reached) && R.steps.images ? `; reached ${reached} of about ${R.steps.images}` : known(reached) ? `; reached ${reached}` : '';
      return panel(TITLES[curve.name] || curve.name, `${curve.what}${of}`, stepPlot(curve.name, [{ ...curve, label: curve.name, colour: colourOf(curve.name) }], { raw: curve.name !== 'lr' }));
    })));
}

function ranges() {
  if (!R.ranges.length) return null;
  const pairs = ALL_RANGES.filter((range) => R.ranges.some((one) => one.ranges[range])).map((range) => [`t ${range.slice(1)}`, RANGE_COLOURS[ALL_RANGES.indexOf(range)]]);
  return section('by-t', 'Losses by t', 'The same losses, each over pictures whose t lies in a range: what is left of the jumps of the curves above is a trend.',
    key(pairs), h('div', { class: 'curves' }, R.ranges.map((one) =>
      panel(TITLES[one.name] || one.name, WHAT[one.name] || 'of the pictures that it reached', stepPlot(`${one.name} by range of t`, rangesOf(one.ranges), { raw: false })))));
}
