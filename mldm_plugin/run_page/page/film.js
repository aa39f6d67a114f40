// The panels as a film: what the losses saw, from the first step to the last.

function panels() {
  const { frames, panels: whole } = R.film;
  if (!frames.length) return null;
  let at = frames.length - 1;
  const picture = h('img', { alt: '', decoding: 'sync' });
  const step = h('output', { class: 'film-step' });
  const slider = h('input', { type: 'range', min: 0, max: frames.length - 1, step: 1, 'aria-label': 'Step of the panel', oninput: () => show(Number(slider.value)) });
  const show = (i) => {
    at = Math.min(Math.max(i, 0), frames.length - 1);
    const frame = frames[at];
    picture.src = `data:image/jpeg;base64,${frame.src}`;
    picture.alt = `Panel of step ${frame.step}: pictures, their annotation, the noisy picture and its clean estimate`;
    picture.width = frame.width;
    picture.height = frame.height;
    step.value = `step ${frame.step}`;
    slider.value = at;
    slider.setAttribute('aria-valuetext', `step ${frame.step}`);
    remember('film', frame.step);
  };
  const button = (by, label, sign) => h('button', { type: 'button', class: 'round', 'aria-label': label, onclick: () => show(at + by) }, sign);
  const player = h('div', { class: 'film', tabindex: 0, role: 'group', 'aria-label': 'Panels over steps; arrow keys go from one to the next' },
    h('div', { class: 'film-bar' }, button(-1, 'Earlier panel', '←'), slider, button(1, 'Later panel', '→'), step), picture);
  player.addEventListener('keydown', (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: frames.length - 1 }[event.key];
    if (to !== undefined) { event.preventDefault(); show(to); }
  });
  const before = frames.findIndex((frame) => String(frame.step) === recall('film'));
  show(before < 0 || !R.again ? at : before);
  const lead = ['What the losses saw: each picture, its people and faces, the noisy picture, and the clean estimate that the losses judge. '
    + 'Beneath each row its t, and each loss with its weight. As t differs from step to step, look at estimates of about the same t.',
    onScreen(' Arrow keys go from step to step.'), whole > frames.length ? ` ${frames.length} of ${whole} panels are in this page.` : ''];
  return section('panels', 'Panels', lead, player);
}
