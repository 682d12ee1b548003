"""Images: reading files of every mode, and the tokens of vision encoders."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from vlm_models import image, vlm

from sinkscope.errors import PromptError
from sinkscope.prompts import Prompts
from sinkscope.prompts.images import load_image
from sinkscope.roles import ROLES
from sinkscope.testing import names, tiny

CROP = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
PREFIX = {
    "vit": ["[CLS]"], "deit": ["[CLS]", "[DIST]"], "dinov2": ["[CLS]"], "clip_vision": ["[CLS]"], "siglip_vision": [],
    "dinov2_with_registers": ["[CLS]", "[REG0]", "[REG1]", "[REG2]", "[REG3]"],
    "dinov3": ["[CLS]", "[REG0]", "[REG1]"],
}  # fmt: skip


def encoder(name, processor=None):
    network = tiny(name)
    return SimpleNamespace(
        model=network, config=network.config, tokenizer=None, processor=processor, kind="vision", context_length=None
    )


@pytest.mark.parametrize("name", names("vision"))
@torch.no_grad()
def test_tokens_of_an_encoder(name):
    model = encoder(name, CLIPImageProcessorPil(**CROP))
    prompts = Prompts.from_images([image(50, 30), image(20, 20)], model)
    batch = prompts.batch([0, 1])
    states = model.model(**batch.inputs).last_hidden_state
    assert states.shape[:2] == batch.real.shape
    assert list(prompts.tokens[0][: -16 or None]) == PREFIX[name]
    assert prompts.tokens[0][-1] == "r3c3"
    roles = [ROLES[r] for r in prompts.roles[0]]
    assert roles[-16:] == ["image"] * 16
    expected = {"[CLS]": "bos", "[DIST]": "special"}
    assert roles[:-16] == [expected.get(token, "register") for token in PREFIX[name]]
    assert (prompts.ids[0] == -1).all()
    grid = prompts.grids[0]
    assert np.isnan(grid.row[:-16]).all()
    np.testing.assert_array_equal(grid.row[-16:], np.repeat(np.arange(4), 4))
    assert "input_ids" not in batch.inputs
    no_class = "patch 'r0c0' (this encoder has no class token)"
    assert prompts.key0 == ("class token '[CLS]'" if PREFIX[name] else no_class)


PROCESSORS = {
    "crop": (CLIPImageProcessorPil(**CROP), (48, 30)),
    "stretch": (SiglipImageProcessorPil(size={"height": 16, "width": 16}), (48, 30)),
    "resize then smaller crop": (
        BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}), (31, 67)
    ),
    "crop larger than the image": (
        CLIPImageProcessorPil(do_resize=False, crop_size={"height": 16, "width": 16}), (11, 10)
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", PROCESSORS)
def test_boxes_lie_where_the_processor_looked(which):
    processor, (width, height) = PROCESSORS[which]
    prompts = Prompts.from_images([image(width, height)], encoder("siglip_vision", processor))
    values = prompts.extras[0]["pixel_values"][0]
    mean, std = torch.tensor(processor.image_mean)[:, None, None], torch.tensor(processor.image_std)[:, None, None]
    colour = torch.nn.functional.avg_pool2d(values * std + mean, 4).flatten(1).numpy()
    left, top, right, bottom = prompts.grids[0].box.T
    whole = colour[2] > 0.98
    assert whole.sum() >= 4
    assert np.abs(colour[0] * (width - 1) + 0.5 - (left + right) / 2)[whole].max() < 0.8
    assert np.abs(colour[1] * (height - 1) + 0.5 - (top + bottom) / 2)[whole].max() < 0.8


def test_ready_tensors_need_no_processor():
    model = encoder("clip_vision")
    values = torch.randn(2, 3, 16, 16)
    prompts = Prompts.from_images(values, model)
    torch.testing.assert_close(prompts.batch([0, 1]).inputs["pixel_values"], values)
    np.testing.assert_allclose(prompts.grids[0].box[1], [0, 0, 4, 4])
    again = Prompts.from_inputs({"pixel_values": values}, model)
    assert again.digest == prompts.digest
    assert Prompts.from_images([values[0].numpy(), values[1:]], model).digest == prompts.digest


@torch.no_grad()
def test_dino_takes_images_of_any_size_one_by_one():
    model = encoder("dinov2_with_registers")
    prompts = Prompts.from_images([torch.randn(3, 16, 16), torch.randn(3, 24, 16)], model)
    assert prompts.lengths == (21, 29)
    assert model.model(**prompts.batch([1]).inputs).last_hidden_state.shape[1] == 29
    with pytest.raises(PromptError, match=r"'pixel_values' has shapes .*batch_size=1"):
        prompts.batch([0, 1])


def test_the_model_is_left_as_it_was():
    model = encoder("vit")
    Prompts.from_images([torch.randn(3, 16, 16)], model)
    assert not any(m._forward_pre_hooks for m in model.model.modules())


BAD = [
    ([], "the list of images is empty"),
    ("cat.png", "expected a list of images, got one str. Wrap it in a list"),
    (Image.new("RGB", (4, 4)), "expected a list of images, got one Image"),
    ([7], "image 0: expected a path or a PIL image, got int"),
    (["/nowhere/cat.png"], r"image 0 \(/nowhere/cat.png\): no such file"),
    ([np.zeros((4, 4, 4), np.uint8)], "an array of an image has dtype uint8 and shape"),
    ([torch.zeros(1, 16, 16)], r"pixel values have the shape \(3, height, width\), got \(1, 16, 16\)"),
    ([torch.zeros(3, 20, 20)], "CLIPVisionModel refuses an image of 20 x 20 pixels .*Use the model's own image"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "message"), BAD)
def test_bad_images(images, message):
    with pytest.raises(PromptError, match=message):
        Prompts.from_images(images, encoder("clip_vision", CLIPImageProcessorPil(**CROP)))


def test_wrong_kind_of_model():
    picture = Image.new("RGB", (16, 16))
    with pytest.raises(PromptError, match=r"no image processor.*float tensors of shape"):
        Prompts.from_images([picture], encoder("vit"))
    with pytest.raises(PromptError, match=r"reads images together with text. Use Prompts.from_chat"):
        Prompts.from_images([picture], vlm("llava"))
    text = SimpleNamespace(kind="decoder", config=tiny("llama").config)
    with pytest.raises(PromptError, match="this model is a text decoder and takes no images"):
        Prompts.from_images([picture], text)
    both = SimpleNamespace(kind="encoder", config=tiny("clip").config)
    with pytest.raises(PromptError, match=r"a text and a vision encoder side by side. Use from_inputs"):
        Prompts.from_images([picture], both)
    with pytest.raises(PromptError, match="takes 'pixel_values' alone, got"):
        Prompts.from_inputs({"input_ids": torch.zeros(1, 2)}, encoder("vit"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    source = image(6, 4) if mode in ("CMYK", "YCbCr", "L", "1", "P", "RGB", "HSV") else Image.new(mode, (6, 4))
    loaded = load_image(source.convert(mode), "image 0")
    assert loaded.mode == "RGB"
    assert loaded.size == (6, 4)


def test_sixteen_bits_are_scaled_not_cut():
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    loaded = np.asarray(load_image(Image.fromarray(deep), "image 0"))
    assert loaded[0, :, 0].tolist() == [0, 1, 128, 255]
    wide = Image.fromarray(deep.astype(np.int32))
    assert np.asarray(load_image(wide, "image 0"))[0, :, 2].tolist() == [0, 1, 128, 255]
    with pytest.raises(PromptError, match="integer pixels run from 0 to 70000, more than 16 bits"):
        load_image(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "image 0")


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert load_image(clear, "image 0").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert load_image(palette, "image 0").getpixel((1, 1)) == (255, 255, 255)
    assert load_image(Image.new("LA", (2, 2), (0, 255)), "image 0").getpixel((0, 0)) == (0, 0, 0)


def test_floating_point_pixels_are_refused():
    with pytest.raises(PromptError, match="image 0: floating-point pixels have no agreed range"):
        load_image(Image.new("F", (2, 2)), "image 0")


def test_a_file_turned_by_its_exif_tag_is_upright(tmp_path):
    source = image(6, 4)
    exif = source.getexif()
    exif[0x0112] = 6
    source.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png", "image 0").size == (4, 6)


def test_broken_files_are_named(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no image")
    with pytest.raises(
        PromptError, match=r"image 0 \(.*notes.png\): the image cannot be opened \(not an image in a kn"
    ):
        load_image(text, "image 0")
    whole = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:6000])
    with pytest.raises(PromptError, match=r"image 0 \(.*cut.png\): the image cannot be read to its end"):
        load_image(whole, "image 0")


def test_animated_files_are_refused_with_the_way_out(tmp_path):
    frames = [Image.new("L", (4, 4), n * 40) for n in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(PromptError, match=r"film.gif\): this file has 3 frames.*image.seek\(n\)"):
        load_image(tmp_path / "film.gif", "image 0")


def test_a_file_name_cannot_break_the_terminal(tmp_path):
    with pytest.raises(PromptError) as caught:
        load_image(str(tmp_path / "a\nb\x1b[31m.png"), "image 0")
    assert str(caught.value).isprintable()
