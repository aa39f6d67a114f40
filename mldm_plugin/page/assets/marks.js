// Each of `NAMES`, which the page tells, has a colour and a shape, so that neither has to say it alone.

const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
  (x, y, r) => `M${x - 0.9 * r} ${y - 0.9 * r}h${1.8 * r}v${1.8 * r}h${-1.8 * r}Z`,
  (x, y, r) => `M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}Z`,
  (x, y, r) => `M${x} ${y - 1.2 * r}L${x + 1.15 * r} ${y + 0.9 * r}H${x - 1.15 * r}Z`,
  (x, y, r) => `M${x} ${y + 1.2 * r}L${x + 1.15 * r} ${y - 0.9 * r}H${x - 1.15 * r}Z`,
  (x, y, r) => `M${x + 1.2 * r} ${y}L${x - 0.9 * r} ${y - 1.15 * r}V${y + 1.15 * r}Z`,
  (x, y, r) => `M${x - 1.2 * r} ${y}L${x + 0.9 * r} ${y - 1.15 * r}V${y + 1.15 * r}Z`,
  (x, y, r) => `M${x - 0.6 * r} ${y - 1.1 * r}h${1.2 * r}l${0.6 * r} ${1.1 * r}l${-0.6 * r} ${1.1 * r}h${-1.2 * r}l${-0.6 * r} ${-1.1 * r}Z`,
];
const colourOf = (name) => `m${NAMES.indexOf(name) % SHAPES.length}`;
const shapeOf = (name, x, y, r) => SHAPES[NAMES.indexOf(name) % SHAPES.length](x, y, r);
const markOf = (name) =>
  s('svg', { class: 'mark', viewBox: '0 0 12 12', 'aria-hidden': 'true' }, s('path', { d: shapeOf(name, 6, 6, 4) }));
const modelLabel = (name) => h('span', { class: `model ${colourOf(name)}` }, markOf(name), h('span', null, breakable(name)));
const legend = (names = NAMES) => h('p', { class: 'legend' }, names.map(modelLabel));
