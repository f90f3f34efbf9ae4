"""On what robustness and condition numbers depend in TSCNC (Feng, Lin, Gao & Wei 2025)."""

from contextlib import suppress

import numpy as np
import pandas

from sparserobust.errors import UserError
from sparserobust.reporting import estimates
from sparserobust.running.experiment import Results
from sparserobust.studies.tscnc.report import (
    CLASSIFIER,
    KAPPA,
    NORMS,
    RELATIVE_NORMS,
    removed,
    series,
)
from sparserobust.studies.tscnc.runs import (
    ALL_LAYERS,
    CONTROL,
    CONTROLS,
    DENSE,
    GATES,
    HYDRA,
    LONGER,
    METHODS,
    PRUNED,
    SCORES,
    TRADES,
)

KAPPA_SLOPE = "log kappa folded"
LOGARITHMS = {KAPPA_SLOPE: "kappa folded", "log lipschitz": "lipschitz"}
DOUBLED = 0.3  # log10
OF_LIPSCHITZ = "Lipschitz"  # the regression of the local Lipschitz constant, in place of accuracy
CALLED = {KAPPA_SLOPE: "log10 of kappa", NORMS: "log10 of norms", RELATIVE_NORMS: "log10 of norms, scale-free",
          "log left": "log10 of weights left", "kappa effective_rank": "effective rank"}
STANDING = 0.5  # of what the best network classifies of the clean images: one below has collapsed


def doubling_level(frame: pandas.DataFrame, net: str, metric: str = KAPPA) -> float | None:
    """The first level at which the condition number of what HYDRA prunes, in the geometric mean
    over seeds, is twice that of its dense network; None if that never happens."""
    found = series(frame, metric, net, (HYDRA,))
    means = np.log10(found["value"]).groupby(found["level"]).mean().sort_index()
    above = means.index[means > means.iloc[0] + DOUBLED]
    return None if above.empty else float(above[0])


def doubling(frame: pandas.DataFrame, net: str) -> str:
    """The same in words, of convolutions and of the classifier."""
    levels = {what: doubling_level(frame, net, metric)
              for what, metric in (("convolutions", KAPPA), ("the classifier", CLASSIFIER))}
    return "; ".join(f"the condition number of {what} "
                     + ("never doubles" if level is None else f"has doubled with {removed(level)}")
                     for what, level in levels.items())


def observations(frame: pandas.DataFrame, net: str) -> pandas.DataFrame:
    """One row per dense or fine-tuned network of a net, a column per metric, for
    `estimates.regression`; with logarithms to base 10 (`LOGARITHMS`), of numbers that have one, and
    `log left`, that of the share of weights [%] that are left."""
    chosen = frame[(frame["net"] == net) & (frame["part"] != SCORES)]
    wide = chosen.drop_duplicates(["run", "metric"]).pivot(
        index=["method", "level", "seed", "run"], columns="metric", values="value").reset_index()
    wide = wide.assign(**{metric: np.nan for metric in LOGARITHMS.values() if metric not in wide})
    logs = {name: np.log10(wide[metric].where(wide[metric] > 0))
            for name, metric in LOGARITHMS.items()}
    logs["log left"] = np.log10(100 * (1 - wide["sparsity"]))
    return wide.assign(**logs)


def points(frame: pandas.DataFrame, net: str) -> pandas.DataFrame:
    """Figure 6: the same, with the share of weights that is `left` [%], and the method under `kind`, variations of
    single settings together."""
    found, kinds = observations(frame, net), [TRADES, LONGER, *METHODS, GATES, *CONTROLS]
    kind = found["method"].where(found["method"].isin(kinds), "other settings")
    return found.assign(kind=kind, left=10 ** found["log left"]).sort_values(
        "kind", key=lambda names: names.map([*kinds, "other settings"].index), kind="stable")


def conditioned(points: pandas.DataFrame) -> str:
    """Of how many of these networks the folded condition number is known, in words."""
    known = points[KAPPA_SLOPE].notna().sum()
    return "of all" if known == len(points) else f"known of {known} of the {len(points)} networks"


def whole_seeds(frame: pandas.DataFrame, net: str) -> list[int]:
    """The seeds of which all networks of a net are known that are known of any seed; those in which
    something is varied may be missing."""
    counted = frame["part"].isin([DENSE, CONTROL, PRUNED]) & (frame["metric"] == "pgd20")
    counts = frame[(frame["net"] == net) & counted].groupby("seed")["run"].nunique()
    return counts.index[counts == counts.max()].tolist()


def regressions(frame: pandas.DataFrame, net: str) -> dict[str, pandas.DataFrame]:
    """Regressions over all networks of a net, of its `whole_seeds`, by name; where there are fewer
    than four conditions (a method at a level) for each column, a regression is left out, and
    so is one whose slopes the runs do not determine.

    The paper's thesis is that of accuracy under PGD-20 on condition number and norms: with all the
    networks; without those whose every layer was constrained, which lie far out; with those alone
    that still stand (`STANDING`); and with each column and the target centred within the levels, so
    that nothing but what differs at the same sparsity counts. Others take norms that no rescaling
    changes, how much is left, or the effective rank. `Lipschitz`: of the logarithm of the local
    Lipschitz constant."""
    rows = observations(frame[frame["seed"].isin(whole_seeds(frame, net))], net)
    both = [KAPPA_SLOPE, NORMS]
    centred = rows.assign(**{column: rows[column] - rows.groupby("level")[column].transform("mean")
                             for column in ("pgd20", *both)})
    some = rows[rows["method"] != ALL_LAYERS]
    asked = {
        "kappa, norms": (rows, both),
        "kappa, norms; without all layers": (some, both),
        "kappa, norms; standing": (rows[rows["clean"] >= STANDING * rows["clean"].max()], both),
        "kappa, norms; within levels": (centred, both),
        "kappa, scale-free norms": (rows, [KAPPA_SLOPE, RELATIVE_NORMS]),
        "kappa, norms, weights left": (rows, [*both, "log left"]),
        "effective rank, weights left": (rows, ["kappa effective_rank", "log left"]),
        OF_LIPSCHITZ: (rows, both)}
    found = {}
    for name, (data, columns) in asked.items():
        target = "log lipschitz" if name == OF_LIPSCHITZ else "pgd20"
        known = data.dropna(subset=[target, *columns])
        if len(known[["method", "level"]].drop_duplicates()) >= 4 * len(columns):
            with suppress(UserError):  # where the runs do not determine the slopes
                found[name] = estimates.regression(known, target, columns)
    return found


def slopes_table(results: Results) -> pandas.DataFrame:
    """One line per column of each regression: its slope with its interval, and what the line
    explains with it and without."""
    lines, nets = {}, results.experiment.nets
    for net in nets:
        for name, slopes in regressions(results.frame, net).items():
            for column, row in slopes.iterrows():
                line = f"{name}: {CALLED[str(column)]}"
                lines[f"{net}, {line}" if len(nets) > 1 else line] = {
                    "slope [sd per sd]":
                        f"{row['slope']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
                    "R2 of all": f"{row['r2']:.2f}", "without it": f"{row['r2_without']:.2f}",
                    "networks": int(row["runs"])}
    return pandas.DataFrame.from_dict(lines, orient="index")
