// How values are spread over prompts: a density, a dot for each prompt, the mean with its interval.

const LANE = { height: 58, base: 34, left: 10, right: 10, axis: 24 };
const CLOUD = 20; // values from which on a density says more than the dots

function spread() {
  const metrics = withCases();
  if (!metrics.length) return null;
  const lead = `Each dot is a prompt${ofRepetitions()}${OTHERS.length ? '; on the right, its difference between a model and ' : ''}${OTHERS.length ? FIRST : ''}. `
    + 'The mark is the mean with its 95 % interval.';
  const how = onScreen(' Hover a dot to read it, click it to see the pictures.');
  return section('spread', 'Distributions', [lead, how], h('div', { class: 'spreads' }, metrics.map(spreadPanel)));
}

function spreadPanel(metric) {
  const lanes = NAMES.map((name) => ({ name, values: metric.values[name] || [], estimate: estimateOf(metric, name) }));
  const first = metric.values[FIRST] || [];
  const gaps = OTHERS.map((name) => ({
    name, estimate: differenceOf(metric, name),
    values: (metric.values[name] || []).map((value, i) => (known(value) && known(first[i]) ? value - first[i] : null)),
  }));
  const caption = h('figcaption', null, h('b', null, `${metric.title} ${arrowOf(metric)}`), h('span', null, directionOf(metric)));
  const all = lanes.flatMap((lane) => lane.values.filter(known));
  if (all.every((value) => value === all[0])) {
    return h('figure', { class: 'panel' }, caption, h('p', null, all.length ? `All ${all.length} values are ${number(all[0], metric.decimals)}.` : 'Nothing was measured.'));
  }
  return h('figure', { class: 'panel' }, caption,
    h('div', { class: 'halves' },
      h('div', null, responsive((width) => lanePlot(metric, lanes, width, false))),
      gaps.length ? h('div', null, responsive((width) => lanePlot(metric, gaps, width, true))) : null));
}

function lanePlot(metric, lanes, width, gaps) {
  const ends = reach([...lanes.flatMap((lane) => [...lane.values, ...endsOf([lane.estimate])]), ...(gaps ? [0] : [])], 0.04);
  const x = linear(...ends, LANE.left, width - LANE.right), height = lanes.length * LANE.height + LANE.axis;
  const dots = [];
  const drawn = lanes.map((lane, i) => oneLane(lane, i * LANE.height, x, ends, gaps, dots));
  const good = metric.better === 'smaller' ? [LANE.left, x(0)] : [x(0), width - LANE.right];
  const ring = s('circle', { class: 'ring', r: 5.5, visibility: 'hidden' });
  const what = `${gaps ? `Differences to ${FIRST} in ` : ''}${metric.title}, a dot for each prompt, by model`;
  const plot = canvas(width, height, what,
    gaps && s('rect', { class: 'good', x: good[0], y: 0, width: Math.max(good[1] - good[0], 0), height: height - LANE.axis }),
    ticks(...ends, Math.max(2, Math.floor(width / 110))).map(([value, text]) => [
      s('path', { class: 'grid', d: `M${x(value)} 0V${height - LANE.axis}` }),
      s('text', { x: x(value), y: height - 7, 'text-anchor': place(x(value), width) }, gaps && value > 0 ? `+${text}` : text)]),
    gaps && s('path', { class: 'zero', d: `M${x(0)} 0V${height - LANE.axis}` }), drawn, ring);
  return pointable(plot, metric, dots, ring, gaps);
}

const place = (x, width) => (x > width - 24 ? 'end' : x < 24 ? 'start' : 'middle');

function oneLane(lane, top, x, ends, gaps, dots) {
  const base = top + LANE.base, some = lane.values.filter(known), path = [];
  lane.values.forEach((value, i) => {
    if (!known(value)) return;
    const dot = { x: x(value), y: base + 8 + 12 * jitter(i), i, name: lane.name, value };
    dots.push(dot);
    path.push(`M${dot.x.toFixed(1)} ${dot.y.toFixed(1)}h0`);
  });
  return s('g', { class: `lane ${colourOf(lane.name)}` },
    cloud(some, x, ends, base), s('path', { class: 'floor', d: `M${LANE.left} ${base}H${x(ends[1])}` }),
    s('path', { class: 'dots', d: path.join('') }), whisker(lane.estimate, lane.name, x, base),
    s('text', { x: LANE.left, y: top + 13, class: 'lane-name' }, gaps ? `${lane.name} − ${FIRST}` : lane.name));
}

/** In [0, 1], the same at every visit: multiples of the golden ratio lie evenly. */
const jitter = (i) => (i * 0.6180339887) % 1;

/** A density by Gaussian kernels of Silverman's width. */
function cloud(values, x, ends, base) {
  const n = values.length, sorted = [...values].sort((a, b) => a - b);
  if (n < CLOUD || !(sorted[n - 1] > sorted[0])) return null;
  const mean = values.reduce((sum, value) => sum + value, 0) / n;
  const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1));
  const middle = (sorted[Math.floor(0.75 * (n - 1))] - sorted[Math.floor(0.25 * (n - 1))]) / 1.34;
  const width = Math.max(0.9 * (middle > 0 ? Math.min(deviation, middle) : deviation) * n ** -0.2, (ends[1] - ends[0]) / 150);
  const steps = Array.from({ length: 97 }, (_, i) => ends[0] + ((ends[1] - ends[0]) * i) / 96);
  const heights = steps.map((at) => values.reduce((sum, value) => sum + Math.exp(-0.5 * ((at - value) / width) ** 2), 0));
  const most = Math.max(...heights);
  const points = steps.map((at, i) => `${x(at).toFixed(1)} ${(base - (24 * heights[i]) / most).toFixed(1)}`);
  return s('path', { class: 'cloud', d: `M${x(ends[0])} ${base}L${points.join('L')}L${x(ends[1])} ${base}Z` });
}

function pointable(plot, metric, dots, ring, gaps) {
  let near = null;
  const hide = () => { near = null; ring.setAttribute('visibility', 'hidden'); plot.classList.remove('near'); hideHint(); };
  plot.addEventListener('pointermove', (event) => {
    const box = plot.getBoundingClientRect(), scale = plot.viewBox.baseVal.width / box.width;
    const at = { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
    const away = (dot) => (dot.x - at.x) ** 2 + (dot.y - at.y) ** 2;
    const found = dots.reduce((best, dot) => (!best || away(dot) < away(best) ? dot : best), null);
    if (!found || away(found) > 400) return hide();
    if (found === near) return;
    near = found;
    ring.setAttribute('cx', near.x); ring.setAttribute('cy', near.y); ring.setAttribute('visibility', 'visible');
    plot.classList.add('near');
    const one = R.cases[near.i], left = box.left + near.x / scale, top = box.top + near.y / scale;
    showHint(plot, [h('b', null, gaps ? signed(near.value, metric.decimals + 1) : number(near.value, metric.decimals + 1)),
      ' ', modelLabel(near.name), h('p', null, one.text || one.key)], { left, width: 0, top: top - 6, bottom: top + 6 });
  });
  plot.addEventListener('pointerleave', hide);
  plot.addEventListener('click', () => {
    const keys = R.cases.map((one) => one.key).filter((key) => NAMES.some((name) => pictureOf(name, key)));
    const at = near ? keys.indexOf(R.cases[near.i].key) : -1;
    if (at >= 0) openCase(keys, at, null);
  });
  return plot;
}
