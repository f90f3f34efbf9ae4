"""A network as the graph of what it does to images: each operation of PyTorch (ATen) that reads them, in order.

The network itself is called, with hooks, parametrisations and an overridden `__call__`, on a tensor that notes every
operation on it and keeps its numbers to itself: a network that would branch on them, or take them elsewhere, is
refused. Operations in which no image takes part are done at once, and their results are constants of the graph.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparserobust import inputs
from sparserobust.analysis.shapes import random_images, uncompiled
from sparserobust.attacks import under_attack
from sparserobust.errors import UserError, quoted
from sparserobust.models.unknown import FACTORIES, memory

# Overloads that differ only in how the arguments are written. Any other may do something else: `view.dtype` reads bits.
ALIKE = {"default", "Tensor", "Scalar", "dim", "dim_IntList", "dims", "int", "sizes", "vec"}
WHOLE = torch._C.DispatchKey.CompositeImplicitAutograd  # operations that come in one piece in inference mode alone
ROUNDED = 4  # times what rounding does to the logits of two images: a difference has two of them, others may have more
# Ways out of a tensor that PyTorch does not tell as an operation.
EXITS = ("__array__", "__deepcopy__", "__dlpack__", "__reduce_ex__", "data_ptr", "item", "numpy", "storage", "tolist",
         "untyped_storage")


def traced(model: nn.Module, image_shape: tuple[int, int, int], dtype: torch.dtype | None = None) -> fx.Node:
    """The logits (2, classes) of `model` in eval mode, as the last node of the graph of two images of this type
    (default: the model's). `node.meta` has shape, dtype and device; of the logits also the `spread`, how far they lie
    apart, the `rounding`, how much of them float64 does otherwise, and `ulp`, the least that rounding makes of the
    largest. That the graph computes what the model does is tried on other images. `UserError` for a network that
    cannot be followed or does not repeat itself."""
    model = inputs.network(model)
    name, tape, buffers = type(model).__name__, _Tape(), _buffers(model)
    images = random_images(model, image_shape, 5, dtype)
    with torch.inference_mode(False), torch.no_grad(), under_attack(model), uncompiled():
        try:
            logits = model(tape.noted(images[:2].clone(), tape.graph.placeholder("images")))
            if tape.failure:
                raise tape.failure
            again, beside = model(images[2:4].clone()), model(images[2:].clone())
            if not isinstance(logits, _Traced) or logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < 2:
                raise UserError(f"{name} does not return logits only, (n, classes) of two classes or more, which "
                                "depend on the images")
            tape.graph.output(tape.node(logits))
            tape.graph.eliminate_dead_code()
            found = run(logits.node, images[2:4])
            exact = _Doubled(nn.Module(), graph=tape.graph).run(images[2:4].double())
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a network's own code raises
            raise UserError(f"{name} cannot be followed: {type(error).__name__} {quoted(str(error))}") from error
    if not found.isfinite().all():
        raise UserError(f"{name} answers with numbers that are not finite: look at its weights")
    rounding = float((exact - found).abs().max())
    for other, share, reason in ((again, 1e-5, "answers otherwise when it is asked again"),
                                 (beside[:2], 1e-2, "answers otherwise beside other images")):  # as GPUs do a little
        if not alike(other, found, share, rounding):
            raise UserError(f"{name} {reason}: it is no function of one image, of which something could be proved")
    after = _buffers(model)
    for buffer, before in buffers.items():
        if buffer in after and not torch.equal(before.nan_to_num(), after[buffer].nan_to_num()):
            raise UserError(f"{name} changes its buffer {quoted(buffer)} when it is asked: it is no function of one "
                            "image, of which something could be proved")
    logits.node.meta |= {"rounding": rounding, "spread": float(_spread(found).max()), "ulp": float(ulp(found).max())}
    return logits.node


def run(last: fx.Node, images: Tensor) -> Tensor:
    """What the graph of `last`, from `traced`, answers (2, classes) to two images (2, c, h, w)."""
    return fx.Interpreter(nn.Module(), graph=last.graph).run(images.clone())


def alike(logits: Tensor, others: Tensor, share: float, rounding: float) -> bool:
    """Whether two answers (n, classes) to the same images are the same, but for some times the `rounding` that was seen
    in two others, and a share of how far the logits of an image lie apart: a number added to all logits of an image
    changes none of its answers, and so must not count."""
    if logits.shape != others.shape:
        return False
    allowed = share * _spread(others) + ulp(others) + ROUNDED * rounding
    return bool(((logits - others).abs() <= allowed).all())


def ulp(logits: Tensor) -> Tensor:
    """Unit in the last place, about, of the largest logit (n, classes) of each image, (n, 1)."""
    return torch.finfo(logits.dtype).eps * logits.abs().amax(1, keepdim=True)


def _spread(logits: Tensor) -> Tensor:
    """How far the logits (n, classes) of each image lie from their mean, (n, 1)."""
    return (logits - logits.mean(1, keepdim=True)).abs().amax(1, keepdim=True)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what a network remembers from one image to the next: its buffers."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def linear_layer(node: fx.Node) -> tuple[fx.Node, Tensor, Tensor | None] | None:
    """What a linear layer reads (n, in), its weight (out, in) and its bias (out,); None for any other node."""
    match called(node), node.args:
        case ("addmm", (Tensor() as bias, fx.Node() as read, Tensor() as weight)) if not node.kwargs:
            return read, weight.T, bias
        case ("mm", (fx.Node() as read, Tensor() as weight)):
            return read, weight.T, None
    return None


def called(node: fx.Node) -> str:
    """The operation of a node, without the underscores that mark what is internal or done in place; with the name of
    its overload, as in "view.dtype", where that may do something else."""
    target: Any = getattr(node.target, "overloadpacket", node.target)
    overload = getattr(node.target, "_overloadname", "default")
    name = target if isinstance(target, str) else target.__name__
    name = name.removesuffix("_").removeprefix("_").removeprefix("native_").removeprefix("cudnn_")
    return name if overload in ALIKE else f"{name}.{overload}"


class _Doubled(fx.Interpreter):
    """Runs a graph in float64."""

    def call_function(self, target, args, kwargs):
        return super().call_function(target, *tree_map_only(
            Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs)))


class _Traced(Tensor):
    """A tensor that depends on images. What it is lies in `value`."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    value: Tensor
    node: fx.Node
    tape: "_Tape"
    version: int  # of the memory of `value`, when this was noted

    @staticmethod
    def __new__(cls, value: Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, value.shape, strides=value.stride(), dtype=value.dtype,
                                                   device=value.device)

    def __repr__(self, **_):
        return f"_Traced({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        tape = next(t for t in tree_leaves((args, kwargs)) if isinstance(t, _Traced)).tape
        try:
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), WHOLE.name):
                return func._op_dk(WHOLE, *args, **(kwargs or {}))  # which consists of others that are noted
            return tape.note(func, args, kwargs or {})
        except Exception as error:
            tape.failure = error  # the network may go on as if nothing had happened
            raise


def _exit(name: str) -> Any:
    """A method that refuses to hand the numbers of a traced tensor to somebody outside of PyTorch."""
    def refuse(self: _Traced, *_: Any, **__: Any) -> None:
        self.tape.failure = UserError(f"no Lipschitz constant is known here of looking at the numbers of a tensor "
                                      f"({name})")
        raise self.tape.failure  # which the network may catch

    return refuse


for _name in EXITS:
    setattr(_Traced, _name, _exit(_name))


class _Tape:
    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.versions: dict[int, int] = {}  # how often each memory has been written to
        self.failure: Exception | None = None

    def noted(self, value: Tensor, node: fx.Node) -> _Traced:
        return self._renew(_Traced(value), value, node)

    def _renew(self, tensor: _Traced, value: Tensor, node: fx.Node) -> _Traced:
        node.meta |= {"shape": value.shape, "dtype": value.dtype, "device": value.device}
        tensor.value, tensor.node, tensor.tape = value, node, self
        tensor.version = self.versions.get(memory(value), 0)
        return tensor

    def node(self, tensor: Tensor) -> fx.Node | Tensor:
        """Where a tensor comes from; a constant as it is now."""
        if not isinstance(tensor, _Traced):
            return tensor.detach().clone()
        if tensor.version != self.versions.get(memory(tensor.value), 0):
            raise UserError("no Lipschitz constant is known here of a tensor that was changed in part")
        return tensor.node

    def note(self, func: Any, args: tuple, kwargs: dict) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace != "aten":  # somebody else's operation may have any name
            raise UserError(f"no Lipschitz constant is known here of {func.namespace}.{name}")
        if name.startswith("rrelu_with_noise") and not any(args[4:5]):  # in eval mode, where it draws nothing
            low, high = args[2] if len(args) > 2 else 1 / 8, args[3] if len(args) > 3 else 1 / 3
            leaky = torch.ops.aten.leaky_relu_ if name.endswith("_") else torch.ops.aten.leaky_relu
            return leaky(args[0], (low + high) / 2)
        given, options = tree_map_only(_Traced, lambda t: t.value, (args, kwargs))
        if name in FACTORIES:
            return func(*given, **options)
        if torch.Tag.data_dependent_output in func.tags:
            raise UserError(f"no Lipschitz constant is known here of looking at the numbers of a tensor ({name})")
        node = self.graph.call_function(func, *tree_map_only(Tensor, self.node, (args, kwargs)))
        written = [argument for argument in func._schema.arguments if argument.alias_info
                   and argument.alias_info.is_write]
        found = func(*given, **options)
        if written:
            if not isinstance(args[0], _Traced) or found is not args[0].value or found.shape != args[0].shape:
                raise UserError(f"no Lipschitz constant is known here of {name}, which writes into another tensor"
                                + (", as circular padding does" if name == "copy_" else ""))
            self.versions[memory(found)] = self.versions.get(memory(found), 0) + 1
            return self._renew(args[0], found, node)
        if isinstance(found, Tensor):
            return self.noted(found, node)
        if not isinstance(found, list | tuple):
            raise UserError(f"no Lipschitz constant is known here of {name}, which makes a {type(found).__name__} of a "
                            "tensor")
        parts = [self.noted(part, self.graph.call_function(operator.getitem, (node, i)))
                 for i, part in enumerate(found)]
        node.meta |= parts[0].node.meta
        return type(found)(parts)
