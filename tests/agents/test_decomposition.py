"""What is wrong with a decomposition: a table of kinds, the labelled rows, any text at all."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.decompositions import rates, rows
from reflux.agents.overseers.decomposition import decomposition_problems
from reflux.agents.overseers.particulars import read
from reflux.agents.types import Ask, Exchange, SubQuestion

SUM = "State the final answer to the following arithmetic problem: 205 - 838 + 505 ="
CITIES = "Which of these cities is the capital of a country in Asia: Lima, Baku, Oslo?"
SKY = "why is the sky blue at noon and red at sunset"
HEAVIER = "Which is heavier, an elephant or a whale?"
LARGER = "巴黎和北京哪个更大？"
APPLES = "Tom has 14 apples. He gives 5 to Anna. How many has Tom?"
ASIA = Exchange("Which country has Baku as its capital?", "Azerbaijan")

CASES = {
    "steps of a sum": (SUM, ["205 - 838", "{0} + 505"], ""),
    "steps of a sum with a number twice": ("2 + 4 + 4", ["2 + 4", "{0} + 4"], ""),
    "such a sum again": ("2 + 4 + 4", ["4 + 4 + 2"], "sub-question 1 repeats the question"),
    "a sum that lost its numbers": (
        SUM, ["What is the final answer to the arithmetic problem?"],
        'sub-question 1 dangles: "the final answer" stands for nothing; '
        'sub-question 1 loses "205", "838", "505"',
    ),
    "the sum again": (SUM, ["What is 205 - 838 + 505?"], "sub-question 1 repeats the question"),
    "another sum": (
        SUM, ["What is 7 + 9?"],
        'sub-question 1 invents "7", "9", and loses "205", "838", "505"',
    ),
    "look-ups that leave one name for the last step": (
        CITIES, [f"Which country has {city} as its capital?" for city in ("Lima", "Baku", "Oslo")],
        "",
    ),
    "look-ups that lost what they look up": (
        CITIES, ["Which city is the capital of a country in Asia?"],
        'sub-question 1 loses "Lima", "Baku", "Oslo"',
    ),
    "these cities": (
        CITIES, ["Which of these cities is in Asia?"],
        'sub-question 1 dangles: "these cities" stands for nothing; '
        'sub-question 1 loses "Lima", "Baku", "Oslo"',
    ),
    "lower case": (SKY, ["why is the sky blue at noon", "why is the sky red at sunset"], ""),
    "no word of it": (
        SKY, ["Who wrote Hamlet?"], "sub-question 1 holds no word of the question",
    ),
    "it": (
        SKY, ["Why is the sky blue at noon?", "Why is it red?"],
        'sub-question 2 dangles: "it" stands for nothing',
    ),
    "an it that needs nothing": (
        SKY, ["Is it true that the sky is blue at noon?", "How long does it take the sun to set?"],
        "",
    ),
    "about nothing": (
        SKY, ["Why is the sky blue at noon?", "How should I solve this?"],
        'sub-question 2 dangles: "this" stands for nothing',
    ),
    "the question without its facts": (
        APPLES, ["How many has Tom?"],
        'sub-question 1 loses "14", "5"',
    ),
    "names without their story": (
        APPLES, ["Who is Tom?", "Who is Anna?"], 'the batch loses "14", "5"',
    ),
    "all the same": (
        APPLES, ["Has Tom 14 apples?", "has Tom 14 apples", "Has Tom 14 apples!"],
        "the batch asks the same several times",
    ),
    "Chinese": ("法国和日本的首都是什么？", ["法国的首都是什么？", "日本的首都是什么？"], ""),
    "Chinese, lost": (
        "法国和日本的首都是什么？", ["Who wrote Hamlet?"],
        "sub-question 1 is in another language than the question",
    ),
    "Chinese, compared": (LARGER, ["巴黎有多大？", "北京有多大？"], ""),
    "Chinese, without what is compared": (
        LARGER, ["哪个更大？"], "sub-question 1 holds no word of the question",
    ),
    "Chinese, translated": (
        LARGER, ["How large is Paris?", "How large is it in Beijing?"],
        "the batch is in another language than the question",
    ),
    "Japanese": ("パリと北京はどちらが大きいですか？", ["パリの面積は？", "北京の面積は？"], ""),
    "Thai": ("ปารีสหรือปักกิ่งใหญ่กว่ากัน", ["ปารีสใหญ่แค่ไหน", "ปักกิ่งใหญ่แค่ไหน"], ""),
    "alternatives": (HEAVIER, ["How heavy is an elephant?", "How heavy is a whale?"], ""),
    "one of them, and the rest by its answer": (
        HEAVIER, ["How heavy is an elephant?", "Is a whale heavier than {0}?"], "",
    ),
    "alternatives, lost": (
        HEAVIER, ["Which is heavier?"], 'sub-question 1 loses "elephant", "whale"',
    ),
    "alternatives, invented": (
        HEAVIER, ["Is a lion or a gorilla heavier?"],
        'sub-question 1 invents "lion", "gorilla", and loses "elephant", "whale"',
    ),
    "alternatives that are compared behind them": (
        "Is an elephant or a whale heavier?", ["Which is heavier?"],
        'sub-question 1 loses "elephant", "whale"',
    ),
    "a choice of predicates": (
        "Is a whale a mammal or a fish?", ["Has a whale gills?", "Does a whale breathe air?"], "",
    ),
    "a choice of adjectives": (
        "Is Paris larger or smaller than Lyon?",
        ["How large is Paris?", "How large is Lyon?"], "",
    ),
    "Arabic numbers": ("كم يساوي ٢٠٥ + ٨٣٨ - ٥٠٥؟", ["كم يساوي 205 + 838؟"], ""),
    "quotations": (
        "Is 'good day' or `hello` longer?",
        ["How many letters has 'good day'?", "How many letters has hello?"], "",
    ),
}  # fmt: skip


def batch_of(*texts: str) -> Ask:
    return Ask(tuple(SubQuestion(t, tuple(i for i in (0, 1) if f"{{{i}}}" in t)) for t in texts))


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_plain_words(name: str) -> None:
    question, asked, problems = CASES[name]
    found = decomposition_problems(question, (), batch_of(*asked))
    assert "; ".join(map(str, found)) == problems


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Is Azerbaijan in Asia?", []),
        ("In which country lies Baku?", []),
        ("Which country has Baku as the capital?", ["repeats"]),
        ("Is the country rich?", ["dangles"]),
    ],
)
def test_a_later_step_may_hold_what_was_answered_instead(text: str, kinds: list[str]) -> None:
    found = decomposition_problems(CITIES, [ASIA], batch_of(text))
    assert [problem.kind for problem in found] == kinds


def test_what_a_tool_runs_is_no_prose() -> None:
    program = SubQuestion('"Bro"[::-1] + the answer', to="tool:python")
    assert not decomposition_problems("Spell backward: Brodiaea", (), Ask((program,)))


def test_a_batch_of_nothing_has_no_problem() -> None:
    assert decomposition_problems(CITIES, (), Ask(())) == ()


def test_rules_that_read_the_labelled_rows_find_most_of_the_bad_and_refuse_few_others() -> None:
    labelled = rows()
    measured = rates(labelled)
    assert measured["good"] >= 300 and measured["bad"] >= 150
    assert len({row.source for row in labelled if row.good}) >= 6
    assert measured["precision"] > 0.9
    assert measured["recall"] > 0.75


TEXT = st.text(max_size=40) | st.text(
    st.sampled_from(list("Paris lima 12,.3?!\"'{}0:()[]the itз的हिกあ٣\n")), max_size=60
)


@given(TEXT, st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=2))
def test_every_text_can_be_read(question: str, asked: list[str], said: list[str]) -> None:
    transcript = [Exchange(text, text) for text in said]
    for problem in decomposition_problems(question, transcript, Ask.of(*asked)):
        assert str(problem)


@pytest.mark.parametrize("text", ["the " * 10_000, "1," * 20_000, "'x' " * 10_000])
def test_long_texts_take_time_in_proportion(text: str) -> None:
    def seconds(part: str) -> float:
        read.cache_clear()
        begun = time.process_time()
        decomposition_problems(part, (), Ask.of(part + "x", "the first one"))
        return time.process_time() - begun

    assert seconds(text) < 40 * seconds(text[: len(text) // 8]) + 0.2


def test_of_a_conversation_only_the_last_question_has_to_be_covered() -> None:
    earlier = "Conversation so far:\nUser: Where is Rome?\nAssistant: In Italy.\n\nQuestion:\n"
    parts = Ask.of("How many people live in Lima?", "How many people live in Oslo?")
    question = "Which has more people, Lima or Oslo?"
    assert decomposition_problems(earlier + question, (), parts) == ()
    lost = Ask.of("Which city is it?")
    assert decomposition_problems(earlier + question, (), lost)
