"""Behaviors of endpoints: errors, in any form."""

from collections.abc import Iterator
from typing import Any

from tests.support.endpoint_says import Behavior, fails, message
from tests.support.endpoint_server import Reply


def errors() -> Iterator[Behavior]:
    """Errors, in any form, each with one message and its remedy."""
    bodies: dict[str, Any] = {
        "error object": message("the words of the server"),
        "error text": {"error": "the words of the server"},
        "detail text": {"detail": "the words of the server"},
        "detail list": {"detail": [{"loc": ["body", "x"], "msg": "the words of the server"}]},
        "message field": {"message": "the words of the server"},
        "Message of AWS": {"Message": "the words of the server"},
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
    for name, status in (("Gemini's refusal of a key", 400), ("a key within 400", 400)):
        words = "API key not valid. Please pass a valid API key."
        body = {"error": words} if "within" in name else [message(words, code=400)]
        yield Behavior(
            name, "refuses the key", fails(status, body), error="check OPENAI_API_KEY", requests=1
        )
    for status, words, error in (
        (400, "Invalid model: m. Please select a valid model", "check the model's name"),
        (410, "The model `m` has been deprecated", "check the model's name"),
        (407, "Proxy Authentication Required", "check HTTPS_PROXY"),
        (400, "Invalid max_tokens value, the valid range is [1, 32]", "change --max-tokens"),
        (400, "max_tokens is too large: 64. It supports at most 32.", "change --max-tokens"),
        (403, "<!DOCTYPE html><title>Just a moment...</title>", "a page for browsers"),
    ):
        yield Behavior(
            f"{status} {words[:24]}", "refuses", fails(status, words), error=error, requests=1
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
        ("429 for the day", 429, message("Rate limit exceeded: free-models-per-day")),
        ("403 for unpaid bills", 403, message("This account is suspended: unpaid invoices")),
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
