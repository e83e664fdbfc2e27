"""Whether a command made of a behavior what the behavior expects: `works`, `refused` or `broken`.

`works`: the expected answer, reasoning, finish reason and notes, after the expected requests.
`refused`: one sentence with a remedy, the right exit code or status, and no answer that was none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.support.endpoint_behaviors import Behavior
from tests.support.endpoint_says import ANSWER
from tests.support.endpoint_server import Asked

RESULTS = {"add(": "added 1", "mul(": "multiplied 2"}
"""By the beginning of a call, what its tool returns."""
REMEDY = re.compile(r"; \S.{9,}$", re.DOTALL)
"""The end of a message that says what to do."""
FORBIDDEN = {"403 for a field": "logprobs"}
"""By behavior, a field without which the endpoint answers."""
MAX_CHARS = 1000
SERVE, STREAM = "serve", "serve-stream"


@dataclass(frozen=True)
class Seen:
    """What came of one command."""

    code: int | None
    """Exit code, or HTTP status; None if it hung."""
    text: str | None = None
    """The answer."""
    error: str = ""
    """What was said about a failure."""
    log: str = ""
    """All that was said."""
    status: str = ""
    """Of the answer, or the code of a server's error."""
    reasoning: str | None = None
    """None where the command does not show it."""
    finish: str | None = None
    """None where the command does not show it."""
    notes: str | None = None
    """None where the command does not show them."""


@dataclass(frozen=True)
class Case:
    """One cell of the table: a behavior under a command."""

    behavior: Behavior
    command: str
    seen: Seen
    asked: Sequence[Asked]
    """The requests that the endpoint got."""
    refused: bool
    """The endpoint answered one of them with an error."""

    @property
    def served(self) -> bool:
        """A client asked `reflux serve`."""
        return self.command in (SERVE, STREAM)

    @property
    def streams(self) -> bool:
        return self.command == STREAM or (self.command == "chat" and not self.behavior.tools)

    @property
    def bends(self) -> bool:
        """The command meets the behavior; otherwise the endpoint is an ordinary one."""
        field = FORBIDDEN.get(self.behavior.name, "messages")
        sent = any(field in asked.body for asked in self.asked)
        return sent and (self.behavior.whole or self.streams)

    @property
    def must_fail(self) -> bool:
        """The endpoint has no answer."""
        return self.bends and bool(self.behavior.error or self.claims)

    @property
    def claims(self) -> bool:
        """A client of `reflux serve` asks for what the endpoint refuses: it gets it or an error."""
        asks = self.behavior.schema or (self.behavior.tools and "tools" in self.behavior.notes)
        return self.served and asks

    @property
    def must_reject(self) -> bool:
        """The answer is none to work with: cut, empty, or a call that no tool got."""
        return self.bends and not self.served and (
            self.behavior.truncated or self.filtered or not self.behavior.text or self.printed
        )  # fmt: skip

    @property
    def filtered(self) -> bool:
        return self.behavior.finish == "content_filter"

    @property
    def printed(self) -> bool:
        return self.behavior.notes == "tool call as text"

    def verdict(self) -> str:
        """`works`, `refused`, or `broken: ` and why."""
        if self.must_fail:
            problems = list(self._failed())
        elif self.must_reject:
            problems = list(self._rejected())
        else:
            problems = list(self._answered())
        if self.seen.code is None:
            problems = ["it hung"]
        if "Traceback" in self.seen.log:
            problems.insert(0, "a traceback")
        if problems:
            return f"broken: {'; '.join(problems)}"
        return "refused" if self.must_fail or self.must_reject else "works"

    def _failed(self) -> Iterator[str]:
        seen, behavior = self.seen, self.behavior
        if self.served:
            codes = (400,) if self.claims else (400, 429, 502, 503)
            codes = (200, *codes) if self.command == STREAM else codes
        else:
            codes = (3,)
        if seen.code not in codes:
            yield f"code {seen.code}"
        # What a stream has shown before it breaks cannot be recalled.
        if not ANSWER.startswith(seen.text or ""):
            yield f"answered {seen.text!r:.40}"
        wanted = behavior.error or "response_format|schema|structured|Bad Request|tool"
        message = re.sub(r"base_url of the endpoint \S+", "OPENAI_BASE_URL", seen.error)
        if not re.search(wanted, message) or "\n" in message or len(message) > MAX_CHARS:
            yield f"said {message[:200]!r}"
        elif not REMEDY.search(message):
            yield f"no remedy in {message[:200]!r}"
        too_long = "too long" in behavior.name and self.served
        if too_long and seen.status != "context_length_exceeded":
            yield f"code {seen.status!r}"
        yield from self._requests()

    def _rejected(self) -> Iterator[str]:
        seen, behavior = self.seen, self.behavior
        status = "truncated" if behavior.truncated else "rejected"
        if seen.code != (0 if self.command == "eval" else 1):
            yield f"code {seen.code}"
        if (seen.text or "") not in ("", behavior.text):
            yield f"answered {seen.text!r:.40}"
        if self.command == "eval" and seen.status != status:
            yield f"status {seen.status!r}"
        if not seen.error and not (self.command == "eval" and seen.text):
            yield "said nothing"
        if behavior.truncated and "--max-tokens" not in seen.error and self.command != "eval":
            yield f"no remedy in {seen.error[:200]!r}"

    def _answered(self) -> Iterator[str]:
        seen, behavior = self.seen, self.behavior
        if seen.code != (200 if self.served else 0):
            yield f"code {seen.code}, {seen.error[:200]!r}"
            return
        calls = behavior.finish == "tool_calls" and not self.served
        text = behavior.text if self.bends and not calls else ANSWER
        if seen.text != text:
            yield f"answered {(seen.text or '')[:60]!r} for {text[:60]!r}"
        if calls:
            said = str(self.asked[-1].body["messages"])
            yield from (
                f"no result of {call}"
                for call, result in RESULTS.items()
                if call in behavior.text and result not in said
            )
        if not self.bends:
            return
        if seen.reasoning is not None and seen.reasoning != behavior.reasoning:
            yield f"reasoning {seen.reasoning[:60]!r}"
        if self.served and seen.finish != behavior.finish:
            yield f"finish reason {seen.finish!r}"
        met = self.refused or behavior.requests is None
        if met and seen.notes is not None and behavior.notes not in seen.notes:
            yield f"notes {seen.notes[:200]!r}"
        if self.served and behavior.sent is not None and not behavior.sent(self.asked[-1].body):
            yield "sent what the endpoint refuses"
        if self.refused and self.command != "ask":
            yield from self._requests()

    def _requests(self) -> Iterator[str]:
        wanted = 1 if self.claims else self.behavior.requests
        if wanted is not None and not self.streams and len(self.asked) != wanted:
            yield f"{len(self.asked)} requests for {wanted}"
