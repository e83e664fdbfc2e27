"""A person's word in a recorded tree: what depended on it recomputes, and nothing else is asked."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import PASS
from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Direct, answer_all
from reflux.graphs.recompute import revise, under_way
from reflux.graphs.traces.review import find_item, judge, state_of
from reflux.graphs.traces.revisions import Override, newest, overrides_of
from reflux.graphs.traces.search import find_question
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from tests.support.amplifying import ONE_VOTE, amplified, asked_of, asking, echo
from tests.support.overriding import override
from tests.support.playing import ASKED, IN_MEMORY, Played, play
from tests.support.worlds import World, worlds

Q = ASKED.question_id("root")


def many(examples: int) -> settings:
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)


def by_path(tree: Node) -> dict[str, Node]:
    return {node.path: node for node in tree.walk()}


def seen(tree: Node) -> dict[str, tuple[str, str | None, str]]:
    return {node.path: (node.question, node.answer, node.status) for node in tree.walk()}


async def asked(
    store: TraceStore, client: ScriptedClient, *ways: Any, **other: Any
) -> AmplifyContext:
    """The context of an amplified system that has answered "root"."""
    system = amplified(store, client, *ways, **other)
    await answer_all(system, ASKED, ["root"])
    client.requests.clear()
    return system.context


async def test_an_edited_leaf_changes_its_ancestors_and_asks_nobody(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    context = await asked(store, client, asking("x", "y"), votes=ONE_VOTE)
    revised = await override(context, Q, "/0.0.1", "why")
    assert client.requests == []
    assert revised.id == f"{Q}~1"
    assert revised.outcome is not None and revised.outcome["answer"] == "X+why"
    tree = by_path(load_tree(store, revised.id))
    assert {path: node.answer for path, node in tree.items()} == {
        "": "X+why", "/0.0.0": "X", "/0.0.1": "why"
    }  # fmt: skip
    assert tree["/0.0.1"].answered_by == "human"


async def test_the_trajectory_as_it_was_stays_as_it_was(store: TraceStore) -> None:
    context = await asked(store, ScriptedClient(echo), asking("x", "y"), votes=ONE_VOTE)
    before = load_tree(store, Q).to_json()
    await override(context, Q, "/0.0.1", "why")
    assert load_tree(store, Q).to_json() == before


async def test_a_question_that_needed_the_edited_answer_is_asked_anew(store: TraceStore) -> None:
    def act(question: str, transcript: Any, may_ask: bool) -> Step:
        if question != "root":
            return PASS
        if transcript:
            return Answer("+".join(str(e.answer) for e in transcript))
        return Ask((SubQuestion("x"), SubQuestion("after {0}", (0,)), SubQuestion("z")))

    client = ScriptedClient(echo)
    context = await asked(store, client, act, votes=ONE_VOTE)
    revised = await override(context, Q, "/0.0.0", "why")
    assert asked_of(client) == ["after why"]
    assert revised.outcome is not None
    assert revised.outcome["answer"] == "why+AFTER WHY+Z"


async def test_a_later_step_that_saw_the_edited_answer_is_taken_anew(store: TraceStore) -> None:
    def act(question: str, transcript: list[Exchange], may_ask: bool) -> Step:
        if question != "root":
            return PASS
        if len(transcript) < 2:
            return Ask.of(f"of {transcript[0].answer}") if transcript else Ask.of("x")
        return Answer(str(transcript[1].answer))

    client = ScriptedClient(echo)
    context = await asked(store, client, act, votes=ONE_VOTE)
    revised = await override(context, Q, "/0.0.0", "why")
    assert asked_of(client) == ["of why"]
    assert revised.outcome is not None and revised.outcome["answer"] == "OF WHY"


async def test_asked_again_a_node_draws_from_other_seeds(store: TraceStore) -> None:
    client = ScriptedClient(lambda r: f"{echo(r)}{len(client.requests)}")
    context = await asked(store, client, asking("x", "y"), votes=ONE_VOTE)
    first = await override(context, Q, "/0.0.0")
    second = await override(context, Q, "/0.0.0")
    assert asked_of(client) == ["x", "x"]
    assert len({request.digest("") for request in client.requests}) == 2
    assert all(request.sampling.temperature > 0 for request in client.requests)
    answers = [revised.outcome and revised.outcome["answer"] for revised in (first, second)]
    assert answers == ["X1+Y2", "X2+Y2"]


async def test_asked_again_the_root_asks_all_below_it_again(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    context = await asked(store, client, asking("x", "y"), votes=ONE_VOTE)
    await override(context, Q, "")
    assert sorted(asked_of(client)) == ["x", "y"]


async def test_words_add_up_and_the_newest_at_a_place_holds(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    context = await asked(store, client, asking("x", "y"), votes=ONE_VOTE)
    for path, answer in (("/0.0.0", "a"), ("/0.0.1", "b"), ("/0.0.0", "c")):
        revised = await override(context, Q, path, answer)
    assert revised.id == newest(store, Q) == f"{Q}~3"
    assert revised.outcome is not None and revised.outcome["answer"] == "c+b"
    assert client.requests == []


async def test_an_edit_of_the_root_needs_no_recomputation(store: TraceStore) -> None:
    client = ScriptedClient(echo)
    context = await asked(store, client, asking("x", "y"), votes=ONE_VOTE)
    revised = await override(context, Q, "", "mine")
    assert (revised.outcome or {}).get("answer") == "mine"
    tree = load_tree(store, revised.id)
    assert (tree.answer, tree.status, tree.answered_by) == ("mine", "ok", "human")
    assert client.requests == []


async def test_an_answer_of_x_alone_is_edited_and_asked_again(store: TraceStore) -> None:
    client = ScriptedClient(lambda r: f"{echo(r)}{len(client.requests)}")
    context = amplified(store, client).context
    await answer_all(Direct(context), ASKED, ["root"])
    again = await override(context, Q, "", system=Direct)
    assert again.outcome is not None and again.outcome["answer"] == "ROOT2"
    assert ((await override(context, Q, "", "mine", Direct)).outcome or {}).get("answer") == "mine"


async def test_an_edit_equal_to_the_accepted_answer_makes_no_revision(store: TraceStore) -> None:
    context = await asked(store, ScriptedClient(echo), asking("x", "y"), votes=ONE_VOTE)
    revised = await override(context, Q, "/0.0.0", " X ")
    assert (revised.id, revised.outcome) == (Q, None)
    assert newest(store, Q) == Q


async def test_the_same_word_after_a_stop_goes_on_with_what_it_had_begun(
    store: TraceStore,
) -> None:
    class Stopped(BaseException):
        """A kill."""

    def act(question: str, transcript: list[Exchange], may_ask: bool) -> Step:
        if question == "root" and transcript and transcript[0].answer == "why" and stops:
            raise stops.pop()
        return asking("x", "y")(question, transcript, may_ask)

    stops: list[Stopped] = []
    context = await asked(store, ScriptedClient(echo), act, votes=ONE_VOTE)
    stops.append(Stopped())
    with pytest.raises(Stopped):
        await override(context, Q, "/0.0.0", "why")
    revised = await override(context, Q, "/0.0.0", "why")
    assert revised.id == newest(store, Q) == f"{Q}~1"
    assert revised.outcome is not None and revised.outcome["answer"] == "why+Y"


async def test_a_node_that_is_not_there_is_named(store: TraceStore) -> None:
    context = await asked(store, ScriptedClient(echo), asking("x", "y"), votes=ONE_VOTE)
    with pytest.raises(UsageError, match=r"no node '/0\.0\.7'"):
        await override(context, Q, "/0.0.7", "why")


async def test_a_word_stays_with_its_question_where_h_now_asks_another(store: TraceStore) -> None:
    asks = [["x", "y"]]

    def act(question: str, transcript: list[Exchange], may_ask: bool) -> Step:
        return asking(*asks[-1])(question, transcript, may_ask)

    context = await asked(store, ScriptedClient(echo), act, votes=ONE_VOTE)
    await override(context, Q, "/0.0.0", "why")
    asks.append(["v", "w"])
    revised = await override(context, Q, "")
    assert revised.outcome is not None and revised.outcome["answer"] == "V+W"


# Random worlds: trees of retries, checks, votes, faults and small budgets.


async def _revise(
    world: World, context: AmplifyContext, words: dict[str, Override], id: str
) -> Any:
    """Answer the first root under an id with persons' words in it."""
    store = context.recorded_client.store
    await store.add_question({"id": id, "text": world.roots[0], **vars(ASKED)})
    system = Amplified(replace(context, overrides=words))
    return [await system.answer(world.roots[0], id)]


def unsaved(outcome: Outcome) -> dict[str, Any]:
    """An outcome without what was replayed."""
    spent = {kind: n for kind, n in outcome["spent"].items() if kind != "cached"}
    return {**outcome, "spent": spent}


def a_revision(world: World, place: int, said: str | None) -> tuple[Played, Played, Played, Any]:
    """(as asked, revised from the record, the same word from scratch, (before, after, path))."""
    world = replace(world, roots=world.roots[:1], outage=0)
    with tempfile.TemporaryDirectory(prefix="reflux-world-", dir=IN_MEMORY) as name:
        folder = Path(name)
        first = play(world, folder=folder)
        id = ASKED.question_id(world.roots[0])
        store = TraceStore(folder / "t.db")
        before = load_tree(store, id)
        nodes = [n for n in before.walk() if n.path and n.answer is not None and n.status == "ok"]
        assume(nodes)
        node = nodes[place % len(nodes)]
        word = _word(store, id, node, node.answer if said is None else said)
        store.close()
        words = {node.path: word}
        shutil.copytree(folder, folder / "copy")
        revised = play(world, answer=lambda w, c: _revise(w, c, words, f"{id}~1"), folder=folder)
        store = TraceStore(folder / "t.db")
        after = load_tree(store, f"{id}~1")
        store.close()
        scratch = play(world, answer=lambda w, c: _revise(w, c, words, id))
    return first, revised, scratch, (before, after, node.path)


def _word(store: TraceStore, id: str, node: Node, answer: str | None) -> Override:
    from reflux.graphs.recompute import _spent

    ended = store.how_ended(id, node.path)
    asked = ended["question"] if ended else node.question
    return Override(asked, answer, 0, *_spent(store, id, node.path))


def failed_before(first: Played) -> set[str]:
    return {row["request_digest"] for row in first.calls if row["error"]}


@pytest.mark.slow
@many(40)
@given(worlds(), st.integers(0, 100))
def test_an_edit_equal_to_the_recorded_answer_changes_nothing_and_calls_nobody(
    world: World, place: int
) -> None:
    first, revised, _, (before, after, edited) = a_revision(world, place, None)
    assert set(revised.requests) <= failed_before(first)  # What failed is tried again.
    assert unsaved(revised.outcomes[0]) == unsaved(first.outcomes[0])
    inside = {path for path in by_path(before) if path.startswith(f"{edited}/")}
    kept = {path: node for path, node in seen(before).items() if path not in inside}
    assert seen(after) == kept


@pytest.mark.slow
@many(40)
@given(worlds(), st.integers(0, 100), st.sampled_from(["a", "edited", "{0}"]))
def test_a_revision_answers_what_the_same_word_answers_from_scratch(
    world: World, place: int, said: str
) -> None:
    _, revised, scratch, _ = a_revision(world, place, said)
    assert unsaved(revised.outcomes[0]) == unsaved(scratch.outcomes[0])


@pytest.mark.slow
@many(40)
@given(worlds(), st.integers(0, 100))
def test_only_ancestors_and_new_questions_are_asked(world: World, place: int) -> None:
    world = replace(world, limits=replace(world.limits, calls=1_000, tokens=1_000_000))
    first, revised, _, (before, _, edited) = a_revision(world, place, "edited")
    questions = {path: node.question for path, node in by_path(before).items()}
    fresh = [
        row
        for row in revised.calls
        if row["question"].endswith("~1")
        and not row["cached"]
        and row["request_digest"] not in failed_before(first)
    ]
    after = {row["path"]: json.loads(row["messages"]) for row in fresh}
    for path in after:
        ancestor = edited.startswith(f"{path}/") or path == ""
        asked_of_x = after[path][-1]["content"].removeprefix("about ").removeprefix("of ")
        assert ancestor or questions.get(path) != asked_of_x, (path, edited)


def test_words_are_read_back_as_they_were_put_in(tmp_path: Path) -> None:
    """`overrides_of` on a store without any."""
    store = TraceStore(tmp_path / "t.db")
    assert overrides_of(store, "nothing") == {}
    store.close()


async def test_a_word_that_comes_while_a_revision_is_recomputed_is_taken(store: TraceStore) -> None:
    """The revision has not come to the node yet: it is found in the one before."""
    client = ScriptedClient(echo)
    context = await asked(store, client, asking("x", "y"), votes=ONE_VOTE)
    begun = await revise(store, Q, "/0.0.0", "ex")
    assert begun is not None
    assert begun == f"{Q}~1"
    assert under_way(store, begun) == ("/0.0.0", "ex")
    second = await override(context, Q, "/0.0.1", "why")
    assert second.id == f"{Q}~2"
    assert second.outcome is not None and second.outcome["answer"] == "ex+why"
    assert client.requests == []
    assert under_way(store, second.id) is None
    with pytest.raises(UsageError, match=r"has no node '/9\.9\.9'"):
        await revise(store, Q, "/9.9.9", "what")


async def test_what_a_node_is_judged_by_changes_with_every_word_of_others(
    store: TraceStore,
) -> None:
    context = await asked(store, ScriptedClient(echo), asking("x", "y"), votes=ONE_VOTE)
    item = find_item(store, f"{Q}/0.0.0")
    states = [state_of(store, item)]
    await judge(store, item, True)
    states.append(state_of(store, item))
    await override(context, Q, "/0.0.1", "why")
    states.append(state_of(store, item))
    await override(context, Q, "/0.0.0", "ex")
    states.append(state_of(store, item))
    assert state_of(store, item) == states[-1]
    assert len(set(states)) == 4


async def test_a_revision_is_found_by_the_beginning_of_what_it_revises(store: TraceStore) -> None:
    await store.add_question({"id": "abc", "text": "one"})
    await store.add_question({"id": "abc~1", "text": "one", "revises": "abc"})
    assert find_question(store, "a~1")[0] == "abc~1"
    for unknown in ("a~2", "b~1", "~1"):
        with pytest.raises(UsageError, match="no trajectory begins"):
            find_question(store, unknown)
