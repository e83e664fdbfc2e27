"""Measures what the student of a round keeps: on the round's own questions, earlier levels, general
tasks, one level up and in another wording, and in the answers' variety."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reflux.agents.errors import UsageError
from reflux.finetune.cancelling import cancellable
from reflux.finetune.data.rows import accepted
from reflux.finetune.retention.figures import Share, forgotten, gain, ratio, variety, verdict
from reflux.finetune.retention.suite import TOKENS, General, general_questions
from reflux.finetune.stages import Stages, student_name
from reflux.graphs.ask import Direct
from reflux.graphs.voting.voting import Variant, VotePolicy

Report = Mapping[str, Any]
WORDING = "Please answer this for me: {question}"
"""Another wording of any question."""


async def measure_retention(
    stages: Stages, number: int, scores: Report, by_level: Sequence[Report], done: Sequence[Report]
) -> dict[str, Any]:
    """The report on the student of a round, as plain JSON types.

    Args:
        scores: of the round, from `Stages.evaluate`.
        by_level: rows of `score_levels`, of the round's student.
        done: reports of the rounds before.
    """
    name = student_name(number)
    # A client other than our engines answers for any model: its answers tell nothing of a student.
    wanted = stages.config.retention.questions if stages.run.serves_students else 0
    amplified, student = (_share(scores.get(key)) for key in ("amplified", "student"))
    kept = ratio(student, amplified) if amplified is not None and student is not None else None
    body: dict[str, Any] = {
        "of_amplified": kept and kept.to_json(),
        "earlier_levels": _earlier_levels(stages.spec(number).level, by_level, done),
        "general": await _general(stages, number, name, wanted),
        "perplexity": await _perplexity(stages, name) if wanted else None,
        "out_of_distribution": await _elsewhere(stages, number, name, wanted) if number else [],
        "variety": _variety(stages, number) if number else {},
    }
    return body | {"forgotten": forgotten(body), "verdict": verdict(name, body)}


def _share(score: Report | None) -> Share | None:
    """The right ones among the answers with a score."""
    if not score or score["accuracy"] is None:
        return None
    n = score["n"] - score.get("unscored", 0)
    return Share(score["accuracy"] * n, n)


def _earlier_levels(
    level: int, by_level: Sequence[Report], done: Sequence[Report]
) -> list[dict[str, Any]]:
    """Each level of an earlier round: the student's accuracy, and that of the best student so far
    that was trained for it."""
    rows: list[dict[str, Any]] = []
    for now in by_level:
        if now["system"] != "student" or now["level"] >= level or now["split"] != "held_out":
            continue
        past = [
            row
            for report in done
            for row in report["by_level"]
            if row["system"] == "student"
            and row["level"] == now["level"] <= report["level"]
            and report["promoted"]
        ]
        if not past:
            continue
        best = max(past, key=lambda row: row["accuracy"])
        shares = [Share(row["accuracy"] * row["n"], row["n"]) for row in (now, best)]
        row = {"level": now["level"], "student": now["accuracy"], "before": best["accuracy"]}
        rows.append({**row, "of": best["model"], "gain": gain(*shares).to_json()})
    return rows


async def _general(stages: Stages, number: int, name: str, wanted: int) -> dict[str, Any] | None:
    """General tasks, by the base and by the student; None where nothing is asked."""
    questions = general_questions(wanted) if wanted else None
    if not questions:
        return None
    right: dict[str, list[bool]] = {}
    for key, model, round_number in (("base", "base", 0), ("student", name, number)):
        system = Direct(replace(stages.plain(model).context, max_tokens=TOKENS))
        source = stages.source(round_number, f"general-{model}", "general", task="general")
        texts = [each.question for each in questions]
        outcomes = await stages.answers(system, source, texts, f"general tasks: {model}")
        right[key] = [
            each.is_right(outcome["answer"])
            for each, outcome in zip(questions, outcomes, strict=True)
        ]
    base, student = (Share(sum(marks), len(marks)) for marks in right.values())
    return {
        "base": base.to_json(),
        "student": student.to_json(),
        "gain": gain(student, base).to_json(),
        "by_task": _by_ability(questions, right),
    }


def _by_ability(
    questions: Sequence[General], right: Mapping[str, Sequence[bool]]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for ability in dict.fromkeys(each.ability for each in questions):
        places = [index for index, each in enumerate(questions) if each.ability == ability]
        found[ability] = {
            key: sum(marks[index] for index in places) / len(places) for key, marks in right.items()
        }
    return found


async def _perplexity(stages: Stages, name: str) -> dict[str, float] | None:
    """Of the base's replies to the canaries, which no student learns."""
    from reflux.finetune.retention.perplexity import perplexities

    folder = stages.run.folder
    rows = [row.train() for row in accepted(stages.run.store, "canary", "canary-base", 0, "")]
    if not rows or name not in folder.registry.ids():
        return None
    stages.progress(f"perplexity of {name}", 0, 1, "")
    path = folder.registry.get(name).path
    return await cancellable(lambda stop: perplexities(folder.base, path, rows))


async def _elsewhere(stages: Stages, number: int, name: str, wanted: int) -> list[dict[str, Any]]:
    """Accuracy one level up, and on the round's own questions in another wording."""
    here, context = stages.held_out(number), stages.context(name)
    if not wanted or not any(map(stages.task.has_truth, here)):
        return []
    try:
        level = stages.spec(number).level + 1
        above = stages.task.sample(wanted, level, "held_out", stages.config.seed + 1)
    except UsageError:
        above = []  # It is the highest.
    reworded = VotePolicy(max_votes=1, variants=(Variant(wording=WORDING),))
    columns = (
        ("one-level-up", "one level up", [] if set(above) & set(here) else above, None),
        ("reworded", "in another wording", here[:wanted], reworded),
    )
    rows: list[dict[str, Any]] = []
    for key, where, questions, votes in columns:
        if not questions:
            continue
        source = stages.source(number, f"{key}-{name}", "held_out")
        score = await stages.score(Direct(context, votes), source, questions, f"{where}: {name}")
        if (share := _share(score.to_json())) is not None:
            rows.append({"where": where, **share.to_json()})
    return rows


def _variety(stages: Stages, number: int) -> dict[str, Any]:
    """Of the answers to the round's held-out questions, by system."""
    found: dict[str, Any] = {}
    for key in ("amplified", "student"):
        source = stages.source(number, key, "held_out")
        ended = (
            stages.run.store.how_ended(source.question_id(question))
            for question in stages.held_out(number)
        )
        answers = [outcome["answer"] for outcome in ended if outcome and outcome["answer"]]
        if answers:
            found[key] = variety(list(map(stages.task.normalise, answers)))
    return found
