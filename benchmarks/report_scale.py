"""Measure the report of a large run in a browser: size, load times, key presses, memory.

    python benchmarks/report_scale.py --rows 10000 --images 500

Writes a report of synthetic scans, two per study, to a temporary folder, opens it from disk in
Chromium and prints medians: seconds from the request to the first row, to the first drawn image and
to the end of loading, milliseconds from a key press to the next frame, and the script's heap. The
images are noise, which does not compress.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from anomaly.reporting.html.page import ReportCase, ReportData, SkippedCase, write_report
from anomaly.types import JudgedScan, Region, ScanScore

FEATURES, CALIBRATION, ALPHA, SIDE = 20, 1999, 0.05, 512

PRESS = """async (key) => {
  const times = [];
  for (let i = 0; i < 100; i += 1) {
    const began = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - began);
  }
  return times;
}"""

DRAWN = """new Promise((done) => {
  const look = () => (original.naturalWidth ? done() : requestAnimationFrame(look));
  look();
})"""

TYPE = """() => {
  const began = performance.now();
  search.value = "ab";
  search.dispatchEvent(new Event("input"));
  return performance.now() - began;
}"""


def cases(rows: int, images: int, rng: np.random.Generator) -> Iterator[ReportCase]:
    film = rng.random((SIDE, SIDE), dtype=np.float32)
    evidence = np.zeros_like(film)
    evidence[100:140, 100:160] = 8.0
    region = Region(120.0, 130.0, 2400, 96.0, 8.0)
    for i in range(rows):
        p_value = max(1, round((i + 1) / rows * (CALIBRATION + 1))) / (CALIBRATION + 1)
        features = {f"feature {n}": float(v) for n, v in enumerate(rng.normal(size=FEATURES))}
        scan = ScanScore(rng.bytes(8).hex(), float(rows - i), features, evidence)
        verdict = JudgedScan(scan, p_value, ALPHA, 2.0, p_value <= ALPHA, (region,))
        site, study = f"site {i % 8}", f"{i // 2:016x}"
        shown = film if i < images else None
        yield ReportCase(verdict, shown, view="PA", site=site, study=study)


def report(rows: int, images: int) -> ReportData:
    rng = np.random.default_rng(0)
    return ReportData(
        title=f"{rows} scans",
        cases=cases(rows, images, rng),
        skipped=[SkippedCase(rng.bytes(8).hex(), "truncated") for _ in range(rows // 100)],
        calibration_scores=np.sort(rng.normal(size=CALIBRATION)),
        alpha=ALPHA,
        threshold=2.0,
        evidence_threshold=3.0,
        evidence_ceiling=12.0,
        provenance={},
        feature_ranges={f"feature {n}": (-1.645, 1.645) for n in range(FEATURES)},
    )


def measure(page: Path, repeats: int) -> dict[str, Any]:
    chromium = os.environ.get("ANOMALY_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        browser.new_page().goto("about:blank")  # excludes the browser's start
        found = []
        for _ in range(repeats):
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            began = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector("tr[data-index]")
            first = time.perf_counter() - began
            tab.evaluate(DRAWN)
            image = time.perf_counter() - began
            tab.wait_for_load_state("load")
            loaded = time.perf_counter() - began
            session = tab.context.new_cdp_session(tab)
            session.send("HeapProfiler.collectGarbage")
            heap = session.send("Runtime.getHeapUsage")["usedSize"]
            keys = tab.evaluate(PRESS, "j")
            began = time.perf_counter()
            tab.locator("thead button", has_text="Score").click()
            sorting = time.perf_counter() - began
            elements = tab.evaluate("document.querySelectorAll('*').length")
            search = tab.evaluate(TYPE)
            found.append(
                (
                    *(first, image, loaded, np.median(keys), np.quantile(keys, 0.95)),
                    *(sorting, search, heap, elements),
                )
            )
            tab.close()
        browser.close()
    first, image, loaded, key, slow_key, sorting, search, heap, elements = np.median(found, axis=0)
    return {
        "first_row_s": round(first, 2),
        "first_image_s": round(image, 2),
        "loaded_s": round(loaded, 2),
        "key_ms": round(key, 1),
        "key_ms_95": round(slow_key, 1),
        "sort_click_ms": round(1000 * sorting),
        "search_ms": round(search, 1),
        "heap_mb": round(heap / 1e6, 1),
        "elements": int(elements),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=500, help="At least 1: the first is timed.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--single-file", action="store_true")
    options = parser.parse_args()
    if options.images < 1:
        parser.error(f"--images is {options.images}: expected at least 1, whose drawing is timed")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "index.html"
        began = time.perf_counter()
        write_report(report(options.rows, options.images), page, single_file=options.single_file)
        writing = time.perf_counter() - began
        facts = {
            "rows": options.rows,
            "images": options.images,
            "single_file": options.single_file,
            "write_s": round(writing, 1),
            "page_mb": round(page.stat().st_size / 1e6, 2),
            "pictures_mb": round(
                sum(path.stat().st_size for path in page.parent.rglob("*.png")) / 1e6, 1
            ),
            **measure(page, options.repeats),
        }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
