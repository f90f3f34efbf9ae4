"""Norms estimated anew after a cut, nothing trained: statistics of the same batches computed by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from scaffolding import assert_same_training, batches, interrupted, same, weights_of
from sparserobust import Data, data, training
from sparserobust.attacks import PGD
from sparserobust.config import Sparsifier
from sparserobust.evaluation import Accuracy
from sparserobust.models import PreActResNet
from sparserobust.objectives import Adversarial, Natural
from sparserobust.sparsifiers import Magnitude, OnlyNorms

ATTACKED = Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=2))


@pytest.fixture(scope="module")
def cut(tiny_run, digits) -> dict:
    """The state of a trained network, pruned in one shot."""
    trained = training.train(tiny_run(epochs=3), digits).model.state_dict()
    return training.train(tiny_run(epochs=0, sparsifier=Magnitude(sparsity=0.7)), digits, trained).model.state_dict()


def norms(model) -> dict[str, nn.BatchNorm2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def seen(run, splits, start) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Mean and unbiased variance of what enters each norm in training mode, of every batch of one clean epoch."""
    model = training.build(run, splits).train()
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    model.load_state_dict(start)
    for name, norm in norms(model).items():
        def record(module, inputs, output, name=name):
            x = inputs[0].double()
            found.setdefault(name, []).append((x.mean((0, 2, 3)), x.var((0, 2, 3))))

        norm.register_forward_hook(record)
    with torch.no_grad():
        for images, _ in batches(run, splits, 0):
            model(images)
    return found


@pytest.mark.parametrize("averages", [{}, {"averaging": 0.9, "averaged_norms": True}], ids=["plain", "averaged"])
def test_statistics_are_averages_over_the_batches_by_hand(averages, cut, tiny_run, digits):
    run = tiny_run(epochs=1, batch_size=20, precision="float32", objective=Natural(), sparsifier=OnlyNorms(),
                   **averages)
    model = training.train(run, digits, cut).model
    assert len(norms(model)) > 3
    by_hand = seen(run, digits, cut)
    for name, norm in norms(model).items():
        means, variances = zip(*by_hand[name], strict=True)
        assert norm.num_batches_tracked == len(means) == 4  # the last one is smaller, and counts as much
        torch.testing.assert_close(norm.running_mean.double(), torch.stack(means).mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), torch.stack(variances).mean(0), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(norm.running_mean, cut[f"{name}.running_mean"], rtol=0.01)


@pytest.mark.parametrize("objective", [ATTACKED, Natural()], ids=["attacked", "clean"])
def test_nothing_else_changes(objective, cut, tiny_run, digits):
    """Bit for bit, whatever the recipe says."""
    run = tiny_run(epochs=2, objective=objective, averaging=0.9, weight_decay=0.1, lr=0.5, sparsifier=OnlyNorms())
    result = training.train(run, digits, cut)
    weights = weights_of(result.model)
    assert same(weights, {name: cut[name] for name in weights})
    changed = {name for name, t in result.model.state_dict().items() if not torch.equal(t, cut[name])}
    assert changed == {f"{name}.{what}" for name in norms(result.model)
                       for what in ("running_mean", "running_var", "num_batches_tracked")}
    assert result.history[-1]["gap"] == 0 and result.history[-1]["sparsity"] == pytest.approx(0.7, abs=0.01)


def test_attacked_images_are_what_training_passes(cut, tiny_run, digits):
    found = []
    for objective in (ATTACKED, Natural()):
        model = training.train(tiny_run(epochs=1, objective=objective, sparsifier=OnlyNorms()), digits, cut).model
        found.append({name: norm.running_mean for name, norm in norms(model).items()})
    assert not any(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_was_estimated_before_is_forgotten(cut, tiny_run, digits):
    """On clean images; an attack on the first batch would still meet it."""
    other = {name: t + 5.0 if "running" in name else t for name, t in cut.items()}
    run = tiny_run(epochs=1, sparsifier=OnlyNorms())
    assert same(*(training.train(run, digits, start).model.state_dict() for start in (cut, other)))


def test_a_pruned_network_answers_better_for_it(net, tiny_run):
    """With no weight touched."""
    run = tiny_run(data=Data(), model=PreActResNet(depth=8, width=8), epochs=1, batch_size=32, precision="float32")
    splits = data.load(run.data)
    cut = training.train(tiny_run(data=run.data, model=run.model, epochs=0, sparsifier=Magnitude(sparsity=0.8)), splits,
                         net.state_dict()).model
    model = training.train(replace(run, sparsifier=OnlyNorms()), splits, cut.state_dict()).model
    before, after = (Accuracy()(m, splits)["value"] for m in (cut, model))
    assert after > before + 0.1


@pytest.mark.parametrize("stops", [[1], [1, 2]])
def test_an_interrupted_estimate_equals_an_undisturbed_one(stops, cut, tiny_run, digits, tmp_path):
    run = tiny_run(epochs=3, objective=ATTACKED, sparsifier=OnlyNorms())
    undisturbed = training.train(run, digits, cut)
    assert_same_training(interrupted(run, digits, tmp_path / "checkpoint", stops, cut), undisturbed)
    assert all(norm.num_batches_tracked == 9 for norm in norms(undisturbed.model).values())


def test_a_network_without_statistics_is_refused_in_one_line(refusal):
    for net in (nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)),
                nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))):
        assert "no batch norms with running statistics" in refusal(OnlyNorms().start, net)


def test_norms_that_do_not_count_batches_are_refused_in_one_line(refusal):
    """Of them PyTorch would take no average."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    net[1].num_batches_tracked = None
    assert "do not count their batches" in refusal(OnlyNorms().start, net)


def test_settings_are_written_and_read_back():
    assert OnlyNorms().plain() == {"kind": "only_norms"}
    assert Sparsifier.parse({"kind": "only_norms"}) == OnlyNorms()
