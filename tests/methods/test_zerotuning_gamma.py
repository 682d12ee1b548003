import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import tasks
from sinkscope.errors import EditError, MetricError
from sinkscope.methods.zerotuning_gamma import best_gamma, gamma_curve


def curve(**measures):
    gammas = [0.25, 0.5, 1.0, 2.0, 4.0]
    return xr.Dataset({k: ("gamma", v) for k, v in measures.items()}, coords={"gamma": gammas})


@pytest.mark.parametrize(
    ("by", "values", "expected"),
    [
        ("accuracy", [0.1, 0.2, 0.3, 0.5, 0.4], 2.0),
        ("loss", [0.1, 0.2, 0.3, 0.5, 0.4], 0.25),
        ("entropy", [2.0, 1.0, 3.0, 3.0, 0.5], 4.0),
        ("exact", [0.5, 0.5, 0.4, 0.4, 0.5], 0.5),  # of equal ones the nearest to 1 by factor
        ("accuracy", [0.5, 0.5, 0.5, 0.5, 0.5], 1.0),
    ],
)
def test_the_best_point_of_a_curve(by, values, expected):
    assert best_gamma(curve(**{by: values}), by) == expected


def test_a_masked_token_is_further_from_1_than_any_gamma():
    found = curve(accuracy=[0.5, 0.4, 0.4, 0.4, 0.5]).assign_coords(gamma=[0.0, 0.5, 1.0, 2.0, 100.0])
    assert best_gamma(found) == 100.0


def test_the_curve_is_that_of_separate_runs():
    model = sk.load_model("zoo:lm-python")
    questions = tasks.Questions.of(tasks.offline("copy", calibration=8, test=1).calibration, model)
    found = gamma_curve(model, questions, sk.ScaleKeys(1.5, layers=range(2, 5)), [2.0, 0.2, 1.0], batch_size=8)
    assert found["gamma"].values.tolist() == [0.2, 1.0, 2.0]
    for gamma in (0.2, 1.0):
        edits = [sk.ScaleKeys(gamma, layers=range(2, 5))] if gamma != 1.0 else []
        reading = sk.run(model, questions.prompts, [questions.probe], edits, batch_size=8)
        scores = tasks.scores(reading, questions)
        at = found.sel(gamma=gamma)
        assert float(at["accuracy"]) == float(scores["correct"].mean())
        assert float(at["invalid"]) == float(scores["invalid"].mean())
        assert float(at["loss"]) == pytest.approx(-float(scores["log_probability"].mean()), abs=1e-4)
        assert float(at["entropy"]) == pytest.approx(float(scores["answer_entropy"].mean()), abs=1e-4)
        most = np.bincount(scores["choice"].values.astype(int)).max() / 8
        assert float(at["collapse"]) == most
        assert float(at["accuracy_low"]) <= float(at["accuracy"]) <= float(at["accuracy_high"])


def test_what_is_refused():
    with pytest.raises(MetricError, match=r"best_gamma\(by='loss'\): the curve holds \['accuracy'\] over \['gamma'\]"):
        best_gamma(curve(accuracy=[1, 1, 1, 1, 1]), "loss")
    with pytest.raises(MetricError, match=r"best_gamma\(by='f1'\): measures are"):
        best_gamma(curve(accuracy=[1, 1, 1, 1, 1]), "f1")
    with pytest.raises(EditError, match=r"gamma_curve\(gammas=\[\]\): no value to choose from"):
        gamma_curve(None, None, sk.ScaleKeys(2.0), [])  # type: ignore[arg-type]
