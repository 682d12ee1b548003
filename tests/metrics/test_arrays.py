import numpy as np
import pytest
import torch

from sinkscope.errors import MetricError
from sinkscope.metrics import arrays, normalisers

from .readings import A5, A5_SELF


def test_importance_score_vector():
    np.testing.assert_allclose(arrays.importance_score(A5), [0.66, 0.125, 0.35, 0.05, 0.05])
    np.testing.assert_allclose(arrays.importance_score(A5_SELF), [0.26, 0.325, 1 / 3, 0.4, 0.6])


def test_row_and_column_entropy_vectors():
    rows, columns = arrays.row_entropy(A5), arrays.column_entropy(A5)
    np.testing.assert_allclose(rows, [0, 0.721928, 0.817345, 0.789195, 0.784662], atol=1e-6)
    np.testing.assert_allclose(columns, [0.967408, 0.960964, 0.993787, 1, 0], atol=1e-6)
    assert rows.mean() == pytest.approx(0.622626, abs=1e-6)
    assert arrays.column_entropy(np.stack([A5, A5_SELF])).shape == (2, 5)


def test_sink_logit_gap_vector():
    logits = [[2, 9, 9, 9, 9], [3, 1, 9, 9, 9], [4, 0, 1, 9, 9], [5, 1, -1, 2, 9], [6, 2, 0, 1, 3]]
    found = arrays.sink_logit_gap(logits, [65, 1, 2, 1, 3], bos=65)
    assert {t: found[t] for t in (1, 2, 3)} == {1: (0.0, 5.0), 2: (0.0, 4.0), 3: (1.0, 5.0)}
    assert np.isnan(found[65]).all()


def test_matrix_entropy_vectors():
    rows = np.eye(4, 6)
    big = rows * np.array([[100], [1], [1], [1]])
    assert arrays.matrix_entropy(rows) == pytest.approx(1.386294, abs=1e-6)
    assert arrays.matrix_entropy(big) == pytest.approx(0.003062, abs=1e-6)
    assert arrays.matrix_entropy(big, without=0) == pytest.approx(1.098612, abs=1e-6)
    assert np.isnan(arrays.matrix_entropy(np.zeros((2, 3))))


def test_collapse_vector():
    assert arrays.collapse([[1, 0], [0, 1], [1, 1]]) == pytest.approx(1.154701, abs=1e-6)


def test_rollout_vectors():
    two = np.stack([A5, A5])
    np.testing.assert_allclose(arrays.attention_rollout(two)[-1], [0.765, 0.07, 0.1575, 0.005, 0.0025])
    np.testing.assert_allclose(
        arrays.attention_rollout(two, residual=True)[-1], [0.39125, 0.0675, 0.239375, 0.02625, 0.275625]
    )
    with pytest.raises(MetricError, match=r"expected \(layer, query, key\), got \(5, 5\)"):
        arrays.attention_rollout(A5)


def test_norm_weighted_vector():
    weighted = arrays.norm_weighted(A5, [0.1, 1, 2, 1, 1])[-1]
    np.testing.assert_allclose(weighted, [0.04, 0.1, 0.8, 0.05, 0.05])
    np.testing.assert_allclose(weighted / weighted.sum(), [0.038462, 0.096154, 0.769231, 0.048077, 0.048077], atol=1e-6)


def test_phi_vector():
    state = np.tile(np.where(np.arange(4096) % 2, -1.0, 1.0), (8, 1))
    state[0, 1415], state[3, 2533], state[5, 1415], state[4, 777] = 60, -45, 15, 500
    found = arrays.phi(state, [2533, 1415])
    np.testing.assert_allclose(found, [43.7751, 1, 1, 36.8143, 0.1270, 14.6059, 1, 1], atol=1e-4)
    assert np.nonzero(found >= 20)[0].tolist() == [0, 3]


def test_head_divergence_vector():
    image = np.array([[[1, 0], [0, 3], [2, 2], [0.5, 0.5]]])
    blank = np.array([[[1, 1], [0, 0], [2, 0], [0.5, 0.4]]])
    divergence = arrays.head_divergence(image, blank)
    np.testing.assert_allclose(divergence, [[1, 3, 2, 0.1]])
    assert np.nonzero(arrays.vision_aware_heads(divergence, blank)[0])[0].tolist() == [1, 2]
    assert np.sort(divergence[0])[-2:].sum() == pytest.approx(5.0)


def test_vision_aware_heads_drop_the_one_that_surges_without_the_image():
    blank = np.array([[[9, 0], [0, 0], [0, 0], [0, 0.1]]])
    assert not arrays.vision_aware_heads([[9.0, 1.0, 2.0, 0.5]], blank)[0, 0]


@pytest.mark.parametrize(("values", "expected"), [([1, 0, 0, 0], 1.0), ([2, 2, 2, 2], 0.0), ([3, 4, 0, 0], 0.6)])
def test_hoyer_sparsity_vectors(values, expected):
    assert arrays.hoyer_sparsity(values) == pytest.approx(expected)


def test_hoyer_sparsity_of_nothing_is_nan():
    assert np.isnan(arrays.hoyer_sparsity([0.0, 0.0]))


def test_maps_must_be_square():
    with pytest.raises(MetricError, match=r"importance_score: expected maps of shape .* got \(2, 3\)"):
        arrays.importance_score(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("softmax", [0.643914, 0.087144, 0.032059, 0.236883]),
        ("softmax1", [0.592299, 0.080159, 0.029489, 0.217895]),
        ("softpick", [0.731059, 0, 0, 0.196612]),
        ("clipped", [0.652549, 0.062373, 0.003982, 0.221096]),
        ("sigmoid", [0.880797, 0.5, 0.268941, 0.731059]),
        ("relu", [0.5, 0, 0, 0.25]),
    ],
)
def test_normaliser_vectors(name, expected):
    np.testing.assert_allclose(normalisers.NORMALISERS[name]([2, 0, -1, 1]), expected, atol=1e-6)


def test_learned_sink_and_affine_vectors():
    row = [2, 0, -1, 1]
    np.testing.assert_allclose(normalisers.with_null_key(row, 1.0), [0.520594, 0.070455, 0.025919, 0.191516], atol=1e-6)
    affine = normalisers.affine(row, 0.3, 0.6)
    np.testing.assert_allclose(affine, [0.268174, 0.101143, 0.084618, 0.146065], atol=1e-6)
    assert affine.sum() == pytest.approx(0.6)


def test_softpick_does_not_overflow_and_ignores_negative_rows():
    np.testing.assert_allclose(normalisers.softpick([1000.0, 0.0]), [1.0, 0.0])
    np.testing.assert_array_equal(normalisers.softpick([-1.0, -2.0]), [0.0, 0.0])


def test_a_residual_sink_stands_out_at_most_tokens_and_a_massive_activation_at_one():
    rng = np.random.default_rng(0)
    states = np.where(rng.random((8, 40)) < 0.5, -1.0, 1.0)
    states[0, 7] = 500.0  # massive at the first token
    states[:6, 3] = -30.0  # large at six of eight
    states[:, 5] = 9.0  # not over the ratio
    found = arrays.residual_sinks(states)
    assert found.shape == (40,)
    assert (found[3], found[7], found[5]) == (0.75, 0.125, 0.0)
    assert np.flatnonzero(found > 0.5).tolist() == [3]
    assert arrays.residual_sinks(states[None], 5.0)[0, 5] == 1.0
    for wrong, ratio in ((states[0], 10.0), (states, 0.0)):
        with pytest.raises(MetricError, match=r"residual_sinks\(ratio="):
            arrays.residual_sinks(wrong, ratio)


def test_tokens_beyond_a_prompts_end_do_not_count_in_residual_sinks():
    states = np.ones((2, 4, 8))
    states[..., 3] = 100.0
    states[1, 2:] = np.nan
    np.testing.assert_array_equal(arrays.residual_sinks(states), np.eye(8)[[3, 3]])
    assert np.isnan(arrays.residual_sinks(states[1, 2:])).all(), "no token is left"


def test_what_is_no_array_of_numbers_is_described():
    with pytest.raises(
        MetricError, match=r"hoyer_sparsity\(values=\): .*got ndarray of shape \(0, 4\) and type float64"
    ):
        arrays.hoyer_sparsity(np.zeros((0, 4)))
    with pytest.raises(MetricError, match=r"hoyer_sparsity\(values=\): .*graph of gradients\. Pass values\.detach\(\)"):
        arrays.hoyer_sparsity(torch.ones(3, requires_grad=True))
