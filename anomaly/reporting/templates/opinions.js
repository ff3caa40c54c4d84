/* What the reader says of results: kept in this browser, downloaded as
   [{"key", "opinion": "agree" | "disagree", "comment", "reader", "at"}], `at` when it was given. */

const opinions = (() => {
  const place = `anomaly-readings-${report.id}`;
  const said = new Map();
  let current = "";

  /* What this browser has kept; an error where it keeps nothing, as some do of pages from disk. */
  function stored() {
    return JSON.parse(localStorage.getItem(place) ?? '{"reader": "", "said": []}');
  }

  /* What names patients is not left in a browser at all. */
  function load() {
    if (report.private) return false;
    try {
      const found = stored();
      if (!$("reader").value) $("reader").value = found.reader;
      said.clear();
      for (const [key, reading] of found.said) said.set(key, reading);
      return true;
    } catch {
      return false;
    }
  }

  /* Another tab may have kept readings of other scans meanwhile: they stay. */
  function keep(key) {
    const mine = said.get(key);
    if (!load()) return false;
    if (mine) said.set(key, mine);
    else said.delete(key);
    try {
      localStorage.setItem(place, JSON.stringify({ reader: $("reader").value, said: [...said] }));
      return true;
    } catch {
      return false;
    }
  }

  function explain(stored) {
    $("kept").textContent = stored
      ? "Kept in this browser until you clear its data, where other pages opened from this disk can read it: "
        + "name no patient. A comment counts once you agree or disagree."
      : "Nothing is kept here: download before you close the page.";
  }

  const entries = () => [...said]
    .filter(([, { opinion }]) => opinion)
    .map(([key, { opinion, comment, reader, at }]) => ({ key, opinion, comment, reader: reader || $("reader").value, at }));

  function count() {
    const { length } = entries();
    $("download").textContent = `Download readings (${length})`;
    $("download").disabled = !length;
  }

  function show(key) {
    current = key;
    const { opinion, comment } = said.get(key) ?? { opinion: "", comment: "" };
    for (const choice of document.getElementsByName("opinion")) choice.checked = choice.value === opinion;
    $("comment").value = comment;
  }

  function change() {
    const opinion = document.querySelector("input[name=opinion]:checked").value;
    const comment = $("comment").value;
    const before = said.get(current);
    if (!opinion && !comment) said.delete(current);
    else if (opinion !== before?.opinion || comment !== before?.comment) {
      // A reading is of who gave it; a name that is given later is for those that have none.
      said.set(current, { opinion, comment, reader: $("reader").value, at: new Date().toISOString() });
    }
    explain(keep(current));
    count();
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
    if (event.key !== place) return;
    load();
    count();
    show(current);
  });
  $("opinion").addEventListener("input", change);
  $("download").addEventListener("click", download);
  explain(load());
  count();
  return { show };
})();
