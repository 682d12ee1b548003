"""The page on extending is true: its examples, put into one file outside the package, do what it says of them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

USE = """
from my_extensions import *
from sinkscope import testing
from sinkscope.edits import dumps, loads, parse

network = testing.tiny("llama")
model = sk.load_model(network)
prompts = sk.Prompts.from_ids([[1, 5, 9, 2, 7, 3, 8, 4], [1, 6, 3, 9, 2, 8, 5, 7]] * 3, model)

reading = sk.run(model, prompts, [LargestEntry(), sk.KeyMass()])
seen = network(**prompts.batch([0]).inputs, output_hidden_states=True).hidden_states[1]
assert abs(float(reading.largest_entry.sel(prompt=0, site="0.post")[3]) - float(seen[0, 3].detach().abs().max())) < 1e-5
sk.save(reading, "reading.nc")
assert sk.open("reading.nc").largest_entry.attrs["units"] == "activation"

rows = sk.run(model, prompts, [Concentration(), sk.AttentionMap(layers=[1], heads=[2])])
squares = (rows.attention.sel(layer=1, head=2) ** 2).sum("key")
assert abs(rows.concentration.sel(layer=1, head=2) - squares).max() < 1e-6

damped = sk.run(model, prompts, sk.KeyMass(), DampKeys(2.0))
assert (damped.key_mass.sel(layer=0)[..., 0] < reading.key_mass.sel(layer=0)[..., 0]).all()
shrunk = sk.run(model, prompts, LargestEntry(), ShrinkTokens("0.post", keys=[1]))
before, after = (float(ds.largest_entry.sel(prompt=0, site="0.post")[1]) for ds in (reading, shrunk))
assert abs(after / before - 0.5) < 1e-5
for edit in (DampKeys(2.0, layers=[1]), ShrinkTokens("0.post", keys=[1])):
    assert loads(dumps([edit])) == [edit]
assert parse("damp-keys by=2 layers=1") == [DampKeys(2.0, layers=[1])]
swept = sk.sweep(model, prompts, {"none": [], "damped": [DampKeys(2.0)]}, sk.KeyMass())
assert abs(swept.key_mass.sel(edit="damped") - damped.key_mass).max() < 1e-5

found = loudest_token(reading)
assert found.dims == ("prompt",)
drawn = sk.report.draw(reading, "largest_entries")
assert len(drawn.lines[0].get_ydata()) == reading.sizes["site"]
result = damp_first(model, prompts)
assert {"difference", "n"} <= set(result.table().columns)
assert result.plot().containers
assert first_letters(calibration=4, test=4, seed=0).test
added = {
    "probe": "largest-entry", "statistic": "squared-weights", "edit": "damp-keys",
    "metric": "loudest-token", "figure": "largest-entries",
    "method": "damp-first", "task": "first-letters", "model": "my-model",
}
for kind, name in added.items():
    entry = next(e for e in registry.entries(kind) if registry.kebab(e.name) == name)
    assert entry.package == "my_extensions", entry
network.save_pretrained("path/to/my-model")
assert sk.load_model("my-model").id == "my-model"
print("all true")
"""


def test_the_examples_of_the_page_work_from_a_file_outside_the_package(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    (tmp_path / "my_extensions.py").write_text("\n\n".join(blocks), encoding="utf-8")
    (tmp_path / "use.py").write_text(USE, encoding="utf-8")
    environment = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all true\n")
