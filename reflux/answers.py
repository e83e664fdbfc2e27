"""From a chat request to its answer: by one model, or by H with copies of X."""

import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import convert_to_messages

from agents.errors import UsageError
from agents.screen import redact
from agents.streaming import Delta
from agents.types import ChatRequest as ModelRequest
from agents.types import Completion, Sampling
from finetune.run_folder import OpenRun
from graphs.amplify import begin, screened
from graphs.calls import Caller
from graphs.chat import answer_chat
from graphs.events import Event
from graphs.state import AmplifyContext, Outcome
from graphs.systems import Amplified, Asked, answer_all, task_context
from graphs.tree import tokens_of
from graphs.voting import Variant, VotePolicy
from reflux.api_errors import ApiError
from reflux.conversation import cut_at, question_of
from reflux.openai_api import ChatRequest, Message, text_of, turn_of
from reflux.serve_settings import ServeSettings
from reflux.served_models import Tree
from reflux.work import Put


@dataclass(frozen=True)
class Reply:
    """The whole answer: its choices, and the tokens that all of it took."""

    choices: Sequence[Completion]
    prompt_tokens: int
    completion_tokens: int
    streamed: bool = False
    """Whether its text was said in pieces already."""


Said = str | tuple[int, Delta] | Reply
"""A thought, a piece of the choice at a position, and last the reply."""
Emit = Callable[[Event], None]


class DirectAnswer:
    """One model goes on with the conversation."""

    def __init__(
        self, run: OpenRun, settings: ServeSettings, model: str, request: ChatRequest
    ) -> None:
        self._run = run
        self._asked = asked_anew(run)
        self._question = _conversation(request.messages)
        self._request = request
        self._whole = [self._asking(settings, model, at) for at in range(request.n or 1)]
        self.trajectory = self._asked.question_id(redact(self._question))
        self.model = model

    def _asking(self, settings: ServeSettings, model: str, at: int) -> ModelRequest:
        said = self._request
        turns = tuple(map(turn_of, said.messages))
        if turns[0][0] != "system":  # Templates add one of their own where none is given.
            turns = (("system", ""), *turns)
        sampling = Sampling(
            temperature=said.temperature or 0.0,
            max_tokens=said.most_tokens or settings.max_tokens,
            top_logprobs=max(1, said.top_logprobs or 0) if said.logprobs else 0,
            seed=(_seed(said) + at) % 2**32,
            stop=said.stops,
        )
        tools = said.tools if said.tools and said.tool_choice != "none" else ()
        specs = tuple(tool.spec() for tool in tools)
        return ModelRequest(model, turns, sampling, at, specs, said.schema_text)

    async def answer(self, put: Put[Said], emit: Emit) -> Reply:
        """Put the pieces, where they are streamed."""
        replies = await answer_chat(
            Caller(self._run.cache, self._run.store),
            self._asked,
            self._question,
            self._whole,
            hear=(lambda at, delta: put((at, delta))) if self._request.stream else None,
            emit=emit,
        )
        asked = sum(reply.prompt_tokens for reply in replies)
        said = sum(reply.completion_tokens for reply in replies)
        return Reply(replies, asked, said, bool(self._request.stream))


class TreeAnswer:
    """H answers, with many copies of X; the text is said when it is accepted."""

    def __init__(
        self, run: OpenRun, settings: ServeSettings, tree: Tree, x: str, request: ChatRequest
    ) -> None:
        """
        Raises:
            ApiError: it is asked for what a tree cannot give.
            UsageError: the question cannot be asked.
        """
        for name in _not_amplified(request):
            raise ApiError(
                400,
                f"{name}: the amplified system cannot give this; leave it out, or ask `base`, a "
                "student or an endpoint's model",
                param=name,
            )
        self._run = run
        self._asked = asked_anew(run, tree.task.name if tree.task else "")
        self._task = tree.task
        self._stops = request.stops
        self.question = redact(_question(tree, request.messages))
        self.trajectory = self._asked.question_id(self.question)
        self.model = x
        self.context = _context(run, settings, tree, x, request)
        if (reason := screened(begin(self.question, "", self.context), self.context)) is not None:
            raise UsageError(f"{reason}; ask another")

    async def answer(self, put: Put[Said], emit: Emit) -> Reply:
        """Let the tree grow until its answer is accepted.

        Raises:
            EndpointError: X or H could not be asked.
            ApiError: no answer was accepted.
        """
        context = replace(self.context, emit=emit)
        (outcome,) = await answer_all(Amplified(context), self._asked, [self.question])
        return self._reply(outcome)

    def _reply(self, outcome: Outcome) -> Reply:
        if outcome["status"] == "failed" and self.context.caller.outage is not None:
            raise self.context.caller.outage
        answer = outcome["answer"]
        if outcome["status"] != "ok" or answer is None:
            best = "" if answer is None else f"; the best so far: {answer}"
            raise ApiError(
                422,
                f"no answer was accepted ({outcome['status']}: {outcome['error']}){best} "
                f"(trajectory {self.trajectory})",
                "not_accepted",
                code=outcome["status"],
            )
        if self._task is not None:
            answer = self._task.to_user(self.question, answer)
        text = cut_at(answer, self._stops)
        return Reply([Completion(text)], *tokens_of(self._run.store, self.trajectory))


def asked_anew(run: OpenRun, task: str = "") -> Asked:
    """Where a served question comes from: each is a trajectory of its own."""
    return Asked(run.folder.name, -1, f"serve-{uuid.uuid4().hex[:12]}", task, "asked")


def _context(
    run: OpenRun, settings: ServeSettings, tree: Tree, x: str, request: ChatRequest
) -> AmplifyContext:
    votes = VotePolicy() if tree.task else VotePolicy(most=1)
    if (heat := request.temperature) is not None:
        votes = replace(votes, temperature=heat, variants=(Variant(temperature=heat),))
    context = AmplifyContext(
        Caller(run.cache, run.store),
        x,
        (tree.overseer,) if tree.overseer is not None else (),
        limits=settings.limits,
        votes=votes,
        seed=_seed(request),
        max_tokens=request.most_tokens or settings.max_tokens,
    )
    if tree.task is None:
        return context
    context = task_context(context, tree.task)
    most = request.most_tokens
    return context if most is None else replace(context, max_tokens=most)


def _question(tree: Tree, messages: Sequence[Message]) -> str:
    if tree.task is not None:
        # A task's questions stand alone, in the task's own form.
        return tree.task.from_user(text_of(messages[-1].content))
    plain = [_plain(message) for message in messages]
    return question_of(convert_to_messages(plain))


def _plain(message: Message) -> dict[str, Any]:
    """A message as LangChain reads it, its content as one text."""
    kept = message.model_dump(include={"role", "name", "tool_calls", "tool_call_id"})
    present = {key: value for key, value in kept.items() if value is not None}
    return present | {"content": text_of(message.content)}


def _conversation(messages: Sequence[Message]) -> str:
    """What is shown for a conversation; the call holds the messages themselves."""
    if len(messages) == 1:
        return text_of(messages[0].content)
    return "\n\n".join(f"{message.role}: {text_of(message.content)}" for message in messages)


def _not_amplified(request: ChatRequest) -> list[str]:
    """What of a request only a model that answers alone can give."""
    asked = {
        "response_format": request.schema_text,
        "logprobs": request.logprobs,
        "tools": request.tools,
        "n": (request.n or 1) > 1,
    }
    return [name for name, value in asked.items() if value]


def _seed(request: ChatRequest) -> int:
    """The seed that is given; where replies are drawn and none is, one that is drawn, too."""
    if request.seed is not None:
        return request.seed
    return secrets.randbelow(2**31) if request.temperature else 0
