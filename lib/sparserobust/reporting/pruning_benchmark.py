"""What contributors of the Adversarial Pruning Benchmark (Piras et al. 2024, pralab/AdversarialPruningBenchmark) are
asked for, of any run, or of a network that comes along; and where it is not what they ask for.

    entry = of_run(run, Store(), images=1000)
    print(markdown([entry]))
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas

from sparserobust import files, networks, paths
from sparserobust.analysis import RemainingParameters
from sparserobust.attacks import AutoAttack
from sparserobust.config import Dense, Measurement, Objective, Recipe, Run
from sparserobust.errors import UserError
from sparserobust.evaluation import Accuracy
from sparserobust.models import NoisyWeights
from sparserobust.models.foreign import Pretrained
from sparserobust.reporting.estimates import binomial_interval
from sparserobust.running.store import Store
from sparserobust.sparsifiers import RGSM, Channels, FixedMask

EPSILON = 0.031  # theirs, a little less than 8/255
MOST = 10_000  # test images that they take
DATA = {"cifar10": "CIFAR10", "svhn": "SVHN"}
ARCHITECTURES = ("resnet18", "vgg16")  # kinds here are named as theirs
RATES = {"weights": (90, 95, 99), "channels": (50, 75, 90)}  # percent that goes
WITHIN = 0.5  # percentage points
ALSO = ("An entry also needs three sparsities of one architecture and data set, robust accuracy under HO-FMN from the "
        "benchmark's own script, the taxonomy form, and weights that its base models can load: here parameters have "
        "other names, and images are normalised in the network.")
TIMES = ("before", "during", "after")  # the pruning


def usual_images(measurements: Iterable[Measurement]) -> int | None:
    """How many test images AutoAttack gets among these measurements; None, all, where it is not among them."""
    return next((m.images for m in measurements if isinstance(m, Accuracy) and isinstance(m.attack, AutoAttack)), None)


def of_network(name: str, store: Store, images: int | None = None) -> dict[str, Any]:
    """As `of_run`, of a network that comes along: its packed weights, and how the run was trained that they are of."""
    trained = Run.parse(networks.card(name)["run"])
    folder = paths.writable(paths.build_folder() / "benchmark")
    files.save_tensors(folder / f"{name}.safetensors", networks.load(name).state_dict())
    model = Pretrained(model=trained.model, weights=str(folder / f"{name}.safetensors"))
    same = replace(trained, model=model, recipe=Recipe(epochs=0), sparsifier=Dense(), start=None, inheritance=None)
    return of_run(same, store, images, name, trained)


def of_run(run: Run, store: Store, images: int | None = None, name: str | None = None, trained: Run | None = None
           ) -> dict[str, Any]:
    """An entry, JSON-ready; what is not known yet is trained and measured now, on `images` test images (None: all), of
    at most 10,000. `trained` says how it came about, where that is not the run itself. Accuracies are shares, with
    counts and Wilson's 95 % interval; `epochs` are counted `before` pruning (no sparsifier), `during` it, and `after`
    it (at a fixed mask), over all runs that this one needs; `notes` say where it is not what the benchmark asks for."""
    trained = trained or run
    if images is not None and images < 1:
        raise UserError("images start at 1, and None stands for all")
    images = min(images or MOST, MOST)
    if images == MOST and run.data.name == "cifar10":
        images = None  # all that there are, as others ask for them
    clean = store.measure(run, Accuracy(images=images))
    attacked = store.measure(run, Accuracy(images=images, attack=AutoAttack(epsilon=EPSILON)))
    left, record = store.measure(run, RemainingParameters()), store.record(run)
    epochs = dict.fromkeys(TIMES, 0)
    for each in trained.lineage:
        epochs[_time(each)] += each.recipe.trained_epochs
    entry = {
        "name": name or run.identity, "run": trained.identity, "data": DATA.get(run.data.name, run.data.name),
        "architecture": trained.model.kind, "model": trained.model.plain(), "structure": _structure(trained),
        "weights_removed": record["sparsity"], "channels_removed": record["channel_sparsity"],
        "parameters": left["total"], "parameters_left": left["count"], "epochs": epochs,
        "training": told(trained.objective),
        "stages": [{"run": each.identity, "objective": told(each.objective), "sparsifier": each.sparsifier.kind,
                    "epochs": each.recipe.trained_epochs, "when": _time(each)} for each in trained.lineage],
        "clean": _rate(clean), "autoattack": _rate(attacked) | {"epsilon": EPSILON, "norm": "linf"}}
    return entry | {"notes": [*_notes(entry, trained), *attacked.get("flags", ())]}


def _time(run: Run) -> str:
    if isinstance(run.sparsifier, Dense):
        return "before"
    return "after" if isinstance(run.sparsifier, FixedMask) else "during"


def _structure(run: Run) -> str:
    """What was removed: whole channels if any sparsifier on the way removes them."""
    whole = [isinstance(each.sparsifier, Channels | RGSM) or getattr(each.sparsifier, "granularity", "") == "channel"
             for each in run.lineage]
    return "channels" if any(whole) else "weights"


def told(objective: Objective) -> str:
    """Who attacks in training, in a few words."""
    inner = getattr(objective, "objective", objective)
    attack = getattr(inner, "attack", inner)
    if (radius := getattr(attack, "epsilon", None)) is None:
        return inner.kind
    steps = f", {attack.steps} steps" if hasattr(attack, "steps") else ""
    return f"{inner.kind}{f', {attack.kind}' if attack is not inner else ''}{steps}, radius {radius:.4g}"


def _rate(result: dict) -> dict[str, Any]:
    low, high = binomial_interval(result["count"], result["total"])
    return {key: result[key] for key in ("value", "count", "total")} | {"low": low, "high": high}


def _notes(entry: dict, run: Run) -> list[str]:
    structure, images = entry["structure"], entry["clean"]["total"]
    found: list[str] = []
    if entry["data"] not in DATA.values():
        found.append(f"the benchmark knows {' and '.join(DATA.values())}, not {entry['data']}")
    if run.data.classes or run.data.train_images is not None:
        found.append("trained on a part of the training images alone")
    if run.model.kind not in ARCHITECTURES or getattr(run.model, "width", 64) != 64:
        found.append(f"the benchmark knows {' and '.join(ARCHITECTURES)} of full width, not {run.model.kind} as it is "
                     "here")
    removed, rates = 100 * entry[f"{structure}_removed"], RATES[structure]
    if min(abs(removed - rate) for rate in rates) > WITHIN:
        found.append(f"{removed:.1f} % of the {structure} are removed, where the benchmark has "
                     f"{', '.join(map(str, rates[:-1]))} and {rates[-1]} %")
    if structure == "channels":
        found.append("channels are counted over all convolutions, by what reads them, so that it is less than the "
                     "share that each layer lost within its blocks")
    if entry["data"] != "CIFAR10" or images < MOST:
        found.append(f"measured on {images} test images, drawn at random; the benchmark takes the first 10,000")
    if isinstance(run.model, NoisyWeights) or getattr(run.model, "noise", None):
        found.append("its answers are random: AutoAttack's version for such networks was used, where the benchmark has "
                     "the standard one")
    return found


def markdown(entries: Sequence[dict]) -> str:
    """A row for each entry, and below them the notes."""
    rows = pandas.DataFrame([{
        "network": e["name"], "data": e["data"], "architecture": e["architecture"], "structure": e["structure"],
        "weights / channels removed [%]": f"{100 * e['weights_removed']:.2f} / {100 * e['channels_removed']:.2f}",
        "clean [%]": _cell(e["clean"]), f"AutoAttack at {EPSILON} [%]": _cell(e["autoattack"]),
        "images": e["clean"]["total"], "epochs before / during / after": " / ".join(str(e["epochs"][t]) for t in TIMES),
        "attack in training": e["training"], "parameters": f"{e['parameters']:,}",
        "left": f"{e['parameters_left']:,}"} for e in entries]).to_markdown(index=False, disable_numparse=True)
    notes = [f"- {e['name']}: {note}" for e in entries for note in e["notes"]]
    return "\n".join([rows, "", *notes, "", ALSO])


def _cell(rate: dict) -> str:
    return f"{100 * rate['value']:.2f} [{100 * rate['low']:.2f}, {100 * rate['high']:.2f}]"
