"use strict";
// What a cell is sorted by: the first number in it, its text where there is none; "-" comes last.
const sortKey = row => place => {
  const text = row.cells[place].textContent.trim(), number = parseFloat(text);
  return text === "-" || text === "" ? null : isNaN(number) ? text.toLowerCase() : number;
};
for (const button of document.querySelectorAll("th button.sort")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), table = button.closest("table"), place = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") !== "descending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    // A row and what folds out of it are one body of the table.
    const bodies = [...table.tBodies].map(body => [sortKey(body.rows[0])(place), body]);
    bodies.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -order : order;
    });
    table.append(...bodies.map(([, body]) => body));
  });
}
for (const button of document.querySelectorAll("button.fold")) {
  button.addEventListener("click", () => {
    const target = document.getElementById(button.getAttribute("aria-controls"));
    target.hidden = !target.hidden;
    button.setAttribute("aria-expanded", String(!target.hidden));
  });
}
// Lists that are filtered: each control names what it compares, each item has it as data.
for (const controls of document.querySelectorAll("[data-filters]")) {
  const items = [...document.querySelectorAll(controls.dataset.filters)];
  const count = controls.querySelector("output"), inputs = [...controls.querySelectorAll("[data-by]")];
  const keeps = (item, input) => {
    const value = item.dataset[input.dataset.by] ?? "", wanted = input.value;
    if (wanted === "" || (input.type === "range" && wanted >= 0.999 * input.max)) return true;
    if (input.type === "range") return parseFloat(value) <= parseFloat(wanted);
    return input.type === "search" ? value.toLowerCase().includes(wanted.toLowerCase()) : value.split("\t").includes(wanted);
  };
  const filter = () => {
    let shown = 0;
    for (const item of items) {
      item.hidden = !inputs.every(input => keeps(item, input));
      shown += !item.hidden;
    }
    for (const group of document.querySelectorAll("[data-group]"))
      group.hidden = ![...group.querySelectorAll(controls.dataset.filters)].some(item => !item.hidden);
    if (count) count.textContent = `${shown} of ${items.length} shown`;
    for (const input of inputs.filter(input => input.type === "range"))
      input.parentNode.querySelector(".value").textContent = Number(input.value).toPrecision(3);
  };
  for (const input of inputs) input.addEventListener("input", filter);
  filter();
}
// Interactive pictures, in the colours of the page.
const pictures = [...document.querySelectorAll("figure.plot")];
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function themed(layout) {
  const axis = {gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true};
  const narrow = window.innerWidth < 640;
  return {
    ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: {color: colour("--text"), family: "system-ui, sans-serif", size: narrow ? 11 : 13},
    margin: {l: 48, r: 12, t: 12, b: 44}, xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis},
    legend: narrow ? {orientation: "h", yref: "container", y: 0, yanchor: "bottom"} : {}, hoverlabel: {namelength: -1},
  };
}
function draw() {
  for (const picture of pictures) {
    const {data, layout} = JSON.parse(picture.querySelector("script").textContent);
    Plotly.react(picture.querySelector(".plot"), data, themed(layout), {displayModeBar: false, responsive: true});
  }
}
if (pictures.length) {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("(max-width: 640px)").addEventListener("change", draw);
  addEventListener("beforeprint", draw);
}
