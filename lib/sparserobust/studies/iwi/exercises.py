"""Exercises of 02_iwi."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from sparserobust import data, sparsity, training
from sparserobust.models import PreActResNet
from sparserobust.running.experiment import Results
from sparserobust.seeding import global_seed
from sparserobust.studies.checks import Verdict, chosen_run, exercise, not_yet, number, rates, right, tensors
from sparserobust.studies.iwi import comparisons, report
from sparserobust.studies.iwi.cost import Costs
from sparserobust.studies.iwi.runs import IWI, NARROW, TICKET, IWISettings


@exercise
def exercise_1(answer, results: Results[IWISettings]) -> Verdict:
    """How many times the cost of AT does IWI from the narrow network take, with all that it inherits from?"""
    net, costs = results.experiment.nets[0], Costs(results)
    pairs = comparisons.inheritance(results.experiment, net)
    (iwi, at), (_, equal) = (pairs[f"{IWI[NARROW]} - {control}"] for control in ("AT", "AT at equal cost"))
    run, *controls = (results.experiment.row(**labels)["run"] for labels in (iwi, at, equal))
    all_of_it, small, alone, longer = (costs.whole(each, net) for each in (run, run.start, *controls))
    epochs = sum(each.recipe.trained_epochs for each in run.lineage) / run.recipe.trained_epochs
    why = (f"of {all_of_it:.3g} passes over the training images {small:.3g} went into the narrow network: what a "
           "network inherits has been paid for, and AT may use as much")
    return number(answer, all_of_it / alone, why, {
        1.0: "that is without what it inherits from, which was trained, too",
        epochs: "those are epochs: one of the narrow network takes fewer multiply-accumulates",
        small / alone: "that is the narrow network's share: add the wide one's own training",
        longer / alone: "that is AT at equal cost, which is rounded up to whole epochs",
        alone / all_of_it: "that is upside down: IWI over AT",
        all_of_it: "those are passes: how many times as many as AT takes?"}, tolerance=0.03)


@exercise
def exercise_2(answer, results: Results[IWISettings]) -> Verdict:
    """By how many points under PGD-20 is IWI from a ticket ahead of AT at equal total cost, on the first network?"""
    if TICKET not in results.experiment.settings_for(results.experiment.nets[0]).inheritance.sources:
        return not_yet("nothing inherits from a ticket at this scale")
    iwi = IWI[TICKET]
    over_at, equal = (report.mean_effect(results, f"{iwi} - {control}") for control in ("AT", "AT at equal cost"))
    why = (f"of {over_at:+.1f} points over AT, {equal:+.1f} are left when AT is trained as long as the network and all "
           "that it inherits from: a warm start has its price")
    return number(answer, equal, why, {
        over_at: "that is against AT for as many epochs as the network alone: its beginnings took epochs, too",
        -equal: "that is AT at equal cost minus IWI: the other way round",
        equal / 100: "points are asked for: 100 times a difference of rates",
        report.mean_effect(results, f"{IWI[NARROW]} - AT at equal cost"): "that is IWI from the narrow network",
        report.mean_effect(results, f"{iwi} - AT at equal cost", "clean"): "those are clean images",
        report.mean_effect(results, f"{iwi} - AT with its histogram"): "that is against AT with the histogram of IWI",
    }, within=0.06)


@exercise
def exercise_3(answer, toys: Mapping[float, nn.Module]) -> Verdict:
    """How many convolution and linear weights of the wide toy network are zero at kappa 0? A whole number."""
    zero, total = sparsity.zero_weights(toys[0])
    doubled = total - next(iter(sparsity.prunable(toys[0]).values())).numel()  # the first layer reads the image
    why = ("that is half of every layer but the first: no weight passes a new channel on yet, but new channels have "
           "inputs already, so that they can count after one step")
    begins = "weights by which a new channel reads old ones begin at their default, not at zero"
    return number(answer, zero, why, {
        total / 2: "that counts all layers; the first reads the image and has no new inputs",
        doubled * 3 / 4: begins, total * 3 / 4: begins,
        doubled / 4: "no channel reads a new one yet: neither the new ones nor the old ones do",
        total - zero: "that many are *not* zero",
        zero / total: "that is a share: how many are they?", 0.5: "that is a share: how many are they?"}, tolerance=0)


@exercise
def exercise_4(answer, small: nn.Module, wide: PreActResNet) -> Verdict:
    """If all that is new were zero, which share of a convolution with twice the inputs and outputs had no gradient?"""
    layers, all_of_them = stuck(small, wide)
    share = min(layers.values())  # more, where a ReLU is shut on every image
    why = ("a new channel that is zero gives no gradient to the weights that read it, and gets none, as nothing reads "
           f"it: {100 * all_of_them:.0f} % of the whole network would never move")
    return number(answer, share, why, {
        0.5: "those are the weights that read a new channel, or those by which one reads: both together are more",
        1 - share: "that is the share that does move", 1.0: "the inherited corner does learn"})


def stuck(small: nn.Module, wide: PreActResNet) -> tuple[dict[str, float], float]:
    """Share of weights without gradient in each layer whose inputs and outputs both double, and in all layers, of the
    wide network that holds the small one and zeros."""
    inherited = sparsity.prunable(small)
    image_shape = (next(iter(inherited.values())).shape[1], 8, 8)
    with global_seed(0, "exercise"):
        dead, images = wide.build(image_shape, 10).train(), torch.rand(8, *image_shape)
    weights = sparsity.prunable(dead)
    with torch.no_grad():
        for name, old in inherited.items():
            weights[name].zero_()[tuple(map(slice, old.shape))] = old
    loss = nn.functional.cross_entropy(dead(images), torch.arange(8))
    gradients = torch.autograd.grad(loss, list(weights.values()))
    without = {name: (gradient == 0).float() for name, gradient in zip(weights, gradients, strict=True)}
    doubled = {name: float(none.mean()) for name, none in without.items()
               if none[0].numel() * len(none) == 4 * inherited[name].numel()}
    return doubled, float(torch.cat([none.flatten() for none in without.values()]).mean())


@exercise
def exercise_5(answer, results: Results[IWISettings]) -> Verdict:
    """Does the width of the small network matter? A network that inherits from one of a quarter of its width, all else
    as in IWI from narrow."""
    experiment = results.experiment
    net, seed = experiment.nets[0], experiment.seeds[0]
    half, at = comparisons.inheritance(experiment, net)[f"{IWI[NARROW]} - AT"]
    row = experiment.row(**half, seed=seed)
    iwi = row["run"]
    quarter = replace(iwi.start, model=replace(iwi.model, width=iwi.model.width // 4))
    inherited = replace(iwi, start=quarter)

    def why() -> str:
        runs = {"a quarter of the width": quarter, "inherits from it": inherited, "inherits from a half": iwi,
                "AT": experiment.row(**at, seed=seed)["run"]}
        measured = {"clean": row["measurements"]["clean"], "PGD-20": row["measurements"]["pgd20"]}
        return (f"{rates(runs, measured, results.store)}. By as much as a network is ahead of the one that it inherits "
                "from, it has learned itself")

    return chosen_run(answer, inherited, why, {
        iwi: "that inherits from a network of half the width",
        quarter: "that is the small network: the answer starts from it",
        iwi.start: "that is the small network of half the width",
        replace(inherited, model=quarter.model): "that is narrow itself: only the run it starts from should be",
        replace(inherited, inheritance=replace(inherited.inheritance, kappa=0.0)):
            "its kappa is 0: keep the one of the row"})


@exercise
def exercise_6(answer, results: Results[IWISettings]) -> Verdict:
    """Do a ticket's initial weights matter, or their signs? The network with which it begins, every weight with its
    sign and all of a layer with one size, the layer's standard deviation. If it is right, the ticket is trained."""
    experiment, store = results.experiment, results.store
    net = experiment.nets[0]
    sparsest = comparisons.ticket(net, comparisons.levels(experiment, net)[-1])
    ticket = experiment.row(**sparsest, seed=experiment.seeds[0])["run"]
    splits = data.load(ticket.data)
    begin = training.build(ticket, splits)
    if (given := tensors(answer, like=begin.state_dict())) is None:
        return not_yet("a network is expected, such as training.build(row['run'], splits) builds")
    for name, begun in sparsity.prunable(begin).items():
        mine, weight = given[name], begun.detach()
        if torch.equal(mine, weight):
            return not_yet(f"{name} has the values with which the ticket begins: only their signs should be left")
        if not torch.equal(mine.sign(), weight.sign()):
            return not_yet(f"{name} does not have the signs with which the ticket begins")
        if not torch.allclose(mine.abs(), mine.abs().max(), rtol=1e-3):
            return not_yet(f"{name} has weights of several sizes")
        if not torch.isclose(mine.abs().max(), weight.std(), rtol=1e-2):
            return not_yet(f"{name} has one size, but not its standard deviation, {float(weight.std()):.3g}")
    mask = store.model(ticket.sparsifier.pruned).state_dict()
    signs = training.train(ticket, splits, given, others=[mask])
    rate, usual = (h[-1]["validation_robust"] for h in (signs.history, store.record(ticket)["history"]))
    return right(f"with signs alone the ticket keeps {100 * rate:.0f} % of {len(splits.validation.labels)} validation "
                 f"images under attack, with its values {100 * usual:.0f} %; one seed cannot show a difference, so "
                 "take all seeds and the test images")
