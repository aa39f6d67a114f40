// Metrics that tell the parts of what they look at, the photographs first.

function parts() {
  const told = Object.entries(R.parts || {});
  return told.length ? section('parts', 'By part', 'What single parts come to, all pictures together, and beside them the photographs: what their judge says of the truth.',
    told.map(([name, table]) => partsOf(R.metrics.find((one) => one.name === name), name, table))) : null;
}

function partsOf(metric, name, table) {
  const columns = ['photographs', ...NAMES], digits = metric ? metric.decimals : 3;
  const body = Object.entries(table).map(([part, values]) => h('tr', null, h('th', { scope: 'row' }, part),
    columns.map((column) => h('td', { class: 'number' }, number(values[column], digits)))));
  return h('details', { open: true }, h('summary', null, metric ? `${metric.title} ${arrowOf(metric)}` : name),
    h('div', { class: 'scroll' }, h('table', { class: 'plain' },
      h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'part'), columns.map((column) =>
        h('th', { scope: 'col', class: 'number' }, column === 'photographs' ? column : modelLabel(column))))), h('tbody', null, body))));
}
