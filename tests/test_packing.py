"""advbook.attacks.packing: against a plain simulation of queues, and what holds at every turn."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advbook.attacks.packing import SHRINK, Packing

CPU = torch.device("cpu")


def packed(restarts, members, images, batch, together=False):
    return Packing(restarts, members, images, batch=batch, together=together, device=CPU)


@st.composite
def jobs(draw):
    """R, M, B, a batch, whether restarts leave together, how long every pair works, and whether it wins at the end."""
    restarts, members, images = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    pairs = restarts * members * images
    lasts = draw(st.lists(st.integers(1, 6), min_size=pairs, max_size=pairs))
    wins = draw(st.lists(st.booleans(), min_size=pairs, max_size=pairs))
    return restarts, members, images, draw(st.integers(1, 30)), draw(st.booleans()), lasts, wins


def simulated(restarts, members, images, batch, together, lasts, wins):
    """Queues of Python lists: pair -> (turn it entered, turn it left), for every pair that ever worked."""
    per_turn, times, beaten = members * images, {}, set()
    waiting = {
        m: [r * per_turn + m * images + b for r in range(restarts) for b in range(images)] for m in range(members)
    }
    width = min(max(batch // members, 1), restarts * images)
    working, turn = {m: {} for m in range(members)}, 0
    while any(waiting.values()) or any(working.values()):
        for m in range(members):
            waiting[m] = [pair for pair in waiting[m] if pair % per_turn not in beaten]
            while waiting[m] and len(working[m]) < width:
                working[m][waiting[m].pop(0)] = turn
        turn += 1
        done = [pair for slots in working.values() for pair, start in slots.items() if turn - start == lasts[pair]]
        if together:
            beaten |= {pair % per_turn for pair in done if wins[pair]}
        for slots in working.values():
            for pair in [pair for pair in slots if pair in done or pair % per_turn in beaten]:
                times[pair] = (slots.pop(pair), turn)
    return times


def worked(restarts, members, images, batch, together, lasts, wins):
    """What the packing makes of it, with everything checked that a caller relies on."""
    packing = packed(restarts, members, images, batch, together)
    lasts, wins = torch.tensor(lasts), torch.tensor(wins)
    mine = packing.pair.clone()  # a caller's own column: the pair that every slot works on
    since, turn, times = torch.zeros_like(mine), 0, {}
    while packing:
        turn += 1
        before = packing.live.clone()
        done = (turn - since == lasts[mine]) | ~before  # whatever a slot that is not in work says
        found = packing.turn(done, done & (wins[mine] | ~before))

        assert torch.equal(found.pair, mine[found.left])
        assert before[found.left].all()
        for slot, pair in zip(found.left.tolist(), found.pair.tolist(), strict=True):
            assert pair not in times, "no pair leaves twice"
            times[pair] = (int(since[slot]), turn)
        gone = torch.zeros_like(before).index_fill(0, found.left, True)
        if found.keep is not None:
            dropped = torch.ones_like(before).index_fill(0, found.keep, False)
            assert not (dropped & before & ~gone).any(), "no slot in work is dropped"
            mine, since, gone, before = (part[found.keep] for part in (mine, since, gone, before))
        assert (gone | ~before)[found.entered].all(), "only free slots are refilled"
        mine[found.entered], since[found.entered] = packing.pair[found.entered], turn

        expected = (before & ~gone).index_fill(0, found.entered, True)
        assert torch.equal(packing.live, expected)
        assert torch.equal(packing.pair[packing.live], mine[packing.live]), "a slot keeps its pair"
        check(packing, members, images)
    return times


def check(packing, members, images):
    live, slots = packing.pair[packing.live], packing.live.view(members, -1)
    assert len(live.unique()) == len(live), "no pair is in two slots"
    member = packing.pair.view(members, -1) // images % members
    assert (member == torch.arange(members)[:, None])[slots].all(), "members keep their own pairs"
    assert slots.sum(1).max() > SHRINK * slots.shape[1] or not packing, "few slots are idle"


@settings(max_examples=300)
@given(jobs())
def test_pairs_enter_and_leave_as_in_a_plain_simulation(job):
    assert worked(*job) == simulated(*job)


@given(jobs())
def test_every_pair_is_worked_exactly_until_it_is_done(job):
    *sizes, _, lasts, wins = job
    times = worked(*sizes, False, lasts, wins)
    assert {pair: left - entered for pair, (entered, left) in times.items()} == dict(enumerate(lasts))


@given(jobs())
def test_together_only_restarts_of_beaten_images_are_left_out_or_cut_short(job):
    restarts, members, images, batch, _, lasts, wins = job
    times = worked(restarts, members, images, batch, True, lasts, wins)
    per_restart = members * images
    full = {pair for pair, (entered, left) in times.items() if left - entered == lasts[pair]}
    beaten = {pair % per_restart for pair in full if wins[pair]}
    for pair in range(restarts * per_restart):
        assert pair in full or pair % per_restart in beaten
    for image in beaten:
        end = min(times[pair][1] for pair in full if wins[pair] and pair % per_restart == image)
        assert all(left <= end for pair, (_, left) in times.items() if pair % per_restart == image)


def test_pairs_are_numbered_by_restart_then_member_then_image():
    packing = packed(restarts=2, members=2, images=3, batch=12)
    assert packing.pair.tolist() == [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]


def test_a_batch_is_shared_by_the_members_and_none_is_left_without_a_slot():
    assert len(packed(5, 3, 7, batch=10).pair) == 9
    assert len(packed(5, 3, 7, batch=2).pair) == 3
    assert len(packed(1, 3, 2, batch=512).pair) == 6
    assert packed(2, 2, 2, batch=3).live.all()


def test_no_images_are_no_work():
    packing = packed(3, 2, 0, batch=8)
    assert not packing
    assert len(packing.pair) == 0


def test_nothing_changes_while_nobody_is_done():
    packing = packed(2, 1, 3, batch=4)
    before = packing.pair.clone()
    turn = packing.turn(torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool))
    assert turn.keep is None
    assert len(turn.left) == len(turn.pair) == len(turn.entered) == 0
    assert torch.equal(packing.pair, before)
    assert packing.live.all()


def test_a_batch_shrinks_to_the_widest_member():
    """Members of four slots with one and two left in work: two slots each are kept, those in work first."""
    packing = packed(1, 2, 4, batch=8)
    done = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0]).bool()
    turn = packing.turn(done, done)
    assert turn.left.tolist() == [0, 1, 3, 5, 6]
    assert turn.keep.tolist() == [2, 0, 4, 7]
    assert packing.live.tolist() == [True, False, True, True]
    assert packing.pair[packing.live].tolist() == [2, 4, 7]


def test_a_copy_is_not_made_for_the_sake_of_a_few_slots():
    packing = packed(1, 1, 16, batch=16)
    slots = torch.arange(16)
    assert packing.turn(slots < 1, slots < 0).keep is None, "15 of 16 are in work"
    assert len(packing.turn(slots < 2, slots < 0).keep) == 14, "14 of 16, the share below which it shrinks"


def test_a_win_of_an_image_ends_its_other_restarts_for_its_own_member_only():
    """Two restarts, two members, two images, all in work; member 1 wins image 0 in its first restart."""
    packing = packed(2, 2, 2, batch=8, together=True)
    assert packing.pair.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    won = packing.pair == 2
    turn = packing.turn(won, won)
    assert turn.pair.tolist() == [2, 6]
    assert packing.pair[packing.live].tolist() == [0, 1, 4, 5, 3, 7]


def test_a_pair_that_is_done_but_not_won_ends_no_other():
    packing = packed(3, 1, 2, batch=6, together=True)
    done = packing.pair == 2
    assert packing.turn(done, torch.zeros_like(done)).pair.tolist() == [2]


def test_restarts_of_a_beaten_image_that_wait_never_enter():
    packing = packed(3, 1, 2, batch=2, together=True)
    won = torch.tensor([True, False])
    turn = packing.turn(won, won)
    assert turn.pair.tolist() == [0]
    assert packing.pair[packing.live].tolist() == [3, 1], "pair 2 is of the beaten image 0, pair 3 of image 1"
    assert turn.entered.tolist() == [0]
