"""One worker process of a sweep: reads jobs from standard input and tells how they go, a JSON line each.

A job is {"run": ..., "measurements": [...], "store": folder, "use_published": ..., "use_earlier": ..., "modules":
[...], "path": [...]}: the modules, found on that path, define settings that are not this library's. The answers are
{"doing", "epochs"} while it works, then {"done": true} or {"failed": reason}.
"""

import importlib
import json
import os
import sys
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError
from sparserobust.running.store import Store


def main(threads: int) -> None:
    """Do jobs until standard input ends, with so many threads."""
    torch.set_num_threads(threads)
    _as_nice_as_its_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers

    def tell(**answer):
        answers.write(json.dumps(answer) + "\n")

    def report(doing: str, epochs: float) -> None:
        tell(doing=doing, epochs=epochs)

    store_at = cache(Store)  # what it has read and verified serves all jobs
    tell(ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            sys.path += [folder for folder in job["path"] if folder not in sys.path]
            for name in job["modules"]:
                importlib.import_module(name)
            run, store = Run.parse(job["run"]), store_at(job["store"], job["use_published"], job["use_earlier"])
            store.train(run, report)
            for measurement in job["measurements"]:
                store.measure(run, Measurement.parse(measurement), report)
            tell(done=True)
        except UserError as error:
            tell(failed=str(error))
        except Exception as error:
            traceback.print_exc()
            tell(failed=f"{type(error).__name__}: {error}")


def _as_nice_as_its_parent() -> None:
    """Where Linux shares the processor among sessions first (autogroups), niceness counts within a session only, and a
    worker is a session of its own: give the session the niceness that its process has inherited."""
    group = Path("/proc/self/autogroup")
    if hasattr(os, "nice") and os.nice(0) > 0 and group.exists():
        with suppress(OSError):  # not allowed here: then it is a little less nice
            group.write_text(str(os.nice(0)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
