"""Plays a world to its end, with replies that arrive in a given order and never by the clock."""

import asyncio
import json
import selectors
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.errors import EndpointError
from reflux.agents.types import ChatRequest, Completion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Origin, answer_all
from reflux.graphs.traces.store import TraceStore
from tests.support.reference import amplify_reference
from tests.support.worlds import World

ASKED = Origin("run", 1, "amplified", "worlds", "train")

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - nothing outlives it
"""Hundreds of stores are made and dropped; what a disk adds is time."""

orders = st.lists(st.integers(0, 11), max_size=12)
"""Which of the waiting replies comes next, counted from the oldest; over and over again."""


class HeldClient:
    """A client whose replies wait until nothing else can happen; then one of them arrives."""

    def __init__(self, world: World, order: Sequence[int]) -> None:
        self._world = world
        self._order: Iterator[int] = cycle(order or [0])
        self._waiting: list[asyncio.Future[None]] = []
        self.requests: list[str] = []
        """Digests, in order of arrival."""

    async def complete(self, request: ChatRequest) -> Completion:
        self.requests.append(request.digest("weights"))
        number = len(self.requests)
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(held)
        await held
        if number <= self._world.outage:
            raise EndpointError("down for now")
        return self._world.reply(request)

    async def model_digest(self, model: str) -> str:
        return "weights"

    def release(self) -> bool:
        """Let the next reply arrive; False where none is awaited."""
        if not self._waiting:
            return False
        self._waiting.pop(next(self._order) % len(self._waiting)).set_result(None)
        return True


class WatchedStore(TraceStore):
    """A store that knows how many of its rows are on their way."""

    writing = 0

    async def _insert(self, table: str, values: Any, ignore: bool = False) -> None:
        self.writing += 1
        try:
            await super()._insert(table, values, ignore)
        finally:
            self.writing -= 1


class Deadlock(BaseException):
    """Every task waits, and nothing is under way that could wake one."""


class IdleSelector(selectors.DefaultSelector):
    """Tells when its loop has nothing left to do but wait."""

    wake: Callable[[], bool] = staticmethod(lambda: False)
    """Called then; True where it gave the loop something to do."""

    def select(self, timeout: float | None = None) -> Any:
        return super().select(0 if timeout is None and self.wake() else timeout)


class AtOnce(ThreadPoolExecutor):
    """Runs LangGraph's plain functions where they are called: no thread decides an order."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done


@dataclass
class Played:
    """What became of a world."""

    outcomes: list[Outcome]
    requests: list[str]
    """Digests of the requests that the client saw, in order."""
    rows: list[dict[str, Any]]
    """The call log, in order."""
    judgements: list[dict[str, Any]]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The model calls of the log, in order."""
        return [row for row in self.rows if row["kind"] == "model"]


Answerer = Callable[[World, AmplifyContext], Awaitable[list[Outcome]]]


async def by_graph(world: World, context: AmplifyContext) -> list[Outcome]:
    """The roots side by side, as the rounds ask them."""
    return await answer_all(Amplified(context), ASKED, world.roots)


async def by_reference(world: World, context: AmplifyContext) -> list[Outcome]:
    """The roots one after the other, by plain recursion."""
    return [await amplify_reference(context, root, ASKED.question_id(root)) for root in world.roots]


def play(
    world: World,
    order: Sequence[int] = (),
    *,
    cached: bool = False,
    answer: Answerer = by_graph,
    folder: Path | None = None,
) -> Played:
    """Answer the roots of a world; in a `folder` that holds a store, go on with that.

    Raises:
        Deadlock: nothing could go on, and not all was answered.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="reflux-world-", dir=IN_MEMORY) as fresh:
            return play(world, order, cached=cached, answer=answer, folder=Path(fresh))
    client, store, selector = (
        HeldClient(world, order),
        WatchedStore(folder / "t.db"),
        IdleSelector(),
    )

    def wake() -> bool:
        if store.writing:
            return False
        if not client.release():
            raise Deadlock
        return True

    async def answered() -> list[Outcome]:
        asyncio.get_running_loop().set_default_executor(AtOnce())
        selector.wake = wake
        context = world.context(CachedClient(client) if cached else client, store)
        outcomes = await answer(world, context)
        selector.wake = IdleSelector.wake
        return outcomes

    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            outcomes = runner.run(answered())
        return Played(outcomes, client.requests, read(store, "calls"), read(store, "judgements"))
    finally:
        store.close()


def read(store: TraceStore, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in store.select(f"SELECT * FROM {table} ORDER BY id")]  # noqa: S608


def essence(outcomes: Iterable[Outcome]) -> list[tuple[Any, ...]]:
    """Outcomes without the wording of errors, and without what the cache saved."""
    return [
        (o["answer"], o["status"], o["error"] is None, o["spent"]["calls"], o["spent"]["tokens"])
        for o in outcomes
    ]


def sorted_rows(rows: Iterable[dict[str, Any]], *leaving_out: str) -> list[str]:
    """Rows in an order of their own, without their places in the file and times."""
    left_out = {"id", "created", "seconds", *leaving_out}
    kept = ({k: v for k, v in row.items() if k not in left_out} for row in rows)
    return sorted(json.dumps(row) for row in kept)
