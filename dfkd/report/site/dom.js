// Elements and quantities: what the other scripts build with. All scripts of the page are one module.

/** An element; children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** As `el`, of a drawing. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Seconds for people, as the tables write them. */
function duration(seconds) {
  if (seconds < 59.95) return seconds ? `${seconds.toFixed(1)} s` : "0 s";
  const two = (number) => String(number).padStart(2, "0");
  const whole = Math.round(seconds), minutes = Math.round(whole / 60), hours = Math.round(whole / 3600);
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${two(whole % 60)} s`;
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} m`;
  return `${Math.floor(hours / 24)} d ${two(hours % 24)} h`;
}

/** Bytes for people. */
function memory(size) {
  return size >= 2 ** 30 ? `${(size / 2 ** 30).toFixed(1)} GiB` : `${Math.round(size / 2 ** 20)} MiB`;
}

/** A score with its metric's decimals; a dash where there is none. */
function score(value, metric) {
  return value === null || value === undefined ? "–" : value.toFixed(metric.decimals);
}

/** What Python packed: gzip in base64. */
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (sign) => sign.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
