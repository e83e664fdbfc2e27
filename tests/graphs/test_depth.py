"""A model as overseer below the root: what deep trees cost, and where they stop."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.types import ChatRequest
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.ask import Amplified
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from tests.support.amplifying import ONE_VOTE

ROOT = "What is 1 + 2 + 3 + 4?"
NUMBERS = ("1 + 2", "3 + 4", "1 + 2 + 3", "2 + 3", "1 + 2 + 3 + 4", "{0} + 4", "{0} + {1}", "4")


END = '{"step": {"answer": "10"}}'
INDIVISIBLE = '{"step": {"not_decomposable": "no"}}'
IDS = count()


def asked(*texts: str) -> str:
    return json.dumps({"step": {"ask": [{"question": text, "needs": []} for text in texts]}})


def is_overseer(request: ChatRequest) -> bool:
    return bool(request.messages[0][1])  # The agent has no system message.


async def tree_of(
    store: TraceStore, replies: Sequence[str], limits: Limits, weighing: Weighing | None = None
) -> tuple[Node, ScriptedClient]:
    """The tree of the root, where an overseer's call gets the next reply, over and over."""
    number = count()

    def reply(request: ChatRequest) -> str:
        if not is_overseer(request):
            return f"the value of {request.messages[-1][1]}"
        return replies[next(number) % len(replies)]

    client, question_id = ScriptedClient(reply), f"q{next(IDS)}"
    await store.add_question({"id": question_id, "text": ROOT})
    context = AmplifyContext(
        RecordedClient(client, store),
        "base",
        [ModelOverseer()],
        votes=ONE_VOTE,
        limits=limits,
        weighing=weighing,
    )
    outcome = await Amplified(context).answer(ROOT, question_id)
    assert outcome["spent"]["calls"] == len(client.requests)
    return load_tree(store, question_id), client


@pytest.mark.parametrize(
    ("below", "note"),
    [
        (asked("1 + 2"), "asks nothing new: 1 + 2"),  # Itself.
        (asked(ROOT), f"asks nothing new: {ROOT}"),  # Its parent.
        (asked("What is 5 + 7?"), "sub-questions rejected: sub-question 1 invents"),
        ("no step", "unreadable: no step in the reply (1 reply)"),
    ],
)
async def test_a_level_that_asks_nothing_new_is_left_to_the_agent_after_one_reply(
    store: TraceStore, below: str, note: str
) -> None:
    batch = asked("1 + 2", "3 + 4")
    root, client = await tree_of(store, [batch, below, below, END], Limits(depth=3))
    assert root.children[0].note.startswith(note)
    assert not root.children[0].children
    assert root.children[0].answer == "the value of 1 + 2"
    assert sum(map(is_overseer, client.requests)) == 4


async def test_what_was_asked_beside_a_question_is_nothing_new_to_it(store: TraceStore) -> None:
    replies = [asked("1 + 2", "3 + 4"), INDIVISIBLE, asked("1+2"), END]
    root, _ = await tree_of(store, replies, Limits(depth=2))
    assert [child.note for child in root.children] == [
        "not decomposable: no",
        "asks nothing new: 1+2",
    ]


batches = st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3).map(lambda t: asked(*t))
said = st.one_of(
    batches,
    st.sampled_from([END, INDIVISIBLE, "hm"]),
)


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(st.lists(said, min_size=1, max_size=6), st.integers(0, 3), st.integers(1, 60))
def test_a_tree_ends_within_its_limits_and_the_direct_answer_is_a_candidate(
    replies: list[str], depth: int, calls: int
) -> None:
    async def play() -> None:
        with contextlib.closing(TraceStore(Path(folder) / "t.db")) as store:
            limits = Limits(depth=depth, calls=calls)
            root, client = await tree_of(store, replies, limits, Weighing())
            assert len(client.requests) <= calls
            assert max(node.path.count("/") for node in root.walk()) <= depth
            assert root.answer is not None
            assert client.requests[0].messages[-1][1] == ROOT
            assert not is_overseer(client.requests[0])

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play())
