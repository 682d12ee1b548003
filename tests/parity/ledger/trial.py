"""Trying one entry: build it small, run it by itself, then under sinkscope, and say how it ended."""

import time
import traceback
import warnings

import torch
import transformers

import sinkscope as sk
from parity.ledger import inputs, shrink
from parity.ledger.compare import Comparison, first_line
from sinkscope.models.backends.discovery import no_cache
from sinkscope.testing.tiny import randomise

TOLERANCE = 1e-4
"""Largest difference, relative to the largest number above 1, at which an entry counts as exact."""

LARGEST = 30_000_000
"""Parameters above which a model was not made small enough to be tried."""


def attempt(entry):
    """Try one entry and return its row: it ends ``exact``, ``refused``, ``not built``, ``wrong`` or ``crash``."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    row = {
        "model_type": entry.model_type,
        "cls": entry.cls,
        "group": entry.group,
        "note": "",
        "off": {},
        "left_out": {},
    }
    try:
        network, kind, rows = built(entry)
    except NotBuiltError as error:
        return row | {"end": "not built", "note": str(error), "seconds": time.monotonic() - begun}
    row |= _read(network, kind, rows)
    return row | {"seconds": round(time.monotonic() - begun, 2)}


class NotBuiltError(Exception):
    """The model does not run here by itself."""


def built(entry):
    """The small random model, how it is called, and its inputs; float64 where the model allows it.

    Raises:
        NotBuiltError: it cannot be built or run by itself.
    """
    torch.manual_seed(0)
    try:
        config = shrink.shrink(entry.model_type)
        network = getattr(transformers, entry.cls)(config)
    except Exception as error:
        raise NotBuiltError(f"configuration: {type(error).__name__}: {first_line(error)}") from error
    if sum(p.numel() for p in network.parameters()) > LARGEST:
        raise NotBuiltError(f"it has {sum(p.numel() for p in network.parameters()):,} parameters when made small")
    randomise(network, 0, 0.15)
    network.eval()
    problem = None
    try:
        for kind, rows in inputs.forms(network):
            given, error = _run(network, rows)
            if given is not None:
                return network, kind, given
            problem = problem or error
    except Exception as error:
        raise NotBuiltError(f"inputs: {type(error).__name__}: {first_line(error)}") from error
    raise NotBuiltError(f"its own forward pass: {type(problem).__name__}: {first_line(problem)}") from problem


def _run(network, rows):
    """The inputs in the type of numbers in which the model runs, or what it raised."""
    problem = None
    for dtype in (torch.float64, torch.float32):
        network.to(dtype)
        cast = [{name: t.to(dtype) if t.is_floating_point() else t for name, t in row.items()} for row in rows]
        try:
            with torch.no_grad():
                for row in cast:
                    network(**row, **no_cache(network))
        except Exception as error:
            problem = error
            continue
        return cast, None
    return None, problem


def _read(network, kind, rows):
    """How sinkscope reads it."""
    row = {"kind": kind, "dtype": str(network.dtype).removeprefix("torch.")}
    try:
        model = sk.load_model(network)
        able = model.capabilities()
        row |= {
            "reading": able.reading,
            "backend": able.backend,
            "edits": able.edits,
            "towers": able.towers,
            "why_not": able.why_not,
        }
        if able.reading == "none":
            return row | {"end": "refused", "note": able.why_not}
        found = Comparison(network, model, kind, rows).everything()
    except sk.errors.SinkscopeError as error:
        return row | {"end": "refused", "note": f"{type(error).__name__}: {error}"}
    except Exception as error:
        return row | {
            "end": "crash",
            "note": f"{type(error).__name__}: {first_line(error)}",
            "trace": traceback.format_exc()[-1500:],
        }
    off, left = found.off, found.left_out
    worst = max(off.values(), default=float("inf"))
    if not off:
        return row | {"end": "wrong", "note": "nothing could be compared", "left_out": left}
    what = [name for name, value in off.items() if not value <= TOLERANCE]
    return row | {
        "end": "exact" if not what else "wrong",
        "note": ", ".join(what),
        "worst": worst,
        "off": off,
        "left_out": left,
    }
