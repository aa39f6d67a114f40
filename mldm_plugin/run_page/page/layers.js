// How far each layer moved, on a scale of powers of ten.

function layers() {
  const told = R.layers;
  if (!told) return null;
  const moved = told.bars.map(([, , value]) => value).filter((value) => value > 0);
  const still = told.bars.filter(([, , value]) => !(value > 0)).length;
  const lead = `${told.what}: ${told.shares ? `the change of each of ${told.bars.length} layers as a part of its base` : `the norm of the change of each of ${told.bars.length} layers`}, from input to output`
    + `${still ? `; red ones (${still}) have not moved` : ''}.`;
  const high = Math.ceil(Math.log10(Math.max(...moved, 1e-12)) + 1e-9), low = Math.min(Math.floor(Math.log10(Math.min(...moved, 1)) - 1e-9), high - 1);
  const words = (power) => (told.shares ? percent(10 ** power) : `1e${power}`);
  return section('layers', 'Layers', lead, responsive((width) => {
    const height = 220, left = 60, top = 8, floor = height - 30, each = (width - left) / told.bars.length;
    const y = linear(low, high, floor, top);
    const powers = Array.from({ length: high - low + 1 }, (_, i) => low + i);
    const blocks = [];
    told.bars.forEach(([, block], i) => { if (!blocks.length || blocks[blocks.length - 1].block !== block) blocks.push({ block, start: i }); });
    return canvas(width, height, `change of each layer of the ${told.what}`,
      blocks.map(({ block, start }, i) => {
        const end = i + 1 < blocks.length ? blocks[i + 1].start : told.bars.length, room = (end - start) * each;
        return [i % 2 ? s('rect', { class: 'block', x: left + start * each, y: top, width: room, height: height - top }) : null,
          room > 6.2 * block.length ? s('text', { x: left + start * each + room / 2, y: height - 9, 'text-anchor': 'middle' }, block) : null];
      }),
      powers.map((power) => [s('path', { class: 'grid', d: `M${left} ${y(power)}H${width}` }), s('text', { x: left - 7, y: y(power) + 4, 'text-anchor': 'end' }, words(power))]),
      told.bars.map(([name, , value], i) => {
        const to = value > 0 ? y(Math.log10(value)) : top;
        return s('rect', { class: value > 0 ? 'moved' : 'still', x: left + i * each, y: to, width: Math.max(each - (each > 4 ? 1.5 : 0.3), 0.6), height: Math.max(floor - to, 0) },
          s('title', null, `${name}: ${value > 0 ? (told.shares ? percent(value) : digits(value)) : 'has not moved'}`));
      }));
  }));
}
