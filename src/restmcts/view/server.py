"""The viewer over HTTP: read-only, on this machine alone unless told otherwise, and only with a token then.

    /                  the page         /state                 what there is
    /static/NAME       its files        /overview              the run's numbers
                                        /rows?set=…&start=…    rows of a tree set
                                        /tree?set=…&row=…      one tree

What is shown was written by models, so nothing of it is trusted: it is sent as JSON, the page makes text of it, and its
security policy lets no script, style or picture in but the page's own.
"""

from __future__ import annotations

import gzip
import secrets
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from restmcts.errors import ConfigError, RestmctsError, StoreError
from restmcts.hosts import host_of, is_local, web_address
from restmcts.view import page
from restmcts.view.viewer import Viewer

PORT, _TRIES = 8421, 20
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_GZIP_FROM = 2048


class ViewServer(ThreadingHTTPServer):
    """Serves a viewer. With a token, every path begins with it, and nothing else is there."""

    daemon_threads = True

    def __init__(self, viewer: Viewer, host: str, port: int, token: str | None) -> None:
        self.viewer, self.token = viewer, token
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without looking up the host's full name, as the base class does: that may wait for a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return web_address(str(host), int(port)) + (f"{self.token}/" if self.token else "")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error; what else goes wrong is answered with its own status."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def open_server(viewer: Viewer, host: str = "127.0.0.1", port: int | None = None) -> ViewServer:
    """A server bound to `host`, at `port` or at the first free one from 8421 on; opened to others, it has a token.

    Raises ConfigError when it cannot listen there.
    """
    token = None if is_local(host) else secrets.token_urlsafe(16)
    ports = range(PORT, PORT + _TRIES) if port is None else [port]
    for at in ports:
        try:
            return ViewServer(viewer, host, at, token)
        except OSError as error:
            reason = error.strerror or str(error)
    tried = f"{ports[0]} to {ports[-1]}" if len(ports) > 1 else str(ports[0])
    raise ConfigError(f"cannot listen on {host}, port {tried}: {reason}; give another --port or --host")


def view(out: Path, *, host: str = "127.0.0.1", port: int | None = None, show: Callable[[str], Any]) -> None:
    """Serve the page over `out` until Ctrl-C; `show` is given its address once it is there."""
    with Viewer(out) as viewer, open_server(viewer, host, port) as server:
        show(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "restmcts", ""
    timeout = 60

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        path = self._inner_path(split.path)
        if path is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here; use the whole address\n")
        elif path in page.FILES:
            kind, content = page.FILES[path]
            self._send(HTTPStatus.OK, kind, content())
        else:
            self._answer(path, {name: values[-1] for name, values in parse_qs(split.query).items()})

    do_HEAD = do_GET

    def _inner_path(self, path: str) -> str | None:
        """The path behind the token; None for who does not know it, or comes by a name that is not this machine's."""
        token = self.server.token
        if token is None:
            # Another site's page could reach us by a name of its own that leads here; its Host header tells.
            return path if is_local(host_of(self.headers.get("Host", ""))) else None
        given, slash, rest = path.removeprefix("/").partition("/")
        known = secrets.compare_digest(given.encode(), token.encode())
        return f"/{rest}" if known and slash else None

    def _answer(self, path: str, asked: dict[str, str]) -> None:
        viewer = self.server.viewer
        try:
            if path == "/state":
                found = viewer.state()
            elif path == "/overview":
                found = viewer.overview()
            elif path == "/rows":
                found = viewer.rows(asked["set"], max(0, int(asked.get("start", "0"))))
            elif path == "/tree":
                found = viewer.tree(asked["set"], int(asked["row"]))
            else:
                raise StoreError(f"there is no {path}")
            status = HTTPStatus.OK
        except StoreError as error:
            found, status = {"error": str(error)}, HTTPStatus.NOT_FOUND
        except (KeyError, ValueError):
            found, status = {"error": "name the set and the row"}, HTTPStatus.BAD_REQUEST
        except RestmctsError as error:
            found, status = {"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR
        self._send(status, "application/json", page.as_json(found).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if len(body) >= _GZIP_FROM and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=3)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""
