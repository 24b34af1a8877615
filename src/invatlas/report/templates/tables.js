// Tables sort by a click on a heading and can be kept as CSV; what is shown is what is kept.
const read = (row, index) => row.cells[index].dataset.value;
function sortBy(table, index) {
  const heading = table.tHead.rows[0].cells[index], number = heading.dataset.kind === "number";
  const was = heading.getAttribute("aria-sort");
  const down = was === null || was === "none" ? number : was === "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const order = new Intl.Collator("en", { numeric: true });
  const compare = (a, b) => {
    const [left, right] = [read(a, index), read(b, index)];
    if (left === "" || right === "") return (left === "") - (right === ""); // no value: always last
    return (down ? -1 : 1) * (number ? Number(left) - Number(right) : order.compare(left, right));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}
function writeCsv(table) {
  const headings = [...table.tHead.rows[0].cells];
  const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = [headings.flatMap(({ dataset }) =>
    dataset.shares ? [dataset.name, `${dataset.name}, share`] : [dataset.name])];
  for (const row of table.tBodies[0].rows)
    lines.push(headings.flatMap(({ dataset }, index) =>
      dataset.shares ? [read(row, index), row.cells[index].dataset.share] : [read(row, index)]));
  return lines.map((line) => line.map(quote).join(",") + "\n").join("");
}
function keep(table) {
  const file = URL.createObjectURL(new Blob([writeCsv(table)], { type: "text/csv;charset=utf-8" }));
  Object.assign(make("a", ""), { href: file, download: `${table.dataset.file}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(file), 10_000);
}
function tellCut(scroller) { // a table wider than the page fades at the right until its end is reached
  const wider = scroller.scrollWidth - scroller.clientWidth;
  scroller.classList.toggle("cut", wider - scroller.scrollLeft > 2);
  scroller.previousElementSibling.hidden = wider <= 2;
}
const watched = new ResizeObserver((entries) => entries.forEach(({ target }) => tellCut(target)));
for (const scroller of find(".scroller")) {
  watched.observe(scroller);
  scroller.addEventListener("scroll", () => tellCut(scroller));
}
for (const table of find("table[data-file]"))
  for (const heading of table.tHead.rows[0].cells)
    heading.querySelector("button").addEventListener("click", () => sortBy(table, heading.cellIndex));
for (const button of find("[data-keep]")) {
  button.hidden = false;
  button.addEventListener("click", () => keep(document.getElementById(button.dataset.keep)));
}
function show(name) {
  for (const button of find("[data-show]"))
    button.setAttribute("aria-pressed", String(button.dataset.show === name));
  for (const panel of find("[data-panel]")) panel.hidden = panel.dataset.panel !== name;
}
for (const button of find("[data-show]"))
  button.addEventListener("click", () => show(button.dataset.show));
if (find("[data-show]").length) {
  document.getElementById("panels").hidden = false;
  show(find("[data-show]")[0].dataset.show);
}
