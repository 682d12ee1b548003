"""Readings: what is valid, and how they are kept on disk, joined and tabulated."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import schema, testing
from sinkscope.errors import OutputError, SchemaError
from sinkscope.probes import LogSumExp, RowSum

PROBES = [
    sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.MaxAttention(keys="all", queries="all"), RowSum(),
    LogSumExp(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm(), sk.MassiveActivations(top=3),
    sk.SinkDims(), sk.AttentionMap(layers=[1], heads=[0]), sk.TokenLoss(), sk.Logits(),
    sk.TopKey(), sk.BosCosine(), sk.WriteNorm(), sk.AttentionGradient([1], [0]), sk.RoleShare(groups={"sink": "first"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def reading(model):
    return sk.run(model, sk.Prompts.from_ids([[1, 5, 6, 7], [1, 8]], model), PROBES, batch_size=2)


def test_a_reading_of_every_probe_holds_every_variable_of_the_schema(reading):
    declared = schema.variables(reading)
    assert set(reading.data_vars) == set(declared) == {n for probe in PROBES for n in probe.variables}
    assert {type(probe).__name__ for probe in PROBES} | {"Probe"} == set(sk.probes.__all__)
    assert schema.validate(reading) is reading
    for name, array in reading.data_vars.items():
        known = declared[name]
        assert array.dims == known.dims
        assert array.dtype == np.float32
        assert array.attrs == {"units": known.units, "long_name": known.meaning}


def test_a_reading_comes_back_from_disk_as_it_was(reading, tmp_path):
    path = schema.save(reading, tmp_path / "reading.nc")
    assert path == tmp_path / "reading.nc"
    back = schema.open(path)
    xr.testing.assert_identical(back, reading)
    assert back.attrs == reading.attrs
    assert {n: v.dtype for n, v in back.variables.items() if v.dtype.kind != "U"} == {
        n: v.dtype for n, v in reading.variables.items() if v.dtype.kind != "U"
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["reading.nc"]


def test_a_reading_of_images_comes_back_with_its_grid(tmp_path):
    model = sk.load_model(testing.tiny("vit"))
    prompts = sk.Prompts.from_images(list(testing.pixels(model.model)), model)
    reading = sk.run(model, prompts, [sk.KeyMass()])
    assert reading.grid_row.dims == ("prompt", "key")
    xr.testing.assert_identical(schema.open(schema.save(reading, tmp_path / "images.nc")), reading)


def test_tokens_of_any_script_survive(reading, tmp_path):
    tokens = reading.token.values.astype(object)
    tokens[0, :4] = ["<script>", "ñ→日本", "\\n", ""]
    changed = reading.assign_coords(token=(("prompt", "key"), tokens.astype(str)))
    back = schema.open(schema.save(changed, tmp_path / "a.nc"))
    assert back.token.values.tolist() == changed.token.values.tolist()


def test_an_existing_file_is_replaced_only_when_asked(reading, tmp_path):
    path = tmp_path / "reading.nc"
    schema.save(reading[["key_mass"]], path)
    before = path.read_bytes()
    message = r"reading\.nc: the file exists\. Pass overwrite=True \(--overwrite\) to replace it\."
    with pytest.raises(OutputError, match=message):
        schema.save(reading, path)
    assert path.read_bytes() == before
    schema.save(reading, path, overwrite=True)
    assert "entropy" in schema.open(path)


@pytest.mark.parametrize("raised", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("existing", [False, True])
def test_a_save_that_is_cut_short_leaves_what_was_there(reading, tmp_path, monkeypatch, raised, existing):
    path = tmp_path / "reading.nc"
    if existing:
        schema.save(reading[["key_mass"]], path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def half(self, _content):
        with open(self, "wb") as file:
            file.write(b"\x89HDF half a file")
        raise raised

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError if isinstance(raised, OSError) else type(raised)):
        schema.save(reading, path, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_nothing_is_written_for_what_is_no_reading(tmp_path):
    with pytest.raises(SchemaError, match="not a sinkscope reading"):
        schema.save(xr.Dataset({"a": ("x", [1.0])}), tmp_path / "a.nc")
    assert os.listdir(tmp_path) == []


def test_output_paths_are_refused_before_any_work(tmp_path):
    with pytest.raises(OutputError, match=r"this is a folder\. Name a file in it\."):
        schema.check_output(tmp_path)
    with pytest.raises(OutputError, match=r"the folder .*none does not exist\. Make it first\."):
        schema.check_output(tmp_path / "none" / "a.nc")
    assert schema.check_output(str(tmp_path / "a.nc")) == tmp_path / "a.nc"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with pytest.raises(OutputError, match=r"the folder .* cannot be written\. Choose another one\."):
        schema.check_output(tmp_path / "a.nc")


def test_files_that_are_no_readings_are_refused(tmp_path, reading):
    with pytest.raises(SchemaError, match=r"no such file\. Readings are written by sinkscope\.save or `sinkscope"):
        schema.open(tmp_path / "none.nc")
    text = tmp_path / "text.nc"
    text.write_text("hello")
    with pytest.raises(SchemaError, match=r"not a readable netCDF file \(.*\)\. Was the copy cut short\?"):
        schema.open(text)
    cut = schema.save(reading, tmp_path / "cut.nc")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(SchemaError, match="not a readable netCDF file"):
        schema.open(cut)
    other = tmp_path / "other.nc"
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(other, engine="h5netcdf")
    with pytest.raises(SchemaError, match=r"not a sinkscope reading: attributes \['sinkscope_version',"):
        schema.open(other)


INVALID = {
    "key_mass: dims are ('layer', 'prompt', 'head', 'key'), expected ('prompt', 'layer', 'head', 'key')": lambda ds: (
        ds.assign(key_mass=ds.key_mass.transpose("layer", "prompt", "head", "key"))
    ),
    "entropy: dims are ('prompt', 'layer', 'head'), expected": lambda ds: ds.assign(entropy=ds.entropy[..., 0]),
    "phi: dims are ('prompt', 'site', 'key', 'layer')": lambda ds: ds.assign(
        phi=ds.phi.expand_dims(layer=ds.layer, axis=3)
    ),
    "dimension 'layer' has no labels; every reading labels it.": lambda ds: ds.drop_vars("layer"),
    "dimension 'head' has repeated labels: [0, 1, 1, 2].": lambda ds: ds.assign_coords(head=[0, 1, 1, 2]),
    "unknown roles ['verb']; roles are ['bos',": lambda ds: ds.assign_coords(
        role=["verb", *ds.role.values[1:]]
    ),
    "coordinate token_role(prompt, key) is missing; every reading with a key dimension has it.": lambda ds: (
        ds.drop_vars("token_role")
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", INVALID)
def test_what_is_invalid_is_named(reading, message):
    with pytest.raises(SchemaError) as raised:
        schema.validate(INVALID[message](reading))
    assert str(raised.value).startswith(message)


def test_missing_attributes_are_named(reading):
    changed = reading.copy()
    del changed.attrs["seed"]
    with pytest.raises(SchemaError, match=r"attributes \['seed'\] are missing\. Use a dataset made by sinkscope\.run"):
        schema.validate(changed)


def test_an_edit_dimension_and_variables_of_ones_own_may_be_there(reading):
    swept = reading[["key_mass"]].expand_dims(edit=["none", "mask"])
    assert schema.validate(swept).key_mass.dims[0] == "edit"
    schema.validate(reading.assign(mine=("prompt", [1.0, 2.0])))
    schema.validate(reading[["entropy"]].expand_dims(gamma=[0.5]), extra_dims=["gamma"])


def test_readings_are_joined_along_prompts(model):
    probes = [sk.KeyMass(), sk.ResidualNorm(), sk.MassiveActivations(top=2), sk.Entropy()]
    lists = [[1, 5, 6, 7], [1, 8], [1, 9, 10]]
    whole = sk.run(model, sk.Prompts.from_ids(lists, model), probes)
    parts = [sk.run(model, sk.Prompts.from_ids(ids, model), probes) for ids in (lists[:2], lists[2:])]
    joined = schema.concat(parts)
    assert joined.prompt.values.tolist() == [0, 1, 2]
    for name in whole.data_vars:
        np.testing.assert_allclose(joined[name], whole[name], atol=1e-6, err_msg=name)
    assert joined.token.values.tolist() == whole.token.values.tolist()
    assert joined.token_role.values.tolist() == whole.token_role.values.tolist()
    assert {v.dtype for v in joined.data_vars.values()} == {np.dtype("float32")}
    assert schema.concat(parts[:1]).sizes == parts[0].sizes


def test_readings_of_two_models_are_not_joined(model, reading):
    with pytest.raises(SchemaError, match=r"concat: no readings given\. Pass at least one\."):
        schema.concat([])
    other = sk.load_model(testing.tiny("llama", seed=1))
    second = sk.run(other, sk.Prompts.from_ids([[1, 5]], other), [sk.KeyMass()])
    with pytest.raises(SchemaError, match=r"concat: readings of 2 different models\. Join readings of one model"):
        schema.concat([reading[["key_mass"]], second])


def test_readings_under_other_edits_are_not_joined(model):
    prompts = sk.Prompts.from_ids([[1, 5, 6], [1, 8, 9]], model)
    plain = sk.run(model, prompts, [sk.KeyMass()])
    masked = sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys("first")])
    with pytest.raises(SchemaError, match=r"concat: the readings differ in edits: '\[\]' and .*MaskKeys.* Join"):
        schema.concat([plain, masked])
    joined = schema.concat([masked, masked])
    assert joined.attrs["edits"] == masked.attrs["edits"]
    assert joined.attrs["prompts_hash"] != masked.attrs["prompts_hash"]
    for dim in ("layer", "edit"):
        with pytest.raises(SchemaError, match=r"concat: the readings differ in edits"):
            schema.concat([plain, masked], dim)


def test_readings_are_joined_along_what_has_labels(model):
    prompts = sk.Prompts.from_ids([[1, 5, 6], [1, 8, 9]], model)
    found = sk.run(model, prompts, [sk.KeyMass(), sk.TokenLoss()])
    xr.testing.assert_equal(schema.concat([found.isel(layer=[0]), found.isel(layer=[1, 2])], "layer"), found)
    changed = found.assign(token_loss=found["token_loss"] + 1)
    with pytest.raises(SchemaError, match=r"concat\(dim='layer'\): the readings do not fit each other"):
        schema.concat([found.isel(layer=[0]), changed.isel(layer=[1])], "layer")
    for dim in ("key", "edit", "nix"):
        with pytest.raises(SchemaError, match=rf"concat\(dim='{dim}'\): join along a dimension with labels; the read"):
            schema.concat([found, found], dim)
    with pytest.raises(SchemaError, match=r"hold other variables: \['key_mass'\] and \['token_loss'\]\. Join those of"):
        schema.concat([found[["key_mass"]], found[["token_loss"]]])
    other = sk.run(model, prompts.subset([1, 0]), [sk.KeyMass(), sk.TokenLoss()])
    with pytest.raises(SchemaError, match="concat: the readings differ in prompts_hash"):
        schema.concat([found.isel(layer=[0]), other.isel(layer=[1])], "layer")


def test_a_table_has_one_row_per_number(reading):
    table = schema.to_dataframe(reading, "key_mass")
    assert len(table) == 3 * 4 * (4 + 2)
    assert {"prompt", "layer", "head", "key", "token", "token_role", "kv_of_head", "key_mass"} <= set(table.columns)
    one = table[(table["prompt"] == 1) & (table["layer"] == 2) & (table["head"] == 3) & (table["key"] == 1)].iloc[0]
    assert one["key_mass"] == float(reading.key_mass[1, 2, 3, 1])
    assert (one["token"], one["token_role"], one["kv_of_head"]) == ("#8", "text", 1)
    assert not table["key_mass"].isna().any()
    with pytest.raises(
        SchemaError, match=r"'mass' is not in this reading; it holds \['attention', 'attention_gradient',"
    ):
        schema.to_dataframe(reading, "mass")


def test_structured_attributes_are_read_as_objects(reading):
    assert schema.attribute(reading, "edits") == []
    assert schema.attribute(reading, "probes")[0] == {"probe": "KeyMass", "keys": None, "queries": None}
    assert schema.attribute(reading, "definitions")["entropy"] == "entropy of the attention row"
    assert {"torch", "transformers", "python"} <= set(schema.attribute(reading, "versions"))
    assert all(isinstance(value, str | int | float) for value in reading.attrs.values())


def test_dims_of_a_grid_may_stand_in_front_of_a_variable_without_them(reading):
    loss = xr.DataArray(np.zeros((2, 3, reading.sizes["prompt"], 4)), dims=("layer", "head", "prompt", "query"))
    ds = xr.Dataset({"token_loss": loss}, attrs=reading.attrs)
    ds = ds.assign_coords(prompt=reading["prompt"].values, layer=[0, 1], head=[0, 1, 2])
    schema.validate(ds)
    behind = ds.assign(token_loss=ds["token_loss"].transpose("prompt", "query", "layer", "head"))
    with pytest.raises(SchemaError, match=r"token_loss: dims are \('prompt', 'query', 'layer', 'head'\)"):
        schema.validate(behind)


def test_flipped_bits_are_never_other_numbers(tmp_path, reading):
    """Each of 300 flips anywhere in the file is refused, or in the seal behind the content, which changes nothing."""
    path, rng = schema.save(reading, tmp_path / "a.nc"), np.random.default_rng(0)
    whole = path.read_bytes()
    sealed = whole.rindex(b"\nsinkscope sha256 ")
    for place in [*rng.integers(0, len(whole), 296).tolist(), sealed - 1, sealed, sealed + 3, len(whole) - 5]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        if place < sealed or place == len(whole) - 5:
            with pytest.raises(SchemaError, match=r"damaged: its content is not what was written\. Copy it again\."):
                schema.open(path)
            continue
        try:
            found = schema.open(path)
        except SchemaError:
            continue
        xr.testing.assert_identical(found, reading)


def test_other_programs_read_a_reading_by_its_path(tmp_path, reading):
    path = schema.save(reading, tmp_path / "a.nc")
    with xr.open_dataset(path, engine="h5netcdf") as found:
        xr.testing.assert_identical(found.load(), reading)


def test_a_reading_without_a_seal_is_read(tmp_path, reading):
    reading.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    xr.testing.assert_identical(schema.open(tmp_path / "a.nc"), reading)


def test_a_reading_without_prompts_is_refused(reading):
    with pytest.raises(SchemaError, match=r"this reading has no prompts: nothing is left of it\. Select at least one"):
        schema.validate(reading.isel(prompt=[]))
