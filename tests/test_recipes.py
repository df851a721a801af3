"""advbook.experiments.recipes: what every recipe trains on, fleets and members alone, and when networks are trained
anew.
"""

import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import Devices
from test_learned import image_of, plant, planted_images
from toys import seeded

from advbook import fonts, networks, store, training
from advbook.attacks.spaces import Latent, Pixels
from advbook.experiments import learned, recipes
from advbook.experiments.recipes import DIAL, TITLES, Budgets, Recipe, classifiers, mix
from advbook.experiments.setting import Known, load
from advbook.fleet import Stack
from advbook.manifolds import transform, vaegan
from advbook.manifolds.projection import Manifold
from advbook.training import Adversary, Schedule

NAMES = get_args(Recipe)
CPU, DATA = torch.device("cpu"), ("fonts", "first", 20)
BUDGETS, ADVERSARY = Budgets(eps=0.2, eta=0.3, steps=2), Adversary(steps=2, lr=0.05)
SHORT = Schedule(epochs=1, batch=10)
ON_LEARNED = ("on_class", "random_class", "on_data")
ON_MANIFOLD = ("on_manifold", "random_latent", "combined", "combined_full", "dial_25", "dial_75")

# What a batch is made of beside clean images, as the paper and its released code have it, and what decides the result.
LATENT, LEARNED, REGULAR, MOVED = "latent", "learned", "regular", "transformation"
PARTS = {
    "normal": [],
    "adversarial": [(REGULAR, 0.5, 1)],
    "adversarial_full": [(REGULAR, 1, 1)],
    "on_manifold": [(LATENT, 0.5, 1)],
    "transformation": [(MOVED, 0.5, 1)],
    "random_latent": [(LATENT, 0.5, 1)],
    "random_transformation": [(MOVED, 0.5, 1)],
    "random_transformation_released": [(MOVED, 0.5, 1)],
    "on_class": [(LEARNED, 0.5, 1)],
    "random_class": [(LEARNED, 0.5, 1)],
    "on_data": [(LEARNED, 0.5, 1)],
    "combined": [(LATENT, 0.25, 1), (REGULAR, 0.25, 1)],
    "combined_full": [(LATENT, 0.5, 1), (REGULAR, 0.5, 1)],
    "dial_25": [(LATENT, 0.25, 1.5), (REGULAR, 0.25, 0.5)],
    "dial_75": [(LATENT, 0.25, 0.5), (REGULAR, 0.25, 1.5)],
}


@pytest.fixture(scope="module")
def tiny():
    """Twenty training images of FONTS."""
    return load("fonts", 20, "first", 5, CPU, held_out=10)


def stand_in(patch, dtype=torch.float32):
    """Autoencoders of random weights in the place of learned ones."""

    def made(dataset, where, size, device, *, seen=0):
        patch.setitem(vaegan.WIDTHS, "small", vaegan.Widths((2, 3), (3, 2), (2, 3)))
        count = 10 if where == "class" else 1
        pairs = [vaegan.autoencoder("small", (1, 28, 28), generator=seeded(member)) for member in range(count)]
        return [pair.to(device, dtype).eval() for pair in pairs]

    patch.setattr(learned, "autoencoders", made)
    patch.setattr(learned, "_file", lambda dataset: None)


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    stand_in(monkeypatch)


def kind_of(part, setting):
    """What a part does to images, told by its space."""
    space = part.space(torch.arange(3))
    if isinstance(space, Pixels):
        return REGULAR
    assert isinstance(space, Latent)
    if len(space.context) == 2:
        return LATENT
    return LEARNED if space.context[0].ndim == 1 else MOVED


# --- what a recipe trains on ----------------------------------------------------------------------------------


def test_every_recipe_has_a_title_and_parts():
    assert set(TITLES) == set(PARTS) == set(NAMES)
    assert len(set(TITLES.values())) == len(NAMES)


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_has_the_parts_of_the_paper(tiny, recipe):
    parts, separate = mix(recipe, tiny, BUDGETS, ADVERSARY)
    assert [(kind_of(part, tiny), part.share, part.weight) for part in parts] == PARTS[recipe]
    assert separate == recipe.startswith("random"), "random augmentation has a step of its own"
    for part in parts:
        assert part.adversary == (None if recipe.startswith("random") else ADVERSARY)


@pytest.mark.parametrize("recipe", [
    name for name in NAMES if name != "random_transformation_released" and name not in ON_LEARNED
])  # fmt: skip
def test_unmoved_perturbed_images_are_the_training_images_and_budgets_are_those_asked_for(tiny, recipe):
    rows = torch.tensor([7, 0, 19])
    for part in mix(recipe, tiny, BUDGETS, ADVERSARY).perturbed:
        space, nothing = part.space(rows), torch.zeros_like(part.around[rows])
        torch.testing.assert_close(space.image(nothing), tiny.x[rows], atol=2e-5, rtol=0)
        drawn = part.start(part.around, seeded())
        budget = BUDGETS.eps if kind_of(part, tiny) == REGULAR else BUDGETS.eta
        assert budget / 2 < drawn.abs().max() <= budget * (1 + 1e-6)
        far = space.project(torch.full_like(nothing, 9.0))
        assert 0 < far.max() <= budget * (1 + 1e-6)


@pytest.mark.parametrize("recipe", ON_MANIFOLD)
def test_moves_on_the_manifold_keep_font_and_letter_and_the_box(tiny, recipe):
    """What the decoder is shown during training belongs to the rows of the batch, whose letters are the labels."""
    shown = []

    def decode(theta, font, letter):
        shown.append((theta.detach().clone(), font, letter))
        return fonts.decode(theta, font, letter)

    own = tiny.known
    known = Known(Manifold(decode, own.manifold.linearize, own.manifold.low, own.manifold.high), own.train, own.test)
    setting = dataclasses.replace(tiny, known=known)
    perturbed, separate = mix(recipe, setting, BUDGETS, ADVERSARY)
    random = [seeded(1), seeded(2)]
    training.train(fleet(CPU), tiny.x, tiny.y, SHORT, perturbed, separate=separate, generators=random)
    low, high = fonts.theta_box()
    pairs = {pair: row for row, pair in enumerate(zip(own.train.font.tolist(), own.train.letter.tolist(), strict=True))}
    assert len(pairs) == 20
    for theta, font, letter in shown:
        rows = torch.tensor([pairs[pair] for pair in zip(font.tolist(), letter.tolist(), strict=True)])
        assert torch.equal(tiny.y[rows], letter)
        assert (theta - own.train.theta[rows]).abs().max() <= BUDGETS.eta + 1e-6
        assert ((theta >= low - 1e-6) & (theta <= high + 1e-6)).all()
    assert sum(len(theta) for theta, *_ in shown) >= 4 * len(shown) > 0


@settings(max_examples=25)
@given(eta=st.floats(0.01, 0.7), seed=st.integers(0, 99))
def test_transformations_as_released_are_drawn_about_zero_with_the_scale_at_its_lower_bound(eta, seed):
    setting = load("fonts", 3, "first", 3, CPU, held_out=3)
    (part,) = mix("random_transformation_released", setting, Budgets(eta=eta), ADVERSARY).perturbed
    rows, (low, high) = torch.arange(3), transform.box("fonts")
    u = part.start(part.around, seeded(seed))
    assert (part.around == 0).all()
    t = u.clamp(low, high)
    assert (t[:, 4] == 0.75).all()
    space = part.space(rows)
    torch.testing.assert_close(space.image(space.project(u)), transform.decode(t, setting.x), atol=1e-6, rtol=0)
    assert not torch.allclose(space.image(torch.zeros_like(u)), setting.x, atol=0.1), "zero is no identity"


def test_the_dial_turns_from_on_manifold_to_regular_training(tiny):
    def share(recipe):
        """Of the regular part in the adversarial loss."""
        weights = {kind_of(part, tiny): part.weight for part in mix(recipe, tiny, BUDGETS, ADVERSARY).perturbed}
        return weights.get(REGULAR, 0) / sum(weights.values())

    assert {recipe: share(recipe) for recipe in DIAL} == DIAL
    assert list(DIAL.values()) == [0, 0.25, 0.5, 0.75, 1]
    inner = [mix(recipe, tiny, BUDGETS, ADVERSARY).perturbed for recipe in ("dial_25", "combined", "dial_75")]
    assert [[part.share for part in parts] for parts in inner] == [[0.25, 0.25]] * 3
    assert [sum(part.weight for part in parts) for parts in inner] == [2] * 3


@pytest.mark.parametrize("recipe", NAMES[1:])
def test_perturbing_images_asks_nothing_of_the_host(recipe, monkeypatch):
    """So that a CUDA graph can record it: on the meta device, a copy from the host shows as one."""
    fonts.prototypes(torch.device("meta"))
    setting = load("fonts", 6, "first", 3, torch.device("meta"), held_out=3)
    monkeypatch.setattr(vaegan, "encode", lambda pairs, x, y: torch.empty(len(x), 10, device="meta"))
    attacked, (rows, labels) = fleet("meta").eval(), torch.zeros(2, 2, 3, dtype=torch.long, device="meta")
    for part in mix(recipe, setting, BUDGETS, ADVERSARY).perturbed:
        with Devices() as seen:
            u = training._moves(part, attacked, 28, rows, labels, part.around[rows])
            images = part.space(rows.flatten()).image(u)
        assert images.shape == (6, 1, 28, 28)
        assert seen.devices == {"meta"}


# --- learned manifolds and real images ------------------------------------------------------------------------

REAL_DATA = ("mnist", "first", 40)
MOVES = ("on_manifold", "random_latent", "on_data", "combined", "combined_full", "dial_25", "dial_75")


@pytest.fixture
def planted(monkeypatch):
    """Forty training images of a planted data set, whose learned manifolds are known."""
    plant(monkeypatch)
    return load("mnist", 40, "first", 5, CPU, held_out=10)


def shown_in_training(monkeypatch, setting, recipe, budgets=BUDGETS):
    """(z, class) of all that the decoders of a planted data set are shown while a recipe trains."""
    shown, call = [], vaegan.Decoders.__call__

    def seen(self, z, y):
        shown.append((z.detach().clone(), y))
        return call(self, z, y)

    monkeypatch.setattr(vaegan.Decoders, "__call__", seen)
    adversary = ADVERSARY.model_copy(update={"lr": 0.2})
    perturbed, separate = mix(recipe, setting, budgets, adversary)
    random = [seeded(1), seeded(2)]
    training.train(fleet(CPU), setting.x, setting.y, SHORT, perturbed, separate=separate, generators=random)
    return shown


@pytest.mark.parametrize("recipe", MOVES)
def test_on_real_images_moves_keep_class_budget_and_the_box_of_the_paper(planted, recipe, monkeypatch):
    where = "data" if recipe == "on_data" else "class"
    codes = learned.codes(planted, "train", where)
    eta = recipes.ETA_DATA if recipe == "on_data" else BUDGETS.eta
    shown = shown_in_training(monkeypatch, planted, recipe)
    assert shown
    far = 0.0
    for z, y in shown:
        assert z.abs().max() <= 2 + 1e-6
        for code, label in zip(z, y, strict=True):
            own = codes.z[planted.y == label]
            distance = (own - code).abs().amax(1).min()
            assert distance <= eta + 1e-5, "near no code of its class"
            far = max(far, float(distance))
    assert far > 0.6 * eta


@pytest.mark.parametrize("recipe", ["on_manifold", "random_latent", "on_data"])
def test_without_a_move_a_recipe_trains_on_the_images_of_the_codes(planted, recipe):
    _, y, z = planted_images("train", 40)
    (part,) = mix(recipe, planted, BUDGETS, ADVERSARY).perturbed
    rows = torch.tensor([7, 0, 19])
    found = part.space(rows).image(torch.zeros(3, 10))
    shows = torch.zeros_like(z) if recipe == "on_data" else z.clamp(-2, 2)
    torch.testing.assert_close(found, image_of(shows, y)[rows])
    far = part.space(rows).project(torch.full((3, 10), 9.0))
    assert far.max() <= (recipes.ETA_DATA if recipe == "on_data" else BUDGETS.eta) + 1e-6


def test_on_fonts_learned_classes_stand_beside_the_true_manifold(tiny):
    true, own, of_all = (mix(name, tiny, BUDGETS, ADVERSARY).perturbed[0] for name in ("on_manifold", *ON_LEARNED[::2]))
    assert torch.equal(true.around, tiny.known.train.theta)
    for part, where in ((own, "class"), (of_all, "data")):
        assert torch.equal(part.around, learned.codes(tiny, "train", where).z)
        space = part.space(torch.arange(20))
        assert torch.equal(space.context[0], tiny.y)
        assert torch.equal(space.high, torch.full((10,), 2.0))
    assert (own.space(torch.arange(2)).eta, of_all.space(torch.arange(2)).eta) == (BUDGETS.eta, recipes.ETA_DATA)


@pytest.mark.parametrize("recipe", NAMES)
def test_on_real_images_every_recipe_trains(planted, recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("ADVBOOK_HOME", str(tmp_path))
    (network,) = classifiers(planted, REAL_DATA, recipe=recipe, budgets=BUDGETS, schedule=SHORT, seeds=1)
    assert weights(network).isfinite().all()


def test_the_key_names_the_manifold_and_its_size(planted, monkeypatch):
    asked = []
    monkeypatch.setattr(store, "trained", lambda given, fresh, train: (asked.extend(given), fresh)[1])
    for recipe in NAMES:
        classifiers(planted, REAL_DATA, recipe=recipe, budgets=BUDGETS, schedule=SHORT, seeds=1)
    where = {key["training"]: key.get("manifold") for key in asked}
    assert where.pop("on_data") == "planted-data-small"
    for recipe, manifold in where.items():
        learns = recipe in ON_MANIFOLD or recipe in ON_LEARNED
        assert manifold == ("planted-class-small" if learns else None)
    asked.clear()
    budgets = BUDGETS._replace(size="paper")
    for recipe in ("on_manifold", "transformation"):
        classifiers(planted, REAL_DATA, recipe=recipe, budgets=budgets, schedule=SHORT, seeds=1)
    assert [key.get("manifold") for key in asked] == ["planted-class-paper", None]


@pytest.mark.parametrize("recipe", ["transformation", "random_transformation", "random_transformation_released"])
def test_transformations_of_real_images_lie_in_the_smaller_box(planted, recipe):
    (part,) = mix(recipe, planted, Budgets(eta=5.0), ADVERSARY).perturbed
    rows, (low, high) = torch.arange(3), transform.box("real")
    space = part.space(rows)
    for far, bound in ((5.0, high), (-5.0, low)):
        found = space.image(space.project(torch.full((3, 6), far)))
        torch.testing.assert_close(found, transform.decode(bound.expand(3, -1), planted.x[rows]), atol=1e-5, rtol=0)


# --- fleets and members alone ---------------------------------------------------------------------------------


def fleet(device, seeds=(1, 2), dtype=torch.float32, **options):
    made = [networks.cnn(10, (2, 3), generator=seeded(seed)).to(device, dtype) for seed in seeds]
    return Stack(made, **options)


@pytest.fixture(scope="module")
def precise(tiny):
    """The same images and their manifold in float64."""
    letters = fonts.prototypes().double()

    def decode(theta, font, letter):
        return fonts.transform(letters[font, letter][:, None], theta)

    def double(rows):
        return fonts.Rows(rows.theta.double(), rows.font, rows.letter)

    low, high = (bound.double() for bound in fonts.theta_box())
    known = Known(Manifold(decode, fonts.decode_with_jacobian, low, high), *map(double, (tiny.known.train,) * 2))
    x = decode(known.train.theta, known.train.font, known.train.letter)
    return dataclasses.replace(tiny, x=x, known=known)


@pytest.mark.parametrize("recipe", NAMES)
def test_a_member_is_the_network_trained_alone(precise, recipe, monkeypatch):
    stand_in(monkeypatch, torch.float64)
    perturbed, separate = mix(recipe, precise, BUDGETS, ADVERSARY)

    def states(*seeds, vectorized=False):
        """After 6 batches."""
        trained = training.train(
            fleet(CPU, seeds, torch.float64, vectorized=vectorized), precise.x, precise.y, Schedule(epochs=3, batch=10),
            perturbed, separate=separate, generators=[seeded(seed) for seed in seeds],
        )  # fmt: skip
        return [network.state_dict() for network in trained.unstack()]

    alone = states(1) + states(2)
    for together in (states(1, 2), states(1, 2, vectorized=True)):
        for member, expected in zip(together, alone, strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(member[name], value, atol=1e-8, rtol=1e-8)
    assert not torch.equal(alone[0]["0.weight"], alone[1]["0.weight"])


# --- trained networks and the store ---------------------------------------------------------------------------


def kept(monkeypatch, place, setting, recipe, budgets=BUDGETS, **options):
    """Networks trained in a store of their own, and the recipes that it was asked for."""
    asked, trained = [], store.trained

    def seen(given, *others):
        asked.extend(given)
        return trained(given, *others)

    with monkeypatch.context() as patch:
        patch.setenv("ADVBOOK_HOME", str(place))
        patch.setattr(store, "trained", seen)
        options = {"schedule": SHORT, "seeds": 1, **options}
        found = classifiers(setting, DATA, recipe=recipe, budgets=budgets, **options)
    return found, asked


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def few(setting):
    """A setting with ten training images: one batch."""
    train = setting.known.train[:10]
    known = Known(setting.known.manifold, train, setting.known.test)
    return dataclasses.replace(setting, x=setting.x[:10], y=setting.y[:10], known=known)


@pytest.mark.parametrize("recipe", NAMES)
def test_the_store_asks_for_new_networks_exactly_where_a_budget_changes_them(tiny, recipe, monkeypatch, tmp_path):
    setting = few(tiny)
    (one,), (key,) = kept(monkeypatch, tmp_path / "one", setting, recipe)
    (again,), (same,) = kept(monkeypatch, tmp_path / "again", setting, recipe)
    assert torch.equal(weights(one), weights(again)), "the same seed, the same result"
    assert key == same
    assert weights(one).isfinite().all()
    used = []
    for name, value in {"eps": 0.1, "eta": 0.2, "steps": 3}.items():
        (other,), (changed,) = kept(
            monkeypatch, tmp_path / name, setting, recipe, BUDGETS._replace(**{name: value})
        )  # fmt: skip
        assert torch.equal(weights(one), weights(other)) == (key == changed)
        used += [name] if key != changed else []
    attacked = [] if recipe.startswith("random") or recipe == "normal" else ["steps"]
    moves = {LATENT: "eta", LEARNED: "eta", MOVED: "eta", REGULAR: "eps"}
    budgets = {moves[kind] for kind, *_ in PARTS[recipe]} if recipe != "on_data" else set()  # which has one of its own
    assert set(used) == budgets | set(attacked)
    assert ("manifold" in key) == (recipe in ON_LEARNED)


def test_recipes_start_from_the_same_weights_and_order_and_end_apart(tiny, monkeypatch, tmp_path):
    orders, starts, ends, train, order = [], [], [], training.train, training._order

    def spied(fleet, *arguments, **options):
        starts.append({name: value.detach().clone() for name, value in fleet.weights.items()})
        return train(fleet, *arguments, **options)

    def drawn(*arguments):
        orders.append(order(*arguments))
        return orders[-1]

    monkeypatch.setattr(training, "train", spied)
    monkeypatch.setattr(training, "_order", drawn)
    for recipe in NAMES:
        (network,), _ = kept(monkeypatch, tmp_path / recipe, tiny, recipe)
        ends.append(weights(network))
        assert not network.training
        assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network), "batch norm is folded"
    assert len(starts) == len(orders) == len(NAMES)
    for start, drawn_order in zip(starts, orders, strict=True):
        assert all(torch.equal(value, starts[0][name]) for name, value in start.items())
        assert torch.equal(drawn_order, orders[0])
    apart = torch.cdist(torch.stack(ends), torch.stack(ends)) + torch.eye(len(NAMES))
    assert apart.min() > 1e-3


def test_all_that_decides_a_network_is_in_its_recipe(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "trained", lambda given, fresh, train: (asked.extend(given), fresh)[1])
    asked = []
    common = {"schedule": SHORT, "seeds": 1, "recipe": "combined", "budgets": BUDGETS}
    changes = [
        {}, {"recipe": "combined_full"}, {"schedule": Schedule(epochs=2, batch=10)}, {"network": "mlp"},
        {"budgets": BUDGETS._replace(steps=9)},
    ]  # fmt: skip
    for change in changes:
        classifiers(tiny, DATA, **{**common, **change})
    for data in (("fonts", "random", 20), ("fonts", "first", 21), ("mnist", "first", 20)):
        classifiers(tiny, data, **common)
    assert len({store.fingerprint(key) for key in asked}) == len(asked) == 8
    asked.clear()
    classifiers(tiny, DATA, **{**common, "seeds": 3})
    assert [key.pop("seed") for key in asked] == [0, 1, 2]
    assert asked[0] == asked[1] == asked[2]


@pytest.mark.parametrize(("network", "fast", "precision"), [
    ("cnn", True, "bfloat16"), ("cnn", False, "float32"), ("mlp", True, "float32"), ("resnet", True, "float32"),
])  # fmt: skip
def test_the_inner_attack_is_coarse_only_where_that_is_fast(tiny, monkeypatch, network, fast, precision):
    asked = []
    monkeypatch.setattr(recipes, "bfloat16_is_fast", lambda device: fast)
    monkeypatch.setattr(store, "trained", lambda given, fresh, train: (asked.extend(given), fresh)[1])
    classifiers(tiny, DATA, recipe="adversarial", network=network, schedule=SHORT, seeds=1)
    assert asked[0]["precision"] == precision
    classifiers(tiny, DATA, recipe="random_latent", network=network, schedule=SHORT, seeds=1)
    assert "precision" not in asked[1], "without an attack there is none"


def test_networks_are_trained_once_and_only_those_that_are_missing(tiny, monkeypatch, home):
    trained = []
    train = training.train
    monkeypatch.setattr(
        training, "train", lambda fleet, *a, **k: (trained.append(fleet.members), train(fleet, *a, **k))[1]
    )
    options = {"recipe": "random_latent", "schedule": SHORT, "budgets": BUDGETS}
    (first,) = classifiers(tiny, DATA, seeds=1, **options)
    again, second = classifiers(tiny, DATA, seeds=2, **options)
    assert trained == [1, 1]
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(second))


def test_without_budgets_they_are_the_papers(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(store, "trained", lambda given, fresh, train: (asked.extend(given), fresh)[1])
    classifiers(tiny, DATA, recipe="combined", schedule=SHORT, seeds=1)
    assert {name: asked[0][name] for name in ("eps", "eta", "steps", "lr")} == {
        "eps": 0.3, "eta": 0.3, "steps": 40, "lr": 0.005,
    }  # fmt: skip
