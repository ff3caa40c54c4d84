/* What the reader says of results: kept in this browser, downloaded as
   [{"key", "opinion": "agree" | "disagree", "comment", "reader", "at"}], `at` when it was given. */

const opinions = (() => {
  const place = `anomaly-readings-${report.id}`;
  const said = new Map();
  let current = "";

  /* A browser may refuse storage to pages from disk: then memory has to do, and the page says so. */
  function load() {
    try {
      const stored = JSON.parse(localStorage.getItem(place) ?? '{"reader": "", "said": []}');
      $("reader").value = stored.reader;
      for (const [key, { opinion, comment, at }] of stored.said) said.set(key, { opinion, comment, at });
      return true;
    } catch {
      return false;
    }
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify({ reader: $("reader").value, said: [...said] }));
      return true;
    } catch {
      return false;
    }
  }

  function explain(stored) {
    $("kept").textContent = stored
      ? "Kept in this browser until you clear its data. A comment counts once you agree or disagree."
      : "This browser keeps nothing: download before you close the page.";
  }

  const entries = () => [...said]
    .filter(([, { opinion }]) => opinion)
    .map(([key, { opinion, comment, at }]) => ({ key, opinion, comment, reader: $("reader").value, at }));

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
      said.set(current, { opinion, comment, at: new Date().toISOString() });
    }
    explain(keep());
    count();
  }

  function download() {
    const link = document.createElement("a");
    const text = JSON.stringify(entries(), null, 1);
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "readings.json";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  $("opinion").addEventListener("input", change);
  $("download").addEventListener("click", download);
  explain(load());
  count();
  return { show };
})();
