/* One scan: what its score means, what drove it, where it stands out. */

const report = JSON.parse($("data").textContent);

const panel = (() => {
  const FIRST_FEATURES = 8; // ten seconds are for these
  const STATUS = {
    "flagged": ["▲", "Flagged", "flagged"],
    "normal": ["○", "Within normal range", "normal range"],
    "not scored": ["□", "Not scored", "not scored"],
  };

  function cell(text, number) {
    const made = document.createElement("td");
    made.textContent = text;
    if (number) made.className = "number";
    return made;
  }

  /* Marks of direction inside a text turn nothing outside of it. */
  function isolated(text) {
    const made = document.createElement("bdi");
    made.textContent = text;
    return made;
  }

  function mark(line, label, x, text) {
    $(line).setAttribute("x1", x);
    $(line).setAttribute("x2", x);
    const right = x > 0.6 * $("plot").viewBox.baseVal.width;
    $(label).setAttribute("x", right ? x - 6 : x + 6);
    $(label).setAttribute("text-anchor", right ? "end" : "start");
    $(label).textContent = text;
  }

  function svg(tag, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  /* ---- features: distance = how many widths of the normals' range outside of it ---- */
  function distance(value, range) {
    if (value === null || !range) return -1;
    const [low, high] = range;
    return Math.max(0, low - value, value - high) / (high - low);
  }

  /* The normals' range is the middle third; a value further than its width away stands at the edge. */
  function bar(value, [low, high], outside) {
    const share = (1 + (value - low) / (high - low)) / 3;
    const x = 2 + 176 * Math.min(1, Math.max(0, share));
    const drawing = svg("svg", { viewBox: "0 0 180 12", class: "range", role: "img" });
    drawing.setAttribute("aria-label", outside
      ? `${value < low ? "below" : "above"} the range ${low.toPrecision(3)} to ${high.toPrecision(3)}`
      : `within ${low.toPrecision(3)} to ${high.toPrecision(3)}`);
    drawing.append(
      svg("line", { x1: 2, x2: 178, y1: 6, y2: 6, class: "axis" }),
      svg("rect", { x: 2 + 176 / 3, y: 2, width: 176 / 3, height: 8, class: "bars" }),
      svg("circle", { cx: x.toFixed(1), cy: 6, r: 4, class: outside ? "value out" : "value" }));
    return drawing;
  }

  function showFeatures(values) {
    const found = report.features
      .map((feature, i) => ({ ...feature, value: values[i], far: distance(values[i], feature.range) }))
      .filter((feature) => feature.value !== null)
      .sort((a, b) => b.far - a.far);
    $("features").hidden = !found.length;
    $("feature-rows").replaceChildren(...found.map(({ name, unit, range, value, far }) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = unit ? `${name} (${unit})` : name;
      const drawn = document.createElement("td");
      if (range) drawn.append(bar(value, range, far > 0));
      row.append(head, cell(value, true), drawn);
      return row;
    }));
    $("more-features").hidden = found.length <= FIRST_FEATURES;
    $("more-features").textContent = `All ${found.length} features`;
    foldFeatures();
  }

  function foldFeatures() {
    const all = $("more-features").getAttribute("aria-expanded") === "true";
    [...$("feature-rows").rows].forEach((row, i) => { row.hidden = !all && i >= FIRST_FEATURES; });
  }

  function showRegions(regions) {
    $("regions").hidden = !regions.length;
    $("no-regions").hidden = regions.length > 0;
    $("region-rows").replaceChildren(...regions.map((region, i) => {
      const row = document.createElement("tr");
      row.append(cell(i + 1), cell(region[0]), ...region.slice(1).map((text) => cell(text, true)));
      return row;
    }));
  }

  function showScore(scan) {
    $("words").textContent = `${scan.words[0].toUpperCase()}${scan.words.slice(1)}.`;
    $("numbers").textContent =
      `p = ${scan.p_text} (flagged at ${report.alpha} and below) · `
      + `score ${scan.score_text} (threshold ${report.threshold})`;
    mark("here", "here-text", scan.place, `this scan ${scan.score_text}${scan.off_scale ? " (off the scale)" : ""}`);
    $("as-high").textContent = scan.as_high === "none"
      ? "None of them scored this high." : `${scan.as_high} scored this high or higher.`;
    showRegions(scan.regions);
    showFeatures(scan.features);
  }

  /* What scrolls by itself is a stop of the tabulator, for those without a wheel. */
  function reach() {
    for (const box of document.querySelectorAll(".scrolls")) {
      box.tabIndex = box.scrollHeight > box.clientHeight ? 0 : -1;
    }
  }

  function show(scan) {
    const scored = scan.status !== "not scored";
    const [icon, words] = STATUS[scan.status];
    $("case").hidden = false;
    $("case-key").textContent = scan.key;
    $("case-view").replaceChildren(
      ...(scan.view ? ["View ", isolated(scan.view)] : []),
      scan.view && scan.site ? " · " : "",
      ...(scan.site ? [isolated(scan.site)] : []));
    $("verdict-icon").textContent = `${icon} `;
    $("verdict-status").textContent = words;
    $("verdict").className = `verdict ${scan.status.replace(" ", "-")}`;
    $("note").replaceChildren(...(scored ? [scan.note] : [
      "Not scored: ", isolated(scan.reason),
      ". Nothing is known of this scan: it needs the usual reading."]));
    $("note").hidden = !$("note").textContent;
    for (const id of ["words", "numbers", "facts"]) $(id).hidden = !scored;
    reach();
    film.show(scored ? scan : { figure: null });
    if (scored) showScore(scan);
    if (scored) opinions.show(scan.key);
  }

  $("more-features").addEventListener("click", () => {
    const all = $("more-features").getAttribute("aria-expanded") === "true";
    $("more-features").setAttribute("aria-expanded", String(!all));
    foldFeatures();
  });
  film.shape(report.rows.flatMap(({ figure }) => (figure ? [figure.width / figure.height] : [])));
  $("features").classList.toggle("no-range", !report.features.some(({ range }) => range));
  addEventListener("resize", reach);
  return { show, STATUS };
})();
