"""The amplified system as a LangChain chat model, for any program that takes a `BaseChatModel`."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, cast

from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.utils import from_env, secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, SkipValidation

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.policy.policy import Policy
from reflux.agents.redaction import redact
from reflux.agents.types import ChatClient
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.ask_context import name_of, overseers_of
from reflux.graphs.amplify.context import AmplifyContext, Limits, silent
from reflux.graphs.amplify.state import Outcome, is_accepted
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.conversation import cut_at, question_of
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.spending import tokens_of
from reflux.graphs.traces.tree import Node, load_tree
from reflux.graphs.voting.voting import VotePolicy
from reflux.models import Agent
from reflux.overseers import default_weighing, overseer_named

T = TypeVar("T")
Emit = Callable[[Event], None]
Stop = list[str] | None
SYNC = "reflux-sync"
OPTIONS = {"model", "max_tokens", "temperature", "seed", "stream"}
"""What a single call may set."""


class AmplifiedChatModel(BaseChatModel):
    """A chat model whose answers an overseer gives, with many copies of the agent below it.

    A conversation becomes one question (`reflux.conversation`). A reply's `usage_metadata` counts
    the whole tree with its cache hits; its `response_metadata` holds `trajectory`, `status`,
    `spent` and, as `model_name`, the agent. A stream yields the whole text when it is accepted,
    because streamed text cannot be recalled. The model binds no tools and no schema.

    The overseer must not defer to a human, which needs a graph with a checkpointer.
    """

    overseer: SkipValidation[Overseer | Sequence[Overseer]] = Field(default_factory=overseer_named)
    """One, or several: a retry takes the next one's decomposition."""
    client: SkipValidation[ChatClient | BaseChatModel | None] = Field(default=None, exclude=True)
    """Where the agent runs; a chat model of LangChain is one, too. None: the endpoint of `base_url`
    and `api_key`, by default OPENAI_BASE_URL and OPENAI_API_KEY, or the embedded engine."""
    model: str = Field(default_factory=from_env("REFLUX_MODEL", default=""))
    """Name of the agent; empty for the run's promoted student, or `base`."""
    run: Path | None = None
    """Run folder with students and trajectories; None for a temporary one."""
    base_url: str = Field(default_factory=from_env("OPENAI_BASE_URL", default=""))
    api_key: SecretStr = Field(default_factory=secret_from_env("OPENAI_API_KEY", default=""))
    max_retries: int = 5
    """Retries at that endpoint; a `client` has its own."""
    checker: SkipValidation[Checker] = Field(default_factory=lambda: RuleChecker({}))
    policy: Policy | None = None
    """What untrusted text may reach. With one, what tools and assistants said in a conversation is
    untrusted data."""
    limits: Limits = Limits()
    votes: VotePolicy = VotePolicy(max_votes=1)
    temperature: float | None = None
    """Of retries and of all votes but the first, which is greedy; None for that of `votes`."""
    max_tokens: int = 512
    """Tokens of one copy's answer."""
    seed: int = 0
    stop: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Texts before which the accepted answer is cut; the copies do not see them."""
    timeout: float | None = None
    """Maximum seconds of one whole answer."""
    unaccepted: Literal["raise", "return"] = "raise"
    """Whether the best answer that was not accepted is an error, or a reply with its `status`."""
    tree_events: bool = False
    """Whether a stream first yields a chunk without text for each event of the growing tree, under
    `additional_kwargs["reflux_events"]`."""
    streaming: bool = False
    """Whether `invoke` uses the stream."""

    model_config = ConfigDict(extra="forbid")
    _agent: Agent = PrivateAttr()

    def model_post_init(self, _: Any, /) -> None:
        """Create the agent; it opens nothing before the first question."""
        key = self.api_key.get_secret_value()
        env = {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": key}
        self._agent = Agent(self.client, self.run, env, retries=self.max_retries)

    def tree(self, trajectory: str) -> Node:
        """The tree behind a reply, by the `trajectory` of its `response_metadata`.

        Raises:
            UsageError: there is no such trajectory.
        """
        with closing(self._agent.folder.store()) as store:
            return load_tree(store, trajectory)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> NoReturn:
        """
        Raises:
            NotImplementedError: always; overseer and copies have the tools granted to them.
        """
        raise NotImplementedError(
            "AmplifiedChatModel binds no tools: the whole tree answers, so no single reply could "
            "call one; grant tools to the copies (`reflux.amplify(…, tools=…)`), or bind yours to "
            "another model"
        )

    async def aclose(self) -> None:
        """Close what this event loop's calls have opened: the engine, the trajectories."""
        await self._agent.close()

    def close(self) -> None:
        _wait_for(self._agent.close())

    def _generate(
        self, messages: list[BaseMessage], stop: Stop = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return _wait_for(self._agenerate(messages, stop, **kwargs))

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Stop = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        message = AIMessage(**await self._reply(messages, stop, silent, kwargs))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: list[BaseMessage], stop: Stop = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        chunks: Any = self._astream(messages, stop, **kwargs)
        try:
            while (chunk := _wait_for(_next(chunks))) is not None:
                yield chunk
        finally:
            _wait_for(chunks.aclose())

    async def _astream(
        self, messages: list[BaseMessage], stop: Stop = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        events: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        emit = events.put_nowait if self.tree_events else silent
        reply = asyncio.create_task(self._reply(messages, stop, emit, kwargs))
        reply.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                fields = {"reflux_events": [dict(event)]}
                yield ChatGenerationChunk(
                    message=AIMessageChunk(content="", additional_kwargs=fields)
                )
            message = AIMessageChunk(**(await reply), chunk_position="last")
        finally:
            reply.cancel()
            await asyncio.gather(reply, return_exceptions=True)
        yield ChatGenerationChunk(message=message)

    async def _reply(
        self, messages: Sequence[BaseMessage], stop: Stop, emit: Emit, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The fields of the message that answers."""
        question = question_of(messages, marked=self.policy is not None)
        opened = self._agent.open()
        context = self._context(opened.recorded_client, emit, options)
        origin = Origin.new(opened.folder.id, "chat")
        trajectory = origin.question_id(redact(question))
        try:
            async with asyncio.timeout(self.timeout):
                asked_with = AskOptions.of(context, name_of(context.overseers[0]))
                answered = await ask(context, question, origin, options=asked_with)
        except TimeoutError as error:
            raise RefluxError(
                f"no answer in {self.timeout:g} s (trajectory {trajectory}); raise timeout, or "
                "lower limits"
            ) from error
        outcome = cast(Outcome, answered.check_endpoint().outcome)
        read, written = tokens_of(opened.store, trajectory)
        return {
            "content": cut_at(self._accepted(outcome, trajectory), stop or self.stop),
            "usage_metadata": UsageMetadata(
                input_tokens=read, output_tokens=written, total_tokens=read + written
            ),
            "response_metadata": {
                "model_name": context.model,
                "finish_reason": "length" if outcome["status"] == "truncated" else "stop",
                "trajectory": trajectory,
                "status": outcome["status"],
                "spent": dict(outcome["spent"]),
            },
        }

    def _context(
        self, recorded_client: RecordedClient, emit: Emit, options: Mapping[str, Any]
    ) -> AmplifyContext:
        if unknown := set(options) - OPTIONS:
            raise UsageError(
                f"the amplified system takes no {', '.join(sorted(unknown))}; a call may set "
                f"{', '.join(sorted(OPTIONS))}"
            )
        temperature = options.get("temperature", self.temperature)
        has_own = temperature is not None
        overseers = overseers_of(self.overseer)
        return AmplifyContext(
            recorded_client,
            self._agent.name(options.get("model") or self.model),
            overseers,
            weighing=default_weighing(overseers[0], self.limits),
            checker=self.checker,
            limits=self.limits,
            votes=replace(self.votes, temperature=temperature) if has_own else self.votes,
            max_tokens=options.get("max_tokens", self.max_tokens),
            seed=options.get("seed", self.seed),
            policy=self.policy,
            emit=emit,
        )

    def _accepted(self, outcome: Outcome, trajectory: str) -> str:
        answer, status = outcome["answer"], outcome["status"]
        if answer is not None and (is_accepted(status) or self.unaccepted == "return"):
            return answer
        best = "" if answer is None else f"; unaccepted='return' gives the best so far, {answer!r}"
        why = f": {outcome['error']}" if outcome["error"] else ""
        raise RefluxError(f"{status}{why} (trajectory {trajectory}){best}")

    @property
    def _llm_type(self) -> str:
        return "reflux-amplified"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        plain = self.model_dump(include={"model", "temperature", "max_tokens", "seed", "stop"})
        return plain | {
            "client": type(self.client).__name__,
            "run": str(self.run),
            "base_url": self.base_url,
            "overseers": [each.name for each in overseers_of(self.overseer)],
            "checker": type(self.checker).__name__,
            "limits": asdict(self.limits),
            "votes": asdict(self.votes),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "reflux"
        return params


async def _next(chunks: AsyncIterator[ChatGenerationChunk]) -> ChatGenerationChunk | None:
    return await anext(chunks, None)


@cache
def _sync_loop() -> asyncio.AbstractEventLoop:
    """An event loop in a separate thread, which ends with the program.

    `asyncio.run` fails if a loop is running, as in a notebook, and closes what a call has opened.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=SYNC, daemon=True).start()
    return loop


def _wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine there and wait for it; interrupting the wait cancels it.

    Raises:
        UsageError: called from the loop itself, which would wait forever.
    """
    if threading.current_thread().name == SYNC:
        work.close()
        raise UsageError("a sync call from within a sync call would wait forever: await it")
    future = asyncio.run_coroutine_threadsafe(work, _sync_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
