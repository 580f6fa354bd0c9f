"""The process: the socket, uvicorn, and the end after a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from pysa.errors import DeviceError
from pysa.llama.async_llama import AsyncLlama
from pysa.server.app import create_app
from pysa.server.settings import ServerSettings

GRACE_S = 3.0  # for answers to be sent once their evaluation has been ended
BACKLOG = 128


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at all addresses of a name, so that a port that is taken shows before the model is loaded.

    Raises:
        DeviceError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise DeviceError(
            f"--host {host}: no such address: {error.strerror}; expected a name of this machine"
        ) from None
    listeners: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        for family, kind, protocol, _, address in found:
            number = listeners[0].getsockname()[1] if listeners else port
            try:
                listener = opened.enter_context(socket.socket(family, kind, protocol))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address[0], number, *address[2:]))
                listener.listen(BACKLOG)
            except OSError as error:
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and len(found) > 1:
                    continue  # localhost has an IPv6 address also where IPv6 is off
                raise DeviceError(f"--port {port}: not to be had at {host}: {error.strerror}; choose another") from None
            listeners.append(listener)
        opened.pop_all()
    if not listeners:
        raise DeviceError(f"--host {host}: none of its addresses can be listened at; expected one of this machine")
    return listeners


class _Server(uvicorn.Server):
    """uvicorn with our own end: the first signal ends it in order, a second one at once."""

    def __init__(self, config: uvicorn.Config, llama: AsyncLlama, drain_s: float, started: Callable[[], None]) -> None:
        super().__init__(config)
        self.was_interrupted = False
        self._llama, self._drain_s, self._tell_started = llama, drain_s, started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals while it runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self._tell_started()

    def _stop(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        # Requests that are still under way then are told so, in their own form, instead of being cut off.
        delay_s = 0.0 if self.should_exit else self._drain_s
        self.was_interrupted |= not self.should_exit and number == signal.SIGINT
        loop.call_later(delay_s, loop.run_in_executor, None, self._llama.close)
        self.should_exit = True


def serve(
    llama: AsyncLlama,
    settings: ServerSettings,
    listeners: Sequence[socket.socket],
    drain_s: float,
    verbose: bool,
    started: Callable[[], None],
) -> bool:
    """Serves until SIGINT or SIGTERM, then lets requests under way come to their end.

    Args:
        llama: is closed when it takes longer than drain_s, and left open otherwise.
        listeners: from bind().
        drain_s: for requests under way.
        verbose: write requests to the log.
        started: called when requests are taken.

    Returns:
        Whether it was SIGINT.
    """
    config = uvicorn.Config(
        create_app(llama, settings),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=verbose,
        server_header=False,
        timeout_graceful_shutdown=int(drain_s + GRACE_S) + 1,
    )
    server = _Server(config, llama, drain_s, started)
    server.run(list(listeners))
    return server.was_interrupted
