"""Which questions are divided: by `--route`, what an evaluation found direct and amplified decides,
which is also what each way's answer weighs; by `--cascade`, how sure the agent is."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.files import read_text
from reflux.agents.overseers.router import MIN_PAST, Past, Routed, Router
from reflux.file_options import FileOption
from reflux.finetune.registry import Registry
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.direct_answer import first_request
from reflux.graphs.voting.confidence import Cascade, Scaling

WAYS = ("direct", "amplified")
HOW = (
    "`reflux eval --data FILE --systems direct,amplified --candidates 0 --out FOLDER` writes one, "
    "and `--route FOLDER` takes it"
)


def recorded_route(path: Path | None) -> dict[str, str]:
    """An evaluation, by its file or its folder, as the options of a question record it; empty
    without one.

    Raises:
        UsageError: as `read_past`.
    """
    return ROUTES.recorded(path / "eval.jsonl" if path is not None and path.is_dir() else path)


def routed(context: AmplifyContext, router: Router | None) -> AmplifyContext:
    """The context whose overseers divide only what the router expects to gain from it."""
    if router is None:
        return context
    probe = partial(first_request, context)
    weighing = context.weighing and replace(context.weighing, router=router)
    overseers = tuple(Routed(overseer, router, probe) for overseer in context.overseers)
    return replace(context, overseers=overseers, weighing=weighing)


def check_not_routed_by(router: Router | None, questions: Iterable[str]) -> None:
    """Check that an evaluation asks other questions than its router was fitted on.

    Raises:
        UsageError: it asks one of them, whose result the router knows.
    """
    known = {past.question for past in router.past} if router else set[str]()
    if both := sum(question in known for question in questions):
        raise UsageError(
            f"--route was fitted on {both} of these questions: evaluate on others, for example "
            "with another --seed"
        )


def read_past(file: Path, text: str) -> list[Past]:
    """The questions that an evaluation answered both ways.

    Raises:
        UsageError: it is no `eval.jsonl` of direct and amplified, or has too few questions.
    """
    ways: dict[tuple[str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    try:
        for line in text.splitlines():
            row = json.loads(line)
            if row["system"] in WAYS and row["right"] is not None:
                ways[row["id"], row["seed"]][row["system"]] = row
        both = [found for found in ways.values() if len(found) == len(WAYS)]
        past = [_past(found["direct"], found["amplified"]) for found in both]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{file} is no evaluation: {HOW}") from error
    if len(past) < MIN_PAST:
        raise UsageError(
            f"{file} has {len(past)} questions that were answered direct and amplified, and a "
            f"route needs {MIN_PAST}: {HOW}"
        )
    return past


def _past(direct: Mapping[str, Any], amplified: Mapping[str, Any]) -> Past:
    question, sure = direct["question"], direct["confidence"]
    if not isinstance(question, str) or not 0 <= (sure or 0) <= 1:
        raise ValueError("a question is a text, and a confidence between 0 and 1")
    logprob = math.log(sure) if sure else None
    return Past(question, logprob, bool(direct["right"]), bool(amplified["right"]))


def _router_at(file: Path) -> tuple[Router, str]:
    if not file.is_file():
        raise UsageError(f"--route: there is no {file}; {HOW}")
    text = read_text(file)
    return Router.fit(read_past(file, text)), hashlib.sha256(text.encode()).hexdigest()[:16]


ROUTES = FileOption(_router_at)
route_of = ROUTES.of
"""The router that a question was asked with; None without one."""


def scaling_of(registry: Registry, model: str) -> Scaling | None:
    """What makes a student's confidence a probability; None without an evaluation of it."""
    student = next((each for each in registry.list() if each.id == model), None)
    found = student.scores.get("student", {}).get("scaling") if student is not None else None
    return found and Scaling(found["temperature"], found["offset"])


def recorded_cascade(
    registry: Registry, agent: str, threshold: float | None
) -> Mapping[str, float]:
    """A cascade as the options of a question record it, with the scaling of the agent's confidence
    where its evaluation has one; empty without a threshold."""
    if threshold is None:
        return {}
    return Cascade(threshold, scaling_of(registry, agent) or Scaling()).to_json()
