"""The frame of the experiments, on a tiny one; and docs/evidence.md, whose tables are what the data give."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

import fxapprox
from benchmarks.datasets import Images, energy
from benchmarks.reproduce import _frame, _pages, _store, error
from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce._experiment import Experiment, Given, Row, Run, experiments
from benchmarks.reproduce._frame import Places, Wanted
from benchmarks.reproduce._models import rewritten
from benchmarks.reproduce._plots import curve, panels
from benchmarks.reproduce._train import accuracy, shifted_and_flipped, train

ROOT = Path(__file__).parents[1]
FOUND = experiments()
PAGES = Places().pages
QUIET = Console(quiet=True)
ARMS = {
    "exact": {},
    "memory": {"policy": "topk", "keep": 0.25, "scope": "grad-weight", "memory": True},
    "drawn": {"policy": "pps", "keep": {"from": 0.25, "exact_after": 30}, "scope": "backward"},
}


def images() -> Images:
    numbers = torch.Generator().manual_seed(3)
    x = torch.randn(120, 1, 4, 4, generator=numbers)
    y = (x.flatten(1)[:, :3].argmax(1)).long()
    return Images(x[:80], y[:80], x[80:], y[80:])


def runs(seeds: Sequence[int]) -> list[Run]:
    trained = [Run(arm, seed, keys) for seed in seeds for arm, keys in ARMS.items()]
    return [*trained, Run("seconds", 0, {"alone": True})]


def perform(run: Run, given: Given) -> list[Row]:
    if run.alone:
        return [{"median": 1.5}]
    torch.manual_seed(run.seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    model = rewritten(model, images().train[:8], run.keys)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return train(
        model, images(), optimizer, given, epochs=4, batch=8, seed=run.seed, augment=shifted_and_flipped,
        schedule=torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=30),
        evaluate=lambda m: {"accuracy": accuracy(m, images().test, images().test_label, 40)},
    )  # fmt: skip


def figures(rows: list[Row]) -> dict[str, Figure]:
    figure, axes = panels(1)
    curve(axes[0], rows, "epoch", "loss", "all")
    return {"loss": figure}


def tables(rows: list[Row]) -> dict[str, str]:
    ends = _pages.last(row for row in rows if row["arm"] != "seconds")
    cells = [[arm, _pages.spread(row["loss"] for row in _pages.where(ends, arm=arm))] for arm in ARMS]
    return {"end": _pages.markdown(["arm", "loss"], cells)}


TINY = Experiment("tiny", "a tiny one", 0.1, {"epochs": 4, "sizes": (16, 32)}, runs, perform, figures, tables)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tiny:end -->\nold\n<!-- end -->\nafter\n")
    return Places(tmp_path / "results", tmp_path / "work", (page,))


def wanted(tmp_path: Path, **changed: object) -> Wanted:
    return replace(Wanted(tmp_path, seeds=(0,)), **changed)  # type: ignore[arg-type]


def test_an_experiment_is_carried_out_once_and_told(places: Places, tmp_path: Path) -> None:
    _frame.carry_out(TINY, wanted(tmp_path), places, QUIET)
    found = _store.read(places.results, "tiny")
    assert [run["arm"] for run in found.runs] == list(ARMS)
    assert all({"command", "cpu", "threads", "torch", "date", "seconds"} < run.keys() for run in found.runs)
    assert [row["epoch"] for row in found.rows] == [1, 2, 3, 4] * 3
    assert found.rows == [
        {"arm": run.arm, "seed": run.seed, **row}
        for run in runs([0])[:3]
        for row in perform(run, Given(tmp_path, lambda done, total: None, tmp_path / f"{run.arm}.pt"))
    ]  # floats come back from the file as they were
    drawn = (places.results / "tiny-loss.svg").read_bytes()
    page = places.pages[0].read_text()
    assert page.startswith("before\n<!-- tiny:end -->\n| arm | loss |\n")
    assert page.endswith("|\n<!-- end -->\nafter\n")
    files = {path: path.read_bytes() for path in places.results.iterdir()}
    never = replace(TINY, perform=lambda run, given: pytest.fail("done twice"))
    _frame.carry_out(never, wanted(tmp_path), places, QUIET)
    assert {path: path.read_bytes() for path in places.results.iterdir()} == files
    assert files[places.results / "tiny-loss.svg"] == drawn
    assert not list((places.work / "tiny").glob("*.pt"))


@pytest.mark.parametrize("arm", ARMS)
def test_a_killed_run_goes_on_to_the_bit(arm: str, places: Places, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def killed(done: int, total: int) -> None:
        if done == 2 * total // 4 + 3:  # in the third epoch
            raise Killed

    def dies(run: Run, given: Given) -> list[Row]:
        return perform(run, replace(given, tick=killed))

    run = next(run for run in runs([0]) if run.arm == arm)
    whole = perform(run, Given(tmp_path, lambda done, total: None, tmp_path / "whole.pt"))
    with pytest.raises(Killed):
        _frame.carry_out(replace(TINY, perform=dies), wanted(tmp_path, only=arm), places, QUIET)
    assert not _store.read(places.results, "tiny").runs
    steps: list[int] = []

    def goes_on(run: Run, given: Given) -> list[Row]:
        return perform(run, replace(given, tick=lambda done, total: steps.append(done)))

    _frame.carry_out(replace(TINY, perform=goes_on), wanted(tmp_path, only=arm), places, QUIET)
    assert steps == list(range(21, 41))
    assert _store.read(places.results, "tiny").rows == [{"arm": arm, "seed": 0, **row} for row in whole]


def test_rows_without_their_run_are_left_out(places: Places, tmp_path: Path) -> None:
    _frame.carry_out(TINY, wanted(tmp_path, only="exact"), places, QUIET)
    table = places.results / "tiny.csv"
    table.write_text(table.read_text() + "drawn,0,1,2.0,0.5\n")  # killed between the two files
    assert {row["arm"] for row in _store.read(places.results, "tiny").rows} == {"exact"}
    _frame.carry_out(TINY, wanted(tmp_path, only="drawn"), places, QUIET)
    assert [row["arm"] for row in _store.read(places.results, "tiny").rows] == ["exact"] * 4 + ["drawn"] * 4


def test_seconds_are_measured_by_themselves(places: Places, tmp_path: Path) -> None:
    _frame.carry_out(TINY, wanted(tmp_path, timing=True), places, QUIET)
    assert _store.read(places.results, "tiny").rows == [{"arm": "seconds", "seed": 0, "median": 1.5}]


def test_a_limit_starts_no_run(places: Places, tmp_path: Path) -> None:
    console = Console(record=True, quiet=False, file=(tmp_path / "said").open("w"), width=200)
    _frame.carry_out(TINY, wanted(tmp_path, limit=0.0), places, console)
    said = console.export_text()
    assert "0 of 4 runs are done" in said
    assert "left: exact, seed 0; memory, seed 0; drawn, seed 0" in said
    assert "left, with --timing: seconds, seed 0" in said


def _share(seed: int, places: Places, data: Path) -> None:
    torch.set_num_threads(1)
    for _ in range(5):
        _store_one(seed, places)


def _store_one(seed: int, places: Places) -> None:
    for run in runs([seed])[:3]:
        with _store.locked(places.work / "tiny" / "results.lock"):
            _store.append(places.results, TINY, run, [{"epoch": 1, "loss": seed / 7}], {})


def test_processes_share_an_experiment(places: Places, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_share, args=(seed, places, tmp_path)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = _store.read(places.results, "tiny")
    assert len(found.runs) == len(found.rows) == 9
    assert {(row["seed"], row["loss"]) for row in found.rows} == {(seed, seed / 7) for seed in range(3)}
    ordered = _store.ordered(found.rows, TINY)
    assert [(row["arm"], row["seed"]) for row in ordered] == [(arm, s) for arm in ARMS for s in range(3)]


def test_a_run_that_another_process_is_at_is_left_to_it(places: Places, tmp_path: Path) -> None:
    def nested(run: Run, given: Given) -> list[Row]:
        inner = replace(TINY, perform=lambda run, given: pytest.fail("done by two"))
        _frame.carry_out(inner, wanted(tmp_path, only="exact"), places, QUIET)
        return [{"epoch": 1, "loss": 1.0}]

    _frame.carry_out(replace(TINY, perform=nested), wanted(tmp_path, only="exact"), places, QUIET)
    assert len(_store.read(places.results, "tiny").rows) == 1


def _refused(experiment: Experiment, places: Places, tmp_path: Path, **changed: object) -> str:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as refusal:
        _frame.carry_out(experiment, wanted(tmp_path, **changed), places, QUIET)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    return str(refusal.value)


def test_results_made_in_another_way_are_refused(places: Places, tmp_path: Path) -> None:
    _frame.carry_out(TINY, wanted(tmp_path, only="exact"), places, QUIET)
    said = _refused(replace(TINY, settings={"epochs": 5, "sizes": (16, 32)}), places, tmp_path)
    assert "settings: epochs is 4 in the results and 5 here" in said
    assert "move tiny.csv and tiny.json away" in said
    other = replace(TINY, runs=lambda seeds: [Run("exact", seed, {"rate": 1}) for seed in seeds])
    assert "exact, seed 0: rate is None in the results and 1 here" in _refused(other, places, tmp_path)
    gone = replace(TINY, runs=lambda seeds: [Run("drawn", seed) for seed in seeds])
    assert "exact, seed 0: in the results, not in the experiment" in _refused(gone, places, tmp_path)
    assert "no arm of tiny fits --only 'x*'\n  there are: exact, memory" in _refused(
        TINY, places, tmp_path, only="x*"
    )


def test_bad_requests_are_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FXAPPROX_DATA", raising=False)
    name = next(iter(FOUND))
    for arguments, said in (
        ([name[:-1] + "xx"], f"there is no experiment '{name[:-1]}xx'\n  did you mean '{name}'?"),
        (["zzz"], "there is no experiment 'zzz'\n  there are: "),
        ([name], "error: no data folder\n  set FXAPPROX_DATA, or pass --data FOLDER"),
        ([name, "--data", str(tmp_path / "none")], "does not exist\n  set FXAPPROX_DATA"),
    ):
        with pytest.raises(SystemExit, match=re.escape(said)):
            main(arguments)


def test_the_listing_says_how_much_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert all(name in said for name in FOUND)
    assert re.search(r"\d+ of \d+", said)


@pytest.mark.parametrize("name", FOUND)
def test_every_experiment_has_its_section(name: str) -> None:
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert f"python -m benchmarks.reproduce {name}" in page
    experiment = FOUND[name]
    assert json.loads(json.dumps(experiment.settings))
    planned = experiment.runs((0, 1, 2))
    assert len({(run.arm, run.seed) for run in planned}) == len(planned)


@pytest.mark.parametrize("name", FOUND)
def test_tables_and_figures_are_what_the_data_give(name: str) -> None:
    experiment, folder = FOUND[name], Places().results
    found = _store.read(folder, name)
    _store.refuse_unfit(found, experiment)
    rows = _store.ordered(found.rows, experiment)
    for table, content in experiment.tables(rows).items() if rows else ():
        placed = [_pages.placed(page.read_text(), _pages.marker(name, table)) for page in PAGES]
        assert {text for text in placed if text is not None} == {content}, table
    shown = experiment.figures(rows) if rows else ()
    for figure in shown:
        assert (folder / f"{name}-{figure}.svg").exists()
        assert any(f"{name}-{figure}.svg" in page.read_text() for page in PAGES)


def test_no_page_has_a_table_that_nothing_fills() -> None:
    for page in PAGES:
        for name, table in re.findall(r"<!-- ([\w-]+):(.+?) -->", page.read_text()):
            if name not in FOUND:  # a benchmark with tables of its own
                assert page.name != "evidence.md", name
                continue
            waits = _pages.placed(page.read_text(), _pages.marker(name, table)) in ("", "Not run yet.")
            rows = _store.ordered(_store.read(Places().results, name).rows, FOUND[name])
            assert waits or table in FOUND[name].tables(rows), (page, table)


def test_spread() -> None:
    assert _pages.spread([]) == "–"
    assert _pages.spread([1.25]) == "1.2"
    assert _pages.spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"


def test_shifted_and_flipped_images_are_pieces_of_the_padded_ones() -> None:
    x = torch.arange(5 * 2 * 6 * 6, dtype=torch.float32).reshape(5, 2, 6, 6) + 1
    made = shifted_and_flipped(x, torch.Generator().manual_seed(0), by=2)
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    for before, after in zip(padded, made, strict=True):
        pieces = [
            piece
            for top in range(5)
            for left in range(5)
            for piece in [before[:, top : top + 6, left : left + 6]]
        ]
        assert any(torch.equal(after, p) or torch.equal(after, p.flip(-1)) for p in pieces)


@pytest.mark.parametrize("name", ["topk", "topk, center = true"])
def test_the_error_of_a_product_is_that_of_a_layer(name: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 30, bias=False), torch.rand(20, 40)
    variant, weight = error.variants()[name], layer.weight.detach()
    fast = fxapprox.rewrite(layer, (x,), policy="topk", keep=0.25, center=variant.center, gate=False)
    with torch.no_grad():
        off, exact = (fast(x) - layer(x)).norm(), layer(x).norm()
    own, relative = variant.errors(x, weight.t(), 10, 0)
    assert relative == pytest.approx(float(off / exact), rel=1e-4)
    assert own == pytest.approx(float(off / (x.norm() * weight.norm())), rel=1e-4)


def test_buildings(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no energy_efficiency\.csv"):
        energy(str(tmp_path))
    lines = ["a,b,c,d,e,f,g,h,heating,cooling"]
    lines += [f"{i},{i % 7},{i % 5},{i},{i % 2},{2 + i % 4},{i % 3},{i % 6},{i / 2},0" for i in range(768)]
    (tmp_path / "energy_efficiency.csv").write_text("\n".join(lines) + "\n")
    found = energy(str(tmp_path), split=1)
    assert (found.train.shape, found.test.shape) == ((576, 16), (192, 16))
    assert (found.train_label.shape, found.test_label.shape) == ((576, 1), (192, 1))
    assert torch.allclose(found.train[:, :6].mean(0), torch.zeros(6), atol=1e-5)
    every = torch.cat([found.train, found.test])
    assert torch.equal(every[:, 6:10].sum(1), torch.ones(768))
    assert torch.equal(every[:, 10:].sum(1), torch.ones(768))
    labels = torch.cat([found.train_label, found.test_label]).flatten()
    assert torch.equal(labels.sort().values, torch.arange(768) / 2)
    assert torch.equal(every[:, 6:10].argmax(1), (2 * labels).long() % 4)
