"""The page's chat in a real browser: asking, the tree that grows, its nodes, the keyboard."""

from pathlib import Path
from threading import Event
from typing import Any

import httpx2

from tests.support.browsing import PHONE, Seen, browsing, needs_browser
from tests.support.serving import Scripted, X, serving, soon

pytestmark = needs_browser

THREE = "alpha and beta and gamma"


def ask(seen: Seen, question: str) -> None:
    box = seen.page.get_by_label("Question", exact=True)
    box.fill(question)
    box.press("Enter")


def answered(seen: Seen, answer: str) -> Any:
    seen.page.locator(".bubble:not(.mine)").filter(has_text=answer).wait_for()
    seen.page.locator(".tree .dot.unchecked").first.wait_for()
    return seen.page.locator(".tree .node")


def test_a_question_is_asked_and_its_tree_grows_before_the_answer_is_there(
    tmp_path: Path, script: Scripted
) -> None:
    script.pause = lambda body: 3.0 if "beta" in body["messages"][-1]["content"] else 0.0
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(url)
        ask(seen, THREE)
        seen.page.locator(".tree .answer").filter(has_text="ALPHA").first.wait_for()
        assert seen.page.locator(".tree .dot.running").count() >= 2
        assert seen.page.locator(".bubble:not(.mine) .text").inner_text() == ""
        nodes = answered(seen, "ALPHA+BETA+GAMMA")
        seen.page.get_by_text("4 nodes · 3 calls").wait_for()
        assert nodes.count() == 4
    assert seen.errors == []
    assert seen.hosts == {url.removeprefix("http://")}


def test_the_page_says_what_the_small_default_model_can_do(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(url)
        seen.page.get_by_label("Model").select_option("base")
        seen.page.get_by_text("135 million parameters").wait_for()
        seen.page.get_by_label("Model").select_option("amplified")
        seen.page.get_by_text("135 million parameters").wait_for(state="detached")
    assert seen.errors == []


def test_on_a_phone_the_tree_is_seen_while_it_grows_and_then_the_answer(
    tmp_path: Path, script: Scripted
) -> None:
    held = Event()
    script.pause = lambda body: 0.0 * held.wait(60)
    with serving(tmp_path, script) as url, browsing(PHONE) as seen:
        seen.page.goto(url)
        ask(seen, THREE)
        seen.page.locator(".tree .dot.running").first.wait_for(state="visible")
        assert seen.page.locator(".log").is_hidden()
        held.set()
        seen.page.locator(".bubble:not(.mine)").filter(has_text="ALPHA+BETA+GAMMA").wait_for()
        assert seen.page.locator(".tree").is_hidden()
    assert seen.errors == []


def test_who_asks_before_the_models_are_listed_is_answered(
    tmp_path: Path, script: Scripted
) -> None:
    held: list[Any] = []
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.route("**/v1/models", lambda route: held.append(route))
        seen.page.goto(url)
        ask(seen, THREE)
        seen.page.locator(".bubble.mine").wait_for()
        (models,) = held
        models.continue_()
        answered(seen, "ALPHA+BETA+GAMMA")
    assert seen.errors == []


def test_a_node_shows_its_messages_votes_verdict_and_cost(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(url)
        ask(seen, THREE)
        answered(seen, "ALPHA+BETA+GAMMA").nth(2).click()
        drawer = seen.page.locator("#drawer")
        drawer.get_by_text("node 0.0.1").wait_for()
        told = drawer.inner_text()
        for word in ("beta", "BETA", "votes", "cost", "tokens", "Copy answers", "unchecked"):
            assert word in told
        drawer.get_by_text("Copy answers").click()
        assert drawer.locator(".message.reply").last.inner_text().startswith("reply\nBETA")
    assert seen.errors == []


def test_the_tree_says_why_a_question_was_divided_and_which_answer_was_taken(
    tmp_path: Path, script: Scripted
) -> None:
    why = "a decomposition's answer was taken"
    with serving(tmp_path, script, candidates=2) as url, browsing() as seen:
        seen.page.goto(url)
        ask(seen, THREE)
        seen.page.locator(".tree .note").filter(has_text=why).wait_for()
        for _ in ("live", "as recorded"):
            tree = seen.page.locator(".tree")
            tree.get_by_text("in all: 7 calls").wait_for()
            tree.get_by_text("decomposition 2 of 2").first.wait_for()
            assert why in tree.locator(".note").first.inner_text()
            seen.page.goto(f"{url}/#trajectories")
            seen.page.locator(".trow").filter(has_text=THREE).click()
        seen.page.locator(".tree .node").nth(1).click()
        drawer = seen.page.locator("#drawer")
        drawer.get_by_text("not divided: as deep as the limit of 1 allows").wait_for()
    assert seen.errors == []


def test_log_probabilities_shade_the_words_of_a_reply(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        body = {"model": X, "messages": [{"role": "user", "content": "one two"}], "logprobs": True}
        asked = httpx2.post(f"{url}/v1/chat/completions", json=body)
        seen.page.goto(f"{url}/#trajectories/{asked.headers['x-reflux-trajectory']}")
        seen.page.locator(".tree .node").click()
        piece = seen.page.locator(".shaded span").first
        piece.wait_for(state="attached")
        assert "60.7%" in (piece.get_attribute("title") or "")
        ground = piece.evaluate("node => getComputedStyle(node).backgroundColor")
        assert ground not in ("rgba(0, 0, 0, 0)", "transparent")
    assert seen.errors == []


def test_what_a_model_or_a_person_wrote_is_text_whatever_it_holds(
    tmp_path: Path, script: Scripted
) -> None:
    evil = "<img src=x onerror=document.title=1><script>document.title=2</script>"
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(url)
        ask(seen, f"{evil} and {evil}")
        nodes = answered(seen, evil.upper())
        nodes.nth(1).click()
        drawer = seen.page.locator("#drawer")
        drawer.get_by_text(evil.upper()).first.wait_for()
        assert evil in drawer.inner_text()
        seen.page.goto(f"{url}/#trajectories")
        seen.page.locator(".trow").filter(has_text=evil).wait_for()
        for where in ("main", "#drawer"):
            assert seen.page.locator(f"{where} img, {where} script").count() == 0
        assert seen.page.title() == "Trajectories · Reflux"
    assert seen.errors == []


def test_an_answer_under_way_can_be_stopped_and_its_spending_ends(
    tmp_path: Path, script: Scripted
) -> None:
    script.pause = lambda body: 1.0
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(url)
        ask(seen, " and ".join(f"w{number}" for number in range(60)))
        seen.page.locator(".tree .node >> nth=3").wait_for()
        seen.page.get_by_role("button", name="Stop").click()
        seen.page.get_by_text("Stopped.").wait_for()
        seen.page.wait_for_timeout(1_500)
        asked = len(script.asked)
        seen.page.wait_for_timeout(2_500)
        assert len(script.asked) == asked <= 60
    assert seen.errors == []


def test_a_question_that_fails_says_why_in_the_chat(tmp_path: Path, script: Scripted) -> None:
    script.refusal = lambda body: (400, "no such model here")
    with serving(tmp_path, script) as url, browsing() as seen:
        seen.page.goto(url)
        seen.page.get_by_label("Model", exact=True).select_option(X)
        ask(seen, THREE)
        seen.page.locator(".bubble .bad").filter(has_text="no such model here").wait_for()
        assert seen.page.get_by_role("button", name="Ask", exact=True).is_visible()


def test_the_keyboard_alone_reaches_everything_in_the_tree(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        page.goto(url)
        page.get_by_label("Model", exact=True).locator("option").first.wait_for(state="attached")
        page.locator("#tab-chat").focus()
        page.keyboard.press("/")
        page.keyboard.type(THREE)
        page.keyboard.press("Enter")
        answered(seen, "ALPHA+BETA+GAMMA")
        page.locator(".tree .node").first.focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.locator("#drawer").get_by_text("node 0.0.1").wait_for()
        page.keyboard.press("Escape")
        page.locator("#drawer").wait_for(state="hidden")
        focused = "document.activeElement.dataset.path"
        assert page.evaluate(focused) == "/0.0.1"
        page.keyboard.press("ArrowLeft")
        assert page.evaluate(focused) == ""
        page.keyboard.press("ArrowLeft")
        assert page.locator(".tree .node:visible").count() == 1
        page.locator("#tab-chat").focus()
        page.keyboard.press("ArrowRight")
        page.locator(".trow").first.wait_for()
        assert page.evaluate("document.activeElement.id") == "tab-trajectories"
    assert seen.errors == []


def test_a_second_question_is_part_of_the_same_conversation(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url, browsing(PHONE, "dark") as seen:
        seen.page.goto(url)
        seen.page.get_by_label("Model", exact=True).select_option(X)
        ask(seen, "first words")
        seen.page.locator(".bubble:not(.mine)").filter(has_text="FIRST WORDS").wait_for()
        seen.page.get_by_role("button", name="Ask", exact=True).wait_for()
        ask(seen, "second words")
        seen.page.locator(".bubble:not(.mine)").filter(has_text="SECOND WORDS").wait_for()
        assert [said["content"] for said in script.asked[-1]["messages"]][-3:] == [
            "first words", "FIRST WORDS", "second words",
        ]  # fmt: skip
        seen.page.get_by_role("button", name="Ask", exact=True).wait_for()
        seen.page.reload()
        seen.page.locator(".bubble:not(.mine)").filter(has_text="SECOND WORDS").wait_for()
        seen.page.get_by_role("button", name="New chat").click()
        assert seen.page.locator(".bubble").count() == 0
        ask(seen, "other words")
        seen.page.locator(".bubble:not(.mine)").filter(has_text="OTHER WORDS").wait_for()
        assert script.asked[-1]["messages"] == [{"role": "user", "content": "other words"}]
    assert seen.errors == []


def test_a_page_that_was_left_during_an_answer_keeps_its_words_and_asks_again(
    tmp_path: Path, script: Scripted
) -> None:
    script.pause = lambda body: 60.0 if len(script.asked) == 1 and body["stream"] else 0.0
    with serving(tmp_path, script) as url, browsing() as seen:
        page = seen.page
        page.goto(url)
        page.get_by_label("Model", exact=True).select_option(X)
        ask(seen, "first words")
        page.get_by_role("button", name="Stop").wait_for()
        soon(lambda: script.asked)
        page.reload()
        bubble = page.locator(".bubble:not(.mine)")
        bubble.get_by_text("the page was closed before the answer was complete").wait_for()
        assert page.locator(".bubble.mine").inner_text() == "first words"
        bubble.get_by_role("button", name="Ask again").click()
        bubble.filter(has_text="FIRST WORDS").wait_for()
        assert page.locator(".bubble").count() == 2
        assert script.questions() == ["first words", "first words"]
    assert seen.errors == []
