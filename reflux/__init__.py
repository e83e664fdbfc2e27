"""Reflux: Iterated Distillation and Amplification on language-model agents.

The public path: `reflux.amplify`, `reflux.build_graph`, `reflux.Task` and what they take.
"""

import agents

if getattr(agents, "DISTRIBUTION", None) != "reflux-ida":
    raise ImportError(
        f"`import agents` found {getattr(agents, '__file__', None) or 'another package'}, which is "
        "not Reflux's: PyPI's `openai-agents` imports under the same name. Install Reflux in an "
        "environment without it: python -m venv .venv && .venv/bin/pip install -e ."
    )

from agents.checker import Checker, RuleChecker, Verdict
from agents.client import OpenAIClient
from agents.errors import RefluxError
from agents.model_overseer import ModelOverseer
from agents.overseer import PASS, Overseer, PersonOverseer, ScriptedOverseer
from agents.panel import Panel
from agents.recorded import RecordedOverseer
from agents.reviewed import Reviewed
from agents.scripted import ScriptedClient
from agents.types import Answer, Ask, ChatClient, Defer, Exchange, Step, SubQuestion
from graphs.amplify import build_graph
from graphs.experts import Consensus, Expert, Vote
from graphs.patient import Patient, Pending, open_patient
from graphs.state import AmplifyContext, Limits
from graphs.task import Task
from graphs.tree import Node
from graphs.voting import VotePolicy
from reflux.facade import Amplification, amplify, amplify_sync

__version__ = "0.1.0"

__all__ = [
    "PASS",
    "Amplification",
    "AmplifyContext",
    "Answer",
    "Ask",
    "ChatClient",
    "Checker",
    "Consensus",
    "Defer",
    "Exchange",
    "Expert",
    "Limits",
    "ModelOverseer",
    "Node",
    "OpenAIClient",
    "Overseer",
    "Panel",
    "Patient",
    "Pending",
    "PersonOverseer",
    "RecordedOverseer",
    "RefluxError",
    "Reviewed",
    "RuleChecker",
    "ScriptedClient",
    "ScriptedOverseer",
    "Step",
    "SubQuestion",
    "Task",
    "Verdict",
    "Vote",
    "VotePolicy",
    "amplify",
    "amplify_sync",
    "build_graph",
    "open_patient",
]
