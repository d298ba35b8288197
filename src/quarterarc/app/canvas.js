// The canvas of the page: `value` is the data URL of a picture; the mask is painted over it, pixel by pixel.
const find = (name) => element.querySelector(name);
const note = (text) => { find('.qa-note').textContent = text; };
let last = null;

function show() {
  if (!props.value) return;
  const image = new Image();
  image.onload = () => {
    for (const name of ['.qa-picture', '.qa-mask']) {
      const canvas = find(name);
      canvas.width = image.width;
      canvas.height = image.height;
    }
    find('.qa-picture').getContext('2d').drawImage(image, 0, 0);
    find('.qa-canvas').style.aspectRatio = image.width + ' / ' + image.height;
  };
  image.src = props.value;
}

function place(event) {
  const mask = find('.qa-mask'), box = mask.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * mask.width, (event.clientY - box.top) / box.height * mask.height];
}

function dot(x, y) {
  const context = find('.qa-mask').getContext('2d'), radius = find('.qa-brush').value / 2;
  context.fillStyle = '#e0356b';
  context.fillRect(Math.floor(x), Math.floor(y), 1, 1);
  for (let row = Math.floor(y - radius); row <= y + radius; row++)
    for (let column = Math.floor(x - radius); column <= x + radius; column++)
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) context.fillRect(column, row, 1, 1);
}

function line(from, to) {
  const count = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let k = 0; k <= count; k++) dot(from[0] + (to[0] - from[0]) * k / count, from[1] + (to[1] - from[1]) * k / count);
}

element.addEventListener('pointerdown', (event) => {
  if (!event.target.classList.contains('qa-mask')) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  last = place(event);
  dot(...last);
});
element.addEventListener('pointermove', (event) => {
  if (last === null) return;
  const next = place(event);
  line(last, next);
  last = next;
});
for (const name of ['pointerup', 'pointercancel']) element.addEventListener(name, () => { last = null; });

function clear() {
  const mask = find('.qa-mask');
  mask.getContext('2d').clearRect(0, 0, mask.width, mask.height);
}

element.addEventListener('click', (event) => {
  const names = event.target.classList, mask = find('.qa-mask');
  if (names.contains('qa-clear')) clear();
  if (names.contains('qa-take')) trigger('take', {});
  if (names.contains('qa-training')) trigger('training', { number: Number(find('.qa-number').value) });
  if (names.contains('qa-fill')) {
    if (!mask.getContext('2d').getImageData(0, 0, mask.width, mask.height).data.some((value) => value > 0)) {
      note('Nothing is painted yet: paint the part to fill.');
      return;
    }
    note('');
    trigger('fill', { picture: props.value, mask: mask.toDataURL('image/png') });
  }
});

element.addEventListener('change', (event) => {
  const file = event.target.type === 'file' ? event.target.files[0] : null;
  if (!file) return;
  const most = Number(find('.qa-canvas').dataset.most);
  if (file.size > most) {
    note('This file has ' + Math.ceil(file.size / 2 ** 20) + ' MB; at most ' + Math.floor(most / 2 ** 20) + ' are accepted.');
    return;
  }
  const reader = new FileReader();
  reader.onload = () => trigger('upload', { file: reader.result });
  reader.readAsDataURL(file);
  event.target.value = '';
});

watch('value', show);
show();
