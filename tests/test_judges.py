"""advbook.experiments.judges: what judges read in clean and in altered images, on FONTS and on real images."""

import pytest
import torch
from test_learned import plant, planted_images
from torch import nn
from toys import seeded

from advbook import fonts, networks
from advbook.experiments import judges
from advbook.experiments.judges import Judge, independent, read_told, read_untold
from advbook.manifolds.projection import Manifold

CPU = torch.device("cpu")
MANIFOLD = Manifold(fonts.decode, fonts.decode_with_jacobian, *fonts.theta_box())

# --- on FONTS -----------------------------------------------------------------------------------------------------


def some(count=60, seed=5):
    rows = fonts.random_rows("test", count, seed=seed)
    return rows, fonts.images(rows)


def swapped(rows):
    """The same fonts and transformations with the next letter."""
    other = fonts.Rows(rows.theta, rows.font, (rows.letter + 1) % 10)
    return other, fonts.images(other)


def test_the_judge_who_is_told_the_move_reads_clean_letters():
    rows, x = some(200)
    assert (read_told(x, rows.theta, rows.font) != rows.letter).double().mean() <= 0.05
    assert torch.equal(
        read_told(x, rows.theta, rows.font, batch=7)[:20], read_told(x[:20], rows.theta[:20], rows.font[:20])
    )
    assert len(read_told(x[:0], rows.theta[:0], rows.font[:0])) == 0


def test_the_judges_see_that_a_letter_was_swapped():
    rows, _ = some(30)
    other, x = swapped(rows)
    told, untold = read_told(x, rows.theta, rows.font), read_untold(x, rows.font, MANIFOLD, pool=5_000, steps=5)
    assert (told == other.letter).double().mean() >= 0.9
    assert (untold == other.letter).double().mean() >= 0.6


def test_the_judge_who_is_told_a_wrong_move_reads_badly():
    rows, x = some()
    turned = rows.theta.clone()
    turned[:, 5] = torch.where(turned[:, 5] > 0, turned[:, 5] - 1.5, turned[:, 5] + 1.5)
    assert (read_told(x, turned, rows.font) != rows.letter).double().mean() > 0.3


def test_the_judge_leaves_the_own_font_out(monkeypatch):
    """All fonts but the own one are relabelled: only who looks at the own one reads the old letter."""
    rows, x = some(30)
    rows = fonts.Rows(rows.theta, torch.full_like(rows.font, 7), rows.letter)
    x = fonts.images(rows)
    relabelled = fonts.prototypes().roll(1, 1)  # letter k now shows letter k - 1
    relabelled[7] = fonts.prototypes()[7]
    monkeypatch.setattr(fonts, "prototypes", lambda device="cpu": relabelled)
    assert (read_told(x, rows.theta, rows.font) == (rows.letter + 1) % 10).double().mean() >= 0.8
    another = torch.full_like(rows.font, 8)  # with another font left out, the own one is the nearest
    assert (read_told(x, rows.theta, another) == rows.letter).double().mean() >= 0.9


def test_the_judge_who_is_told_the_move_is_the_nearest_prototype_over_known_pixels():
    rows, x = some(3)
    upright, inside = fonts.upright(x, rows.theta)
    for image, mask, font, said in zip(
        upright.double(), inside, rows.font, read_told(x, rows.theta, rows.font), strict=True
    ):
        distance = ((fonts.prototypes().double() - image) * mask).square().sum((2, 3))
        distance[font] = torch.inf
        assert said == distance.amin(0).argmin()


def test_the_judge_who_is_told_nothing_knows_the_images_of_its_pool():
    pool = fonts.random_rows("train", 2_000)
    rows = pool[torch.arange(0, 2_000, 40)]
    said = read_untold(fonts.images(rows), (rows.font + 1) % 1000, MANIFOLD, pool=2_000, starts=2, steps=1)
    assert torch.equal(said, rows.letter)
    own = read_untold(fonts.images(rows), rows.font, MANIFOLD, pool=2_000, starts=2, steps=1)
    assert (own != rows.letter).any(), "without the own font it must search"


def test_steps_and_a_larger_pool_make_fewer_errors():
    rows, x = some(40, seed=2)
    blunt, few, sharp = (
        (read_untold(x, rows.font, MANIFOLD, pool=pool, starts=3, steps=steps) != rows.letter).double().mean()
        for pool, steps in ((5_000, 0), (1_000, 5), (5_000, 5))
    )
    assert sharp < blunt - 0.1
    assert sharp < few - 0.1


# --- on real images -----------------------------------------------------------------------------------------------


class Says(nn.Module):
    """Logits that lie in an image's first row."""

    def forward(self, x):
        return x[:, 0, 0, :3]


def judge_of(x, y):
    network = nn.Sequential(Says(), nn.Linear(3, 3))
    network[1].weight.data, network[1].bias.data = torch.eye(3), torch.zeros(3)
    return Judge(network.requires_grad_(False), x, y, 3)


def voters(seed=0, count=40):
    return torch.rand(count, 1, 4, 4, generator=seeded(seed)), torch.randint(3, (count,), generator=seeded(seed + 1))


def test_the_judge_adds_the_network_to_a_vote_of_the_ten_nearest():
    x, y = voters()
    images = torch.rand(9, 1, 4, 4, generator=seeded(5))
    said, voted = judge_of(x, y).votes(images)
    torch.testing.assert_close(said, images[:, 0, 0, :3].softmax(1))
    for image, share in zip(images, voted, strict=True):
        near = (x - image).flatten(1).norm(dim=1).argsort()[:10]
        expected = [float((y[near] == label).double().mean()) for label in range(3)]
        assert share.tolist() == pytest.approx(expected)
    assert torch.equal(judge_of(x, y)(images), (said + voted).argmax(1))


def test_the_judge_goes_by_the_larger_of_both():
    """The network is sure of class 2 or of nothing; the neighbours all say 1, or are divided."""
    x = torch.rand(20, 1, 4, 4, generator=seeded()) * 0.1
    sure, unsure = (torch.zeros(1, 1, 4, 4).index_fill(3, torch.tensor([2]), value) for value in (30.0, 0.01))
    ones, divided = torch.ones(20).long(), torch.arange(20) % 3
    assert judge_of(x, ones)(unsure) == 1
    assert judge_of(x, divided)(sure) == 2


def small_judge(monkeypatch):
    monkeypatch.setattr(judges, "WIDTHS", (2, 3))
    return independent("mnist", 200, CPU)


def test_the_judge_of_a_data_set_learns_from_its_first_images_alone_and_is_kept(home, monkeypatch):
    plant(monkeypatch)
    x, y, _ = planted_images("train", 200)
    judge = small_judge(monkeypatch)
    assert torch.equal(judge.x, x)
    assert torch.equal(judge.y, y)
    assert judge.classes == 10
    new, labels, _ = planted_images("test", 100)
    said, voted = judge.votes(new)
    assert said.shape == voted.shape == (100, 10)
    assert (voted.argmax(1) == labels).double().mean() > 0.95
    assert (judge(new) == labels).double().mean() > 0.95
    monkeypatch.setattr(judges.training, "train", lambda *given, **options: pytest.fail("it is in the store"))
    again = small_judge(monkeypatch)
    assert torch.equal(networks.predict(again.network, new), networks.predict(judge.network, new))
    assert len(list(home.glob("models/*.safetensors"))) == 1


def test_all_that_decides_a_judge_is_in_its_key(home, monkeypatch):
    plant(monkeypatch)
    asked = []
    monkeypatch.setattr(judges.store, "trained", lambda keys, fresh, train: (asked.extend(keys), fresh)[1])
    for dataset, n, widths in (("mnist", 200, (2,)), ("emnist", 200, (2,)), ("mnist", 100, (2,)), ("mnist", 200, (3,))):
        monkeypatch.setattr(judges, "WIDTHS", widths)
        independent(dataset, n, CPU)
    assert len({str(key) for key in asked}) == 4


def test_the_judge_sees_that_the_class_was_swapped(home, monkeypatch):
    plant(monkeypatch)
    judge = small_judge(monkeypatch)
    x, y, _ = planted_images("test", 50)
    swapped = x.clone()
    swapped[:, :, 1:4, :20] = x[:, :, 1:4, :20].roll(2, 3)
    assert (judge(swapped) == (y + 1) % 10).double().mean() > 0.95
