// One floating note for the whole page: on hover, on focus, on tap.

const HINT = document.getElementById('hint');
let hinted = null;

function hideHint() {
  if (hinted) hinted.removeAttribute('aria-describedby');
  hinted = null;
  HINT.hidden = true;
}

function showHint(node, content, box = node.getBoundingClientRect(), beside = false) {
  if (hinted && hinted !== node) hideHint();
  hinted = node;
  (node.closest('dialog') || document.body).append(HINT); // what is modal lies above all else
  HINT.replaceChildren(...[content].flat(Infinity));
  HINT.hidden = false;
  node.setAttribute('aria-describedby', 'hint');
  const gap = 10, size = HINT.getBoundingClientRect();
  const within = (start, length, whole) => Math.max(Math.min(start, whole - length - gap), gap);
  let left = box.left + box.width / 2 - size.width / 2, top = box.top - size.height - gap;
  if (beside) { // what lies above and below is what one compares with
    const right = box.left + box.width + gap;
    left = right + size.width + gap < innerWidth ? right : box.left - size.width - gap;
    top = box.top + box.height / 2 - size.height / 2;
  } else if (top < gap) top = box.bottom + gap;
  HINT.style.left = `${within(left, size.width, innerWidth)}px`;
  HINT.style.top = `${within(top, size.height, innerHeight)}px`;
}

/** Give a node a note. `make` returns its content, or null for none; tap: whether a click shows it, too; beside: not above. */
function hint(node, make, { tap = true, focusable = true, beside = false } = {}) {
  const show = () => {
    const content = make();
    if (content) showHint(node, content, node.getBoundingClientRect(), beside);
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
