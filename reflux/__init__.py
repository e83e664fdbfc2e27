"""Reflux: Iterated Distillation and Amplification on language-model agents.

The public path: `reflux.amplify`, `reflux.build_graph`, `reflux.Task` and what they take. Each is
imported when it is first asked for, so that a command can be interrupted from its first moment.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reflux.agents.budget import Price, SpendLimit
    from reflux.agents.clients.langchain import LangChainClient
    from reflux.agents.clients.openai import OpenAIClient
    from reflux.agents.clients.scripted import ScriptedClient
    from reflux.agents.errors import RefluxError
    from reflux.agents.overseers.model import ModelOverseer
    from reflux.agents.overseers.panel import Panel
    from reflux.agents.overseers.protocol import PASS, Overseer, OverseerContext
    from reflux.agents.overseers.recorded import RecordedOverseer
    from reflux.agents.overseers.router import Routed, Router
    from reflux.agents.overseers.scripted import HumanOverseer, Reviewed, ScriptedOverseer
    from reflux.agents.tools.calculator import Calculator
    from reflux.agents.tools.documents import Documents
    from reflux.agents.tools.langchain import LangChainTool
    from reflux.agents.tools.protocol import Tool, ToolReply
    from reflux.agents.types import Answer, Ask, ChatClient, Defer, Exchange, Step, SubQuestion
    from reflux.agents.verifiers.red_flags import RedFlags
    from reflux.agents.verifiers.rules import Checker, RuleChecker, Verdict
    from reflux.agents.verifiers.verifier import (
        BackwardVerifier,
        ConsistencyVerifier,
        CriticVerifier,
        Equivalence,
        Judge,
        ToolVerifier,
        Verifier,
    )
    from reflux.facade import Amplification, amplify, amplify_sync
    from reflux.graphs.amplify.context import AmplifyContext, CheckPolicy, Limits
    from reflux.graphs.amplify.experts import Consensus, Expert, Vote, learned_weights, past_answers
    from reflux.graphs.amplify.graph import build_graph
    from reflux.graphs.amplify.interrupts import InterruptibleRun, Pending, open_interruptible_run
    from reflux.graphs.evals.task import Task
    from reflux.graphs.traces.tree import Node
    from reflux.graphs.voting.planner import Plan, plan
    from reflux.graphs.voting.stopping import AheadBy, Majority, Posterior, Sprt, Weighted
    from reflux.graphs.voting.voting import Variant, VotePolicy
    from reflux.integrations.chat_model import AmplifiedChatModel

__version__ = "0.1.0"

HOMES = {
    "reflux.agents.budget": ("Price", "SpendLimit"),
    "reflux.agents.clients.langchain": ("LangChainClient",),
    "reflux.agents.clients.openai": ("OpenAIClient",),
    "reflux.agents.clients.scripted": ("ScriptedClient",),
    "reflux.agents.errors": ("RefluxError",),
    "reflux.agents.overseers.model": ("ModelOverseer",),
    "reflux.agents.overseers.panel": ("Panel",),
    "reflux.agents.overseers.protocol": ("Overseer", "OverseerContext", "PASS"),
    "reflux.agents.overseers.recorded": ("RecordedOverseer",),
    "reflux.agents.overseers.router": ("Routed", "Router"),
    "reflux.agents.overseers.scripted": ("HumanOverseer", "Reviewed", "ScriptedOverseer"),
    "reflux.agents.tools.calculator": ("Calculator",),
    "reflux.agents.tools.documents": ("Documents",),
    "reflux.agents.tools.langchain": ("LangChainTool",),
    "reflux.agents.tools.protocol": ("Tool", "ToolReply"),
    "reflux.agents.types": (
        "Answer",
        "Ask",
        "ChatClient",
        "Defer",
        "Exchange",
        "Step",
        "SubQuestion",
    ),
    "reflux.agents.verifiers.red_flags": ("RedFlags",),
    "reflux.agents.verifiers.rules": ("Checker", "RuleChecker", "Verdict"),
    "reflux.agents.verifiers.verifier": (
        "ToolVerifier",
        "ConsistencyVerifier",
        "CriticVerifier",
        "Equivalence",
        "Verifier",
        "BackwardVerifier",
        "Judge",
    ),
    "reflux.facade": ("Amplification", "amplify", "amplify_sync"),
    "reflux.graphs.amplify.context": ("AmplifyContext", "CheckPolicy", "Limits"),
    "reflux.graphs.amplify.experts": (
        "Consensus",
        "Expert",
        "Vote",
        "learned_weights",
        "past_answers",
    ),
    "reflux.graphs.amplify.graph": ("build_graph",),
    "reflux.graphs.amplify.interrupts": ("InterruptibleRun", "Pending", "open_interruptible_run"),
    "reflux.graphs.evals.task": ("Task",),
    "reflux.graphs.traces.tree": ("Node",),
    "reflux.graphs.voting.planner": ("Plan", "plan"),
    "reflux.graphs.voting.stopping": ("AheadBy", "Majority", "Posterior", "Sprt", "Weighted"),
    "reflux.graphs.voting.voting": ("Variant", "VotePolicy"),
    "reflux.integrations.chat_model": ("AmplifiedChatModel",),
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
    "BackwardVerifier",
    "Calculator",
    "ChatClient",
    "CheckPolicy",
    "Checker",
    "Consensus",
    "ConsistencyVerifier",
    "CriticVerifier",
    "Defer",
    "Documents",
    "Equivalence",
    "Exchange",
    "Expert",
    "HumanOverseer",
    "InterruptibleRun",
    "Judge",
    "LangChainClient",
    "LangChainTool",
    "Limits",
    "Majority",
    "ModelOverseer",
    "Node",
    "OpenAIClient",
    "Overseer",
    "OverseerContext",
    "Panel",
    "Pending",
    "Plan",
    "Posterior",
    "Price",
    "RecordedOverseer",
    "RedFlags",
    "RefluxError",
    "Reviewed",
    "Routed",
    "Router",
    "RuleChecker",
    "ScriptedClient",
    "ScriptedOverseer",
    "SpendLimit",
    "Sprt",
    "Step",
    "SubQuestion",
    "Task",
    "Tool",
    "ToolReply",
    "ToolVerifier",
    "Variant",
    "Verdict",
    "Verifier",
    "Vote",
    "VotePolicy",
    "Weighted",
    "amplify",
    "amplify_sync",
    "build_graph",
    "learned_weights",
    "open_interruptible_run",
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
