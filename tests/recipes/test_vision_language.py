"""The vision-language recipe: pictures and questions that fit, packed questions that do not meet, runs that go on."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import sinkscope as sk
from recipes import ship
from recipes import vision_language as vl
from recipes import vision_language_card as card
from recipes import vision_language_model as parts
from sinkscope import zoo
from sinkscope.analysis import describe_difference, has_sign, highest_tokens
from sinkscope.errors import PromptError
from sinkscope.tasks import scenes as data
from sinkscope.tasks.scene_questions import received, scene_questions

TINY = vl.VisionLanguageConfig(
    tower_layers=1, tower_width=16, tower_heads=2, tower_mlp=16, start="", layers=3, heads=2, width=16, mlp=16,
    tower_steps=2, tower_batch=2, align_steps=1, steps=3, batch=2, warmup=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(TINY)))
    learner = vl.train(TINY, folder, measure_every=5)
    return folder, learner


@pytest.fixture(scope="module")
def tiny(run, tmp_path_factory):
    target = tmp_path_factory.mktemp("export")
    assert card.export(run[0], target) == 5
    return sk.load_model(target, dtype="float32")


def test_scenes_are_what_they_say():
    for scene in data.held_out(30):
        kinds = [(t.colour, t.shape) for t in scene.things]
        assert len(set(kinds)) == len(kinds)
        assert sorted(np.unique(scene.owner[scene.owner >= 0])) == list(range(len(kinds)))
        for index, thing in enumerate(scene.things):
            rows, columns = np.nonzero(scene.owner == index)
            assert (int(rows.mean() * 3 // data.SIDE), int(columns.mean() * 3 // data.SIDE)) == divmod(thing.cell, 3)
            shown = scene.pixels[scene.owner == index].mean(0)
            nearest = min(data.COLOURS, key=lambda name: np.abs(shown - data.COLOURS[name]).sum())
            assert nearest == thing.colour


def test_questions_have_one_answer():
    rng = np.random.default_rng(0)
    for scene in data.held_out(60):
        for family, answers in data.FAMILIES.items():
            question = data.ask(scene, family, rng)
            assert question.answer in answers
            if family == "place":
                named = [t for t in scene.things if f"{t.colour} {t.shape}" in question.text]
                assert [data.PLACES[t.cell] for t in named] == [question.answer]
            if family == "presence":
                there = any(f"{t.colour} {t.shape}?" in question.text for t in scene.things)
                assert (question.answer == "yes") == there
            if family == "colour" and "What colour is the" in question.text:
                assert [t.colour for t in scene.things if t.shape in question.text] == [question.answer]


def test_description_and_patches():
    scene = data.held_out(1)[0]
    assert data.describe(scene) == ("Describe the picture.", "purple circle middle-left.")
    owner = scene.patch_owner()
    assert owner.shape == (8, 8)
    assert owner[3, 1] == 0
    assert (owner[:, 4:] == -1).all()
    assert np.asarray(scene.image(2)).shape == (128, 128, 3)


def test_held_out_scenes_are_no_training_scenes():
    seen = {
        scene.pixels.tobytes()
        for step in range(50)
        for scene in vl.scenes_of_step(vl.VisionLanguageConfig(), step, 2)[0]
    }
    assert not seen & {scene.pixels.tobytes() for scene in data.held_out(100)}
    first, again = data.held_out(3, first=7), data.held_out(10)[7:]
    assert [s.pixels.tobytes() for s in first] == [s.pixels.tobytes() for s in again]


def test_every_answer_is_one_token_and_any_text_can_be_spelled():
    tokenizer = parts.make_tokenizer(480)
    for words in data.FAMILIES.values():
        assert [len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in words] == [1] * len(words)
    assert tokenizer.decode(tokenizer("dogs, größer?", add_special_tokens=False)["input_ids"]) == "dogs, größer?"


def test_packed_questions_do_not_meet(tiny):
    scene = data.held_out(1)
    pairs = [("What shape is purple?", "circle"), ("How many shapes are there?", "one")]
    pixels = parts.pixel_values(scene)
    together = parts.pack(tiny.tokenizer, [pairs], 64)
    with torch.no_grad():
        both = parts.packed_states(tiny.model, together, pixels)[0][together.target[0] >= 0]
        alone = []
        for pair in pairs:
            one = parts.pack(tiny.tokenizer, [[pair]], 64)
            alone.append(parts.packed_states(tiny.model, one, pixels)[0][one.target[0] >= 0])
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_packed_question_is_the_chat_prompt(tiny):
    shapes = scene_questions(tiny, 5)
    logits = sk.run(tiny, shapes.prompts, [sk.Logits()])["logits"].isel(position=-1).values
    packed = parts.pack(tiny.tokenizer, [[(q.text, q.answer)] for q in shapes.questions], 64)
    with torch.no_grad():
        states = parts.packed_states(tiny.model, packed, parts.pixel_values(list(shapes.scenes)))
        first = (packed.target >= 0).int().argmax(1)
        ours = tiny.model.lm_head(states[torch.arange(5), first]).numpy()
    np.testing.assert_allclose(ours, logits, atol=2e-5)
    assert [int(t[i]) for t, i in zip(packed.target, first, strict=True)] == list(shapes.examples.answers)


def test_a_stopped_run_goes_on_to_the_same_weights(run, tmp_path):
    vl.train(TINY, tmp_path, measure_every=5, stop_at=1)
    vl.train(TINY, tmp_path, measure_every=5, stop_at=4)
    resumed = vl.train(TINY, tmp_path, measure_every=5)
    expected = run[1].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_the_curve_tells_stage_accuracy_and_sinks(run):
    rows = [json.loads(line) for line in (run[0] / "curve.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["tower", "questions"]
    last = rows[-1]
    assert {f"accuracy_{family}" for family in data.FAMILIES} <= set(last)
    assert 0 <= last["visual_share"] <= 1
    assert 0 <= last["bos_max"] <= 1


def test_aligning_leaves_tower_and_blocks_alone(tmp_path):
    config = dataclasses.replace(TINY, align_steps=3)
    before = vl.train(config, tmp_path, measure_every=9, stop_at=2).vlm
    old = {name: value.clone() for name, value in before.state_dict().items()}
    after = vl.train(config, tmp_path, measure_every=9).vlm.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, old[name])}
    assert moved
    trained = ("projector", "embed_tokens", "lm_head", "language_model.norm")
    assert [name for name in moved if not any(part in name for part in trained)] == []


def test_the_decoder_starts_from_the_language_model():
    config = vl.VisionLanguageConfig()
    tokenizer = parts.make_tokenizer(config.vocab)
    network = parts.build(config, tokenizer)
    from sinkscope.models import variants

    source = variants.load(zoo.path("lm-python"))
    theirs = source.model.layers[3].mlp.down_proj.weight
    assert torch.equal(network.model.language_model.layers[3].mlp.down_proj.weight, theirs)
    assert torch.equal(network.model.language_model.embed_tokens.weight[0], source.model.embed_tokens.weight[0])


def test_examples_know_their_background(tiny):
    shapes = scene_questions(tiny, 6, ("place", "number"))
    assert shapes.families == ["place", "number"] * 3
    ds = sk.run(tiny, shapes.prompts, [sk.KeyMass()])
    covered, ground = shapes.covered(ds), shapes.background(ds)
    image = ds["token_role"].values == "image"
    assert (np.isfinite(covered.values) == image).all()
    scene = shapes.scenes[0]
    blocks = (scene.owner >= 0).reshape(8, 8, 8, 8).mean((1, 3))
    np.testing.assert_allclose(covered.values[0][image[0]], blocks.ravel())
    assert (ground.values[0][image[0]] == (blocks.ravel() < 0.5)).all()
    about = shapes.covered(ds, "about").values
    assert np.nansum(about[1]) == 0, "a question of number is about no shape"
    assert np.nansum(about[0]) > 0
    with pytest.raises(PromptError, match="expected a reading of these 6 prompts with the coordinates box_left"):
        shapes.covered(ds.isel(prompt=slice(0, 2)))


def test_larger_pictures_cover_the_same(tiny):
    small, large = scene_questions(tiny, 3), scene_questions(tiny, 3, scale=2)
    one, two = (s.covered(sk.run(tiny, s.prompts, [sk.KeyMass()])).values for s in (small, large))
    np.testing.assert_allclose(one, two)


def test_received_is_the_mean_of_rows_after_the_picture(tiny):
    shapes = scene_questions(tiny, 3)
    ds = sk.run(tiny, shapes.prompts, [sk.AttentionMap(layers=[1], heads=[0, 1])])
    found = received(ds)
    roles = ds["token_role"].values[2]
    rows = np.flatnonzero((np.arange(len(roles)) > np.flatnonzero(roles == "image")[-1]) & (roles != "pad"))
    expected = ds["attention"].values[2, 0, 1][rows].mean(0)
    np.testing.assert_allclose(found.values[2, 0, 1], expected, rtol=1e-6)


def test_highest_and_verdict(tiny):
    import xarray as xr

    image = xr.DataArray([[False, True, True, True]], dims=("prompt", "key"))
    scores = xr.DataArray([[9.0, 1.0, 3.0, 2.0]], dims=("prompt", "key"))
    assert highest_tokens(scores, image, 2).values.tolist() == [[False, False, True, True]]
    text, found = describe_difference(xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="prompt"))
    assert text.startswith("+2.500 [")
    assert text.endswith("n = 4 prompts")
    assert has_sign(found) is True
    assert has_sign(found, -1) is False
    assert has_sign(found - 2.5) is None


def test_a_run_is_shipped_with_a_card(run, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights_folder")
    real = card.measure
    monkeypatch.setattr(card, "measure", lambda folder: real(folder, 8, 2))
    folder = ship.ship("vlm-tiny", [run[0]])
    found = zoo.card("vlm-tiny")
    assert found["facts"]["accuracy_scenes"] == 8
    assert found["facts"]["training"]["steps"] == 5
    assert len(found["claims"]) == len(data.FAMILIES) + 6
    assert "--start " in found["command"]
    assert "coloured shapes" in found["description"]
    assert (folder / "processor_config.json").exists()
    loaded = sk.load_model("zoo:vlm-tiny")
    assert loaded.kind == "vlm"
    assert (
        len(sk.Prompts.from_chat([{"image": data.held_out(1)[0].image(), "text": "What shape is purple?"}], loaded))
        == 1
    )
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.glob("*.json"))
