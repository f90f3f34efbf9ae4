"""The first page: what its attack, its landscape and its thinned networks are."""

import numpy as np
import pytest
import torch

from sparserobust import data, models, sparsity
from sparserobust.reporting import widgets
from sparserobust.studies.sparsity_theory import report as sparsity_theory
from sparserobust.studies.start_here import report as s


@pytest.fixture(scope="module")
def mlp():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.LeNet300100().build((1, 8, 8), 10).eval()


@pytest.fixture(scope="module")
def test_split():
    return data.load("digits").test


def test_its_networks_are_those_of_the_theory_page():
    """So that neither page trains what the other has trained."""
    theory = {row["run"].identity for row in sparsity_theory.experiment("quick").rows(net="LeNet-300-100")}
    assert {row["run"].identity for row in s.experiment("quick").grid} <= theory


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.3])
def test_an_attacked_image_stays_within_the_radius(mlp, test_split, radius):
    image, label = test_split.images[0], int(test_split.labels[0])
    attacked, chances = s.fooled({"net": mlp}, image, label, radius)["net"]
    assert float((attacked - image).abs().max()) <= radius + 1e-6 and attacked.min() >= 0 and attacked.max() <= 1
    assert chances.sum() == pytest.approx(1) and chances.shape == (10,)


def test_the_plane_is_the_loss_where_it_says(mlp, test_split):
    image, label = test_split.images[0], int(test_split.labels[0])
    plane = s.plane(mlp, image, label, reach=0.2, points=5)
    centre = torch.nn.functional.cross_entropy(mlp(image[None]), torch.tensor([label]))
    assert plane["loss"][2, 2] == pytest.approx(float(centre), abs=1e-5)
    x = image[None].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(mlp(x), torch.tensor([label])), x)
    right = torch.nn.functional.cross_entropy(mlp(image[None] + 0.2 * gradient.sign()), torch.tensor([label]))
    assert plane["loss"][2, 4] == pytest.approx(float(right), abs=1e-5)  # to the right: the attack's direction
    assert plane["loss"][2, 4] > plane["loss"][2, 2] > plane["loss"][2, 0]


def test_thinned_is_a_copy_that_lost_its_smallest_weights(mlp):
    before = {name: w.clone() for name, w in mlp.named_parameters()}
    thin = s.thinned(mlp, 0.8)
    assert sparsity.sparsity(thin) == pytest.approx(0.8, abs=1e-4) and sparsity.sparsity(mlp) == 0
    assert all(torch.equal(w, before[name]) for name, w in mlp.named_parameters())
    gone = torch.cat([before[n][w == 0].abs() for n, w in sparsity.prunable(thin).items()])
    kept = torch.cat([w[w != 0].abs() for w in sparsity.prunable(thin).values()])
    assert gone.max() <= kept.min()
    layers = s.left_by_layer(mlp, [0.0, 0.8])
    sizes = [w.numel() for w in sparsity.prunable(mlp).values()]
    assert np.average([left[1] for left in layers.values()], weights=sizes) == pytest.approx(20, abs=0.01)


def test_readers_count_weights_of_each_pixel(mlp):
    thin = s.thinned(mlp, 0.5)
    readers = s.readers(thin, (1, 8, 8))
    first = next(iter(sparsity.prunable(thin).values()))
    assert readers.shape == (8, 8) and readers.sum() == int((first != 0).sum())
    assert readers[1, 2] == int((first[:, 10] != 0).sum())


def test_accuracies_are_right_answers(mlp, test_split):
    split = test_split.first(50)
    frame = s.accuracies({"net": mlp}, split, [0.0], 0.1).set_index("metric")["value"]
    assert frame["clean"] == pytest.approx(float((mlp(split.images).argmax(1) == split.labels).double().mean()))
    held = s.right_under_attack({"net": mlp}, split, 0.1)["net"]
    assert frame["attacked"] == pytest.approx(float(held.double().mean())) and frame["attacked"] <= frame["clean"]


def test_a_slider_draws_each_value_once():
    from sparserobust.reporting import plots

    drawn = []

    def draw(value):
        drawn.append(value)
        return plots.curves([0, 1], {"line": [0, value]}, "x", "y")

    choice, picture = widgets.slider(draw, [1, 2, 3], "size", 2).children
    first = picture.value
    choice.value = 3
    assert picture.value != first and picture.value[1:4] == b"PNG"
    choice.value = 2
    assert picture.value == first and drawn == [2, 3]
