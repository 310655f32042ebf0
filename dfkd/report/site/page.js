// The page: one view at a time, tables that sort and filter, charts beside them, a card for each run.

const views = [...document.querySelectorAll(".view")];
const card = document.getElementById("card"), pick = document.getElementById("pick");
const data = JSON.parse(await unpacked("data"));
const library = URL.createObjectURL(new Blob([await unpacked("library")], { type: "text/javascript" }));
const { default: DataTable } = await import(library);
DataTable.ext.errMode = "throw";
const byName = new Map(data.runs.map((run) => [run.name, run]));
const byCell = Map.groupBy ? Map.groupBy(data.runs, (run) => run.cell) : grouped(data.runs, (run) => run.cell);
const byPlace = grouped(data.results, (result) => result.place);
const ready = new Set(); // views whose tables and charts stand

function grouped(all, key) {
  const groups = new Map();
  for (const each of all) groups.set(key(each), [...(groups.get(key(each)) ?? []), each]);
  return groups;
}

/** Show what the address names: a view, a place in one, or the card of a run above one. */
function route() {
  const name = decodeURIComponent(location.hash.slice(1));
  const run = name.startsWith("run/") && (byName.get(name.slice(4)) ?? byCell.get(name.slice(4))?.[0]);
  if (run) {
    if (views.every((view) => !view.hidden)) show(document.getElementById(run.record.identity.data) ?? views[0]);
    fillCard(card, run, byCell.get(run.cell), data);
    if (!card.open) card.showModal();
    return;
  }
  if (card.open) card.close();
  const target = document.getElementById(name) ?? views[0];
  show(target.closest(".view") ?? views[0]);
  target.scrollIntoView();
}

function show(view) {
  for (const each of views) each.hidden = each !== view;
  for (const link of document.querySelectorAll(".bar nav a")) {
    const target = document.getElementById(link.hash.slice(1));
    if (target?.closest(".view") === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  pick.value = [...pick.options].some((option) => option.value === view.id) ? view.id : "";
  if (ready.has(view)) return;
  ready.add(view);
  if (view.id === "runs") tableOfRuns();
  else if (view.id !== "guide") sortable(view);
  for (const section of view.querySelectorAll("[data-place]")) chartsOf(section);
  if (view.id === "overview") gallery();
}

/** Sorting for the tables of a view, and where they are of methods one filter for all of them. */
function sortable(view) {
  const tables = [...view.querySelectorAll("table")].map((table) => {
    for (const cell of table.querySelectorAll("th")) if (cell.textContent === "method") cell.classList.add("method");
    const right = [...table.querySelectorAll("thead th")].flatMap((cell, i) => (cell.style.textAlign === "right" ? [i] : []));
    return new DataTable(table, {
      paging: false, info: false, order: [], autoWidth: false, layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
      columnDefs: [{ targets: right, type: "num", orderSequence: ["desc", "asc", ""] }],
      language: { emptyTable: "none", zeroRecords: "no such row" },
    });
  });
  if (!view.querySelector("[data-place]")) return;
  const words = el("input", { type: "search", placeholder: "Filter methods, priors, states …", "aria-label": "Filter the tables" });
  const references = el("input", { type: "checkbox", checked: true });
  const refilter = () => tables.forEach((table) => table.search(words.value).draw());
  words.addEventListener("input", refilter);
  references.addEventListener("change", refilter);
  for (const table of tables) {
    table.search.fixed("references", (_, __, row) =>
      references.checked || !table.row(row).node().querySelector("td.method em"));
  }
  view.querySelector("section").before(el("div", { class: "tools" }, words, el("label", {}, references, "reference rows")));
}

function tableOfRuns() {
  const text = (key) => ({ title: key, data: (run) => run.record.identity[key], render: DataTable.render.text() });
  const shows = (kind) => kind === "display" || kind === "filter";
  const number = (title, of, shown) => ({
    title, type: "num", className: "dt-right", orderSequence: ["desc", "asc", ""],
    data: of, render: (value, kind) => (shows(kind) ? shown(value) : value),
  });
  const metric = (run) => data.metrics[run.record.metrics.name];
  const columns = [
    { ...text("method"), className: "method" }, text("data"), text("protocol"),
    { ...number("last", (run) => run.record.metrics.last, String),
      render: (value, kind, run) => (shows(kind) ? score(value, metric(run)) : (value ?? -Infinity)) },
    number("total", (run) => run.record.time.scored, duration),
    { title: "state", data: "state", className: "state-of", render: DataTable.render.text() },
    { title: "pair", data: (run) => `${run.record.identity.teacher} → ${run.record.identity.student}`, render: DataTable.render.text() },
    number("seed", (run) => run.record.identity.seed, String),
    { title: "hardware", data: (run) => run.record.provenance.hardware.class, render: DataTable.render.text() },
    { title: "date", data: (run) => run.record.provenance.date.slice(0, 10), render: DataTable.render.text() },
  ];
  const listed = columns.flatMap(({ title }, i) => (["data", "protocol", "state", "pair", "hardware"].includes(title) ? [i] : []));
  const home = document.getElementById("all");
  home.append(el("thead", {}, el("tr", {}, ...columns.map((column) =>
    el("th", { scope: "col", class: column.className ?? null }, column.title)))));
  new DataTable(home, {
    data: data.runs, columns, order: [], pageLength: 25, autoWidth: false, ordering: { indicators: true, handler: true }, deferRender: true,
    columnDefs: listed.map((target) => ({ targets: target, columnControl: [
      { extend: "dropdown", icon: "search", text: `Choose by ${columns[target].title}`, content: ["searchList"] }] })),
    layout: { topStart: "search", topEnd: "pageLength", bottomStart: "info", bottomEnd: "paging" },
    language: { search: "", searchPlaceholder: "Filter runs …", lengthMenu: "_MENU_ a page", info: "_START_–_END_ of _TOTAL_ runs",
      infoFiltered: "(of _MAX_)", infoEmpty: "no runs", emptyTable: "no records yet", zeroRecords: "no such run" },
    initComplete() {
      this.api().table().container().querySelector(".dt-layout-table").classList.add("scroll");
    },
    createdRow(row, run) {
      const cell = row.querySelector("td.method");
      cell.replaceChildren(el("a", { href: `#run/${run.name}` },
        run.record.reference ? el("em", {}, run.record.identity.method) : run.record.identity.method));
      row.querySelector("td.state-of").replaceChildren(el("span", { class: `state ${run.state}` }, run.state));
    },
  });
}

/** Score against time, and over it, below the first table of a pair. */
function chartsOf(section) {
  const results = byPlace.get(section.dataset.place) ?? [];
  const made = [against(results), over(results)].filter(Boolean);
  const anchor = section.querySelector(".scroll");
  if (made.length && anchor) anchor.after(el("div", { class: "charts" }, ...made));
}

function levelsOf(results) {
  return results.filter((each) => each.reference && each.last).map((each) => ({ name: each.method, value: each.last[0] }));
}

function shared(results, title) {
  const metric = data.metrics[results[0].metric];
  return { title, metric, ticks: data.ticks, log: true, levels: levelsOf(results), xlabel: "time without evaluation (log scale)" };
}

/** Last score against total time: a point for each method and class of hardware. */
function against(results, title = "Last score against total time") {
  const shown = results.filter((each) => !each.reference && each.last && each.costs.length);
  if (!shown.length) return null;
  const given = shared(results, title);
  const series = shown.map((each) => ({
    name: each.method, look: data.looks[each.method], href: `#run/${each.cell}`, open: each.state === "stale", lines: [],
    points: each.costs.map(([, , seconds]) => [seconds, each.last[0], each.last[1]]),
    tails: each.costs.filter(([, , , once]) => once > 0).map(([, , seconds, once]) =>
      [Math.max(seconds - once, 1e-3), seconds, each.last[0]]),
    text: `${each.method}: ${score(each.last[0], given.metric)}${given.metric.unit} (n = ${each.last[2]}) after ` +
      each.costs.map(([hardware, , seconds]) => `${duration(seconds)} on ${hardware}`).join(", ") +
      (each.state === "ok" ? "" : ` · ${each.state}`),
  }));
  const once = series.some((each) => each.tails.length);
  const open = series.some((each) => each.open);
  const hint = ["Grey steps: what no method beats.",
    once && "Line to the left: time spent once per teacher.", open && "Hollow: stale."].filter(Boolean).join(" ");
  return chart({ ...given, series, frontier: true, hint });
}

/** The curves of all finished runs. */
function over(results) {
  const shown = results.filter((each) => !each.reference && each.last);
  const series = shown.map((each) => {
    const runs = byCell.get(each.cell).filter((run) => run.state === each.state);
    const lines = runs.map((run) => run.record.metrics.curve.filter((point) => point.value !== null && point.seconds > 0)
      .map((point) => [point.seconds, point.value])).filter((line) => line.length > 1);
    return { name: each.method, look: data.looks[each.method], href: `#run/${each.cell}`, points: [], lines, lined: true,
      text: `${each.method}: ${lines.length} run${lines.length === 1 ? "" : "s"}` };
  }).filter((each) => each.lines.length);
  if (!series.length) return null;
  return chart({ ...shared(results, "Score over time"), series, hint: "A line for each seed." });
}

/** All pairs at a glance. */
function gallery() {
  const made = [...byPlace].map(([place, results]) => against(results, place.replaceAll("/", " · "))).filter(Boolean);
  const home = document.getElementById("charts");
  home.hidden = !made.length;
  home.querySelector(".charts").append(...made);
}

card.addEventListener("close", () => {
  const view = views.find((each) => !each.hidden);
  if (location.hash.startsWith("#run/")) history.replaceState(null, "", `#${view.id}`);
});
card.addEventListener("click", (event) => event.target === card && card.close()); // beside it
pick.addEventListener("change", () => { if (pick.value) location.hash = pick.value; });
// The table library knows dark by a class.
const system = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const paint = () => root.classList.toggle("dark", isDark());
system.addEventListener("change", paint);
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  paint();
});
paint();
addEventListener("hashchange", route);
route();
root.dataset.ready = ""; // for whoever drives a browser
