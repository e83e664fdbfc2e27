"""The control student: trained as a round's student is, on as many rows without the agent in them.

Being fine-tuned on narrow rows changes a model's manners, whoever wrote the rows. What the round's
student loses beside the control is what the agent's answers taught it (subliminal learning has the
same control: arXiv 2507.14805). Rows of the control are the overseer's primitives, what the
amplified system answered while the base was its agent, the anchor, and corrections by humans,
drawn again until they are as many as the student's.
"""

import random
from collections.abc import Sequence
from typing import Any

from reflux.finetune.cancelling import cancellable
from reflux.finetune.data.rows import Row, rows_digest, training_order
from reflux.finetune.stages import Stages


def control_name(number: int) -> str:
    """The id of a round's control student."""
    return f"control-r{number}"


def control_rows(
    rows: Sequence[Row], agents: Sequence[str], seed: int
) -> tuple[list[Row], int] | None:
    """(As many rows that no such agent had a part in, in the order of training; how many of them
    differ); None where every row is such a one, or none is but the anchor's.

    Args:
        agents: digests of the agents other than the base.
    """
    suspect = set(agents)
    clean = [row for row in rows if not suspect.intersection(row.provenance.get("models", ()))]
    learned = [row for row in clean if row.provenance.get("system") != "anchor"]
    if len(clean) == len(rows) or not learned:
        return None
    more = random.Random(seed).choices(learned, k=len(rows) - len(clean))
    return training_order([*clean, *more], seed), len(clean)


async def train_control(stages: Stages, number: int) -> str | None:
    """Train the control student of a round, unless it is; its name, or None where there is nothing
    to compare: the base was the agent, or nobody else answered."""
    from reflux.finetune.distillation import StudentPlan, distill

    name, registry = control_name(number), stages.run.folder.registry
    config = stages.config
    if name not in registry.ids():
        _, repeated = stages.rows(number)
        made = control_rows(repeated, _digests(stages), config.seed)
        if made is None:
            return None
        rows, _ = made
        plan = StudentPlan(
            id=name,
            rows=[row.train() for row in rows],
            rows_digest=rows_digest(rows),
            config=config.distillation(stages.spec(number)),
            round=number,
        )
        await stages.run.rest()
        await cancellable(lambda stop: distill(registry, plan, stages.progress, stop))
    await stages.run.load(name)
    return name


DIGESTS = """
SELECT DISTINCT model_digest FROM calls WHERE model = ? AND model_digest IS NOT NULL
"""


def _digests(stages: Stages) -> list[str]:
    """What calls of the run's agents other than the base have as their model's digest."""
    store: Any = stages.run.store
    names = [student.id for student in stages.run.folder.registry.list()]
    if stages.config.agent is not None:
        names.append(stages.config.agent.name)
    return [row["model_digest"] for name in names for row in store.select(DIGESTS, (name,))]
