"""The gate: who may ask, under which name, and how much; counts what came of it. Pure ASGI, around everything else."""

from __future__ import annotations

import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from pysa.server.errors import ApiError
from pysa.server.metrics import Metrics
from pysa.server.settings import ServerSettings

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health",)  # for whoever watches the process
DISCARD_BYTES = 64 << 20  # of a body that is refused: a client that is still sending does not read the answer


class Gate:
    """Checks each request before the application sees it.

    Args:
        app: the application.
        settings: key, hosts and the largest body.
        metrics: told of every request.
    """

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        request_id = uuid.uuid4().hex

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            if scope["path"] not in OPEN_PATHS:
                self._check_key(headers)
            await self._app(scope, self._bounded(headers, receive), noting)
        except ApiError as error:
            if status:  # too late to say so
                raise
            if error.status == 413:
                await _discard(receive)
            await error.response()(scope, receive, noting)
        finally:
            # 499 is what web servers write down for a client that left before the answer began.
            self._metrics.request(scope["path"], status or 499, time.perf_counter() - start)

    def _check_host(self, headers: Headers) -> None:
        hosts = self._settings.hosts
        host = headers.get("host", "").lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if hosts and name not in hosts:
            raise ApiError(
                403,
                f"Host: unknown name: expected one of {', '.join(hosts)}, got {name!r}; "
                "a server without a key answers only under its own names: give it a key, or --allow-host",
                code="unknown_host",
            )

    def _check_key(self, headers: Headers) -> None:
        if self._key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            self._refuse("no API key: expected the header Authorization: Bearer KEY")
        # Compared in a time that tells nothing of how much was right.
        if not hmac.compare_digest(given.strip().encode(), self._key):
            self._refuse("wrong API key")

    @staticmethod
    def _refuse(message: str) -> None:
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, message, code="invalid_api_key", headers=headers)

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, refusing more than the largest body, announced or not."""
        n_most, n_read = self._settings.max_body_bytes, 0

        def check(n: int) -> None:
            if n > n_most:
                message = f"body: too large: expected at most {n_most} bytes"
                raise ApiError(413, message, code="body_too_large", headers={"Connection": "close"})

        announced = headers.get("content-length", "")
        check(int(announced) if announced.isdecimal() else 0)

        async def bounded() -> Message:
            nonlocal n_read
            message = await receive()
            n_read += len(message.get("body", b""))
            check(n_read)
            return message

        return bounded


async def _discard(receive: Receive) -> None:
    n_read = 0
    while n_read < DISCARD_BYTES:
        message = await receive()
        n_read += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
