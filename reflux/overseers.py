"""H by name, for those who can only name it: a form, an environment variable, a dev server."""

from collections.abc import Mapping

from agents.errors import UsageError
from agents.overseer import PASS, Overseer, PersonOverseer, ScriptedOverseer

DEFAULT_OVERSEER = "plain"
"""H where none is named."""

OVERSEERS: Mapping[str, Overseer] = {
    "plain": ScriptedOverseer("plain", lambda question, transcript, may_ask: PASS),
    "person": PersonOverseer(),
}
"""`plain` leaves every question to X, undivided; `person` defers every question to a person."""


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
