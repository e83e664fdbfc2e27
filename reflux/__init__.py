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
    from agents.calculator import Calculator
    from agents.checker import Checker, RuleChecker, Verdict
    from agents.client import OpenAIClient
    from agents.documents import Documents
    from agents.errors import RefluxError
    from agents.examiner import ByTool, Consistent, Critic, Examiner, Inverse
    from agents.flags import RedFlags
    from agents.foreign_tools import LangChainTool
    from agents.judge import Equivalence, Judge
    from agents.langchain_client import LangChainClient
    from agents.model_overseer import ModelOverseer
    from agents.overseer import PASS, Overseer, PersonOverseer, ScriptedOverseer
    from agents.panel import Panel
    from agents.purse import Price, Purse
    from agents.recorded import RecordedOverseer
    from agents.reviewed import Reviewed
    from agents.scripted import ScriptedClient
    from agents.tools import Tool, ToolReply
    from agents.types import Answer, Ask, ChatClient, Defer, Exchange, Step, SubQuestion
    from graphs.amplify import build_graph
    from graphs.experts import Consensus, Expert, Vote, learned_weights, past_answers
    from graphs.patient import Patient, Pending, open_patient
    from graphs.plan import Plan, plan
    from graphs.policy import CheckPolicy
    from graphs.router import Routed, Router
    from graphs.state import AmplifyContext, Limits
    from graphs.stopping import AheadBy, Majority, Posterior, Sprt, Weighted
    from graphs.task import Task
    from graphs.tree import Node
    from graphs.voting import Variant, VotePolicy
    from reflux.chat_model import AmplifiedChatModel
    from reflux.facade import Amplification, amplify, amplify_sync

__version__ = "0.1.0"

HOMES = {
    "agents.calculator": ("Calculator",),
    "agents.checker": ("Checker", "RuleChecker", "Verdict"),
    "agents.client": ("OpenAIClient",),
    "agents.documents": ("Documents",),
    "agents.errors": ("RefluxError",),
    "agents.examiner": ("ByTool", "Consistent", "Critic", "Examiner", "Inverse"),
    "agents.flags": ("RedFlags",),
    "agents.foreign_tools": ("LangChainTool",),
    "agents.judge": ("Equivalence", "Judge"),
    "agents.langchain_client": ("LangChainClient",),
    "agents.model_overseer": ("ModelOverseer",),
    "agents.overseer": ("PASS", "Overseer", "PersonOverseer", "ScriptedOverseer"),
    "agents.panel": ("Panel",),
    "agents.purse": ("Price", "Purse"),
    "agents.recorded": ("RecordedOverseer",),
    "agents.reviewed": ("Reviewed",),
    "agents.scripted": ("ScriptedClient",),
    "agents.tools": ("Tool", "ToolReply"),
    "agents.types": ("Answer", "Ask", "ChatClient", "Defer", "Exchange", "Step", "SubQuestion"),
    "graphs.amplify": ("build_graph",),
    "graphs.experts": ("Consensus", "Expert", "Vote", "learned_weights", "past_answers"),
    "graphs.patient": ("Patient", "Pending", "open_patient"),
    "graphs.plan": ("Plan", "plan"),
    "graphs.policy": ("CheckPolicy",),
    "graphs.router": ("Routed", "Router"),
    "graphs.state": ("AmplifyContext", "Limits"),
    "graphs.stopping": ("AheadBy", "Majority", "Posterior", "Sprt", "Weighted"),
    "graphs.task": ("Task",),
    "graphs.tree": ("Node",),
    "graphs.voting": ("Variant", "VotePolicy"),
    "reflux.chat_model": ("AmplifiedChatModel",),
    "reflux.facade": ("Amplification", "amplify", "amplify_sync"),
}
"""Where each public name is made."""

__all__ = [
    "PASS",
    "AheadBy",
    "Amplification",
    "AmplifiedChatModel",
    "AmplifyContext",
    "Answer",
    "Ask",
    "ByTool",
    "Calculator",
    "ChatClient",
    "CheckPolicy",
    "Checker",
    "Consensus",
    "Consistent",
    "Critic",
    "Defer",
    "Documents",
    "Equivalence",
    "Examiner",
    "Exchange",
    "Expert",
    "Inverse",
    "Judge",
    "LangChainClient",
    "LangChainTool",
    "Limits",
    "Majority",
    "ModelOverseer",
    "Node",
    "OpenAIClient",
    "Overseer",
    "Panel",
    "Patient",
    "Pending",
    "PersonOverseer",
    "Plan",
    "Posterior",
    "Price",
    "Purse",
    "RecordedOverseer",
    "RedFlags",
    "RefluxError",
    "Reviewed",
    "Routed",
    "Router",
    "RuleChecker",
    "ScriptedClient",
    "ScriptedOverseer",
    "Sprt",
    "Step",
    "SubQuestion",
    "Task",
    "Tool",
    "ToolReply",
    "Variant",
    "Verdict",
    "Vote",
    "VotePolicy",
    "Weighted",
    "amplify",
    "amplify_sync",
    "build_graph",
    "learned_weights",
    "open_patient",
    "past_answers",
    "plan",
]


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"reflux has no {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
