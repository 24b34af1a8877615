"use strict";
const find = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, name, text = "") =>
  Object.assign(document.createElement(tag), { className: name, textContent: text });
window.addEventListener("beforeprint", () => find("details").forEach((box) => { box.open = true; }));
for (const figure of find("[data-figure]:not([data-map])"))
  if (find("svg", figure).some((svg) => svg.getBoundingClientRect().width > 0))
    figure.dataset.drawn = "true";
