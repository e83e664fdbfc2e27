"""A table of how OpenAI-compatible endpoints behave, and what Reflux must make of each.

    with serve(BEHAVIORS["think block"]) as served:
        ...  # served.url, served.requests

The words of refusals are those of real servers, as their users quote them.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tests.support.endpoint_server import Asked, Reply, Respond, Served, serving

THOUGHT = "The user wants the capital of Peru. Bogota? No."
ANSWER = "Lima"
CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}


@dataclass(frozen=True)
class Behavior:
    """What a server does, and what the product must give."""

    name: str
    does: str
    respond: Respond
    text: str = ANSWER
    """The answer."""
    reasoning: str = ""
    finish: str = "stop"
    notes: str = ""
    """What the notes on the record hold."""
    error: str = ""
    """A regular expression that the one message matches; empty where an answer comes."""
    requests: int | None = None
    """How often the server is asked for one answer, all retries included, where that matters."""
    tools: bool = False
    """The client grants a tool."""
    schema: bool = False
    """The client asks for JSON under a schema."""
    streams: bool = True
    """The client may ask for the same as a stream."""
    whole: bool = True
    """A whole reply shows the behavior, too; otherwise it is an ordinary answer."""
    sent: Callable[[dict[str, Any]], bool] | None = None
    """What holds for the last body that the server got."""
    path: str = ""
    """Of the base URL, instead of /v1."""

    @property
    def truncated(self) -> bool:
        return self.finish == "length"


def serve(behavior: Behavior) -> AbstractContextManager[Served]:
    """The behavior's server, until the block ends."""
    return serving(behavior.respond)


def sse(*events: Any, done: bool = True, end: str = "\n\n", **reply: Any) -> Reply:
    """Events of a stream, each a write of its own."""
    texts = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    texts += ["data: [DONE]"] if done else []
    body = [f"{text}{end}".encode() for text in texts]
    return Reply(body, headers={"content-type": "text/event-stream"}, **reply)


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [choice], **more}


def whole(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    return {"object": "chat.completion", "choices": [choice], "usage": usage, **more}


def pieces(text: str, size: int = 3) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def says(content: Any = ANSWER, finish: str = "stop", **fields: Any) -> Respond:
    """Answer with a message, whole or in pieces as the request asks."""

    def respond(asked: Asked) -> Reply:
        if not asked.streams:
            return Reply(whole({"content": content, **fields}, finish))
        chunks = [chunk({"role": "assistant", "content": ""})]
        for name, value in fields.items():
            texts = pieces(value) if isinstance(value, str) else [value]
            chunks += [chunk({name: text}) for text in texts]
        texts = pieces(content) if isinstance(content, str) else [content]
        chunks += [chunk({"content": text}) for text in texts]
        return sse(*chunks, chunk({}, finish))

    return respond


def fails(status: int, body: Any, times: int = 10**6, **headers: str) -> Respond:
    """Refuse every request, or the first ones."""
    kind = "application/json" if isinstance(body, dict | list) else "text/plain"
    fields = {"content-type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}

    def respond(asked: Asked) -> Reply:
        if asked.number < times:
            return Reply(body, status, headers=fields)
        return says()(asked)

    return respond


def refuses(
    has: Callable[[dict[str, Any]], bool], status: int, body: Any, then: Respond | None = None
) -> Respond:
    """Refuse every request that has something."""

    def respond(asked: Asked) -> Reply:
        if has(asked.body):
            return fails(status, body)(asked)
        return (then or says())(asked)

    return respond


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, "type": "invalid_request_error", "param": None, **more}}


def has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: any(name in body for name in names)


def lacks(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: not any(name in body for name in names)


def has_system(body: dict[str, Any]) -> bool:
    return any(turn["role"] == "system" for turn in body["messages"])


def alternates(body: dict[str, Any]) -> bool:
    roles = [turn["role"] for turn in body["messages"]]
    return roles == [("user", "assistant")[i % 2] for i in range(len(roles))]


def _reasoning() -> Iterator[Behavior]:
    """The model's reasoning, wherever a server puts it."""
    texts = {
        "think block": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
        "think block without its opening tag": f"{THOUGHT}\n</think>\n\n{ANSWER}",
        "thinking block": f"<thinking>{THOUGHT}</thinking>{ANSWER}",
        "thought block": f"<thought>{THOUGHT}</thought>{ANSWER}",
        "reasoning block": f"<reasoning>{THOUGHT}</reasoning>{ANSWER}",
        "seed think block": f"<seed:think>{THOUGHT}</seed:think>{ANSWER}",
        "upper-case block": f"<THINK>{THOUGHT}</THINK>{ANSWER}",
        "Mistral's block": f"[THINK]{THOUGHT}[/THINK]{ANSWER}",
        "Kimi's block": f"◁think▷{THOUGHT}◁/think▷{ANSWER}",
        "Cohere's block": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|>"
        f"<|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        "Gemma's channel": f"<|channel>thought\n{THOUGHT}<channel|>{ANSWER}",
        "harmony channels": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{ANSWER}<|return|>",
        "harmony without markers": f"analysis{THOUGHT}assistantfinal{ANSWER}",
        "two blocks": f"<think>{THOUGHT}</think>\n<think></think>{ANSWER}",
    }
    for name, text in texts.items():
        yield Behavior(name, "reasons within the content", says(text), reasoning=THOUGHT)
    yield Behavior(
        "empty think block", "is told not to think", says(f"<think>\n\n</think>\n\n{ANSWER}")
    )
    for name in ("reasoning_content", "reasoning"):
        respond = says(**{name: THOUGHT})
        yield Behavior(f"field {name}", "has a field for reasoning", respond, reasoning=THOUGHT)
    objects: dict[str, Any] = {
        "reasoning as an object": {"reasoning": {"content": THOUGHT}},
        "reasoning_details": {
            "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT, "index": 0}]
        },
        "summary in reasoning_details": {
            "reasoning_details": [{"type": "reasoning.summary", "summary": THOUGHT}]
        },
    }
    for name, fields in objects.items():
        yield Behavior(name, "gives reasoning a structure", says(**fields), reasoning=THOUGHT)
    parts: dict[str, Any] = {
        "thinking part": {"type": "thinking", "thinking": THOUGHT},
        "nested thinking part": {
            "type": "thinking",
            "thinking": [{"type": "text", "text": THOUGHT}],
        },
        "reasoning part": {"type": "reasoning", "text": THOUGHT},
        "summary part": {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": THOUGHT}],
        },
    }
    for name, part in parts.items():
        content = [part, {"type": "text", "text": ANSWER}]
        yield Behavior(name, "sends content as parts", says(content), reasoning=THOUGHT)
    cut = "the token limit cut the reply before its answer began"
    yield Behavior(
        "unclosed block",
        "is cut while it thinks",
        says(f"<think>{THOUGHT}", "length"),
        text="",
        reasoning=THOUGHT,
        finish="length",
        notes=cut,
    )
    yield Behavior(
        "unclosed block, finish stop",
        "ends within its reasoning",
        says(f"<think>{THOUGHT}"),
        text="",
        reasoning=THOUGHT,
        finish="length",
        notes=cut,
    )
    yield Behavior(
        "cut in reasoning_content",
        "is cut while it thinks",
        says("", "length", reasoning_content=THOUGHT),
        text="",
        reasoning=THOUGHT,
        finish="length",
        notes=cut,
    )
    quoted = "Models wrap thoughts in `<think>` and `</think>`; then comes the answer."
    yield Behavior("quoted tags", "explains the tags", says(quoted), text=quoted)
    code = "Parse it so:\n```python\ntext.split('</think>')\n```"
    yield Behavior("tag in code", "writes code about a tag", says(code), text=code)
    html = "<b>Lima</b> is <i>it</i>"
    yield Behavior("HTML answer", "answers in HTML", says(html), text=html)


OPENAI_TOKENS = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead."
)
OPENAI_ZERO = (
    "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) "
    "value is supported."
)


def extra(*names: str, words: str = "Extra inputs are not permitted") -> dict[str, Any]:
    """FastAPI's body for fields that are forbidden."""
    items = [{"type": "extra_forbidden", "loc": ["body", n], "msg": words} for n in names]
    return {"detail": items}


def jinja(words: str) -> dict[str, Any]:
    """llama.cpp's body for a chat template that raises."""
    text = (
        f"\n------------\nWhile executing CallExpression at line 19, column 27 in source:\n{words}"
    )
    return {"error": {"code": 500, "message": text, "type": "server_error"}}


def _refused_fields() -> Iterator[Behavior]:
    """Fields that a server refuses by name."""
    renamed = has("max_completion_tokens")
    table: list[tuple[str, str, int, Any]] = [
        (
            "OpenAI refuses max_tokens",
            "max_tokens",
            400,
            message(OPENAI_TOKENS, param="max_tokens", code="unsupported_parameter"),
        ),
        ("Azure refuses max_tokens", "max_tokens", 400, message(OPENAI_TOKENS)),
        (
            "Copilot refuses max_tokens",
            "max_tokens",
            400,
            {"error": {"message": OPENAI_TOKENS, "code": "invalid_request_body"}},
        ),
        (
            "OpenAI refuses temperature",
            "temperature",
            400,
            message(OPENAI_ZERO, param="temperature", code="unsupported_value"),
        ),
        (
            "TGI refuses temperature",
            "temperature",
            422,
            {
                "error": "Input validation error: `temperature` must be strictly positive",
                "error_type": "validation",
            },
        ),
        (
            "temperature is deprecated",
            "temperature",
            400,
            message("`temperature` is deprecated for this model."),
        ),
        ("seed is forbidden", "seed", 422, extra("seed")),
        (
            "Mistral refuses seed",
            "seed",
            422,
            {"object": "error", "message": extra("seed"), "type": "invalid_request_error"},
        ),
        (
            "Mistral's words as text",
            "seed",
            422,
            {"object": "error", "message": json.dumps(extra("seed")), "code": "1000"},
        ),
        ("seed is unknown", "seed", 400, message("Unrecognized request argument supplied: seed")),
        (
            "Gemini refuses seed",
            "seed",
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "status": "INVALID_ARGUMENT",
                        "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find '
                        "field.",
                    }
                }
            ],
        ),
        ("seed as plain text", "seed", 400, "unknown field: seed"),
        (
            "Groq refuses logprobs",
            "logprobs",
            400,
            message("`logprobs` is not supported with this model"),
        ),
        (
            "Gemini refuses logprobs",
            "logprobs",
            400,
            {
                "error": {
                    "code": 400,
                    "message": "Logprobs is not enabled for models/gemini-2.5-pro",
                    "status": "INVALID_ARGUMENT",
                }
            },
        ),
        ("vLLM without logprobs", "logprobs", 500, message("logprobs are not implemented")),
        (
            "Together refuses logprobs",
            "logprobs",
            422,
            message("logprobs: Expected number, received boolean", param="logprobs"),
        ),
        ("top_logprobs is forbidden", "top_logprobs", 422, extra("top_logprobs")),
        ("501 for logprobs", "logprobs", 501, {"message": "logprobs not implemented"}),
        (
            "404 for logprobs",
            "logprobs",
            404,
            {"detail": "parameter logprobs is not supported on this route"},
        ),
    ]
    for name, field, status, body in table:
        sent = renamed if field == "max_tokens" else lacks(field)
        note = "sent as max_completion_tokens" if field == "max_tokens" else field
        yield Behavior(
            name,
            f"refuses {field} with {status}",
            refuses(has(field), status, body),
            notes=note,
            requests=2,
            sent=sent,
        )
    both = refuses(
        has("max_tokens"),
        400,
        message(OPENAI_TOKENS, param="max_tokens"),
        refuses(
            has("temperature"),
            400,
            message(OPENAI_ZERO, param="temperature"),
            refuses(has("logprobs"), 403, message("You are not allowed to request logprobs")),
        ),
    )
    yield Behavior(
        "a reasoning model of OpenAI",
        "refuses one field after the other",
        refuses(
            has("max_tokens"),
            400,
            message(OPENAI_TOKENS, param="max_tokens"),
            refuses(
                has("temperature"),
                400,
                message(OPENAI_ZERO, param="temperature"),
                refuses(
                    has("logprobs"),
                    400,
                    message(
                        "Unsupported parameter: 'logprobs' is not supported with this model.",
                        param="logprobs",
                    ),
                ),
            ),
        ),
        requests=4,
        sent=lacks("max_tokens", "temperature", "logprobs", "top_logprobs"),
    )
    yield Behavior("403 for a field", "forbids log-probabilities", both, error="OPENAI_API_KEY")
    yield Behavior(
        "neither name of the limit",
        "refuses max_tokens under both names",
        refuses(
            has("max_tokens", "max_completion_tokens"),
            400,
            message("Unknown parameter: max_tokens or max_completion_tokens"),
        ),
        requests=3,
    )
    yield Behavior(
        "many fields at once",
        "names every extra field",
        refuses(has("seed", "logprobs"), 422, extra("seed", "logprobs")),
        requests=3,
    )
    yield Behavior(
        "stream_options is forbidden",
        "refuses stream_options",
        lambda asked: refuses(has("stream_options"), 422, extra("stream_options"))(asked),
        notes="",
        sent=lacks("stream_options"),
    )
    yield Behavior(
        "no streams",
        "refuses to stream",
        refuses(has("stream"), 400, message("Streaming is not supported for this model")),
        sent=lacks("stream"),
    )
    schemas = {
        "no schemas": message("response_format is not supported"),
        "OpenAI's schema": message(
            "Invalid parameter: 'response_format' of type 'json_schema' is "
            "not supported with this model.",
            param="response_format",
        ),
        "schema in own words": {"detail": "This model does not support structured output."},
        "unexplained refusal of a schema": {"error": "Bad Request"},
    }
    for name, body in schemas.items():
        yield Behavior(
            name,
            "refuses a schema",
            refuses(has("response_format"), 400, body),
            schema=True,
            requests=2,
            sent=lacks("response_format"),
            notes="response_format",
        )
    tools = {
        "Ollama without tools": (
            400,
            {"error": "registry.ollama.ai/library/gemma:2b does not support tools"},
        ),
        "vLLM without a tool parser": (
            400,
            message(
                '"auto" tool choice requires '
                "--enable-auto-tool-choice and --tool-call-parser to be set"
            ),
        ),
        "OpenRouter without tools": (
            404,
            {"error": {"code": 404, "message": "No endpoints found that support tool use."}},
        ),
    }
    for name, (status, body) in tools.items():
        yield Behavior(
            name,
            "refuses tools",
            refuses(has("tools"), status, body),
            tools=True,
            requests=2,
            sent=lacks("tools"),
            notes="tools",
        )
    roles: dict[str, tuple[int, Any]] = {
        "Gemma's template": (500, jinja("Error: Jinja Exception: System role not supported")),
        "Gemini's Gemma": (
            400,
            message("Developer instruction is not enabled for models/gemma-3-27b-it"),
        ),
        "vLLM's template": (400, message("System role not supported")),
        "Ministral's template": (
            500,
            jinja("Error: Only user, assistant and tool roles are supported, got system."),
        ),
        "an unsupported role": (
            422,
            {
                "detail": [
                    {
                        "loc": ["body", "messages", 0, "role"],
                        "msg": "value is not a valid enumeration member: 'system'",
                    }
                ]
            },
        ),
        "o1's system message": (
            400,
            message(
                "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
                param="messages[0].role",
            ),
        ),
    }
    for name, (status, body) in roles.items():
        yield Behavior(
            name,
            "refuses a system message",
            refuses(has_system, status, body),
            requests=2,
            sent=lambda body: "Answer briefly." in body["messages"][0]["content"],
            notes="the system message goes into the user turn",
        )
    for status in (400, 500):
        words = "Conversation roles must alternate user/assistant/user/assistant/..."
        body = jinja(f"Error: Jinja Exception: {words}") if status == 500 else message(words)
        yield Behavior(
            f"{status} for roles that do not alternate",
            "wants user and assistant in turns",
            refuses(lambda body: not alternates(body), status, body),
            requests=2,
            sent=alternates,
        )


def _errors() -> Iterator[Behavior]:
    """Errors, in any form, each with one message and its remedy."""
    bodies: dict[str, Any] = {
        "error object": message("the words of the server"),
        "error text": {"error": "the words of the server"},
        "detail text": {"detail": "the words of the server"},
        "detail list": {"detail": [{"loc": ["body", "x"], "msg": "the words of the server"}]},
        "message field": {"message": "the words of the server"},
        "plain text": "the words of the server",
        "list of errors": [{"error": {"message": "the words of the server"}}],
        "errors list": {"errors": [{"message": "the words of the server"}]},
        "provider's words": {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": '{"detail": "the words of the server"}'},
            }
        },
    }
    for name, body in bodies.items():
        yield Behavior(
            f"400 with {name}",
            "refuses the request",
            fails(400, body),
            error=r"at once: 400 .*the words of the server",
            requests=1,
        )
    yield Behavior(
        "400 without a body", "says nothing", fails(400, b""), error="at once: 400", requests=1
    )
    long = message("x" * 100_000)
    yield Behavior(
        "a long error", "says 100 kB", fails(400, long), error=r"\A.{0,900}\Z", requests=1
    )
    secret = message("Incorrect API key provided: sk-abcdefghijklmnopqrstuvwx")
    yield Behavior(
        "401", "refuses the key", fails(401, secret), error=r"redacted.*OPENAI_API_KEY", requests=1
    )
    yield Behavior(
        "401 as text",
        "refuses the key",
        fails(401, "Unauthorized"),
        error="OPENAI_API_KEY",
        requests=1,
    )
    yield Behavior(
        "403",
        "forbids the model",
        fails(403, message("no access")),
        error="OPENAI_API_KEY: may it use m",
        requests=1,
    )
    quota = message(
        "You exceeded your current quota, please check your plan and billing details.",
        code="insufficient_quota",
    )
    for name, status, body in (
        ("429 without quota", 429, quota),
        ("402", 402, {"error": {"message": "Insufficient credits", "code": 402}}),
        ("400 without credit", 400, message("Your credit balance is too low")),
    ):
        yield Behavior(
            name, "has an empty account", fails(status, body), error="credit", requests=1
        )
    lost = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}
    yield Behavior(
        "404 for the model",
        "has no such model",
        fails(404, lost),
        error="reflux doctor",
        requests=1,
    )
    pull = {"error": 'model "m" not found, try pulling it first'}
    yield Behavior(
        "Ollama's 404",
        "has not pulled it",
        fails(404, pull),
        error="pulling it.*doctor",
        requests=1,
    )
    for name, reply in {
        "404 without /v1": Reply({"detail": "Not Found"}, 404),
        "404 page without /v1": Reply("404 page not found", 404, {"content-type": "text/plain"}),
        "405 without /v1": Reply("Method Not Allowed", 405),
        "page with 200": Reply(
            "<!DOCTYPE html><title>Open WebUI</title>", 200, {"content-type": "text/html"}
        ),
        "page with 404": Reply(
            "<html><h1>404 Not Found</h1></html>", 404, {"content-type": "text/html"}
        ),
    }.items():
        yield Behavior(
            name,
            "has another path",
            lambda asked, reply=reply: reply,
            path="/",
            error="is /v1 missing from OPENAI_BASE_URL",
            requests=1,
        )
    lengths = {
        "OpenAI": (
            400,
            message(
                "This model's maximum context length is 8192 tokens. However, your "
                "messages resulted in 9000 tokens.",
                code="context_length_exceeded",
            ),
        ),
        "vLLM": (
            400,
            message(
                "'max_tokens' or 'max_completion_tokens' is too large: 10000. This "
                "model's maximum context length is 8192 tokens and your request has 500 input "
                "tokens"
            ),
        ),
        "llama.cpp": (
            400,
            {
                "error": {
                    "code": 400,
                    "message": "request (576 tokens) exceeds the "
                    "available context size (512 tokens), try increasing it",
                    "type": "exceed_context_size_error",
                    "n_ctx": 512,
                }
            },
        ),
        "llama.cpp with 500": (
            500,
            {
                "error": {
                    "code": 500,
                    "message": "the request exceeds the "
                    "available context size. try increasing the context size",
                }
            },
        ),
        "TGI": (
            422,
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be "
                "<= 4097. Given: 5000"
            },
        ),
        "Anthropic": (400, message("prompt is too long: 208310 tokens > 200000 maximum")),
        "SGLang": (
            400,
            {
                "message": "The input (9000 tokens) is longer than the model's context "
                "length (8192 tokens)."
            },
        ),
        "Gemini": (
            400,
            [
                {
                    "error": {
                        "message": "The input token count (1200000) exceeds the maximum "
                        "number of tokens allowed (1048576)."
                    }
                }
            ],
        ),
        "a proxy": (413, "Request Entity Too Large"),
    }
    for name, (status, body) in lengths.items():
        yield Behavior(
            f"too long for {name}",
            "has a smaller context",
            fails(status, body),
            error="--max-tokens",
            requests=1,
        )
    yield Behavior(
        "an error with 200",
        "is overloaded, and says 200",
        lambda asked: Reply({"error": {"message": "Provider overloaded", "code": 502}}),
        error="after 3 tries.*Provider overloaded",
        requests=3,
    )
    yield Behavior(
        "401 within 200",
        "refuses the key, and says 200",
        lambda asked: Reply({"error": {"message": "No auth", "code": 401}}),
        error="OPENAI_API_KEY",
        requests=1,
    )
    yield Behavior("500 once", "fails once", fails(500, "oops", 1), requests=2)
    yield Behavior(
        "502 page once", "has a broken gateway", fails(502, "<html>502</html>", 1), requests=2
    )
    yield Behavior(
        "503 always",
        "is overloaded",
        fails(503, {"detail": "busy"}),
        error="after 3 tries.*busy",
        requests=3,
    )
    yield Behavior(
        "501", "knows no chat", fails(501, "nope"), error="at once: 501 .*nope", requests=1
    )
    for wait in ("0", "0.01", "-5", "soon", ""):
        yield Behavior(
            f"Retry-After {wait!r}",
            "limits the rate",
            fails(429, "slow", 1, retry_after=wait),
            requests=2,
        )
    for wait in ("86400", "Fri, 31 Dec 2286 23:59:59 GMT"):
        yield Behavior(
            f"Retry-After {wait}",
            "wants to be left alone",
            fails(429, "slow", retry_after=wait),
            error="Retry-After.*120 s",
            requests=1,
        )
    recovers = message("You exceeded your current quota. Please retry in 0.01s.")
    yield Behavior(
        "Gemini's rate limit", "calls a rate limit a quota", fails(429, recovers, 1), requests=2
    )


def _odd_replies() -> Iterator[Behavior]:
    """Replies that bend the protocol."""
    text = {"type": "text", "text": "Li"}, {"type": "text", "text": "ma"}
    yield Behavior("content as parts", "sends a list of text parts", says(list(text)))
    yield Behavior(
        "one part", "sends a part that is no list", says(text[0] | {"text": ANSWER}), streams=False
    )
    for name, content in (("null", None), ("empty", "")):
        respond = says(content, "length")
        yield Behavior(
            f"{name} content, cut",
            "is cut before it answers",
            respond,
            text="",
            finish="length",
            notes="before its answer began",
        )
        yield Behavior(f"{name} content", "answers nothing", says(content), text="")
    yield Behavior(
        "cut answer",
        "is cut within its answer",
        says("Lima is", "length"),
        text="Lima is",
        finish="length",
    )
    yield Behavior(
        "max_tokens as the reason",
        "words a cut as Anthropic does",
        says("Lima is", "max_tokens"),
        text="Lima is",
        finish="length",
    )
    yield Behavior(
        "refusal",
        "declines",
        says(None, refusal="I can't help."),
        text="I can't help.",
        notes="refused",
    )
    for name, body in {
        "no choices": {"id": "x"},
        "empty choices": whole({}) | {"choices": []},
        "null choices": {"choices": None},
        "choice without a message": {"choices": [{"index": 0}]},
    }.items():
        yield Behavior(
            name,
            "sends no answer",
            lambda asked, body=body: Reply(body),
            error="no chat completion|ended before",
            requests=3,
            streams=False,
        )
    yield Behavior(
        "empty body",
        "sends nothing",
        lambda asked: Reply(b""),
        error="no chat completion",
        streams=False,
    )
    for name, finish in (("null", None), ("unknown", "eos_reached")):
        yield Behavior(
            f"{name} finish_reason",
            "has another idea of an end",
            lambda asked, finish=finish: Reply(whole({"content": ANSWER}, finish)),
            finish=finish or "stop",
        )
    for name, usage in {
        "no usage": ...,
        "null usage": None,
        "usage as text": "12",
        "huge usage": {"prompt_tokens": 1e30},
    }.items():

        def respond(asked: Asked, usage: Any = usage) -> Reply:
            body = whole({"content": ANSWER}) | {"usage": usage}
            return Reply({k: v for k, v in body.items() if v is not ...})

        yield Behavior(name, "counts no tokens", respond)
    yield Behavior(
        "odd log-probabilities",
        "has the first form of log-probabilities",
        lambda asked: Reply(
            {
                "choices": [
                    {
                        "message": {"content": ANSWER},
                        "finish_reason": "stop",
                        "logprobs": {"tokens": ["Lima"], "token_logprobs": [-0.1]},
                    }
                ]
            }
        ),
    )
    yield Behavior(
        "one number a token",
        "lacks alternatives",
        lambda asked: Reply(
            {
                "choices": [
                    {
                        "message": {"content": ANSWER},
                        "finish_reason": "stop",
                        "logprobs": {"content": [{"token": ANSWER, "logprob": None}]},
                    }
                ]
            }
        ),
    )
    packed = {"content-encoding": "gzip"}
    body = gzip.compress(json.dumps(whole({"content": ANSWER})).encode())
    yield Behavior(
        "gzip", "packs its replies", lambda asked: Reply(body, headers=packed), streams=False
    )
    huge = "x" * 3_000_000
    yield Behavior(
        "one huge line",
        "sends 3 MB in a line",
        lambda asked: (
            sse(chunk({"content": huge}), chunk({}, "stop"))
            if asked.streams
            else Reply(whole({"content": huge}))
        ),
        text=huge,
    )
    yield Behavior(
        "text/plain",
        "mislabels its JSON",
        lambda asked: Reply(
            json.dumps(whole({"content": ANSWER})), headers={"content-type": "text/plain"}
        ),
        streams=False,
    )


def _streams() -> Iterator[Behavior]:
    """Streams that bend the protocol; whole replies are ordinary."""

    def stream(name: str, does: str, make: Callable[[], Reply], **more: Any) -> Behavior:
        plain = says()
        return Behavior(
            name,
            does,
            lambda asked: make() if asked.streams else plain(asked),
            whole=False,
            **more,
        )

    first, last = chunk({"content": "Li"}), chunk({"content": "ma"})
    end = chunk({}, "stop")
    yield stream(
        "no finish_reason",
        "ends by [DONE] alone",
        lambda: sse(first, last),
        notes="without a finish reason",
    )
    yield stream("no [DONE]", "ends by closing", lambda: sse(first, last, end, done=False))
    yield stream(
        "usage chunk",
        "sends usage without choices",
        lambda: sse(
            first, last, end, {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        ),
    )
    yield stream(
        "null usage chunks",
        "sends null usage",
        lambda: sse(
            chunk({"content": "Li"}, usage=None), last, end, {"choices": None, "usage": None}
        ),
    )
    yield stream("two finish chunks", "ends twice", lambda: sse(first, last, end, end))
    yield stream("null delta", "sends a null delta", lambda: sse(first, last, chunk(None, "stop")))
    yield stream(
        "keep-alive comments",
        "sends comments",
        lambda: sse(": OPENROUTER PROCESSING", first, ": ping", last, end),
    )
    yield stream(
        "empty events", "sends empty data", lambda: sse("data:", first, "data: ", last, end)
    )
    yield stream(
        "ping events",
        "sends named events",
        lambda: sse('event: ping\ndata: {"type": "ping"}', first, last, end),
    )
    yield stream("CRLF", "ends lines by CR LF", lambda: sse(first, last, end, end="\r\n\r\n"))
    yield stream(
        "no space after data",
        "writes data:{…}",
        lambda: sse(*[f"data:{json.dumps(each)}" for each in (first, last, end)]),
    )

    def split(size: int) -> Reply:
        joined = b"".join(sse(chunk({"content": "Перу — Lima 🦙"}), end).parts())
        text = [joined[start : start + size] for start in range(0, len(joined), size)]
        return Reply(text, headers={"content-type": "text/event-stream"})

    yield Behavior(
        "split UTF-8",
        "writes byte by byte",
        lambda asked: split(1) if asked.streams else says("Перу — Lima 🦙")(asked),
        text="Перу — Lima 🦙",
    )
    yield stream(
        "a whole reply to a stream", "does not stream", lambda: Reply(whole({"content": ANSWER}))
    )
    yield stream(
        "message instead of delta",
        "sends whole messages",
        lambda: sse(
            {"choices": [{"index": 0, "message": {"content": ANSWER}, "finish_reason": "stop"}]}
        ),
    )
    yield stream(
        "page instead of a stream",
        "serves a page",
        lambda: Reply("<html><title>Sign in</title></html>", headers={"content-type": "text/html"}),
        error="a web page titled 'Sign in'",
    )
    yield stream(
        "error in a stream",
        "fails in the middle",
        lambda: sse(first, {"error": {"message": "the GPU fell off", "code": 500}}),
        error="the GPU fell off",
    )
    yield stream(
        "error event",
        "fails by a named event",
        lambda: sse(first, 'event: error\ndata: {"message": "the GPU fell off"}'),
        error="the GPU fell off",
    )
    yield stream(
        "broken stream",
        "drops the connection",
        lambda: sse(first, done=False),
        error="the stream ended before the reply did",
    )
    yield stream(
        "no JSON in a stream", "sends garbage", lambda: sse(first, "data: {oops"), error="no JSON"
    )


def _tool_calls() -> Iterator[Behavior]:
    """Tool calls; the expected text is that of each call: name(arguments)."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    other = {"id": "c2", "type": "function", "function": {"name": "mul", "arguments": '{"b": 2}'}}
    calls = 'add({"a": 1}) mul({"b": 2})'

    def streamed(*deltas: list[dict[str, Any]]) -> Respond:
        def respond(asked: Asked) -> Reply:
            if not asked.streams:
                return Reply(whole({"content": None, "tool_calls": [call, other]}, "tool_calls"))
            return sse(*[chunk({"tool_calls": each}) for each in deltas], chunk({}, "tool_calls"))

        return respond

    def half(source: dict[str, Any], text: str, **more: Any) -> dict[str, Any]:
        return {
            **source,
            "function": {"name": source["function"]["name"], "arguments": text},
            **more,
        }

    def tail(text: str, **more: Any) -> dict[str, Any]:
        return {"function": {"arguments": text}, **more}

    forms = {
        "tool calls by index": [
            [half(call, '{"a"', index=0)],
            [tail(": 1}", index=0)],
            [other | {"index": 1}],
        ],
        "tool calls without index": [[call], [other]],
        "pieces without index": [[half(call, '{"a"')], [tail(": 1}", id="c1")], [other]],
        "pieces without index and id": [[half(call, '{"a"')], [tail(": 1}")], [other]],
        "two calls in one delta": [[call, other]],
        "every index is 0": [[call | {"index": 0}], [other | {"index": 0}]],
    }
    for name, deltas in forms.items():
        yield Behavior(
            name,
            "streams tool calls",
            streamed(*deltas),
            text=calls,
            finish="tool_calls",
            tools=True,
        )
    objects = [
        {
            **each,
            "function": {
                **each["function"],
                "arguments": json.loads(each["function"]["arguments"]),
            },
        }
        for each in (call, other)
    ]
    yield Behavior(
        "arguments as an object",
        "sends arguments as an object",
        lambda asked: Reply(whole({"content": "", "tool_calls": objects}, "tool_calls")),
        text=calls,
        finish="tool_calls",
        tools=True,
    )
    yield Behavior(
        "function_call",
        "has the protocol's first form",
        lambda asked: Reply(
            whole({"content": None, "function_call": call["function"]}, "function_call")
        ),
        text='add({"a": 1})',
        finish="tool_calls",
        tools=True,
    )
    printed = {
        "Hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        "Mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
        "Llama": '{"name": "add", "parameters": {"a": 1}}',
        "fenced JSON": '```json\n{"name": "add", "arguments": {"a": 1}}\n```',
        "Qwen-Coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    }
    for name, text in printed.items():
        yield Behavior(
            f"{name} prints a call",
            "prints a tool call as text",
            says(text),
            text=text,
            tools=True,
            notes="tool call as text",
        )
    yield Behavior(
        "JSON as an answer",
        "answers in JSON",
        says('{"name": "Lima"}'),
        text='{"name": "Lima"}',
        tools=True,
    )


BEHAVIORS: dict[str, Behavior] = {
    behavior.name: behavior
    for family in (_reasoning, _refused_fields, _errors, _odd_replies, _streams, _tool_calls)
    for behavior in family()
}
"""By name, in families."""
