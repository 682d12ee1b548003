"""The recipe of the model made of pretrained parts: scenes, packing, what each stage changes, runs that go on."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Dinov2Config, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from recipes import vision_smol, vision_smol_card, vision_smol_makers
from recipes import vision_smol_model as parts
from sinkscope.tasks import photo_scenes
from sinkscope.tasks import scenes as data

TINY = vision_smol.VisionSmolConfig(pictures=4, passes=2, batch=2, align=0.5, warmup=1, rank=2)


class Words:
    """A tokenizer of single characters, the three special tokens apart."""

    SPECIAL = ("<|im_start|>", "<|im_end|>", parts.IMAGE_TOKEN)

    def __call__(self, text, add_special_tokens=False):
        ids = []
        while text:
            special = next((t for t in self.SPECIAL if text.startswith(t)), text[0])
            ids.append(self.convert_tokens_to_ids(special))
            text = text[len(special) :]
        return type("Encoding", (), {"input_ids": ids})

    def convert_tokens_to_ids(self, token):
        return self.SPECIAL.index(token) if token in self.SPECIAL else ord(token)


def tiny(seed, vision_layer=parts.VISION_LAYER):
    torch.manual_seed(seed)
    vision = Dinov2Config(hidden_size=8, num_hidden_layers=7, num_attention_heads=1, image_size=28, patch_size=14)
    text = LlamaConfig(
        vocab_size=128, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=vision_layer)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(autouse=True)
def photographs(monkeypatch):
    """Those of a package that is installed with the tests."""
    monkeypatch.setattr(photo_scenes, "TRAINING", ("sklearn/flower.jpg",))
    monkeypatch.setattr(photo_scenes, "HELD_OUT", ("sklearn/china.jpg",))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(parts, "build", tiny)
    monkeypatch.setattr(parts, "load_tokenizer", Words)


def test_a_question_sees_the_picture_and_itself():
    packed = parts.Packer(Words())([("ab", "c"), ("d", "e")])
    owner, sees = packed["owner"], packed["mask"][0, 0] == 0
    assert int((owner == 0).sum()) == len("user\n") + 1 + parts.PATCHES
    for query in range(len(owner)):
        seen = set(owner[sees[query]].tolist())
        assert seen <= {0, int(owner[query])}
        assert sees[query].nonzero().max() == query
    first = int((owner == 0).sum())
    assert [int(packed["positions"][0, (owner == n).nonzero()[0, 0]]) for n in (1, 2)] == [first, first]
    answered = packed["target"][packed["target"] >= 0].tolist()
    assert answered == [ord("c"), 1, ord("e"), 1]


def test_packed_questions_read_as_if_alone(small):
    network, packer, scene = tiny(0), parts.Packer(Words()), photo_scenes.held_out(1)[0]
    shown = parts.features(network, scene)
    asked = [("ab", "c"), ("d", "e")]
    together = parts.states(network, packer(asked), shown)
    for number, one in enumerate(asked, start=1):
        alone, packed = packer([one]), packer(asked)
        found = parts.states(network, alone, shown)[alone["owner"] == 1]
        torch.testing.assert_close(together[packed["owner"] == number], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [3, 6])
def test_features_are_the_towers(small, layer):
    network, scene = tiny(0, layer), photo_scenes.held_out(1)[0]
    whole = network.model.vision_tower(parts.pixel_values(scene), output_hidden_states=True)
    torch.testing.assert_close(parts.features(network, scene), whole.hidden_states[layer][0, 1:])


def test_every_pass_shows_every_picture():
    config = vision_smol.VisionSmolConfig(pictures=6, passes=2, batch=4)
    shown = [i for step in range(config.steps) for i in vision_smol.pictures_of_step(config, step)]
    assert sorted(shown[:6]) == sorted(shown[6:]) == list(range(6))
    assert shown[:6] != shown[6:]


def test_the_rate_rises_twice_and_falls():
    config = vision_smol.VisionSmolConfig()
    rates = [config.rate(step) for step in range(config.steps)]
    assert max(rates[: config.align_steps]) == config.align_lr
    assert rates[config.align_steps] == pytest.approx(config.lr / config.warmup)
    assert rates[-1] == pytest.approx(config.lr / 20)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(small, tmp_path):
    whole = vision_smol.train(TINY, tmp_path / "a", tmp_path / "features", held_out=2)
    vision_smol.train(TINY, tmp_path / "b", tmp_path / "features", stop_at=3, held_out=2)
    halves = vision_smol.train(TINY, tmp_path / "b", tmp_path / "features", held_out=2)
    assert halves.step == TINY.steps == 4
    for name, weight in whole.params.items():
        assert torch.equal(weight, halves.params[name]), name
    rows = [json.loads(line) for line in (tmp_path / "b" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(0 <= row[f"accuracy_{family}"] <= 1 for row in rows for family in data.FAMILIES)
    assert sorted(file.name for file in (tmp_path / "b").glob("weights-*")) == [
        f"weights-{step:05d}.safetensors" for step in (0, 1, 2, 4)
    ]


def test_the_first_stage_changes_the_projector_alone(small, tmp_path):
    before = vision_smol.Trainer(TINY, tmp_path / "none", tmp_path / "features")
    after = vision_smol.train(TINY, tmp_path / "run", tmp_path / "features", stop_at=TINY.align_steps, held_out=2)
    changed = {name for name, weight in after.params.items() if not torch.equal(weight, before.params[name])}
    assert changed == {name for name in after.params if "multi_modal_projector" in name}


@torch.no_grad()
def test_a_centred_projector_writes_nothing_that_all_visual_tokens_share(small, tmp_path):
    def written(config, name):
        trainer = vision_smol.Trainer(config, tmp_path / name, tmp_path / "features")
        shown = torch.stack([trainer.features(index) for index in range(4)])
        return trainer.network.model.multi_modal_projector(shown)

    plain, centred = written(TINY, "free"), written(dataclasses.replace(TINY, centre=4, scale=0.5), "centred")
    assert plain.mean((0, 1)).square().sum() / plain.square().sum(-1).mean() > 0.1
    torch.testing.assert_close(centred, (plain - plain.mean((0, 1))) / 2)


def test_frozen_blocks_and_their_projector_are_not_trained(small, tmp_path):
    for frozen, moved in ((0, {"projector", "layers"}), (1, set())):  # the model has one block
        config = dataclasses.replace(TINY, frozen=frozen, align=0.0)
        before = vision_smol.Trainer(config, tmp_path / f"none{frozen}", tmp_path / "features")
        if not moved:
            assert not any(vision_smol.step_trains(config, 0, name) for name in before.params)
            continue
        after = vision_smol.train(config, tmp_path / f"run{frozen}", tmp_path / "features", held_out=2)
        changed = {name for name, weight in after.params.items() if not torch.equal(weight, before.params[name])}
        assert moved == {part for part in ("projector", "layers") for name in changed if part in name}
    names = {f"language_model.layers.{n}.self_attn.q_proj.lora_A.default.weight": n for n in (0, 1, 2, 11)}
    config = dataclasses.replace(TINY, frozen=2, align=0.0)
    assert {names[n] for n in names if vision_smol.step_trains(config, 0, n)} == {2, 11}


def test_a_run_may_start_from_a_model_of_the_zoo(small, tmp_path, monkeypatch):
    trained = vision_smol.train(TINY, tmp_path / "run", tmp_path / "features", held_out=2)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "run" / "weights-00004.safetensors").rename(tmp_path / "zoo" / "adapter.safetensors")
    monkeypatch.setattr(vision_smol.zoo, "WEIGHTS", tmp_path)
    started = vision_smol.Trainer(
        dataclasses.replace(TINY, start="zoo", seed=5), tmp_path / "next", tmp_path / "features"
    )
    for name, weight in trained.params.items():
        assert torch.equal(weight.half(), started.params[name].half()), name


def test_the_latest_kept_weights_of_a_run_are_shipped(tmp_path):
    assert not vision_smol_card.is_run(tmp_path)
    (tmp_path / "recipe.json").write_text('{"align_lr": 0.001}')
    for step in (0, 135, 1350):
        (tmp_path / f"weights-{step:05d}.safetensors").touch()
    assert vision_smol_card.is_run(tmp_path)
    assert vision_smol_card.kept(tmp_path).name == "weights-01350.safetensors"


@torch.no_grad()
def test_spikes_are_counted_as_the_projector_writes_less_and_fewer(small, monkeypatch):
    network, scenes = tiny(0), photo_scenes.held_out(3)
    monkeypatch.setattr(vision_smol_makers, "AT", 0)  # before the first block: what the projector writes is what counts
    patches = [parts.features(network, scene) for scene in scenes]
    last = network.model.multi_modal_projector.linear_2
    last.weight.mul_(1e-3)
    last.bias.zero_()
    last.bias[3] = 5.0  # nearly all that is written is the shared vector, which lies in one dimension
    blocks = list(network.model.language_model.layers)
    monkeypatch.setattr(vision_smol_makers, "OVER", 2.82)  # sqrt(8) is most in this width
    rows = vision_smol_makers.table(network, parts.Packer(Words()), patches[:2], patches[2:])
    assert list(network.model.language_model.layers) == blocks
    assert not any(block._forward_pre_hooks for block in blocks)
    for row in rows:
        assert row["spikes"] == (row["tokens"] if row["shared"] else 0)
    assert {row["tokens"] for row in rows} == {256, 128, 64}


def test_resinking_is_judged_where_heads_are_of_two_kinds():
    found = {"cut": 0.04, "two_humps": True, "share": {"0": 0.2, "40": 0.5}, "pictures": 24}
    falling = found | {"share": {"0": 0.5, "40": 0.2}}
    assert [vision_smol_card._resinking(one)["agrees"] for one in (found, falling)] == [True, False]
    unsplit = vision_smol_card._resinking(found | {"two_humps": False})
    assert (unsplit["agrees"], unsplit["measured"]) == (None, [0.2, 0.5])
    assert "no valley" in unsplit["claim"]


def test_another_seed_is_judged_in_rows_of_its_own(small, tmp_path, monkeypatch):
    vision_smol.train(dataclasses.replace(TINY, seed=3), tmp_path / "run", tmp_path / "features", held_out=2)
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(TINY, seed=3))))
    seen = []

    def export(weights, target, vision_layer):
        seen.append((weights.name, vision_layer))

    row = {"claim": "Right answers", "paper": "at least .8", "measured": 0.9, "agrees": True}
    monkeypatch.setattr(vision_smol_card, "export", export)
    monkeypatch.setattr(vision_smol_card, "measure", lambda *_: ({"accuracy": 0.9}, [row]))
    content = {"facts": {"accuracy": 0.8}, "claims": [row | {"measured": 0.8}]}
    vision_smol_card.add_seed(content, tmp_path / "run", "zoo:vlm-smol")
    assert seen == [("weights-00004.safetensors", parts.VISION_LAYER)]
    assert [(r["claim"], r["measured"]) for r in content["claims"]] == [
        ("Right answers", 0.8), ("Seed 3: Right answers", 0.9),
    ]  # fmt: skip
    facts = content["facts"]["seed 3"]
    assert (content["facts"]["accuracy"], facts["accuracy"], facts["training"]["step"]) == (0.8, 0.9, 4)


def test_masking_of_another_seed_is_judged_by_its_interval():
    def found(low, high):
        arms = {arm: {"difference": d, "low": low, "high": high, "right": 0.7}
                for arm, d in (("highest phi", 0.0), ("random", 0.1), ("relevant", 1.2))}  # fmt: skip
        return {"prompts": 200, "masked": 7.5, "right_unmasked": 0.72, **arms}

    rows = [vision_smol_card._masked(found(*ends)) for ends in ((-0.01, 0.02), (0.2, 0.3), (0.1, 0.2))]
    assert [row["agrees"] for row in rows] == [True, False, None]
    assert rows[0]["measured"] == [0.0, 0.1, 1.2]
    assert "200 pictures" in rows[0]["claim"]


def test_products_are_of_half_width_only_where_the_processor_multiplies_them(monkeypatch):
    seen = []

    def states(*_):
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.zeros(1, 2, 4)

    monkeypatch.setattr(parts, "states", states)
    network = SimpleNamespace(lm_head=torch.nn.Linear(4, 3))
    for name, wanted in (("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True, "avx512_f": True})
        loss = vision_smol.loss_of(network, {"target": torch.tensor([[0, -100]])}, torch.zeros(1))
        assert seen.pop() is wanted
        assert loss.dtype == torch.float32
