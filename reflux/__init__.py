"""Reflux: Iterated Distillation and Amplification on language-model agents.

The public path: `reflux.amplify`, `reflux.build_graph`, `reflux.Task` and what they take. Each is
imported when it is first asked for, so that a command can be interrupted from its first moment.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import agents

if getattr(agents, "DISTRIBUTION", None) != "reflux-ida":
    raise ImportError(
        f"`import agents` found {getattr(agents, '__file__', None) or 'another package'}, which is "
        "not Reflux's: PyPI's `openai-agents` imports under the same name. Install Reflux in an "
        "environment without it: python -m venv .venv && .venv/bin/pip install -e ."
    )

if TYPE_CHECKING:
    from agents.checker import Checker, RuleChecker, Verdict
    from agents.client import OpenAIClient
    from agents.errors import RefluxError
    from agents.overseer import PASS, Overseer, ScriptedOverseer
    from agents.scripted import ScriptedClient
    from agents.types import Answer, Ask, Defer, Exchange, SubQuestion
    from graphs.amplify import build_graph
    from graphs.state import AmplifyContext, Limits
    from graphs.task import Task
    from graphs.tree import Node
    from graphs.voting import VotePolicy
    from reflux.facade import Amplification, amplify, amplify_sync

__version__ = "0.1.0"

HOMES = {
    "agents.checker": ("Checker", "RuleChecker", "Verdict"),
    "agents.client": ("OpenAIClient",),
    "agents.errors": ("RefluxError",),
    "agents.overseer": ("PASS", "Overseer", "ScriptedOverseer"),
    "agents.scripted": ("ScriptedClient",),
    "agents.types": ("Answer", "Ask", "Defer", "Exchange", "SubQuestion"),
    "graphs.amplify": ("build_graph",),
    "graphs.state": ("AmplifyContext", "Limits"),
    "graphs.task": ("Task",),
    "graphs.tree": ("Node",),
    "graphs.voting": ("VotePolicy",),
    "reflux.facade": ("Amplification", "amplify", "amplify_sync"),
}
"""Where each public name is made."""

__all__ = [
    "PASS",
    "Amplification",
    "AmplifyContext",
    "Answer",
    "Ask",
    "Checker",
    "Defer",
    "Exchange",
    "Limits",
    "Node",
    "OpenAIClient",
    "Overseer",
    "RefluxError",
    "RuleChecker",
    "ScriptedClient",
    "ScriptedOverseer",
    "SubQuestion",
    "Task",
    "Verdict",
    "VotePolicy",
    "amplify",
    "amplify_sync",
    "build_graph",
]


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"reflux has no {name!r}; it has: {', '.join(__all__)}")
