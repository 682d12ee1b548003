"""IRI's injection: by hand, at the last token alone, at the norm of what the block wrote; and no source, no change."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.edits import record
from sinkscope.edits.inject import injected
from sinkscope.errors import EditError
from sinkscope.methods.residual import residual_stream


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama", num_hidden_layers=4))
    return model, sk.Prompts.from_ids([[1, 5, 6, 7], [1, 8, 9]], model)


def test_the_sum_keeps_the_norm():
    found = injected(torch.tensor([3.0, 4.0]), torch.tensor([1.0, -4.0]))
    np.testing.assert_allclose(found, [5, 0], atol=1e-6)
    assert torch.equal(injected(torch.ones(2), -torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("component", ["attention", "mlp"])
def test_a_block_writes_what_earlier_ones_wrote_at_the_last_token(case, component):
    model, prompts = case
    write = record(model, prompts, component)
    edit = sk.InjectWrites(component, sources=[0, 1, 3], weights=[0.5, 0.25, 9], targets=[2], strength=0.8)
    start, site = ("2.mid", "2.post") if component == "mlp" else ("1.post", "2.mid")
    norms, alone = (
        sk.run(model, prompts, [sk.ResidualNorm()], edits, batch_size=2).residual_norm for edits in ([edit], ())
    )
    for row, length in enumerate(prompts.lengths):
        own, first, second = (write[layer][row, length - 1] for layer in (2, 0, 1))
        total = own + 0.8 * (0.5 * first + 0.25 * second)
        new = total * np.linalg.norm(own) / np.linalg.norm(total)
        stream = residual_stream(model, prompts, row)[start][length - 1]
        found = norms.sel(prompt=row, site=site)
        assert float(found[length - 1]) == pytest.approx(np.linalg.norm(stream + new), rel=1e-4)
        assert float(found[length - 1]) != pytest.approx(float(alone.sel(prompt=row, site=site)[length - 1]), rel=1e-4)
        np.testing.assert_allclose(norms[row, :, : length - 1], alone[row, :, : length - 1], rtol=1e-5)
        np.testing.assert_allclose(norms.sel(prompt=row, site=start), alone.sel(prompt=row, site=start), rtol=1e-5)


def test_it_holds_while_writing(case):
    model, prompts = case
    edit = sk.InjectWrites("mlp", sources=[0], weights=[1], targets=[1, 2, 3], strength=5.0)
    written = sk.generate(model, prompts.subset([0]), [edit], max_new_tokens=3)
    one = sk.run(model, prompts.subset([0]), [sk.Logits()], [edit]).logits.values[0, 0]
    assert one.argmax() == written.ids[0][4]
    plain = sk.generate(model, prompts.subset([0]), max_new_tokens=3)
    assert written.ids[0].tolist() != plain.ids[0].tolist()
    assert sk.InjectWrites("mlp", sources=[0], weights=[0], targets=[1]).identity


def test_errors(case):
    model, prompts = case
    with pytest.raises(EditError, match="2 sources but 1 weights"):
        sk.InjectWrites("mlp", sources=[0, 1], weights=[1], targets=[2])
    with pytest.raises(EditError, match="no source lies before a target"):
        sk.InjectWrites("mlp", sources=[2], weights=[1], targets=[1])
    with pytest.raises(EditError, match=r"component must be one of \['attention', 'mlp'\]"):
        sk.InjectWrites("state", sources=[0], weights=[1], targets=[1])
    with pytest.raises(EditError, match=r"this model has layers 0\.\.3, not 7"):
        sk.run(model, prompts, edits=[sk.InjectWrites("mlp", sources=[0], weights=[1], targets=[7])])
