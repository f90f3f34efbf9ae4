"""Tidy frames into tables a person reads: reported beside ours, with spread."""

import math
from collections.abc import Callable, Collection
from typing import Any

import pandas

from sparserobust import imagewise
from sparserobust.analysis.health import best_minus_last, symptoms
from sparserobust.config import Measurement
from sparserobust.reporting import estimates
from sparserobust.reporting.estimates import binomial_interval, matching
from sparserobust.running.store import Store
from sparserobust.training import validation_attack

LARGE = 1e4  # from here on numbers are told in powers of ten
Pairs = dict[str, tuple[dict, dict]]  # labels of treatment and reference, by name


def on_common_images(frame: pandas.DataFrame, metrics: Collection[str]) -> pandas.DataFrame:
    """The rows of these metrics, all rates taken of the same test images: the sample that they have in common, which is
    the smallest. So no attack looks weaker than another because it was tried on other images. Results that kept no
    answers stay as they are, and so do distances, each of which has a sample of its own."""
    rows = frame[frame["metric"].isin(list(metrics))].astype({"count": float, "total": float})  # shares of trials
    sampled = rows["each"].map(lambda text: isinstance(text, str) and imagewise.is_sample(text)).astype(bool)
    kept = rows["count"].notna() & sampled
    if kept.any():
        right = estimates.common(rows.loc[kept, "each"])
        rows.loc[kept, "value"] = right.mean(axis=1)
        rows.loc[kept, "count"] = right.sum(axis=1)
        rows.loc[kept, "total"] = right.shape[1]
    return rows


def images(frame: pandas.DataFrame, metrics: Collection[str]) -> str:
    """On how many images the rates of these metrics rest in a table, for its caption; and on how many they may rest
    where fewer metrics are compared."""
    rows = on_common_images(frame, metrics)
    kept = rows["sampled"] & rows["count"].notna()
    totals = sorted(set(rows.loc[kept, "total"].astype(int)))
    if not totals:
        return ""
    said = (f"All on the same {totals[0]:,} test images" if len(totals) == 1 else
            f"On {totals[0]:,} to {totals[-1]:,} test images: not all numbers are of the same ones")
    most = int(frame.loc[rows.index[kept], "total"].max())
    return f"{said}; figures and effects have up to {most:,}." if most > totals[-1] else f"{said}."


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
    return pandas.DataFrame(rows) if rows else pandas.DataFrame(columns=[*by, "metric", "n_seeds"])


def cell(row: pandas.Series, mixed: bool = False, of: bool = False) -> str:
    """`75.2 ± 0.4`: mean and standard deviation over seeds. For one seed, which has no such spread, `75.2 (1 seed)` in
    a table that is `mixed`; in one that has one seed throughout `75.2 [74.3, 76.0]`, with the interval due to the
    finite test set, and `of` how many images if that is asked for, or `75.2` where nothing was sampled."""
    if row["n_seeds"] > 1:
        return f"{row['mean']:.1f} ± {row['sd']:.1f}"
    if mixed or math.isnan(row["low"]):
        return f"{row['mean']:.1f}" + (" (1 seed)" if mixed else "")
    return f"{row['mean']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" + (f" of {row['total']:,}" if of else "")


def rates(frame: pandas.DataFrame, by: list[str], columns: dict[str, str],
          exact: tuple[str, ...] = ()) -> pandas.DataFrame:
    """One line per group, rates in percent as `cell` writes them, all on the same images (`on_common_images`);
    `columns` maps headings to metrics, what was not measured stays empty; `exact` as for `summary`. Where they cannot
    be, each says of how many images it is."""
    lines, found = {}, summary(on_common_images(frame, columns.values()), by, exact)
    mixed = found["n_seeds"].nunique() > 1
    of = len(found) > 0 and found.loc[found["low"].notna(), "total"].nunique() > 1
    for keys, group in found.groupby(by, sort=False, dropna=False):
        group = group.set_index("metric")
        lines[", ".join(map(str, keys))] = {heading: cell(group.loc[metric], mixed, of)
                                            for heading, metric in columns.items() if metric in group.index}
    return pandas.DataFrame.from_dict(lines, orient="index").reindex(columns=list(columns)).astype(object).fillna("")


def means(frame: pandas.DataFrame, by: list[str], columns: dict[str, tuple[str, float]]) -> pandas.DataFrame:
    """One line per group for what need not be a rate; `columns` maps headings to metrics and what they are multiplied
    by to be shown, 100 for a rate: mean ± standard deviation over seeds, for one seed the value; rates on the same
    images (`on_common_images`)."""
    lines, frame = {}, on_common_images(frame, [metric for metric, _ in columns.values()])
    for keys, group in frame.groupby(by, sort=False, dropna=False):
        lines[", ".join(map(str, keys))] = {
            heading: mean(factor * group.loc[group["metric"] == metric, "value"].astype(float), factor)
            for heading, (metric, factor) in columns.items()}
    return pandas.DataFrame.from_dict(lines, orient="index")


def mean(values: pandas.Series, factor: float) -> str:
    """`75.2 ± 0.4` over seeds, `75.2` for one, nothing for none; with the `digits` that go with `factor`, but large
    numbers as `1.7e+12 ± 5.2e+11`."""
    if values.empty:
        return ""
    form = ".1e" if values.abs().max() >= LARGE else f".{digits(factor)}f"
    return f"{values.mean():{form}}" + (f" ± {values.std():{form}}" if len(values) > 1 else "")


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
    rows, mixed = reported.to_dict("records"), ours["n_seeds"].nunique() > 1
    here = [matching(ours, {keys[k]: row[k] for k in keys}) for row in rows]
    table = {("", "ours is"): [chosen[label].iloc[0] if len(chosen) else "" for chosen in here]}
    for heading, (column, metric) in metrics.items():
        if column:
            table[heading, "reported"] = ["" if pandas.isna(v) else f"{v:.2f}" for v in reported[column]]
        table[heading, "ours"] = [_cell_of(chosen, metric, mixed) for chosen in here]
    names = [" ".join("dense" if pandas.isna(row[k]) else f"{k} {row[k]:g}" if isinstance(row[k], float) else row[k]
                      for k in keys) for row in rows]
    frame = pandas.DataFrame(table, index=pandas.Index(names, name="the paper's row"))
    frame.columns = pandas.MultiIndex.from_tuples(frame.columns)
    return frame


def _cell_of(chosen: pandas.DataFrame, metric: str, mixed: bool) -> str:
    found = chosen[chosen["metric"] == metric]
    return cell(found.iloc[0], mixed) if len(found) else ""


ABOUT_EFFECTS = ("95 % intervals over seeds and images; none for one seed, where all seeds agree, or where a network "
                 "has collapsed. An effect is of all images that both networks answered, a table of accuracies of "
                 "those that all its columns have in common.")


def effects(frame: pandas.DataFrame, pairs: Pairs, columns: dict[str, str]) -> pandas.DataFrame:
    """One line per pair (treatment, reference), each named by the values of some columns of `frame`: what the treatment
    adds, in points, with the 95 % interval over seeds and images (`estimates.compared`); where there is none, the bare
    effect. `columns` maps headings to metrics; what was not measured on both stays empty."""
    return pandas.DataFrame.from_dict({label: {
        heading: effect(estimates.compared(frame, metric, *pair)) for heading, metric in columns.items()}
        for label, pair in pairs.items()}, orient="index")


def effect(found: estimates.Comparison, digits: int = 1) -> str:
    """`+2.0 [+1.1, +2.9]`: the effect with its 95 % interval; `+2.0` where there is none (one seed, or no values of
    single images); for no seed nothing."""
    if not found.effects:
        return ""
    low, high = found.estimate.interval() if found.estimate else (math.nan, math.nan)
    mean = found.estimate.mean if found.estimate else sum(found.effects) / len(found.effects)
    return estimates.with_interval(mean, low, high, digits)


def health(rows: list[dict], store: Store, name: Callable[[dict], str]) -> pandas.DataFrame:
    """One line per grid row that has `health` under `measurements`: what says whether its accuracy under attack can be
    believed. PGD over FGSM (near zero: catastrophic overfitting), growth of the loss over the last attack steps (the
    attack has not converged), images that Square fools and PGD does not (masked gradients), best minus last epoch on
    the validation split (robust overfitting), and what that means in words. `name` names a row."""
    lines = {}
    for row in rows:
        if "health" in row["measurements"]:
            result = store.measure(row["run"], row["measurements"]["health"])
            parts, fallen = result["parts"], best_minus_last(store.record(row["run"])["history"])
            seen = [what for what in symptoms(parts)  # without an attack in training one step finds less than many
                    if what != "catastrophic overfitting" or validation_attack(row["run"].objective)]
            lines[name(row)] = {
                "PGD / FGSM": _share(result["value"], 2), "loss still rises [%]": _share(parts["still_rising"], 0, 100),
                "Square, not PGD [%]": _share(parts["square_below_pgd"], 1, 100),
                "no gradient [%]": _share(parts["zero_gradient"], 1, 100),
                "best - last epoch [points]": _share(fallen, 1, 100),
                "what is wrong": ", ".join(seen) or "nothing seen"}
    return pandas.DataFrame.from_dict(lines, orient="index")


def _share(value: float | None, digits: int, factor: float = 1) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def gathered(lines: list[dict], *several: str) -> pandas.DataFrame:
    """Lines as a table: those that differ in nothing but the columns `several` share one, which lists their values."""
    frame = pandas.DataFrame(lines)
    groups = frame.groupby([c for c in frame if c not in several], sort=False, dropna=False, as_index=False)
    return groups[list(several)].agg(lambda values: ", ".join(dict.fromkeys(map(str, values))))


def seed_counts(frame: pandas.DataFrame) -> list[int]:
    """How many seeds each condition has in a frame of `sweep`: rows with the same labels."""
    found = ("run", "chance", "metric", "value", "count", "total", "where", "processor", "sampled", "each", "seed")
    return frame.groupby([c for c in frame if c not in found], dropna=False)["seed"].nunique().tolist()


def spread(seeds: Collection[int], counts: Collection[int] = ()) -> str:
    """What stands behind the numbers of a table, for its caption: how many of `seeds` its lines have, by `counts`
    (default: all)."""
    least, most = min(counts, default=len(seeds)), max(counts, default=len(seeds))
    if most > 1:
        return f"{most if least == most else f'{least} to {most}'} seeds: mean ± standard deviation"
    return "one seed: 95 % interval of the test images"


def conditions(measurements: dict[str, Measurement], headings: dict[str, str]) -> str:
    """Of every attack in a table its radius, draws of the noise and the most test images that it gets (those of a table
    are the ones that all its columns have in common); `headings` maps headings to names."""
    told = []
    for heading, name in headings.items():
        measurement: Any = measurements.get(name)
        attack = getattr(measurement, "attack", None)
        if attack is not None:
            radius, draws = getattr(attack, "epsilon", None), getattr(attack, "eot_draws", 1)
            facts = [f"radius {radius:.3g}"] if radius else []
            facts += [f"{draws} draws"] if draws > 1 else []
            facts.append(f"up to {measurement.images:,} images" if measurement.images else "up to all images")
            told.append(f"{heading} ({', '.join(facts)})")
    return f"Attacks: {'; '.join(told)}. Pixels lie in [0, 1]; a net without noise gets one draw."


def markdown(table: pandas.DataFrame) -> str:
    """GitHub-flavoured Markdown; two-level headings become `A1 reported`, `A1 ours`."""
    flat = table.astype(object).where(table.notna(), "")
    flat.columns = [" ".join(c) if isinstance(c, tuple) else str(c) for c in flat.columns]
    return flat.to_markdown(disable_numparse=True) + "\n"
