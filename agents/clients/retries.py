"""The retry policy that all clients share, on `tenacity`: how often, and after which pauses."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

TIMEOUT, RETRIES = "REFLUX_TIMEOUT", "REFLUX_RETRIES"
"""Environment variables: seconds for one try, and maximum tries after the first."""
MAX_BACKOFF_SECONDS = 30.0


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
