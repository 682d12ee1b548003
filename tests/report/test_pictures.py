"""Pictures on the page: tokens lie where the grid says, pictures are counted and measured, nothing is guessed."""

import base64
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from sinkscope import cli
from sinkscope.errors import SchemaError
from sinkscope.report import draw, pictures, write_report
from sinkscope.report.images import MAX_SIDE, address, load, question, views

NAMES = ("grid_row", "grid_col", "grid_tile", "grid_image", "box_left", "box_top", "box_right", "box_bottom")


def with_pictures(reading, tiles=False):
    """Prompt 0 holds two pictures of two tokens each, prompt 1 one; prompt 2 none. Boxes are 10 pixels wide."""
    shape = (reading.sizes["prompt"], reading.sizes["key"])
    columns = {name: np.full(shape, np.nan) for name in NAMES}
    roles = reading["token_role"].values.copy()
    for prompt, key, image, col in ((0, 3, 0, 0), (0, 4, 0, 1), (0, 6, 1, 0), (0, 7, 1, 1), (1, 3, 0, 0), (1, 4, 0, 1)):
        values = (0, col, int(tiles and col == 1), image, 10 * col, 0, 10 * col + 10, 8)
        for name, value in zip(NAMES, values, strict=True):
            columns[name][prompt, key] = value
        roles[prompt, key] = "image"
    coords = {name: (("prompt", "key"), values) for name, values in columns.items()}
    return reading.assign_coords(coords | {"token_role": (("prompt", "key"), roles)})


@pytest.fixture
def originals():
    return [Image.new("RGB", (20, 8), colour) for colour in ("red", "green", "blue")]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_each_picture_of_each_prompt_is_a_view(reading, originals):
    found = views(with_pictures(reading), originals)
    assert [(v.prompt, v.image, v.keys.tolist(), v.size) for v in found] == [
        (0, 0, [3, 4], (20, 8)), (0, 1, [6, 7], (20, 8)), (1, 0, [3, 4], (20, 8)),
    ]  # fmt: skip
    assert found[2].boxes.tolist() == [[0, 0, 10, 8], [10, 0, 20, 8]]
    assert [v.picture.getpixel((0, 0)) for v in found] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def test_tiles_are_views_of_their_own(reading):
    assert [(v.label, v.keys.tolist()) for v in views(with_pictures(reading, tiles=True))][:2] == [
        ("image 0", [3]), ("image 0, its tiles", [4]),
    ]  # fmt: skip


def test_a_reading_without_places_has_no_view(reading, originals):
    assert views(reading) == []
    with pytest.raises(SchemaError, match="does not say where its tokens lie on pictures"):
        views(reading, originals)


def test_pictures_must_fit_the_prompts(reading, originals, tmp_path):
    ds = with_pictures(reading)
    with pytest.raises(SchemaError, match=r"2 pictures for prompts that hold 3. Give every picture once"):
        views(ds, originals[:2])
    small = [*originals[:2], Image.new("RGB", (15, 8))]
    with pytest.raises(SchemaError, match=r"picture 2 has 15 x 8 pixels .* tokens of prompt 1 reach to 20 x 8"):
        views(ds, small)
    (tmp_path / "cut.png").write_bytes(b"no picture")
    with pytest.raises(SchemaError, match=r"the picture .*cut.png cannot be read"):
        views(ds, [*originals[:2], tmp_path / "cut.png"])


def test_the_figure_lies_on_the_pictures(reading, originals):
    ds = with_pictures(reading)
    axes = draw(ds, "image_patches")
    assert axes.images[0].get_array().shape[:2] == (8, 20), "a blank of the pixels that the tokens reach to"
    assert [path.vertices.max(0).tolist() for path in axes.collections[0].get_paths()] == [[10, 8], [20, 8]]
    mass = ds["key_mass"].mean(["layer", "head"]).values
    np.testing.assert_allclose(axes.collections[0].get_array(), mass[0, 3:5], rtol=1e-6)
    picture = pictures(ds, ["image_patches"], found=views(ds, originals))[0]
    assert "one scale for all pictures" in picture.caption


def test_the_page_carries_places_and_pictures(reading, originals, tmp_path, data_of):
    page = write_report(with_pictures(reading), tmp_path / "page.html", images=originals)
    found = data_of(page).header["heads"]["views"]
    assert [len(prompt) for prompt in found] == [2, 1, 0]
    assert found[1][0]["keys"] == [3, 4]
    assert found[1][0]["boxes"] == [[0, 0, 10, 8], [10, 0, 20, 8]]
    shown = Image.open(io.BytesIO(base64.b64decode(found[1][0]["source"].partition(",")[2])))
    assert (shown.size, shown.getpixel((3, 3))) == ((20, 8), (0, 0, 255))
    bare = write_report(with_pictures(reading), tmp_path / "bare.html")
    assert data_of(bare).header["heads"]["views"][0][0]["source"] == ""
    assert data_of(write_report(reading, tmp_path / "text.html")).header["heads"]["views"] is None


def test_large_pictures_are_made_smaller():
    source = address(Image.new("RGB", (2000, 1000), "red"))
    assert source.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (MAX_SIDE, MAX_SIDE // 2)
    assert load(np.zeros((4, 6), np.uint8)).size == (6, 4)


def test_the_question_is_the_text_after_the_picture(reading):
    ds = with_pictures(reading)
    after = "".join(
        ds["token"].values[1][5:25][np.isin(ds["token_role"].values[1][5:25], ["text", "punctuation"])]
    ).strip()
    assert question(ds, 1, 500) == after
    assert question(ds, 1, 10) == after[:9] + "…"


def test_the_command_takes_a_folder(reading, originals, tmp_path, capsys, data_of):
    from sinkscope import schema

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, picture in zip("abc", originals, strict=True):
        picture.save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("not a picture")
    schema.save(with_pictures(reading), tmp_path / "r.nc")
    target = tmp_path / "r.html"
    assert cli.main(["report", str(tmp_path / "r.nc"), "--image", str(folder), "--output", str(target)]) == 0
    assert [len(prompt) for prompt in data_of(target).header["heads"]["views"]] == [2, 1, 0]
    (tmp_path / "none").mkdir()
    arguments = [
        "report",
        str(tmp_path / "r.nc"),
        "--image",
        str(tmp_path / "none"),
        "--output",
        str(tmp_path / "s.html"),
    ]
    assert cli.main(arguments) == 1
    assert "this folder holds no image (.png, .jpg" in capsys.readouterr().err
