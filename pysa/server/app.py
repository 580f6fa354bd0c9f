"""Puts the application together: routes, the gate, and errors in one form."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pysa.llama.async_llama import AsyncLlama
from pysa.server.errors import ApiError
from pysa.server.gate import Gate
from pysa.server.metrics import Metrics
from pysa.server.routes import Routes
from pysa.server.settings import ServerSettings


def create_app(llama: AsyncLlama, settings: ServerSettings) -> Starlette:
    """The ASGI application. It does not close `llama`.

    Args:
        llama: answers; made in the process that serves.
        settings: names, keys and limits.
    """
    table = [
        ("/v1/completions", "completions", "POST"),
        ("/v1/chat/completions", "chat_completions", "POST"),
        ("/v1/embeddings", "embeddings", "POST"),
        ("/v1/models", "models", "GET"),
        ("/health", "health", "GET"),
        ("/metrics", "metrics", "GET"),
    ]
    metrics = Metrics(tuple(path for path, _, _ in table), settings.names[0])
    routes = Routes(llama, settings, metrics)
    paths = [Route(path, routes.guarded(getattr(routes, name)), methods=[method]) for path, name, method in table]
    paths.append(Route("/v1/models/{name:path}", routes.guarded(routes.model), methods=["GET"]))
    middleware = [Middleware(Gate, settings=settings, metrics=metrics)]
    if settings.cors_origins:
        # Around the gate: browsers ask first, without the key.
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
                expose_headers=["x-request-id", "Retry-After"],
            ),
        )
    return Starlette(routes=paths, middleware=middleware, exception_handlers={HTTPException: _http_error})


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"{where}: no such route; docs/serving.md has them", code="unknown_route").response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{where}: wrong method: expected {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers=error.headers).response()
    return ApiError(error.status_code, f"{where}: {error.detail}", headers=error.headers).response()
