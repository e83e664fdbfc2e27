"""Overseers by name: Reflux's own, and users' own as FILE.py:NAME."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import cast

from reflux.agents.errors import UsageError
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import HumanOverseer, Reviewed, ScriptedOverseer, ScriptedStep
from reflux.graphs.amplify.weighing import DECOMPOSITIONS
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
    if is_reference(name) and not name.startswith("script:"):  # That is a program's.
        return _own_overseer(name)
    raise UsageError(
        f"no overseer is called {name!r}; there are {', '.join(overseers)}, and your own as "
        "FILE.py:NAME"
    )


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
    if asked is not None:
        return asked
    return DECOMPOSITIONS if isinstance(overseer, ModelOverseer) else 0


def with_max_tokens(overseer: Overseer, max_tokens: int | None) -> Overseer:
    """The overseer with the limit of a copy's reply for its own: a comparison of the two must not
    depend on who may say more."""
    if max_tokens is None:
        return overseer
    if isinstance(overseer, Reviewed):
        return replace(overseer, inner=with_max_tokens(overseer.inner, max_tokens))
    if isinstance(overseer, ModelOverseer):
        return replace(overseer, max_tokens=max_tokens)
    return overseer
