"""advbook.experiments.directions: principal directions against scikit-learn, where perturbations lead against plain
loops, attacks on linear networks whose best perturbation is known, and trainings bit for bit.
"""

import math
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from test_kernels import Devices
from torch import nn
from toys import seeded

from advbook import networks, store, training
from advbook.attacks.norms import L1, L2, LINF
from advbook.attacks.spaces import Latent, Pixels
from advbook.experiments import directions as d
from advbook.experiments import recipes
from advbook.experiments.directions import FIRST, THREATS, Directions, ascend, attacked_variance, energies
from advbook.experiments.setting import load
from advbook.fleet import Stack
from advbook.training import Ascent, Perturbed, Schedule

SIDE, CLASSES, Q = 4, 3, 4
D = SIDE * SIDE
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def images(count, seed=0, spread=1.0):
    """Grey images around .5, whose classes vary along directions of their own."""
    y = torch.arange(count) % CLASSES
    mixing = torch.randn(CLASSES, D, D, generator=seeded(99), dtype=torch.float64) * torch.linspace(1, 0.05, D)
    noise = torch.randn(count, D, generator=seeded(seed), dtype=torch.float64)
    flat = torch.einsum("bij,bj->bi", mixing[y], noise)
    return (0.5 + spread * 0.02 * flat).clamp(0, 1).view(count, 1, SIDE, SIDE), y


X, Y = images(90)
PRINCIPAL, CODES = d.principal(X, Y, CLASSES), d.generator(X, Y, CLASSES, Q)
B = 6


def of_class(k):
    return X[torch.eq(Y, k)].flatten(1)


x, y = images(B, seed=5)


def noise(seed=0, count=B):
    return torch.randn(count, 1, SIDE, SIDE, generator=seeded(seed), dtype=torch.float64)


# --- principal directions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(CLASSES))
def test_principal_directions_and_the_generator_of_a_class_are_those_of_scikit_learn(k):
    own = of_class(k).numpy()
    theirs = PCA(Q).fit(own)
    everything = PCA().fit(own)
    by_count = (len(own) - 1) / len(own)  # theirs divide by N - 1
    variances = torch.from_numpy(everything.explained_variance_) * by_count
    torch.testing.assert_close(PRINCIPAL.variances[k], variances, atol=1e-12, rtol=1e-9)
    overlap = PRINCIPAL.vectors[k] @ torch.from_numpy(everything.components_).T
    torch.testing.assert_close(overlap.abs(), torch.eye(D, dtype=overlap.dtype), atol=1e-6, rtol=0)
    sigma2 = theirs.noise_variance_ * by_count
    signs = overlap.diagonal()[:Q].sign()[:, None]
    expected = torch.from_numpy(theirs.components_) * (variances[:Q, None] - sigma2).sqrt()
    torch.testing.assert_close(CODES[k] * signs, expected, atol=1e-8, rtol=1e-6)


def test_principal_directions_come_in_the_type_of_the_images_and_the_classes_differ():
    found, codes = d.principal(X.float(), Y, CLASSES), d.generator(X.float(), Y, CLASSES, Q)
    assert [part.dtype for part in (found.variances, found.vectors, codes)] == [torch.float32] * 3
    assert (found.variances.shape, found.vectors.shape) == ((CLASSES, D), (CLASSES, D, D))
    assert codes.shape == (CLASSES, Q, D)
    assert not torch.allclose(found.vectors[0].abs(), found.vectors[1].abs(), atol=0.1)


def test_the_order_of_the_images_does_not_matter():
    order = torch.randperm(len(X), generator=seeded(1))
    found = d.principal(X[order], Y[order], CLASSES)
    torch.testing.assert_close(found.variances, PRINCIPAL.variances, atol=1e-14, rtol=1e-10)


def test_a_generator_needs_more_images_of_every_class_than_codes():
    own, labels = images(31)  # 11 of class 0, 10 of the others
    assert d.generator(own, labels, CLASSES, 9).shape == (CLASSES, 9, D)
    for q, k, count in ((10, 1, 10), (11, 0, 11)):
        with pytest.raises(
            ValueError, match=rf"^Q = {q}: class {k} has {count} training images; allowed is less than "
        ):
            d.generator(own, labels, CLASSES, q)


def test_a_class_without_images_is_refused_too():
    with pytest.raises(ValueError, match=r"^Q = 1: class 3 has 0 training images"):
        d.generator(X, Y, CLASSES + 1, 1)
    with pytest.raises(ValueError, match="at least one row"):
        d.principal(X, Y, CLASSES + 1)


@pytest.mark.parametrize("count", [1, 5, D])
def test_eigenspaces_hold_the_first_and_the_last_directions(count):
    first, last = PRINCIPAL.eigenspace(count), PRINCIPAL.eigenspace(count, last=True)
    assert first.shape == last.shape == (CLASSES, count, D)
    for k in range(CLASSES):
        centred = of_class(k) - of_class(k).mean(0)
        most, least = ((centred @ rows[k].T).square().mean(0) for rows in (first, last))
        torch.testing.assert_close(most, PRINCIPAL.variances[k, :count])
        torch.testing.assert_close(least, PRINCIPAL.variances[k, D - count :])


# --- where a perturbation leads -------------------------------------------------------------------------------------


def plain_energies(delta, labels, found):
    rows = []
    for one, k in zip(delta.flatten(1).tolist(), labels.tolist(), strict=True):
        size = sum(value * value for value in one)
        dots = [sum(a * b for a, b in zip(v, one, strict=True)) for v in found.vectors[k].tolist()]
        rows.append([dot * dot / size for dot in dots])
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
def test_energies_are_the_plain_loop_whatever_the_size_and_sum_to_one(seed, scale):
    delta = noise(seed)
    labels = torch.randint(CLASSES, (B,), generator=seeded(seed))
    found = energies(scale * delta, labels, PRINCIPAL)
    torch.testing.assert_close(found, plain_energies(delta, labels, PRINCIPAL), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.sum(1), torch.ones(B, dtype=found.dtype))
    assert (found >= 0).all()


def test_energies_do_not_depend_on_the_signs_of_eigenvectors_or_of_the_perturbation():
    signs = torch.randn(CLASSES, D, 1, generator=seeded(3)).sign().double()
    turned = Directions(PRINCIPAL.variances, PRINCIPAL.vectors * signs)
    found = energies(noise(), y, PRINCIPAL)
    torch.testing.assert_close(energies(noise(), y, turned), found)
    torch.testing.assert_close(energies(-noise(), y, PRINCIPAL), found)


@pytest.mark.parametrize("i", [0, 1, Q, D - 1])
def test_a_perturbation_along_one_direction_has_all_its_energy_there(i):
    delta = 0.3 * PRINCIPAL.vectors[y, i].view(B, 1, SIDE, SIDE)
    expected = torch.zeros(B, D, dtype=torch.float64)
    expected[:, i] = 1
    torch.testing.assert_close(energies(delta, y, PRINCIPAL), expected, atol=1e-9, rtol=0)
    own = PRINCIPAL.variances[y]
    torch.testing.assert_close(attacked_variance(expected, y, PRINCIPAL), own[:, i] / own.mean(1))


def test_a_perturbation_of_zero_has_no_energy_and_the_others_keep_theirs():
    delta = noise()
    delta[2] = 0
    found = energies(delta, y, PRINCIPAL)
    assert (found[2] == 0).all()
    kept = torch.arange(B) != 2
    torch.testing.assert_close(found[kept], energies(noise(), y, PRINCIPAL)[kept])


def test_the_class_decides_which_directions_count():
    other = energies(noise(), (y + 1) % CLASSES, PRINCIPAL)
    assert not torch.allclose(energies(noise(), y, PRINCIPAL), other, atol=0.05)


def test_the_attacked_variance_of_a_random_direction_is_one_on_average():
    """Of 9,000 draws; five standard errors are allowed."""
    count = 9_000
    labels = torch.arange(count) % CLASSES
    found = attacked_variance(energies(noise(7, count), labels, PRINCIPAL), labels, PRINCIPAL)
    assert found.std() > 0.1
    assert found.mean().item() == pytest.approx(1, abs=5 * found.std().item() / count**0.5)


def test_the_attacked_variance_is_the_weighted_mean_of_the_variances():
    energy = energies(noise(), y, PRINCIPAL)
    expected = [
        sum(c * v for c, v in zip(row.tolist(), PRINCIPAL.variances[k].tolist(), strict=True))
        / (sum(PRINCIPAL.variances[k].tolist()) / D)
        for row, k in zip(energy, y.tolist(), strict=True)
    ]
    assert attacked_variance(energy, y, PRINCIPAL).tolist() == pytest.approx(expected)


# --- images moved along vectors of their class ----------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), size=st.floats(0, 10))
def test_a_decoder_adds_the_vectors_of_the_images_class_and_clips(seed, size):
    zeta = size * torch.randn(B, Q, generator=seeded(seed), dtype=torch.float64)
    labels = torch.randint(CLASSES, (B,), generator=seeded(seed + 1))
    found = d.along(CODES)(zeta, x, labels)
    for b, k in enumerate(labels.tolist()):
        moved = x[b].flatten().clone()
        for i in range(Q):
            moved += zeta[b, i] * CODES[k, i]
        torch.testing.assert_close(found[b].flatten(), moved.clamp(0, 1), atol=1e-12, rtol=0)


def test_nothing_moves_without_a_move_and_the_residual_stays():
    zeros = torch.zeros(B, Q, dtype=torch.float64)
    assert torch.equal(d.along(CODES)(zeros, x, y), x)


def test_a_decoder_gives_gradients_to_the_codes():
    zeta = torch.zeros(B, Q, dtype=torch.float64, requires_grad=True)
    w = noise(3)
    (found,) = torch.autograd.grad((d.along(CODES)(zeta, x, y) * w).sum(), zeta)
    expected = torch.einsum("bqd,bd->bq", CODES[y], w.flatten(1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("threat", "norm"), [("linf", LINF), ("l2", L2), ("l1", L1)])
def test_threats_of_norms_move_pixels(threat, norm):
    where = d.space(threat, x, y, 0.25, CODES)
    assert isinstance(where, Pixels)
    assert (where.eps, where.norm) == (0.25, norm)
    assert torch.equal(where.x, x)


def test_the_generative_threat_moves_codes_and_its_budget_is_theirs():
    where = d.space("generative", x, y, 0.25, CODES)
    assert isinstance(where, Latent)
    assert (where.eta, where.norm) == (0.25, L2)
    assert torch.equal(where.image(torch.zeros_like(where.z)), x)
    far = torch.randn(B, Q, generator=seeded(), dtype=torch.float64)
    found = where.project(far)
    torch.testing.assert_close(found, 0.25 * far / far.norm(dim=1, keepdim=True))


def test_rows_of_a_space_are_moved_along_their_own_class():
    rows = torch.tensor([4, 1, 1])
    where, zeta = d.moved_along(CODES, x, y, 1.0), torch.full((B, Q), 0.2, dtype=torch.float64)
    torch.testing.assert_close(where[rows].image(zeta[rows]), where.image(zeta)[rows])


# --- attacks --------------------------------------------------------------------------------------------------------


def linear_network(seed=1, bias=0.0):
    """Two of the classes have equal logits, so that all attacks want one direction."""
    layer = nn.Linear(D, CLASSES, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0] = torch.randn(D, generator=seeded(seed), dtype=torch.float64)
        layer.bias.copy_(torch.tensor([bias, 0, 0]))
    return nn.Sequential(nn.Flatten(), layer)


def zeroes(count=B):
    """Images far from the box's sides, all of class 0."""
    inner, _ = images(count, seed=8, spread=0.3)
    return inner, torch.zeros(count, dtype=torch.long)


def attacked(threat, eps, networks_, inner, labels, steps=20, seed=0, **options):
    where, fleet = d.space(threat, inner, labels, eps, CODES), Stack(networks_).eval()
    return ascend(fleet, where, labels, threat, eps, steps=steps, seed=seed, draft=None, **options)


def best_loss(threat, eps, w):
    """How much a logit w x can fall within a budget: eps times the dual norm."""
    if threat == "generative":
        return eps * (CODES[0] @ w).norm()
    return eps * torch.linalg.vector_norm(w, {"linf": 1, "l2": 2, "l1": math.inf}[threat])


REACHED = {"linf": 0.9999, "l2": 0.95, "l1": 0.8, "generative": 0.95}  # of what the best perturbation does


@pytest.mark.parametrize("threat", THREATS)
def test_on_a_linear_network_an_attack_comes_close_to_the_best_perturbation_and_finds_no_better_one(threat):
    """Its dual norm says how far a logit can fall. Steps of 2.5 eps in all shrink what is wrong at the start to about
    exp(-2.5).
    """
    inner, labels = zeroes()
    f, eps = linear_network(), 0.2
    found = attacked(threat, eps, [f], inner, labels, stop="never")
    w = f[1].weight[0].detach()
    fall = ((inner - found.x[0, 0]).flatten(1) @ w) / best_loss(threat, eps, w)
    assert (fall <= 1 + 1e-6).all()
    assert (fall >= REACHED[threat]).all()


def test_the_best_generative_perturbation_goes_along_the_generators_image_of_the_gradient():
    inner, labels = zeroes()
    f = linear_network()
    found = attacked("generative", 0.2, [f], inner, labels, stop="never")
    codes, w = CODES[0], f[1].weight[0].detach()
    expected, straight = -codes.T @ (codes @ w), -codes.T @ codes @ codes.T @ (codes @ w)
    delta = (found.x[0, 0] - inner).flatten(1)
    close, less, least = (torch.cosine_similarity(delta, one, dim=1) for one in (expected, straight, -w.expand(B, -1)))
    assert (close > 0.97).all()
    assert (close > less).all()
    assert (close > least + 0.2).all()


@pytest.mark.parametrize("threat", THREATS)
def test_an_attack_wins_from_the_budget_on_at_which_the_network_can_be_fooled(threat):
    inner, labels = zeroes()
    f = linear_network()
    w = f[1].weight[0].detach()
    with torch.no_grad():
        f[1].bias[0] = 0.1 - (inner.flatten(1) @ w).min()  # the logits of class 0 are .1 and more
        least = (f(inner)[:, 0] / best_loss(threat, 1.0, w)).max().item()
    for eps, expected in ((least / 100, 0), (least / REACHED[threat], B)):
        found = attacked(threat, eps, [f], inner, labels, steps=40)
        assert found.success.shape == (1, 1, B)
        assert found.success.sum() == expected


@pytest.mark.parametrize("threat", THREATS)
@settings(max_examples=10)
@given(share=st.floats(0.01, 3), seed=st.integers(0, 1000))
def test_attacks_keep_to_their_budgets_and_to_the_box_and_say_truly_where_they_succeed(threat, share, seed):
    torch.manual_seed(seed)
    members = [nn.Sequential(nn.Flatten(), nn.Linear(D, CLASSES)).double() for _ in range(2)]
    eps = share * FIRST[threat]
    own, labels = images(B, seed=seed, spread=8.0)
    found = attacked(threat, eps, members, own, labels, steps=4, seed=seed)
    assert found.x.shape == (1, 2, B, 1, SIDE, SIDE)
    assert ((found.x >= 0) & (found.x <= 1)).all()
    for m, member in enumerate(members):
        assert torch.equal(found.success[0, m], member(found.x[0, m]).argmax(1) != labels)
        delta = (found.x[0, m] - own).flatten(1)
        if threat != "generative":
            assert (torch.linalg.vector_norm(delta, ORDER[threat], dim=1) <= eps * (1 + 1e-9)).all()


def test_a_generative_attack_stays_within_its_codes_and_their_span():
    inner, labels = images(12, seed=2, spread=0.3)
    torch.manual_seed(0)
    f = nn.Sequential(nn.Flatten(), nn.Linear(D, CLASSES)).double()
    found = attacked("generative", 0.5, [f], inner, labels, stop="never")
    assert ((found.x > 0) & (found.x < 1)).all(), "nothing is clipped"
    sizes = []
    for row, k in zip((found.x[0, 0] - inner).flatten(1), labels.tolist(), strict=True):
        zeta = torch.linalg.lstsq(CODES[k].T, row[:, None]).solution[:, 0]
        torch.testing.assert_close(zeta @ CODES[k], row, atol=1e-8, rtol=0)
        sizes.append(zeta.norm().item())
    assert sizes == pytest.approx([0.5] * 12, rel=1e-5), "all of the budget is used"


def test_eigenspace_attacks_stay_in_their_directions():
    inner, labels = images(12, seed=2, spread=0.3)
    torch.manual_seed(0)
    f = Stack([nn.Sequential(nn.Flatten(), nn.Linear(D, CLASSES)).double()]).eval()
    for last, allowed in ((False, slice(0, 5)), (True, slice(D - 5, D))):
        where = d.moved_along(PRINCIPAL.eigenspace(5, last=last), inner, labels, 0.2)
        found = ascend(f, where, labels, "generative", 0.2, steps=10, seed=0, draft=None, stop="never")
        delta = found.x[0, 0] - inner
        inside = energies(delta, labels, PRINCIPAL)[:, allowed].sum(1)
        assert inside.tolist() == pytest.approx([1] * 12, abs=1e-6)
        assert delta.flatten(1).norm(dim=1).tolist() == pytest.approx([0.2] * 12, rel=1e-5), "v_i have length one"


def test_an_attack_is_fixed_by_its_seed_and_more_budget_finds_more():
    """Success over budgets, of a network that is no line."""
    torch.manual_seed(1)
    f = nn.Sequential(nn.Flatten(), nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
    own, _ = images(40, seed=4)
    labels = f(own).argmax(1)
    for threat in THREATS:
        rates = [
            attacked(threat, share * FIRST[threat], [f], own, labels, stop="never").success.double().mean().item()
            for share in (1e-4, 0.2, 1, 20)
        ]
        assert rates == sorted(rates)
        assert rates[-1] > rates[0]
        one, again, other = (attacked(threat, FIRST[threat], [f], own, labels, steps=2, seed=s) for s in (3, 3, 4))
        assert torch.equal(one.x, again.x)
        assert threat == "linf" or not torch.equal(one.x, other.x), "signs lead to one corner from everywhere"


def test_steps_of_an_attack_reach_two_and_a_half_times_its_budget():
    for threat in THREATS:
        adversary = d._adversary(threat, 0.4, 8)
        assert adversary.lr * adversary.steps == pytest.approx(1.0)
        assert adversary.along == ("signs" if threat == "linf" else "gradient")
        assert isinstance(adversary, Ascent)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return load("fonts_easy", 100, "first", 5, torch.device("cpu"), held_out=10)


@pytest.fixture(scope="module")
def own_codes():
    return planted(3)


def planted(q):
    """A generator of random vectors."""
    return 0.05 * torch.randn(10, q, 784, generator=seeded())


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """The same attack on every machine, and smaller networks under the same name."""
    monkeypatch.setattr(d, "bfloat16_is_fast", lambda device: False)
    made = networks.cnn

    def cnn(classes, *, side, colours, generator):
        return made(classes, (4, 4), side=side, colours=colours, generator=generator)

    monkeypatch.setitem(networks._NETWORKS, "cnn", cnn)


DATA = ("fonts_easy", "first", 100)
BUDGETS = {"linf": 0.1, "l2": 1.5, "l1": 6.0, "generative": 2.0}
TRAININGS = [(), *((one,) for one in THREATS), ("linf", "l2"), ("l1", "generative")]


def trained(setting, found, names, *, budgets=BUDGETS, network="cnn", epochs=1, steps=2, seeds=2, data=DATA):
    return d.hardened(
        setting, data, {name: budgets[name] for name in names}, found,
        network=network, schedule=Schedule(epochs=epochs), steps=steps, seeds=seeds,
    )  # fmt: skip


def directly(setting, found, names):
    """The same training, written down once more."""
    x, parts = setting.x, []
    for name in names:
        eps, share = BUDGETS[name], 1 / len(names)
        adversary = Ascent(steps=2, lr=1.25 * eps, along="signs" if name == "linf" else "gradient")
        if name == "generative":
            free = torch.full((3,), math.inf)
            zeros, decode = torch.zeros(len(x), 3), d.along(found)
            options = {"norm": L2, "share": share}
            parts.append(training.latent(zeros, decode, (x, setting.y), (-free, free), eps, adversary, **options))
        else:
            norm = {"linf": LINF, "l2": L2, "l1": L1}[name]
            parts.append(training.uniform_norm(x, eps, adversary, norm=norm, share=share))
    generators = [seeded(seed) for seed in range(2)]
    fleet = Stack([networks.build("cnn", 10, generator=one) for one in generators])
    training.train(fleet, x, setting.y, Schedule(epochs=1), parts, generators=generators)
    return [networks.folded(one) for one in fleet.unstack()]


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(value, b.state_dict()[name]) for a, b in pairs for name, value in a.state_dict().items())


def test_every_training_is_what_it_should_be_bit_for_bit_and_none_is_another(tiny, own_codes, home):
    found = {names: trained(tiny, own_codes, names) for names in TRAININGS}
    for names, members in found.items():
        assert same(members, directly(tiny, own_codes, names)), names
    assert not any(same(one, other) for one, other in combinations(found.values(), 2))


def test_normal_training_is_that_of_the_other_chapters(tiny, own_codes, home, monkeypatch):
    """The same networks, and read where these kept them."""
    found = recipes.classifiers(tiny, DATA, schedule=Schedule(epochs=1), seeds=2)
    monkeypatch.setattr(training, "train", None)
    assert same(trained(tiny, own_codes, ()), found)


def test_what_was_trained_is_read_and_not_trained_again(tiny, own_codes, home, monkeypatch):
    found = trained(tiny, own_codes, ("generative",), seeds=1)
    monkeypatch.setattr(training, "train", None)
    assert same(trained(tiny, own_codes, ("generative",), seeds=1), found)
    with pytest.raises(TypeError):
        trained(tiny, own_codes, ("generative",), seeds=1, steps=3)


@pytest.mark.parametrize("names", [("linf",), ("l2", "generative"), ("linf", "l2", "l1", "generative")], ids="+".join)
def test_every_batch_is_divided_among_the_threats_and_no_image_is_clean(tiny, own_codes, names, home, monkeypatch):
    seen = []

    def spy(fleet, x, y, schedule, parts, **options):
        seen.append(parts)
        return fleet.eval()

    monkeypatch.setattr(training, "train", spy)
    trained(tiny, own_codes, names)
    (parts,) = seen
    assert [part.share for part in parts] == [1 / len(names)] * len(names)
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [part.weight for part in parts] == [1.0] * len(names)


@pytest.mark.parametrize("threat", THREATS)
def test_what_training_sees_lies_in_the_threats_ball_and_is_attacked(threat, tiny, own_codes):
    eps = BUDGETS[threat]
    part = d.perturbed(threat, tiny, eps, own_codes, steps=5, share=0.25)
    assert isinstance(part, Perturbed)
    assert part.share == 0.25
    fleet = Stack([networks.build("cnn", 10, generator=seeded(3))]).eval()
    rows = torch.tensor([3, 50, 7, 99])
    space, labels = part.space(rows), tiny.y[rows]
    start = space.project(part.start(part.around[rows], seeded(1)))
    u = part.adversary.ascend(fleet, space, labels, start, side=28)
    size = torch.linalg.vector_norm(u.flatten(1), ORDER.get(threat, 2), dim=1)
    assert (size <= eps * (1 + 1e-5)).all()
    assert (size > 0.5 * eps).all(), "it goes far"

    def loss(u):
        return nn.functional.cross_entropy(fleet.by_rows(space.image(u)), labels, reduction="none")

    assert (loss(u) > loss(start)).all()
    expected = d.space(threat, tiny.x[rows], labels, eps, own_codes)
    torch.testing.assert_close(space.image(u), expected.image(u))
    assert part.around.shape[1:] == ((3,) if threat == "generative" else tiny.x.shape[1:])


@pytest.mark.parametrize(("threat", "precision"), [*((one, "float32") for one in THREATS), ("generative", "bfloat16")])
def test_perturbing_images_asks_nothing_of_the_host(threat, precision, monkeypatch):
    """So that the attack inside training can be recorded once."""
    monkeypatch.setattr(d, "bfloat16_is_fast", lambda device: precision == "bfloat16")
    images_ = torch.rand(6, 1, 28, 28, device="meta")
    labels = torch.zeros(6, dtype=torch.long, device="meta")
    found = torch.rand(10, 3, 784, device="meta")
    setting = SimpleNamespace(x=images_, y=labels)
    part = d.perturbed(threat, setting, 0.5, found, steps=1, share=1.0)
    assert part.adversary.precision == precision
    if threat in ("l2", "l1", "generative"):
        monkeypatch.setattr("advbook.attacks.norms._captured", lambda: True)  # else they look whether they are done
    fleet = Stack([networks.cnn(10, (3, 4), generator=seeded(seed)).to("meta") for seed in (1, 2)]).eval()
    rows, target = torch.zeros(2, 2, 3, dtype=torch.long, device="meta")
    with Devices() as seen:
        u = training._moves(part, fleet, 28, rows, target, part.around[rows])
        moved = part.space(rows.flatten()).image(u)
    assert moved.shape == (6, 1, 28, 28)
    assert seen.devices == {"meta"}


@pytest.fixture
def keys(monkeypatch):
    """The store keys of a call, without training."""
    kept = []

    def spy(given_, fresh, train):
        kept.append([store.fingerprint(one) for one in given_])
        return fresh

    monkeypatch.setattr(store, "trained", spy)

    def of(*args, **options):
        trained(*args, **options)
        return tuple(kept[-1])

    return of


@pytest.mark.parametrize("names", TRAININGS, ids=lambda names: "+".join(names) or "normal")
def test_a_networks_place_changes_with_all_that_changes_its_result_and_with_nothing_else(names, tiny, keys):
    found, more = planted(3), planted(4)
    base = keys(tiny, found, names)
    assert len(set(base)) == 2
    assert keys(tiny, found, names, seeds=1) == base[:1], "more seeds keep the first ones"
    others = [keys(tiny, found, names, epochs=2), keys(tiny, found, names, network="mlp")]
    others += [keys(tiny, found, names, data=("fonts", "first", 100))]
    for name in THREATS:
        changed = keys(tiny, found, names, budgets={**BUDGETS, name: 0.77})
        assert (changed == base) == (name not in names)
        others += [changed] * (name in names)
    changed = keys(tiny, found, names, steps=3)
    assert (changed == base) == (not names), "normal training has no attack"
    others += [changed] * bool(names)
    changed = keys(tiny, more, names)
    assert (changed == base) == ("generative" not in names), "another generator"
    others += [changed] * ("generative" in names)
    every = [key for own in (base, *others) for key in own]
    assert len(set(every)) == len(every)


def test_no_two_trainings_share_a_place(tiny, own_codes, keys):
    names = [(), *((one,) for one in THREATS), *combinations(THREATS, 2)]
    every = [key for own in names for key in keys(tiny, own_codes, own)]
    assert len(set(every)) == 2 * len(names)


@pytest.mark.parametrize("names", TRAININGS[1:], ids="+".join)
def test_networks_of_an_attack_in_half_precision_have_another_place(names, tiny, own_codes, keys, monkeypatch):
    base = keys(tiny, own_codes, names)
    monkeypatch.setattr(d, "bfloat16_is_fast", lambda device: True)
    assert not set(keys(tiny, own_codes, names)) & set(base)


def test_a_seed_starts_from_the_same_weights_in_every_training(tiny, own_codes, home):
    first = trained(tiny, own_codes, (), epochs=0)
    assert not torch.equal(first[0][0].weight, first[1][0].weight)
    for names in TRAININGS[1:]:
        assert same(trained(tiny, own_codes, names, epochs=0), first)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("linf", "L-inf"), ("linf+l2", "L-inf + L2"), ("l1+generative", "L1 + generative"), ("normal", "normal"),
        ("random sign", "random sign"),
    ],
)  # fmt: skip
def test_titles_name_every_threat(name, title):
    assert d.title(name) == title
