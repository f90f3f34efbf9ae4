"""Overlap of masks: counted weight by weight, chance by simulation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from scaffolding import PRUNABLE, Toy, seeded
from sparserobust import training
from sparserobust.analysis import MaskOverlap
from sparserobust.config import Measurement
from sparserobust.sparsifiers import Magnitude


def pruned(shares, seed: int) -> Toy:
    """Of each layer so large a share is zero, chosen by the seed."""
    model = Toy()
    with seeded(seed), torch.no_grad():
        for name, share in zip(PRUNABLE, shares, strict=True):
            w = model.get_parameter(name)
            w.flatten()[torch.randperm(w.numel())[:round(share * w.numel())]] = 0
    return model


@pytest.fixture
def overlap(tiny_run):
    """The measurement of two networks."""
    return lambda model, other: MaskOverlap(other=tiny_run())(model, None, other)


@given(shares=st.lists(st.floats(0, 0.95), min_size=8, max_size=8), seed=st.integers(0, 99))
def test_counted_weight_by_weight(tiny_run, shares, seed):
    model, other = pruned(shares[:4], seed), pruned(shares[4:], seed + 1)
    ours, theirs = ([x != 0 for name in PRUNABLE for x in net.get_parameter(name).flatten().tolist()]
                    for net in (model, other))
    found = MaskOverlap(other=tiny_run())(model, None, other)
    both = sum(a and b for a, b in zip(ours, theirs, strict=True))
    assert (found["count"], found["total"]) == (both, sum(ours))
    assert found["value"] == both / sum(ours)
    assert found["parts"]["jaccard"] == both / sum(a or b for a, b in zip(ours, theirs, strict=True))
    assert sum(layer["total"] for layer in found["layers"].values()) == len(ours)
    assert sum(layer["both"] for layer in found["layers"].values()) == both


def test_chance_by_simulation(overlap):
    """Of masks that keep as many weights in each layer: rates that differ make it more than the product of the shares
    in all."""
    shares, others, draws = (0.9, 0.2, 0.5, 0.7), (0.8, 0.4, 0.1, 0.9), 400
    found = [overlap(pruned(shares, 2 * i), pruned(others, 2 * i + 1)) for i in range(draws)]
    (chance,) = {result["parts"]["chance"] for result in found}  # whichever they are
    values = torch.tensor([result["value"] for result in found], dtype=torch.float64)
    assert chance == pytest.approx(float(values.mean()), abs=4 * float(values.std()) / draws**0.5)
    layers = found[0]["layers"].values()
    global_chance = sum(layer["other"] for layer in layers) / sum(layer["total"] for layer in layers)
    assert chance > global_chance + 0.02


def test_a_network_agrees_with_itself_and_a_part_of_it_is_contained(overlap):
    whole, part = pruned((0.2,) * 4, 0), pruned((0.2,) * 4, 0)
    with torch.no_grad():
        part.second.weight[0] = 0
    same, contained, rest = overlap(whole, whole), overlap(part, whole), overlap(whole, part)
    assert same["value"] == same["parts"]["jaccard"] == 1
    assert contained["value"] == 1 > rest["value"] == rest["parts"]["jaccard"] == contained["parts"]["jaccard"]


def test_weights_count_as_they_act(overlap):
    model, masked = Toy(), Toy()
    prune.l1_unstructured(masked.second, "weight", 0.5)
    assert overlap(model, masked)["layers"]["second"] == {"kept": 216, "other": 108, "both": 108, "total": 216}


def test_cuts_of_one_network_overlap_more_than_by_chance(tiny_run, digits):
    dense = tiny_run(epochs=2)
    start = training.train(dense, digits).model.state_dict()
    tuned = tiny_run(epochs=2, lr=0.01, sparsifier=Magnitude(sparsity=0.8))
    model, other = (training.train(run, digits, start).model for run in (
        tuned, tiny_run(epochs=0, sparsifier=Magnitude(sparsity=0.6))))
    measurement = MaskOverlap(other=dense.then(recipe=tuned.recipe))
    found = measurement(model, digits, other)
    assert found["value"] == 1 > found["parts"]["chance"] + 0.3
    assert measurement.required_runs == (measurement.other,)


def test_networks_that_cannot_be_compared_are_refused(overlap, refusal):
    assert "equal names and shapes" in refusal(overlap, Toy(), nn.Linear(3, 2))
    assert "all of this network's are zero" in refusal(overlap, pruned((1.0,) * 4, 0), Toy())
    assert overlap(Toy(), pruned((1.0,) * 4, 0))["value"] == 0
    assert "it has none" in refusal(overlap, nn.ReLU(), nn.ReLU())


def test_settings_are_written_and_read_back(tiny_run):
    measurement = MaskOverlap(other=tiny_run(seed=1))
    assert measurement.plain() == {"kind": "mask_overlap", "other": tiny_run(seed=1).plain()}
    assert Measurement.parse(measurement.plain()) == measurement
