// Two canvases that show the same part of a picture: the photo as it is, and with what is known of it.

import { Outlines } from './outlines.js';

export const COLOURS = ['#ff6b81', '#5fe38a', '#7db3ff', '#ffb05c', '#d590ff', '#54e6f2', '#ff8ee6', '#e2f27a'];
export const colourOf = (label) => COLOURS[(label - 1) % COLOURS.length];
const DARK = 'rgba(0, 0, 0, .75)';
const LIGHT = '#ffffff';
const FACE_POINTS = 5; // the first of COCO's keypoints; they would lie on the face that is to be judged
const BONES = [[15, 13], [13, 11], [16, 14], [14, 12], [11, 12], [5, 11], [6, 12], [5, 6], [5, 7], [6, 8], [7, 9], [8, 10]];
const CLOSEST = 32; // screen pixels for one of the picture

export class View {
  constructor(photo, drawn) {
    Object.assign(this, { photo, drawn, shown: null, cursor: null, tinted: false, bare: false, selected: -1, zoom: 1, centre: null });
    new ResizeObserver(() => this.draw()).observe(photo.parentElement);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  // shown: {bitmap, labels, width, height, faces, keypoints, crowds}
  show(shown) {
    const same = this.shown && shown && this.shown.bitmap === shown.bitmap;
    this.shown = shown;
    if (shown) {
      this.outlines = shown.labels && new Outlines(shown.labels, shown.width, shown.height);
      this.tint = null;
      if (!same) this.fit();
    }
    this.draw();
  }

  fit() {
    this.zoom = 1;
    this.centre = this.shown && [this.shown.width / 2, this.shown.height / 2];
  }

  // Screen pixels for one of the picture, and where its corner lies, in CSS pixels.
  frame() {
    const { width, height } = this.shown;
    const [w, h] = [this.drawn.clientWidth, this.drawn.clientHeight];
    const fitting = Math.min(w / width, h / height);
    const scale = Math.min(fitting * this.zoom, Math.max(CLOSEST, fitting));
    const place = (size, room, centre) => (size * scale <= room ? (room - size * scale) / 2 : Math.min(0, Math.max(room - size * scale, room / 2 - centre * scale)));
    return { scale, fitting, x: place(width, w, this.centre[0]), y: place(height, h, this.centre[1]) };
  }

  // A pointer's place in the picture's pixels.
  toPicture(event) {
    const box = event.target.getBoundingClientRect();
    const { scale, x, y } = this.frame();
    return [(event.clientX - box.left - x) / scale, (event.clientY - box.top - y) / scale];
  }

  zoomBy(factor, at = null) {
    const before = this.frame();
    const point = at || [this.shown.width / 2, this.shown.height / 2];
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), CLOSEST / before.fitting);
    const after = before.fitting * this.zoom;
    const [w, h] = [this.drawn.clientWidth, this.drawn.clientHeight];
    this.centre = at ? [
      point[0] + (w / 2 - (point[0] * before.scale + before.x)) / after,
      point[1] + (h / 2 - (point[1] * before.scale + before.y)) / after,
    ] : this.centre;
    this.draw();
  }

  panBy(dx, dy) {
    const { scale, x, y } = this.frame();
    const [w, h] = [this.drawn.clientWidth, this.drawn.clientHeight];
    this.centre = [(w / 2 - x - dx) / scale, (h / 2 - y - dy) / scale];
    this.draw();
  }

  // A rectangle of the labels was changed.
  changed(rectangle) {
    this.outlines.forget(rectangle);
    if (this.tint) this.fillTint(rectangle);
    this.draw();
  }

  draw() {
    if (!this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.drawNow(); });
  }

  drawNow() {
    for (const canvas of [this.photo, this.drawn]) {
      const ratio = devicePixelRatio || 1;
      const size = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
      if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
      const context = canvas.getContext('2d');
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, ...size);
      if (!this.shown || !size[0]) continue;
      const { scale, x, y } = this.frame();
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.imageSmoothingEnabled = scale < 4;
      context.imageSmoothingQuality = 'high';
      context.drawImage(this.shown.bitmap, x, y, this.shown.width * scale, this.shown.height * scale);
      if (canvas === this.drawn && !this.bare) this.annotate(context, { scale, x, y });
    }
  }

  annotate(context, frame) {
    const at = (px, py) => [frame.x + px * frame.scale, frame.y + py * frame.scale];
    if (this.shown.labels) this.drawPeople(context, frame);
    (this.shown.keypoints || []).forEach((person, k) => this.drawBones(context, at, person, colourOf(k + 1)));
    for (const { label, x, y } of this.shown.tags || []) written(context, `${label}`, at(x, 0)[0], Math.max(at(0, y)[1] - 9, frame.y + 9), colourOf(label));
    this.shown.faces.forEach((face, k) => this.drawFace(context, at, face, k === this.selected));
    if (this.cursor) {
      context.beginPath();
      context.arc(...at(...this.cursor.at), Math.max(this.cursor.radius * frame.scale, 1.5), 0, 2 * Math.PI);
      doubled(context, this.cursor.colour);
    }
  }

  drawPeople(context, { scale, x, y }) {
    if (this.tinted) {
      if (!this.tint) this.fillTint({ x0: 0, y0: 0, x1: this.shown.width - 1, y1: this.shown.height - 1 });
      context.imageSmoothingEnabled = false;
      context.drawImage(this.tint, x, y, this.shown.width * scale, this.shown.height * scale);
    }
    context.save();
    context.translate(x, y);
    context.scale(scale, scale);
    context.lineCap = 'round';
    const paths = [...this.outlines.paths()];
    for (const [width, colour] of [[2.75, () => DARK], [1.25, colourOf]])
      for (const [label, path] of paths) {
        context.lineWidth = width / scale;
        context.strokeStyle = colour(label);
        context.stroke(path);
      }
    context.restore();
  }

  fillTint({ x0, y0, x1, y1 }) {
    const { width, height, labels } = this.shown;
    this.tint = this.tint || Object.assign(document.createElement('canvas'), { width, height });
    const part = new ImageData(x1 - x0 + 1, y1 - y0 + 1);
    for (let y = y0, k = 0; y <= y1; y++)
      for (let x = x0; x <= x1; x++, k += 4) {
        const label = labels[y * width + x];
        if (!label) continue;
        const colour = parseInt(colourOf(label).slice(1), 16);
        part.data.set([colour >> 16, (colour >> 8) & 255, colour & 255, 110], k);
      }
    this.tint.getContext('2d').putImageData(part, x0, y0);
  }

  drawBones(context, at, person, colour) {
    const known = (k) => k >= FACE_POINTS && person[3 * k + 2] > 0;
    const place = (k) => at(person[3 * k], person[3 * k + 1]);
    context.beginPath();
    for (const [a, b] of BONES)
      if (known(a) && known(b)) {
        context.moveTo(...place(a));
        context.lineTo(...place(b));
      }
    doubled(context, colour, 1);
  }

  drawFace(context, at, face, selected) {
    const [x0, y0, x1, y1] = face.box;
    const [a, b] = [at(x0, y0), at(x1, y1)];
    context.beginPath();
    context.rect(a[0], a[1], b[0] - a[0], b[1] - a[1]);
    context.setLineDash(selected ? [5, 3] : []);
    doubled(context, LIGHT);
    context.setLineDash([]);
    const label = face.person;
    if (label) written(context, `${label}`, a[0], a[1] - 9, colourOf(label));
    if (selected)
      for (const [x, y] of [a, [b[0], a[1]], b, [a[0], b[1]]]) {
        context.fillStyle = LIGHT;
        context.fillRect(x - 3.5, y - 3.5, 7, 7);
        context.strokeStyle = DARK;
        context.lineWidth = 1;
        context.strokeRect(x - 3.5, y - 3.5, 7, 7);
      }
  }
}

// A thin line with a dark one behind it, which shows on any ground.
function doubled(context, colour, width = 1.25) {
  context.lineWidth = width + 1.5;
  context.strokeStyle = DARK;
  context.stroke();
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.stroke();
}

function written(context, text, x, y, colour) {
  context.font = '600 12px system-ui, sans-serif';
  context.textBaseline = 'middle';
  context.lineJoin = 'round';
  context.lineWidth = 3;
  context.strokeStyle = DARK;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}
