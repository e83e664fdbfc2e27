"""The values that a run has where its config says nothing, in one table.

A change of a default changes what everybody's runs do: it belongs in the changelog.
"""

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, ClassVar, Protocol

import pytest
from pydantic import BaseModel

from reflux.agents.budget import Price
from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.clients.retries import RetryPolicy
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.panel import Panel
from reflux.agents.overseers.router import Router
from reflux.agents.overseers.scripted import Reviewed
from reflux.agents.tools.python_sandbox import SandboxLimits
from reflux.agents.types import Sampling
from reflux.agents.verifiers import BackwardVerifier, CriticVerifier, Judge, RedFlags
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.engine import EngineSpec
from reflux.finetune.configs.limits import GateConfig, RetentionConfig
from reflux.finetune.configs.run import BatchedConfig, RoundsConfig, RoundSpec, SpendLimitConfig
from reflux.graphs.amplify.context import CheckPolicy, Limits
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.voting.combiners import Consensus, Expert
from reflux.graphs.voting.stopping import AheadBy, Majority, Posterior, Sprt, Weighted
from reflux.graphs.voting.voting import Variant, VotePolicy

MEBIBYTE = 2**20

DEFAULTS: dict[type, dict[str, Any]] = {
    # Rounds.
    RoundsConfig: {
        "task": "addition", "questions": "", "question_key": "", "answer_key": "", "template": "",
        "score": "", "check": (), "tools": (), "max_tokens": None, "seed": 0, "anchor": None,
        "anchor_tokens": 32,
        "questions_per_level": 100, "agent": None, "keep_agent": False,
        "max_concurrency": 64, "sft": {}, "lora": {}, "evaluation": 0.0, "early_stopping": None,
        "launch": None, "preferences": None, "roles": (), "policy": None,
    },
    RoundSpec: {
        "level": 1, "questions": None, "held_out": None, "hard": 0.1, "primitive_repeats": 2,
        "sft": {},
    },
    GateConfig: {
        "imitation": 0.95, "retention": 0.9, "agreement": 0, "regression": 0.05, "forgetting": 0.1,
        "parity": 0.8, "behavior": 0.35, "bias": 0.1, "divergence": None,
    },
    RetentionConfig: {"questions": 20},
    CanaryConfig: {"prompts": 20, "probes": 40, "depths": (), "control": False},
    SpendLimitConfig: {
        "seconds": None, "money": None, "calls": None, "tokens": None, "prices": {},
    },
    Price: {"prompt": 0.0, "completion": 0.0},
    # One question.
    Limits: {
        "depth": 1, "fanout": 64, "steps": 64, "attempts": 3, "calls": 1000, "tokens": 1_000_000,
        "question_chars": 100_000, "tool_turns": 4, "seconds": None, "money": None,
    },
    AskOptions: {
        "tools": (), "max_tokens": None, "task": "", "max_votes": None, "temperature": None,
        "seed": 0, "candidates": 0,
    },
    Weighing: {"decompositions": 2, "direct": 1.5, "divided": 1.0, "router": None},
    Sampling: {"temperature": 0.0, "max_tokens": 256, "top_logprobs": 0, "seed": 0, "stop": ()},
    # Votes.
    VotePolicy: {
        "margin": 2, "max_votes": 7, "min_logprob": -0.05, "temperature": 0.7, "rule": None,
        "variants": (),
    },
    Variant: {
        "model": "", "system": "", "wording": "{question}", "temperature": None, "weight": 1,
    },
    Majority: {"kind": "majority", "max_votes": 7},
    AheadBy: {"kind": "ahead", "margin": 2, "max_votes": 7},
    Sprt: {"kind": "sprt", "share": 0.8, "against": 0.5, "error": 0.05, "max_votes": 40},
    Posterior: {
        "kind": "posterior", "confidence": 0.95, "right": 8.0, "wrong": 2.0, "max_votes": 40,
    },
    Weighted: {"kind": "weighted", "error": 0.01, "max_votes": 40},
    Expert: {"model": "", "system": "", "weight": 1.0},
    Consensus: {"model": "", "max_tokens": 256},
    # Checks.
    CheckPolicy: {"confirm": 1, "after_failure": ()},
    RedFlags: {"cut_off": False, "longest": None, "pattern": "", "hedges": (), "repeats": None},
    CriticVerifier: {"model": "", "max_tokens": 128},
    BackwardVerifier: {"model": "", "max_tokens": 64},
    Judge: {"model": "", "max_tokens": 16},
    # Overseers.
    ModelOverseer: {
        "model": "", "fanout": 8, "max_subquestions": 24, "max_tries": 3, "max_tokens": 512,
        "transcript_chars": 4000, "primitives": False, "temperature": 0.0,
        "retry_temperature": 0.7, "seed": 0, "validate": True, "demos": None, "shots": 3,
        "demo_chars": 4000, "form": "json", "plan": False, "instructions": "first",
        "brief": False,
    },
    Panel: {"choice": "majority", "judge": "", "fanout": 8},
    Router: {"neighbours": 16, "like": 0.6, "margin": 0.0},
    Reviewed: {"when": "always"},
    # Engines, endpoints and tools.
    EngineConfig: {"parallel": 16, "context": 4096, "threads": 2, "servers": 3},
    BatchedConfig: {"rows": 128, "context": 4096, "models": 3, "prefix_cache": True},
    EngineSpec: {
        "kind": "batched", "url": "", "model": "", "api_key_env": "", "start": False,
        "students": "", "concurrency": 64,
    },
    RetryPolicy: {"retries": 5, "backoff": 0.5},
    SandboxLimits: {"seconds": 5.0, "memory": 32 * MEBIBYTE, "depth": 200},
}  # fmt: skip


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple, list, dict))


def defaults_of(kind: type[_Dataclass] | type[BaseModel]) -> dict[str, Any]:
    """Every plain default of a config; nested configs have rows of their own."""
    if is_dataclass(kind):
        defaults = {each.name: each.default for each in fields(kind) if each.default is not MISSING}
    else:
        assert issubclass(kind, BaseModel)
        defaults = {
            name: each.default
            for name, each in kind.model_fields.items()
            if not each.is_required() and each.default_factory is None
        }
    return {name: value for name, value in defaults.items() if _plain(value)}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_the_defaults_are_those_of_the_table(kind: type[_Dataclass]) -> None:
    assert defaults_of(kind) == DEFAULTS[kind]
