"""What is left to do, how long it will take and what it will weigh: known before anything is computed.

Settings name costs in forward and backward passes (`Run.cost`, `Measurement.cost`). What a unit of cost takes is known
from the seconds of published runs (`Pace`), from a step that is timed (`Here`), or, for a GPU that is not at hand, from
what a network asks of it (`Elsewhere`).
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median

import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sparserobust import data, paths
from sparserobust.config import Measurement, Model, Run
from sparserobust.errors import UserError
from sparserobust.files import read_json
from sparserobust.provenance import device, has_bfloat16, with_threads, provenance, side_by_side
from sparserobust.running import sweep
from sparserobust.running.jobs import needed
from sparserobust.running.store import Store

TRAINING, MEASURING = "training", "measuring"
UNIT = 1e4  # images: of one forward and backward pass by a model of cost 1
# When the published runs of 06_side_by_side were computed, ten processes shared a GPU: half an hour of work by each
# seed's runs took three minutes. So narrow networks leave nine tenths of it to others.
SHARING = 10
ARITHMETIC = 1e14  # operations a second by a wide network: a tenth of the H100's peak in bfloat16; not measured here


class Pace:
    """Seconds by one process, as published runs took them on this processor: of a unit of cost the median for this
    kind of model; if there is none, for all models here; then for all that is known; then one second."""

    def training(self, run: Run) -> float:
        return run.cost * data.training_images(run.data) / UNIT * self.unit(TRAINING, run)

    def measuring(self, run: Run, measurement: Measurement) -> float:
        return run.model.cost * measurement.cost * self.unit(MEASURING, run)

    def share(self, run: Run) -> float:
        """Of a processor: how much a process with this model keeps busy."""
        return 1.0

    def unit(self, what: str, run: Run) -> float:
        """Seconds that a unit of cost takes, in training or in measuring."""
        return next((self._medians[key] for key in ((what, run.model.kind), (what,), (what, None))
                     if key in self._medians), 1.0)

    @cached_property
    def _medians(self) -> dict[tuple, float]:
        found, here = defaultdict(list), provenance()["processor"]
        for what, made, run, seconds in _published():
            for key in [(what, None), *([(what,), (what, run.model.kind)] if made["processor"] == here else [])]:
                found[key].append(seconds)
        return {key: median(values) for key, values in found.items()}


class Here(Pace):
    """This machine. A kind of model of which nothing is published for this processor is given a training step on random
    images, and so is any on a GPU, as published runs shared theirs."""

    def __init__(self):
        self.timed: dict[tuple, float] = {}
        self.processors = side_by_side()
        self.name = f"{provenance()['processor']}, {self.processors} {'GPU' if _on_gpu() else 'core'}" \
                    f"{'s' if self.processors > 1 else ''}"

    def unit(self, what, run):
        if (what, run.model.kind) in self._medians and not _on_gpu():
            return super().unit(what, run)
        key = (run.model.kind, run.model.cost) if _on_gpu() else (run.model.kind,)
        if key not in self.timed:
            self.timed[key] = _timed(run)
        return self.timed[key]

    @property
    def source(self) -> str:
        steps = f", and from a step of {', '.join(sorted({kind for kind, *_ in self.timed}))}, timed now"
        return "Seconds are known from published runs on this processor" + (steps if self.timed else "") + "."


class Elsewhere(Pace):
    """GPUs that are not at hand, of the kind on which most published runs were computed. A narrow network waits for its
    operations to be handed over one by one, a wide one for arithmetic."""

    def __init__(self, gpus: int):
        known = Counter(made["processor"] for _, made, *_ in _published() if made["device"] == "cuda")
        if not known:
            raise UserError("no published run was computed on a GPU, so its speed is not known: plan where the GPU is")
        self.processors, self.gpu = gpus, known.most_common(1)[0][0]
        self.name = f"{gpus} {self.gpu}{'s' if gpus > 1 else ''}, not of this machine"

    source = (f"Seconds of narrow networks are known from published runs, {SHARING} of which shared a GPU; those of "
              f"wide ones are an estimate, at {ARITHMETIC:.0e} operations a second: plan where the GPU is, and a step "
              "is timed.")

    def unit(self, what, run):
        return max(self._handing_over(what, run), self._arithmetic(run)) / run.model.cost

    def share(self, run):
        return min(1.0, max(1 / SHARING, self._arithmetic(run) / self._handing_over(TRAINING, run)))

    def _handing_over(self, what: str, run: Run) -> float:
        return size(run).calls * self._per_call[what]

    def _arithmetic(self, run: Run) -> float:
        return UNIT * size(run).operations / ARITHMETIC

    @cached_property
    def _per_call(self) -> dict[str, float]:
        """Seconds a pass of `UNIT` images takes for each call of an operation, in batches of the published size."""
        found = defaultdict(list)
        for what, made, run, seconds in _published():
            if made["processor"] == self.gpu:
                found[what].append(seconds * run.model.cost / size(run).calls)
        return {what: median(values) for what, values in found.items()}


def _on_gpu() -> bool:
    return device().type == "cuda"


def _published() -> Iterator[tuple[str, dict, Run, float]]:
    """Training or measuring, provenance, the run, and seconds per unit of cost: of all published records."""
    for path in sorted(paths.published_folder().glob("*/*.json")):
        entry = read_json(path)
        run = Run.parse(entry["record"]["run"])
        if cost := run.cost * data.training_images(run.data) / UNIT:
            yield TRAINING, entry["provenance"], run, entry["provenance"]["seconds"] / cost
        for result in entry["measured"].values():
            if cost := run.model.cost * Measurement.parse(result["measurement"]).cost:
                yield MEASURING, result["provenance"], run, result["provenance"]["seconds"] / cost


@dataclass(frozen=True)
class Size:
    """What a pass forward and backward asks for: calls of operations, and floating-point operations an image; and the
    bytes of the weights."""

    calls: int
    operations: float
    bytes: int


def size(run: Run) -> Size:
    """Of the network of a run; nothing is computed."""
    return _size(run.model, data.image_shape(run.data), data.classes(run.data))


@cache
def _size(model: Model, image_shape: tuple[int, int, int], classes: int) -> Size:
    with torch.device("meta"):
        net, images = model.build(image_shape, classes).train(), torch.empty(2, *image_shape)
        with _Calls() as calls, FlopCounterMode(display=False) as operations:
            cross_entropy(net(images), torch.zeros(2, dtype=torch.long)).backward()
    return Size(calls.count, operations.get_total_flops() / 2,
                sum(t.numel() * t.element_size() for t in net.state_dict().values()))


class _Calls(TorchDispatchMode):
    """Counts what is handed to the device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        self.count += 1
        return function(*arguments, **(more or {}))


def _timed(run: Run) -> float:
    """Seconds per unit of cost of a pass forward and backward, as one process takes them: the least of three."""
    where, shape = device(), data.image_shape(run.data)
    batch = 128 if _on_gpu() else min(128, max(2, round(2000 / run.model.cost)))  # about as long for all
    model = run.model.build(shape, data.classes(run.data)).to(where, memory_format=torch.channels_last)
    images = torch.rand(batch, *shape, device=where)
    labels = torch.zeros(batch, dtype=torch.long, device=where)
    rough = run.recipe.precision == "bfloat16" and has_bfloat16(where.type)
    seconds = []
    with with_threads(1):
        for _ in range(4):
            begun = time.monotonic()
            with torch.autocast(where.type, torch.bfloat16, enabled=rough):
                loss = cross_entropy(model(images), labels)
            loss.backward()
            if _on_gpu():
                torch.cuda.synchronize()
            seconds.append(time.monotonic() - begun)
    return min(seconds[1:]) / batch * UNIT / run.model.cost


# ---------------------------------------------------------------------------------------------------- what is left


@dataclass(frozen=True)
class Plan:
    """What is left of a grid: numbers of runs and measurements, seconds of a whole processor, those of the longest
    chain of runs that wait for each other, and bytes of the weights to come."""

    runs: int
    trained: int
    to_train: int
    to_measure: int
    seconds: float
    longest: float
    bytes: int

    def wall_time(self, processors: int) -> float:
        """Seconds until all is done by so many processors."""
        return max(self.seconds / processors, self.longest)


def plan(grid: sweep.Grid, store: Store, pace: Pace) -> Plan:
    """What is left of a grid."""
    jobs = sweep.missing(grid, {}, store)
    wanted = {run.identity: run for row in grid for run in needed(
        {"run": row["run"], "measurements": list(row["measurements"].values())})}
    training = {run.identity: run for run in untrained(jobs, store)}
    ends: dict[str, float] = {}  # when each is trained, if it waits for nothing but what it needs
    seconds = 0.0
    for identity, run in training.items():
        took = pace.training(run)
        seconds += took * pace.share(run)
        ends[identity] = took + max((ends.get(other.identity, 0.0) for other in run.needs), default=0.0)
    longest = max(ends.values(), default=0.0)
    for job in jobs:
        took = sum(pace.measuring(job["run"], m) for m in job["measurements"])
        seconds += took * pace.share(job["run"])
        longest = max(longest, took + max(ends.get(run.identity, 0.0) for run in needed(job)))
    return Plan(runs=len(wanted), trained=sum(store.trained(run) for run in wanted.values()), to_train=len(training),
                to_measure=sum(len(job["measurements"]) for job in jobs), seconds=seconds, longest=longest,
                bytes=sum(size(run).bytes for run in training.values()))


def untrained(jobs: Iterable[dict], store: Store) -> list[Run]:
    """All runs that have to be trained for these jobs, each once, the earliest of a chain first."""
    runs = {run.identity: run for job in jobs for run in needed(job)}
    return [run for run in runs.values() if not store.trained(run)]


def spent(jobs: Iterable[dict], runs: Iterable[Run], store: Store) -> float:
    """Seconds by all processes that it took to train these runs and to take the measurements of these jobs, as far as
    that is done."""
    done = [store.seconds(run) for run in runs if store.trained(run)]
    return sum(done) + sum(store.seconds(job["run"], m) for job in jobs for m in job["measurements"]
                           if store.find(job["run"], m))
