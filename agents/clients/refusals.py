"""Why a call to an endpoint failed: the words of its error body, their kind, and a remedy."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from reflux.agents.redaction import redact

MAX_CHARS = 500
"""Characters of a server's words that a message quotes."""

Kind = Literal["key", "quota", "missing", "too_long", "page", "busy", "other"]

TOO_LONG = re.compile(
    r"context[ _-]?(?:length|size|window|limit)|maximum model length|max_model_len|n_ctx"
    r"|prompt (?:is )?too long|input is too long|too many tokens|reduce the length"
    r"|tokens?\W+(?:count )?.{0,40}exceeds?|max_new_tokens.{0,20}must be|"
    r"maximum number of tokens|prompt contains \d+ tokens|string[ _]too[ _]long",
    re.IGNORECASE,
)
QUOTA = re.compile(
    r"insufficient[ _-](?:quota|credits?|balance|funds)|exceeded your current quota|billing"
    r"|credit balance|out of credits|payment required|quota.{0,20}exhausted|more credits"
    r"|unpaid|per[ -]day\b|daily (?:limit|quota)|account .{0,20}(?:suspended|deactivated)",
    re.IGNORECASE,
)
BAD_KEY = re.compile(
    r"(?:api[ _-]?key|credentials?|token)\W.{0,20}(?:not valid|invalid|incorrect|missing|expired)"
    r"|(?:invalid|incorrect|missing|no) (?:api|auth)[ _-]?(?:key|token)",
    re.IGNORECASE,
)
RECOVERS = re.compile(
    r"retry ?(?:delay|in|after)|try again in (?!\d+h)|per (?:minute|second)", re.I
)
"""A rate limit that words itself like an empty account."""
NEVER_CONNECTS = re.compile(
    r"WRONG_VERSION|record layer|certificate|Name or service|nodename|getaddrinfo|name resolution",
    re.IGNORECASE,
)
"""Causes of a failed connection that no other try removes."""
FIELD = re.compile(
    r"(?!a web page).*?(?:\btools?\b|\bparameters? (?:\S+ )?(?:is|are) not|requested parameters)",
    re.IGNORECASE,
)
"""Words about what one request asks for, whatever the status: others may go to the same model."""
NO_MODEL = re.compile(
    r"(?:invalid|unknown|no such|not a valid) model\b(?! (?:parameter|input))"
    r"|model[ \"'`:]{1,3}\S{1,80} (?:was not found|not found|does not exist|is not a valid model"
    r"|has been (?:deprecated|decommissioned|removed))",
    re.IGNORECASE,
)
OUT_OF_RANGE = re.compile(
    r"max_(?:\w+_)?tokens\b.{0,60}(?:too (?:large|small|high|low)|range|at (?:most|least)"
    r"|(?:less|greater) than|exceed|between|minimum|maximum|<=|>=)",
    re.IGNORECASE,
)
"""Words about the size of a limit of tokens, which the model takes by name."""
NAMES_MODEL = re.compile(r"\bmodels?\b|deployment", re.IGNORECASE)
PAGE = re.compile(r"\s*(?:<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
TITLE = re.compile(r"<(?:title|h1)[^>]*>\s*([^<]+)", re.IGNORECASE)


def words_of(body: Any) -> str:
    """What an error body says, on one line: JSON of any of the common forms, text, or a page."""
    if isinstance(body, bytes):
        body = body.decode(errors="replace")
    text = _words(body) or ""
    line = " ".join(redact(text).split())
    return line if len(line) <= MAX_CHARS else f"{line[:MAX_CHARS]} …"


def _words(body: Any, depth: int = 0) -> str:
    if isinstance(body, str):
        return _words_of_text(body, depth)
    if isinstance(body, Sequence) and depth < 6:
        return "; ".join(filter(None, (_words(item, depth + 1) for item in list(body)[:8])))
    if not isinstance(body, Mapping) or depth >= 6:
        return str(body) if isinstance(body, int | float) else ""
    fields = {str(name).lower(): value for name, value in cast(Mapping[str, Any], body).items()}
    texts = [
        _words(fields[name], depth + 1)
        for name in ("error", "message", "msg", "detail", "details", "errors", "error_description")
        if fields.get(name) not in (None, "", [], {})
    ]
    text = max(texts, key=len, default="")
    # OpenRouter wraps the words of the provider that it asked.
    metadata = fields.get("metadata")
    if isinstance(metadata, Mapping) and (raw := cast(Any, metadata).get("raw")):
        text = f"{text}: {_words(raw, depth + 1)}"
    if isinstance(loc := fields.get("loc"), list | tuple):  # pydantic
        return f"{'.'.join(map(str, cast(Sequence[Any], loc)))}: {text}"
    if not text:
        code = fields.get("code") or fields.get("type") or fields.get("title")
        return str(code) if isinstance(code, str | int) else ""
    return text


def _words_of_text(text: str, depth: int) -> str:
    if PAGE.match(text):
        title = TITLE.search(text)
        return f"a web page{f' titled {title[1].strip()!r}' if title else ''}"
    if text.lstrip()[:1] in ("{", "[") and depth < 6:  # JSON as text, as proxies wrap it.
        try:
            return _words(json.loads(text), depth + 1) or text
        except ValueError:
            return text
    return text


def names_in(body: Any, depth: int = 0) -> list[str]:
    """The fields that an error body names apart from its words: OpenAI's `param`, pydantic's
    `loc`."""
    if isinstance(body, str) and body.lstrip()[:1] in ("{", "[") and depth < 6:
        try:
            body = json.loads(body)
        except ValueError:
            return []
    if isinstance(body, list | tuple) and depth < 6:
        return [name for item in cast(Sequence[Any], body) for name in names_in(item, depth + 1)]
    if not isinstance(body, Mapping) or depth >= 6:
        return []
    fields = cast(Mapping[str, Any], body)
    names = [fields["param"]] if isinstance(fields.get("param"), str) else []
    if isinstance(loc := fields.get("loc"), list | tuple):
        names += [str(part) for part in cast(Sequence[Any], loc)[1:]]
    for value in fields.values():
        if isinstance(value, Mapping | list):
            names += names_in(value, depth + 1)
    return names


def kind_of(status: int | None, words: str, body: Any = None, waits: bool = False) -> Kind:
    """The kind of a refusal; `waits` says that the server names a time to wait."""
    is_empty = QUOTA.search(f"{words} {body if isinstance(body, str | Mapping) else ''}")
    if status == 402 or (is_empty and not (waits or RECOVERS.search(str(body or words)))):
        return "quota"
    if status in (401, 403) or (status == 400 and BAD_KEY.search(words)):
        return "key"
    if status != 429 and (TOO_LONG.search(words) or status == 413):
        return "too_long"
    if status in (404, 405):
        return "other" if FIELD.match(words) else "missing"
    if status in (400, 410, 422) and NO_MODEL.search(words) and not FIELD.match(words):
        return "missing"
    if words.startswith("a web page") and (status or 200) < 500:
        return "page"
    if status is not None and (status == 429 or status >= 500):
        return "busy"
    return "other"


class ReplyError(Exception):
    """A reply violates the protocol, or is an error that came with the status of a success."""

    def __init__(self, message: str, body: Any = None, status: int | None = None) -> None:
        super().__init__(message)
        self.body = body
        self.status_code = status


def error_reply(body: Any) -> ReplyError:
    """An error that came with HTTP 200, or within a stream, with the status that it names."""
    code = cast(dict[str, Any], body).get("code") if isinstance(body, dict) else None
    status = int(code) if isinstance(code, int | str) and str(code).isdigit() else None
    status = status if status and 400 <= status < 600 else None
    return ReplyError(words_of(body) or "an error without words", body, status)


def body_of(error: BaseException) -> Any:
    """The body that an error came with: JSON as read, or text."""
    with suppress(RuntimeError):  # The text of a response that was not read.
        text = getattr(getattr(error, "response", None), "text", None)
        if isinstance(text, str):
            try:
                return json.loads(text)
            except ValueError:
                return text
    body = getattr(error, "body", None)
    if isinstance(body, bytes):
        return body.decode(errors="replace") if PAGE.match(body[:200].decode("latin-1")) else None
    return body


@dataclass(frozen=True)
class Refusal:
    """What an error of a call says."""

    kind: Kind
    status: int | None
    """HTTP status; 401 for a refused key, 402 for an account without credit and 404 for a web page,
    whatever the server said."""
    words: str
    body: Any

    @classmethod
    def of(cls, error: BaseException) -> "Refusal":
        body, status = body_of(error), status_of(error)
        words = words_of(body)
        if status is None or status < 400:
            status = error_reply(body).status_code
        kind = kind_of(status, words, body, retry_after(error) is not None)
        status = 401 if (kind, status) == ("key", 400) else status
        status = 400 if (kind, status) == ("other", 404) else status
        status = {"quota": 402, "page": 404}.get(kind, status)
        status = 404 if kind == "missing" else status
        return cls(kind, status, words, body)


def remedy_of(refusal: Refusal, key: str, limited: str) -> str:
    """What the user can do; `key` names where the key was set, and `limited` what it may lack."""
    if refusal.kind == "key" and refusal.words.startswith("a web page"):
        return "a page for browsers stands before it: ask from another network, or see its address"
    if refusal.kind == "key":
        return f"check {key}{limited}"
    if refusal.status == 407:
        return "check HTTPS_PROXY and HTTP_PROXY: the proxy wants a user and a password"
    if refusal.kind == "quota":
        return f"the account of {key} has no credit or quota left: add some, or name another key"
    if refusal.kind == "too_long":
        return "shorten the question, lower --max-tokens, or take a model with a longer context"
    if OUT_OF_RANGE.search(refusal.words):
        return "change --max-tokens to what it takes"
    if FIELD.match(refusal.words):
        return "leave that out, or take another model"
    return "see the endpoint's own log"


def missing_remedy(refusal: Refusal, base_url: str, url: str, moved: str) -> str:
    """What the user can do about an address or a model that is not there.

    Args:
        url: where the user set the address.
        moved: where the endpoint redirected the request to.
    """
    if moved:
        return f"{url} is redirected to {moved}: use that address"
    if refusal.kind == "missing" and NAMES_MODEL.search(refusal.words):
        return "check the model's name; `reflux doctor` lists those that the endpoint serves"
    if not re.search(r"/v\d|/openai|/api", urlsplit(base_url).path):
        return f"is /v1 missing from {url}? try {base_url.rstrip('/')}/v1"
    return f"check the model's name and {url}"


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the Retry-After header of an error's response demands, as a number or as a
    date, or its relative in milliseconds; None without a valid header."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if not isinstance(headers, Mapping):
        return None
    fields = cast(Mapping[str, object], headers)
    value, milliseconds = str(fields.get("retry-after", "")), fields.get("retry-after-ms")
    try:
        seconds = float(value) if milliseconds is None else float(str(milliseconds)) / 1000
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
