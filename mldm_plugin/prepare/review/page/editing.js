// What the pointer does on the annotated picture: brush, eraser, fill, face boxes; and undoing it.

import { held, isBox, moved, personOf, upright } from './faces.js';
import { MOST_LABELS, Stroke, areas, paste, tops } from './painting.js';
import { colourOf } from './view.js';

export const TOOLS = [
  { id: 'look', key: 'v', title: 'Look', does: 'look around: drag moves the picture when it is enlarged' },
  { id: 'brush', key: 'b', title: 'Brush', does: 'paint the chosen person' },
  { id: 'eraser', key: 'e', title: 'Eraser', does: 'take pixels from whoever has them' },
  { id: 'fill', key: 'f', title: 'Fill', does: 'give a whole piece to the chosen person' },
  { id: 'faces', key: 'r', title: 'Faces', does: 'drag to draw a box, drag a box or its corner to move it' },
];
const PAINTS = ['brush', 'eraser', 'fill'];
const MOST_UNDONE = 200;

export class Editing {
  // told: what to call when labels, faces or anything that the page shows changed: {labels, faces, shown}
  constructor(view, told) {
    Object.assign(this, { view, told, tool: 'look', label: 1, side: 512, radius: 12, row: null, done: [], undone: [], pointers: new Map(), act: null });
    const canvas = view.drawn;
    canvas.addEventListener('pointerdown', (event) => this.down(event));
    canvas.addEventListener('pointermove', (event) => this.move(event));
    canvas.addEventListener('pointerup', (event) => this.up(event));
    canvas.addEventListener('pointercancel', (event) => this.up(event));
    canvas.addEventListener('pointerleave', () => this.pointAt(null));
    for (const one of [canvas, view.photo]) {
      one.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
      one.addEventListener('contextmenu', (event) => event.preventDefault());
    }
    view.photo.addEventListener('pointermove', (event) => event.buttons && this.view.shown && view.panBy(event.movementX, event.movementY));
  }

  // Another row: its details and what is shown of it.
  begin(row) {
    Object.assign(this, { row, done: [], undone: [], act: null, label: Math.min(Math.max(this.label, 1), Math.max(row?.people || 0, 1)) });
    this.pointers.clear();
    const side = row?.size ? Math.min(...row.size) : this.side;
    Object.assign(this, { side, radius: (this.radius * side) / this.side }); // as large on the screen as it was
    this.view.selected = -1;
    this.view.cursor = null;
  }

  get shown() { return this.view.shown; }

  choose(tool) {
    if (!this.allows(tool)) return;
    this.tool = tool;
    this.pointAt(null);
    if (tool !== 'faces') this.select(-1);
    this.told.shown();
  }

  // Masks are painted where there is one; faces need a picture only.
  allows(tool) {
    return tool === 'look' || (this.shown && (tool === 'faces' || Boolean(this.shown.labels)));
  }

  chooseLabel(label) {
    if (!this.shown?.labels || label < 1 || label > Math.min(this.row.people + 1, MOST_LABELS)) return;
    this.label = label;
    if (!PAINTS.includes(this.tool) || this.tool === 'eraser') this.choose('brush');
    this.told.shown();
  }

  resize(radius) {
    this.radius = Math.min(Math.max(radius, 0.5), this.side / 4);
    if (this.view.cursor) this.view.cursor.radius = this.radius;
    this.view.draw();
    this.told.shown();
  }

  select(face) {
    this.view.selected = face;
    this.view.draw();
    this.told.shown();
  }

  down(event) {
    if (!this.shown) return;
    event.preventDefault();
    this.view.drawn.setPointerCapture?.(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size > 1) return this.giveUp(); // a second finger: it is a pinch
    const at = this.view.toPicture(event);
    if (event.button === 1 || event.button === 2 || this.tool === 'look') this.act = { kind: 'pan' };
    else if (this.tool === 'faces') this.holdFace(at);
    else if (this.tool === 'fill') this.fill(at);
    else this.beginStroke(at);
  }

  move(event) {
    if (!this.shown) return;
    const at = this.view.toPicture(event);
    this.pointAt(at);
    if (!this.pointers.has(event.pointerId)) return;
    const [x, y] = this.pointers.get(event.pointerId);
    if (this.pointers.size === 2) return this.pinch(event);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.act?.kind === 'pan') this.view.panBy(event.clientX - x, event.clientY - y);
    else if (this.act?.kind === 'stroke') this.paintTo(at);
    else if (this.act?.kind === 'face') this.moveFace(at);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.act?.kind === 'stroke') this.endStroke(this.act.stroke);
    else if (this.act?.kind === 'face') this.endFace();
    this.act = null;
  }

  pinch(event) {
    const points = () => [...this.pointers.values()];
    const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    const apart = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    const before = points();
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    const after = points();
    const [from, to] = [middle(before), middle(after)];
    this.view.panBy(to[0] - from[0], to[1] - from[1]);
    this.view.zoomBy(apart(after) / apart(before), this.view.toPicture({ target: this.view.drawn, clientX: to[0], clientY: to[1] }));
  }

  wheel(event) {
    if (!this.shown) return;
    event.preventDefault();
    this.view.zoomBy(Math.exp(-event.deltaY / 400), this.view.toPicture(event));
  }

  pointAt(at) {
    const paints = ['brush', 'eraser'].includes(this.tool);
    this.view.cursor = at && paints ? { at, radius: this.radius, colour: this.tool === 'brush' ? colourOf(this.label) : '#ffffff' } : null;
    if (at && this.tool === 'faces') {
      const found = held(this.shown.faces, at, this.view.frame().scale);
      this.view.drawn.style.cursor = !found ? 'crosshair' : found.part === 'all' ? 'move' : found.part[0] / 2 === (found.part[1] - 1) / 2 ? 'nwse-resize' : 'nesw-resize';
    } else this.view.drawn.style.cursor = this.tool === 'look' ? 'grab' : paints ? 'none' : 'crosshair';
    this.view.draw();
  }

  // Strokes

  newStroke() {
    const { labels, width, height } = this.shown;
    return new Stroke(labels, width, height, this.tool === 'eraser' ? 0 : this.label);
  }

  beginStroke(at) {
    this.act = { kind: 'stroke', stroke: this.newStroke() };
    this.paintTo(at);
  }

  paintTo(at) {
    const bounds = this.act.stroke.to(at, this.radius);
    if (bounds) this.view.changed(bounds);
  }

  fill(at) {
    const stroke = this.newStroke();
    const bounds = stroke.fill(at);
    if (bounds) this.view.changed(bounds);
    this.endStroke(stroke);
  }

  endStroke(stroke) {
    const patch = stroke.patch();
    if (!patch) return;
    const { labels, width } = this.shown;
    const put = (values) => {
      paste(labels, width, patch, values);
      this.view.changed(patch);
      this.labelsChanged();
    };
    this.remember({ undo: () => put(patch.before), redo: () => put(patch.after) });
    this.labelsChanged();
  }

  labelsChanged() {
    this.row.people = Math.max(this.row.people, areas(this.shown.labels).findLastIndex((area, label) => label && area > 0), 0);
    this.whoseFaces();
    this.told.labels();
  }

  // Faces

  // Whose number stands at a face, and whose, without a face, on the head.
  whoseFaces() {
    const { labels, width, height } = this.shown;
    for (const face of this.shown.faces) face.person = labels ? personOf(face.box, labels, width, height) : 0;
    const faced = new Set(this.shown.faces.map((face) => face.person));
    this.shown.tags = labels ? tops(labels, width).filter(({ label }) => !faced.has(label)) : [];
  }

  holdFace(at) {
    const found = held(this.shown.faces, at, this.view.frame().scale);
    const before = this.copies();
    if (found) this.act = { kind: 'face', ...found, from: at, box: this.shown.faces[found.face].box, before };
    else {
      this.shown.faces.push({ box: [...at, ...at], was: null, person: 0 });
      this.act = { kind: 'face', face: this.shown.faces.length - 1, part: [2, 3], from: at, box: [...at, ...at], before };
    }
    this.select(this.act.face);
  }

  moveFace(at) {
    const { face, part, from, box } = this.act;
    const { width, height } = this.shown;
    this.shown.faces[face].box = upright(moved(box, part, at[0] - from[0], at[1] - from[1], width, height));
    this.view.draw();
  }

  endFace() {
    const { face, before } = this.act;
    if (!isBox(this.shown.faces[face].box)) {
      this.shown.faces = before;
      this.select(before.length > face ? face : -1);
    } else this.facesChanged(before);
  }

  removeFace() {
    if (this.view.selected < 0) return false;
    const before = this.copies();
    this.shown.faces.splice(this.view.selected, 1);
    this.select(-1);
    this.facesChanged(before);
    return true;
  }

  copies() { return this.shown.faces.map((face) => ({ ...face })); }

  facesChanged(before) {
    const after = this.copies();
    if (JSON.stringify(before.map((face) => face.box)) === JSON.stringify(after.map((face) => face.box))) return;
    const put = (faces) => {
      this.shown.faces = faces.map((face) => ({ ...face }));
      this.select(-1);
      this.facesStored();
    };
    this.remember({ undo: () => put(before), redo: () => put(after) });
    this.facesStored();
  }

  facesStored() {
    this.whoseFaces();
    this.told.faces();
    this.view.draw();
  }

  // Undo

  remember(step) {
    this.done.push(step);
    if (this.done.length > MOST_UNDONE) this.done.shift();
    this.undone = [];
  }

  undo() {
    const step = this.done.pop();
    if (!step) return false;
    step.undo();
    this.undone.push(step);
    return true;
  }

  redo() {
    const step = this.undone.pop();
    if (!step) return;
    step.redo();
    this.done.push(step);
  }

  // Put back what an unfinished stroke or box changed.
  giveUp() {
    if (this.act?.kind === 'stroke') {
      const patch = this.act.stroke.patch();
      if (patch) {
        paste(this.shown.labels, this.shown.width, patch, patch.before);
        this.view.changed(patch);
      }
    } else if (this.act?.kind === 'face') {
      this.shown.faces = this.act.before;
      this.select(-1);
    }
    this.act = null;
    this.view.draw();
  }
}
