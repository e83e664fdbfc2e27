"""The scheduler against transformers' own: batching, joining and leaving change no token.

In fp32, where a row's neighbours cannot turn it by rounding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.types import ChatRequest, Completion, Sampling
from reflux.finetune.base_model import load_base
from reflux.finetune.configs.run import BatchedConfig
from reflux.finetune.engine import scheduler as scheduler_file
from reflux.finetune.engine.kv_cache import COLUMNS
from reflux.finetune.engine.scheduler import MIN_PROBABILITY, Row, Scheduler, draw, seeded

pytestmark = pytest.mark.engine

SYSTEM = "You are one of many copies."
QUESTIONS = [
    f"{'word ' * (n % 5)}{n}?" for n in range(14)
]  # Prompts of five lengths, so that there is padding.


def load(base: Path) -> tuple[Any, Any]:
    model, tokenizer = load_base(base)
    return model.float(), tokenizer


@pytest.fixture
def loaded(tiny_base: Path) -> tuple[Any, Any]:
    return load(tiny_base)


def ask(question: str, system: str = SYSTEM, vote: int = 0, **sampling: Any) -> ChatRequest:
    chat = (("system", system), ("user", question))
    return ChatRequest("base", chat, Sampling(**{"max_tokens": 9, **sampling}), vote)


def run(
    scheduler: Scheduler, requests: Sequence[ChatRequest], arrivals: int = 1000
) -> list[Completion]:
    """The completions, in order; `arrivals` requests come with each step."""
    rows: list[Row] = []
    done: set[Row] = set()
    while len(rows) < len(requests) or scheduler.busy:
        arrived = requests[len(rows) : len(rows) + arrivals]
        rows += [scheduler.add(request) for request in arrived]
        done |= set(scheduler.step())
    assert done == set(rows)
    return [scheduler.completion(row, 0.0) for row in rows]


def scheduler(loaded: tuple[Any, Any], **options: Any) -> Scheduler:
    return Scheduler(*loaded, BatchedConfig(**{"rows": 4, "context": 512, **options}))


def generated(loaded: tuple[Any, Any], request: ChatRequest) -> list[int]:
    """What transformers' `generate` draws, one prompt alone."""
    model, tokenizer = loaded
    made = tokenizer.apply_chat_template(
        request.payload(), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model.set_attn_implementation("eager")
    ids = model.generate(
        **made,
        do_sample=False,
        max_new_tokens=request.sampling.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ids[0, made["input_ids"].shape[1] :].tolist()


def texts_of(loaded: tuple[Any, Any], requests: Sequence[ChatRequest]) -> list[str]:
    drawn = [generated(loaded, request) for request in requests]
    return [loaded[1].decode(ids, skip_special_tokens=True) for ids in drawn]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("arrivals", [1, 3, 1000])
def test_greedy_rows_are_those_of_generate_while_others_join_and_leave(
    loaded: tuple[Any, Any], prefix_cache: bool, arrivals: int
) -> None:
    requests = [ask(q, max_tokens=3 + n % 7) for n, q in enumerate(QUESTIONS)]
    expected = texts_of(loaded, requests)
    found = run(scheduler(loaded, prefix_cache=prefix_cache), requests, arrivals)
    assert [completion.text for completion in found] == expected
    alone = [
        run(scheduler(loaded, prefix_cache=prefix_cache), [request])[0] for request in requests
    ]
    assert [completion.text for completion in alone] == expected


def test_rows_of_several_system_messages_do_not_mix(loaded: tuple[Any, Any]) -> None:
    requests = [ask(q, system) for q in QUESTIONS for system in ("", "Be short.", SYSTEM)]
    expected = texts_of(loaded, requests)
    found = run(scheduler(loaded, rows=16), requests, 9)
    assert [completion.text for completion in found] == expected
    assert len(set(expected)) > 10


def test_replies_grow_beyond_the_columns_made_at_once(loaded: tuple[Any, Any]) -> None:
    lengths = (COLUMNS + 40, 5, 2 * COLUMNS, 30)
    requests = [ask(q, max_tokens=n) for q, n in zip(QUESTIONS, lengths, strict=False)]
    found = run(scheduler(loaded, rows=3), requests)
    assert [completion.text for completion in found] == texts_of(loaded, requests)
    assert max(completion.completion_tokens for completion in found) > COLUMNS


def test_a_long_prompt_joins_short_rows(loaded: tuple[Any, Any]) -> None:
    requests = [ask("?", max_tokens=20), ask("long " * 50, max_tokens=20)]
    found = run(scheduler(loaded), requests, arrivals=1)
    assert [completion.text for completion in found] == texts_of(loaded, requests)


def test_prompts_of_many_tokens_are_read_in_parts(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_file, "PREFILL_TOKENS", 40)
    requests = [ask(q) for q in QUESTIONS]
    found = run(scheduler(loaded, rows=14), requests)
    assert [completion.text for completion in found] == texts_of(loaded, requests)


def test_what_prompts_begin_with_is_read_once(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    requests = [ask(q, max_tokens=1) for q in QUESTIONS]

    def tokens_read(prefix_cache: bool) -> int:
        found: list[int] = []
        hook = model.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: found.append(given[0].numel())
        )
        with hook:
            run(scheduler(loaded, rows=14, prefix_cache=prefix_cache), requests)
        return sum(found)

    opening = len(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n") - 3 * 11
    assert tokens_read(prefix_cache=False) - tokens_read(prefix_cache=True) >= 13 * opening


def test_log_probabilities_are_those_of_the_whole_text(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    requests = [ask(q, top_logprobs=n % 3 + 1) for n, q in enumerate(QUESTIONS)]
    found = run(scheduler(loaded), [*requests, ask("none", top_logprobs=0)])
    assert found.pop().logprobs == ()
    for request, completion in zip(requests, found, strict=True):
        drawn = generated(loaded, request)
        prompt = tokenizer.apply_chat_template(request.payload(), add_generation_prompt=True)
        ids = torch.tensor([[*prompt["input_ids"], *drawn]])
        with torch.no_grad():
            logs = model(ids).logits[0, -len(drawn) - 1 : -1].log_softmax(-1)
        expected = logs[range(len(drawn)), drawn].tolist()
        told = completion.logprobs
        assert [t.logprob for t in told] == pytest.approx(expected, abs=1e-4)
        assert [t.token for t in told] == [
            tokenizer.decode([token], skip_special_tokens=True) for token in drawn
        ]
        best = logs.topk(request.sampling.top_logprobs).values.flatten().tolist()
        assert [p for t in told for _, p in t.top] == pytest.approx(best, abs=1e-4)


def test_a_draw_follows_from_seed_and_vote_and_from_no_neighbour(loaded: tuple[Any, Any]) -> None:
    hot = {"temperature": 2.0, "max_tokens": 12}
    requests = [ask(QUESTIONS[0], vote=v, seed=s, **hot) for s in (0, 7) for v in range(4)]
    alone = [run(scheduler(loaded), [request])[0].text for request in requests]
    others = [ask(q, seed=n, **hot) for n, q in enumerate(QUESTIONS)]
    among = run(scheduler(loaded, rows=6), [*others, *requests], arrivals=5)[len(others) :]
    assert [completion.text for completion in among] == alone
    assert len(set(alone)) == len(requests)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    shares = torch.tensor([0.5, 0.3, 0.19, 0.01])
    logits = shares.log()[None] * 2  # At temperature 2 they are as likely as that again.
    sampling = [Sampling(temperature=2.0)]
    drawn = [draw(logits, sampling, [seeded(0, vote)])[0].token for vote in range(4000)]
    counts = [drawn.count(token) / 4000 for token in range(4)]
    assert MIN_PROBABILITY * 0.5 > 0.01
    assert counts[3] == 0
    for found, share in zip(counts, (shares / 0.99).tolist()[:3], strict=False):
        assert abs(found - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_a_stop_string_ends_the_text_and_is_not_in_it(loaded: tuple[Any, Any]) -> None:
    whole = run(scheduler(loaded), [ask(QUESTIONS[3], max_tokens=12)])[0]
    assert whole.finish_reason == "length"
    stop = whole.text[4:6]
    cut = run(scheduler(loaded), [ask(QUESTIONS[3], max_tokens=12, stop=("never", stop))])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < whole.completion_tokens == 12


def test_the_end_of_a_reply_counts_as_a_token_and_is_no_text(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    request = ask(QUESTIONS[1], max_tokens=9, top_logprobs=1)
    drawn = generated(loaded, request)
    end = next(n for n, token in enumerate(drawn) if token not in drawn[:n] and n > 1)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, drawn[end]]
    found = run(scheduler(loaded), [request])[0]
    assert found.text == tokenizer.decode(drawn[:end])
    assert found.finish_reason == "stop"
    assert found.completion_tokens == len(found.logprobs) == end + 1


def test_a_prompt_that_fills_the_context_is_refused_with_the_remedy(
    loaded: tuple[Any, Any],
) -> None:
    short = scheduler(loaded, context=100)
    with pytest.raises(EndpointError, match=r"prompt has \d+ tokens.* 100: shorten it") as told:
        short.add(ask("x" * 100))
    assert told.value.refused
    request = ask("x", max_tokens=500)
    found = run(short, [request])[0]
    assert found.prompt_tokens + found.completion_tokens == 100
    assert found.finish_reason == "length"


def test_a_text_that_is_no_unicode_is_refused(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="Unicode"):
        scheduler(loaded).add(ask("\udcff"))


def test_dropped_rows_leave_and_the_others_stay_as_they_are(loaded: tuple[Any, Any]) -> None:
    requests = [ask(q) for q in QUESTIONS]
    expected = texts_of(loaded, requests)
    busy = scheduler(loaded, rows=6)
    rows = [busy.add(request) for request in requests]
    finished: list[Row] = []
    for step in range(1000):
        if step == 3:
            for row in rows[::3]:
                row.dropped = True
        finished += busy.step()
        if not busy.busy:
            break
    assert {rows.index(row) for row in finished} == {n for n in range(14) if n % 3}
    assert [row.text for row in sorted(finished, key=rows.index)] == [
        text for n, text in enumerate(expected) if n % 3
    ]
