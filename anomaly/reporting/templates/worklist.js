/* The worklist: all rows in memory, those in sight in the document.

     order = indices of the listed rows, as sorted;   row i of it stands at i * HEIGHT */

(() => {
  const HEIGHT = 30; // of a row, in pixels; the style sheet says the same
  const SPARE = 8; // rows drawn beyond either edge
  const rows = report.rows;
  const table = $("worklist");
  const body = table.tBodies[0];
  const scroll = $("scroll");
  const collator = new Intl.Collator("en", { numeric: true });
  const RANK = { "flagged": 0, "normal": 1, "not scored": 2 };
  const VALUE = {
    key: (row) => row.key,
    status: (row) => RANK[row.status],
    p: (row) => row.p,
    score: (row) => row.score,
    view: (row) => row.view || undefined,
    site: (row) => row.site || undefined,
    regions: (row) => row.regions?.length,
  };
  let order = rows.map((_, i) => i);
  let sorted = { column: "p", up: true };
  let status = "all";
  let current;
  let drawn = "";
  let naming = 0;

  /* ---- drawing ---- */
  function cell(tag, text, name) {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    if (text.length > 8) made.title = text.trim();
    return made;
  }

  function statusCell(row) {
    const [icon, , short] = panel.STATUS[row.status];
    const made = cell("td", ` ${row.reason ? `${short}: ${row.reason}` : short}`, row.status.replace(" ", "-"));
    const mark = document.createElement("span");
    mark.ariaHidden = "true";
    mark.textContent = icon;
    made.prepend(mark);
    if (row.reason) made.colSpan = 4; // over p-value, odds and score, which it has not
    return made;
  }

  function line(place) {
    const row = rows[order[place]];
    const made = document.createElement("tr");
    made.dataset.index = order[place];
    made.setAttribute("aria-rowindex", place + 2);
    if (order[place] === current) made.setAttribute("aria-current", "true");
    const head = cell("th", "", "key");
    head.scope = "row";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = row.key;
    button.title = row.key;
    button.tabIndex = -1;
    head.append(button);
    made.append(head, statusCell(row));
    if (!row.reason) {
      made.append(
        cell("td", row.p_text, "number"), cell("td", row.odds.replace("fewer than", "<")),
        cell("td", row.score_text, "number"));
    }
    made.append(cell("td", row.view), cell("td", row.site, "site"),
      cell("td", row.reason ? "" : String(row.regions.length), "number"));
    return made;
  }

  function gap(count) {
    const made = document.createElement("tr");
    made.ariaHidden = "true";
    made.append(document.createElement("td"));
    made.firstChild.colSpan = 8;
    made.firstChild.className = "gap";
    made.firstChild.style.height = `${count * HEIGHT}px`;
    return made;
  }

  function draw() {
    const top = Math.floor(scroll.scrollTop / HEIGHT);
    const first = Math.min(Math.max(0, top - SPARE), Math.max(0, order.length - 1));
    const last = Math.min(order.length, top + Math.ceil(innerHeight / HEIGHT) + SPARE);
    const wanted = `${first} ${last} ${current}`;
    if (wanted === drawn) return;
    drawn = wanted;
    const focused = body.contains(document.activeElement);
    const lines = [];
    for (let place = first; place < last; place += 1) lines.push(line(place));
    body.replaceChildren(
      ...(first ? [gap(first)] : []), ...lines, ...(last < order.length ? [gap(order.length - last)] : []));
    const stop = body.querySelector("[aria-current] button") ?? body.querySelector("button");
    if (stop) stop.tabIndex = 0; // one stop for the tabulator
    if (focused) stop?.focus({ preventScroll: true });
  }

  /* ---- choosing ---- */
  function select(index, focus) {
    current = index;
    const at = order.indexOf(index); // a scan of the same study, or of a link, need not be listed
    const top = at * HEIGHT;
    const room = scroll.clientHeight - table.tHead.offsetHeight;
    if (at >= 0 && top < scroll.scrollTop) scroll.scrollTop = top;
    if (top + HEIGHT > scroll.scrollTop + room) scroll.scrollTop = top + HEIGHT - room;
    draw();
    panel.show(rows[index]);
    studies.show(index);
    $("unknown").hidden = true;
    if (focus) body.querySelector("[aria-current] button").focus({ preventScroll: true });
    name();
  }

  /* The address names the scan, but a browser's history is no place for a patient's name. */
  function name() {
    if (report.private) return;
    clearTimeout(naming);
    try {
      history.replaceState(null, "", `#${encodeURIComponent(rows[current].key)}`);
    } catch {
      naming = setTimeout(name, 1000); // a browser may refuse many changes in a short time
    }
  }

  /* The scan that an address names, or undefined. */
  function linked(hash) {
    try {
      const key = decodeURIComponent(hash.slice(1));
      const found = rows.findIndex((row) => row.key === key);
      return found < 0 ? undefined : found;
    } catch {
      return undefined; // no text that a page wrote
    }
  }

  function stepInStudy(by) {
    const next = studies.beside(current, by);
    if (next !== undefined) select(next, false);
  }

  function step(by) {
    const at = order.indexOf(current);
    const next = order[at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + by))];
    if (next !== undefined) select(next, true);
  }

  function compare(a, b) {
    const [x, y] = [VALUE[sorted.column](rows[a]), VALUE[sorted.column](rows[b])];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || a - b;
    const by = typeof x === "number" ? x - y : collator.compare(x, y);
    return (sorted.up ? by : -by) || a - b;
  }

  function list() {
    const wanted = $("search").value.trim().toLowerCase();
    const chosen = ["site", "view", "reason"].map((id) => [id, $(id).value]);
    order = rows.map((_, i) => i).filter((i) => {
      const row = rows[i];
      return (status === "all" || row.status === status)
        && chosen.every(([id, value]) => value === "" || row[id] === value)
        && (row.key.toLowerCase().includes(wanted)
          || (report.studies[row.study] ?? "").toLowerCase().includes(wanted));
    }).sort(compare);
    table.setAttribute("aria-rowcount", order.length + 1);
    $("listed").textContent = order.length
      ? `${order.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} scans listed.`
      : rows.some((row) => row.status === status) || status === "all" ? "No such scan." : "No scan is flagged.";
    drawn = "";
    scroll.scrollTop = 0;
    if (order.length && !order.includes(current)) select(order[0], false);
    draw();
  }

  function follow(hash) {
    const found = linked(hash);
    if (found !== undefined) select(found, false);
    else $("unknown").hidden = hash.length <= 1;
  }

  function offer(id) {
    const counts = new Map();
    for (const row of rows) {
      if (row[id]) counts.set(row[id], (counts.get(row[id]) ?? 0) + 1);
    }
    const values = [...counts.keys()].sort(collator.compare);
    $(id).append(new Option("any", ""), ...values.map((value) => new Option(`${value} (${counts.get(value)})`, value)));
    // A choice among one is none, except of scans that were not scored among the others.
    $(id).parentElement.hidden = values.length < (id === "reason" ? 1 : 2);
    return values.length;
  }

  /* ---- hands ---- */
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-index]");
    if (row) select(Number(row.dataset.index), true);
  });
  table.tHead.addEventListener("click", (event) => {
    const header = event.target.closest("th[aria-sort]");
    if (!header) return;
    const column = header.dataset.column;
    sorted = { column, up: header.getAttribute("aria-sort") !== "ascending" };
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
    list();
  });
  for (const button of document.querySelectorAll("[data-status]")) {
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-status]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      status = button.dataset.status;
      list();
    });
  }
  for (const id of ["search", "site", "view", "reason"]) $(id).addEventListener("input", list);
  $("study-scans")?.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) select(Number(button.dataset.index), false);
  });
  scroll.addEventListener("scroll", () => requestAnimationFrame(draw));
  addEventListener("resize", draw);
  addEventListener("hashchange", () => follow(location.hash));

  const KEYS = {
    "j": () => step(1), "ArrowDown": () => step(1),
    "k": () => step(-1), "ArrowUp": () => step(-1),
    "[": () => stepInStudy(-1), "]": () => stepInStudy(1),
    "+": () => film.zoom(1.5), "-": () => film.zoom(1 / 1.5), "0": () => film.reset(),
  };
  document.addEventListener("keydown", (event) => {
    // AltGr writes a bracket on many keyboards, and some systems call it Ctrl + Alt.
    const shortcut = (event.ctrlKey || event.altKey) && !event.getModifierState("AltGraph");
    if (shortcut || event.metaKey || !(event.key in KEYS)) return;
    if (!$("shortcuts").checked && !scroll.contains(event.target)) return; // WCAG 2.1, 2.1.4
    // A letter in a text belongs to it; so do the arrows of a slider, a choice and a list.
    const own = event.key.startsWith("Arrow")
      ? "input, select, textarea, .scrolls[tabindex]" : "input[type=search], input[type=text], select, textarea";
    if (event.target.closest(own)) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  const REMEMBERED = "anomaly-shortcuts";
  try {
    $("shortcuts").checked = localStorage.getItem(REMEMBERED) !== "in the list";
  } catch { /* no storage: they act everywhere */ }
  $("shortcuts").addEventListener("change", () => {
    try {
      localStorage.setItem(REMEMBERED, $("shortcuts").checked ? "everywhere" : "in the list");
    } catch { /* no storage: the choice holds until the page is closed */ }
  });

  offer("view");
  offer("reason");
  table.classList.toggle("no-site", offer("site") < 2);
  const asked = location.hash;
  current = linked(asked); // what is listed stays selected
  list();
  follow(asked);
})();
