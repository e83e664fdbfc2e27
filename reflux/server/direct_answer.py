"""A chat request answered by one model, which goes on with the conversation."""

from collections.abc import Sequence

from reflux.agents.redaction import redact
from reflux.agents.types import ChatRequest as ModelRequest
from reflux.agents.types import Sampling
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.conversation import answer_chat
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.server.chat_reply import AnswerPart, Emit, Reply, question_source, seed_of
from reflux.server.chat_request import ChatRequest, Message, text_of, turn_of
from reflux.server.running_answer import Put
from reflux.server.settings import ServeSettings


class DirectAnswer:
    """One model goes on with the conversation."""

    def __init__(
        self, run: OpenRun, settings: ServeSettings, model: str, request: ChatRequest
    ) -> None:
        self._run = run
        self._asked = question_source(run)
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
            max_tokens=said.token_limit or settings.max_tokens,
            top_logprobs=max(1, said.top_logprobs or 0) if said.logprobs else 0,
            seed=(seed_of(said) + at) % 2**32,
            stop=said.stops,
        )
        tools = said.tools if said.tools and said.tool_choice != "none" else ()
        specs = tuple(tool.spec() for tool in tools)
        return ModelRequest(model, turns, sampling, at, specs, said.schema_text)

    async def answer(self, put: Put[AnswerPart], emit: Emit) -> Reply:
        """Put the pieces, where they are streamed."""
        replies = await answer_chat(
            RecordedClient(self._run.cache, self._run.store),
            self._asked,
            self._question,
            self._whole,
            hear=(lambda at, delta: put((at, delta))) if self._request.stream else None,
            emit=emit,
        )
        asked = sum(reply.prompt_tokens for reply in replies)
        said = sum(reply.completion_tokens for reply in replies)
        return Reply(replies, asked, said, bool(self._request.stream))


def _conversation(messages: Sequence[Message]) -> str:
    """What is shown for a conversation; the call holds the messages themselves."""
    if len(messages) == 1:
        return text_of(messages[0].content)
    return "\n\n".join(f"{message.role}: {text_of(message.content)}" for message in messages)
