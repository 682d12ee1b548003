"""Running entries in processes of their own, so that a crash, a hang or a model too large ends one entry alone.

One parent imports the libraries once and forks; what came out is kept by model type and versions, so that a run that
was stopped goes on where it was.
"""

import hashlib
import json
import os
import resource
import select
import signal
import time
import traceback
from pathlib import Path

import torch
import transformers

import sinkscope.models.backends.lens
import sinkscope.models.backends.own_maps
import sinkscope.models.backends.transformers  # noqa: F401 (once here, not in every child)
from parity.ledger.trial import attempt

LIMIT, PATIENCE, MEMORY = 60, 10, 6 << 30
"""Seconds of a processor and bytes that one entry may take; on a busy machine it is waited for ten times as long."""


def run(entries, folder, jobs=1, reuse="same", tell=print):
    """Try ``entries`` and return their rows.

    What ``folder`` holds already is not tried again: where it is of the ``"same"`` code and versions, or was ``"kept"``
    of whatever code; ``""`` tries all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    code = _code()
    todo = [entry for entry in entries if not _has(folder / f"{entry.model_type}.json", reuse, code)]
    running = {}
    while todo or running:
        while todo and len(running) < jobs:
            entry = todo.pop(0)
            running[_start(entry)] = (entry, time.monotonic())
        _collect(running, folder, code, tell)
    return [json.loads((folder / f"{entry.model_type}.json").read_text()) for entry in entries]


def _code():
    """What a result depends on: the sources of sinkscope and of the ledger, and the versions of the libraries."""
    root = Path(__file__).parents[3]
    files = sorted([*(root / "sinkscope").rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    found = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _has(file, reuse, code):
    return bool(reuse) and file.exists() and (reuse == "kept" or json.loads(file.read_text()).get("code") == code)


def _start(entry):
    """Fork; the child writes its row into a pipe and is gone."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY + _mapped(), MEMORY + _mapped()))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            row = json.dumps(attempt(entry), default=str).encode()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(row)
            code = 0
        except BaseException:
            os.write(writer, json.dumps({"end": "crash", "note": traceback.format_exc()[-400:]}).encode())
        finally:
            os._exit(code)
    os.close(writer)
    return child, reader


def _mapped():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _processor(child):
    """Seconds that a process has computed for."""
    user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _collect(running, folder, code, tell):
    """Take what is ready; end what has had its time."""
    ready, _, _ = select.select([reader for _, reader in running], [], [], 0.5)
    for key in list(running):
        child, reader = key
        entry, begun = running[key]
        late = max(_processor(child), (time.monotonic() - begun) / PATIENCE) > LIMIT
        if reader not in ready and not late:
            continue
        text = b""
        if late:
            os.kill(child, signal.SIGKILL)
        else:
            while part := os.read(reader, 1 << 16):
                text += part
        os.close(reader)
        os.waitpid(child, 0)
        del running[key]
        lost = {"end": "crash", "note": f"over {LIMIT} seconds" if late else "the process died"}
        row = {"model_type": entry.model_type, "cls": entry.cls, "group": entry.group, "code": code} | (
            json.loads(text) if text else lost
        )
        (folder / f"{entry.model_type}.json").write_text(json.dumps(row))
        tell(f"{row['end']:9} {row.get('seconds', 0):5.1f} s  {entry.model_type}: {row['note'][:150]}")
