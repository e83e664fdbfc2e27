"""Errors in the form of the OpenAI protocol: `{"error": {message, type, param, code}}`."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from reflux.agents.errors import EndpointError, MissingError, RefluxError, UsageError

REQUEST_STATUSES = {400, 413, 422}
"""Statuses by which an endpoint says that the request itself is wrong."""
BUSY = {
    402: (429, "insufficient_quota", "insufficient_quota"),
    429: (429, "rate_limit_error", "rate_limit_exceeded"),
    503: (503, "server_error", "endpoint_busy"),
}
"""(status, type, code) for an endpoint that is asked too much, by its status."""
CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "too_short": "empty_array",
    "json_invalid": "invalid_json",
}
"""Codes of the protocol for pydantic's kinds of errors; other kinds are `invalid_value`."""
CHAT = "use /v1/chat/completions or /v1/responses"
INSTEAD = (
    ("/v1/completions", CHAT),
    ("/v1/messages", f"this is no Anthropic server: {CHAT}"),
    ("/v1/embeddings", "no model here makes embeddings: use an embedding server"),
    ("/v1/responses/", "only POST /v1/responses, and GET and DELETE /v1/responses/ID, are served"),
    ("/v1/conversations", "use previous_response_id of /v1/responses"),
    ("/v1/assistants", "use /v1/responses"),
    ("/v1/threads", "use /v1/responses"),
    ("/v1/", "this server takes and makes text alone: use /v1/chat/completions, /v1/responses or "
     "/v1/models"),
    ("/api/chat", f"this is no Ollama server: {CHAT}"),
    ("/api/generate", f"this is no Ollama server: {CHAT}"),
    ("/api/tags", "this is no Ollama server: use /v1/models"),
    ("/chat/completions", "is /v1 missing from the base URL? use /v1/chat/completions"),
    ("/responses", "is /v1 missing from the base URL? use /v1/responses"),
    ("/models", "is /v1 missing from the base URL? use /v1/models"),
    ("", "the API is at /v1, the page at /"),
)  # fmt: skip
"""What to use instead of paths that are not served, by how they begin; the first that fits."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    """The field that caused it."""
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(RefluxError):
    """An error with an HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)

    def body(self) -> dict[str, Any]:
        return {"error": self.detail.model_dump()}

    def response(self) -> Response:
        # ASCII, because the text of a client need not be valid Unicode.
        body = json.dumps(self.body())
        return Response(body, self.status, self.headers, media_type="application/json")


def as_api_error(error: Exception) -> ApiError:
    """Give any error its HTTP status."""
    match error:
        case ApiError():
            return error
        case UsageError():
            return ApiError(400, str(error))
        case MissingError():
            return ApiError(503, str(error), "server_error", code="missing")
        case EndpointError() if error.too_long:
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case EndpointError() if error.status in REQUEST_STATUSES:
            return ApiError(400, str(error), code="refused_by_endpoint")
        case EndpointError() if error.status in BUSY or error.retry_after is not None:
            status, kind, code = BUSY.get(error.status or 503, BUSY[503])
            wait = {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else {}
            return ApiError(status, str(error), kind, code=code, headers=wait)
        case EndpointError():
            return ApiError(502, str(error), "server_error", code="endpoint_failed")
        case RefluxError():
            return ApiError(500, str(error), "server_error")
        case RequestValidationError():
            return _validation_error(error)
        case HTTPException() if error.status_code == 400:  # FastAPI's own words name no cause.
            message = "the body cannot be read as JSON: send UTF-8 text, and nest it less deeply"
            return ApiError(400, message, code=CODES["json_invalid"])
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            message = "unexpected error; please report it with the traceback in the server's log"
            return ApiError(500, message, "server_error")


def _validation_error(error: RequestValidationError) -> ApiError:
    """One sentence on the first problem of a request."""
    first: Mapping[str, Any] = (error.errors() or [{}])[0]
    kind, context = str(first.get("type")), first.get("ctx") or {}
    if kind == "json_invalid":
        place = (first.get("loc") or ("body", 0))[1]
        message = f"the body is no JSON: {context.get('error')} at character {place}"
        return ApiError(400, message, code=CODES[kind])
    parts = [*first.get("loc", ())[1:], *filter(None, [context.get("param")])]
    param = re.sub(r"\.(?=\[)", "", ".".join(f"[{p}]" if isinstance(p, int) else p for p in parts))
    code = CODES.get(kind, "invalid_value")
    match kind:
        case "missing":
            problem = "is missing"
        case "extra_forbidden":
            problem = "is not supported: leave it out"
        case "too_short":
            problem = "is empty: send at least one"
        case _ if "problem" in context:
            problem, code = context["problem"], kind
        case _:
            message = str(first.get("msg", "is invalid"))
            problem = re.sub(r"^Input should\b|^(String|List|Dictionary) should\b", "must", message)
    text = f"{param or 'the body'} {problem}"
    return ApiError(400, text, param=param or None, code=code)


def _unserved(request: Request, error: HTTPException) -> ApiError:
    """Name what to use instead of a path or a method that is not served."""
    path, method = request.url.path[:200], request.method
    allowed = (error.headers or {}).get("Allow", "")
    if error.status_code == 405 and allowed:
        message = f"{method} is not taken by {path}: use {allowed}"
    else:
        message = (
            f"{path} is not served: {next(way for begin, way in INSTEAD if path.startswith(begin))}"
        )
    return ApiError(error.status_code, message, code="unknown_url", headers=error.headers)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.startswith("application/") and re.search(r"[/+]json$", kind) is not None


async def respond(request: Request, error: Exception) -> Response:
    """Answer a request that failed."""
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        if request.method == "OPTIONS" and error.status_code == 405:
            return Response(status_code=204, headers=error.headers)
        return _unserved(request, error).response()
    if isinstance(error, RequestValidationError) and not _is_json(request):
        body = error.body
        if body is not None and request.method in ("POST", "PUT", "PATCH"):
            kind = request.headers.get("content-type", "")
            shown = f"is {kind[:80]!r}" if kind else "is missing"
            message = f"content-type {shown}: send content-type: application/json"
            return ApiError(415, message, code="unsupported_content_type").response()
    return as_api_error(error).response()


HANDLERS: dict[int | type[Exception], Any] = {
    kind: respond for kind in (RefluxError, RequestValidationError, HTTPException, Exception)
}
"""For `FastAPI(exception_handlers=...)`: every error is answered in this form."""
