"""The invocations of LangChain runnables that run now, each as a trajectory that grows."""

import atexit
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from reflux.agents.types import Completion
from reflux.graphs.external.runnable_values import asked, resumes
from reflux.graphs.traces.importing.nested_paths import Paths
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import (
    AGENT,
    UNFINISHED,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
)
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter

SOURCE = "callback"
NAMESPACE = "langgraph_checkpoint_ns"
OURS = ("langgraph_", "checkpoint", "ls_", "lc_", "__pregel", "revision_id")
"""How metadata begin that LangChain and LangGraph add themselves."""
OUR_TAGS = ("graph:step:", "seq:step:", "map:key:", "langsmith:", "condition:")
KEPT_IDS = 1_000


@dataclass
class Invocation:
    """One trajectory while it grows."""

    trajectory: Trajectory
    paths: Paths = field(default_factory=Paths)
    steps: int = 0
    waits: str = ""
    """What a human is asked."""
    resumed: bool = False


@dataclass
class Run:
    """A run of LangChain's that has begun: a chain, a node, or a call."""

    root: UUID
    namespace: tuple[str, ...] = ()
    call: RecordedCall | None = None
    clock: float = field(default_factory=time.perf_counter)

    def reply(self, reply: Completion) -> Completion:
        """A reply that has come now."""
        return replace(reply, seconds=time.perf_counter() - self.clock)


@dataclass(frozen=True)
class Beginning:
    """What LangChain says of a run when it begins."""

    id: UUID
    parent: UUID | None
    name: str = ""
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Invocations:
    """Stores what the runs of one recorder do, from any thread."""

    def __init__(
        self, path: Path, lose: Callable[[BaseException], None], template: Trajectory
    ) -> None:
        """
        Args:
            lose: hears why something is not stored.
            template: the name, metadata and tags of every trajectory; its key, if it has one.
        """
        self.path = path
        self.lose = lose
        self.template = template
        self.lock = threading.RLock()
        self.runs: dict[UUID, Run] = {}
        self.ended: list[str] = []
        self._roots: dict[UUID, Invocation] = {}
        self._waiting: dict[str, str] = {}
        """The trajectory that waits for a human, by its thread."""
        self._store: TraceStore | None = None
        self._owned = True
        self._process = os.getpid()

    def write_to(self, store: TraceStore) -> None:
        """Store in what the caller closes."""
        self._store, self._owned = store, False

    def close(self) -> None:
        """Write what is queued."""
        with self.lock:
            if self._store is not None and self._owned and self._process == os.getpid():
                self._store.close()
                self._store = None

    def begin(self, beginning: Beginning, inputs: Any) -> Run:
        """A run, with a trajectory of its own where none is above it."""
        with self.lock:
            above = None if beginning.parent is None else self.runs.get(beginning.parent)
            ns = str(beginning.metadata.get(NAMESPACE) or "")
            root = beginning.id if above is None else above.root
            run = self.runs[beginning.id] = Run(root, tuple(filter(None, ns.split("|"))))
            if above is None:
                self._roots[root] = self._invocation(beginning, inputs)
            step = beginning.metadata.get("langgraph_step")
            if run.namespace and isinstance(step, int):
                self._roots[root].paths.steps.setdefault(run.namespace, step)
            return run

    def _invocation(self, beginning: Beginning, inputs: Any) -> Invocation:
        given = beginning.metadata.items()
        own: dict[str, Any] = {k: v for k, v in given if not str(k).startswith(OURS)}
        earlier = self._waiting.pop(str(own.get("thread_id")), "") if resumes(inputs) else ""
        own |= {"resumes": earlier} if earlier else {}
        tags = (tag for tag in beginning.tags if not tag.startswith(OUR_TAGS))
        trajectory = replace(
            self.template,
            key=self.template.key or str(beginning.id),
            text=asked(inputs),
            name=self.template.name or beginning.name,
            metadata=json.loads(json.dumps({**self.template.metadata, **own}, default=str)),
            tags=(*self.template.tags, *tags),
            created=time.time(),
        )
        return Invocation(trajectory, resumed=bool(earlier))

    def call(self, beginning: Beginning, call: RecordedCall, text: str) -> None:
        """Begin a model call or a tool call; `text` is what its trajectory is about, unless its
        input or an earlier call says it."""
        with self.lock:
            run = self.begin(beginning, text)
            invocation = self._roots[run.root]
            if not invocation.trajectory.text:
                invocation.trajectory = replace(invocation.trajectory, text=text)
            run.call = replace(
                call,
                node=str(beginning.metadata.get("langgraph_node") or AGENT),
                path=invocation.paths.of(run.namespace[:-1]),
                step=invocation.steps,
                created=time.time(),
            )
            invocation.steps += 1

    def add(self, run: Run, call: RecordedCall) -> None:
        """Store a call that has ended."""
        self._submit(self._roots[run.root].trajectory, [call])

    def wait(self, run: Run, reason: str) -> None:
        """Remember that the invocation of a run waits for a human."""
        self._roots[run.root].waits = reason

    def end(self, id: UUID, outcome: RecordedOutcome) -> None:
        """Forget a run that ended; that of the outermost is the trajectory's outcome."""
        with self.lock:
            run = self.runs.pop(id, None)
            if run is None or run.root != id:
                return
            invocation = self._roots.pop(id)
            for key in [key for key, each in self.runs.items() if each.root == id]:
                del self.runs[key]  # A stream that was left: nobody ends its inner runs.
            trajectory = invocation.trajectory
            if invocation.waits:
                outcome = RecordedOutcome(None, UNFINISHED, invocation.waits)
                self._waiting[str(trajectory.metadata.get("thread_id"))] = trajectory.id
            if invocation.steps or invocation.resumed or outcome.status != "unchecked":
                self.ended = [*self.ended[1 - KEPT_IDS :], trajectory.id]
                self._submit(trajectory, [], outcome)

    def _submit(
        self, trajectory: Trajectory, calls: list[RecordedCall], end: RecordedOutcome | None = None
    ) -> None:
        if self._process != os.getpid():  # A fork has no thread that writes.
            self._store, self._process = None, os.getpid()
        if self._store is None:
            self._store = TraceStore(self.path)
            atexit.register(_close, weakref.ref(self))
        done = TrajectoryWriter(self._store).add(trajectory, calls, end)
        done.add_done_callback(self._committed)

    def _committed(self, done: "Future[None]") -> None:
        if (error := done.exception()) is not None:
            self.lose(error)


def _close(invocations: "weakref.ref[Invocations]") -> None:
    if (alive := invocations()) is not None:
        alive.close()
