"""What a person can do by hand to the networks of the first page: attack one image, look at the loss
around it, take weights away."""

from copy import deepcopy

import numpy as np
import pandas
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparserobust import networks as known_networks
from sparserobust.attacks import predicted, under_attack
from sparserobust.data import Split
from sparserobust.reporting.estimates import matching
from sparserobust.running.experiment import Results
from sparserobust.seeding import stream
from sparserobust.sparsifiers import Magnitude
from sparserobust.sparsity import prunable
from sparserobust.studies.start_here.runs import ADVERSARIAL, NATURAL, attack

Networks = dict[str, nn.Module]
PHOTOGRAPHED = {NATURAL: "natural", ADVERSARIAL: "dense"}  # networks that come along
LEVELS = 255  # of brightness: a photograph has so many steps between black and white


def networks(results: Results) -> Networks:
    """The trained networks of the first seed, by how they were trained."""
    rows = results.experiment.rows(seed=results.experiment.seeds[0])
    return {row["net"]: results.store.model(row["run"]).cpu() for row in rows}


def of_photographs() -> Networks:
    """Two networks that come along, trained on CIFAR-10, by how they were trained."""
    return {how: known_networks.load(name) for how, name in PHOTOGRAPHED.items()}


def photographs_in_words() -> str:
    """A sentence on the accuracy of the networks `of_photographs`, as their cards have it."""
    told = []
    for how, name in PHOTOGRAPHED.items():
        measured = known_networks.card(name)["measured"]
        rates = {what: f"{100 * found['count'] / found['total']:.0f} % of {found['total']:,}"
                 for what, found in measured.items()}
        told.append(f"*{how}* {rates['clean']} photographs as they are, {rates['pgd']} under attack")
    return f"Correct answers: {'; '.join(told)} (radius 8 levels, 20 steps)."


def cards_agree(models: Networks, photographs: Split) -> dict[str, bool]:
    """Whether each network is right on as many photographs as its card says."""
    return {how: int((predicted(model, photographs.images) == photographs.labels).sum())
            == known_networks.card(PHOTOGRAPHED[how])["sample"]["clean"]["count"]
            for how, model in models.items()}


def compared(net: nn.Module, library: nn.Module) -> str:
    """Whether a network that was trained by hand is the library's, in words."""
    ours, theirs = net.state_dict(), library.state_dict()
    apart = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
    if apart == 0:
        return "your network and the library's have the same weights, bit for bit"
    return (f"your network is not the library's: weights differ by up to {apart:.2g} (another radius, or the library "
            "trained on another kind of machine)")


def accuracy_table(results: Results) -> pandas.DataFrame:
    """Accuracy [%] of each network, clean and under attack by radius, mean over seeds."""
    curves = by_radius(results)
    return (100 * curves.pivot_table(index="net", columns="level", values="value")).round(1)


def by_radius(results: Results) -> pandas.DataFrame:
    """The rows of Figure 2, with the radius as `level`: 0 on clean images."""
    radius = results.frame["metric"].replace("clean", "0").astype(float)
    return results.frame.assign(level=radius, metric="accuracy")


def accuracies_in_words(results: Results) -> str:
    """A sentence on both networks (first seed) at the radius of training and at the next one."""
    own, first = results.experiment.settings, results.experiment.seeds[0]
    curves = matching(by_radius(results), {"seed": first}).set_index(["net", "level"])["value"]
    radii = [radius for radius in own.radii if radius >= own.radius][:2]
    told = [f"*{net}* " + ", ".join(f"{100 * curves[net, radius]:.0f} % at radius {radius:g}"
                                    for radius in radii) for net in (NATURAL, ADVERSARIAL)]
    return f"Correct answers: {'; '.join(told)}."


# ----------------------------------------------------------------------------------------- attacks


def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """The probability of each class, (n, classes), that a network gives images (n, c, h, w)."""
    with torch.no_grad(), under_attack(model):
        return model(images).softmax(1)


def attacked(models: Networks, image: Tensor, label: int,
             radius: float) -> dict[str, tuple[Tensor, Tensor]]:
    """For `plots.attacked_image`: an attack of this radius on an image (c, h, w), by network the
    attacked image, and the probabilities (classes,) that the network then gives."""
    found = {}
    for name, model in models.items():
        changed = image[None]
        if radius > 0:
            changed = attack(radius)(model, changed, torch.tensor([label]))
        found[name] = changed[0], probabilities(model, changed)[0]
    return found


def attacked_at(models: Networks, image: Tensor, label: int,
                radii: list[float]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """For `plots.answers`: by network what `attacked` finds at each of these radii."""
    found = [attacked(models, image, label, radius) for radius in radii]
    return {name: [one[name] for one in found] for name in models}


def levels_that_fool(model: nn.Module, image: Tensor, label: int) -> int:
    """The smallest radius, in levels of brightness, at which an attack fools a network on an image
    (c, h, w): 0 if it is wrong without one, 256 if no radius does."""
    for level in range(LEVELS + 1):
        _, chances = attacked({"": model}, image, label, level / LEVELS)[""]
        if int(chances.argmax()) != label:
            return level
    return LEVELS + 1


def right_under_attack(models: Networks, split: Split, radius: float) -> dict[str, Tensor]:
    """Which images (n,) each network classifies correctly under an attack of this radius."""
    images, labels = split.images, split.labels
    return {name: predicted(model, attack(radius)(model, images, labels)) == labels
            for name, model in models.items()}


def example(models: Networks, split: Split, radius: float) -> tuple[Tensor, int]:
    """The first image (c, h, w), with its label, on which an attack of this radius fools the
    network trained as usual and not the other one."""
    right = right_under_attack(models, split, radius)
    first = int((right[ADVERSARIAL] & ~right[NATURAL]).nonzero()[0])
    return split.images[first], int(split.labels[first])


def plane(model: nn.Module, image: Tensor, label: int, reach: float, points: int = 41) -> dict:
    """For `plots.surfaces`: the loss, and the class that is answered, on a square of points around
    an image (c, h, w): to the right every pixel moves by `reach` in the direction in which the loss
    grows, upwards by as much in a direction drawn at random. Pixels are not held to [0, 1] here."""
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


# ----------------------------------------------------------------------------------------- pruning


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy without the share of its weights that is smallest, and not trained any further."""
    model = deepcopy(model)
    Magnitude(sparsity=share).start(model)
    return model


def rate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of correct answers."""
    return float((predicted(model, images) == labels).double().mean())


def accuracies(models: Networks, split: Split, shares: list[float],
               radius: float) -> pandas.DataFrame:
    """One row per network, share removed and `metric` (clean, attacked): `value`, the share of
    correct answers."""
    rows = []
    for name, model in models.items():
        for share in shares:
            smaller = pruned(model, share)
            changed = attack(radius)(smaller, split.images, split.labels)
            rows += [{"net": name, "share": share, "metric": metric,
                      "value": rate(smaller, images, split.labels)}
                     for metric, images in (("clean", split.images), ("attacked", changed))]
    return pandas.DataFrame(rows)


def weights_by_pixel(models: Networks, share: float,
                     image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """How many weights of the first layer that start at each pixel are not zero, (h, w), when this
    share of all is removed, by network."""
    found = {}
    for name, model in models.items():
        weight = next(iter(prunable(pruned(model, share)).values())).detach()
        found[name] = (weight != 0).sum(0).view(image_shape)[0].numpy()
    return found


def accuracies_left_in_words(curves: pandas.DataFrame, shares: list[float]) -> str:
    """A sentence for each network on its `accuracies` at these shares."""
    found = curves.set_index(["net", "metric", "share"])["value"]
    told = [f"*{net}* " + ", ".join(
        f"{100 * found[net, 'clean', share]:.0f} % clean and "
        f"{100 * found[net, 'attacked', share]:.0f} % under attack with {100 * share:g} % zeroed"
        for share in shares) for net in (NATURAL, ADVERSARIAL)]
    return f"Correct answers: {'; '.join(told)}."


def left_by_layer(models: Networks, shares: list[float]) -> pandas.DataFrame:
    """What is left [%] of the weights of each layer, named by how many units it connects, of each
    network (columns), at each share [%] that is removed of all (lines)."""
    lines: dict[str, dict[tuple[str, str], float]] = {}
    for share in shares:
        line = lines[f"{100 * share:g}"] = {}
        for net, model in models.items():
            for weight in prunable(pruned(model, share)).values():
                layer = f"{weight.shape[1]} to {weight.shape[0]}"
                line[net, layer] = 100 * float((weight != 0).double().mean())
    table = pandas.DataFrame.from_dict(lines, orient="index").rename_axis("zeroed [%]")
    return table.set_axis(pandas.MultiIndex.from_tuples(table.columns), axis=1)
