/* The regions of a scan as a table. */

import * as dom from "./dom.js";
import * as scans from "./scans.js";

scans.onShow((row) => {
  if (row.status === "not scored") return;
  dom.box("regions").hidden = !row.regions.length;
  dom.box("no-regions").hidden = row.regions.length > 0;
  dom.box("region-rows").replaceChildren(
    ...row.regions.map(([place, ...numbers], i) => {
      const line = dom.make("tr");
      line.append(dom.cell(String(i + 1)), dom.cell(place), ...numbers.map((text) => dom.cell(text, true)));
      return line;
    }),
  );
});
