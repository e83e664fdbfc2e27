"""What several persons do to the server's trees at once, and what they cost each other."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest

import reflux.web.review_api
import reflux.web.runs_api
from reflux.graphs.traces.events import answered
from reflux.server.state import EventLogs
from tests.support.serving import Scripted, serving, soon


def asked(url: str, question: str) -> str:
    """The trajectory of a question that was answered."""
    body = {"model": "amplified", "messages": [{"role": "user", "content": question}]}
    got = httpx2.post(f"{url}/v1/chat/completions", json=body)
    return got.headers["x-reflux-trajectory"]


def test_a_word_that_several_give_at_once_is_answered_once(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        trajectory = asked(url, "alpha and beta")
        asked_before, held = len(script.asked), Event()
        script.pause = lambda body: 0.0 * held.wait(60)

        def again(_: int) -> str:
            where = f"{url}/api/trajectories/{trajectory}/judgements"
            return httpx2.post(where, json={"action": "again", "path": "/0.0.0"}).json()[
                "trajectory"
            ]

        with ThreadPoolExecutor(4) as threads:
            assert set(threads.map(again, range(4))) == {f"{trajectory}~1"}
        soon(lambda: len(script.asked) > asked_before)
        assert again(4) == f"{trajectory}~1"
        held.set()
        told = httpx2.get(f"{url}/api/trajectories/{trajectory}~1/events").text
        assert told.count('"event": "answered", "path": "",') == 1
        assert len(script.asked) == asked_before + 1


@pytest.mark.parametrize(
    ("place", "name", "ask"),
    [
        (reflux.web.runs_api, "load_tree", lambda where: httpx2.get(where)),
        (
            reflux.web.review_api,
            "find_item",
            lambda where: httpx2.post(
                f"{where}/judgements", json={"action": "comment", "comment": "seen"}
            ),
        ),
    ],
)
def test_others_are_answered_while_a_large_tree_is_read(
    tmp_path: Path,
    script: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    ask: Callable[[str], httpx2.Response],
) -> None:
    with serving(tmp_path, script) as url:
        where = f"{url}/api/trajectories/{asked(url, 'alpha and beta')}"
        reading, read, whole = Event(), Event(), getattr(place, name)

        def slow(*words: Any) -> Any:
            reading.set()
            read.wait(60)
            return whole(*words)

        monkeypatch.setattr(place, name, slow)
        with ThreadPoolExecutor(1) as threads:
            got = threads.submit(ask, where)
            try:
                assert reading.wait(30)
                assert httpx2.get(f"{url}/healthz", timeout=10).status_code == 200
            finally:
                read.set()
            assert got.result().status_code == 200


def test_events_of_an_answer_that_went_on_later_take_the_room_of_one() -> None:
    logs = EventLogs(10)

    def fill(trajectory: str) -> None:
        log = logs.begin(trajectory)
        for _ in range(4):
            log.add(answered("", False, {"answer": "a"}))
        logs.end(trajectory)

    async def all_of_them() -> None:
        for trajectory in ("first", "second", "second", "second"):
            fill(trajectory)

    asyncio.run(all_of_them())
    assert logs.find("first") is not None
    assert logs.find("second") is not None
