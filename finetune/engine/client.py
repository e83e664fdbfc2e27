"""The batched engine: one thread decodes many requests together, in transformers and bf16.

Bulk commands use it. On GPUs and on processors that multiply bf16 matrices it answers several
times as many short requests per second as llama.cpp (`benchmarks.engine`). It takes seconds to
start, llama.cpp half a second, so single questions go there.

Requests with tools, a schema or tool calls go to llama.cpp, which holds replies to a grammar. The
request alone decides, so timing never changes which engine answers.
"""

import asyncio
import copy
import hashlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from reflux.agents.clients.llama_cpp import (
    EngineConfig,
    LlamaCppClient,
    ModelFiles,
    file_sha256,
    short_waits,
)
from reflux.agents.errors import EndpointError, MissingError, RefluxError
from reflux.agents.types import ChatRequest, Completion

if TYPE_CHECKING:  # Only the thread imports torch, which takes seconds.
    from reflux.finetune.engine.scheduler import Row, Scheduler

GATHER_SECONDS, IDLE_SECONDS = 0.002, 1.0
"""How long an idle thread waits for more requests, and how long until it releases memory."""


@dataclass(frozen=True)
class BatchedConfig:
    """Settings of the batched engine."""

    rows: Annotated[int, Field(ge=1)] = 128
    """Maximum requests that are decoded together."""
    context: Annotated[int, Field(ge=2)] = 2048
    """Maximum tokens of a request, prompt and completion; the model may have fewer."""
    models: Annotated[int, Field(ge=1)] = 3
    """Models in memory; the least recently used is dropped first."""
    prefix_cache: bool = True
    """Prefill what the prompts of a system message begin with once, and keep it."""


class BatchedClient:
    """Completes chats in batches, in a thread that starts with the first request."""

    def __init__(
        self,
        resolve: Callable[[str], ModelFiles],
        config: BatchedConfig | None = None,
        llama_cpp: EngineConfig | None = None,
    ) -> None:
        """
        Args:
            resolve: maps a model name to its files, as for `LlamaCppClient`.
            llama_cpp: settings of the engine for requests with tools or schemas.
        """
        self.llama_cpp = LlamaCppClient(resolve, llama_cpp)
        """The same models in llama.cpp, which starts with its first request."""
        self._resolve = resolve
        self._config = config or BatchedConfig()
        self._worker: _Worker | None = None

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError: the prompt fills the context, or the engine failed or was closed.
            UsageError: the request is not Unicode text, or the chat template refuses it.
        """
        if request.tools or request.schema or any(turn[2:] for turn in request.messages):
            return await self.llama_cpp.complete(request)
        if self._worker is None:
            self._worker = _Worker(self._resolve, self._config)
            self._worker.start()
        loop = asyncio.get_running_loop()
        job = _Job(request, loop, loop.create_future(), time.perf_counter())
        self._worker.put(job)
        try:
            return await job.future
        finally:
            job.drop()  # On cancellation, nobody waits for the reply.

    async def model_digest(self, model: str) -> str:
        """Digest of the base file and the adapter.

        It differs from llama.cpp's for the same weights: the two engines round differently, so
        neither may replay the other's answers.
        """
        files = self._resolve(model)
        hashes = [file_sha256(files.gguf)]
        if files.adapter is not None:
            folder = _peft_folder(files)
            names = ("adapter_model.safetensors", "adapter_config.json")
            hashes += [file_sha256(folder / name) for name in names]
        return f"bf16:{hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:32]}"

    async def close(self) -> None:
        """Stop the thread after its current step, and llama.cpp; pending requests fail."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
            await asyncio.to_thread(worker.join)
        await self.llama_cpp.close()


def _peft_folder(files: ModelFiles) -> Path:
    if files.peft is None:
        raise MissingError(
            f"{files.adapter} is a GGUF adapter, and the batched engine reads PEFT adapters: name "
            "the PEFT folder, or use llama.cpp"
        )
    return files.peft


def load_weights(files: ModelFiles) -> tuple[Any, Any]:
    """(model, tokenizer), with the adapter merged in fp32 and rounded once.

    Raises:
        MissingError: a file is missing, or is not a model or adapter.
    """
    from reflux.finetune.base_model import (
        dequantised_base,
        load_adapted,
        load_base,
        quiet_libraries,
    )

    base = dequantised_base(files.gguf)
    if files.adapter is None:
        return load_base(base)
    student, tokenizer = load_adapted(base, _peft_folder(files))
    with quiet_libraries():
        return student.merge_and_unload(), tokenizer


@dataclass(eq=False)
class _Job:
    """A request and the future of its completion."""

    request: ChatRequest
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Completion]
    begun: float
    row: "Row | None" = None
    dropped: bool = False

    def drop(self) -> None:
        """Remove the row from its batch at the next step."""
        self.dropped = True
        if self.row is not None:
            self.row.dropped = True


class _Worker(threading.Thread):
    """Owns the models, and steps those that have rows in turn."""

    def __init__(self, resolve: Callable[[str], ModelFiles], config: BatchedConfig) -> None:
        # Daemon: a client that is never closed must not keep the process alive.
        super().__init__(name="reflux-batched", daemon=True)
        self._resolve, self._config = resolve, config
        self._inbox: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._schedulers: OrderedDict[str, Scheduler] = OrderedDict()
        self._held: list[_Job] = []
        """Jobs whose model cannot be loaded until another is idle."""
        self._jobs: dict[Row, _Job] = {}
        self._outcomes: list[tuple[_Job, Completion | Exception]] = []

    def put(self, job: _Job) -> None:
        """Queue a job, from any thread."""
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Stop after the current step, from any thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def run(self) -> None:
        """Decode until `close`."""
        while (new := self._receive()) is not None:
            self._admit(new)
            for name in [n for n, scheduler in self._schedulers.items() if scheduler.busy]:
                self._step(name)
            self._deliver()
        closed = EndpointError("the batched engine was closed before it answered")
        pending = [*self._inbox, *self._held, *self._jobs.values()]
        self._outcomes += [(job, copy.copy(closed)) for job in pending]
        self._deliver()
        self._schedulers.clear()

    def _receive(self) -> list[_Job] | None:
        """New jobs, for which an idle thread waits; None after `close`."""
        busy = self._held or any(scheduler.busy for scheduler in self._schedulers.values())
        with self._wake:
            if not busy and not self._wait(IDLE_SECONDS):
                for scheduler in self._schedulers.values():
                    scheduler.release()
                self._wait(None)
            if not busy:
                seen = 0
                while seen < len(self._inbox) < self._config.rows and not self._closing:
                    seen = len(self._inbox)
                    self._wake.wait_for(lambda: self._closing, GATHER_SECONDS)
            if self._closing:
                return None
            new = list(self._inbox)
            self._inbox.clear()
        return new

    def _wait(self, seconds: float | None) -> bool:
        return self._wake.wait_for(lambda: bool(self._inbox) or self._closing, seconds)

    def _admit(self, new: Sequence[_Job]) -> None:
        """Turn jobs into rows of their models, which are loaded if there is room."""
        jobs, self._held = [job for job in [*self._held, *new] if not job.dropped], []
        for name in dict.fromkeys(job.request.model for job in jobs):
            requested = [job for job in jobs if job.request.model == name]
            try:
                scheduler = self._scheduler(name)
            except Exception as error:  # noqa: BLE001 - the waiting callers get it.
                self._fail(requested, error, f"could not load {name}")
                continue
            if scheduler is None:
                self._held += requested
                continue
            for job in requested:
                try:
                    job.row = scheduler.row(job.request)
                except Exception as error:  # noqa: BLE001
                    self._fail([job], error, "could not read a request")
                    continue
                job.row.dropped = job.dropped  # It may have been dropped before it had a row.
                self._jobs[job.row] = job
                scheduler.add([job.row])

    def _scheduler(self, name: str) -> "Scheduler | None":
        """The scheduler of a model, loaded if needed; None while all others are busy."""
        if name not in self._schedulers:
            with short_waits():
                from reflux.finetune.engine.scheduler import Scheduler

            for idle in [n for n, other in self._schedulers.items() if not other.busy]:
                if len(self._schedulers) < self._config.models:
                    break
                del self._schedulers[idle]
            if len(self._schedulers) >= self._config.models:
                return None
            config = self._config
            self._schedulers[name] = Scheduler(
                *load_weights(self._resolve(name)),
                rows=config.rows,
                context=config.context,
                prefix_cache=config.prefix_cache,
            )
        self._schedulers.move_to_end(name)
        return self._schedulers[name]

    def _step(self, name: str) -> None:
        """Step one model; a failure fails all its rows."""
        scheduler = self._schedulers[name]
        try:
            for row in scheduler.step():
                job = self._jobs.pop(row)
                seconds = time.perf_counter() - job.begun
                self._outcomes.append((job, scheduler.completion(row, seconds)))
        except Exception as error:  # noqa: BLE001
            del self._schedulers[name]
            lost = [job for job in self._jobs.values() if job.request.model == name]
            self._fail(lost, error, f"failed with {name}")
        self._jobs = {row: job for row, job in self._jobs.items() if not row.dropped}

    def _fail(self, jobs: Sequence[_Job], error: Exception, activity: str) -> None:
        if not isinstance(error, RefluxError | OSError):
            failure = EndpointError(
                f"the batched engine {activity}: {type(error).__name__}: {error}; set engine: "
                "llama.cpp, or lower batched.rows if memory is short"
            )
            failure.__cause__ = error
            error = failure
        for job in jobs:
            # A copy each: an exception that is raised twice carries two tracebacks.
            self._outcomes.append((job, copy.copy(error)))
            if job.row is not None:
                self._jobs.pop(job.row, None)

    def _deliver(self) -> None:
        """Hand the outcomes to their event loops, waking each loop once."""
        outcomes, self._outcomes = self._outcomes, []
        for loop in {job.loop for job, _ in outcomes}:
            settled = [(job.future, outcome) for job, outcome in outcomes if job.loop is loop]
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, settled)


def _settle(outcomes: Sequence[tuple[asyncio.Future[Completion], Completion | Exception]]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue  # The caller was cancelled.
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
