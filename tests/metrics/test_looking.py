"""Maps of where a model looks: the vectors of the sheets, and even or empty maps as controls."""

import numpy as np
import pytest

from sinkscope import metrics
from sinkscope.errors import MetricError

HOT = np.ones((24, 24))
HOT[10:14, 5:9] = 10


def test_relative_attention():
    np.testing.assert_allclose(metrics.relative_attention([0.1, 0.2, 0.4], [0.2, 0.1, 0.1]), [0.5, 2, 4])
    found = metrics.relative_attention([0.1, 0.2, 0.4, 0.05], [0.2, 0.1, 0.1, 0], lam=0.05)
    np.testing.assert_allclose(found, [0.4, 1.333333, 2.666667, 1.0], atol=1e-6)
    assert np.isinf(metrics.relative_attention([0.1], [0.0])[0])


QUESTION = [[0.1, 0.2, 0.4, 0.05], [0.3, 0.3, 0.1, 0.1], [0.1, 0.2, 0.4, 0.05]]
NEUTRAL = [[0.2, 0.1, 0.1, 0.05], [0.1, 0.1, 0.1, 0.2]]


def test_fusion_over_steps():
    found = {steps: metrics.fused_contrast(QUESTION, NEUTRAL, steps) for steps in ("first", "all", "last")}
    np.testing.assert_allclose(found["first"], [0.5, 2, 4, 1], atol=1e-5)
    np.testing.assert_allclose(found["all"], [6.5, 8, 6, 2], atol=1e-5)
    np.testing.assert_allclose(found["last"], [3, 3, 1, 0.5], atol=1e-5)
    with pytest.raises(MetricError, match="the map is zero everywhere"):
        metrics.fused_contrast([np.zeros(4)], NEUTRAL)
    with pytest.raises(MetricError, match=r"fused_contrast\(steps='each'\): use 'all', 'first' or 'last'"):
        metrics.fused_contrast(QUESTION, NEUTRAL, "each")


def test_components_join_by_four_neighbours():
    values = np.zeros((5, 5))
    for (row, column), value in {(0, 0): 9, (1, 1): 8, (0, 3): 5, (0, 4): 5, (2, 3): 2, (4, 0): 4, (4, 4): 3}.items():
        values[row, column] = value
    found = metrics.kept_region(values, 0.28, 2)
    assert np.argwhere(found).tolist() == [[0, 0], [0, 3], [0, 4]]
    with pytest.raises(MetricError, match="not zero everywhere is needed"):
        metrics.kept_region(np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("side", "box"), [(1344, (168, 448, 504, 784)), (672, (0, 56, 336, 392)), (300, (0, 0, 300, 300))]
)
def test_the_window_of_vicrop(side, box):
    assert metrics.best_crop(HOT, (side, side), 336) == pytest.approx(box)


def test_the_funnel_widens_around_the_place_and_stays_in_the_picture():
    boxes = metrics.funnel_crops(HOT, (1344, 1344), 336)
    widths = [right - left for left, _, right, _ in boxes]
    assert widths == sorted(widths)
    assert boxes[0] == metrics.best_crop(HOT, (1344, 1344), 336)
    for left, top, right, bottom in boxes:
        assert 0 <= left <= 5 * 56 < 9 * 56 <= right <= 1344
        assert 0 <= top <= 10 * 56 < 14 * 56 <= bottom <= 1344


def test_the_funnel_is_wider_where_the_map_is_even():
    hot, even = (metrics.funnel_crops(one, (1344, 1344), 336)[2] for one in (HOT**4, np.ones((24, 24))))
    assert even[2] - even[0] > 1.3 * (hot[2] - hot[0])


def test_the_attention_ratio_is_one_for_an_even_map_and_more_where_the_model_looks():
    box = (5, 10, 9, 14)
    assert metrics.attention_ratio(np.full((24, 24), 0.3), box) == pytest.approx(1)
    assert metrics.attention_ratio(HOT, box) > 3
    assert metrics.attention_ratio(HOT, (18, 18, 22, 22)) < 1
    with pytest.raises(MetricError, match=r"attention_ratio\(box=\(0, 0, 25, 2\)\): the map has 24 columns"):
        metrics.attention_ratio(HOT, (0, 0, 25, 2))


def test_entropies_and_complexity():
    assert metrics.map_entropy(np.ones((4, 4))) == pytest.approx(np.log(16))
    assert metrics.map_entropy(np.eye(4)[:1]) == 0
    assert np.isnan(metrics.map_entropy(np.zeros(3)))
    plain = np.full((8, 8, 3), 120, np.uint8)
    noisy = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert metrics.colour_complexity(plain) == 0 < metrics.colour_complexity(noisy) < 1
    assert metrics.texture_complexity(plain) == 0 < metrics.texture_complexity(noisy) < 1
    plain[:4, :4] = noisy[:4, :4]
    found = metrics.patch_entropy(plain, 2, 2)
    assert found[0, 0] > 1
    np.testing.assert_allclose([found[0, 1], found[1, 0], found[1, 1]], 0, atol=1e-12)


def test_texture_complexity_counts_the_pixels_of_edges():
    half = np.zeros((40, 60, 3), np.uint8)
    half[:, 30:] = 255
    # One ridge down the middle, as wide as the two columns that the step lies between.
    assert metrics.texture_complexity(half) == pytest.approx(2 / 60)
    faint = half // 4
    assert 1 / 60 <= metrics.texture_complexity(faint) <= 2 / 60
    assert metrics.texture_complexity(half // 128) == 0
    # A weak edge counts where it hangs together with a strong one.
    ramp = (half * np.linspace(0.03, 1, 40)[:, None, None]).astype(np.uint8)
    assert metrics.texture_complexity(ramp, low=0.05, high=0.5) > metrics.texture_complexity(ramp, low=0.5, high=0.5)


def test_the_gaze_shift_of_the_sheet():
    heads = [
        [[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [0.3, 0.2, 0]], [[0.2, 0.2, 0.2], [0.2, 0.2, 0.3], [0.1, 0.5, 0.3]],
        [[0.1] * 3] * 3, [[0, 0, 0.4], [0.1, 0, 0.1], [0.1, 0.1, 0]],
    ]  # fmt: skip
    np.testing.assert_allclose(metrics.gaze_shift([heads]), [1 / 3, 1, 0], atol=1e-6)
    assert not metrics.gaze_shift(np.full((1, 2, 3, 4), 0.2)).any()
    # At the second word alone heads rise at patch 1 or not at all.
    np.testing.assert_allclose(metrics.gaze_shift([heads], [False, True]), [0, 1, 0], atol=1e-6)
    assert not metrics.gaze_shift([heads], [False, False]).any()
    with pytest.raises(MetricError, match=r"gaze_shift\(words=\.\.\.\): shape \(3,\) for 2 rows"):
        metrics.gaze_shift([heads], [True, True, True])
    with pytest.raises(MetricError, match=r"gaze_shift: expected \(layer, head, row, patch\)"):
        metrics.gaze_shift(heads)


def test_a_sink_draws_attention_and_no_gaze():
    rng = np.random.default_rng(0)
    maps = rng.uniform(0.01, 0.02, (1, 4, 6, 16))
    # Every row looks at patch 3; at the fourth word two heads turn to patch 9.
    maps[..., 3] = 0.5
    maps[:, :2, 4, 9] = 0.3
    assert int(maps.mean((0, 1, 2)).argmax()) == 3
    found = metrics.gaze_shift(maps)
    assert found[9] == 1
    assert found[3] == found.min() == 0
    assert not metrics.gaze_shift(np.repeat(maps[:, :, :1], 6, axis=2)).any()


def test_the_saliency_of_the_sheet():
    row = np.array([0.5, 0.3, 0.2]) * np.array([-1, 2, 0])
    assert metrics.token_saliency(row, [0, 1]) == pytest.approx(0.704203, abs=1e-6)
    assert metrics.token_saliency(np.zeros(3), [0, 1]) == 0
