// The keyboard: which key does what, and the list of them.

import { byId, h } from './elements.js';

// digit: what a number key does.
export function listen(actions, digit) {
  const known = new Map(actions.flatMap(({ keys, act }) => (act ? keys.map((key) => [key, act]) : [])));
  addEventListener('keydown', (event) => {
    if (byId('keys').open || event.altKey || ['SELECT', 'TEXTAREA'].includes(event.target.tagName)) return;
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 && !command && known.has(event.key) ? event.key : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (command && key !== 'z' && key !== 'y') return; // the browser's own
    if (event.key === 'Enter' && event.target.tagName === 'BUTTON') return; // presses the button
    const act = command && key === 'z' && event.shiftKey ? known.get('y') : known.get(key);
    if (/^[1-9]$/.test(key)) digit(Number(key));
    else if (act) act();
    else return;
    event.preventDefault();
  });
}

const NAMES = { ArrowLeft: '←', ArrowRight: '→', ' ': 'Space' };

export function showKeys(actions) {
  const dialog = byId('keys');
  const rows = actions.map(({ keys, does }) => [
    h('dt', null, keys.map((key) => h('kbd', null, NAMES[key] || (key.length === 1 && key !== 'Z' ? key.toUpperCase() : key === 'Z' ? 'Shift Z' : key)))),
    h('dd', null, does),
  ]);
  dialog.replaceChildren(h('h2', null, 'Keys'), h('dl', null, rows), h('p', null, 'Everything is saved as you go.'),
    h('button', { onclick: () => dialog.close() }, 'Close'));
  dialog.showModal();
  dialog.scrollTop = 0; // Close, at its end, has the focus
}
