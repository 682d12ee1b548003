import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope.errors import SchemaError
from sinkscope.report import find_sinks, findings
from sinkscope.report.findings import _split


def by_state(ds):
    told, _ = findings(ds)
    return {finding.heading: finding for finding in told}


def test_a_planted_sink_is_told_with_its_numbers(reading):
    told, sinks = findings(reading)
    first = reading["key_mass"].isel(key=0).values
    assert sinks.found
    assert sinks.kinds[0].heads == pytest.approx((first > 0.3).mean())
    assert sinks.kinds[0].mass == pytest.approx(first.mean(), rel=1e-5)
    assert told[0].heading == "The sink is the first token “<s>”"
    assert f"{100 * first.mean():.0f}% of the attention" in told[0].text
    assert f"in {100 * (first > 0.3).mean():.0f}% of 216 head readings" in told[0].text
    assert told[0].state == "found"


@pytest.mark.parametrize("dim", ["prompt", "layer", "head", "key"])
def test_a_reading_of_nothing_has_no_findings_and_no_figures(reading, dim):
    nothing = reading.isel({dim: slice(0, 0)})
    with pytest.raises(SchemaError, match=f"findings: this reading has no {dim}: nothing is left of it"):
        findings(nothing)
    with pytest.raises(SchemaError, match=f"sink_map: this reading has no {dim}: nothing is left of it"):
        sk.plot.sink_map(nothing)


def test_entropy_of_which_no_number_is_left_is_said(reading):
    told = by_state(reading.assign(entropy=reading["entropy"] * np.nan))
    assert told["Entropy"].text.startswith("Not measured: entropy holds no number.")


def test_mass_of_which_no_number_is_left_is_no_absent_sink(reading):
    told, sinks = findings(reading.assign(key_mass=reading["key_mass"] * np.nan))
    assert (told[0].heading, told[0].state) == ("Nothing was measured", "missing")
    assert not sinks.found


def test_what_was_not_measured_is_told_with_the_probe_alone(reading):
    told = by_state(reading.drop_vars(["entropy", "value_norm"]))
    assert told["Entropy"].text == "Not measured. Add Entropy() to the probes of the run."
    assert told["Values of the sink"].text == "Not measured. Add ValueNorm() to the probes of the run."


def test_no_kinds_of_heads_are_told_of_no_number(reading):
    finding = by_state(reading.assign(max_attention=reading["max_attention"] * np.nan))["Kinds of heads"]
    assert finding.state == "missing"
    assert finding.text.startswith("max_attention holds no number")


def test_the_drain_is_told(reading):
    norm = reading["value_norm"].values.astype(float)
    ratio = norm[..., 0] / np.nanmedian(norm[..., 1:], axis=-1)
    finding = next(f for f in findings(reading)[0] if f.heading.startswith("Its values are"))
    assert 0.5 < ratio.mean() < 0.9
    expected = f"Its values are shorter ({100 * ratio.mean():.0f}% of the others' length), not drained"
    assert (finding.heading, finding.state) == (expected, "absent")
    assert f"{ratio.mean(axis=(0, 2)).min():.3g}, in layer 5" in finding.text


def test_the_carrier_is_told(reading):
    finding = next(f for f in findings(reading)[0] if f.heading.startswith("Dimension"))
    assert finding.heading == "Dimension 17 stands out at the sink"
    assert "is massive at the first token “<s>” in blocks 1 to 4" in finding.text
    assert "The next is 42." in finding.text


def test_the_carrier_is_judged_at_the_sink_though_most_of_its_entries_stand_elsewhere(reading):
    made = reading.copy(deep=True)
    outputs = [site.endswith("post") for site in made["site"].values]
    early, late = [np.flatnonzero(outputs)[part] for part in (slice(0, 2), slice(3, 5))]
    for sites, size, places in ((early, 60.0, range(2, 8)), (late, 9000.0, range(1))):
        for rank, place in enumerate(places):
            for name, value in (("top_value", size), ("top_dim", 17), ("top_position", place)):
                made[name].values[:, sites, rank] = value
    finding = next(f for f in findings(made)[0] if f.heading.startswith("Dimension"))
    assert finding.heading == "Dimension 17 stands out at the sink"
    assert "in blocks 3 to 4: its magnitude is 9e+03 there" in finding.text or "9,000 there" in finding.text


def test_nothing_is_claimed_where_nothing_is(evenly_spread):
    told, sinks = findings(evenly_spread)
    assert not sinks.found
    assert [f.state for f in told] == ["absent", "absent", "absent", "found", "absent"]
    assert told[0].heading == "No sink found"
    assert "None of 216 head readings" in told[0].text
    assert told[1].heading == "Its values are not drained"
    assert told[2].heading == "No massive activation found"


def test_what_was_not_measured_names_its_probe(reading):
    told, sinks = findings(reading[["residual_norm"]])
    assert sinks is None
    assert {f.state for f in told} == {"missing"}
    texts = " ".join(f.text for f in told)
    for probe in ("KeyMass()", "ValueNorm()", "MassiveActivations()", "Entropy()"):
        assert f"Add {probe} to the probes of the run" in texts


def test_implicit_sink_is_told_where_rows_were_summed(reading):
    rows = reading["entropy"] * 0 + 1.0
    assert "No implicit sink" in by_state(reading.assign(row_sum=rows))
    told = by_state(reading.assign(row_sum=rows.where(rows["head"] != 3, 0.4)))
    finding = told["5.0% of the attention goes to no token"]
    assert "layer 0, head 3: 60%" in finding.text


def test_two_classes_of_heads_are_told(reading):
    r = np.random.default_rng(0)
    levels = np.where(np.arange(12) < 6, 0.05, 0.5) + r.normal(0, 0.01, (3, 6, 12))
    largest = reading["max_attention"] * 0 + levels[..., None]
    finding = by_state(reading.assign(max_attention=largest))["Heads fall into two classes"]
    assert "at 0.0502 and 0.5 (50% of 216 head readings)" in finding.text
    assert "p < 0.001" in finding.text


def test_an_encoder_may_sink_on_its_last_token(reading):
    lengths = [40, 25, 33]
    mass = reading["key_mass"].copy(deep=True) * 0.01
    token = reading["token"].copy(deep=True)
    for p, n in enumerate(lengths):
        mass[p, :, :6, n - 1] = 0.6
        token[p, n - 1] = "[SEP]"
    changed = reading.assign(key_mass=mass).assign_coords(token=token)
    decoder = find_sinks(changed)
    assert not decoder.found, "few queries see a late key of a decoder"
    encoder = find_sinks(changed.assign_attrs(causal=0))
    assert encoder.label == "“[SEP]”"
    assert encoder.kinds[0].heads == 0.5
    assert np.argwhere(encoder.mask.values).tolist() == [[0, 39], [1, 24], [2, 32]]
    assert encoder.kinds[0].chance == pytest.approx(np.mean([1 / n for n in lengths]))


def test_chance_of_a_decoder_is_that_of_even_rows(reading):
    first = find_sinks(reading).kinds[0]
    expected = np.mean([np.mean(1 / np.arange(1, n + 1)) for n in (40, 25, 33)])
    assert first.chance == pytest.approx(expected)


def test_short_prompts_tell_nothing(evenly_spread):
    short = evenly_spread.isel(key=slice(0, 8), query=slice(0, 8))
    even = 1 / np.arange(1, 9)
    short["key_mass"] = short["key_mass"] * 0 + np.float32(even[::-1].cumsum()[::-1] / np.arange(8, 0, -1))
    assert float(short["key_mass"][..., 0].min()) > 0.3
    told, sinks = findings(short)
    assert not sinks.found
    assert sinks.short == short.sizes["prompt"]
    assert (told[0].heading, told[0].state) == ("The prompts are too short to tell a sink", "missing")
    assert "Use prompts of 30 tokens and more." in told[0].text


def test_a_sink_is_judged_against_even_attention_over_the_prompts(reading):
    told, sinks = findings(reading)
    assert np.isfinite(sinks.kinds[0].p_value)
    assert "3 prompts can't show that this is more than chance; 6 or more can." in told[0].text
    many = xr.concat([reading] * 3, dim="prompt").assign_coords(prompt=range(9))
    told, sinks = findings(many)
    assert sinks.kinds[0].p_value < 0.05
    assert "Over the 9 prompts that is more than even attention gives it, p = " in told[0].text


def test_a_dip_without_a_valley_is_not_called_one_hump():
    rng = np.random.default_rng(0)
    smooth = rng.normal(0.2, 0.02, (6000, 1, 1, 1))
    dims = ("prompt", "layer", "head", "query")
    reading = xr.Dataset({"max_attention": (dims, smooth.round(2))})  # steps, as of weights that are clipped
    finding = _split(reading)
    assert finding.state == "absent"
    assert "is not of one smooth hump over 6,000 head readings (dip test p < 0.001)" in finding.text
    assert "Ashman's D" in finding.text
    assert "has one hump over 6,000 head readings" in _split(xr.Dataset({"max_attention": (dims, smooth)})).text
