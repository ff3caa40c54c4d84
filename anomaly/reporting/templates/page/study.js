/* The scans of a study, side by side above the one that is shown.

     members[study] = indices of its rows, the most unusual first, those not scored last */

import * as dom from "./dom.js";
import * as pictures from "./pictures.js";
import * as scans from "./scans.js";

/** @typedef {import("./rows.js").Row} Row */

const MOST = 24; // drawn at once: an image of many frames is a study of many scans
const { rows, studies, images, statuses } = scans.report;
/** @type {number[][]} */
const members = studies.map(() => []);
rows.forEach((row, i) => {
  if (row.study !== null) members[row.study].push(i);
});
let drawn = "";

/**
 * Return the rows of the study of a row.
 * @param {number} index
 */
function scansOf(index) {
  const { study } = rows[index];
  return study === null ? [] : members[study];
}

/**
 * Return the scan before or after another in its study; undefined beyond the ends.
 * @param {number} index
 * @param {number} by
 * @returns {number | undefined}
 */
export function beside(index, by) {
  return scansOf(index)[scansOf(index).indexOf(index) + by];
}

/** @param {Row} row */
function thumbnail(row) {
  const box = dom.make("span", "", "thumbnail");
  if (row.status === "not scored" || !row.figure) return box;
  const image = dom.make("img");
  image.alt = "";
  image.loading = "lazy";
  image.width = row.figure.width;
  image.height = row.figure.height;
  pictures.put(image, row.figure.image);
  box.append(image);
  return box;
}

/** @param {number} index */
function button(index) {
  const row = rows[index];
  const { icon, short } = statuses[row.status];
  const element = dom.make("button");
  element.type = "button";
  element.dataset.index = String(index);
  element.title = row.key;
  const mark = dom.make("span", `${icon} `);
  mark.ariaHidden = "true";
  const status = dom.make("span", short, scans.className(row));
  status.prepend(mark);
  const facts = dom.make("span", "", "soft");
  facts.append(
    row.status === "not scored" ? dom.make("bdi", row.reason) : `p ${row.p_text}`,
    ...(row.view ? [" · ", dom.make("bdi", row.view)] : []),
  );
  const words = dom.make("span", "", "words");
  words.append(dom.make("span", `Scan ${row.key}: `, "unseen"), status, facts);
  element.append(...(images ? [thumbnail(row)] : []), words);
  return element;
}

/**
 * Return the title of a study, of whose scans some are drawn.
 * @param {string} study
 * @param {number} count
 * @param {number} first
 * @param {number} last
 */
function title(study, count, first, last) {
  const part = last - first < count ? `; ${first + 1} to ${last} are shown` : "";
  const scans = count > 1 ? `${count.toLocaleString("en")} scans, the most unusual first${part}` : "1 scan";
  return ["Study ", dom.make("bdi", study, "key"), ` · ${scans}`];
}

/**
 * Scroll a button into sight, sideways alone: the page stays where it was scrolled to.
 * @param {HTMLElement} element
 */
function reveal(element) {
  const line = dom.box("study-scans");
  const end = element.offsetLeft + element.offsetWidth - line.clientWidth;
  line.scrollLeft = Math.max(end, Math.min(element.offsetLeft, line.scrollLeft));
}

/**
 * Draw the part of a study that holds a scan.
 * @param {number} index
 */
function drawPart(index) {
  const scansHere = scansOf(index);
  const first = Math.floor(scansHere.indexOf(index) / MOST) * MOST;
  const last = Math.min(scansHere.length, first + MOST);
  const { study } = rows[index];
  const part = `${study} ${first}`;
  // The buttons stay while one goes through them: so does the focus on one.
  if (part === drawn) return;
  drawn = part;
  const name = study === null ? "" : studies[study];
  dom.box("study-title").replaceChildren(...title(name, scansHere.length, first, last));
  dom.box("study-scans").replaceChildren(
    ...scansHere.slice(first, last).map((i) => {
      const item = dom.make("li");
      item.append(button(i));
      return item;
    }),
  );
}

/** @param {number} index */
function show(index) {
  const line = dom.box("study-scans");
  const focused = dom.box("study").contains(document.activeElement);
  dom.box("study").classList.toggle("absent", !scansOf(index).length);
  drawPart(index);
  line.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const current = line.querySelector(`[data-index="${index}"]`);
  if (!(current instanceof HTMLElement)) return;
  current.setAttribute("aria-current", "true");
  if (focused) current.focus({ preventScroll: true });
  reveal(current);
}

/**
 * Call a function with the scan whose button is pressed.
 * @param {(index: number) => void} listener
 */
export function onChoice(listener) {
  document.getElementById("study-scans")?.addEventListener("click", (event) => {
    const pressed = event.target instanceof Element && event.target.closest("button");
    if (pressed) listener(Number(pressed.dataset.index));
  });
}

// There is no line of scans where no study has two.
if (studies.length) scans.onShow((_, index) => show(index));
