"""The endpoint that the environment names."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agents.errors import UsageError

if TYPE_CHECKING:
    from agents.client import OpenAIClient

TIMEOUT, RETRIES = "REFLUX_TIMEOUT", "REFLUX_RETRIES"
"""Variables: seconds for one try, and tries after the first."""


def endpoint_from_env(env: dict[str, str], **options: Any) -> "OpenAIClient | None":
    """The endpoint at OPENAI_BASE_URL, with the key OPENAI_API_KEY; None without an address.

    A key alone means nothing: many programs share that variable, and none of them is asked where
    Reflux's model is.

    REFLUX_TIMEOUT and REFLUX_RETRIES say how long one try may take, and how many follow it.

    Raises:
        UsageError: a base URL that is not an http address, a key that no header can carry, or a
            time-out or number of retries that is none.
    """
    url = env.get("OPENAI_BASE_URL", "").strip()
    key = env.get("OPENAI_API_KEY", "").strip()
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"OPENAI_BASE_URL is {url!r}; it must start with http:// or https://")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"OPENAI_BASE_URL is {url!r}; it must name a host, and a port to 65535")
    if not (key.isascii() and key.isprintable()):
        raise UsageError("OPENAI_API_KEY holds characters that no HTTP header can carry")
    if (seconds := env.get(TIMEOUT, "").strip()) != "":
        options["timeout"] = _number(TIMEOUT, seconds, float, 0.001)
    if (retries := env.get(RETRIES, "").strip()) != "":
        options["retries"] = _number(RETRIES, retries, int, 0)
    from agents.client import OpenAIClient  # A third of a second, which a start without it saves.

    return OpenAIClient(url, key or "none", **options)


def _number(name: str, text: str, kind: Callable[[str], float], least: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise UsageError(f"{name} is {text!r}; it must be a number of at least {least:g}")
    return value
