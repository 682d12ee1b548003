"""Models, inputs and the comparison that the parity tests share."""

from functools import cache

import numpy as np
import torch

import sinkscope as sk
from sinkscope import testing

DECODERS, ENCODERS, VISION = testing.names("decoder"), testing.names("encoder"), testing.names("vision")
DUAL, MULTIMODAL = testing.names("dual"), testing.names("vlm")
SEAM = [*DECODERS, *ENCODERS, *VISION, *DUAL, *MULTIMODAL]
LENGTHS = (12, 7, 9)
TOLERANCE = 1e-5


@cache
def network(name):
    return testing.tiny(name)


@cache
def model(name):
    return sk.load_model(network(name))


def id_lists(name, lengths=LENGTHS, seed=0):
    """Prompts of these lengths as lists of ids."""
    ids = testing.text_ids(network(name), batch=len(lengths), length=max(lengths), seed=seed)
    return [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]


def error(found, wanted):
    """Largest difference, relative to the scale of ``wanted`` where that is above 1."""
    found, wanted = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=float) for x in (found, wanted))
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    assert np.isfinite(wanted).all()
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


def assert_close(found, wanted, what="", tolerance=TOLERANCE):
    difference = error(found, wanted)
    assert difference < tolerance, f"{what}: off by {difference:.2g}"


def padded(lists, side, pad=0):
    """Ids and attention mask padded to the longest on one side."""
    longest = max(map(len, lists))
    ids, mask = torch.full((len(lists), longest), pad), torch.zeros(len(lists), longest, dtype=torch.long)
    for row, one in enumerate(lists):
        span = slice(0, len(one)) if side == "right" else slice(longest - len(one), longest)
        ids[row, span], mask[row, span] = torch.tensor(one), 1
    return ids, mask
