"""Theorem 1 of Dinh et al. 2020, step by step: paths of the library's own splitting, as the theorem
states it or with something changed (`analysis.descent`)."""

from functools import cache
from typing import Any

import pandas

from sparserobust.analysis import descent
from sparserobust.sparsifiers import RVSM

SETTING: dict[str, Any] = {  # within the theorem
    "splitting": RVSM(beta=1, lam=1e-3), "lr": 0.02, "steps": 100, "images": 150}
SEEDS = (0, 1, 2)


@cache
def path(**changes) -> pandas.DataFrame:
    """What `descent.follow` gives with these changes of `SETTING`; computed once."""
    return descent.follow(**SETTING | changes)


def lr(changes: dict[str, Any]) -> float:
    """The learning rate of a path."""
    return (SETTING | changes)["lr"]


def bound() -> pandas.Series:
    """The bound on the smallest gradient norm of the path as the theorem states it."""
    return descent.bound(path(), lr({}))


@cache
def falls() -> tuple[int, int, int]:
    """On how many of how many steps the Lagrangian falls, over how many seeds, where all is as the
    theorem states."""
    paths = [path(seed=seed) for seed in SEEDS]
    steps = sum(len(each) - 1 for each in paths)
    return steps - sum(map(descent.rises, paths)), steps, len(paths)


def table(conditions: dict[str, dict[str, Any]]) -> pandas.DataFrame:
    """What each path did, a line per path; `conditions` maps its name to its changes of
    `SETTING`."""
    lines = {}
    for name, changes in conditions.items():
        followed = path(**changes)
        lines[name] = {
            "learning rate": lr(changes), "longest allowed": followed["longest_lr"].min(),
            "largest L on the path": followed["lipschitz"].max(),
            "steps uphill": f"{descent.rises(followed)} of {len(followed) - 1}",
            "Lagrangian, first": followed["lagrangian"].iloc[0],
            "Lagrangian, last": followed["lagrangian"].iloc[-1],
            "|w - u|, last": followed["distance"].iloc[-1],
            "entries of u that changed support": f"{followed['flipped'].sum():,}"}
    shown = pandas.DataFrame.from_dict(lines, orient="index")
    return shown.map(lambda value: value if isinstance(value, str) else f"{value:.3g}")
