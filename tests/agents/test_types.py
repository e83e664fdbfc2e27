"""The small values of one copy's work: budgets, steps, secrets, checks, digests."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflux.agents.budget import Budget
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import RefluxError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import HumanOverseer, ScriptedOverseer
from reflux.agents.prompts import answer_prompt
from reflux.agents.redaction import PLACEHOLDER, redact
from reflux.agents.types import (
    Answer,
    Ask,
    ChatRequest,
    Completion,
    Defer,
    Exchange,
    Sampling,
    Step,
    SubQuestion,
    TokenLogprob,
    step_from_json,
    step_to_json,
)
from reflux.agents.verifiers import RuleChecker, Verdict
from tests.support.contexts import next_step

amounts = st.integers(0, 10_000)
subquestions = st.builds(SubQuestion, st.text(), st.lists(st.integers(0, 9), max_size=3).map(tuple))
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(Answer, st.text()),
    st.builds(Ask, st.lists(subquestions, max_size=4).map(tuple)),
    st.builds(Defer, st.dictionaries(st.text(), st.text() | st.integers() | st.booleans())),
)


@given(amounts, amounts, st.integers(1, 100))
def test_shares_of_a_budget_add_up_and_differ_by_one_at_the_most(
    calls: int, tokens: int, parts: int
) -> None:
    shares = Budget(calls, tokens).split(parts)
    for amount, whole in (([s.calls for s in shares], calls), ([s.tokens for s in shares], tokens)):
        assert sum(amount) == whole
        assert amount == sorted(amount, reverse=True)
        assert amount[0] - amount[-1] <= 1


@given(amounts, amounts, amounts, amounts)
def test_a_budget_is_never_negative(calls: int, tokens: int, spent: int, used: int) -> None:
    left = Budget(calls, tokens).minus(spent, used)
    assert left == Budget(max(0, calls - spent), max(0, tokens - used))
    assert left.empty == (spent >= calls or used >= tokens)


@given(steps)
def test_a_step_survives_json(step: Step) -> None:
    assert step_from_json(json.loads(json.dumps(step_to_json(step)))) == step


def test_answers_take_the_places_of_what_is_needed() -> None:
    asked = SubQuestion("{0} + {1} + {2} + {x}", needs=(0, 1))
    assert asked.filled({0: "3", 1: "4"}) == "3 + 4 + {2} + {x}"


def test_an_answer_that_looks_like_a_place_stays_as_it_is() -> None:
    assert SubQuestion("{0}{1}", needs=(0, 1)).filled({0: "{1}", 1: "b\\1"}) == "{1}b\\1"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234",
        "sk-ant-api03-abcdefghijklmnop",
        "sk_live_abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrst",
        "github_pat_11ABCDEFG0abcdefghij_klm",
        "hf_abcdefghijklmnopqrst",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456789012-abc",
        "-----BEGIN PRIVATE KEY-----\nMIIE\nabc=\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQ\n-----END PGP PRIVATE KEY BLOCK-----",
    ],
)
def test_secrets_are_taken_out_and_the_rest_stays(secret: str) -> None:
    assert redact(f"my key is {secret}, use it") == f"my key is {PLACEHOLDER}, use it"
    assert redact(f"{secret}\n{secret}") == f"{PLACEHOLDER}\n{PLACEHOLDER}"


def test_a_key_that_never_ends_takes_nothing_with_it() -> None:
    begun = "-----BEGIN PRIVATE KEY-----"
    whole = f"{begun}\nMIIE\n-----END PRIVATE KEY-----"
    assert redact(f"{begun} in prose, and {whole}") == f"{begun} in prose, and {PLACEHOLDER}"


@pytest.mark.parametrize("text", ["", "403+715=", "a risk-averse sk-learn user", "the hf_hub tool"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def _picky(_: str, answer: str) -> bool:
    return int(answer) > 0


def test_the_first_rule_that_fails_is_the_verdict() -> None:
    checker = RuleChecker({"short": lambda _, a: len(a) < 3, "positive": _picky})
    assert checker.check("q", "5") == Verdict(True)
    assert checker.check("q", "-5") == Verdict(False, "positive")
    assert checker.check("q", "-500") == Verdict(False, "short")


def test_a_rule_that_cannot_read_the_answer_has_failed() -> None:
    assert RuleChecker({"positive": _picky}).check("q", "five") == Verdict(False, "positive")


def test_no_rules_accept_everything() -> None:
    assert RuleChecker({}).check("q", "").ok


def test_the_digest_of_a_request_is_fixed() -> None:
    """A call log of an earlier version replays only as long as this one stays."""
    request = ChatRequest("base", answer_prompt("2+2?"), Sampling(top_logprobs=1), vote=1)
    assert request.digest("scripted:base") == "0a86551fef507b84e5d62c0cac071918"


def test_each_part_of_a_request_changes_its_digest() -> None:
    messages = (("user", "q"),)
    requests = [
        ChatRequest("m", messages),
        ChatRequest("m", messages, vote=1),
        ChatRequest("m", (("system", "q"),)),
        ChatRequest("m", (("user", "q"), ("user", ""))),
        *(
            ChatRequest("m", messages, sampling)
            for sampling in (
                Sampling(temperature=0.5),
                Sampling(max_tokens=1),
                Sampling(top_logprobs=1),
                Sampling(seed=1),
                Sampling(stop=("\n",)),
            )
        ),
    ]
    digests = {request.digest("w") for request in requests}
    assert len(digests) == len(requests)
    assert requests[0].digest("other weights") not in digests


def test_the_least_certain_token_is_told() -> None:
    assert Completion("a").min_logprob is None
    tokens = (TokenLogprob("a", -0.1), TokenLogprob("b", -3.0))
    assert Completion("ab", logprobs=tokens).min_logprob == -3.0


async def test_a_script_may_be_plain_or_async() -> None:
    async def later(question: str, _: Sequence[Exchange], may_ask: bool) -> Step:
        return PASS if may_ask else Answer(question)

    plain = ScriptedOverseer("plain", lambda q, t, m: Answer(q + str(len(t)) + str(m)))
    assert await next_step(plain, "q") == Answer("q0True")
    assert await next_step(ScriptedOverseer("later", later), "q", may_ask=False) == Answer("q")
    assert plain.name == "script:plain"


async def test_a_person_is_shown_question_and_transcript() -> None:
    step = await next_step(HumanOverseer(), "q", [Exchange("sub", None, "it failed")], False)
    assert step == Defer(
        {
            "question": "q",
            "transcript": [{"question": "sub", "answer": None, "error": "it failed"}],
            "may_ask": False,
        }
    )


async def test_a_scripted_client_counts_words_as_tokens() -> None:
    client = ScriptedClient(lambda _: "four words of answer")
    reply = await client.complete(ChatRequest("m", answer_prompt("three small words", "terse")))
    assert (reply.prompt_tokens, reply.completion_tokens) == (4, 4)


def test_every_error_of_ours_has_an_exit_code() -> None:
    ours = [e for e in RefluxError.__subclasses__() if e.__module__ == RefluxError.__module__]
    codes = {error.__name__: error.exit_code for error in ours}
    assert codes == {
        "UsageError": 2,
        "MissingError": 3,
        "EndpointError": 3,
        "ReplayError": 1,
    }
