"""advbook.attacks.transfer: tables made by hand, fleets beside lists, what is refused."""

import math

import pytest
import torch

from advbook.attacks.pgd import Attack
from advbook.attacks.transfer import outputs, transfer, transfer_rate
from advbook.fleet import Stack


def above(level):
    """Class 1 if the first pixel exceeds a level, else class 0."""
    return lambda x: torch.stack([torch.zeros(len(x)), x.flatten(1)[:, 0] - level], 1)


def flat(*levels):
    """Images 1 x 1 x 1 of these grey levels, with the axes of the nested list."""
    return torch.tensor(levels)[..., None, None, None]


def made(examples, success):
    """An attack's result; transfer looks at x and success alone."""
    success = torch.tensor(success)
    return Attack(examples, success, success.float(), success.long(), 1.0)


# Four images, all of class 0, seen by a source that finds classes above .5 and by targets of .4 and .7.
X, Y = flat(0.1, 0.2, 0.45, 0.6), torch.zeros(4).long()
CORRECT = torch.tensor([True, True, True, False])  # the source's own
ATTACK = made(
    flat([0.55, 0.9, 0.55, 0.9], [0.75, 0.3, 0.95, 0.9]), [[True, True, True, True], [True, False, True, True]]
)


def test_a_table_by_hand():
    found = transfer([above(0.4), above(0.7)], X, Y, ATTACK, CORRECT)
    # the target of .4 is wrong on images 2 and 3, that of .7 on none; the source is wrong on image 3
    assert found.counted.tolist() == [
        [[True, True, False, False], [True, True, False, False]],
        [[True, True, True, False], [True, True, True, False]],
    ]
    assert found.fooled.tolist() == [
        [[True, True, False, False], [True, False, False, False]],
        [[False, True, False, False], [True, False, True, False]],
    ]
    assert transfer_rate(found).tolist() == [3 / 4, 3 / 6]


def test_one_network_is_a_list_of_one():
    alone, listed = (transfer(targets, X, Y, ATTACK, CORRECT) for targets in (above(0.7), [above(0.7)]))
    assert alone.counted.shape == (1, 2, 4)
    assert torch.equal(alone.counted, listed.counted)
    assert torch.equal(alone.fooled, listed.fooled)


def test_a_module_is_one_network():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
    assert transfer(module, X, Y, ATTACK, CORRECT).counted.shape == (1, 2, 4)


def test_the_source_as_target_is_fooled_by_its_own_successes():
    found = transfer(above(0.5), X, Y, ATTACK, CORRECT)
    assert torch.equal(found.fooled, found.counted & ATTACK.success)
    assert transfer_rate(found).tolist() == [5 / 6]


def test_examples_that_fool_the_target_but_not_the_source_do_not_count():
    attack = made(flat([0.9, 0.9, 0.9, 0.9]), [[False, True, False, False]])
    found = transfer(above(0.7), X, Y, attack, CORRECT)
    assert found.counted.tolist() == [[[True, True, True, False]]]
    assert found.fooled.tolist() == [[[False, True, False, False]]]


@pytest.mark.parametrize(
    ("correct", "level"), [(False, 0.7), (True, 0.05)], ids=["the source is never right", "the target is never right"]
)
def test_nothing_to_count_is_nan(correct, level):
    found = transfer(above(level), X, Y, ATTACK, torch.full((4,), correct))
    assert not found.counted.any()
    assert transfer_rate(found).isnan().all()


def test_an_attack_that_never_succeeds_does_not_transfer():
    found = transfer(above(0.7), X, Y, made(ATTACK.x, [[False] * 4] * 2), CORRECT)
    assert transfer_rate(found).tolist() == [0]


def test_one_image_and_one_restart():
    found = transfer(above(0.7), X[:1], Y[:1], made(flat([0.8]), [[True]]), CORRECT[:1])
    assert found.fooled.tolist() == [[[True]]]


def test_several_sources_give_a_table_of_rates():
    """Rows: targets of .4 and .7. Columns: the same two as sources, with clean images that all are right on."""
    x, y = X[:2], Y[:2]
    examples = flat([[0.5, 0.6], [0.8, 0.9]], [[0.75, 0.3], [0.71, 0.6]])  # [R, M, B] = [2, 2, 2]
    attack = made(examples, [[[True, True], [True, True]], [[True, False], [True, False]]])
    found = transfer([above(0.4), above(0.7)], x, y, attack, torch.ones(2, 2, dtype=torch.bool))
    assert found.counted.shape == (2, 2, 2, 2)
    torch.testing.assert_close(
        transfer_rate(found), torch.tensor([[3 / 4, 3 / 4], [1 / 4, 3 / 4]], dtype=torch.float64)
    )


def test_each_source_has_its_own_clean_errors():
    correct = torch.tensor([[True, False], [False, False]])
    attack = made(flat([[0.9, 0.9], [0.9, 0.9]]), [[[True, True], [True, True]]])
    found = transfer(above(0.7), X[:2], Y[:2], attack, correct)
    assert torch.equal(found.counted[0, 0], correct)
    assert transfer_rate(found)[0, 0] == 1
    assert transfer_rate(found)[0, 1].isnan()


def test_a_fleet_is_the_list_of_its_members():
    random = torch.Generator().manual_seed(1)
    modules = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)) for _ in range(3)]
    for module in modules:
        module[1].weight.data.normal_(generator=random)
        module[1].bias.data = -module[1].weight.data.sum(1) / 2  # the classes meet in grey
    x, examples = torch.rand(40, 1, 2, 2, generator=random), torch.rand(2, 40, 1, 2, 2, generator=random)
    y = torch.randint(3, (40,), generator=random)
    attack = made(examples, (torch.rand(2, 40, generator=random) < 0.8).tolist())
    correct = torch.rand(40, generator=random) < 0.8
    fleet, members = (transfer(targets, x, y, attack, correct) for targets in (Stack(modules), modules))
    assert len({str(member.tolist()) for member in members.fooled}) == 3, "the members differ"
    assert torch.equal(fleet.counted, members.counted)
    assert torch.equal(fleet.fooled, members.fooled)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_outputs_do_not_depend_on_the_batch(batch):
    x = torch.rand(7, 1, 2, 2)
    assert torch.equal(outputs(above(0.3), x, batch=batch), above(0.3)(x))
    assert not outputs(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), x, batch=batch).requires_grad


def test_a_target_that_gives_nan_is_an_error():
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        transfer(lambda x: above(0.5)(x).masked_fill(x.flatten(1) > 0.94, math.nan), X, Y, ATTACK, CORRECT)


def test_clean_errors_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"^correct: its shape is \[3\]; allowed is \[4\]"):
        transfer(above(0.5), X, Y, ATTACK, CORRECT[:3])
