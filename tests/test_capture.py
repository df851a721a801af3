"""advbook.capture: on a CPU the function itself; on a GPU, where there is one, the same numbers as without it."""

import pytest
import torch

from advbook.capture import captured


def test_without_a_gpu_it_is_the_function():
    def function(x):
        return 2 * x

    assert captured(function, torch.zeros(3)) is function


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_follows_its_inputs_and_what_it_reads():
    weight = torch.full((3,), 2.0, device="cuda")
    replay = captured(lambda x: weight * x, torch.zeros(3, device="cuda"))
    assert torch.equal(replay(torch.ones(3, device="cuda")), weight)
    weight.mul_(3)
    assert torch.equal(replay(torch.ones(3, device="cuda")).cpu(), torch.full((3,), 6.0))
