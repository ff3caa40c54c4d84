/* The features of a scan as a table, in the order in which they come: the most unusual first. */

import * as dom from "./dom.js";
import * as scans from "./scans.js";

/** @typedef {import("./rows.js").FeatureValue} FeatureValue */

const FIRST = 8; // ten seconds are for these
const SIDES = new Map([
  [-1, "below the range "],
  [1, "above the range "],
]);
const columns = scans.report.features;
const body = dom.get("feature-rows", HTMLTableSectionElement);
const more = dom.get("more-features", HTMLButtonElement);

/**
 * Draw a value against the range of normal scans, which is the middle third.
 * @param {number} share
 * @param {number} side
 * @param {string} range
 */
function drawing(share, side, range) {
  const element = dom.draw("svg", { viewBox: "0 0 180 12", class: "range", role: "img" });
  element.setAttribute("aria-label", `${SIDES.get(side) ?? "within "}${range}`);
  element.append(
    dom.draw("line", { x1: 2, x2: 178, y1: 6, y2: 6, class: "axis" }),
    dom.draw("rect", { x: 2 + 176 / 3, y: 2, width: 176 / 3, height: 8, class: "bars" }),
    dom.draw("circle", {
      cx: (2 + 176 * share).toFixed(1),
      cy: 6,
      r: 4,
      class: side ? "value out" : "value",
    }),
  );
  return element;
}

/** @param {FeatureValue} feature */
function line([index, value, share, side]) {
  const { name, unit, range_text } = columns[index];
  const row = dom.make("tr");
  const place = dom.make("td");
  if (share !== null) place.append(drawing(share, side, range_text));
  row.append(dom.head(unit ? `${name} (${unit})` : name), dom.cell(String(value), true), place);
  return row;
}

const isOpen = () => more.getAttribute("aria-expanded") === "true";

function fold() {
  [...body.rows].forEach((row, i) => {
    row.hidden = !isOpen() && i >= FIRST;
  });
}

scans.onShow((row) => {
  if (row.status === "not scored") return;
  dom.box("features").hidden = !row.features.length;
  body.replaceChildren(...row.features.map(line));
  more.hidden = row.features.length <= FIRST;
  more.textContent = `All ${row.features.length} features`;
  fold();
});
more.addEventListener("click", () => {
  more.setAttribute("aria-expanded", String(!isOpen()));
  fold();
});
dom.box("features").classList.toggle("no-range", !columns.some(({ range }) => range));
