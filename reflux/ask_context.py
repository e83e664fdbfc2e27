"""Overseers, tools and tasks by name, and the contexts in which questions are asked; `amplify` asks
one, the shortest way into Reflux from Python."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager as Opener
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from langchain_core.language_models import BaseChatModel

from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.clients.langchain import LangChainClient
from reflux.agents.clients.llama_cpp import LlamaCppClient, ModelFiles, default_gguf
from reflux.agents.errors import UsageError, check_has
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.policy.policy import Policy
from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.documents import Documents
from reflux.agents.tools.langchain import as_tool, mcp_tools
from reflux.agents.tools.protocol import Grants, Tool
from reflux.agents.tools.python_sandbox import Sandbox
from reflux.agents.types import ChatClient
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.finetune.learned_overseer import resolved
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AS_OVERSEER, AmplifyContext, Limits, silent
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.evals.task import task_context
from reflux.graphs.external.user_code import load_instance
from reflux.graphs.external.user_sources import is_reference
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from reflux.graphs.voting.confidence import Cascade
from reflux.graphs.voting.voting import VotePolicy
from reflux.overseers import (
    OVERSEERS,
    default_weighing,
    demos_of,
    overseer_named,
    with_demos,
    with_max_tokens,
)
from reflux.routing import route_of, routed
from reflux.tasks import task_named

MAX_TOKENS = 512
"""Tokens of one reply of a copy or the overseer, unless the options or the task say otherwise."""
NO_GRANTS: Grants = {}


def overseers_of(overseer: Overseer | str | Sequence[Overseer]) -> tuple[Overseer, ...]:
    """One overseer or several that a program passes, the one perhaps by its name.

    Raises:
        UsageError: no overseer has the name, or one has the wrong type.
    """
    if isinstance(overseer, str):
        return (overseer_named(overseer),)
    overseers = tuple(overseer) if isinstance(overseer, Sequence) else (overseer,)
    if not overseers:
        raise UsageError("there is no overseer; pass one, or its name")
    check_has("an overseer", ("act", "name"), AS_OVERSEER, *overseers)
    return overseers


def name_of(overseer: Overseer) -> str:
    """The name by which commands find an overseer; empty if they do not know it."""
    return next((name for name, known in OVERSEERS.items() if known == overseer), "")


@asynccontextmanager
async def _documents(argument: str) -> AsyncGenerator[Sequence[Tool]]:
    yield [await asyncio.to_thread(Documents, Path(argument))]


TOOLS: dict[str, Callable[[str], Opener[Sequence[Tool]]]] = {
    "calculator": lambda _: nullcontext([Calculator()]),
    "python": lambda _: nullcontext([Sandbox()]),
    "documents:FOLDER": _documents,
    "mcp:COMMAND": mcp_tools,
}
"""What opens a tool, by the form of its name; the text after the colon is its argument."""


@asynccontextmanager
async def open_tools(names: Sequence[str]) -> AsyncGenerator[Grants]:
    """The tools of the copies, such as `calculator` or `documents:notes`, open during the block.

    Raises:
        UsageError: an unknown tool, or two that a model cannot tell apart.
        MissingError: an MCP server does not start.
    """
    openers = [_opener(name) for name in names]
    async with AsyncExitStack() as stack:
        tools = [tool for each in openers for tool in await stack.enter_async_context(each)]
        for name, count in Counter(tool.spec.name for tool in tools).items():
            if count > 1:
                raise UsageError(
                    f"the copies are granted two tools named {name!r}, which a model cannot tell "
                    "apart; grant one"
                )
        yield {"answer": tools} if tools else {}


def _opener(name: str) -> Opener[Sequence[Tool]]:
    kind, colon, argument = name.partition(":")
    for form, opener in TOOLS.items():
        known, takes_argument, placeholder = form.partition(":")
        if kind != known:
            continue
        if takes_argument and not argument.strip():
            raise UsageError(f"the tool {name!r} lacks its {placeholder.lower()}; write {form}")
        if colon and not takes_argument:
            raise UsageError(f"the tool {name!r} takes nothing after its name; write {form}")
        return opener(argument)
    if is_reference(name):
        return nullcontext(_own_tools(name))
    raise UsageError(
        f"there is no tool {name!r}; there are: {', '.join(TOOLS)}, and your own as FILE.py:NAME"
    )


def _own_tools(name: str) -> Sequence[Tool]:
    """A user's tools, one or a list: ours, LangChain's, or functions with types and a docstring."""
    made = load_instance(name)
    several = cast(Sequence[Any], made if isinstance(made, list | tuple) else [made])
    return [_own_tool(name, each) for each in several]


def _own_tool(name: str, made: Any) -> Tool:
    tool = as_tool(made)
    if not (hasattr(tool, "spec") and hasattr(tool, "call")):
        raise UsageError(
            f"{name} is no tool but a {type(made).__name__}; name a function or a tool"
        )
    return tool


def context_of(
    run: OpenRun,
    options: AskOptions,
    overseers: Mapping[str, Overseer] = OVERSEERS,
    grants: Grants = NO_GRANTS,
    **fields: Any,
) -> AmplifyContext:
    """The context of a question that is asked with these options.

    Args:
        grants: its tools, which are open.
        fields: further fields of the context.

    Raises:
        UsageError: no overseer or task has the name; a file that it was asked with was changed.
    """
    task = task_named(options.task, run.folder) if options.task else None
    context = AmplifyContext(
        run.recorded_client,
        options.model,
        () if task else (_overseer_of(options, overseers),),
        limits=options.limits,
        votes=options.votes(),
        max_tokens=MAX_TOKENS,
        seed=options.seed,
        weighing=Weighing.of(options.candidates),
    )
    if task is not None:
        context = task_context(context, task)
    context = replace(context, overseers=resolved(run, context.overseers))
    if options.max_tokens is not None:
        context = replace(context, max_tokens=options.max_tokens)
    context = replace(context, policy=Policy.of(options.policy or None))
    context = replace(context, cascade=Cascade.of(options.cascade), **fields).granting(grants)
    return routed(context, route_of(options.route))


def _overseer_of(options: AskOptions, overseers: Mapping[str, Overseer]) -> Overseer:
    overseer = with_demos(overseer_named(options.overseer, overseers), demos_of(options.demos))
    return with_max_tokens(overseer, options.max_tokens or MAX_TOKENS)


@asynccontextmanager
async def open_context(
    run: OpenRun,
    options: AskOptions,
    emit: Callable[[Event], None] = silent,
    overseers: Mapping[str, Overseer] = OVERSEERS,
) -> AsyncGenerator[AmplifyContext]:
    """The context of a question with these options; its tools are open as long as the block."""
    names = options.tools
    if options.task and not names:
        names = tuple(task_named(options.task, run.folder).tool_names)
    async with open_tools(names) as grants:
        yield context_of(run, options, overseers, grants, emit=emit)


AS_CLIENT = "pass reflux.OpenAIClient(base_url, api_key) or a chat model of LangChain"


@dataclass(frozen=True)
class Amplification:
    """The result of one amplified question."""

    answer: str | None
    outcome: Outcome
    tree: Node


async def amplify(
    question: str,
    overseer: Overseer | str | Sequence[Overseer],
    *,
    client: ChatClient | BaseChatModel | None = None,
    model: str = "base",
    checker: Checker | None = None,
    limits: Limits | None = None,
    votes: VotePolicy | None = None,
    traces: Path | None = None,
    **context: Any,
) -> Amplification:
    """Answer one question with an overseer and many copies of the agent.

    Args:
        overseer: one, or several: a retry takes the next one's decomposition. A name is one that
            the commands know, `model` or `plain`.
        client: where the agent runs; a chat model of LangChain is one, too. None: the embedded
            default model.
        model: name of the agent there.
        traces: file of trajectories to add to; None for a temporary one.
        context: further fields of `AmplifyContext`, for example `max_tokens`.

    Raises:
        MissingError: the model or its endpoint is missing.
        UsageError: no overseer has that name, an argument has the wrong type, or the question
            cannot be asked.
    """
    overseers = overseers_of(overseer)
    if not isinstance(question, str):
        raise UsageError(f"the question is {question!r:.80}, not a text; pass a str")
    if isinstance(client, BaseChatModel):
        client = LangChainClient(client)
    elif client is not None:
        check_has("a client", ("complete", "model_digest"), AS_CLIENT, client)
    limits = limits or Limits()
    weighing = default_weighing(overseers[0], limits, context.get("checks"))
    context = {"weighing": weighing} | context
    engine = None if client else LlamaCppClient(lambda _: ModelFiles(default_gguf()))
    with (
        tempfile.TemporaryDirectory() as scratch,
        closing(TraceStore(traces or Path(scratch) / "traces.db")) as store,
    ):
        try:
            amplified = AmplifyContext(
                RecordedClient(CachedClient(client or cast(ChatClient, engine)), store),
                model,
                overseers,
                checker=checker or RuleChecker({}),
                limits=limits,
                votes=votes or VotePolicy(max_votes=1),
                **context,
            )
            options = AskOptions.of(amplified, name_of(overseers[0]))
            answered = await ask(amplified, question, Origin.new("python", "ask"), options=options)
            tree = load_tree(store, answered.trajectory)
        finally:
            if engine is not None:
                await engine.close()
    outcome = cast(Outcome, answered.outcome)
    return Amplification(outcome["answer"], outcome, tree)


def amplify_sync(
    question: str, overseer: Overseer | str | Sequence[Overseer], **options: Any
) -> Amplification:
    """`amplify` for programs without an event loop.

    Raises:
        UsageError: a loop is running, as in a notebook.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(amplify(question, overseer, **options))
    raise UsageError(
        "amplify_sync cannot wait within a running event loop, such as a notebook's: write "
        "`await reflux.amplify(...)` there"
    )
