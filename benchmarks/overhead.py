"""What amplification costs beside the model: CPU and wall time for each call, against two floors.

One call splits a question into N parts, one call answers each part, and one call joins the answers:
N + 2 requests to a mock endpoint in a separate process. Five arms do this in turn, with the same
requests and the same maximum of requests in flight:

- `floor`: `AsyncOpenAI` and `asyncio.gather`, nothing else;
- `langgraph`: the same by hand in LangGraph, one `Send` for each part; no budget, check, retry,
  replay or record;
- `reflux`: the amplification graph, which commits each call to the trajectory before using it;
- `unrecorded`: the same without the writes, to measure what the trajectory costs;
- `our client`: the floor with the graph's client, which sends the same requests with less CPU; the
  difference to `reflux` is the cost of the graph.

The last two measure cost only and run without latency. CPU is user and system time of this process
with all its threads, without the endpoint.
"""

import argparse
import asyncio
import gc
import json
import operator
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from openai import AsyncOpenAI

from benchmarks.mock_endpoint import SPLIT, Endpoint, mock_endpoint
from benchmarks.report import Claim, Report, middle, spread
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.overseers.protocol import PASS, OverseerContext
from reflux.agents.prompts import answer_prompt
from reflux.agents.types import Answer, Ask, ChatRequest, Sampling, Step
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Origin
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import CallKey, TraceStore
from reflux.graphs.voting.voting import VotePolicy

ASKED = Origin("overhead", 0, "amplified", "overhead", "train")
MODEL = "mock"
MAX_TOKENS = 16
PRICED = ("unrecorded", "our client")
Arm = Callable[[str], Awaitable[str]]
"""Answers one question."""
Asking = Callable[[str], Awaitable[str]]
"""Makes one call."""


@dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    widths: tuple[int, ...] = (8, 64, 256, 1024)
    """N: parts of the question."""
    latencies_ms: tuple[float, ...] = (0, 50, 200)
    warm_ups: int = 3
    repeats: int = 20
    concurrency: int = 128
    """Maximum requests in flight in each arm."""
    quick: bool = False


@dataclass(frozen=True)
class Sample:
    """One answered question: cost for each call."""

    cpu_ms: float
    wall_ms: float


class Plain:
    """The graph's requests, sent through the `openai` package alone."""

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
        self._gate = asyncio.Semaphore(concurrency)

    async def ask(self, question: str) -> str:
        """Send the same request as the graph."""
        messages: Any = [{"role": r, "content": c} for r, c in answer_prompt(question)]
        async with self._gate:
            reply = await self._client.chat.completions.create(
                model=MODEL, messages=messages, temperature=0.0, max_tokens=MAX_TOKENS, seed=0
            )
        return reply.choices[0].message.content or ""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def joining(answers: Sequence[str | None]) -> str:
    """The prompt of the last call."""
    return f"join {len(answers)}: {' '.join(map(str, answers))}"


def floor(ask: Asking) -> Arm:
    """Three lines of asyncio."""

    async def answer(question: str) -> str:
        parts = (await ask(question)).splitlines()
        answers = await asyncio.gather(*map(ask, parts))
        return await ask(joining(answers))

    return answer


class _State(TypedDict):
    question: str
    parts: list[str]
    answers: Annotated[list[tuple[int, str]], operator.add]
    answer: str


def langgraph(ask: Asking) -> Arm:
    """The same shape, written by hand in LangGraph."""

    async def decompose(state: _State) -> dict[str, Any]:
        return {"parts": (await ask(state["question"])).splitlines()}

    def spread_out(state: _State) -> list[Send]:
        return [Send("answer", {"index": i, "part": p}) for i, p in enumerate(state["parts"])]

    async def answer_part(task: dict[str, Any]) -> dict[str, Any]:
        return {"answers": [(task["index"], await ask(task["part"]))]}

    async def aggregate(state: _State) -> dict[str, Any]:
        answers = [text for _, text in sorted(state["answers"])]
        return {"answer": await ask(joining(answers))}

    graph = StateGraph(_State)
    graph.add_node("decompose", decompose)
    graph.add_node("answer", cast(Any, answer_part))
    graph.add_node("aggregate", aggregate)
    graph.add_edge(START, "decompose")
    graph.add_conditional_edges("decompose", spread_out, ["answer"])
    graph.add_edge("answer", "aggregate")
    graph.add_edge("aggregate", END)
    compiled = graph.compile()

    async def answer(question: str) -> str:
        start: Any = {"question": question, "parts": [], "answers": [], "answer": ""}
        return (await compiled.ainvoke(start))["answer"]

    return answer


def our_client(client: OpenAIClient) -> Asking:
    """Send the same request through the graph's client."""

    async def ask(question: str) -> str:
        return (await client.complete(request(question))).text

    return ask


def request(question: str) -> ChatRequest:
    """The request that every arm sends."""
    return ChatRequest(MODEL, answer_prompt(question), Sampling(max_tokens=MAX_TOKENS))


class SplitAndJoin:
    """An overseer that asks the model to split and to join, recorded like the agent's calls."""

    name = "split-and-join"

    def __init__(self, recorded_client: RecordedClient) -> None:
        self._caller = recorded_client

    async def act(self, context: OverseerContext) -> Step:
        """Split the root, join its answers, leave each part to the agent."""
        if not context.may_ask:
            return PASS
        question, transcript = context.question, context.transcript
        text = joining([said.answer for said in transcript]) if transcript else question
        key = CallKey(ASKED.question_id(question), "", "split-and-join", bool(transcript))
        reply = await self._caller.ask(key, request(text))
        return Answer(reply.text) if transcript else Ask.of(*reply.text.splitlines())


class UnwrittenStore(TraceStore):
    """A store that discards its rows."""

    async def _insert(self, table: str, values: Mapping[str, Any], ignore: bool = False) -> None:
        return


def reflux(client: OpenAIClient, store: TraceStore, widest: int) -> Arm:
    """The amplification graph."""
    recorded_client = RecordedClient(client, store)
    context = AmplifyContext(
        recorded_client,
        MODEL,
        [SplitAndJoin(recorded_client)],
        limits=Limits(depth=1, fanout=widest, calls=10 * widest, tokens=10**9),
        votes=VotePolicy(max_votes=1),
        max_tokens=MAX_TOKENS,
        top_logprobs=0,
    )
    system = Amplified(context)

    async def answer(question: str) -> str:
        question_id = ASKED.question_id(question)
        await store.add_question({"id": question_id, "text": question, **vars(ASKED)})
        outcome = await system.answer(question, question_id)
        return outcome["answer"] or ""

    return answer


async def measured(arm: Arm, question: str, width: int, endpoint: Endpoint) -> Sample:
    """Answer one question, and check that it took N + 2 requests.

    Raises:
        RuntimeError: The number of requests or the answer differs.
    """
    before = endpoint.count()
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    answer = await arm(question)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    made = endpoint.count() - before
    if made != width + 2 or answer != "ok":
        raise RuntimeError(f"{made} requests instead of {width + 2}; the answer: {answer!r}")
    return Sample(1e3 * cpu / made, 1e3 * wall / made)


async def compare(config: Config, report: Report) -> None:
    """Measure each arm, width and latency; one row each."""
    found: dict[tuple[str, int, float], list[Sample]] = {}
    with mock_endpoint() as endpoint, tempfile.TemporaryDirectory() as folder:
        for latency in config.latencies_ms:
            url, concurrency = endpoint.base_url(latency), config.concurrency
            plain = [Plain(url, concurrency) for _ in range(2)]
            ours = [OpenAIClient(url, "none", concurrency=concurrency) for _ in range(3)]
            stores = [
                TraceStore(Path(folder, f"{latency}.db")),
                UnwrittenStore(Path(folder, f"{latency}-unwritten.db")),
            ]
            arms = {
                "floor": floor(plain[0].ask),
                "langgraph": langgraph(plain[1].ask),
                "reflux": reflux(ours[0], stores[0], max(config.widths)),
                "unrecorded": reflux(ours[1], stores[1], max(config.widths)),
                "our client": floor(our_client(ours[2])),
            }
            for width in config.widths:
                for repeat in range(config.warm_ups + config.repeats):
                    for name, arm in arms.items():
                        if name in PRICED and latency != min(config.latencies_ms):
                            continue
                        question = f"{SPLIT}{width} ({repeat})"
                        sample = await measured(arm, question, width, endpoint)
                        if repeat >= config.warm_ups:
                            found.setdefault((name, width, latency), []).append(sample)
            for client in (*plain, *ours):
                await client.close()
            for store in stores:
                store.close()
    prices = await leaf_price(config)
    report.rows += [
        *rows(found),
        {
            "arm": "the store alone",
            "parts": max(config.widths),
            "n": len(prices),
            "cpu_ms_per_call": round(middle(prices), 4),
            "cpu_spread": [round(price, 4) for price in spread(prices)],
        },
    ]
    report.claims += claims(config, found)


def rows(found: Mapping[tuple[str, int, float], Sequence[Sample]]) -> list[dict[str, Any]]:
    """Median and spread of each arm, and its CPU as a multiple of the floor's."""
    table: list[dict[str, Any]] = []
    for (name, width, latency), samples in found.items():
        cpu = [sample.cpu_ms for sample in samples]
        wall = [sample.wall_ms for sample in samples]
        least = middle([sample.cpu_ms for sample in found["floor", width, latency]])
        table.append(
            {
                "arm": name,
                "parts": width,
                "latency_ms": latency,
                "n": len(samples),
                "cpu_ms_per_call": round(middle(cpu), 4),
                "cpu_spread": [round(value, 4) for value in spread(cpu)],
                "times_floor": round(middle(cpu) / least, 3),
                "wall_ms_per_call": round(middle(wall), 4),
                "wall_spread": [round(value, 4) for value in spread(wall)],
            }
        )
    return table


async def leaf_price(config: Config) -> list[float]:
    """CPU of the store alone, in ms for each direct answer: its step, call and judgement.

    It adds them as the graph does: `concurrency` answers at once, each row awaited before the next.
    """
    messages = json.dumps([{"role": r, "content": c} for r, c in answer_prompt("part 17 of 256")])
    asked = {"kind": "model", "model": MODEL, "messages": messages, "request_digest": "0" * 32}
    reply = {"completion": "ok", "prompt_tokens": 4, "completion_tokens": 1, "seconds": 0.1}
    step = {"kind": "script", "completion": "{}", "prompt_tokens": 0, "completion_tokens": 0}
    detail = {"question": "part 17 of 256", "answer": "ok", "tally": [("ok", 1)], "votes": 1}
    gate = asyncio.Semaphore(config.concurrency)

    async def leaf(store: TraceStore, question: str, index: int) -> None:
        path = f"/0.0.{index}"
        async with gate:
            taken = step | {"seconds": 0.0, "cached": 0}
            await store.add_call(CallKey(question, path, "overseer"), taken)
            call = asked | reply | {"cached": 0}
            await store.add_call(CallKey(question, path, "answer"), call)
            await store.add_judgement(question, path, "direct", True, detail, key="0.0")

    prices: list[float] = []
    width = max(config.widths)
    with tempfile.TemporaryDirectory() as folder:
        store = TraceStore(Path(folder, "t.db"))
        for repeat in range(config.warm_ups + config.repeats):
            gc.collect()
            begun = time.process_time()
            await asyncio.gather(*(leaf(store, str(repeat), i) for i in range(width)))
            prices.append(1e3 * (time.process_time() - begun) / width)
        store.close()
    return prices[config.warm_ups :]


def claims(
    config: Config,
    found: Mapping[tuple[str, int, float], Sequence[Sample]],
) -> list[Claim]:
    """Targets at N = 256 (or the widest measured) without latency."""
    width = 256 if 256 in config.widths else max(config.widths)
    latency = min(config.latencies_ms)
    cpu = {
        name: [sample.cpu_ms for sample in found[name, width, latency]]
        for name in ("floor", "langgraph", "reflux", "unrecorded")
    }
    trajectory = middle(cpu["reflux"]) - middle(cpu["unrecorded"])
    ratios = [ours / least for ours, least in zip(cpu["reflux"], cpu["floor"], strict=True)]
    above = [ours - by_hand for ours, by_hand in zip(cpu["reflux"], cpu["langgraph"], strict=True)]
    n = len(ratios)
    at = f"N = {width}, {latency:g} ms"
    return [
        Claim(
            f"CPU per call, times the floor's ({at})",
            middle(cpu["reflux"]) / middle(cpu["floor"]),
            "<=", 1.5, n, spread(ratios),
        ),
        Claim(
            f"CPU per call above LangGraph by hand, at most the trajectory's {trajectory:.3f} ms "
            f"({at})",
            middle(cpu["reflux"]) - middle(cpu["langgraph"]),
            "<=", trajectory, n, spread(above),
        ),
    ]  # fmt: skip


def main(config: Config) -> None:
    """Measure and report."""
    report = Report("overhead", seed=0, quick=config.quick)
    asyncio.run(compare(config, report))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=cast(str, __doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    small = Config(widths=(4, 16), latencies_ms=(0, 5), warm_ups=1, repeats=2, quick=True)
    main(small if parser.parse_args().quick else Config())
