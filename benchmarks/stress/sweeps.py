"""The sweep that is disturbed, and what is right after it: the files of an undisturbed store, filled without an engine,
bit for bit, and no other file."""

import json
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from faults import Forked, Problems

from sparserobust import Data, Recipe, Run, Store, UserError, models, objectives
from sparserobust.analysis import WeightSparsity
from sparserobust.attacks import FGSM
from sparserobust.evaluation import Accuracy
from sparserobust.running import progress, sweep
from sparserobust.sparsifiers import RGSM, Magnitude

torch.set_num_threads(1)  # no threads that a fork would lose
WORKERS = 2
LIMIT = 300  # seconds after which a sweep hangs
MEASURED = {"clean": Accuracy(images=100), "sparsity": WeightSparsity()}
BASE = Run(data=Data(train_images=64), model=models.PreActResNet(depth=8, width=2), objective=objectives.Natural(),
           recipe=Recipe(epochs=8, batch_size=24))


def rows() -> sweep.Grid:
    """Three chains of four runs, each also measured with the attack on another network of its chain."""
    grid = []
    for seed in range(3):
        dense = replace(BASE, seed=seed, sparsifier=RGSM(lambda1=0.75))
        half, most = (replace(BASE, seed=seed, start=dense, sparsifier=Magnitude(sparsity=share),
                              recipe=replace(BASE.recipe, epochs=4)) for share in (0.5, 0.8))
        tuned = replace(most, start=most)
        for net, run, source in (("dense", dense, most), ("half", half, dense), ("most", most, dense),
                                 ("tuned", tuned, half)):
            grid.append(_row(net, run, source))
    return grid


def few() -> sweep.Grid:
    """Two chains of two short runs."""
    grid = []
    for seed in range(2):
        dense = replace(BASE, seed=seed, sparsifier=RGSM(lambda1=0.75), recipe=replace(BASE.recipe, epochs=2))
        half = replace(dense, start=dense, sparsifier=Magnitude(sparsity=0.5))
        grid += [_row("dense", dense, half), _row("half", half, dense)]
    return grid


def _row(net: str, run: Run, source: Run) -> dict:
    transfer = Accuracy(attack=FGSM(epsilon=0.1), images=100, source=source)
    return {"net": net, "seed": run.seed, "run": run, "measurements": {"transfer": transfer}}


def drive(store: str, chosen: list[int]) -> int:
    """In a driver: sweep these rows; prints which runs were trained for it, and its answers."""
    trained, message = set(), progress.Monitor.message

    def recorded(self, task, doing, epochs):
        if doing == "training":
            trained.add(task.run.identity)
        message(self, task, doing, epochs)

    progress.Monitor.message = recorded  # type: ignore[method-assign]
    grid = rows()
    try:
        frame = sweep.sweep([grid[n] for n in chosen], MEASURED, Store(store, use_published=False), WORKERS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"trained": sorted(trained), "answers": answers(frame)}))
    return 0


def answers(frame) -> list[str]:
    """One line for each run and measurement."""
    return [json.dumps(row) for row in frame.drop(columns=["where", "processor"]).to_dict("records")]


def content(store: Path) -> dict[str, object]:
    """What has to be the same in two stores: all that lies there but provenance and locks."""
    return {str(name): value(path) for path in store.rglob("*")
            if (name := path.relative_to(store)).parts[0] != ".locks"}


def value(path: Path) -> object:
    """What a file of a store says, without where, when and how fast it was computed."""
    if path.is_dir() or path.name == "provenance.json":
        return None
    if path.parent.name == "measured" and path.suffix == ".json":
        return without_provenance(json.loads(path.read_text()))
    return path.read_bytes()


def without_provenance(entry: dict) -> dict:
    """Likewise: an entry without it, and without the hash over all of it."""
    return {key: each for key, each in entry.items() if key not in ("provenance", "sha256")}


@cache
def undisturbed(*chosen: int) -> tuple[dict[str, object], list[str]]:
    """Content and answers of a store that was filled run after run."""
    with tempfile.TemporaryDirectory() as folder:
        ended = Forked(serially, Path(folder), list(chosen)).wait(LIMIT)
        assert ended.code == 0, ended.err
        return content(Path(folder)), json.loads(ended.out)


def serially(store: Path, chosen: list[int]) -> None:
    """Fill a store in this process, run after run, and print the answers."""
    grid = [rows()[n] for n in chosen]
    print(json.dumps(answers(sweep.frame_of(grid, MEASURED, Store(store, use_published=False)))))


def different(store: Path, chosen: list[int]) -> Problems:
    """What is wrong with a store in which these rows should be finished."""
    wanted, found = undisturbed(*chosen)[0], content(store)
    return [(kind, f"{what}: {', '.join(sorted(names))}") for kind, what, names in (
        ("lost", "missing", wanted.keys() - found.keys()), ("left", "too much", found.keys() - wanted.keys()),
        ("believed", "different", {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]}))
        if names]
