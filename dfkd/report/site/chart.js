// One kind of chart for all: score over time, with lines, points and the levels of reference rows.

const SIGN = 6.4; // pixels that a sign of a label takes on average
const LINE = 15; // pixels between two labels, one below the other

/**
 * A figure that draws itself as wide as it is shown.
 *
 * given.series: [{name, look: [colour, dash], href, points: [[seconds, score, text]], open, lined, tail: [from, to]}]
 * given.levels: [{name, value}], reference rows; given.log: whether time is logarithmic
 */
function chart(given) {
  const said = el("div", { class: "said", "aria-live": "polite" }, given.hint ?? "");
  const caption = el("figcaption", {}, el("b", {}, given.title), said);
  const host = el("div");
  const figure = el("figure", { class: "chart" }, caption, host);
  let width = 0;
  new ResizeObserver(([seen]) => {
    const now = Math.round(seen.contentRect.width);
    if (!now || now === width) return;
    width = now;
    host.replaceChildren(drawn(given, now, (text) => said.replaceChildren(text)));
  }).observe(host);
  return figure;
}

function drawn(given, width, say) {
  const height = Math.round(Math.min(340, Math.max(240, width * 0.62)));
  const box = { x0: 46, x1: width - 14, y0: 14, y1: height - 40 };
  const x = timeScale(given, box), y = scoreScale(given, box);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": given.title });
  for (const [value, text] of y.ticks) {
    picture.append(svg("line", { class: "grid", x1: box.x0, x2: box.x1, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { x: box.x0 - 8, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  for (const [value, text] of x.ticks) {
    picture.append(svg("text", { x: x(value), y: box.y1 + 18, "text-anchor": "middle" }, text));
  }
  picture.append(svg("text", { x: (box.x0 + box.x1) / 2, y: height - 5, "text-anchor": "middle" }, given.xlabel));
  picture.append(...levels(given, box, y));
  if (given.frontier) picture.append(frontier(given.series, x, y));
  const labels = given.series.length > 1 ? near(given.series, box, x, y) : {};
  for (const each of given.series) picture.append(series(each, x, y, labels[each.name], say));
  return picture;
}

/** One method: a link to its card, which says its numbers when pointed at. */
function series(each, x, y, label, say) {
  const [colour, dash] = each.look;
  const node = svg("a", { class: "series", href: each.href, "--colour": colour, "aria-label": each.text });
  const tell = () => say(each.text);
  node.addEventListener("pointerenter", tell);
  node.addEventListener("focus", tell);
  for (const line of each.lined ? each.lines : []) {
    const path = "M" + line.map(([seconds, value]) => `${x(seconds).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
    node.append(svg("path", { class: "hit", d: path }), svg("path", { d: path, "stroke-dasharray": dash }));
  }
  for (const [from, to, value] of each.tails ?? []) {
    node.append(svg("path", { d: `M${x(from)} ${y(value) - 4}v8m0-4H${x(to)}`, "stroke-opacity": 0.55 }));
  }
  for (const [seconds, value, spread] of each.points) {
    if (spread) node.append(svg("path", { d: `M${x(seconds)} ${y(value - spread)}V${y(value + spread)}` }));
    const at = { cx: x(seconds), cy: y(value) };
    node.append(svg("circle", { ...at, r: 12, class: "hit" }));
    node.append(svg("circle", { ...at, r: each.lined ? 3 : 5.5, class: each.open ? "mark open" : "mark" }));
  }
  if (label) node.append(svg("text", label, each.name));
  return node;
}

/** Rising places, moved apart until a line of text fits between any two, as far as there is room. */
function apart(places, box) {
  const moved = [...places];
  for (let i = 1; i < moved.length; i++) moved[i] = Math.max(moved[i], moved[i - 1] + LINE);
  for (let i = moved.length - 1, top = box.y1; i >= 0; i--) {
    moved[i] = Math.min(moved[i], top);
    top = moved[i] - LINE;
  }
  return moved;
}

/** Names next to points, or to the ends of lines, each where it covers least. */
function near(all, box, x, y) {
  const taken = all.flatMap((each) => [...each.points, ...between(each.lines.flat())]
    .map(([seconds, value]) => square(x(seconds), y(value), each.lined ? 4 : 8)));
  taken.push(...all.flatMap((each) => (each.tails ?? []).map(([from, to, value]) =>
    [x(from), y(value) - 3, x(to), y(value) + 3])));
  const covers = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) *
    Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const found = {};
  for (const each of all) {
    const [seconds, value] = each.points[0] ?? each.lines[0].at(-1);
    const wide = SIGN * each.name.length, px = x(seconds), py = y(value);
    let best = null;
    for (const [dx, dy, anchor] of PLACES) {
      const left = px + dx - { start: 0, middle: 0.5, end: 1 }[anchor] * wide;
      const area = [left, py + dy - 9, left + wide, py + dy + 5];
      const beyond = Math.max(0, box.x0 - area[0]) + Math.max(0, area[2] - box.x1 - 10) +
        Math.max(0, box.y0 - area[1]) + Math.max(0, area[3] - box.y1);
      const cost = taken.reduce((sum, other) => sum + covers(area, other), 0) + 60 * beyond + Math.hypot(dx, dy);
      if (best === null || cost < best.cost) best = { cost, area, at: { x: px + dx, y: py + dy, "text-anchor": anchor } };
    }
    taken.push(best.area);
    found[each.name] = best.at;
  }
  return found;
}

const PLACES = [
  ...[4, -12, 20].flatMap((dy) => [[10, dy, "start"], [-10, dy, "end"]]), [0, -12, "middle"], [0, 22, "middle"],
  ...[-28, 36, -44, 52].flatMap((dy) => [[10, dy, "start"], [-10, dy, "end"], [0, dy, "middle"]]),
];

/** Points with those halfway to the next. */
function between(points) {
  return points.flatMap((each, i) => (i ? [[(each[0] + points[i - 1][0]) / 2, (each[1] + points[i - 1][1]) / 2], each] : [each]));
}

function square(x, y, half) {
  return [x - half, y - half, x + half, y + half];
}

/** A dashed line for each reference row within sight, its name above it where lines do not meet. */
function levels(given, box, y) {
  const seen = given.levels.filter((each) => each.value >= y.low && each.value <= y.high);
  seen.sort((one, other) => other.value - one.value);
  const places = apart(seen.map((each) => y(each.value)), { y1: box.y1 });
  return seen.map((each, i) => svg("g", { class: "level" },
    svg("line", { x1: box.x0, x2: box.x1, y1: y(each.value), y2: y(each.value) }),
    svg("text", { x: box.x0 + 4, y: places[i] - 4 }, each.name)));
}

/** The steps of what no other method beats in both time and score. */
function frontier(all, x, y) {
  const points = all.flatMap((each) => each.points).sort((one, other) => one[0] - other[0] || other[1] - one[1]);
  let best = -Infinity, path = "";
  for (const [seconds, value] of points) {
    if (value <= best) continue;
    path += path ? `H${x(seconds)}V${y(value)}` : `M${x(seconds)} ${y(value)}`;
    best = value;
  }
  return svg("path", { class: "frontier", d: path ? `${path}H${x.end}` : "" });
}

function timeScale(given, box) {
  const times = given.series.flatMap((each) => [
    ...each.points.map(([seconds]) => seconds), ...each.lines.flat().map(([seconds]) => seconds),
    ...(each.tails ?? []).map(([from]) => from)]);
  let low = Math.max(Math.min(...times), 1e-3), high = Math.max(...times, 1e-3);
  const place = given.log ? Math.log : (value) => value;
  if (given.log) {
    const widen = Math.max(1.35, (high / low) ** 0.08, ((4 * low) / high) ** 0.5);
    [low, high] = [low / widen, high * widen];
  } else {
    const start = low < 0.5 * high ? 0 : low - 0.15 * (high - low); // a prior's hours would press the curve into a line
    [low, high] = [start, high + 0.03 * (high - start) || 1];
  }
  const scale = (value) => box.x0 + ((place(value) - place(low)) / (place(high) - place(low))) * (box.x1 - box.x0);
  const ticks = given.log ? given.ticks : steps(low, high, 5).map((value) => [value, duration(value)]);
  scale.end = box.x1;
  scale.ticks = [];
  let last = -Infinity;
  for (const [value, text] of ticks.filter(([value]) => value >= low && value <= high)) {
    const half = (SIGN * text.length) / 2;
    if (scale(value) - half < last + 10 || scale(value) + half > box.x1 + 14) continue;
    scale.ticks.push([value, text]);
    last = scale(value) + half;
  }
  return scale;
}

function scoreScale(given, box) {
  const values = given.series.flatMap((each) => [
    ...each.points.flatMap(([, value, spread]) => [value - (spread ?? 0), value + (spread ?? 0)]),
    ...each.lines.flat().map(([, value]) => value)]);
  let low = Math.min(...values), high = Math.max(...values);
  const least = given.metric.unit ? 2 : 0.02, reach = Math.max(high - low, least);
  const close = given.levels.map((each) => each.value).filter((value) => value >= low - 0.4 * reach &&
    value <= high + 1.2 * reach); // noise at 10 % would press methods at 90 % into one line
  [low, high] = [Math.min(low, ...close), Math.max(high, ...close)];
  const pad = 0.08 * Math.max(high - low, least);
  [low, high] = [low - pad, high + pad];
  const scale = (value) => box.y1 - ((value - low) / (high - low)) * (box.y1 - box.y0);
  [scale.low, scale.high] = [low, high];
  scale.ticks = steps(low, high, 6).map((value) => [value, String(Number(value.toPrecision(6)))]);
  return scale;
}

/** Some round numbers between two. */
function steps(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}
