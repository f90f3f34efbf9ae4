"""What attacks and measurements are given, checked in one place: images, labels, and a network that takes them; and
what they give back."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparserobust.errors import UserError, quoted
from sparserobust.functions import referred

STEADY = "torch.nn.", "sparserobust."  # where modules come from that write no buffer in eval mode


class Function(nn.Module):
    """A function from images to logits, as a network; it is in training mode if a network `within` it is."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function
        self.within = tuple(_within(function, set()))  # no parts of its own: it cannot be moved with them
        self.training = any(net.training for net in self.within)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(model: Any) -> nn.Module:
    """The same network; a function that answers images with logits becomes one, and so does a program of TorchScript,
    which takes no hooks."""
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        return model
    if isinstance(model, type) or not callable(model):
        raise UserError("a network is a torch.nn.Module or a function, not of type "
                        f"{model.__name__ if isinstance(model, type) else type(model).__name__}")
    if isinstance(model, torch.jit.TopLevelTracedModule) and model.training:
        raise UserError("the program is in training mode, and no eval() changes what was traced in it: call eval() "
                        "before torch.jit.trace, or of this program, if it was traced in eval mode")
    return Function(model)


def _within(function: Any, seen: set[int]) -> Iterator[nn.Module]:
    """The networks that a function refers to: as a method of one, by an argument that is set, in its closure, by a
    default, or as something global; or through another function to which it refers in such a way."""
    if id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, nn.Module):
        yield function
    elif isinstance(function, partial):
        for part in (function.func, *function.args, *function.keywords.values()):
            yield from _within(part, seen)
    elif inspect.ismethod(function):
        for part in (function.__self__, function.__func__):
            yield from _within(part, seen)
    elif inspect.isfunction(function):
        for parts in (*referred(function), dict(enumerate(function.__defaults__ or ())), function.__kwdefaults__ or {}):
            for part in parts.values():
                yield from _within(part, seen)
    elif callable(function) and hasattr(function, "__dict__") and not inspect.isclass(function):
        for part in vars(function).values():
            yield from _within(part, seen)


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network; weights that are computed from others, behind the masks of prune say, are made anew in it
    when it is called. `UserError` for what Python cannot copy."""
    computed: Any = {id(t): t.detach().clone() for layer in model.modules() for t in vars(layer).values()
                     if isinstance(t, Tensor) and not t.is_leaf}  # which PyTorch does not copy
    try:
        return deepcopy(model, computed)
    except Exception as error:  # what a network from elsewhere holds may stop it in any way
        raise UserError(f"{type(model).__name__} cannot be copied ({type(error).__name__}: {quoted(str(error))}): "
                        "leave out of it what copy.deepcopy does not know") from error


def check(images: Tensor, labels: Tensor, classes: int | None = None) -> None:
    """`UserError` unless the images are (n, c, h, w) in [0, 1] and the labels (n,) whole numbers from 0, below
    `classes` if that is known."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise UserError(f"{name} should be a tensor, not of type {type(given).__name__}")
        if given.layout != torch.strided or given.is_meta:
            raise UserError(f"{name} should be a dense tensor with values, not "
                            f"{'on the device meta' if given.is_meta else 'sparse: use its to_dense()'}")
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError("images should be floats of shape (n, c, h, w), not "
                        f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        raise UserError(f"images should be float32 or float64, not {str(images.dtype).removeprefix('torch.')}, whose "
                        "steps are too wide for small perturbations: give float32 images to "
                        f"lambda x: net(x.to({images.dtype})).float()")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels should be whole numbers of shape ({len(images)},), not "
                        f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}")
    if images.numel():
        low, high = images.detach().aminmax()
        if not (low >= 0 and high <= 1):  # NaN is neither
            advice = ("clamp them to it" if low > -1e-3 and high < 1 + 1e-3 else
                      "scale them; normalisation belongs into the network")
            raise UserError(f"images should lie in [0, 1], these reach from {low:.9g} to {high:.9g}: {advice}")
        if labels.long().min() < 0:
            raise UserError(f"labels are counted from 0, not from {int(labels.min())}")
        if classes is not None:
            _check_classes(labels, classes)


def check_split(split: Any, name: str, classes: int | None = None) -> None:
    """The same of the images and labels of a split of a data set."""
    if not hasattr(split, "images"):
        raise UserError(f"the {name} split should be data.Split(images, labels), not of type {type(split).__name__}")
    check(split.images, split.labels, classes)


def _check_classes(labels: Tensor, classes: int) -> None:
    if len(labels) and (largest := int(labels.long().max())) >= classes:
        raise UserError(f"label {largest} is none of {classes} classes, counted from 0")


def _check_logits(logits: Any, labels: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise UserError(f"the network answers with a {type(logits).__name__}, not with logits (n, classes): wrap it in "
                        "a network that returns those alone")
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise UserError(f"the network answers with {str(logits.dtype).removeprefix('torch.')} of shape "
                        f"{tuple(logits.shape)}, not with logits (n, classes), floats, of two classes or more: for a "
                        "single logit z, wrap it to answer with [0, z]")
    _check_classes(labels, logits.shape[1])


@contextmanager
def watched(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """As `answering`; and one line if the first answer is none for these labels, or is written over the images."""
    first: list[Tensor] = []  # images as they were, then the answer

    def before(module, given):
        if not first:
            first.append(given[0].detach().clone())

    def after(module, given, logits):
        if first[1:]:
            return
        first.append(logits)
        _check_unwritten(first[0], given[0])
        _check_logits(logits, labels)

    hooks = (model.register_forward_pre_hook(before), model.register_forward_hook(after))
    try:
        with answering(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Whatever the network raises inside the block is one line."""
    asked: list[Tensor] = []  # not answered yet
    hooks = (model.register_forward_pre_hook(lambda module, given: asked.extend(given[:1])),
             model.register_forward_hook(lambda *answered: asked.clear()))
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the network of somebody else does
        if asked:
            raise _not_taken(asked[0], error) from error
        raise
    finally:
        for hook in hooks:
            hook.remove()


def _check_unwritten(before: Tensor, after: Tensor) -> None:
    if not torch.equal(before, after):
        raise UserError("the network writes over the images that it is given, so that what follows sees others: in its "
                        "forward, write x = x - mean, not x -= mean")


def guarded(call: Callable) -> Callable:
    """The `__call__` of an attack, which checks what it is given and, while it runs, that the network takes such images
    and answers with as many logits as the labels need (`watched`); and that what it gives back are images of the same
    shape. Inside, gradients are on, whatever they are outside."""
    @wraps(call)
    def checked(self, model, images, labels, generator=None):
        model = network(model)
        check(images, labels)
        with torch.inference_mode(False), torch.enable_grad(), watched(model, labels), buffers_kept(model):
            found = call(self, model, images.clone().detach(), labels.clone().long(), generator)
        if found.shape != images.shape or not (found.numel() == 0 or (found.min() >= 0 and found.max() <= 1)):
            raise UserError(f"{self.label()} returned what are no images of shape {tuple(images.shape)} in [0, 1]")
        return found

    return checked


def _not_taken(images: Tensor, error: Exception) -> UserError:
    return UserError(f"the network takes no {str(images.dtype).removeprefix('torch.')} images of shape "
                     f"{tuple(images.shape[1:])}, {len(images)} together: {type(error).__name__} {quoted(str(error))}")


def measured(call: Callable) -> Callable:
    """The `__call__` of a measurement, which checks what it is given as `guarded` does that of an attack, where it
    looks at images; and that what it gives back are numbers. Inside, gradients are on, whatever they are outside."""
    @wraps(call)
    def checked(self, model, splits, *others, **known):
        model, others = network(model), [network(other) for other in others]
        with ExitStack() as kept:
            for net in (model, *others):
                kept.enter_context(buffers_kept(net))
            return asked_for(self, model, splits, *others, **known)

    def asked_for(self, model, splits, *others, **known):
        if splits is not None:
            if not (hasattr(splits, "test") or hasattr(splits, "image_shape")):
                raise UserError(f"{self.label()} is given the three splits of a data set, as data.load returns them, "
                                f"not {quoted(type(splits).__name__)}: for images of your own, "
                                "data.Splits(split, split, split, classes)")
            name = getattr(self, "split", "test")
            split = getattr(splits, name, None)
            if split is not None or self.sampled:
                check_split(split, name, len(splits.classes or ()) or None)
                if split.labels.dtype != torch.long or split.images.requires_grad:
                    split = replace(split, images=split.images.detach(), labels=split.labels.long())
                    splits = replace(splits, **{name: split})
            if self.sampled:
                if not len(split):
                    raise UserError(f"{self.label()} is given no images: the {name} split is empty")
                for net in (model, *others):
                    _check_logits(asked(net, split.images[:2]), split.labels)
        with torch.inference_mode(False), torch.enable_grad():
            result = _plain(call(self, model, splits, *others, **known))
        if not isinstance(result, dict) or "value" not in result:
            raise UserError(f"{self.label()} should return a dictionary with its number as 'value'")
        for where, value in _numbers(result):
            if not math.isfinite(value):
                raise UserError(f"{self.label()}: {where} is not a finite number, so that nothing is measured: look at "
                                "the network's weights and at the images")
        return result

    return checked


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, also of networks within functions; the former mode of each module after it. Modules
    that do something of their own when they change the mode do that."""
    modes = [(module, module.training) for module in _all_modules(model)]
    own = [(module, training) for module, training in modes if type(module).train is not nn.Module.train
           or type(module).eval is not nn.Module.eval]
    try:
        for module, _ in own:
            module.eval()
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in own:
            module.train(training)
        for module, training in modes:
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Buffers that are written in eval mode, too, those of observers of a quantisation, say, hold after the block what
    they held before."""
    buffers = [(module, name, held, held.detach().clone()) for module in _all_modules(model)
               if not type(module).__module__.startswith(STEADY)
               for name, held in module._buffers.items() if isinstance(held, Tensor) and not held.is_meta]
    try:
        yield
    finally:
        for module, name, held, before in buffers:
            module._buffers[name] = held
            if held.shape != before.shape or not torch.equal(held, before):
                with torch.no_grad(), torch.inference_mode(held.is_inference()):
                    held.resize_(before.shape).copy_(before)


def _all_modules(model: nn.Module) -> list[nn.Module]:
    """Each module once, those of networks within functions, too."""
    within = [net for module in model.modules() if isinstance(module, Function) for net in module.within]
    return list(dict.fromkeys([*model.modules(), *(module for net in within for module in _all_modules(net))]))


def asked(model: nn.Module, images: Tensor) -> Any:
    """What a network answers in eval mode; one line if it does not take these images. Torch's chance, and modes, stay
    as they were."""
    given = images.clone()
    try:
        with evaluated(model), torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
            logits = model(given)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the network of somebody else does
        raise _not_taken(images, error) from error
    _check_unwritten(images, given)
    return logits


def _plain(result: Any) -> Any:
    """The same, with numbers of Python for those of NumPy and of tensors without dimensions."""
    if isinstance(result, np.generic) or (isinstance(result, Tensor) and result.dim() == 0):
        return result.item()
    if isinstance(result, dict):
        return {key: _plain(value) for key, value in result.items()}
    if type(result) in (list, tuple):
        return type(result)(map(_plain, result))
    return result


def _numbers(result: Any, where: str = "value") -> Iterator[tuple[str, float]]:
    """Every number of a result, and where it stands."""
    if isinstance(result, float):
        yield where, result
    elif isinstance(result, dict):
        for key, value in result.items():
            yield from _numbers(value, str(key))
    elif isinstance(result, list | tuple):
        for value in result:
            yield from _numbers(value, where)
