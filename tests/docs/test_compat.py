"""What `benchmarks.compat` calls broken: each verdict can be another."""

from dataclasses import replace

import pytest

from benchmarks.compat_verdict import SERVE, STREAM, Case, Seen
from tests.support.endpoint_behaviors import BEHAVIORS
from tests.support.endpoint_server import Asked

ASKED = Asked(0, "/", {}, {"messages": []})
SAID = "http://h/v1 failed at once: 401 Error: [redacted]; check OPENAI_API_KEY"
CUT = "no accepted answer (truncated); raise --max-tokens from 512"


def case(name: str, command: str, seen: Seen, asked: int = 1) -> Case:
    return Case(BEHAVIORS[name], command, seen, [ASKED] * asked, refused=False)


RIGHT = [
    (case("gzip", "ask", Seen(0, "Lima")), "works"),
    (case("think block", SERVE, Seen(200, "Lima", reasoning=BEHAVIORS["think block"].reasoning,
                                     finish="stop")), "works"),
    (case("401", "ask", Seen(3, error=SAID)), "refused"),
    (case("401", SERVE, Seen(502, error=SAID)), "refused"),
    (case("cut answer", "ask", Seen(1, "Lima is", CUT)), "refused"),
    (case("null content", "eval", Seen(0, None, "no reply", status="rejected")), "refused"),
    (case("broken stream", "ask", Seen(0, "Lima")), "works"),
    (case("broken stream", STREAM, Seen(200, "Li", "the stream ended before the reply did; see "
                                                   "the endpoint's own log")), "refused"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "wanted"), RIGHT)
def test_what_a_behavior_expects_works_or_is_refused(case: Case, wanted: str) -> None:
    assert case.verdict() == wanted


WRONG = [
    (RIGHT[0][0], {"text": "Bogota"}, "answered"),
    (RIGHT[0][0], {"code": 1}, "code 1"),
    (RIGHT[0][0], {"code": None}, "hung"),
    (RIGHT[0][0], {"log": "Traceback (most recent call last):"}, "traceback"),
    (RIGHT[1][0], {"reasoning": ""}, "reasoning"),
    (RIGHT[1][0], {"finish": "length"}, "finish reason"),
    (RIGHT[2][0], {"code": 1}, "code 1"),
    (RIGHT[2][0], {"error": "401"}, "said"),
    (RIGHT[2][0], {"error": SAID + "\nmore"}, "said"),
    (RIGHT[2][0], {"code": 0, "text": "Lima", "error": ""}, "code 0"),
    (RIGHT[3][0], {"code": 200}, "code 200"),
    (RIGHT[4][0], {"code": 0}, "code 0"),
    (RIGHT[4][0], {"error": "no accepted answer"}, "no remedy"),
    (RIGHT[5][0], {"status": "unchecked"}, "status"),
    (RIGHT[7][0], {"text": "Quito"}, "answered"),
]


@pytest.mark.parametrize(("case", "change", "why"), WRONG)
def test_anything_else_is_broken(case: Case, change: dict[str, object], why: str) -> None:
    found = replace(case, seen=replace(case.seen, **change)).verdict()  # type: ignore[arg-type]
    assert found.startswith("broken: ") and why in found


def test_requests_are_counted_and_a_stream_that_breaks_is_no_answer() -> None:
    assert "2 requests for 1" in case("401", "ask", Seen(3, error=SAID), asked=2).verdict()
    assert "broken" in case("broken stream", STREAM, Seen(200, "Lima")).verdict()
