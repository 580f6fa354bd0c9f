"""What a server is told, apart from the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Names, keys and limits.

    Args:
        names: of the model; the first is given in answers, all are taken in requests.
        api_key: what requests must bear; None: nothing.
        hosts: names under which the server may be asked, without ports; empty: any. A web page can make a browser ask a
            server on loopback under a name of its own.
        cors_origins: web origins whose pages may ask; `*` is any.
        max_body_bytes: of a request.
        max_tokens: most tokens of one answer, also where a chat asks for no number; 0: what the context holds.
        max_choices: most answers of one request: prompts times `n`.
        max_inputs: most texts of one request for embeddings.
        timeout_s: of one request, from its body to the last byte; 0: none.
        ping_s: seconds of silence after which a stream gets a comment, so that nothing between closes it.
    """

    names: tuple[str, ...]
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 << 20
    max_tokens: int = 0
    max_choices: int = 16
    max_inputs: int = 2048
    timeout_s: float = 600.0
    ping_s: float = 15.0
