// One floating note for the whole page: on hover, on focus, on tap.

const HINT = document.getElementById('hint');
let hinted = null;

function hideHint() {
  if (hinted) hinted.removeAttribute('aria-describedby');
  hinted = null;
  HINT.hidden = true;
}

function showHint(node, content, box = node.getBoundingClientRect()) {
  if (hinted && hinted !== node) hideHint();
  hinted = node;
  (node.closest('dialog') || document.body).append(HINT); // what is modal lies above all else
  HINT.replaceChildren(...[content].flat(Infinity));
  HINT.hidden = false;
  node.setAttribute('aria-describedby', 'hint');
  const gap = 10, size = HINT.getBoundingClientRect();
  const left = Math.min(Math.max(box.left + box.width / 2 - size.width / 2, gap), innerWidth - size.width - gap);
  const above = box.top - size.height - gap;
  HINT.style.left = `${Math.max(left, gap)}px`;
  HINT.style.top = `${above > gap ? above : Math.min(box.bottom + gap, innerHeight - size.height - gap)}px`;
}

/** Give a node a note. `make` returns its content, or null for none; tap: whether a click shows it, too. */
function hint(node, make, { tap = true, focusable = true } = {}) {
  const show = () => {
    const content = make();
    if (content) showHint(node, content);
  };
  if (focusable && !/^(A|BUTTON)$/.test(node.tagName)) node.tabIndex = 0;
  node.addEventListener('pointerenter', (event) => event.pointerType === 'mouse' && show());
  node.addEventListener('pointerleave', hideHint);
  node.addEventListener('focus', () => node.matches(':focus-visible') && show());
  node.addEventListener('blur', hideHint);
  if (tap) node.addEventListener('click', show);
  return node;
}

const facts = (rows) =>
  h('dl', { class: 'facts' }, rows.map(([name, value]) => [h('dt', null, name), h('dd', null, value)]));

document.addEventListener('keydown', (event) => event.key === 'Escape' && hideHint());
addEventListener('scroll', hideHint, { passive: true, capture: true });
