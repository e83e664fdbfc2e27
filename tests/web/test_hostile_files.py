"""A trajectory file of others with script in every place is shown as text, and runs nowhere."""

import json
from pathlib import Path

import pytest

from reflux.graphs.traces.importing.importer import import_files
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
from reflux.report.tree_page import tree_page
from tests.support.browsing import browsing, needs_browser
from tests.support.serving import Scripted, serving

pytestmark = needs_browser

RUNS = "document.title = 'pwned'"
EVIL = (
    f'<script>{RUNS}</script><img src=x onerror="{RUNS}"><svg onload="{RUNS}">'
    f'</textarea></title></style><a href="javascript:{RUNS}">see</a>{{{{ 7*7 }}}}'
)


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, str]:
    """(a run folder with the trajectory that a file of script became, its id)."""
    call = {"id": EVIL, "type": "function", "function": {"name": EVIL, "arguments": EVIL}}
    messages = [
        {"role": "system", "content": EVIL},
        {"role": "user", "content": f"question {EVIL}"},
        {"role": "assistant", "content": EVIL, "tool_calls": [call]},
        {"role": "tool", "content": EVIL, "tool_call_id": EVIL},
        {"role": "assistant", "content": f"answer {EVIL}"},
    ]
    tool = {"type": "function", "function": {"name": EVIL, "description": EVIL, "parameters": {}}}
    file = tmp_path / "evil.jsonl"
    file.write_text(json.dumps({"messages": messages, "tools": [tool], "metadata": {EVIL: EVIL}}))
    store = TraceStore(tmp_path / "traces.db")
    try:
        import_files([file], store, TrajectoryWriter(store))
        (row,) = store.select("SELECT id FROM questions")
        (tmp_path / "page.html").write_text(tree_page(store, row["id"]))
        return tmp_path, row["id"]
    finally:
        store.close()


def test_the_page_of_a_hostile_trajectory_runs_nothing(hostile: tuple[Path, str]) -> None:
    folder, _ = hostile
    with browsing() as seen:
        seen.page.goto((folder / "page.html").as_uri())
        assert "answer <script>" in seen.page.inner_text("body")
        assert seen.page.title() != "pwned"
        assert {url for url in seen.requests if not url.startswith("file:")} == set()


def test_the_server_shows_a_hostile_trajectory_as_text(
    hostile: tuple[Path, str], script: Scripted
) -> None:
    folder, id = hostile
    with serving(folder, script) as url, browsing() as seen:
        page = seen.page
        page.goto(f"{url}/#trajectories/{id}")
        page.locator(".tree .node").first.click()
        page.locator("#drawer").get_by_text("answer <script>").first.wait_for()
        page.goto(f"{url}/#trajectories")
        page.get_by_text("question <script>").first.wait_for()
        assert page.title() != "pwned"
        assert (seen.errors, seen.hosts) == ([], {url.removeprefix("http://")})
