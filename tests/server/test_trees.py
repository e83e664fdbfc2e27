"""Growing trees over HTTP: events that can be replayed, clients that leave, persons who reply."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from reflux.agents.clients.endpoints import Endpoint
from reflux.graphs.amplify.context import Limits
from reflux.graphs.ask_options import options_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Feedback, load
from reflux.graphs.traces.tree import load_tree
from reflux.overseers import OVERSEERS, recorded_demos
from tests.support.serving import Scripted, X, serving, soon

Said = list[Any]


def user(text: str) -> Said:
    return [{"role": "user", "content": text}]


def ask(url: str, text: str, model: str = "amplified") -> tuple[str, str]:
    """Trajectory and answer."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(model=model, messages=user(text))
        return raw.headers["x-reflux-trajectory"], raw.parse().choices[0].message.content or ""


def events(url: str, trajectory: str, **headers: str) -> list[dict[str, str]]:
    """The fields of every server-sent event, to the end of the stream."""
    got = httpx2.get(f"{url}/api/trajectories/{trajectory}/events", headers=headers)
    assert got.headers["content-type"].startswith("text/event-stream")
    blocks = got.text.strip().split("\n\n")
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_events_are_typed_numbered_and_replayed_from_any_number(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        trajectory, _ = ask(url, "one and two")
        told = events(url, trajectory)
        assert [event["event"] for event in told[:1] + told[-2:]] == ["step", "answered", "end"]
        assert [int(event["id"]) for event in told[:-1]] == list(range(1, len(told)))
        assert sum(event["event"] == "asked" for event in told) == 2
        for event in told[:-1]:
            data = json.loads(event["data"])
            assert data["event"] == event["event"] and "path" in data
        assert events(url, trajectory, **{"last-event-id": "3"}) == told[3:]
        got = httpx2.get(f"{url}/api/trajectories/{trajectory}/events?after=3")
        assert got.text.startswith("id: 4\n")
        for beyond, left in (("999", ["end"]), ("9" * 5_000, None), ("x", None)):
            again = [e["event"] for e in events(url, trajectory, **{"last-event-id": beyond})]
            assert again == (left or [e["event"] for e in told])


async def test_events_come_while_the_tree_grows(tmp_path: Path, script: Scripted) -> None:
    gate = asyncio.Event()
    script.pause = lambda body: 0 if "one" in body["messages"][-1]["content"] else 0.3
    with serving(tmp_path, script) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model="amplified", messages=user("one and two"), stream=True
            )
            trajectory = stream.response.headers["x-reflux-trajectory"]
            seen: list[str] = []
            async with (
                httpx2.AsyncClient() as follower,
                follower.stream("GET", f"{url}/api/trajectories/{trajectory}/events") as got,
            ):
                async for line in got.aiter_lines():
                    if line.startswith("event: "):
                        seen.append(line.removeprefix("event: "))
                    if "answered" in seen and not gate.is_set():
                        assert "end" not in seen
                        gate.set()
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert gate.is_set() and seen[-1] == "end" and text == "ONE+TWO"


def test_a_recorded_tree_is_shown_with_its_usage(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        trajectory, _ = ask(url, "one and two")
        shown = httpx2.get(f"{url}/api/trajectories/{trajectory[:12]}").json()
    assert shown["usage"] == {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
    assert shown["trajectory"] == trajectory
    assert (shown["tree"]["answer"], shown["tree"]["writing"]) == ("ONE+TWO", "")
    assert [child["answer"] for child in shown["tree"]["children"]] == ["ONE", "TWO"]


def test_feedback_is_recorded_by_the_id_that_the_answer_names(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        trajectory, _ = ask(url, "one and two")
        where = f"{url}/api/trajectories/{trajectory}/feedback"
        said = {"score": 0.25, "comment": "too long", "name": "brief"}
        got = httpx2.post(where, json=said)
        assert (got.status_code, got.json()["trajectory"]) == (200, trajectory)
        for wrong, status in (({}, 400), ({"score": "x"}, 422), ({"scor": 1}, 422)):
            assert httpx2.post(where, json=wrong).status_code in (400, status)
        assert httpx2.post(f"{url}/api/trajectories/x/feedback", json=said).status_code in (
            400,
            404,
        )
    store = TraceStore(tmp_path / "traces.db")
    found = load(store, trajectory)
    store.close()
    assert found is not None
    assert found.feedback == (Feedback(0.25, "brief", "too long", "human"),)


def test_trees_and_events_that_are_not_there_are_said_to_be_not_there(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script, kept_events=0) as url:
        for path in ("trajectories/nothing", "trajectories/nothing/events"):
            assert httpx2.get(f"{url}/api/{path}").status_code == 404
        first, _ = ask(url, "one and two")
        ask(url, "three and four")
        assert httpx2.get(f"{url}/api/trajectories/{first}/events").status_code == 404
        assert httpx2.get(f"{url}/api/trajectories/{first}").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_spending_of_its_tree(
    tmp_path: Path, script: Scripted, stream: bool
) -> None:
    script.pause = lambda body: 0.1
    many = " and ".join(f"w{i}" for i in range(64))
    with serving(tmp_path, script, endpoints=narrow(script)) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            asking = asyncio.create_task(left_after(client, many, stream))
            await asyncio.to_thread(soon, lambda: len(script.asked) >= 4)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.5)
        asked = len(script.asked)
        await asyncio.sleep(0.5)
        assert len(script.asked) == asked < 30
        ended = 'reflux_answers_total{ended="left",model="amplified"} 1.0'
        assert ended in httpx2.get(f"{url}/metrics").text
        (listed,) = httpx2.get(f"{url}/api/trajectories?status=stopped").json()["trajectories"]
        tree = httpx2.get(f"{url}/api/trajectories/{listed['id']}").json()["tree"]
        assert (tree["status"], tree["answer"]) == ("stopped", None)
        assert {child["status"] for child in tree["children"]} == {"unchecked", "stopped"}


def narrow(script: Scripted) -> dict[str, Any]:
    """The endpoint, two requests at a time."""
    return {X: Endpoint(script.client(concurrency=2), "far")}


async def left_after(client: AsyncOpenAI, text: str, stream: bool) -> None:
    got: Any = await client.chat.completions.create(
        model="amplified", messages=user(text), stream=stream
    )
    async for _ in got:
        pass


async def test_a_client_that_leaves_a_stream_of_one_model_closes_the_models_own(
    tmp_path: Path, script: Scripted
) -> None:
    script.pause = lambda body: 0.02
    with serving(tmp_path, script) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream: Any = await client.chat.completions.create(
                model=X, messages=user("word " * 300), stream=True
            )
            trajectory = stream.response.headers["x-reflux-trajectory"]
            await anext(aiter(stream))
            await stream.close()
        await asyncio.to_thread(soon, lambda: script.left)
    store = TraceStore(tmp_path / "traces.db")
    (row,) = store.select("SELECT error, completion FROM calls WHERE question=?", (trajectory,))
    assert load_tree(store, trajectory).status == "stopped"
    store.close()
    assert "the reader left" in row["error"] and row["completion"].startswith("WORD")


def test_an_answer_that_is_not_accepted_is_a_422_that_names_the_best(
    tmp_path: Path, script: Scripted
) -> None:
    with (
        serving(tmp_path, script, limits=Limits(calls=0)) as url,
        pytest.raises(openai.UnprocessableEntityError, match="no answer was accepted") as failed,
    ):
        ask(url, "one", "amplified:plain")
    assert isinstance(failed.value.body, dict)
    assert failed.value.body["type"] == "not_accepted"
    assert failed.value.body["code"] == "over_budget"


def test_a_question_that_cannot_be_asked_is_a_400(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        for text in (" ", "\ud83d", "x" * 100_001):
            with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                body = json.dumps({"model": "amplified", "messages": user(text)})
                got = httpx2.post(
                    f"{url}/v1/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                )
                assert got.status_code == 400, client
        assert script.asked == []


async def test_a_person_replies_while_the_client_waits(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        async with (
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client,
            httpx2.AsyncClient(base_url=url) as person,
        ):
            stream: Any = await client.chat.completions.create(
                model="amplified:human", messages=user("who?"), stream=True
            )
            (waiting,) = (await person.get("/api/pending")).json()["pending"]
            assert waiting["question"] == waiting["form"]["question"] == "who?"
            assert waiting["trajectory"] == stream.response.headers["x-reflux-trajectory"]
            to = f"/api/pending/{waiting['trajectory']}/{waiting['id']}"
            for words, why in (("approve", "no proposal"), (" ", "reply is empty")):
                refused = await person.post(to, json={"words": words})
                assert refused.status_code == 400 and why in refused.text
            asked = await person.post(to, json={"words": "one\ntwo"})
            pending = asked.json()["pending"]
            while pending:  # The sub-questions, and then the question itself again.
                to = f"/api/pending/{waiting['trajectory']}/{pending[0]['id']}"
                said = "answer: me" if not pending[0]["path"] else "pass"
                pending = (await person.post(to, json={"words": said})).json()["pending"]
            deltas = [chunk.choices[0].delta async for chunk in stream]
            gone = await person.post(to, json={"words": "answer: me"})
        assert gone.status_code == 400 and "nothing waits" in gone.text
    assert [delta.content for delta in deltas if delta.content] == ["me"]
    assert "a human is asked: who?" in deltas[1].reasoning_content
    assert sorted(script.questions()) == ["one", "two"]


async def test_what_waits_for_a_person_outlives_its_client_and_the_server(
    tmp_path: Path, script: Scripted
) -> None:
    with serving(tmp_path, script) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream: Any = await client.chat.completions.create(
                model="amplified:human", messages=user("who?"), stream=True
            )
            await stream.close()
    with serving(tmp_path, script) as url:
        (waiting,) = httpx2.get(f"{url}/api/pending").json()["pending"]
        to = f"{url}/api/pending/{waiting['trajectory']}/{waiting['id']}"
        ended = httpx2.post(to, json={"words": "answer: me"}).json()
        assert (ended["outcome"]["answer"], ended["pending"]) == ("me", [])
        assert httpx2.get(f"{url}/api/pending").json() == {"pending": []}
        tree = httpx2.get(f"{url}/api/trajectories/{waiting['trajectory']}").json()["tree"]
        assert (tree["answer"], tree["status"]) == ("me", "unchecked")


def test_where_nobody_was_asked_nothing_waits(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        assert httpx2.get(f"{url}/api/pending").json() == {"pending": []}
        assert not (tmp_path / "checkpoints.db").exists()
        gone = httpx2.post(f"{url}/api/pending/none/none", json={"words": "pass"})
        assert gone.status_code == 400


def test_metrics_count_answers_tokens_and_calls(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url:
        ask(url, "one and two")
        ask(url, "three", X)
        text = httpx2.get(f"{url}/metrics").text
    for line in (
        'reflux_answers_total{ended="ok",model="amplified"} 1.0',
        'reflux_tokens_total{kind="prompt",model="amplified"} 20.0',
        'reflux_model_calls_total{cached="false"} 3.0',
        'reflux_answer_seconds_count{model="x"} 1.0',
        "reflux_requests_under_way 1.0",
    ):
        assert line in text


def test_the_user_that_a_client_names_is_on_the_record(tmp_path: Path, script: Scripted) -> None:
    with serving(tmp_path, script) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        client.chat.completions.create(model=X, messages=user("one"), user="ann")
    store = TraceStore(tmp_path / "traces.db")
    (row,) = store.select("SELECT detail FROM judgements WHERE kind='user'")
    store.close()
    assert json.loads(row["detail"]) == {"user": "ann"}


def test_a_truncated_answer_ends_with_the_finish_reason_of_the_protocol(
    tmp_path: Path, script: Scripted
) -> None:
    with (
        serving(tmp_path, script) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        reply = client.chat.completions.create(
            model="amplified", messages=user("one two"), max_tokens=1
        )
    (choice,) = reply.choices
    assert (choice.message.content, choice.finish_reason) == ("ONE", "length")


def test_the_overseer_that_is_served_sees_its_demonstrations(
    tmp_path: Path, script: Scripted
) -> None:
    demos = tmp_path / "demos.jsonl"
    demos.write_text('{"question": "Which is older, Rome or Oslo?", "ask": ["Rome?", "Oslo?"]}\n')
    script.says = lambda text: "1. Peru? 2. Chile?" if "You may ask" in text else "1821"
    shown = recorded_demos(demos)
    with serving(tmp_path / "run", script, OVERSEERS, demos=shown) as url:
        ask(url, "Lima or Quito?", "amplified:plain")
        trajectory, _ = ask(url, "Peru or Chile?")
    seen = ["Rome or Oslo" in str(body["messages"]) for body in script.asked]
    assert any(seen) and not seen[0]
    store = TraceStore(tmp_path / "run" / "traces.db")
    options = options_of(store, trajectory)
    store.close()
    assert options is not None and options.demos == shown
