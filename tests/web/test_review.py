"""Editing a node and judging the queue, on the page and by its API."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx2

from reflux.agents.overseers.protocol import Overseer
from reflux.cli.runs.distill_rows import rows_for
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.reviewers.agreement import review_report
from reflux.graphs.traces.reviewers.opinions import require
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from tests.support.browsing import browsing, needs_browser
from tests.support.serving import H, Scripted, serving, soon

pytestmark = needs_browser


def asked(url: str, question: str, model: str = "amplified") -> str:
    """The trajectory of a question that was answered."""
    body = {"model": model, "messages": [{"role": "user", "content": question}]}
    got = httpx2.post(f"{url}/v1/chat/completions", json=body)
    return got.headers["x-reflux-trajectory"]


def word(url: str, trajectory: str, **said: Any) -> dict[str, Any]:
    got = httpx2.post(f"{url}/api/trajectories/{trajectory}/judgements", json=said)
    assert got.status_code == 200, got.text
    return got.json()


def tree_of(url: str, trajectory: str) -> dict[str, Any]:
    return httpx2.get(f"{url}/api/trajectories/{trajectory}").json()["tree"]


def test_an_edited_node_changes_what_depends_on_it_and_asks_nothing_else_again(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        page.goto(url)
        page.get_by_label("Question", exact=True).fill("alpha and beta and gamma")
        page.keyboard.press("Enter")
        page.locator(".bubble:not(.mine)").filter(has_text="ALPHA+BETA+GAMMA").wait_for()
        page.get_by_role("button", name="Ask", exact=True).wait_for()
        before = len(script.asked)
        page.locator(".tree .node").nth(2).click()
        page.locator("#drawer").get_by_role("button", name="Edit").click()
        page.get_by_label("Right answer").fill("better")
        page.get_by_role("button", name="Save").click()
        page.locator(".bubble:not(.mine)").filter(has_text="ALPHA+better+GAMMA").wait_for()
        page.locator(".tree .node").filter(has_text="better").first.wait_for()
        assert len(script.asked) == before
        assert seen.errors == []
        assert seen.hosts == {url.removeprefix("http://")}
    store = TraceStore(tmp_path / "traces.db")
    try:
        (made,) = [
            row["id"] for row in store.select("SELECT id FROM questions WHERE id LIKE '%~1'")
        ]
        assert load_tree(store, made).answer == "ALPHA+better+GAMMA"
        assert load_tree(store, made.partition("~")[0]).answer == "ALPHA+BETA+GAMMA"
    finally:
        store.close()


def test_the_tree_of_an_edit_grows_while_it_recomputes(tmp_path: Path, script: Scripted) -> None:
    from playwright.sync_api import expect

    with serving(tmp_path, script) as url, browsing() as seen:
        trajectory = asked(url, "alpha and beta and gamma")
        held = Event()
        script.pause = lambda body: 0.0 * held.wait(60)
        page = seen.page
        page.goto(f"{url}/#trajectories/{trajectory}")
        page.locator(".tree .node").nth(2).click()
        page.locator("#drawer").get_by_role("button", name="Ask again").click()
        nodes = page.locator(".tree .node")
        expect(page.locator(".tree .dot.running")).to_have_count(2)
        nodes.filter(has_text="ALPHA").last.wait_for()
        nodes.filter(has_text="GAMMA").last.wait_for()
        held.set()
        nodes.filter(has_text="ALPHA+BETA+GAMMA").wait_for()
        page.locator(".toast").filter(has_text="recomputed").last.wait_for()
        assert page.locator(".tree .dot.unchecked").count() == nodes.count() == 4
        assert seen.errors == []


def test_a_node_asked_again_goes_to_the_model_with_another_seed(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        trajectory = asked(url, "alpha and beta")
        before = len(script.asked)
        done = word(url, trajectory, path="/0.0.1", action="again")
        assert (done["did"], done["recomputing"]) == ("asked again", True)
        soon(lambda: tree_of(url, done["trajectory"])["status"] == "unchecked")
        assert [body["messages"][-1]["content"] for body in script.asked[before:]] == ["beta"]
        events = httpx2.get(f"{url}/api/trajectories/{done['trajectory']}/events").text
        assert "event: answered" in events and events.endswith("event: end\ndata: {}\n\n")


def test_what_is_answered_by_a_model_alone_can_be_edited_at_its_root_only(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        trajectory = asked(url, "alpha", "x")
        done = word(url, trajectory, action="edit", answer="omega", comment="by hand")
        assert done == {"did": "edited", "trajectory": f"{trajectory}~1", "recomputing": False}
        assert tree_of(url, done["trajectory"])["answer"] == "omega"
        for said, status in (
            ({"action": "edit", "answer": " "}, 400),
            ({"action": "edit", "answer": "a", "path": "/9.9.9"}, 400),
            ({"action": "again"}, 400),
            ({"action": "comment"}, 400),
            ({"action": "dance"}, 400),
        ):
            got = httpx2.post(f"{url}/api/trajectories/{trajectory}/judgements", json=said)
            assert got.status_code == status, got.text
        listed = httpx2.get(f"{url}/api/trajectories").json()["trajectories"]
        assert [row["id"] for row in listed] == [f"{trajectory}~1", trajectory]


def apart(work: Coroutine[Any, Any, None]) -> None:
    """Do work of an event loop elsewhere: the browser's runs in this thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def disputed(url: str, folder: Path) -> str:
    """A trajectory whose copies did not agree, put on record as an evaluation would."""
    trajectory = asked(url, "alpha and beta")

    async def say() -> None:
        store = TraceStore(folder / "traces.db")
        detail = {"question": "beta", "answer": "BETA", "status": "ok", "error": None}
        detail |= {"votes": 3, "refused": 0, "tally": [["BETA", 2], ["GAMMA", 1]]}
        await store.add_judgement(trajectory, "/0.0.1", "direct", True, detail, key="0.1")
        store.close()

    apart(say())
    return trajectory


def test_an_item_of_the_queue_is_approved_and_leaves_it(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        trajectory = disputed(url, tmp_path)
        with browsing() as seen:
            seen.page.goto(f"{url}/#review")
            item = seen.page.locator(".item").filter(has_text="beta")
            item.get_by_text("votes are split, 67% for the first").wait_for()
            item.get_by_label("Comment", exact=True).fill("seen it")
            item.get_by_role("button", name="Approve").click()
            item.wait_for(state="detached")
            assert seen.errors == []
        left = httpx2.get(f"{url}/api/review", params={"why": "disputed"}).json()
        assert left["items"] == []
        node = tree_of(url, trajectory)["children"][1]
        assert node["verdict"] == "approved" and node["comments"] == ["seen it"]


def test_where_two_review_the_page_asks_for_a_name_and_the_item_stays_for_the_other(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        trajectory = disputed(url, tmp_path)
        store = TraceStore(tmp_path / "traces.db")
        apart(require(store, 2))
        with browsing() as seen:
            page = seen.page
            page.goto(f"{url}/#review")
            for name in ("ana", "ben"):
                page.get_by_label("Your name").fill(name)
                page.get_by_role("button", name="Review as").click()
                item = page.locator(".item").filter(has_text="beta")
                item.get_by_role("button", name="Approve").click()
                item.wait_for(state="detached")
            assert seen.errors == []
        assert tree_of(url, trajectory)["children"][1]["verdict"] == "approved"
        rows = review_report(store)["burden"]
        assert [(row["reviewer"], row["decisions"], row["timed"]) for row in rows] == [
            ("human:ana", 1, 1), ("human:ben", 1, 1)
        ]  # fmt: skip
        store.close()


def test_approve_is_not_the_main_button_of_a_refused_answer(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        trajectory = asked(url, "alpha and beta")
        tree = tree_of(url, trajectory) | {"status": "rejected"}
        body = {"trajectory": trajectory, "usage": {}, "tree": tree}
        page = seen.page
        page.route(f"**/api/trajectories/{trajectory}", lambda route: route.fulfill(json=body))
        page.goto(f"{url}/#trajectories/{trajectory}")
        page.locator(".tree .node").first.click()
        drawer = page.locator("#drawer")
        drawer.get_by_text("rejected", exact=True).wait_for()
        drawer.get_by_role("button", name="Approve").wait_for()
        assert drawer.locator(".actions .row .primary").first.inner_text() == "Edit"
        page.locator(".tree .node").nth(1).click()
        drawer.get_by_text("node 0.0.0").wait_for()
        assert drawer.locator(".actions .row .primary").first.inner_text() == "Approve"
        assert seen.errors == []


def test_what_waits_for_a_person_is_answered_in_the_queue_and_goes_on(
    tmp_path: Path, script: Scripted
) -> None:
    overseers: dict[str, Overseer] = {**H}
    with (
        serving(tmp_path, script, overseers, overseer="human") as url,
        browsing() as seen,
    ):
        page = seen.page
        page.goto(url)
        page.get_by_label("Question", exact=True).fill("what is right")
        page.keyboard.press("Enter")
        soon(lambda: httpx2.get(f"{url}/api/pending").json()["pending"])
        with page.context.expect_page() as opened:
            page.evaluate("open('/#review')")
        queue = opened.value
        item = queue.locator(".item").filter(has_text="what is right")
        item.get_by_role("button", name="Answer").click()
        item.get_by_label("Right answer").fill("this is")
        item.get_by_role("button", name="Save").click()
        item.wait_for(state="detached")
        page.locator(".bubble:not(.mine)").filter(has_text="this is").wait_for()
        assert seen.errors == []


def test_an_edit_of_the_page_becomes_a_row_of_the_next_distillation(
    tmp_path: Path, script: Scripted
) -> None:
    folder = RunFolder(tmp_path)
    folder.save_config({"task": "addition", "rounds": [{"level": 1}]})
    with serving(tmp_path, script) as url:
        trajectory = asked(url, "alpha and beta")
        done = word(url, trajectory, path="/0.0.0", action="edit", answer="omega")
        soon(lambda: tree_of(url, done["trajectory"])["status"] == "unchecked")
    rows, _ = rows_for(folder, None)
    learned = {row["prompt"][-1]["content"]: row["completion"][0]["content"] for row in rows}
    assert len(rows) == 2
    assert learned == {"alpha and beta": "omega+BETA", "alpha": "omega"}
