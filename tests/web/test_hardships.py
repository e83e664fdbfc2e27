"""The page where the network, the address bar or a person does what nobody had in mind."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browsing import PHONE, browsing, needs_browser
from tests.support.run_folders import make_run
from tests.support.serving import Scripted, scripted_for_commands, serving

pytestmark = needs_browser


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    with scripted_for_commands(monkeypatch) as script:
        yield script


@pytest.mark.parametrize("place", ["#trajectories/%E0%A4%A", "#trajectories/%", "#evaluation/%zz"])
def test_an_address_that_was_cut_short_opens_its_tab(tmp_path: Path, place: str) -> None:
    with serving(tmp_path) as url, browsing() as seen:
        seen.page.goto(f"{url}/{place}")
        name = place[1:].split("/")[0]
        seen.page.locator(f"section.view.{name}").wait_for()
        assert [error for error in seen.errors if "status of 404" not in error] == []


def test_escape_does_not_lead_past_the_question_for_the_key(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script, api_key="secret") as url, browsing() as seen:
        page = seen.page
        page.goto(url)
        page.get_by_label("API key").wait_for()
        for _ in range(4):
            page.keyboard.press("Escape")
            page.wait_for_timeout(50)
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Open").click()
        page.locator("#where").filter(has_text=tmp_path.name).wait_for()
        assert page.locator("dialog").count() == 0


def test_a_job_is_followed_on_after_the_server_was_not_heard_for_a_while(
    tmp_path: Path, script: Scripted
) -> None:
    from playwright.sync_api import expect

    script.pause = lambda body: 0.4
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        seen.evaluate(url, 5)
        page.context.set_offline(True)
        page.get_by_text("The server does not answer").wait_for()
        page.wait_for_timeout(2_000)
        page.context.set_offline(False)
        script.pause = lambda body: 0.0
        badge = page.locator(".job .badge")
        expect(badge).not_to_have_text("Running", timeout=200_000)
        assert badge.inner_text() == "Done", page.locator(".job .lines").inner_text()
        page.locator("table").first.filter(has_text="amplified").wait_for()


def test_every_tab_opens_again_after_it_was_opened_while_the_server_was_away(
    tmp_path: Path, script: Scripted
) -> None:
    make_run(tmp_path)
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        page.goto(url, wait_until="networkidle")  # All files of the page are there.
        page.context.set_offline(True)
        page.locator("#tab-students").click()
        page.get_by_text("The server does not answer").wait_for()
        page.context.set_offline(False)
        page.locator("#tab-chat").click()
        page.locator("section.view.chat").wait_for()
        page.locator("#tab-students").click()
        page.locator(".student").first.wait_for()


def test_a_tab_that_cannot_be_loaded_says_what_to_do(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        page.route("**/page/students.js", lambda route: route.abort())
        page.goto(f"{url}/#students")
        page.get_by_text("reload the page once the server answers").wait_for()


FILL = """() => {
  for (let size = 2 ** 22; size >= 1024; size /= 2) {
    try {
      sessionStorage.setItem(`filler ${size}`, "x".repeat(size));
    } catch { /* Half of it may fit. */ }
  }
}"""
"""Leaves less than 2 kB of the megabytes that a browser keeps for a page."""


def test_a_talk_longer_than_a_browser_keeps_goes_on(tmp_path: Path, script: Scripted) -> None:
    script.says = lambda question: "word" * 5_000 if "long" in question else "short"
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        page.goto(url)
        page.evaluate(FILL)
        page.get_by_label("Model", exact=True).select_option("x")
        for number in range(4):
            page.get_by_label("Question").fill(f"long {number}")
            page.get_by_label("Question").press("Enter")
            page.locator(".bubble").nth(2 * number + 1).filter(has_text="word").wait_for()
            page.get_by_role("button", name="Ask", exact=True).wait_for()
        assert seen.errors == []
        assert page.locator(".bubble .bad").count() == 0
        assert "long 3" not in (page.evaluate("sessionStorage.getItem('reflux-chat')") or "")


def test_long_names_of_systems_and_eval_tasks_stay_within_a_phone(
    tmp_path: Path, script: Scripted
) -> None:
    figures = {"model": "m", "accuracy": 0.5, "ci95": [0.1, 0.9], "n": 3, "calls": 3, "tokens": 9}
    figures |= {"seconds": 1.0, "cost": None}
    said = {"eval_task": "W" * 400, "split": "held_out", "score": "task", "differences": []}
    folder = tmp_path / "evaluations" / "one"
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps(said | {"systems": {"V" * 200: figures}}))
    (folder / "eval.jsonl").write_text("")
    with serving(tmp_path, script) as url, browsing(PHONE) as seen:
        seen.page.goto(f"{url}/#evaluation")
        seen.page.locator(".failures").get_by_text("Every answer is correct").wait_for()
        wide = "(place) => place.scrollWidth - place.clientWidth"
        assert seen.page.locator("#view .scroll").evaluate(wide) == 0
