"""A survey in words, as figures and as a page: the numbers are those of the survey."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

import sinkscope as sk
from sinkscope import report
from sinkscope.report.page import summary

PROBES = [
    sk.KeyMass(), sk.Entropy(), sk.RoleShare(queries="all"), sk.ValueNorm(), sk.ResidualNorm(),
    sk.MassiveActivations(top=3),
]  # fmt: skip


@pytest.fixture(scope="module")
def survey():
    model, truth = sk.testing.planted_sink(0)
    random = np.random.default_rng(0)
    ids = [[model.bos_token_id, *random.integers(3, 40, size).tolist()] for size in random.integers(20, 40, 12)]
    found = sk.survey(model, ids, PROBES)
    return found.assign_attrs(dims=str(truth.dims))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_findings_name_the_sink_what_carries_it_and_how_many_prompts(survey):
    found, sinks = report.findings(survey)
    assert sinks is None
    texts = {finding.heading: finding for finding in found}
    assert list(texts) == [
        "Where attention goes", "Which tokens are sinks", "Values of the first token", "Largest activations", "Entropy"
    ]  # fmt: skip
    assert all(finding.state == "found" for finding in found)
    assert "more than half of 12 prompts" in texts["Where attention goes"].text
    assert "at the start (for" in texts["Which tokens are sinks"].text
    assert f"dimension {int(survey.top_dim_most[-1])}" in texts["Largest activations"].text
    assert "12 prompts" in summary(survey)


def test_a_twin_without_a_sink_is_said_to_have_none():
    model, _ = sk.testing.planted_sink(0, shuffled=True)
    random = np.random.default_rng(0)
    ids = [[model.bos_token_id, *random.integers(3, 40, 30).tolist()] for _ in range(6)]
    found = report.findings(sk.survey(model, ids, sk.KeyMass()))[0]
    assert [(f.heading, f.state) for f in found] == [
        ("Where attention goes", "absent"), ("Which tokens are sinks", "absent")
    ]  # fmt: skip


def test_short_prompts_and_missing_shards_are_said():
    model, _ = sk.testing.planted_sink(0)
    settings = sk.SurveySettings(block=1)
    found = report.findings(sk.survey(model, [[1, 5, 6], [1, 7]], sk.KeyMass(), shard="1/2", settings=settings))[0]
    assert [f.heading for f in found][:2] == ["Part of the corpus", "The prompts are too short to tell a sink"]
    bare = report.findings(sk.survey(model, [[1, 5, 6]], sk.RowSum()))[0]
    assert bare[0].heading == "Nothing about sinks was measured"


def test_every_figure_of_a_survey_is_drawn(survey):
    names = report.available(survey)
    assert len(names) == 8
    for name in names:
        assert report.draw(survey, name) is not None


def test_figures_show_the_numbers(survey):
    axes = report.draw(survey, "sink_rate_map")
    np.testing.assert_allclose(axes.images[0].get_array(), survey.sink_rate)
    lines = report.draw(survey, "attention_by_position").lines
    np.testing.assert_allclose(lines[0].get_ydata(), survey.key_mass_mean.isel(bucket=0).mean("head"))
    bars = report.draw(survey, "sink_tokens").patches
    np.testing.assert_allclose([bar.get_width() for bar in bars][::-1], survey.sink_token_share[:12])


def test_the_page_of_a_survey(survey, tmp_path):
    page = report.write_report(survey, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "12 prompts" in page
    assert page.count("<figure") == 8
    assert "Sum" not in page.split("Definitions")[0]
