"""Behaviors of endpoints: fields that a server refuses by name."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support.endpoint_says import (
    Behavior,
    alternates,
    has,
    has_system,
    lacks,
    message,
    refuses,
)

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


def refused_fields() -> Iterator[Behavior]:
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
                        "message": 'Invalid JSON payload received. Unknown name "seed"'
                        ": Cannot find field.",
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
            "a key that may not ask for logprobs",
            "logprobs",
            403,
            message("You are not allowed to request logprobs from this model"),
        ),
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
    yield Behavior(
        "403 for a field",
        "forbids log-probabilities",
        both,
        requests=4,
        sent=lacks("max_tokens", "temperature", "logprobs", "top_logprobs"),
    )
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
    yield Behavior(
        "streams only",
        "refuses to answer whole",
        refuses(
            lacks("stream"),
            400,
            message("This model only support stream mode, please enable the stream parameter"),
        ),
        sent=has("stream"),
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
            streams=False,
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
