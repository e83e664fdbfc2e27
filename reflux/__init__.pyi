"""The public names of Reflux, each imported from its module when it is first used."""

from .agents.budget import Price as Price, SpendLimit as SpendLimit
from .agents.clients.langchain import LangChainClient as LangChainClient
from .agents.clients.openai import OpenAIClient as OpenAIClient
from .agents.clients.scripted import ScriptedClient as ScriptedClient
from .agents.errors import RefluxError as RefluxError, UsageError as UsageError
from .agents.overseers.demonstration_file import read_demonstrations as read_demonstrations
from .agents.overseers.demonstrations import (
    Demonstration as Demonstration,
    Demonstrations as Demonstrations,
    DemoStep as DemoStep,
)
from .agents.overseers.model import ModelOverseer as ModelOverseer
from .agents.overseers.panel import Panel as Panel
from .agents.overseers.protocol import (
    PASS as PASS,
    Overseer as Overseer,
    OverseerContext as OverseerContext,
)
from .agents.overseers.router import Routed as Routed, Router as Router
from .agents.overseers.scripted import (
    HumanOverseer as HumanOverseer,
    RecordedOverseer as RecordedOverseer,
    Reviewed as Reviewed,
    ScriptedOverseer as ScriptedOverseer,
)
from .agents.policy.data import untrusted as untrusted
from .agents.policy.policy import Policy as Policy
from .agents.tools.calculator import Calculator as Calculator
from .agents.tools.documents import Documents as Documents
from .agents.tools.langchain import LangChainTool as LangChainTool
from .agents.tools.protocol import Tool as Tool, ToolReply as ToolReply
from .agents.types import (
    Answer as Answer,
    Ask as Ask,
    ChatClient as ChatClient,
    Defer as Defer,
    Exchange as Exchange,
    Step as Step,
    SubQuestion as SubQuestion,
    ToolSpec as ToolSpec,
)
from .agents.verifiers import (
    BackwardVerifier as BackwardVerifier,
    Checker as Checker,
    ConsistencyVerifier as ConsistencyVerifier,
    CriticVerifier as CriticVerifier,
    Equivalence as Equivalence,
    Judge as Judge,
    RedFlags as RedFlags,
    RuleChecker as RuleChecker,
    ToolVerifier as ToolVerifier,
    Verdict as Verdict,
    Verifier as Verifier,
)
from .ask_context import (
    Amplification as Amplification,
    amplify as amplify,
    amplify_sync as amplify_sync,
)
from .feedback import feedback as feedback
from .graphs.amplify.context import (
    AmplifyContext as AmplifyContext,
    CheckPolicy as CheckPolicy,
    Limits as Limits,
)
from .graphs.amplify.experts import past_answers as past_answers
from .graphs.amplify.graph import build_graph as build_graph
from .graphs.amplify.interrupts import (
    InterruptibleRun as InterruptibleRun,
    Pending as Pending,
    open_interruptible_run as open_interruptible_run,
)
from .graphs.external.recorder import Recorder as Recorder
from .graphs.traces.trajectories import Feedback as Feedback, Trajectory as Trajectory
from .graphs.evals.task import Task as Task, is_held_out as is_held_out
from .graphs.traces.tree import Node as Node
from .graphs.voting.planner import Plan as Plan, plan as plan
from .graphs.voting.stopping import (
    AheadBy as AheadBy,
    Majority as Majority,
    Posterior as Posterior,
    Sprt as Sprt,
    Weighted as Weighted,
)
from .graphs.amplify.weighing import Weighing as Weighing
from .graphs.voting import Vote as Vote
from .graphs.voting.combiners import (
    Consensus as Consensus,
    Expert as Expert,
    learned_weights as learned_weights,
)
from .graphs.voting.voting import Variant as Variant, VotePolicy as VotePolicy
from .integrations.chat_model import AmplifiedChatModel as AmplifiedChatModel

__version__: str
