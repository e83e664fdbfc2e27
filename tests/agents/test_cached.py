"""Identical model calls are made once; independent votes stay independent."""

import asyncio
from dataclasses import replace

import pytest

from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatRequest, Completion, Sampling

QUESTION = ChatRequest("m", (("user", "q"),))


class HeldClient:
    """Answers each request only when the test says so."""

    def __init__(self) -> None:
        self.flights: list[asyncio.Future[Completion]] = []

    async def complete(self, request: ChatRequest) -> Completion:
        flight: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self.flights.append(flight)
        return await flight

    async def model_digest(self, model: str) -> str:
        return model


async def turns() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_identical_concurrent_requests_make_one_call() -> None:
    model = ScriptedClient(lambda _: Completion("a", 3, 1, 0.5, retries=("500",)), lambda _: 0.001)
    cache = CachedClient(model)
    replies = await asyncio.gather(*(cache.complete(QUESTION) for _ in range(5)))
    assert len(model.requests) == 1
    assert [r.cached for r in replies] == [False, True, True, True, True]
    assert {(r.text, r.tokens) for r in replies} == {("a", 4)}
    assert all(r.seconds == 0 and r.retries == () for r in replies[1:])


async def test_a_reply_given_before_is_not_asked_for_again() -> None:
    model = ScriptedClient(lambda _: "a")
    cache = CachedClient(model)
    first, second = await cache.complete(QUESTION), await cache.complete(QUESTION)
    assert (first.cached, second.cached, len(model.requests)) == (False, True, 1)


async def test_all_that_decides_the_reply_keeps_requests_apart() -> None:
    model = ScriptedClient(lambda _: "a")
    cache = CachedClient(model)
    different = [
        QUESTION,
        replace(QUESTION, vote=1),
        replace(QUESTION, sampling=Sampling(seed=1)),
        replace(QUESTION, sampling=Sampling(temperature=0.5)),
        replace(QUESTION, model="n"),
        replace(QUESTION, messages=(("system", "q"),)),
    ]
    replies = await asyncio.gather(*(cache.complete(request) for request in different))
    assert len(model.requests) == len(different)
    assert not any(r.cached for r in replies)


async def test_a_failed_flight_fails_for_all_and_the_next_request_asks_anew() -> None:
    model = HeldClient()
    cache = CachedClient(model)
    tasks = [asyncio.create_task(cache.complete(QUESTION)) for _ in range(3)]
    await turns()
    model.flights[0].set_exception(EndpointError("down"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(r) for r in results] == ["down"] * 3
    again = asyncio.create_task(cache.complete(QUESTION))
    await turns()
    model.flights[1].set_result(Completion("up"))
    assert (await again).text == "up"


async def test_those_who_joined_survive_the_cancellation_of_the_first() -> None:
    model = HeldClient()
    cache = CachedClient(model)
    first, *others = [asyncio.create_task(cache.complete(QUESTION)) for _ in range(3)]
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    assert len(model.flights) == 2  # One of the others asks, the other joins it.
    model.flights[1].set_result(Completion("a"))
    assert [r.text for r in await asyncio.gather(*others)] == ["a", "a"]


async def test_one_who_joined_can_be_cancelled_alone() -> None:
    model = HeldClient()
    cache = CachedClient(model)
    first, other = [asyncio.create_task(cache.complete(QUESTION)) for _ in range(2)]
    await turns()
    other.cancel()
    await turns()
    assert other.cancelled()
    model.flights[0].set_result(Completion("a"))
    assert (await first).text == "a"


async def test_when_all_are_cancelled_together_nobody_asks_again() -> None:
    model = HeldClient()
    cache = CachedClient(model)
    tasks = [asyncio.create_task(cache.complete(QUESTION)) for _ in range(3)]
    await turns()
    for task in tasks:
        task.cancel()
    await turns()
    assert all(task.cancelled() for task in tasks)
    assert len(model.flights) == 1


async def test_the_oldest_replies_go_first() -> None:
    model = ScriptedClient(lambda _: "a")
    cache = CachedClient(model, limit=2)
    for vote in (0, 1, 2):
        await cache.complete(replace(QUESTION, vote=vote))
    assert (await cache.complete(replace(QUESTION, vote=2))).cached
    assert (await cache.complete(replace(QUESTION, vote=1))).cached
    assert not (await cache.complete(QUESTION)).cached


async def test_a_reply_from_elsewhere_is_used() -> None:
    model = ScriptedClient(lambda _: pytest.fail("asked"))
    cache = CachedClient(model)
    cache.put(QUESTION.digest("scripted:m"), Completion("known"))
    assert (await cache.complete(QUESTION)).text == "known"
