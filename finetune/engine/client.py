"""The batched engine: one thread decodes many requests together, in transformers and bf16.

Bulk commands use it. On GPUs and on processors that multiply bf16 matrices it answers several
times as many short requests per second as llama.cpp (`benchmarks.engine`). It takes seconds to
start, llama.cpp half a second, so single questions go there.

Requests with tools, a schema or tool calls go to llama.cpp, which holds replies to a grammar; of a
base without a GGUF nothing holds them, and tools are refused. The request alone decides, so timing
never changes which engine answers.
"""

import asyncio
import contextlib
import copy
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from reflux.agents.clients.llama_cpp import (
    EngineConfig,
    LlamaCppClient,
    ModelFiles,
    file_sha256,
    short_waits,
)
from reflux.agents.errors import EndpointError, MissingError, RefluxError, UsageError
from reflux.agents.types import ChatRequest, Completion
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BaseConfig, BatchedConfig

if TYPE_CHECKING:  # Only the thread imports torch, which takes seconds.
    from reflux.finetune.engine.scheduler import Row, Scheduler

NO_TOOLS = (
    "tools: in this process only llama.cpp calls them, and the base has no GGUF for it: name a "
    "GGUF as the base, or let a server run it (`engine: {kind: vllm, url: …}`)"
)
GATHER_SECONDS, IDLE_SECONDS = 0.002, 1.0
"""How long an idle thread waits for more requests, and how long until it releases memory."""


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
            EndpointError: the engine failed or was closed, or as `Scheduler.add`.
            UsageError: as `Scheduler.add`.
        """
        tools = request.tools or any(turn[2:] for turn in request.messages)
        if tools or request.schema:
            if self._resolve(request.model).gguf is not None:
                return await self.llama_cpp.complete(request)
            if tools:
                raise UsageError(NO_TOOLS)
            request = replace(request, schema="")  # The parser of replies takes free text.
        if self._worker is None:
            self._worker = _Worker(self._resolve, self._config)
            self._worker.start()
        job = _Job(request)
        self._worker.inbox.put(job)
        # Cancelling this cancels the job's future, too, and its row leaves at the next step.
        return await asyncio.wrap_future(job.future)

    async def load(self, model: str) -> None:
        """Check that a model has its files, which are read with its first request.

        Raises:
            UsageError, MissingError: it has not.
        """
        self._resolve(model)

    async def model_digest(self, model: str) -> str:
        """Digest of the base file and the adapter.

        It differs from llama.cpp's for the same weights: the two engines round differently, so
        neither may replay the other's answers.
        """
        files = self._resolve(model)
        hashes = [_base_of(files).digest]
        if (folder := _peft_folder(files)) is not None:
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


def _base_of(files: ModelFiles) -> Base:
    return files.base or Base(BaseConfig(), gguf=files.gguf)


def _peft_folder(files: ModelFiles) -> Path | None:
    if files.peft is None and files.adapter is not None:
        raise MissingError(
            f"{files.adapter} is a GGUF adapter, and the batched engine reads PEFT adapters: name "
            "the PEFT folder, or use llama.cpp"
        )
    return files.peft


def load_weights(files: ModelFiles) -> tuple[Any, Any]:
    """(model, tokenizer), with the adapter merged.

    Raises:
        MissingError: a file is missing, or is not a model or adapter.
    """
    from reflux.finetune.base_model import load_base

    base = _base_of(files)
    # A student that was trained on 4-bit weights is run on whole ones.
    whole = base.config.model_copy(update={"quantization": "none"})
    return load_base(base.folder, _peft_folder(files), whole)


@dataclass(eq=False)
class _Job:
    """A request and the future of its completion, which is cancelled once nobody waits for it."""

    request: ChatRequest
    future: Future[Completion] = field(default_factory=Future[Completion])
    begun: float = field(default_factory=time.perf_counter)

    def settle(self, outcome: Completion | Exception) -> None:
        """Wake the caller, unless it was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            # A copy each: an exception that is raised twice carries two tracebacks.
            self.future.set_exception(copy.copy(outcome))
        else:
            self.future.set_result(outcome)


class _Worker(threading.Thread):
    """Owns the models, and steps those that have rows in turn."""

    def __init__(self, resolve: Callable[[str], ModelFiles], config: BatchedConfig) -> None:
        # Daemon: a client that is never closed must not keep the process alive.
        super().__init__(name="reflux-batched", daemon=True)
        self._resolve, self._config = resolve, config
        self.inbox: SimpleQueue[_Job | None] = SimpleQueue()
        """New jobs, from any thread; None wakes the worker."""
        self._closing = False
        self._schedulers: OrderedDict[str, Scheduler] = OrderedDict()
        self._held: list[_Job | None] = []
        """Jobs that have no row yet, such as those whose model waits for another to be idle."""
        self._jobs: dict[Row, _Job] = {}

    def close(self) -> None:
        """Stop after the current step, from any thread."""
        self._closing = True
        self.inbox.put(None)

    def run(self) -> None:
        """Decode until `close`."""
        while True:
            self._receive()
            if self._closing:
                break
            self._admit()
            for name in [n for n, scheduler in self._schedulers.items() if scheduler.busy]:
                self._step(name)
        while not self.inbox.empty():
            self._held.append(self.inbox.get())
        closed = EndpointError("the batched engine was closed before it answered")
        for job in filter(None, [*self._held, *self._jobs.values()]):
            job.settle(closed)
        self._schedulers.clear()

    def _receive(self) -> None:
        """Hold the new jobs, for which an idle thread waits."""
        idle = not self._held and not any(s.busy for s in self._schedulers.values())
        if idle:
            try:
                self._held.append(self.inbox.get(timeout=IDLE_SECONDS))
            except Empty:
                for scheduler in self._schedulers.values():
                    scheduler.release()
                self._held.append(self.inbox.get())
        with contextlib.suppress(Empty):
            while not self._closing:
                gather = idle and len(self._held) < self._config.rows
                self._held.append(self.inbox.get(timeout=GATHER_SECONDS if gather else 0))

    def _admit(self) -> None:
        """Turn held jobs into rows of their models, which are loaded if there is room."""
        jobs = [job for job in self._held if job is not None and not job.future.cancelled()]
        self._held = []
        for name in dict.fromkeys(job.request.model for job in jobs):
            requested = [job for job in jobs if job.request.model == name]
            try:
                scheduler = self._scheduler(name)
            except Exception as error:  # noqa: BLE001 - the waiting callers get it.
                _fail(requested, error, f"could not load {name}")
                continue
            if scheduler is None:
                self._held += requested
                continue
            for job in requested:
                try:
                    self._jobs[scheduler.add(job.request)] = job
                except Exception as error:  # noqa: BLE001
                    _fail([job], error, "could not read a request")

    def _scheduler(self, name: str) -> "Scheduler | None":
        """The scheduler of a model, loaded if needed; None while all others are busy."""
        if name not in self._schedulers:
            with short_waits():
                from reflux.finetune.engine.generate import scheduler_for

            for idle in [n for n, other in self._schedulers.items() if not other.busy]:
                if len(self._schedulers) < self._config.models:
                    break
                del self._schedulers[idle]
            if len(self._schedulers) >= self._config.models:
                return None
            weights = load_weights(self._resolve(name))
            self._schedulers[name] = scheduler_for(*weights, self._config)
        self._schedulers.move_to_end(name)
        return self._schedulers[name]

    def _step(self, name: str) -> None:
        """Step one model; a failure fails all its rows."""
        scheduler = self._schedulers[name]
        for row, job in self._jobs.items():
            row.dropped = job.future.cancelled()
        try:
            for row in scheduler.step():
                job = self._jobs.pop(row)
                job.settle(scheduler.completion(row, time.perf_counter() - job.begun))
        except Exception as error:  # noqa: BLE001
            del self._schedulers[name]
            lost = [row for row, job in self._jobs.items() if job.request.model == name]
            _fail([self._jobs.pop(row) for row in lost], error, f"failed with {name}")
        self._jobs = {row: job for row, job in self._jobs.items() if not row.dropped}


def _fail(jobs: Sequence[_Job], error: Exception, activity: str) -> None:
    if not isinstance(error, RefluxError | OSError):
        failure = EndpointError(
            f"the batched engine {activity}: {type(error).__name__}: {error}; set engine: "
            "llama.cpp, or lower batched.rows if memory is short"
        )
        failure.__cause__ = error
        error = failure
    for job in jobs:
        job.settle(error)
