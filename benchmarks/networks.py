"""Make the networks that come along (data/networks) from the run store, which trains those that it does not have: a
quarter of an hour each on one core. Each is packed, and measured before and after on the same images."""

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from sparserobust import data, files, networks, paths
from sparserobust.attacks import PGD
from sparserobust.config import Run
from sparserobust.data import Splits
from sparserobust.errors import UserError
from sparserobust.evaluation import Accuracy
from sparserobust.reporting.estimates import binomial_interval
from sparserobust.running import records
from sparserobust.running.store import Store
from sparserobust.settings import unknown
from sparserobust.sparsity import parameters, zero_weights
from sparserobust.studies import methods
from sparserobust.studies.side_by_side import experiment as side_by_side

SCALE, SEED = "laptop", 0  # minutes on a GPU, a night on two cores; the first seed
TOLERANCE = 0.002  # of an accuracy, for packing
WHOLE = ("rsr", "ensemble")  # in whole precision: where noise acts, rounding turns too many answers
CUT = {"cut": methods.WEIGHTS}
# name: study, labels of its grid row, paper, what it is
NETWORKS: dict[str, tuple[str, Mapping, str, str]] = {
    "natural": ("iwi", {"net": "ResNet", "part": "dense", "retraining": "natural"}, "",
                "trained on clean images only: any attack fools it"),
    "dense": ("side_by_side", {"method": methods.DENSE}, "", "adversarial training, nothing removed"),
    "small": ("side_by_side", {"method": methods.SMALL, **CUT}, "",
              "a narrow network with a twentieth of the weights, trained adversarially from the start"),
    "lasso": ("side_by_side", {"method": methods.LASSO, **CUT}, "Rakin et al. 2019",
              "adversarial training with a lasso, then the smallest weights removed and fine-tuned"),
    "rsr": ("side_by_side", {"method": methods.RSR, **CUT}, "Rakin et al. 2019",
            "adversarial training with a lasso and with noise on the weights, which stays in use, then cut and "
            "fine-tuned"),
    "splitting": ("side_by_side", {"method": methods.SPLITTING, **CUT}, "Dinh et al. 2020",
                  "adversarial training with relaxed variable splitting (RVSM), then cut and fine-tuned"),
    "ticket": ("side_by_side", {"method": methods.TICKET, **CUT}, "Wang et al. 2020",
               "a lottery ticket: the mask of a trained network on the initial weights, trained adversarially"),
    "iwi": ("side_by_side", {"method": methods.IWI, **CUT}, "Wang et al. 2020",
            "inherits the weights of a narrow network, then trained adversarially, cut and fine-tuned"),
    "tscnc": ("tscnc", {"part": "pruned", "method": "TSCNC", "level": 0.95}, "Feng et al. 2025",
              "a wide network trained under two constraints (TRADES, TSC, CNC), its weights chosen by learned scores"),
    "ensemble": ("fk_resnet", {"net": "En2ResNet20", "method": "dense"}, "Dinh et al. 2020",
                 "two networks with noise on their activations, trained adversarially, nothing removed"),
}
MEASURED: dict[str, Any] = {name: side_by_side(SCALE, [SEED]).measurement(name)
                            for name in ("clean", "pgd")}
ON_SAMPLE = {"clean": Accuracy(), "pgd": Accuracy(attack=PGD(epsilon=8 / 255, step_size=2 / 255, steps=10))}


def run_of(name: str) -> Run:
    study, labels, *_ = NETWORKS[name]
    module = importlib.import_module(f"sparserobust.studies.{study}")
    return module.experiment(SCALE, [SEED]).row(**labels)["run"]


def make(name: str, store: Store) -> dict:
    """Write weights and card of a network. Returns the card."""
    study, _, paper, about = NETWORKS[name]
    run, folder = run_of(name), paths.networks_folder()
    before = {key: store.measure(run, measurement) for key, measurement in MEASURED.items()}
    precision = torch.float if name in WHOLE else torch.half
    tensors = networks.packed(store.model(run).state_dict(), precision)
    model = networks.unpacked(run, tensors)
    content, found = files.packed(tensors), measured(model, run, before)
    files.write(folder / f"{name}.safetensors", content)
    zero, weights = zero_weights(model)
    card = {"about": about, "paper": paper, "study": study, "scale": SCALE, "identity": run.identity,
            "run": run.plain(), "weights_sha256": files.sha256(folder / f"{name}.safetensors"),
            "bytes": (folder / f"{name}.safetensors").stat().st_size,
            "processor": records.read(store.folder / run.identity / "provenance.json", run.identity)["processor"],
            "parameters": parameters(model), "weights": weights, "weights_left": weights - zero,
            "measured": found, "sample": on_sample(model)}
    files.write_json(folder / f"{name}.json", files.sealed(card, name))
    return card


def measured(model: nn.Module, run: Run, before: dict[str, dict]) -> dict[str, dict]:
    """What a card says of the packed network on test images. `UserError` if packing has changed an accuracy."""
    splits, found = data.load(run.data), {}
    for key, measurement in MEASURED.items():
        result = measurement(model, splits)
        if abs(result["count"] - before[key]["count"]) > TOLERANCE * result["total"]:
            raise UserError(f"{key}: {before[key]['count']} of {result['total']} right before it was packed, "
                            f"{result['count']} after it: keep more digits")
        low, high = binomial_interval(result["count"], result["total"])
        found[key] = {"measurement": measurement.plain(), "count": result["count"], "total": result["total"],
                      "low": low, "high": high, "before": before[key]["count"],
                      "published": published(run, measurement)}
    return found


def published(run: Run, measurement: Accuracy) -> int | None:
    """The count of the published record, if there is one: whether answers were kept changes no count."""
    with TemporaryDirectory() as nothing:
        results = [Store(nothing).find(run, replace(measurement, answers=answers)) for answers in (True, False)]
    return next((result["count"] for result in results if result), None)


def on_sample(model: nn.Module) -> dict[str, dict]:
    """What a card says of the hundred images that come along."""
    sample = data.sample()
    splits = Splits(sample, sample, sample, sample.classes)
    return {key: {"measurement": measurement.plain(), "count": measurement(model, splits)["count"]}
            for key, measurement in ON_SAMPLE.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", help=f"one of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--store", help="folder of trained runs (default: the run store)")
    parser.add_argument("--plan", action="store_true", help="make nothing: say which runs they are, and which are here")
    chosen = parser.parse_args()
    store = Store(chosen.store, use_published=False)
    for name in chosen.name or NETWORKS:
        if name not in NETWORKS:
            unknown("network", name, "networks", NETWORKS)
        run = run_of(name)
        if chosen.plan:
            print(f"{name:10s} run {run.identity} {'is here' if store.trained(run) else 'has to be trained'}")
            continue
        card = make(name, store)
        counts = "; ".join(f"{key} {m['count']} of {m['total']} (before {m['before']}, published {m['published']}), "
                           f"of the sample {card['sample'][key]['count']}" for key, m in card["measured"].items())
        print(f"{name:10s} {card['bytes'] / 1000:.0f} kB; {counts}", flush=True)


if __name__ == "__main__":
    main()
