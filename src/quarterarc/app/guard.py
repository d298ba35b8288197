"""The addresses that the server answers: those of the page, and nothing else of Gradio's.

Gradio answers requests for files, uploads, proxies, tokens and documentation of an API, and copies files that a message
names. The page needs none of that: its pictures are part of its messages. This layer is around Gradio's application and
passes on only what is listed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

__all__ = ["LARGEST_BODY", "Guard"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 12 * 2**20
"""Bytes of a request: a picture of 8 MB in base64, and its mask."""
_LARGE, _MOST_LARGE = 2**16, 4
"""Bytes of a large request, and how many of them are received at a time."""

_PAGE = "/"
_JOIN = "/gradio_api/queue/join"
_MOST_VALUES = 16
"""Values of the controls in a message, and texts that the canvas sends with it."""
_READ = re.compile(
    r"/|/config/?|/theme\.css|/gradio_api/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
    r"|/gradio_api/(?:startup-events|queue/data|heartbeat/\w+)"
    r"|/(?:assets|static)/[\w.@/-]+"
)
_WRITE = re.compile(r"/gradio_api/(?:queue/join|cancel|reset)/?")
_PREVIEWS = re.compile(rb'<meta\s[^>]*?(?:property="og:|name="twitter:)[^>]*>\s*', re.IGNORECASE)
"""Tags for previews of links, which name Gradio's own site."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; "
    "object-src 'none'; frame-ancestors 'none'; form-action 'none'"
)
"""Content-Security-Policy: the browser itself makes no request to another host. Gradio's scripts need `unsafe-eval`."""
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An ASGI application that passes the requests of the page on to another one, and answers all others with an error.

    Args:
        application: Gradio's application.
        hosts: the names under which the page is visited, such as `127.0.0.1`, so that a page of another site whose name
            leads to this machine (DNS rebinding) is no visitor; None for any.
    """

    def __init__(self, application: Application, hosts: Iterable[str] | None) -> None:
        self._application = application
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._large = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._application(scope, receive, send)
        if scope["type"] != "http":  # the page opens no WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get(b"content-length", "0" if b"transfer-encoding" not in headers else "")
        status = self._status(scope, headers, length)
        if status:
            return await _answer(send, status)
        if int(length) <= _LARGE:
            return await self._checked(scope, receive, send)
        if self._large >= _MOST_LARGE:
            return await _answer(send, 503)
        self._large += 1
        try:
            return await self._checked(scope, receive, send)
        finally:
            self._large -= 1

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; the message of a visitor only if it has no more than the page sends."""
        if scope["path"].rstrip("/") != _JOIN:
            return await self._pass(scope, receive, send)
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the visitor is gone
                return None
            body += message.get("body", b"")
            if len(body) > LARGEST_BODY:
                return await _answer(send, 413)
            if not message.get("more_body"):
                break
        if not _is_message(body):
            return await _answer(send, 400)
        waiting = [{"type": "http.request", "body": body}]

        async def again() -> Any:
            return waiting.pop() if waiting else await receive()

        return await self._pass(scope, again, send)

    def _status(self, scope: Scope, headers: dict[bytes, str], length: str) -> int:
        """The status of an error; 0 for a request of the page."""
        host = headers.get(b"host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return 403
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403
        path, method = scope["path"], scope["method"]
        if "%" in path or "//" in path or any(part in (".", "..") for part in path.split("/")):
            return 404
        allowed = _READ if method in ("GET", "HEAD") else _WRITE if method == "POST" else None
        if allowed is None:
            return 405
        if not allowed.fullmatch(path):
            return 404
        if not length.isdecimal():
            return 411
        return 413 if int(length) > LARGEST_BODY else 0

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = scope["path"] == _PAGE
        if page:  # uncompressed, and without queries: Gradio reads files by one
            headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
            scope = {**scope, "headers": headers, "query_string": b""}
        start: Any = None
        parts: list[bytes] = []

        async def changed(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                own = {name for name, _ in _HEADERS} if page else {name for name, _ in _HEADERS[:-1]}
                dropped = own | ({b"content-length"} if page else set())
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in dropped]
                start = {**message, "headers": kept + (_HEADERS if page else _HEADERS[:-1])}
                if not page:
                    await send(start)
            elif not page:
                await send(message)
            else:
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    body = _PREVIEWS.sub(b"", b"".join(parts))
                    if scope["method"] != "HEAD":
                        start["headers"].append((b"content-length", str(len(body)).encode()))
                    await send(start)
                    await send({"type": "http.response.body", "body": body})

        await self._application(scope, receive, changed)


def _is_message(body: bytes) -> bool:
    """Whether a message has numbers and texts only: Gradio takes certain mappings for files, and copies these."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(message, dict) or not isinstance(message.get("data"), list):
        return False
    sent = message.get("event_data") or {}
    if not isinstance(sent, dict) or len(sent) > _MOST_VALUES or len(message["data"]) > _MOST_VALUES:
        return False
    others = [value for name, value in message.items() if name not in ("data", "event_data")]
    return all(isinstance(value, str | int | float | None) for value in [*message["data"], *sent.values(), *others])


def _name(host: str) -> str:
    """The name in a `Host` header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _answer(send: Send, status: int) -> None:
    body = f"{status}\n".encode()
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers + _HEADERS})
    await send({"type": "http.response.body", "body": body})
