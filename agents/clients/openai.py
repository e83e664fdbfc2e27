"""One client for every endpoint that speaks the OpenAI chat protocol."""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import httpx2
import openai
from openai import AsyncOpenAI

from reflux.agents.clients.adaptation import RENAMED, THINKING, Adaptation, Thinking
from reflux.agents.clients.chat_protocol import may_call, request_body
from reflux.agents.clients.chat_replies import PartialReply, read_reply, read_stream
from reflux.agents.clients.connections import Chunks, connection_remedy, http_client
from reflux.agents.clients.reasoning import OPENS_IN_TEMPLATE, ReasoningSplitter
from reflux.agents.clients.refusals import (
    NEVER_CONNECTS,
    Refusal,
    ReplyError,
    missing_remedy,
    names_in,
    remedy_of,
)
from reflux.agents.clients.retries import (
    TIMEOUT,
    TOTAL_TIMEOUT,
    RetryingClient,
    RetryPolicy,
    worth_retrying,
)
from reflux.agents.redaction import PLACEHOLDER
from reflux.agents.types import ChatRequest, Completion, Pieces, in_one_piece

POOL = 16
"""Concurrent requests in one connection pool, which looks at all of them for each request."""


class OpenAIClient(RetryingClient):
    """Completes chats through the `openai` package, with our own retries.

    The package's retries are off, so that each retry is recorded and any Retry-After is honored.
    """

    errors = (openai.OpenAIError, ReplyError, httpx2.HTTPError, TimeoutError)

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        concurrency: int = 16,
        timeout: float = 120.0,
        total_timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 0.5,
        thinking: Thinking = "auto",
        extra_body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
        names: tuple[str, str] = ("OPENAI_BASE_URL", "OPENAI_API_KEY"),
        embedded: bool = False,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        """
        Args:
            concurrency: maximum concurrent requests to this endpoint.
            timeout: seconds of one try without a byte.
            total_timeout: seconds of one try in all.
            retries: maximum tries after the first.
            backoff: see `RetryPolicy`.
            thinking: whether models that can reason are to; `auto` leaves it to the server.
            extra_body: fields that this endpoint takes beyond the protocol.
            headers, query: go with each request, such as Azure's `api-version`.
            names: where the user set the URL and the key, for messages.
            embedded: the endpoint is our own engine. It refuses no setting, and receives empty
                system messages, too: see `reflux.agents.prompts`.
        """
        super().__init__(
            concurrency, timeout, RetryPolicy(retries, backoff, sleep), first_alone=not embedded
        )
        self.base_url = base_url
        self._key = api_key
        self._connect = partial(
            AsyncOpenAI, base_url=base_url, api_key=api_key, default_headers=headers,
            default_query=query, max_retries=0, timeout=timeout,
        )  # fmt: skip
        self._total_timeout = total_timeout
        self._clients: dict[AsyncOpenAI, int] = {}
        """Each with its own connections, and its current requests."""
        self._extra_body = {**THINKING[thinking], **(extra_body or {})}
        self._fixed = frozenset(extra_body or ())
        self._settings = {"thinking": thinking, **(extra_body or {})}
        self._names, self._embedded = names, embedded
        self._adaptations: dict[str, Adaptation] = {}

    def adaptation(self, model: str) -> Adaptation:
        """What the endpoint refused for a model so far, and what is sent instead."""
        return self._adaptations.setdefault(
            model, Adaptation(opens_in_template=bool(OPENS_IN_TEMPLATE.search(model)))
        )

    async def stream(self, request: ChatRequest) -> Pieces:
        """Answer one request piece by piece; retries stop once the first piece has arrived.

        Raises:
            EndpointError: as `complete`, or the stream broke off.
            UsageError: the request is not valid Unicode.
        """
        failures: list[str] = []
        started = False

        def may_retry(error: BaseException) -> bool:
            return not started and self._retries(error)

        with self._explained(request.model, failures, request):
            async for attempt in self._policy.retrying(may_retry):
                with attempt:
                    async with self._turn(request):
                        failed = None
                        while failed is None or (failed.adapted and not started):
                            with self._noted(request, failures) as failed:
                                pieces = self._pieces(request, failures)
                                async with aclosing(pieces):
                                    async for piece in pieces:
                                        started = True
                                        yield piece
                                return
                        raise failed.error

    def _body(self, request: ChatRequest, stream: bool = False) -> dict[str, Any]:
        """What the protocol asks to send, before any adaptation."""
        body = request_body(request)
        if not self._embedded:
            said = [m for m in body["messages"] if m["role"] != "system" or m["content"]]
            body["messages"] = said or body["messages"]
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body | self._extra_body

    async def _send(self, request: ChatRequest) -> Completion:
        if self.adaptation(request.model).streams_only:
            *_, last = [piece async for piece in self._pieces(request, [])]
            return cast(Completion, last)
        # `chat.completions.create` would walk the whole body and the reply by their types.
        with self._sending(request, self._body(request)) as (client, body):
            async with asyncio.timeout(self._total_timeout):
                reply = await client.post("/chat/completions", cast_to=bytes, body=body)
            whole = read_reply(reply, may_call(request))
        self.adaptation(request.model).opens_in_template |= whole.splitter.without_opening
        return self._noting(request, whole.completion())

    async def _pieces(self, request: ChatRequest, failures: list[str]) -> Pieces:
        start = time.perf_counter()
        adaptation = self.adaptation(request.model)
        if "stream" in adaptation.replaced:
            for piece in in_one_piece(await self._send(request)):
                yield piece
            return
        with self._sending(request, self._body(request, stream=True)) as (client, body):
            chunks = await client.post(
                "/chat/completions", cast_to=object, body=body, stream=True, stream_cls=Chunks
            )
            splitter = ReasoningSplitter(opened=adaptation.opens_in_template)
            so_far = PartialReply(splitter, may_call=may_call(request))
            async with chunks:
                if (whole := await chunks.whole()) is not None:
                    for piece in in_one_piece(read_reply(whole, so_far.may_call).completion()):
                        yield piece
                    return
                pieces = read_stream(chunks, start, tuple(failures), so_far, lambda: chunks.done)
                async with aclosing(pieces):
                    async for piece in pieces:
                        if time.perf_counter() - start > self._total_timeout:
                            raise TimeoutError
                        if isinstance(piece, Completion):
                            piece = self._noting(request, piece)
                        yield piece
        adaptation.opens_in_template |= splitter.without_opening

    def _noting(self, request: ChatRequest, reply: Completion) -> Completion:
        """The reply without our key, and with notes on what was sent otherwise than asked."""
        notes = (*self.adaptation(request.model).lines(), *reply.notes)
        if self._settings["thinking"] == "off" and reply.reasoning:
            notes = (*notes, "the model reasons although --thinking is off")
        text, reasoning = map(self._without_key, (reply.text, reply.reasoning))
        return replace(reply, text=text, reasoning=reasoning, notes=notes)

    @contextmanager
    def _sending(
        self, request: ChatRequest, asked: dict[str, Any]
    ) -> Iterator[tuple[AsyncOpenAI, dict[str, Any]]]:
        """A client with room and the body to send; an error remembers the body that it refuses."""
        body = self._adapted(request, asked)
        with self._client() as client:
            try:
                yield client, body
            except self.errors as error:
                vars(error)["bodies"] = asked, body
                raise

    def _adapted(self, request: ChatRequest, asked: dict[str, Any]) -> dict[str, Any]:
        """The body as the endpoint takes it; what the caller names in `extra` is never left out."""
        fixed = {"response_format"} if "stream" in asked and request.schema else set[str]()
        fixed |= request.extra_fields().keys() - self._extra_body.keys()
        body = self.adaptation(request.model).apply(asked)
        return body | {name: asked[name] for name in fixed}

    @contextmanager
    def _client(self) -> Iterator[AsyncOpenAI]:
        """The first client with room, so that a small load keeps few connections open."""
        free = (client for client, requests in self._clients.items() if requests < POOL)
        client = next(free, None) or self._connect(http_client=http_client(self.base_url))
        self._clients[client] = self._clients.get(client, 0) + 1
        try:
            yield client
        finally:
            self._clients[client] -= 1

    def _adapts(self, error: Exception, request: ChatRequest) -> bool:
        refusal = Refusal.of(error)
        # A key may lack the right to a field alone.
        is_final = refusal.kind in ("key", "quota", "too_long") and refusal.status != 403
        if "bodies" not in vars(error) or is_final:
            return False
        asked, sent = vars(error)["bodies"]
        if self._adapted(request, asked) != sent:
            return True  # A request at the same time has learned it.
        kept = (self._fixed - RENAMED.keys()) | request.extra_fields().keys()
        if "stream" in sent:  # Its reader has asked for the form, and gets it or an error.
            kept |= {"response_format"}
        free = {name: value for name, value in sent.items() if name not in kept}
        adaptation = self.adaptation(request.model)
        if adaptation.learn(refusal.status, refusal.words, names_in(refusal.body), free):
            streams = adaptation.streams_only and "stream" not in sent
            return streams or self._adapted(request, asked) != sent
        if "response_format" in free and refusal.status in (400, 422):
            # Servers word a refused schema in many ways; the parser of replies takes free text.
            adaptation.replaced["response_format"] = ""
            return True
        return False

    def _worth_retrying(self, error: BaseException) -> bool:
        if not isinstance(error, self.errors) or type(error) is TimeoutError:
            return False
        refusal = Refusal.of(error)
        if refusal.kind in ("key", "quota", "too_long", "missing", "page"):
            return False
        if refusal.status is None:
            # Connection errors, time-outs and garbled replies pass; a wrong address does not.
            return not NEVER_CONNECTS.search(str(error.__cause__))
        return refusal.status != 501 and (refusal.kind == "busy" or worth_retrying(error))

    def _address(self, model: str) -> str:
        return "the embedded engine" if self._embedded else self.base_url

    def _text_of(self, error: Exception) -> str:
        text = Refusal.of(error).words or str(error)
        # "Connection error." alone does not distinguish a refused connection from a dropped one.
        if isinstance(error, openai.APIConnectionError):
            text = f"{error} ({error.__cause__})"
        if type(error) is TimeoutError:
            text = f"no whole reply in {self._total_timeout:g} s"
        return self._without_key(text)

    def _without_key(self, text: str) -> str:
        """What an endpoint said, without the key that it was shown."""
        return text.replace(self._key, PLACEHOLDER) if len(self._key) > 7 else text

    def _remedy(self, error: Exception, model: str) -> str:
        if type(error) is TimeoutError:
            return f"raise {TOTAL_TIMEOUT}, or lower --max-tokens"
        if isinstance(error, openai.APITimeoutError):
            return f"no byte in {self._timeout:g} s: raise {TIMEOUT}, or ask less at once"
        if self._embedded:
            if not self._too_long(error):
                return "`reflux doctor` tests it"
            return "shorten the question, or raise llama_cpp.context of the config"
        url, key = self._names
        if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
            return connection_remedy(str(error.__cause__), self.base_url, url)
        refusal = Refusal.of(error)
        if refused := sorted(self._fixed & set(names_in(refusal.body))):
            return f"leave {', '.join(refused)} out of --extra-body"
        if refusal.kind in ("missing", "page"):
            response = error.response if isinstance(error, openai.APIStatusError) else None
            moved = str(response.url) if response is not None and response.history else ""
            return missing_remedy(refusal, self.base_url, url, moved)
        limited = f": may it use {model}?" if refusal.status == 403 else ""
        return remedy_of(refusal, key, limited)

    async def model_digest(self, model: str) -> str:
        """Endpoint, name and settings, because a remote endpoint does not say what weights it
        serves."""
        digest = f"{self.base_url}#{model}"
        if self._settings == {"thinking": "auto"}:
            return digest
        settings = json.dumps(self._settings, sort_keys=True).encode()
        return f"{digest}#{hashlib.sha256(settings).hexdigest()[:8]}"

    async def models(self) -> list[str]:
        """Names of the models that the endpoint serves.

        Raises:
            EndpointError: the endpoint does not answer.
        """
        failures: list[str] = []
        with self._explained("", failures):
            try:
                with self._client() as client:
                    return [model.id async for model in client.models.list()]
            except self.errors as error:
                failures.append(self._one_line(error))
                raise
            except (AttributeError, TypeError, ValueError) as error:  # The package's own reading.
                failures.append("the list of models is no list of models")
                raise ReplyError(failures[-1]) from error

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
