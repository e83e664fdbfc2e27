"""Errors in the form of the OpenAI protocol: `{"error": {message, type, param, code}}`."""

import json
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
        case EndpointError() if error.status in REQUEST_STATUSES:
            return ApiError(400, str(error), code="refused_by_endpoint")
        case EndpointError():
            return ApiError(502, str(error), "server_error", code="endpoint_failed")
        case RefluxError():
            return ApiError(500, str(error), "server_error")
        case RequestValidationError():
            return _validation_error(error)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            message = "unexpected error; please report it with the traceback in the server's log"
            return ApiError(500, message, "server_error")


def _validation_error(error: RequestValidationError) -> ApiError:
    problems = error.errors() or [{"loc": (), "msg": str(error)}]
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    message = str(first["msg"])
    if first.get("type") == "extra_forbidden":
        message = "this field is not supported: leave it out"
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return ApiError(400, f"{field}: {message}" if field else message, param=field or None)


async def respond(_: Request, error: Exception) -> Response:
    """Answer a request that failed."""
    return as_api_error(error).response()


HANDLERS: dict[int | type[Exception], Any] = {
    kind: respond for kind in (RefluxError, RequestValidationError, HTTPException, Exception)
}
"""For `FastAPI(exception_handlers=...)`: every error is answered in this form."""
