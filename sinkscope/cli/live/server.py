"""The page over HTTP on this machine alone: the standard library's server, a secret in the address, two questions.

Nothing but this machine reaches it (127.0.0.1). Other people of the machine, and pages of other sites in the same
browser, are kept out: every request must name this machine as its host and carry the secret, which only the address
that was printed holds; a question must also come from the page itself (``Origin``) and be JSON.
"""

from __future__ import annotations

import errno
import hmac
import json
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sinkscope.errors import SinkscopeError

HOST = "127.0.0.1"
MAX_BODY = 65_536
"""Most bytes of a question."""
SECRET = "X-Sinkscope-Secret"
"""Header in which the page sends the secret."""

Answer = Callable[[Mapping[str, Any]], str]


class PageServer(ThreadingHTTPServer):
    """Serves one page and answers its questions.

    Attributes:
        page: the page, as HTML.
        answers: what is answered, by path: functions of a question that return text.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        """Take a port of this machine; 0 takes any that is free.

        Raises:
            SinkscopeError: another program has the port, or it may not be taken.
        """
        if not 0 <= port <= 65_535:
            raise SinkscopeError(f"serve --port {port}: ports go from 0 (any that is free) to 65535.")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = "another program has it" if error.errno == errno.EADDRINUSE else str(error.strerror)
            raise SinkscopeError(
                f"serve --port {port}: this port can't be taken: {why}. Choose another, or 0 for any that is free."
            ) from None
        self.secret, self.page = secrets.token_urlsafe(24), ""
        self.answers: dict[str, Answer] = {}

    @property
    def origins(self) -> tuple[str, str]:
        """Addresses that a browser on this machine may call the page by."""
        return f"http://{HOST}:{self.server_port}", f"http://localhost:{self.server_port}"

    @property
    def address(self) -> str:
        """Address of the page, with the secret."""
        return f"{self.origins[0]}/?secret={self.secret}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, but not where a browser has gone away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer  # type: ignore[assignment] - no other server makes this handler
    server_version, sys_version = "sinkscope", ""
    timeout = 60
    """Seconds that a silent connection is held."""

    def do_GET(self) -> None:
        """Give the page."""
        address = urlsplit(self.path)
        given = parse_qs(address.query).get("secret", [""])[0]
        if not self._trusted(given):
            return
        if address.path != "/":
            self._send(HTTPStatus.NOT_FOUND, "There is one page here, at /.")
            return
        self._send(HTTPStatus.OK, self.server.page, "text/html")

    def do_POST(self) -> None:
        """Answer a question."""
        if not self._trusted(self.headers.get(SECRET, ""), self.headers.get("Origin")):
            return
        answer = self.server.answers.get(self.path)
        if answer is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"{self.path} is answered by nothing here.")
            return
        question = self._question()
        if question is None:
            return
        try:
            text = answer(question)
        except SinkscopeError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Exception as error:  # the page shall say so, and the server go on
            traceback.print_exc()
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._send(HTTPStatus.OK, text)

    def _trusted(self, secret: str, origin: str | None = None) -> bool:
        """Refuse what was not asked by the page that was opened by the printed address."""
        hosts = [urlsplit(each).netloc for each in self.server.origins]
        if self.headers.get("Host") not in hosts:  # a name of another site that leads here
            self._refuse(HTTPStatus.FORBIDDEN, f"This page is called {hosts[0]}.")
        elif origin is not None and origin not in self.server.origins:
            self._refuse(HTTPStatus.FORBIDDEN, "Another site's page asks.")
        elif not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "Open the address that sinkscope serve printed, with the secret in it.")
        else:
            return True
        return False

    def _question(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdigit():
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Questions are JSON.")
            return None
        if int(length) > MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "This text is too long for the page. Use sinkscope run.")
            return None
        try:
            question = json.loads(self.rfile.read(int(length)))
        except ValueError:
            question = None
        if not isinstance(question, dict):
            self._refuse(HTTPStatus.BAD_REQUEST, "Questions are JSON objects.")
            return None
        return question

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # a question may be left unread
        self._send(status, json.dumps({"error": why}), "application/json")

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        content = text.encode("utf-8")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests off the terminal."""
