"""Margins, slopes and radii: exact on linear networks, in order on all others."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from scaffolding import splits_of
from sparserobust.analysis import LayerNorms, Margins, RadiusOrder, lipschitz, radii
from sparserobust.analysis.conditioning import effective_weights
from sparserobust.analysis.linear import exact_radii
from sparserobust.attacks import CarliniWagnerL2, DeepFool, l2_norm, predicted
from sparserobust.config import Measurement
from sparserobust.errors import UserError
from sparserobust.imagewise import unpack
from sparserobust.models import Linear, PreActResNet, noise_off
from sparserobust.models.lenet import Sequence

SHAPE = (1, 4, 4)
CW = CarliniWagnerL2(steps=40, search_steps=3, lr=0.2, constant=0.3)
ORDER = RadiusOrder(images=12, batches=1, samples=32, cw=CW)  # from one batch no law is fitted, which takes long


@pytest.fixture
def linear():
    """A linear network, and 40 images with its answers; every fifth of the labels is another one."""
    torch.manual_seed(0)
    model, images = Linear().build(SHAPE, 5).eval(), 0.4 + 0.2 * torch.rand(40, *SHAPE)
    nn.init.normal_(model[1].weight)
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # so that no class leads at the mean image
    labels = model(images).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    return model, splits_of(images, labels)


def mlp(seed: int, share: float = 0.0):
    """A random network of two hidden layers without a share of its weights, and images with its answers."""
    torch.manual_seed(seed)
    model = Sequence(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)).eval()
    for p in model.parameters():
        p.data = (2 * p.data + 0.2 * torch.randn_like(p)) * (torch.rand_like(p) >= share)
    images = torch.rand(20, *SHAPE)
    return model, splits_of(images, predicted(model, images))


# ----------------------------------------------------------------------------------------------------- margins


@pytest.mark.parametrize("norm, dual", [("l2", 2), ("linf", 1)])
def test_all_is_exact_on_a_linear_network(linear, norm, dual):
    model, data = linear
    weight, bias = (p.detach().double() for p in model[1].parameters())
    margins, slopes, right, test = [], [], [], data.test.sample(30)
    for i, (image, label) in enumerate(zip(test.images.double(), test.labels, strict=True)):
        logits = weight @ image.flatten() + bias
        best, runner_up = logits.argsort(descending=True)[:2]
        if best == label:
            right.append(i)
            margins.append(logits[best] - logits[runner_up])
            slopes.append((weight[best] - weight[runner_up]).norm(p=dual))
    margins, slopes = torch.stack(margins), torch.stack(slopes)
    result = Margins(images=30, norm=norm, samples=3)(model, data)
    assert result["total"] == len(right) == 23
    assert result["value"] == pytest.approx(margins.mean().item(), rel=1e-5)
    parts = result["parts"]
    assert parts["slope"] == pytest.approx(slopes.mean().item(), rel=1e-5)
    assert parts["bound"] == pytest.approx(slopes.mean().item(), rel=1e-5)
    assert parts["ratio"] == pytest.approx((margins / slopes).sum().item() / 30, rel=1e-5)  # zero for the other seven
    assert result["each"].keys() == {"", "slope", "bound", "ratio"}
    for part, values, of_wrong in (("", margins, torch.nan), ("slope", slopes, torch.nan), ("bound", slopes, torch.nan),
                                   ("ratio", margins / slopes, 0.0)):
        expected = torch.full((30,), of_wrong).double()
        expected[right] = values
        assert unpack(result["each"][part]) == pytest.approx(expected.numpy(), abs=1e-3 * float(values.max()),
                                                             nan_ok=True)
    exact = exact_radii(weight, bias, test.images.flatten(1), test.labels, norm)
    assert parts["guaranteed"] == pytest.approx(exact.mean().item(), rel=1e-5)
    assert parts["guaranteed"] < parts["ratio"]  # the runner-up is not always the nearest class


def test_a_constant_network_has_margins_but_no_ratio():
    model = Linear().build(SHAPE, 5).eval()
    model[1].bias.data = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0])
    data = splits_of(torch.rand(6, *SHAPE), torch.tensor([1, 1, 1, 1, 0, 2]))
    result = Margins(images=6, samples=2)(model, data)
    assert (result["value"], result["total"]) == (2.0, 4)
    assert result["parts"]["slope"] == result["parts"]["bound"] == 0 and result["parts"]["ratio"] is None
    wrong = (data.test.sample(6).labels != 1).tolist()
    assert unpack(result["each"]["ratio"]) == pytest.approx([0 if w else torch.nan for w in wrong], nan_ok=True)
    assert unpack(result["each"]["slope"]) == pytest.approx([torch.nan if w else 0 for w in wrong], nan_ok=True)


def step(weight: float, threshold: float):
    """Two logits: 1, and 5 relu(weight (x - threshold)) of the first pixel."""
    model: Any = Sequence(nn.Flatten(), nn.Linear(16, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    for p in model.parameters():
        nn.init.zeros_(p)
    model[1].weight.data[0, 0], model[1].bias.data[0] = weight, -weight * threshold
    model[3].weight.data[1, 0], model[3].bias.data[0] = 5.0, 1.0
    return model


def test_images_without_slope_count_in_the_slope_but_not_in_the_ratio():
    """Beyond 0.4 the slope is 10, before it there is none; the ball of one image lies here, that of another there, and
    a third is misclassified: its ratio is zero."""
    images = torch.zeros(3, *SHAPE)
    images[1, 0, 0, 0] = 1.0
    data = splits_of(images, torch.tensor([0, 1, 1]))
    result = Margins(images=3, radius=0.3, samples=4)(step(2.0, 0.4), data)
    margins = [1, 5 * 2 * 0.6 - 1]
    assert (result["value"], result["total"]) == (pytest.approx(sum(margins) / 2), 2)
    assert result["parts"]["slope"] == pytest.approx(5)
    assert result["parts"]["ratio"] == pytest.approx((margins[1] / 10 + 0) / 2)
    assert result["parts"]["bound"] == pytest.approx(10)
    of_image = {0: torch.nan, 1: margins[1] / 10, 2: 0.0}  # no slope, the second, misclassified
    order = [2 if label and not image.any() else int(label) for image, label in zip(*vars(data.test.sample(3)).values(),
                                                                                    strict=True)]
    assert sorted(order) == [0, 1, 2]
    assert unpack(result["each"]["ratio"]) == pytest.approx([of_image[i] for i in order], rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("radius, slope", [(0.02, 0), (1.0, 10)])
def test_the_slope_is_the_largest_in_the_ball(radius, slope):
    """Half a step before the kink: the ball reaches it, or it does not."""
    images = torch.full((1, *SHAPE), 0.85)
    measure = Margins(images=1, norm="linf", radius=radius, samples=40)
    assert measure(step(2.0, 0.9), splits_of(images, torch.tensor([0])))["parts"]["slope"] == pytest.approx(slope)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(3))
def test_slope_and_guarantee_lie_below_what_bounds_them(norm, seed):
    model, data = mlp(seed)
    parts = Margins(images=20, norm=norm)(model, data)["parts"]
    assert 0 < parts["slope"] <= parts["bound"] and 0 < parts["guaranteed"] < parts["ratio"]


def test_margins_repeat_and_leave_the_network_alone():
    model, data = mlp(0)
    model.train()
    first, chance = Margins(images=20)(model, data), torch.get_rng_state()
    assert json.loads(json.dumps(first)) == first
    assert Margins(images=20)(model, data) == first and torch.equal(torch.get_rng_state(), chance)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_without_a_correct_answer_there_is_nothing_to_measure(linear, refusal):
    model, data = linear
    wrong = splits_of(data.test.images, (predicted(model, data.test.images) + 1) % 5)
    for measure in (Margins(images=7), RadiusOrder(images=7)):
        assert "none of 7 images" in refusal(measure, model, wrong)


@pytest.mark.parametrize("change", [{"norm": "l1"}, {"norm": "frobenius"}, {"images": 0}, {"radius": 0},
                                    {"samples": 0}], ids=str)
def test_wrong_settings_of_margins(refusal, change):
    message = refusal(Measurement.parse, {"kind": "margins"} | change)
    assert ("norm is l2 or linf" if "norm" in change else "must be positive") in message


# -------------------------------------------------------------------------------------------- radii in order


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["dense", "masked"])
@pytest.mark.parametrize("seed", range(2))
def test_radii_are_in_order_before_and_after_random_masking(seed, share):
    model, data = mlp(seed, share)
    result = ORDER(model, data)
    found = result["radii"]
    assert list(found) == ["guaranteed (frobenius)", "guaranteed (l2)", "CLEVER", "C&W", "DeepFool"]
    assert (result["value"], result["count"], result["total"]) == (1, 12, 12)
    assert all(len(of_images) == 12 for of_images in found.values()) and max(found["CLEVER"]) <= ORDER.radius
    for lower, below, _, *reached in zip(*found.values(), strict=True):
        assert 0 < lower < below < min(v for v in reached if v is not None)
    assert json.loads(json.dumps(result)) == result


def test_the_trained_net_is_in_order(net, digits):
    result = RadiusOrder(images=6, batches=1, samples=4, cw=CW)(net, digits)
    assert result["value"] == 1 and 0 < result["total"] == result["count"] <= 6


def test_radii_of_a_linear_network_are_its_own(linear):
    model, data = linear
    result = RadiusOrder(images=20, radius=0.05, batches=3, samples=2, cw=CW)(model, data)
    test = data.test.sample(20)
    right = predicted(model, test.images) == test.labels
    images, labels = test.images[right], test.labels[right]
    exact = exact_radii(model[1].weight.detach(), model[1].bias.detach(), images.flatten(1), labels, "l2")
    found = {name: torch.tensor(values).double() for name, values in result["radii"].items()}
    assert result["total"] == len(labels) == 15 and result["value"] == 1
    assert torch.allclose(found["guaranteed (l2)"], exact, rtol=1e-4)
    assert exact.max() < 0.1  # far from the edges of the box
    assert torch.allclose(found["DeepFool"], 1.02 * exact, rtol=1e-3, atol=2e-4)
    (leading, second), classes = model(images).detach().double().topk(2).values.T, model(images).topk(2).indices
    rows = model[1].weight.detach().double()[classes]
    assert torch.allclose(found["CLEVER"], ((leading - second) / (rows[:, 0] - rows[:, 1]).norm(dim=1)).clamp_max(0.05),
                          rtol=1e-3)
    assert found["CLEVER"].max() == pytest.approx(0.05)
    frobenius = lipschitz.guaranteed_radius(model, images, labels, "frobenius")
    assert torch.allclose(found["guaranteed (frobenius)"], frobenius, rtol=1e-4)


def test_what_an_attack_does_not_fool_it_does_not_reach():
    model, data = mlp(0)
    weak = CarliniWagnerL2(steps=1, search_steps=1, lr=1e-6)
    result = RadiusOrder(images=12, batches=1, samples=4, cw=weak, deepfool=DeepFool(steps=1))(model, data)
    test = data.test.sample(12)
    moved = DeepFool(steps=1)(model, test.images, test.labels)
    lengths = l2_norm(moved - test.images).tolist()
    fooled = (predicted(model, moved) != test.labels).tolist()
    assert 0 < sum(fooled) < 12
    assert result["radii"]["C&W"] == [None] * 12
    for reached, length, there in zip(result["radii"]["DeepFool"], lengths, fooled, strict=True):
        assert reached is None if not there else reached == pytest.approx(length, rel=1e-5)
    assert result["value"] == 1  # no one is outdone by who does not fool


@pytest.mark.parametrize("which, ordered", [("frobenius", [1, 1, 0, 1]), ("l2", [1, 1, 1, 0])])
def test_what_is_out_of_order_is_seen(which, ordered, monkeypatch):
    """A guarantee by Frobenius norms above that by spectral ones; one by spectral norms above the nearer attack."""
    model, data = mlp(0)
    sound = RadiusOrder(images=4, batches=1, samples=4, cw=CW)(model, data)["radii"]
    honest = lipschitz.guaranteed_radius

    def wrong(model, images, labels, norm):
        found = honest(model, images, labels, norm)
        if norm == which == "frobenius":
            found[2] = 1.01 * sound["guaranteed (l2)"][2]
        elif norm == which:
            found[3] = 1.001 * min(sound["C&W"][3], sound["DeepFool"][3])
        return found

    monkeypatch.setattr(lipschitz, "guaranteed_radius", wrong)
    result = RadiusOrder(images=4, batches=1, samples=4, cw=CW)(model, data)
    assert (result["value"], result["count"], result["total"]) == (0.75, sum(ordered), 4)


def test_a_clever_score_above_what_is_reached_is_counted_and_breaks_no_order(monkeypatch):
    model, data = mlp(1)
    sound = ORDER(model, data)["radii"]
    reached = torch.tensor([min(pair) for pair in zip(sound["C&W"], sound["DeepFool"], strict=True)])
    scores = reached * torch.tensor([1.01, 0.99] * 3 + [0.5] * 6)
    monkeypatch.setattr(radii, "clever", lambda *_: scores)
    result = ORDER(model, data)
    assert result["parts"] == {"clever_above": 0.25} and result["value"] == 1
    assert result["radii"]["CLEVER"] == pytest.approx(scores.tolist(), rel=1e-5)


def test_only_correct_answers_are_ordered(linear, refusal):
    model, data = linear
    result, test = RadiusOrder(images=10, batches=1, samples=2, cw=CW)(model, data), data.test.sample(10)
    assert result["total"] == len(result["radii"]["C&W"]) == sum(model(test.images).argmax(1) == test.labels) == 5
    for name in ("images", "radius", "batches", "samples"):
        assert "radius, batches and samples must be positive" in refusal(RadiusOrder, **{name: 0})


# ------------------------------------------------------------------------------------------------- layer norms


def test_layer_norms_of_linear_layers():
    """The first has a row twice and a column of zeros, so that its rank is three of four."""
    model, data = Sequence(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), splits_of(
        torch.rand(3, *SHAPE), torch.zeros(3).long())
    torch.manual_seed(0)
    nn.init.normal_(model[1].weight)
    model[1].weight.data[2] = model[1].weight.data[0]
    model[1].weight.data[:, 5] = 0
    result, product = LayerNorms()(model, data), 1.0
    assert list(result["layers"]) == ["1", "3"]
    for (name, found), rank in zip(result["layers"].items(), (3, 3), strict=True):
        w = model.get_submodule(name).weight.detach().double()
        values = torch.linalg.svdvals(w)
        assert found["l2"] == pytest.approx(torch.linalg.matrix_norm(w, 2).item(), rel=1e-5)
        assert found["frobenius"] == pytest.approx(torch.linalg.matrix_norm(w, "fro").item(), rel=1e-5)
        assert found["linf"] == pytest.approx(torch.linalg.matrix_norm(w, torch.inf).item(), rel=1e-5)
        assert found["rank"] == rank / len(values)
        assert found["condition"] == pytest.approx(float(values[0] / values[rank - 1]), rel=1e-5)
        product *= float(values[0])
    assert result["layers"]["1"]["rank"] == 0.75 and result["layers"]["3"]["rank"] == 1
    assert result["value"] == pytest.approx(product, rel=1e-5)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("groups", [1, 2])
def test_the_matrix_of_a_transposed_convolution_has_a_row_for_each_output(groups):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(4, 6, 2, groups=groups)
    model = Sequence(nn.Conv2d(1, 4, 1), up, nn.Flatten(), nn.Linear(150, 3)).eval()
    weight = model[1].weight.data
    weight[:, 1] = 2 * weight[:, 0]  # two outputs of the first group are alike, and of each other one
    result = LayerNorms()(model, splits_of(torch.rand(2, *SHAPE), torch.zeros(2).long()))["layers"]["1"]
    matrix = effective_weights(model)["1"].flatten(1).double()
    assert len(matrix) == 6 and result["rank"] == int(torch.linalg.matrix_rank(matrix)) / min(matrix.shape) < 1


def test_the_rank_of_a_convolution_is_that_of_its_matrix_and_its_norm_that_of_the_operator():
    torch.manual_seed(0)
    model = Sequence(nn.Conv2d(1, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)).eval()
    model[0].weight.data[:, :, 1] = 0  # two of the four weights of each kernel are left
    result = LayerNorms()(model, splits_of(torch.rand(2, *SHAPE), torch.zeros(2).long()))
    w = model[0].weight.detach().double()
    values = torch.linalg.svdvals(w.flatten(1))
    assert result["layers"]["0"]["rank"] == 2 / 4
    assert result["layers"]["0"]["condition"] == pytest.approx(float(values[0] / values[1]), rel=1e-5)
    columns = torch.eye(16).double().view(16, 1, 4, 4)
    matrix = nn.functional.conv2d(columns, w).flatten(1)
    spectral = [torch.linalg.matrix_norm(m, 2).item() for m in (matrix, model[3].weight.detach().double())]
    assert result["layers"]["0"]["l2"] == pytest.approx(spectral[0], rel=1e-4)
    assert result["value"] == pytest.approx(spectral[0] * spectral[1], rel=1e-4)


def test_layers_of_all_kinds_have_norms(refusal):
    """Those of their dense matrices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(1, 2, 3, 2), nn.Flatten(2), nn.Conv1d(2, 3, 5, 3), nn.Unflatten(
        1, (1, 3)), nn.Conv2d(1, 1, 2), nn.Flatten(), nn.Linear(50, 2)).eval()
    norms = {norm: lipschitz.layer_norms(model, SHAPE, norm) for norm in lipschitz.NORMS}
    x = torch.rand(1, *SHAPE)
    for name, layer in model.named_children():
        if name in norms["l2"]:
            dense = torch.autograd.functional.jacobian(layer.double(), x.double())
            dense = dense.flatten(dense.dim() // 2).flatten(0, dense.dim() // 2 - 1)
            assert norms["l2"][name] == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-5)
            assert norms["linf"][name] == pytest.approx(float(dense.abs().sum(1).max()), rel=1e-5)
            assert norms["frobenius"][name] == pytest.approx(float(dense.norm()), rel=1e-5)
        x = layer.float()(x).detach()
    assert list(norms["l2"]) == ["0", "2", "4", "6"]
    assert list(LayerNorms()(model, splits_of(torch.rand(2, *SHAPE)))["layers"]) == ["0", "2", "4", "6"]
    assert "no convolution" in refusal(LayerNorms(), nn.Flatten(), splits_of(torch.rand(2, *SHAPE)))


def test_a_layer_without_weights_has_no_condition():
    model = Sequence(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 3)).eval()
    nn.init.zeros_(model[2].weight)
    result = LayerNorms()(model, splits_of(torch.rand(2, *SHAPE), torch.zeros(2).long()))
    assert result["layers"]["2"] == {"l2": 0, "frobenius": 0, "linf": 0, "rank": 0, "condition": None}
    assert result["value"] == 0 and result["layers"]["1"]["rank"] == 1


def test_a_noisy_network_is_measured_with_its_noise_off():
    torch.manual_seed(0)
    model = PreActResNet(depth=8, width=4, noise=0.2).build(SHAPE, 5).eval()
    images = torch.rand(20, *SHAPE)
    with noise_off(model):
        labels = model(images).argmax(1)
        expected = Margins(images=20, samples=2)(model, splits_of(images, labels))["value"]
    assert Margins(images=20, samples=2, noise=False)(model, splits_of(images, labels))["value"] == expected
    with pytest.raises(UserError, match="noisy network"):
        Margins(images=20, samples=2)(model, splits_of(images, labels))


def test_weights_that_are_not_finite_and_forwards_that_raise_are_one_line(refusal):
    net, images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4)).eval(), torch.rand(4, *SHAPE)
    data = splits_of(images, torch.arange(4))
    net[0].weight.data[0, 0, 0, 0] = torch.nan
    assert "not finite" in refusal(LayerNorms(), net, data)
    net[0].weight.data[0, 0, 0, 0] = torch.inf
    assert "not finite" in refusal(LayerNorms(), net, data)
    net.forward = lambda x: x.nothing
    assert "takes no images" in refusal(LayerNorms(), net, data)
    assert "no convolution" in refusal(LayerNorms(), lambda x: x.flatten(1), data)


def test_margins_of_a_network_whose_factor_goes_by_the_number_of_images_guarantee_nothing(linear, refusal):
    model, data = linear
    model.register_forward_hook(lambda module, given, logits: logits * (30 if len(logits) > 8 else 1))
    assert "images together" in refusal(Margins(images=30, samples=2), model, data)
