const data = JSON.parse(document.getElementById("maps-data").textContent);
const unpack = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
// A column may name its own colours, by variables of the style sheet, and a code that lies on top.
const colour = (column, code) =>
  column.shades ? `var(${column.shades[code]})` : data.colours[code % data.colours.length];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const columns = data.columns.map((column) => {
  const bytes = unpack(column.codes);
  const codes = column.bytes === 1 ? bytes : new Uint16Array(bytes.buffer);
  return { ...column, codes, none: column.bytes === 1 ? 255 : 65535 };
});
const say = (column, code) =>
  code === column.none ? "no value" : column.names[code] ?? "one of the smaller categories";
const maps = find("[data-map]").map((figure) => ({
  figure,
  canvas: figure.querySelector("canvas"),
  ring: figure.querySelector(".ring"),
  places: new Uint16Array(unpack(data.maps[figure.dataset.map]).buffer),
}));
const state = { column: columns[0], pinned: null, pointed: null, waiting: false };
const margin = 10;

function draw(map) {
  const { canvas, places } = map, side = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
  if (!side) return;
  canvas.width = canvas.height = Math.round(side * ratio);
  const pen = canvas.getContext("2d"), { codes, none } = state.column;
  const focus = state.pointed ?? state.pinned, scale = (side - 2 * margin) / 65535;
  const size = Math.max(1, Math.min(3.2, Math.sqrt((0.3 * side * side) / (data.drawn * Math.PI))));
  pen.scale(ratio, ratio);
  const dot = (cell, radius) => {
    const x = margin + places[2 * cell] * scale, y = margin + places[2 * cell + 1] * scale;
    if (radius < 1.3) return pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    pen.beginPath(); pen.arc(x, y, radius, 0, 2 * Math.PI); pen.fill();
  };
  const top = state.column.top ?? null, shades = state.column.shades?.map(style);
  const paint = (code) => (shades ? shades[code] : colour(state.column, code));
  pen.fillStyle = style("--none"); pen.globalAlpha = focus === null ? 0.8 : 0.45;
  for (let cell = 0; cell < codes.length; cell++)
    if (focus === null ? codes[cell] === none : codes[cell] !== focus) dot(cell, size);
  pen.globalAlpha = 0.85;
  if (focus === none) pen.fillStyle = style("--muted");
  for (let cell = 0; cell < codes.length; cell++) {
    const code = codes[cell];
    if (focus === null ? code === none || code === top : code !== focus) continue;
    if (code !== none) pen.fillStyle = paint(code);
    dot(cell, focus === null ? size : size * 1.15);
  }
  if (focus === null && top !== null) {
    pen.globalAlpha = 1; pen.fillStyle = paint(top);
    for (let cell = 0; cell < codes.length; cell++)
      if (codes[cell] === top) dot(cell, Math.max(1.8, size * 1.3));
  }
  canvas.setAttribute("aria-label", `${map.figure.dataset.map} latent in two dimensions, ` +
    `${data.drawn} cells coloured by ${state.column.name}`);
  map.figure.dataset.drawn = "true";
}
function redraw() {
  if (state.waiting) return;
  state.waiting = true;
  requestAnimationFrame(() => { state.waiting = false; maps.forEach(draw); });
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
  redraw();
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
  redraw();
}
function nearest(map, event) {
  const box = map.canvas.getBoundingClientRect(), scale = 65535 / (box.width - 2 * margin);
  const x = (event.clientX - box.left - margin) * scale, y = (event.clientY - box.top - margin) * scale;
  let best = (9 * scale) ** 2, found = -1;
  for (let cell = 0; cell < data.drawn; cell++) {
    const distance = (map.places[2 * cell] - x) ** 2 + (map.places[2 * cell + 1] - y) ** 2;
    if (distance < best) [best, found] = [distance, cell];
  }
  return found;
}
function inspect(map, event) {
  const cell = nearest(map, event), tip = document.getElementById("tip");
  tip.hidden = cell < 0;
  for (const { ring, canvas, places } of maps) {
    ring.hidden = cell < 0;
    const scale = (canvas.clientWidth - 2 * margin) / 65535;
    ring.style.left = `${margin + places[2 * cell] * scale}px`;
    ring.style.top = `${margin + places[2 * cell + 1] * scale}px`;
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
if (maps.length && columns.length) {
  document.getElementById("explorer").hidden = false;
  for (const button of find("[data-column]"))
    button.addEventListener("click", () => choose(Number(button.dataset.column)));
  for (const map of maps) {
    map.canvas.addEventListener("pointermove", (event) => inspect(map, event));
    map.canvas.addEventListener("pointerdown", (event) => inspect(map, event));
    map.canvas.addEventListener("pointerleave", leave);
  }
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const item of find("#legend li"))
      item.hidden = !item.textContent.toLowerCase().includes(wanted);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { leave(); if (state.pinned !== null) pin(state.pinned); }
  });
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  choose(0);
}
