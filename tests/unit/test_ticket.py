"""Lottery tickets, whose weights and zeros come from two runs, and weights that get another network's histogram."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch.nn.functional import cross_entropy

from scaffolding import assert_same_training, batches, interrupted
from sparserobust import training
from sparserobust.running.store import Store
from sparserobust.sparsifiers import Magnitude, MatchedHistogram, Ticket
from sparserobust.sparsifiers.ticket import matched
from sparserobust.sparsity import prunable


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", use_published=False)


def weights_of(store, run) -> dict:
    return dict(store.model(run).state_dict())


# --------------------------------------------------------------------------------------------------- tickets


def test_where_a_tickets_weights_come_from(store, tiny_run, digits):
    """Rewound to the beginning, to an epoch, not at all, or drawn anew: always the mask of the pruned run."""
    dense = tiny_run(epochs=3)
    pruned = replace(dense, start=dense, recipe=replace(dense.recipe, epochs=0), sparsifier=Magnitude(sparsity=0.7))
    mask = {name: w != 0 for name, w in prunable(store.model(pruned)).items()}
    early = replace(dense, recipe=replace(dense.recipe, stop=1))
    redrawn = replace(dense, seed=7, recipe=replace(dense.recipe, stop=0))
    expected = {None: training.build(dense, digits).state_dict(), early: weights_of(store, early),
                dense: weights_of(store, dense), redrawn: training.build(redrawn, digits).state_dict()}
    seen = []
    for start, weights in expected.items():
        untrained = replace(pruned, start=start, sparsifier=Ticket(pruned=pruned))
        found = weights_of(store, untrained)
        assert all(torch.equal(t, weights[name] * mask[name] if name in mask else weights[name])
                   for name, t in found.items())
        seen.append(found["members.0.stem.weight"])
        ticket = replace(untrained, recipe=dense.recipe)
        trained = weights_of(store, ticket)
        assert not any(trained[name][~kept].any() for name, kept in mask.items())  # what is zero stays zero
        assert all((trained[name][kept] != found[name][kept]).float().mean() > 0.9 for name, kept in mask.items())
    assert not any(torch.equal(a, b) for a, b in permutations(seen, 2))


def test_a_ticket_that_keeps_its_weights_is_what_fine_tuning_at_a_fixed_mask_trains(store, tiny_run):
    dense = tiny_run()
    pruned = replace(dense, start=dense, recipe=replace(dense.recipe, epochs=0), sparsifier=Magnitude(sparsity=0.5))
    kept = weights_of(store, replace(dense, start=dense, sparsifier=Ticket(pruned=pruned)))
    tuned = weights_of(store, replace(dense, start=dense, sparsifier=Magnitude(sparsity=0.5)))
    assert all(torch.equal(t, tuned[name]) for name, t in kept.items())


# ------------------------------------------------------------------------------------------------ histograms


def test_matched_is_the_nearest_of_all_orders():
    for _ in range(20):
        w, values = torch.randn(2, 3), torch.randn(6).sort().values
        best = min((torch.tensor(order) for order in permutations(values.tolist())),
                   key=lambda t: float((t - w.flatten()).norm()))
        assert torch.equal(matched(w, values), best.view(2, 3))
    w = torch.randn(4, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    assert torch.equal(matched(w, w.flatten().sort().values), w)  # its own values lie where they are


def test_every_layer_ends_with_the_targets_values_and_the_mask_of_nobody(store, tiny_run):
    target = tiny_run(seed=3, epochs=3, sparsifier=Magnitude(sparsity=0.5))
    run = tiny_run(sparsifier=MatchedHistogram(target=target))
    ours, theirs = (prunable(store.model(r)) for r in (run, target))
    for name, w in ours.items():
        assert torch.equal(w.detach().flatten().sort().values, theirs[name].detach().flatten().sort().values)
    assert not all(torch.equal(w == 0, theirs[name] == 0) for name, w in ours.items())
    plain = prunable(store.model(tiny_run()))
    assert not torch.equal(plain["members.0.stem.weight"].flatten().sort().values,
                           ours["members.0.stem.weight"].flatten().sort().values)


def test_steps_by_hand(store, tiny_run, digits):
    """Pulled before the optimiser moves; biases and norms are left alone; the gap is how far it was to the end."""
    target = tiny_run(seed=3)
    run = tiny_run(sparsifier=MatchedHistogram(target=target, beta=2.0), schedule="constant", precision="float32",
                   momentum=0.0, weight_decay=0.0)
    values = {name: w.detach().flatten().sort().values for name, w in prunable(store.model(target)).items()}
    model, lr = training.build(run, digits).train(), run.recipe.lr
    w = dict(model.named_parameters())
    for epoch in range(run.recipe.epochs):
        for images, labels in batches(run, digits, epoch):
            loss = cross_entropy(model(images), labels)
            gradients = torch.autograd.grad(loss, w.values())
            with torch.no_grad():
                for (name, p), gradient in zip(w.items(), gradients, strict=True):
                    if name in values:
                        p -= lr * 2.0 * (p - matched(p, values[name]))
                    p -= lr * gradient
    result = training.train(run, digits, others=[store.model(target).state_dict()])
    found = dict(result.model.named_parameters())
    for name, p in w.items():
        expected = matched(p.detach(), values[name]) if name in values else p
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
    assert 0 < result.history[-1]["gap"] < 1


def test_a_stronger_pull_leaves_a_smaller_gap(store, tiny_run, digits, refusal):
    target = tiny_run(seed=3)
    gaps = []
    for beta in (0.1, 1.0, 4.0):
        run = tiny_run(sparsifier=MatchedHistogram(target=target, beta=beta))
        gaps.append(store.record(run)["history"][-1]["gap"])
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert "beta" in refusal(MatchedHistogram, target=target, beta=0.0)


def test_interrupted_is_undisturbed(store, tiny_run, digits, tmp_path):
    target = tiny_run(seed=3)
    run = tiny_run(sparsifier=MatchedHistogram(target=target), epochs=3)
    others = [store.model(target).state_dict()]
    resumed = interrupted(run, digits, tmp_path / "checkpoint", [1], others=others)
    assert_same_training(resumed, training.train(run, digits, others=others))


@pytest.mark.parametrize("of", [lambda run: Ticket(pruned=run), lambda run: MatchedHistogram(target=run)])
def test_what_comes_from_a_network_of_another_shape_is_one_line(of, tiny_run, digits, refusal):
    """A mask that fits nowhere would leave everything as it is."""
    other = tiny_run(model=replace(tiny_run().model, width=4))
    weights = training.build(other, digits).state_dict()
    run = tiny_run(sparsifier=of(other))
    told = refusal(training.train, run, digits, None, None, lambda epochs: None, [weights])
    assert f"run {other.identity} is of another network: members.0.stem.weight has shape (4, 1, 3, 3)" in told
    del weights["members.0.stem.weight"]
    assert "members.0.stem.weight is missing there" in refusal(
        training.train, run, digits, None, None, lambda epochs: None, [weights])


def test_a_start_of_another_shape_is_one_line(tiny_run, digits, refusal):
    weights = training.build(tiny_run(model=replace(tiny_run().model, width=4)), digits).state_dict()
    assert "cannot begin with these weights" in refusal(training.train, tiny_run(start=tiny_run()), digits, weights)
