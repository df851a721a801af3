"""advbook.gaussian.spectrum: every formula against a search that uses none, at random spectra and at the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize

from advbook.gaussian import spectrum

variance = st.sampled_from([1e-3, 0.1, 0.1, 0.3, 1.0, 1.0, 2.5, 8.0])  # a short list, so that some repeat
spectra = st.lists(variance, min_size=1, max_size=7).map(lambda some: vector(sorted(some, reverse=True)))
penalties = st.floats(1e-3, 1e3)
EXAMPLE = (8.0, 5.0, 3.0, 2.0, 1.2, 0.3, 0.3, 0.3)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide():
    """Ten directions of signal, ten of noise."""
    return torch.cat([torch.logspace(1, math.log10(0.5), 10, dtype=torch.float64), vector([0.1] * 10)])


def likelihood(u, zeta, model, scales):
    return ((u + scales * zeta).square() / model).sum(-1) / 2


# --- adversaries ----------------------------------------------------------------------------------------------


@given(variances=spectra, data=st.data())
def test_a_decoder_with_its_noise_keeps_the_variances_it_explains(variances, data):
    d = len(variances)
    q = data.draw(st.integers(1, d))
    scales = spectrum.decoder(variances, q)
    noise = float(np.mean(variances[q:].numpy())) if q < d else 0.0
    assert torch.allclose(scales[:q].square() + noise, variances[:q], rtol=1e-12)
    assert (scales[q:] == 0).all()
    assert float(scales.square().sum()) + d * noise == pytest.approx(float(variances.sum())), "the trace is kept"


def test_a_noise_fixed_by_hand_reaches_into_the_noise_directions_and_never_below_zero():
    variances = vector(EXAMPLE)
    assert (spectrum.decoder(variances, 8)[5:] > 0).all()
    small = spectrum.decoder(variances, 7, 0.1)
    assert torch.allclose(small[:7].square(), variances[:7] - 0.1)
    assert small[7] == 0
    assert spectrum.decoder(variances, 8, 1.5).tolist()[4:] == [0.0] * 4
    assert torch.equal(spectrum.decoder(variances, 8, 0.0), spectrum.flow(variances))


def test_an_eigenspace_holds_the_first_and_the_last_directions():
    variances = vector(EXAMPLE)
    assert spectrum.eigenspace(variances, first=2, last=1).tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
    assert torch.equal(spectrum.eigenspace(variances, first=3, last=5), spectrum.pixels(variances))


def test_the_joint_adversary_pays_the_least_cost_of_both_ways():
    variances = vector(EXAMPLE)
    image, code, move = 3.0, 0.7, 0.4
    scales = spectrum.decoder(variances, 5)
    k = spectrum.reach(spectrum.pixels(variances), image) + spectrum.reach(scales, code)
    for b, joint in zip(scales.tolist(), k.tolist(), strict=True):
        cost = optimize.minimize_scalar(lambda z, b=b: image / 2 * (move - b * z) ** 2 + code / 2 * z**2).fun
        assert move**2 / (2 * joint) == pytest.approx(cost, rel=1e-9)


# --- the penalised adversary ----------------------------------------------------------------------------------


@given(lam=variance, ratio=st.one_of(st.just(0.0), st.floats(1e-6, 100)))
def test_hardened_variances_minimize_what_the_adversary_maximizes(lam, ratio):
    k = lam * ratio
    found = spectrum.hardened(vector([lam]), vector([k])).item()
    assert found >= max(lam, k) * (1 - 1e-12)

    def risk(t):  # the inner maximum by a search over the move's factor e = f u: E u^2 = lam
        s = k + lam * math.exp(t)
        if k == 0:
            return lam / (2 * s) + math.log(s) / 2
        worst = optimize.minimize_scalar(lambda f: f * f / k - (1 + f) ** 2 / s, bracket=(0, 1), tol=1e-12)
        return -lam * worst.fun / 2 + math.log(s) / 2

    best = optimize.minimize_scalar(risk, bounds=(-5, 6), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(k + lam * math.exp(best.x), rel=1e-5)
    assert risk(math.log((found - k) / lam)) <= best.fun + 1e-12


@given(variances=spectra, penalty=penalties)
def test_hardened_variances_solve_their_equation_and_are_the_inflated_ones(variances, penalty):
    k = spectrum.reach(spectrum.pixels(variances), penalty)
    s = spectrum.hardened(variances, k)
    assert torch.allclose((s - k).square(), variances * s, rtol=1e-8)
    assert torch.allclose(s / variances, spectrum.inflation(k / variances), rtol=1e-12)
    assert (s / variances).diff().min(dim=0).values >= -1e-12 if len(s) > 1 else True, "small ones inflate most"


def test_a_generative_adversary_inflates_large_variances_most_and_noise_not_at_all():
    variances = vector(EXAMPLE)
    ratio = spectrum.hardened(variances, spectrum.reach(spectrum.decoder(variances, 5), 8.0)) / variances
    assert (ratio[:5].diff() < 0).all()
    assert ratio[5:].tolist() == [1, 1, 1]
    every = spectrum.hardened(variances, spectrum.reach(spectrum.flow(variances), 8.0)) / variances
    assert torch.allclose(every, every[0].expand(8)), "a flow rescales all alike"


def test_a_direction_without_variance_is_hardened_to_its_reach():
    assert spectrum.hardened(vector([0.0, 0.0]), vector([0.25, 0.0])).tolist() == [0.25, 0.0]
    near = spectrum.hardened(vector([1e-14]), vector([0.25])).item()
    assert near == pytest.approx(0.25, rel=1e-6)


@given(variances=spectra, penalty=penalties, seed=st.integers(0, 99))
def test_the_attack_is_where_the_gradient_vanishes_and_gains_what_is_said(variances, penalty, seed):
    k = spectrum.reach(spectrum.pixels(variances), penalty)
    s = spectrum.hardened(variances, k)
    u = normal(5, len(variances), seed=seed)
    e = spectrum.attack(u, s, k)
    assert torch.allclose((u + e) / s, e / k, rtol=1e-9, atol=1e-12)
    value = ((u + e).square() / s - e.square() / k).sum(-1) / 2
    assert torch.allclose(value, spectrum.gain(u, s, k), rtol=1e-8)
    for factor in (0.9, 1.1):
        other = ((u + factor * e).square() / s - (factor * e).square() / k).sum(-1) / 2
        assert (other <= value * (1 + 1e-12)).all()


def test_energies_are_those_of_attacked_samples():
    variances = vector(EXAMPLE)
    for scales in (spectrum.pixels(variances), spectrum.decoder(variances, 5)):
        k = spectrum.reach(scales, 8.0)
        s = spectrum.hardened(variances, k)
        # A mean of squares of n normals has a relative error of sqrt(2 / n): .01 here, and 4.5 of these are allowed.
        u = normal(20_000, 8) * variances.sqrt()
        saddle = spectrum.attack(u, s, k).square().mean(0)
        assert torch.allclose(saddle, spectrum.saddle_energies(variances, k), rtol=0.045, atol=0)
        fitted = spectrum.attack(u, variances, k).square().mean(0)
        assert torch.allclose(fitted, spectrum.energies(variances, k), rtol=0.045, atol=0)


def test_energies_of_small_attacks_go_with_the_inverse_of_the_variance_or_with_it():
    variances, penalty = vector(EXAMPLE), 1e7
    gaps = spectrum.decoder(variances, 5).square()
    for scales, law in (
        (spectrum.pixels(variances), 1 / variances),
        (spectrum.decoder(variances, 5), gaps.square() / variances),
        (spectrum.flow(variances), variances),
    ):
        share = spectrum.energies(variances, spectrum.reach(scales, penalty))
        assert torch.allclose(share / share.sum(), law / law.sum(), rtol=1e-5)


def test_near_the_limit_all_energy_goes_to_one_end_of_the_spectrum():
    variances = vector([8.0, 5.0, 3.0, 0.3])
    regular = spectrum.energies(variances, spectrum.reach(spectrum.pixels(variances), (1 + 1e-6) / 0.3))
    assert regular[3] / regular.sum() > 1 - 1e-6
    scales = spectrum.decoder(variances, 3)
    generative = spectrum.energies(variances, spectrum.reach(scales, (1 - 0.3 / 8) * (1 + 1e-6)))
    assert generative[0] / generative.sum() > 1 - 1e-6
    with pytest.raises(ValueError, match=r"in direction 3 it is k = .*allowed is k < s, .* more than 1 times"):
        spectrum.energies(variances, spectrum.reach(spectrum.pixels(variances), (1 - 1e-6) / 0.3))


def test_the_penalty_named_by_the_error_is_the_limit():
    variances = vector(EXAMPLE)
    with pytest.raises(ValueError, match="direction 5") as caught:
        spectrum.energies(variances, spectrum.reach(spectrum.pixels(variances), 2.0))
    factor = float(str(caught.value).split("more than ")[1].split()[0])
    spectrum.energies(variances, spectrum.reach(spectrum.pixels(variances), 2.0 * factor * 1.0001))
    with pytest.raises(ValueError, match="direction 5"):
        spectrum.energies(variances, spectrum.reach(spectrum.pixels(variances), 2.0 * factor * 0.9999))


def test_directions_without_variance_and_without_reach_are_left_alone():
    variances, k = vector([2.0, 0.0]), vector([0.5, 0.0])
    assert spectrum.attack(vector([1.0, 0.0]), variances, k)[1] == 0
    assert spectrum.energies(variances, k)[1] == 0
    assert spectrum.saddle_energies(variances, k)[1] == 0
    with pytest.raises(ValueError, match="smallest variance is 0"):
        spectrum.gain(vector([1.0, 0.0]), variances, k)


# --- budgets --------------------------------------------------------------------------------------------------


@given(variances=spectra, eps=st.sampled_from([1e-90, 1e-6, 0.3, 3.0, 1e4, 1e90]), data=st.data())
def test_a_penalty_and_its_budget_are_inverse_and_the_budget_is_the_mean_square_of_the_codes(variances, eps, data):
    q = data.draw(st.integers(1, len(variances)))
    scales = data.draw(st.sampled_from([spectrum.pixels(variances), spectrum.decoder(variances, q)]))
    assume((scales > 0).any())
    penalty = spectrum.penalty_of(variances, scales, eps)
    assert spectrum.budget(variances, scales, penalty).item() == pytest.approx(eps, rel=1e-11)
    assert spectrum.budget(variances, scales, penalty * 1.01).item() < eps
    moved = scales > 0
    energy = spectrum.saddle_energies(variances, spectrum.reach(scales, penalty))
    assert (energy[moved] / scales[moved].square()).sum().item() == pytest.approx(eps**2, rel=1e-9)


def test_the_regular_budget_is_the_trace_of_the_hardened_precision():
    variances = vector(EXAMPLE)
    s = spectrum.hardened(variances, vector([1 / 8]).expand(8))
    assert spectrum.budget(variances, spectrum.pixels(variances), 8.0).item() ** 2 == pytest.approx(
        float((1 / s).sum()) / 64
    )


# --- the adversary in a ball ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(variances=spectra, eps=st.sampled_from([1e-5, 0.1, 1.0, 30.0]), seed=st.integers(0, 99), data=st.data())
def test_no_search_in_the_ball_beats_the_exact_solution(variances, eps, seed, data):
    d = len(variances)
    q = data.draw(st.integers(1, d))
    scales = data.draw(st.sampled_from([spectrum.pixels(variances), spectrum.decoder(variances, q)]))
    assume((scales > 0).any())
    u = normal(6, d, seed=seed) * variances.sqrt()
    u[3:] *= torch.randint(2, (3, d), generator=torch.Generator().manual_seed(seed))  # zeros here and there
    zeta = spectrum.hard_ball(u, variances, scales, eps)
    assert torch.allclose(zeta.norm(dim=-1), torch.full((6,), eps, dtype=torch.float64), rtol=1e-12)
    value = likelihood(u, zeta, variances, scales)
    # The function is convex: from many starts, steps to the ball's best point for the present slope only go up.
    trial = normal(60, 6, d, seed=seed + 1)
    for _ in range(300):
        trial = eps * torch.nn.functional.normalize(trial, dim=-1, eps=1e-300)
        trial = scales * (u + scales * trial) / variances
    trial = eps * torch.nn.functional.normalize(trial, dim=-1, eps=1e-300)
    best = likelihood(u, trial, variances, scales).amax(0)
    assert (value >= best * (1 - 1e-12)).all()
    assert torch.allclose(value, best, rtol=1e-3), "and the search comes near"


@given(
    variances=spectra, eps=st.sampled_from([1e-3, 0.5, 20.0]), tiny=st.sampled_from([0.0, 1e-300, 1e-150, 1e-20, 1e-9])
)
def test_the_hard_case_is_met_from_outside_and_inside(variances, eps, tiny):
    d = len(variances)
    scales = spectrum.pixels(variances)
    u = torch.full((1, d), 1e-4, dtype=torch.float64)
    u[:, variances == variances[-1]] = tiny  # no slope where the curvature is largest
    zeta = spectrum.hard_ball(u, variances, scales, eps)
    assert zeta.isfinite().all()
    assert zeta.norm().item() == pytest.approx(eps, rel=1e-12)
    # Optimality: one multiplier, at least the largest curvature, joins slope and move.
    slope = scales * (u + scales * zeta) / variances
    multiplier = (slope * zeta).sum() / eps**2
    assert torch.allclose(slope, multiplier * zeta, rtol=1e-7, atol=1e-9 * float(slope.norm()))
    assert multiplier >= float((1 / variances).max()) * (1 - 1e-9)


def test_a_point_at_the_mean_is_pushed_along_the_largest_curvature():
    variances = vector([4.0, 1.0, 0.5])
    zeta = spectrum.hard_ball(torch.zeros(2, 3, dtype=torch.float64), variances, spectrum.pixels(variances), 0.7)
    assert torch.allclose(zeta.abs(), vector([0, 0, 0.7]).expand(2, 3), atol=1e-12)


def test_regular_attacks_go_to_the_noise_and_generative_ones_to_large_variances():
    variances = wide()
    u = normal(4000, 20) * variances.sqrt()
    scales = spectrum.decoder(variances, 10)
    regular = spectrum.hard_ball(u, variances, spectrum.pixels(variances), 0.01).square().mean(0)
    generative = (scales * spectrum.hard_ball(u, variances, scales, 0.01)).square().mean(0)
    # At a small budget a hard ball normalizes each point's slope, so the shares are near the law, not equal to it.
    assert float(regular[10:].sum() / regular.sum()) == pytest.approx(100 / float((1 / variances).sum()), abs=0.02)
    law = scales**4 / variances
    assert float(generative[:3].sum() / generative.sum()) == pytest.approx(float(law[:3].sum() / law.sum()), abs=0.02)
    assert (generative[10:] == 0).all()


@pytest.mark.parametrize("least", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("eps", [0.01, 0.3, 2.0])
def test_the_excess_risk_lies_within_its_bounds(least, eps):
    variances = wide()
    variances[-1] = least
    u = normal(4000, 20) * variances.sqrt()
    for scales in (spectrum.pixels(variances), spectrum.decoder(variances, 10), spectrum.flow(variances)):
        zeta = spectrum.hard_ball(u, variances, scales, eps)
        each = likelihood(u, zeta, variances, scales) - likelihood(u, 0, variances, scales)
        error = 4 * float(each.std()) / 4000**0.5  # four standard errors
        low, high = spectrum.excess_bounds(variances, scales, eps)
        assert float(low) - error <= float(each.mean()) <= float(high) + error
        # One direction alone: the lower bound is the excess itself.
        only = spectrum.eigenspace(variances, last=1)
        each = likelihood(u, spectrum.hard_ball(u, variances, only, eps), variances, only)
        each = each - likelihood(u, 0, variances, only)
        low, _ = spectrum.excess_bounds(variances, only, eps)
        assert float(each.mean()) == pytest.approx(float(low), abs=4 * float(each.std()) / 4000**0.5)


def test_the_bounds_are_the_stated_ones_and_only_the_regular_one_has_no_end():
    variances, eps = wide(), 0.3
    low, high = spectrum.excess_bounds(variances, spectrum.pixels(variances), eps)
    assert float(low) == pytest.approx(eps**2 / 0.2 + eps * math.sqrt(2 / (math.pi * 0.1)))
    assert float(high) == pytest.approx(eps**2 / 0.2 + eps * math.sqrt(float((1 / variances).sum())))
    variances[-1] = 0
    assert spectrum.excess_bounds(variances, spectrum.pixels(variances), eps)[0] == math.inf
    assert spectrum.excess_bounds(variances, spectrum.decoder(variances, 10), eps)[1] <= eps**2 / 2 + eps * 10**0.5


# --- bad input ------------------------------------------------------------------------------------------------

ONE = vector([1.0, 0.5])
BAD = {
    "q too large": (lambda: spectrum.decoder(ONE, 3), r"q = 3: allowed are 1 to 2"),
    "q zero": (lambda: spectrum.discarded(ONE, 0), r"q = 0: allowed"),
    "noise": (lambda: spectrum.decoder(ONE, 1, -0.1), r"noise = -0.1: allowed"),
    "noise nan": (lambda: spectrum.decoder(ONE, 1, math.nan), r"noise = nan: allowed"),
    "no directions": (lambda: spectrum.eigenspace(ONE), r"first = 0, last = 0: allowed"),
    "too many": (lambda: spectrum.eigenspace(ONE, first=2, last=1), r"first = 2, last = 1: allowed"),
    "negative": (lambda: spectrum.eigenspace(ONE, first=-1, last=2), r"first = -1, last = 2: allowed"),
    "penalty": (lambda: spectrum.reach(ONE, 0.0), r"penalty = 0.0: allowed"),
    "penalty nan": (lambda: spectrum.reach(ONE, math.nan), r"penalty = nan: allowed"),
    "ratio": (lambda: spectrum.inflation(vector([-0.5])), r"ratio: the smallest entry is -0.5; allowed"),
    "variances": (lambda: spectrum.hardened(-ONE, ONE), r"variances: the smallest entry is -1; allowed"),
    "reach": (lambda: spectrum.hardened(ONE, -ONE), r"reach: the smallest entry is -1; allowed"),
    "no maximum": (lambda: spectrum.attack(ONE, ONE, ONE / 0.9), r"direction 0 it is k = 1.1.*allowed is k < s"),
    "exactly at it": (lambda: spectrum.gain(ONE, ONE, vector([0.1, 0.5])), r"direction 1 it is k = 0.5.*allowed"),
    "eps zero": (lambda: spectrum.penalty_of(ONE, ONE, 0.0), r"eps = 0.0: allowed"),
    "eps inf": (lambda: spectrum.penalty_of(ONE, ONE, math.inf), r"eps = inf: allowed"),
    "no scales": (lambda: spectrum.penalty_of(ONE, 0 * ONE, 1.0), r"scales: all are 0; allowed"),
    "ball of none": (lambda: spectrum.hard_ball(ONE[None], ONE, 0 * ONE, 1.0), r"scales: all are 0; allowed"),
    "ball of zero": (lambda: spectrum.hard_ball(ONE[None], ONE, ONE, 0.0), r"eps = 0.0: allowed"),
    "ball, model": (lambda: spectrum.hard_ball(ONE[None], 0 * ONE, ONE, 1.0), r"model: its smallest variance"),
    "bounds": (lambda: spectrum.excess_bounds(ONE, ONE, -1.0), r"eps = -1.0: allowed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence_that_names_it(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        call()
