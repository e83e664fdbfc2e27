"""A browser on a page of Reflux, with every request that it makes on record."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
DESK, PHONE = (1280, 800), (390, 844)

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is found: apt-get install chromium"),
]
"""For `pytestmark` of a test file."""


@dataclass
class Seen:
    """A page, and what it asked for and complained of."""

    page: Any
    """Of Playwright."""
    requests: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])

    def evaluate(self, url: str, questions: int) -> None:
        """Start an evaluation, `first`, on its tab, and see it run."""
        self.page.goto(f"{url}/#evaluation")
        self.page.get_by_text("Start an evaluation").click()
        self.page.get_by_label("Name").fill("first")
        self.page.get_by_label("Questions").fill(str(questions))
        self.page.get_by_role("button", name="Evaluate").click()
        self.page.locator(".job .badge").filter(has_text="Running").wait_for()

    @property
    def hosts(self) -> set[str]:
        """Where its requests went."""
        return {urlsplit(url).netloc for url in self.requests}


@cache
def _launched() -> tuple[Any, Any]:
    """Playwright and the browser of the tests of a file."""
    from playwright.sync_api import sync_playwright

    play = sync_playwright().start()
    return play, play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def close_browser() -> None:
    """End the browser, if there is one: while it is open, no event loop can run beside its own."""
    if _launched.cache_info().currsize:
        play, browser = _launched()
        browser.close()
        play.stop()
        _launched.cache_clear()


@contextmanager
def browsing(size: tuple[int, int] = DESK, scheme: str = "light", **options: Any) -> Iterator[Seen]:
    """One empty page of a browser that knows nothing of earlier ones."""
    _, browser = _launched()
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, **options
    )
    context.set_default_timeout(60_000)  # Two workers may share two cores.
    seen = Seen(context.new_page())
    context.on("request", lambda request: seen.requests.append(request.url))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on(
        "console",
        lambda said: seen.errors.append(said.text) if said.type == "error" else None,
    )
    try:
        yield seen
    finally:
        context.close()
