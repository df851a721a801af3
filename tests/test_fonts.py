"""advbook.fonts: the rows and their order, the affine matrix, the decoder against scipy, its derivative."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.stats import kstest
from torch.func import jacrev

from advbook import fonts

SPLITS = {"train": fonts.TRAIN_ROWS, "test": fonts.TEST_ROWS}


def some_rows(n=20, seed=5):
    """Rows all over the fonts, with parameters all over the box."""
    return fonts.random_rows("train", n, seed=seed)


def by_scipy(theta, letter):
    """The decoder once more, in float64 numpy: S R, pixel coordinates, bilinear interpolation by scipy."""
    tx, ty, hx, hy, s, r = theta
    shear = np.array([[1, hx], [hy, 1]])
    rotation = np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]])
    axis = np.linspace(-1, 1, fonts.SIZE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    points = s * shear @ rotation @ np.stack([x.ravel(), y.ravel()]) + np.array([[tx], [ty]])
    column, row = (points + 1) / 2 * (fonts.SIZE - 1)
    sampled = map_coordinates(letter, [row, column], order=1, mode="grid-constant", cval=0.0)
    return sampled.reshape(fonts.SIZE, fonts.SIZE)


# --- prototypes -----------------------------------------------------------------------------------------------


def test_prototypes_are_a_thousand_fonts_of_ten_letters_with_ink():
    letters = fonts.prototypes()
    assert letters.shape == (1000, 10, 28, 28)
    assert letters.dtype == torch.float32
    assert letters.min() == 0
    assert letters.max() <= 1
    assert letters.amax((2, 3)).min() > 0.3, "a hairline font is faint, but no letter is empty"
    assert letters.mean((2, 3)).max() < 0.5, "ink is 1 and the ground is 0, not the other way round"


def test_letters_of_a_font_differ_from_each_other():
    letters = fonts.prototypes().flatten(2)  # [1000, 10, 784]
    apart = torch.cdist(letters, letters) + 1e3 * torch.eye(10)
    assert apart.amin((1, 2)).min() > 0.5


def test_every_font_has_a_name_of_its_own():
    names = fonts.font_names()
    assert len(names) == len(set(names)) == 1000


# --- rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_rows_go_font_by_font_with_the_letter_fastest(split):
    rows = fonts.rows(split, 10_020)
    index = torch.arange(10_020) % 10_000
    assert torch.equal(rows.letter, index % 10)
    assert torch.equal(rows.font, index // 10)
    assert not torch.equal(rows.theta[:20], rows.theta[10_000:]), "the block comes again with new parameters"


@pytest.mark.parametrize("split", SPLITS)
@given(short=st.integers(1, 400), long=st.integers(1, 400), seed=st.integers(0, 2**31))
def test_the_first_rows_do_not_depend_on_how_many_are_asked_for(split, short, long, seed):
    short, long = sorted((short, long))
    few, many = fonts.rows(split, short, seed=seed), fonts.rows(split, long, seed=seed)
    assert len(few) == short
    assert torch.equal(few.theta, many.theta[:short])
    assert torch.equal(few.font, many.font[:short])
    assert torch.equal(few.letter, many[:short].letter)


def test_test_rows_follow_the_training_rows_in_one_stream_of_draws():
    draws = np.random.default_rng(7).random((fonts.TRAIN_ROWS + 3, 6))
    low, high = np.array(fonts.THETA_LOW), np.array(fonts.THETA_HIGH)
    expected = (low + (high - low) * draws).astype(np.float32)
    assert np.array_equal(fonts.rows("train", 5, seed=7).theta, expected[:5])
    assert np.array_equal(fonts.rows("test", 3, seed=7).theta, expected[-3:])


def test_seeds_give_other_parameters_for_the_same_letters():
    one, again, other = (fonts.rows("train", 50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.theta, again.theta)
    assert (one.theta != other.theta).all()
    assert torch.equal(one.font, other.font)


def test_theta_is_uniform_in_its_box_and_its_columns_are_independent():
    theta = fonts.rows("train", 20_000).theta
    low, high = fonts.theta_box()
    assert (theta >= low).all()
    assert (theta <= high).all()
    unit = ((theta - low) / (high - low)).double().numpy()
    for column in range(6):
        assert kstest(unit[:, column], "uniform").pvalue > 1e-3
    correlation = np.corrcoef(unit.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.03


@given(st.integers(1, 60))
def test_classes_are_balanced(tens):
    for rows in (fonts.rows("train", 10 * tens), fonts.rows("test", 10 * tens)):
        assert rows.letter.bincount(minlength=10).tolist() == [tens] * 10


def test_random_rows_are_distinct_training_rows_of_all_fonts():
    rows = fonts.random_rows("train", 2_000, seed=3)
    assert len(rows) == 2_000
    every = fonts.rows("train", fonts.TRAIN_ROWS, seed=3)
    order = every.theta[:, 0].sort()
    place = torch.searchsorted(order.values, rows.theta[:, 0].contiguous())
    known = {tuple(theta): (font, letter) for theta, font, letter in rows_near(every, order.indices, place)}
    for theta, font, letter in zip(rows.theta.tolist(), rows.font.tolist(), rows.letter.tolist(), strict=True):
        assert known[tuple(theta)] == (font, letter)
    assert len(rows.theta.unique(dim=0)) == 2_000
    assert len(rows.font.unique()) > 800, "the first 2,000 rows would have 200 fonts"


def rows_near(every, order, place):
    """The rows whose first parameter is among the few sorted at and after each place."""
    for offset in range(8):
        found = every[order[(place + offset).clamp(max=len(every) - 1)]]
        yield from zip(found.theta.tolist(), found.font.tolist(), found.letter.tolist(), strict=True)


@pytest.mark.parametrize("n", [0, -3, 10**7])
@pytest.mark.parametrize(
    "draw",
    [lambda n: fonts.rows("train", n), lambda n: fonts.rows("test", n), lambda n: fonts.random_rows("test", n)],
)
def test_a_number_of_rows_out_of_range_is_named(draw, n):
    with pytest.raises(ValueError, match=rf"^n = {n} .*allowed is 1 to \d+,000\.$"):
        draw(n)


def test_the_last_row_of_every_split_is_there():
    assert len(fonts.rows("test", fonts.TEST_ROWS)) == 160_000


# --- difficulties -----------------------------------------------------------------------------------------------

# shift, shear, least and largest scale, rotation, as the released data preparation has them
RANGES = {
    "hard": (0.2, 0.5, 0.75, 1.15, np.pi / 2),
    "moderate": (0.2, 0.4, 0.85, 1.15, np.pi / 3),
    "easy": (0.1, 0.2, 0.9, 1.1, np.pi / 6),
}
DRAWS = {
    "first": lambda split, n, **options: fonts.rows(split, n, **options),
    "random": lambda split, n, **options: fonts.random_rows(split, n, skip=3, **options),
}


@pytest.mark.parametrize("difficulty", RANGES)
def test_every_difficulty_moves_letters_by_its_own_ranges(difficulty):
    shift, shear, least, largest, turn = RANGES[difficulty]
    box = [[-shift, -shift, -shear, -shear, least, -turn], [shift, shift, shear, shear, largest, turn]]
    low, high = torch.tensor(box)
    torch.testing.assert_close(torch.stack(fonts.theta_box(difficulty=difficulty)), torch.stack([low, high]))
    theta = fonts.rows("train", 5_000, difficulty=difficulty).theta
    assert (theta >= low - 1e-6).all()
    assert (theta <= high + 1e-6).all()
    width = high - low
    assert (theta.amin(0) < low + 0.01 * width).all(), "the whole range is used"
    assert (theta.amax(0) > high - 0.01 * width).all()
    for column in range(6):
        assert kstest(((theta - low) / width)[:, column].double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("difficulty", ["moderate", "easy"])
def test_an_easier_set_has_the_same_letters_and_the_same_draws_in_smaller_ranges(split, draw, difficulty):
    hard, other = (DRAWS[draw](split, 300, seed=4, difficulty=name) for name in ("hard", difficulty))
    assert torch.equal(hard.font, other.font)
    assert torch.equal(hard.letter, other.letter)
    (low, high), (low_other, high_other) = (fonts.theta_box(difficulty=name) for name in ("hard", difficulty))
    expected = low_other + (hard.theta - low) / (high - low) * (high_other - low_other)
    torch.testing.assert_close(other.theta, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(other.theta, hard.theta, atol=0.01)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("draw", DRAWS)
def test_the_papers_set_is_the_hard_one(split, draw):
    one, other = DRAWS[draw](split, 50), DRAWS[draw](split, 50, difficulty="hard")
    assert torch.equal(one.theta, other.theta)
    assert torch.equal(one.font, other.font)
    assert torch.equal(torch.stack(fonts.theta_box()), torch.stack(fonts.theta_box(difficulty="hard")))


def test_rows_of_the_papers_set_are_what_they_were_before_there_were_easier_ones():
    """Their numbers are written down here: trained networks and published rows rest on them."""
    written = {
        ("train", 0): [0.0547847, -0.0920853, -0.4590265, -0.4834724, 1.0753081, 1.2967099],
        ("train", 499): [0.1808228, -0.1486658, 0.2782168, -0.4751655, 0.8330612, -0.6266578],
        ("test", 0): [0.0397966, -0.1013283, 0.1189885, -0.0854982, 1.1096226, -0.0556531],
        ("test", 499): [-0.020521, -0.14177, 0.3928485, 0.1228245, 1.1362081, -0.0371598],
    }
    for (split, row), theta in written.items():
        torch.testing.assert_close(fonts.rows(split, row + 1).theta[row], torch.tensor(theta), atol=1e-6, rtol=0)


# --- the matrix -----------------------------------------------------------------------------------------------


def test_the_matrix_is_scale_times_shear_times_rotation_with_the_shift_beside_it():
    theta = some_rows().theta.double()
    for row, matrix in zip(theta, fonts.affine(theta), strict=True):
        tx, ty, hx, hy, s, r = row.tolist()
        shear = np.array([[1, hx], [hy, 1]])
        rotation = np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]])
        np.testing.assert_allclose(matrix[:, :2], s * shear @ rotation, atol=1e-12)
        assert matrix[:, 2].tolist() == [tx, ty]


def test_the_released_formula_differs_in_the_sign_of_one_product_alone():
    theta = some_rows().theta.double()
    product, released = fonts.affine(theta), fonts.affine(theta, "released")
    _, _, hx, hy, s, r = theta.T
    difference = product - released
    torch.testing.assert_close(difference[:, 0, 0], 2 * s * hx * r.sin())
    difference[:, 0, 0] = 0
    assert (difference == 0).all()
    torch.testing.assert_close(torch.linalg.det(product[:, :, :2]), s**2 * (1 - hx * hy))
    area = s**2 * (1 - hx * (2 * r).sin() - hx * hy * (2 * r).cos())
    torch.testing.assert_close(torch.linalg.det(released[:, :, :2]), area)


@given(st.lists(st.integers(1, 3), max_size=3))
def test_the_matrix_takes_any_leading_shape(shape):
    assert fonts.affine(torch.zeros(*shape, 6)).shape == (*shape, 2, 3)


# --- the decoder ----------------------------------------------------------------------------------------------


def test_the_identity_gives_the_prototype():
    font, letter = torch.tensor([0, 7, 999]), torch.tensor([0, 9, 4])
    for formula in ("product", "released"):
        image = fonts.decode(torch.tensor([fonts.IDENTITY] * 3), font, letter, formula=formula)
        torch.testing.assert_close(image[:, 0], fonts.prototypes()[font, letter], atol=1e-5, rtol=0)


def test_the_decoder_agrees_with_scipy():
    rows = some_rows(30)
    for row, image in enumerate(fonts.images(rows)):
        letter = fonts.prototypes()[rows.font[row], rows.letter[row]].double().numpy()
        np.testing.assert_allclose(image[0], by_scipy(rows.theta[row].double().numpy(), letter), atol=5e-5)


def test_a_shift_to_the_right_moves_the_letter_to_the_left():
    image = torch.rand(1, 1, 28, 28)
    theta = torch.tensor([[2 * 3 / 27, 0, 0, 0, 1, 0]])
    moved = fonts.transform(image, theta)
    torch.testing.assert_close(moved[..., :-3], image[..., 3:], atol=1e-4, rtol=0)
    assert moved[..., -3:].abs().max() < 1e-4


def test_a_quarter_turn_is_exact():
    image = torch.rand(1, 1, 28, 28)
    turned = fonts.transform(image, torch.tensor([[0, 0, 0, 0, 1, torch.pi / 2]]))
    torch.testing.assert_close(turned, image.mT.flip(2), atol=1e-4, rtol=0)


def test_a_scale_above_one_shrinks_the_letter():
    shrunk = fonts.transform(torch.ones(1, 1, 28, 28), torch.tensor([[0.0, 0, 0, 0, 2, 0]]))[0, 0]
    assert (shrunk[7:21, 7:21] == 1).all()
    assert shrunk[:6].sum() == shrunk[:, :6].sum() == shrunk[22:].sum() == shrunk[:, 22:].sum() == 0


@given(n=st.integers(1, 12), batch=st.integers(1, 13), seed=st.integers(0, 1000))
def test_images_lie_in_the_unit_interval_whatever_the_batch(n, batch, seed):
    rows = fonts.rows("test", n, seed=seed)
    images = fonts.images(rows, batch=batch)
    assert images.shape == (n, 1, 28, 28)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(images, fonts.images(rows), atol=1e-6, rtol=0)


def test_the_released_formula_draws_other_images():
    rows = some_rows()
    assert (fonts.images(rows) - fonts.images(rows, formula="released")).flatten(1).norm(dim=1).median() > 0.5


# --- upright again ----------------------------------------------------------------------------------------------


def test_a_transformation_is_undone_where_the_canvas_held_the_letter():
    rows = some_rows(60)
    letters = fonts.prototypes()[rows.font, rows.letter][:, None]
    upright, inside = fonts.upright(fonts.transform(letters, rows.theta), rows.theta)
    assert upright.shape == inside.shape == letters.shape
    assert inside.dtype == torch.bool
    assert inside.double().mean() > 0.5
    gap = (upright - letters).abs()[inside]
    assert gap.mean() < 0.05, "bilinear twice: softer edges"
    wrong = fonts.upright(fonts.transform(letters, rows.theta), -rows.theta + 2 * torch.tensor(fonts.IDENTITY))[0]
    assert gap.mean() < 0.3 * (wrong - letters).abs()[inside].mean(), "minus theta is not the inverse"


def test_the_upright_image_agrees_with_scipy():
    rows = some_rows(5, seed=3)
    x = fonts.images(rows)
    upright, inside = fonts.upright(x, rows.theta)
    axis = np.linspace(-1, 1, fonts.SIZE)
    y, xs = np.meshgrid(axis, axis, indexing="ij")
    for image, theta, found, mask in zip(x, rows.theta.double(), upright, inside, strict=True):
        matrix = fonts.affine(theta).numpy()
        points = np.linalg.solve(matrix[:, :2], np.stack([xs.ravel(), y.ravel()]) - matrix[:, 2:])
        column, row = (points + 1) / 2 * (fonts.SIZE - 1)
        sampled = map_coordinates(image[0].double().numpy(), [row, column], order=1, mode="grid-constant", cval=0.0)
        np.testing.assert_allclose(found[0].flatten(), sampled, atol=1e-4)
        np.testing.assert_array_equal(mask[0].flatten(), (np.abs(points) <= 1).all(0))


def test_what_was_pushed_off_the_canvas_is_not_known():
    """A shift of 3 pixels and a quarter turn are exact: nothing is lost but what left the canvas."""
    letters = fonts.prototypes()[:4, 1][:, None]
    theta = torch.tensor([[3 * 2 / 27, 0, 0, 0, 1, 0.0]]).expand(4, 6)
    upright, inside = fonts.upright(fonts.transform(letters, theta), theta)
    assert not inside[..., :3].any()
    assert inside[..., 4:].all()
    torch.testing.assert_close(upright[..., 4:], letters[..., 4:], atol=1e-5, rtol=0)
    turned = torch.tensor([[0, 0, 0, 0, 1, torch.pi / 2]]).expand(4, 6)
    upright, _ = fonts.upright(fonts.transform(letters, turned), turned)
    torch.testing.assert_close(upright, letters, atol=1e-4, rtol=0)


# --- its derivative -------------------------------------------------------------------------------------------


def test_the_jacobian_is_that_of_automatic_differentiation():
    rows = some_rows(4)
    image, jacobian = fonts.decode_with_jacobian(rows.theta, rows.font, rows.letter)
    assert jacobian.shape == (4, 784, 6)
    assert not image.requires_grad
    assert not jacobian.requires_grad
    torch.testing.assert_close(image, fonts.images(rows), atol=1e-6, rtol=0)
    for row in range(4):
        font, letter = rows.font[row : row + 1], rows.letter[row : row + 1]
        expected = jacrev(lambda t, font=font, letter=letter: fonts.decode(t[None], font, letter).flatten())(
            rows.theta[row]
        )
        torch.testing.assert_close(jacobian[row], expected, atol=1e-3, rtol=1e-3)


def test_the_jacobian_is_that_of_differences_of_scipys_decoder():
    rows, h = some_rows(6), 1e-6
    _, jacobian = fonts.decode_with_jacobian(rows.theta, rows.font, rows.letter)
    for row in range(len(rows)):
        letter = fonts.prototypes()[rows.font[row], rows.letter[row]].double().numpy()
        theta = rows.theta[row].double().numpy()
        for column, unit in enumerate(np.eye(6)):
            ahead, behind = by_scipy(theta + h * unit, letter), by_scipy(theta - h * unit, letter)
            slope = (ahead - behind).ravel() / (2 * h)
            wrong = ~np.isclose(jacobian[row, :, column], slope, atol=0.02, rtol=0.01)
            assert wrong.mean() < 0.005, "only at the kinks of the interpolation may the two differ"


def test_random_test_rows_leave_out_the_first_ones_and_hold_all_fonts():
    """Rows of the test set that no attack touches: of the same rows as the test set, none of its first."""
    skip = fonts.TEST_ROWS - 20_000
    rows = fonts.random_rows("test", 20_000, skip=skip)
    everything = fonts.rows("test", fonts.TEST_ROWS)[skip:]
    assert torch.equal(rows.theta.sort(0).values, everything.theta.sort(0).values)
    assert len(fonts.random_rows("test", 5_000, skip=1_000).font.unique()) > 900
    with pytest.raises(ValueError, match="20001 random rows of FONTS test"):
        fonts.random_rows("test", 20_001, skip=skip)
