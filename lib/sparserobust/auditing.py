"""Any network, judged in one call."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sparserobust import data as data_sets
from sparserobust import files, foreign, inputs, paths
from sparserobust.analysis import Audit
from sparserobust.config import Data
from sparserobust.errors import UserError, quoted
from sparserobust.provenance import library, machine, measuring_device, provenance

if TYPE_CHECKING:
    from sparserobust.reporting.audits import Report

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
    In the folder `keep` each attack is written down as soon as it is through: the same audit, started again after it
    was interrupted, goes on from there. The network is left as it is. `UserError` for what cannot be judged."""
    judge = Audit.parse({"epsilon": epsilon, "images": images, **settings})
    where = measuring_device()
    splits = data if isinstance(data, data_sets.Splits) else data_sets.load(data)
    given = foreign.built(net)
    with torch.inference_mode(False):
        mean, std = foreign.scales(mean, std)
        model = _copied(given) if weights is not None else given
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
            model = _copied(model).to(where)
    inputs.check_split(splits.test, "test")
    channels = splits.test.images.shape[1]
    if len(mean) not in (0, channels):
        raise UserError(f"the images have {channels} channels: give mean and std that many numbers each, not "
                        f"{len(mean)}")
    splits = replace(splits, test=splits.test.to(where))
    begun, content = time.monotonic(), foreign.fingerprint(model)  # before hours are spent: some cannot be told
    kept = _Kept(paths.writable(Path(keep)) / f"{_key(judge, model, content, splits.test)}.json" if keep else None)
    with _shown(len(judge.accuracies(random=False)) if progress else 0):
        result = judge(model, splits, part=kept)
    from sparserobust.reporting.audits import Report

    made = provenance(where)
    return Report(judge, result, name or _name(net, weights), {
        "architecture": type(given).__name__, "data": _data_name(data), "images": result["total"],
        "content": content, "processor": made["processor"], "torch": made["torch"],
        "seconds": round(time.monotonic() - begun + kept.seconds)})


class _Kept:
    """The parts of an audit that are through: each is taken once, and written into a file, if one is named."""

    def __init__(self, path: Path | None):
        self.path, self.parts = path, self._read(path)
        self.seconds = sum(part["seconds"] for part in self.parts.values())  # that were spent before

    @staticmethod
    def _read(path: Path | None) -> dict[str, dict]:
        if path is None or not path.exists():
            return {}
        try:
            return files.check_seal(files.read_json(path), path)["parts"]
        except files.Corrupt as error:
            log.warning("%s; the audit starts anew", error)
            return {}

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.parts:
            begun = time.monotonic()
            self.parts[name] = {"result": measure(), "seconds": time.monotonic() - begun}
            if self.path is not None:
                try:
                    files.write_json(self.path, files.sealed({"parts": self.parts}, self.path))
                except UserError as error:  # the audit itself goes on
                    log.warning("%s", error)
        return self.parts[name]["result"]


def _key(judge: Audit, model: nn.Module, content: str, split: data_sets.Split) -> str:
    """Sixteen hexadecimal digits that name all on which the parts of an audit depend: settings, the network and its
    modes, images, the machine, and the library's code."""
    training = [name for name, module in model.named_modules() if module.training]
    of = judge.plain(), content, training, split.images.shape, machine(split.images.device), library()
    told = hashlib.sha256(repr(of).encode())
    for tensor in (split.images, split.labels):
        told.update(tensor.cpu().contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


def _copied(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception as error:  # whatever the network of somebody else holds
        raise UserError(f"the network cannot be copied, as it would have to be: {quoted(str(error))}") from error


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

    level = log.level
    with tqdm(desc="audit", unit=" parts", leave=False) as bar:
        log.addHandler(handler := Bar())
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
