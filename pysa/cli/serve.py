"""`pysa serve`: from options to a running server. The server itself is pysa.server."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import warnings
from pathlib import Path

from pysa.cli.console import Console
from pysa.cli.errors import EXIT_INTERRUPTED, UsageError

KEY_VARIABLE = "PYSA_API_KEY"


def run(options: argparse.Namespace, console: Console) -> int:
    """Serves until it is told to stop; the exit status."""
    try:
        from pysa.server.run import bind, serve  # noqa: PLC0415  an extra
        from pysa.server.settings import ServerSettings  # noqa: PLC0415
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn", "anyio", "h11", "click"):
            raise
        raise UsageError(f"serve: {package} is missing; pip install 'pysa[serve]'") from error
    from pysa.cli.placement import Placement  # noqa: PLC0415
    from pysa.llama.async_llama import AsyncLlama  # noqa: PLC0415

    key = _key(options)
    listeners = bind(options.host, options.port)
    host, port = listeners[0].getsockname()[:2]
    is_local = all(_is_loopback(listener.getsockname()[0]) for listener in listeners)
    settings = ServerSettings(
        names=tuple(options.alias) or (Path(options.model).stem,),
        api_key=key,
        hosts=_hosts(options, is_local and key is None),
        cors_origins=tuple(options.cors_origin),
        max_body_bytes=int(options.max_body * 2**20),
        max_tokens=options.max_tokens,
        timeout_s=options.timeout,
    )
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = lambda message, *_, **__: console.note([f"pysa: warning: {message}"])
        llama = AsyncLlama(
            options.model,
            n_parallel=options.parallel,
            n_queue=options.queue,
            n_piece=options.piece,
            n_ctx=options.ctx_size,
            n_batch=2**31 - 1,  # as long as n_ctx
            n_ubatch=options.ubatch,
            n_threads=options.threads,
            type_k=options.type_k,
            type_v=options.type_v,
            attention=options.attention,
            plan=options.plan,
            v_skip=options.v_skip,
            device=options.device,
            n_gpu_layers=options.gpu_layers,
            offload_kqv=options.kv_offload,
            seed=-1,
            chat_format=options.chat_format,
            cache_dir=options.cache_dir,
            cache_bytes=int(options.cache_gib * 2**30),
            verbose=options.verbose,
        )
        with contextlib.closing(llama):
            placement = Placement.of(llama._llama.session)
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            if key is None and not is_local:
                console.note(
                    [f"pysa: warning: {url} is open to whoever reaches it: expected a key; give one in {KEY_VARIABLE}"]
                )

            def started() -> None:
                if options.json:
                    facts = {"url": url, "model": settings.names[0], "n_ctx": llama.n_ctx(), "pid": os.getpid()}
                    console.json({**facts, "device": placement.device, "n_gpu_layers": placement.n_gpu_layers})
                else:
                    lanes = f"{options.parallel} requests at once, {llama.n_ctx():,} tokens each"
                    if (where := placement.text()) is not None:
                        console.note([f"pysa: {where}"])
                    console.note([f"pysa: serving {settings.names[0]} at {url}/v1 ({lanes}); Ctrl-C ends it"])

            was_interrupted = serve(llama, settings, listeners, options.drain, options.verbose, started)
    return EXIT_INTERRUPTED if was_interrupted else 0


def _key(options: argparse.Namespace) -> str | None:
    if options.api_key == "":
        raise UsageError("--api-key: empty: expected a key, got none; leave it out")
    return options.api_key or os.environ.get(KEY_VARIABLE) or None


def _hosts(options: argparse.Namespace, is_open_here: bool) -> tuple[str, ...]:
    """Names to answer under; none: any. A page of the web may give this machine's address a name of its own."""
    if not (is_open_here or options.allow_host):
        return ()
    own = "[::1]" if options.host == "::1" else options.host
    return tuple(dict.fromkeys(name.lower() for name in ("localhost", "127.0.0.1", "[::1]", own, *options.allow_host)))


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
