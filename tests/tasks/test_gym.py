"""Tasks of reasoning-gym and two-fact questions: H joins rightly, and fails in words."""

import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import MissingError, UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Direct, Origin
from reflux.graphs.evals.runner import evaluate
from reflux.graphs.evals.task import is_held_out, score_held_out, task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks import TASKS
from reflux.tasks.arithmetic import merge_sort
from reflux.tasks.gym import (
    Entry,
    GymTask,
    first_name,
    last_clock,
    last_count,
    last_number,
    last_word,
    number_list,
    offline_package,
    word_list,
)
from reflux.tasks.multihop import CONTINENTS, capitals
from reflux.tasks.reading import KIN, FamilyRelationships
from tests.support.contexts import next_step

OWN = {"addition", "multiplication", "multiplication_leaves", "hanoi"}
GYM = [name for name in TASKS if name not in OWN]
Replies = Callable[[str, str], str]


@cache
def task(name: str) -> GymTask:
    made = TASKS[name]()
    assert isinstance(made, GymTask)
    return made


def calculate(text: str) -> str:
    """Exact arithmetic; only ever given what H wrote."""
    exact = re.sub(r"\d+(?:\.\d+)?", r'D("\g<0>")', text)
    return format(eval(exact, {"__builtins__": {}, "D": Decimal}), "f")  # noqa: S307


def program(text: str) -> str:
    return str(eval(text, {"__builtins__": {}}))  # noqa: S307


@cache
def men() -> frozenset[str]:
    return frozenset(offline_package("reasoning_gym").create_dataset(
        "family_relationships", seed=0, size=1
    ).config.male_names)  # fmt: skip


@cache
def countries() -> dict[str, Any]:
    return {c.capital(): c for c in offline_package("countryinfo").all_countries()
            if isinstance(c.capital(), str)}  # fmt: skip


def oracle(text: str) -> str:
    """What a copy would say that knows all and chatters."""
    if named := re.fullmatch(r"Is (\w+) a male or a female name\? .*", text):
        return f"{named[1]} is a {'male' if named[1] in men() else 'female'} name."
    if about := re.fullmatch(r"Who is this sentence about\? (\S+) .*", text):
        return f"This sentence is about a person called {about[1]}, who is well known."
    if city := re.fullmatch(r"Which country has (.*) as its capital\?", text):
        return f"The capital of {countries()[city[1]].name()} is {city[1]}."
    country = re.fullmatch(r"(.*) is a country in which continent\?", text)
    assert country, text
    there = offline_package("countryinfo").CountryInfo(country[1]).region()
    return f"{country[1]} is a country located in {there}."


def perfect(to: str, text: str) -> str:
    return {"tool:calculator": calculate, "tool:python": program, "": oracle}[to](text)


async def played(made: GymTask, question: str, replies: Replies) -> tuple[str, int]:
    """H's script on one question with every sub-question answered; (answer, sub-questions)."""
    (overseer,) = made.overseers()
    transcript: list[Exchange] = []
    for _ in range(64):
        step = await next_step(overseer, question, transcript, may_ask=True)
        if isinstance(step, Answer):
            return step.text, len(transcript)
        assert isinstance(step, Ask)
        assert step.subquestions
        batch: list[str] = []
        for part in step.subquestions:
            assert all(need < len(batch) for need in part.needs)
            text = part.filled({need: batch[need] for need in part.needs})
            assert not made._reads(text)  # No part is a question of the task itself.
            batch.append(replies(part.to, text))
            transcript.append(Exchange(text, batch[-1]))
    raise AssertionError("no answer after 64 steps")


@pytest.mark.parametrize("name", GYM)
async def test_with_right_parts_h_is_right_by_the_packages_own_scorer(name: str) -> None:
    made = task(name)
    levels = len(made.parameters)
    for level in range(1, levels + 1):
        questions = made.sample(36 // levels, level, "held_out", 7)
        assert len(questions) == 36 // levels
        for question in questions:
            answer, asked = await played(made, question, perfect)
            assert score_held_out(made, question, answer), (question, answer)
            assert 0 < asked < 40
            assert made.checker().check(question, answer).ok


@pytest.mark.parametrize("name", GYM)
async def test_h_needs_its_parts_and_is_wrong_where_they_are(name: str) -> None:
    """Were H to know the answer by itself, it would not follow wrong parts."""
    made = task(name)

    def wrong(to: str, text: str) -> str:
        right = perfect(to, text)
        swaps = {"True": "False", "False": "True"}
        if to == "tool:calculator":
            return str(-Decimal(right) + 1) if name.startswith("number") else right + "7"
        if to == "tool:python":
            return swaps.get(right) or (right[:-1] + "#" if "." in right else right[::-1] + "0")
        if "male" in text:
            return right.replace("female", "x").replace("male", "female").replace("x", "male")
        return right.replace("country located in", "place in Oceania or")

    followed = 0
    for question in made.sample(10, 2, "held_out", 3):
        try:
            answer, _ = await played(made, question, wrong)
        except (ValueError, AssertionError):
            followed += 1
        else:
            followed += not made.score(question, answer)
    assert followed >= 8


@pytest.mark.parametrize("name", GYM)
@pytest.mark.parametrize("said", ["", " \n", "I cannot say.", "1/0", "[]", "-", "٣", "x" * 5_000])
async def test_nonsense_for_a_part_is_a_value_error_or_a_wrong_answer(name: str, said: str) -> None:
    made = task(name)
    for question in made.sample(3, 2, "held_out", 5):
        try:
            answer, _ = await played(made, question, lambda to, text: said)
        except ValueError:
            continue
        assert not made.score(question, answer)


@pytest.mark.parametrize("name", GYM)
async def test_a_part_that_failed_ends_the_question_in_words(name: str) -> None:
    made = task(name)
    question = made.sample(1, 1, "held_out", 5)[0]
    (overseer,) = made.overseers()
    step = await next_step(overseer, question, [], may_ask=True)
    assert isinstance(step, Ask)
    lost = [Exchange(part.text, None, "no reply") for part in step.subquestions]
    if name == "number_sorting":
        lost = [Exchange(part.text, "3", "over_budget") for part in step.subquestions]
    with pytest.raises(ValueError, match=r"no usable answer|none of") as caught:
        for _ in range(3):  # Cities whose country nobody knows are passed over at first.
            step = await next_step(overseer, question, lost, may_ask=True)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("name", GYM)
def test_a_sample_is_the_same_each_time_and_of_its_side(name: str) -> None:
    made, again = task(name), TASKS[name]()
    held = made.sample(20, 1, "held_out", 1)
    trained = made.sample(20, 1, "train", 1)
    assert held == again.sample(20, 1, "held_out", 1) != made.sample(20, 1, "held_out", 2)
    for side, questions in ((True, held), (False, trained)):
        assert len({made.canonical(q) for q in questions}) == len(questions) == 20
        assert all(is_held_out(made, q) is side for q in questions)
    with pytest.raises(UsageError, match="only held-out ones are scored"):
        score_held_out(made, trained[0], "1")
    for level in (0, len(made.parameters) + 1):
        with pytest.raises(UsageError, match=rf"has levels 1 to \d; {level} was asked for"):
            made.sample(1, level, "held_out", 0)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("products", "12 * 34", "34 * 12"),
        ("multihop", "Africa: Lima, Oslo, Nairobi", "Africa: Nairobi, Lima, Oslo"),
        ("number_sorting", "ascending order: 3, -1, 2", "descending order: 2, 3, -1"),
        ("word_sorting", "ascending order (x): b, a", "descending order (x): a, b"),
    ],
)
def test_questions_that_differ_in_order_alone_fall_on_the_same_side(
    name: str, one: str, other: str
) -> None:
    frame = {
        "products": "Solve the following multiplication: {}. Give",
        "multihop": "Which of these cities is the capital of a country in {}?",
        "number_sorting": "Sort these numbers in {}\nPlease",
        "word_sorting": "Now, sort these words in {}",
    }[name]
    made = task(name)
    first, second = frame.format(one), frame.format(other)
    assert made.canonical(first) == made.canonical(second) != first
    assert is_held_out(made, first) == is_held_out(made, second)
    assert made.canonical("  any  other text ") == "any other text"


@pytest.mark.parametrize("name", GYM)
async def test_what_is_no_question_of_the_task_goes_to_x(name: str) -> None:
    made = task(name)
    (overseer,) = made.overseers()
    question = made.sample(1, 1, "train", 0)[0]
    assert await next_step(overseer, "What is the meaning of life?", [], may_ask=True) == PASS
    assert await next_step(overseer, question, [], may_ask=False) == PASS
    assert made.from_user(f" {question}\n") == question
    with pytest.raises(UsageError, match="word for word"):
        made.from_user("What is the meaning of life?")
    assert made.answer_tokens(question) > made.answer_tokens("12 + 3")


def test_only_what_was_drawn_can_be_scored() -> None:
    with pytest.raises(UsageError, match="was not drawn by 'products'"):
        TASKS["products"]().score("Solve the following multiplication: 2 * 3. Give", "6")


@pytest.mark.parametrize("name", GYM)
async def test_in_the_graph_the_tasks_own_tools_and_a_knowing_model_answer_all(
    name: str, store: TraceStore
) -> None:
    made = task(name)
    client = ScriptedClient(lambda request: oracle(request.messages[-1][1]))
    context = AmplifyContext(
        RecordedClient(client, store), "base", (), votes=VotePolicy(max_votes=1)
    )
    amplified = Amplified(task_context(context, made))
    questions = made.sample(3, 2, "held_out", 0)
    score = await evaluate(amplified, made, Origin("run", 0, "h", name, "held_out"), questions)
    assert (score.accuracy, score.statuses) == (1.0, {"ok": 3})
    # What the row of a benchmark says of who works is what happens.
    assert (score.calls > 0) == ("model:" in made.answered_by)


@pytest.mark.parametrize("name", GYM)
async def test_in_the_graph_a_useless_model_fails_only_where_it_has_to_work(
    name: str, store: TraceStore
) -> None:
    made = task(name)
    client = ScriptedClient(lambda request: "!?")
    context = AmplifyContext(
        RecordedClient(client, store), "base", (), votes=VotePolicy(max_votes=1)
    )
    amplified = Amplified(task_context(context, made))
    questions = made.sample(2, 1, "held_out", 0)
    asked = Origin("run", 0, "amplified", name, "held_out")
    score = await evaluate(amplified, made, asked, questions)
    works = "model:" in made.answered_by
    assert (score.accuracy, score.n) == (0.0 if works else 1.0, 2)
    assert ("ok" in score.statuses) is not works


async def test_a_direct_answer_is_read_out_of_what_stands_around_it(store: TraceStore) -> None:
    made = task("products")

    def reply(request: ChatRequest) -> str:
        a, b = re.findall(r"\d+", request.messages[-1][1])
        return f"The product of {a} and {b} is {int(a) * int(b):,}."

    context = AmplifyContext(RecordedClient(ScriptedClient(reply), store), "base", ())
    direct = Direct(task_context(context, made))
    asked = Origin("run", 0, "direct", "products", "held_out")
    score = await evaluate(direct, made, asked, made.sample(5, 2, "held_out", 0))
    assert score.accuracy == 1.0


@pytest.mark.parametrize(
    ("reader", "reply", "found"),
    [
        (last_number, "2 + 3 makes 1,205.", "1205"),
        (last_number, "so -12", "-12"),
        (last_number, "about 3.50.", "3.50"),
        (last_count, "It appears three times.", "3"),
        (last_count, "2, or rather 12", "12"),
        (number_list, "Sorted: ['1', '-2.5', '3']", "['1', '-2.5', '3']"),
        (number_list, "first\n1, 2 and -3\nthat is all", "['1', '2', '-3']"),
        (number_list, "nothing is left: []", "[]"),
        (word_list, 'Here you are: "a", b, and c.', "a, b, c"),
        (last_word, "Backward it is **nus**.\nsun", "nus"),
        (last_clock, "from 09:06 to 10:07:08.250", "10:07:08.250"),
    ],
)
def test_a_reader_takes_the_answer_out_of_a_reply(
    reader: Callable[[str], str], reply: str, found: str
) -> None:
    assert reader(reply) == found
    with pytest.raises(ValueError, match=r"^no "):
        reader("?!")


def test_the_name_that_is_mentioned_first_counts_and_of_two_the_longer() -> None:
    words = [word for pair in KIN.values() for word in pair]
    assert first_name(words, "David's Grandfather, a father") == "grandfather"
    assert first_name(["San", "San José"], "It is San José") == "San José"
    assert first_name(words, "his ſon") == first_name(words, "his SON") == "son"
    with pytest.raises(ValueError, match="none of"):
        first_name(words, "a fathers' day")


def orders() -> Iterator[Sequence[str]]:
    luck = random.Random(0)
    for size in range(9):
        for _ in range(20):
            yield [str(luck.randrange(10)) for _ in range(size)]


def test_merge_sort_sorts_and_asks_each_pair_once() -> None:
    for items in orders():
        known: dict[tuple[str, str], bool] = {}
        while isinstance(order := merge_sort(items, known), set):
            assert not order & known.keys()
            known |= {(a, b): a <= b for a, b in order}
        assert order == sorted(items)
        assert all(a <= b for a, b in pairwise(order))
        assert len(known) <= len(items) * max(1, len(items)).bit_length()


def test_the_capitals_are_each_of_one_country_and_of_all_four_continents() -> None:
    found = capitals()
    assert len(found) > 100
    assert set(found.values()) == set(CONTINENTS)
    assert (found["Nairobi"], found["Lima"]) == ("Africa", "the Americas")
    assert "Naypyidaw" not in found  # Burma's, and Myanmar's.


@pytest.mark.process
def test_the_packages_are_imported_when_a_question_is_drawn_and_missed_in_words() -> None:
    code = (
        "import reflux, reflux.tasks, sys; print({'reasoning_gym', 'countryinfo'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(MissingError, match=r"pip install.*\[tasks\]"):
        offline_package("no_such_package_of_tasks")


def test_an_entry_with_a_wrong_key_is_left_out() -> None:
    class Everything(FamilyRelationships):
        def keep(self, entry: Entry) -> bool:
            return True

    answers = [{entry["answer"] for entry, _ in zip(made.draw(3, 0), range(300), strict=False)}
               for made in (Everything(), FamilyRelationships())]  # fmt: skip
    assert answers[0] > answers[1]
    assert answers[1] <= {word for pair in KIN.values() for word in pair}
