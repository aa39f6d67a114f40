// Light or dark, as the reader's system has it or as they choose.

function themeSwitch() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  const label = () => button.setAttribute('aria-label', dark() ? 'Light colours' : 'Dark colours');
  const keep = (theme) => { try { localStorage.setItem('mldm-theme', theme); } catch { /* a file may have no storage */ } };
  try { root.dataset.theme = localStorage.getItem('mldm-theme') || ''; } catch { root.dataset.theme = ''; }
  const button = h('button', { type: 'button', class: 'round theme', onclick: () => {
    root.dataset.theme = dark() ? 'light' : 'dark';
    keep(root.dataset.theme);
    label();
  } }, '◐');
  label();
  return button;
}
