"""Values of every kind in every field of every probe and edit: an error of ours, or a reading that is whole."""

import dataclasses
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.edits.base import Edit
from sinkscope.probes.base import Probe
from sinkscope.testing import tiny

HOSTILE = (None, True, -1, 1.5, math.nan, "\ud800", [], [1.5], {"a": 1}, object(), slice(None), b"a")


def odd():
    """More of them, made anew each time: what numpy, torch and xarray have beside plain numbers, and no end of them."""
    return (
        10**400, [10**400], "0.5", np.array("0.5"), np.array(0), 1j, Decimal("0.5"), iter([0]), range(10**12),
        np.ma.masked, torch.ones(2, dtype=torch.bfloat16), torch.ones(2, requires_grad=True),
        torch.ones(2, device="meta"), torch.eye(2).to_sparse(), [[1, 2], [3]], {0: [10**400]},
        xr.DataArray([True, False, True], dims="layer", coords={"layer": [0.5, 1, 2]}),
    )  # fmt: skip


VALUES = [
    name
    for name in dir(sk)
    if isinstance(cls := getattr(sk, name), type) and issubclass(cls, Probe | Edit) and dataclasses.is_dataclass(cls)
]
"""All probes and edits of the public surface, so that a new one is tried as soon as it has a name."""
USUAL = {"keys": "first", "gamma": 0.5, "layers": [0], "heads": [0]}


@pytest.fixture(scope="module")
def model():
    return sk.load_model(tiny("llama"))


@pytest.mark.filterwarnings("ignore::sinkscope.errors.SinkscopeWarning")
@pytest.mark.parametrize("name", VALUES)
def test_no_field_lets_a_raw_error_out(model, name):
    prompts = sk.Prompts.from_ids([[1, 5, 9, 4]], model)
    cls = getattr(sk, name)
    given = [field for field in dataclasses.fields(cls) if field.init]
    needed = {
        field.name: USUAL.get(field.name, 0.5)
        for field in given
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    before, raw = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}, []
    for field in given:
        for hostile in (*HOSTILE, *odd()):
            try:
                value = cls(**{**needed, field.name: hostile})
                if isinstance(value, Probe):
                    sk.run(model, prompts, [value])
                else:
                    sk.run(model, prompts, [sk.KeyMass()], [value])
            except sk.SinkscopeError:
                continue
            except Exception as error:
                raw.append(f"{field.name}={hostile!r}: {type(error).__name__}: {error}")
    assert not raw, "\n".join(raw)
    after = model.model.state_dict()
    assert all(np.array_equal(tensor.numpy(), after[key].numpy()) for key, tensor in before.items())


@pytest.mark.parametrize("hostile", [1, 0.0, math.nan, "no", [], None])
def test_a_switch_takes_true_or_false_alone(hostile):
    with pytest.raises(sk.EditError, match=r"MaskKeys\(keep_self=.*\): use True or False\."):
        sk.MaskKeys("first", keep_self=hostile)


@pytest.mark.parametrize("path", [None, 3, "a\0b.nc", "\ud800.nc"])
def test_what_can_name_no_file(model, path):
    reading = sk.run(model, sk.Prompts.from_ids([[1, 5]], model), [sk.KeyMass()])
    with pytest.raises(sk.OutputError, match=r"path of a file|can have such a name"):
        sk.save(reading, path)
    with pytest.raises(sk.SchemaError, match=r"path of a file|can have such a name"):
        sk.open(path)


def test_a_file_may_have_a_long_name_but_not_any(model, tmp_path):
    reading = sk.run(model, sk.Prompts.from_ids([[1, 5]], model), [sk.KeyMass()])
    assert sk.open(sk.save(reading, tmp_path / ("a" * 250 + ".nc"))).sizes["key"] == 2
    message = r"no file can be reached by this path \(File name too long\)"
    with pytest.raises(sk.OutputError, match=message):
        sk.save(reading, tmp_path / ("a" * 300 + ".nc"))
    with pytest.raises(sk.SchemaError, match=message):
        sk.open("a" * 5000)


@pytest.mark.parametrize(
    ("found", "message"),
    [(1, "an older sinkscope"), (99, "a newer sinkscope"), ("x", "not a number"), (np.array([1, 2]), "not a number")],
)
def test_a_reading_of_another_schema_is_refused(model, found, message):
    reading = sk.run(model, sk.Prompts.from_ids([[1, 5]], model), [sk.KeyMass()])
    with pytest.raises(sk.SchemaError, match=message):
        sk.schema.validate(reading.assign_attrs(schema_version=found))


@pytest.mark.parametrize(
    "call",
    [
        lambda: sk.save(None, "a.nc"),
        lambda: sk.concat(None),
        lambda: sk.concat([None]),
        lambda: sk.to_dataframe(None, "key_mass"),
        lambda: sk.load_model("\ud800"),
    ],
)
def test_what_is_no_reading_or_model(call):
    with pytest.raises((sk.SchemaError, sk.ModelError)):
        call()


def test_a_misspelt_table_of_options(tmp_path, capsys):
    from sinkscope import cli

    config = tmp_path / "c.toml"
    config.write_text("[rum]\nbatch-size = 1\n")
    assert cli.main(["run", "minilm", "--text", "a", "--config", str(config)]) == 1
    assert "[rum] is no command" in (said := capsys.readouterr().err)
    assert "Did you mean run?" in said or "Did you mean 'run'?" in said


def test_escape_sequences_are_shown_not_obeyed(capsys):
    from sinkscope import cli

    assert cli.main(["run", "zoo:\x1b[31mred", "--text", "a"]) == 1
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("note", ["half \ud800 of a character", None, {"a": 1}, object()])
def test_an_attribute_that_no_file_holds(model, tmp_path, note):
    reading = sk.run(model, sk.Prompts.from_ids([[1, 5]], model), [sk.KeyMass()])
    with pytest.raises(sk.SchemaError, match=r"holds what netCDF does not \(.*\)\. Attributes are texts, numbers"):
        sk.save(reading.assign_attrs(note=note), tmp_path / "a.nc")
    assert list(tmp_path.iterdir()) == []
