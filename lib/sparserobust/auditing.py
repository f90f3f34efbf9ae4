"""Any network, judged in one call."""

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparserobust import data as data_sets
from sparserobust import files, foreign, inputs, paths, seeding
from sparserobust.analysis import Audit
from sparserobust.config import Data
from sparserobust.errors import UserError
from sparserobust.provenance import library, machine, measuring_device, packages, provenance

if TYPE_CHECKING:
    from sparserobust.reporting.audits import Report

ASKED = 100  # images, for whether a network answers as before
CODE = library()  # as it was imported
log = logging.getLogger("sparserobust")


def audit(net: foreign.Builder, data: str | Data | data_sets.Splits = "cifar10", epsilon: float | str = "8/255",
          images: int | None = 1000, *, weights: str | Path | None = None, mean: Sequence[float] = (),
          std: Sequence[float] = (), name: str | None = None, progress: bool = True,
          keep: str | Path | None = None, **settings) -> "Report":
    """Everything that `analysis.Audit` asks of a network, as a report: print it, show it in a notebook, `save` it as a
    page and a record.

        report = sr.audit(net, data="cifar10", epsilon=8/255, images=1000)
        report = sr.audit("my_net.py:build", weights="my.safetensors", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))

    `net`, `weights`, `mean` and `std` are those of `foreign.network`; `data` is a name, settings, or splits of your own
    (the test split is judged); `epsilon` and further `settings` are those of `Audit` (norm, few, queries, autoattack).
    In a folder, `keep`, each attack is written down once it is through: the same audit, started again after it was
    interrupted, goes on from there; when all is through, these files go. The network is left as it is. `UserError` for
    what cannot be judged."""
    report, kept = audited(net, data, epsilon, images, weights=weights, mean=mean, std=std, name=name,
                           progress=progress, keep=keep, **settings)
    kept.forget()
    return report


def audited(net: foreign.Builder, data: str | Data | data_sets.Splits, epsilon: float | str, images: int | None, *,
            weights: str | Path | None, mean: Sequence[float], std: Sequence[float], name: str | None,
            progress: bool = True, keep: str | Path | None, **settings) -> "tuple[Report, _Kept]":
    """The same, and what is kept of it, to `forget` once the report is where it should be."""
    from sparserobust.reporting.audits import Report  # if what it needs is not here, that is better known now

    judge = Audit.parse({"epsilon": epsilon, "images": images, **settings})
    where = measuring_device()
    splits = data if isinstance(data, data_sets.Splits) else data_sets.load(data)
    given = foreign.built(net)
    with torch.inference_mode(False):
        mean, std = foreign.scales(mean, std)
        model = inputs.copied(given) if weights is not None else given
        if weights is not None:
            foreign.load(model, foreign.state(weights), mean, std)
        if weights is not None or not isinstance(net, nn.Module):
            model.eval()
        model = foreign.normalised(model, mean, std)
        tensors = [*model.parameters(), *model.buffers()]
        if any(is_lazy(t) or t.is_meta for t in tensors):
            raise UserError("the network has no weights yet, being lazy or on the device 'meta': build it on the CPU, "
                            "pass an image through it, and give it weights")
        if any(t.device.type != where.type or t.is_inference() for t in tensors):  # which keep no gradients
            model = inputs.copied(model).to(where)
    inputs.check_split(splits.test, "test")
    channels = splits.test.images.shape[1]
    if len(mean) not in (0, channels):
        raise UserError(f"the images have {channels} channels: give mean and std that many numbers each, not "
                        f"{len(mean)}")
    splits = replace(splits, test=splits.test.to(where))
    begun, content = time.monotonic(), foreign.fingerprint(model)  # before hours are spent: some cannot be told
    if not isinstance(keep, str | Path | None):
        raise UserError(f"results are kept in a folder that is named, not in one of type {type(keep).__name__}")
    kept = _Kept(None if keep is None or (key := _key(model, content, splits.test)) is None
                 else paths.writable(Path(keep)) / f"interrupted-{key}")
    with _shown(len(judge.accuracies(random=False)) if progress else 0):
        try:
            result = judge(model, splits, keep=kept)
        except KeyboardInterrupt as end:
            end.add_note(kept.told())
            raise
    made = provenance(where)
    return Report(judge, result, name or _name(net, weights), {
        "architecture": type(given).__name__, "data": _data_name(data), "images": result["total"],
        "content": content, "processor": made["processor"], "torch": made["torch"],
        "seconds": round(time.monotonic() - begun + kept.seconds)}), kept


class _Kept:
    """What is through of an audit, each in a file of `folder` until the whole is; nothing for no folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.seconds = 0.0  # that were spent before
        self.paths: list[Path] = []  # of what lies there
        self.refused = False  # by the disk

    def __call__(self, identity: str, measure: Callable[[], dict]) -> dict:
        if self.folder is None:
            return measure()
        path = self.folder / f"{identity}.json"
        if (entry := self._read(path)) is None:
            begun = time.monotonic()
            entry = files.sealed({"result": measure(), "seconds": time.monotonic() - begun}, path)
            self._write(path, entry)
        else:
            if not self.paths:
                log.warning("takes up what was interrupted, in %s", self.folder)
            self.seconds += entry["seconds"]
            self.paths.append(path)
        return entry["result"]

    @staticmethod
    def _read(path: Path) -> dict | None:
        if not path.exists():
            return None
        try:
            return files.check_seal(files.read_json(path), path)
        except files.Corrupt as error:
            log.warning("%s: it is measured anew", error)
            return None

    def _write(self, path: Path, entry: dict) -> None:
        if self.refused:
            return
        try:
            files.write_json(path, entry)
            self.paths.append(path)
        except UserError as error:  # the audit itself goes on
            self.refused = True
            reason = getattr(error.__context__, "strerror", error)
            log.warning("%s cannot be written (%s): what is measured from now on is lost if the audit is interrupted",
                        path, reason)

    def told(self) -> str:
        """For whoever interrupted the audit."""
        if not self.paths:
            return "interrupted: nothing was kept"
        return (f"interrupted: {len(self.paths)} results are kept in {self.folder}, from where the same audit of the "
                "same network goes on")

    def forget(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)
        if self.paths:
            with suppress(OSError):  # of another audit something is left
                self.paths[0].parent.rmdir()


def _key(model: nn.Module, content: str, split: data_sets.Split) -> str | None:
    """Sixteen hexadecimal digits that name all on which accuracies depend but for their own settings: the network, what
    it answers now, images, the machine, what is installed, and the library's code. None for a network with chance of
    its own, which goes on from another state."""
    answers = [_answers(model, split) for _ in range(2)]
    if answers[0] != answers[1]:
        return None
    images = [hashlib.sha256(files.tensor_bytes(tensor)).digest() for tensor in (split.images, split.labels)]
    return files.short_hash([content, answers, images, machine(split.images.device), packages(), CODE])


def _answers(model: nn.Module, split: data_sets.Split) -> str:
    with seeding.global_seed(0, "answers of an audit"):
        logits = inputs.asked(model, split.sample(ASKED).images)
    answers = files.tensor_bytes(logits) if isinstance(logits, Tensor) else b""  # what else there is will be refused
    return hashlib.sha256(answers).hexdigest()


def _name(net: foreign.Builder, weights: str | Path | None) -> str:
    if weights is not None:
        return Path(str(weights)).stem
    return net if isinstance(net, str) else getattr(net, "__name__", type(net).__name__)


def _data_name(data: str | Data | data_sets.Splits) -> str:
    return "own images" if isinstance(data, data_sets.Splits) else data if isinstance(data, str) else data.name


@contextmanager
def _shown(parts: int):
    """A bar that follows what the audit says it does; none for no parts."""
    if not parts:
        yield
        return
    from tqdm.auto import tqdm

    class Bar(logging.Handler):
        def emit(self, record):
            if record.msg == "audit: %s":
                bar.set_description_str(str(record.args[0]))
                bar.update()
            elif record.levelno >= logging.WARNING and not logging.root.handlers:  # else they are told by those
                bar.write(record.getMessage(), file=sys.stderr)

    level = log.level
    with tqdm(desc="audit", unit=" parts", leave=False) as bar:
        log.addHandler(handler := Bar())
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
