"""Tidy frames into tables a person reads: reported beside ours, with spread."""

import math

import pandas

from sparserobust.config import Measurement
from sparserobust.estimates import binomial_interval, interval, matching, paired_effects

Pairs = dict[str, tuple[dict, dict]]  # labels of treatment and reference, by name


def summary(frame: pandas.DataFrame, by: list[str], exact: tuple[str, ...] = ()) -> pandas.DataFrame:
    """One row per group and metric, rates in percent: `mean`, `sd` over seeds (nan for one), `n_seeds`, `count` and
    `total` summed over seeds, and the Wilson interval `low`, `high` of the test images, at the mean count (seeds add no
    images: all answer the same ones); nan where nothing was counted, and for the metrics in `exact`, which are
    properties of a network and not estimated from a sample of images."""
    rows = []
    for keys, group in frame.groupby([*by, "metric"], dropna=False, sort=False):
        values = 100 * group["value"]
        count, total = round(group["count"].sum()), int(group["total"].sum())
        counted, n = total and keys[-1] not in exact, len(values)
        low, high = binomial_interval(count / n, total / n) if counted else (math.nan, math.nan)
        rows.append(dict(zip([*by, "metric"], keys, strict=True)) | {
            "mean": values.mean(), "sd": values.std(ddof=1) if n > 1 else math.nan, "n_seeds": n,
            "count": count, "total": total, "low": 100 * low, "high": 100 * high,
            "where": "/".join(sorted(set(group["where"]))), "processor": "/".join(sorted(set(group["processor"])))})
    return pandas.DataFrame(rows)


def cell(row: pandas.Series) -> str:
    """`75.2 ± 0.4` over seeds; for one seed `75.2 [74.3, 76.0]`, the interval due to the finite test set, or `75.2`."""
    if row["n_seeds"] > 1:
        return f"{row['mean']:.1f} ± {row['sd']:.1f}"
    if math.isnan(row["low"]):
        return f"{row['mean']:.1f}"
    return f"{row['mean']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def rates(frame: pandas.DataFrame, by: list[str], columns: dict[str, str],
          exact: tuple[str, ...] = ()) -> pandas.DataFrame:
    """One line per group, rates in percent as `cell` writes them; `columns` maps headings to metrics, what was not
    measured stays empty; `exact` as for `summary`."""
    lines = {}
    for keys, group in summary(frame, by, exact).groupby(by, sort=False, dropna=False):
        found = group.set_index("metric")
        lines[", ".join(map(str, keys))] = {heading: cell(found.loc[metric]) for heading, metric in columns.items()
                                            if metric in found.index}
    return pandas.DataFrame.from_dict(lines, orient="index").reindex(columns=list(columns)).astype(object).fillna("")


def means(frame: pandas.DataFrame, by: list[str], columns: dict[str, tuple[str, float]]) -> pandas.DataFrame:
    """One line per group for what need not be a rate; `columns` maps headings to metrics and what they are multiplied
    by to be shown, 100 for a rate: mean ± standard deviation over seeds, for one seed the value."""
    lines = {}
    for keys, group in frame.groupby(by, sort=False):
        lines[", ".join(map(str, keys))] = {
            heading: mean(factor * group.loc[group["metric"] == metric, "value"].astype(float), factor)
            for heading, (metric, factor) in columns.items()}
    return pandas.DataFrame.from_dict(lines, orient="index")


def mean(values: pandas.Series, factor: float) -> str:
    """`75.2 ± 0.4` over seeds, `75.2` for one, nothing for none; with the `digits` that go with `factor`."""
    if values.empty:
        return ""
    spread = f" ± {values.std():.{digits(factor)}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits(factor)}f}{spread}"


def digits(factor: float) -> int:
    """Rates in percent are shown to one digit, distances to three."""
    return 1 if factor == 100 else 3


def beside(reported: pandas.DataFrame, ours: pandas.DataFrame, keys: dict[str, str],
           metrics: dict[str, tuple[str | None, str]], label: str) -> pandas.DataFrame:
    """Reported beside ours, one row per reported row.

    `ours` is a `summary`; `keys` maps columns of `reported` to columns of `ours` that name the same row, and `label` is
    the column of `ours` that says what stands for it; `metrics` maps a heading to (column of `reported` or None,
    metric). Columns come in pairs (heading, reported) and (heading, ours); what was not reported, or not run, stays
    empty.
    """
    rows = reported.to_dict("records")
    here = [matching(ours, {keys[k]: row[k] for k in keys}) for row in rows]
    table = {("", "ours is"): [chosen[label].iloc[0] if len(chosen) else "" for chosen in here]}
    for heading, (column, metric) in metrics.items():
        if column:
            table[heading, "reported"] = ["" if pandas.isna(v) else f"{v:.2f}" for v in reported[column]]
        table[heading, "ours"] = [_cell_of(chosen, metric) for chosen in here]
    names = [" ".join("dense" if pandas.isna(row[k]) else f"{k} {row[k]:g}" if isinstance(row[k], float) else row[k]
                      for k in keys) for row in rows]
    frame = pandas.DataFrame(table, index=pandas.Index(names, name="the paper's row"))
    frame.columns = pandas.MultiIndex.from_tuples(frame.columns)
    return frame


def _cell_of(chosen: pandas.DataFrame, metric: str) -> str:
    found = chosen[chosen["metric"] == metric]
    return cell(found.iloc[0]) if len(found) else ""


def effects(frame: pandas.DataFrame, pairs: Pairs, columns: dict[str, str]) -> pandas.DataFrame:
    """One line per pair (treatment, reference), each named by the values of some columns of `frame`: what the treatment
    adds, in points, mean over paired seeds with Student's 95 % interval; where there is none, the bare effect.
    `columns` maps headings to metrics; what was not measured on both stays empty."""
    lines = {}
    for label, (treatment, reference) in pairs.items():
        lines[label] = {}
        for heading, metric in columns.items():
            lines[label][heading] = effect(paired_effects(frame, metric, treatment, reference))
    return pandas.DataFrame.from_dict(lines, orient="index")


def effect(values: list[float], digits: int = 1) -> str:
    """`+2.0 [+1.1, +2.9]`: the mean over seeds with Student's 95 % interval; `+2.0` where there is none (one seed,
    or equal values); for no seed nothing."""
    if not values:
        return ""
    low, high = interval(values)
    spread = f" [{low:+.{digits}f}, {high:+.{digits}f}]" if not math.isnan(low) else ""
    return f"{sum(values) / len(values):+.{digits}f}{spread}"


def gathered(lines: list[dict], *several: str) -> pandas.DataFrame:
    """Lines as a table: those that differ in nothing but the columns `several` share one, which lists their values."""
    frame = pandas.DataFrame(lines)
    groups = frame.groupby([c for c in frame if c not in several], sort=False, dropna=False, as_index=False)
    return groups[list(several)].agg(lambda values: ", ".join(dict.fromkeys(map(str, values))))


def conditions(measurements: dict[str, Measurement], headings: dict[str, str]) -> str:
    """Of every attack in a table its radius, draws of the noise and test images; `headings` maps headings to names."""
    told = []
    for heading, name in headings.items():
        measurement = measurements.get(name)
        attack = getattr(measurement, "attack", None)
        if attack is not None:
            radius, draws = getattr(attack, "epsilon", None), getattr(attack, "eot_draws", 1)
            facts = [f"radius {radius:.3g}"] if radius else []
            facts += [f"{draws} draws"] if draws > 1 else []
            facts.append(f"{measurement.images or 'all'} images")
            told.append(f"{heading} ({', '.join(facts)})")
    return f"Attacks: {'; '.join(told)}. Pixels lie in [0, 1]; a net without noise gets one draw."


def markdown(table: pandas.DataFrame) -> str:
    """GitHub-flavoured Markdown; two-level headings become `A1 reported`, `A1 ours`."""
    flat = table.astype(object).where(table.notna(), "")
    flat.columns = [" ".join(c) if isinstance(c, tuple) else str(c) for c in flat.columns]
    return flat.to_markdown(disable_numparse=True) + "\n"
