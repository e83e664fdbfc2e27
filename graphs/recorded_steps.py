"""The steps of a recorded trajectory, as `agents.recorded` replays them."""

import json
from collections import defaultdict

from agents.types import Step, step_from_json
from graphs.traces import TraceStore
from graphs.tree import find_question, load_tree


def recorded_steps(store: TraceStore, question: str) -> dict[str, list[list[Step]]]:
    """H's steps on every question of one trajectory, by the question's text: one list an attempt.

    A question that stands in the tree more than once has the steps of its first place. Steps are
    those that were taken: where a person edited or answered, the person's.

    Args:
        question: id of the root question, or an unambiguous beginning of it.

    Raises:
        UsageError: no such trajectory, or several.
    """
    root = load_tree(store, question)
    root_id, _ = find_question(store, question)
    taken: dict[str, dict[int, list[Step]]] = defaultdict(lambda: defaultdict(list))
    for row in store.select(
        "SELECT path, attempt, completion FROM calls WHERE question = ? AND role = 'overseer'"
        " AND kind = 'script' AND error IS NULL ORDER BY path, attempt, step",
        (root_id,),
    ):
        taken[row["path"]][row["attempt"]].append(step_from_json(json.loads(row["completion"])))
    steps: dict[str, list[list[Step]]] = {}
    for node in root.walk():
        if node.path in taken and node.question not in steps:
            steps[node.question] = list(taken[node.path].values())
    return steps
