"""advbook.store: trained once, damaged files, a full disk, two processes at once, a killed one."""

import hashlib
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import FULL_DISK, script
from torch import nn

from advbook import store
from advbook.networks import cnn

RECIPE = {"training": "normal", "n": 100, "seed": 3}


def fresh(seed=0):
    return cnn(2, (3, 4), generator=torch.Generator().manual_seed(seed))


def learn(network):
    """Some training: every weight gets a value of its own that depends on what it was."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(tensor * 2 + 1)
    return network


def unwanted(network):
    raise AssertionError("it was trained before")


def trained(recipe, network, train):
    """A fleet of one, trained by a function of the network."""
    (found,) = store.trained([recipe], [network], lambda missing: [train(network)])
    return found


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def only_file(home):
    (path,) = home.glob("models/*.safetensors")
    return path


# --- places and names -----------------------------------------------------------------------------------------


def test_the_home_is_what_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVBOOK_HOME", "~/somewhere")
    assert store.home() == Path.home() / "somewhere"
    monkeypatch.delenv("ADVBOOK_HOME")
    assert store.home() == store.CHECKOUT / ".advbook"
    monkeypatch.setattr(store, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert store.home() == tmp_path / ".advbook"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), values, min_size=1, max_size=4))
def test_a_fingerprint_does_not_depend_on_the_order_but_on_everything_else(recipe):
    name = store.fingerprint(recipe)
    assert len(name) == 16
    assert set(name) <= set("0123456789abcdef")
    assert store.fingerprint(dict(reversed(recipe.items()))) == name
    assert store.fingerprint({**recipe, "one more": 1}) != name
    key = next(iter(recipe))
    assert store.fingerprint({**recipe, key: [recipe[key]]}) != name


# --- trained networks -----------------------------------------------------------------------------------------


def test_a_recipe_is_trained_once(home):
    first = trained(RECIPE, fresh(), learn)
    again = trained(dict(reversed(RECIPE.items())), fresh(seed=9), unwanted)
    assert same(first, again)
    assert same(first, learn(fresh()))
    assert not first.training
    assert not again.training
    assert not list(home.rglob("*.part"))


def test_of_several_recipes_only_the_missing_ones_are_trained_and_together(home):
    kept = trained({**RECIPE, "seed": 4}, fresh(), learn)
    asked, networks = [], [fresh(seed) for seed in range(3)]

    def train(missing):
        asked.append(missing)
        return [learn(networks[i]) for i in missing]

    found = store.trained([{**RECIPE, "seed": seed} for seed in (3, 4, 5)], networks, train)
    assert asked == [[0, 2]]
    assert same(found[1], kept)
    assert same(found[0], learn(fresh(0)))
    assert same(found[2], learn(fresh(2)))
    again = store.trained([{**RECIPE, "seed": seed} for seed in (5, 3)], [fresh(8), fresh(9)], unwanted)
    assert same(again[0], found[2])
    assert same(again[1], found[0])


def test_another_recipe_is_another_network(home):
    trained(RECIPE, fresh(), learn)
    other = trained({**RECIPE, "seed": 4}, fresh(seed=1), learn)
    assert same(other, learn(fresh(seed=1)))
    assert len(list(home.glob("models/*.safetensors"))) == 2


def truncated(path):
    path.write_bytes(path.read_bytes()[:-9])


def cut_short(path):
    path.write_bytes(path.read_bytes()[:5])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 4
    path.write_bytes(content)


def replaced(path):
    path.write_bytes(b"<html>no network here</html>" * 40)


DAMAGES = [truncated, cut_short, emptied, flipped, replaced]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_trained_again(home, capsys, damage):
    trained(RECIPE, fresh(), learn)
    path = only_file(home)
    damage(path)
    content = path.read_bytes()
    assert same(trained(RECIPE, fresh(), learn), learn(fresh()))
    damaged = path.with_name(path.name + ".damaged")
    assert damaged.read_bytes() == content, "set aside, not deleted"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{path.name} is damaged" in said
    assert damaged.name in said
    assert same(trained(RECIPE, fresh(seed=5), unwanted), learn(fresh()))


def test_a_file_of_another_shape_leaves_no_trace_in_what_is_trained_instead(home, capsys):
    """Reading stops half-way through the tensors: training must start from the fresh network all the same."""
    wider = cnn(3, (3, 4), generator=torch.Generator().manual_seed(8))
    trained(RECIPE, wider, learn)
    assert same(trained(RECIPE, fresh(), learn), learn(fresh()))
    assert "is damaged" in capsys.readouterr().err
    assert only_file(home).with_name(only_file(home).name + ".damaged").exists()


def test_no_flipped_bit_gives_wrong_weights(home):
    """Every bit of the header and many of the rest: noticed, or without effect."""

    def small():
        return nn.Sequential(nn.Linear(2, 2))

    torch.manual_seed(0)
    start = small()
    expected = {name: 2 * value + 1 for name, value in start.state_dict().items()}
    trained(RECIPE, start, learn)
    path = only_file(home)
    whole = path.read_bytes()
    for place in random.Random(0).sample(range(8 * len(whole)), 250):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        network = small()
        found = read_again(path, network)
        if found:
            state = network.state_dict()
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[name], expected[name]) for name in expected), f"bit {place}"
            assert all(state[name].dtype == expected[name].dtype for name in expected)
        path.with_name(path.name + ".damaged").unlink(missing_ok=True)


def read_again(path, network):
    """Whether the store takes the file for whole; if so the network has its weights."""
    calls = []
    trained(RECIPE, network, lambda network: calls.append(1) or network)
    return not calls


def test_training_that_fails_leaves_nothing_and_the_next_one_works(home):
    def fail(network):
        raise FloatingPointError("Training diverged.")

    with pytest.raises(FloatingPointError):
        trained(RECIPE, fresh(), fail)
    assert not list(home.glob("models/*.safetensors"))
    assert same(trained(RECIPE, fresh(), learn), learn(fresh()))


def test_the_file_says_what_it_is(home):
    trained(RECIPE, fresh(), learn)
    with store.safe_open(only_file(home), framework="pt") as file:
        assert json.loads(file.metadata()["recipe"]) == RECIPE


TRAIN = """
import time
from pathlib import Path
from advbook import store
from test_store import RECIPE, fresh, learn

def train(network):
    with Path(LOG).open("a") as log:
        log.write("trained\\n")
    time.sleep(SECONDS)
    return learn(network)

(network,) = store.trained([RECIPE], [fresh()], lambda missing: [train(fresh())])
print(float(sum(value.double().sum() for value in network.state_dict().values())))
"""


@pytest.mark.slow
def test_two_processes_train_once(home, tmp_path):
    log = tmp_path / "log"
    text = TRAIN.replace("LOG", repr(str(log))).replace("SECONDS", "2")
    runs = [script(text) for _ in range(2)]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert log.read_text() == "trained\n"
    assert outputs[0][0] == outputs[1][0] != ""


@pytest.mark.slow
def test_a_killed_training_holds_nobody_up(home, tmp_path):
    log = tmp_path / "log"
    run = script(TRAIN.replace("LOG", repr(str(log))).replace("SECONDS", "300"))
    for _ in range(600):
        if log.exists() or run.poll() is not None:
            break
        time.sleep(0.05)
    assert run.poll() is None, run.communicate()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert same(trained(RECIPE, fresh(), learn), learn(fresh()))


def test_a_full_disk_does_not_lose_the_networks_that_are_there(home):
    trained(RECIPE, fresh(), learn)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in home.rglob("*.safetensors")}
    run = script(f"""{FULL_DISK}
import torch
from advbook import store
from advbook.networks import cnn
network = cnn(generator=torch.Generator())
store.trained([{{"seed": 5}}], [network], lambda missing: [network])
""")
    _, stderr = run.communicate()
    assert run.returncode != 0
    assert "could not be written" in stderr.strip().splitlines()[-1]
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in home.rglob("*.safetensors")} == before
    assert not list(home.rglob("*.part"))
