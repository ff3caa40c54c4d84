/* What panels say of a scan: tables of two texts a row. */

import * as dom from "./dom.js";
import * as scans from "./scans.js";

for (const body of document.querySelectorAll("tbody[data-facts]")) {
  if (!(body instanceof HTMLTableSectionElement)) continue;
  const name = body.dataset.facts ?? "";
  // A panel that says nothing else is hidden with its table.
  const box = body.closest(".only-facts") ?? body.closest("table");
  scans.onShow((row) => {
    const facts = row.status === "not scored" ? [] : (row.facts[name] ?? []);
    box?.toggleAttribute("hidden", !facts.length);
    body.replaceChildren(
      ...facts.map(({ label, value }) => {
        const line = dom.make("tr");
        line.append(dom.head(label), dom.cell(value));
        return line;
      }),
    );
  });
}
