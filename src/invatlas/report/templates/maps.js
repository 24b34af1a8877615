const data = JSON.parse(document.getElementById("maps-data").textContent);
// A column may name its own colours, by variables of the style sheet, and a code that lies on top;
// or the place of each code in the palette, so that names have one colour on all pages.
const colour = (column, code) => column.shades
  ? `var(${column.shades[code]})` : data.colours[(column.tints?.[code] ?? code) % data.colours.length];
const pencil = document.createElement("canvas").getContext("2d");
const numbers = new Map();
function number(shade) { // a colour or a variable of the style sheet as 0xrrggbb
  if (!numbers.has(shade)) {
    const name = /^var\((.*)\)$/.exec(shade)?.[1];
    pencil.fillStyle = name ? getComputedStyle(root).getPropertyValue(name).trim() : shade;
    numbers.set(shade, parseInt(pencil.fillStyle.slice(1), 16));
  }
  return numbers.get(shade);
}

const columns = data.columns.map((column) => ({
  ...column,
  none: column.bytes === 1 ? 255 : 65535,
  get codes() { // unpacked once it is looked at
    const bytes = unpack(column.codes), codes = column.bytes === 1 ? bytes : new Uint16Array(bytes.buffer);
    Object.defineProperty(this, "codes", { value: codes });
    return codes;
  },
}));
const say = (column, code) =>
  code === column.none ? "no value" : column.names[code] ?? "one of the smaller categories";
const maps = find("[data-map]").map((figure) => {
  const places = new Uint16Array(unpack(data.maps[figure.dataset.map]).buffer);
  const map = { figure, places, canvas: figure.querySelector("canvas"),
    ring: figure.querySelector(".ring"), grid: null, held: new Map() };
  look(map, SPAN / 2, SPAN / 2, 1);
  return map;
});
const state = { column: columns[0], pinned: null, pointed: null, waiting: new Set() };

function layer(colourOf) {
  const { none, names, categories } = state.column, colours = new Int32Array(none + 1).fill(-1);
  const codes = Math.min(Math.max(names.length, categories), none);
  for (let code = 0; code < codes; code++) colours[code] = colourOf(code);
  colours[none] = colourOf(none);
  return colours;
}
function draw(map) {
  const { codes, none, top = null } = state.column, focus = state.pointed ?? state.pinned;
  const side = map.canvas.clientWidth, room = (0.3 * side * side) / (data.drawn * Math.PI);
  const size = clamp(Math.sqrt(room * map.view.zoom), 0.8, 3.2);
  const grey = number("var(--none)"), muted = number("var(--muted)");
  const paint = (code) => (code === none ? muted : number(colour(state.column, code)));
  const when = (shown, shade) => layer((code) => (shown(code) ? shade(code) : -1));
  const layers = focus === null
    ? [{ colours: when((code) => code === none, () => grey), alpha: 0.8, radius: size },
       { colours: when((code) => code !== none && code !== top, paint), alpha: 0.85, radius: size },
       ...(top === null ? [] : [{ colours: when((code) => code === top, paint), alpha: 1, radius: Math.max(1.8, size * 1.3) }])]
    : [{ colours: when((code) => code !== focus, () => grey), alpha: 0.45, radius: size },
       { colours: when((code) => code === focus, paint), alpha: 0.85, radius: size * 1.15 }];
  drawDots(map, codes, layers);
  map.canvas.setAttribute("aria-label", `${map.figure.dataset.map} latent in two dimensions, ` +
    `${data.drawn} cells coloured by ${state.column.name}`);
  for (const button of find("[data-zoom='out'], [data-zoom='all']", map.figure))
    button.disabled = map.view.zoom === 1;
  map.figure.dataset.drawn = "true";
}
function redraw(some = maps) {
  if (!state.waiting.size)
    requestAnimationFrame(() => { state.waiting.forEach(draw); state.waiting.clear(); });
  for (const map of some) state.waiting.add(map);
}
function point(code) {
  if (state.pointed === code) return;
  state.pointed = code;
  redraw();
}
function pin(code) {
  state.pinned = state.pinned === code ? null : code;
  for (const entry of find("#legend button"))
    entry.setAttribute("aria-pressed", String(Number(entry.dataset.code) === state.pinned));
  showAround();
  redraw();
}
function showAround() {
  const button = document.getElementById("around");
  button.hidden = state.pinned === null;
  if (state.pinned !== null) button.textContent = `Zoom to ${say(state.column, state.pinned)}`;
}
function fillLegend() {
  const { names, counts, categories, missing, none } = state.column;
  const entries = names.map((name, code) => [name, counts[code], code]);
  if (missing) entries.push(["no value", missing, none]);
  const list = document.getElementById("legend");
  list.replaceChildren(...entries.map(([name, count, code]) => {
    const item = make("li", ""), entry = make("button", code === none ? "none" : "");
    const swatch = make("span", "swatch");
    swatch.style.background = code === none ? "var(--none)" : colour(state.column, code);
    entry.append(swatch, make("span", "label", name), make("span", "count", count.toLocaleString("en")));
    Object.assign(entry, { type: "button", title: name });
    entry.dataset.code = code;
    entry.setAttribute("aria-pressed", "false");
    for (const [event, value] of [["pointerenter", code], ["focus", code], ["pointerleave", null], ["blur", null]])
      entry.addEventListener(event, () => point(value));
    entry.addEventListener("click", () => pin(code));
    item.append(entry);
    return item;
  }));
  if (categories > names.length) {
    const more = (categories - names.length).toLocaleString("en");
    list.append(make("li", "more", `and ${more} smaller ones, coloured but not listed`));
  }
  const filter = document.getElementById("filter");
  filter.hidden = categories <= 24;
  filter.value = "";
  list.scrollTop = 0;
}
function choose(index) {
  Object.assign(state, { column: columns[index], pinned: null, pointed: null });
  for (const button of find("[data-column]"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.column) === index));
  document.getElementById("reading").textContent = state.column.reading;
  fillLegend();
  showAround();
  redraw();
}
function inspect(map, event) {
  map.grid ??= buildGrid(map.places);
  const { x, y } = placeUnder(map, event), tip = document.getElementById("tip");
  const cell = findNearest(map, x, y, 9 / scaleOf(map));
  tip.hidden = cell < 0;
  for (const other of maps) {
    const side = other.canvas.clientWidth;
    const [across, down] = ["x", "y"].map((axis, i) => project(other, other.places[2 * cell + i], axis));
    other.ring.hidden = cell < 0 || Math.min(across, down) < 0 || Math.max(across, down) > side;
    Object.assign(other.ring.style, { left: `${across}px`, top: `${down}px` });
  }
  if (cell < 0) return;
  const told = columns.filter((column, index) => index < 14 || column === state.column);
  tip.replaceChildren(...told.map((column) => {
    const line = make("div", column === state.column ? "chosen" : "");
    line.append(make("span", "key", `${column.name} `), make("span", "", say(column, column.codes[cell])));
    return line;
  }));
  const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 18 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${below ? event.clientY + 16 : event.clientY - tip.offsetHeight - 12}px`;
}
function leave() {
  document.getElementById("tip").hidden = true;
  for (const { ring } of maps) ring.hidden = true;
}
// One finger or the mouse drags a map, two fingers spread it.
function drag(map, event) {
  const grip = () => {
    const [one, two = one] = [...map.held.values()];
    return { clientX: (one.clientX + two.clientX) / 2, clientY: (one.clientY + two.clientY) / 2,
      apart: Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY) };
  };
  const before = grip();
  map.held.set(event.pointerId, event);
  const after = grip(), { x, y, zoom } = map.view;
  const times = clamp(before.apart && after.apart ? (zoom * after.apart) / before.apart : zoom, 1, CLOSEST);
  const kept = placeUnder(map, before), reached = placeUnder(map, after); // what was held stays held
  look(map, kept.x + ((x - reached.x) * zoom) / times, kept.y + ((y - reached.y) * zoom) / times, times);
  leave();
  redraw([map]);
}
function zoom(map, place, factor) {
  zoomAt(map, place, factor);
  leave();
  redraw([map]);
}
function handle(map, key) {
  const { x, y, zoom: times } = map.view, step = SPAN / 8 / times;
  const moves = { ArrowLeft: [x - step, y, times], ArrowRight: [x + step, y, times],
    ArrowUp: [x, y - step, times], ArrowDown: [x, y + step, times],
    in: [x, y, 1.6 * times], "+": [x, y, 1.6 * times], "=": [x, y, 1.6 * times],
    out: [x, y, times / 1.6], "-": [x, y, times / 1.6], all: [x, y, 1], 0: [x, y, 1] };
  if (!moves[key]) return false;
  look(map, ...moves[key]);
  leave();
  redraw([map]);
  return true;
}
function listen(map) {
  const { canvas, held } = map;
  canvas.addEventListener("pointermove", (event) =>
    held.has(event.pointerId) && (map.view.zoom > 1 || held.size > 1) ? drag(map, event) : inspect(map, event));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, event);
    inspect(map, event);
  });
  for (const event of ["pointerup", "pointercancel"])
    canvas.addEventListener(event, ({ pointerId }) => held.delete(pointerId));
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("dblclick", (event) => zoom(map, placeUnder(map, event), event.shiftKey ? 0.5 : 2));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the bare wheel scrolls the page
    event.preventDefault();
    zoom(map, placeUnder(map, event), Math.exp(clamp(-event.deltaY, -150, 150) / 250));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && handle(map, event.key)) event.preventDefault();
  });
  for (const button of find("[data-zoom]", map.figure))
    button.addEventListener("click", () => handle(map, button.dataset.zoom));
}
if (maps.length && columns.length) {
  document.getElementById("explorer").hidden = false;
  for (const button of find("[data-column]"))
    button.addEventListener("click", () => choose(Number(button.dataset.column)));
  maps.forEach(listen);
  document.getElementById("around").addEventListener("click", () => {
    for (const map of maps) zoomTo(map, state.column.codes, state.pinned);
    redraw();
  });
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const item of find("#legend li"))
      item.hidden = !item.textContent.toLowerCase().includes(wanted);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { leave(); if (state.pinned !== null) pin(state.pinned); }
  });
  window.addEventListener("resize", () => redraw());
  document.addEventListener("theme", () => { numbers.clear(); redraw(); });
  choose(0);
}
