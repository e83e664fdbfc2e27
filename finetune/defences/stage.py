"""The defences of a run: applied to the rows of the amplified system, and to no others.

What the overseer, a human or the base itself said stays as it is.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from reflux.finetune.cancelling import cancellable
from reflux.finetune.configs.engine import AGENT, EngineSpec, engine_spec
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.data.conversations import is_plain
from reflux.finetune.data.rows import Row, reply_of
from reflux.finetune.defences.rewriting import REWRITE, can_rewrite, says_the_same
from reflux.finetune.stages import Stages
from reflux.finetune.targets.evidence import with_evidence
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.ask import Amplified

INFORMED = TargetConfig(kind="tokens")
"""Has rows keep the prompt with the sub-answers of their questions."""
MAX_TOKENS = 512
"""Of a rewriting."""


def model_name(text: str) -> str:
    """The name by which a run asks a model of its defences."""
    return EngineSpec(**engine_spec(text)).name if text.startswith(AGENT) else text


async def defend(
    stages: Stages, number: int, rows: Sequence[Row]
) -> tuple[list[Row], dict[str, int]]:
    """The rows of a round as its student learns them, and how many each defence changed."""
    config, counts = stages.config.defences, Counter[str]()
    changed = list(rows)
    if config.teachers:
        changed = await _by_teachers(stages, number, changed, counts)
    if config.paraphrase:
        changed = await _rewritten(stages, number, changed, counts)
    if config.mask:
        changed = await _masked(stages, changed, counts)
    if config.outliers:
        changed = await _without_outliers(stages, changed, counts)
    return changed, dict(counts)


def _places(rows: Sequence[Row], more: Callable[[Row], bool] = lambda row: True) -> list[int]:
    """Places of the plain rows of the amplified system."""
    return [
        place
        for place, row in enumerate(rows)
        if row.provenance.get("system") == "amplified" and is_plain(_body(row)) and more(row)
    ]


def _body(row: Row) -> dict[str, Any]:
    return {"prompt": row.prompt, "completion": row.completion, "tools": row.tools}


async def _by_teachers(
    stages: Stages, number: int, rows: list[Row], counts: Counter[str]
) -> list[Row]:
    names = list(map(model_name, stages.config.defences.teachers))
    places, turns = _places(rows), len(names) + 1
    for turn, name in enumerate(names, start=1):
        theirs = [place for index, place in enumerate(places) if index % turns == turn]
        source = stages.source(number, f"teacher-{name}", "defence")
        questions = [rows[place].question for place in theirs]
        system = Amplified(stages.context(name))
        outcomes = await stages.answers(system, source, questions, f"a teacher answers: {name}")
        for place, outcome in zip(theirs, outcomes, strict=True):
            if outcome["answer"] is not None and is_accepted(outcome["status"]):
                rows[place] = _with_reply(rows[place], outcome["answer"])
                counts["teachers"] += 1
    return rows


async def _rewritten(
    stages: Stages, number: int, rows: list[Row], counts: Counter[str]
) -> list[Row]:
    name = model_name(stages.config.defences.paraphrase)
    system = stages.plain(name)
    system.context = replace(system.context, max_tokens=MAX_TOKENS)
    source = stages.source(number, f"paraphrase-{name}", "defence", task="paraphrase")
    places = _places(rows, lambda row: can_rewrite(row.reply))
    requests = [REWRITE.format(answer=rows[place].reply) for place in places]
    outcomes = await stages.answers(system, source, requests, f"{name} rewrites answers")
    for place, outcome in zip(places, outcomes, strict=True):
        row, said = rows[place], (outcome["answer"] or "").strip()
        accepts = stages.task.checker().check(row.question, said).ok if said else False
        if accepts and says_the_same(row.reply, said):
            rows[place] = _with_reply(row, said)
            counts["paraphrased"] += 1
    return rows


def _with_reply(row: Row, text: str) -> Row:
    """The row with another answer, of which no log-probabilities are known."""
    return replace(row, completion=reply_of(text), logged=())


async def _masked(stages: Stages, rows: list[Row], counts: Counter[str]) -> list[Row]:
    from reflux.finetune.defences.masking import divergent_tokens

    registry, reference = stages.run.folder.registry, stages.config.defences.mask
    agent = registry.current()
    if agent is None or agent.id == reference:
        return rows  # The agent was the reference.
    other = None if reference == "base" else registry.get(reference).path
    places = _places(rows)
    informed = with_evidence(stages.run.store, (rows[place] for place in places), INFORMED)
    bodies = [row.train() for row in informed]
    base = stages.run.folder.base
    stages.progress("look for divergent tokens", 0, 1, "")
    found = await cancellable(lambda stop: divergent_tokens(base, agent.path, other, bodies))
    for place, masked in zip(places, found, strict=True):
        rows[place] = replace(rows[place], masked=masked)
        counts["masked tokens"] += len(masked)
        counts["rows with masked tokens"] += bool(masked)
    return rows


async def _without_outliers(stages: Stages, rows: list[Row], counts: Counter[str]) -> list[Row]:
    from reflux.finetune.defences.outliers import unusualness, without_unusual

    config, base = stages.config.defences, stages.run.folder.base
    places = _places(rows)
    bodies = [rows[place].train() for place in places]
    if not bodies:
        return rows
    stages.progress("look for unusual rows", 0, 1, "")
    scores = await cancellable(lambda stop: unusualness(base, bodies, config.outliers_by))
    kept = {places[index] for index in without_unusual(scores, config.outliers)}
    left_out = set(places) - kept
    counts["unusual rows"] += len(left_out)
    return [row for place, row in enumerate(rows) if place not in left_out]
