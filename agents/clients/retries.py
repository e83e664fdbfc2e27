"""What every client of an endpoint does: limit concurrency, try again, explain a failure."""

import asyncio
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from reflux.agents.clients.refusals import MAX_CHARS, Refusal, retry_after, status_of
from reflux.agents.errors import EndpointError, MissingError, UsageError
from reflux.agents.redaction import redact
from reflux.agents.types import ChatRequest, Completion, Sampling

TIMEOUT, RETRIES = "REFLUX_TIMEOUT", "REFLUX_RETRIES"
"""Environment variables: seconds of one try without a byte, and maximum tries after the first."""
TOTAL_TIMEOUT = "REFLUX_TOTAL_TIMEOUT"
"""Environment variable: seconds of one try in all."""
MAX_BACKOFF_SECONDS = 30.0
MAX_WAIT_SECONDS = 120.0
"""Longest wait that a Retry-After header may ask for; beyond it the call fails at once."""
FIRST_SECONDS = 2.0
"""How long the first request to a model goes alone, so that a refusal is met and learned once."""
CLOSED_SECONDS, MAX_REFUSED = 60.0, 256
"""How long a refused key, address, model or account is not tried again; and the number of refused
requests that are remembered."""
LATELY_SECONDS = 2.0
"""How long a request that failed after every retry is not tried again with another seed."""
OPEN: "tuple[float, EndpointError | None]" = (0.0, None)
RETRIED_STATUS = frozenset((408, 409, 425, 429))
"""HTTP statuses below 500 that are worth another try."""
TRANSIENT = re.compile(r"Timeout|Connect|Transport|RateLimit|Overloaded|Unavailable")
"""Names of exceptions that are worth another try; packages share no class for them."""


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
on_wait: ContextVar[Callable[[str], None] | None] = ContextVar("on_wait", default=None)
"""Told why a call waits, for a line of progress; told an empty text when it goes on."""


@contextmanager
def time_left(seconds: float | None) -> Generator[None]:
    """Calls in this block wait for no retry beyond `seconds`; None is no limit."""
    token = _deadline.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class WaitRefusedError(Exception):
    """A retry would be due after the question's time is up."""

    seconds = 0.0
    """Until it is due."""


@dataclass(frozen=True)
class RetryPolicy:
    """How a failed call is retried."""

    retries: int = 5
    """Maximum tries after the first."""
    backoff: float = 0.5
    """Seconds before the first retry; doubled each time, with jitter, up to 30. A Retry-After
    header of up to two minutes takes precedence."""
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep

    def retrying(self, worth_retrying: Callable[[BaseException], bool]) -> AsyncRetrying:
        """tenacity's loop; the last error is raised unchanged."""
        return AsyncRetrying(
            sleep=self._wait,
            stop=stop_after_attempt(self.retries + 1),
            wait=self._pause,
            retry=retry_if_exception(worth_retrying),
            reraise=True,
        )

    async def _wait(self, seconds: float) -> None:
        """Wait, within the question's limit.

        Raises:
            WaitRefusedError: the wait would outlast it.
        """
        deadline = _deadline.get()
        if deadline is not None and (left := deadline - time.monotonic()) < seconds:
            refused = WaitRefusedError(
                f"the next try is due in {seconds:.1f} s, and the question has "
                f"{max(0.0, left):.1f} s left: allow more --seconds, or ask again later"
            )
            refused.seconds = seconds
            raise refused
        tell = on_wait.get()
        if tell is not None:
            tell(f"waits {seconds:.0f} s to try again")
        try:
            await self.sleep(seconds)
        finally:
            if tell is not None:
                tell("")

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        seconds = retry_after(error)
        if seconds is not None:
            return seconds
        backoff = self.backoff * 2 ** (state.attempt_number - 1)
        return min(MAX_BACKOFF_SECONDS, backoff) * random.uniform(0.75, 1.25)


def worth_retrying(error: BaseException) -> bool:
    """True for a transient error of any package: busy, down, or too slow."""
    if (status := status_of(error)) is not None:
        return status >= 500 or status in RETRIED_STATUS
    return isinstance(error, TimeoutError | ConnectionError) or any(
        TRANSIENT.search(kind.__name__) for kind in type(error).__mro__
    )


def asks_to_leave(error: BaseException) -> bool:
    """True where an endpoint asks for a longer wait than any question has."""
    return (retry_after(error) or 0.0) > MAX_WAIT_SECONDS


def seedless(request: ChatRequest) -> ChatRequest:
    """The request as every vote sends it."""
    return replace(request, vote=0, sampling=Sampling(max_tokens=request.sampling.max_tokens))


class RetryingClient(ABC):
    """Base of the clients of endpoints; `errors` are those that an endpoint's failure raises."""

    errors: tuple[type[Exception], ...] = (Exception,)

    def __init__(
        self, concurrency: int, timeout: float, policy: RetryPolicy, first_alone: bool = True
    ) -> None:
        """`first_alone`: the first request to each model is answered before the others go."""
        self._gate = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._policy = policy
        self._first_alone = first_alone
        self._first: dict[str, asyncio.Event] = {}
        self._tried: set[str] = set()
        self._closed: dict[str, tuple[float, EndpointError]] = {}
        """By model: until when it is not asked again, and why."""
        self._refused: dict[ChatRequest, tuple[float, EndpointError]] = {}
        """By request without its seed, as no other makes it acceptable: as `_closed`."""

    @abstractmethod
    async def _send(self, request: ChatRequest) -> Completion:
        """One try, without time and retries."""

    @abstractmethod
    def _address(self, model: str) -> str:
        """What answers for a model, as a failure names it."""

    @abstractmethod
    def _remedy(self, error: Exception, model: str) -> str:
        """What the user can do about a failure."""

    @abstractmethod
    def _adapts(self, error: Exception, request: ChatRequest) -> bool:
        """True where the next try leaves out what the endpoint refused by name."""

    def _text_of(self, error: Exception) -> str:
        return str(error)

    def _too_long(self, error: Exception) -> bool:
        """True where the request does not fit into the model's context."""
        return Refusal.of(error).kind == "too_long"

    def _worth_retrying(self, error: BaseException) -> bool:
        return worth_retrying(error)

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError: the last try failed, or the endpoint refused the request.
            UsageError: the request is not valid Unicode, or the model cannot take it.
        """
        failures: list[str] = []
        with self._explained(request.model, failures, request):
            return await self._policy.retrying(self._retries)(self._try, request, failures)

    def _retries(self, error: BaseException) -> bool:
        return self._worth_retrying(error) and not asks_to_leave(error)

    async def _try(self, request: ChatRequest, failures: list[str]) -> Completion:
        """One try, repeated at once as long as the endpoint refuses further fields by name."""
        async with self._turn(request):
            while True:
                start = time.perf_counter()
                with self._noted(request, failures) as attempt:
                    reply = await self._send(request)
                    seconds = time.perf_counter() - start
                    return replace(reply, seconds=seconds, retries=tuple(failures))
                if not attempt.adapted:
                    raise attempt.error

    @asynccontextmanager
    async def _turn(self, request: ChatRequest) -> AsyncGenerator[None]:
        """The right to send one request: the first to a model goes alone, for a short time.

        Raises:
            EndpointError: the endpoint has refused the model, or these messages, before.
        """
        model = request.model
        is_first = self._first_alone and model not in self._tried
        if is_first and (first := self._first.get(model)) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await first.wait()
        elif is_first:
            self._first[model] = asyncio.Event()
        self._check_refused(request)
        try:
            async with self._gate:
                yield
        finally:
            self._tried.add(model)
            if (first := self._first.pop(model, None)) is not None:
                first.set()

    def _check_refused(self, request: ChatRequest) -> None:
        for until, error in (
            self._closed.get(request.model, OPEN),
            self._refused.get(seedless(request), OPEN),
        ):
            if error is not None and time.monotonic() < until:
                raise copy(error)

    @contextmanager
    def _noted(self, request: ChatRequest, failures: list[str]) -> "Iterator[_Attempt]":
        """Note how one attempt failed, and learn from it; the caller raises the error, or tries
        again."""
        attempt = _Attempt()
        try:
            yield attempt
        except (UsageError, MissingError, EndpointError, WaitRefusedError):
            raise
        except self.errors as error:
            failures.append(self._one_line(error))
            attempt.error, attempt.adapted = error, self._adapts(error, request)
            if not attempt.adapted:
                failed = self._failed(error, request.model, failures)
                if failed.is_final or asks_to_leave(error):
                    self._closed[request.model] = time.monotonic() + CLOSED_SECONDS, failed

    @contextmanager
    def _explained(
        self, model: str, failures: list[str], request: ChatRequest | None = None
    ) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise UsageError(f"a request must be Unicode text: {error}") from error
        except (UsageError, MissingError, EndpointError):
            raise
        except WaitRefusedError as error:
            text = f"{self._address(model)} failed: {failures[-1]}; {error}"
            late = EndpointError(text)
            late.retry_after = error.seconds
            raise late from error
        except self.errors as error:
            failed = self._failed(error, model, failures)
            if request is not None:
                seconds = CLOSED_SECONDS if failed.refused else LATELY_SECONDS
                self._refused[seedless(request)] = time.monotonic() + seconds, failed
                if len(self._refused) > MAX_REFUSED:
                    self._refused.pop(next(iter(self._refused)))
            raise copy(failed) from error

    def _failed(self, error: Exception, model: str, failures: list[str]) -> EndpointError:
        tries = f"after {len(failures)} tries" if len(failures) > 1 else "at once"
        remedy = self._remedy(error, model)
        seconds = retry_after(error)
        if seconds is not None and asks_to_leave(error):
            remedy = (
                f"the endpoint asks to wait {seconds:,.0f} s (Retry-After), and the longest wait "
                f"is {MAX_WAIT_SECONDS:g} s: ask again later"
            )
        text = f"{self._address(model)} failed {tries}: {failures[-1]}; {remedy}"
        failed = EndpointError(text)
        failed.status, failed.too_long = Refusal.of(error).status, self._too_long(error)
        failed.retry_after = seconds
        failed.refused = failed.too_long or (
            failed.status is not None and not self._worth_retrying(error)
        )
        return failed

    def _one_line(self, error: Exception) -> str:
        status = status_of(error)
        text = " ".join(redact(self._text_of(error)).split())
        return f"{f'{status} ' if status else ''}{type(error).__name__}: {text[:MAX_CHARS]}"


@dataclass
class _Attempt:
    """How one attempt failed."""

    error: Exception = field(default_factory=Exception)
    adapted: bool = False
