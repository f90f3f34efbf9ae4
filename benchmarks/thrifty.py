"""How near the thrifty attack comes to AutoAttack, and at what cost, on networks that are honest and on such that mask
their gradients.

    python benchmarks/thrifty.py [--only NAME ...] [--attacks NAME ...] [--images 100] [--record]

The networks that come along meet the hundred sample images at 8/255, with their noise off; those of
tests/unit/test_masking.py, which were built to mislead gradients, a hundred digits at 0.1 (it needs pytest). A line
says how many images are still answered rightly (of a random network, the mean of 20 answers), and how many forward
passes and gradients an image of the hundred took: counted, not by the formula. Both are also given as shares of
AutoAttack's (the version that fits the network). An attack that cannot be made says why, and counts nothing. `--record`
puts the lines into benchmarks/thrifty.csv, in place of earlier ones of the same network and attack. AutoAttack takes
minutes to half an hour for a network on one core.
"""

import argparse
import csv
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

import sparserobust as sr
from sparserobust import provenance, training
from sparserobust.answers import is_random
from sparserobust.config import Attack, Run
from sparserobust.data import Splits
from sparserobust.models.noise import noise_off
from sparserobust.seeding import global_seed, stream

TABLE = Path(__file__).with_suffix(".csv")
TESTS = Path(__file__).parents[1] / "tests"
CLEAN, AUTOATTACK, THRIFTY = "clean", "AutoAttack", "Thrifty"
ANSWERS, DRAWS = 20, 3  # of a random network: its count is the mean of so many answers
ATTACKS: dict[str, Callable[[float], Attack | None]] = {
    CLEAN: lambda epsilon: None,
    "PGD-20": lambda epsilon: sr.attacks.PGD(epsilon=epsilon, step_size=epsilon / 4, steps=20),
    THRIFTY: lambda epsilon: sr.apgd.Thrifty(epsilon=epsilon, eot_draws=DRAWS),
    AUTOATTACK: lambda epsilon: sr.attacks.AutoAttack(epsilon=epsilon)}
Built = tuple[nn.Module, torch.Tensor, torch.Tensor, float]  # and images, labels, radius


class Counted(nn.Module):
    """A network that counts the images that it answers, and those whose gradient is asked for."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.forwards, self.gradients = net, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        return self.net(_Counting.apply(x, self))


class _Counting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counted):
        ctx.counted = counted
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.counted.gradients += len(gradient)
        return gradient, None


def coming_along(name: str) -> Built:
    images = sr.data.sample()
    return sr.networks.load(name), images.images, images.labels, 8 / 255


@cache
def trained() -> tuple[nn.Module, Splits]:
    """The network that the tests know as `net`, and its data."""
    run = Run(data=sr.Data(), model=sr.models.PreActResNet(depth=8, width=8),
              objective=sr.objectives.Adversarial(attack=sr.attacks.PGD(epsilon=0.05, step_size=0.025, steps=2)),
              recipe=sr.Recipe(epochs=4, batch_size=32, precision="float32"))
    splits = sr.data.load(run.data)
    return training.train(run, splits).model, splits


def masked(name: str) -> Built:
    net, splits = trained()
    build, _ = test_masking().MASKED[name]
    test = splits.test.sample(100)
    return build(net).eval(), test.images, test.labels, 0.1


def test_masking():
    sys.path[:0] = [path for path in (str(TESTS), str(TESTS / "unit")) if path not in sys.path]
    return importlib.import_module("test_masking")


def measured(built: Built, attack: Attack | None, images: int) -> dict:
    """What a line says of one attack on one network."""
    net, x, labels, _ = built
    x, labels, counted = x[:images], labels[:images], Counted(net)
    begun = time.perf_counter()
    with noise_off(counted), global_seed(0, "thrifty"), provenance.with_threads(1):
        try:
            if attack is not None:
                if not is_random(net, x) and hasattr(attack, "eot_draws"):
                    attack = replace(attack, eot_draws=1)  # as `Accuracy` does
                x = attack(counted, x, labels, stream(0, "thrifty"))
        except Exception as error:  # of a network that was built to break attacks: it is told, and nothing counted
            return {"right": "", "why": str(error).split(":")[0]}
        took = {"forwards": round(counted.forwards / images, 1), "gradients": round(counted.gradients / images, 1),
                "seconds": round(time.perf_counter() - begun)}
        answers = ANSWERS if is_random(net, x) else 1
        right = torch.stack([sr.attacks.predicted(net, x) == labels for _ in range(answers)]).sum() / answers
        return {"right": f"{float(right):.4g}", **took}


def shares(line: dict, lines: list[dict]) -> dict:
    """The same line with its passes as shares of AutoAttack's on the same network, where that is known."""
    whole = next((each for each in lines if each["network"] == line["network"] and each["attack"] == AUTOATTACK
                  and each["right"] != ""), None)
    return line | {f"{key} of AutoAttack": round(float(line[key]) / float(whole[key]), 3) if whole and line.get(key)
                   and float(whole[key]) else "" for key in ("forwards", "gradients")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = {**dict.fromkeys(sr.networks.names(), coming_along), **dict.fromkeys(test_masking().MASKED, masked)}
    parser.add_argument("--only", nargs="+", choices=networks, default=networks, metavar="NAME", help="these networks")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS, metavar="NAME", help="these attacks")
    parser.add_argument("--images", type=int, default=100, help="so many of the hundred images")
    parser.add_argument("--record", action="store_true", help=f"put the lines into {TABLE.name}")
    chosen = parser.parse_args()
    columns = ["network", "attack", "images", "right", "forwards", "gradients", "forwards of AutoAttack",
               "gradients of AutoAttack", "seconds", "why", "machine", "commit"]
    where = {"machine": provenance.provenance()["processor"], "commit": provenance.commit()}
    print(" | ".join(columns[:-2]), flush=True)
    for name in chosen.only:
        built = networks[name](name)
        for title in chosen.attacks:
            lines = []
            if chosen.record and TABLE.exists():
                with TABLE.open(newline="") as file:
                    lines = [each for each in csv.DictReader(file)
                             if (each["network"], each["attack"]) != (name, title)]
            line = {"network": name, "attack": title, "images": chosen.images}
            line |= measured(built, ATTACKS[title](built[-1]), chosen.images) | where
            lines = [shares(each, [*lines, line]) for each in [*lines, line]]
            print(" | ".join(str(lines[-1].get(key, "")) for key in columns[:-2]), flush=True)
            if chosen.record:
                order = [(network, attack) for network in networks for attack in ATTACKS]
                lines.sort(key=lambda each: order.index((each["network"], each["attack"])))
                with TABLE.open("w", newline="") as file:
                    table = csv.DictWriter(file, columns, lineterminator="\n")
                    table.writeheader()
                    table.writerows(lines)


if __name__ == "__main__":
    main()
