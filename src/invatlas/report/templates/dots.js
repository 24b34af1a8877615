// Dots on a canvas: places in 0..SPAN, seen through a view, drawn pixel by pixel so that a hundred
// thousand move with the hand; the cell under the pointer is found through a grid.
const SPAN = 65535, GRID = 256, CLOSEST = 80, margin = 10;
const unpack = (text) => {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
};
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function buildGrid(places) {
  const square = (cell) => (places[2 * cell + 1] >> 8) * GRID + (places[2 * cell] >> 8);
  const count = places.length / 2, starts = new Uint32Array(GRID * GRID + 1);
  for (let cell = 0; cell < count; cell++) starts[square(cell) + 1]++;
  for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
  const next = starts.slice(), cells = new Uint32Array(count);
  for (let cell = 0; cell < count; cell++) cells[next[square(cell)]++] = cell;
  return { starts, cells };
}
function findNearest({ places, grid }, x, y, reach) {
  const square = (value) => clamp(value, 0, SPAN) >> 8;
  let best = reach ** 2, found = -1;
  for (let row = square(y - reach); row <= square(y + reach); row++) {
    const end = grid.starts[row * GRID + square(x + reach) + 1];
    for (let i = grid.starts[row * GRID + square(x - reach)]; i < end; i++) {
      const cell = grid.cells[i];
      const distance = (places[2 * cell] - x) ** 2 + (places[2 * cell + 1] - y) ** 2;
      if (distance < best) [best, found] = [distance, cell];
    }
  }
  return found;
}

// A view is the place at its middle and how much it magnifies; it never leaves the map.
function look(map, x, y, zoom) {
  zoom = clamp(zoom, 1, CLOSEST);
  const half = SPAN / 2 / zoom, place = (value) => clamp(value, half, SPAN - half);
  map.view = { x: place(x), y: place(y), zoom };
  map.canvas.style.touchAction = zoom > 1 ? "none" : "pan-y"; // a whole map lets the page scroll
}
const scaleOf = ({ canvas, view }) => (view.zoom * (canvas.clientWidth - 2 * margin)) / SPAN;
const project = (map, place, axis) =>
  map.canvas.clientWidth / 2 + (place - map.view[axis]) * scaleOf(map);
function placeUnder(map, event) {
  const box = map.canvas.getBoundingClientRect(), scale = scaleOf(map);
  return { x: map.view.x + (event.clientX - box.left - box.width / 2) / scale,
    y: map.view.y + (event.clientY - box.top - box.height / 2) / scale };
}
function zoomAt(map, place, factor) { // the place stays where it is on the screen
  const { x, y, zoom } = map.view, turn = zoom / clamp(zoom * factor, 1, CLOSEST);
  look(map, place.x + (x - place.x) * turn, place.y + (y - place.y) * turn, zoom / turn);
}
function zoomTo(map, codes, code) { // nearly all cells of one code, so that few strays count
  const axes = [0, 1].map((axis) => {
    const values = [];
    for (let cell = 0; cell < codes.length; cell++)
      if (codes[cell] === code) values.push(map.places[2 * cell + axis]);
    values.sort((a, b) => a - b);
    const at = (share) => values[Math.round(share * (values.length - 1))];
    return { middle: (at(0.02) + at(0.98)) / 2, extent: at(0.98) - at(0.02) };
  });
  if (!Number.isFinite(axes[0].middle)) return;
  const extent = Math.max(axes[0].extent, axes[1].extent, 1);
  look(map, axes[0].middle, axes[1].middle, (0.75 * SPAN) / extent);
}

function shapeDot(radius, width) { // where its pixels lie from its middle, and how much it covers
  const steps = [], covers = [], reach = Math.ceil(radius);
  for (let y = -reach; y <= reach; y++)
    for (let x = -reach; x <= reach; x++) {
      const cover = clamp(radius + 0.5 - Math.hypot(x, y), 0, 1);
      if (cover > 0) { steps.push(4 * (y * width + x)); covers.push(cover); }
    }
  return { reach, steps: Int32Array.from(steps), covers: Float32Array.from(covers) };
}
// Each layer: colours (code -> 0xrrggbb, -1 where it shows none), alpha and radius in CSS pixels.
function drawDots(map, codes, layers) {
  const { canvas, places, view } = map, ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio), scale = scaleOf(map) * ratio;
  if (!width) return;
  if (canvas.width !== width) canvas.width = canvas.height = width;
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, width);
  const pixels = image.data, left = width / 2 - view.x * scale, top = width / 2 - view.y * scale;
  for (const { colours, alpha, radius } of layers) {
    const { reach, steps, covers } = shapeDot(radius * ratio, width), end = width - reach;
    for (let cell = 0; cell < codes.length; cell++) {
      const colour = colours[codes[cell]];
      if (colour < 0) continue;
      const x = Math.floor(left + places[2 * cell] * scale);
      const y = Math.floor(top + places[2 * cell + 1] * scale);
      if (x < reach || y < reach || x >= end || y >= end) continue;
      const red = colour >> 16, green = (colour >> 8) & 255, blue = colour & 255;
      for (let k = 0; k < steps.length; k++) {
        const i = 4 * (y * width + x) + steps[k], under = pixels[i + 3], laid = alpha * covers[k];
        const share = under ? laid : 1; // where nothing lies below, its own colour
        pixels[i] += share * (red - pixels[i]);
        pixels[i + 1] += share * (green - pixels[i + 1]);
        pixels[i + 2] += share * (blue - pixels[i + 2]);
        pixels[i + 3] = under + (255 - under) * laid;
      }
    }
  }
  pen.putImageData(image, 0, 0);
}
