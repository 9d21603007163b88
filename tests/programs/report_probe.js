// Runs in a report's page: writes to <body data-*> what the browser made of the page, for test_report.py.
addEventListener('error', event => document.body.dataset.failed = event.message);
addEventListener('load', () => {
  const images = [...document.images], map = document.querySelector('img[data-values]');
  const box = map.getBoundingClientRect(), at = {clientX: box.x + 2, clientY: box.y + 2, bubbles: true};
  map.dispatchEvent(new PointerEvent('pointermove', at));
  document.body.dataset.shown = images.filter(i => i.complete && i.naturalWidth > 0).length;
  document.body.dataset.tip = document.getElementById('value').textContent;
  document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
});
