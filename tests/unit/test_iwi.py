"""Achieving Adversarial Robustness via Sparsity: its grid of runs, what training costs, its frames, its verdicts."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
import yaml

from sparserobust import imagewise, paths
from sparserobust.analysis import macs
from sparserobust.config import Data, Dense, Measurement, Model, Objective, Recipe, Run
from sparserobust.objectives import Natural
from sparserobust.reporting import claims, estimates, plots, reported, tables
from sparserobust.running import scales
from sparserobust.sparsifiers import (
    Channels,
    FixedMask,
    LearnedScores,
    Magnitude,
    MatchedHistogram,
    RandomMask,
    ScaleLasso,
    Ticket,
)
from sparserobust.studies.iwi import report as iwi

SCALES = [name for name in scales.names()
          if iwi.PAPER in yaml.safe_load((paths.scales_folder() / f"{name}.yaml").read_text())]


@pytest.fixture(scope="module")
def quick():
    return iwi.experiment("quick")


@pytest.fixture(scope="module", params=SCALES)
def any_scale(request):
    return iwi.experiment(request.param)


def runs_of(experiment, **labels) -> dict:
    """Runs by (method, level) of the rows with these labels and the first seed."""
    return {(row["method"], row["level"]): row["run"] for row in experiment.rows(seed=experiment.seeds[0], **labels)}


def model_macs(experiment) -> dict[str, float]:
    shapes = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "mnist": (1, 28, 28)}
    models = {run.model: shapes[run.data.name] for row in experiment.grid for run in row["run"].lineage}
    return {model.identity: macs(model.build(shape, 10), shape) for model, shape in models.items()}


# --------------------------------------------------------------------------------------------------- the grid


def test_every_row_is_another_run_and_has_its_own_label(any_scale):
    keys = ("net", "part", "pruning", "retraining", "method", "level", "seed")
    assert len({tuple(row[k] for k in keys) for row in any_scale.grid}) == len(any_scale.grid)
    assert len({row["run"].identity for row in any_scale.grid}) == len(any_scale.grid)
    assert all(row["run"].seed == row["seed"] for row in any_scale.grid)
    zoo = {"zoo"} if any("zoo" in own for own in any_scale.settings["nets"].values()) else set()
    assert {row["part"] for row in any_scale.grid} == {"dense", "tickets", "inheritance", "on the way"} | zoo
    assert {row["net"] for row in any_scale.grid} == set(any_scale.nets)


def test_settings_of_a_net_come_before_those_of_its_scale(any_scale):
    for net in any_scale.nets:
        own = any_scale.settings | any_scale.settings["nets"][net]
        at = Run(data=Data.parse(own["data"]), model=Model.parse(own["model"]), seed=any_scale.seeds[0],
                 objective=Objective.parse(own["objective"]), recipe=Recipe.parse(own["recipe"]))
        assert runs_of(any_scale, net=net, part="dense", retraining="adversarial") == {("dense", 0.0): at}


def test_seeds_take_turns(quick):
    """So that runs that wait for each other are not begun one after the other."""
    rows = quick.rows(net="ResNet")
    assert [row["seed"] for row in rows[:6]] == quick.seeds * 2 and len({row["run"] for row in rows}) == len(rows)


def test_what_is_needed_is_trained_in_the_grid_too_but_for_starts_of_tickets(any_scale):
    """So that its training time is on record, published or not."""
    grid = {row["run"].identity for row in any_scale.grid}
    for row in any_scale.grid:
        for run in row["run"].lineage:
            assert run.identity in grid or run.recipe.stop is not None


def test_nothing_is_trained_on_the_way_that_nobody_needs(any_scale):
    wanted = {run.identity for row in any_scale.grid if row["part"] != "on the way" for run in row["run"].lineage}
    assert {row["run"].identity for row in any_scale.rows(part="on the way")} <= wanted


def test_the_chain_goes_no_deeper_than_it_is_asked_for(quick):
    settings = quick.settings | quick.settings["nets"]["ResNet"]
    at = quick.rows(net="ResNet", part="dense", retraining="adversarial")[0]["run"]
    cell = {"pruning": "adversarial", "retraining": "adversarial", "starts": ["random"], "levels": [0.5, 0.8]}
    tickets = {"levels": [0.5, 0.8, 0.9], "early": 1, "cells": [cell]}
    found = iwi._tickets(settings | {"tickets": tickets}, {"natural": replace(at, objective=Natural()),
                                                           "adversarial": at})
    assert [row[3:5] for row in found] == [("pruned", 0.5), ("initial", 0.5), ("random", 0.5), ("pruned", 0.8),
                                           ("random", 0.8)]


def test_masks_come_from_a_chain_that_is_rewound_to_its_beginning(any_scale):
    for net in any_scale.nets:
        first = any_scale.rows(net=net, part="dense", seed=any_scale.seeds[0])
        dense = {row["retraining"]: row["run"] for row in first}
        assert [run.objective.kind for run in dense.values()] == ["natural", "adversarial"]
        for pruning, whole in dense.items():
            pruned = runs_of(any_scale, net=net, part="on the way", method="pruned", pruning=pruning).values()
            last = whole
            for mask in pruned:
                assert mask.start == last and mask.recipe.epochs == 0 and isinstance(mask.sparsifier, Magnitude)
                assert mask.sparsifier.scope == "global"
                last = replace(whole, sparsifier=Ticket(pruned=mask))
            levels = [mask.sparsifier.sparsity for mask in pruned]
            assert levels == sorted(levels)


def test_tickets_differ_in_mask_training_and_start_alone(any_scale):
    starts = set()
    for row in any_scale.rows(part="tickets"):
        run, seed = row["run"], row["seed"]
        dense = {r["retraining"]: r["run"] for r in any_scale.rows(net=row["net"], part="dense", seed=seed)}
        mask = run.sparsifier.pruned
        assert run.sparsifier == Ticket(pruned=mask) and mask.sparsifier.sparsity == row["level"]
        assert mask.objective == dense[row["pruning"]].objective
        whole = dense[row["retraining"]]
        assert run == replace(whole, start=run.start, sparsifier=run.sparsifier,
                              recipe=replace(whole.recipe, watched=row["method"] == "initial"))
        start = run.start
        starts.add(row["method"])
        if row["method"] == "initial":
            assert start is None
        elif row["method"] == "trained":
            assert start == mask.start
        elif row["method"] == "early":
            assert start == replace(dense[row["pruning"]], recipe=start.recipe) and start.recipe.stop > 0
        else:  # never trained, and drawn anew for each seed
            drawn = dense["natural"]
            assert start == replace(drawn, seed=seed + iwi.REDRAWN, recipe=replace(drawn.recipe, stop=0))
    asked = [(any_scale.settings | own)["tickets"]["cells"] for own in any_scale.settings["nets"].values()]
    assert starts == {start for cells in asked for cell in cells for start in cell["starts"]} <= set(iwi.STARTS)


def test_the_zoo_has_one_dense_net_and_one_budget(any_scale):
    for net in any_scale.nets:
        at = runs_of(any_scale, net=net, part="dense", retraining="adversarial").get(("dense", 0.0))
        zoo = runs_of(any_scale, net=net, part="zoo")
        if not zoo:
            continue
        longer, slim = zoo.pop((iwi.LONGER, 0.0)), zoo.pop((iwi.SLIMMING, 0.0))
        assert longer.start == at and longer.sparsifier == Dense()
        own = any_scale.settings["nets"][net]["zoo"]
        assert slim == replace(at, sparsifier=ScaleLasso(lam=own["slimming"]))
        assert {method for method, _ in zoo} == set(iwi.ZOO)
        for (method, level), run in zoo.items():
            assert sum(r.recipe.epochs for r in run.lineage if r.start is not None) == longer.recipe.epochs, method
            assert run.objective == at.objective
            if method == iwi.SLIMMING:
                assert run.start == slim and run.sparsifier == Channels(sparsity=level, criterion="scales")
            elif method == iwi.SCORES:
                assert run.start.start == at and run.start.sparsifier == LearnedScores(sparsity=level)
                assert run.start.recipe.lr == own["score_lr"] and run.sparsifier == FixedMask()
            else:
                assert run.start == at and run.sparsifier == {
                    iwi.GLOBAL: Magnitude(sparsity=level), iwi.LAYERWISE: Magnitude(sparsity=level, scope="layerwise"),
                    iwi.FILTERS: Channels(sparsity=level), iwi.RANDOM: RandomMask(sparsity=level)}[method]


def test_what_inherits_and_its_controls(any_scale):
    for net in any_scale.nets:
        at = runs_of(any_scale, net=net, part="dense", retraining="adversarial")["dense", 0.0]
        found, kappa = runs_of(any_scale, net=net, part="inheritance"), any_scale.settings["inheritance"]["kappa"]
        small = found[iwi.SMALL, None]
        assert small == replace(at, model=small.model) and 2 * small.model.width == at.model.width
        ticket = found[iwi.IWI[iwi.TICKET], kappa].start
        assert ticket.start is None and isinstance(ticket.sparsifier, Ticket) and ticket.objective == at.objective
        assert ticket.sparsifier.pruned.sparsifier.sparsity == any_scale.settings["inheritance"]["ticket"]
        for source, start in ((iwi.NARROW, small), (iwi.TICKET, ticket)):
            heirs = {level: run for (method, level), run in found.items() if method == iwi.IWI[source]}
            assert kappa in heirs
            for level, run in heirs.items():
                assert run == replace(at, start=start, inheritance=run.inheritance)
                assert run.inheritance.kappa == level
            matched = found[iwi.MATCHED[source], None]
            assert matched == replace(at, sparsifier=matched.sparsifier)
            beta = any_scale.settings["inheritance"]["beta"]
            assert matched.sparsifier == MatchedHistogram(target=heirs[kappa], beta=beta)
        natural = found[iwi.NATURAL_HEIR, kappa]
        assert natural.start == replace(small, objective=Natural()) == found[iwi.NATURAL, None]
        assert replace(natural, start=small) == found[iwi.IWI[iwi.NARROW], kappa]


def test_the_control_of_equal_cost_is_trained_as_much_and_less_than_an_epoch_more(any_scale):
    costs = model_macs(any_scale)
    for net in any_scale.nets:
        at = runs_of(any_scale, net=net, part="dense", retraining="adversarial")["dense", 0.0]
        found, kappa = runs_of(any_scale, net=net, part="inheritance"), any_scale.settings["inheritance"]["kappa"]
        for source in (iwi.NARROW, iwi.TICKET):
            control = found[iwi.EQUAL[source], None]
            assert control == replace(at, recipe=replace(at.recipe, epochs=control.recipe.epochs))
            heir, longer = (iwi.cost(run, costs, at.model.identity)
                            for run in (found[iwi.IWI[source], kappa], control))
            assert heir <= longer < heir + at.objective.cost


def test_every_kappa_is_tried_with_the_first_seed_or_with_all(any_scale):
    for net in any_scale.nets:
        own = (any_scale.settings | any_scale.settings["nets"][net])["inheritance"]
        for seed in any_scale.seeds:
            tried = {row["level"] for row in any_scale.rows(net=net, method=iwi.IWI[iwi.TICKET], seed=seed)}
            every = seed == any_scale.seeds[0] or own["kappas_all_seeds"]
            assert tried == set(own["kappas"] if every else [own["kappa"]])


def test_what_is_measured(any_scale):
    """What table T3 compares has every attack, what explains it has margins, and nobody has less than the protocol."""
    own = any_scale.settings["inheritance"]
    for row in any_scale.grid:
        also, settings = set(row["also"]), any_scale.settings | any_scale.settings["nets"][row["net"]]
        assert all(isinstance(m, Measurement) for m in row["also"].values())
        assert bool(also) == (row["part"] != "on the way") and also >= set(settings["protocol"] if also else ())
        assert also >= {"near_zero", "macs"} or row["part"] not in ("dense", "inheritance")
        if "autoattack" in also:
            assert row["seed"] == any_scale.seeds[0] and row["retraining"] == "adversarial"
        if "health" in also:
            assert row["seed"] == any_scale.seeds[0] and row["retraining"] == "adversarial"
            assert row["part"] in ("dense", "inheritance", "tickets")
        if "margins" in also:
            assert row["pruning"] in ("", row["retraining"]) and row["method"] not in iwi.STARTS[1:]
            assert row["part"] != "inheritance" or row["level"] in (None, own["kappa"])
    for net in any_scale.nets:
        settings = any_scale.settings | any_scale.settings["nets"][net]
        first = any_scale.rows(net=net, seed=any_scale.seeds[0])
        compared = [row for row in first if row["part"] in ("dense", "inheritance")
                    and row["level"] in (0.0 if row["part"] == "dense" else own["kappa"], None)]
        ticket = any_scale.rows(net=net, part="tickets", method="initial", level=own["ticket"], pruning="adversarial",
                                retraining="adversarial")
        for row in [*compared, *ticket]:
            assert set(row["also"]) >= {*settings["stronger"], "near_zero", "macs"}
            attacked = row["seed"] == any_scale.seeds[0] and row["retraining"] == "adversarial"
            assert ("health" in row["also"]) == ("health" in settings and attacked)
        explained = [*(row for row in compared if row["method"] != iwi.NATURAL),
                     *(row for row in first if row["method"] == "initial" and row["pruning"] == row["retraining"]),
                     *(row for row in first if row["method"] == iwi.GLOBAL)]
        for row in explained:
            assert row["part"] == "on the way" or set(row["also"]) >= set(settings["why"])
        attacked = {iwi.called(row) if row["part"] == "tickets" else row["method"] for row in first
                    if "autoattack" in row["also"]}
        assert attacked == set(settings["autoattack_methods"])  # none is misspelt


def test_seeds_can_be_chosen(refusal):
    some = iwi.experiment("quick", [7, 3])
    assert some.seeds == [7, 3] and {row["seed"] for row in some.grid} == {3, 7}
    kappas = some.settings["inheritance"]["kappas"]
    heirs = {seed: {row["level"] for row in some.rows(net="ResNet", method=iwi.IWI[iwi.NARROW], seed=seed)}
             for seed in (7, 3)}
    assert heirs == {7: set(kappas), 3: {some.settings["inheritance"]["kappa"]}}  # the rest for the first one named
    assert "seeds should be" in refusal(iwi.experiment, "quick", [])


def test_a_ticket_that_is_not_trained_cannot_be_inherited(monkeypatch, refusal):
    settings = scales.load("quick", iwi.PAPER)
    settings["inheritance"]["ticket"] = 0.7
    monkeypatch.setattr(scales, "load", lambda scale, paper: settings)
    assert "0.7" in refusal(iwi.experiment, "quick")


def test_the_overview_has_a_line_for_each_kind_of_run(quick):
    shown = iwi.overview(quick.grid)
    keys = ("net", "part", "pruning", "retraining", "method")
    assert len(shown) == len({(*(row[k] for k in keys), row["run"].recipe.trained_epochs) for row in quick.grid})
    slimming = shown[shown["method"] == iwi.SLIMMING].set_index("levels")["epochs"]
    assert slimming.to_dict() == {"0": 5, "0.8, 0.9": 3}  # its own dense net is trained for longer
    assert shown["epochs"].iloc[0] == quick.settings["recipe"]["epochs"]
    line = shown[(shown["method"] == iwi.GLOBAL) & (shown["net"] == "ResNet8")].iloc[0]
    zoo = quick.settings["nets"]["ResNet"]["zoo"]
    assert line["levels"] == ", ".join(f"{level:g}" for level in zoo["levels"]) and line["seeds"] == "0, 1, 2"
    assert line["epochs"] == zoo["fine_tuning"]["epochs"]


# ------------------------------------------------------------------------------------------------------ cost


def test_cost_counts_every_ancestor_once_and_narrow_ones_by_their_arithmetic(quick):
    kappa = quick.settings["inheritance"]["kappa"]
    at = runs_of(quick, net="ResNet", part="dense", retraining="adversarial")["dense", 0.0]
    found = runs_of(quick, net="ResNet", part="inheritance")
    epochs, wide = at.recipe.epochs, at.model.identity
    costs = {wide: 8.0, found[iwi.SMALL, None].model.identity: 2.0}
    assert at.objective.cost == 2  # FGSM: one pass to attack, one to learn
    assert iwi.cost(at, costs, wide) == 2 * epochs
    assert iwi.cost(found[iwi.SMALL, None], costs, wide) == 2 * epochs / 4
    assert iwi.cost(found[iwi.IWI[iwi.NARROW], kappa], costs, wide) == 2 * epochs * 1.25
    assert iwi.cost(found[iwi.NATURAL_HEIR, kappa], costs, wide) == 2 * epochs + epochs / 4
    # dense, then the ticket, then the heir; pruning alone costs nothing
    assert iwi.cost(found[iwi.IWI[iwi.TICKET], kappa], costs, wide) == 6 * epochs
    early = next(row["run"] for row in quick.rows(part="tickets", method="early"))
    assert iwi.cost(early.start, costs, wide) == 2 * early.start.recipe.stop


def test_curves_go_on_from_what_was_spent_before(quick):
    costs = model_macs(quick)
    rows = [row for part in ("dense", "inheritance")
            for row in quick.rows(net="ResNet", part=part, seed=1, retraining="adversarial")]
    natural = quick.rows(net="ResNet", part="dense", seed=1, retraining="natural")[0]["run"].identity
    histories = {row["run"].identity: [{"epoch": e + 1, "validation_robust": e / 10} | ({} if e else {"loss": 1})
                                       for e in range(row["run"].recipe.epochs)] for row in rows}
    methods = ("AT", iwi.IWI[iwi.NARROW], iwi.EQUAL[iwi.NARROW], iwi.SMALL)
    histories[natural] = [{"epoch": 1, "validation": 0.9}]  # never attacked: no point of AT
    found = iwi.training_curves(quick, histories, costs, "ResNet", methods).set_index(["method", "epoch"])
    assert set(found["seed"]) == {1} and not found.index.has_duplicates
    wide = rows[0]["run"].model.identity
    for row in rows:
        method = row["method"].replace("dense", "AT")
        if method in methods and row["level"] in (0.0, 0.1, None)[row["part"] != "dense":]:
            curve = found.loc[method]
            assert curve["cost"].iloc[-1] == pytest.approx(iwi.cost(row["run"], costs, wide))
            steps = curve["cost"].diff().dropna()
            each = row["run"].objective.cost * costs[row["run"].model.identity] / costs[wide]
            assert steps.tolist() == pytest.approx([each] * (row["run"].recipe.epochs - 1))
            assert curve["value"].tolist() == pytest.approx([e / 10 for e in range(row["run"].recipe.epochs)])
    assert found.loc["AT", "cost"].iloc[0] == pytest.approx(2)
    assert set(found.index.get_level_values("method")) == set(methods)


def test_costs_and_seconds_are_those_of_the_whole_lineage(quick):
    rows = [row for part in ("dense", "inheritance")
            for row in quick.rows(net="ResNet", part=part, retraining="adversarial")
            if row["level"] in (None, 0.1 if part == "inheritance" else 0.0)]
    macs = model_macs(quick)
    shown = iwi.costs(rows, macs, lambda run: float(10 + run.seed))  # each run of seed s took 10 + s seconds
    wide = rows[0]["run"].model.identity
    assert shown.loc["ResNet8, AT"].tolist() == [f"{iwi.cost(rows[0]['run'], macs, wide):.1f}", "11"]
    assert shown.loc[f"ResNet8, {iwi.IWI[iwi.TICKET]}", "seconds"] == "44"  # dense, pruned, ticket, heir
    assert shown.loc[f"ResNet8, {iwi.IWI[iwi.NARROW]}", "seconds"] == "22"
    small = next(row["run"] for row in rows if row["method"] == iwi.SMALL)
    assert shown.loc[f"ResNet8, {iwi.SMALL}", "passes"] == f"{iwi.cost(small, macs, wide):.1f}"


def test_arithmetic_is_told_by_model(quick):
    macs = model_macs(quick)
    frame = pandas.DataFrame([{"run": row["run"].identity, "metric": metric, "value": value} for row in quick.grid
                              if "macs" in row["also"] for metric, value in
                              (("clean", 0.5), ("macs", macs[row["run"].model.identity]))])
    assert iwi.macs_of(frame, quick) == macs


# -------------------------------------------------------------------------------------------------- the frame


IMAGES = 20_000


def right(rate: float) -> str:
    """Answers on single images, packed; the first images are the easiest for every network."""
    return imagewise.pack(np.arange(IMAGES) < round(IMAGES * rate))


def spread(value: float) -> str:
    """Values of single images with this mean, packed."""
    values = np.random.default_rng(0).uniform(0.5, 1.5, 1000)
    return imagewise.pack(value * values / values.mean())


@pytest.fixture(scope="module")
def frame(quick):
    """Made up: accuracy falls with sparsity, rises with adversarial training and inheritance; the seeds scatter, each
    kind of run in its own way."""
    rows, kinds = [], {}
    for row in quick.grid:
        kind = tuple(row[k] for k in ("net", "part", "pruning", "retraining", "method", "level"))
        scatter = kinds.setdefault(kind, len(kinds)) * (row["seed"] - 1) / IMAGES  # the mean over seeds is zero
        own = 1 + scatter
        base = 0.8 - 0.2 * (row["level"] or 0) * (row["part"] in ("tickets", "zoo")) + 0.001 * row["seed"]
        base -= 0.5 * (row["retraining"] == "natural") + 0.1 * (row["pruning"] == "natural")
        base += {"initial": 0.02, "trained": 0.03, "random": -0.05, iwi.LONGER: 0.01}.get(row["method"], 0)
        base += 0.04 * row["method"].startswith("IWI") + 0.06 * row["method"].startswith("AT, cost")
        values = {"pgd20": base + scatter, "clean": 0.9,
                  "near_zero": 0.1 + 0.1 * row["method"].startswith("IWI") + scatter,
                  "sparsity": row["level"] if row["part"] in ("tickets", "zoo") else 0.0,
                  "margins bound": 10 * (1 + (row["level"] or 0)) * own,
                  "margins slope": (2 - (row["level"] or 0)) * own,
                  "margins ratio": 1, "margins_linf ratio": 1 + base}
        labels = {k: v for k, v in row.items() if k not in ("run", "also")} | {"run": row["run"].identity}
        rows += [labels | {"metric": metric, "value": value, "count": 100 * min(max(value, 0), 1), "total": 100,
                           "sampled": metric not in ("near_zero", "sparsity"), "chance": 0.1, "where": "store",
                           "processor": "x", "each": right(value) if metric in ("pgd20", "clean") else
                           spread(value) if "margins" in metric else None} for metric, value in values.items()]
    return iwi.located(pandas.DataFrame(rows))


@pytest.fixture(scope="module")
def rows(frame, quick):
    return iwi.judged(frame, quick).set_index("claim", drop=False)


def test_every_line_begins_with_the_dense_net_trained_as_it_was_retrained(frame, quick):
    rows = {"PGD-20 [%]": ("pgd20", 100), "clean [%]": ("clean", 100)}
    drawn = iwi.panels(frame, rows, "ResNet")
    assert [len(row) for row in drawn] == [2, 2]
    assert [panel["title"] for panel in drawn[0]] == ["lottery tickets", "zoo"] and drawn[1][0]["title"] == ""
    assert [row[0]["ylabel"] for row in drawn] == list(rows) and drawn[0][1]["ylabel"] == ""
    for panel, names in zip(drawn[0], (iwi.STARTS, iwi.ZOO), strict=True):
        lines = panel["frame"]
        assert [name.removeprefix("weights: ") for name in lines["series"].unique()] == list(names)
        for _, line in lines.groupby("series"):
            dense = line[line["level"] == 0]
            own = line["series"].iloc[0] == iwi.SLIMMING  # which was pruned from a net with a penalty on scales
            assert set(dense["part"]) == {"zoo" if own else "dense"} and set(dense["retraining"]) == {"adversarial"}
            assert len(dense) == len(quick.seeds) and (dense["left"] == 100).all()
            assert set(line["pruning"]) <= {"", "adversarial"} and set(line["net"]) == {"ResNet"}
    assert [panel["factor"] for row in drawn for panel in row] == [100] * 4
    assert [len(row) for row in iwi.panels(frame, rows, "LeNet-5")] == [1, 1]  # it has no zoo
    plots.along_sparsity(drawn)


def test_what_explains_it_is_drawn_for_either_training(frame):
    (slope,), (bound,) = iwi.why_panels(frame, [{"slope": ("margins slope", 3)}, {"bound": ("margins bound", 1)}],
                                        "ResNet")
    assert [(panel["factor"], panel["title"], panel["log"]) for panel in (slope, bound)] == [
        (3, "slope", False), (1, "bound", True)]
    for name, line in slope["frame"].groupby("series"):
        training = name.removeprefix("tickets, ") if name.startswith("tickets") else "adversarial"
        assert set(line["retraining"]) == {training} and set(line["pruning"]) == {"", training}
        assert set(line["method"]) == {"dense", iwi.GLOBAL if name.startswith("zoo") else "initial"}
        assert set(line["metric"]) == {"margins slope"} and set(line["net"]) == {"ResNet"}
    assert slope["frame"]["series"].nunique() == 3


def test_overfitting_is_the_best_epoch_minus_the_last(frame, quick):
    row = quick.rows(net="ResNet", part="dense", retraining="adversarial")[0]
    other = quick.rows(net="ResNet", part="dense", retraining="natural")[0]
    history = [{"validation_robust": v} for v in (0.5, 0.75, 0.6)]
    unwatched = [{"loss": 1}, {"loss": 1}, history[0]]  # attacked after the last epoch only
    found = iwi.with_overfitting(frame, {row["run"].identity: history, other["run"].identity: unwatched})
    added = found[found["metric"] == "overfitting"]
    assert len(found) == len(frame) + 1 and added["value"].tolist() == [pytest.approx(0.15)]
    assert added["run"].tolist() == [row["run"].identity] and added["count"].isna().all()


def test_the_factorial_has_a_line_per_cell_and_columns_per_level(frame, quick):
    shown = iwi.factorial(frame, "ResNet", {"PGD-20": "pgd20"})
    cells = quick.settings["tickets"]["cells"]
    assert set(shown.index) == {f"{c['pruning']}, {c['retraining']}, {s}" for c in cells for s in c["starts"]}
    assert list(shown.columns) == ["80 % removed: PGD-20", "95 % removed: PGD-20"]
    values = frame[(frame["net"] == "ResNet") & (frame["pruning"] == "adversarial") & (frame["metric"] == "pgd20")
                   & (frame["retraining"] == "adversarial") & (frame["method"] == "initial") & (frame["level"] == 0.8)]
    assert shown.loc["adversarial, adversarial, initial", "80 % removed: PGD-20"] == (
        f"66.1 ± {100 * values['value'].std():.1f}")
    assert shown.loc["natural, natural, initial", "80 % removed: PGD-20"] == ""
    assert list(iwi.factorial(frame, "LeNet-5", {"PGD-20": "pgd20"}).columns) == ["80 % removed: PGD-20"]


def test_the_table_of_inheritance_has_every_method_once(frame, quick):
    found = iwi.inherited(frame, quick.settings["inheritance"])
    controls = {method for group in (iwi.IWI, iwi.EQUAL, iwi.MATCHED) for method in group.values()}
    for _, rows in found.groupby(["net", "seed", "metric"]):
        assert sorted(rows["method"]) == sorted({"AT", "ticket", iwi.SMALL, iwi.NATURAL, iwi.NATURAL_HEIR, *controls})
    at, ticket = (found[found["method"] == method] for method in ("AT", "ticket"))
    assert set(at["retraining"]) == set(ticket["pruning"]) == set(ticket["retraining"]) == {"adversarial"}
    assert set(ticket["level"]) == {quick.settings["inheritance"]["ticket"]} and set(found["net"]) == set(quick.nets)


def test_starts_are_compared_with_random_weights_and_with_each_other(frame, quick):
    shown = tables.effects(frame, iwi.starts_compared(quick, "ResNet", 0.95), {"PGD-20": "pgd20"})["PGD-20"]
    assert {name: effect.split()[0] for name, effect in shown.items()} == {
        "initial - random weights": "+7.0", "early - random weights": "+5.0", "trained - random weights": "+8.0",
        "trained - initial weights": "+1.0"}
    assert iwi.starts_compared(quick, "LeNet-5", 0.8) == iwi.trainings_compared(quick, "LeNet-5", 0.8) == {}


def test_what_inherits_is_compared_with_what_would_explain_it_away(quick):
    found = iwi.heirs_compared("ResNet", 0.1)
    at = iwi.labels("ResNet", "dense", "dense", 0.0)

    def row(method, kappa=None):
        return {"net": "ResNet", "part": "inheritance", "pruning": "", "retraining": "adversarial", "method": method,
                "level": kappa}

    expected = {"IWI, from narrow - inherits from natural narrow": (row("IWI, from narrow", 0.1),
                                                                    row("inherits from natural narrow", 0.1))}
    for source in ("narrow", "ticket"):
        heir, cost, histogram = (f"{what} from {source}" for what in
                                 ("IWI,", "AT, cost of IWI", "AT, histogram of IWI"))
        expected |= {f"{heir} - AT": (row(heir, 0.1), at), f"{heir} - AT at equal cost": (row(heir, 0.1), row(cost)),
                     f"{heir} - AT with its histogram": (row(heir, 0.1), row(histogram)),
                     f"AT with the histogram of {heir} - AT": (row(histogram), at)}
    assert found == expected and at["retraining"] == "adversarial"
    assert all(len(quick.rows(**side)) == len(quick.seeds) for pair in found.values() for side in pair)


def test_every_claim_is_judged_once_for_each_thing_it_speaks_of(rows, quick):
    assert not rows.index.has_duplicates and (rows["n_seeds"] == 3).all()
    names = [name.split()[0] for name in rows.index]
    assert set(names) == set(reported.load("iwi").claims) and names == sorted(names)
    assert rows.index[0] == f"C1 ResNet, {iwi.GLOBAL}, 80 %"  # within a claim as the zoo is ordered
    assert f"C1 ResNet, {iwi.RANDOM}, 80 %" not in rows.index
    assert {name for name in rows.index if name.startswith("C2 ResNet, 95 %")} == {
        f"C2 ResNet, 95 %, {start} - random weights" for start in iwi.STARTS[:-1]}
    first, second = quick.nets
    assert all(name.split(",")[0] == f"{name[:2]} {second if name.startswith('C7') else first}" for name in rows.index)
    assert rows["reported"].isna().all()


def test_verdicts_follow_from_effects(frame, quick, rows):
    verdicts = rows["verdict"]
    assert rows.loc[f"C1 ResNet, {iwi.GLOBAL}, 80 %", "ours"] == pytest.approx(-16)
    assert rows.loc[f"C1 ResNet, {iwi.GLOBAL}, 80 %, equal training", "ours"] == pytest.approx(-17)
    assert rows.loc["C1 ResNet, ticket, 80 %", "ours"] == pytest.approx(-14)  # initial weights: 2 points more
    assert (verdicts[[name for name in rows.index if name.startswith("C1")]] == claims.FAILS).all()
    assert rows.loc["C2 ResNet, 95 %, initial - random weights", "ours"] == pytest.approx(7)
    assert rows.loc["C3 ResNet, 95 %, adversarial - natural retraining", "ours"] == pytest.approx(50)
    assert rows.loc["C3 ResNet, 95 %, adversarial - natural pruning", "ours"] == pytest.approx(10)
    assert (verdicts[[name for name in rows.index if name[:2] in ("C2", "C3", "C5")]] == claims.HOLDS).all()
    assert verdicts[f"C4 ResNet, {iwi.IWI[iwi.NARROW]} - AT"] == claims.HOLDS
    assert verdicts[f"C4 ResNet, {iwi.IWI[iwi.NARROW]} - AT at equal cost"] == claims.FAILS
    assert rows.loc[f"C4 ResNet, {iwi.IWI[iwi.TICKET]} - AT with its histogram", "ours"] == pytest.approx(4)
    assert rows.loc[f"C4 ResNet, {iwi.IWI[iwi.NARROW]} - {iwi.NATURAL_HEIR}", "ours"] == pytest.approx(4)
    assert rows.loc[f"C5 ResNet, {iwi.IWI[iwi.TICKET]} - AT", "ours"] == pytest.approx(10)
    named = list(iwi.heirs_compared("ResNet", 0.1))
    assert len(named) == 9 and len([name for name in rows.index if name.startswith("C4")]) == 7  # those of an heir
    # a point less is no worse
    less = 0.005 * (frame["part"] == "zoo") + frame["run"].map(lambda run: int(run[:4], 16)) / 65_536 / 1000
    half = frame.assign(value=0.5 - less).assign(each=lambda rows: rows["value"].map(right), sampled=True)
    assert iwi.judged(half, quick).set_index("claim").loc[f"C1 ResNet, {iwi.GLOBAL}, 80 %", "verdict"] == claims.HOLDS


def test_a_second_network_is_asked_whether_the_findings_are_tied_to_the_first(rows):
    ticket = rows.loc["C7 LeNet-5, ticket, 80 %"]
    assert (ticket["direction"], ticket["verdict"], ticket["ours"]) == ("no worse", claims.FAILS, pytest.approx(-14))
    assert "C7 LeNet-5, ticket, 95 %" not in rows.index
    inherits = rows.loc[f"C7 LeNet-5, {iwi.IWI[iwi.NARROW]} - AT"]
    assert (inherits["direction"], inherits["verdict"], inherits["ours"]) == (
        "increase", claims.HOLDS, pytest.approx(4))
    assert rows.loc[f"C7 LeNet-5, {iwi.IWI[iwi.TICKET]} - AT with its histogram", "ours"] == pytest.approx(4)
    assert [name for name in rows.index if name.startswith("C7")] == ["C7 LeNet-5, ticket, 80 %"] + [
        f"C7 LeNet-5, {what}" for what in iwi.heirs_compared("LeNet-5", 0.1) if what.startswith("IWI")]


def test_slopes_and_their_bounds_are_compared_by_ratios(rows):
    bound, slope = (rows.loc[f"C6 ResNet, 95 %, {what}"] for what in ("bound of the slope", "slope in l2"))
    assert (10 ** bound["ours"], bound["verdict"]) == (pytest.approx(1.95, rel=1e-3), claims.FAILS)
    assert (10 ** slope["ours"], slope["verdict"]) == (pytest.approx(1.05 / 2, rel=1e-3), claims.HOLDS)
    assert (bound["unit"], bound["quantity"], bound["images"]) == ("log10 of the ratio", "bound of the slope", 1000)
    l1, l2 = (rows.loc[f"C6 ResNet, 95 %, margin / slope in {norm}"] for norm in ("l1", "l2"))
    assert l1["direction"] == "increase" and 10 ** l1["ours"] == pytest.approx(1.63 / 1.8, rel=1e-3)
    assert (l2["ours"], l2["verdict"], l2["why"]) == (0, claims.OPEN, "all networks gave the same")


def test_every_line_of_the_ledger_has_its_comparison(rows, quick):
    record = reported.load("iwi")
    lines = claims.ledger(rows, record, **iwi.holes(quick))
    assert lines["line"].tolist() == [line.id for line in record.ledger]
    assert set(lines["claim"]) <= set(rows.index) and not lines["claim"].str.contains("[{}]").any()
    assert (lines["n_seeds"] == 3).all() and claims.UNTESTED not in set(lines["verdict"])
    levels = quick.settings["primary_levels"]
    named = lines.set_index("line")["claim"]
    assert named["C1"] == f"C1 ResNet, {iwi.GLOBAL}, {100 * levels['zoo']:g} %"
    assert named["C6"] == f"C6 ResNet, {100 * levels['tickets']:g} %, bound of the slope"
    assert named["C7"] == f"C7 LeNet-5, {iwi.IWI[iwi.NARROW]} - AT"


def test_the_levels_named_beforehand_are_run(any_scale):
    """But for claims on natural training and on a second network, where a scale computes none."""
    named = {line.id: line.primary.format(**iwi.holes(any_scale)) for line in reported.load("iwi").ledger}
    asked = {f"{claim} {name}" for claim, name, *_ in iwi._claims(any_scale)}
    natural = any_scale.rows(net=any_scale.nets[0], part="tickets", retraining="natural")
    assert {line for line, name in named.items() if name not in asked} == (
        ({"C3"} if not natural else set()) | ({"C7"} if len(any_scale.nets) == 1 else set()))


def test_a_collapsed_network_is_not_judged(frame, quick, rows):
    fallen = ((frame["metric"] == "clean") & (frame["net"] == "ResNet") & (frame["method"] == iwi.IWI[iwi.NARROW])
              & (frame["level"] == quick.settings["inheritance"]["kappa"]) & (frame["seed"] == 2))
    assert fallen.sum() == 1
    found = iwi.judged(frame.assign(value=frame["value"].where(~fallen, 0.15)), quick).set_index("claim")
    its = found.index.str.match(f"C[45] ResNet, {iwi.IWI[iwi.NARROW]} -")
    assert its.sum() == 5 and (found[its]["verdict"] == claims.UNTESTED).all()
    assert (found[its]["why"] == "a network has collapsed (clean 15 %)").all()
    assert found[~its]["verdict"].equals(rows[~its]["verdict"])


def test_one_seed_is_not_tested(frame, quick):
    found = iwi.judged(frame[frame["seed"] == 0], quick)
    assert (found["verdict"] == claims.UNTESTED).all() and (found["why"] == estimates.ONE_SEED).all()
    assert (found["n_seeds"] == 1).all() and found["ours"].notna().all()
