"""Weights with BatchNorm folded in on both sides, in eval mode.

Two changes leave the function of a network as it is, but not its weights: a factor on a filter in
front of a BatchNorm whose running statistics are scaled along, and a positive factor that is moved
from gamma and beta of a BatchNorm, across a ReLU, to the input channels of the layers behind it.
Neither changes a folded weight whose rows are then scaled to length one.
"""

from torch import Tensor, fx, nn

from sparserobust.attacks import under_attack
from sparserobust.errors import UserError
from sparserobust.models.compact import Pick
from sparserobust.models.gates import GatedConv2d, acting_weight
from sparserobust.models.noise import Noise, NoisyConv2d, NoisyLinear
from sparserobust.models.normalise import Normalise
from sparserobust.models.resnet import Padded
from sparserobust.models.winners import KWinners
from sparserobust.sparsity import HOOKS

# This library's, each taken as a whole.
OWN = (GatedConv2d, KWinners, Noise, NoisyConv2d, NoisyLinear, Normalise, Padded, Pick)
BATCH_NORM = nn.BatchNorm1d | nn.BatchNorm2d
AVERAGES = nn.AvgPool2d | nn.AdaptiveAvgPool2d
LAYERS = nn.Conv2d | nn.Linear
# Operations f with f(a x) = a f(x) for positive factors a of channels. K-winners are none of them:
# a factor changes which units win.
POSITIVE = (nn.ReLU | nn.LeakyReLU | nn.PReLU | nn.MaxPool2d | nn.AdaptiveMaxPool2d | AVERAGES
            | nn.Flatten | nn.Identity | nn.Dropout | nn.Dropout2d)
POSITIVE_CALLS = ("relu", "relu_", "leaky_relu", "max_pool2d", "adaptive_max_pool2d", "avg_pool2d",
                  "adaptive_avg_pool2d", "flatten", "view", "reshape")


def folded_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name of every convolution and linear layer to the weight with which it acts in eval mode,
    after masks and gates, float64, with BatchNorm folded in on both sides:

    - output channel i times gamma_i / sqrt(running_var_i + eps) of a BatchNorm that reads the layer
      directly and alone; times gamma_i if it has no running statistics, as its variance is then
      that of the batch;
    - input channel j times |gamma_j| of a BatchNorm that the layer reads directly or through
      nothing but `POSITIVE` operations, called as modules, functions or methods. Other readers of
      that BatchNorm do not matter. In flattened maps every pixel has the factor of its channel.

    Behind a sum or a concatenation nothing is folded, nor is `functional.batch_norm`. A layer that
    is called more than once is folded where all its calls agree. A layer that is not called itself
    stays as it is, such as those inside an attention module of torch.nn. Subclasses count as the
    convolution, linear layer or BatchNorm they derive from. Linear layers are taken to read
    (n, features). Factors between two layers without a BatchNorm between them stay in the weights.
    `UserError` for a network that torch.fx cannot trace, or of which it does not see all: with
    hooks, or with a module whose `forward` or `__call__` is replaced.
    """
    graph = _traced(model)
    after: dict[nn.Module, set[BATCH_NORM | None]] = {}  # norms, or None, of the calls of a layer
    before: dict[nn.Module, set[BATCH_NORM | None]] = {}
    for node in graph.nodes:
        layer = _module(model, node)
        if isinstance(layer, LAYERS):
            after.setdefault(layer, set()).add(_norm_after(model, node))
            before.setdefault(layer, set()).add(_norm_before(model, node))
    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            weight = acting_weight(layer).detach().double()
            groups = getattr(layer, "groups", 1)
            factors = _row_factors(weight, _agreed(after.get(layer)))
            factors = factors * _column_factors(weight, groups, _agreed(before.get(layer)))
            weights[name] = weight * factors.view(*factors.shape, *[1] * (weight.dim() - 2))
    return weights


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        whole = (*OWN, LAYERS, BATCH_NORM)
        return isinstance(module, whole) or super().is_leaf_module(module, name)


def _traced(model: nn.Module) -> fx.Graph:
    name = type(model).__name__
    for module in model.modules():
        if _hidden(module):
            raise UserError(
                f"BatchNorm cannot be folded into {name}, as what hooks or a replaced `forward` of "
                f"{type(module).__name__} do is not seen: make them a part of the forward")
    try:
        with under_attack(model):
            return _Tracer().trace(model)
    except Exception as error:  # whatever a network's own code raises if it is given no tensor
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"BatchNorm cannot be folded into {name}, as torch.fx cannot trace it: "
            f"rewrite its forward without branches on tensors ({reason})") from None


def _hidden(module: nn.Module) -> bool:
    """Whether a call does more than the `forward` of its class; hooks that renew a weight aside."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return ("forward" in vars(module) or type(module).__call__ is not nn.Module.__call__
            or any(not isinstance(hook, HOOKS) for hook in hooks))


def _module(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None if it calls a function or a method."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _norm_after(model: nn.Module, node: fx.Node) -> BATCH_NORM | None:
    """The BatchNorm that reads a layer directly and alone."""
    readers = [_module(model, user) for user in node.users]
    return readers[0] if len(readers) == 1 and isinstance(readers[0], BATCH_NORM) else None


def _norm_before(model: nn.Module, node: fx.Node) -> BATCH_NORM | None:
    """The BatchNorm that a layer reads directly or through nothing but positive operations."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]  # further ones are the sizes of a view
        module = _module(model, node)
        if isinstance(module, BATCH_NORM):
            return module
        if not _is_positive(node, module):
            break
    return None


def _is_positive(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether an operation is `POSITIVE` as it is called: a dropout without effect, a mean over
    pixels."""
    if module is not None:
        return isinstance(module, POSITIVE)
    call = getattr(node.target, "__name__", node.target)
    if call == "dropout":
        return node.kwargs.get("training") is False
    if call == "mean":
        axes = node.kwargs.get("dim", (*node.args, None, None)[1])
        return set(axes if isinstance(axes, tuple | list) else [axes]) <= {2, 3, -1, -2}
    return call in POSITIVE_CALLS


def _agreed(norms: set[BATCH_NORM | None] | None) -> BATCH_NORM | None:
    """The norm that all calls of a layer have in common; None without one."""
    return next(iter(norms)) if norms and len(norms) == 1 else None


def _row_factors(weight: Tensor, norm: BATCH_NORM | None) -> Tensor:
    """By what the BatchNorm behind a layer multiplies its outputs, (out, 1)."""
    if norm is None or norm.num_features != len(weight):  # which may norm another axis
        return weight.new_ones(1, 1)
    variance = 1.0 if norm.running_var is None else norm.running_var.double() + norm.eps
    return (_gamma(norm, weight) / variance**0.5)[:, None]


def _column_factors(weight: Tensor, groups: int, norm: BATCH_NORM | None) -> Tensor:
    """|gamma| of what each filter reads from the BatchNorm in front of it, (out, in / groups)."""
    channels = groups * weight.shape[1]
    if norm is None or channels % norm.num_features:
        return weight.new_ones(1, 1)
    sizes = _gamma(norm, weight).abs().repeat_interleave(channels // norm.num_features)
    return sizes.view(groups, -1).repeat_interleave(len(weight) // groups, 0)


def _gamma(norm: BATCH_NORM, weight: Tensor) -> Tensor:
    """(channels,), float64; ones if the norm has none."""
    if norm.weight is None:
        return weight.new_ones(norm.num_features)
    return norm.weight.detach().double()
