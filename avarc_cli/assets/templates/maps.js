// Maps lie over their image; a cell's value shows at the pointer, and at the arrow keys once a map has the focus.
const tip = document.createElement('div');
tip.id = 'value';
tip.setAttribute('role', 'status');
document.querySelector('main').append(tip);
const shape = map => {
  const values = map.dataset.values.split(' '), rows = +map.dataset.rows || Math.round(Math.sqrt(values.length));
  return {values, rows, columns: values.length / rows, box: map.getBoundingClientRect()};
};
function tell(map, row, column, x, y) {
  const {values, columns} = shape(map);
  tip.style.display = 'block';
  tip.textContent = `row ${row + 1}, column ${column + 1}: ${values[row * columns + column]} nats ${map.dataset.unit}`;
  tip.style.left = Math.max(0, Math.min(x + 14, innerWidth - tip.offsetWidth - 8)) + 'px';
  tip.style.top = y + 16 + 'px';
}
const hide = () => { tip.style.display = 'none'; };
document.addEventListener('pointermove', event => {
  const map = event.target.closest('img[data-values]');
  if (!map) return hide();
  const {rows, columns, box} = shape(map);
  const cell = (x, count) => Math.max(0, Math.min(count - 1, Math.floor(x * count)));
  const row = cell((event.clientY - box.top) / box.height, rows);
  tell(map, row, cell((event.clientX - box.left) / box.width, columns), event.clientX, event.clientY);
});
const MOVES = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
for (const map of document.querySelectorAll('.over .map')) {
  let at = [0, 0];
  const show = () => {
    const {rows, columns, box} = shape(map);
    tell(map, ...at, box.left + (at[1] + .5) / columns * box.width, box.top + (at[0] + .5) / rows * box.height);
  };
  map.tabIndex = 0;
  map.setAttribute('role', 'img');
  map.addEventListener('focus', () => { if (map.matches(':focus-visible')) show(); });
  map.addEventListener('blur', hide);
  map.addEventListener('keydown', event => {
    if (event.key === 'Escape') return hide();
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    const {rows, columns} = shape(map), most = [rows - 1, columns - 1];
    at = at.map((place, axis) => Math.max(0, Math.min(most[axis], place + move[axis])));
    show();
  });
}

const slider = document.getElementById('opacity');
if (slider && document.querySelector('.card .input')) {
  for (const over of document.querySelectorAll('.over')) {
    const input = over.closest('.card').querySelector('.input img');
    if (!input) continue;
    const below = input.cloneNode();
    below.className += ' below';
    below.alt = '';
    over.prepend(below);
  }
  const fade = () => {
    document.documentElement.style.setProperty('--opacity', slider.value / 100);
    slider.form.querySelector('output').value = `${slider.value} %`;
  };
  slider.addEventListener('input', fade);
  slider.form.hidden = false;
  fade();
}
