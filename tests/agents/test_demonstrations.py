"""Demonstrations: read from lines, chosen by nearness, shown within a limit, never of the question
itself."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.overseers.demonstration_file import (
    demonstration_of,
    read_demonstrations,
    write_demonstrations,
)
from reflux.agents.overseers.demonstrations import Demonstration, Demonstrations
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.nearness import installed_embedding
from reflux.agents.prompts import COMBINED, DEPENDENT
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, SubQuestion
from tests.support.contexts import ScriptedContext

OLDER = {
    "question": "Which is older, the Louvre or the Prado?",
    "ask": ["When was the Louvre opened?", "When was the Prado opened?", "Is {0} before {1}?"],
    "answers": ["1793", "1819", "yes"],
    "answer": "the Louvre",
}
SUM = {"question": "What is 12 + 30 + 5?", "ask": ["12 + 30", "{0} + 5"]}
CITY = {
    "question": "Is Lima or Oslo in Asia, Africa or Europe?",
    "steps": [
        {"ask": ["Country of Lima?", "Country of Oslo?"], "answers": ["Peru", "Norway"]},
        {"ask": ["Is Peru in Europe?", "Is Norway in Europe?"], "answers": ["no", "yes"]},
    ],
    "answer": "Oslo",
}
SIMPLE = {"question": "What is the capital of France?", "ask": []}
ALL = (OLDER, SUM, CITY, SIMPLE)


def same_meaning(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.ones((len(texts), 1), dtype=np.float32)


def no_embedding(*bodies: Any, **fields: Any) -> Demonstrations:
    """Demonstrations that are chosen by trigrams alone, whatever is installed."""
    items = tuple(demonstration_of(body) for body in bodies)
    return Demonstrations(items, embed=same_meaning, **fields)


def lines(path: Path, *bodies: Any) -> Path:
    path.write_text("".join(f"{b if isinstance(b, str) else json.dumps(b)}\n" for b in bodies))
    return path


def test_a_file_that_is_written_reads_the_same(tmp_path: Path) -> None:
    read = read_demonstrations(lines(tmp_path / "a.jsonl", *ALL, ""))
    write_demonstrations(tmp_path / "b.jsonl", read.items)
    assert read_demonstrations(tmp_path / "b.jsonl").items == read.items
    assert [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()] == [*ALL]
    assert read.items[1].steps[0].ask == (SubQuestion("12 + 30"), SubQuestion("{0} + 5", (0,)))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not json", "no JSON"),
        ('"text"', "no JSON object"),
        ({**SUM, "answr": "47"}, "unknown key 'answr'"),
        ({"ask": ["a"]}, "`question` holds no text"),
        ({"question": " ", "ask": ["a"]}, "the question is empty"),
        ({"question": "q"}, "either `ask` or `steps`"),
        ({"question": "q", "ask": "a?"}, "`ask` is no list of texts"),
        ({"question": "q", "ask": [["a"]]}, "`ask` holds no text"),
        ({"question": "q", "ask": [{"question": "a", "tool": "b"}]}, "unknown key 'tool'"),
        ({"question": "q", "ask": ["a?"], "answers": ["1", "2"]}, "2 answers to 1 sub-questions"),
        ({"question": "q", "ask": ["a?"], "reason": "r"}, "a `reason` and no `answer`"),
        ({"question": "q", "ask": ["a?", "b {7}?"]}, "refers to {7}, and its step has 2"),
        ({"question": "q", "ask": ["a {1}?", "b {0}?"]}, "not before it"),
        ({"question": "q", "ask": ["a?", "A?"]}, "repeats"),
        ({"question": "q", "ask": ["Q"]}, "repeats"),
        ({"question": "q", "steps": [{"ask": ["a"]}, {"ask": []}]}, "asks nothing"),
        ({"prompt": "q", "completion": "a"}, "unknown key 'prompt'"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: Any, problem: str) -> None:
    path = lines(tmp_path / "demos.jsonl", SUM, "", line)
    with pytest.raises(UsageError) as caught:
        read_demonstrations(path)
    message = str(caught.value)
    assert f"{path}, line 3: not a demonstration (" in message
    assert problem in message
    assert 'each line is like {"question"' in message


def test_a_missing_or_empty_file_is_told_with_a_remedy(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "it is a folder"),
        (lines(tmp_path / "empty.jsonl", "", " "), "holds no demonstrations: write one a line"),
    ):
        with pytest.raises(UsageError, match=problem):
            read_demonstrations(path)


def test_the_nearest_are_chosen_and_digits_do_not_count() -> None:
    demos = no_embedding(*ALL)
    assert demos.nearest("What is 91 + 44 + 8?", 1)[0].question == SUM["question"]
    assert demos.nearest("Which is older, Rome or Oslo?", 1)[0].question == OLDER["question"]


def test_an_embedding_decides_where_there_is_one_and_each_text_is_embedded_once() -> None:
    texts: list[str] = []

    def embed(batch: Any) -> Any:
        texts.extend(batch)
        return np.array(
            [[float("capital" in text), float("capital" not in text)] for text in batch]
        )

    demos = Demonstrations(tuple(map(demonstration_of, ALL)), embed=embed)
    for question in ("The capital, please", "capital letters", "The capital, please"):
        assert demos.nearest(question, 1)[0].question == SIMPLE["question"]
    assert sorted(texts) == sorted(
        [*(b["question"] for b in ALL), "The capital, please", "capital letters"]
    )


def test_no_question_is_shown_its_own_demonstration_or_one_that_asks_it() -> None:
    demos = no_embedding(*ALL, canonical=lambda text: " ".join(sorted(text.split())))
    for question in (
        "what is 12 + 30 + 5?",
        "12 + 30 + 5? What is",
        "12 + 30",
        "When was the Louvre  opened?",
        "Is 1793 before 1819?",
    ):
        shown = demos.nearest(question, 9)
        assert len(shown) == 3
        assert not any(question in demo.questions for demo in shown)


def prompt_of(context: ScriptedContext) -> list[str]:
    (request,) = context.client.requests
    return [turn[1] for turn in request.messages]


async def test_the_first_step_is_shown_by_first_steps_the_nearest_last() -> None:
    context = ScriptedContext(['{"ask": ["1 + 2", "{0} + 3"]}'])
    h = ModelOverseer(demos=no_embedding(*ALL), shots=2)
    step = await h.act(context.on("What is 1 + 2 + 3?"))
    assert step == Ask(
        (SubQuestion("1 + 2"), SubQuestion("{0} + 3", (0,))),
        note=f"shown demonstrations {ALL.index(SUM) + 1}, {ALL.index(SIMPLE) + 1}",
    )
    texts = prompt_of(context)
    assert len(texts) == 6
    assert SIMPLE["question"] in texts[1]
    assert json.loads(texts[2]) == {"not_decomposable": "one simple question"}
    assert SUM["question"] in texts[3]
    assert '{"question": "{0} + 5", "needs": [0]}' in texts[4]


async def test_later_steps_are_shown_by_later_steps_and_answers() -> None:
    context = ScriptedContext(['{"answer": "x"}'])
    h = ModelOverseer(demos=no_embedding(OLDER, SUM, CITY))
    said = [Exchange("Country of Kyiv?", "Ukraine")]
    assert await h.act(context.on("Is Kyiv or Lima in Europe?", said)) == Answer("x")
    texts = prompt_of(context)
    replies = [json.loads(text) for text in texts[2:-1:2]]
    assert replies[0] == {"answer": "the Louvre"}
    assert [sub["question"] for sub in replies[1]["ask"]] == CITY["steps"][1]["ask"]
    assert replies[2:] == [{"answer": "Oslo"}]
    assert "- Is 1793 before 1819? yes" in texts[1]
    assert "- Country of Oslo? Norway" in texts[3] and "Is Peru" not in texts[3]


async def test_without_a_demonstration_of_later_steps_ours_are_shown() -> None:
    context = ScriptedContext(['{"answer": "x"}'])
    await ModelOverseer(demos=no_embedding(SUM)).act(context.on("q?", [Exchange("a", "b")]))
    texts = prompt_of(context)
    assert DEPENDENT[0] in texts[1] and COMBINED[0] in texts[3]


async def test_what_does_not_fit_is_left_out_from_the_farthest_on_and_noted() -> None:
    long = {"question": "What is 7 + 7?" + " and" * 900, "ask": ["7 + 7", "{0} + 0"]}
    context = ScriptedContext(['{"ask": ["a", "b"]}'])
    h = ModelOverseer(demos=no_embedding(OLDER, long, SUM), demo_chars=300, validate=False)
    step = await h.act(context.on("What is 1 + 2 + 3?"))
    assert step == replace(
        Ask.of("a", "b"), note="shown demonstrations 3; 2 demonstrations left out: too long"
    )
    assert len(prompt_of(context)) == 4


async def test_a_context_that_is_too_short_shows_fewer_until_the_request_fits() -> None:
    def reply(request: ChatRequest) -> str:
        if sum(len(turn[1]) for turn in request.messages) > 1_500:
            error = EndpointError("too long")
            error.refused = error.too_long = True
            raise error
        return '{"ask": ["a", "b"]}'

    context = ScriptedContext(reply)
    far = {"question": "Which came first?" + " and" * 300, "ask": ["x", "y {0}"]}
    h = ModelOverseer(demos=no_embedding(SUM, far, OLDER), validate=False)
    step = await h.act(context.on("What is 1 + 2 + 3?"))
    assert isinstance(step, Ask)
    assert step.note == "shown demonstrations 1, 3; 1 demonstrations left out: too long"
    assert len(context.client.requests) == 2
    assert SUM["question"] in context.client.requests[-1].messages[-3][1]


def test_a_plan_takes_later_steps_by_reference() -> None:
    ((question, transcript, reply),) = demonstration_of(CITY).plan()
    assert (question, transcript) == (CITY["question"], ())
    assert [sub["question"] for sub in reply["ask"]] == [
        "Country of Lima?",
        "Country of Oslo?",
        "Is {0} in Europe?",
        "Is {1} in Europe?",
    ]
    assert [sub["needs"] for sub in reply["ask"]] == [[], [], [0], [1]]
    assert demonstration_of(SIMPLE).plan() == demonstration_of(SIMPLE).first()
    assert demonstration_of(SIMPLE).later() == []


def test_many_demonstrations_are_quick(tmp_path: Path) -> None:
    bodies = (
        {"question": f"What is {n} + {n * 7} times {n % 97}?", "ask": [f"{n} + {n * 7}", "{0} * 2"]}
        for n in range(4_000)
    )
    begun = time.process_time()
    demos = read_demonstrations(lines(tmp_path / "many.jsonl", *bodies))
    demos = Demonstrations(demos.items, embed=same_meaning)
    for n in range(20):
        assert len(demos.nearest(f"What is {n} + 5 times 3?", 3)) == 3
    assert time.process_time() - begun < 10  # About 1 s; a quadratic way takes minutes.
    assert isinstance(demos.items[0], Demonstration)


def test_the_embedding_finds_the_same_meaning_in_other_words() -> None:
    embed = installed_embedding()
    if embed is None:
        pytest.skip("the extra `embedding` is not installed")
    vectors = embed(["How tall is the mountain?", "What is the peak's height?", "Who paints?", ""])
    assert vectors.shape == (4, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near = vectors @ vectors[0]
    assert near[1] > 0.5 > near[2]  # 0.74 and 0.09.
