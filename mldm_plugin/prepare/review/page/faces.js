// Face boxes under the pointer: which one, which corner, and how it moves.

const NEAR = 8; // screen pixels
const LEAST = 4; // pixels of the picture, a side of a new box

// The face at a place and the part that is held: a corner as [0 or 2, 1 or 3], or 'all'; null where there is none.
export function held(faces, [x, y], scale) {
  const near = NEAR / scale;
  const order = faces.map((face, k) => k).sort((a, b) => side(faces[a]) - side(faces[b]));
  for (const k of order)
    for (const cx of [0, 2])
      for (const cy of [1, 3])
        if (Math.hypot(faces[k].box[cx] - x, faces[k].box[cy] - y) <= near) return { face: k, part: [cx, cy] };
  for (const k of order) {
    const [x0, y0, x1, y1] = faces[k].box;
    if (x >= x0 - near && x <= x1 + near && y >= y0 - near && y <= y1 + near) return { face: k, part: 'all' };
  }
  return null;
}

const side = ({ box }) => box[2] - box[0];

// The box after a part of it was moved by (dx, dy), inside a picture of (width, height).
export function moved(box, part, dx, dy, width, height) {
  if (part === 'all') {
    const [mx, my] = [clamp(dx, -box[0], width - box[2]), clamp(dy, -box[1], height - box[3])];
    return [box[0] + mx, box[1] + my, box[2] + mx, box[3] + my];
  }
  const next = [...box];
  next[part[0]] = clamp(box[part[0]] + dx, 0, width);
  next[part[1]] = clamp(box[part[1]] + dy, 0, height);
  return upright(next);
}

export const upright = ([x0, y0, x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
export const isBox = ([x0, y0, x1, y1]) => x1 - x0 >= LEAST && y1 - y0 >= LEAST;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// The person who has most pixels in a box; 0 where nobody has any.
export function personOf(box, labels, width, height) {
  const found = new Map();
  for (let y = Math.max(Math.floor(box[1]), 0); y < Math.min(Math.ceil(box[3]), height); y++)
    for (let x = Math.max(Math.floor(box[0]), 0); x < Math.min(Math.ceil(box[2]), width); x++) {
      const label = labels[y * width + x];
      if (label) found.set(label, (found.get(label) || 0) + 1);
    }
  return [...found].sort((a, b) => b[1] - a[1])[0]?.[0] || 0;
}
