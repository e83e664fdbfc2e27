"""Errors as clients of the OpenAI protocol read them: `{"error": {message, type, param, code}}`."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from reflux.agents.errors import EndpointError, MissingError, RefluxError, UsageError

INVALID = "invalid_request_error"
THEIR_FAULT = {400, 413, 422}
"""Statuses of an endpoint that say that the request itself is wrong."""


class ErrorDetail(BaseModel):
    """What went wrong, and the remedy."""

    message: str
    type: str
    param: str | None = None
    """The field that is to blame."""
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class ApiError(RefluxError):
    """An error with a status of its own."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID,
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
        """The body that says it."""
        return {"error": self.detail.model_dump()}

    def response(self) -> Response:
        """The whole response."""
        # ASCII: a client's own words may be no Unicode text.
        body = json.dumps(self.body())
        return Response(body, self.status, self.headers, media_type="application/json")


def as_api_error(error: RefluxError) -> ApiError:
    """Any error that was meant, with its status."""
    match error:
        case ApiError():
            return error
        case UsageError():
            return ApiError(400, str(error))
        case MissingError():
            return ApiError(503, str(error), "server_error", code="missing")
        case EndpointError() if error.status in THEIR_FAULT:
            return ApiError(400, str(error), code="refused_by_endpoint")
        case EndpointError():
            return ApiError(502, str(error), "server_error", code="endpoint_failed")
        case _:
            return ApiError(500, str(error), "server_error")


def answer_errors(app: FastAPI) -> None:
    """Have every error of an app answered in this form."""

    async def meant(_: Request, error: Exception) -> Response:
        return as_api_error(error).response() if isinstance(error, RefluxError) else _unmeant()

    async def invalid(_: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        first = problems[0] if problems else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"][1:])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        said = str(first["msg"])
        if first.get("type") == "extra_forbidden":
            said = "this field is not supported: leave it out"
        message = f"{where}: {said}{more}" if where else f"{said}{more}"
        return ApiError(400, message, param=where or None).response()

    async def http(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        said = str(getattr(error, "detail", error))
        return ApiError(status, said, headers=headers).response()

    async def unmeant(_: Request, error: Exception) -> Response:
        return _unmeant()

    app.add_exception_handler(RefluxError, meant)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unmeant)


def _unmeant() -> Response:
    said = "an error that was not meant; the server's log has its trace, please report it"
    return ApiError(500, said, "server_error").response()
