// Every metric, every model: values on a shared scale, differences against zero.

const CHART = { width: 176, height: 26 };

function summary() {
  const lead = OTHERS.length ? ['Dots with 95 % intervals; in the right column, shading marks the better side of zero. '
    + 'A verdict is given only where the interval leaves out zero and Holm’s correction agrees.', onScreen(' Hover or tap a verdict for its p.')] :
    'Dots with 95 % intervals.';
  return section('summary', 'Summary', lead, JUDGED.length || !R.metrics.length ? table(JUDGED) : null, tooFew());
}

function table(metrics) {
  const body = KINDS.map(([kind, title, what]) => {
    const some = metrics.filter((metric) => metric.kind === kind);
    return some.length ? [h('tbody', { class: 'kind' },
      h('tr', null, h('th', { colspan: 8, scope: 'rowgroup' }, title, h('small', null, what)))), some.map(rows)] : null;
  });
  const head = ['metric', 'model', 'value', '', OTHERS.length ? `difference to ${FIRST}` : '', '', '', ''];
  return h('table', { class: 'summary' },
    h('thead', null, h('tr', null, head.map((word) => h(word ? 'th' : 'td', word ? { scope: 'col' } : null, word)))), body);
}

/** Folded: what so few cases were asked of that no difference could be shown. */
function tooFew() {
  const some = R.metrics.filter((metric) => metric.too_few);
  const cases = [...new Set(some.map(casesOf))];
  return some.length ? h('details', { class: 'few' },
    h('summary', null, `${counted(some.length, 'metric')} on ${listed(cases)}: too few to show any difference`), table(some)) : null;
}

function rows(metric) {
  const x = linear(...reach(endsOf(NAMES.map((name) => estimateOf(metric, name)))), 6, CHART.width - 6);
  const gaps = endsOf(OTHERS.map((name) => differenceOf(metric, name)));
  const across = linear(...reach([...gaps, 0]), 6, CHART.width - 6);
  return h('tbody', { class: 'metric', id: `metric-${metric.name}` }, NAMES.map((name, i) =>
    h('tr', null, i === 0 && titleCell(metric), valueCells(metric, name, x), differenceCells(metric, name, across))));
}

function titleCell(metric) {
  return h('th', { rowspan: NAMES.length, scope: 'rowgroup', class: 'title' },
    h('span', { class: 'words' }, metric.title, '\u00a0',
      h('abbr', { class: 'arrow', title: directionOf(metric) }, arrowOf(metric), h('span', { class: 'unseen' }, ` ${directionOf(metric)}`))),
    h('small', null, h('a', { href: `#means-${metric.name}`, title: 'what it means' }, metric.name),
      metric.cases ? ` · ${casesOf(metric)}` : null, rowsOf(metric)),
    trainedOn(metric).map(([network, models]) =>
      h('small', { class: 'own' }, `⚠ ${network}: trained on by ${listed(models)}`)));
}

/** How many pictures, people or faces the sets hold: a distance is smaller of more. */
function rowsOf(metric) {
  const some = Object.values(metric.rows || {}), least = Math.min(...some), most = Math.max(...some);
  return some.length ? ` · N = ${least}${most > least ? `–${most}` : ''}` : null;
}

function valueCells(metric, name, x) {
  const estimate = estimateOf(metric, name), first = estimateOf(metric, FIRST);
  const said = estimate && known(estimate.value) ? `${number(estimate.value, metric.decimals)}, ${interval(estimate, metric.decimals)}` : 'not measured';
  const value = h('td', { class: 'number value' }, estimate ? number(estimate.value, metric.decimals) : '–');
  const line = first && known(first.value) && s('path', { class: 'guide', d: `M${x(first.value)} 0V${CHART.height}` });
  const chart = canvas(CHART.width, CHART.height, `${name}: ${said}`, line, whisker(estimate, name, x, CHART.height / 2));
  return [h('td', { class: 'name', title: name }, modelLabel(name)), value,
    h('td', { class: 'plot' }, hint(h('span', { class: 'hinted' }, chart), () =>
      [modelLabel(name), h('p', null, said)], { focusable: false }))];
}

function differenceCells(metric, name, x) {
  if (name === FIRST) return OTHERS.length ? h('td', { class: 'reference', colspan: 4 }, 'the reference') : h('td', { colspan: 4 });
  const gap = differenceOf(metric, name), word = verdictOf(metric, name), className = word.replace(' ', '-');
  if (!gap || !known(gap.value)) return h('td', { class: 'reference', colspan: 4 }, 'nothing to compare');
  const zero = x(0), height = CHART.height;
  const side = metric.better === 'smaller' ? [0, zero] : [zero, CHART.width - zero];
  const said = `${signed(gap.value, metric.decimals)} (${interval(gap, metric.decimals, signed)})`;
  return [
    h('td', { class: `number difference ${className}` }, h('span', null, signed(gap.value, metric.decimals)),
      h('small', null, interval(gap, metric.decimals, signed))),
    h('td', { class: 'plot gap' }, canvas(CHART.width, height, `difference: ${said}`,
      s('rect', { class: 'good', x: side[0], y: 0, width: Math.max(side[1], 0), height }),
      s('path', { class: 'zero', d: `M${zero} 0V${height}` }), whisker(gap, name, x, height / 2))),
    h('td', { class: 'said' }, verdictPill(metric, name)),
    h('td', { class: 'note' }, noteOf(metric, gap))];
}

function verdictPill(metric, name) {
  const gap = differenceOf(metric, name), word = verdictOf(metric, name);
  const pill = h('button', { type: 'button', class: `pill ${word.replace(' ', '-')}` }, h('span', { 'aria-hidden': 'true' }, `${GLYPH[word]} `), word);
  return hint(pill, () => [h('b', null, `${name} − ${FIRST}, ${metric.title}`), facts([
    ['difference', signed(gap.value, metric.decimals)], ['95 % interval', interval(gap, metric.decimals, signed)],
    ['p (Holm)', probability(gap.p_holm)], ['p, uncorrected', probability(gap.p)],
    ['effect, d', known(gap.effect) ? `${number(gap.effect, 2)}${gap.words ? `, ${gap.words}` : ''}` : '–'],
    [unitOf(metric), metric.cases || '–']])]);
}

function noteOf(metric, gap) {
  const needed = known(gap.needed) ? `needs about ${gap.needed.toLocaleString('en-GB')} ${unitOf(metric)}` : null;
  const apart = gap.verdict === 'not shown' && hasInterval(gap) && (gap.low > 0 || gap.high < 0);
  const doubt = apart ? (known(gap.p_holm) ? `but p (Holm) is ${probability(gap.p_holm)}` : `but p of ${casesOf(metric)} is never below 0.05`) : null;
  return [gap.words && `${gap.words} effect`, needed, doubt].filter(Boolean).map((words) => h('span', null, words));
}
