"""How well conditioned the weights of a network are, what pruning alone does to that, and how fast the network changes
near its images: what "Lipschitz constant meets condition number" (Feng et al. 2025) claims to explain robustness."""

import hashlib
import math
import operator
import statistics
from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparserobust.analysis.folding import folded_weights
from sparserobust.answers import gradient, is_random, under_attack
from sparserobust.attacks import random_in_ball
from sparserobust.config import Measurement
from sparserobust.errors import UserError
from sparserobust.evaluation import BATCH
from sparserobust.files import six_digits, tensor_bytes
from sparserobust.models.gates import GatedConv2d
from sparserobust.seeding import stream
from sparserobust.settings import settings
from sparserobust.sparsity import all_but_smallest, weights

RANK_THRESHOLD = 1e-6  # singular values up to this share of the largest count as zero
FLOOR = 1e-3  # share of the largest singular value that smaller ones count as, to show lost rank
FOLDED = ("folded", "folded_floored", "folded_deficit")  # what `row_conditioning` finds


def effective_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name of every convolution and linear layer to the weight (out, in of one group, *kernel) with which it acts in
    eval mode: after masks, which are zeros, and after gates."""
    return {_layer(name): (w.layer.effective_weight() if isinstance(w.layer, GatedConv2d) else w.filters).detach()
            for name, w in weights(model, shared=True).items()}


def groups_of(model: nn.Module) -> dict[str, int]:
    """Name of every such layer to how many groups its channels fall into: 1, but for grouped convolutions."""
    return {_layer(name): w.groups for name, w in weights(model, shared=True).items()}


def _layer(weight: str) -> str:
    """The name of the layer with a weight of this name; the weight's own, if it is not called `weight`."""
    return f".{weight}".removesuffix(".weight").removeprefix(".")


def spectrum(weight: Tensor, groups: int = 1) -> Tensor:
    """Singular values (min(out, in * kernel),), descending, float64, of a weight as the matrix (out, in * kernel). In
    groups, it has a block for each and zeros elsewhere: the values are those of all blocks. `UserError` if it is
    not finite."""
    matrix = weight.detach().double().flatten(1)
    if not matrix.isfinite().all():
        raise UserError("a weight of this network is not finite, so it has no singular values")
    if groups > 1:
        return torch.linalg.svdvals(matrix.unflatten(0, (groups, -1))).flatten().sort(descending=True).values
    return torch.linalg.svdvals(matrix.T if len(matrix) < matrix.shape[1] else matrix)  # many times faster if tall


def rank(values: Tensor, threshold: float = RANK_THRESHOLD) -> int:
    """How many singular values are above this share of the largest."""
    return int((values > threshold * values[0]).sum())


def condition(values: Tensor, threshold: float = RANK_THRESHOLD) -> float | None:
    """Largest singular value over the smallest that is not zero, within that threshold; None if all are zero."""
    kept = rank(values, threshold)
    return float(values[0] / values[kept - 1]) if kept else None


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values, normalised to sum 1 (Roy & Vetterli 2007): how many there are if all
    are equal, 1 if one outweighs all others; 0 if all are zero."""
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def conditioning(weight: Tensor, groups: int = 1) -> dict[str, float | int | None]:
    """Of a weight as a matrix, to six digits: `condition`; how many singular values are `zero`; `effective_rank`; the
    spectral `norm`; and that over the root mean square of all singular values, `relative_norm`, which is 1 if all are
    equal and stays what it is when the weight is rescaled, as all but `norm` do. None for what a weight of zeros has
    not."""
    values = spectrum(weight, groups)
    number, root_mean_square = condition(values), values.square().mean().sqrt()
    return {"condition": six_digits(number) if number else None, "zero": len(values) - rank(values),
            "effective_rank": six_digits(effective_rank(values)), "norm": six_digits(float(values[0])),
            "relative_norm": six_digits(float(values[0] / root_mean_square)) if number else None}


def unit_rows(weight: Tensor) -> Tensor:
    """The weight as the matrix (out, in * kernel), float64, with rows scaled to length one;
    rows of zeros stay zero, and count as lost rank."""
    matrix = weight.detach().double().flatten(1)
    lengths = matrix.norm(dim=1, keepdim=True)
    return matrix / lengths.where(lengths > 0, 1.0)


def floored_condition(values: Tensor, floor: float = FLOOR) -> float | None:
    """Largest singular value over the smallest of all, or over `floor` times the largest if
    that is more, so that lost rank gives 1 / floor. None if all are zero."""
    return float(values[0] / _floored(values, floor)[-1]) if values[0] > 0 else None


def deficit(values: Tensor, floor: float = FLOOR) -> float | None:
    """log10 of the root mean square of the singular values minus the mean of their log10, where
    each counts as at least `floor` times the largest. If none is below that, this is
    `sparsifiers.constraints.condition_penalty(W, "scale_invariant")` / (2n ln 10) for n singular
    values: how far the determinant of W W^T falls short of what |W|_F allows. 0 if all are equal,
    None if all are zero; the same for all multiples of W."""
    if not values[0] > 0:
        return None
    values = _floored(values, floor)
    found = values.square().mean().log10() / 2 - values.log10().mean()
    return max(0.0, float(found))  # below zero by rounding alone


def _floored(values: Tensor, floor: float) -> Tensor:
    return values.clamp_min(floor * values[0])


def row_conditioning(weight: Tensor, groups: int = 1) -> dict[str, float | None]:
    """Of a folded weight (`folding.folded_weights`) as a matrix with rows of length one, by name:
    `condition` (folded) and `floored_condition` (folded_floored), to six digits, and `deficit`
    (folded_deficit), to six decimals. None for a weight of zeros."""
    values = spectrum(unit_rows(weight), groups)
    number, floored, short = condition(values), floored_condition(values), deficit(values)
    if number is None or floored is None or short is None:
        return dict.fromkeys(FOLDED)
    return {"folded": six_digits(number), "folded_floored": six_digits(floored),
            "folded_deficit": round(short, 6)}


# ------------------------------------------------------------------------------------------- what pruning alone does


def null_conditions(shape: tuple[int, ...], levels: Sequence[float], how: str, draws: int,
                    generator: torch.Generator) -> list[dict]:
    """What becomes of the `conditioning` of a Gaussian weight (out, in) or (out, in, k, k), Kaiming standard deviation
    sqrt(2 / fan_in), when it loses a share of its entries, by `magnitude` or at `random`: for each of `levels` the mean
    over `draws`, under `<name>_sd` the standard deviation (0 for one draw), and `condition_median`, since the mean
    follows single draws where the matrix is about to lose rank. One draw serves all levels: as the level rises, entries
    go and none returns. `UserError` where nothing would be left."""
    count = math.prod(shape)
    if how not in ("magnitude", "random"):
        raise UserError(f"entries go by magnitude or at random, not by '{how}'")
    if draws < 1 or not levels or min(levels) < 0 or round(max(levels) * count) >= count:
        raise UserError("there must be a draw, a level, and at every level an entry that is left")
    found: list[list[dict]] = [[] for _ in levels]
    for _ in range(draws):
        weight = _gaussian(shape, generator) * math.sqrt(2 / math.prod(shape[1:]))
        chance = torch.rand(shape, generator=generator, device=generator.device) if how == "random" else weight.abs()
        for level, rows in zip(levels, found, strict=True):
            rows.append(conditioning(_pruned(weight, chance, round(level * count))))
    return [{"level": level} | _over_draws(rows) for level, rows in zip(levels, found, strict=True)]


def null_of(model: nn.Module, draws: int, generator: torch.Generator,
            by_rows: Collection[str] = ()) -> dict[str, dict]:
    """The same for every convolution and linear layer of a network: Gaussian weights of its shape that lose as many
    entries, the smallest, as its own has zeros. They are then scaled to the same Frobenius norm: what training and
    regularisers do to the size of a layer is not pruning's doing, and no standard deviation before pruning is on record
    of a network that was trained on afterwards; only `norm` depends on it. A claim that pruning makes networks
    ill-conditioned has to beat this. Layers named in `by_rows` also get the medians over the draws
    of what `row_conditioning` finds, under `<name>_median`."""
    layers, groups = {}, groups_of(model)
    for name, weight in effective_weights(model).items():
        zeros, size, rows, scaled = int((weight == 0).sum()), float(weight.double().norm()), [], []
        for _ in range(draws):
            gaussian = _gaussian(weight.shape, generator)
            sizes = gaussian.abs()  # no two are equal, and sorting them takes several times as long
            largest_gone = sizes.flatten().kthvalue(zeros).values if zeros else 0.0
            pruned = gaussian * (sizes > largest_gone)
            rows.append(conditioning(pruned * (size / pruned.norm()) if size else pruned, groups[name]))
            if name in by_rows:
                scaled.append(row_conditioning(pruned, groups[name]))
        layers[name] = _over_draws(rows)
        if scaled:
            layers[name] |= {f"{key}_median": _median(row[key] for row in scaled) for key in FOLDED}
    return layers


def _gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _pruned(weight: Tensor, scores: Tensor, removed: int) -> Tensor:
    """The weight without the `removed` entries whose scores, shaped as it, are the smallest."""
    return weight * all_but_smallest(scores.flatten(), removed).view_as(weight)


def _over_draws(rows: list[dict]) -> dict[str, float | None]:
    """Mean and standard deviation of each entry, over those draws that have it."""
    result = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        result[key] = six_digits(statistics.fmean(values)) if values else None
        result[f"{key}_sd"] = six_digits(statistics.stdev(values)) if len(values) > 1 else 0.0
    return result | {"condition_median": _median(row["condition"] for row in rows)}


def _median(values) -> float | None:
    """Of those that are not None; None if none is."""
    values = [value for value in values if value is not None]
    return six_digits(statistics.median(values)) if values else None


@settings
class Conditioning(Measurement, kind="conditioning"):
    """`conditioning` of every convolution and linear layer as it acts in eval mode, under `layers`. The value is the
    median condition number over convolutions, first layer and shortcuts included, or over linear layers where there is
    no convolution; layers of zeros are left out, None if nothing else is there. Parts:

        classifier          condition number of the last linear layer
        classifier_norm     its spectral norm
        log_norms           log10 of the product of the spectral norms of all layers, as matrices (`LayerNorms` has
                            those of the convolutions themselves); None if a layer is zero
        log_relative_norms  the same of `relative_norm`: no rescaling of a layer, the classifier say, changes it
        effective_rank      mean over layers, as a share of the fullest rank
        zero                share of singular values that are zero, over all layers
        sparsity            share of weights that are zero as they act: stored as zero, or behind a gate that is shut

    With `null_draws`, layers of Gaussian weights, pruned alike (`null_of`, drawn anew for every network), are under
    `null`, and there are more parts: what the value (`null`) and the other parts (`null_classifier`, `null_zero`,
    `null_log_norms`, `null_log_relative_norms`) would be with null layers, and

        over_null                median, over the layers of the value, of condition number over that of the null layer
        classifier_over_null     the same ratio for the classifier
        log_relative_norms_over  `log_relative_norms` minus that of the null layers

    Condition numbers and norms above change if filters in front of a BatchNorm are rescaled, which
    changes no logit. Six more parts do not, nor do they if a positive factor is moved across a ReLU
    from a BatchNorm to the layers behind it. They are `row_conditioning` of `folded_weights`: the
    median over the layers of the value, and that of the classifier, of

        folded, classifier_folded                  the condition number, zeros left out
        folded_floored, classifier_folded_floored  the same with zeros: at most 1 / `FLOOR`, which
                                                   it is where rank is lost
        folded_deficit, classifier_folded_deficit  `deficit`: 0 if all singular values are equal,
                                                   and the larger the more are small or zero

    With `null_draws` each of the six has a `null_<name>`, what null layers have (median over draws,
    then over layers), and a `<name>_over_null`, the median over layers of the ratio to the null
    layer, for deficits of the difference. The layers that count have the three numbers under
    `layers`, and under `null` as `<name>_median`. For a network that torch.fx cannot trace, what
    needs its folded weights is None, and `not_folded` says why.
    """

    null_draws: int = 0
    revision: ClassVar[int] = 2  # the first one knew no folded layers

    def check(self):
        self.require(self.null_draws >= 0, "null_draws cannot be negative")

    def __call__(self, model, splits):
        weights, groups = effective_weights(model), groups_of(model)
        self.require(bool(weights), "this network has no convolution or linear weights")
        layers = {name: conditioning(weight, groups[name]) for name, weight in weights.items()}
        fullest = {name: groups[name] * min(len(weight) // groups[name], weight[0].numel())
                   for name, weight in weights.items()}
        linear = [name for name, weight in weights.items() if weight.dim() == 2]
        counted = [name for name in weights if name not in linear] or linear
        last = layers[linear[-1]] if linear else {"condition": None, "norm": None}
        parts = {"classifier": last["condition"], "classifier_norm": last["norm"],
                 "log_norms": _log_product(layer["norm"] for layer in layers.values()),
                 "log_relative_norms": _log_product(layer["relative_norm"] for layer in layers.values()),
                 "effective_rank": statistics.fmean(layers[n]["effective_rank"] / fullest[n] for n in layers),
                 "zero": sum(layer["zero"] for layer in layers.values()) / sum(fullest.values()),
                 "sparsity": (sum(int((w == 0).sum()) for w in weights.values())
                              / sum(w.numel() for w in weights.values()))}
        result = {"value": _median(layers[name]["condition"] for name in counted), "layers": layers, "parts": parts}
        by_rows = dict.fromkeys(counted + linear[-1:])
        try:
            folded = folded_weights(model)
        except UserError as error:
            folded, result["not_folded"] = {}, str(error)
        for name in by_rows:
            layers[name] |= (row_conditioning(folded[name], groups[name]) if name in folded
                             else dict.fromkeys(FOLDED))
        if self.null_draws:
            null = null_of(model, self.null_draws, self._chance(weights), by_rows)
            medians = {name: layer["condition_median"] for name, layer in null.items()}
            over = {name: layers[name]["condition"] / medians[name] for name in layers if layers[name]["condition"]}
            relative = _log_product(layer["relative_norm"] for layer in null.values())
            parts |= {"null": _median(medians[name] for name in counted),
                      "over_null": _median(over[name] for name in counted if name in over),
                      "null_classifier": medians[linear[-1]] if linear else None,
                      "classifier_over_null": over.get(linear[-1]) if linear else None,
                      "null_zero": sum(layer["zero"] for layer in null.values()) / sum(fullest.values()),
                      "null_log_norms": _log_product(layer["norm"] for layer in null.values()),
                      "null_log_relative_norms": relative,
                      "log_relative_norms_over": (None if None in (relative, parts["log_relative_norms"])
                                                  else parts["log_relative_norms"] - relative)}
            result["null"] = null
        parts |= _folded_parts(layers, result.get("null"), counted, "")
        parts |= _folded_parts(layers, result.get("null"), linear[-1:], "classifier_")
        return result

    def _chance(self, weights: dict[str, Tensor]) -> torch.Generator:
        """A stream of its own for every network: its weights name it."""
        name = hashlib.sha256(b"".join(map(tensor_bytes, weights.values()))).hexdigest()
        # the draws of the first revision, whose numbers they still are
        return stream(0, "null", self.first_identity, name, device=next(iter(weights.values())).device)


def _folded_parts(layers: dict[str, dict], null: dict[str, dict] | None, names: list[str],
                  prefix: str) -> dict[str, float | None]:
    """Medians over the layers of these names of what `row_conditioning` finds, alone and beside
    null layers."""
    parts = {}
    for key in FOLDED:
        part, found = prefix + key, {name: layers[name][key] for name in names}
        parts[part] = _median(found.values())
        if null is not None:
            alone = {name: null[name][f"{key}_median"] for name in names}
            parts[f"null_{part}"] = _median(alone.values())
            beside = operator.sub if key == "folded_deficit" else operator.truediv
            parts[f"{part}_over_null"] = _median(beside(found[name], alone[name]) for name in names
                                                 if found[name] is not None)
    return parts


def _log_product(values) -> float | None:
    """log10 of the product; None if a factor is zero or None."""
    values = list(values)
    return sum(math.log10(value) for value in values) if all(values) else None


# --------------------------------------------------------------------------------------------- local Lipschitz constant


@settings
class LocalLipschitz(Measurement, kind="local_lipschitz"):
    """Mean over `images` test images (all, for None) of the local Lipschitz constant as Yang et al. 2020
    estimate it, from below, in the linf ball of radius `epsilon` within the box of the pixels:

        max over x' of |f(x) - f(x')|_1 / |x - x'|_inf

    by signed gradient ascent from a random point; the largest ratio on the way counts. The gradient is that of the
    numerator, since it leads to the corners of the ball, and to larger ratios than that of the ratio does. The released
    code (yangarbiter/robust-local-lipschitz, `estimate_local_lip_v2`) steps the other way: it negates the ratio for a
    loss and then adds the gradient's sign, so that its figures are those of a descent. Parts: `largest` of all images,
    and `relative`, mean constant over mean |f(x)|_1, which stays what it is when the logits are rescaled."""

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    images: int | None = 100
    revision: ClassVar[int] = 2  # the first one took the first images
    sampled: ClassVar[bool] = True

    def check(self):
        self.require(0 < self.epsilon <= 1 and 0 < self.step_size <= 1,
                     "epsilon and step_size are fractions of the pixel range, above 0 and up to 1")
        self.require(self.steps >= 1, "steps start at 1")
        self.require(self.images is None or self.images > 0, "images must be positive")

    @property
    def cost(self):
        return (self.images or 10_000) / 10_000 * (self.steps + 1)

    def __call__(self, model, splits):
        split = splits.test.sample(self.images)
        if is_random(model, split.images):
            raise UserError("a noisy network has no Lipschitz constant: ask inside models.noise_off(model)")
        chance, found, sizes = stream(0, "local lipschitz", self.identity, device=split.images.device), [], []
        with under_attack(model):
            for images in split.images.split(BATCH):
                with torch.no_grad():
                    logits = model(images)
                found.append(self._climbed(model, images, logits, chance))
                sizes.append(logits.abs().sum(1))
        found, sizes = torch.cat(found).double(), torch.cat(sizes).double()
        relative = float(found.mean() / sizes.mean()) if sizes.any() else None
        return {"value": float(found.mean()), "total": len(split),
                "parts": {"largest": float(found.max()), "relative": relative}}

    def _climbed(self, model, images: Tensor, logits: Tensor, chance: torch.Generator) -> Tensor:
        """The largest ratio (n,) found."""
        x = (images + random_in_ball(images, self.epsilon, "linf", chance)).clamp(0, 1)
        best = torch.zeros_like(logits[:, 0])
        for _ in range(self.steps + 1):  # the last step is taken in vain, where it leads is not looked at
            x = x.detach().requires_grad_(True)
            change = (model(x) - logits).abs().sum(1)
            slope = gradient(change.sum(), x)
            with torch.no_grad():
                distance = (x - images).abs().flatten(1).amax(1).clamp_min(torch.finfo(x.dtype).tiny)
                best = torch.maximum(best, change / distance)
                moved = x + self.step_size * slope.sign() - images
                x = (images + moved.clamp(-self.epsilon, self.epsilon)).clamp(0, 1)
        return best
