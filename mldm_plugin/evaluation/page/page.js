// The page, from top to bottom.

function build() {
  const sections = [gallery(), summary(), parts(), extremes(), curves(), spread(), method()].filter(Boolean);
  document.getElementById('page').append(head(), ...sections,
    h('footer', null, 'Tables and figures of this comparison lie beside this page: metrics.csv, table.md, table.tex, figures/.'));
  document.getElementById('bar').append(h('a', { href: '#top', class: 'home' }, 'mldm evaluate'),
    h('div', { class: 'links' }, sections.map((one) => h('a', { href: `#${one.id}` }, one.querySelector('h2').textContent))), themeSwitch());
  document.documentElement.dataset.drawn = 'true';
  const unfold = () => {
    const folded = document.getElementById(location.hash.slice(1))?.closest('details');
    if (folded) folded.open = true;
  };
  addEventListener('hashchange', unfold);
  unfold();
  if (location.hash) location.hash = location.hash; // what it names is there only now
}

build();
