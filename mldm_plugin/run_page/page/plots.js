// Lines over steps: faint what each step was, bold the trend, and a ruler that reads them.

const NAMES = ['loss', 'ldm', ...R.losses, 'lr'];
const MARGIN = { left: 52, right: 12, top: 8, bottom: 26 };
const digits = (value) => (!known(value) ? '–' : Math.abs(value) >= 1000 ? number(value, 0) :
  Math.abs(value) >= 0.01 || value === 0 ? Number(value.toPrecision(3)).toString().replace('-', '−') : value.toExponential(1).replace(/-/g, '−'));

/** A round value with all its digits, so that no two on an axis read alike; of the axis `largest` is the larger end. */
function onAxis(value, largest) {
  const round = Number(value.toPrecision(6));
  return (round === 0 || largest >= 0.01 ? String(round) : round.toExponential()).replace(/-/g, '−');
}

/** Indices of what is there, in runs without a hole. */
function stretches(values) {
  const found = [[]];
  values.forEach((value, i) => (known(value) ? found[found.length - 1].push(i) : found.push([])));
  return found.filter((some) => some.length);
}

/** A path through what is there; what stands alone is a dot. */
function through(line, key, x, y) {
  const place = (i) => `${x(line.step[i]).toFixed(1)} ${y(line[key][i]).toFixed(1)}`;
  return stretches(line[key]).map((some) => (some.length > 1 ? `M${some.map(place).join('L')}` : `M${place(some[0])}h.01`)).join('');
}

const dotted = (line, x, y) => line.step.map((step, i) => (known(line.smooth[i]) ? `M${x(step).toFixed(1)} ${y(line.smooth[i]).toFixed(1)}h.01` : '')).join('');

/** One plot. `lines` are { label, colour, step, mean, low, high, smooth }, with `value` where `mean` is the change of it; `ends` are
    those of its y axis, if they are given; `dots` mark each step, where there are few. */
function stepPlot(title, lines, { height = 200, ends = null, raw = true, zero = false, dots = false } = {}) {
  return responsive((width) => {
    const steps = lines.flatMap((line) => line.step), first = Math.min(...steps), last = Math.max(...steps);
    const shown = lines.flatMap((line) => [...line.smooth, ...(raw ? line.mean : [])]);
    const [low, high] = ends || reach([...shown, ...(zero ? [0] : [])]);
    const x = linear(first, Math.max(last, first + 1), MARGIN.left, width - MARGIN.right);
    const y = linear(low, high, height - MARGIN.bottom, MARGIN.top);
    const ruler = s('path', { class: 'ruler', visibility: 'hidden' });
    const marks = ticks(first, Math.max(last, first + 1), Math.max(Math.floor(width / 80), 2)).filter(([value]) => Number.isInteger(value));
    const plot = canvas(width, height, `${title} over steps`,
      ticks(low, high, height > 150 ? 5 : 3).map(([value]) => [
        s('path', { class: 'grid', d: `M${MARGIN.left} ${y(value)}H${width - MARGIN.right}` }),
        s('text', { x: MARGIN.left - 7, y: y(value) + 4, 'text-anchor': 'end' }, onAxis(value, Math.max(-low, high)))]),
      marks.map(([value], i) => s('text', { x: x(value), y: height - 8, 'text-anchor': 'middle' }, i ? value : `step ${value}`)),
      zero && s('path', { class: 'zero', d: `M${MARGIN.left} ${y(0)}H${width - MARGIN.right}` }),
      raw && lines.map((line) => s('path', { class: `raw ${line.colour}`, d: through(line, 'mean', x, y) })),
      lines.map((line) => s('path', { class: `trend ${line.colour}`, d: through(line, 'smooth', x, y) })),
      dots && lines.map((line) => s('path', { class: `point ${line.colour}`, d: dotted(line, x, y) })), ruler);
    return readSteps(plot, lines, x, height, ruler);
  });
}

function readSteps(plot, lines, x, height, ruler) {
  const all = [...new Set(lines.flatMap((line) => line.step))].sort((a, b) => a - b);
  let at = -1;
  const nearest = (line, step) => line.step.reduce((best, one, i) => (Math.abs(one - step) < Math.abs(line.step[best] - step) ? i : best), 0);
  const read = (i) => {
    at = i;
    const step = all[i], box = plot.getBoundingClientRect(), left = box.left + (x(step) / plot.viewBox.baseVal.width) * box.width;
    ruler.setAttribute('d', `M${x(step)} ${MARGIN.top}V${height - MARGIN.bottom}`);
    ruler.setAttribute('visibility', 'visible');
    showHint(plot, [h('b', null, `step ${step}`), facts(lines.map((line) => {
      const k = nearest(line, step);
      return [h('span', { class: `model ${line.colour}` }, dash(), line.label), line.value ? `${digits(line.value[k])} (${changed(line.mean[k])})` : `${digits(line.mean[k])} (trend ${digits(line.smooth[k])})`];
    }))], { left, width: 0, top: box.top + 20, bottom: box.bottom });
  };
  const leave = () => { at = -1; ruler.setAttribute('visibility', 'hidden'); hideHint(); };
  plot.setAttribute('tabindex', 0);
  plot.addEventListener('pointermove', (event) => {
    const box = plot.getBoundingClientRect(), place = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    const i = all.reduce((best, step, j) => (Math.abs(x(step) - place) < Math.abs(x(all[best]) - place) ? j : best), 0);
    if (i !== at) read(i);
  });
  plot.addEventListener('pointerleave', leave);
  plot.addEventListener('blur', leave);
  plot.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); read(Math.min(Math.max(at + by, 0), all.length - 1)); }
  });
  return plot;
}

const dash = () => s('svg', { class: 'mark', viewBox: '0 0 12 12', 'aria-hidden': 'true' }, s('path', { class: 'dash', d: 'M1 6H11' }));
const key = (pairs) => h('p', { class: 'legend' }, pairs.map(([label, colour]) => h('span', { class: `model ${colour}` }, dash(), h('span', null, label))));
const panel = (title, what, ...content) => h('figure', { class: 'panel' }, h('figcaption', null, h('b', null, title), h('span', null, what)), content);
