"""From tidy frames to tables, figures, verdicts: what is drawn and written is what was measured."""

import json
import math

import numpy as np
import pandas
import pytest
from scipy import stats

from sparserobust import artifacts, claims, estimates, plots, scales, tables
from sparserobust.errors import UserError
from sparserobust.papers import fk_resnet
from sparserobust.reported import Claim, load
from sparserobust.sparsifiers import RGSM, RVSM


def claim(direction="increase", unit="percentage points", **more):
    return Claim(id="X", statement="s", quantity="q", unit=unit, direction=direction, kind="reported", grade="paper",
                 source="somewhere", **{"value": 1.0} | more)


@pytest.fixture
def frame():
    """Measurements of two nets, dense and pruned, two seeds, 100 images."""
    rows = []
    for net, level, base in (("A", None, 80), ("A", 0.1, 70), ("B", None, 60), ("B", 0.1, 66)):
        for seed in (0, 1):
            for metric, count in (("clean", base + 4 * seed), ("channel_sparsity", 0 if level is None else 30)):
                rows.append({"net": net, "ours": f"our {net}", "method": "dense" if level is None else "RGSM",
                             "level": level, "seed": seed, "run": f"{net}{level}{seed}", "metric": metric,
                             "value": count / 100, "count": count, "total": 100, "where": "store", "processor": "P"})
    return pandas.DataFrame(rows)


def test_interval_is_students():
    values = [1.0, 2.0, 4.0]
    assert estimates.interval(values) == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))
    assert all(math.isnan(v) for v in estimates.interval([3.0]))


def test_binomial_interval_is_wilsons():
    n, p, z = 250, 0.4, stats.norm.ppf(0.975)
    middle, reach = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(middle + s * reach) / (1 + z**2 / n) for s in (-1, 1)]
    assert estimates.binomial_interval(100, 250) == pytest.approx(expected)


def test_paired_effects(frame):
    a, b = {"net": "A", "level": 0.1}, {"net": "A", "level": None}
    assert estimates.paired_effects(frame, "clean", a, b) == pytest.approx([-10, -10])
    assert estimates.paired_effects(frame, "clean", a, b, ratio=True) == pytest.approx([70 / 80, 74 / 84])
    one_seed_less = frame.drop(frame[(frame["seed"] == 0) & (frame["level"] == 0.1)].index)
    assert estimates.paired_effects(one_seed_less, "clean", a, b) == pytest.approx([-10])
    assert estimates.paired_effects(frame, "channel_sparsity", a, b, ratio=True) == []


@pytest.mark.parametrize("direction, low, high, more, expected", [
    ("increase", 0.1, 2, {}, claims.HOLDS), ("increase", -2, -0.1, {}, claims.FAILS),
    ("increase", -1, 1, {}, claims.UNDECIDED), ("decrease", -2, -0.1, {}, claims.HOLDS),
    ("decrease", 0.1, 2, {}, claims.FAILS), ("decrease", -1, 1, {}, claims.UNDECIDED),
    ("increase", 1.5, 1.9, {"threshold": 2.0}, claims.FAILS), ("increase", 2.1, 3, {"threshold": 2.0}, claims.HOLDS),
    ("decrease", -3, -2.1, {"threshold": -2.0}, claims.HOLDS),
    ("no worse", -1.0, 2, {"margin": 1.2}, claims.HOLDS), ("no worse", -1.5, 2, {"margin": 1.2}, claims.UNDECIDED),
    ("no worse", -3, -1.5, {"margin": 1.2}, claims.FAILS), ("increase", math.nan, math.nan, {}, claims.UNDECIDED),
])
def test_verdict(direction, low, high, more, expected):
    assert claims.verdict(direction, low, high, **more) == expected


def test_judged_rows():
    row = claims.judged(claim(), [2.0, 3.0, 4.0])
    assert (row["ours"], row["n_seeds"], row["reported"], row["verdict"]) == (3.0, 3, 1.0, claims.HOLDS)
    assert claims.judged(claim(), [2.0])["verdict"] == claims.UNDECIDED
    assert claims.judged(claim(), [])["verdict"] == claims.NOT_RUN
    ratio = claim(unit="ratio", value=2.0)
    assert claims.judged(ratio, [1.4, 1.5, 1.6])["verdict"] == claims.HOLDS, "a ratio is held against one"
    at_least = claim(unit="ratio", value=2.0, lower_bound=True)
    assert claims.judged(at_least, [1.4, 1.5, 1.6])["verdict"] == claims.FAILS, "at least two is held against two"


def test_summary_and_cells(frame):
    rows = tables.summary(frame, ["net", "level"]).set_index(["net", "level", "metric"])
    row = rows.loc[("A", 0.1, "clean")]
    assert (row["mean"], row["n_seeds"], row["count"], row["total"]) == (72.0, 2, 144, 200)
    assert row["sd"] == pytest.approx(np.std([70, 74], ddof=1))
    assert tables.cell(row) == "72.0 ± 2.8"
    single = tables.summary(frame[frame["seed"] == 0], ["net", "level"]).set_index(["net", "level", "metric"])
    exact = tables.summary(frame[frame["seed"] == 0], ["net", "level"], exact=("clean",))
    assert tables.cell(exact.set_index(["net", "level", "metric"]).loc[("A", 0.1, "clean")]) == "70.0"
    low, high = estimates.binomial_interval(70, 100)
    assert tables.cell(single.loc[("A", 0.1, "clean")]) == f"70.0 [{100 * low:.1f}, {100 * high:.1f}]"


def test_beside_puts_each_number_in_its_row(frame):
    printed = pandas.DataFrame({"net": ["A", "B", "C"], "lambda1": [0.1, None, None], "A1": [1.234, 5.0, None]})
    table = tables.beside(printed, tables.summary(frame, ["net", "level", "ours"]), {"net": "net", "lambda1": "level"},
                          {"A1": ("A1", "clean"), "own": (None, "channel_sparsity")}, label="ours")
    assert list(table.index) == ["A lambda1 0.1", "B dense", "C dense"]
    assert list(table["A1", "reported"]) == ["1.23", "5.00", ""]
    assert list(table["A1", "ours"]) == ["72.0 ± 2.8", "62.0 ± 2.8", ""]
    assert list(table["own", "ours"]) == ["30.0 ± 0.0", "0.0 ± 0.0", ""] and ("own", "reported") not in table
    assert list(table["", "ours is"]) == ["our A", "our B", ""]


def test_tradeoff_draws_means_and_seeds(frame):
    (axis,) = plots.tradeoff(frame, "channel_sparsity", ["clean"], "removed", ["clean"]).axes
    lines = [line for line in axis.get_lines() if line.get_linestyle() == "-"]
    means = sorted(tuple(map(tuple, line.get_xydata())) for line in lines)
    assert means == [((0.0, 62.0), (30.0, 68.0)), ((0.0, 82.0), (30.0, 72.0))]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["our A", "our B"]


def test_histograms_draw_shares():
    results = [{"histogram": [1, 2, 1], "limit": 0.3}, {"histogram": [0, 4, 0], "limit": 0.3}]
    figure = plots.weight_histograms(pandas.DataFrame({"t": ["a", "b"]}), results, "t")
    assert [list(patch.get_data().values) for patch in figure.axes[0].patches] == [[25, 50, 25], [0, 100, 0]]


def test_claims_figure_shows_reported_and_measured():
    ledger = pandas.DataFrame([claims.judged(claim(), [2.0, 3.0, 4.0]), claims.judged(claim(), [])])
    (axis,) = plots.claims(ledger).axes
    points = {tuple(xy) for line in axis.get_lines() for xy in line.get_xydata()}
    assert (3.0, 0.0) in points and (1.0, 0.0) in points and axis.get_yticks().tolist() == [0]


def test_artifacts_know_where_they_come_from(frame, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path))
    out = artifacts.Artifacts("quick", "99_test")
    out.figure(plots.curves([0, 1], {"a": [0, 1]}, "x", "y"), "fig", "A line.", frame)
    shown = out.table(frame.head(2), "table", "Two <rows>.", frame)
    assert "&lt;rows&gt;" in shown._repr_html_() and "Two <rows>." in repr(shown)
    out.measurements(frame)
    out.finish()
    folder = tmp_path / "quick" / "99_test"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"fig.png", "table.csv", "table.md", "measurements.csv"}
    assert manifest["files"]["fig.png"]["runs"] == sorted(set(frame["run"]))
    assert pandas.read_csv(folder / "measurements.csv")["count"].tolist() == frame["count"].tolist()
    assert "Two <rows>." in (folder / "table.md").read_text()
    first = (folder / "fig.png").read_bytes()
    out.figure(plots.curves([0, 1], {"a": [0, 1]}, "x", "y"), "fig", "A line.", frame)
    assert (folder / "fig.png").read_bytes() == first, "the same figure must give the same file"


# ----------------------------------------------------------------------------------------- scales and the first paper


def test_every_scale_of_the_paper_is_sound():
    for scale in scales.names():
        experiment = fk_resnet.experiment(scale)
        assert experiment.grid and {"clean", "fgsm", "ifgsm20", "cw", "pgd20_eot"} <= set(experiment.measurements)
        assert len({row["run"].identity for row in experiment.grid}) == len(experiment.grid)


def test_the_paper_scale_is_the_papers():
    experiment = fk_resnet.experiment("paper", [0])
    by_row = {(r["net"], r["method"], r["level"]): r["run"] for r in experiment.grid}
    assert len(by_row) == 1 + 4 + 6 + 6 + 2  # natural; dense nets; table 1; table 2 (two of each net); ResNet38
    for (net, method, level), run in by_row.items():
        assert run.recipe.epochs == 200 and run.recipe.milestones == (80, 120, 160) and run.recipe.lr == 0.1
        if method == "RVSM":
            assert isinstance(run.sparsifier, RVSM) and (run.sparsifier.beta, run.sparsifier.lam) == (level, 1e-6)
        if method == "RGSM":
            assert isinstance(run.sparsifier, RGSM) and run.sparsifier.lambda1 == level
            assert (run.sparsifier.beta, run.sparsifier.lambda2) == (1.0, 1e-5)
        assert run.model.members == int(net[2]) if net.startswith("En") else run.model.noise == 0


def test_each_claim_compares_the_rows_it_names():
    """With the paper's own table cells as measurements, every effect is the number the paper reports."""
    paper, rows = load("fk_resnet"), []
    for table, method in fk_resnet.TABLES.items():
        for row in paper.reported_table(table).to_dict("records"):
            level = row[fk_resnet.LEVELS[method]]
            cells = {fk_resnet.ACCURACIES[a]: row[a] for a in fk_resnet.ACCURACIES}
            cells |= {m: row[m] for m in ("sparsity", "channel_sparsity") if m in row}
            rows += [{"net": row["net"], "method": "dense" if pandas.isna(level) else method, "level": level, "seed": 0,
                      "metric": metric, "value": value / 100, "table": table} for metric, value in cells.items()]
    for method, training in (("natural", "natural"), ("dense", "adversarial")):
        share = paper.reported_row("F1", training=training)["share_below_1e-3"]
        rows.append({"net": "ResNet20", "method": method, "level": None, "seed": 0, "metric": "near_zero",
                     "value": share / 100, "table": "T1"})
    cells = pandas.DataFrame(rows)
    tables_of = {"C1": "T1", "C2a": "T1", "C2b": "T2", "C3": "T2", "C4": "T3", "C6": "T2", "C10": "T2"}
    for name, table in tables_of.items():
        ledger = fk_resnet.judged(cells[cells["table"] == table])
        chosen = ledger[ledger["claim"].str.split(".").str[0] == name]
        assert len(chosen) and (chosen["n_seeds"] == 1).all()
        for row in chosen.itertuples():
            expected = 2.11 if row.claim == "C3.ratio" else row.reported
            assert row.ours == pytest.approx(expected, abs=0.006), row.claim


def test_user_mistakes_in_scales_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown scale 'labtop': did you mean 'laptop'"):
        fk_resnet.experiment("labtop")
    for seeds in ([], [0, 0], [-1], "0", [True]):
        with pytest.raises(UserError, match="seeds should be"):
            fk_resnet.experiment("quick", seeds)
    monkeypatch.setattr("sparserobust.scales.scales_folder", lambda: tmp_path)
    (tmp_path / "mine.yaml").write_text("fk_resnet: [")
    with pytest.raises(UserError, match=r"mine\.yaml is not valid YAML"):
        scales.load("mine", "fk_resnet")
    (tmp_path / "mine.yaml").write_text("other: {}")
    with pytest.raises(UserError, match="has no section 'fk_resnet'"):
        scales.load("mine", "fk_resnet")
