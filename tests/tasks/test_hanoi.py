"""The Tower of Hanoi: its rule leads to the goal, and no training question lies on the way."""

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.types import Answer, Chain, ChatRequest
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Direct, Origin, answer_all
from reflux.graphs.evals.task import is_held_out, task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks import task_named
from reflux.tasks.hanoi import Hanoi, Mover
from reflux.tasks.tower import (
    DISKS,
    NO_MOVE,
    WAYS,
    Pegs,
    Position,
    best,
    cleared,
    first_move,
    left,
    legal,
    moved,
    moves,
    on_a_way,
    on_the_way,
    read,
)
from tests.support.contexts import next_step

TASK = Hanoi()
sizes = st.integers(2, 8)


@st.composite
def towers(draw: st.DrawFn) -> Pegs:
    """Any legal position."""
    pegs = ["", "", ""]
    for disk in DISKS[: draw(st.integers(2, 7))]:
        pegs[draw(st.integers(0, 2))] += disk
    return pegs[0], pegs[1], pegs[2]


def shortest(start: Pegs, goal: str) -> int:
    """Moves to the goal, by a search that knows the rules alone."""
    end = tuple("".join(sorted("".join(start))) if peg == goal else "" for peg in "XYZ")
    seen, due = {start: 0}, deque([start])
    while end not in seen:
        here = due.popleft()
        for move in moves(here):
            if (there := moved(here, move)) not in seen:
                seen[there] = seen[here] + 1
                due.append(there)
    return seen[end]


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from(WAYS))
def test_the_rule_solves_every_tower_in_the_fewest_moves(disks: int, way: tuple[str, str]) -> None:
    position = first_move(on_the_way(disks, *way, 0))
    for made in range(2**disks - 1):
        assert position.pegs == on_the_way(disks, *way, made).pegs
        assert left(position.pegs, *way) == 2**disks - 1 - made
        position = position.after(best(position))
    assert cleared(position.pegs)
    assert position.pegs["XYZ".index(way[1])] == DISKS[:disks]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.sampled_from(WAYS), st.data())
def test_a_puzzle_set_on_the_way_is_as_far_from_its_goal_as_a_search_finds(
    disks: int, way: tuple[str, str], data: st.DataObject
) -> None:
    made = data.draw(st.integers(0, 2**disks - 2))
    puzzle = on_the_way(disks, *way, made)
    assert TASK.score(puzzle.text, str(shortest(puzzle.pegs, way[1])))
    assert not TASK.score(puzzle.text, str(2**disks))


@settings(max_examples=60, deadline=None)
@given(towers())
def test_a_move_is_legal_exactly_where_the_game_allows_it(pegs: Pegs) -> None:
    every = [f"{disk} {one} {two}" for disk in DISKS[:7] for one in "XYZ" for two in "XYZ"]
    allowed = {move for move in every if legal(pegs, move)}
    assert allowed == set(moves(pegs))
    assert len(allowed) == (2 if cleared(pegs) else 3)
    for move in allowed:
        after = moved(pegs, move)
        assert all(list(peg) == sorted(peg) for peg in after)
        back = move.split()
        assert legal(after, f"{back[0]} {back[2]} {back[1]}")


@pytest.mark.parametrize(
    "move", ["", "a", "a X", "a X X Y", "z X Y", "a Q Y", " X Y", "aX Y", "a X "]
)
def test_what_is_no_move_is_not_legal(move: str) -> None:
    assert not legal(("abc", "", ""), move)


@settings(max_examples=60, deadline=None)
@given(towers(), st.integers(0, 99))
def test_a_position_is_read_back_as_it_was_written(pegs: Pegs, made: int) -> None:
    for position in (Position(pegs, NO_MOVE, "X Y Z X", made), Position(pegs, "a X Y", goal="Y")):
        assert read(position.text) == position


def test_no_training_question_shows_disks_as_they_lie_on_a_shortest_way() -> None:
    asked = [*TASK.primitives()]
    asked += [q for level in (4, 7, 10, 13) for q in TASK.sample(200, level, "train", 3)]
    assert len(asked) > 3_500
    learned = {tuple(sorted(read(question).pegs)) for question in asked}
    evaluated = {
        tuple(sorted(on_the_way(disks, *way, made).pegs))
        for disks in range(3, 11)
        for way in WAYS
        for made in range(2**disks)
    }
    # Sorted: under whatever names of the pegs.
    assert not learned & evaluated
    assert not any(on_a_way(read(question).pegs) for question in asked)


def test_training_questions_are_not_held_out_and_puzzles_are() -> None:
    for question in TASK.sample(100, 5, "train", 0):
        assert not is_held_out(TASK, question)
    puzzles = TASK.sample(10, 5, "held_out", 0)
    assert puzzles
    assert all(question.startswith("solve to ") for question in puzzles)
    assert all(is_held_out(TASK, question) for question in puzzles)
    assert TASK.sample(10, 5, "held_out", 0) == puzzles


def test_questions_that_differ_in_the_moves_made_are_held_out_together() -> None:
    one = TASK.sample(1, 6, "train", 0)[0]
    other = replace(read(one), moves=77).text
    assert one != other
    assert TASK.canonical(one) == TASK.canonical(other)


async def test_h_answers_a_single_move_and_divides_a_puzzle_into_a_chain() -> None:
    h = Mover()
    question = TASK.primitives()[0]
    assert await next_step(h, question, (), True) == Answer(best(read(question)))
    puzzle = TASK.from_user("hanoi 3")
    first = "move 0 ; X Z Y X ; - ; X a b c ; Y ; Z"
    assert await next_step(h, puzzle, (), True) == Chain(first)
    assert h.follow(first, "a X Z") == "move 1 ; X Z Y X ; a X Z ; X b c ; Y ; Z a"
    assert h.follow("move 6 ; X Z Y X ; b Y Z ; X a ; Y ; Z b c", "a X Z") == Answer("7")
    with pytest.raises(ValueError, match="not legal"):
        h.follow(first, "b X Z")


def right(request: ChatRequest) -> str:
    return best(read(request.messages[-1][1]))


def solving(store: TraceStore, client: ScriptedClient) -> AmplifyContext:
    given = AmplifyContext(
        RecordedClient(client, store),
        "base",
        (),
        limits=Limits(attempts=1),
        votes=VotePolicy(max_votes=1),
    )
    return task_context(given, TASK)


async def test_copies_that_know_the_rule_solve_every_puzzle(store: TraceStore) -> None:
    asked = Origin("run", 0, "amplified", "hanoi", "held_out")
    puzzles = [TASK.from_user("hanoi 5"), *TASK.sample(5, 4, "held_out", 0)]
    client = ScriptedClient(right)
    found = await answer_all(Amplified(solving(store, client)), asked, puzzles)
    for puzzle, outcome in zip(puzzles, found, strict=True):
        assert outcome["status"] == "ok"
        assert TASK.score(puzzle, outcome["answer"] or "")
        assert outcome["spent"]["calls"] == int(outcome["answer"] or 0)
    assert TASK.to_user(puzzles[0], found[0]["answer"] or "") == "solved in 31 moves"


async def test_a_copy_alone_answers_a_puzzle_with_a_number(store: TraceStore) -> None:
    asked = Origin("run", 0, "direct", "hanoi", "held_out")
    puzzles = TASK.sample(3, 4, "held_out", 0)
    client = ScriptedClient(lambda request: "15" if request.vote == 0 else "a X Y")
    found = await answer_all(Direct(solving(store, client)), asked, puzzles)
    assert [outcome["answer"] for outcome in found] == ["15"] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hanoi",
        "hanoi 1",
        "hanoi 21",
        "hanoi -3",
        "solve",
        "move 3 ; X Y",
        "move 0 ; X X X X ; - ; X a b ; Y ; Z",
        "solve to Q ; - ; X a b ; Y ; Z",
        "solve to Z ; - ; X b a ; Y ; Z",
        "solve to Z ; - ; X a c ; Y ; Z",
    ],
)
def test_what_is_no_puzzle_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"hanoi 10|2 to 20"):
        TASK.from_user(text)


def test_it_is_a_task_by_name() -> None:
    assert task_named("hanoi").name == "hanoi"
