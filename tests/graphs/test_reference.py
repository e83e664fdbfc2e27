"""What holds for every tree, fault, budget and order of replies.

The graph answers what plain recursion answers; every call made is recorded, once; no child spends
more than its share; the order of replies changes nothing; single flight never deadlocks and never
merges two votes. A play that stands still raises `Deadlock`, in every one of these tests.
"""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflux.agents.budget import Budget
from reflux.agents.types import Ask, step_from_json
from reflux.graphs.amplify.state import Outcome
from tests.support.playing import ASKED, Played, by_reference, essence, orders, play, sorted_rows
from tests.support.worlds import World, worlds

pytestmark = pytest.mark.slow

Row = dict[str, Any]
cached = st.booleans()


def many(examples: int) -> settings:
    """The same examples on every machine, however slow it is."""
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def unsaved(outcome: Outcome) -> dict[str, Any]:
    """An outcome without what the cache saved it."""
    spent = {kind: number for kind, number in outcome["spent"].items() if kind != "cached"}
    return {**outcome, "spent": spent}


def saved(played: Played) -> int:
    """What the cache saved all roots together."""
    return sum(outcome["spent"]["cached"] for outcome in played.outcomes)


def judged(played: Played) -> list[str]:
    """Judgements without what the cache saved, of which a key holds the hash."""
    rows = [{**row, "detail": json.loads(row["detail"])} for row in played.judgements]
    for row in rows:
        row["detail"].get("spent", {}).pop("cached", None)
    return sorted_rows(rows, "key")


@many(45)
@given(worlds(), orders, cached)
def test_the_graph_answers_what_plain_recursion_answers(
    world: World, order: list[int], cached: bool
) -> None:
    graph = play(world, order, cached=cached)
    plain = play(world, answer=by_reference)
    assert essence(graph.outcomes) == essence(plain.outcomes)
    assert sorted_rows(graph.calls, "cached") == sorted_rows(plain.calls, "cached")


@many(45)
@given(worlds(), orders, cached, st.integers(0, 3))
def test_every_call_made_is_recorded_once(
    world: World, order: list[int], cached: bool, outage: int
) -> None:
    played = play(replace(world, outage=outage), order, cached=cached)
    made = digests(row for row in played.calls if not row["cached"])
    assert Counter(played.requests) == made
    assert digests(row for row in played.calls if row["cached"]).keys() <= made.keys()
    assert len(set(map(key, played.rows))) == len(played.rows)
    for root, outcome in zip(world.roots, played.outcomes, strict=True):
        mine = [r for r in finished(played) if r["question"] == ASKED.question_id(root)]
        assert outcome["spent"]["calls"] == len(mine)
        assert outcome["spent"]["cached"] == sum(row["cached"] for row in mine)
        assert outcome["spent"]["tokens"] == sum(map(tokens, mine))


@many(35)
@given(worlds(), orders, orders)
def test_no_finished_call_is_made_again(world: World, order: list[int], other: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        played = play(world, order, folder=Path(folder))
        again = play(world, other, folder=Path(folder))
    assert again.outcomes == played.outcomes
    assert again.rows[: len(played.rows)] == played.rows
    assert all(row["error"] for row in again.calls[len(played.calls) :])
    assert Counter(again.requests) == digests(row for row in played.calls if row["error"])
    assert again.judgements == played.judgements


def key(row: Row) -> tuple[Any, ...]:
    """The place of a row in its tree."""
    return tuple(row[k] for k in ("question", "path", "role", "step", "attempt", "vote"))


def digests(rows: Iterable[Row]) -> Counter[str]:
    return Counter(row["request_digest"] for row in rows)


def finished(played: Played) -> list[Row]:
    return [row for row in played.calls if not row["error"]]


def tokens(row: Row) -> int:
    return row["prompt_tokens"] + row["completion_tokens"]


@many(45)
@given(worlds(poor=True), orders, cached)
def test_no_child_spends_more_than_its_share(world: World, order: list[int], cached: bool) -> None:
    played = play(world, order, cached=cached)
    for root, outcome in zip(world.roots, played.outcomes, strict=True):
        whole = Budget(world.limits.calls, world.limits.tokens)
        mine = [row for row in played.rows if row["question"] == ASKED.question_id(root)]
        kept = world.adviser(0).reserve if world.advice else Budget(0, 0)
        used = audited(mine, "", whole, kept)
        assert used == (outcome["spent"]["calls"], outcome["spent"]["tokens"])


def audited(rows: list[Row], path: str, share: Budget, kept: Budget) -> tuple[int, int]:
    """Calls and tokens that the log holds for a node and all below it, held against its share.

    A node takes its steps and makes its calls one after another; each batch splits what is left
    and not kept for H's later steps. The two of a panel split what is left before either asks.
    """
    calls = spent = 0
    panels: dict[tuple[int, int], Budget] = {}
    for row in rows:
        if row["path"] != path:
            continue
        left = share.minus(calls, spent)
        if row["kind"] == "model":
            if (place := row["role"].removeprefix("overseer.ask.")).isdecimal():
                at = row["attempt"], row["step"]
                seat = int(place)
                left = panels.setdefault(at, left).split(2)[seat]
            assert left.calls >= 1
            assert 1 <= json.loads(row["sampling"])["max_tokens"] <= left.tokens
            below = [(1, tokens(row))] if not row["error"] else []
        else:
            step = step_from_json(json.loads(row["completion"]))
            asked = step.subquestions if isinstance(step, Ask) else ()
            shares = left.minus(kept.calls, kept.tokens).split(len(asked))
            assert sum(s.calls for s in shares) <= left.calls
            assert sum(s.tokens for s in shares) <= left.tokens
            place = f"{path}/{row['attempt']}.{row['step']}"
            below = [audited(rows, f"{place}.{i}", part, kept) for i, part in enumerate(shares)]
        calls += sum(c for c, _ in below)
        spent += sum(t for _, t in below)
    assert calls <= share.calls
    return calls, spent


@many(45)
@given(worlds(), orders, orders, cached)
def test_the_order_of_replies_changes_nothing(
    world: World, order: list[int], other: list[int], cached: bool
) -> None:
    one, two = play(world, order, cached=cached), play(world, other, cached=cached)
    # Of two roots that ask the same, the one that comes first pays: that is all timing decides.
    assert [unsaved(o) for o in one.outcomes] == [unsaved(o) for o in two.outcomes]
    assert sorted_rows(one.rows, "cached") == sorted_rows(two.rows, "cached")
    assert judged(one) == judged(two)
    assert saved(one) == saved(two)


@many(45)
@given(worlds(voting=True), orders)
def test_single_flight_changes_no_answer_and_merges_no_two_votes(
    world: World, order: list[int]
) -> None:
    joined, apart = play(world, order, cached=True), play(world, order)
    assert essence(joined.outcomes) == essence(apart.outcomes)
    assert sorted_rows(joined.calls, "cached") == sorted_rows(apart.calls, "cached")
    asked_once = digests(row for row in finished(joined) if not row["cached"])
    assert asked_once == Counter(digests(finished(apart)).keys())
    held: dict[str, tuple[Any, ...]] = {}
    for row, vote in votes(joined):
        assert held.setdefault(row["request_digest"], vote) == vote


def votes(played: Played) -> list[tuple[Row, tuple[Any, ...]]]:
    """Each model call, with what makes it a vote of its own: its question, the retries that lead
    to it, and its place among the votes of that try.

    Retries are the attempts at each level from the root down, without those at the end that are
    no retries: a first try one level deeper asks nothing anew. The place is that of the vote's
    number, since the log is in the order in which replies came.
    """
    tries: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    attempts: dict[tuple[str, str], int] = {}
    for row in played.rows:
        node = row["question"], row["path"]
        if row["role"].startswith("overseer"):
            attempts[node] = row["attempt"]
        if row["role"] != "answer":
            continue  # What H asks for itself is no vote; it may ask the same twice.
        above = [int(part.split(".")[0]) for part in row["path"].split("/")[1:]]
        retries = [*above, attempts[node]]
        while retries and retries[-1] == 0:
            retries.pop()
        tries[*node, *retries].append(row)
    return [
        (row, (row["messages"], retries, place))
        for (_, _, *retries), rows in tries.items()
        for place, row in enumerate(sorted(rows, key=lambda row: row["vote"]))
    ]
