"""The first page: what its attack, the loss around its image and its pruned networks are."""

import numpy as np
import pandas
import pytest
import torch

from sparserobust import data, models, sparsity
from sparserobust.reporting import widgets
from sparserobust.running.experiment import Results
from sparserobust.studies import sparsity_theory
from sparserobust.studies.start_here import report as s
from sparserobust.studies.start_here import runs


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
    assert {row["run"].identity for row in runs.experiment("quick").grid} <= theory


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.3])
def test_an_attacked_image_stays_within_the_radius(mlp, test_split, radius):
    image, label = test_split.images[0], int(test_split.labels[0])
    changed, chances = s.attacked({"net": mlp}, image, label, radius)["net"]
    assert float((changed - image).abs().max()) <= radius + 1e-6 and changed.min() >= 0 and changed.max() <= 1
    assert chances.sum() == pytest.approx(1) and chances.shape == (10,)


def test_the_example_fools_one_network_only(mlp, test_split):
    class Robust(torch.nn.Module):
        def forward(self, images):  # always right on the images as they are, and on no gradient
            nearest = (images.flatten(1)[:, None] - test_split.images.flatten(1)).abs().sum(2).argmin(1)
            return torch.nn.functional.one_hot(test_split.labels[nearest], 10).float() + 0 * images.sum()

    image, label = s.example({runs.NATURAL: mlp, runs.ADVERSARIAL: Robust()}, test_split, 0.1)
    assert s.attacked({"net": mlp}, image, label, 0.1)["net"][1].argmax() != label


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


def test_pruned_is_a_copy_that_lost_its_smallest_weights(mlp):
    before = {name: w.clone() for name, w in mlp.named_parameters()}
    smaller = s.pruned(mlp, 0.8)
    assert sparsity.sparsity(smaller) == pytest.approx(0.8, abs=1e-4) and sparsity.sparsity(mlp) == 0
    assert all(torch.equal(w, before[name]) for name, w in mlp.named_parameters())
    gone = torch.cat([before[n][w == 0].abs() for n, w in sparsity.prunable(smaller).items()])
    kept = torch.cat([w[w != 0].abs() for w in sparsity.prunable(smaller).values()])
    assert gone.max() <= kept.min()


def test_what_is_left_is_counted_by_layer_and_by_pixel(mlp):
    layers = s.left_by_layer({"net": mlp}, [0.0, 0.8])
    assert layers.columns.tolist() == [("net", "64 to 300"), ("net", "300 to 100"), ("net", "100 to 10")]
    sizes = [w.numel() for w in sparsity.prunable(mlp).values()]
    assert (layers.loc["0"] == 100).all() and np.average(layers.loc["80"], weights=sizes) == pytest.approx(20, abs=0.01)
    pixels = s.weights_by_pixel({"net": mlp}, 0.5, (1, 8, 8))["net"]
    first = next(iter(sparsity.prunable(s.pruned(mlp, 0.5)).values()))
    assert pixels.shape == (8, 8) and pixels.sum() == int((first != 0).sum())
    assert pixels[1, 2] == int((first[:, 10] != 0).sum())


def test_accuracies_are_correct_answers(mlp, test_split):
    split = test_split.first(50)
    frame = s.accuracies({"net": mlp}, split, [0.0], 0.1).set_index("metric")["value"]
    assert frame["clean"] == pytest.approx(float((mlp(split.images).argmax(1) == split.labels).double().mean()))
    held = s.right_under_attack({"net": mlp}, split, 0.1)["net"]
    assert frame["attacked"] == pytest.approx(float(held.double().mean())) and frame["attacked"] <= frame["clean"]


def test_sentences_take_their_numbers_from_the_curves():
    experiment = runs.experiment("quick")
    frame = pandas.DataFrame([
        {"net": row["net"], "seed": 0, "metric": name,
         "value": (0.9 if row["net"] == runs.ADVERSARIAL else 0.8) - (0 if name == "clean" else float(name))}
        for row in experiment.grid for name in row["measurements"]])
    results = Results(experiment, None, frame)
    assert s.accuracies_in_words(results) == (
        "Correct answers: *trained as usual* 70 % at radius 0.1, 65 % at radius 0.15; "
        "*trained under attack* 80 % at radius 0.1, 75 % at radius 0.15.")
    assert s.accuracy_table(results).loc[runs.NATURAL].tolist() == [80, 78, 75, 70, 65, 60, 50]
    curves = pandas.DataFrame([{"net": net, "share": 0.5, "metric": metric, "value": value} for net, metric, value in (
        (runs.NATURAL, "clean", 0.9), (runs.NATURAL, "attacked", 0.4), (runs.ADVERSARIAL, "clean", 0.8),
        (runs.ADVERSARIAL, "attacked", 0.7))])
    told = s.accuracies_left_in_words(curves, [0.5])
    assert "*trained as usual* 90 % clean and 40 % under attack with 50 % zeroed" in told


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
