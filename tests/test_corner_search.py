"""advbook.attacks.corner_search: the optimal pixels of linear models, rankings, chances, counts, memory, bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from advbook.attacks.corner_search import combinations, corner_search, one_pixel_changes, ranking, sigma_map
from advbook.attacks.engine import Counter
from advbook.attacks.norms import L0
from advbook.attacks.objectives import fooled, log_odds, margin, other_confidence
from advbook.attacks.search import Dice, Seen
from advbook.fleet import Stack


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear:
    """K classes with logits W x + b; it keeps what it is shown. float64 inside, so that batches do not change a bit."""

    def __init__(self, w, b=0.0):
        self.w, self.b, self.shown = w, b, []

    def __call__(self, x):
        self.shown.append(x.clone())
        return (x.flatten(1).to(self.w) @ self.w.T + self.b).to(x.dtype)


def problem(shape=(3, 3, 3), images=4, classes=3, seed=0):
    x = torch.rand(images, *shape, generator=seeded(seed), dtype=torch.float64)
    w = torch.randn(classes, math.prod(shape), generator=seeded(seed + 1), dtype=torch.float64)
    f = Linear(w)
    y = f(x).argmax(1)
    f.shown.clear()
    return f, x, y


def gains(x, w):
    """What the best corner of the colour cube does for w x, pixel by pixel: [H W], written plainly."""
    channels, height, width = x.shape
    best = []
    for i, j in itertools.product(range(height), range(width)):
        corners = itertools.product((0.0, 1.0), repeat=channels)
        best.append(max((w[:, i, j] * (torch.tensor(c, dtype=w.dtype) - x[:, i, j])).sum().item() for c in corners))
    return best


# --- what must be found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_on_a_linear_model_of_two_classes_the_best_k_pixels_are_found(channels, k):
    f, x, _ = problem((channels, 3, 4), classes=2)
    y = torch.zeros(4).long()
    result = corner_search(f, x, y, k=k, n_max=12, n_iter=300, restarts=2, stop="never", generator=seeded())
    slope = (f.w[1] - f.w[0]).view(x.shape[1:])
    for b in range(4):
        start = margin(f(x[b : b + 1]), y[:1]).item()
        optimum = start + sum(sorted(gains(x[b], slope))[-k:])
        assert result.value[:, b].max().item() == pytest.approx(optimum)
    assert (L0.size(result.x.flatten(0, 1) - x.repeat(2, 1, 1, 1)) <= k).all()
    changed = result.x != x
    assert ((result.x == 0) | (result.x == 1))[changed].all(), "corners of the colour cube"


@pytest.mark.parametrize("needed", [0, 1, 2, 3])
def test_success_takes_as_many_pixels_as_are_needed_and_k_of_them_are_allowed(needed):
    """Black images; a class more with every white pixel among four: the count must exceed `needed` - 1/2."""
    x, y = torch.zeros(2, 1, 3, 3), torch.zeros(2).long()
    w = torch.zeros(2, 9)
    w[1, 2:6] = 1
    f = Linear(w, torch.tensor([needed - 0.5, 0.0]))
    if needed:
        short = corner_search(f, x, y, k=max(needed - 1, 1), n_max=8, n_iter=100, restarts=2, generator=seeded())
        assert needed == 1 or not short.success.any()
    result = corner_search(f, x, y, k=max(needed, 1), n_max=8, n_iter=100, restarts=2, generator=seeded())
    assert result.success.all()
    assert ((result.x != x).flatten(2).sum(2) == needed).all()


def test_an_image_that_was_wrong_before_costs_one_query_more_than_the_ranking_and_stays_as_it_is():
    f, x, y = problem()
    wrong = (y + 1) % 3
    result = corner_search(f, x, wrong, k=3, generator=seeded())
    assert result.success.all()
    assert torch.equal(result.x[0], x)
    assert (result.steps == 0).all()
    assert result.forwards == 8 * 9 + 1


def test_a_class_that_the_objective_does_not_lead_to_is_tried_too():
    """Class 2 is further away than class 1, but a single pixel reaches it; pixels towards class 1 get nowhere."""
    x, y = torch.zeros(1, 1, 2, 4), torch.zeros(1).long()
    w = torch.zeros(3, 8)
    w[1, :4], w[2, 4:] = 0.2, 0.9
    f = Linear(w, torch.tensor([3.0, 1.5, 0.0]))  # 4 pixels towards 1 give 2.3 < 3; 4 towards 2 give 3.6 > 3
    result = corner_search(f, x, y, k=4, n_max=4, n_iter=150, generator=seeded())
    assert result.success.all()
    assert (result.x.flatten()[4:] == 1).all()


# --- the ranking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize("objective", [margin, log_odds])
def test_every_change_of_one_pixel_is_ranked_by_every_class_and_by_the_objective(channels, batch, objective):
    f, x, y = problem((channels, 2, 3), images=3)
    table = ranking(Counter(f), one_pixel_changes(x, None), y, objective, 5, batch, 1)
    assert table.shape == (3, 3, 5)
    assert max(map(len, f.shown)) <= batch
    assert sum(map(len, f.shown)) == 3 * 6 * 2**channels, "each is judged once"
    for b in range(3):
        images, value = [], []
        for i, j, corner in itertools.product(range(2), range(3), itertools.product((0.0, 1.0), repeat=channels)):
            image = x[b].clone()
            image[:, i, j] = torch.tensor(corner)
            images.append(image)
        logits = f(torch.stack(images))
        for r in range(3):
            value = logits[:, r] - logits[:, y[b]] if r != y[b] else objective(logits, y[b].expand(len(logits)))
            torch.testing.assert_close(value[table[b, r]], value.sort(descending=True).values[:5])


def test_changes_are_applied_one_after_the_other():
    _, x, _ = problem((2, 2, 2), images=2)
    space = one_pixel_changes(x, None)  # 4 corners a pixel: 00, 01, 10, 11
    changed = space.changed(torch.tensor([[0, 4 + 3, -1], [8 + 2, -1, 8 + 1]]))
    expected = x.clone()
    expected[0, :, 0, 0], expected[0, :, 0, 1] = 0, 1
    expected[1, :, 1, 0] = torch.tensor([0.0, 1.0]).double()
    torch.testing.assert_close(changed, expected)


def test_ranks_are_drawn_with_the_published_chances():
    u = torch.zeros(20_000, 3)
    count = torch.zeros(len(u), dtype=torch.long)
    dice, proposal = Dice(seeded(), 1), combinations(2, 5, 10)
    seen = Seen(u, count.float(), count.bool(), count + 3)  # past the image and two single changes
    _, candidate = proposal.propose((), seen, dice)
    chances = torch.tensor([(2 * 5 - 2 * i + 1) / 25 for i in range(1, 6)])
    assert chances.sum() == pytest.approx(1)
    drawn = candidate[:, 1:].flatten().long().bincount(minlength=5)
    assert stats.chisquare(drawn, chances.double().numpy() * 40_000).pvalue > 1e-3


def test_tries_are_the_image_the_best_single_changes_and_then_more_and_more_changes_up_to_k():
    k, classes, n_iter = 3, 2, 2
    queries = 1 + classes + (k - 1) * classes * n_iter
    proposal, dice, tried = combinations(classes, 4, n_iter), Dice(seeded(), 1), []
    for clock in range(1, queries):
        now = torch.tensor([clock])
        _, u = proposal.propose((), Seen(torch.zeros(1, 1 + k), now.float(), now.bool(), now), dice)
        tried.append((int(u[0, 0]), int((u[0, 1:] >= 0).sum())))
    assert tried == [(0, 1), (1, 1), (0, 2), (0, 2), (1, 2), (1, 2), (0, 3), (0, 3), (1, 3), (1, 3)]


# --- what it costs and what always holds ----------------------------------------------------------------------


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    images=st.integers(0, 3),
    classes=st.integers(1, 4),
    restarts=st.integers(1, 2),
    k=st.integers(1, 4),
    n_max=st.integers(1, 30),
    n_iter=st.integers(1, 3),
    kappa=st.one_of(st.none(), st.floats(0, 2)),
    batch=st.integers(1, 40),
    objective=st.sampled_from([margin, other_confidence]),
    seed=st.integers(0, 99),
)
def test_what_holds_for_every_run(shape, images, classes, restarts, k, n_max, n_iter, kappa, batch, objective, seed):
    f, x, y = problem(shape, images, classes, seed)
    x = (x * 1.4 - 0.2).clamp(0, 1).float()
    options = {"k": k, "n_max": n_max, "n_iter": n_iter, "kappa": kappa, "restarts": restarts, "objective": objective}
    result = corner_search(f, x, y, **options, stop="never", generator=seeded(seed), batch=batch)
    choices = 2 if kappa is not None else 2 ** shape[0]
    if images:
        judged = choices * shape[1] * shape[2] + restarts * (1 + classes + (k - 1) * classes * n_iter)
        assert result.forwards == judged
        assert sum(map(len, f.shown)) == judged * images
        assert max(map(len, f.shown)) <= batch
    assert result.x.shape == (restarts, *x.shape)
    assert result.x.numel() == 0 or (result.x.min() >= 0 and result.x.max() <= 1)
    for example, value, success in zip(result.x, result.value, result.success, strict=True):
        assert (L0.size(example - x) <= k).all()
        logits = f(example)
        torch.testing.assert_close(objective(logits, y), value, atol=1e-5, rtol=1e-5)
        assert torch.equal(fooled(logits, y), success)
        assert (value >= objective(f(x), y) - 1e-6).all(), "never worse than the image"
    again = corner_search(f, x, y, **options, stop="never", generator=seeded(seed), batch=batch)
    assert torch.equal(result.x, again.x), "the generator alone decides"


def test_restarts_draw_combinations_of_their_own():
    f, x, y = problem()
    result = corner_search(f, x, y, k=4, n_max=50, n_iter=2, restarts=4, stop="never", generator=seeded())
    assert all(len(value.unique()) > 1 for value in result.value.T)


def test_success_of_an_image_can_end_its_other_restarts():
    f, x, y = problem()
    cost = {
        stop: corner_search(f, x, y, k=3, restarts=4, stop=stop, generator=seeded(), batch=8).forwards
        for stop in ("image", "pair", "never")
    }
    assert 72 < cost["image"] < cost["pair"] < cost["never"]


# --- changes that the eye does not see ------------------------------------------------------------------------


def test_the_sigma_map_is_the_root_of_the_smaller_spread():
    x = torch.rand(2, 2, 4, 5, generator=seeded(), dtype=torch.float64)
    sigma = sigma_map(x)
    for b, c, i, j in itertools.product(range(2), range(2), range(4), range(5)):
        row = torch.stack([x[b, c, i, min(max(j + d, 0), 4)] for d in (-1, 0, 1)])
        column = torch.stack([x[b, c, min(max(i + d, 0), 3), j] for d in (-1, 0, 1)])
        assert sigma[b, c, i, j].item() == pytest.approx(min(row.std(correction=0), column.std(correction=0)) ** 0.5)
    edge = torch.zeros(1, 1, 4, 4)
    edge[:, :, :, 2:] = 1
    assert (sigma_map(edge) == 0).all(), "along an edge nothing may change"


@pytest.mark.parametrize("channels", [1, 3])
def test_imperceivable_changes_are_kappa_times_the_contrast(channels):
    f, x, y = problem((channels, 4, 4))
    result = corner_search(f, x, y, k=5, kappa=0.4, n_iter=20, stop="never", generator=seeded())
    move = 0.4 * sigma_map(x) * (x if channels > 1 else 1)
    down, up = (x - move).clamp(0, 1), (x + move).clamp(0, 1)
    changed = (result.x[0] != x).any(1, keepdim=True)
    assert 0 < changed.sum((1, 2, 3)).max() <= 5
    is_down, is_up = (result.x[0] == down).all(1, keepdim=True), (result.x[0] == up).all(1, keepdim=True)
    assert (is_down | is_up | ~changed).all(), "all channels of a pixel go the same way"
    assert is_down[changed].any()
    assert is_up[changed].any()
    assert (result.value >= margin(f(x), y)).all()


def test_a_constant_image_cannot_be_changed_imperceivably():
    f, _, _ = problem()
    x = torch.full((2, 3, 3, 3), 0.5, dtype=torch.float64)
    assert torch.equal(corner_search(f, x, f(x).argmax(1), k=3, n_iter=3, kappa=0.4, generator=seeded()).x[0], x)


# --- fleets and edges -----------------------------------------------------------------------------------------


def affine(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(27, 3).double())


@pytest.mark.parametrize("batch", [5, 300])
def test_a_fleet_of_two_equal_members_gives_the_same_as_one(batch):
    _, x, _ = problem()
    y = affine(0)(x).argmax(1)
    one = corner_search(affine(0), x, y, k=2, n_iter=5, restarts=2, generator=seeded(), batch=batch)
    two = corner_search(Stack([affine(0), affine(0)]), x, y, k=2, n_iter=5, restarts=2, generator=seeded(),
                        batch=2 * batch)  # fmt: skip
    assert two.x.shape == (2, 2, 4, 3, 3, 3)
    for m in range(2):
        assert torch.equal(two.x[:, m], one.x)
        assert torch.equal(two.success[:, m], one.success)
    assert two.forwards == one.forwards


def test_members_that_differ_have_rankings_of_their_own():
    """With one pixel there is no chance: each member's result is what it gives alone."""
    _, x, _ = problem()
    y = torch.tensor([0, 1, 2, 0])
    options = {"k": 1, "restarts": 2, "stop": "never"}
    both = corner_search(Stack([affine(0), affine(1)]), x, y, **options, generator=seeded(), batch=10)
    for m in range(2):
        alone = corner_search(affine(m), x, y, **options, generator=seeded())
        torch.testing.assert_close(both.value[:, m], alone.value)
        torch.testing.assert_close(both.x[:, m], alone.x)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"k": 0}, r"^k = 0: .*1 or more"),
        ({"n_max": 0}, r"^n_max = 0: .*1 or more"),
        ({"n_iter": 0}, r"^n_iter = 0: .*1 or more"),
        ({"restarts": 0}, r"^restarts = 0: .*1 or more"),
        ({"kappa": -1.0}, r"^kappa = -1\.0: .*0 or more"),
    ],
)
def test_a_budget_out_of_range_is_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        corner_search(*problem(), **{"k": 2, "generator": seeded(), **wrong})


def test_a_network_that_gives_nan_is_an_error():
    f, x, y = problem()
    with pytest.raises(ValueError, match=r"not finite.*NaN"):
        corner_search(Linear(f.w * math.nan), x, y, k=2, generator=seeded())
