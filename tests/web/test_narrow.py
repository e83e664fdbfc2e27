"""The page on a phone with names and lines as long as they can be."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.browsing import PHONE, browsing, needs_browser
from tests.support.serving import serving

pytestmark = needs_browser
JOB = {
    "name": "n" * 64,
    "command": "reflux",
    "state": "failed",
    "code": 1,
    "seconds": 11.0,
    "lines": ["evaluate direct: 3/3", "reflux: 3 of 3 questions failed: " + "w" * 300],
    "line_count": 2,
}
SIDEWAYS = "element => element.scrollWidth - element.clientWidth"


@pytest.mark.parametrize(
    ("tab", "kind"), [("evaluation", "evaluation"), ("students", "distillation")]
)
def test_the_last_words_of_a_job_are_read_without_scrolling_sideways(
    tmp_path: Path, tab: str, kind: str
) -> None:
    def told(route: Any) -> None:
        body = json.dumps({"job": JOB | {"kind": kind}})
        route.fulfill(body=body, content_type="application/json")

    with serving(tmp_path) as url, browsing(PHONE) as seen:
        seen.page.route("**/api/job?*", told)
        seen.page.goto(f"{url}/#{tab}")
        lines = seen.page.locator(".job .lines")
        lines.filter(has_text="3 of 3 questions failed").wait_for()
        assert lines.evaluate(SIDEWAYS) == 0
        assert seen.page.locator(".view .scroll").evaluate(SIDEWAYS) == 0
        assert seen.errors == []
