"""Several reviewers of one item: who decides, how far they agree, and what it costs them."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from reflux.agents.errors import UsageError
from reflux.graphs.traces.review import Item, find_item, page, queue, rejected_by_humans
from reflux.graphs.traces.reviewers.agreement import fleiss_kappa, review_report
from reflux.graphs.traces.reviewers.opinions import Opinion, Reviewer, decision, require
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.review_actions import Acted, judge_item


async def waiting(store: TraceStore, count: int, reviewers: int) -> list[str]:
    """The ids of rejected answers, each of which needs so many reviewers."""
    names = [f"q{number:02}" for number in range(count)]
    for name in names:
        await store.add_question({"id": name, "text": name, "split": "train", "round": 1})
        detail = {"question": name, "answer": "a", "status": "unchecked", "error": None}
        detail["tally"] = [["a", 2], ["b", 1]]
        await store.add_judgement(name, "", "outcome", True, detail, key="0")
    await require(store, reviewers)
    return names


def unopened(*_: Any) -> Any:
    raise AssertionError("no model is needed")


async def judged(store: TraceStore, id: str, who: str, said: Any, seconds: float = 6) -> Acted:
    item, answer = find_item(store, id), ""
    if said.startswith("edit "):
        said, answer = said.split()
    by = Reviewer(who, seconds)
    return await judge_item(
        store, item, said, unopened, unopened, answer, f"{who} saw", reviewer=by
    )


def ids(items: list[Item]) -> list[str]:
    return [item.id for item in items]


async def test_two_who_agree_decide_and_neither_alone(store: TraceStore) -> None:
    (id,) = await waiting(store, 1, 2)
    assert (await judged(store, id, "ana", "approve")).did == "noted; 1 more to judge"
    assert ids(queue(store, reviewer="ana")) == []
    assert ids(queue(store, reviewer="ben")) == [id]
    assert load_tree(store, id).verdict == ""
    assert (await judged(store, id, "ben", "approve")).did == "approved"
    assert ids(queue(store, reviewer="eve")) == []
    tree = load_tree(store, id)
    assert (tree.verdict, tree.comments) == ("approved", ["ana saw; ben saw"])


@pytest.mark.parametrize("third", ["approve", "reject"])
async def test_where_two_disagree_a_third_decides_who_does_not_see_what_they_said(
    store: TraceStore, third: str
) -> None:
    (id,) = await waiting(store, 1, 2)
    await judged(store, id, "ana", "approve")
    assert (await judged(store, id, "ben", "reject")).did == "noted; 1 more to judge"
    (item,) = queue(store, reviewer="eve")
    assert item.reason.endswith("; 2 reviewers disagree")
    shown = load_tree(store, id)
    assert (shown.verdict, shown.comments) == ("", [])
    await judged(store, id, "eve", third)
    assert load_tree(store, id).verdict == ("approved" if third == "approve" else "rejected")
    assert queue(store, reviewer="fay") == []
    assert (id in rejected_by_humans(store)) == (third == "reject")


async def test_an_answer_that_one_doubts_is_not_learned_before_the_others_decide(
    store: TraceStore,
) -> None:
    one, two = await waiting(store, 2, 2)
    await judged(store, one, "ana", "approve")
    await judged(store, two, "ana", "reject")
    assert rejected_by_humans(store) == {two}
    await judged(store, two, "ben", "approve")
    await judged(store, two, "eve", "approve")
    assert rejected_by_humans(store) == set()


async def test_two_who_put_in_the_same_answer_edit_it(store: TraceStore) -> None:
    (id,) = await waiting(store, 1, 2)
    await judged(store, id, "ana", "edit better")
    await judged(store, id, "ben", "edit other")
    acted = await judged(store, id, "eve", "edit better")
    assert (acted.did, acted.outcome and acted.outcome["answer"]) == ("edited", "better")


async def test_a_reviewer_who_changes_their_mind_has_one_opinion(store: TraceStore) -> None:
    (id,) = await waiting(store, 1, 2)
    await judged(store, id, "ana", "reject")
    assert (await judged(store, id, "ana", "approve")).did == "noted; 1 more to judge"
    await judged(store, id, "ben", "approve")
    assert load_tree(store, id).verdict == "approved"


async def test_names_and_numbers_that_do_not_fit_are_refused(store: TraceStore) -> None:
    (id,) = await waiting(store, 1, 2)
    with pytest.raises(UsageError, match="2 reviewers judge each item of this run: name yourself"):
        await judged(store, id, "", "approve")
    with pytest.raises(UsageError, match="the reviewer 'a b' is no name"):
        await judged(store, id, "a b", "approve")
    with pytest.raises(UsageError, match="10 reviewers an item; use 1 to 9"):
        await require(store, 10)


async def test_a_run_with_one_reviewer_needs_no_name_and_counts_the_work(
    store: TraceStore,
) -> None:
    (id,) = await waiting(store, 1, 1)
    assert (await judged(store, id, "", "approve", 3_600)).did == "approved"
    assert page(store, "disputed")[0] == []
    report = review_report(store)
    assert (report["items"], report["fleiss_kappa"], report["pairs"]) == (0, None, [])
    assert report["burden"] == [
        # At most ten minutes an item: the rest of the hour the reviewer was away.
        {"round": 1, "reviewer": "human", "decisions": 1, "minutes": 10.0, "timed": 1}
    ]


async def test_the_report_counts_agreement_before_the_third_was_asked(store: TraceStore) -> None:
    names = await waiting(store, 6, 2)
    said = {"ana": "aaarra", "ben": "aararr"}
    words = {"a": "approve", "r": "reject"}
    for who, letters in said.items():
        for name, letter in zip(names, letters, strict=True):
            await judged(store, name, who, words[letter])
    await judged(store, names[2], "eve", "approve")
    report = review_report(store)
    assert (report["items"], report["disagreed"], report["open"]) == (6, 3, 2)
    (pair,) = report["pairs"]
    assert pair["reviewers"] == ["human:ana", "human:ben"]
    assert pair["cohen_kappa"] == pytest.approx(cohen_kappa_score([*said["ana"]], [*said["ben"]]))
    assert [row["decisions"] for row in report["burden"]] == [6, 6, 1]
    assert sum(row["minutes"] for row in report["burden"]) == pytest.approx(1.3)


def test_fleiss_kappa_is_that_of_a_published_example() -> None:
    # Fleiss 1971 as in Wikipedia, "Fleiss' kappa": 14 raters, 10 subjects, 5 categories, 0.210.
    table = """0 0 0 0 14/0 2 6 4 2/0 0 3 5 6/0 3 9 2 0/2 2 8 1 1/7 7 0 0 0/3 2 6 3 0/2 5 3 2 2
        /6 5 2 1 0/0 2 2 3 7"""
    items = [dict(zip("abcde", map(int, row.split()), strict=True)) for row in table.split("/")]
    assert fleiss_kappa(items) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([{"a": 2}, {"a": 2}]) is None
    assert fleiss_kappa([{"a": 1}]) is None


@given(st.lists(st.sampled_from("are"), max_size=9), st.integers(1, 5))
def test_a_decision_has_enough_opinions_and_more_than_half_of_them(said: str, needed: int) -> None:
    given = [Opinion(str(number), letter) for number, letter in enumerate(said)]
    decided = decision(given, needed)
    most = max(Counter(said).values(), default=0)
    assert (decided is not None) == (len(said) >= needed and 2 * most > len(said))


async def test_what_is_set_for_a_run_holds_when_it_is_opened_again(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "t.db")
    await require(store, 3)
    store.close()
    again = TraceStore(tmp_path / "t.db")
    assert review_report(again)["reviewers"] == 3
    again.close()
