"""The first page: what its attack, the loss around its image and its pruned networks are."""

import re
from types import SimpleNamespace

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


def test_levels_that_fool_are_the_smallest():
    class FirstPixel(torch.nn.Module):
        def forward(self, images):  # class 1 beyond a fifth
            return torch.stack([0.2 - images[:, 0, 0, 0], images[:, 0, 0, 0] - 0.2], 1)

    dark = torch.zeros(1, 2, 2)
    assert s.levels_that_fool(FirstPixel(), dark, 0) == 52  # the first above 0.2 of 255
    assert s.levels_that_fool(FirstPixel(), dark, 1) == 0


def test_photographs_are_those_of_the_cards():
    from sparserobust import networks

    models, photographs = s.of_photographs(), data.sample()
    assert s.cards_agree(models, photographs) == {runs.NATURAL: True, runs.ADVERSARIAL: True}
    assert s.cards_agree(dict.fromkeys(models, models[runs.NATURAL]), photographs)[runs.ADVERSARIAL] is False
    count = networks.card("natural")["measured"]["clean"]["count"]
    assert f"*{runs.NATURAL}* {count / 100:.0f} % of 10,000 photographs as they are" in s.photographs_in_words()


def test_a_network_trained_by_hand_is_compared(mlp):
    other = s.pruned(mlp, 0.5)
    assert s.compared(mlp, mlp).endswith("the same weights, bit for bit")
    apart = max(float((a - b).abs().max()) for a, b in zip(mlp.parameters(), other.parameters(), strict=True))
    assert f"differ by up to {apart:.2g} " in s.compared(mlp, other)


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


def test_a_page_counts_the_cells_that_have_run(monkeypatch):
    shown, hooks = [], []
    shell = SimpleNamespace(user_ns={"In": ["", "a = 1", "b = 2"]},
                            events=SimpleNamespace(register=lambda event, hook: hooks.append((event, hook))))
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: handle)
    widgets.page_progress("00_start_here")
    ((event, hook),) = hooks
    hook()
    shell.user_ns["In"] += ["a = 1"]  # run once more
    hook()
    shell.user_ns["In"] += [f"c = {i}" for i in range(100)]
    hook()
    total = re.fullmatch(r"(\d+) of the \1 cells of this page have run", shown[-1])[1]
    assert event == "post_run_cell" and shown[:2] == [f"2 of the {total} cells of this page have run"] * 2


def test_a_slider_draws_each_value_once():
    from sparserobust.reporting import plots

    drawn = []

    def draw(value):
        drawn.append(value)
        return plots.curves([0, 1], {"line": [0, value]}, "x", "y")

    choice, picture = widgets.slider(draw, [1, 2, 3], "size", 2).children
    first = picture.value
    choice.value = 3
    assert picture.value != first and 'alt="Y against x, at size 3." src="data:image/png;base64,' in picture.value
    choice.value = 2
    assert picture.value == first and drawn == [2, 3]
