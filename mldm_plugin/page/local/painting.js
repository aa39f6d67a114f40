// Labels under a round brush, and what a stroke has to remember so that it can be undone.

export const MOST_LABELS = 255;

// A stroke of one label on labels of (width, height). Places and radius are in pixels of the picture.
export class Stroke {
  constructor(labels, width, height, label) {
    Object.assign(this, { labels, width, height, label, before: labels.slice(), dirty: null, last: null });
  }

  // Paint from the last place to this one; returns the rectangle that may have changed, or null.
  to([x, y], radius) {
    const [ax, ay] = this.last || [x, y];
    this.last = [x, y];
    const reach = Math.max(radius, 0.5);
    const bounds = this.clipped(Math.min(ax, x) - reach, Math.min(ay, y) - reach, Math.max(ax, x) + reach, Math.max(ay, y) + reach);
    if (!bounds) return null;
    const [dx, dy] = [x - ax, y - ay];
    const length = dx * dx + dy * dy;
    for (let py = bounds.y0; py <= bounds.y1; py++)
      for (let px = bounds.x0; px <= bounds.x1; px++) {
        const [cx, cy] = [px + 0.5 - ax, py + 0.5 - ay];
        const along = length ? Math.min(Math.max((cx * dx + cy * dy) / length, 0), 1) : 0;
        if ((cx - along * dx) ** 2 + (cy - along * dy) ** 2 <= reach * reach) this.labels[py * this.width + px] = this.label;
      }
    this.dirty = union(this.dirty, bounds);
    return bounds;
  }

  // Give the piece of one label around a place to this stroke's label.
  fill([x, y]) {
    const [px, py] = [Math.floor(x), Math.floor(y)];
    if (px < 0 || py < 0 || px >= this.width || py >= this.height) return null;
    const from = this.labels[py * this.width + px];
    if (from === this.label) return null;
    const todo = [py * this.width + px];
    let bounds = null;
    this.labels[todo[0]] = this.label;
    while (todo.length) {
      const at = todo.pop();
      const [ax, ay] = [at % this.width, Math.floor(at / this.width)];
      bounds = union(bounds, { x0: ax, y0: ay, x1: ax, y1: ay });
      for (const [nx, ny] of [[ax - 1, ay], [ax + 1, ay], [ax, ay - 1], [ax, ay + 1]]) {
        const next = ny * this.width + nx;
        if (nx >= 0 && ny >= 0 && nx < this.width && ny < this.height && this.labels[next] === from) {
          this.labels[next] = this.label;
          todo.push(next);
        }
      }
    }
    this.dirty = bounds;
    return bounds;
  }

  // The part that changed, as it was and as it is; null where nothing did.
  patch() {
    if (!this.dirty) return null;
    const [before, after] = [this.before, this.labels].map((labels) => cut(labels, this.width, this.dirty));
    return before.every((value, k) => value === after[k]) ? null : { ...this.dirty, before, after };
  }

  clipped(x0, y0, x1, y1) {
    const found = { x0: Math.max(Math.floor(x0), 0), y0: Math.max(Math.floor(y0), 0), x1: Math.min(Math.ceil(x1), this.width - 1), y1: Math.min(Math.ceil(y1), this.height - 1) };
    return found.x0 > found.x1 || found.y0 > found.y1 ? null : found;
  }
}

const union = (a, b) => (a ? { x0: Math.min(a.x0, b.x0), y0: Math.min(a.y0, b.y0), x1: Math.max(a.x1, b.x1), y1: Math.max(a.y1, b.y1) } : b);

function cut(labels, width, { x0, y0, x1, y1 }) {
  const rows = [];
  for (let y = y0; y <= y1; y++) rows.push(labels.subarray(y * width + x0, y * width + x1 + 1));
  const all = new Uint8Array((x1 - x0 + 1) * rows.length);
  rows.forEach((row, k) => all.set(row, k * row.length));
  return all;
}

export function paste(labels, width, { x0, y0, x1, y1 }, values) {
  const wide = x1 - x0 + 1;
  for (let y = y0; y <= y1; y++) labels.set(values.subarray((y - y0) * wide, (y - y0 + 1) * wide), y * width + x0);
}

// How many pixels each label has.
export function areas(labels) {
  const found = new Uint32Array(MOST_LABELS + 1);
  for (let k = 0; k < labels.length; k++) found[labels[k]]++;
  return found;
}

// The highest pixel of each label.
export function tops(labels, width) {
  const found = new Map();
  for (let k = 0; k < labels.length; k++)
    if (labels[k] && !found.has(labels[k])) found.set(labels[k], { label: labels[k], x: k % width, y: Math.floor(k / width) });
  return [...found.values()];
}
