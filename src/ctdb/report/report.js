"use strict";
const byId = (id) => document.getElementById(id);
const embedded = (id) => JSON.parse(byId(id).textContent);
const escaped = (text) => text.replace(/[&<>"]/g, (one) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[one]);

// Tables: DataTables sorts them; a reader without JavaScript has them as they are.

async function tables() {
  const address = URL.createObjectURL(new Blob([embedded("source-tables")], { type: "text/javascript" }));
  const { default: DataTable } = await import(address);
  URL.revokeObjectURL(address);
  // Numbers by their exact values, and what has none at the end in either direction.
  const compare = (sign) => (a, b) => {
    const [x, y] = [a, b].map((one) => (one === "" || one === null || one === "–" ? NaN : Number(one)));
    return Number.isNaN(x) ? (Number.isNaN(y) ? 0 : 1) : Number.isNaN(y) ? -1 : sign * (x - y);
  };
  DataTable.type("value", { order: { asc: compare(1), desc: compare(-1) } });
  return DataTable;
}

const plain = {
  paging: false,
  autoWidth: false,
  order: [],
  columnDefs: [
    { targets: "up", orderSequence: ["asc", "desc"] }, // of several that fit, the first counts
    { targets: "value", type: "value", orderSequence: ["desc", "asc"] },
  ],
  layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
};

function isChosen(element) {
  const [what, name] = byId("subject").value.split(/:(.*)/s);
  return !what || !element.dataset.dataset && !element.dataset.task || element.dataset[what] === name;
}

function leaderboard(DataTable) {
  const board = new DataTable("#board", {
    ...plain,
    layout: { ...plain.layout, topEnd: { search: { text: "Find", placeholder: "" } }, bottomStart: "info" },
    language: { info: "_TOTAL_ rows", infoEmpty: "no rows", infoFiltered: "of _MAX_", search: "Find" },
  });
  byId("search").append(document.querySelector("#leaderboard .dt-search"));
  board.search.fixed("subject", (text, data, index) => isChosen(board.row(index).node()));
  // Columns of the chosen scores, without those that no row shown has a value of.
  const arrange = () => {
    const group = byId("group").value;
    board.column("#board-dataset").visible(!byId("subject").value.startsWith("dataset:"), false);
    board.columns().every(function () {
      const { metric, groups } = this.header().dataset;
      if (metric === undefined) return;
      const wanted = !group || groups.split(" ").includes(group);
      const values = board.cells({ search: "applied" }, this.index()).nodes().toArray();
      this.visible(wanted && values.some((cell) => cell.dataset.order !== ""), false);
    });
    board.columns.adjust();
  };
  board.on("draw", arrange);
  byId("group").addEventListener("change", arrange);
  arrange();
  return () => board.draw();
}

function filter(redraw) {
  const choice = byId("subject");
  const apply = () => {
    for (const element of document.querySelectorAll(".group, table.plain tr[data-dataset]")) element.hidden = !isChosen(element);
    for (const table of document.querySelectorAll("table.sortable")) table.dispatchEvent(new Event("filter"));
    redraw();
  };
  choice.addEventListener("change", apply);
  if (choice.value) apply(); // the browser remembers it
}

function parse(text) {
  const rows = [[]];
  for (const [, quoted, bare, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
    if (end === "" && quoted === undefined && bare === "" && rows.at(-1).length === 0) break;
    rows.at(-1).push(quoted === undefined ? bare : quoted.replaceAll('""', '"'));
    if (end === "") break;
    if (end !== ",") rows.push([]);
  }
  return rows.filter((row) => row.length);
}

async function data(DataTable, details) {
  const link = details.querySelector("a.csv");
  const bytes = Uint8Array.from(atob(link.href.slice(link.href.indexOf(",") + 1)), (one) => one.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = link.download.replace(/\.gz$/, "");
  link.textContent = `Download ${link.download}`;
  const [header, ...rows] = parse(text);
  const region = document.createElement("div");
  Object.assign(region, { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `Data of ${link.dataset.what}` });
  const table = document.createElement("table");
  table.innerHTML = `<caption><span>Data of ${escaped(link.dataset.what)}</span></caption>`;
  region.append(table);
  details.querySelector(".rows").replaceChildren(region);
  const isNumber = header.map((_, column) => rows.every((row) => row[column] === "" || !Number.isNaN(Number(row[column]))));
  new DataTable(table, {
    ...plain,
    columns: header.map((title, column) => ({
      title: escaped(title),
      type: isNumber[column] ? "value" : "string",
      className: isNumber[column] ? "value" : "",
      render: DataTable.render.text(),
    })),
    data: rows,
    paging: rows.length > 25,
    pageLength: 25,
    layout: { ...plain.layout, bottomStart: rows.length > 25 ? ["info", { paging: { buttons: 5 } }] : "info" },
    language: { info: "_START_–_END_ of _TOTAL_ rows", infoEmpty: "no rows" },
  });
}

// One plot in three dimensions at a time: plotly is started when it comes into view.

function space() {
  const plot = byId("plot"), figures = byId("space-figure"), systems = byId("space-system"), status = byId("space-status");
  let drawn = null;
  const start = { x: 1.3, y: 1.3, z: 1.0 };

  async function draw() {
    const name = figures.value;
    if (drawn === name) return;
    drawn = name;
    if (window.Plotly === undefined) {
      const script = document.createElement("script");
      script.textContent = embedded("source-plotly");
      document.head.append(script);
    }
    const { data, layout = {} } = embedded(`space-of-${name}`);
    const { title = name, choices = [] } = layout.meta ?? {};
    systems.parentElement.hidden = choices.length === 0;
    systems.replaceChildren(...choices.map((choice, index) => new Option(choice.label, index)));
    plot.ariaLabel = `${title}; the numbers are in the data of the figure ${name}`;
    byId("space-data").href = `#figure-${name}`;
    for (const [index, trace] of data.entries()) trace.visible = choices[0]?.visible[index] ?? true;
    const quiet = { bgcolor: "rgba(0,0,0,0)", color: "#8b9098", activecolor: "#0b5a92" };
    layout.scene = { ...layout.scene, camera: { eye: start } };
    const own = { autosize: true, modebar: quiet, paper_bgcolor: "rgba(0,0,0,0)", uirevision: name, font: { family: getComputedStyle(document.body).fontFamily } };
    try {
      await window.Plotly.newPlot(plot, data, { ...layout, ...own }, { displaylogo: false, responsive: true, showSendToCloud: false });
      status.textContent = title;
    } catch (error) {
      status.textContent = `The plot cannot be drawn here (${error.message}); the figure and its data are above.`;
      return;
    }
    for (const button of document.querySelectorAll("[data-turn]")) button.disabled = false;
    figures.disabled = systems.disabled = false;
  }

  function turn(way) {
    const { x, y, z } = plot.layout.scene.camera?.eye ?? start;
    const far = Math.hypot(x, y, z);
    let around = Math.atan2(y, x), above = Math.asin(z / far);
    if (way === "left" || way === "right") around += (way === "left" ? -1 : 1) * (Math.PI / 12);
    else above = Math.max(-1.5, Math.min(1.5, above + (way === "up" ? 1 : -1) * (Math.PI / 12)));
    const eye = { x: far * Math.cos(above) * Math.cos(around), y: far * Math.cos(above) * Math.sin(around), z: far * Math.sin(above) };
    window.Plotly.relayout(plot, { "scene.camera.eye": way === "reset" ? start : eye });
  }

  figures.addEventListener("change", draw);
  systems.addEventListener("change", () => {
    const { choices } = plot.layout.meta;
    window.Plotly.restyle(plot, { visible: choices[systems.value].visible });
  });
  for (const button of document.querySelectorAll("[data-turn]")) button.addEventListener("click", () => turn(button.dataset.turn));
  for (const link of document.querySelectorAll("a[data-space]"))
    link.addEventListener("click", () => {
      figures.value = link.dataset.space;
      draw();
    });
  new IntersectionObserver(([entry], observer) => {
    if (!entry.isIntersecting) return;
    observer.disconnect();
    draw();
  }).observe(plot);
}

(async () => {
  if (byId("plot")) space();
  const DataTable = await tables();
  for (const table of document.querySelectorAll("table.sortable")) {
    const one = new DataTable(table, plain);
    one.search.fixed("subject", (text, data, index) => isChosen(one.row(index).node()));
    table.addEventListener("filter", () => one.draw());
  }
  const redraw = leaderboard(DataTable);
  for (const details of document.querySelectorAll("details.data"))
    details.addEventListener("toggle", () => data(DataTable, details), { once: true });
  for (const select of [byId("subject"), byId("group")]) select.disabled = false;
  filter(redraw);
  document.documentElement.dataset.ready = "true";
})();
