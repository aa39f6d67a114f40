// What every page of ours stands on: its data, elements, words and numbers.

const R = JSON.parse(document.getElementById('results').textContent);

// Elements. Strings become text nodes, so nothing that a prompt or a name says is ever read as markup.

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  filled(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

function section(id, title, lead, ...content) {
  return h('section', { id, 'aria-labelledby': `${id}-title` },
    h('h2', { id: `${id}-title` }, title), lead && h('p', { class: 'lead' }, lead), content);
}

const breakable = (name) => name.split(/(?<=_)/).flatMap((part, i) => (i ? [h('wbr'), part] : [part]));
const onScreen = (text) => h('span', { class: 'on-screen' }, text); // what paper cannot do

// Words and numbers.

const counted = (number, one, many) => `${number} ${number === 1 ? one : many || `${one}s`}`;
const listed = (words) =>
  words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words[words.length - 1]}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const known = (value) => value !== null && value !== undefined;

function number(value, decimals) {
  if (!known(value)) return '–';
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-6)) return value.toExponential(1).replace(/-/g, '−');
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace('-', '') : text.replace('-', '−');
}

const signed = (value, decimals) => (value > 0 ? '+' : '') + number(value, decimals);
const probability = (p) => (!known(p) ? '–' : p < 0.001 ? '< 0.001' : p.toFixed(3));
