/* The worklist: all rows in memory, those in sight in the document.

     order = indices of the listed rows, as sorted;   row i of it stands at i * HEIGHT

   Rows come with the most unusual first; a click on a heading sorts them by a column. */

import * as dom from "./dom.js";
import * as films from "./films.js";
import * as scans from "./scans.js";
import * as study from "./study.js";

/** @typedef {import("./rows.js").Row} Row */

const HEIGHT = 30; // of a row, in pixels; the style sheet says the same
const SPARE = 8; // rows drawn beyond either edge
const { rows, studies, statuses } = scans.report;
const table = dom.get("worklist", HTMLTableElement);
const scroll = dom.box("scroll");
const search = dom.get("search", HTMLInputElement);
const shortcuts = dom.get("shortcuts", HTMLInputElement);
const [body] = table.tBodies;
const [head] = table.getElementsByTagName("thead");
const collator = new Intl.Collator("en", { numeric: true });
const RANKS = Object.keys(statuses);
/**
 * What columns sort by; undefined comes last.
 * @type {Record<string, (row: Row) => string | number | undefined>}
 */
const VALUES = {
  key: (row) => row.key,
  status: (row) => RANKS.indexOf(row.status),
  p: (row) => (row.status === "not scored" ? undefined : row.p),
  score: (row) => (row.status === "not scored" ? undefined : row.score),
  view: (row) => row.view || undefined,
  site: (row) => row.site || undefined,
  regions: (row) => (row.status === "not scored" ? undefined : row.regions.length),
};
/** @type {Record<"site" | "view" | "reason", (row: Row) => string>} */
const FILTERS = {
  site: (row) => row.site,
  view: (row) => row.view,
  reason: (row) => (row.status === "not scored" ? row.reason : ""),
};
let order = rows.map((_, i) => i);
let sorted = { column: "p", up: true };
let status = "all";
let current = -1;
let drawn = "";
let naming = 0;

/* ---- drawing ---- */
/**
 * @param {string} text
 * @param {string} [className]
 */
function cell(text, className) {
  const element = dom.make("td", text, className);
  if (text.length > 8) element.title = text.trim();
  return element;
}

/** @param {Row} row */
function statusCell(row) {
  const { icon, short } = statuses[row.status];
  const text = row.status === "not scored" ? `${short}: ${row.reason}` : short;
  const element = cell(` ${text}`, scans.className(row));
  const mark = dom.make("span", icon);
  mark.ariaHidden = "true";
  element.prepend(mark);
  if (row.status === "not scored") element.colSpan = 4; // over p-value, odds and score, which it has not
  return element;
}

/** @param {Row} row */
function keyCell(row) {
  const element = dom.make("th", "", "key");
  element.scope = "row";
  const button = dom.make("button", row.key);
  button.type = "button";
  button.title = row.key;
  button.tabIndex = -1;
  element.append(button);
  return element;
}

/** @param {number} place */
function line(place) {
  const row = rows[order[place]];
  const element = dom.make("tr");
  element.dataset.index = String(order[place]);
  element.setAttribute("aria-rowindex", String(place + 2));
  if (order[place] === current) element.setAttribute("aria-current", "true");
  element.append(keyCell(row), statusCell(row));
  if (row.status !== "not scored") {
    element.append(
      cell(row.p_text, "number"),
      cell(row.odds.replace("fewer than", "<")),
      cell(row.score_text, "number"),
    );
  }
  const regions = row.status === "not scored" ? "" : String(row.regions.length);
  element.append(cell(row.view), cell(row.site, "site"), cell(regions, "number"));
  return element;
}

/** @param {number} count of rows that are out of sight */
function gap(count) {
  const element = dom.make("tr");
  element.ariaHidden = "true";
  const room = dom.make("td", "", "gap");
  room.colSpan = 8;
  room.style.height = `${count * HEIGHT}px`;
  element.append(room);
  return element;
}

function draw() {
  const top = Math.floor(scroll.scrollTop / HEIGHT);
  const first = Math.min(Math.max(0, top - SPARE), Math.max(0, order.length - 1));
  const last = Math.min(order.length, top + Math.ceil(innerHeight / HEIGHT) + SPARE);
  const part = `${first} ${last} ${current}`;
  if (part === drawn) return;
  drawn = part;
  const focused = body.contains(document.activeElement);
  const lines = [];
  for (let place = first; place < last; place += 1) lines.push(line(place));
  body.replaceChildren(
    ...(first ? [gap(first)] : []),
    ...lines,
    ...(last < order.length ? [gap(order.length - last)] : []),
  );
  const stop = body.querySelector("[aria-current] button") ?? body.querySelector("button");
  if (!(stop instanceof HTMLElement)) return;
  stop.tabIndex = 0; // one stop for the tabulator
  if (focused) stop.focus({ preventScroll: true });
}

/* ---- choosing ---- */
/**
 * @param {number} index
 * @param {boolean} focus
 */
function select(index, focus) {
  current = index;
  const at = order.indexOf(index); // a scan of the same study, or of a link, need not be listed
  const top = at * HEIGHT;
  const room = scroll.clientHeight - head.offsetHeight;
  if (at >= 0 && top < scroll.scrollTop) scroll.scrollTop = top;
  if (top + HEIGHT > scroll.scrollTop + room) scroll.scrollTop = top + HEIGHT - room;
  draw();
  scans.show(index);
  dom.box("unknown").hidden = true;
  const button = body.querySelector("[aria-current] button");
  if (focus && button instanceof HTMLElement) button.focus({ preventScroll: true });
  nameInAddress();
}

/* The address names the scan, but a browser's history is no place for a patient's name. */
function nameInAddress() {
  if (scans.report.private) return;
  clearTimeout(naming);
  try {
    history.replaceState(null, "", `#${encodeURIComponent(rows[current].key)}`);
  } catch {
    naming = setTimeout(nameInAddress, 1000); // a browser may refuse many changes in a short time
  }
}

/**
 * Return the scan that an address names, or -1.
 * @param {string} hash
 */
function linked(hash) {
  try {
    const key = decodeURIComponent(hash.slice(1));
    return rows.findIndex((row) => row.key === key);
  } catch {
    return -1; // no text that a page wrote
  }
}

/** @param {number} by */
function stepInStudy(by) {
  const next = current < 0 ? undefined : study.beside(current, by);
  if (next !== undefined) select(next, false);
}

/** @param {number} by */
function step(by) {
  const at = order.indexOf(current);
  const next = order[at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + by))];
  if (next !== undefined) select(next, true);
}

/**
 * Compare two rows by the chosen column; those that are equal stay as they came.
 * @param {number} a
 * @param {number} b
 */
function compare(a, b) {
  const value = VALUES[sorted.column];
  const x = value(rows[a]);
  const y = value(rows[b]);
  if (x === undefined || y === undefined) return Number(x === undefined) - Number(y === undefined) || a - b;
  const by = typeof x === "number" && typeof y === "number" ? x - y : collator.compare(String(x), String(y));
  return (sorted.up ? by : -by) || a - b;
}

/** @param {Row} row */
function matches(row) {
  const part = search.value.trim().toLowerCase();
  const name = row.study === null ? "" : studies[row.study];
  return row.key.toLowerCase().includes(part) || name.toLowerCase().includes(part);
}

function list() {
  const chosen = Object.entries(FILTERS)
    .map(([id, value]) => ({ value, choice: dom.get(id, HTMLSelectElement).value }))
    .filter(({ choice }) => choice !== "");
  order = rows
    .map((_, i) => i)
    .filter((i) => {
      const row = rows[i];
      return (
        (status === "all" || row.status === status) &&
        chosen.every(({ value, choice }) => value(row) === choice) &&
        matches(row)
      );
    })
    .sort(compare);
  table.setAttribute("aria-rowcount", String(order.length + 1));
  const some = status === "all" || rows.some((row) => row.status === status);
  dom.box("listed").textContent = order.length
    ? `${order.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} scans listed.`
    : some
      ? "No such scan."
      : "No scan is flagged.";
  drawn = "";
  scroll.scrollTop = 0;
  if (order.length && !order.includes(current)) select(order[0], false);
  draw();
}

/** @param {string} hash */
function follow(hash) {
  const index = linked(hash);
  if (index >= 0) select(index, false);
  else dom.box("unknown").hidden = hash.length <= 1;
}

/**
 * Fill a choice with the values of the rows, and return how many there are.
 * @param {"site" | "view" | "reason"} id
 */
function offer(id) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const value of rows.map(FILTERS[id])) {
    if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  const values = [...counts.keys()].sort(collator.compare);
  const choice = dom.get(id, HTMLSelectElement);
  choice.append(
    new Option("any", ""),
    ...values.map((value) => new Option(`${value} (${counts.get(value)})`, value)),
  );
  // A choice among one is none, except of scans that were not scored among the others.
  const label = choice.closest("label");
  if (label) label.hidden = values.length < (id === "reason" ? 1 : 2);
  return values.length;
}

/**
 * Sort by the column of a heading, the other way round where it is sorted by already.
 * @param {HTMLElement} header
 */
function sortBy(header) {
  const up = header.getAttribute("aria-sort") !== "ascending";
  sorted = { column: header.dataset.column ?? "p", up };
  for (const other of head.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  list();
}

/* ---- pointer and keys ---- */
body.addEventListener("click", (event) => {
  const row = event.target instanceof Element && event.target.closest("tr[data-index]");
  if (row instanceof HTMLElement) select(Number(row.dataset.index), true);
});
head.addEventListener("click", (event) => {
  const header = event.target instanceof Element && event.target.closest("th[aria-sort]");
  if (header instanceof HTMLElement) sortBy(header);
});
const statusButtons = [...document.querySelectorAll("[data-status]")];
for (const button of statusButtons) {
  button.addEventListener("click", () => {
    for (const other of statusButtons) other.setAttribute("aria-pressed", String(other === button));
    status = button.getAttribute("data-status") ?? "all";
    list();
  });
}
for (const id of ["search", "site", "view", "reason"]) dom.box(id).addEventListener("input", list);
study.onChoice((index) => select(index, false));
scroll.addEventListener("scroll", () => requestAnimationFrame(draw));
addEventListener("resize", draw);
addEventListener("hashchange", () => follow(location.hash));

/** @type {Map<string, () => void>} */
const KEYS = new Map([
  ["j", () => step(1)],
  ["ArrowDown", () => step(1)],
  ["k", () => step(-1)],
  ["ArrowUp", () => step(-1)],
  ["[", () => stepInStudy(-1)],
  ["]", () => stepInStudy(1)],
  ["+", () => films.zoom(1.5)],
  ["-", () => films.zoom(1 / 1.5)],
  ["0", () => films.reset()],
]);
document.addEventListener("keydown", (event) => {
  const act = KEYS.get(event.key);
  // AltGr writes a bracket on many keyboards, and some systems call it Ctrl + Alt.
  const combined = (event.ctrlKey || event.altKey) && !event.getModifierState("AltGraph");
  if (!act || combined || event.metaKey) return;
  const target = event.target instanceof Element ? event.target : null;
  if (!shortcuts.checked && !scroll.contains(target)) return; // WCAG 2.1, 2.1.4
  // A letter in a text belongs to it; so do the arrows of a slider, a choice and a list.
  const own = event.key.startsWith("Arrow")
    ? "input, select, textarea, .scrolls[tabindex]"
    : "input[type=search], input[type=text], select, textarea";
  if (target?.closest(own)) return;
  event.preventDefault();
  act();
});

const REMEMBERED = "anomaly-shortcuts";
try {
  shortcuts.checked = localStorage.getItem(REMEMBERED) !== "in the list";
} catch {
  // no storage: they act everywhere
}
shortcuts.addEventListener("change", () => {
  try {
    localStorage.setItem(REMEMBERED, shortcuts.checked ? "everywhere" : "in the list");
  } catch {
    // no storage: the choice holds until the page is closed
  }
});

offer("view");
offer("reason");
table.classList.toggle("no-site", offer("site") < 2);
const asked = location.hash;
current = linked(asked); // what is listed stays selected
list();
follow(asked);
