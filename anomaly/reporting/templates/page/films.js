/* The images of a scan: evidence over them, grey levels, zoom, and the blink with what was expected.

     shown grey = slope * grey + intercept,   slope = 1 / window,   intercept = 1/2 - level / window

   as an SVG filter: a page opened from disk may draw the pixels of a file beside it, not read them. */

import * as dom from "./dom.js";
import * as pictures from "./pictures.js";
import * as scans from "./scans.js";

/** @typedef {import("./rows.js").ScanRow} ScanRow */
/** @typedef {import("./rows.js").Figure} Figure */

const frames = elements(".frame");
const stages = elements(".stage");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const outline = dom.get("outline", SVGSVGElement);
const overlay = dom.get("overlay", HTMLImageElement);
const spread = dom.get("spread", HTMLImageElement);
const opacity = dom.get("opacity", HTMLInputElement);
const windowWidth = dom.get("window", HTMLInputElement);
const level = dom.get("level", HTMLInputElement);
const view = { scale: 1, x: 0, y: 0 };
/** @type {ScanRow | null} */
let scan = null;
/** @type {number | undefined} */
let blinking;
let pane = 0; // width that `view` is in pixels of
let endDrag = () => {};

/**
 * @param {string} selector
 * @returns {HTMLElement[]}
 */
function elements(selector) {
  return [...document.querySelectorAll(selector)].filter((element) => element instanceof HTMLElement);
}

/**
 * @param {string} id
 * @param {string | null} address
 * @param {string} alt
 */
function place(id, address, alt) {
  const image = dom.get(id, HTMLImageElement);
  image.alt = alt;
  pictures.put(image, address);
}

/* One height for all scans, which the narrowest asks for: nothing moves from scan to scan. */
function setShape() {
  const shapes = scans.report.rows.flatMap((row) =>
    row.status !== "not scored" && row.figure ? [row.figure.width / row.figure.height] : [],
  );
  const narrowest = shapes.reduce((a, b) => Math.min(a, b), 2);
  dom.box("films").style.setProperty("--shape", String(narrowest));
}

/**
 * @param {ScanRow} row
 * @param {Figure} figure
 */
function drawImages(row, figure) {
  place("original", figure.image, `Scan ${row.key}, no overlay`);
  place("under", figure.image, `Scan ${row.key}, score ${row.score_text}, ${row.words}`);
  place("overlay", figure.overlay, "");
  place("spread", figure.spread, "");
  place("expected", figure.expected, `Synthetic: what the model expected of scan ${row.key}`);
  dom.box("blink").hidden = !figure.expected;
  const alike = document.getElementById("alike"); // where some scan of the page has one
  if (!alike) return;
  // Its room stays: the other images keep their places from scan to scan.
  alike.classList.toggle("absent", !figure.look_alike);
  place("look-alike", figure.look_alike, `The normal scan most like scan ${row.key}`);
}

/** @param {Figure} figure */
function drawOutline({ width, height, contour, labels }) {
  outline.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const path of outline.querySelectorAll("path")) path.setAttribute("d", contour);
  const size = Math.max(width, height) / 28;
  dom.get("labels", SVGElement).replaceChildren(
    ...labels.map(([x, y], i) => {
      const text = dom.draw("text", { x, y, "font-size": size });
      text.textContent = String(i + 1);
      return text;
    }),
  );
}

/** @param {ScanRow | null} row */
function show(row) {
  scan = row;
  stopBlinking();
  endDrag();
  const figure = row?.figure;
  dom.box("films").hidden = dom.box("controls").hidden = !figure;
  if (!row || !figure) return;
  dom.box("grey-source").textContent = figure.grey
    ? `Grey shown first: ${figure.grey}. Window and level start there.`
    : "";
  drawImages(row, figure);
  drawOutline(figure);
  drawEvidence();
  reset();
}

/* A contour over nothing would mislead as well. */
function showMissing() {
  outline.toggleAttribute("hidden", true);
  dom.box("map-caption").textContent = "The picture cannot be read: is the folder images beside this page?";
}

/* A map over a scan within the normal range would suggest a finding: it is drawn on request only. */
function drawEvidence() {
  if (!scan?.figure) return;
  const hasMap = Boolean(scan.figure.overlay);
  const drawn = hasMap && (scan.status === "flagged" || dom.get("anyway", HTMLInputElement).checked);
  const share = String(Number(opacity.value) / 100);
  overlay.hidden = !drawn;
  spread.hidden = !(drawn && scan.figure.spread && dom.get("spread-on", HTMLInputElement).checked);
  spread.style.opacity = share;
  outline.toggleAttribute("hidden", !(drawn && dom.get("contour", HTMLInputElement).checked));
  overlay.style.opacity = share;
  dom.box("bar").style.opacity = share;
  dom.box("opacity-value").textContent = `${opacity.value} %`;
  const none = hasMap ? "No map: within normal range" : "No map computed";
  dom.box("map-caption").textContent = drawn ? "With evidence" : none;
}

/* ---- grey levels ---- */
const isInverted = () => dom.box("invert").getAttribute("aria-pressed") === "true";

function drawGrey() {
  const width = Number(windowWidth.value) / 100;
  const slope = 1 / width;
  const intercept = 0.5 - Number(level.value) / 100 / width;
  const inverted = isInverted();
  const channels = dom.get("grey-levels", SVGElement).querySelectorAll("feFuncR, feFuncG, feFuncB");
  for (const channel of channels) {
    channel.setAttribute("slope", String(inverted ? -slope : slope));
    channel.setAttribute("intercept", String(inverted ? 1 - intercept : intercept));
  }
  const untouched = slope === 1 && intercept === 0 && !inverted;
  for (const image of elements(".grey")) {
    image.style.filter = untouched ? "" : "url(#grey-levels)";
  }
}

/* ---- zoom ---- */
function drawZoom() {
  const { clientWidth, clientHeight } = frames[0];
  pane = clientWidth;
  /** @type {(value: number, side: number) => number} */
  const within = (value, side) => Math.min(0, Math.max(side * (1 - view.scale), value));
  view.x = within(view.x, clientWidth);
  view.y = within(view.y, clientHeight);
  for (const stage of stages) {
    stage.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  }
  dom.box("zoom-value").textContent = `${Math.round(100 * view.scale)} %`;
}

/**
 * Enlarge the images about a point of a frame, by default its middle.
 * @param {number} factor
 * @param {number} [x]
 * @param {number} [y]
 */
export function zoom(factor, x = frames[0].clientWidth / 2, y = frames[0].clientHeight / 2) {
  const scale = Math.min(16, Math.max(1, view.scale * factor));
  view.x = x - (x - view.x) * (scale / view.scale);
  view.y = y - (y - view.y) * (scale / view.scale);
  view.scale = scale;
  drawZoom();
}

/**
 * Move an eighth of a frame: to the right shows more of what lies to the right.
 * @param {number} right
 * @param {number} down
 */
function look(right, down) {
  view.x -= (right * frames[0].clientWidth) / 8;
  view.y -= (down * frames[0].clientHeight) / 8;
  drawZoom();
}

/** Show the images as they came: all of them, in their own grey levels. */
export function reset() {
  Object.assign(view, { scale: 1, x: 0, y: 0 });
  windowWidth.value = "100";
  level.value = "50";
  dom.box("invert").setAttribute("aria-pressed", "false");
  drawZoom();
  drawGrey();
}

/* ---- blink ---- */
/** @param {boolean} on */
function showExpected(on) {
  dom.box("expected").hidden = !on;
  dom.box("original").hidden = on;
  dom.box("original-caption").textContent = on ? "Expected by the model (synthetic)" : "Original";
}

function stopBlinking() {
  clearInterval(blinking);
  dom.box("blink").setAttribute("aria-pressed", "false");
  showExpected(false);
}

function blink() {
  const button = dom.box("blink");
  if (button.getAttribute("aria-pressed") === "true") {
    stopBlinking();
    return;
  }
  button.setAttribute("aria-pressed", "true");
  // Who asked for less motion changes the image by hand; only then is each change told.
  dom.box("original-caption").ariaLive = calm.matches ? "polite" : "off";
  showExpected(true);
  if (!calm.matches) blinking = setInterval(() => showExpected(dom.box("expected").hidden), 600);
}

/* ---- pointer ---- */
/**
 * @param {HTMLElement} frame
 * @param {PointerEvent} event
 */
function drag(frame, event) {
  if (event.button !== 0) return;
  frame.setPointerCapture(event.pointerId);
  const start = {
    x: event.clientX,
    y: event.clientY,
    window: Number(windowWidth.value),
    level: Number(level.value),
    left: view.x,
    top: view.y,
  };
  /** @param {PointerEvent} to */
  const move = (to) => {
    const right = to.clientX - start.x;
    const down = to.clientY - start.y;
    if (event.shiftKey) {
      view.x = start.left + right;
      view.y = start.top + down;
      drawZoom();
      return;
    }
    // As at a workstation: to the right for more grey levels, up for a brighter image.
    windowWidth.value = String(start.window + (200 * right) / frame.clientWidth);
    level.value = String(start.level + (100 * down) / frame.clientHeight);
    drawGrey();
  };
  const stop = () => {
    frame.removeEventListener("pointermove", move);
    frame.removeEventListener("pointerup", stop);
    frame.removeEventListener("pointercancel", stop);
  };
  endDrag = stop;
  frame.addEventListener("pointermove", move);
  frame.addEventListener("pointerup", stop);
  frame.addEventListener("pointercancel", stop);
}

/**
 * @param {HTMLElement} frame
 * @param {WheelEvent} event
 */
function turn(frame, event) {
  // The browser's own zoom is its own, and who cannot zoom out any further scrolls the page.
  if (event.ctrlKey || (event.deltaY > 0 && view.scale === 1)) return;
  event.preventDefault();
  const { left, top } = frame.getBoundingClientRect();
  const x = event.clientX - left - frame.clientLeft;
  const y = event.clientY - top - frame.clientTop;
  zoom(Math.exp(-event.deltaY / 400), x, y);
}

for (const frame of frames) {
  frame.addEventListener("pointerdown", (event) => drag(frame, event));
  frame.addEventListener("dblclick", reset);
  frame.addEventListener("wheel", (event) => turn(frame, event), { passive: false });
}
for (const id of ["opacity", "contour", "spread-on", "anyway"])
  dom.box(id).addEventListener("input", drawEvidence);
for (const id of ["window", "level"]) dom.box(id).addEventListener("input", drawGrey);
dom.box("invert").addEventListener("click", () => {
  dom.box("invert").setAttribute("aria-pressed", String(!isInverted()));
  drawGrey();
});
dom.box("zoom-in").addEventListener("click", () => zoom(1.5));
dom.box("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
/** @type {[string, number, number][]} */
const directions = [
  ["left", -1, 0],
  ["up", 0, -1],
  ["down", 0, 1],
  ["right", 1, 0],
];
for (const [side, right, down] of directions) {
  for (const button of elements(`[data-look="${side}"]`)) {
    button.addEventListener("click", () => look(right, down));
  }
}
dom.box("reset").addEventListener("click", reset);
dom.box("blink").addEventListener("click", blink);
dom.box("under").addEventListener("error", showMissing);
addEventListener("resize", () => {
  const { clientWidth } = frames[0];
  if (pane && clientWidth) {
    view.x *= clientWidth / pane;
    view.y *= clientWidth / pane;
  }
  drawZoom();
});
setShape();
scans.onShow((row) => show(row.status === "not scored" ? null : row));
