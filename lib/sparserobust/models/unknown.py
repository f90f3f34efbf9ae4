"""What of a network depends on the images: followed by passing images of NaN, which stands for an unknown number.

What an operation makes of an unknown number is unknown, unless it is multiplied by a weight that is zero. So it holds
for all images what is not NaN, and not only for some that were tried.
"""

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparserobust.errors import UserError

# What they make of a tensor depends on its shape alone.
FACTORIES = {"empty_like", "full_like", "ones_like", "zeros_like", "rand_like", "randn_like", "new_empty",
             "new_empty_strided", "new_full", "new_ones", "new_zeros", "sym_size", "sym_numel", "sym_stride"}
# Of numbers, they make NaN where, and only where, they read NaN.
HONEST = {"_adaptive_avg_pool2d", "_native_batch_norm_legit_no_training", "_reshape_alias", "_to_copy",
          "_unsafe_view", "alias", "amax", "amin", "aminmax", "as_strided", "avg_pool1d", "avg_pool2d", "avg_pool3d",
          "cat", "clone", "constant_pad_nd", "copy", "detach", "expand", "flip", "index", "max_pool2d_with_indices",
          "mean", "native_batch_norm", "permute", "pixel_shuffle", "repeat", "select", "slice", "split",
          "split_with_sizes", "squeeze", "stack", "sum", "t", "transpose", "unbind", "unsqueeze",
          "upsample_bilinear2d", "upsample_nearest2d", "view"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
ESCAPES = {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr"}  # ways to numbers that PyTorch does not see


class Unknown(TorchDispatchMode):
    """Inside the block, each operation makes NaN of what may depend on a NaN that it reads. A network that decides by
    such numbers what to do is refused: `failure` is the `UserError`, also if the network goes on regardless."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.failure: UserError | None = None
        self.marked: dict[int, Any] = {}  # memory of whole numbers that depend on NaN, which cannot be NaN themselves

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # or else torch loads what compiles networks, which takes seconds

    def holds(self, tensor: Tensor) -> bool:
        """Whether something of a tensor is unknown."""
        if tensor.layout != torch.strided:
            return True
        if tensor.is_floating_point() or tensor.is_complex():
            return bool(tensor.isnan().any())
        return memory(tensor) in self.marked

    def refuse(self, how: str) -> None:
        self.failure = UserError(f"{self.name} decides by the numbers of its images what to do ({how}): what holds on "
                                 "some images says nothing of others")
        raise self.failure

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        unknown = [t for t in given if self.holds(t)]
        if not unknown or name in FACTORIES:
            return func(*args, **kwargs)
        chosen = name == "index" and not any(self.holds(t) for t in given[1:])  # by indices that are known
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags) and not chosen:
            self.refuse(name)
        numbers = chosen or all(t.is_floating_point() and t.layout == torch.strided for t in given)
        if numbers and name in PRODUCTS:
            return _product(func, args, kwargs)
        if numbers and name == "convolution" and unknown == [args[0]]:
            return _convolution(func, *args)
        places = self._places(given) if torch.Tag.pointwise in func.tags else None
        found = func(*args, **kwargs)
        written = [value for argument, value in zip(func._schema.arguments, args, strict=False)
                   if argument.alias_info and argument.alias_info.is_write]
        for tensor in tree_leaves((found, written)):
            if isinstance(tensor, Tensor):
                honest = numbers and name.removesuffix("_") in HONEST
                self._mark(tensor, places, honest)
        return found

    def _places(self, given: list[Tensor]) -> Tensor:
        """Where any of these, broadcast, is unknown."""
        return reduce(torch.logical_or, [t.isnan() if t.is_floating_point() or t.is_complex() else
                                         torch.full_like(t, self.holds(t), dtype=torch.bool) for t in given])

    def _mark(self, tensor: Tensor, places: Tensor | None, honest: bool) -> None:
        if not tensor.is_floating_point() and not tensor.is_complex():
            self.marked[memory(tensor)] = tensor.untyped_storage()
        elif places is not None:
            tensor.masked_fill_(places, torch.nan)
        elif not honest:
            tensor.fill_(torch.nan)


class Escapes(TorchFunctionMode):
    """Inside the block, unknown numbers are not taken out of PyTorch."""

    def __init__(self, unknown: Unknown):
        super().__init__()
        self.unknown = unknown

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ESCAPES and isinstance(args[0], Tensor) and self.unknown.holds(args[0]):
            self.unknown.refuse(name)
        return func(*args, **(kwargs or {}))


def passed_unknown(model: nn.Module, images: Tensor) -> bool:
    """Pass images of NaN like these (n, c, h, w) through a network, whose hooks see what is unknown. False if it stops
    at them. `UserError` for one that decides by the numbers of its images what to do."""
    unknown = Unknown(type(model).__name__)
    try:
        with torch.inference_mode(False), torch.no_grad(), unknown, Escapes(unknown):
            model(torch.full_like(images, torch.nan))
    except Exception:  # a network from elsewhere may stop in any way
        if unknown.failure is None:
            return False
    if unknown.failure:
        raise unknown.failure
    return True


def _convolution(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """A convolution of unknown numbers; zero weights read none."""
    found = func(x.nan_to_num(), weight, bias, *rest)
    places = func(x.isnan().to(x.dtype), (weight != 0).to(x.dtype), None, *rest) > 0.5  # it counts, up to rounding
    return found.masked_fill_(places, torch.nan)


def _product(func: Any, args: tuple, kwargs: dict) -> Tensor:
    """A product of matrices, to which another may be added; zeros read nothing."""
    *added, a, b = args
    unknown = [t.isnan().to(t.dtype) for t in (a, b)]
    read = [((t != 0) | t.isnan()).to(t.dtype) for t in (a, b)]
    places = (unknown[0] @ read[1] + read[0] @ unknown[1]) > 0.5
    found = func(*[t.nan_to_num() for t in args], **kwargs)
    for t in added:
        places = places | t.isnan()
    return found.masked_fill_(places, torch.nan)


def memory(tensor: Tensor) -> int:
    """Of tensors that share their numbers, the same."""
    return tensor.untyped_storage()._cdata
