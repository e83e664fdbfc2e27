"""The tree as it grows in the terminal: what is answered folds into a line."""

from typing import Any

import pytest
from rich.console import Console

from reflux.cli.progress import LiveTree, ProgressView


def drawn(tree: LiveTree) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(tree)
    return console.export_text()


def heard(*events: dict[str, Any]) -> LiveTree:
    tree = LiveTree("root", clock=lambda: 0.0)
    for event in events:
        tree(event)  # type: ignore[arg-type]
    return tree


def asked(path: str, question: str) -> dict[str, Any]:
    return {"event": "asked", "path": path, "question": question, "to": ""}


def answered(path: str, answer: str | None, status: str = "ok") -> dict[str, Any]:
    return {"event": "answered", "path": path, "direct": True, "answer": answer}\
        | {"status": status, "error": None}  # fmt: skip


def called(path: str, **left: float) -> dict[str, Any]:
    return {"event": "called", "path": path, "role": "answer", "model": "base", "tokens": 7}\
        | {"cached": False, "seconds": 0.1, "left": left}  # fmt: skip


def test_what_is_under_way_is_shown_with_who_is_asked() -> None:
    text = drawn(heard(asked("/0.0.0", "x"), called("/0.0.0", seconds=9.0)))
    assert "x … base" in text
    assert "1 call, 7 tokens, 0 s, 9 seconds left; Ctrl-C stops" in text


def test_a_question_that_is_answered_hides_what_is_below_it() -> None:
    below = (asked("/0.0.0", "mid"), asked("/0.0.0/0.0.0", "deep"))
    assert "deep" in drawn(heard(*below))
    text = drawn(heard(*below, answered("/0.0.0", "known")))
    assert "deep" not in text
    assert "mid → known" in text


def test_many_answers_and_many_questions_are_counted() -> None:
    events = [asked(f"/0.0.{i}", f"q{i}") for i in range(30)]
    events += [answered(f"/0.0.{i}", "a") for i in range(10)]
    text = drawn(heard(*events))
    assert "6 more answered" in text
    assert "12 more running" in text
    assert len(text.splitlines()) < 20


def test_a_retry_begins_with_an_empty_tree() -> None:
    again = {"event": "retry", "path": "", "rule": "form", "error": None}
    text = drawn(heard(asked("/0.0.0", "x"), again))
    assert "root … retry: the check form failed" in text
    assert " x " not in text


def test_what_models_write_is_no_markup() -> None:
    text = drawn(heard(asked("/0.0.0", "[bold]x[/bold]"), answered("/0.0.0", "[red]\x1b[2J")))
    assert "[bold]x[/bold] → [red] [2J" in text


def test_a_log_has_notes_whole_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLUX_PROGRESS_SECONDS", "0")
    clock = iter((100.0, 110.0, 120.0))
    monkeypatch.setattr("reflux.cli.progress.time.monotonic", lambda: next(clock))
    note = "a note of more than eighty letters, " * 4
    with ProgressView() as view:
        view("distill s", 0, 0, note)
        view("distill s", 21, 31, "loss 3.0")  # It went on at step 20.
        view("distill s", 26, 31, "loss 2.0")
        view("distill s", 31, 31, "loss 1.0")
    lines = [f"{note}", "distill s: 21/31 loss 3.0", "distill s: 26/31 loss 2.0, 10 s left"]
    assert capsys.readouterr().err.splitlines() == [*lines, "distill s: 31/31 loss 1.0"]
