"""Training rows of a learned overseer: its request, and the step that a good overseer took.

A demonstration of one batch is written as a plan. Where one has several batches, or its last
sub-answer is not the answer, all are written step by step, with the answer at the end. The request
names the tools that the overseer has. Questions that are not to be divided are rows, too, so
that it learns when to stop: those of the demonstrations, and sub-questions of accepted trees that
the agent answered, up to a third of the rows.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from reflux.agents.errors import UsageError
from reflux.agents.overseers.batch import alike
from reflux.agents.overseers.demonstration_file import demonstration_of
from reflux.agents.overseers.demonstrations import INDIVISIBLE, Demonstration
from reflux.agents.overseers.model import concluded
from reflux.agents.overseers.step_forms import LEARNED, StepStyle, reply_text
from reflux.agents.prompts import Example, step_prompt
from reflux.agents.types import Message
from reflux.finetune.data.demonstrations import recorded_body
from reflux.finetune.data.recorded import RowOptions, refused
from reflux.finetune.data.rows import Row, reply_of
from reflux.graphs.amplify.weighing import agree
from reflux.graphs.traces.database import Rows
from reflux.graphs.traces.selection import Selection

FANOUT, CHARS = 8, 4_000
"""As in `ModelOverseer`; the short prompt names neither."""
DIRECT_SHARE = 3
"""One row in so many, at most, is a sub-question that the agent answered."""
BY_MODEL = """
SELECT 1 FROM calls WHERE question = ? AND role = 'overseer' AND kind = 'model' LIMIT 1
"""
"""A question of which a model took the steps: they are rows as any call is."""


@dataclass
class OverseerRows:
    """The rows of a learned overseer, in a form, and why demonstrations were left out."""

    style: StepStyle
    rows: list[Row] = field(default_factory=list[Row])
    demonstrations: int = 0
    """How many the rows are made of, without the sub-questions that the agent answered."""
    left_out: Counter[str] = field(default_factory=Counter[str])


def overseer_rows(
    demos: Sequence[Demonstration],
    direct: Iterable[str] = (),
    withheld: Callable[[str], bool] = lambda question: False,
    task: str = "",
    tools: Collection[str] = (),
) -> OverseerRows:
    """The rows of demonstrations and of questions that the agent answered undivided.

    Args:
        withheld: whether a question is held out; no demonstration with such a question, or such a
            sub-question, has rows.
        task: the name of the task that the questions belong to.
        tools: names of those that the overseer will have; those of the demonstrations are added.

    Raises:
        UsageError: no demonstration divides its question.
    """
    left_out: Counter[str] = Counter()
    used: dict[str, Demonstration] = {}
    for demo in demos:
        if any(map(withheld, demo.questions)):
            left_out["held out"] += 1
        elif alike(demo.question) in used:
            left_out["asked more than once"] += 1
        else:
            used[alike(demo.question)] = demo
    if not any(demo.steps for demo in used.values()):
        told = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "there are none"
        raise UsageError(
            f"no demonstration divides its question ({told}), so an overseer would learn to divide "
            "nothing: have `reflux demos make` write some, or write them"
        )
    by_steps = not all(map(is_plan, used.values()))
    receivers = (sub.to for demo in used.values() for step in demo.steps for sub in step.ask)
    tools = {*tools, *(to.removeprefix("tool:") for to in receivers if to)}
    made = OverseerRows(replace(LEARNED, plan=not by_steps), left_out=left_out)
    made.demonstrations = len(used)
    for demo in used.values():
        examples = [*demo.first(), *demo.later()] if by_steps else demo.plan()
        made.rows += [
            row_of_example(example, made.style, task, tools, "demonstration")
            for example in examples
        ]
    fresh = {alike(text): text for text in direct if not withheld(text)}
    fresh = {key: text for key, text in fresh.items() if key not in used}
    chosen = sorted(fresh.values(), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    for text in chosen[: len(made.rows) // (DIRECT_SHARE - 1)]:
        whole: Example = (text, (), {"not_decomposable": INDIVISIBLE})
        made.rows.append(row_of_example(whole, made.style, task, tools, "answered by the agent"))
    return made


def is_plan(demo: Demonstration) -> bool:
    """True where all sub-questions stand in one reply, and what an overseer would take for the
    answer, the last one's into which the others went, is the answer."""
    if len(demo.steps) != 1 or not demo.answer:
        return len(demo.steps) < 2
    (step,) = demo.steps
    found = concluded(step.exchanges) if len(step.answers) == len(step.ask) else None
    return found is None or agree(found, demo.answer)


def row_of_example(
    example: Example, style: StepStyle, task: str, tools: Collection[str], source: str
) -> Row:
    """The row of an example of an overseer's step."""
    question, transcript, reply = example
    named = dict.fromkeys(tools, "")
    turns = step_prompt(question, transcript, (), FANOUT, CHARS, style=style, tools=named)
    prompt: list[Message] = [{"role": turn[0], "content": turn[1]} for turn in turns]
    return Row(
        prompt=tuple(prompt),
        completion=reply_of(reply_text(reply, style.form, tools)),
        question=question,
        task=task,
        provenance={"trajectory": "", "source": source},
    )


def step_rows(
    store: Rows,
    selection: Selection,
    options: RowOptions,
    withheld: Callable[[str], bool] = lambda question: False,
    tools: Collection[str] = (),
) -> Iterator[Row]:
    """The rows of the steps of scripts and humans, at the roots of the selected trees of Reflux, as
    a learned overseer is asked for them.

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
