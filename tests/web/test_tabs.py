"""Every tab in a real browser: in light at a desk, in dark on a phone; and from the keyboard.

The pictures lie in the test's temporary folder; with REFLUX_PICTURES set to a folder, there, too.
`docs/page-desk.png` is `desk-light-node.png`, `docs/page-phone.png` is `phone-dark-tree.png`.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, Exchange, Step
from tests.support.browsing import DESK, PHONE, Seen, browsing, needs_browser
from tests.support.run_folders import make_run
from tests.support.serving import Scripted, serving

pytestmark = needs_browser

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi"}
QUESTION = f"Capitals of: {', '.join(CAPITALS)}"
SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"
TABS = {
    "trajectories": ".trow",
    "runs": ".chart",
    "evaluation": ".job",
    "review": "[data-why]",
    "students": ".student .chart",
}
"""What each shows once it is there."""


def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Asks for each country's capital."""
    if transcript:
        return Answer(" ".join(str(said.answer) for said in transcript))
    *_, names = question.rsplit("Capitals of: ", 1)
    if not may_ask or names == question:
        return PASS
    return Ask.of(*(f"What is the capital of {name}?" for name in names.split(", ")))


def says(question: str) -> str:
    *_, country = question.rstrip("?").rsplit(" ", 1)
    return f"The capital of {country} is {CAPITALS[country]}."


def picture(seen: Seen, folder: Path, name: str) -> None:
    path = folder / f"{name}.png"
    seen.page.screenshot(path=path)
    if kept := os.environ.get("REFLUX_PICTURES"):
        shutil.copy(path, kept)


@pytest.mark.parametrize(
    ("place", "size", "scheme"), [("desk", DESK, "light"), ("phone", PHONE, "dark")]
)
def test_every_tab_fits_the_screen_and_asks_nobody_but_the_server(
    tmp_path: Path, script: Scripted, place: str, size: tuple[int, int], scheme: str
) -> None:
    make_run(tmp_path / "demo")
    script.says = says
    overseers: Mapping[str, Overseer] = {"splits": ScriptedOverseer("capitals", act)}
    with (
        serving(tmp_path / "demo", script, overseers) as url,
        browsing(size, scheme) as seen,
    ):
        page = seen.page
        page.goto(url)
        page.get_by_label("Question", exact=True).fill(QUESTION)
        page.keyboard.press("Enter")
        page.locator(".bubble:not(.mine)").filter(has_text="Nairobi").wait_for(state="attached")
        page.locator(".composer [aria-label=Ask]").wait_for(state="attached")
        page.locator(".tree .dot.unchecked").nth(4).wait_for(state="attached")
        page.wait_for_timeout(400)
        picture(seen, tmp_path, f"{place}-{scheme}-chat")
        assert page.evaluate(SIDEWAYS) <= 0
        if place == "phone":
            page.get_by_role("button", name="Tree", exact=True).click()
            page.wait_for_timeout(600)
            picture(seen, tmp_path, f"{place}-{scheme}-tree")
            assert page.evaluate(SIDEWAYS) <= 0
        page.locator(".tree .node").nth(1).click()
        page.locator("#drawer").get_by_text("node 0.0.0").wait_for()
        picture(seen, tmp_path, f"{place}-{scheme}-node")
        assert page.evaluate(SIDEWAYS) <= 0
        for tab, there in TABS.items():
            page.locator(f"#tab-{tab}").click()
            page.locator(there).first.wait_for()
            page.wait_for_timeout(200)
            picture(seen, tmp_path, f"{place}-{scheme}-{tab}")
            assert page.evaluate(SIDEWAYS) <= 0, tab
            assert page.locator(f"#tab-{tab}").get_attribute("aria-selected") == "true"
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(22, 20, 18)") is (scheme == "dark")
    assert seen.errors == []
    assert seen.hosts == {url.removeprefix("http://")}


def test_an_address_that_was_cut_short_and_a_damaged_evaluation_are_told(
    tmp_path: Path, script: Scripted
) -> None:
    for name, text in (("cut", '{"systems": {'), ("other", "[]")):
        (tmp_path / "evaluations" / name).mkdir(parents=True)
        (tmp_path / "evaluations" / name / "eval.json").write_text(text)
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(f"{url}/#trajectories/%E0%A4%A")
        seen.page.locator(".toast.bad").filter(has_text="no trajectory begins with").wait_for()
        seen.page.goto(f"{url}/#evaluation/cut")
        seen.page.locator(".bad").filter(has_text="cut/eval.json cannot be read").wait_for()
        seen.page.locator("select[aria-label=Evaluation]").select_option("other")
        seen.page.locator(".bad").filter(has_text="it is not an evaluation").wait_for()
    assert [error for error in seen.errors if "404" not in error] == []


def test_the_colours_are_changed_by_a_button_and_stay_changed(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        theme = "document.documentElement.dataset.theme"
        seen.page.goto(url)
        assert seen.page.evaluate(theme) == "light"
        seen.page.get_by_role("button", name="Dark colors").click()
        seen.page.reload()
        assert seen.page.evaluate(theme) == "dark"


def test_a_student_is_promoted_and_rolled_back_on_the_page(
    tmp_path: Path, script: Scripted
) -> None:
    folder = make_run(tmp_path, ("student-r0", "student-r1"))
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        page.goto(f"{url}/#students")
        card = page.locator("[data-student=student-r0]")
        card.get_by_role("button", name="Promote").click()
        page.locator("dialog").get_by_role("button", name="Promote").click()
        card.get_by_text("the agent", exact=True).wait_for()
        promoted = folder.registry.current()
        assert promoted is not None and promoted.id == "student-r0"
        page.get_by_role("button", name="Roll back").click()
        page.locator("dialog").get_by_role("button", name="Cancel").click()
        assert card.get_by_text("the agent", exact=True).is_visible()
        page.get_by_role("button", name="Roll back").click()
        page.locator("dialog").get_by_role("button", name="Roll back").click()
        page.locator("[data-student=student-r1]").get_by_text("the agent", exact=True).wait_for()
        promoted = folder.registry.current()
        assert promoted is not None and promoted.id == "student-r1"
    assert seen.errors == []


def test_trajectories_are_searched_filtered_and_opened(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        for words in ("copper and tin", "lantern", "orchard and copper"):
            body = {"model": "amplified", "messages": [{"role": "user", "content": words}]}
            httpx2.post(f"{url}/v1/chat/completions", json=body)
        with browsing() as seen:
            page = seen.page
            page.goto(f"{url}/#trajectories")
            page.get_by_text("3 trajectories", exact=True).wait_for()
            page.get_by_label("Search questions").fill("COPPER")
            page.get_by_text("2 found of 3").wait_for()
            assert page.locator(".trow").count() == 2
            page.get_by_label("Status").select_option("rejected")
            page.get_by_text("No matches.").wait_for()
            page.get_by_role("button", name="Clear filters").click()
            page.locator(".trow").nth(2).wait_for()
            assert page.get_by_label("Status").input_value() == ""
            page.get_by_label("Search questions").fill("COPPER")
            page.get_by_label("Status").select_option("unchecked")
            page.get_by_text("2 found of 3").wait_for()
            page.keyboard.press("Tab")
            page.locator(".trow").first.focus()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Enter")
            page.locator(".tree .node").filter(has_text="TIN").first.wait_for()
            page.reload()
            page.locator(".tree .node").filter(has_text="TIN").first.wait_for()
        assert seen.errors == []


def level_row(system: str, level: int, accuracy: float, round: int = 0) -> dict[str, Any]:
    interval = [max(0, accuracy - 0.1), min(1, accuracy + 0.1)]
    row = {"system": system, "level": level, "accuracy": accuracy, "n": 100, "ci95": interval}
    return row | {"round": round}


def test_the_chart_of_a_run_has_a_labelled_line_for_each_system_and_a_table(
    tmp_path: Path, script: Scripted
) -> None:
    folder = make_run(tmp_path)
    report = json.loads(folder.report_path.read_text())
    report["by_level"] = [
        *(level_row("base", level, 0.1) for level in (1, 2, 3)),
        *(level_row("student", level, (0.9, 0.4, 0.2)[level - 1], 0) for level in (1, 2, 3)),
        *(level_row("student", level, (0.9, 0.8, 0.5)[level - 1], 1) for level in (1, 2, 3)),
        *(level_row("amplified", level, 0.3, 0) for level in (1, 2, 3)),
        *(level_row("amplified", level, 0.9, 1) for level in (1, 2, 3)),
    ]
    folder.report_path.write_text(json.dumps(report))
    systems = ["base", "student r0", "student r1", "amplified"]
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(f"{url}/#runs")
        chart = seen.page.locator(".chart")
        chart.wait_for()
        assert sorted(chart.locator(".label").all_text_contents()) == sorted(systems)
        assert chart.locator(".series").count() == 4
        assert chart.locator(".point title").count() == 12
        heights = sorted(label["y"] for label in boxes(chart.locator(".label")))
        assert all(low + 14 <= high for low, high in pairwise(heights))
        rows = seen.page.locator("table").first.locator("tbody tr")
        assert [row.split("\t")[0] for row in rows.all_inner_texts()] == systems
        assert "0.900" in rows.nth(3).inner_text()  # Of the last round, not the first.
        picture(seen, tmp_path, "chart")
        assert seen.errors == []


def test_a_run_without_true_answers_shows_what_was_measured_and_no_accuracy(
    tmp_path: Path, script: Scripted
) -> None:
    folder = make_run(tmp_path)
    report = json.loads(folder.report_path.read_text())
    share = {"share": 0.75, "n": 8, "ci95": [0.41, 0.93]}
    for each in report["rounds"]:
        each |= {"level": 1, "agreement": share}
        for system in ("direct", "amplified", "student"):
            each[system] = {"accuracy": None, "ci95": None, "n": 8, "calls": 8, "tokens": 80}
            each[system]["passed"] = share
    folder.report_path.write_text(json.dumps(report | {"by_level": []}))
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(f"{url}/#runs")
        table = seen.page.locator("table").first
        table.wait_for()
        assert "student = amplified" in table.inner_text()
        assert "0.750 0.41 – 0.93 pass the check" in table.inner_text()
        assert seen.page.locator(".chart").count() == 0
        assert seen.errors == []


def boxes(locator: Any) -> list[dict[str, float]]:
    return [each.bounding_box() for each in locator.all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_have_enough_contrast_in_both_themes(
    tmp_path: Path, script: Scripted, scheme: str
) -> None:
    with serving(tmp_path, script) as url, browsing(scheme=scheme) as seen:
        seen.page.goto(url)
        colors = seen.page.evaluate(
            "() => Object.fromEntries([...document.styleSheets[0].cssRules[0].style]"
            ".filter((name) => name.startsWith('--')).map((name) => [name.slice(2),"
            " getComputedStyle(document.documentElement).getPropertyValue(name).trim()]))"
        )
        for ground in ("ground", "surface", "sunk"):
            for text in ("text", "dim", "accent"):
                assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
            assert contrast(colors["edge"], colors[ground]) >= 3, ground
        for name in ("ok", "bad", "warn", "base", "amplified", "student", *STUDENTS):
            assert contrast(colors[name], colors["surface"]) >= 4.5, name
        assert contrast(colors["on-accent"], colors["accent"]) >= 4.5


STUDENTS = [f"student-{number}" for number in range(1, 5)]


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colors (WCAG 2.2)."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
