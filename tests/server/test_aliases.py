"""Aliases: who answers under an old name, what sends a request back, and what is recorded."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from reflux.agents.clients.endpoints import Endpoint
from reflux.agents.errors import UsageError
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Trajectory, load
from reflux.server.app import create_app
from reflux.server.settings import Fallback, ServeSettings, read_serve_config
from tests.support.raw_upstream import message, raw_upstream
from tests.support.serving import Scripted, scripted, serving

OLD = "gpt-5"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def recorded(run: Path) -> list[Trajectory]:
    with closing(TraceStore(run / "traces.db")) as store:
        ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY rowid")]
        return [found for id in ids if (found := load(store, id)) is not None]


def endpoints(new: Scripted, old: Scripted) -> dict[str, Any]:
    """A student's stand-in, and the old model."""
    return {"new": Endpoint(new.client(), "far"), OLD: Endpoint(old.client(), "old")}


def asks(text: str, **more: Any) -> dict[str, Any]:
    return {"model": OLD, "messages": [{"role": "user", "content": text}], **more}


def test_an_alias_is_answered_by_its_model_and_recorded_as_the_agents_trajectory(
    tmp_path: Path,
) -> None:
    with scripted() as new, scripted() as old:
        options = {"endpoints": endpoints(new, old), "alias": {OLD: "new"}}
        with serving(tmp_path, **options) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            turns: list[Any] = [{"role": "user", "content": "one"}]
            first = client.chat.completions.create(model=OLD, messages=turns)
            assert first.model == OLD
            turns += [first.choices[0].message, {"role": "user", "content": "two"}]
            stream = client.chat.completions.create(model=OLD, messages=turns, stream=True)
            assert [c.choices[0].delta.content for c in stream if c.choices][1] == "TWO"
            headers = {"x-reflux-trajectory": "T", "x-reflux-node": "plan"}
            other = client.responses.with_raw_response.create(
                model=OLD, input="three", extra_headers=headers
            )
            again = client.responses.create(
                model=OLD, input="four", previous_response_id=other.parse().id,
                extra_headers=headers,
            )  # fmt: skip
            assert again.output_text == "FOUR"
            assert OLD in [model.id for model in client.models.list()]
        assert not old.asked
    one, three = recorded(tmp_path)
    assert [call.reply.text for call in one.calls] == ["ONE", "TWO"]
    assert {call.model for call in one.calls} == {"new"}
    assert one.source == "serve" and one.outcome is not None and one.outcome.answer == "TWO"
    assert [(call.node, len(call.messages)) for call in three.calls] == [("plan", 1), ("plan", 3)]
    assert (three.key, three.told_by) == ("T", "header")
    assert other.headers["x-reflux-trajectory"] == three.id


def test_a_share_of_the_trajectories_is_the_same_after_a_restart(tmp_path: Path) -> None:
    """Each is answered by one model throughout, and no two runs differ."""
    taken: list[list[str]] = []
    for folder in ("a", "b"):
        with scripted() as new, scripted() as old:
            options = {"endpoints": endpoints(new, old), "alias": {OLD: "new"}}
            with (
                serving(tmp_path / folder, **options, split={"new": 0.3}) as url,
                httpx2.Client(base_url=url) as client,
            ):
                for number in range(40):
                    said = f"T{number}"
                    turns = [{"role": "user", "content": f"t{number}"}]
                    more = [
                        {"role": "assistant", "content": said},
                        {"role": "user", "content": "x"},
                    ]
                    for messages in (turns, turns + more):
                        body = {"model": OLD, "messages": messages}
                        reply = client.post("/v1/chat/completions", json=body).json()
                        assert reply["model"] == OLD
            assert len(new.asked) + len(old.asked) == 80
            taken.append(sorted(new.questions()))
        for trajectory in recorded(tmp_path / folder):
            assert len(trajectory.calls) == 2
            assert len({call.model for call in trajectory.calls}) == 1
    assert taken[0] == taken[1]
    assert 4 < len(taken[0]) / 2 < 22


BROKEN: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("slow", {"seconds": 0.2}, {}, "no reply within 0.2 s"),
    ("down", {}, {}, "refused"),
    ("unsure", {"min_logprob": -0.1}, {}, "log-probability -0.5, below -0.1"),
    ("not sure", {"min_confidence": 0.8}, {}, "the model is sure to 0.61, below 0.8"),
    ("arguments", {}, {"tools": [TOOL]}, "arguments of weather break its schema"),
    (
        "form",
        {},
        {"response_format": {"type": "json_object"}},
        "the reply breaks the schema",
    ),
]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("kind", "rules", "more", "reason"), BROKEN, ids=[b[0] for b in BROKEN])
def test_a_reply_that_breaks_a_rule_is_the_old_models(
    tmp_path: Path, kind: str, rules: Any, more: Any, reason: str, streams: bool
) -> None:
    with scripted() as new, scripted() as old:
        new.pause = lambda body: 1.0 if kind == "slow" else 0.0
        new.refusal = lambda body: (400, "refused") if kind == "down" else None
        new.arguments = '{"city": 7}' if kind == "arguments" else new.arguments
        old.says = lambda text: '{"old":1}'
        options = {"endpoints": endpoints(new, old), "alias": {OLD: "new"}}
        with serving(tmp_path, **options, fallback=Fallback(**rules)) as url:
            body = asks("hello", stream=streams, **more)
            response = httpx2.post(f"{url}/v1/chat/completions", json=body)
            assert response.status_code == 200
            told = "tool_calls" if kind == "arguments" else '{\\"old\\":1}'
            assert told in response.text and "HELLO" not in response.text
    (trajectory,) = recorded(tmp_path)
    first, second = trajectory.calls
    assert (first.model, second.model, second.error) == ("new", OLD, None)
    assert first.error is not None and reason in first.error
    assert first.reply.text == {"unsure": "HELLO", "not sure": "HELLO", "form": "HELLO"}.get(
        kind, ""
    )
    ended = trajectory.outcome
    assert (ended is None) == (kind == "arguments")  # Which asks for a tool, and goes on.
    assert ended is None or ended.answer == '{"old":1}'


def test_a_failure_of_all_is_told_and_recorded(tmp_path: Path) -> None:
    with scripted() as new, scripted() as old:
        for script in (new, old):
            script.refusal = lambda body: (400, "refused")
        options = {"endpoints": endpoints(new, old), "alias": {OLD: "new"}}
        with serving(tmp_path, **options) as url:
            response = httpx2.post(f"{url}/v1/chat/completions", json=asks("hello"))
            assert response.status_code == 400
    (trajectory,) = recorded(tmp_path)
    assert [call.error is not None for call in trajectory.calls] == [True, True]
    assert trajectory.outcome is not None and trajectory.outcome.status == "failed"


@pytest.mark.parametrize("begun", [False, True])
def test_without_rules_a_stream_is_passed_on_as_it_comes(tmp_path: Path, begun: bool) -> None:
    """What has not begun is the old model's; what has broken off stays so."""
    with scripted() as new, scripted() as old:
        new.refusal = lambda body: None if begun else (400, "refused")
        new.breaks = begun
        options = {"endpoints": endpoints(new, old), "alias": {OLD: "new"}}
        with serving(tmp_path, **options) as url:
            body = asks("hello there", stream=True)
            response = httpx2.post(f"{url}/v1/chat/completions", json=body)
        assert response.status_code == 200
        assert ("error" in response.text) == begun and len(old.asked) == (not begun)
    (trajectory,) = recorded(tmp_path)
    assert [(call.model, call.error is None) for call in trajectory.calls] == (
        [("new", False)] if begun else [("new", False), (OLD, True)]
    )


def test_before_a_student_is_promoted_the_old_model_answers(tmp_path: Path) -> None:
    with scripted() as old:
        options: Any = {"endpoints": {OLD: Endpoint(old.client(), "old")}}
        with serving(tmp_path, alias={OLD: "student"}, **options) as url:
            reply = httpx2.post(f"{url}/v1/chat/completions", json=asks("hello")).json()
            assert reply["choices"][0]["message"]["content"] == "HELLO"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alias": {"base": "student"}}, "a model of this run"),
        ({"alias": {"a": "b", "b": "base"}}, "name the model itself"),
        ({"alias": {"a": "nobody"}}, "there is no model 'nobody'"),
        ({"alias": {"a": "student"}}, "leads a to 'student'"),
        ({"alias": {"a": "base"}, "split": {"base": 0.25}}, "75% of a elsewhere"),
        ({"alias": {"a": "base"}, "fallback": Fallback()}, "no other model for a"),
        ({"alias": {"a": "base"}, "split": {"bas": 1}}, "`alias` leads to base"),
        ({"fallback": Fallback()}, "needs `alias`"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, options: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        create_app(RunFolder(tmp_path), ServeSettings(**options))


@pytest.mark.parametrize(
    "text", ["split: {a: 2}", "fallback: {seconds: 0}", "fallback: {x: 1}", "cascade: 2"]
)
def test_a_config_says_what_is_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"serve\.yaml: (split|fallback|cascade)"):
        read_serve_config(path)
    path.write_text("alias: {gpt-5: student}\nsplit: {student: 0.1}\nfallback: {min_logprob: -3}")
    config = read_serve_config(path)
    assert config.fallback == Fallback(min_logprob=-3) and config.split == {"student": 0.1}


def test_a_server_is_a_recording_proxy_too(tmp_path: Path) -> None:
    reply = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    with raw_upstream() as raw:
        raw.respond = lambda got: [message(reply, "200 OK", "x-frame-options: none")]
        with serving(tmp_path, upstream=raw.url) as url:
            response = httpx2.post(f"{url}/record/v1/chat/completions", json=asks("hi"))
            assert response.content == json.dumps(reply, indent=1).encode()
            assert "content-security-policy" not in response.headers
            assert httpx2.get(f"{url}/v1/models").status_code == 200
            origin = {"origin": "http://evil.example"}
            refused = httpx2.post(f"{url}/record/v1/responses", json={}, headers=origin)
            assert refused.status_code == 403
    (trajectory,) = recorded(tmp_path)
    assert trajectory.source == "url" and trajectory.calls[0].reply.text == "yes"
