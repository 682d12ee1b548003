"""The server answers its own page and nobody else; what is wrong with a question is said as JSON."""

import http.client
import json
import socket

import pytest

from sinkscope.cli.live import server as module
from sinkscope.cli.live.server import HOST, MAX_BODY, SECRET, PageServer
from sinkscope.errors import SinkscopeError
from sinkscope.report.payload import unpack


def ask(server, method, path, body=None, **headers):
    """Ask as the page does; a header given as None is left out."""
    sent = {"Host": f"{HOST}:{server.server_port}", SECRET: server.secret, "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    line = http.client.HTTPConnection(HOST, server.server_port, timeout=30)
    line.putrequest(method, path, skip_host=True)
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    for name, value in {**sent, "Content-Length": str(len(data))}.items():
        if value is not None:
            line.putheader(name, value)
    line.endheaders(data[: MAX_BODY + 1])
    answer = line.getresponse()
    text = answer.read().decode()
    line.close()
    return answer, text


QUESTION = {"text": "x = [1, 2, 3]\n", "gamma": 0.5, "last": 5}


def test_the_page_is_given_to_who_knows_the_secret(server):
    answer, text = ask(server, "GET", f"/?secret={server.secret}")
    assert answer.status == 200
    assert text == server.page
    assert "connect-src &#39;self&#39;" in text
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("X-Frame-Options") == "DENY"
    for address in ("/", "/?secret=", "/?secret=wrong", f"/?secret={server.secret}x"):
        answer, text = ask(server, "GET", address)
        assert answer.status == 403
        assert json.loads(text) == {"error": "Open the address that sinkscope serve printed, with the secret in it."}
    assert ask(server, "GET", f"/other?secret={server.secret}")[0].status == 404
    assert server.secret not in server.page


def test_a_question_is_answered_with_a_packed_page(server):
    for origin in (None, *server.origins):
        answer, text = ask(server, "POST", "/run", QUESTION, Origin=origin)
        assert answer.status == 200
        assert unpack(text)[0]["tried"]["gamma"] == 0.5


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Origin": "https://example.org"}, 403, "Another site's page asks."),
        ({"Origin": "null"}, 403, "Another site's page asks."),
        ({"Host": "example.org"}, 403, "This page is called 127.0.0.1:"),
        ({"Host": None}, 403, "This page is called 127.0.0.1:"),
        ({"X_Sinkscope_Secret": "wrong"}, 403, "Open the address that sinkscope serve printed"),
        ({"X_Sinkscope_Secret": None}, 403, "Open the address that sinkscope serve printed"),
        ({"Content_Type": "text/plain"}, 415, "Questions are JSON."),
    ],
)
def test_others_are_refused(server, headers, status, said):
    kept = {"X_Sinkscope_Secret": "X-Sinkscope-Secret"}
    answer, text = ask(server, "POST", "/run", QUESTION, **{kept.get(name, name): v for name, v in headers.items()})
    assert answer.status == status
    assert json.loads(text)["error"].startswith(said)


def test_what_is_no_question_is_refused(server):
    for body, status, said in (
        (b"{", 400, "Questions are JSON objects."),
        (b"\xff", 400, "Questions are JSON objects."),
        (b"[]", 400, "Questions are JSON objects."),
        (b" " * (MAX_BODY + 1), 413, "This text is too long for the page. Use sinkscope run."),
        ({"text": ""}, 422, "There is no text to run. Type a sentence."),
        ({**QUESTION, "text": "x = 1\n" * 80}, 422, "This text has 321 tokens; up to 256 are measured here."),
    ):
        answer, text = ask(server, "POST", "/run", body)
        assert (answer.status, json.loads(text)["error"][: len(said)]) == (status, said)
    assert ask(server, "POST", "/other", QUESTION)[0].status == 404


def test_a_fault_is_said_and_the_server_goes_on(server, capsys):
    server.answers["/fault"] = lambda question: 1 / 0
    answer, text = ask(server, "POST", "/fault", QUESTION)
    assert (answer.status, json.loads(text)) == (500, {"error": "ZeroDivisionError: division by zero"})
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert ask(server, "POST", "/run", QUESTION)[0].status == 200


def test_a_port_that_is_taken_is_said():
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            SinkscopeError, match=f"serve --port {port}: this port can't be taken: another program has it"
        ):
            PageServer(port)
    with pytest.raises(SinkscopeError, match=r"ports go from 0 .any that is free. to 65535"):
        PageServer(70_000)


def test_nothing_beyond_this_machine_reaches_it(server):
    assert server.server_address[0] == "127.0.0.1"
    assert module.HOST == "127.0.0.1"
