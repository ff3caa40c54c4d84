/* The scans of the page, and the one that is shown. Panels listen for it. */

/** @typedef {import("./rows.js").PageData} PageData */
/** @typedef {import("./rows.js").Row} Row */
/** @typedef {(row: Row, index: number) => void} Listener */

import * as dom from "./dom.js";

/** @type {PageData} */
export const report = JSON.parse(dom.get("data", HTMLScriptElement).text);

/** @type {Listener[]} */
const listeners = [];
let shown = -1;

/**
 * Call a function for each scan that is shown from now on, and for the one that is.
 * @param {Listener} listener
 */
export function onShow(listener) {
  listeners.push(listener);
  if (shown >= 0) listener(report.rows[shown], shown);
}

/**
 * Show the scan of a row.
 * @param {number} index
 */
export function show(index) {
  shown = index;
  const row = report.rows[index];
  dom.box("case").hidden = false;
  dom.box("facts").hidden = row.status === "not scored";
  for (const listener of listeners) listener(row, index);
}

/**
 * Return how the status of a scan is written as the name of a class.
 * @param {Row} row
 */
export function className(row) {
  return row.status.replace(" ", "-");
}
