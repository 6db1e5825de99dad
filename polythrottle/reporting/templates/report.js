"use strict";
// Draws the figures in the colours of the page: a colour written as "--name" is a CSS variable.
const figures = JSON.parse(document.getElementById("figures").textContent);

function coloured(value, style) {
  if (typeof value === "string") {
    return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  }
  if (Array.isArray(value)) {
    return value.map((item) => coloured(item, style));
  }
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  }
  return value;
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const element = document.getElementById(id);
    const { data, layout } = coloured(figure, style);
    const narrow = element.clientWidth < 480;
    layout.font.size = narrow ? 12 : 14;
    Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
  }
}

draw();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
  window.addEventListener(event, () => {
    document.documentElement.classList.toggle("printing", printing);
    draw();
  });
}
