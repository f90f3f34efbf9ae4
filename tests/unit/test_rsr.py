"""Robust Sparse Regularization: its grid of runs, its tables and its verdicts."""

from dataclasses import replace

import numpy as np
import pandas
import pytest

from scaffolding import results_of
from sparserobust import imagewise
from sparserobust.attacks import PGD
from sparserobust.config import Dense
from sparserobust.models import NoisyWeights
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.reporting.crossed import crossed
from sparserobust.sparsifiers import Lasso, Magnitude, RelativeThreshold
from sparserobust.studies.rsr import comparisons, report, runs

NETS = ["ResNet-20", "ResNet-18", "VGG-16"]


@pytest.fixture(scope="module")
def quick():
    return runs.experiment("quick")


def one(experiment, **labels):
    (row,) = experiment.rows(**{"net": "ResNet-20", "seed": 0, "varied": ""} | labels)
    return row


# --------------------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize("method, noise, lasso", [("AT", False, False), ("AT + lasso", False, True),
                                                  ("AT + noise", True, False), ("RSR", True, True)])
def test_methods_are_their_ingredients(quick, method, noise, lasso):
    dense = one(quick, method=method, stage="dense")["run"]
    assert isinstance(dense.model, NoisyWeights) == noise
    assert type(dense.sparsifier) is (Lasso if lasso else Dense)
    assert dense.objective.clean_weight == 0.5 and dense.objective.attacked_label == "predicted"
    plain = one(quick, method="AT", stage="dense")["run"]
    assert replace(dense, model=plain.model, sparsifier=Dense()) == plain  # and nothing else differs


@pytest.mark.parametrize("method", runs.METHODS)
def test_stages_share_their_beginning_and_the_control_its_training(quick, method):
    dense, pruned, tuned, control = (one(quick, method=method, stage=s)["run"] for s in runs.STAGES)
    assert dense.start is None and pruned.start == tuned.start == control.start == dense
    assert (pruned.recipe.epochs, tuned.recipe.epochs) == (0, 1)
    assert pruned.sparsifier == tuned.sparsifier == Magnitude(sparsity=0.85)
    assert replace(tuned, sparsifier=Dense()) == control  # nothing but pruning differs
    assert tuned.objective == replace(dense.objective, clean_epochs=0)


def test_each_variation_varies_one_thing(quick):
    def varied(what, **labels):
        return [row for row in quick.rows(varied=what, net="ResNet-20", seed=0, **labels)]

    pruned = one(quick, method="RSR", stage="pruned")["run"]
    for row in varied("sparsity", method="RSR"):
        assert row["run"] == replace(pruned, sparsifier=Magnitude(sparsity=row["level"]))
    for row in varied("threshold", stage="pruned"):
        assert row["run"] == replace(pruned, sparsifier=RelativeThreshold(threshold=row["level"]))
    (tuned,) = varied("threshold", stage="fine-tuned")
    same = replace(one(quick, method="RSR", stage="fine-tuned")["run"], sparsifier=tuned["run"].sparsifier)
    assert tuned["run"] == same and tuned["run"].sparsifier.threshold == quick.settings.threshold
    for row in varied("lambda"):
        start = replace(pruned.start, sparsifier=Lasso(lam=row["level"]))
        cut = RelativeThreshold(threshold=quick.settings.threshold)
        assert row["run"] == replace(pruned, start=start, sparsifier=cut)
    for row in varied("granularity"):
        noisy = one(quick, method="AT + noise", stage="dense")["run"]
        assert row["run"] == replace(noisy, model=replace(noisy.model, granularity=row["level"]))
    for row in varied("unmasked"):
        masked = one(quick, method="RSR", stage=row["stage"])["run"]
        assert row["run"] == replace(masked, model=replace(masked.model, masked=False))
        assert row["run"].start == masked.start  # the dense net is trained once
    (attacked_only,) = varied("clean_weight")
    plain = one(quick, method="AT", stage="dense")["run"]
    assert attacked_only["run"] == replace(plain, objective=replace(plain.objective, clean_weight=0.0))


def test_the_pair_of_table_3_attacks_by_way_of_each_other(quick):
    for seed in quick.seeds:
        a = one(quick, net="ResNet-18", method="AT", stage="dense", seed=seed)
        b = one(quick, net="ResNet-18", method="RSR", stage="pruned", seed=seed)
        assert a["measurements"]["transfer"].source == b["run"] and b["measurements"]["transfer"].source == a["run"]
        assert a["measurements"]["square"] == b["measurements"]["square"]
    assert sum("transfer" in row["measurements"] for row in quick.grid) == 2 * len(quick.seeds)


def test_what_is_judged_is_measured(quick):
    """Every comparison of the ledger and of the control finds its metric on both sides, for every seed."""
    metrics = {row["run"].identity: set(row["measurements"]) for row in quick.grid}
    wanted = [(c.metric, (c.treatment, c.reference)) for c in comparisons.contrasts(quick.settings.black_box.net)]
    pairs = comparisons.controls() | comparisons.gains(NETS) | comparisons.ingredients()
    wanted += [(metric, pair) for pair in pairs.values() for metric in comparisons.EFFECTS.values()]
    for metric, pair in wanted:
        for side in pair:
            for seed in quick.seeds:
                (row,) = quick.rows(**side, seed=seed)
                assert metric in metrics[row["run"].identity], (metric, side)


def test_curves_change_radius_or_steps_only(quick):
    curves = quick.settings.curves
    found, some = curves.measurements(), curves.accuracy.attack
    for radius in curves.radius:
        attack = found[f"radius {radius:g}"].attack
        assert attack.epsilon == radius and attack.steps == some.steps
        assert attack.step_size / radius == pytest.approx(some.step_size / some.epsilon)
    for steps in curves.steps:
        assert found[f"steps {steps}"].attack == replace(some, steps=steps)
    assert len(found) == len(curves.radius) + len(curves.steps)


def test_the_paper_scale_is_the_companions_protocol():
    paper = runs.experiment("paper")
    companion = reported.load("rsr").hyperparameters["companion_pni"]
    run = one(paper, method="RSR", stage="dense")["run"]
    attack = companion["train_attack"]
    assert (run.recipe.epochs, run.recipe.lr, run.recipe.batch_size) == (
        companion["epochs"], companion["lr"], companion["batch_size"])
    assert list(run.recipe.milestones) == companion["lr_milestones"]
    assert run.recipe.weight_decay == companion["weight_decay"]["newest_train_script"]
    assert run.objective.attack == PGD(epsilon=attack["epsilon"], step_size=attack["step"], steps=attack["steps"])
    assert run.objective.clean_epochs == companion["epoch_delay"]
    assert run.model.initial_scale == companion["alpha_init"] and run.model.granularity == "channel"
    normalised = companion["normalisation"]
    assert list(run.model.model.mean_255) == normalised["mean_255"]
    assert list(run.model.model.std_255) == normalised["std_255"]
    assert {paper.measurements[name].trials for name in comparisons.ACCURACIES.values()} == {companion["eval_trials"]}
    assert paper.settings.sparsity * 100 == reported.load("rsr").hyperparameters["rsr"]["sparsity_resnet18_percent"]


# -------------------------------------------------------------------------------------------- tables, verdicts


IMAGES = 2000


def answers(rate: float) -> np.ndarray:
    """On single images; the first images are the easiest for every network."""
    return np.arange(IMAGES) < round(IMAGES * rate)


def with_rates(frame: pandas.DataFrame, rates: pandas.Series) -> pandas.DataFrame:
    """The frame with these rates, and answers that go with them."""
    return frame.assign(value=rates, count=1000 * rates, each=[imagewise.pack(answers(rate)) for rate in rates])


@pytest.fixture(scope="module")
def frame(quick):
    """As `sweep` returns it, every value made of its row: method, stage, net, metric and seed."""
    def value(row, metric):
        if metric == "sparsity":
            return 0.0 if row["stage"] in ("dense", "trained on") else 0.85
        gain = {"AT": 0, "AT + lasso": 2, "AT + noise": 4, "RSR": 10}[row["method"]]
        gain += {"dense": 0, "pruned": -3, "fine-tuned": 5, "trained on": 1}[row["stage"]]
        return (40 + gain + len(metric) + 0.5 * row["seed"] * (gain > 0)) / 100

    rows = []
    for row in quick.grid:
        for metric, measurement in row["measurements"].items():
            rows.append({k: row[k] for k in row if k not in ("run", "measurements")} | {
                "run": row["run"].identity, "metric": metric, "value": value(row, metric), "total": 1000,
                "sampled": measurement.sampled, "chance": 0.1, "where": "store", "processor": "test"})
    frame = pandas.DataFrame(rows)
    return with_rates(frame, frame["value"])


@pytest.fixture(scope="module")
def judged(quick):
    """All comparisons in a frame, by name."""
    return lambda frame: comparisons.judged(results_of(quick, None, frame)).set_index("claim", drop=False)


@pytest.fixture(scope="module")
def rows(frame, judged):
    return judged(frame)


def test_effects_are_paired_differences_in_points(frame):
    shown = tables.effects(frame, comparisons.gains(["ResNet-20"]), {"PGD-7": "pgd7", "absent": "nothing"})
    assert list(shown.index) == ["ResNet-20: RSR, pruned - AT", "ResNet-20: RSR, fine-tuned - AT, trained on"]
    per_seed = [(0.44, 0.51), (0.44, 0.515), (0.44, 0.52)]  # 10 - 3 more, and half a point per seed
    low, high = crossed(np.array([100.0 * answers(rsr) - 100.0 * answers(at) for at, rsr in per_seed])).interval()
    assert shown.loc["ResNet-20: RSR, pruned - AT", "PGD-7"] == f"+7.5 [{low:+.1f}, {high:+.1f}]"
    assert set(shown["absent"]) == {""}


def test_the_control_compares_pruned_with_as_long_trained(frame):
    shown = tables.effects(frame[frame["seed"] == 0], comparisons.controls(), {"clean": "clean"})
    assert len(shown) == 5 and set(shown["clean"]) == {"+4.0"}
    assert all(name.endswith("pruned and fine-tuned - trained on") for name in shown.index)


def test_what_cutting_changes_is_read_on_one_network(frame, quick):
    results = results_of(quick, None, with_rates(frame, frame["value"] + 0.1 * (frame["method"] == "AT")))
    assert report.changed_by_cutting(results) == pytest.approx(-3.0)
    own = frame["value"] - 0.2 * ((frame["method"] == "AT") & (frame["stage"] == "pruned"))
    found = report.changed_by_cutting(results_of(quick, None, with_rates(frame, own)), "AT")
    assert found == pytest.approx(-23.5, abs=0.6)


def test_companion_numbers_stand_in_their_rows_only(frame):
    main = frame[(frame["varied"] == "") & (frame["net"] == "ResNet-20")]
    shown = report.with_companion(report.table(main, comparisons.PROTOCOL))
    assert shown.loc["AT, dense", "PGD-7, companion"] == "39.14"
    assert shown.loc["AT + noise, dense", ["clean, companion", "FGSM, companion"]].tolist() == ["85.17", "56.51"]
    others = shown.drop(index=["AT, dense", "AT + noise, dense"])
    assert set(others.filter(like="companion").to_numpy().flatten()) == {""}
    assert not [heading for heading in shown.columns if "reported" in heading]
    varied = report.with_companion(report.table(frame[frame["varied"] == "granularity"], comparisons.PROTOCOL))
    assert varied["PGD-7, companion"].to_dict() == {
        "AT + noise, dense, granularity layer": "45.94", "AT + noise, dense, granularity element": "49.07"}


def test_tables_say_percent_with_spread(frame):
    shown = report.table(frame[(frame["varied"] == "") & (frame["net"] == "VGG-16")], {"clean": "clean"}, nets=True)
    assert shown.loc["VGG-16 (narrow VGG16): AT, dense", "clean"] == "45.0 ± 0.0"
    assert shown.loc["VGG-16 (narrow VGG16): RSR, dense", "clean"] == "55.5 ± 0.5"


def test_trials_are_shown_with_the_companions(quick, monkeypatch):
    monkeypatch.setattr(type(quick), "shown", lambda *_: {"trial_values": [0.5, 0.52, 0.54]})
    shown = report.trials_table(results_of(quick, None, None))
    assert set(shown["clean"]) == {"52.0 ± 2.00"}
    assert shown.loc["AT + noise, dense", "PGD-7, companion"] == "48.40 ± 0.37"
    assert shown.loc["AT, dense", "clean, companion"] == "83.84"
    assert shown.loc["RSR, pruned", "FGSM, companion"] == ""


def test_zoo_succeeds_on_what_was_right_before():
    rows = [{"net": "N", "ours": "n", "method": m, "stage": "dense", "varied": "", "level": None, "seed": 0, "run": m,
             "metric": metric, "value": c / t, "count": c, "total": t, "sampled": True, "each": None, "chance": 0.1,
             "where": "store", "processor": "x"}
            for m, left in (("AT", 2), ("RSR", 6))
            for metric, c, t in (("zoo", left, 10), ("zoo_clean", 8, 10), ("transfer", 30, 100), ("square", 50, 100))]
    shown = report.black_box_table(results_of(None, None, pandas.DataFrame(rows)))
    low, high = estimates.binomial_interval(6, 8)
    assert shown.loc["AT, dense", "ZOO success"] == f"75 [{100 * low:.0f}, {100 * high:.0f}] of 8"
    assert shown.loc["RSR, dense", "ZOO success"].startswith("25 [")
    assert report._success(9, 8).startswith("0 [0, ") and report._success(0, 0) == ""


def test_figure_1_has_its_paths(frame, quick):
    rows = report.tradeoff_rows(results_of(quick, None, frame))
    assert set(rows["seed"]) == {0} and set(rows["stage"]) == {"dense", "pruned"}
    levels = rows.groupby("path")["level"].unique().map(sorted).to_dict()
    cut = sorted([0.0, 0.85, *quick.settings.varied.sparsity])
    assert levels == {"AT, by sparsity": cut, "RSR, by sparsity": cut,
                      "RSR, by threshold": sorted(quick.settings.varied.threshold),
                      "RSR, by lambda": sorted([quick.settings.lam, *quick.settings.varied.lam])}
    both = rows[rows["path"].isin(["RSR, by threshold", "RSR, by lambda"]) & (rows["metric"] == "clean")]
    assert both["run"].duplicated().sum() == 1  # where the two paths meet


def test_curve_frames_hold_their_level(frame, quick):
    rows = report.curve(results_of(quick, None, frame), "radius")
    assert set(rows["metric"]) == {"radius"} and set(rows["level"]) == set(quick.settings.curves.radius)
    assert set(rows["network"]) == {f"{m}, {s}" for m, s in report.COMPARED}


def test_every_claim_is_judged_and_own_questions_report_nothing(rows):
    assert not rows.index.has_duplicates
    assert {name.split()[0] for name in rows.index} == set(reported.load("rsr").claims) - {"C6.PGD"}  # as C2 and C5
    own = rows[[" " in name for name in rows.index]]
    assert own["reported"].isna().all() and set(own["source"]) == {"this project's question"}
    assert rows.loc["C1", "reported"] == 0.68 and rows.loc["C2", "reported"] == 8.72
    assert pandas.isna(rows.loc["C7.PGD", "reported"])  # the companion's
    assert set(rows["n_seeds"]) == {3} and set(rows["images"]) == {IMAGES} and set(rows["margin"].dropna()) == {1.0}


def test_verdicts_follow_the_numbers(frame, rows, judged):
    assert rows.loc["C2", "ours"] == pytest.approx(7.5) and rows.loc["C2", "verdict"] == claims.HOLDS
    assert rows.loc["C4", "ours"] == pytest.approx(4.0)  # fine-tuned 15, trained on 11
    assert rows.loc["C2 equal training", "ours"] == pytest.approx(14.0, abs=0.6)
    worse = with_rates(frame, frame["value"].where(frame["method"] != "RSR", frame["value"] - 0.3))
    worse = worse.assign(value=worse["value"].where(worse["metric"] != "clean", 0.5))  # none has collapsed
    after = judged(worse)
    assert after.loc["C2", "verdict"] == after.loc["C3 PGD-7", "verdict"] == claims.FAILS


def test_no_loss_is_asked_of_both_accuracies(frame, judged):
    lower = (frame["metric"] == "pgd7") & (frame["method"] == "RSR")
    rows = judged(with_rates(frame, frame["value"].where(~lower, frame["value"] - 0.2)))
    assert rows.loc["C3 PGD-7", "ours"] == pytest.approx(7.5 - 20)
    assert rows.loc["C3 clean", "ours"] == rows.loc["C1", "ours"] == pytest.approx(7.5)
    assert set(rows.loc[["C3 clean", "C3 PGD-7"], "unit"]) == {"percentage points"}
    assert rows.loc["C3 clean", "verdict"] == claims.HOLDS and rows.loc["C3 PGD-7", "verdict"] == claims.FAILS


def test_claims_of_more_than_one_kind_have_a_row_for_each(rows):
    for claim, suffixes in {"C5.VGG": ["clean", "averaged", "noise off", "equal training"],
                            "C7.PGD": ["averaged", "noise off", "equal training"], "C6.BB": ["noise off"],
                            "C4": ["averaged", "noise off", "never any noise"]}.items():
        assert claim in rows.index
        assert {name.removeprefix(f"{claim} ") for name in rows.index if name.startswith(f"{claim} ")} == {*suffixes}
        for suffix in suffixes:
            assert rows.loc[f"{claim} {suffix}", "quantity"].endswith(f"({suffix})")


def test_every_line_of_the_ledger_has_its_comparison(rows):
    record = reported.load("rsr")
    lines = claims.ledger(rows, record)
    assert lines["line"].tolist() == [line.id for line in record.ledger]
    assert lines["claim"].tolist() == [line.primary for line in record.ledger]
    assert set(lines["claim"]) <= set(rows.index)
    assert (lines["n_seeds"] == 3).all() and claims.UNTESTED not in set(lines["verdict"])


def test_a_collapsed_network_is_not_judged(frame, rows, judged):
    fallen = ((frame["metric"] == "clean") & (frame["net"] == "VGG-16") & (frame["method"] == "RSR")
              & (frame["stage"] == "pruned") & (frame["seed"] == 1))
    assert fallen.sum() == 1
    found = judged(frame.assign(value=frame["value"].where(~fallen, 0.1)))
    its = found.index.str.startswith("C5.VGG") & (found.index != "C5.VGG equal training")
    assert its.sum() == 4 and (found[its]["verdict"] == claims.UNTESTED).all()
    assert (found[its]["why"] == "a network has collapsed (clean 10 %)").all()
    assert found[~its]["verdict"].equals(rows[~its]["verdict"])


def test_one_seed_is_not_tested(frame, judged):
    found = judged(frame[frame["seed"] == 0])
    assert (found["verdict"] == claims.UNTESTED).all() and (found["why"] == estimates.ONE_SEED).all()
    assert (found["n_seeds"] == 1).all() and found["ours"].notna().all()


def test_ingredients_are_told_apart(frame):
    shown = tables.effects(frame[frame["seed"] == 0], comparisons.ingredients(), {"clean": "clean"})["clean"].to_dict()
    assert shown == {"AT + lasso - AT": "+2.0", "AT + noise - AT": "+4.0", "RSR - AT + noise": "+6.0",
                     "RSR - AT + lasso": "+8.0", "RSR - AT": "+10.0"}
