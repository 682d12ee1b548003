"""What a network says against its inputs is told as our error; what a probe raises inside a hook is not its fault."""

import pytest
import torch

import sinkscope as sk
from sinkscope.models.backends.own_errors import inputs_told
from sinkscope.testing import tiny


def test_a_missing_argument_is_an_error_of_the_prompts():
    network, wanted = torch.nn.Linear(2, 2), r"Linear does not run on other: .*unexpected keyword.*from_inputs"
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
        def at_layer(self, *_):
            raise ValueError("mine")

    model = sk.load_model(tiny("llama"))
    with pytest.raises(ValueError, match="mine"):
        sk.run(model, sk.Prompts.from_ids([[1, 2, 3, 4]], model), [Broken()])
