"""Achieving Adversarial Robustness via Sparsity: its runs, what training costs, its tables, its verdicts."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
import yaml

from scaffolding import results_of
from sparserobust import analysis, imagewise
from sparserobust.objectives import Natural
from sparserobust.paths import PROJECT
from sparserobust.reporting import claims, estimates, plots, reported
from sparserobust.running import scales
from sparserobust.sparsifiers import Magnitude, MatchedHistogram, Ticket
from sparserobust.studies import ledger
from sparserobust.studies.iwi import comparisons, cost, report, runs

SCALES = [name for name in scales.names() if scales.has(name, "iwi")]


@pytest.fixture(scope="module")
def quick():
    return runs.experiment("quick")


@pytest.fixture(scope="module", params=SCALES)
def any_scale(request):
    return runs.experiment(request.param)


def runs_of(experiment, **labels) -> dict:
    """Runs by (method, level) of the rows with these labels and the first seed."""
    return {(row["method"], row["level"]): row["run"]
            for row in experiment.rows(seed=experiment.seeds[0], **labels)}


# ------------------------------------------------------------------------------------------------ runs


def test_every_row_is_another_run(any_scale):
    assert len({row["run"].identity for row in any_scale.grid}) == len(any_scale.grid)
    assert all(row["run"].seed == row["seed"] for row in any_scale.grid)


def test_what_is_needed_is_trained_in_the_grid_too_but_for_starts_of_tickets(any_scale):
    """So that its training time is on record, published or not; and nothing is trained that nobody needs."""
    grid = {row["run"].identity for row in any_scale.grid}
    needed = [run for row in any_scale.grid for run in row["run"].lineage]
    assert all(run.identity in grid or run.recipe.stop is not None for run in needed)
    wanted = {run.identity for row in any_scale.grid if row["part"] != runs.INTERMEDIATE
              for run in row["run"].lineage}
    assert {row["run"].identity for row in any_scale.rows(part=runs.INTERMEDIATE)} <= wanted


def test_the_chain_goes_no_deeper_than_it_is_asked_for(quick):
    at = quick.row(net="ResNet", part="dense", retraining="adversarial")["run"]
    cell = runs.Cell(pruning="adversarial", retraining="adversarial", starts=["random"], levels=[0.5, 0.8])
    found = runs._tickets(runs.Tickets(levels=[0.5, 0.8, 0.9], early=1, cells=[cell]),
                          {"natural": replace(at, objective=Natural()), "adversarial": at})
    assert [(row["method"], row["level"]) for row in found] == [
        ("pruned", 0.5), ("initial", 0.5), ("random", 0.5), ("pruned", 0.8), ("random", 0.8)]


def test_tickets_are_found_as_a_citing_benchmark_says(any_scale):
    """Its entry for the paper: iterative, unstructured, global, lowest weight magnitude, adversarial in both steps."""
    said = yaml.safe_load((PROJECT / "data/reported/iwi.yaml").read_text())["hyperparameters"]["third_party_taxonomy"]
    assert [said[key] for key in ("pruning_step", "training_step", "schedule", "structure", "scope", "criterion")] == [
        "AT", "AT", "iterative", "unstructured", "global", "LWM"]
    net = any_scale.nets[0]
    last = any_scale.row(net=net, part="dense", retraining="adversarial")["run"]
    chain = {row["level"]: row["run"] for row in any_scale.rows(
        net=net, pruning="adversarial", retraining="adversarial", method="initial", seed=any_scale.seeds[0])}
    assert chain.keys() >= set(comparisons.levels(any_scale, net))
    for level, found in sorted(chain.items()):
        pruned = found.sparsifier.pruned
        assert pruned.sparsifier == Magnitude(sparsity=level, scope="global")
        assert (pruned.start, pruned.recipe.epochs) == (last, 0) and found.start is None
        assert found.objective == pruned.objective == last.objective
        last = found


def test_tickets_differ_in_mask_training_and_start_alone(any_scale):
    for row in any_scale.rows(part="tickets"):
        run = row["run"]
        dense = {r["retraining"]: r["run"] for r in any_scale.rows(net=row["net"], part="dense", seed=row["seed"])}
        mask, whole = run.sparsifier.pruned, dense[row["retraining"]]
        assert mask.objective == dense[row["pruning"]].objective and mask.sparsifier.sparsity == row["level"]
        watched = replace(whole.recipe, watched=row["method"] == "initial")
        assert run == replace(whole, start=run.start, sparsifier=Ticket(pruned=mask), recipe=watched)
        if row["method"] == "early":
            assert run.start == replace(dense[row["pruning"]], recipe=run.start.recipe) and run.start.recipe.stop > 0
        elif row["method"] == "random":  # never trained, and drawn anew for each seed
            assert run.start.recipe.stop == 0 and run.start.seed == row["seed"] + runs.REDRAWN
        else:
            assert run.start == {"initial": None, "trained": mask.start}[row["method"]]


def test_the_zoo_has_one_dense_net_and_one_budget(any_scale):
    for net in any_scale.nets:
        at = runs_of(any_scale, net=net, part="dense", retraining="adversarial")["dense", 0.0]
        zoo = runs_of(any_scale, net=net, part="zoo")
        longer, slim = zoo.pop((runs.LONGER, 0.0), None), zoo.pop((runs.SLIMMING, 0.0), None)
        assert bool(zoo) == (any_scale.settings_for(net).zoo is not None)
        for (method, _), run in zoo.items():
            begins, *after = run.lineage
            assert begins == (slim if method == runs.SLIMMING else at) and run.objective == at.objective
            assert sum(r.recipe.epochs for r in after) == longer.recipe.epochs, method


def test_what_inherits_differs_from_its_controls_in_one_thing(any_scale):
    for net in any_scale.nets:
        own = any_scale.settings_for(net).inheritance
        at = runs_of(any_scale, net=net, part="dense", retraining="adversarial")["dense", 0.0]
        found = runs_of(any_scale, net=net, part="inheritance")
        small = found[runs.SMALL, None]
        assert small == replace(at, model=small.model) and 2 * small.model.width == at.model.width
        starts = {runs.NARROW: small}
        if runs.TICKET in own.sources:
            starts[runs.TICKET] = any_scale.row(**comparisons.ticket(net, own.ticket))["run"]
        assert {row["method"] for row in any_scale.rows(net=net, part="inheritance")} >= {
            runs.IWI[source] for source in own.sources} and starts.keys() == set(own.sources)
        for source, start in starts.items():
            iwi = found[runs.IWI[source], own.kappa]
            assert iwi == replace(at, start=start, inheritance=iwi.inheritance)
            assert iwi.inheritance.kappa == own.kappa
            matched = MatchedHistogram(target=iwi, beta=own.beta)
            assert found[runs.MATCHED[source], None] == replace(at, sparsifier=matched)
        natural = found[runs.FROM_NATURAL, own.kappa]
        assert natural.start == replace(small, objective=Natural())
        assert replace(natural, start=small) == found[runs.IWI[runs.NARROW], own.kappa]


def test_kappas_are_for_the_seed_that_is_named_first():
    some = runs.experiment("quick", [7, 3])
    own = some.settings.inheritance
    levels = {seed: {row["level"] for row in some.rows(net="ResNet", method=runs.IWI[runs.NARROW], seed=seed)}
              for seed in (7, 3)}
    assert levels == {7: set(own.kappas), 3: {own.kappa}}


def test_settings_that_do_not_go_together_are_refused(quick, refusal):
    own = quick.settings
    assert "0.7" in refusal(replace, own, inheritance=replace(own.inheritance, ticket=0.7))
    assert "0.9 of a cell" in refusal(replace, own.tickets, levels=(0.8,), cells=[
        {"pruning": "natural", "retraining": "natural", "starts": [], "levels": [0.8, 0.9]}])
    assert "kappa is one of" in refusal(replace, own.inheritance, kappa=0.2)
    assert "did you mean 'random'" in refusal(runs.Cell, pruning="natural", retraining="natural", starts=["randm"])
    assert "did you mean 'narrow'" in refusal(replace, own.inheritance, sources=["narow"])


def test_every_comparison_finds_its_metric_on_both_sides(any_scale):
    for contrast in comparisons.contrasts(any_scale):
        for side in (contrast.treatment, contrast.reference):
            for row in any_scale.rows(**side):
                assert contrast.metric.split()[0] in row["measurements"], (contrast.claim.id, side)
            assert any_scale.rows(**side)


def test_what_table_3_compares_has_every_attack(any_scale):
    for row in any_scale.grid:
        if report.of_inheritance(row, any_scale):
            assert {*report.EFFECTS.values(), "near_zero", "macs"} <= set(row["measurements"])
            assert ("health" in row["measurements"]) == (
                row["seed"] == any_scale.seeds[0] and row["retraining"] == "adversarial")


def test_the_overview_has_a_line_for_each_kind_of_run(quick):
    shown = report.overview(quick)
    slimming = shown[shown["method"] == runs.SLIMMING].set_index("levels")["epochs"]
    assert slimming.to_dict() == {"0": 5, "0.8, 0.9": 3}  # its own dense network is trained for longer
    line = shown[(shown["method"] == runs.GLOBAL) & (shown["network"] == "ResNet8")].iloc[0]
    assert (line["levels"], line["seeds"], line["epochs"]) == ("0.8, 0.9", "0, 1, 2", 3)


# ------------------------------------------------------------------------------------------------ cost


def costs_of(experiment, arithmetic=None) -> cost.Costs:
    """With true multiply-accumulates, or with these by model."""
    def macs(run):
        shape = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}[run.data.name]
        return analysis.macs(run.model.build(shape, 10), shape)

    models: dict = {}
    rows = []
    for row in experiment.grid:
        if "macs" in row["measurements"]:
            model = row["run"].model
            models[model] = models.get(model) or (arithmetic[model] if arithmetic else macs(row["run"]))
            rows += [{"run": row["run"].identity, "metric": metric, "value": value}
                     for metric, value in (("macs", models[model]), ("clean", 0.5))]
    return cost.Costs(results_of(experiment, None, pandas.DataFrame(rows)))


def test_the_control_of_equal_cost_is_trained_as_much_and_less_than_an_epoch_more(any_scale):
    costs = costs_of(any_scale)
    for net in any_scale.nets:
        at = runs_of(any_scale, net=net, part="dense", retraining="adversarial")["dense", 0.0]
        found, kappa = runs_of(any_scale, net=net, part="inheritance"), any_scale.settings_for(net).inheritance.kappa
        for source in any_scale.settings_for(net).inheritance.sources:
            control = found[runs.EQUAL[source], None]
            assert control == replace(at, recipe=replace(at.recipe, epochs=control.recipe.epochs))
            iwi, longer = costs.whole(found[runs.IWI[source], kappa], net), costs.whole(control, net)
            assert iwi <= longer < iwi + at.objective.cost


def test_networks_that_nobody_has_measured_are_counted(quick):
    """As narrow ones are, where only those that inherit from them are known."""
    net, kappa = "ResNet", quick.settings.inheritance.kappa
    found = runs_of(quick, net=net, part="inheritance")
    heir, narrow = found[runs.IWI["narrow"], kappa], found[runs.SMALL, None]
    measured, partly = costs_of(quick), costs_of(quick)
    del partly._macs[narrow.model.identity]
    assert partly.whole(heir, net) == measured.whole(heir, net) > measured.whole(narrow, net)


def test_cost_counts_every_ancestor_once_and_narrow_ones_by_their_arithmetic(quick):
    kappa, net = quick.settings.inheritance.kappa, "ResNet"
    at = runs_of(quick, net=net, part="dense", retraining="adversarial")["dense", 0.0]
    found, epochs = runs_of(quick, net=net, part="inheritance"), at.recipe.epochs
    models = {row["run"].model: 1.0 for row in quick.grid}
    costs = costs_of(quick, models | {at.model: 8.0, found[runs.SMALL, None].model: 2.0})
    assert at.objective.cost == 2  # FGSM: one pass to attack, one to learn
    assert costs.whole(at, net) == 2 * epochs
    assert costs.whole(found[runs.SMALL, None], net) == 2 * epochs / 4
    assert costs.whole(found[runs.IWI[runs.NARROW], kappa], net) == 2 * epochs * 1.25
    assert costs.whole(found[runs.FROM_NATURAL, kappa], net) == 2 * epochs + epochs / 4
    # dense, then the ticket, then the network that inherits; pruning alone costs nothing
    assert costs.whole(found[runs.IWI[runs.TICKET], kappa], net) == 6 * epochs
    early = quick.row(part="tickets", method="early")["run"]
    assert costs.whole(early.start, net) == 2 * early.start.recipe.stop


# ----------------------------------------------------------------------------------------------- results


IMAGES = 20_000


def right(rate: float) -> str:
    """Answers on single images, packed; the first images are the easiest for every network."""
    return imagewise.pack(np.arange(IMAGES) < round(IMAGES * rate))


def spread(value: float) -> str:
    """Values of single images with this mean, packed."""
    values = np.random.default_rng(0).uniform(0.5, 1.5, 1000)
    return imagewise.pack(value * values / values.mean())


class Stored:
    """A store in which a run of seed s took 10 + s seconds, and was attacked after each of four epochs."""

    def record(self, run):
        if run.objective == Natural():
            return {"history": [{"epoch": 1, "validation": 0.9}]}
        return {"history": [{"epoch": e + 1, "validation_robust": v} for e, v in enumerate((0.5, 0.75, 0.7, 0.6))]}

    def seconds(self, run):
        return 10 + run.seed

    def find(self, run, measurement, fewer_images=False):
        return {"value": 0.0}

    def measure(self, run, measurement):
        return {"value": 0.0, "of": run.identity}


@pytest.fixture(scope="module")
def results(quick):
    """Made up: accuracy falls with sparsity, rises with adversarial training and inheritance; the seeds scatter, each
    kind of run in its own way."""
    rows, kinds = [], {}
    for row in quick.grid:
        kind = tuple(row[k] for k in ("net", "part", "pruning", "retraining", "method", "level"))
        scatter = kinds.setdefault(kind, len(kinds)) * (row["seed"] - 1) / IMAGES  # the mean over seeds is zero
        own = 1 + scatter
        base = 0.8 - 0.2 * (row["level"] or 0) * (row["part"] in ("tickets", "zoo")) + 0.001 * row["seed"]
        base -= 0.5 * (row["retraining"] == "natural") + 0.1 * (row["pruning"] == "natural")
        base += {"initial": 0.02, "trained": 0.03, "random": -0.05, runs.LONGER: 0.01}.get(row["method"], 0)
        base += 0.04 * row["method"].startswith("IWI") + 0.06 * row["method"].startswith("AT, cost")
        values = {"pgd20": base + scatter, "clean": 0.9,
                  "near_zero": 0.1 + 0.1 * row["method"].startswith("IWI") + scatter,
                  "sparsity": row["level"] if row["part"] in ("tickets", "zoo") else 0.0,
                  "macs": row["run"].model.cost,
                  "margins": 1.0, "margins bound": 10 * (1 + (row["level"] or 0)) * own,
                  "margins slope": (2 - (row["level"] or 0)) * own,
                  "margins ratio": 1, "margins_linf ratio": 1 + base}
        labels = {k: v for k, v in row.items() if k not in ("run", "measurements")} | {"run": row["run"].identity}
        rows += [labels | {"metric": metric, "value": value, "count": 100 * min(max(value, 0), 1), "total": 100,
                           "sampled": metric not in ("near_zero", "sparsity", "macs"), "chance": 0.1,
                           "where": "store", "processor": "x",
                           "each": right(value) if metric in ("pgd20", "clean") else
                           spread(value) if "margins" in metric else None} for metric, value in values.items()]
    return results_of(quick, Stored(), pandas.DataFrame(rows))


@pytest.fixture(scope="module")
def rows(results):
    return comparisons.judged(results).set_index("claim", drop=False)


def test_curves_go_on_from_what_was_spent_before(results, quick):
    found, costs = cost.curves(results), cost.Costs(results)
    assert set(found["method"]) == {"AT", *runs.EQUAL.values(), *runs.IWI.values(), runs.FROM_NATURAL}
    assert set(found["seed"]) == set(quick.seeds)
    for row in quick.rows(net="ResNet", seed=1, retraining="adversarial"):
        curve = found[(found["method"] == report.method_name(row)) & (found["seed"] == 1)].set_index("epoch")["cost"]
        if len(curve) and report.of_inheritance(row, quick):
            run = row["run"]
            assert curve.diff().dropna().tolist() == pytest.approx([costs.epoch(run, "ResNet")] * 3)
            left = costs.epoch(run, "ResNet") * (run.recipe.epochs - 4)
            assert curve[4] == pytest.approx(costs.whole(run, "ResNet") - left)
    assert found[found["method"] == "AT"]["cost"].iloc[0] == pytest.approx(2)
    plots.lines(found, "cost", hue="method", at="epoch")


def test_seconds_are_those_of_the_whole_lineage(results):
    shown = cost.table(results)
    assert shown.loc["ResNet8, AT", "seconds"] == "11"
    assert shown.loc[f"ResNet8, {runs.IWI[runs.TICKET]}", "seconds"] == "44"  # dense, pruned, ticket, itself
    assert shown.loc[f"ResNet8, {runs.IWI[runs.NARROW]}", "seconds"] == "22"
    assert shown.loc["ResNet8, AT", "passes"] == "10.0"


def test_every_line_begins_with_the_dense_net_trained_as_it_was_retrained(results, quick):
    drawn = report.along_sparsity(results)
    assert set(drawn["row"]) == {"PGD-20 [%]", "clean [%]"} and set(drawn["net"]) == {"ResNet"}
    for (panel, name), line in drawn.groupby(["col", "series"]):
        dense = line[(line["level"] == 0) & (line["metric"] == "pgd20")]
        own = name == runs.SLIMMING  # which was pruned from a network with a penalty on scales
        assert set(dense["part"]) == {"zoo" if own else "dense"} and set(dense["retraining"]) == {"adversarial"}
        assert len(dense) == len(quick.seeds) and (dense["left"] == 100).all()
        assert set(line["pruning"]) <= {"", "adversarial"}
        assert name.startswith("weights: ") == (panel == "lottery tickets")
    assert set(drawn[drawn["col"] == "zoo"]["series"]) == {
        runs.GLOBAL, runs.LAYERWISE, runs.FILTERS, runs.SLIMMING, runs.SCORES, f"mask: {runs.RANDOM}"}
    axis = plots.along_sparsity(drawn).axes[0]
    low, high = axis.get_ylim()
    assert 40 < low < high < 100  # percent


def test_a_row_of_the_readers_own_enters_table_1_and_figure_1(results):
    mine = estimates.matching(results.frame, {"net": "ResNet", "part": "zoo", "method": runs.GLOBAL, "level": 0.8})
    more = replace(results, frame=pandas.concat([results.frame, mine.assign(method="mine")]))
    assert report.zoo_table(more).loc["mine, 80 %"].tolist() == report.zoo_table(more).loc[
        f"{runs.GLOBAL}, 80 %"].tolist()
    assert "mine" in set(report.along_sparsity(more)["series"])


def test_table_1_has_the_dense_network_and_the_control(results):
    shown = report.zoo_table(results)
    assert {"dense, 0 %", f"{runs.LONGER}, 0 %", f"{runs.RANDOM}, 90 %"} <= set(shown.index)
    assert shown.loc[f"{runs.GLOBAL}, 80 %", ["removed", "PGD-20"]].str.split().str[0].tolist() == ["80.0", "64.1"]


def test_theory_is_drawn_for_either_training(results):
    drawn = report.theory_along_sparsity(results)
    assert list(dict.fromkeys(drawn["col"])) == list(report.THEORY)
    for name, line in drawn.groupby("series"):
        training = name.removeprefix("tickets, ") if name.startswith("tickets") else "adversarial"
        assert set(line["retraining"]) == {training} and set(line["pruning"]) == {"", training}
        assert set(line["method"]) == {"dense", runs.GLOBAL if name.startswith("zoo") else "initial"}
    assert drawn["series"].nunique() == 3 and set(drawn["net"]) == {"ResNet"}
    factors = drawn.groupby("col")["factor"].first()
    assert factors["best - last epoch [points]"] == 100 and factors["margin [logits]"] == 1
    flat = replace(results, frame=results.frame.assign(value=results.frame["value"].where(
        results.frame["metric"] != "margins", 0.0)))
    assert "margin [logits]" not in set(report.theory_along_sparsity(flat)["col"])


def test_overfitting_is_the_best_epoch_minus_the_last(results, quick):
    found = report.with_overfitting(results).frame
    added = found[found["metric"] == "overfitting"]
    watched = {row["run"].identity for row in quick.grid
               if row["run"].recipe.watched and row["run"].objective != Natural()}
    assert set(added["run"]) == watched and not added["run"].duplicated().any()
    assert added["value"].tolist() == pytest.approx([0.15] * len(added)) and added["count"].isna().all()
    assert len(found) == len(results.frame) + len(added)


def test_table_2_has_a_line_per_cell_and_columns_per_level(results, quick):
    shown = report.tickets_table(results)
    cells = quick.settings.tickets.cells
    assert set(shown.index) == {f"{c.pruning}, {c.retraining}, {s}" for c in cells for s in c.starts}
    assert [name for name in shown if name.endswith("PGD-20")] == ["80 % removed: PGD-20", "95 % removed: PGD-20"]
    values = estimates.matching(results.frame, comparisons.ticket("ResNet", 0.8) | {"metric": "pgd20"})
    assert shown.loc["adversarial, adversarial, initial", "80 % removed: PGD-20"] == (
        f"66.1 ± {100 * values['value'].std():.1f}")
    assert shown.loc["natural, natural, initial", "80 % removed: PGD-20"] == ""
    effects = report.tickets_effects(results)["PGD-20"]
    assert {name: effect.split()[0] for name, effect in effects.items()} == {
        "initial - random weights": "+7.0", "early - random weights": "+5.0", "trained - random weights": "+8.0",
        "trained - initial weights": "+1.0", "adversarial - natural retraining": "+50.0",
        "adversarial - natural pruning": "+10.0"}


def test_table_3_has_every_method_once(results, quick):
    found = report.inheritance_rows(results)
    controls = {method for group in (runs.IWI, runs.EQUAL, runs.MATCHED) for method in group.values()}
    for _, rows in found.groupby(["net", "seed", "metric"]):
        assert sorted(rows["method"]) == sorted(
            {"AT", "ticket", runs.SMALL, runs.NATURAL, runs.FROM_NATURAL, *controls})
    at, ticket = (found[found["method"] == method] for method in ("AT", "ticket"))
    assert set(at["retraining"]) == set(ticket["pruning"]) == set(ticket["retraining"]) == {"adversarial"}
    assert set(ticket["level"]) == {quick.settings.inheritance.ticket} and set(found["net"]) == set(quick.nets)


def test_histograms_are_those_of_the_first_network_in_order(results, quick):
    shown, histograms = report.histograms(results)
    assert shown["network"].tolist() == [name for name in ("AT", runs.SMALL, *runs.IWI.values()) for _ in quick.seeds]
    at = [row["run"].identity for row in quick.rows(net="ResNet", part="dense", retraining="adversarial")]
    assert [each["of"] for each in histograms[:3]] == at


def test_matched_histograms_are_compared_seed_by_seed(results):
    assert not report.histograms_match(results)
    near = results.frame["metric"] == "near_zero"
    by_seed = replace(results, frame=results.frame.assign(
        value=results.frame["value"].where(~near, results.frame["seed"] / 10)))
    assert report.histograms_match(by_seed)


# ----------------------------------------------------------------------------------------------- verdicts


def test_what_inherits_is_compared_with_what_would_explain_it_away(quick):
    found = comparisons.inheritance(quick, "ResNet")
    at = comparisons.dense("ResNet")

    def row(method, kappa=None):
        return {"net": "ResNet", "part": "inheritance", "pruning": "", "retraining": "adversarial", "method": method,
                "level": kappa}

    expected = {"IWI, from narrow - inherits from natural narrow": (row("IWI, from narrow", 0.1),
                                                                    row("inherits from natural narrow", 0.1))}
    for source in ("narrow", "ticket"):
        iwi, equal, histogram = (f"{what} from {source}"
                                 for what in ("IWI,", "AT, cost of IWI", "AT, histogram of IWI"))
        expected |= {f"{iwi} - AT": (row(iwi, 0.1), at), f"{iwi} - AT at equal cost": (row(iwi, 0.1), row(equal)),
                     f"{iwi} - AT with its histogram": (row(iwi, 0.1), row(histogram)),
                     f"AT with the histogram of {iwi} - AT": (row(histogram), at)}
    assert found == expected and at["retraining"] == "adversarial"


def test_starts_and_trainings_are_compared_where_there_are_two(quick):
    assert comparisons.starts(quick, "LeNet-5", 0.8) == comparisons.trainings(quick, "LeNet-5", 0.8) == {}
    assert list(comparisons.trainings(quick, "ResNet", 0.95)) == [
        "adversarial - natural retraining", "adversarial - natural pruning"]


def test_every_claim_is_judged_once_for_each_thing_it_speaks_of(rows, quick):
    assert not rows.index.has_duplicates and (rows["n_seeds"] == 3).all()
    names = [name.split()[0] for name in rows.index]
    assert set(names) == set(reported.load("iwi").claims) and names == sorted(names)
    assert f"C1 ResNet, {runs.RANDOM}, 80 %" not in rows.index
    assert {name for name in rows.index if name.startswith("C2 ResNet, 95 %")} == {
        f"C2 ResNet, 95 %, {start} - random weights" for start in runs.STARTS[:-1]}
    first, second = quick.nets
    assert all(name.split(",")[0] == f"{name[:2]} {second if name.startswith('C7') else first}" for name in rows.index)
    assert rows["reported"].isna().all()


def test_verdicts_follow_from_effects(results, rows):
    verdicts = rows["verdict"]
    assert rows.loc[f"C1 ResNet, {runs.GLOBAL}, 80 %", "ours"] == pytest.approx(-16)
    assert rows.loc[f"C1 ResNet, {runs.GLOBAL}, 80 %, equal training", "ours"] == pytest.approx(-17)
    assert rows.loc["C1 ResNet, ticket, 80 %", "ours"] == pytest.approx(-14)  # initial weights: 2 points more
    assert (verdicts[[name for name in rows.index if name.startswith("C1")]] == claims.FAILS).all()
    assert rows.loc["C2 ResNet, 95 %, initial - random weights", "ours"] == pytest.approx(7)
    assert rows.loc["C3 ResNet, 95 %, adversarial - natural retraining", "ours"] == pytest.approx(50)
    assert (verdicts[[name for name in rows.index if name[:2] in ("C2", "C3", "C5")]] == claims.HOLDS).all()
    assert verdicts[f"C4 ResNet, {runs.IWI[runs.NARROW]} - AT"] == claims.HOLDS
    assert verdicts[f"C4 ResNet, {runs.IWI[runs.NARROW]} - AT at equal cost"] == claims.FAILS
    assert rows.loc[f"C4 ResNet, {runs.IWI[runs.TICKET]} - AT with its histogram", "ours"] == pytest.approx(4)
    assert rows.loc[f"C5 ResNet, {runs.IWI[runs.TICKET]} - AT", "ours"] == pytest.approx(10)
    assert len([name for name in rows.index if name.startswith("C4")]) == 7  # not those of a histogram alone
    # a point less is no worse
    frame = results.frame
    less = 0.005 * (frame["part"] == "zoo") + frame["run"].map(lambda run: int(run[:4], 16)) / 65_536 / 1000
    half = frame.assign(value=0.5 - less).assign(each=lambda rows: rows["value"].map(right), sampled=True)
    found = comparisons.judged(replace(results, frame=half)).set_index("claim")
    assert found.loc[f"C1 ResNet, {runs.GLOBAL}, 80 %", "verdict"] == claims.HOLDS


def test_a_second_network_is_asked_whether_the_findings_are_tied_to_the_first(rows, quick):
    ticket = rows.loc["C7 LeNet-5, ticket, 80 %"]
    assert (ticket["direction"], ticket["verdict"], ticket["ours"]) == ("no worse", claims.FAILS, pytest.approx(-14))
    inherits = rows.loc[f"C7 LeNet-5, {runs.IWI[runs.NARROW]} - AT"]
    assert (inherits["direction"], inherits["verdict"], inherits["ours"]) == (
        "increase", claims.HOLDS, pytest.approx(4))
    assert [name for name in rows.index if name.startswith("C7")] == ["C7 LeNet-5, ticket, 80 %"] + [
        f"C7 LeNet-5, {what}" for what in comparisons.inheritance(quick, "LeNet-5") if what.startswith("IWI")]
    inherited = rows[rows.index.str.startswith("C7 LeNet-5, IWI")]
    assert set(inherited["direction"]) == {"increase"} and inherited["quantity"].str.contains(" minus ").all()


def test_slopes_and_their_bounds_are_compared_by_ratios(rows):
    bound, slope = (rows.loc[f"C6 ResNet, 95 %, {what}"] for what in ("bound of the slope", "slope in l2"))
    assert (10 ** bound["ours"], bound["verdict"]) == (pytest.approx(1.95, rel=1e-3), claims.FAILS)
    assert (10 ** slope["ours"], slope["verdict"]) == (pytest.approx(1.05 / 2, rel=1e-3), claims.HOLDS)
    assert (bound["unit"], bound["quantity"], bound["images"]) == ("log10 of the ratio", "bound of the slope", 1000)
    l1, l2 = (rows.loc[f"C6 ResNet, 95 %, margin / slope in {norm}"] for norm in ("l1", "l2"))
    assert l1["direction"] == "increase" and 10 ** l1["ours"] == pytest.approx(1.63 / 1.8, rel=1e-3)
    assert (l2["ours"], l2["verdict"], l2["why"]) == (0, claims.OPEN, "all networks gave the same")


def test_every_line_of_the_ledger_has_its_comparison(results, rows, quick):
    lines = ledger(results, rows)
    assert lines["line"].tolist() == [line.id for line in reported.load("iwi").ledger]
    assert set(lines["claim"]) <= set(rows.index) and not lines["claim"].str.contains("[{}]").any()
    assert (lines["n_seeds"] == 3).all() and claims.UNTESTED not in set(lines["verdict"])
    named, levels = lines.set_index("line")["claim"], quick.settings.primary_levels
    assert named["C1"] == f"C1 ResNet, {runs.GLOBAL}, {100 * levels.zoo:g} %"
    assert named["C6"] == f"C6 ResNet, {100 * levels.tickets:g} %, bound of the slope"
    assert named["C7"] == f"C7 LeNet-5, {runs.IWI[runs.NARROW]} - AT"


def test_the_comparisons_named_beforehand_are_run(any_scale):
    named = {line.primary.format(**comparisons.words(any_scale)) for line in reported.load("iwi").ledger}
    assert named <= {contrast.claim.id for contrast in comparisons.contrasts(any_scale)}


def test_a_collapsed_network_is_not_judged(results, quick, rows):
    frame = results.frame
    fallen = ((frame["metric"] == "clean") & (frame["net"] == "ResNet") & (frame["method"] == runs.IWI[runs.NARROW])
              & (frame["level"] == quick.settings.inheritance.kappa) & (frame["seed"] == 2))
    assert fallen.sum() == 1
    one = replace(results, frame=frame.assign(value=frame["value"].where(~fallen, 0.15)))
    found = comparisons.judged(one).set_index("claim")
    its = found.index.str.match(f"C[45] ResNet, {runs.IWI[runs.NARROW]} -")
    assert its.sum() == 5 and (found[its]["verdict"] == claims.UNTESTED).all()
    assert (found[its]["why"] == "a network has collapsed (clean 15 %)").all()
    assert found[~its]["verdict"].equals(rows[~its]["verdict"])


def test_one_seed_is_not_tested(results):
    found = comparisons.judged(replace(results, frame=results.frame[results.frame["seed"] == 0]))
    assert (found["verdict"] == claims.UNTESTED).all() and (found["why"] == estimates.ONE_SEED).all()
    assert (found["n_seeds"] == 1).all() and found["ours"].notna().all()
