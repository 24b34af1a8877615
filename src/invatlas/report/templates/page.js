"use strict";
const find = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, name, text = "") =>
  Object.assign(document.createElement(tag), { className: name, textContent: text });
window.addEventListener("beforeprint", () => find("details").forEach((box) => { box.open = true; }));
for (const figure of find("[data-figure]:not([data-map])"))
  if (find("svg", figure).some((svg) => svg.getBoundingClientRect().width > 0))
    figure.dataset.drawn = "true";

// Light or dark: as the device has it, until the reader says otherwise.
const root = document.documentElement, shade = document.getElementById("theme");
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
function tellTheme() {
  shade.textContent = isDark() ? "Light" : "Dark";
  document.dispatchEvent(new Event("theme"));
}
shade.hidden = false;
shade.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; tellTheme(); });
prefersDark.addEventListener("change", tellTheme);
tellTheme();
