"""``sinkscope serve``: it opens the page with the model beside it, ends by Ctrl-C, and says what is in its way."""

import socket
import threading
import urllib.request
from pathlib import Path

import pytest

import sinkscope as sk
from sinkscope.cli import main
from sinkscope.cli.live.server import PageServer


@pytest.fixture(scope="module")
def model() -> sk.Model:
    return sk.load_model("zoo:lm-python")


@pytest.fixture(scope="module")
def readings(model: sk.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = sk.Prompts.from_texts(["def add(left, right):\n    return left + right\n"], model)
    return sk.save(sk.run(model, prompts, [sk.KeyMass()]), tmp_path_factory.mktemp("readings") / "r.nc")


def test_the_address_that_is_printed_gives_the_page(
    readings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def once(self: PageServer, poll_interval: float) -> None:
        address = capsys.readouterr().out.split()[2]
        self.timeout = 10
        asking = threading.Thread(target=lambda: seen.append(urllib.request.urlopen(address).read().decode()))
        asking.start()
        self.handle_request()
        asking.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", once)
    assert main(["serve", str(readings), "--port", "0", "--no-browser"]) == 0
    assert "Try a text" in seen[0]
    assert "zoo:lm-python measures what you type" in seen[0]
    assert capsys.readouterr().out == "Stopped.\n"


def test_what_is_in_the_way_is_said(
    readings: Path, model: sk.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", str(readings), "--port", port, "--no-browser"]) == 1
    assert f"serve --port {port}: this port can't be taken: another program has it." in capsys.readouterr().err

    gone = sk.save(sk.open(readings).assign_attrs(model_id="gone-away"), tmp_path / "gone.nc")
    assert main(["serve", str(gone), "--port", "0", "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "sinkscope: serve: the model of this reading, 'gone-away', is not here. Name its folder with"
    )
    assert f"sinkscope report {gone}" in said

    assert main(["serve", str(gone), "--port", "0", "--no-browser", "--model", "zoo:bb-1l"]) == 1
    assert "serve: " in capsys.readouterr().err
