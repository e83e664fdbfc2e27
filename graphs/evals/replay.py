"""Recorded calls asked again: does another model reply as was replied then?

Each call is asked alone, with the messages that were sent then, so one wrong reply spoils no later
call. Replies are on record: what was asked once is not asked again.

    exact           the same text, but for white space at its ends, and the same tool calls
    same tool       the same tools in the same order, of calls in which either replied with tools
    same arguments  and their arguments are the same JSON
    schema-valid    tool calls name an offered tool and keep to its schema, and a reply that was to
                    be of a schema keeps to it; of calls in which the system's reply had to
    judged          a judge finds the reply as good as the recorded one
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reflux.agents.answer_checks import schema_problem, unfenced
from reflux.agents.clients.reasoning import text_of
from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.prompts import GRADER, grade_prompt, read_grade
from reflux.agents.types import ChatRequest, Completion, Sampling, ToolCall, ToolSpec, Turn
from reflux.graphs.evals.metrics import bootstrap, wilson
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.selection import REPLAY, Selection
from reflux.graphs.traces.store import CallKey
from reflux.graphs.traces.trajectories import recorded_call

RECORDED = "recorded"
"""The system that replies as was replied then."""
MEASURES = ("exact", "same tool", "same arguments", "schema-valid", "judged")
JUDGE_TOKENS = 512


@dataclass(frozen=True)
class ReplayCall:
    """A recorded call."""

    id: int
    trajectory: str
    node: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    schema: dict[str, Any] | None
    """Of the reply, where the request asks for one."""
    reply: Completion
    max_tokens: int

    @property
    def question(self) -> str:
        """What the reply answers, for a judge."""
        return "\n\n".join(f"{m['role']}: {text_of(m.get('content'))}" for m in self.messages)

    def request(self, model: str) -> ChatRequest:
        """The same request of another model, greedy."""
        return ChatRequest(
            model=model,
            messages=tuple(_turn(message) for message in self.messages),
            sampling=Sampling(max_tokens=self.max_tokens),
            tools=tuple(_spec(tool["function"]) for tool in self.tools),
            schema=json.dumps(self.schema) if self.schema else "",
        )


def _turn(message: Mapping[str, Any]) -> Turn:
    role = "system" if message["role"] == "developer" else str(message["role"])
    content = message.get("content")
    kept = ("name", "tool_calls", "tool_call_id")
    extra = {key: message[key] for key in kept if message.get(key)}
    if isinstance(content, list):  # Parts, such as images, go as they were sent.
        extra["content"] = content
    text = text_of(content)
    return (role, text, json.dumps(extra)) if extra else (role, text)


def _spec(function: Mapping[str, Any]) -> ToolSpec:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return ToolSpec(function["name"], function.get("description") or "", json.dumps(schema))


def replay_calls(store: Rows, selection: Selection, limit: int | None) -> list[ReplayCall]:
    """The selected calls in order; of more than `limit` those whose digest is smallest.

    Raises:
        UsageError: none is selected.
    """
    chosen = [
        (hashlib.sha256(f"{each.id} {call}".encode()).digest(), call)
        for each in selection.trajectories()
        for call in each.calls
    ]
    ids = sorted(call for _, call in sorted(chosen)[:limit])
    if not ids:
        raise UsageError(f"no recorded call is selected by --where {selection.where!r}")
    calls: list[ReplayCall] = []
    for id in ids:
        row = next(store.select("SELECT * FROM calls WHERE id = ?", (id,)))
        made = recorded_call(row)
        tokens = made.sampling.get("max_completion_tokens") or made.sampling.get("max_tokens")
        calls.append(
            ReplayCall(
                id=id,
                trajectory=row["question"],
                node=made.node,
                messages=made.messages,
                tools=tuple(tool for tool in made.tools if "function" in tool),
                schema=_schema_of(made.sampling.get("response_format")),
                reply=made.reply,
                max_tokens=tokens if isinstance(tokens, int) else 1024,
            )
        )
    return calls


def _schema_of(form: Any) -> dict[str, Any] | None:
    """The JSON Schema that a request asks a reply to keep to."""
    if not isinstance(form, dict) or form.get("type") in (None, "text"):
        return None
    return (form.get("json_schema") or {}).get("schema") or {"type": "object"}


@dataclass(frozen=True)
class Comparison:
    """A system's reply to one call, beside the recorded one."""

    call: ReplayCall
    reply: Completion | None
    """None where there is none; `error` says why."""
    measures: Mapping[str, bool]
    """By name; a measure that does not apply to the call is missing."""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "call": self.call.id,
            "trajectory": self.call.trajectory,
            "node": self.call.node,
            "recorded": _told(self.call.reply),
            "reply": None if self.reply is None else _told(self.reply),
            "error": self.error,
            **self.measures,
        }


def _told(reply: Completion) -> dict[str, Any]:
    calls = [{"name": call.name, "arguments": call.arguments} for call in reply.tool_calls]
    return {"text": reply.text, "tool_calls": calls}


def compared(call: ReplayCall, reply: Completion | None, error: str = "") -> Comparison:
    """A system's reply to a call, measured against the recorded one."""
    theirs = call.reply.tool_calls
    ours = () if reply is None else reply.tool_calls
    measures: dict[str, bool] = {}
    same = [each.name for each in ours] == [each.name for each in theirs]
    equal = same and list(map(_arguments, ours)) == list(map(_arguments, theirs))
    measures["exact"] = (
        reply is not None and reply.text.strip() == call.reply.text.strip() and equal
    )
    if ours or theirs:
        measures |= {
            "same tool": reply is not None and same,
            "same arguments": equal and bool(ours),
        }
    if ours or call.schema or (theirs and reply is None):
        measures["schema-valid"] = reply is not None and _is_valid(call, reply)
    return Comparison(call, reply, measures, error)


def _arguments(call: ToolCall) -> Any:
    try:
        return json.loads(call.arguments or "{}")
    except ValueError:
        return call.arguments


def _is_valid(call: ReplayCall, reply: Completion) -> bool:
    """Whether a reply keeps to the schemas of its request."""
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in call.tools
    }
    for used in reply.tool_calls:
        if used.name not in schemas or schema_problem(used.arguments or "{}", schemas[used.name]):
            return False
    wants_text = call.schema is not None and not reply.tool_calls
    return not wants_text or not schema_problem(unfenced(reply.text), call.schema)


@dataclass(frozen=True)
class Replayer:
    """Asks one model the recorded calls, and records its replies."""

    client: RecordedClient
    model: str
    digest: str
    run: str
    max_concurrency: int = 8

    async def ask(
        self, calls: Sequence[ReplayCall], on_done: Callable[[int], None]
    ) -> list[Comparison]:
        """The comparison of each call, in order; a call that is not answered counts as wrong.

        Raises:
            UsageError: the model cannot take such calls.
        """
        limit, done = asyncio.Semaphore(self.max_concurrency), 0

        async def one(call: ReplayCall) -> Comparison:
            nonlocal done
            async with limit:
                try:
                    made = compared(call, await self._reply(call.request(self.model), call))
                except EndpointError as error:
                    made = compared(call, None, str(error))
            done += 1
            on_done(done)
            return made

        return await _all(one(call) for call in calls)

    async def judge(
        self, system: str, comparisons: Sequence[Comparison], on_done: Callable[[int], None]
    ) -> list[Comparison]:
        """A system's comparisons with this model's verdict on each reply, where it can be read."""
        limit, done = asyncio.Semaphore(self.max_concurrency), 0

        async def one(made: Comparison) -> Comparison:
            nonlocal done
            grade: bool | None = False
            if made.measures["exact"]:
                grade = True
            elif made.reply is not None:
                shown, truth = (json.dumps(_told(each)) for each in (made.reply, made.call.reply))
                prompt = grade_prompt(made.call.question, shown, [truth])
                request = ChatRequest(
                    self.model,
                    (("system", GRADER), ("user", prompt)),
                    Sampling(max_tokens=JUDGE_TOKENS),
                )
                async with limit:
                    reply = await self._reply(request, made.call, f"judge {system}")
                    grade = read_grade(reply.text)
            done += 1
            on_done(done)
            measures = {**made.measures} if grade is None else {**made.measures, "judged": grade}
            return replace(made, measures=measures)

        return await _all(one(made) for made in comparisons)

    async def _reply(self, request: ChatRequest, call: ReplayCall, purpose: str = "") -> Completion:
        """The model's reply, from the record where it was asked before."""
        name = f"{self.digest} {self.model} {call.trajectory} {purpose}"
        id = f"replay-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        await self.client.store.add_question(
            {
                "id": id, "run": self.run, "round": -1, "system": f"replay-{self.model}",
                "task": "", "split": REPLAY, "text": f"{purpose or 'replay'} {call.trajectory}",
            }
        )  # fmt: skip
        key = CallKey(id, "", "judge" if purpose else call.node, step=call.id)
        reply = await self.client.ask(key, request)
        detail = {"question": call.trajectory, "answer": reply.text, "status": "unchecked"}
        await self.client.store.add_judgement(
            id, "", "outcome", None, {**detail, "error": None}, key="0"
        )
        return reply


async def _all(work: Iterable[Awaitable[Comparison]]) -> list[Comparison]:
    """All of them, in order; the first error ends the rest."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_awaited(each)) for each in work]
    return [task.result() for task in tasks]


async def _awaited(work: Awaitable[Comparison]) -> Comparison:
    return await work


@dataclass
class ReplayScore:
    """The figures of one system."""

    calls: int
    trajectories: int
    failed: int
    tokens: int
    seconds: float
    """Sum of the latencies."""
    shares: dict[str, tuple[float, int, float, float]] = field(
        default_factory=dict[str, tuple[float, int, float, float]]
    )
    """By measure: share, number of calls, and the 95% interval over trajectories."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        names = ("share", "n", "low", "high")
        shares = {key: dict(zip(names, value, strict=True)) for key, value in self.shares.items()}
        return {**vars(self), "shares": shares}


def score(comparisons: Sequence[Comparison], seed: int = 0) -> ReplayScore:
    """The figures of comparisons; calls of one trajectory are one cluster."""
    replies = [made.reply for made in comparisons if made.reply is not None]
    made = ReplayScore(
        calls=len(comparisons),
        trajectories=len({each.call.trajectory for each in comparisons}),
        failed=len(comparisons) - len(replies),
        tokens=sum(reply.prompt_tokens + reply.completion_tokens for reply in replies),
        seconds=round(sum(reply.seconds for reply in replies), 3),
    )
    for name in MEASURES:
        clusters: dict[str, tuple[float, int]] = {}
        for each in comparisons:
            if name in each.measures:
                right, n = clusters.get(each.call.trajectory, (0.0, 0))
                clusters[each.call.trajectory] = (right + each.measures[name], n + 1)
        if clusters:
            n = sum(count for _, count in clusters.values())
            share = sum(right for right, _ in clusters.values()) / n
            low, high = bootstrap(list(clusters.values()), seed)
            if share in (0.0, 1.0):  # Drawn from equal values, it would have no width.
                low, high = wilson(share * len(clusters), len(clusters))
            made.shares[name] = (round(share, 4), n, round(low, 4), round(high, 4))
    return made
