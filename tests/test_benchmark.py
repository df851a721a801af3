"""scripts/benchmark.py, without the libraries it compares with, and the page that is drawn from its rows."""

import importlib.util
import json
import math
import re
import sys

import IPython.display
import jupytext
import pytest
import torch
from checkout import ROOT
from torch import nn

from advbook import ledger, networks, store

spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts/benchmark.py")
benchmark = sys.modules["benchmark"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

CPU = torch.device("cpu")
TOY = benchmark.Size(
    n=60,
    epochs=1,
    images=40,
    steps=2,
    restarts=2,
    batch=16,
    repeats=2,
    least_seconds=0.0,
    halvings=2,
    members=2,
    batches=1,
)
RADIUS = 0.02
IMPORTS = {"Foolbox": "foolbox", "torchattacks": "torchattacks", "ART": "art", "adv-lib": "adv_lib"}


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        monkeypatch.setattr(benchmark.time, "perf_counter", lambda: self.seconds)

    def spend(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


# --- counting and timing --------------------------------------------------------------------------------------


def test_samples_are_counted_and_pass_unchanged():
    network = nn.Linear(3, 2)
    counted = benchmark.Counted(network)
    x = torch.rand(5, 3, requires_grad=True)
    assert torch.equal(counted(x), network(x))
    counted(x[:2]).sum().backward()
    assert counted.tally == [7]
    assert x.grad is not None
    assert not counted.training


def test_a_network_beside_another_adds_to_the_same_count():
    counted = benchmark.Counted(nn.Linear(3, 2))
    draft = counted.beside(lambda x: 2 * x)
    counted(torch.rand(4, 3))
    assert torch.equal(draft(torch.ones(3, 3)), 2 * torch.ones(3, 3))
    assert counted.tally == draft.tally == [7]


def test_a_rate_is_that_of_the_best_round(clock):
    durations = iter([9.0, 2.0, 0.5, 0.5, 2.0])  # a first call that does not count, then three rounds
    size = TOY._replace(repeats=3, least_seconds=1.0)
    found = benchmark.rates({"a": (lambda: clock.spend(next(durations)), 6.0)}, CPU, size)
    assert found == {"a": 6.0 / 0.5}


def test_all_parts_are_measured_in_turn(clock):
    order = []
    parts = {name: (lambda name=name: (order.append(name), clock.spend(1.0)), 1.0) for name in "ab"}
    assert benchmark.rates(parts, CPU, TOY) == {"a": 1.0, "b": 1.0}
    assert "".join(order) == "ab" + "ab" * TOY.repeats


# --- attacks --------------------------------------------------------------------------------------------------


class Margin(nn.Module):
    """Two classes; class 0 leads by w x + b, so that within eps it can fall by eps |w|_1 and no further."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w, requires_grad=False), b

    def forward(self, x):
        lead = x.flatten(1) @ self.w + self.b
        return torch.nn.functional.pad(torch.stack([lead, torch.zeros_like(lead)], 1), (0, 8), value=-1e3)


def linear_problem():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(16, generator=generator)
    x = 0.3 + 0.4 * torch.rand(24, 1, 4, 4, generator=generator)  # no pixel meets the box
    lead = x.flatten(1) @ w
    network = Margin(w, float(1.02 * RADIUS * w.abs().sum() - lead.median()))  # about half can be fooled
    margin = network(x)[:, 0]
    return network, x[margin > 0], margin[margin > 0] / w.abs().sum()  # the smallest eps of each image


def attack_of(name):
    if name in IMPORTS:
        if importlib.util.find_spec(IMPORTS[name]) is None:
            pytest.skip(f"{name} is not installed")
        return benchmark.PEERS[name].load()
    return {"engine": benchmark.engine(benchmark.Kernel(lambda n: n)), "textbook": benchmark.textbook}[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["engine", "textbook", *IMPORTS])
def test_every_attack_fools_a_linear_network_exactly_where_it_can(name):
    network, x, least = linear_problem()
    budget = benchmark.Budget(RADIUS, steps=10, restarts=2, batch=8)
    y = torch.zeros(len(x), dtype=torch.long)
    possible = least < RADIUS
    assert ((least / RADIUS - 1).abs() > 1e-3).all()  # rounding decides nothing
    assert 3 < possible.sum() < len(x) - 3
    found = attack_of(name)(benchmark.Counted(network), x, y, budget)
    assert found.shape == x.shape
    assert torch.equal(benchmark.fooled(network, x, y, found, RADIUS), possible)


def test_a_textbook_loop_shows_the_network_every_image_at_every_step():
    network, x, _ = linear_problem()
    counted = benchmark.Counted(network)
    budget = benchmark.Budget(RADIUS, steps=4, restarts=3, batch=8)
    benchmark.in_batches(benchmark.textbook)(counted, x, torch.zeros(len(x), dtype=torch.long), budget)
    assert counted.tally == [len(x) * 3 * (4 + 1)]


def test_an_image_outside_of_the_ball_or_the_box_fools_nobody():
    x = torch.full((4, 1, 1, 1), 0.5)
    x[3] = 0.95
    found = x + torch.tensor([0.1, 0.1 + 1e-5, 0.0, 0.1])[:, None, None, None]
    network = lambda images: torch.stack([-images.flatten(), images.flatten()], 1) - 0.5  # noqa: E731
    y = torch.tensor([0, 0, 1, 0])
    assert benchmark.fooled(network, x, y, found, 0.1).tolist() == [True, False, False, False]


def test_seconds_are_the_best_and_the_ratio_is_to_the_first(clock):
    network, x, least = linear_problem()
    times = {"ours": iter([5.0, 2.0]), "other": iter([3.0, 4.0])}

    def attack(name, found):
        def run(counted, x, y, b):
            clock.spend(next(times[name]))
            counted(found(x))
            return found(x)

        return run

    budget = benchmark.Budget(RADIUS, 10, 2, 8)
    attacks = {
        "ours": attack("ours", lambda x: x - RADIUS * network.w.sign().view(1, 1, 4, 4)),
        "other": attack("other", lambda x: x),
    }
    y = torch.zeros(len(x), dtype=torch.long)
    ours, other = benchmark.attack_rows(attacks, network, x, y, budget, 2)
    assert (ours["best_seconds"], ours["ratio"], other["best_seconds"], other["ratio"]) == (2.0, 1.0, 3.0, 1.5)
    assert ours["success"] == pytest.approx(float((least < RADIUS).double().mean()))
    assert other["success"] == 0
    assert (ours["forwards"], ours["count"]) == (1.0, len(x))


def test_the_search_for_eps_halves_its_range_and_keeps_the_nearest():
    eps, tried = benchmark.half(lambda eps: 1 - math.exp(-eps / 0.1), 0.3, 8)
    assert eps == pytest.approx(0.1 * math.log(2), abs=0.3 / 2**7)
    assert [e for e, _ in tried[:3]] == [0.15, 0.075, 0.0375]
    assert len(tried) == 8
    assert benchmark.half(lambda eps: 0.4 if eps < 0.2 else 1.0, 0.3, 3)[0] == 0.15  # 0.4 is nearest to a half


def test_the_form_that_drafts_leaves_the_network_itself_to_confirm():
    network, counted = nn.Linear(2, 2), benchmark.Counted(nn.Linear(2, 2))
    assert benchmark.led(network, benchmark.Kernel(lambda n: n, drafts=True), counted)["f"] is counted
    plain = benchmark.led(network, benchmark.Kernel(lambda n: n), counted)
    assert set(plain) == {"f"}
    assert plain["f"].inside is network


# --- the libraries --------------------------------------------------------------------------------------------


def test_a_library_that_is_missing_is_a_line_and_not_a_crash(monkeypatch, capsys):
    loaded = [name for name in sys.modules if name.split(".")[0] in IMPORTS.values()]
    for name in [*IMPORTS.values(), *loaded]:
        monkeypatch.setitem(sys.modules, name, None)
    assert benchmark.peers() == {}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(benchmark.PEERS)
    for line, peer in zip(lines, benchmark.PEERS.values(), strict=True):
        assert line.startswith(f"{peer.package} is not installed: make bench installs it.")


def test_a_stand_in_is_there_for_an_import_and_gone_after_it():
    with benchmark.stand_ins("advbook_nothing", "json"):
        from advbook_nothing import models

        assert models is None
        assert sys.modules["json"] is json
    assert "advbook_nothing" not in sys.modules
    assert sys.modules["json"] is json


def test_a_stand_in_is_gone_after_an_import_that_fails():
    with pytest.raises(ImportError), benchmark.stand_ins("advbook_nothing"):
        from advbook_nothing import more  # noqa: F401
    assert "advbook_nothing" not in sys.modules


def test_make_bench_installs_every_library_in_one_version():
    makefile = (ROOT / "Makefile").read_text()
    rule = makefile[makefile.index(".venv/bench:") :]
    pinned = re.findall(r"([\w-]+)==[\d.]+", rule + (ROOT / "scripts/benchmark-requirements.txt").read_text())
    assert sorted(pinned) == sorted(peer.package for peer in benchmark.PEERS.values())
    assert re.search(r"--no-deps adv-lib==\S+ torchattacks==", rule)


# --- steps ----------------------------------------------------------------------------------------------------


def test_operations_are_those_of_the_layers_forward_and_back():
    multiplications = sum(side**2 * out * 16 * into for side, into, out in ((14, 1, 16), (7, 16, 32), (3, 32, 64)))
    multiplications += 576 * 100 + 100 * 10
    network = networks.cnn(generator=torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    assert benchmark.gradient_flops(network, torch.zeros(3, 1, 28, 28)) == 2 * 2 * multiplications


# --- the grid -------------------------------------------------------------------------------------------------


def test_the_papers_grid_is_as_large_as_counted_by_hand():
    # 1,353 batches an epoch over all N (3 for N = 250), 20 epochs, 5 seeds; 13 N x 5 seeds x 5 recipes = 325 networks
    assert benchmark.work(benchmark.Grid()) == {
        "normal training": 1_353 * 20 * 5,
        "adversarial training": 1_353 * 20 * 5 * 4,
        "attack": 325 * 41 * 5 * 1_000,
        "on-manifold attack": 325 * 41 * 5 * 2_500,
    }


def test_a_batch_that_is_not_full_counts():
    grid = benchmark.Grid((101,), 1, 1, 2, 3, 100, 4, 1, 7, 9)
    assert benchmark.work(grid) == {
        "normal training": 6, "adversarial training": 12, "attack": 3 * 5 * 7, "on-manifold attack": 3 * 5 * 9
    }  # fmt: skip


def test_hours_are_amounts_over_rates():
    rows = benchmark.extrapolate({"a": 7_200, "b": 36_000}, {"a": 2.0, "b": 5.0}, "plain")
    assert [(row["part"], row["hours"]) for row in rows] == [("a", 1.0), ("b", 2.0), ("all", 3.0)]
    assert {(row["what"], row["how"]) for row in rows} == {("extrapolation", "plain")}


def test_the_grid_is_extrapolated_from_the_plain_and_from_the_fastest_rates():
    def training(recipe, how, rate):
        return {"what": "training", "recipe": recipe, "how": how, "rate": rate}

    def attack(part, form, rate):
        return {"what": "rate", "part": part, "form": form, "rate": rate}

    rows = [
        training("normal", "one after the other", 3.0),
        training("normal", "fleet", 2.0),
        training("adversarial, float32", "one after the other", 5.0),
        training("adversarial, bfloat16", "one after the other", 7.0),
        training("adversarial, bfloat16", "fleet", 9.0),
        attack("attack", "plain", 11.0),
        attack("attack", "folded", 13.0),
        attack("on-manifold attack", "plain", 17.0),
        attack("decoder", "plain", 1e9),
        {"what": "attack", "forwards": 1.0},
    ]
    found = {(row["how"], row["part"]): row.get("rate") for row in benchmark.grid_rows(rows)}
    plain, fastest = "plain networks, one at a time", "fastest"
    assert found == {
        (plain, "normal training"): 3.0, (fastest, "normal training"): 3.0,
        (plain, "adversarial training"): 5.0, (fastest, "adversarial training"): 9.0,
        (plain, "attack"): 11.0, (fastest, "attack"): 13.0,
        (plain, "on-manifold attack"): 17.0, (fastest, "on-manifold attack"): 17.0,
        (plain, "all"): None, (fastest, "all"): None,
    }  # fmt: skip


# --- tables and rows ------------------------------------------------------------------------------------------


def test_a_table_is_aligned_and_has_dashes():
    rows = [{"name": "a", "rate": 1234.5}, {"name": "longer", "rate": None}, {"name": None}]
    assert benchmark.table(rows, {"name": "", "rate": ",.1f"}).splitlines() == [
        "name       rate",
        "a       1,234.5",
        "longer        -",
        "-             -",
    ]


def test_only_full_sizes_are_published_by_default(home, monkeypatch):
    monkeypatch.setattr(benchmark, "device_name", lambda device: "NVIDIA H100 80GB (x)")
    assert benchmark.place("full", CPU) == ledger.PUBLISHED / "speed" / "nvidia-h100-80gb-x.json"
    assert benchmark.place("small", CPU) == home / "speed" / "nvidia-h100-80gb-x.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run at toy size with one library (which is the textbook loop) and one that is missing: its file."""

    def missing():
        raise ImportError("no module")

    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBOOK_HOME", str(folder))
        patch.setitem(benchmark.SIZES, "toy", TOY)
        patch.setattr(benchmark, "SIDES", ((16,), (16,)))
        library = benchmark.Peer("numpy", lambda: benchmark.in_batches(benchmark.textbook))
        patch.setattr(benchmark, "PEERS", {"A library": library, "Missing": benchmark.Peer("missing", missing)})
        benchmark.main(["--device", "cpu", "--sizes", "toy", "--out", str(folder / "rows.json")])
    return folder / "rows.json"


def test_a_run_writes_valid_rows_of_every_kind(run):
    rows = ledger.read(run)
    assert rows is not None
    assert set(rows.what) == {"search", *benchmark.TABLES}
    assert set(rows.sizes) == {"toy"}
    assert set(rows.version) == {benchmark.VERSION}
    for name in ("device", "processor", "cores", "threads", "torch", "seconds", "n", "steps"):
        assert rows[name].notna().all()
    attacks = rows[rows.what == "attack"]
    assert set(attacks.network) == {"normal", "adversarial"}
    assert {"advbook", "advbook, batch norm folded", "textbook loop", "A library"} <= set(attacks.attack)
    assert attacks.success.between(0, 1).all()
    every = TOY.restarts * (TOY.steps + 1)
    assert (attacks.forwards[attacks.attack == "textbook loop"] == every).all()
    assert (attacks.forwards[attacks.attack == "advbook"] <= every).all()
    assert (rows.rate.dropna() > 0).all()
    assert (rows.hours[rows.what == "extrapolation"] > 0).all()


def test_a_row_hides_nothing_that_all_rows_share(run):
    document = json.loads(run.read_bytes())
    assert not {name for row in document["rows"] for name in row} & set(document["about"])


# --- the page -------------------------------------------------------------------------------------------------


def drawn(monkeypatch, tables):
    """What the page shows with these rows, run in this process: texts and pictures."""
    monkeypatch.setattr(ledger, "published", lambda experiment, version: tables)
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *values, **options: shown.extend(values))
    names = {}
    notebook = jupytext.read(store.CHECKOUT / "nbs" / "speed.py")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "speed", "exec"), names)
    assert names["VERSION"] == benchmark.VERSION
    texts = [value.data for value in shown if hasattr(value, "data")]
    return "\n\n".join(texts), [value for value in shown if hasattr(value, "savefig")]


def test_the_page_draws_what_was_measured(run, monkeypatch):
    rows = ledger.read(run)
    text, pictures = drawn(monkeypatch, [rows, rows])
    assert len(pictures) == 1
    assert len(pictures[0].axes) == 4
    assert len(re.findall(r"^\| A library[^|]*\|", text, re.MULTILINE)) == 4, "a line in every table"
    assert text.count("**Adversarial training**") == 2
    assert "Of the libraries, A library needs the fewest" in text
    assert "No run on a GPU" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_the_page_says_that_there_are_no_rows(monkeypatch):
    text, pictures = drawn(monkeypatch, [])
    assert "No rows are published yet" in text
    assert pictures == []
