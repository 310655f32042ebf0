// The card of a run: what ran, on what, its curve, its times, its images, and the command that runs it again.

const CATEGORY_COLOURS = ["#999999", "#882255", "#0072B2", "#E69F00", "#009E73", "#bbbbbb", "#dddddd"];

/** Fill the dialog with the card of `run`; `siblings` are the runs of its cell. */
function fillCard(dialog, run, siblings, data) {
  const { record } = run, { identity } = record;
  const seeds = siblings.length < 2 ? null : el("nav", { "aria-label": "Seeds" }, "seed",
    ...siblings.map((each) => el("a", { href: `#run/${each.name}`, "aria-current": each === run && "true" },
      String(each.record.identity.seed))));
  const head = el("header", {},
    el("div", {},
      el("h2", { id: "card-title" }, identity.method, " ", el("span", { class: `state ${run.state}` }, run.state)),
      el("p", {}, `${identity.data} · ${identity.protocol} · ${identity.teacher} → ${identity.student} · ` +
        `seed ${identity.seed}${record.reference ? " · reference row" : ""}`),
      seeds),
    el("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕"));
  const body = el("div", { class: "body" }, facts(record, data), ...notes(run), runCurve(run, data),
    el("h3", {}, "Run it again"), ...command(run),
    el("div", { class: "two" },
      el("section", {}, el("h3", {}, "Times"), times(record.time, data)),
      el("section", {}, el("h3", {}, "What ran"), provenance(run))),
    ...images(run), ...details(record));
  dialog.replaceChildren(head, body);
  dialog.scrollTop = 0;
}

function notes(run) {
  const said = [];
  if (run.state === "stale") said.push("Stale: the method or its configuration has changed since this run.");
  if (run.record.note) said.push(run.record.note);
  if (run.record.provenance.data.changed) said.push(`Data: ${run.record.provenance.data.changed}`);
  const made = said.length ? [el("ul", { class: "notes" }, ...said.map((text) => el("li", {}, text)))] : [];
  if (run.record.error) made.unshift(el("p", { class: "note bad" }, run.record.error));
  return made;
}

function facts(record, data) {
  const { metrics, cost, time } = record, metric = data.metrics[metrics.name];
  const shown = [
    ...Object.entries({ last: "last", "oracle best": "oracle_best", teacher: "teacher" }).map(([name, key]) =>
      [name, score(metrics[key], metric) + (metrics[key] === null ? "" : metric.unit)]),
    ["total time", duration(time.scored)],
    ["images made", cost.images_synthesised.toLocaleString("en")],
    ["student steps", cost.student_steps.toLocaleString("en")],
    ["peak memory", cost.peak_memory_bytes === null ? "–" : memory(cost.peak_memory_bytes)],
  ];
  return el("dl", { class: "facts" }, ...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function runCurve(run, data) {
  const { curve, name } = run.record.metrics, metric = data.metrics[name];
  const points = curve.filter((each) => each.value !== null);
  if (!points.length) return null;
  const text = (each) => `${score(each.value, metric)}${metric.unit} after ${each.step.toLocaleString("en")} steps, ${duration(each.seconds)}`;
  const line = points.map((each) => [each.seconds, each.value]);
  return chart({
    title: `Score over time: ${score(points[0].value, metric)} to ${score(points.at(-1).value, metric)}${metric.unit}`,
    hint: `Last: ${text(points.at(-1))}`,
    xlabel: "time without evaluation", metric, levels: [], ticks: data.ticks, log: false,
    series: [{ name: run.record.identity.method, look: data.looks[run.record.identity.method] ?? ["#777777", ""],
      href: `#run/${run.name}`, points: line, lines: [line], lined: true, text: text(points.at(-1)) }],
  });
}

function command(run) {
  const text = run.command, external = run.record.provenance.code.external;
  const copy = el("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch { // not allowed here: mark it, so that a key copies it
      getSelection().selectAllChildren(shown);
    }
  });
  const shown = el("pre", {}, text);
  const commit = run.record.provenance.commit;
  const remarks = [];
  if (external) remarks.push("The method came from outside the repository: add --import and its file.");
  if (commit) {
    const dirty = commit.endsWith("+") ? ", with changes that were not committed" : "";
    remarks.push(`As it was then: git checkout ${commit.replace("+", "").slice(0, 12)}${dirty}.`);
  }
  return [el("div", { class: "command" }, shown, copy), ...remarks.map((each) => el("p", {}, each))];
}

function times(time, data) {
  const parts = data.categories.map((name, i) => [name, time[name], CATEGORY_COLOURS[i % CATEGORY_COLOURS.length]]);
  const free = new Set(data.free);
  const bar = el("div", { class: "times", role: "img", "aria-label": "Shares of the time" },
    ...parts.filter(([, seconds]) => seconds > 0).map(([name, seconds, colour]) =>
      el("i", { "--colour": colour, "--share": seconds, title: `${name}: ${duration(seconds)}` })));
  const list = el("dl", { class: "pairs" }, ...parts.flatMap(([name, seconds, colour]) => [
    el("dt", {}, el("span", { class: "key", "--colour": colour }), name + (free.has(name) ? " (not scored)" : "")),
    el("dd", {}, duration(seconds))]));
  list.append(...pairs({ scored: duration(time.scored), "all in all": duration(time.total),
    ...(time.shared ? { "of it once per teacher": duration(time.shared) } : {}),
    ...(time.resumes ? { resumed: `${time.resumes} ×` } : {}) }));
  return el("div", {}, bar, list);
}

function pairs(facts) {
  return Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]);
}

function provenance(run) {
  const { prior, provenance: of, cost } = run.record;
  const short = (digest) => digest && digest.slice(0, 12);
  return el("dl", { class: "pairs" }, ...pairs({
    hardware: of.hardware.class, date: of.date.slice(0, 16).replace("T", " "),
    prior: prior.kind === "none" ? "none" : [prior.name ?? prior.kind, prior.origin && `(${prior.origin})`].filter(Boolean).join(" "),
    "prior trained on": prior.trained_on, "teacher’s origin": of.teacher.origin,
    "teacher forwards": `${cost.teacher_forwards.toLocaleString("en")} images`,
    commit: short(of.commit), method: short(of.code.method), configuration: short(of.config),
    "teacher weights": short(of.teacher.digest), data: short(of.data.digest),
    versions: Object.entries(of.versions).map((each) => each.join(" ")).join(", "),
  }));
}

function images(run) {
  const { record } = run, { identity, diagnostics } = record;
  const grid = document.getElementById(`samples/${identity.data}/${identity.protocol}/` +
    `${identity.teacher}-${identity.student}-${identity.method}`);
  if (record.reference || (!grid && !diagnostics)) return [];
  const made = [el("h3", {}, "Synthetic images")];
  if (grid) {
    made.push(el("img", { src: grid.querySelector("img").src, alt: `Synthetic images by ${identity.method}` }),
      el("p", {}, "The newest images of the cell’s newest run."));
  }
  if (diagnostics) {
    const percent = (share) => (share === null ? null : `${(100 * share).toFixed(1)} %`);
    const top = Math.max(...diagnostics.classes);
    made.push(el("dl", { class: "pairs" }, ...pairs({
      "images looked at": diagnostics.images.toLocaleString("en"), "teacher agrees": percent(diagnostics.agreement),
      diversity: diagnostics.diversity?.toFixed(2), "Fréchet distance": diagnostics.frechet.toPrecision(3),
      ...Object.fromEntries(Object.entries(record.report ?? {}).map(([name, value]) => [`reports ${name}`, value.toPrecision(4)])),
    })));
    made.push(el("p", {}, "Share of each class in the teacher’s decisions:"),
      el("div", { class: "shares", role: "img", "aria-label": "Shares of the classes" }, ...diagnostics.classes.map((share, i) => {
        return el("i", { "--share": share / top, title: `class ${i}: ${percent(share)}` });
      })));
  }
  return made;
}

function details(record) {
  const block = (title, content) => el("details", {}, el("summary", {}, title),
    el("pre", {}, JSON.stringify(content, null, 1)));
  return [el("h3", {}, "In full"), block("Configuration", record.config), block("The record", record)];
}
