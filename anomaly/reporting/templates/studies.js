/* The scans of a study, side by side above the one that is shown.

     members[study] = indices of its rows, the most unusual first, those not scored last */

const studies = (() => {
  const MOST = 24; // drawn at once: an image of many frames is a study of many scans
  const rows = report.rows;
  const members = report.studies.map(() => []);
  rows.forEach((row, i) => members[row.study]?.push(i));
  let drawn = "";

  const of = (index) => members[rows[index].study] ?? [];

  /* The scan before or after another in its study; undefined beyond the ends. */
  function beside(index, by) {
    return of(index)[of(index).indexOf(index) + by];
  }

  function text(tag, said, name) {
    const made = document.createElement(tag);
    made.textContent = said;
    if (name) made.className = name;
    return made;
  }

  function thumbnail(row) {
    const box = text("span", "", "thumbnail");
    if (!row.figure) return box;
    const image = document.createElement("img");
    image.alt = "";
    image.loading = "lazy";
    image.width = row.figure.width;
    image.height = row.figure.height;
    pictures.put(image, row.figure.image);
    box.append(image);
    return box;
  }

  function button(index) {
    const row = rows[index];
    const [icon, , short] = panel.STATUS[row.status];
    const made = text("button", "");
    made.type = "button";
    made.dataset.index = index;
    made.title = row.key;
    const mark = text("span", `${icon} `);
    mark.ariaHidden = "true";
    const status = text("span", short, row.status.replace(" ", "-"));
    status.prepend(mark);
    const view = row.view ? [" · ", text("bdi", row.view)] : [];
    const facts = text("span", "", "soft");
    facts.append(row.reason ? text("bdi", row.reason) : `p ${row.p_text}`, ...view);
    const words = text("span", "", "words");
    words.append(text("span", `Scan ${row.key}: `, "unseen"), status, facts);
    made.append(...(report.images ? [thumbnail(row)] : []), words);
    return made;
  }

  function title(study, scans, first, last) {
    const count = scans.length;
    const part = last - first < count ? `; ${first + 1} to ${last} are shown` : "";
    $("study-title").replaceChildren(
      "Study ", text("bdi", study, "key"),
      count > 1 ? ` · ${count.toLocaleString("en")} scans, the most unusual first${part}` : " · 1 scan");
  }

  /* Sideways alone: the page stays where it was scrolled to. */
  function inSight(made) {
    const line = $("study-scans");
    const end = made.offsetLeft + made.offsetWidth - line.clientWidth;
    line.scrollLeft = Math.max(end, Math.min(made.offsetLeft, line.scrollLeft));
  }

  function show(index) {
    if (!$("study")) return;
    const scans = of(index);
    const focused = $("study").contains(document.activeElement);
    $("study").classList.toggle("absent", !scans.length);
    const first = Math.floor(scans.indexOf(index) / MOST) * MOST;
    const last = Math.min(scans.length, first + MOST);
    // The buttons stay while one goes through them: so does the focus on one.
    const wanted = `${rows[index].study} ${first}`;
    if (wanted !== drawn) {
      drawn = wanted;
      title(report.studies[rows[index].study] ?? "", scans, first, last);
      $("study-scans").replaceChildren(...scans.slice(first, last).map((i) => {
        const item = document.createElement("li");
        item.append(button(i));
        return item;
      }));
    }
    $("study-scans").querySelector("[aria-current]")?.removeAttribute("aria-current");
    const current = $("study-scans").querySelector(`[data-index="${index}"]`);
    if (!current) return;
    current.setAttribute("aria-current", "true");
    if (focused) current.focus({ preventScroll: true });
    inSight(current);
  }

  return { show, beside };
})();
