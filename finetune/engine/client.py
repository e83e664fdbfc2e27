"""The batched engine: bf16 weights in transformers, many requests decoded together by one thread.

For work that comes in crowds it answers several times as many short requests a second as llama.cpp
on processors that multiply bf16 matrices, and on GPUs (`benchmarks.engine`). It takes seconds to
start, where llama.cpp takes half of one, so single questions are better asked there.

Requests with tools or a schema, or that carry tool calls, go to llama.cpp, which holds replies to a
grammar: the request alone decides, so timing never changes who answers. See
`reflux.finetune.engine.scheduler` for what a row's neighbours can change, and
`reflux.finetune.engine.sampler` for what a seed and a vote decide.
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

if TYPE_CHECKING:  # They need torch, which only the thread imports: it takes seconds.
    from reflux.finetune.engine.scheduler import Decoder, Row

GATHER_SECONDS, IDLE_SECONDS = 0.002, 1.0
"""For how long an idle thread lets a crowd gather, and when it gives memory back."""


@dataclass(frozen=True)
class BatchedConfig:
    """How the batched engine runs."""

    rows: Annotated[int, Field(ge=1)] = 128
    """Requests decoded together."""
    context: Annotated[int, Field(ge=2)] = 2048
    """Tokens for one request, prompt and completion; fewer where the model takes less."""
    models: Annotated[int, Field(ge=1)] = 3
    """Models kept at once; the least recently used goes first."""
    keep: bool = True
    """Read what the prompts of a system message begin with once, and keep it."""


class BatchedClient:
    """Completes chats in batches, in a thread that starts with the first request.

    `resolve` maps a model name to its files, as for `LlamaCppClient`.
    """

    def __init__(
        self,
        resolve: Callable[[str], ModelFiles],
        config: BatchedConfig | None = None,
        llama_cpp: EngineConfig | None = None,
    ) -> None:
        """`llama_cpp` is how the engine runs that answers what this one does not."""
        self.llama_cpp = LlamaCppClient(resolve, llama_cpp)
        """llama.cpp, with the same models; it starts when it is asked."""
        self._resolve = resolve
        self._config = config or BatchedConfig()
        self._worker: _Worker | None = None

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError: the prompt fills the context, or the engine failed or was closed.
            UsageError: the request is no Unicode text, or no chat that the model can take.
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
            job.drop()  # Where it is not done, nobody waits for it any more.

    async def model_digest(self, model: str) -> str:
        """Of the base file and the adapter's; another than llama.cpp's for the same weights, since
        the two round otherwise and neither may replay the other's answers."""
        files = self._resolve(model)
        hashes = [file_sha256(files.gguf)]
        if files.adapter is not None:
            folder = _peft_folder(files)
            names = ("adapter_model.safetensors", "adapter_config.json")
            hashes += [file_sha256(folder / name) for name in names]
        return f"bf16:{hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:32]}"

    async def close(self) -> None:
        """End the thread, after the step that it is at, and llama.cpp; who still waits is told."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
            await asyncio.to_thread(worker.join)
        await self.llama_cpp.close()


def _peft_folder(files: ModelFiles) -> Path:
    if files.peft is None:
        raise MissingError(
            f"{files.adapter} is a GGUF adapter, and the batched engine reads PEFT's: name its "
            "folder, too, or use llama.cpp"
        )
    return files.peft


def load_weights(files: ModelFiles) -> tuple[Any, Any]:
    """Model and tokenizer, an adapter merged: added to the base in fp32, and rounded once.

    Raises:
        MissingError: a file is not there, or is no model or adapter.
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
    """A request, and who waits for its completion."""

    request: ChatRequest
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Completion]
    begun: float
    row: "Row | None" = None
    dropped: bool = False

    def drop(self) -> None:
        """Have it leave the batch at the next step; nothing where it is done."""
        self.dropped = True
        if self.row is not None:
            self.row.dropped = True


class _Worker(threading.Thread):
    """Owns the models, and takes turns between those that have rows."""

    def __init__(self, resolve: Callable[[str], ModelFiles], config: BatchedConfig) -> None:
        # A client that nobody closes must not keep the process alive.
        super().__init__(name="reflux-batched", daemon=True)
        self._resolve, self._config = resolve, config
        self._inbox: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._decoders: OrderedDict[str, Decoder] = OrderedDict()
        self._held: list[_Job] = []
        """Jobs whose model cannot be loaded before another is idle."""
        self._jobs: dict[Row, _Job] = {}
        self._outcomes: list[tuple[_Job, Completion | Exception]] = []

    def put(self, job: _Job) -> None:
        """Take a job, from any thread."""
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()

    def close(self) -> None:
        """End after the step under way, from any thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def run(self) -> None:
        """Decode until it is closed."""
        while (new := self._receive()) is not None:
            self._admit(new)
            for name in [n for n, decoder in self._decoders.items() if decoder.busy]:
                self._step(name)
            self._tell()
        closed = EndpointError("the batched engine was closed before it answered")
        left = [*self._inbox, *self._held, *self._jobs.values()]
        self._outcomes += [(job, copy.copy(closed)) for job in left]
        self._tell()
        self._decoders.clear()

    def _receive(self) -> list[_Job] | None:
        """What has come meanwhile; waits where there is nothing to do. None where it is to end."""
        busy = self._held or any(decoder.busy for decoder in self._decoders.values())
        with self._wake:
            if not busy and not self._wait(IDLE_SECONDS):
                for decoder in self._decoders.values():
                    decoder.rest()
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
        """Make rows of jobs, and load their models where there is room."""
        jobs, self._held = [job for job in [*self._held, *new] if not job.dropped], []
        for name in dict.fromkeys(job.request.model for job in jobs):
            asked = [job for job in jobs if job.request.model == name]
            try:
                decoder = self._decoder(name)
            except Exception as error:  # noqa: BLE001 - whoever waits is told.
                self._fail(asked, error, f"could not load {name}")
                continue
            if decoder is None:
                self._held += asked
                continue
            for job in asked:
                try:
                    job.row = decoder.row(job.request)
                except Exception as error:  # noqa: BLE001
                    self._fail([job], error, "could not read a request")
                    continue
                job.row.dropped = job.dropped  # It may have been dropped before it had a row.
                self._jobs[job.row] = job
                decoder.add([job.row])

    def _decoder(self, name: str) -> "Decoder | None":
        """The decoder of a model, loaded if need be; None while all others are busy."""
        if name not in self._decoders:
            with short_waits():
                from reflux.finetune.engine.scheduler import Decoder

            for idle in [n for n, decoder in self._decoders.items() if not decoder.busy]:
                if len(self._decoders) < self._config.models:
                    break
                del self._decoders[idle]
            if len(self._decoders) >= self._config.models:
                return None
            config = self._config
            self._decoders[name] = Decoder(
                *load_weights(self._resolve(name)),
                rows=config.rows,
                context=config.context,
                keep=config.keep,
            )
        self._decoders.move_to_end(name)
        return self._decoders[name]

    def _step(self, name: str) -> None:
        """One step of one model; a failure is that of all its rows."""
        decoder = self._decoders[name]
        try:
            for row in decoder.step():
                job = self._jobs.pop(row)
                seconds = time.perf_counter() - job.begun
                self._outcomes.append((job, decoder.completion(row, seconds)))
        except Exception as error:  # noqa: BLE001
            del self._decoders[name]
            lost = [job for job in self._jobs.values() if job.request.model == name]
            self._fail(lost, error, f"failed with {name}")
        self._jobs = {row: job for row, job in self._jobs.items() if not row.dropped}

    def _fail(self, jobs: Sequence[_Job], error: Exception, what: str) -> None:
        if not isinstance(error, RefluxError | OSError):
            told = EndpointError(
                f"the batched engine {what}: {type(error).__name__}: {error}; set engine: "
                "llama.cpp, or give it fewer rows where memory is short"
            )
            told.__cause__ = error
            error = told
        for job in jobs:
            # Each gets its own: what is raised twice carries two tracebacks.
            self._outcomes.append((job, copy.copy(error)))
            if job.row is not None:
                self._jobs.pop(job.row, None)

    def _tell(self) -> None:
        """Hand the outcomes to their event loops, each woken once."""
        outcomes, self._outcomes = self._outcomes, []
        for loop in {job.loop for job, _ in outcomes}:
            theirs = [(job.future, outcome) for job, outcome in outcomes if job.loop is loop]
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, theirs)


def _settle(outcomes: Sequence[tuple[asyncio.Future[Completion], Completion | Exception]]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue  # It was cancelled.
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
