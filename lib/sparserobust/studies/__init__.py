"""One folder for each study: what is special to one paper, or to the pages that begin and end with all of them.

    runs.py         its settings and its grid: `experiment(scale, seeds)`
    report.py       its tables and figures
    comparisons.py  what it compares: `judged(results)`
    plots.py        figures that no other study has, if any
    exercises.py    what checks the answers of its page
"""

import importlib
import pkgutil
from types import ModuleType

import pandas

from sparserobust.reporting import claims, reported
from sparserobust.running import scales
from sparserobust.running.experiment import Experiment, Results


def modules() -> dict[str, ModuleType]:
    """The studies by name, in alphabetical order."""
    return {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__) if m.ispkg}


def experiments(scale: str) -> dict[str, Experiment]:
    """What every study runs at a scale, by its name, without those that do not run at it."""
    return {name: module.experiment(scale) for name, module in modules().items() if scales.has(scale, name)}


def ledger(results: Results, rows: pandas.DataFrame | None = None) -> pandas.DataFrame:
    """The ledger of a study: one line per claim, judged by its primary comparison. `rows` are all its comparisons, if
    they are known already."""
    study = importlib.import_module(f"{__name__}.{results.experiment.study}")
    looks = claims.looks(results.experiment.settings)
    rows = study.judged(results) if rows is None else rows
    if hasattr(study, "ledger"):  # it asks questions of its own, not those of one paper
        return study.ledger(rows, looks)
    words = study.words(results.experiment) if hasattr(study, "words") else {}
    return claims.ledger(rows, reported.load(results.experiment.study), looks, **words)
