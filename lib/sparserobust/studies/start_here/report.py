"""For somebody who has never attacked a network: two small networks, one trained as usual and one under attack, and
what a person can do to them by hand."""

from copy import deepcopy
from typing import Any

import numpy as np
import pandas
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparserobust.attacks import PGD, predicted, under_attack
from sparserobust.config import Data, Measurement, Model, Objective, Recipe, Run
from sparserobust.data import Split
from sparserobust.objectives import Natural
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment as _Experiment
from sparserobust.seeding import stream
from sparserobust.sparsifiers import Magnitude
from sparserobust.sparsity import prunable

PAPER = "start_here"
NATURAL, ADVERSARIAL = "trained as usual", "trained under attack"


class Experiment(_Experiment):
    """Grid rows: `net` (how it was trained), `seed`, `run`."""


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment:
    """The two networks of each seed. `UserError` for an unknown scale, bad seeds, or a misspelt setting of a run or
    measurement."""
    settings = scales.load(scale, PAPER)
    chosen = scales.checked_seeds(seeds, settings["seeds"])
    objectives = {NATURAL: Natural(), ADVERSARIAL: Objective.parse(settings["objective"])}
    parts: dict[str, Any] = {
        "data": Data.parse(settings["data"]), "model": Model.parse(settings["model"]),
        "recipe": Recipe.parse(settings["recipe"])}
    grid = [{"net": net, "seed": seed, "run": Run(objective=objective, seed=seed, **parts)}
            for net, objective in objectives.items() for seed in chosen]
    measurements = {"clean": Measurement.parse({"kind": "accuracy"})}
    measurements |= {f"{radius:g}": Measurement.parse({"kind": "accuracy", "attack": attack(radius).plain()})
                     for radius in settings["radii"]}
    return Experiment(scale, chosen, grid, measurements, settings)


def attack(radius: float) -> PGD:
    """Twenty steps uphill on the loss, from the image itself, no pixel further than `radius` from where it was."""
    return PGD(epsilon=radius, step_size=max(radius, 1e-6) / 5, steps=20, random_start=False)


def chances(model: nn.Module, images: Tensor) -> Tensor:
    """What a network takes for how likely each class is, (n, classes), of images (n, c, h, w)."""
    with torch.no_grad(), under_attack(model):
        return model(images).softmax(1)


def fooled(models: dict[str, nn.Module], image: Tensor, label: int, radius: float) -> dict[str, tuple[Tensor, Tensor]]:
    """For `plots.fooled`: of each network what an attack of this radius makes of an image (c, h, w), and how likely
    (classes,) the network then finds each class."""
    found = {}
    for name, model in models.items():
        attacked = image[None] if radius == 0 else attack(radius)(model, image[None], torch.tensor([label]))
        found[name] = attacked[0], chances(model, attacked)[0]
    return found


def right_under_attack(models: dict[str, nn.Module], split: Split, radius: float) -> dict[str, Tensor]:
    """Of each network, which images (n,) it answers rightly under an attack of this radius."""
    return {name: predicted(model, attack(radius)(model, split.images, split.labels)) == split.labels
            for name, model in models.items()}


def plane(model: nn.Module, image: Tensor, label: int, reach: float, points: int = 41) -> dict:
    """For `plots.surfaces`: the loss, and the class that is answered, on a square of points around an image (c, h, w):
    to the right every pixel moves by `reach` in the direction that makes the loss grow, upwards by as much in a
    direction drawn at random. Pixels are not held to [0, 1] here."""
    x = image[None].clone().requires_grad_(True)
    with under_attack(model):
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), torch.tensor([label])), x)
        chance = torch.randn(image.shape, generator=stream(0, "plane")).sign()
        steps = torch.linspace(-reach, reach, points)
        moved = (image + steps[None, :, None, None, None] * gradient[0].sign()
                 + steps[:, None, None, None, None] * chance).flatten(0, 1)
        with torch.no_grad():
            logits = model(moved)
    loss = cross_entropy(logits, torch.full((len(moved),), label), reduction="none")
    return {"steps": steps.numpy(), "loss": loss.view(points, points).numpy(),
            "answer": logits.argmax(1).view(points, points).numpy(), "label": label}


def thinned(model: nn.Module, share: float) -> nn.Module:
    """A copy without the share of its weights that is smallest, and not trained any further."""
    model = deepcopy(model)
    Magnitude(sparsity=share).start(model)
    return model


def rate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    return float((predicted(model, images) == labels).double().mean())


def accuracies(models: dict[str, nn.Module], split: Split, shares: list[float], radius: float) -> pandas.DataFrame:
    """One row per network, share removed and `metric` (clean, attacked): `value`, the share of right answers."""
    rows = []
    for name, model in models.items():
        for share in shares:
            thin = thinned(model, share)
            attacked = attack(radius)(thin, split.images, split.labels)
            rows += [{"net": name, "share": share, "metric": metric, "value": rate(thin, images, split.labels)}
                     for metric, images in (("clean", split.images), ("attacked", attacked))]
    return pandas.DataFrame(rows)


def left_by_layer(model: nn.Module, shares: list[float]) -> dict[str, list[float]]:
    """For each layer, named by what it reads and writes, the share [%] of its weights that is left at each share that
    is removed of all."""
    found: dict[str, list[float]] = {}
    for share in shares:
        for weight in prunable(thinned(model, share)).values():
            name = f"{weight.shape[1]} to {weight.shape[0]}"
            found.setdefault(name, []).append(100 * float((weight != 0).double().mean()))
    return found


def readers(model: nn.Module, image_shape: tuple[int, int, int]) -> np.ndarray:
    """How many weights of the first layer still read each pixel, (h, w)."""
    weight = next(iter(prunable(model).values())).detach()
    return (weight != 0).sum(0).view(image_shape)[0].numpy()
