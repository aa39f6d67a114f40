// The one-step quantities over t, and beneath each the difference to the first model.

const PLOT = { left: 46, right: 10, top: 8, bottom: 24 };

function curves() {
  if (!R.curves || !R.curves.length) return null;
  const names = NAMES.filter((name) => R.curves.some((curve) => curve.models[name]));
  const lead = 'Held-out photographs are noised to t and cleaned in one step, every model with the same noise. '
    + 'Bands are 95 % intervals over photographs; smaller is better, the side that is shaded.';
  const how = onScreen(' Hover, or focus a plot and use the arrow keys, to read values.');
  return section('curves', 'One step, over t', [lead, how], legend(names), h('div', { class: 'curves' }, R.curves.map(curvePanel)));
}

function curvePanel(curve) {
  const others = Object.keys(curve.differences).filter((name) => curve.differences[name]);
  return h('figure', { class: 'panel' }, h('figcaption', null, h('b', null, curve.title), h('span', null, curve.what)),
    responsive((width) => linePlot(curve, curve.models, width, 190, false)),
    others.length ? [h('p', { class: 'axis-title' }, `difference to ${FIRST}`), responsive((width) => linePlot(curve, curve.differences, width, 120, true))] : null);
}

function linePlot(curve, lines, width, height, gaps) {
  const names = NAMES.filter((name) => lines[name]);
  const ends = reach([...names.flatMap((name) => endsOf(lines[name])), ...(gaps ? [0] : [])]);
  const x = linear(0, 1000, PLOT.left, width - PLOT.right), y = linear(...ends, height - PLOT.bottom, PLOT.top);
  const ruler = s('path', { class: 'ruler', visibility: 'hidden' });
  const floor = height - PLOT.bottom;
  const plot = canvas(width, height, `${gaps ? `Difference to ${FIRST} in ` : ''}${curve.title} over t for ${listed(names)}`,
    gaps && s('rect', { class: 'good', x: PLOT.left, y: y(0), width: width - PLOT.left - PLOT.right, height: Math.max(floor - y(0), 0) }),
    ticks(...ends, height > 150 ? 5 : 3).map(([value, text]) => [
      s('path', { class: 'grid', d: `M${PLOT.left} ${y(value)}H${width - PLOT.right}` }),
      s('text', { x: PLOT.left - 7, y: y(value) + 4, 'text-anchor': 'end' }, text)]),
    [0, 250, 500, 750, 1000].map((t) => s('text', { x: x(t), y: height - 7, 'text-anchor': t === 1000 ? 'end' : 'middle' }, t === 0 ? 't = 0' : t)),
    gaps && s('path', { class: 'zero', d: `M${PLOT.left} ${y(0)}H${width - PLOT.right}` }),
    names.map((name) => band(lines[name], curve.t, x, y, name)), names.map((name) => line(lines[name], curve.t, x, y, name)), ruler);
  return readable(plot, curve, lines, names, x, height, ruler, gaps);
}

function band(estimates, t, x, y, name) {
  return runsOf(estimates, hasInterval).map((some) => {
    const up = some.map((i) => `${x(t[i])} ${y(estimates[i].high)}`), down = some.map((i) => `${x(t[i])} ${y(estimates[i].low)}`).reverse();
    return s('path', { class: `band ${colourOf(name)}`, d: `M${[...up, ...down].join('L')}Z` });
  });
}

function line(estimates, t, x, y, name) {
  const there = (one) => known(one) && known(one.value);
  return s('g', { class: `curve ${colourOf(name)}` },
    runsOf(estimates, there).map((some) => s('path', { class: 'line', d: `M${some.map((i) => `${x(t[i])} ${y(estimates[i].value)}`).join('L')}` })),
    estimates.map((one, i) => there(one) && s('path', { class: 'dot', d: shapeOf(name, x(t[i]), y(one.value), 2.6) })));
}

/** Indices of what is there, in runs without a hole. */
function runsOf(values, there) {
  const found = [[]];
  values.forEach((value, i) => (there(value) ? found[found.length - 1].push(i) : found.push([])));
  return found.filter((some) => some.length);
}

function readable(plot, curve, lines, names, x, height, ruler, gaps) {
  let at = -1;
  const written = gaps ? signed : number;
  const read = (i) => {
    at = i;
    const t = curve.t[i], box = plot.getBoundingClientRect(), left = box.left + (x(t) / plot.viewBox.baseVal.width) * box.width;
    ruler.setAttribute('d', `M${x(t)} ${PLOT.top}V${height - PLOT.bottom}`);
    ruler.setAttribute('visibility', 'visible');
    showHint(plot, [h('b', null, `t = ${t}`), facts(names.map((name) => {
      const one = lines[name][i] || {};
      return [modelLabel(name), `${written(one.value, 3)} (${interval(one, 3, written)})`];
    }))], { left, width: 0, top: box.top + 20, bottom: box.bottom });
  };
  const leave = () => { at = -1; ruler.setAttribute('visibility', 'hidden'); hideHint(); };
  plot.setAttribute('tabindex', 0);
  plot.addEventListener('pointermove', (event) => {
    const box = plot.getBoundingClientRect(), place = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    const gap = (t) => Math.abs(x(t) - place);
    const i = curve.t.reduce((nearest, t, j) => (gap(t) < gap(curve.t[nearest]) ? j : nearest), 0);
    if (i !== at) read(i);
  });
  plot.addEventListener('pointerleave', leave);
  plot.addEventListener('blur', leave);
  plot.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); read(Math.min(Math.max(at + by, 0), curve.t.length - 1)); }
  });
  return plot;
}
