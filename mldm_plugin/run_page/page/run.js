// The page, from top to bottom; while the run trains it is read again, and stays where it was.

const KEPT = `mldm-report-${R.folder}`;
function remember(name, value) { try { sessionStorage.setItem(`${KEPT}-${name}`, value); } catch { /* a file may have no storage */ } }
function recall(name) { try { return sessionStorage.getItem(`${KEPT}-${name}`); } catch { return null; } }

const SHORT = { findings: 'Findings', heard: 'Heard?', proof: 'Proof', data: 'Pictures', repeat: 'Repeat' }; // so that all fit into the bar

function build() {
  const sections = [findings(), validation(), panels(), curves(), ranges(), heard(), proof(), data(), layers(), again()].filter(Boolean);
  document.getElementById('page').append(head(), ...sections,
    h('footer', null, 'The numbers of this page are in metrics.jsonl, evaluation.json, preset.yaml, proof.txt, machine.json, crops.json and panels/ of the run.'));
  document.getElementById('bar').append(h('a', { href: '#top', class: 'home' }, 'mldm report'),
    h('div', { class: 'links' }, sections.map((one) => h('a', { href: `#${one.id}` }, SHORT[one.id] || one.querySelector('h2').textContent))), themeSwitch());
  document.documentElement.dataset.drawn = 'true';
  if (R.again) stayLive(R.again);
  else if (location.hash) location.hash = location.hash; // what it names is there only now
}

/** Read the page again every so many seconds, while somebody sees it, and stay where it was. */
function stayLive(seconds) {
  history.scrollRestoration = 'manual';
  const before = Number(recall('scroll') || 0);
  const settle = (tries) => requestAnimationFrame(() => { // plots take their height in the next frames
    scrollTo({ top: before, behavior: 'instant' });
    if (tries) settle(tries - 1);
  });
  if (before) settle(5);
  setInterval(() => {
    if (document.hidden) return;
    remember('scroll', scrollY);
    location.reload();
  }, 1000 * seconds);
}

build();
