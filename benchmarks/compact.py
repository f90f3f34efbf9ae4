"""What removing channels saves in networks of torchvision, and that they answer as before.

    python benchmarks/compact.py [--only NAME ...] [--side 64] [--repeats 20] [--share 0.5] [--record]

Each network has random weights, drawn from a fixed seed, and ten classes. Of the channels that can be removed, a random
half is no longer read: their weights become zero wherever they are read. Then `analysis.Deployable` measures it before
and after `models.compact`: parameters, multiply-accumulates for one image, bytes (all three in millions), and
milliseconds of a forward pass of one image on one thread, where the two take turns. The last column is the largest
difference of the logits on 100 random images, as a share of the largest logit. `--record` writes the table into
benchmarks/compact.csv.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision

import sparserobust as sr
from sparserobust import provenance
from sparserobust.data import Split, Splits
from sparserobust.models.couplings import IN, OUT, Couplings
from sparserobust.seeding import global_seed

TABLE = Path(__file__).with_suffix(".csv")
NETWORKS = ["resnet18", "resnext50_32x4d", "vgg11_bn", "alexnet", "squeezenet1_1", "densenet121", "googlenet",
            "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5", "regnet_y_400mf", "convnext_tiny"]
MEASURED = {"parameters": ("parameters", 1e-6), "MACs": ("macs", 1e-6), "bytes": ("bytes", 1e-6),
            "milliseconds": ("latency_ms", 1)}  # by name in the table: name in the result, and the unit


@torch.no_grad()
def built(name: str, image_shape: tuple[int, int, int]) -> torch.nn.Module:
    """With norms that have seen a batch, without which deep random networks answer every image alike."""
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with global_seed(0, name):
        model = torchvision.models.get_model(name, num_classes=10, **more)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        model(torch.rand(16, *image_shape))
        return model.eval()


@torch.no_grad()
def zero_channels(model: torch.nn.Module, image_shape: tuple[int, int, int], share: float) -> tuple[int, int]:
    """So many sets of channels are no longer read, and so many could be removed."""
    couplings = Couplings.of(model, torch.rand(2, *image_shape))
    readers: dict[str, Any] = {name: layer for name, side in couplings.sets if side == IN
                               and getattr(layer := model.get_submodule(name), "groups", 1) == 1}
    read, made = torch.zeros(2, len(couplings.fixed), dtype=torch.bool)
    for name in readers:
        read[couplings.sets[name, IN]], made[couplings.sets[name, OUT]] = True, True
    removable = read & made & ~couplings.fixed
    chosen = removable & (torch.rand(len(removable), generator=torch.Generator().manual_seed(0)) < share)
    for name, layer in readers.items():
        layer.weight[:, chosen[couplings.sets[name, IN]]] = 0
    return int(chosen.sum()), int(removable.sum())


def measured(name: str, side: int, repeats: int, share: float) -> dict:
    """A line of the table."""
    shape = (3, side, side)
    model = built(name, shape)
    zero, channels = zero_channels(model, shape, share)
    split = Split(torch.rand(100, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 10)
    with provenance.with_threads(1):
        found = sr.analysis.Deployable(repeats=repeats)(model, Splits(split, split, split, tuple("0123456789")))
        with torch.no_grad():
            largest = float(model(split.images).abs().max())
    line = {"network": name, "channels": channels, "removed": zero}
    for title, (key, unit) in MEASURED.items():
        line |= {title: round(found[key] * unit, 3), f"{title} left": round(found[f"{key}_left"] * unit, 3)}
    return line | {"difference": f"{found['largest_difference'] / largest:.1e}"}


def printed(lines: Iterable[dict]) -> list[dict]:
    """The lines of a table, each printed as soon as it is there."""
    found: list[dict] = []
    for line in lines:
        if not found:
            print(" | ".join(line))
        print(" | ".join(map(str, line.values())), flush=True)
        found.append(line)
    return found


def record(table: Path, lines: list[dict]) -> None:
    """Write lines, and where they were measured, into a CSV file."""
    where = {"machine": provenance.provenance()["processor"], "commit": provenance.commit()}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows(line | where for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="these networks")
    parser.add_argument("--side", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--repeats", type=int, default=20, help="timed forward passes")
    parser.add_argument("--share", type=float, default=0.5, help="of the channels that are no longer read")
    parser.add_argument("--record", action="store_true", help=f"write the table into {TABLE.name}")
    chosen = parser.parse_args()
    if chosen.record and set(chosen.only) != set(NETWORKS):
        parser.error("--record writes the whole table: leave out --only")
    print("millions of parameters, MACs and bytes; " + provenance.summary())
    lines = printed(measured(name, chosen.side, chosen.repeats, chosen.share) for name in chosen.only)
    if chosen.record:
        record(TABLE, [line | {"side": chosen.side} for line in lines])


if __name__ == "__main__":
    main()
