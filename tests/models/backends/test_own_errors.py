"""What a network says against its inputs is told as our error; what a probe raises inside a hook is not its fault."""

import pytest
import torch

import sinkscope as sk
from sinkscope.models.backends.own_errors import inputs_told
from sinkscope.testing import tiny


def test_a_missing_argument_is_an_error_of_the_prompts():
    network, wanted = torch.nn.Linear(2, 2), r"Linear does not run on other \(1,\): .*unexpected keyword.*from_inputs"
    with pytest.raises(sk.errors.PromptError, match=wanted), inputs_told(network, {"other": torch.zeros(1)}):
        network(other=torch.zeros(1))


def test_what_a_hook_raises_stays_as_it_is():
    network = torch.nn.Linear(2, 2)

    def fail(*_):
        raise ValueError("mine")

    network.register_forward_hook(fail)
    with pytest.raises(ValueError, match="mine"), inputs_told(network, {"input": torch.zeros(1)}):
        network(torch.zeros(1, 2))


def test_what_a_probe_raises_stays_as_it_is():
    class Broken(sk.MaxAttention):
        """A probe with a fault of its own."""

        def at_layer(self, *_):
            raise ValueError("mine")

    model = sk.load_model(tiny("llama"))
    with pytest.raises(ValueError, match="mine"):
        sk.run(model, sk.Prompts.from_ids([[1, 2, 3, 4]], model), [Broken()])


@pytest.mark.parametrize(
    ("name", "more", "wanted"),
    [
        ("llama", {"position_ids": [[0, 1, 2]]}, r"position_ids \(1, 3\) of 0 to 2: RuntimeError: The size of tensor"),
        ("llama", {"labels": [[1, 2, 3, 4000]]}, r"labels \(1, 4\) of 1 to 4000: IndexError: Target 4000 is out of"),
        ("gpt2", {"token_type_ids": [[0, 0, 0, 5000]]}, r"token_type_ids \(1, 4\) of 0 to 5000.*IndexError: index out"),
        ("bert", {"token_type_ids": [[0, 0, 0, -1]]}, r"token_type_ids \(1, 4\) of -1 to 0.*IndexError: index out"),
    ],
)
def test_what_breaks_inside_the_network_is_told_with_what_it_was_given(name, more, wanted):
    model = sk.load_model(tiny(name))
    given = {key: torch.tensor(value) for key, value in more.items()}
    prompts = sk.Prompts.from_inputs({"input_ids": torch.tensor([[1, 2, 3, 4]]), **given}, model)
    with pytest.raises(sk.errors.PromptError, match=rf"does not run on .*{wanted}.*from_inputs"):
        sk.run(model, prompts, [sk.KeyMass()])


def test_a_network_of_somebodys_own_is_told_of_too():
    """Its code lies in no package; that of a hook beside it is left alone."""

    class Own(torch.nn.Module):
        def forward(self, ids):
            return {}[int(ids)]

    own, wanted = Own(), r"Own does not run on ids \(1,\) of 3 to 3: KeyError: 3\. Compare"
    with pytest.raises(sk.errors.PromptError, match=wanted), inputs_told(own, {"ids": torch.tensor([3])}):
        own(torch.tensor([3]))


def test_a_device_without_memory_stays_what_it_is():
    """Programs answer it with smaller batches."""

    class Full(torch.nn.Module):
        def forward(self):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError, match="no memory"), inputs_told(full := Full(), {}):
        full()
