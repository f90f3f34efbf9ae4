"""How sparsity is counted. One definition, used by every table.

Sparsity: share of exactly zero entries among convolution and linear weights, as they act: behind the masks of
`torch.nn.utils.prune`, or computed from other parameters (weight_norm, spectral_norm, any parametrisation). Channel
sparsity: as Dinh et al. 2020 count it, the share of *input* channels, over all convolutions, whose l2 norm is below
1e-15.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sparserobust.errors import UserError
from sparserobust.inputs import asked, evaluated
from sparserobust.provenance import double
from sparserobust.watching import Watch, attention_in_parts

CHANNEL_NORM_IS_ZERO = 1e-15  # Dinh et al. 2020, section 4: the norm below which a channel counts as removed
HOOKS = BasePruningMethod, WeightNorm, SpectralNorm  # that compute a weight before its layer is called
TABLES = nn.Embedding | nn.EmbeddingBag | nn.LayerNorm | nn.RMSNorm  # their weights multiply no vector as a matrix


class Acting(NamedTuple):
    """A parameter as its layer uses it."""

    layer: nn.Module
    tensor: Tensor  # shaped as the layer has it, with gradient
    sources: tuple[Tensor, ...]  # the parameters that it is computed from; itself alone, if it is one

    @property
    def plain(self) -> bool:
        """Whether it is a parameter itself, so that writing into it changes the network."""
        return any(source is self.tensor for source in self.sources)

    @property
    def convolves(self) -> bool:
        """Whether it is the weight of a convolution."""
        return self.tensor.dim() > 2 and not isinstance(self.layer, nn.Bilinear)

    @property
    def groups(self) -> int:
        return self.layer.groups if isinstance(self.layer, _ConvNd) else 1

    @property
    def filters(self) -> Tensor:
        """A weight as (out, in of one group, *kernel), in whatever order a transposed convolution keeps it."""
        if not isinstance(self.layer, _ConvTransposeNd):
            return self.tensor
        return self.tensor.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    @property
    def channels(self) -> Tensor:
        """A weight as (out of one group, in, *kernel): at [:, i] is all that reads input channel i."""
        return self._channels(self.tensor)

    def by_channels(self, function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """A function of such a tensor, which keeps its shape, applied to one that is shaped as the weight is."""
        if isinstance(self.layer, _ConvTransposeNd):
            return function(self._channels(tensor)).transpose(0, 1)
        if self.groups == 1:
            return function(tensor)
        return function(self._channels(tensor)).unflatten(1, (self.groups, -1)).transpose(0, 1).flatten(0, 1)

    def _channels(self, tensor: Tensor) -> Tensor:
        if isinstance(self.layer, _ConvTransposeNd):
            return tensor.transpose(0, 1)
        if self.groups == 1:
            return tensor
        return tensor.unflatten(0, (self.groups, -1)).transpose(0, 1).flatten(1, 2)


def weights(model: nn.Module, shared: bool = False) -> dict[str, Acting]:
    """Name to weight, as it acts in eval mode (gates and noise aside), of every convolution (of any dimension, grouped,
    transposed) and linear map, those of attention and recurrence included. Of other layers, tensors of 2
    dimensions or more count that have `weight` in their name; embeddings, norms and scales (one number for each
    channel) do not. A weight that several layers
    share has its first name only, if it acts alike in them; with `shared`, all of them. `UserError` for a lazy layer
    that no image has passed, for a quantised one, for complex weights and programs of TorchScript, and where a hook
    writes the weight that is not known here, or is never called."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError("a program of TorchScript does not tell its layers apart: give the network that it was made "
                        "from")
    check_hooks(model)
    found = {name: w for name, w in _all(model, shared) if _is_weight(name.rpartition(".")[2], w)}
    for name, w in found.items():
        if w.tensor.is_complex():
            raise UserError(f"{name} is complex: weights are real numbers here")
    return found


def _is_weight(name: str, found: Acting) -> bool:
    if isinstance(found.layer, _ConvNd | nn.Linear):
        return name == "weight"
    sides = [side for side in found.tensor.shape if side > 1]
    scales = found.tensor.dim() > 2 and len(sides) < 2  # as (1, channels, 1, 1) does
    return "weight" in name and found.tensor.dim() >= 2 and not scales and not isinstance(found.layer, TABLES)


def _all(model: nn.Module, shared: bool = False) -> Iterator[tuple[str, Acting]]:
    """Every parameter as it acts, by the name that it has in its layer, `weight` for `weight_orig`."""
    known: dict[tuple[bool, tuple[int, ...]], list[Tensor]] = {}  # the tensors that come out of the same sources
    inside: set[nn.Module] = set()  # what computes others
    for prefix, layer in model.named_modules():
        if layer in inside:
            continue
        for chain in _computing(layer).values():
            inside |= set(chain.modules())
        for name, found in _of_layer(layer, prefix).items():
            others = known.setdefault((_is_weight(name, found), _key(found)), [])
            if shared or not any(other is found.tensor or torch.equal(other, found.tensor) for other in others):
                others.append(found.tensor)
                yield f"{prefix}.{name}" if prefix else name, found


def _key(found: Acting) -> tuple[int, ...]:
    """What tells the sources of a tensor apart."""
    return tuple(map(id, found.sources or [found.tensor]))


def _computing(layer: nn.Module) -> dict[str, nn.Module]:
    """Name of a tensor of a layer to the parametrisations that compute it."""
    chains = layer.parametrizations if is_parametrized(layer) else None
    return dict(chains.items()) if isinstance(chains, nn.ModuleDict) else {}


def check_hooks(model: nn.Module, moved: bool = False) -> None:
    """`UserError` where attention reads a weight without calling its layer, so that a hook which computes it is never
    called, and the weight is not what it would make now; or, if parameters are to be `moved`, will not be."""
    for name, attention in model.named_modules():
        layer: Any = attention.out_proj if isinstance(attention, nn.MultiheadAttention) else None
        if layer is None or not any(isinstance(hook, HOOKS) for hook in layer._forward_pre_hooks.values()):
            continue
        if moved or not torch.equal(layer.weight, _of_layer(layer, name)["weight"].tensor):
            raise UserError(f"{name}.out_proj".lstrip(".") + " is never called, since attention reads its weight "
                            "alone: what prune, weight_norm or spectral_norm make of it later does not act: remove "
                            "them, or use torch.nn.utils.parametrize")


@torch.no_grad()
def renew(model: nn.Module) -> None:
    """Let prune, weight_norm and spectral_norm compute the weights anew from what they hold now, also of layers that
    are never called."""
    for layer in model.modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, HOOKS):
                with evaluated(layer):  # without a step of a power iteration
                    hook(layer, ())


def _of_layer(layer: nn.Module, prefix: str) -> dict[str, Acting]:
    if hasattr(layer, "_packed_params"):
        raise UserError(f"layer '{prefix}' is quantised, and its weights are packed out of sight: count them before")
    tensors = {name: p for name, p in layer._parameters.items() if p is not None}
    for name, p in tensors.items():
        if is_lazy(p):
            raise UserError(f"layer '{prefix}' has no {name} yet: pass an image through the network first")
    found = {name: Acting(layer, p if p.layout == torch.strided else p.to_dense(), (p,)) for name, p in tensors.items()}
    for name, chain in _computing(layer).items():
        with evaluated(chain):  # in training mode spectral_norm would take a step of its power iteration
            found[name] = Acting(layer, chain(), tuple(chain.parameters()))
    parts: tuple[str, ...]
    foreign = False
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            name, parts, tensor = hook._tensor_name, ("orig",), hook.apply_mask(layer)
        elif isinstance(hook, WeightNorm):
            name, parts, tensor = hook.name, ("g", "v"), hook.compute_weight(layer)
        elif isinstance(hook, SpectralNorm):
            name, parts, tensor = hook.name, ("orig",), hook.compute_weight(layer, do_power_iteration=False)
        else:
            foreign = True
            continue
        found[name] = Acting(layer, tensor, tuple(p for part in parts for p in found.pop(f"{name}_{part}").sources))
    if isinstance(layer, _ConvNd | nn.Linear) and "weight" not in found and isinstance(layer.weight, Tensor):
        if foreign and "weight" not in layer._buffers:
            raise UserError(f"a hook may write the weight of layer '{prefix}', so that it is not known how it acts: "
                            "write it by torch.nn.utils.parametrize")
        found["weight"] = Acting(layer, layer.weight, ())  # a buffer
    return found


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Name to tensor of all `weights`. Those that are computed from others are no parameters: to write into them
    changes nothing (`mask_weights` knows how to)."""
    return {name: w.tensor for name, w in weights(model).items()}


def convolutions(model: nn.Module) -> dict[str, Tensor]:
    """The same of every convolution, the 3-channel stem and 1x1 shortcuts included: (out, in, *kernel) with the `in` of
    one group, or (in, out, *kernel) with the `out` of one group, if it is transposed."""
    return {name: w.tensor for name, w in weights(model).items() if w.convolves}


def channels(model: nn.Module) -> dict[str, Tensor]:
    """Name to weight of every convolution as (out of one group, in, *kernel): at [:, i] is what reads channel i."""
    return {name: w.channels for name, w in weights(model).items() if w.convolves}


def check_same(own: Mapping[str, Tensor], others: Mapping[str, Tensor], whose: str) -> None:
    """`UserError` unless others have every tensor of one's own, by name, in the same shape."""
    for name, w in own.items():
        if name not in others or others[name].shape != w.shape:
            theirs = f"has shape {tuple(others[name].shape)}" if name in others else "is missing"
            raise UserError(f"{whose} is of another network: {name} {theirs} there, here its shape is {tuple(w.shape)}")


@torch.no_grad()
def mask_weights(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Multiply `weights` by masks of 0 and 1, of their names and shapes. One that is computed is masked by way of its
    sources: behind prune's masks and weight_norm the others stay what they were, spectral_norm normalises anew.
    `UserError` where another way to compute it does not let it have zeros, and for masks of another network."""
    computed, found = [], weights(model)
    check_same({name: w.tensor for name, w in found.items()}, masks, "a mask")
    for name, w in found.items():
        if len(w.sources) == 1 and w.sources[0].shape == masks[name].shape:
            w.sources[0].mul_(masks[name])
        elif len(w.sources) == 2 and w.sources[1].shape == masks[name].shape:
            _mask_weight_norm(w.tensor, *w.sources, masks[name])
        if not w.plain:
            computed.append(name)
    acting = prunable(model) if computed else {}
    for name in computed:
        if not (acting[name][masks[name] == 0] == 0).all():
            raise UserError(f"{name} is computed from other parameters in a way that cannot make it zero where it is "
                            "pruned: make it plain first, by torch.nn.utils.parametrize.remove_parametrizations")


def _mask_weight_norm(w: Tensor, g: Tensor, v: Tensor, mask: Tensor) -> None:
    """w = g v / |v|, with a norm for each entry of g, becomes mask * w. Where nothing is left g is 0, as 0 / |0| is
    no number. Another w of two tensors stays."""
    dims = [i for i in range(v.dim()) if g.dim() == 0 or g.shape[i] == 1]
    whole, left = (torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (v, v * mask))
    if g.numel() == whole.numel() and torch.allclose(g.view_as(whole) * v / whole, w):
        g.mul_((left / whole).view_as(g))
        v.copy_(torch.where(left > 0, v * mask, v))


def channel_norms(weight: Tensor) -> Tensor:
    """l2 norm of each input channel, (in,), of a weight (out, in, *kernel)."""
    return double(weight.detach()).pow(2).sum((0, *range(2, weight.dim()))).sqrt()


def all_but_smallest(scores: Tensor, removed: int) -> Tensor:
    """Mask of ones, shaped like `scores` (n,), with zeros for the `removed` smallest; ties are broken by position."""
    mask = torch.ones_like(scores)
    mask[scores.argsort(stable=True)[:removed]] = 0
    return mask


def same_share(sparsity: float, sizes: Sequence[int]) -> list[int]:
    """How many weights layers of these sizes lose where all lose one share: rounded, but one at least is left."""
    return [min(round(sparsity * size), size - 1) for size in sizes]


def zero_weights(model: nn.Module) -> tuple[int, int]:
    """How many convolution and linear weights are exactly zero, and how many there are. `UserError` without any, and
    for a layer whose own `forward` multiplies by other zeros than those of its weight."""
    found = prunable(model).values()
    if not found:
        raise UserError(f"{type(model).__name__} has no convolution or linear weights that could be counted")
    _check_acting(model)
    return sum(int((w == 0).sum()) for w in found), sum(w.numel() for w in found)


def sparsity(model: nn.Module) -> float:
    """Share of exactly zero convolution and linear weights, in [0, 1]."""
    zero, total = zero_weights(model)
    return zero / total


def channel_groups(model: nn.Module) -> int:
    """Number of input channels over all convolutions: 675 for ResNet20."""
    return sum(w.shape[1] for w in channels(model).values())


def removed_channels(model: nn.Module) -> int:
    """Number of input channels, over all convolutions, with l2 norm below 1e-15."""
    _check_acting(model)
    return sum(int((channel_norms(w) < CHANNEL_NORM_IS_ZERO).sum()) for w in channels(model).values())


def channel_sparsity(model: nn.Module) -> float:
    """Share of input channels with l2 norm below 1e-15, in [0, 1]; 0 for a network without convolutions."""
    return removed_channels(model) / max(channel_groups(model), 1)


def parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones among them. A tensor that is computed from others counts in their place."""
    return sum({_key(found): found.tensor.numel() for _, found in _all(model) if found.sources}.values())


def remaining_parameters(model: nn.Module) -> int:
    """Number of parameters, frozen ones among them, that are not exactly zero, as they act where most of them do."""
    left: dict[tuple[int, ...], int] = {}
    for _, found in _all(model):
        if found.sources:
            left[_key(found)] = max(left.get(_key(found), 0), int((found.tensor != 0).sum()))
    return sum(left.values())


@torch.inference_mode(False)
def check_acting(model: nn.Module, images: Tensor) -> None:
    """`UserError` where a network, asked for `images` (n, c, h, w), multiplies by other zeros than its weights have: a
    module or a hook on the way masks them, wherever it is. A layer of PyTorch or of this library that is called, and
    before which nothing is done, needs no looking at. `UserError` also where features are multiplied by a parameter, as
    it is or turned, that is not counted among `weights`, such as one of another name."""
    if all(_is_known(module) for module in model.modules()):
        return
    plain: set[nn.Module] = set()
    noted = register_module_forward_pre_hook(lambda module, _: plain.add(module) if _is_known(module) else None)
    factors = _Factors()
    try:
        with attention_in_parts(), factors.watched():
            asked(model, images)
    finally:
        noted.remove()
    found = weights(model, shared=True)  # a hook may have written zeros into them just now
    factors.check_counted(model, found)
    tensors = [w.tensor for w in found.values()]
    made = [t for t in _distinct(factors.found) if not any(_is(t, w) for w in tensors)]  # of weights, or of images
    sizes = {t.numel() for t in made}
    looked_at = {id(tensor) for tensor in tensors if any(_is(t, tensor) for t in factors.found)}
    for name, w in found.items():
        if w.layer not in plain and w.tensor.numel() in sizes and id(w.tensor) not in looked_at:
            looked_at.add(id(w.tensor))
            if not _take(made, w.tensor):
                raise _masked_on_the_way(name, w)


@torch.no_grad()
def _check_acting(model: nn.Module) -> None:
    """The same without images, of each module from elsewhere that has a weight: asked for zeros. `UserError` also for a
    convolution or linear layer that cannot be asked alone, and for a module that cannot and holds another tensor of the
    weight's shape, which may be a mask."""
    for name, w in weights(model, shared=True).items():
        if _forward_is_known(w.layer):
            continue
        try:
            factors = _Factors()
            with torch.random.fork_rng(devices=[]), factors.watched():
                w.layer.forward(torch.zeros(_sides(w), dtype=w.tensor.dtype, device=w.tensor.device))
        except Exception:  # a layer from elsewhere may want anything
            factors.found = []
        must = isinstance(w.layer, _ConvNd | nn.Linear) or _may_be_masked(w)
        if (must or any(t.numel() == w.tensor.numel() for t in factors.found)) and not _take(factors.found, w.tensor):
            raise _masked_on_the_way(name, w)


def _is_known(module: nn.Module) -> bool:
    """Whether all that it does with its weights is written in PyTorch or here."""
    return _forward_is_known(module) and all(isinstance(hook, HOOKS)
                                      for hook in module._forward_pre_hooks.values())


def _forward_is_known(module: nn.Module) -> bool:
    return str(getattr(module.forward, "__module__", "")).split(".")[0] in ("torch", "sparserobust")


def _sides(w: Acting) -> list[int]:
    """Shape of one input that a layer with such a weight may take."""
    match w.layer:
        case nn.Linear():
            return [1, w.layer.in_features]
        case _ConvNd():
            wide = zip(w.layer.kernel_size, w.layer.dilation, strict=True)
            return [1, w.layer.in_channels, *((k - 1) * d + 3 for k, d in wide)]
    return [1, w.tensor.shape[1], *(k + 2 for k in w.tensor.shape[2:])]


def _may_be_masked(w: Acting) -> bool:
    own = [*w.layer.parameters(recurse=False), *w.layer.buffers(recurse=False)]
    return sum(t.shape == w.tensor.shape for t in own) > 1


def _masked_on_the_way(name: str, w: Acting) -> UserError:
    return UserError(f"{name}, of a {type(w.layer).__name__}, or a weight of its shape: the network multiplies by "
                     "other numbers, so that its zeros are not those that act: write the weight, or mask "
                     "it by torch.nn.utils.prune")


class _Factors:
    """What convolutions and products of matrices multiply by, and where these lie in memory."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []
        self.places: set[int] = set()  # of second factors, by which what is first is multiplied

    def watched(self) -> Watch:
        return Watch(self._note)

    def _note(self, operation, args: tuple, result: object) -> None:
        name = operation.overloadpacket.__name__
        if name in ("convolution", "mm", "addmm", "bmm", "baddbmm"):
            factors = args[:2] if name == "convolution" else args[-2:]
            self.places.add(_place(factors[1]))
            self.found += [t.detach().clone() for t in (factors[1:] if name == "convolution" else factors)]

    def check_counted(self, model: nn.Module, found: dict[str, Acting]) -> None:
        """`UserError` for a parameter among the second factors that is not in `found`."""
        counted = {_place(t) for w in found.values() for t in (w.tensor, *w.sources)}
        for name, p in model.named_parameters():
            if p.dim() > 1 and _place(p) in self.places - counted:
                raise UserError(f"the network multiplies by its parameter {name}, which is not counted: weights are "
                                "those of convolutions and linear layers, and, except of embeddings and norms, what "
                                "has `weight` in its name")


def _place(t: Tensor) -> int:
    """Where its numbers lie in memory, whatever the view."""
    return t.untyped_storage().data_ptr() if t.layout == torch.strided else id(t)


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    """Those of two dimensions or more, without repetitions."""
    found: list[Tensor] = []
    for tensor in tensors:
        if tensor.dim() > 1 and not any(_is(tensor, other) for other in found):
            found.append(tensor)
    return found


def _is(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a tensor is a weight, as it is or turned."""
    return any(torch.equal(way, weight) for way in _shaped(tensor, weight))


def _take(tensors: list[Tensor], weight: Tensor) -> bool:
    """Takes a tensor with the zeros of a weight out of a list, and says whether there was one."""
    for i, tensor in enumerate(tensors):
        if any(torch.equal(way == 0, weight == 0) for way in _shaped(tensor, weight)):
            del tensors[i]
            return True
    return False


def _shaped(tensor: Tensor, weight: Tensor) -> list[Tensor]:
    """A tensor as it is and turned, where that has the shape of `weight`."""
    return [way.to(weight.dtype) for way in (tensor, tensor.transpose(0, -1)) if way.shape == weight.shape]
