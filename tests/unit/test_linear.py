"""Theorem 3.1 and exact radii, on random linear classifiers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparserobust.analysis import LinearRadii, Theorem31
from sparserobust.analysis.linear import Binary, balancing_bias, exact_radii, weight_and_bias
from sparserobust.attacks import FGSM, PGD
from sparserobust.data import Split, Splits
from sparserobust.imagewise import unpack
from sparserobust.models import LeNet300100
from sparserobust.models.lenet import Linear


def problem(seed: int, n: int = 200, d: int = 9):
    """Two Gaussian clouds of n images each, and a classifier that knows them roughly."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.cat([torch.ones(n), -torch.ones(n)]).double()
    direction, tilt = torch.randn(2, d, generator=generator, dtype=torch.float64)
    images = 0.4 + 0.2 * signs[:, None] * direction + 0.3 * torch.randn(2 * n, d, generator=generator).double()
    return direction + 0.5 * tilt, images, signs


@given(st.integers(0, 500))
def test_the_bias_makes_both_classes_equally_accurate(seed):
    weight, images, signs = problem(seed)
    right = signs * (images @ weight + balancing_bias(images @ weight, signs)) > 0
    assert right[signs == 1].sum() == right[signs == -1].sum()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.lists(st.integers(-5, 5), min_size=1, max_size=12))
def test_no_bias_balances_better(plus, minus):
    """Ties and classes of unequal size included: between any two scores there is one threshold to try."""
    def difference(bias: float) -> float:
        return abs(sum(s + bias > 0 for s in plus) / len(plus) - sum(s + bias < 0 for s in minus) / len(minus))

    scores = torch.tensor([*plus, *minus]).double()
    signs = torch.tensor([1] * len(plus) + [-1] * len(minus))
    found = balancing_bias(scores, signs)
    assert (scores + found != 0).all()
    assert difference(found) == pytest.approx(min(difference(half / 2) for half in range(-13, 14, 2)), abs=1e-6)


@given(st.integers(0, 500))
def test_the_formula_for_r2_is_exact_when_balanced(seed):
    weight, images, signs = problem(seed)
    balanced = Binary.of(weight, balancing_bias(images @ weight, signs), images, signs)
    assert balanced.r2 == pytest.approx(balanced.r2_formula, rel=1e-9)


def test_the_formula_for_r2_fails_when_not_balanced():
    weight, images, signs = problem(0)
    skewed = Binary.of(weight, balancing_bias(images @ weight, signs) + float(weight.norm()), images, signs)
    assert abs(skewed.r2 - skewed.r2_formula) > 0.05 * skewed.r2


@given(st.integers(0, 500), st.floats(0.001, 2))
def test_no_accuracy_lies_above_its_bound(seed, epsilon):
    weight, images, signs = problem(seed)
    balanced = Binary.of(weight, balancing_bias(images @ weight, signs), images, signs)
    assert balanced.r_inf(epsilon) <= balanced.r_inf_bound(epsilon) + 1e-12
    assert balanced.r_inf(0) == balanced.accuracy


def test_the_bound_is_met_when_all_margins_are_the_same():
    images = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    two = Binary.of(torch.tensor([2.0, 1.0]), 0.0, images, torch.tensor([1.0, -1.0]))
    assert two.r_inf_bound(2 / 3) == pytest.approx(1.0) and two.r_inf(2 / 3 - 1e-9) == 1.0
    assert two.r2 == pytest.approx(2 / 5**0.5)


def test_classes_of_unequal_size_are_refused(refusal):
    weight, images, signs = problem(0)
    assert "equal size" in refusal(Binary.of, weight, 0.0, images[1:], signs[1:])


def test_a_classifier_without_weights_is_refused(refusal):
    weight, images, signs = problem(0)
    assert "all weights are zero" in refusal(Binary.of, 0 * weight, 1.0, images, signs)
    model, data = trained(2, [20, 20])
    model[1].weight.data[:] = model[1].weight.data[:1]  # both rows alike: their difference is what divides
    assert "all weights are zero" in refusal(Theorem31(radii=(0.1,)), model, data)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@given(seed=st.integers(0, 500))
def test_exact_radii_are_exact(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, bias, images = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((5, 7), (5,), (30, 7)))
    labels = (images @ weight.T + bias).argmax(1)
    radii = exact_radii(weight, bias, images, labels, norm)
    for image, label, radius in zip(images, labels, radii, strict=True):
        reached = False
        for other in range(5):
            row = weight[other] - weight[label]
            step = row.sign() if norm == "linf" else row / row.norm().clamp_min(1e-12)
            assert (weight @ (image + 0.999 * radius * step) + bias).argmax() == label
            reached |= bool((weight @ (image + 1.001 * radius * step) + bias).argmax() != label)
        assert reached
    assert (exact_radii(weight, bias, images, (labels + 1) % 5, norm) == 0).all()


def test_fgsm_may_stay_behind_the_exact_radius_but_never_gets_inside():
    torch.manual_seed(0)
    model, images = Linear().build((1, 6, 6), 10), 0.5 + 0.05 * torch.randn(200, 1, 6, 6)
    torch.nn.init.normal_(model[1].weight)
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # so that no class leads at the mean image
    labels = model(images).argmax(1)
    radii = exact_radii(model[1].weight.detach(), model[1].bias.detach(), images.flatten(1), labels, "linf")
    epsilon = float(radii.median())
    assert epsilon < 0.1  # far from the edges of the box
    survives = {name: model(attack(model, images, labels)).argmax(1) == labels for name, attack in {
        "FGSM": FGSM(epsilon=epsilon), "PGD": PGD(epsilon=epsilon, step_size=epsilon / 4, steps=20)}.items()}
    certified = radii > epsilon
    assert 20 < certified.sum() < 180
    assert all(kept[radii > epsilon * 1.0001].all() for kept in survives.values())
    assert survives["FGSM"].sum() > certified.sum()  # ten classes: the sign of the loss's gradient is not the worst


# ------------------------------------------------------------------------------------------------ measurements


def trained(classes: int, counts: list[int], shift: float = 0.0, scale: float = 0.003):
    """A random linear network, images that know it a little (by `scale`), `counts` of each class to test on, all far
    from the edges of the box; `shift` moves the test images along the network's first difference of rows."""
    torch.manual_seed(1)
    model = Linear().build((1, 5, 5), classes).eval()
    torch.nn.init.normal_(model[1].weight)
    weight = model[1].weight.detach()
    model[1].bias.data = torch.randn(classes) / 10 - 0.5 * weight.sum(1)

    def split(labels):
        images = 0.5 + 0.03 * torch.randn(len(labels), 25) + scale * weight[labels]
        return Split(images.view(-1, 1, 5, 5), labels)

    train, test = split(torch.randint(classes, (300,))), split(torch.arange(classes).repeat_interleave(
        torch.tensor(counts))[torch.randperm(sum(counts))])
    test.images.add_(shift * (weight[1] - weight[0]).view(1, 5, 5))
    return model, Splits(train, train.first(10), test, tuple("abcdefghij"[:classes]))


def test_theorem_31_by_hand():
    model, data = trained(2, [60, 45], shift=0.004)
    model[1].weight.data[1, :4] = model[1].weight.data[0, :4]  # four pixels do not count
    weight = (model[1].weight[1] - model[1].weight[0]).detach().double()
    train_scores = data.train.images.flatten(1).double() @ weight
    bias = balancing_bias(train_scores, 2 * data.train.labels - 1)
    kept, margins, test = {0: 0, 1: 0}, [], data.test.sample(None)
    for image, label in zip(test.images, test.labels.tolist(), strict=True):
        if kept[label] < 45:  # as many of both, the first ones that are drawn
            kept[label] += 1
            margins.append((2 * label - 1) * float(image.flatten().double() @ weight + bias))
    result = Theorem31(radii=(0.001, 0.01))(model, data)
    parts, right = result["parts"], [m for m in margins if m > 0]
    assert result["total"] == len(margins) == 90 and parts["accuracy"] == len(right) / 90 and 0 < len(right) < 90
    assert result["each"].keys() == {"", "r_inf 0.001", "r_inf 0.01"}
    distances = [max(m, 0) / float(weight.norm()) for m in margins]
    assert unpack(result["each"][""]) == pytest.approx(distances, abs=1e-3 * max(distances))
    assert result["value"] == pytest.approx(sum(right) / 90 / float(weight.norm()))
    assert (parts["l0"], parts["l1"]) == (21, pytest.approx(float(weight.abs().sum())))
    assert parts["l2"] == pytest.approx(float(weight.norm()))
    for radius in (0.001, 0.01):
        reach = radius * float(weight.abs().sum())
        assert unpack(result["each"][f"r_inf {radius:g}"]).tolist() == [m > reach for m in margins]
        assert parts[f"r_inf {radius:g}"] == sum(m > reach for m in margins) / 90
        bound = parts["accuracy"] / (2 * radius) * parts["numerator"] / parts["l1"]
        assert parts[f"bound {radius:g}"] == pytest.approx(bound)
    assert parts["formula"] == pytest.approx(parts["accuracy"] / 2 * parts["numerator"] / parts["l2"])
    own = balancing_bias(data.test.images.flatten(1).double() @ weight, 2 * data.test.labels - 1)
    assert abs(own - bias) > 0.1  # the shifted test images would have balanced themselves otherwise


def test_theorem_31_is_exact_where_the_training_images_are_the_test_images():
    model, data = trained(2, [70, 70])
    same = Splits(data.test, data.test, data.test, data.classes)
    result = Theorem31(radii=(0.005,))(model, same)
    assert result["value"] == pytest.approx(result["parts"]["formula"])
    assert result["parts"]["r_inf 0.005"] <= result["parts"]["bound 0.005"]


def test_theorem_31_does_not_read_the_biases_of_the_network():
    model, data = trained(2, [30, 30])
    before = Theorem31(radii=(0.01,))(model, data)
    model[1].bias.data += torch.tensor([3.0, -2.0])
    assert Theorem31(radii=(0.01,))(model, data) == before


def test_theorem_31_is_of_two_classes(refusal):
    model, data = trained(3, [9, 9, 9])
    message = refusal(Theorem31(radii=(0.1,)), model, data)
    assert "these data have 3" in message and "`classes`" in message


def test_linear_radii_are_the_exact_ones():
    model, data = trained(5, [10, 20, 10, 10, 30], scale=0.02)
    test = data.test.sample(None)
    images, labels = test.images.flatten(1), test.labels
    r2, r_inf = (exact_radii(model[1].weight.detach(), model[1].bias.detach(), images, labels, norm)
                 for norm in ("l2", "linf"))
    radii = tuple(float(r_inf.quantile(q)) for q in (0.4, 0.6, 0.8))
    result = LinearRadii(radii=radii)(model, data)
    wrong = (model(test.images).argmax(1) != labels).double().mean().item()
    assert 0 < wrong < 0.6 and result["total"] == 80
    assert result["each"].keys() == {"", *(f"r_inf {radius:g}" for radius in radii)}
    assert unpack(result["each"][""]) == pytest.approx(r2.numpy(), abs=1e-3 * float(r2.max()))
    assert result["value"] == pytest.approx(r2.mean().item())
    assert result["parts"]["relative"] == pytest.approx((r2 / images.double().norm(dim=1)).mean().item())
    for radius in radii:
        survives = model(FGSM(epsilon=radius)(model, test.images, labels)).argmax(1) == labels
        assert unpack(result["each"][f"r_inf {radius:g}"]).tolist() == (r_inf > radius).tolist()
        assert result["parts"][f"r_inf {radius:g}"] == (r_inf > radius).double().mean().item()
        assert result["parts"][f"fgsm {radius:g}"] == survives.double().mean().item()
        assert result["parts"][f"r_inf {radius:g}"] <= result["parts"][f"fgsm {radius:g}"]
    assert any(result["parts"][f"r_inf {r:g}"] < result["parts"][f"fgsm {r:g}"] for r in radii)


def test_with_two_classes_fgsm_is_the_worst_and_r2_needs_no_theorem():
    model, data = trained(2, [40, 40])
    radii = (0.002, 0.01, 0.03)
    parts = LinearRadii(radii=radii)(model, data)["parts"]
    assert [parts[f"r_inf {r:g}"] for r in radii] == [parts[f"fgsm {r:g}"] for r in radii]
    assert parts["r_inf 0.002"] > parts["r_inf 0.03"]


@pytest.mark.parametrize("measure", [Theorem31, LinearRadii])
def test_validation_images_are_measured_where_they_are_asked_for_and_no_others(measure, refusal):
    model, data = trained(2, [40, 30])
    test, validation = (Splits(data.train, *pair, data.classes) for pair in ((None, data.test), (data.test, None)))
    result = measure(radii=(0.01,), split="validation")(model, validation)
    assert result == measure(radii=(0.01,))(model, test) and result["total"] in (60, 70)
    assert result != measure(radii=(0.01,), split="validation")(model, data)
    assert measure(radii=(0.01,), split="validation").identity != measure(radii=(0.01,)).identity
    assert "split is test or validation, not 'train'" in refusal(measure, radii=(0.01,), split="train")


def test_only_linear_networks_have_these_parameters(refusal):
    model, _ = trained(3, [1, 1, 1])
    weight, bias = weight_and_bias(model, (1, 5, 5))
    assert (weight.shape, bias.shape, weight.dtype, bias.dtype) == ((3, 25), (3,), torch.float64, torch.float64)
    assert not weight.requires_grad
    layer = torch.nn.Linear(25, 3, bias=False)
    weight, bias = weight_and_bias(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten(), layer), (1, 5, 5))
    assert torch.equal(weight, layer.weight.double()) and torch.equal(bias, torch.zeros(3).double())
    hooked = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 3))
    hooked.register_forward_hook(lambda _, inputs, logits: 3 * logits)
    for other in (LeNet300100().build((1, 5, 5), 3), hooked, torch.nn.Sequential(model, torch.nn.ReLU()),
                  torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5), torch.nn.Flatten()),
                  torch.nn.Sequential(torch.nn.BatchNorm2d(1), model), torch.nn.Sequential(Turned(), model)):
        assert "one linear layer on flattened images" in refusal(weight_and_bias, other, (1, 5, 5))


class Turned(torch.nn.Module):
    def forward(self, x):
        return x.view(-1, 1, 5, 5).transpose(2, 3)


def test_a_black_image_has_no_length_to_compare_with():
    model, data = trained(3, [5, 5, 5])
    test = data.test.sample(None)
    images, labels = test.images.clone(), test.labels.clone()
    images[0], labels[0] = 0, model(torch.zeros(1, *images.shape[1:])).argmax()
    found, rest = (LinearRadii(radii=(0.0,))(model, Splits(data.train, data.validation, Split(x, y), data.classes))
                   for x, y in ((images, labels), (images[1:], labels[1:])))
    assert found["parts"]["relative"] == pytest.approx(rest["parts"]["relative"]) and found["total"] == 15


def test_radii_that_mean_nothing_are_refused(refusal):
    for radius in (0.0, -0.1):
        assert "positive" in refusal(Theorem31, radii=(radius,))
    assert "negative" in refusal(LinearRadii, radii=(-0.1,))
