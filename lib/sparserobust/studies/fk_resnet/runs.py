"""The runs of Sparsity Meets Robustness (Dinh et al. 2020): Feynman-Kac ResNet ensembles, pruned by
RVSM (relaxed variable splitting), RGSM (relaxed group-wise splitting) and ADMM (alternating
direction method of multipliers), the last as released and corrected.
"""

from collections.abc import Iterator
from typing import Any

import pandas

from sparserobust import sparsifiers
from sparserobust.config import Recipe, Run, Sparsifier
from sparserobust.objectives import Natural
from sparserobust.reporting import reported
from sparserobust.running.experiment import Experiment, planned
from sparserobust.running.scales import StudySettings, selected
from sparserobust.settings import settings, unknown

PAPER = "fk_resnet"
LEVELS = {"RVSM": "beta", "RGSM": "lambda1"}  # what the paper varies, and the column of its tables
TABLES = {"T1": "RVSM", "T2": "RGSM", "T3": "RGSM"}
TABLE4_LEVELS = {"RVSM": 0.01, "RGSM": 0.1}  # the rows of tables 1 and 2 that table 4 repeats
FINE_TUNED = ", fine-tuned"
# Table 4: granularity and our method, and the method of the paper's row beside which it stands
TABLE4 = {("unstructured", "RVSM"): "RVSM", ("unstructured", "released ADMM weights"): "ADMM",
          ("unstructured", "ADMM weights"): None, ("unstructured", f"RVSM{FINE_TUNED}"): None,
          ("unstructured", f"ADMM weights{FINE_TUNED}"): None,
          ("channel", "RGSM"): "RGSM", ("channel", "released ADMM channels"): "ADMM",
          ("channel", "ADMM channels"): None, ("channel", f"RGSM{FINE_TUNED}"): None,
          ("channel", f"ADMM channels{FINE_TUNED}"): None}
SINGLE = "ResNet20"  # the network of figure 1 and table 4
CURVE_NETS = ("En2ResNet20", "ResNet38")  # those of figures 3 and 4

Case = tuple[str, float | None]  # method and level: the paper's penalty


@settings
class FKSettings(StudySettings):
    """`RVSM` and `RGSM` map the paper's beta or lambda1 to what stands for it, `ADMM` the methods
    of table 4 to theirs; a row without an entry here is not run. `curve` has lambda1 of figures 3
    and 4. These figures and figure 1 may have seeds of their own. `one_seed` picks rows of tables
    that have the first seed alone."""

    RVSM: dict[float, sparsifiers.RVSM]
    RGSM: dict[float, sparsifiers.RGSM]
    ADMM: dict[str, Sparsifier]
    fine_tuning: Recipe
    curve: tuple[float, ...]
    figure1_seeds: tuple[int, ...] = ()
    curve_seeds: tuple[int, ...] = ()
    one_seed: tuple[dict[str, Any], ...] = ()

    def check(self):
        for name, given, known in (
                ("RVSM", self.RVSM, _printed_levels("RVSM")), ("curve", self.curve, self.RGSM),
                ("RGSM", self.RGSM, [*_printed_levels("RGSM"), *self.curve]),
                ("ADMM", self.ADMM, [m for _, m in TABLE4 if "ADMM" in m and FINE_TUNED not in m])):
            for key in given:
                if key not in known:  # a row of the paper would be left out without a word
                    unknown("entry", key, name, {str(k): None for k in known})

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(sorted({*self.seeds, *self.figure1_seeds, *self.curve_seeds}))

    def sparsifier(self, method: str, level: float | None) -> Sparsifier | None:
        """What stands for a method of the paper at a level; None where there is nothing."""
        if method in ("natural", "dense"):
            return sparsifiers.Dense()
        if method in LEVELS:
            known: dict = self.RVSM if method == "RVSM" else self.RGSM
            return known.get(level)
        return self.ADMM.get(method)


def experiment(scale: str, seeds: list[int] | None = None) -> Experiment[FKSettings]:
    """Everything the notebook runs at a scale, or all of it with these seeds
    (`running.experiment.planned`). Labels: `net` (the paper's), `ours` (what stands for it),
    `training`, `method`, `level` (the paper's penalty), `seed`."""
    def rows(own: FKSettings, net: str, seed: int, first: bool) -> Iterator[dict]:
        for (method, level), its_seeds in cases(own, net).items():
            if seeds or seed in its_seeds:
                training = "natural" if method == "natural" else "adversarial"
                yield {"ours": own.stand_in, "training": training, "method": method, "level": level,
                       "run": _run(own, seed, method, level)}

    return planned(PAPER, scale, seeds, FKSettings, rows)


def cases(own: FKSettings, net: str) -> dict[Case, set[int]]:
    """What is run of a network, and with which seeds, unless others are asked for: what the paper's
    tables and figures have of it, as far as the scale has something for it."""
    found: dict[Case, set[int]] = {}
    for method, level, seeds in _wanted(own, net):
        if own.sparsifier(method.removesuffix(FINE_TUNED), level):
            found.setdefault((method, level), set()).update(seeds)
    return found


def _wanted(own: FKSettings, net: str) -> Iterator[tuple[str, float | None, tuple[int, ...]]]:
    """(method, level, seeds), some more than once."""
    if net == SINGLE:
        for method in ("natural", "dense"):
            yield method, None, own.figure1_seeds or own.seeds
    for table, method in TABLES.items():
        printed = reported.load(PAPER).reported_table(table)
        for level in printed[printed["net"] == net][LEVELS[method]]:
            case = ("dense", None) if pandas.isna(level) else (method, level)
            labels = {"net": net, "method": case[0], "level": case[1]}
            yield *case, own.seeds[:1] if selected(labels, own.one_seed) else own.seeds
    if net in CURVE_NETS:
        for level in own.curve:
            yield "RGSM", level, own.curve_seeds or own.seeds
    if net == SINGLE:
        for _, method in TABLE4:
            yield method, TABLE4_LEVELS.get(method.removesuffix(FINE_TUNED)), own.seeds


def _printed_levels(method: str) -> list[float]:
    """The levels of a method in the paper's tables."""
    return [level for table, its in TABLES.items() if its == method
            for level in reported.load(PAPER).reported_table(table)[LEVELS[method]].dropna()]


def _run(own: FKSettings, seed: int, method: str, level: float | None) -> Run:
    objective = Natural() if method == "natural" else own.objective
    sparsifier = own.sparsifier(method.removesuffix(FINE_TUNED), level)
    pruned = own.run(seed, objective=objective, sparsifier=sparsifier)
    if not method.endswith(FINE_TUNED):
        return pruned
    return pruned.then(recipe=own.fine_tuning, sparsifier=sparsifiers.FixedMask())
