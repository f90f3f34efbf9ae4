"""What many tests share: seeds, small networks, data whose test images are given, interrupted trainings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparserobust import files, training
from sparserobust.config import Measurement, Run
from sparserobust.data import Split, Splits
from sparserobust.models import PreActResNet
from sparserobust.models.gates import GatedConv2d
from sparserobust.running import records, scales
from sparserobust.running.experiment import Experiment, Results
from sparserobust.seeding import stream

# --- seeds


@contextmanager
def seeded(seed: int = 0):
    """Torch's global generators begin at `seed` inside the block; outside nothing has changed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- networks


CONVOLUTIONS = ("first.weight", "second.weight", "third.weight")
PRUNABLE = (*CONVOLUTIONS, "linear.weight")


class Toy(nn.Module):
    """Layers to prune: three convolutions (one in groups, one 1x1), a linear layer; and a norm."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with seeded(seed):
            self.first, self.second = nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 4, 3)
            self.third, self.norm, self.linear = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.Linear(5, 7)


def built(model, image_shape=(1, 8, 8), classes: int = 10, seed: int = 0):
    """With the initial weights of a seed, at which torch's global generators begin and from where they go on."""
    torch.manual_seed(seed)
    return model.build(image_shape, classes)


def lively(net, both_signs: bool = False):
    """The network, with norms and gates unlike those of a fresh one: scales, shifts and means are uniform between 0.5
    and 1.5, or Gaussian if they should have both signs; gates are open, half open or shut."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            for t in (m.weight, m.bias, m.running_mean):
                if t is not None:
                    nn.init.normal_(t) if both_signs else nn.init.uniform_(t, 0.5, 1.5)
            assert m.running_var is not None
            nn.init.uniform_(m.running_var, 0.5, 2.0)
        elif isinstance(m, GatedConv2d):
            nn.init.uniform_(m.log_alpha, -3.0, 3.0)
    return net


def with_noise(net, level: float, members: int = 1):
    """The trained weights of the fixture `net`, once for each member, with noise on the activations."""
    weights = {key.replace("members.0", f"members.{i}"): t
               for key, t in net.state_dict().items() for i in range(members)}
    model = PreActResNet(depth=8, width=8, members=members, noise=level).build((1, 8, 8), 10)
    model.load_state_dict(weights)
    return model.eval()


class Around(nn.Module):
    """A network whose images or logits are changed; it counts its passes."""

    def __init__(self, net, before=lambda x: x, after=lambda logits: logits):
        super().__init__()
        self.net, self.before, self.after, self.passes = net, before, after, 0

    def forward(self, x):
        self.passes += 1
        return self.after(self.net(self.before(x)))


class Backward(torch.autograd.Function):
    """The identity, with another gradient: `Backward.apply(x, change)`."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def correct(model, images, labels) -> int:
    with torch.no_grad():
        return int((model(images).argmax(1) == labels).sum())


def weights_of(model) -> dict:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict, b: dict) -> bool:
    """The same tensors under the same names, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- data


def batch_sizes(model: nn.Module) -> list[int]:
    """A list to which the size of every batch that a network is given is added; with hooks of others than the library
    a network would be taken for one that may draw its chance in any way."""
    sizes: list[int] = []

    def count(module, given):
        sizes.append(len(given[0]))

    count.__module__ = "sparserobust.inputs"
    model.register_forward_pre_hook(count)
    return sizes


def splits_of(images, labels=None, classes: int = 10) -> Splits:
    """Data whose test images these are; the others are black. Without labels, all are of the first class."""
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    black = Split(torch.zeros_like(images), labels)
    return Splits(black, black, Split(images, labels), tuple("abcdefghij"[:classes]))


# --- training


def batches(run, splits: Splits, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels, batch by batch, in the order of this epoch."""
    order = torch.randperm(len(splits.train), generator=stream(run.seed, "order", epoch))
    for index in order.split(run.recipe.batch_size):
        yield splits.train.images[index], splits.train.labels[index]


class Interrupt(Exception):
    pass


def interrupted(run, splits, checkpoint, stops, start=None, others=()) -> training.TrainingResult:
    """Trained with an exception at each of these numbers of epochs done, and taken up again; torch's global generators
    have moved on meanwhile."""
    for stop in stops:
        def report(done, stop=stop):
            if done >= stop:
                raise Interrupt

        with pytest.raises(Interrupt):
            training.train(run, splits, start, checkpoint, report, others)
    with seeded(99):
        return training.train(run, splits, start, checkpoint, others=others)


def assert_same_training(one: training.TrainingResult, other: training.TrainingResult) -> None:
    """Bit for bit."""
    assert one.history == other.history
    a, b = one.model.state_dict(), other.model.state_dict()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# --- studies


def at_every_scale(study):
    """A fixture: the experiment of a study at each scale that has settings for it."""
    @pytest.fixture(scope="module", params=[name for name in scales.names() if scales.has(name, study.PAPER)])
    def experiment(request):
        return study.experiment(request.param)

    return experiment


def experiment_of(grid: list[dict], scale: str = "s", seeds: Sequence[int] = (0,), redraw: bool = False,
                  study: str = "toy", **settings) -> Experiment:
    """An experiment with these grid rows; a row without `measurements` gets none."""
    rows = [row | {"measurements": row.get("measurements", {})} for row in grid]
    own: Any = SimpleNamespace(seeds=tuple(seeds), redraw=redraw, **settings)
    return Experiment(study, scale, list(seeds), rows, {"": own})


def results_of(experiment: Any, store: Any, frame: Any) -> Results:
    """Results with as much of an experiment and a store as a test needs; None where it needs nothing of them."""
    return Results(experiment, store, frame)


# --- published records


def published_entry(run: Run, measured: dict[str, tuple[Measurement, dict]] | None = None, weights: str = "0",
                    made: dict | None = None, **record) -> dict:
    """What another machine may have published of a run: `measured` has measurements and results by identity, `made`
    is its provenance, `record` more of its record."""
    made = {"seconds": 1, "processor": "P"} | (made or {})
    whole = {"format": records.FORMAT, "identity": run.identity, "run": run.plain(), "weights_sha256": weights} | record
    taken = {identity: {"identity": identity, "measurement": measurement.plain(), "weights": {run.identity: weights},
                        "result": result, "provenance": made}
             for identity, (measurement, result) in (measured or {}).items()}
    return {"record": files.sealed(whole, "record"),
            "provenance": files.sealed({"identity": run.identity} | made, "provenance"),
            "measured": {identity: files.sealed(entry, identity) for identity, entry in taken.items()}}
