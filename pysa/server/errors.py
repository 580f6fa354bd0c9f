"""Errors as OpenAI's clients expect them: a status and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from pysa.errors import (
    ArgumentError,
    ContextFullError,
    DeviceError,
    EvaluationCancelledError,
    ModelFileError,
    PysaError,
)
from pysa.scheduler import QueueFullError

log = logging.getLogger("pysa")

INVALID, SERVER, LIMIT, TIMEOUT = "invalid_request_error", "server_error", "rate_limit_error", "timeout_error"
NO_RETRY = {"x-should-retry": "false"}  # the official clients would ask for the same again
PARAM = re.compile(r"([a-z_]+)(\[[^]:]*\])*(\.[a-z_]+|\[\d+\])*: ")  # how our errors begin


class ApiError(Exception):
    """An error that goes to the client as it is."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def api_error(error: BaseException, retry_after_s: int = 1) -> ApiError:
    """What a client is told of an exception; one that nobody expected is logged and not shown.

    Args:
        error: raised while a request was served.
        retry_after_s: when to come again, if the queue is full.
    """
    if isinstance(error, ApiError):
        return error
    message = str(error)
    if isinstance(error, QueueFullError):
        return ApiError(429, message, LIMIT, code="queue_full", headers={"Retry-After": str(retry_after_s)})
    if isinstance(error, ContextFullError):
        return ApiError(400, message, param=param_of(message), code="context_length_exceeded")
    if isinstance(error, ArgumentError | ModelFileError):
        return ApiError(400, message, param=param_of(message))
    if isinstance(error, EvaluationCancelledError):
        return ApiError(503, f"the server has stopped: {message}", SERVER, code="stopped")
    if isinstance(error, DeviceError | MemoryError):
        return ApiError(503, message or "out of memory", SERVER, code="out_of_memory")
    if isinstance(error, PysaError):
        return ApiError(500, message, SERVER)
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal error; the server's log has more", SERVER, headers=NO_RETRY)


def param_of(message: str) -> str | None:
    """The argument that one of our messages is about: `temperature: out of range: ...`."""
    match = PARAM.match(message)
    return match.group(1) if match else None
