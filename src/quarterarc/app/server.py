"""The server of the page: one host and port, this machine alone by default, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..common.errors import InputError
from ..common.optional import need
from ..denoiser import Denoise
from ..evaluation.sources import open_model
from .guard import Guard
from .html import text_of
from .page import PURPOSE, build, gradio, theme
from .player import Player
from .training import TrainingImages

__all__ = ["HOST", "PORT", "application", "listening", "play"]

HOST, PORT = "127.0.0.1", 7860
_MOST_CONNECTIONS = 128
_PRINT = partial(print, flush=True)
_LOCAL = ("localhost", "127.0.0.1", "::1")


def play(
    model: str | Path | Denoise,
    *,
    host: str = HOST,
    port: int = PORT,
    device: torch.device | str = "auto",
    report: Callable[[str], object] = _PRINT,
) -> None:
    """Serve the page of a trained model until SIGINT or SIGTERM.

    Args:
        model: as for `player_of`.
        host: name or address under which the page is served; 127.0.0.1 is reached from this machine alone.
        port: its port; 0 for any free one.
        device: as for `quarterarc.load`.
        report: called with one line, the address of the page, when it can be opened.

    Raises:
        InputError: if Gradio is not installed, there is no model, or the host or port cannot be used.
    """
    with listening(host, port) as sock, TemporaryDirectory(prefix="quarterarc-play-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # which Gradio creates, although the page has no files
        gradio()
        uvicorn = need("uvicorn", "app", PURPOSE)
        player = player_of(model, device)
        if _is_local(host):  # training images are for those who have them
            player = replace(player, training=training_of(model, player.shape))
        served = application(player, host)
        shown = f"[{host}]" if ":" in host else host
        report(f"{player.name}: http://{shown}:{sock.getsockname()[1]} (Ctrl-C ends)")
        config = uvicorn.Config(
            served,
            log_level="critical",
            access_log=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,
        )
        uvicorn.Server(config).run(sockets=[sock])


def player_of(model: str | Path | Denoise, device: torch.device | str = "auto") -> Player:
    """A player of a model: a run folder, checkpoint or pipeline folder, or a denoiser.

    Raises:
        InputError: if there is no complete model, or its images cannot be shown.
    """
    name = Path(model).expanduser().resolve().name if isinstance(model, str | Path) else "the model"
    return Player(open_model(model, device).denoise, name)


def training_of(model: str | Path | Denoise, shape: tuple[int, int, int]) -> TrainingImages | None:
    """The training images of a run, if they are at hand and of the shape (C, H, W) of the model's images."""
    if not isinstance(model, str | Path):
        return None
    try:
        images = TrainingImages(model)
    except (InputError, OSError):
        return None
    return images if images.shape == shape else None


def application(player: Player, host: str = HOST) -> Guard:
    """The page as an ASGI application that answers nothing but the page.

    Args:
        player: the model.
        host: the name under which it is served. Under a name of this machine alone, other names are an error.

    Raises:
        InputError: if Gradio is not installed.
    """
    fastapi = need("fastapi", "app", PURPOSE)
    around = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mounted = gradio().mount_gradio_app(
        around,
        build(player),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=theme(),
        css=text_of("page.css"),
    )
    return Guard(mounted, (*_LOCAL, host) if _is_local(host) else None)


def _is_local(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: for a port that is in use or reserved, and a host that is not one of this machine's.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is a number from 0 (any free port) to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"--host {host}: no such name or address: give 127.0.0.1, or 0.0.0.0 for all") from None
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows the option lets two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_MOST_CONNECTIONS)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise InputError(
            f"port {port} of {host} cannot be used ({reason}): give another --port, or --port 0 for any free one"
        ) from None
    return sock
