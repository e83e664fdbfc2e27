"""What every client of an endpoint does: limit concurrency, try again, explain a failure."""

import asyncio
import math
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from reflux.agents.errors import EndpointError, MissingError, UsageError
from reflux.agents.prompts import redact
from reflux.agents.types import ChatRequest, Completion

TIMEOUT, RETRIES = "REFLUX_TIMEOUT", "REFLUX_RETRIES"
"""Environment variables: seconds for one try, and maximum tries after the first."""
MAX_BACKOFF_SECONDS = 30.0
RETRIED_STATUS = frozenset((408, 409, 425, 429))
"""HTTP statuses below 500 that are worth another try."""
TRANSIENT = re.compile(r"Timeout|Connect|Transport|RateLimit|Overloaded|Unavailable")
"""Names of exceptions that are worth another try; packages share no class for them."""


@dataclass(frozen=True)
class RetryPolicy:
    """How a failed call is retried."""

    retries: int = 5
    """Maximum tries after the first."""
    backoff: float = 0.5
    """Seconds before the first retry; doubled each time, with jitter, up to 30. A Retry-After
    header takes precedence, whatever its length."""
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep

    def retrying(self, worth_retrying: Callable[[BaseException], bool]) -> AsyncRetrying:
        """tenacity's loop; the last error is raised unchanged."""
        return AsyncRetrying(
            sleep=self.sleep,
            stop=stop_after_attempt(self.retries + 1),
            wait=self._pause,
            retry=retry_if_exception(worth_retrying),
            reraise=True,
        )

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        seconds = retry_after(error)
        if seconds is not None:
            return seconds
        backoff = self.backoff * 2 ** (state.attempt_number - 1)
        return min(MAX_BACKOFF_SECONDS, backoff) * random.uniform(0.75, 1.25)


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the Retry-After header of an error's response demands, as a number or as a
    date; None without a valid header."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if not isinstance(headers, Mapping):
        return None
    value = str(cast(Mapping[str, object], headers).get("retry-after", ""))
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an exception or of its response."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "http_status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return int(status)
    return None


def worth_retrying(error: BaseException) -> bool:
    """True for a transient error of any package: busy, down, or too slow."""
    if (status := status_of(error)) is not None:
        return status >= 500 or status in RETRIED_STATUS
    return isinstance(error, TimeoutError | ConnectionError) or any(
        TRANSIENT.search(kind.__name__) for kind in type(error).__mro__
    )


class RetryingClient(ABC):
    """Base of the clients of endpoints; `errors` are those that an endpoint's failure raises."""

    errors: tuple[type[Exception], ...] = (Exception,)

    def __init__(self, concurrency: int, timeout: float, policy: RetryPolicy) -> None:
        self._gate = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._policy = policy
        self._without_schema: set[str] = set()

    @abstractmethod
    async def _send(self, request: ChatRequest) -> Completion:
        """One try, without time and retries."""

    @abstractmethod
    def _address(self, model: str) -> str:
        """What answers for a model, as a failure names it."""

    @abstractmethod
    def _remedy(self, error: Exception) -> str:
        """What the user can do about a failure."""

    def _text_of(self, error: Exception) -> str:
        return str(error)

    def _worth_retrying(self, error: BaseException) -> bool:
        return worth_retrying(error)

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError: the last try failed, or the endpoint refused the request.
            UsageError: the request is not valid Unicode, or the model cannot take it.
        """
        failures: list[str] = []
        with self._explained(request.model, failures):
            return await self._policy.retrying(self._worth_retrying)(self._try, request, failures)

    async def _try(self, request: ChatRequest, failures: list[str]) -> Completion:
        """One try; a schema that the endpoint refuses is left out at once, and from then on."""
        if request.model in self._without_schema:
            request = replace(request, schema="")
        async with self._gate:
            start = time.perf_counter()
            try:
                reply = await self._send(request)
                seconds = time.perf_counter() - start
                return replace(reply, seconds=seconds, retries=tuple(failures))
            except (UsageError, MissingError):
                raise
            except self.errors as error:
                failures.append(self._one_line(error))
                if not (request.schema and status_of(error) in (400, 422)):
                    raise
                self._without_schema.add(request.model)  # The parser of replies takes free text.
        return await self._try(request, failures)

    @contextmanager
    def _explained(self, model: str, failures: list[str]) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise UsageError(f"a request must be Unicode text: {error}") from error
        except (UsageError, MissingError):
            raise
        except self.errors as error:
            tries = f"after {len(failures)} tries" if len(failures) > 1 else "at once"
            text = f"{self._address(model)} failed {tries}: {failures[-1]}; {self._remedy(error)}"
            failed = EndpointError(text)
            failed.status = status_of(error)
            failed.refused = failed.status is not None and not self._worth_retrying(error)
            raise failed from error

    def _one_line(self, error: Exception) -> str:
        status = status_of(error)
        text = " ".join(redact(self._text_of(error)).split())
        return f"{f'{status} ' if status else ''}{type(error).__name__}: {text[:300]}"
