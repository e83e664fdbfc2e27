"""Overseers by name: Reflux's own, and users' own as FILE.py:NAME."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from reflux.agents.errors import UsageError
from reflux.agents.overseers.demonstration_file import read_demonstrations
from reflux.agents.overseers.demonstrations import Demonstrations
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import HumanOverseer, Reviewed, ScriptedOverseer, ScriptedStep
from reflux.agents.overseers.step_forms import OVERSEER, is_learned
from reflux.file_options import FileOption
from reflux.finetune.learned_overseer import learned_overseer, overseer_student
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import CheckPolicy, Limits
from reflux.graphs.amplify.weighing import Weighing, candidates_by_default
from reflux.graphs.external.user_code import load_instance
from reflux.graphs.external.user_sources import is_reference

DEFAULT_OVERSEER = "model"
OVERSEERS: Mapping[str, Overseer] = {
    "model": ModelOverseer(),
    "reviewed": Reviewed(ModelOverseer(), "root"),
    "plain": ScriptedOverseer("plain", lambda question, transcript, may_ask: PASS),
    "human": HumanOverseer(),
}
"""`model`: the agent itself divides a question; `reviewed`: a human sees its steps at the root
first; `plain` leaves every question to the agent, undivided; `human` defers each one to a human."""


def overseer_named(
    name: str = DEFAULT_OVERSEER, overseers: Mapping[str, Overseer] = OVERSEERS
) -> Overseer:
    """The overseer of a name.

    Raises:
        UsageError: no overseer has it.
    """
    if name in overseers:
        return overseers[name]
    if is_learned(name) and not _is_of_module(name):
        return learned_overseer(name)
    if is_reference(name) and not name.startswith("script:"):  # That is a program's.
        return _own_overseer(name)
    raise UsageError(
        f"no overseer is called {name!r}; there are {', '.join(overseers)}, your own as "
        f"FILE.py:NAME, and learned ones as STUDENT{OVERSEER}"
    )


def _is_of_module(name: str) -> bool:
    """True where a module of the name's first part can be imported, as in `app:overseer`."""
    return is_reference(name) and find_spec(name.partition(":")[0].partition(".")[0]) is not None


def id_of_overseer(name: str, folder: RunFolder) -> str:
    """The name under which a question records its overseer: of a learned one its student's id.

    Raises:
        UsageError: the run has no such student.
    """
    if not is_learned(name) or _is_of_module(name):
        return name
    return overseer_student(folder.registry, name).id


@cache
def _own_overseer(name: str) -> Overseer:
    """A user's overseer: an object or class with `act`, or a function of question, transcript and
    `may_ask`."""
    made = load_instance(name)
    if hasattr(made, "act") and isinstance(getattr(made, "name", None), str):
        return made
    if not inspect.isroutine(made):
        raise UsageError(
            f"{name} is no overseer: it needs a `name` and `act(context)`, or to be a function "
            "(question, transcript, may_ask) that returns a step"
        )
    return ScriptedOverseer(name, cast(ScriptedStep, made))


def candidates_of(overseer: Overseer | None, asked: int | None = None) -> int:
    """Decompositions that are weighed against the direct answer: as many as were `asked` for, else
    0 for every overseer but a model, whose decompositions may make an answer worse."""
    return candidates_by_default(isinstance(overseer, ModelOverseer), asked)


def default_weighing(
    overseer: Overseer, limits: Limits, checks: CheckPolicy | None = None
) -> Weighing | None:
    """How a program's question is weighed if the program does not say: for a model as overseer by
    2 decompositions, if the limits leave attempts for them and `checks` demand none."""
    own = checks is not None and (checks.confirm > 1 or bool(checks.after_failure))
    # The context says what is wrong with limits of another type.
    attempts = getattr(limits, "attempts", 0)
    is_model = isinstance(overseer, ModelOverseer) and not own
    return Weighing.of(candidates_by_default(is_model, attempts=attempts))


def with_max_tokens(overseer: Overseer, max_tokens: int | None) -> Overseer:
    """The overseer with the limit of a copy's reply for its own: a comparison of the two must not
    depend on who may say more."""
    return overseer if max_tokens is None else _prompted(overseer, max_tokens=max_tokens)


def with_demos(overseer: Overseer, demos: Demonstrations | None) -> Overseer:
    """The overseer, a prompted model, with demonstrations as its examples.

    Raises:
        UsageError: there are some, and it is another overseer.
    """
    if demos is not None and not takes_demos(overseer):
        raise UsageError(
            f"--demos are for the overseer model, not for {overseer.name}: leave one out"
        )
    return overseer if demos is None else _prompted(overseer, demos=demos)


def takes_demos(overseer: Overseer | None) -> bool:
    """True of a prompted model, perhaps one whose steps a human sees first."""
    if isinstance(overseer, Reviewed):
        return takes_demos(overseer.inner)
    return isinstance(overseer, ModelOverseer) and not overseer.brief


def _prompted(overseer: Overseer, **fields: Any) -> Overseer:
    """The overseer with other fields, if it is a prompted model."""
    if isinstance(overseer, Reviewed):
        return replace(overseer, inner=_prompted(overseer.inner, **fields))
    return replace(overseer, **fields) if isinstance(overseer, ModelOverseer) else overseer


def _demos_at(path: Path) -> tuple[Demonstrations, str]:
    demos = read_demonstrations(path)
    return demos, demos.digest


DEMOS = FileOption(_demos_at)
recorded_demos, demos_of = DEMOS.recorded, DEMOS.of
