"""Condition numbers, what pruning alone does to them, local Lipschitz constants, and what robustness follows."""

import copy
import itertools
import json
import math
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from torch import nn

from scaffolding import splits_of
from sparserobust.analysis import lipschitz
from sparserobust.analysis.conditioning import (
    Conditioning,
    LocalLipschitz,
    condition,
    conditioning,
    deficit,
    effective_rank,
    effective_weights,
    floored_condition,
    null_conditions,
    null_of,
    rank,
    row_conditioning,
    spectrum,
    unit_rows,
)
from sparserobust.analysis.folding import folded_weights
from sparserobust.config import Measurement
from sparserobust.errors import UserError
from sparserobust.models import NoisyWeights, PreActResNet
from sparserobust.models.gates import add_gates
from sparserobust.models.lenet import Linear, Sequence
from sparserobust.reporting.estimates import regression
from sparserobust.sparsifiers.constraints import condition_penalty

SHAPE = (1, 2, 4)
NAMES = ("folded", "folded_floored", "folded_deficit")


DATA = splits_of(torch.full((3, *SHAPE), 0.5))


def with_values(rows: int, columns: int, values: list[float]) -> torch.Tensor:
    """A matrix with these singular values, and zeros for the others."""
    generator = torch.Generator().manual_seed(rows)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in (rows, columns))
    return u[:, :len(values)] * torch.tensor(values, dtype=torch.float64) @ v[:, :len(values)].T


def convolutional(seed: int = 0):
    """Two convolutions and two linear layers, for images of one channel and 8x8 pixels."""
    torch.manual_seed(seed)
    return Sequence(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Flatten(),
                    nn.Linear(54, 7), nn.ReLU(), nn.Linear(7, 4)).eval()


# ----------------------------------------------------------------------------------------------------- one matrix


@pytest.mark.parametrize("rows, columns", [(5, 12), (12, 5), (5, 5)])
def test_all_is_known_of_a_matrix_of_known_singular_values(rows, columns):
    """The fourth is just above a millionth of the largest, the fifth just below."""
    given = [3.0, 2.0, 0.5, 3.03e-6, 2.97e-6]
    weight = with_values(rows, columns, given)
    found = spectrum(weight)
    assert found.dtype == torch.float64 and found.shape == (5,)
    assert found.tolist() == pytest.approx(given, rel=1e-6)
    result = conditioning(weight)
    assert result["zero"] == 5 - rank(found) == 1
    assert result["condition"] == pytest.approx(3 / 3.03e-6, rel=1e-5)
    assert condition(found, 0.1) == pytest.approx(6) and rank(found, 0.1) == 3
    assert result["norm"] == 3
    assert result["relative_norm"] == pytest.approx(3 / math.sqrt((9 + 4 + 0.25) / 5), rel=1e-5)
    assert result["effective_rank"] == pytest.approx(math.exp(stats.entropy(given)), rel=1e-5)
    scaled = conditioning(7 * weight)
    assert scaled.pop("norm") == 21 and scaled == {k: v for k, v in result.items() if k != "norm"}


def test_a_convolution_is_the_matrix_of_its_filters():
    weight = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(weight.double().reshape(6, 12))
    assert torch.allclose(spectrum(weight), values, rtol=1e-12)
    assert not torch.allclose(spectrum(weight)[0], torch.linalg.matrix_norm(weight.double(), 2).max())


def test_equal_singular_values_are_the_best_conditioned_and_no_weights_have_no_condition():
    best = conditioning(4 * torch.eye(5)[:3])
    assert best == {"condition": 1, "zero": 0, "effective_rank": 3, "norm": 4, "relative_norm": 1}
    single = conditioning(torch.ones(3, 8))
    assert (single["condition"], single["zero"]) == (1, 2)
    assert single["effective_rank"] == pytest.approx(1) and single["relative_norm"] == pytest.approx(3**0.5, rel=1e-5)
    nothing = {"condition": None, "zero": 3, "effective_rank": 0, "norm": 0, "relative_norm": None}
    assert conditioning(torch.zeros(3, 8)) == nothing and effective_rank(torch.zeros(3)) == 0


# ------------------------------------------------------------------ rows of length one, lost rank


@pytest.mark.parametrize("rows, columns", [(5, 12), (12, 5), (7, 7), (1, 9)])
def test_the_deficit_is_what_the_determinant_falls_short(rows, columns):
    weight = np.random.default_rng(rows).normal(size=(rows, columns))
    n = min(rows, columns)
    gram = weight @ weight.T if rows <= columns else weight.T @ weight
    _, logarithm = np.linalg.slogdet(gram)
    size = np.linalg.norm(weight) / math.sqrt(n)
    expected = math.log10(size) - logarithm / (2 * n * math.log(10))
    values = spectrum(torch.tensor(weight))
    assert values[-1] > 1e-3 * values[0]
    assert deficit(values) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    penalty = float(condition_penalty(torch.tensor(weight), "scale_invariant"))
    assert deficit(values) == pytest.approx(penalty / (2 * n * math.log(10)), rel=1e-9, abs=1e-12)
    assert deficit(1e-3 * values) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert floored_condition(values) == condition(values) == pytest.approx(np.linalg.cond(weight))


def test_equal_singular_values_have_no_deficit():
    """Not even one below zero, by rounding."""
    for n in range(2, 9):
        for size in (0.1, 0.3, 1.3, 3.0):
            values = torch.full((n,), size, dtype=torch.float64)
            assert 0 <= deficit(values) < 1e-12 and floored_condition(values) == 1


def test_lost_rank_is_seen_by_what_has_a_floor_and_not_by_the_condition_number():
    found = []
    for lost in range(5):
        values = spectrum(with_values(5, 12, [2.0] * (5 - lost)))
        assert condition(values) == pytest.approx(1) and len(values) - rank(values) == lost
        assert floored_condition(values) == pytest.approx(1000 if lost else 1)
        floored = np.array([2.0] * (5 - lost) + [0.002] * lost)
        expected = np.log10(np.sqrt(np.mean(floored**2))) - np.mean(np.log10(floored))
        assert deficit(values) == pytest.approx(expected, abs=1e-9)
        found.append(deficit(values))
    assert found == sorted(found) and found[1] > 0.5
    values = torch.tensor([2.0, 0.5, 0.01])
    assert floored_condition(values, 0.1) == pytest.approx(10)
    assert floored_condition(values, 0.001) == pytest.approx(200)
    assert deficit(values, 0.1) == pytest.approx(deficit(torch.tensor([2.0, 0.5, 0.2])))


def test_rows_have_length_one_or_zero():
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    rows = unit_rows(weight)
    kept = [0, 1, 3]
    array = weight[kept].reshape(3, 12).double().numpy()
    assert rows.dtype == torch.float64 and not rows[2].any()
    array = array / np.linalg.norm(array, axis=1, keepdims=True)
    assert rows[kept].numpy() == pytest.approx(array, rel=1e-12)
    values = np.linalg.svd(array, compute_uv=False)
    found = row_conditioning(weight)
    assert found["folded"] == pytest.approx(values[0] / values[-1], rel=1e-5)
    assert found["folded_floored"] == 1000
    floored = np.append(values, 1e-3 * values[0])
    expected = np.log10(np.sqrt(np.mean(floored**2))) - np.mean(np.log10(floored))
    assert found["folded_deficit"] == pytest.approx(expected, abs=1e-6)
    scaled = weight * torch.tensor([1e-3, 5.0, 1.0, 80.0]).view(-1, 1, 1, 1)
    assert condition(spectrum(scaled)) > 100 * found["folded"]
    assert list(row_conditioning(scaled).values()) == pytest.approx(list(found.values()), rel=1e-5)
    assert row_conditioning(weight[kept])["folded_floored"] == found["folded"]
    assert row_conditioning(weight[kept])["folded_deficit"] < found["folded_deficit"] - 0.5


def test_a_weight_of_zeros_has_none_of_it():
    assert row_conditioning(torch.zeros(3, 8)) == dict.fromkeys(NAMES)
    assert deficit(torch.zeros(3)) is None and floored_condition(torch.zeros(3)) is None


# ----------------------------------------------------------------------------------------------------- measurement


def test_weights_are_those_with_which_layers_act():
    model = convolutional()
    assert list(effective_weights(model)) == ["0", "2", "5", "7"]
    add_gates(model[2])
    with torch.no_grad():
        model[2].log_alpha.copy_(torch.tensor([-4.0, -4, 0, 0.5, 1, 4]))  # the first two gates are closed
    before = copy.deepcopy(model.state_dict())
    for mode in (False, True):
        weight = effective_weights(model.train(mode))["2"]
        x, silent = torch.randn(2, 4, 5, 5), copy.deepcopy(model[2]).eval()
        assert torch.allclose(nn.functional.conv2d(x, weight, model[2].bias, stride=2), silent(x), atol=1e-6)
        result = Conditioning()(model, DATA)
        assert conditioning(weight).items() <= result["layers"]["2"].items()
        assert result["layers"]["2"]["zero"] == 2
    assert not weight.requires_grad and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_value_and_parts():
    model = convolutional()
    model[2].weight.data[3] = 0
    spectra = {name: torch.linalg.svdvals(layer.weight.detach().double().flatten(1))
               for name, layer in model.named_children() if hasattr(layer, "weight")}
    full = {name: values[values > 1e-6 * values[0]] for name, values in spectra.items()}
    conditions = {name: float(values[0] / values[-1]) for name, values in full.items()}
    result = Conditioning()(model, DATA)
    assert list(result) == ["value", "layers", "parts"] and list(result["layers"]) == ["0", "2", "5", "7"]
    assert {name: layer["condition"] for name, layer in result["layers"].items()} == pytest.approx(conditions, rel=1e-5)
    assert result["value"] == pytest.approx((conditions["0"] + conditions["2"]) / 2, rel=1e-5)
    parts = result["parts"]
    assert parts["classifier"] == pytest.approx(conditions["7"], rel=1e-5)
    assert 10 ** parts["log_norms"] == pytest.approx(math.prod(float(v[0]) for v in spectra.values()), rel=1e-4)
    relative = [float(v[0] / (v**2).mean().sqrt()) for v in spectra.values()]
    assert 10 ** parts["log_relative_norms"] == pytest.approx(math.prod(relative), rel=1e-4)
    shares = [math.exp(stats.entropy(v.numpy())) / len(v) for v in spectra.values()]
    assert parts["effective_rank"] == pytest.approx(sum(shares) / 4, rel=1e-4)
    assert parts["zero"] == 1 / (4 + 6 + 7 + 4)
    assert parts["classifier_norm"] == pytest.approx(float(spectra["7"][0]), rel=1e-5)
    stored = [layer.weight for layer in model if hasattr(layer, "weight")]
    assert parts["sparsity"] == model[2].weight[3].numel() / sum(w.numel() for w in stored)
    assert json.loads(json.dumps(result)) == result
    assert Measurement.parse(Conditioning(null_draws=2).plain()) == Conditioning(null_draws=2)


def test_a_rescaled_classifier_changes_its_norm_only():
    """As a constraint on its determinant does, which mostly rescales it."""
    model = convolutional()
    before = Conditioning()(model, DATA)
    model[7].weight.data *= 2.3
    after = Conditioning()(model, DATA)
    risen = after["parts"].pop("log_norms") - before["parts"].pop("log_norms")
    size = before["parts"].pop("classifier_norm")
    assert after["parts"].pop("classifier_norm") == pytest.approx(2.3 * size, rel=1e-4)
    assert risen == pytest.approx(math.log10(2.3), abs=1e-4)
    assert after["value"] == before["value"] and after["parts"] == pytest.approx(before["parts"], rel=1e-4)


def test_a_network_without_convolutions_is_measured_by_its_linear_layers():
    torch.manual_seed(0)
    model = Sequence(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    result = Conditioning()(model, DATA)
    assert result["value"] == sorted(layer["condition"] for layer in result["layers"].values())[1]


def test_layers_of_zeros_are_left_out_of_the_median_and_have_no_logarithm():
    model = convolutional()
    nn.init.zeros_(model[0].weight)
    result = Conditioning(null_draws=1)(model, DATA)
    assert result["value"] == result["layers"]["2"]["condition"] and result["layers"]["0"]["condition"] is None
    assert result["parts"]["log_norms"] is None and result["parts"]["log_relative_norms"] is None
    assert result["parts"]["zero"] == 4 / 21 and result["null"]["0"]["condition"] is None
    nn.init.zeros_(model[2].weight)
    result = Conditioning(null_draws=1)(model, DATA)
    assert result["value"] is None and result["parts"]["over_null"] is None
    assert json.loads(json.dumps(result)) == result


def with_norms(seed: int = 0):
    """Two convolutions and two linear layers, three of them with norms, for images of one channel
    and 4x4 pixels. Some filters of the second convolution are zero, and one gamma."""
    torch.manual_seed(seed)
    model: Any = Sequence(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                          nn.Conv2d(6, 5, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
                          nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4)).eval()
    for norm in (model[1], model[4], model[8]):
        nn.init.normal_(norm.weight)
    model[3].weight.data[:2] = 0
    model[1].weight.data[0] = 0
    return model


def test_folded_parts_are_medians_over_convolutions_and_those_of_the_classifier():
    model = with_norms()
    result = Conditioning()(model, DATA)
    folded = {name: row_conditioning(weight) for name, weight in folded_weights(model).items()}
    for name in NAMES:
        middle = (folded["0"][name] + folded["3"][name]) / 2
        assert result["parts"][name] == pytest.approx(middle, rel=1e-5)
        assert result["parts"][f"classifier_{name}"] == folded["10"][name]
        assert {n: layer.get(name) for n, layer in result["layers"].items()} == {
            "0": folded["0"][name], "3": folded["3"][name], "7": None, "10": folded["10"][name]}
    assert result["layers"]["3"]["folded_floored"] == 1000
    assert result["parts"]["classifier_folded_floored"] < 100
    bare = convolutional()
    for layer, weight in folded_weights(bare).items():
        assert torch.equal(weight, effective_weights(bare)[layer].double())
    model = Sequence(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)).eval()
    result = Conditioning()(model, DATA)
    assert result["parts"]["classifier_folded"] == result["layers"]["3"]["folded"]
    values = [result["layers"][name]["folded_deficit"] for name in ("1", "3")]
    assert result["parts"]["folded_deficit"] == pytest.approx(sum(values) / 2, rel=1e-5)
    model = Sequence(nn.Conv2d(1, 3, 2), nn.Flatten()).eval()
    parts = Conditioning(null_draws=1)(model, DATA)["parts"]
    assert parts["folded"] >= 1
    assert all(value is None for name, value in parts.items() if "classifier_folded" in name)


def test_a_layer_that_gamma_makes_zero_is_left_out():
    model = with_norms()
    nn.init.zeros_(model[4].weight)
    result = Conditioning(null_draws=2)(model, DATA)
    assert result["layers"]["3"]["folded"] is None and result["layers"]["3"]["condition"] > 1
    for name in NAMES:
        assert result["parts"][name] == result["layers"]["0"][name]
    expected = result["layers"]["0"]["folded"] / result["null"]["0"]["folded_median"]
    assert result["parts"]["folded_over_null"] == pytest.approx(expected, rel=1e-5)
    nn.init.zeros_(model[1].weight)
    result = Conditioning(null_draws=2)(model, DATA)
    for name in NAMES:
        assert result["parts"][name] is result["parts"][f"{name}_over_null"] is None
        assert result["parts"][f"null_{name}"] is not None
    assert json.loads(json.dumps(result)) == result


# ----------------------------------------------------------------------------------------------------- the null


@pytest.mark.parametrize("shape, how, levels, norms, conditions", [
    ((64, 64, 3, 3), "magnitude", (0.0, 0.9, 0.95, 0.99, 0.995), (1.86, 1.27, 1.04, 0.64, 0.53),
     (1.90, 2.01, 2.25, 3.93, 4.85)),
    ((64, 64, 3, 3), "random", (0.9, 0.95, 0.99, 0.995), (0.62, 0.48, 0.25, 0.19), (2.24, 2.75, 14.3, 380)),
    ((10, 640), "magnitude", (0.0, 0.9, 0.95, 0.99, 0.995), (1.58, 1.08, 0.86, 0.53, 0.47),
     (1.22, 1.37, 1.42, 2.15, 2.79))])
def test_the_null_curve_is_that_of_an_independent_computation(shape, how, levels, norms, conditions):
    """Means of five draws by another program. Where rank is about to be lost, condition numbers of single draws differ
    by a factor of ten and more."""
    rows = null_conditions(shape, levels, how, 5, torch.Generator().manual_seed(0))
    assert [row["level"] for row in rows] == list(levels)
    for row, norm, number in zip(rows, norms, conditions, strict=True):
        error = math.sqrt(2 / 5)  # of the difference of two means of five, in standard deviations
        assert abs(row["norm"] - norm) < 4 * error * max(row["norm_sd"], 0.02)
        if number < 10:
            assert abs(row["condition"] - number) < 4 * error * max(row["condition_sd"], 0.03 * number)
        else:
            assert 5 < row["condition_median"] < 1000
    if len(shape) == 4:
        assert [row["zero"] for row in rows[:-2]] == [0] * (len(rows) - 2)
        assert rows[-1]["zero"] == pytest.approx({"magnitude": 3, "random": 5}[how], abs=3)


def test_means_and_deviations_over_draws_of_nested_masks():
    """The whole function again, by hand."""
    shape, levels = (5, 2, 2, 2), (0.5, 0.1, 0.8)
    rows = null_conditions(shape, levels, "random", 3, torch.Generator().manual_seed(4))
    generator, expected = torch.Generator().manual_seed(4), [[], [], []]
    for _ in range(3):
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) * math.sqrt(2 / 8)
        order = torch.rand(shape, generator=generator).flatten().argsort()
        for level, found in zip(levels, expected, strict=True):
            pruned = weight.clone().flatten()
            pruned[order[:round(40 * level)]] = 0
            found.append(conditioning(pruned.view(shape)))
    for row, found in zip(rows, expected, strict=True):
        for key in ("condition", "zero", "effective_rank", "norm", "relative_norm"):
            values = [f[key] for f in found]
            assert row[key] == pytest.approx(np.mean(values), rel=1e-5)
            assert row[f"{key}_sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4, abs=1e-5)
        assert row["condition_median"] == pytest.approx(np.median([f["condition"] for f in found]), rel=1e-5)
    (one,) = null_conditions(shape, (0.5,), "random", 1, torch.Generator().manual_seed(4))
    assert one["norm"] == expected[0][0]["norm"] and one["norm_sd"] == one["condition_sd"] == 0


def test_magnitude_takes_the_smallest_and_keeps_more_of_the_norm():
    smallest, chosen = (null_conditions((8, 30), (0.8,), how, 4, torch.Generator().manual_seed(0))[0]
                        for how in ("magnitude", "random"))
    assert smallest["norm"] > 1.3 * chosen["norm"]


def test_impossible_null_curves_are_refused(refusal):
    generator = torch.Generator()
    assert "not by 'size'" in refusal(null_conditions, (4, 4), (0.5,), "size", 1, generator)
    for levels, draws in (((), 1), ((-0.1,), 1), ((0.5, 0.99), 1), ((0.5,), 0)):
        assert "left" in refusal(null_conditions, (4, 4), levels, "random", draws, generator)
    assert "null_draws" in refusal(Conditioning, null_draws=-1)


def pruned_alike(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian layer of the same shape, its smallest entries zero, as many as those of the weight."""
    gaussian = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    sizes = gaussian.abs().flatten().sort().values
    gaussian[gaussian.abs() < sizes[int((weight == 0).sum())]] = 0
    return gaussian


def test_the_null_of_a_network_has_its_shapes_zeros_and_sizes():
    """Without zeros, and with a share of them; the second draw is checked by hand."""
    model = convolutional()
    model[5].weight.data[torch.rand(7, 54) < 0.9] = 0
    found = null_of(model, 2, torch.Generator().manual_seed(3))
    assert list(found) == ["0", "2", "5", "7"]
    generator = torch.Generator().manual_seed(3)
    for name, weight in effective_weights(model).items():
        rows = []
        for _ in range(2):
            gaussian = pruned_alike(weight, generator)
            assert (gaussian == 0).sum() == (weight == 0).sum()
            rows.append(conditioning(gaussian * weight.norm() / gaussian.norm()))
        for key in ("condition", "norm", "zero"):
            assert found[name][key] == pytest.approx((rows[0][key] + rows[1][key]) / 2, rel=1e-5)
            assert found[name][f"{key}_sd"] == pytest.approx(abs(rows[0][key] - rows[1][key]) / 2**0.5, rel=1e-3,
                                                             abs=1e-5)


def test_a_gaussian_network_pruned_by_magnitude_is_its_own_null():
    """And one whose rows are nearly the same is worse conditioned than its null."""
    torch.manual_seed(0)
    model = Sequence(nn.Conv2d(8, 24, 3), nn.Conv2d(24, 24, 3), nn.Flatten(), nn.Linear(24, 4)).eval()
    for layer in (model[0], model[1]):
        nn.init.normal_(layer.weight, 0, 0.3)
        layer.weight.data[layer.weight.abs() < layer.weight.abs().quantile(0.9)] = 0
    result = Conditioning(null_draws=8)(model, DATA)
    null = result["null"]
    assert Conditioning(null_draws=8)(model, DATA)["null"] == null  # the same draws for the same weights
    ratios = [result["layers"][name]["condition"] / null[name]["condition_median"] for name in ("0", "1")]
    assert result["parts"]["over_null"] == pytest.approx(sum(ratios) / 2, rel=1e-5)
    assert result["parts"]["null"] == pytest.approx(sum(null[n]["condition_median"] for n in ("0", "1")) / 2, rel=1e-5)
    parts = result["parts"]
    for key in ("norm", "relative_norm"):
        product = math.prod(layer[key] for layer in null.values())
        assert 10 ** parts[f"null_log_{key}s"] == pytest.approx(product, rel=1e-4)
    assert parts["log_relative_norms_over"] == parts["log_relative_norms"] - parts["null_log_relative_norms"]
    assert parts["null_classifier"] == null["3"]["condition_median"]
    assert parts["classifier_over_null"] == pytest.approx(parts["classifier"] / parts["null_classifier"], rel=1e-5)
    assert parts["null_zero"] == sum(layer["zero"] for layer in null.values()) / (24 + 24 + 4)
    for name in ("0", "1"):
        for key in ("condition", "norm", "effective_rank"):
            spread = max(null[name][f"{key}_sd"], 1e-3 * null[name][key])
            assert abs(result["layers"][name][key] - null[name][key]) < 4 * spread
    for layer in (model[0], model[1]):
        nn.init.normal_(layer.weight, 1, 0.1)
    assert Conditioning(null_draws=3)(model, DATA)["parts"]["over_null"] > 10


def test_null_layers_have_rows_of_length_one_where_asked():
    """The draws are those of the other numbers, of which nothing changes."""
    model, asked = convolutional(), ("2", "7")
    model[2].weight.data[torch.rand(6, 4, 3, 3) < 0.7] = 0
    plain = null_of(model, 3, torch.Generator().manual_seed(3))
    found = null_of(model, 3, torch.Generator().manual_seed(3), asked)
    generator = torch.Generator().manual_seed(3)
    for layer, weight in effective_weights(model).items():
        rows = []
        for _ in range(3):
            gaussian = pruned_alike(weight, generator)
            rows.append(row_conditioning(gaussian))
        medians = {f"{name}_median": pytest.approx(np.median([row[name] for row in rows]), rel=1e-5)
                   for name in NAMES}
        assert found[layer] == plain[layer] | (medians if layer in asked else {})


def test_folded_parts_beside_null_layers():
    """Ratios, and differences of deficits, layer by layer."""
    model = with_norms()
    result = Conditioning(null_draws=3)(model, DATA)
    layers, null, parts = result["layers"], result["null"], result["parts"]
    assert Conditioning()(model, DATA)["parts"].items() <= parts.items()
    for name in NAMES:
        beside = np.subtract if name == "folded_deficit" else np.divide
        alone = {layer: null[layer][f"{name}_median"] for layer in ("0", "3", "10")}
        over = {layer: beside(layers[layer][name], alone[layer]) for layer in alone}
        assert parts[f"null_{name}"] == pytest.approx((alone["0"] + alone["3"]) / 2, rel=1e-5)
        assert parts[f"{name}_over_null"] == pytest.approx((over["0"] + over["3"]) / 2, rel=1e-5)
        assert parts[f"null_classifier_{name}"] == alone["10"]
        assert parts[f"classifier_{name}_over_null"] == pytest.approx(over["10"], rel=1e-5)
    assert not any("folded" in key for key in null["7"])
    assert json.loads(json.dumps(result)) == result


# ------------------------------------------------------------------------------------------------- local Lipschitz


def logits_of(weight: torch.Tensor, bias: float = 0.0):
    """A linear network with this weight (classes, 8)."""
    model = Linear().build(SHAPE, len(weight)).eval()
    model[1].weight.data, model[1].bias.data = weight.clone(), torch.full((len(weight),), bias)
    return model


def test_linear_networks_have_one_constant_everywhere():
    """The largest |W d|_1 over all signs d, which convex maximisation finds in a corner: from many a start all of it,
    from none more. One direction leaves no choice of corner."""
    torch.manual_seed(0)
    weight, images = torch.randn(4, 8), 0.3 + 0.4 * torch.rand(60, *SHAPE)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)))
    exact = float((corners @ weight.T).abs().sum(1).max())
    measure = LocalLipschitz(epsilon=0.1, step_size=0.05, steps=10, images=60)
    result = measure(logits_of(weight), splits_of(images))
    assert result["parts"]["largest"] == pytest.approx(exact, rel=1e-5)
    assert 0.8 * exact < result["value"] < exact and result["total"] == 60
    one = torch.outer(torch.tensor([1.0, -2.0, 0.5]), weight[0])
    result = measure(logits_of(one), splits_of(images))
    assert result["value"] == pytest.approx(3.5 * float(weight[0].abs().sum()), rel=1e-5)
    assert result["parts"]["largest"] == pytest.approx(result["value"], rel=1e-5)


class Spy(nn.Flatten):
    """Notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach())
        return super().forward(x)


def test_the_point_stays_in_ball_and_box():
    torch.manual_seed(0)
    images, model = torch.rand(5, *SHAPE), Sequence(Spy(), nn.Linear(8, 4)).eval()
    images[0], images[1] = 0, 1
    LocalLipschitz(epsilon=0.1, step_size=0.07, steps=6, images=5)(model, splits_of(images))
    first, *points = model[0].seen[-8:]  # before, it is asked whether it takes such images, and answers alike
    images = splits_of(images).test.sample(5).images
    assert len(points) == 6 + 1 and torch.equal(first, images)
    inside = (images > 0).flatten(1).any(1) & (images < 1).flatten(1).any(1)
    for x in points:
        assert x.min() >= 0 and x.max() <= 1 and (x - images).abs().max() <= 0.1 + 1e-6
    start = (points[0] - images)[inside]
    assert start.unique().numel() > 20 and start.abs().max() > 0.05  # at random, not the corners
    moved = (points[1] - points[0])[inside].abs()
    assert moved.max() <= 0.07 + 1e-6 and (moved - 0.07).abs().lt(1e-6).sum() > 5


def test_the_largest_ratio_on_the_way_counts():
    """A logit of one pixel that is steep near the image and flat from 0.1 on: climbing on lowers the ratio."""
    model = Sequence(Spy(), nn.Linear(1, 1), nn.Hardtanh(), nn.Linear(1, 2)).eval()
    for p, value in zip(model.parameters(), (10.0, -5.0, [[1.0], [0.0]], 0.0), strict=True):
        p.data = torch.tensor(value).expand_as(p).clone()
    images = torch.full((20, 1, 1, 1), 0.5)
    result = LocalLipschitz(epsilon=0.3, step_size=0.03, steps=5, images=20)(model, splits_of(images))
    length = torch.stack([(x - images).abs().flatten() for x in model[0].seen[-6:]])
    ratio = (10 * length).clamp_max(1) / length
    assert result["value"] == pytest.approx(ratio.amax(0).mean().item(), rel=1e-4)
    assert (ratio[-1] < ratio[0]).any()


@pytest.mark.parametrize("seed", range(3))
def test_the_constant_lies_below_the_product_of_norms_and_above_random_points(seed):
    """An extra logit that is always zero makes the bound of differences one of logits; they add up in l1."""
    model, images = convolutional(seed), torch.rand(20, 1, 8, 8)
    bounded = copy.deepcopy(model)
    bounded[7] = nn.Linear(7, 5)
    bounded[7].weight.data = torch.cat([model[7].weight.data, torch.zeros(1, 7)])
    bound = float(lipschitz.margin_bound(bounded, (1, 8, 8), "linf")[4].sum())
    result = LocalLipschitz(images=20)(model, splits_of(images))
    assert result["value"] <= result["parts"]["largest"] <= bound
    moved = images + (2 * torch.rand(200, *images.shape) - 1) * 8 / 255
    with torch.no_grad():
        change = (model(moved.flatten(0, 1)).view(200, 20, -1) - model(images)).abs().sum(2)
    random = (change / (moved - images).flatten(2).abs().amax(2)).amax(0)
    assert result["value"] > float(random.mean())


def test_more_steps_find_more_and_rescaled_logits_leave_the_relative_constant():
    model, images = convolutional(), torch.rand(20, 1, 8, 8)
    values = [LocalLipschitz(steps=steps, images=20)(model, splits_of(images))["value"] for steps in (1, 10)]
    assert values[1] > values[0]
    result = LocalLipschitz(images=20)(model, splits_of(images))
    with torch.no_grad():
        size = float(model(images).abs().sum(1).mean())
    assert result["parts"]["relative"] == pytest.approx(result["value"] / size, rel=1e-5)
    for p in model[7].parameters():
        p.data *= 2.3
    scaled = LocalLipschitz(images=20)(model, splits_of(images))
    assert scaled["value"] == pytest.approx(2.3 * result["value"], rel=1e-4)
    assert scaled["parts"]["relative"] == pytest.approx(result["parts"]["relative"], rel=1e-4)
    for p in model[7].parameters():
        nn.init.zeros_(p)
    nothing = LocalLipschitz(images=20)(model, splits_of(images))
    assert nothing["value"] == 0 and nothing["parts"] == {"largest": 0, "relative": None}


def test_an_image_that_the_start_leaves_where_it_is_counts_by_later_points():
    """Black pixels, which a negative start leaves black: the first ratio of half of the images is 0 / 0."""
    model = Sequence(nn.Flatten(), nn.Linear(1, 2)).eval()
    model[1].weight.data[:, 0] = torch.tensor([3.0, -1.0])
    result = LocalLipschitz(images=20)(model, splits_of(torch.zeros(20, 1, 1, 1)))
    assert 0 < result["value"] <= 4 * (1 + 1e-4) and result["parts"]["largest"] == pytest.approx(4, rel=1e-4)


def test_the_network_is_left_as_it_was_found_and_chance_is_its_own(monkeypatch):
    torch.manual_seed(0)
    model, images = PreActResNet(depth=8, width=2).build((1, 8, 8), 4).train(), torch.rand(10, 1, 8, 8)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measure = LocalLipschitz(images=10, steps=3)
    first = measure(model, splits_of(images))
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert measure(model.eval(), splits_of(images)) == first and json.loads(json.dumps(first)) == first
    assert LocalLipschitz(images=10, steps=3, step_size=0.9)(model, splits_of(images)) != first
    monkeypatch.setattr("sparserobust.analysis.conditioning.BATCH", 4)
    batched = measure(model, splits_of(images))
    assert batched["total"] == 10 and batched["value"] == pytest.approx(first["value"], rel=0.3)
    assert measure(model, splits_of(torch.cat([images, images])))["total"] == 10
    assert measure(model, splits_of(images[:5]))["total"] == 5
    assert LocalLipschitz(images=None, steps=1)(model, splits_of(images))["total"] == 10


def test_what_makes_no_sense_is_refused(refusal):
    assert "fractions of the pixel range" in refusal(LocalLipschitz, epsilon=8)
    assert "fractions of the pixel range" in refusal(LocalLipschitz, epsilon=0)
    assert "fractions of the pixel range" in refusal(LocalLipschitz, step_size=0)
    assert "steps" in refusal(LocalLipschitz, steps=0) and "images" in refusal(LocalLipschitz, images=0)
    noisy = NoisyWeights(model=Linear()).build(SHAPE, 4).eval()
    assert "noise_off" in refusal(LocalLipschitz(), noisy, DATA)
    assert LocalLipschitz(images=500, steps=9).cost == 0.5 and LocalLipschitz(images=None, steps=9).cost == 10


# ----------------------------------------------------------------------------------------------------- regression


def runs(conditions: int = 40, seeds: int = 3, shared: float = 0.0, noise: float = 0.5, seed: int = 0):
    """y = 2 a - b + noise, of which `shared` is the same for all seeds of a condition, as a and b are nearly."""
    dice, rows = np.random.default_rng(seed), []
    for c in range(conditions):
        a, b, common = dice.normal(size=3)
        for s in range(seeds):
            own_a, own_b, own = dice.normal(size=3)
            x, z = a + 0.1 * own_a, 5 * (0.6 * a + b) + 0.1 * own_b
            rows.append({"method": "AB"[c % 2], "level": c // 2, "seed": s, "a": x, "b": 1e4 + z, "c": dice.normal(),
                         "y": 3 + 2 * x - z + shared * common + noise * own})
    return pandas.DataFrame(rows)


def test_slopes_and_shares_are_those_of_least_squares():
    frame = runs()
    result = regression(frame, "y", ["a", "b", "c"], draws=200)
    assert list(result.index) == ["a", "b", "c"] and (result["runs"] == 120).all()
    standard = (frame - frame.mean(numeric_only=True)) / frame.std(numeric_only=True)

    def share(columns):
        x = np.column_stack([np.ones(120), frame[columns]])
        beta = np.linalg.solve(x.T @ x, x.T @ frame["y"])
        return 1 - ((frame["y"] - x @ beta) ** 2).sum() / ((frame["y"] - frame["y"].mean()) ** 2).sum()

    x = standard[["a", "b", "c"]].to_numpy(float)
    expected = np.linalg.solve(x.T @ x, x.T @ standard["y"].to_numpy(float))
    assert result["slope"].to_numpy() == pytest.approx(expected, rel=1e-6)
    assert result["r2"].to_numpy() == pytest.approx(share(["a", "b", "c"]), rel=1e-6)
    assert result["r2_without"].to_numpy() == pytest.approx([share(["b", "c"]), share(["a", "c"]), share(["a", "b"])],
                                                            rel=1e-6)
    true = np.array([2 * frame["a"].std(), -frame["b"].std(), 0]) / frame["y"].std()
    assert ((result["low"] < true) & (true < result["high"])).all()
    assert result.loc["c", "low"] < 0 < result.loc["c", "high"]
    assert regression(frame, "y", ["a", "b", "c"], draws=200).equals(result)


def test_a_line_without_noise_leaves_nothing_open():
    frame = runs(noise=0).assign(y=lambda f: 7 - 3 * f["a"])
    (line,) = regression(frame, "y", ["a"], draws=50).to_dict("records")
    assert (line["slope"], line["low"], line["high"], line["r2"]) == pytest.approx((-1, -1, -1, 1))
    assert line["r2_without"] == 0


def test_intervals_are_percentiles_over_redrawn_conditions():
    """By hand, with the same dice and lines that have an intercept."""
    frame = runs(conditions=6, seeds=2)
    result = regression(frame, "y", ["a"], draws=40).loc["a"]
    conditions, dice, slopes = [rows for _, rows in frame.groupby(["method", "level"])], np.random.default_rng(0), []
    for _ in range(40):
        redrawn = pandas.concat([conditions[c] for c in dice.integers(6, size=6)])
        slopes.append(np.polyfit(redrawn["a"], redrawn["y"], 1)[0] * frame["a"].std() / frame["y"].std())
    assert (result["low"], result["high"]) == pytest.approx(tuple(np.quantile(slopes, (0.025, 0.975))), rel=1e-6)


def test_p_and_interval_are_of_the_same_draws():
    """Of those that determine the slopes: here of x only where the one cluster in which it differs is drawn."""
    dice = np.random.default_rng(7)
    frame = pandas.DataFrame([{"method": "A", "level": c, "x": dice.normal() * (c == 0), "y": dice.normal()}
                              for c in range(8) for _ in range(3)])
    line = regression(frame, "y", ["x"]).loc["x"]
    assert (line["p"] <= 0.05) == (line["low"] > 0 or line["high"] < 0)
    assert abs(line["low"]) < 1 and abs(line["high"]) < 1  # a constant column has no slope, not one of rounding
    another = frame.assign(z=dice.normal(size=24) * (frame["level"] == 1))
    with pytest.raises(UserError, match="do not determine"):  # most draws lack one of the two clusters
        regression(another, "y", ["x", "z"])


def test_intervals_of_independent_runs_are_those_of_theory():
    """With a cluster for each run they are Student's, as the residuals are Gaussian and alike."""
    frame = runs(conditions=150, seeds=1)
    result = regression(frame, "y", ["c"], draws=1000)
    fit = stats.linregress(frame["c"], frame["y"])
    reach = 1.96 * fit.stderr * frame["c"].std() / frame["y"].std()
    assert (result["high"] - result["low"]).item() == pytest.approx(2 * reach, rel=0.2)
    assert result["slope"].item() == pytest.approx(fit.rvalue, rel=1e-6)


def test_seeds_of_a_condition_are_no_independent_evidence():
    """Where they share what the line leaves open, the interval is about as wide as that of one seed each, and far wider
    than that of runs drawn one by one. Where they share none of it, it is as wide as that one."""
    def widths(frame):
        for rows, clusters in ((frame, ("method", "level")), (frame[frame["seed"] == 0], ("method", "level")),
                               (frame, ("method", "level", "seed"))):
            result = regression(rows, "y", ["a", "b"], clusters, draws=300).loc["a"]
            yield result["high"] - result["low"]

    whole, one_seed, one_by_one = widths(runs(conditions=40, seeds=9, shared=3.0, noise=0.1))
    assert whole == pytest.approx(one_seed, rel=0.3) and one_by_one < 0.6 * whole
    whole, one_seed, one_by_one = widths(runs(conditions=40, seeds=9, noise=2.0))
    assert whole == pytest.approx(one_by_one, rel=0.3) and whole < 0.6 * one_seed


def test_rows_that_lack_something_are_left_out_and_dense_ones_are_a_condition():
    frame = runs()
    whole = regression(frame, "y", ["a", "b"], draws=50)
    assert regression(frame.replace({"level": {19: None}}), "y", ["a", "b"], draws=50).equals(whole)  # the last level
    frame.loc[5, "a"], frame.loc[8, "y"], frame.loc[9, "c"] = math.nan, math.nan, math.nan
    result = regression(frame, "y", ["a", "b"], draws=50)
    assert result.equals(regression(frame.drop([5, 8]), "y", ["a", "b"], draws=50)) and (result["runs"] == 118).all()


def test_what_determines_no_line_is_refused(refusal):
    frame = runs()
    assert "do not determine" in refusal(regression, frame.assign(d=frame["a"]), "y", ["a", "d"])
    assert "do not determine" in refusal(regression, frame.assign(d=0.1), "y", ["a", "d"])
    assert "do not determine" in refusal(regression, frame.assign(y=0.1), "y", ["a"])
    assert "2 clusters" in refusal(regression, runs(conditions=2, seeds=9), "y", ["a", "b"])
    assert "3 runs" in refusal(regression, runs(conditions=3, seeds=1), "y", ["a", "b"])
    assert "0 runs" in refusal(regression, frame[:0], "y", ["a", "b"])
    assert "logarithm" in refusal(regression, frame.assign(a=-math.inf), "y", ["a", "b"])
