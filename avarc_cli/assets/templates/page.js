// Tables sort by their headers, lists filter, and boxes that scroll take the keyboard.
// Everything is on the page without this script: controls that need it are hidden until it runs.
const number = text => parseFloat(text.replaceAll(',', '').replaceAll('−', '-').replace(/^[<>] /, ''));
const compare = (a, b) => a.localeCompare(b, 'en', {numeric: true});

for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    if (head.tagName !== 'TH') return;
    const button = document.createElement('button'), numeric = head.classList.contains('number');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    const key = row => numeric ? number(row.cells[column].textContent) : row.cells[column].textContent;
    button.addEventListener('click', () => {
      const last = head.getAttribute('aria-sort');
      const down = last ? last === 'ascending' : numeric, sign = down ? -1 : 1;
      heads.forEach(each => each.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const keyed = [...body.rows].map(row => [key(row), row]);
      keyed.sort(([a], [b]) => numeric
        ? (isNaN(a) - isNaN(b)) || sign * (a - b)  // a cell without a number is last, both ways
        : sign * compare(a, b));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

for (const form of document.querySelectorAll('form.filters')) {
  const list = document.getElementById(form.dataset.list), items = [...list.children];
  if (items.length < 2) continue;
  const choices = [...form.querySelectorAll('.choice')];
  for (const choice of choices) {
    const values = [...new Set(items.map(item => item.dataset[choice.name]))].filter(Boolean).sort(compare);
    choice.append(...values.map(value => new Option(value, value)));
    choice.parentElement.hidden = values.length < 2;
  }
  const limits = [...form.querySelectorAll('.limit')];
  const within = item => limits.every(limit => {
    const value = item.dataset[limit.name], sign = limit.dataset.way === 'most' ? 1 : -1;
    return limit.value === '' || (value !== undefined && sign * (value - limit.value) <= 0);
  });
  const show = () => {
    const wanted = form.text.value.toLowerCase();
    let shown = 0;
    for (const item of items) {
      const has = choices.every(choice => !choice.value || item.dataset[choice.name] === choice.value);
      item.hidden = !(has && within(item) && item.querySelector('h3, th').textContent.toLowerCase().includes(wanted));
      shown += !item.hidden;
    }
    form.querySelector('output').value = `${shown.toLocaleString('en')} of ${items.length.toLocaleString('en')} shown`;
  };
  form.addEventListener('input', show);
  form.addEventListener('submit', event => event.preventDefault());
  const order = form.querySelector('[name=order]');
  order?.addEventListener('change', () => {
    const [name, way] = order.value.split(' '), sign = way === 'down' ? -1 : 1;
    const key = item => parseFloat(item.dataset[name]);
    list.append(...(name ? [...items].sort((a, b) => sign * (key(a) - key(b))) : items));
  });
  form.hidden = false;
  show();
}

function focusable() {
  for (const box of document.querySelectorAll('.scroll, pre')) {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (scrolls) {
      box.tabIndex = 0;
      box.setAttribute('role', 'group');
      box.setAttribute('aria-label', box.querySelector('caption')?.textContent || 'scrolls');
    } else box.removeAttribute('tabindex');
  }
}
focusable();
addEventListener('resize', focusable);
document.addEventListener('toggle', focusable, true);
