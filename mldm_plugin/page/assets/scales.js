// Axes.

const linear = (low, high, start, end) => (value) => start + ((value - low) / (high - low)) * (end - start);

/** The ends of some values with a margin; never without width. */
function reach(values, margin = 0.06) {
  const some = values.filter(known);
  if (!some.length) return [0, 1];
  const low = some.reduce((a, b) => Math.min(a, b)), high = some.reduce((a, b) => Math.max(a, b));
  if (high - low < 1e-12 * Math.max(Math.abs(high), 1)) {
    const half = Math.abs(high) * 0.05 || 0.5;
    return [low - half, high + half];
  }
  return [low - margin * (high - low), high + margin * (high - low)];
}

const endsOf = (estimates) => estimates.filter(known).flatMap((one) => [one.value, one.low, one.high]);

/** About `number` round values inside [low, high]. */
function ticks(low, high, number = 5) {
  const rough = (high - low) / number, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (/^2\.5/.test((step / power).toFixed(1)) ? 1 : 0));
  return found.map((value) => [value, written(value, decimals)]);
}

const written = (value, decimals) => number(value, Math.min(decimals, 8));

/** A place for a drawing that is drawn anew when its width changes. */
function responsive(draw, attributes) {
  const place = h('div', { class: 'drawing', ...attributes });
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) requestAnimationFrame(() => place.replaceChildren(draw((width = now))));
  }).observe(place);
  return place;
}

function canvas(width, height, label, ...content) {
  return s('svg', { class: 'chart', viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': label }, content);
}

/** A dot with whiskers on a line of its own. */
function whisker(estimate, name, x, y, className = '') {
  if (!known(estimate) || !known(estimate.value)) return null;
  const at = x(estimate.value);
  const ends = hasInterval(estimate) ? [x(estimate.low), x(estimate.high)] : [at, at];
  return s('g', { class: `whisker ${colourOf(name)} ${className}` },
    s('path', { class: 'line', d: `M${ends[0]} ${y}H${ends[1]}M${ends[0]} ${y - 3.5}v7M${ends[1]} ${y - 3.5}v7` }),
    s('path', { class: 'dot', d: shapeOf(name, at, y, 4) }));
}
