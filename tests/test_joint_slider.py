"""Joint adversarial examples: the flow in JS against torch both ways, the figure's attack and traits, and the page."""

from __future__ import annotations

import base64
import copy
import functools
import json
import math
import re
import statistics
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from parity import largest, net_job, parity, run_js, run_torch, state_of
from playwright.sync_api import Browser, Page
from sliders_browser import FRAMES, drag, html, launched, opened, pictures_of, press, run_module, settle
from torch import nn
from traitlets import TraitError

from advbook.attacks.objectives import log_odds
from advbook.manifolds.flow import Flow
from advbook.networks import cnn
from advbook.sliders import JointSlider
from advbook.sliders.base import source
from advbook.sliders.joint import DIRECTIONS
from advbook.sliders.pack import halved, pack_flow, pack_together, rounded

EXAMPLES, CLASSES, SIDE, ETA, EPS = 3, 3, 8, 0.2, 0.05
NAMES = ["coat", "boot", "bag"]
QUANTILES = [4.0, 6.0, 9.0]
X, LATENT, JOINT, DIFFERENCE, MEAN, MOVED = range(6)  # the canvases


def flow(shape: tuple[int, int, int] = (1, SIDE, SIDE), seed: int = 0, *, life: float = 0.04, **options: Any) -> Flow:
    """A flow whose couplings and scales do something."""
    generator = torch.Generator().manual_seed(seed)
    made = Flow(shape, **{"depths": (2, 2), "width": 6, **options}, generator=generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += life * torch.randn(parameter.shape, generator=generator)
    return made.eval().requires_grad_(False)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def networks() -> dict[str, nn.Sequential]:
    made = {}
    for seed, name in enumerate(("plain", "hardened")):
        torch.manual_seed(seed)
        made[name] = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 12), nn.ReLU(), nn.Linear(12, CLASSES)).eval()
    return made


def arguments(**changes: Any) -> dict[str, Any]:
    images = 0.2 + 0.6 * uniform(EXAMPLES, 1, SIDE, SIDE, seed=1)
    usual: dict[str, Any] = {
        "flow": flow(),
        "networks": networks(),
        "images": images,
        "labels": networks()["plain"](images).argmax(1).tolist(),
        "class_names": NAMES,
        "train": uniform(40, 1, SIDE, SIDE, seed=2),
        "eta": ETA,
        "eps": EPS,
        "quantiles": QUANTILES,
    }
    return {**usual, **changes}


@functools.cache
def _once() -> JointSlider:
    """A figure for tests that leave it as it is."""
    return figure()


def figure(**changes: Any) -> JointSlider:
    return JointSlider(**arguments(**changes))


def bits_of(images: torch.Tensor) -> list[float]:
    return list(halved(flow()).bits_per_dim(images).tolist())


# --- the flow in layers ----------------------------------------------------------------------------------------------


@pytest.mark.node
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 8, 8), {}),
        ((3, 8, 12), {"depths": (1, 2)}),
        ((1, 12, 4), {"depths": (3,), "width": 3}),
        ((2, 8, 8), {"depths": (1, 1, 1)}),
    ],
    ids=str,
)
def test_a_packed_flow_in_js_decodes_and_gives_likelihoods_as_in_torch(shape, options):
    network = flow(shape, 3, **options)
    encoder, decoder, weights = pack_flow(network)
    z, x = 4 * uniform(6, math.prod(shape)) - 2, uniform(6, *shape)
    state = {"encoder": encoder, "encoder_weights": weights, "decoder": decoder, "decoder_weights": weights}
    images, bits = run_js(source("interpreter.js"), [net_job(state, "decoder", z), net_job(state, "encoder", x)])
    near = halved(network)
    assert largest(images, near.decode(z)) <= 1e-5
    assert largest(bits[:, 0], near.bits_per_dim(x)) <= 1e-5
    assert largest(near.bits_per_dim(x), network.bits_per_dim(x)) < 0.02
    assert images.std() > 0.1
    assert bits.std() > 1e-3
    torch_bits = run_torch(encoder, weights, x)  # written a second time in parity.py, with slopes by autograd
    assert largest(bits, torch_bits.float()) <= 1e-5


@pytest.mark.node
def test_all_numbers_of_16_bits_are_what_numpy_reads():
    every = np.arange(2**16, dtype="<u2").view("<f2")
    numbers = every[np.isfinite(every)]
    weight = {"dtype": "float16", "offset": 0, "shape": [len(numbers), 1]}
    bias = {"dtype": "float32", "offset": numbers.nbytes, "shape": [len(numbers)]}
    layer = {"op": "linear", "tensors": {"weight": weight, "bias": bias}}
    job = net_job({"n": [layer], "n_weights": numbers.tobytes() + bytes(4 * len(numbers))}, "n", torch.ones(1, 1))
    (shown,) = run_js(source("interpreter.js"), [job])
    assert np.array_equal(shown[0].numpy(), numbers.astype(np.float32))


def test_a_halved_flow_stays_a_bijection_and_leaves_the_given_one_as_it_was():
    given_flow = flow()
    before = copy.deepcopy(given_flow.state_dict())
    near, x = halved(given_flow), uniform(5, 1, SIDE, SIDE)
    assert all(torch.equal(value, before[name]) for name, value in given_flow.state_dict().items())
    assert largest(near.decode(near.encode(x)), x) < 1e-5
    again = halved(near)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), near.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(given_flow.parameters(), near.parameters(), strict=True))


def test_both_ways_of_a_flow_share_the_couplings_bytes():
    network = flow((1, 28, 28), depths=(4, 4), width=32)
    encoder, decoder, weights = pack_flow(network)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 2 * count < len(weights) < 2.3 * count
    offsets = [
        sorted(layer["tensors"]["weight_1"]["offset"] for layer in layers if layer["op"] == "coupling")
        for layers in (encoder, decoder)
    ]
    assert offsets[0] == offsets[1]
    assert len(set(offsets[0])) == 8


@pytest.mark.node
def test_parity_of_the_figure_for_one_and_three_colours():
    for shown in (_once(), figure(**_coloured())):
        differences = parity(state_of(shown), count=12)
        assert differences.image <= 1e-5
        assert differences.logits <= 1e-4


def _coloured() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "flow": flow((3, 8, 8)),
        "networks": {"only": nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval()},
        "images": 0.2 + 0.6 * uniform(EXAMPLES, 3, 8, 8),
        "train": uniform(20, 3, 8, 8),
    }


@pytest.mark.node
@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ("* Math.exp(-logScale)", "* Math.exp(logScale)", "image"),
        ("((k >> 1) & 1)) * width + (k & 1)", "(k & 1)) * width + ((k >> 1) & 1)", "image"),
        ("logDet += inverse ? -logScale : logScale", "logDet += 0", "logits"),
        ("logDet: height * width * log_det", "logDet: log_det", "logits"),
        ("logDet: logDet + (made.logDet ?? 0)", "logDet", "logits"),
        ("bits >> 15 ? -1 : 1", "1", "image"),
    ],
)
def test_parity_notices_another_flow(before, after, part):
    state = state_of(_once())
    assert before in state["_esm"]
    differences = parity({**state, "_esm": state["_esm"].replace(before, after)}, count=6)
    assert getattr(differences, part) > 1e-3


@pytest.mark.node
def test_js_moves_codes_and_pixels_as_python_does():
    shown = figure()
    state = {name: value for name, value in state_of(shown).items() if not name.startswith("_")}
    plain = {k: {"bytes": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for k, v in state.items()}
    expression = """(() => {
      const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
      const get = (name) => a.state[name]?.bytes ? bytes(a.state[name].bytes) : a.state[name];
      const data = m.reader(get);
      const x = data.decode(data.code(a.example));
      const latent = data.decode(m.moved(data.code(a.example), data.zeta(a.network, a.example), a.a));
      const { levels, unit } = data.delta(a.network, a.example);
      const image = m.along(latent, levels, a.b * unit);
      const along = data.decode(m.moved(data.mean, { levels: data.direction(a.direction), unit: 1 }, a.t));
      const signed = m.signed(x, image, a.gain);
      return [x, latent, image, along, signed].map(({ data }) => Array.from(data));
    })()"""
    for network, example, a, b, direction, t in [(0, 1, 1, 1, 0, -3), (1, 2, 2, 0.5, 5, 1.5), (1, 0, 0, 2, 7, 3)]:
        values = {"network": network, "example": example, "a": a, "b": b, "direction": direction, "t": t, "gain": 4}
        found = run_module(
            JointSlider._esm, expression, {"state": json.loads(json.dumps(plain, default=str)), **values}
        )
        shown.network, shown.example, shown.direction, shown.gain = network, example, direction, 4
        expected = [
            *shown.images(a, b),
            shown.along(torch.tensor([float(t)]))[0],
            shown._difference(shown.images(a, b)),
        ]
        for js, image in zip(found, expected, strict=True):
            assert js == pytest.approx(image.flatten().tolist(), abs=1e-5)
    assert largest(shown.images(0, 2)[2], shown.images(0, 0)[0]) > 0.5 * EPS


@pytest.mark.node
def test_a_rank_is_told_by_the_quantiles():
    words = {
        3.9: "likelier than 95",
        4.1: "likelier than half",
        6.1: "less likely than half",
        9.1: "less likely than 95",
    }
    for bits, expected in words.items():
        said = run_module(JointSlider._esm, "m.rank(a.bits, a.quantiles)", {"bits": bits, "quantiles": QUANTILES})
        assert said.startswith(expected)


# --- the figure ------------------------------------------------------------------------------------------------------


def _all(shown: JointSlider) -> Iterator[tuple[int, int]]:
    """Network and example, one after the other, and the figure shows them."""
    for network in range(len(shown.networks)):
        for example in range(len(shown.labels)):
            shown.network, shown.example = network, example
            yield network, example


def test_without_a_move_all_are_the_image():
    shown, images = figure(), arguments()["images"]
    for _, example in _all(shown):
        seen = shown.images(0, 0)
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], seen[2])
        assert largest(seen[0], images[example]) <= 1e-5


def test_the_attack_keeps_to_both_budgets_spends_them_and_wins():
    shown = figure()
    codes = halved(flow()).encode(arguments()["images"])
    near = [rounded(network) for network in networks().values()]
    for network, example in _all(shown):
        seen = shown.images(1, 1)
        zeta = halved(flow()).encode(seen[1:2])[0] - codes[example]
        assert (zeta.abs() <= ETA + 1e-3).all()
        assert (zeta.abs() > 0.9 * ETA).float().mean() > 0.5
        assert (seen[2] - seen[1]).abs().max() <= EPS + 1e-6
        label = torch.tensor([shown.labels[example]] * 3)
        odds = log_odds(near[network](seen), label)
        assert odds[0] < odds[1] < odds[2]


def test_against_a_linear_network_of_two_classes_delta_is_the_sign_of_the_difference_of_its_weights():
    torch.manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval()
    given_here = {"networks": {"linear": linear}, "labels": [0, 1, 0], "class_names": ["a", "b"], "eta": 1e-3}
    shown = figure(**given_here)
    weight = rounded(linear)[1].weight
    levels = np.frombuffer(shown.deltas, "i1").reshape(EXAMPLES, -1)
    for label, its in zip(shown.labels, levels, strict=True):
        assert np.array_equal(its, 127 * (weight[1 - label] - weight[label]).sign().numpy())


def test_an_attack_on_one_network_does_not_depend_on_the_others():
    alone = figure(networks={"hardened": networks()["hardened"]})
    both = _once()
    half = len(both.zetas) // 2
    assert (alone.zetas, alone.deltas) == (both.zetas[half:], both.deltas[half:])
    assert alone.zetas != both.zetas[:half]


def test_directions_are_the_principal_ones_of_the_training_images_codes():
    shown = _once()
    z = halved(flow()).encode(arguments()["train"]).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(z.T, bias=True))
    moves = np.frombuffer(shown.directions, "<f2").reshape(DIRECTIONS, -1).astype(float)
    assert np.frombuffer(shown.mean, "<f2") == pytest.approx(z.mean(0), abs=2e-3)
    assert (moves**2).sum(1) == pytest.approx(values[::-1][:DIRECTIONS], rel=5e-3)
    for k, move in enumerate(moves):
        assert abs(move @ vectors[:, -1 - k]) == pytest.approx(np.linalg.norm(move), rel=1e-2)
        assert move[abs(move).argmax()] > 0
    share = float(re.findall(r"[\d.]+(?= %)", shown.controls[4]["options"][0])[0])
    assert share == pytest.approx(100 * values[-1] / values.sum(), abs=0.051)


def test_the_scale_holds_the_quantiles_and_what_is_reached():
    shown = figure()
    low, high = shown.limits
    for _ in _all(shown):
        for a, b in [(0, 0), (1, 1), (2, 2)]:
            assert all(low <= bits <= high for bits in bits_of(shown.images(a, b)[2:]))
    assert low <= QUANTILES[0] < QUANTILES[2] <= high
    assert figure(quantiles=[-20.0, 5.0, 30.5]).limits == [-20.0, 30.5]


def test_traits_are_held_to_their_range_and_start_at_the_attacks_budget():
    shown = figure()
    assert (shown.a, shown.b, shown.t) == (1, 1, 2)
    assert [control["name"] for control in shown.controls] == ["example", "network", "a", "b", "direction", "t"]
    assert [control.get("mark") for control in shown.controls] == [None, None, 1, 1, None, None]
    assert shown.controls[2]["label"].endswith("η = 0.2")
    for name, value, allowed in [
        ("a", 2.1, "0 to 2"),
        ("b", -0.1, "0 to 2"),
        ("t", 3.1, "-3 to 3"),
        ("direction", 8, "7"),
    ]:
        with pytest.raises(TraitError, match=f"{name} = .*{allowed}"):
            setattr(shown, name, value)


def test_still_and_words_follow_the_traits():
    shown = figure()
    stills, words = {shown.still()}, {shown.alt()}
    for name, value in [("example", 1), ("network", 1), ("a", 0.0), ("b", 2.0), ("direction", 3)]:
        setattr(shown, name, value)
        stills.add(shown.still())
        words.add(shown.alt())
    assert (len(stills), len(words)) == (6, 6)
    assert f"of the class {NAMES[shown.labels[1]]} and its joint adversarial example for hardened" in shown.alt()
    bits = bits_of(shown.images(0, 2))
    assert f"from {bits[0]:.2f} to {bits[2]:.2f}" in shown.alt()
    data, _ = shown._repr_mimebundle_()
    assert imread(BytesIO(base64.b64decode(data["image/png"]))).shape[1] > 600


def test_the_figure_loads_nothing():
    assert not re.search(
        r"\bimport\b|\bfetch\b|XMLHttpRequest|WebSocket|\burl\(|@import", JointSlider._esm + JointSlider._css
    )


def test_two_networks_and_a_flow_of_the_books_size_stay_well_below_a_megabyte():
    pair = {name: cnn(generator=torch.Generator().manual_seed(0)) for name in ("AT", "joint AT")}
    _, weights = pack_together(pair.values(), bits=8)
    _, _, flow_weights = pack_flow(flow((1, 28, 28), depths=(4, 4), width=32))
    numbers = 784 * (6 * (4 + 2 * 2) + 2 * 9)
    assert 4 / 3 * (len(weights) + len(flow_weights) + numbers) + len(JointSlider._esm) < 400_000


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"images": uniform(3, 1, 8, 7)}, "images have shape [3, 1, 8, 7]; allowed is [E, 1, 8, 8], E at least 1."),
        ({"images": uniform(0, 1, 8, 8)}, "E at least 1"),
        ({"images": 2 * uniform(3, 1, 8, 8)}, "images has 1."),
        ({"labels": [0, 1]}, "labels = [0, 1]; allowed: 3 classes from 0 to 2."),
        ({"train": uniform(8, 1, 8, 8)}, "train has shape [8, 1, 8, 8]; allowed is [N, 1, 8, 8], N above 8."),
        ({"networks": {}}, "networks is empty"),
        ({"networks": {"n": nn.Sequential(nn.Flatten(), nn.Linear(64, 4))}}, "networks['n'] gives [1, 4]"),
        ({"eta": 0.0}, "eta = 0; allowed is a positive finite number."),
        ({"eps": math.nan}, "eps = nan"),
        ({"quantiles": [1.0, 3.0, 2.0]}, "quantiles = [1.0, 3.0, 2.0]; allowed are three finite numbers"),
        ({"quantiles": [1.0, 3.0]}, "quantiles = [1.0, 3.0]"),
        ({"flow": flow((2, 8, 8))}, "flow is for images of 2 channels; allowed are 1 and 3."),
    ],
)
def test_bad_input_is_one_sentence(changes, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        figure(**changes)


def test_a_flow_that_does_not_give_its_images_back_is_refused():
    broken = flow()
    with torch.no_grad():
        broken.scales[0][0].rotation[0] = broken.scales[0][0].rotation[1]
    with pytest.raises(ValueError, match=r"flow gives back images that are off by .*; allowed is 0\.00392"):
        figure(flow=broken)


def test_layers_that_the_browser_cannot_run_are_refused():
    with pytest.raises(TypeError, match="Tanh"):
        figure(networks={"n": nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh())})


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from launched()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    yield from opened(browser, state_of(_once()), tmp_path)


def _slider(page: Page, name: str) -> Any:
    return page.get_by_label(re.compile(f"^{name}, "))


def _meters(page: Page, card: int) -> list[float]:
    meters = page.locator(".advbook-card").nth(card).get_by_role("meter").all()
    return [float(meter.get_attribute("aria-valuenow")) for meter in meters]


def _told(page: Page, card: int) -> str:
    return page.locator(".advbook-likelihood").nth(card).inner_text()


def _changed(before: list[str], after: list[str]) -> list[int]:
    return [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]


@pytest.mark.browser
def test_each_slider_changes_its_own_pictures_by_keys_and_mouse_and_reset_takes_them_back(page):
    start = pictures_of(page)
    assert len(start) == 6
    press(page, _slider(page, "a"), *["ArrowRight"] * 20)
    assert page.evaluate("model.get('a')") == pytest.approx(1.4)
    assert _changed(start, pictures_of(page)) == [LATENT, JOINT, DIFFERENCE]
    page.get_by_role("button", name="Reset").first.click()
    settle(page)
    assert pictures_of(page) == start
    drag(page, _slider(page, "b"), 0.02)
    assert page.evaluate("model.get('b')") < 0.1
    assert _changed(start, pictures_of(page)) == [JOINT, DIFFERENCE]
    page.get_by_role("button", name="Reset").first.click()
    press(page, _slider(page, "t"), "Home")
    assert _changed(start, pictures_of(page)) == [MOVED]
    page.get_by_label("direction v").select_option("4")
    settle(page)
    page.get_by_role("button", name="Reset").last.click()
    settle(page)
    assert pictures_of(page) == start


@pytest.mark.browser
def test_the_page_says_what_torch_says_of_answers_distances_and_likelihoods(page):
    shown, near = figure(), [rounded(network) for network in networks().values()]
    for example, network, a, b, direction, t in [
        (0, 0, 1.0, 1.0, 0, 2.0),
        (2, 1, 0.5, 1.75, 3, -2.5),
        (1, 1, 1.2, 0, 7, 0),
    ]:
        values = {"example": example, "network": network, "a": a, "b": b, "direction": direction, "t": t}
        page.evaluate("values => Object.entries(values).forEach(([k, v]) => model.set(k, v))", values)
        settle(page)
        shown.example, shown.network, shown.direction = example, network, direction
        seen, moved = shown.images(a, b), shown.along(torch.tensor([t]))
        for card, images in enumerate((seen[2:], moved)):
            said = near[network](images).softmax(1)[0]
            assert _meters(page, card) == pytest.approx((100 * said).tolist(), abs=0.051)
        x, _, joint = bits_of(seen)
        numbers = [float(v.replace(",", "")) for v in re.findall(r"(?<![L\d])\d[\d,]*\.?\d*", _told(page, 0))]
        apart = seen[2] - seen[0]
        nats = abs(joint - x) * math.log(2) * SIDE * SIDE
        expected = [apart.norm(), apart.abs().max(), nats, joint, x]
        assert numbers[:5] == pytest.approx([float(v) for v in expected], abs=0.51)
        assert [*numbers[:2], *numbers[3:5]] == pytest.approx([*map(float, expected[:2]), joint, x], abs=0.0051)
        assert ("below log p(x)" in _told(page, 0)) == (joint > x)
        assert ("beyond the attack's budget" in _told(page, 0)) == (max(a, b) > 1)
        assert f"has {bits_of(moved)[0]:.2f} bits per dimension" in _told(page, 1)


@pytest.mark.browser
def test_the_pointers_of_the_scale_stand_in_the_order_of_the_bits(page):
    seen = []
    for b in (0.0, 1.0, 2.0):
        page.evaluate(f"model.set('b', {b})")
        settle(page)
        wedge = page.locator(".advbook-wedge").first.evaluate("e => +e.getAttribute('transform').match(/[\\d.]+/)[0]")
        seen.append((float(re.findall(r"x′ has ([\d.-]+)", _told(page, 0))[0]), wedge))
    assert [pair[1] for pair in sorted(seen)] == sorted(pair[1] for pair in seen)
    assert len({pair[1] for pair in seen}) == 3
    label = page.locator("svg.advbook-plot").first.get_attribute("aria-label")
    assert f"x′ {seen[-1][0]:.2f}" in label


@pytest.mark.browser
def test_the_menus_of_the_classifier_in_both_cards_are_one(page):
    before = _meters(page, 0), _meters(page, 1)
    page.get_by_label("classifier", exact=True).last.select_option("1")
    settle(page)
    assert [menu.input_value() for menu in page.get_by_label("classifier", exact=True).all()] == ["1", "1"]
    assert _meters(page, 0) != before[0]
    assert _meters(page, 1) != before[1]


@pytest.mark.browser
def test_a_saved_figure_opens_where_python_left_it(browser, tmp_path):
    left = figure()
    left.example, left.network, left.a, left.b = 2, 1, 0.3, 1.6
    for page in opened(browser, state_of(left), tmp_path):
        expected = rounded(networks()["hardened"])(left.images(0.3, 1.6)[2:]).softmax(1)[0]
        assert _meters(page, 0) == pytest.approx((100 * expected).tolist(), abs=0.051)
        assert _slider(page, "b").input_value() == "1.6"


@pytest.mark.browser
def test_three_colours_are_drawn(browser, tmp_path):
    shown = figure(**_coloured())
    for page in opened(browser, state_of(shown), tmp_path):
        pixels = (
            page.locator("canvas")
            .nth(X)
            .evaluate("c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)")
        )
        seen = torch.tensor(pixels).view(8, 8, 4)[..., :3].permute(2, 0, 1) / 255
        assert largest(seen, shown.images(1, 1)[0]) <= 1 / 255


@pytest.mark.browser
def test_screen_reader_hears_the_answer_and_the_likelihood(page):
    press(page, _slider(page, "a"), "End")
    page.wait_for_function("document.querySelector('output').textContent.includes('The classifier says')")
    spoken = page.locator("output").first.text_content()
    assert page.locator(".advbook-likelihood").first.text_content() in spoken
    assert spoken.startswith("plain. ")


@pytest.mark.browser
def test_everything_has_a_name_and_fits_a_phone_and_stays_light(page):
    for control in page.locator("input, select, button").all():
        assert control.get_attribute("data-lm-suppress-shortcuts") == "true"
        assert control.evaluate("e => e.labels.length === 1 || e.textContent === 'Reset'")
    for picture in [*page.locator("canvas").all(), *page.locator("svg.advbook-plot").all()]:
        assert picture.get_attribute("role") == "img"
        assert picture.get_attribute("aria-label")
    assert page.locator(".advbook-marks").all_inner_texts() == ["1 η", "1 ε"]
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark")
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = [page.locator("canvas").nth(i).bounding_box()["y"] for i in (X, LATENT, JOINT, DIFFERENCE)]
    assert len(set(tops)) == 1  # side by side
    style = page.locator(".advbook-card").first.evaluate("e => getComputedStyle(e).backgroundColor")
    assert style == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_the_mark_stands_under_the_middle_of_the_thumb(page):
    for name, unit in [("a", "η"), ("b", "ε")]:
        box = _slider(page, name).bounding_box()
        mark = page.get_by_text(f"1 {unit}", exact=True).bounding_box()
        assert mark["x"] + mark["width"] / 2 == pytest.approx(box["x"] + box["width"] / 2, abs=1.5)


@pytest.mark.browser
def test_the_pictures_stay_in_sight_of_every_slider_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    for name, card in [("a", 0), ("b", 0), ("t", 1)]:
        _slider(page, name).evaluate("e => e.scrollIntoView({ block: 'end' })")
        row, box = page.locator(".advbook-stay").nth(card).bounding_box(), _slider(page, name).bounding_box()
        assert row["y"] >= -1
        assert row["y"] + row["height"] < box["y"] < 800


@pytest.mark.browser
def test_unmounting_stops_both_cards_listening(page):
    assert page.evaluate("heard()") == 7
    page.evaluate("unmount()")
    assert page.evaluate("heard()") == 0


@pytest.mark.browser
def test_a_frame_of_the_books_flow_takes_less_than_60_ms(browser, tmp_path, capsys):
    large = figure(
        flow=flow((1, 28, 28), life=0.01, depths=(4, 4), width=32),
        networks={"AT": cnn(CLASSES, generator=torch.Generator().manual_seed(0)).eval()},
        images=0.2 + 0.6 * uniform(EXAMPLES, 1, 28, 28),
        train=uniform(20, 1, 28, 28),
    )
    for page in opened(browser, state_of(large), tmp_path):
        times = page.evaluate(FRAMES)
        with capsys.disabled():
            print(f"\nframe: quicker quarter {statistics.quantiles(times, n=4)[0]:.1f} ms, at best {min(times):.1f} ms")
        assert min(times) < 60  # the slower ones say more of what else the machine does
    assert len(html(state_of(large))) < 1_000_000
