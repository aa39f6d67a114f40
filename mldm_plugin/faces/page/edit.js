// The page: a mask that is painted, attributes that are turned over, and the face that comes of them.

import { byId, h } from './elements.js';
import { Mask } from './mask.js';
import { asked, bytes, picture, read } from './server.js';

const state = { model: null, mask: null, on: [], drawing: false, waits: false, face: null };

async function start() {
  const model = (state.model = await read('/model'));
  byId('name').textContent = `${model.name} · mldm faces edit`;
  byId('steps').value = model.steps;
  byId('how').textContent = model.drops ? '' : 'trained with all its conditions: it never learnt to do without one';
  makeMask(model);
  makeAttributes(model);
  byId('begin').hidden = !model.faces;
  byId('number').max = model.faces - 1;
  if (model.faces) await load(0);
  else draw();
}

function makeMask({ parts, resolution }) {
  byId('mask-column').hidden = !parts;
  if (!parts) return;
  state.mask = new Mask(byId('mask'), byId('cursor'), resolution, parts.map(([, colour]) => colour), { changed: painted, shown });
  byId('size').max = resolution / 4;
  byId('parts').append(...parts.map(([name, colour], label) => {
    const chip = h('button', { class: 'chip', role: 'radio', id: `part-${label}`, onclick: () => choose(label) }, h('i'), name);
    chip.style.setProperty('--c', `rgb(${colour.join(' ')})`);
    return chip;
  }));
  choose(1);
}

function makeAttributes({ attributes }) {
  byId('attributes-column').hidden = !attributes;
  state.on = (attributes || []).map(() => 0);
  byId('attributes').append(...state.on.map((_, k) => h('button', { id: `attribute-${attributes[k]}`, onclick: () => turn(k) }, attributes[k].replaceAll('_', ' '))));
  shown();
}

function choose(label) {
  state.mask.label = label;
  shown();
}

function turn(k) {
  state.on[k] = 1 - state.on[k];
  given('attributes-given');
  changed();
}

// A held-out face: its attributes and its mask, from which one goes on. What it lacks is no longer given.
async function load(number) {
  const face = await read(`/faces/${number}`);
  if (face.attributes) state.on = face.attributes;
  if (face.masked && state.mask) state.mask.put(await bytes(`/faces/${number}/labels`));
  lacks('attributes-given', !face.attributes);
  lacks('mask-given', !face.masked);
  put(byId('was'), await picture(`/faces/${number}/picture`), `held-out face ${number}`);
  changed();
}

// Unticks a condition that a face lacks, and ticks it again for the next that has it, unless somebody has unticked it.
function lacks(id, lacking) {
  const box = byId(id);
  if (lacking ? box.checked : box.dataset.lacked) box.checked = !lacking;
  else return;
  if (lacking) box.dataset.lacked = 'yes';
  else delete box.dataset.lacked;
}

function given(id) {
  byId(id).checked = true;
  delete byId(id).dataset.lacked;
}

function put(canvas, bitmap, said) {
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
  byId('before').hidden = false;
  if (said) byId('before').querySelector('small').textContent = said;
}

function painted() {
  given('mask-given');
  changed();
}

// Drawing: one face at a time; what changed meanwhile is drawn next.

function changed() {
  shown();
  if (byId('auto').checked) draw();
}

function conditions() {
  const masked = state.mask && byId('mask-given').checked;
  const named = state.model.attributes && byId('attributes-given').checked;
  return { semantic_mask: masked ? base64(state.mask.labels) : null, attributes: named ? state.on : null };
}

async function draw() {
  if (state.drawing) {
    state.waits = true;
    return;
  }
  Object.assign(state, { drawing: true, waits: false });
  byId('status').textContent = 'drawing …';
  const begun = performance.now();
  const numbers = Object.fromEntries(['seed', 'steps', 'guidance'].map((id) => [id, byId(id).valueAsNumber]));
  try {
    const reply = await asked('/face', { method: 'PUT', body: JSON.stringify({ ...conditions(), ...numbers }) });
    await show(await reply.blob());
    byId('alarm').hidden = true;
    byId('status').textContent = `drawn in ${((performance.now() - begun) / 1000).toFixed(1)} s`;
  } catch (error) {
    byId('alarm').hidden = false;
    byId('alarm').textContent = error.final ? error.message : 'the command does not answer. Is it still running?';
    byId('status').textContent = '';
  }
  state.drawing = false;
  document.body.dataset.drawn = Number(document.body.dataset.drawn || 0) + 1;
  if (state.waits) draw();
}

async function show(blob) {
  const bitmap = await createImageBitmap(blob);
  const canvas = byId('face');
  if (state.face) put(byId('was'), state.face, 'the face before');
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
  state.face = bitmap;
  const save = byId('save');
  URL.revokeObjectURL(save.href);
  Object.assign(save, { href: URL.createObjectURL(blob), hidden: false });
}

const base64 = (labels) => btoa(Array.from(labels, (label) => String.fromCharCode(label)).join(''));

// Showing and wiring

function shown() {
  const { mask } = state;
  if (mask) {
    byId('parts').childNodes.forEach((chip, label) => chip.setAttribute('aria-checked', String(label === mask.label)));
    for (const tool of ['brush', 'fill']) byId(tool).setAttribute('aria-pressed', String(mask.tool === tool));
    byId('size').value = mask.radius;
    byId('size-told').textContent = `${Math.round(2 * mask.radius)} px`;
    byId('undo').disabled = !mask.done.length;
    byId('redo').disabled = !mask.undone.length;
    byId('mask-frame').classList.toggle('absent', !byId('mask-given').checked);
  }
  byId('attributes').childNodes.forEach((button, k) => button.setAttribute('aria-pressed', String(Boolean(state.on[k]))));
  byId('attributes').classList.toggle('absent', !byId('attributes-given').checked);
}

function tool(name) {
  state.mask.tool = name;
  byId('cursor').hidden = true;
  shown();
}

function another() {
  byId('seed').value = byId('seed').valueAsNumber + 1;
  changed();
}

const ACTIONS = {
  brush: () => tool('brush'), fill: () => tool('fill'), undo: () => state.mask.undo(), redo: () => state.mask.redo(),
  clear: () => { state.mask.put(state.mask.labels.map(() => 0)); changed(); },
  draw, another, load: () => load(byId('number').valueAsNumber).catch(told),
};
const KEYS = { b: 'brush', f: 'fill', z: 'undo', y: 'redo', n: 'another', Enter: 'draw' };

function told(error) {
  byId('alarm').hidden = false;
  byId('alarm').textContent = error.message;
}

for (const [id, act] of Object.entries(ACTIONS)) byId(id).addEventListener('click', act);
for (const id of ['mask-given', 'attributes-given', 'seed', 'steps', 'guidance']) byId(id).addEventListener('change', changed);
byId('size').addEventListener('input', (event) => state.mask.resize(Number(event.target.value)));
addEventListener('keydown', (event) => {
  if (event.target.closest('input') || (event.key === 'Enter' && event.target.closest('button')) || event.altKey || event.metaKey) return;
  const name = KEYS[event.key] || (event.key === 'Z' && 'redo');
  if (name && (state.mask || ['draw', 'another'].includes(name))) ACTIONS[name]();
  if (state.mask && '[]'.includes(event.key)) state.mask.resize(state.mask.radius * (event.key === ']' ? 1.25 : 0.8));
});
start().catch(told);
