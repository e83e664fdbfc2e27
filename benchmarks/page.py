"""Time until the web page is usable after a cold start, with 100,000 trajectories in the store.

Each start uses a new server process and a browser with an empty cache, which opens the page as soon
as the server listens. Times count from the start of the process to a chat that accepts a question,
and to the first trajectories of the list. The files are in the operating system's cache.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.many_trajectories import NEEDLE, fill
from benchmarks.report import Claim, Report, middle, spread
from reflux.graphs.traces.search import Wanted, facets, search

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WANTED = {
    "no filter": Wanted(),
    "a word of many": Wanted("copper"),
    "a word of the oldest alone": Wanted(NEEDLE),
    "a word of none": Wanted("nowhere at all"),
    "one status in fifty": Wanted(status="rejected"),
    "a status of none": Wanted(status="failed"),
    "two filters": Wanted(system="amplified", split="held_out"),
}
WIDEST = """
(count) => new Promise((resolve) => {
  const list = document.querySelector(".scroll-list");
  let last = performance.now(), widest = 0, frames = 0;
  const step = (now) => {
    widest = Math.max(widest, now - last);
    last = now;
    list.scrollTop += 400;
    if (++frames < count) requestAnimationFrame(step);
    else resolve([widest, document.querySelectorAll(".trow").length]);
  };
  requestAnimationFrame(step);
})
"""
"""Measures the widest gap between two frames, in ms, while scrolling 400 pixels in each."""


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    trajectories: int = 100_000
    starts: int = 7
    searches: int = 15
    frames: int = 300
    """While the list scrolls."""
    quick: bool = False


@contextmanager
def started(run: Path):
    """Run a server in a separate process; yield (address, start time of the process)."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "REFLUX_"))}
    begun = time.perf_counter()
    command = [sys.executable, "-m", "reflux", "serve", "--port", "0", "--json", "--run", str(run)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    said = ""
    try:
        while not said.endswith("}\n"):
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                raise RuntimeError("the server did not start; see its output above")
            said += line
        yield json.loads(said)["url"], begun
    finally:
        server.terminate()
        server.wait(timeout=30)


def starts(config: Config, run: Path, report: Report, launch: Callable[[], Any]) -> None:
    """Measure cold starts, each with an empty browser cache."""
    chat, listed, opened, gaps = [], [], [], []
    for _ in range(config.starts):
        browser = launch()
        with started(run) as (url, begun):
            said = time.perf_counter()
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.goto(url)
            page.locator("select option").first.wait_for(state="attached")
            chat.append(time.perf_counter() - begun)
            opened.append(time.perf_counter() - said)
        with started(run) as (url, begun):
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.goto(f"{url}/#trajectories")
            page.locator(".trow").first.wait_for()
            listed.append(time.perf_counter() - begun)
            page.wait_for_timeout(500)
            gap, rows = page.evaluate(WIDEST, config.frames)
            gaps.append(gap)
            figures = {"chat s": chat[-1], "list s": listed[-1], "widest gap ms": gap}
            report.rows.append({**figures, "rows scrolled": rows})
        browser.close()
    for name, samples, most in (
        ("seconds from the server's start to a chat that can be asked", chat, 2),
        ("seconds from the server's start to the first trajectories", listed, 2),
        ("seconds from opening the page to a chat that can be asked", opened, 2),
        ("widest gap between frames while scrolling (ms)", gaps, 100),
    ):
        report.claims.append(
            Claim(name, middle(samples), "<=", most, config.starts, spread(samples))
        )


def searches(config: Config, path: Path, report: Report) -> None:
    """Measure one page of the list for each filter, and a search for a rare word."""
    slowest: list[float] = []
    for name, wanted in WANTED.items():
        pages, whole = [], []
        for _ in range(config.searches):
            took, before, found = [], None, 0
            while True:
                begun = time.perf_counter()
                rows, before = search(path, wanted, before)
                took.append(1e3 * (time.perf_counter() - begun))
                found += len(rows)
                if before is None or found >= 40:
                    break
            pages.append(max(took))
            whole.append(sum(took))
        slowest.append(middle(pages))
        figures = {"filter": name, "slowest page ms": middle(pages)}
        report.rows.append(figures | {"to 40 rows ms": middle(whole), "spread": spread(whole)})
    most = Claim("slowest page of any filter (ms)", max(slowest), "<=", 200, config.searches)
    report.claims.append(most)


def main(config: Config) -> None:
    """Run all measurements."""
    report = Report("page", seed=0, quick=config.quick)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "many"
        fill(run / "traces.db", config.trajectories)
        size = (run / "traces.db").stat().st_size / 1e6
        counted = facets(run / "traces.db")["count"]
        report.rows.append({"trajectories": counted, "MB": size})
        searches(config, run / "traces.db", report)
        if CHROMIUM is None:
            if not config.quick:
                raise RuntimeError("Chromium is not installed: apt-get install chromium")
            report.finish()
            return
        from playwright.sync_api import sync_playwright

        with sync_playwright() as play:
            starts(
                config,
                run,
                report,
                lambda: play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]),
            )
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    main(Config(300, 1, 2, 20, quick=True) if quick else Config())
