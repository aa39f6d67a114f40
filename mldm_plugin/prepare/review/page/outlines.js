// Where labels meet, as paths along the edges of pixels, in tiles, so that a stroke draws few of them anew.

const TILE = 128;

export class Outlines {
  constructor(labels, width, height) {
    Object.assign(this, { labels, width, height, tiles: new Map(), across: Math.ceil(width / TILE), down: Math.ceil(height / TILE) });
  }

  // Forget the tiles that a changed rectangle touches; a neighbour's edges depend on the pixel beyond it.
  forget({ x0, y0, x1, y1 }) {
    for (let ty = Math.floor((y0 - 1) / TILE); ty <= Math.floor((y1 + 1) / TILE); ty++)
      for (let tx = Math.floor((x0 - 1) / TILE); tx <= Math.floor((x1 + 1) / TILE); tx++) this.tiles.delete(ty * this.across + tx);
  }

  // Each label with the paths around it.
  *paths() {
    for (let key = 0; key < this.across * this.down; key++) {
      if (!this.tiles.has(key)) this.tiles.set(key, this.tile(key % this.across, Math.floor(key / this.across)));
      yield* this.tiles.get(key);
    }
  }

  // Around each corner of pixels the middles of the edges between two labels are joined, which rounds the steps off.
  // A line belongs to the first of the labels around its corner that is somebody.
  tile(tx, ty) {
    const { labels, width, height } = this;
    const found = new Map();
    const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : labels[y * width + x]);
    const last = (tile, tiles, size) => (tile === tiles - 1 ? size : (tile + 1) * TILE - 1);
    for (let y = ty * TILE; y <= last(ty, this.down, height); y++)
      for (let x = tx * TILE; x <= last(tx, this.across, width); x++) {
        const [a, b, c, d] = [at(x - 1, y - 1), at(x, y - 1), at(x - 1, y), at(x, y)];
        if (a === b && a === c && a === d) continue;
        const label = d || c || b || a;
        if (!found.has(label)) found.set(label, new Path2D());
        const path = found.get(label);
        const middles = [a !== b && [x, y - 0.5], c !== d && [x, y + 0.5], a !== c && [x - 0.5, y], b !== d && [x + 0.5, y]].filter(Boolean);
        const [from, ...to] = middles.length === 2 ? middles : [[x, y], ...middles];
        for (const one of to) {
          path.moveTo(...from);
          path.lineTo(...one);
        }
      }
    return found;
  }
}
