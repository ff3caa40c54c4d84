/* The images of a scan: evidence over them, grey levels, zoom, and the blink with what was expected.

     shown grey = slope * grey + intercept,   slope = 1 / window,   intercept = 1/2 - level / window

   as an SVG filter: a page opened from disk may draw the pixels of a file beside it, not read them. */

const film = (() => {
  const frames = [...document.querySelectorAll(".frame")];
  const stages = [...document.querySelectorAll(".stage")];
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const view = { scale: 1, x: 0, y: 0 };
  let scan = null;
  let blinking = null;
  let pane = 0; // width that `view` is in pixels of
  let letGo = () => {};

  function place(image, source, alt) {
    image.alt = alt;
    pictures.put(image, source);
  }

  /* One height for all scans, which the narrowest asks for: nothing moves from scan to scan. */
  function shape(widthsByHeight) {
    $("films").style.setProperty("--shape", widthsByHeight.reduce((a, b) => Math.min(a, b), 2));
  }

  function show(next) {
    scan = next;
    stopBlinking();
    letGo();
    const figure = scan.figure;
    $("films").hidden = $("controls").hidden = !figure;
    if (!figure) return;
    $("grey-source").textContent = figure.grey
      ? `Grey shown first: ${figure.grey}. Window and level start there.` : "";
    place($("original"), figure.image, `Scan ${scan.key}, no overlay`);
    place($("under"), figure.image, `Scan ${scan.key}, score ${scan.score_text}, ${scan.words}`);
    place($("overlay"), figure.overlay, "");
    place($("expected"), figure.expected, `Synthetic: what the model expected of scan ${scan.key}`);
    $("blink").hidden = !figure.expected;
    if ($("alike")) {
      // Its room stays: the other images keep their places from scan to scan.
      $("alike").classList.toggle("absent", !figure.look_alike);
      place($("look-alike"), figure.look_alike, `The normal scan most like scan ${scan.key}`);
    }
    const outline = $("outline");
    outline.setAttribute("viewBox", `0 0 ${figure.width} ${figure.height}`);
    for (const path of outline.querySelectorAll("path")) path.setAttribute("d", figure.contour);
    const size = Math.max(figure.width, figure.height) / 28;
    $("labels").replaceChildren(...figure.labels.map(([x, y], i) => {
      const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
      text.setAttribute("x", x);
      text.setAttribute("y", y);
      text.setAttribute("font-size", size);
      text.textContent = i + 1;
      return text;
    }));
    drawEvidence();
    reset();
  }

  /* A contour over nothing would mislead as well. */
  function miss() {
    $("outline").toggleAttribute("hidden", true);
    $("map-caption").textContent = "The picture cannot be read: is the folder images beside this page?";
  }

  /* A map over a scan within the normal range would suggest a finding: it is drawn on request only. */
  function drawEvidence() {
    if (!scan || !scan.figure) return;
    const drawn = scan.figure.overlay && (scan.status === "flagged" || $("anyway").checked);
    const opacity = $("opacity").value / 100;
    $("overlay").hidden = !drawn;
    $("outline").toggleAttribute("hidden", !(drawn && $("contour").checked));
    $("overlay").style.opacity = opacity;
    $("bar").style.opacity = opacity;
    $("opacity-value").textContent = `${$("opacity").value} %`;
    $("map-caption").textContent = drawn ? "With evidence"
      : scan.figure.overlay ? "No map: within normal range" : "No map computed";
  }

  /* ---- grey levels ---- */
  const inverted = () => $("invert").getAttribute("aria-pressed") === "true";

  function drawGrey() {
    const width = $("window").value / 100;
    const slope = 1 / width;
    const intercept = 0.5 - $("level").value / 100 / width;
    for (const channel of $("grey-levels").querySelectorAll("feFuncR, feFuncG, feFuncB")) {
      channel.setAttribute("slope", inverted() ? -slope : slope);
      channel.setAttribute("intercept", inverted() ? 1 - intercept : intercept);
    }
    const untouched = slope === 1 && intercept === 0 && !inverted();
    for (const image of document.querySelectorAll(".grey")) {
      image.style.filter = untouched ? "" : "url(#grey-levels)";
    }
  }

  /* ---- zoom ---- */
  function drawZoom() {
    const { clientWidth, clientHeight } = frames[0];
    pane = clientWidth;
    const within = (value, side) => Math.min(0, Math.max(side * (1 - view.scale), value));
    view.x = within(view.x, clientWidth);
    view.y = within(view.y, clientHeight);
    for (const stage of stages) {
      stage.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    }
    $("zoom-value").textContent = `${Math.round(100 * view.scale)} %`;
  }

  function zoom(factor, x = frames[0].clientWidth / 2, y = frames[0].clientHeight / 2) {
    const scale = Math.min(16, Math.max(1, view.scale * factor));
    view.x = x - (x - view.x) * (scale / view.scale);
    view.y = y - (y - view.y) * (scale / view.scale);
    view.scale = scale;
    drawZoom();
  }

  /* An eighth of a pane further: `right` shows more of what lies to the right. */
  function look(towards) {
    const [right, down] = { left: [-1, 0], up: [0, -1], down: [0, 1], right: [1, 0] }[towards];
    view.x -= (right * frames[0].clientWidth) / 8;
    view.y -= (down * frames[0].clientHeight) / 8;
    drawZoom();
  }

  function reset() {
    Object.assign(view, { scale: 1, x: 0, y: 0 });
    $("window").value = 100;
    $("level").value = 50;
    $("invert").setAttribute("aria-pressed", "false");
    drawZoom();
    drawGrey();
  }

  /* ---- blink ---- */
  function showExpected(on) {
    $("expected").hidden = !on;
    $("original").hidden = on;
    $("original-caption").textContent = on ? "Expected by the model (synthetic)" : "Original";
  }

  function stopBlinking() {
    clearInterval(blinking);
    blinking = null;
    $("blink").setAttribute("aria-pressed", "false");
    showExpected(false);
  }

  function blink() {
    if ($("blink").getAttribute("aria-pressed") === "true") return stopBlinking();
    $("blink").setAttribute("aria-pressed", "true");
    // Who asked for less motion changes the image by hand; only then is each change told.
    $("original-caption").ariaLive = calm.matches ? "polite" : "off";
    showExpected(true);
    if (!calm.matches) blinking = setInterval(() => showExpected($("expected").hidden), 600);
  }

  /* ---- hands ---- */
  function drag(event) {
    const frame = event.currentTarget;
    if (event.button !== 0) return;
    frame.setPointerCapture(event.pointerId);
    const start = {
      x: event.clientX, y: event.clientY, window: Number($("window").value),
      level: Number($("level").value), left: view.x, top: view.y,
    };
    const move = (to) => {
      const [right, down] = [to.clientX - start.x, to.clientY - start.y];
      if (event.shiftKey) {
        view.x = start.left + right;
        view.y = start.top + down;
        return drawZoom();
      }
      // As at a workstation: to the right for more grey levels, up for a brighter image.
      $("window").value = start.window + (200 * right) / frame.clientWidth;
      $("level").value = start.level + (100 * down) / frame.clientHeight;
      drawGrey();
    };
    const stop = () => {
      frame.removeEventListener("pointermove", move);
      for (const end of ["pointerup", "pointercancel"]) frame.removeEventListener(end, stop);
    };
    letGo = stop;
    frame.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, stop);
  }

  for (const frame of frames) {
    frame.addEventListener("pointerdown", drag);
    frame.addEventListener("dblclick", reset);
    frame.addEventListener("wheel", (event) => {
      // The browser's own zoom is its own, and who cannot zoom out any further scrolls the page.
      if (event.ctrlKey || (event.deltaY > 0 && view.scale === 1)) return;
      event.preventDefault();
      const { left, top } = frame.getBoundingClientRect();
      const x = event.clientX - left - frame.clientLeft;
      const y = event.clientY - top - frame.clientTop;
      zoom(Math.exp(-event.deltaY / 400), x, y);
    }, { passive: false });
  }
  for (const id of ["opacity", "contour", "anyway"]) $(id).addEventListener("input", drawEvidence);
  for (const id of ["window", "level"]) $(id).addEventListener("input", drawGrey);
  $("invert").addEventListener("click", () => {
    $("invert").setAttribute("aria-pressed", String(!inverted()));
    drawGrey();
  });
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  for (const button of document.querySelectorAll("[data-look]")) {
    button.addEventListener("click", () => look(button.dataset.look));
  }
  $("reset").addEventListener("click", reset);
  $("blink").addEventListener("click", blink);
  $("under").addEventListener("error", miss);
  addEventListener("resize", () => {
    const { clientWidth } = frames[0];
    if (pane && clientWidth) {
      view.x *= clientWidth / pane;
      view.y *= clientWidth / pane;
    }
    drawZoom();
  });
  return { show, shape, zoom, reset };
})();
