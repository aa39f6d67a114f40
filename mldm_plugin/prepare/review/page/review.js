// The page: goes through the rows, shows one, and sends what is decided.

import { Editing, TOOLS } from './editing.js';
import { byId, counted, h } from './elements.js';
import { listen, showKeys } from './keys.js';
import { areas } from './painting.js';
import { bytes, picture, read, send, settled, watch, write } from './server.js';
import { View, colourOf } from './view.js';

// at: the row that is shown; going: the one that is being fetched, the same when it is there.
const state = { rows: [], at: 0, going: 0, row: null, last: [] };
const view = new View(byId('photo'), byId('drawn'));
const editing = new Editing(view, { labels: storeLabels, faces: storeFaces, shown: showTools });
const path = (what) => `/rows/${state.at}/${what}`;
const ready = new Map(); // number → a picture that was fetched before it was asked for

async function start() {
  const found = await read('/rows');
  state.rows = found.rows;
  byId('folder').textContent = found.folder;
  document.title = `${found.folder} · mldm data review`;
  const first = state.rows.findIndex((row) => !row.decision);
  await go(Math.max(first, 0));
}

// Going

const wanted = (row) => ({ all: true, open: !row.decision })[byId('filter').value] ?? row.decision === byId('filter').value;

// The next row in a direction that is to be shown; the same where there is none.
function next(step, only = wanted) {
  for (let at = state.going + step; at >= 0 && at < state.rows.length; at += step) if (only(state.rows[at])) return at;
  return state.going;
}

function nextOpen() {
  const open = (row) => !row.decision;
  const after = next(1, open);
  return after !== state.going ? after : Math.max(state.rows.findIndex(open), 0);
}

async function go(number) {
  state.going = number;
  try {
    const found = await fetched(number);
    if (state.going === number) show(number, found);
  } catch (error) {
    state.going = state.at;
    showSaved(0, Object.assign(error, { reading: true }));
  }
}

async function fetched(number) {
  const row = await read(`/rows/${number}`);
  const bitmap = await bitmapOf(number, row);
  return { row, bitmap, labels: bitmap && row.masked ? await bytes(`/rows/${number}/labels`) : null };
}

function show(number, { row, bitmap, labels }) {
  Object.assign(state, { at: number, row });
  const faces = row.faces.map((box, k) => ({ box, was: row.faces_were[k] ?? null, person: 0 }));
  editing.begin(row);
  view.show(bitmap && { bitmap, labels, width: row.size[0], height: row.size[1], faces, keypoints: row.keypoints });
  if (view.shown) editing.whoseFaces();
  if (!editing.allows(editing.tool)) editing.choose('look');
  showAll();
  prepare(next(1));
}

async function bitmapOf(number, row) {
  if (!row.size) return null;
  prepare(number);
  const found = await ready.get(number);
  for (const other of ready.keys()) if (Math.abs(other - number) > 2) ready.delete(other);
  return found;
}

// A picture is fetched while the one before it is looked at.
function prepare(number) {
  if (!ready.has(number)) ready.set(number, picture(`/rows/${number}/picture`).catch(() => null));
}

// Deciding

// What is not shown yet is not decided.
function decide(decision, goOn = true) {
  if (!state.row || state.going !== state.at) return;
  const [at, row] = [state.at, state.rows[state.at]];
  state.last.push({ at, decision: row.decision });
  setDecision(at, decision);
  if (goOn) go(next(1));
}

function setDecision(at, decision) {
  state.rows[at].decision = decision;
  write(`/rows/${at}/decision`, { decision });
  showAll();
}

// The last stroke or box of this picture; without one, the last decision, at its picture.
async function undo() {
  if (editing.undo() || !state.last.length) return;
  const { at, decision } = state.last.pop();
  setDecision(at, decision);
  await go(at);
}

function storeLabels() {
  write(path('labels'), view.shown.labels.slice(), heard(state.at));
  changedNow();
}

function storeFaces() {
  write(path('faces'), { faces: view.shown.faces.map(({ box, was }) => ({ box, was })) }, heard(state.at));
  changedNow();
}

// What there is to say of the row as it is stored now.
const heard = (at) => (row) => {
  if (at !== state.at || !view.shown) return;
  state.row.notes = row.notes;
  state.row.faults = row.faults;
  showAbout();
};

function changedNow() {
  state.row.changed = true;
  showAll();
}

function putBack() {
  if (!state.row?.changed) return;
  const at = state.at;
  write(path('original'), {}, () => { if (at === state.at) go(at); });
}

// Showing

function showAll() {
  showProgress();
  showAbout();
  showTools();
}

function showProgress() {
  const looked = state.rows.filter((row) => row.decision).length;
  byId('progress-words').textContent = `${looked} of ${state.rows.length} looked at`;
  byId('progress-bar').style.width = `${(100 * looked) / Math.max(state.rows.length, 1)}%`;
}

function showAbout() {
  const { row } = state;
  if (!row) return;
  const decision = state.rows[state.at].decision;
  byId('place').textContent = `${state.at + 1}/${state.rows.length}`;
  byId('name').textContent = row.name;
  byId('caption').textContent = row.captions[0] || 'no caption';
  byId('caption').title = row.captions.join('\n');
  const size = row.size ? [`${row.size[0]} × ${row.size[1]} px`] : [];
  const faces = (view.shown?.faces || []).map(({ box }) => Math.round(Math.sqrt((box[2] - box[0]) * (box[3] - box[1]))));
  if (view.shown) size.push(faces.length ? `${counted(faces.length, 'face')} of ${faces.join(', ')} px` : 'no face');
  if (row.changed) size.push('changed');
  byId('remarks').replaceChildren(h('li', null, size.join(' · ')),
    ...row.faults.map((fault) => h('li', { class: 'wrong' }, fault)), ...row.notes.map((note) => h('li', { class: 'look' }, note)));
  const stamp = byId('stamp');
  stamp.hidden = !decision && Boolean(view.shown);
  stamp.className = `stamp ${decision === 'accepted' ? 'yes' : 'no'}`;
  stamp.textContent = decision || (view.shown ? '' : 'cannot be shown');
  document.body.dataset.decision = decision || 'open';
}

function showPeople() {
  const { shown } = view;
  const row = state.row;
  const found = shown?.labels && areas(shown.labels);
  const chips = [];
  for (let label = 1; found && label <= row.people; label++) {
    const share = (100 * found[label]) / shown.labels.length;
    const told = `${label} · ${share && share < 1 ? '< 1' : Math.round(share)} %${row.crowds.includes(label) ? ' · crowd' : ''}`;
    chips.push(chip(label, told, `person ${label}${label < 10 ? ` (key ${label})` : ''}`));
  }
  if (found) chips.push(chip(row.people + 1, '+ person', 'paint a new person (key P)', 'new'));
  byId('people').replaceChildren(...chips);
}

const chip = (label, told, title, extra = '') => {
  const chosen = editing.label === label && ['brush', 'fill'].includes(editing.tool);
  const node = h('button', { class: `chip ${extra}`, role: 'radio', 'aria-checked': String(chosen), title, onclick: () => editing.chooseLabel(label) }, h('i'), told);
  node.style.setProperty('--c', colourOf(label));
  return node;
};

function showTools() {
  for (const { id } of TOOLS) {
    const button = byId(`tool-${id}`);
    button.setAttribute('aria-pressed', String(editing.tool === id));
    button.disabled = !editing.allows(id);
  }
  byId('size-label').hidden = !['brush', 'eraser'].includes(editing.tool);
  byId('remove').hidden = view.selected < 0;
  byId('brush-size').max = editing.side / 4;
  byId('brush-size').value = editing.radius;
  byId('size-told').textContent = `${Math.round(2 * editing.radius)} px`;
  byId('act-undo').disabled = !editing.done.length && !state.last.length;
  byId('act-redo').disabled = !editing.undone.length;
  byId('act-original').disabled = !state.row?.changed;
  byId('act-tint').setAttribute('aria-pressed', String(view.tinted));
  byId('act-bare').setAttribute('aria-pressed', String(view.bare));
  showPeople();
}

function showSaved(left, error) {
  byId('saved').textContent = left ? 'saving …' : 'saved';
  byId('saved').dataset.left = left;
  const alarm = byId('alarm');
  if (alarm.dataset.lost) return; // stays until the page is loaded again: it shows what is not on disk
  alarm.hidden = !error;
  if (!error) return;
  if (error.final && !error.reading) alarm.dataset.lost = true;
  const what = error.final ? error.message : 'the review does not answer. Is the command still running?';
  const waiting = error.final ? 'Not saved' : `Not saved, ${counted(left, 'change')} waiting`;
  alarm.replaceChildren(`${error.reading ? 'It cannot be shown' : waiting}: ${what} `,
    error.final || error.reading ? h('button', { onclick: () => location.reload() }, 'Load again') : h('button', { onclick: send }, 'Try again'));
}

// Wiring: each action has keys, and most a button.

const toggle = (name) => () => { view[name] = !view[name]; view.draw(); showTools(); };
const ACTIONS = [
  { id: 'accept', keys: ['a', 'Enter'], title: 'Accept', does: 'keep this picture, and go on', act: () => decide('accepted'), at: 'verdicts' },
  { id: 'out', keys: ['x'], title: 'Throw out', does: 'take it out of the training set, and go on', act: () => decide('thrown out'), at: 'verdicts' },
  { id: 'open', keys: ['c'], does: 'clear the decision', act: () => decide(null, false) },
  { id: 'back', keys: ['ArrowLeft', 'k'], title: '←', does: 'the picture before', act: () => go(next(-1)), at: 'verdicts' },
  { id: 'next', keys: ['ArrowRight', 'j'], title: '→', does: 'the next picture', act: () => go(next(1)), at: 'verdicts' },
  { id: 'unseen', keys: ['n'], does: 'the next that nobody looked at', act: () => go(nextOpen()) },
  ...TOOLS.map(({ id, key, title, does }) => ({ id: `tool-${id}`, keys: [key], title, does, act: () => editing.choose(id), at: 'tools' })),
  { id: 'person', keys: ['1 … 9'], does: 'paint person 1 to 9' },
  { id: 'new', keys: ['p'], does: 'paint a new person', act: () => editing.chooseLabel((state.row?.people || 0) + 1) },
  { id: 'smaller', keys: ['['], does: 'smaller brush', act: () => editing.resize(editing.radius / 1.25) },
  { id: 'larger', keys: [']'], does: 'larger brush', act: () => editing.resize(editing.radius * 1.25) },
  { id: 'remove', keys: ['Delete', 'Backspace'], title: 'Remove', does: 'remove the chosen face box', act: () => editing.removeFace(), at: 'tools' },
  { id: 'act-undo', keys: ['z'], title: 'Undo', does: 'undo the last stroke, box or decision', act: undo, at: 'actions' },
  { id: 'act-redo', keys: ['y', 'Z'], title: 'Redo', does: 'do it again', act: () => editing.redo(), at: 'actions' },
  { id: 'act-original', keys: ['o'], title: 'Original', does: 'the mask and the boxes as they were before the review', act: putBack, at: 'actions' },
  { id: 'act-tint', keys: ['t'], title: 'Tint', does: 'colour the people in', act: toggle('tinted'), at: 'actions' },
  { id: 'act-bare', keys: ['h'], title: 'Hide', does: 'hide all lines', act: toggle('bare'), at: 'actions' },
  { id: 'closer', keys: ['+', '='], does: 'enlarge; the wheel or two fingers do so too', act: () => view.shown && view.zoomBy(1.5) },
  { id: 'farther', keys: ['-'], does: 'make smaller', act: () => view.shown && view.zoomBy(1 / 1.5) },
  { id: 'whole', keys: ['0'], does: 'the whole picture', act: () => { view.fit(); view.draw(); } },
  { id: 'keys', keys: ['?'], does: 'these keys', act: () => showKeys(ACTIONS) },
  { id: 'nothing', keys: ['Escape'], does: 'leave a stroke or box that is not finished', act: () => { editing.giveUp(); editing.select(-1); } },
];

for (const { id, keys, title, does, act, at } of ACTIONS.filter((action) => action.at)) {
  const key = keys[0].startsWith('Arrow') ? '' : keys[0].slice(0, 3);
  byId(at).append(h('button', { id, title: `${does} (${keys.join(', ')})`, onclick: act, 'aria-label': `${title}: ${does}` }, title, key && h('kbd', null, key.toUpperCase())));
}
byId('brush-size').addEventListener('input', (event) => editing.resize(Number(event.target.value)));
byId('keys-button').addEventListener('click', () => showKeys(ACTIONS));
byId('filter').addEventListener('change', (event) => {
  event.target.blur();
  if (!wanted(state.rows[state.at])) go(next(1) !== state.going ? next(1) : next(-1));
});
listen(ACTIONS, (digit) => editing.chooseLabel(digit));
watch(showSaved);
addEventListener('beforeunload', (event) => { if (!settled()) event.preventDefault(); });
start().catch((error) => showSaved(0, Object.assign(error, { reading: true })));
