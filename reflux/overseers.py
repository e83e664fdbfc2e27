"""H by name, for those who can only name it: a form, an environment variable, a dev server."""

from collections.abc import Mapping

from reflux.agents.errors import UsageError
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import HumanOverseer, Reviewed, ScriptedOverseer

DEFAULT_OVERSEER = "model"
"""H where none is named."""

OVERSEERS: Mapping[str, Overseer] = {
    "model": ModelOverseer(),
    "reviewed": Reviewed(ModelOverseer(), "root"),
    "plain": ScriptedOverseer("plain", lambda question, transcript, may_ask: PASS),
    "person": HumanOverseer(),
}
"""`model`: X itself decides how to divide a question; `reviewed`: a person sees its steps at the
root first; `plain` leaves every question to X, undivided; `person` defers every one to a person."""


def overseer_named(
    name: str = DEFAULT_OVERSEER, overseers: Mapping[str, Overseer] = OVERSEERS
) -> Overseer:
    """The overseer of a name.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in overseers:
        raise UsageError(f"no overseer is called {name!r}; there are {', '.join(overseers)}")
    return overseers[name]
