// The confusion matrix of any classes, from the counts that are not zero: (label, prediction, images) one after another.
const {names, totals, cells, confused} = JSON.parse(document.getElementById('confusions').textContent);
const byLabel = names.map(() => new Map()), near = names.map(() => new Map());
for (let i = 0; i < cells.length; i += 3) {
  const [label, said, images] = cells.slice(i, i + 3);
  byLabel[label].set(said, images);
  if (label === said) continue;
  near[label].set(said, (near[label].get(said) || 0) + images);
  near[said].set(label, (near[said].get(label) || 0) + images);
}
const most = names.map((_, i) => i).sort((a, b) => sum(near[b]) - sum(near[a]));
function sum(counts) { return [...counts.values()].reduce((a, b) => a + b, 0); }

const element = (tag, parent, values = {}) => parent.appendChild(Object.assign(document.createElement(tag), values));
function head(parent, scope, name) {
  const cell = element('th', parent, {scope, title: name});
  element('span', cell, {textContent: name});
}
function draw(shown) {
  const table = Object.assign(document.createElement('table'), {className: 'matrix'});
  table.classList.toggle('names', names.some(name => name.length > 4));
  const caption = element('caption', table);
  caption.textContent = 'Rows: the label. Columns: the prediction. Shades: share of the row.';
  const top = element('tr', element('thead', table));
  element('td', top);
  shown.forEach(said => head(top, 'col', names[said]));
  const body = element('tbody', table);
  for (const label of shown) {
    const row = element('tr', body);
    head(row, 'row', names[label]);
    for (const said of shown) {
      const images = byLabel[label].get(said), cell = element('td', row);
      if (!images) continue;
      cell.textContent = images;
      cell.title = `${names[label]} predicted as ${names[said]}: ${images}`;
      cell.className = label === said ? 'hit' : 'miss';
      cell.style.setProperty('--share', `${Math.round(10 + 45 * images / totals[label])}%`);
    }
  }
  document.getElementById('matrix').replaceChildren(table);
}

const controls = document.getElementById('matrix-controls');
const field = name => controls.elements.namedItem(name);
function update() {
  const mode = field('mode').value, chosen = +field('class').value, count = +field('count').value;
  field('class').disabled = mode === 'confused';
  const close = [...near[chosen].entries()].sort(([, a], [, b]) => b - a).map(([other]) => other);
  const all = {
    confused: count === 20 ? confused : most,
    near: [chosen, ...close],
    order: names.map((_, i) => i).slice(chosen),
  }[mode];
  const shown = all.slice(0, count);
  draw(mode === 'order' ? shown : shown.sort((a, b) => a - b));
  const what = {
    confused: `The ${shown.length} most confused`,
    near: `${names[chosen]} and the ${shown.length - 1} it is most confused with`,
    order: `The ${shown.length} from ${names[chosen]} on`,
  }[mode];
  document.getElementById('matrix-note').textContent = `${what}, of ${names.length} classes.`;
  focusable();
}
field('class').append(...names.map((name, i) => new Option(name, i)));
field('zoom').addEventListener('input', () => {
  document.getElementById('matrix').style.setProperty('--cell', `${field('zoom').value}px`);
  focusable();
});
for (const name of ['mode', 'class', 'count']) field(name).addEventListener('change', update);
controls.addEventListener('submit', event => event.preventDefault());
document.getElementById('matrix-note').setAttribute('role', 'status');
controls.hidden = false;
