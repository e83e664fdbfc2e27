"""Rows of what the overseer did in accepted trees: to decompose a question, and to combine answers.

An overseer that is a model has its calls on record, which are rows as any. The steps of a script or
a human are written here as a learned overseer is asked for them.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from reflux.agents.overseers.demonstration_file import demonstration_of
from reflux.agents.overseers.step_forms import LEARNED
from reflux.finetune.data.demonstrations import recorded_body
from reflux.finetune.data.overseer_rows import row_of_example
from reflux.finetune.data.recorded import RowOptions, refused
from reflux.finetune.data.rows import Row
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.selection import Selection

BY_MODEL = """
SELECT 1 FROM calls WHERE question = ? AND role = 'overseer' AND kind = 'model' LIMIT 1
"""


def step_rows(
    store: Rows,
    selection: Selection,
    options: RowOptions,
    withheld: Callable[[str], bool] = lambda question: False,
    tools: Collection[str] = (),
) -> Iterator[Row]:
    """The rows of the steps that no model took, at the roots of the selected trees of Reflux.

    Args:
        withheld: whether a question is held out.
        tools: names of those that the overseer will have.
    """
    for selected in selection.trajectories():
        if selected.source != "reflux" or selected.split in ("held_out", "canary"):
            continue
        if refused(selected, options) or next(store.select(BY_MODEL, (selected.id,)), None):
            continue
        root = next(store.select("SELECT text, task FROM questions WHERE id = ?", (selected.id,)))
        answer = (store.how_ended(selected.id) or {}).get("answer")
        if answer is None or withheld(root["text"]):
            continue
        body, _ = recorded_body(store, selected.id, answer, False)
        if isinstance(body, str):
            continue
        try:
            demo = demonstration_of({"question": root["text"], **body})
        except ValueError:  # Its steps repeat the question or each other.
            continue
        if any(map(withheld, demo.questions)):
            continue
        style = replace(LEARNED, plan=False)
        for node, examples in (("decompose", demo.first()), ("combine", demo.later())):
            for example in examples:
                row = row_of_example(example, style, root["task"] or "", tools, "reflux")
                about = {"trajectory": selected.id, "node": node, "path": "", "source": "reflux"}
                yield replace(row, provenance={**about, "outcome": selected.status})
