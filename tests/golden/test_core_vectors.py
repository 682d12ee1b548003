"""Published test vectors of the core statistics, run through the pass and the probes themselves.

The attention matrices are those of the papers' sheets: queries and keys are chosen so that the logits are their
logarithms, so the pass has to give them back.
"""

import math
from types import SimpleNamespace

import oracle
import pytest
import torch
from transformers.masking_utils import causal_mask_function

import sinkscope as sk
from sinkscope import registry
from sinkscope.attention.blockwise import attend
from sinkscope.attention.call import Call
from sinkscope.attention.masks import MaskSpec
from sinkscope.attention.view import Ask, Context, Wants

A5 = [
    [1, 0, 0, 0, 0],
    [0.8, 0.2, 0, 0, 0],
    [0.6, 0.1, 0.3, 0, 0],
    [0.5, 0.1, 0.35, 0.05, 0],
    [0.4, 0.1, 0.4, 0.05, 0.05],
]
GU_H1 = [
    [1, 0, 0, 0, 0],
    [0.1, 0.9, 0, 0, 0],
    [0.1, 0.2, 0.7, 0, 0],
    [0.05, 0.15, 0.2, 0.6, 0],
    [0.05, 0.05, 0.1, 0.2, 0.6],
]
KANG_ROW = [0.40, 0.05, 0.05, 0.20, 0.10, 0.05, 0.05, 0.10]


def call_of(*maps):
    """A call whose attention maps are these, one head each."""
    wanted = torch.tensor(maps)[None]
    rows, keys = wanted.shape[2:]
    query = torch.eye(rows).expand(1, len(maps), rows, rows)
    key = wanted.clamp(min=1e-30).log().transpose(2, 3)
    value = torch.randn(1, len(maps), keys, rows, generator=torch.Generator().manual_seed(0))
    spec = MaskSpec(1, rows, keys, 0, 0, causal_mask_function, None, False, torch.device("cpu"))
    return Call(query, key, value, spec, scale=1.0)


def statistics(call, roles=None, maxima=()):
    keys = call.key.shape[2]
    roles = torch.zeros(1, keys, dtype=torch.long) if roles is None else torch.tensor([roles])
    context = Context(torch.ones(1, keys, dtype=torch.bool), roles, (0, 1, 2))
    plain = [name for name in registry.names("statistic") if name not in ("max_weight", "map")]
    largest = [Ask("max_weight", {"keys": torch.tensor([m])}) for m in maxima]
    wants = Wants(*plain, *largest, Ask("map", {"heads": tuple(range(call.query.shape[1]))}))
    return attend(call, wants, context)[1]


def test_gu_importance_scores():
    """Gu et al. 2025: alpha_k is the mean over rows i >= k, the first row and the diagonal included."""
    stats = statistics(call_of(A5, GU_H1))
    alpha = stats["key_sum"] / stats["key_viewers"][:, None]
    assert alpha[0, 0].tolist() == pytest.approx([0.66, 0.125, 0.35, 0.05, 0.05], abs=1e-6)
    assert alpha[0, 1].tolist() == pytest.approx([0.26, 0.325, 1 / 3, 0.4, 0.6], abs=1e-6)
    scene = SimpleNamespace()
    assert torch.equal(sk.KeyMass().at_layer(stats, scene, 0)["key_mass"], alpha)


def test_gu_sink_rates_follow_from_the_scores():
    """Share of heads above the threshold, per position, for the thresholds of the sheet."""
    stats = statistics(call_of(A5, GU_H1))
    alpha = (stats["key_sum"] / stats["key_viewers"][:, None])[0]
    expected = {0.2: [100, 50, 100, 50, 50], 0.3: [50, 50, 100, 50, 50], 0.5: [50, 0, 0, 0, 50]}
    for threshold, wanted in expected.items():
        assert (100 * (alpha > threshold).float().mean(0)).tolist() == wanted


def test_the_maps_come_back():
    torch.testing.assert_close(statistics(call_of(A5))["map"][0, 0], torch.tensor(A5), rtol=0, atol=1e-6)


def test_guo_row_entropies():
    """Guo et al. 2024: row entropies of A5 over ln(i + 1) are [0, .721928, .817345, .789195, .784662]."""
    entropy = statistics(call_of(A5))["entropy"][0, 0]
    scaled = [0.0, *(entropy[i].item() / math.log(i + 1) for i in range(1, 5))]
    assert scaled == pytest.approx([0, 0.721928, 0.817345, 0.789195, 0.784662], abs=2e-6)
    assert sum(scaled) / 5 == pytest.approx(0.622626, abs=2e-6)
    assert entropy[0] == 0


def test_kang_visual_share_of_a_row():
    """Kang et al. 2025: visual positions 2..5 of the row hold 0.4 of it."""
    rows = [[1.0] + [0.0] * 7] * 7 + [KANG_ROW]
    shares = statistics(call_of(rows), roles=[0, 1, 2, 2, 2, 2, 1, 1])["role_share"][0, 0, -1]
    assert shares.tolist() == pytest.approx([0.40, 0.20, 0.40], abs=1e-6)


def test_kang_phi():
    """Kang et al. 2025: phi over channels {1415, 2533} of a stream of alternating +1 and -1 with four spikes."""
    hidden = torch.ones(1, 8, 4096)
    hidden[..., 1::2] = -1
    hidden[0, 0, 1415], hidden[0, 3, 2533], hidden[0, 5, 1415], hidden[0, 4, 777] = 60, -45, 15, 500
    scene = SimpleNamespace(batch=SimpleNamespace(real=torch.ones(1, 8, dtype=torch.bool)))
    found = sk.SinkDims(dims=[1415, 2533]).at_site(hidden, scene)["phi"][0]
    assert found.tolist() == pytest.approx([43.7751, 1, 1, 36.8143, 0.1270, 14.6059, 1, 1], abs=5e-5)
    assert (found >= 20).nonzero()[:, 0].tolist() == [0, 3]


def test_sun_median_and_tops():
    """Sun et al. 2024: the lower middle of these magnitudes is 0.2; so is our mid-point. Tops are signed."""
    magnitudes = torch.tensor([0.1, 0.2, 250, 0.3, -0.2, 0.1, -0.1, -120]).reshape(1, 2, 4)
    scene = SimpleNamespace(batch=SimpleNamespace(real=torch.ones(1, 2, dtype=torch.bool)))
    found = sk.MassiveActivations(top=2).at_site(magnitudes, scene)
    assert found["median_abs"].item() == pytest.approx(0.2)
    assert found["top_value"].tolist() == [[250, -120]]
    assert found["top_dim"].tolist() == [[2, 3]]
    assert found["top_position"].tolist() == [[0, 1]]


def test_kang_contribution_factors_out_the_weight():
    """Kang et al. 2025, B2: |A v W_O| summed over a role's keys equals A |v W_O| summed."""
    call = call_of(A5, GU_H1)
    write = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)).double()
    stats = statistics(call)
    norms = torch.einsum("hkd,hde->hke", call.value[0].double(), write).norm(dim=-1)
    roles = [0, 1, 1, 2, 1]
    wanted = oracle.contribution(torch.tensor([A5, GU_H1]).double(), call.value[0].double(), write, roles, 3)
    found = oracle.role_share(stats["key_sum"][0].double() * norms, roles, 3) / 5
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_largest_weight_on_a_span():
    """The largest weight of A5's last row on keys 1..3 is that of key 2."""
    stats = statistics(call_of(A5), maxima=[[False, True, True, True, False]])
    assert stats["max_weight"][0, 0].clamp(min=0).tolist() == pytest.approx([0, 0.2, 0.3, 0.35, 0.4], abs=1e-6)
