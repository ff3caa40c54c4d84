/* What the reader says of results: kept in this browser, downloaded as
   [{"key", "opinion": "agree" | "disagree", "comment", "reader", "at"}], `at` when it was given. */

import * as dom from "./dom.js";
import * as scans from "./scans.js";

/**
 * @typedef {object} Reading
 * @property {string} opinion "agree", "disagree", or empty for a comment alone
 * @property {string} comment
 * @property {string} reader
 * @property {string} at
 */

const storageKey = `anomaly-readings-${scans.report.id}`;
const form = dom.get("opinion", HTMLFieldSetElement);
const comment = dom.get("comment", HTMLTextAreaElement);
const reader = dom.get("reader", HTMLInputElement);
const choices = [...form.querySelectorAll("input")].filter(({ name }) => name === "opinion");
/** @type {Map<string, Reading>} */
const readings = new Map();
let current = "";

/**
 * Return what this browser has kept; an error where it keeps nothing, as some do of pages from disk.
 * @returns {{ reader: string, said: [string, Reading][] }}
 */
function stored() {
  return JSON.parse(localStorage.getItem(storageKey) ?? '{"reader": "", "said": []}');
}

/* Read what is kept, and return whether anything can be. */
function load() {
  if (scans.report.private) return false; // what names patients is not left in a browser at all
  try {
    const kept = stored();
    if (!reader.value) reader.value = kept.reader;
    readings.clear();
    for (const [key, reading] of kept.said) readings.set(key, reading);
    return true;
  } catch {
    return false;
  }
}

/**
 * Keep the reading of a scan, and return whether it could be.
 * @param {string} key
 */
function keep(key) {
  const reading = readings.get(key);
  // Another tab may have kept readings of other scans meanwhile: they stay.
  if (!load()) return false;
  if (reading) readings.set(key, reading);
  else readings.delete(key);
  try {
    localStorage.setItem(storageKey, JSON.stringify({ reader: reader.value, said: [...readings] }));
    return true;
  } catch {
    return false;
  }
}

/** @param {boolean} kept */
function explain(kept) {
  dom.box("kept").textContent = kept
    ? "Kept in this browser until you clear its data, where other pages opened from this disk can read it: " +
      "name no patient. A comment counts once you agree or disagree."
    : "Nothing is kept here: download before you close the page.";
}

/* Return the readings with an opinion, as they are downloaded. */
function entries() {
  return [...readings]
    .filter(([, { opinion }]) => opinion)
    .map(([key, { opinion, comment, reader: name, at }]) => ({
      key,
      opinion,
      comment,
      reader: name || reader.value,
      at,
    }));
}

function showCount() {
  const { length } = entries();
  const button = dom.get("download", HTMLButtonElement);
  button.textContent = `Download readings (${length})`;
  button.disabled = !length;
}

/** @param {string} key */
function show(key) {
  current = key;
  const reading = readings.get(key);
  for (const choice of choices) choice.checked = choice.value === (reading?.opinion ?? "");
  comment.value = reading?.comment ?? "";
}

function change() {
  const opinion = choices.find(({ checked }) => checked)?.value ?? "";
  const before = readings.get(current);
  if (!opinion && !comment.value) readings.delete(current);
  else if (opinion !== before?.opinion || comment.value !== before?.comment) {
    // A reading is of who gave it; a name that is given later is for those that have none.
    const at = new Date().toISOString();
    readings.set(current, { opinion, comment: comment.value, reader: reader.value, at });
  }
  explain(keep(current));
  showCount();
}

function download() {
  const link = document.createElement("a");
  const text = JSON.stringify(entries(), null, 1);
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "readings.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 40_000); // some browsers save it later
}

addEventListener("storage", (event) => {
  if (event.key !== storageKey) return;
  load();
  showCount();
  show(current);
});
form.addEventListener("input", change);
dom.box("download").addEventListener("click", download);
explain(load());
showCount();
scans.onShow((row) => {
  if (row.status !== "not scored") show(row.key);
});
