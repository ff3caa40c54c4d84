"""Take screenshots of a report for the documentation: worklist, flagged and unflagged scan.

    python benchmarks/report_pictures.py --page RUN/report/index.html --name NAME --out docs/images

Writes ``report-NAME-worklist.png``, the page as it opens on the most unusual scan, and
``report-NAME-flagged.png`` and ``-unflagged.png``: one scan of each kind, chosen by seed among the
scans whose image the page shows, not by appearance. Needs Playwright and Chromium
(``$ANOMALY_CHROMIUM``, or on the path).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

WINDOW = {"width": 1440, "height": 900}
ROWS = "JSON.parse(document.getElementById('data').textContent).rows"


def drawn(page: Page, status: str, seed: int) -> str:
    """Key of a scan with this status and an image, chosen by seed."""
    keys: list[str] = page.evaluate(
        f"status => {ROWS}.filter(r => r.status === status && r.figure).map(r => r.key)", status
    )
    if not keys:
        raise SystemExit(f"the page shows no image of a scan that is {status}: name another report")
    return str(np.random.default_rng(seed).choice(sorted(keys)))


def main() -> None:
    """Open the page, choose the scans by seed and take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    browser_path = os.environ.get("ANOMALY_CHROMIUM") or shutil.which("chromium")
    address = options.page.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.goto(address)
        chosen = {
            "worklist": "",
            "flagged": drawn(page, "flagged", options.seed),
            "unflagged": drawn(page, "normal", options.seed),
        }
        for what, key in chosen.items():
            page.goto("about:blank")
            page.goto(f"{address}#{key}" if key else address)
            page.wait_for_load_state("networkidle")
            file = options.out / f"report-{options.name}-{what}.png"
            page.screenshot(path=file, full_page=what != "worklist")
            print(file, key or "as it opens")
        browser.close()


if __name__ == "__main__":
    main()
