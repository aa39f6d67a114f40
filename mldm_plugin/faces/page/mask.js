// The mask under the pointer: labels, their colours, strokes, and undoing them.

import { Stroke, paste } from './painting.js';

const MOST_UNDONE = 200;

export class Mask {
  // colours: of the labels, [r, g, b]; changed: called after a stroke; shown: when tools or the cursor changed.
  constructor(canvas, cursor, side, colours, { changed, shown }) {
    Object.assign(this, { canvas, cursor, side, colours, changed, shown, labels: new Uint8Array(side * side), label: 1, radius: side / 24, tool: 'brush', stroke: null, done: [], undone: [] });
    Object.assign(canvas, { width: side, height: side });
    canvas.addEventListener('pointerdown', (event) => this.down(event));
    canvas.addEventListener('pointermove', (event) => this.move(event));
    canvas.addEventListener('pointerup', () => this.up());
    canvas.addEventListener('pointercancel', () => this.up());
    canvas.addEventListener('pointerleave', () => (this.cursor.hidden = true));
    this.draw({ x0: 0, y0: 0, x1: side - 1, y1: side - 1 });
  }

  // Other labels, which can be undone as a stroke can.
  put(labels) {
    const whole = { x0: 0, y0: 0, x1: this.side - 1, y1: this.side - 1 };
    this.keep({ ...whole, before: this.labels.slice(), after: labels.slice() });
    this.labels.set(labels);
    this.draw(whole);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * this.side) / box.width, ((event.clientY - box.top) * this.side) / box.height];
  }

  down(event) {
    if (event.button) return;
    event.preventDefault();
    this.canvas.setPointerCapture?.(event.pointerId);
    this.stroke = new Stroke(this.labels, this.side, this.side, this.label);
    if (this.tool === 'fill') {
      this.draw(this.stroke.fill(this.at(event)));
      return this.up();
    }
    this.draw(this.stroke.to(this.at(event), this.radius));
  }

  move(event) {
    const at = this.at(event);
    this.pointAt(at);
    if (this.stroke) this.draw(this.stroke.to(at, this.radius));
  }

  up() {
    const patch = this.stroke?.patch();
    this.stroke = null;
    if (!patch) return;
    this.keep(patch);
    this.changed();
  }

  keep(patch) {
    this.done.push(patch);
    if (this.done.length > MOST_UNDONE) this.done.shift();
    this.undone = [];
  }

  undo() { this.turn(this.done, this.undone, 'before'); }

  redo() { this.turn(this.undone, this.done, 'after'); }

  turn(from, to, side) {
    if (this.stroke || !from.length) return;
    const patch = from.pop();
    to.push(patch);
    paste(this.labels, this.side, patch, patch[side]);
    this.draw(patch);
    this.changed();
  }

  resize(radius) {
    this.radius = Math.min(Math.max(radius, 0.5), this.side / 4);
    this.shown();
  }

  pointAt([x, y]) {
    const part = (value) => `${(100 * value) / this.side}%`;
    this.cursor.hidden = this.tool !== 'brush';
    Object.assign(this.cursor.style, { left: part(x), top: part(y), width: part(2 * this.radius), height: part(2 * this.radius) });
  }

  draw(rectangle) {
    if (!rectangle) return;
    const { x0, y0, x1, y1 } = rectangle;
    const part = new ImageData(x1 - x0 + 1, y1 - y0 + 1);
    for (let y = y0, k = 0; y <= y1; y++)
      for (let x = x0; x <= x1; x++, k += 4) part.data.set([...this.colours[this.labels[y * this.side + x] % this.colours.length], 255], k);
    this.canvas.getContext('2d').putImageData(part, x0, y0);
  }
}
