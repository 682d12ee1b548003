"""Every public function of ``metrics`` and ``plot``, each argument wrong in every way: our errors, or answers."""

import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import metrics, plot, testing
from sinkscope.probes import LogSumExp, RowSum

HOSTILE = (
    10**400,
    None, True, -1, 1.5, math.nan, math.inf, "\ud800", "$x", [], [1.5], [[1], [1, 2]], {"a": 1}, object(), b"a",
    slice(None), sk.KeyMass, xr.DataArray(1.0), xr.DataArray(np.full((2, 2), np.nan), dims=("a", "b")), xr.Dataset(),
    np.zeros((0, 3)), np.array(["a"]), np.array(5),
    xr.Dataset({"key_mass": ("prompt", [1.0])}, attrs={"dtype": "float32"}),
)  # fmt: skip


UNUSUAL = ("metrics.phi_gap",)
"""Functions that find nothing to measure in a tiny random model: only that they say so."""


@pytest.fixture(scope="module")
def reading():
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 5, 9, 4, 7, 8], [1, 6, 2, 5, 3, 9]], model)
    probes = [
        sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.MaxAttention(keys="all", queries="all"), RowSum(),
        LogSumExp(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm(), sk.MassiveActivations(top=3),
        sk.SinkDims(), sk.AttentionMap(layers=[0, 1], heads=[0, 1, 2, 3]), sk.TokenLoss(), sk.WriteNorm(),
    ]  # fmt: skip
    found = sk.run(model, prompts, probes)
    return found.assign(output_rank=xr.full_like(found.write_norm.isel(key=0, drop=True), 2.0))


def right_arguments(name, reading):
    """One right value for each argument that ``name`` needs; what it draws or measures is of no matter here."""
    maps = reading.attention.fillna(0.0)
    per_head = reading.key_mass.isel(key=0).mean("prompt")
    profile = per_head.mean("head")
    sinks = reading.key_mass.isel(layer=0, head=0) > 0.3
    image = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    square = np.random.default_rng(0).random((6, 6))
    needs_grid = xr.DataArray(square[0], dims="key", coords={
        "grid_row": ("key", [0, 0, 0, 1, 1, 1]), "grid_col": ("key", [0, 1, 2, 0, 1, 2])})  # fmt: skip
    edits = xr.DataArray([0.1, 0.2], dims="edit", coords={"edit": ["a", "b"]})
    by_gamma = xr.DataArray([0.1, 0.2], dims="gamma", coords={"gamma": [0.5, 1.0]})
    by_count = xr.DataArray([0.1, 0.2], dims="masked", coords={"masked": [1, 2]})
    pairs = xr.DataArray(square, dims=("query", "key"))
    figure, axes = plt.subplots()
    given = {
        "metrics.attention_rollout": (square[None],),
        "metrics.at_block_inputs": (reading.residual_norm, [0, 1]),
        "metrics.attention_ratio": (square, (0, 0, 2, 2)),
        "metrics.background_overlap": (sinks, sinks),
        "metrics.background_share": (reading.assign(phi=reading.phi), sinks),
        "metrics.best_crop": (square, (60.0, 60.0), 20.0),
        "metrics.box_iou": ([0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]),
        "metrics.by_stage": (per_head,),
        "metrics.chair": ([["dog"], ["cat", "dog"]], [["dog"], ["cat"]]),
        "metrics.mask_iou": (np.eye(3) > 0, np.ones((3, 3)) > 0),
        "metrics.objects_named": ("a dog", dict(names={"dog": "dog"})),
        "metrics.pope_scores": (np.array([True, False]), np.array([True, True])),
        "metrics.says_yes": ("Yes.",),
        "metrics.colour_complexity": (image,),
        "metrics.compare": (reading.entropy, dict(to=reading.entropy + 0.1)),
        "metrics.debias": (square, metrics.Trend(1.0, 0.1, 0.9)),
        "metrics.exit_layer": ([0.1, 0.99, 1.0], [2.0, 1.0, 1.0]),
        "metrics.funnel_crops": (square, (60.0, 60.0), 20.0),
        "metrics.fused_contrast": ([square], [square]),
        "metrics.gaze_shift": (np.random.default_rng(0).random((2, 2, 4, 6)),),
        "metrics.head_list": (per_head > 0.3,),
        "metrics.head_diversity": (np.random.default_rng(0).random((2, 6, 6)),),
        "metrics.keep_frequency": (square, 2),
        "metrics.matched_controls": (sinks & (reading.token_role == "bos"),),
        "metrics.padding_patches": ((40.0, 20.0), 4, 4),
        "metrics.paint_tokens": (square[0], square[1]),
        "metrics.patch_background": (np.eye(6) > 0, 3, 3),
        "metrics.patch_entropy": (image, 3, 3),
        "metrics.phi": (square, [0, 1]),
        "metrics.positional_trend": (square[0],),
        "metrics.random_heads": (xr.DataArray(np.eye(2, 4) > 0, dims=("layer", "head")),),
        "metrics.rank_correlation": (per_head, per_head),
        "metrics.retrieval_score": (np.zeros((2, 1, 2), int), [4, 5], [4, 5, 6, 7], (0, 2)),
        "metrics.secondary_sinks": (np.random.default_rng(0).random((4, 6, 8)),),
        "metrics.sink_logit_gap": (square, np.arange(6), 0),
        "metrics.smallest_effect": (xr.DataArray([0.1, 0.2, 0.3], dims="prompt"),),
        "metrics.sublayer_peak": ({"a": square.astype(np.float32)},),
        "metrics.texture_complexity": (image,),
        "metrics.token_saliency": (square[0], np.array([1, 2])),
        "plot.activation_surface": (xr.DataArray(square, dims=("key", "dim")),),
        "plot.attention_map": (maps.isel(prompt=0, layer=0, head=0),),
        "plot.caption": (figure, "text"),
        "plot.effect_bars": (edits,),
        "plot.grouped_bars": (xr.DataArray(square[:2, :2], dims=("edit", "role")),),
        "plot.head_curves": (per_head.expand_dims(gamma=[0.5, 2.0]),),
        "plot.head_class_map": (xr.where(per_head > 0.3, "sink", "other"),),
        "plot.interval_dots": (edits,),
        "plot.layer_profile": (profile,),
        "plot.mark_patches": ({"a": np.zeros((2, 4))}, dict(ax=axes)),
        "plot.massive_activations_picture": (reading.isel(prompt=0, site=-1),),
        "plot.log_scale": (axes,),
        "plot.masking_curve": (by_count,),
        "plot.max_attention_histogram": (per_head,),
        "plot.norm_profile": (reading.residual_norm.mean(["prompt"]),),
        "plot.pair_map": (pairs,),
        "plot.panels": (plot.sink_map, {"a": per_head}, {}),
        "plot.patch_overlay": (image, needs_grid),
        "plot.phi_vs_attention": (needs_grid, needs_grid),
        "plot.role_share_by_layer": (reading.role_share.mean(["prompt", "head"]),),
        "plot.sweep_curve": (by_gamma,),
        "plot.theme": (),
        "plot.token_label": ("a",),
        "plot.token_labels": (["a"],),
        "plot.top_values_by_layer": (abs(reading.top_value.mean("prompt")), reading.median_abs.mean("prompt")),
        "plot.value_drain": (profile, profile),
    }  # fmt: skip
    if name in given:
        values = list(given[name])
        options = values.pop() if values and isinstance(values[-1], dict) and name != "metrics.sublayer_peak" else {}
        return values, options
    usual = {"xr.Dataset": reading, "xr.DataArray": per_head, "ArrayLike": square}
    function = getattr(sk, name.split(".")[0]).__dict__[name.split(".")[1]]
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return [usual[str(p.annotation).split(" | ")[0]] for p in needed if p.kind is not p.VAR_KEYWORD], {}


def functions(module):
    for name in module.__all__:
        function = getattr(module, name)
        if inspect.isfunction(function) and name != "metric":
            yield f"{module.__name__.split('.')[-1]}.{name}"


@pytest.mark.parametrize("name", [*functions(metrics), *functions(plot)])
@pytest.mark.filterwarnings("ignore::sinkscope.errors.SinkscopeWarning")
def test_no_argument_lets_a_raw_error_out(name, reading):
    module, _, own = name.partition(".")
    function = getattr(getattr(sk, module), own)
    given, options = right_arguments(name, reading)
    bound = inspect.signature(function).bind(*given, **options)
    if name not in UNUSUAL:
        function(*given, **options)
    raw = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for hostile in HOSTILE:
            changed = {**bound.arguments, parameter.name: hostile}
            try:
                function(**changed)
            except sk.SinkscopeError:
                pass
            except RuntimeWarning:
                assert hostile is math.inf, (parameter.name, hostile)  # NumPy says that the answer is NaN
            except BaseException as error:
                raw.append(f"{parameter.name}={hostile!r}: {type(error).__name__}: {error}")
            plt.close("all")
    assert not raw, "\n".join(raw)


def test_what_is_asked_found_and_to_do(reading):
    with pytest.raises(sk.MetricError, match=r"^sink_rate\(ds=\): expected a reading .*, got str\. Pass what"):
        metrics.sink_rate("reading.nc")
    with pytest.raises(sk.MetricError, match=r"^by_stage\(array=\): expected a labelled array \(xarray\.DataArray\)"):
        metrics.by_stage([1.0, 2.0])
    with pytest.raises(sk.MetricError, match=r"^attention_rollout\(residual=1\): expected True or False, got 1\."):
        metrics.attention_rollout(np.eye(3)[None], residual=1)
    with pytest.raises(sk.MetricError, match=r"^collapse\(values=\): expected an array of numbers, not empty, got"):
        metrics.collapse([])
    misfit = r"^norm_weighted: what was given does not fit \(ValueError: .*\)\. Given: attention \(2, 3\), norms \(4,\)"
    with pytest.raises(sk.MetricError, match=misfit) as caught:
        metrics.norm_weighted(np.ones((2, 3)), np.ones(4))
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(sk.SchemaError, match=r"^sink_map\(ax=\): expected matplotlib axes, got int\. Leave it out"):
        plot.sink_map(reading.key_mass.isel(key=0).mean("prompt"), ax=3)


def test_python_itself_says_what_is_missing():
    with pytest.raises(TypeError, match="argument: 'ds'"):
        metrics.sink_rate()


def test_arrays_of_other_kinds_are_taken(reading):
    import torch

    assert metrics.collapse(torch.eye(3)) == metrics.collapse(np.eye(3)) == metrics.collapse(np.eye(3).tolist())
    assert metrics.sink_rate(reading, np.float32(0.3), np.int64(0)) == metrics.sink_rate(reading, 0.3, 0)
    assert metrics.sink_rate(reading, over=np.array(["prompt"])).sizes == {"layer": 3, "head": 4}


def test_what_is_drawn_may_be_given_by_its_name(reading):
    assert plot.value_drain(sink=reading.value_norm[0, :, 0, 0], others=reading.value_norm[0, :, 0, 1]).lines
    with pytest.raises(TypeError, match="argument: 'sink'"):
        plot.value_drain(others=reading.value_norm[0, :, 0, 1])
    plt.close("all")


def test_a_drawing_that_fails_leaves_no_figure(reading):
    plt.close("all")
    with pytest.raises(sk.SchemaError):
        plot.effect_bars(xr.DataArray([0.1], dims="edit"), interval=(xr.DataArray([1.0]), xr.DataArray([1.0])))
    assert plt.get_fignums() == []
