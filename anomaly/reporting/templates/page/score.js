/* Where the score of a scan lies among those of normal scans. */

import * as dom from "./dom.js";
import * as scans from "./scans.js";

const line = dom.get("here", SVGElement);
const label = dom.get("here-text", SVGElement);
const { width } = dom.get("plot", SVGSVGElement).viewBox.baseVal;

/**
 * Draw a line down to the axis, its text on the side that has room.
 * @param {number} x
 * @param {string} text
 */
function mark(x, text) {
  const right = x > 0.6 * width;
  line.setAttribute("x1", String(x));
  line.setAttribute("x2", String(x));
  label.setAttribute("x", String(right ? x - 6 : x + 6));
  label.setAttribute("text-anchor", right ? "end" : "start");
  label.textContent = text;
}

scans.onShow((row) => {
  if (row.status === "not scored") return;
  mark(row.place, `this scan ${row.score_text}${row.off_scale ? " (off the scale)" : ""}`);
  dom.box("as-high").textContent =
    row.as_high === "none" ? "None of them scored this high." : `${row.as_high} scored this high or higher.`;
});
