/* What is said of a scan: status, key, p-value in words, note. */

import * as dom from "./dom.js";
import * as scans from "./scans.js";

/** @typedef {import("./rows.js").Row} Row */

const { alpha, threshold, statuses } = scans.report;

/** @param {Row} row */
function showView(row) {
  // Marks of direction inside a text turn nothing outside of it.
  dom
    .box("case-view")
    .replaceChildren(
      ...(row.view ? ["View ", dom.make("bdi", row.view)] : []),
      row.view && row.site ? " · " : "",
      ...(row.site ? [dom.make("bdi", row.site)] : []),
    );
}

/** @param {Row} row */
function showNote(row) {
  const note = dom.box("note");
  if (row.status === "not scored") {
    const rest = ". Nothing is known of this scan: it needs the usual reading.";
    note.replaceChildren("Not scored: ", dom.make("bdi", row.reason), rest);
  } else note.replaceChildren(row.note);
  note.hidden = !note.textContent;
}

/* What scrolls by itself is a stop of the tabulator, for those without a wheel. */
function makeReachable() {
  for (const box of document.querySelectorAll(".scrolls")) {
    if (box instanceof HTMLElement) box.tabIndex = box.scrollHeight > box.clientHeight ? 0 : -1;
  }
}

scans.onShow((row) => {
  const { icon, title } = statuses[row.status];
  const scored = row.status !== "not scored";
  dom.box("case-key").textContent = row.key;
  showView(row);
  dom.box("verdict-icon").textContent = `${icon} `;
  dom.box("verdict-status").textContent = title;
  dom.box("verdict").className = `verdict ${scans.className(row)}`;
  showNote(row);
  dom.box("words").hidden = dom.box("numbers").hidden = !scored;
  if (scored) {
    dom.box("words").textContent = `${row.words[0].toUpperCase()}${row.words.slice(1)}.`;
    dom.box("numbers").textContent =
      `p = ${row.p_text} (flagged at ${alpha} and below) · ` +
      `score ${row.score_text} (threshold ${threshold})`;
  }
  makeReachable();
});
addEventListener("resize", makeReachable);
