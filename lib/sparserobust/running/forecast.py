"""What is left to do, how long it will take and what it will weigh: known before anything is computed.

Settings name costs in forward and backward passes (`Run.cost`, `Measurement.cost`). What a unit of cost takes is known
from the seconds of published runs (`Pace`), from a step that is timed (`Here`), or, for a GPU that is not at hand, from
what a network asks of it (`Elsewhere`).
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import median

import pandas
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sparserobust import data, paths, training
from sparserobust.config import Dense, Measurement, Model, Run
from sparserobust.errors import UserError
from sparserobust.evaluation import BATCH
from sparserobust.objectives import Natural
from sparserobust.provenance import device, processor, provenance, with_threads
from sparserobust.running import engine, records, sweep
from sparserobust.running.experiment import Experiment
from sparserobust.running.jobs import UNIT, measuring_cost, measuring_share, needed, training_cost
from sparserobust.running.progress import duration
from sparserobust.running.store import Store

TRAINING, MEASURING = "training", "measuring"
# When the published runs of 06_side_by_side were computed, ten processes shared a GPU: half an hour of work by each
# seed's runs took three minutes. So narrow networks leave nine tenths of it to others.
SHARING = 10
ARITHMETIC = 1e14  # operations a second by a wide network: a tenth of the H100's peak in bfloat16; not measured here


class Pace:
    """Seconds by one process, as published runs took them: of a unit of cost the median for this kind of model and size
    of images on a processor like this; if there is none, for this kind of model; then both on processors of any name;
    then for all models here; then for all that is known; then one second."""

    def training(self, run: Run) -> float:
        return training_cost(run) * self.unit(TRAINING, run)

    def measuring(self, run: Run, measurement: Measurement) -> float:
        return measuring_cost(run, measurement) * self.unit(MEASURING, run)

    def share(self, run: Run) -> float:
        """Of a processor: how much a process with this model keeps busy."""
        return 1.0

    def unit(self, what: str, run: Run) -> float:
        """Seconds that a unit of cost takes, in training or in measuring."""
        key = _key(what, run)
        order = ((True, *key), (True, *key[:2]), (False, *key), (False, *key[:2]), (True, what), (what,))
        return next((self._medians[each] for each in order if each in self._medians), 1.0)

    def like(self, made: dict) -> bool:
        """Whether what was computed there (its provenance) says how long it takes here."""
        return processor(made) == self._here

    @cached_property
    def _here(self) -> str:
        return processor(provenance())

    @cached_property
    def _medians(self) -> dict[tuple, float]:
        """By what it is that took the time; before it, whether on a processor like this or on any of this type."""
        found: dict[tuple, list[float]] = defaultdict(list)
        for what, made, run, seconds in _published():
            found[what,].append(seconds)
            if made["device"] == device().type:
                for near in {self.like(made), False}:
                    for end in (1, 2, 3):
                        found[near, *_key(what, run)[:end]].append(seconds)
        return {key: median(values) for key, values in found.items()}


class Core(Pace):
    """A processor core, whichever it was that published runs had."""

    def like(self, made):
        return made["device"] == "cpu"


class Here(Pace):
    """This machine. A kind of model of which nothing is published for this processor and size of images is given some
    training steps, and so is any on a GPU, as published runs shared theirs."""

    def __init__(self, gpus: int | None = None):
        self.timed: dict[tuple, float] = {}
        self.processor, self.processors = "GPU" if _on_gpu() else "core", gpus or engine.side_by_side()
        self.name = _named(self.processors, self.processor) + f" of this machine ({processor(provenance())})"

    def unit(self, what, run):
        if (True, *_key(what, run)) in self._medians and not _on_gpu():
            return super().unit(what, run)
        key = (*_key(what, run), run.model.cost)
        if key not in self.timed:
            self.timed[key] = _timed(run, run.recipe.batch_size if what == TRAINING else BATCH) / _share(what, run)
        return self.timed[key]

    @property
    def source(self) -> str:
        kinds = ", ".join(sorted({kind for _, kind, *_ in self.timed}))
        steps = f"; those of {kinds} from steps timed now" if kinds else ""
        return f"Seconds are known from published runs on this processor{steps}."


class Elsewhere(Pace):
    """GPUs that are not at hand, of the kind on which most published runs were computed. A narrow network waits for its
    operations to be handed over one by one, a wide one for arithmetic."""

    def __init__(self, gpus: int):
        known = Counter(made["processor"] for _, made, *_ in _published() if made["device"] == "cuda")
        if not known:
            raise UserError("no published run was computed on a GPU, so its speed is not known: plan where the GPU is")
        self.processors, self.gpu = gpus, known.most_common(1)[0][0]
        self.name = _named(gpus, self.processor) + f" that are not here ({self.gpu})"

    processor = "GPU"
    source = (f"Seconds of narrow networks are known from published runs, {SHARING} of which shared a GPU; those of "
              f"wide ones are an estimate, at {ARITHMETIC:.0e} operations a second: plan where the GPU is, and a step "
              "is timed.")

    def unit(self, what, run):
        return max(self._handing_over(what, run), self._arithmetic(run)) / run.model.cost / _share(what, run)

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
                found[what].append(seconds * run.model.cost * _share(what, run) / size(run).calls)
        return {what: median(values) for what, values in found.items()}


def _key(what: str, run: Run) -> tuple[str, str, tuple[int, int, int]]:
    return what, run.model.kind, data.image_shape(run.data)


def _share(what: str, run: Run) -> float:
    """What a pass costs, in units."""
    return measuring_share(run) if what == MEASURING else 1.0


def _named(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _on_gpu() -> bool:
    return device().type == "cuda"


def _published() -> Iterator[tuple[str, dict, Run, float]]:
    """Training or measuring, provenance, the run, and seconds per unit of cost: of all published records."""
    for path in sorted(paths.published_folder().glob("*/*.json")):
        if (entry := records.published(path)) is None:
            continue
        run = Run.parse(entry["record"]["run"])
        if run.named_outside:  # its files may not be here
            continue
        if cost := training_cost(run):
            yield TRAINING, entry["provenance"], run, entry["provenance"]["seconds"] / cost
        for result in entry["measured"].values():
            if cost := measuring_cost(run, Measurement.parse(result["measurement"])):
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


def _timed(run: Run, batch: int) -> float:
    """Seconds per unit of cost of a training step on so many clean images, as one process takes it: the least of three.
    For large networks the batch is smaller, unless on a GPU, so that all take about as long."""
    where, shape = device(), data.image_shape(run.data)
    if not _on_gpu():
        batch = min(batch, max(2, round(2000 / run.model.cost)))
    model = run.model.build(shape, data.classes(run.data))
    layout = training.fastest_layout(model, where)
    model = model.to(where, memory_format=layout).train()  # type: ignore[call-overload]  # not in its stubs
    state = training.TrainingState(replace(run, sparsifier=Dense()), model, ())
    images = torch.rand(batch, *shape, device=where)
    labels = torch.zeros(batch, dtype=torch.long, device=where)
    seconds = []
    with with_threads(1):
        for _ in range(4):
            begun = time.monotonic()
            float(state.step(Natural(), images, labels, None, 0.01))  # a GPU is waited for
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


def told(experiments: Mapping[str, Experiment], store: Store, gpus: int | None = None) -> Iterator[str]:
    """What is left of these experiments, in lines: on this machine, or on so many GPUs."""
    if gpus is not None and gpus < 1:
        raise UserError("gpus start at 1")
    pace: Here | Elsewhere = Elsewhere(gpus) if gpus and not _on_gpu() else Here(gpus)
    whole = plan([row for experiment in experiments.values() for row in experiment.grid], store, pace)
    yield (f"{whole.runs} runs: {whole.trained} are trained here, {whole.to_train} have to be; "
           f"{whole.to_measure} measurements have to be taken")
    yield (f"on {pace.name}: {_hours(whole.seconds)} hours of a {pace.processor} in all, "
           f"{duration(whole.wall_time(pace.processors))} until it is done, as the longest chain of runs takes "
           f"{duration(whole.longest)}")
    yield f"on disk: {whole.bytes / 1e9:.1f} GB of weights to come"
    yield pace.source
    lines = []
    for study, experiment in experiments.items():
        left = {"all": experiment.grid} | experiment.tables
        for name, rows in left.items():
            part = plan(rows, store, pace)
            lines.append({"study": study, "table": name, "to train": part.to_train, "to measure": part.to_measure,
                          "hours": _hours(part.seconds)})
    yield pandas.DataFrame(lines).to_string(index=False)
    yield "A table's hours hold all that it needs; what several need counts once where it says all, and in the whole."


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f}"


def untrained(jobs: Iterable[dict], store: Store) -> list[Run]:
    """All runs that have to be trained for these jobs, each once, the earliest of a chain first; of twins one."""
    runs = {run.identity: run for job in jobs for run in needed(job) if not store.trained(run)}
    return [run for run in runs.values() if not (store.has_twin(run) or (run.twin and run.twin.identity in runs))]


def spent(jobs: Iterable[dict], runs: Iterable[Run], store: Store) -> float:
    """Seconds by all processes that it took to train these runs and to take the measurements of these jobs, as far as
    that is done."""
    done = [store.seconds(run) for run in runs if store.trained(run)]
    return sum(done) + sum(store.seconds(job["run"], m) for job in jobs for m in job["measurements"]
                           if store.find(job["run"], m))
