"""Any network, judged in one call."""

import logging
import time
from collections.abc import Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from sparserobust import data as data_sets
from sparserobust import foreign
from sparserobust.analysis import Audit
from sparserobust.config import Data
from sparserobust.provenance import device, provenance

if TYPE_CHECKING:
    from sparserobust.reporting.audits import Report

log = logging.getLogger("sparserobust")


def audit(net: foreign.Builder, data: str | Data | data_sets.Splits = "cifar10", epsilon: float | str = "8/255",
          images: int | None = 1000, *, weights: str | Path | None = None, mean: Sequence[float] = (),
          std: Sequence[float] = (), name: str | None = None, progress: bool = True, **settings) -> "Report":
    """Everything that `analysis.Audit` asks of a network, as a report: print it, show it in a notebook, `save` it as a
    page and a record.

        report = sr.audit(net, data="cifar10", epsilon=8/255, images=1000)
        report = sr.audit("my_net.py:build", weights="my.safetensors", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))

    `net`, `weights`, `mean` and `std` are those of `foreign.network`; `data` is a name, settings, or splits of your own
    (the test split is judged); `epsilon` and further `settings` are those of `Audit` (norm, few, queries, autoattack).
    The network itself is left as it is. `UserError` for what cannot be judged."""
    judge = Audit.parse({"epsilon": epsilon, "images": images, **settings})
    given = foreign.built(net)
    model = deepcopy(given) if weights is not None or mean else given
    if weights is not None:
        foreign.load(model, foreign.state(weights), mean, std)
        model.eval()
    model = foreign.normalised(model, mean, std)
    where = device()
    splits = (data if isinstance(data, data_sets.Splits) else data_sets.load(data)).to(where)
    if any(t.device.type != where.type for t in model.parameters()):
        model = deepcopy(model).to(where)
    begun = time.monotonic()
    with _shown(len(judge.accuracies(random=False)) if progress else 0):
        result = judge(model, splits)
    from sparserobust.reporting.audits import Report

    made = provenance()
    return Report(judge, result, name or _name(net, weights), {
        "architecture": type(given).__name__, "data": _data_name(data), "images": result["total"],
        "content": foreign.fingerprint(model), "processor": made["processor"], "torch": made["torch"],
        "seconds": round(time.monotonic() - begun)})


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
