"""What a network answers, and which way its answers move: where attacks ask, in training and in measuring.

What is not finite is never an answer. `NotFinite` is raised where nothing is left to go by; where something is, it is
said under `flags`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from sparserobust import inputs
from sparserobust.errors import UserError
from sparserobust.models import is_noisy, one_draw_a_pass

ASKED = ((3, 32), (40, 1))  # when a network is asked whether it answers twice the same: how often, of how many images
SAME = 1e-5  # of how far logits lie apart: what rounding may make of one answer
ROUNDING = 32 * torch.finfo(torch.float32).eps  # of the largest logit: likewise, however close to it all others are
CHANCE_IN_EVAL = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)  # what PyTorch draws in eval mode, too
CERTAIN = (nn.functional.relu, nn.functional.gelu)  # functions that layers of PyTorch hold, without chance
STILL_RANDOM = ("noise: false silences the noise of this library alone, and this network still answers differently "
                "when asked again: leave it out")
CUT_OFF = "the loss does not depend on the pixels: its gradient is zero everywhere"
MENDED = "gradients are not finite in some pixels: the attack went by the others"
_flags: ContextVar[list[str] | None] = ContextVar("flags", default=None)


class NotFinite(UserError):
    """A network gave answers, or gradients, that are not numbers."""


@contextmanager
def flagged() -> Iterator[list[str]]:
    """A list to which every oddity that is met inside the block is added, each once, in words."""
    token = _flags.set([])
    found = _flags.get()
    assert found is not None  # it was set just now
    try:
        yield found
    finally:
        _flags.reset(token)


def flag(what: str) -> None:
    """Add a line to the list of the `flagged` block around, if there is one."""
    found = _flags.get()
    if found is not None and what not in found:
        found.append(what)


@contextmanager
def under_attack(model: nn.Module):
    """Eval mode and no weight gradients inside the block, exactly the former state after it."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    with inputs.evaluated(model):
        try:
            for p in wanted:
                p.requires_grad_(False)
            yield
        finally:
            for p in wanted:
                p.requires_grad_(True)


def finite(logits: Tensor) -> Tensor:
    """The same logits. `NotFinite` if one is none: of NaN `argmax` would make class 0."""
    if not logits.isfinite().all():
        raise NotFinite("the network answers with numbers that are not finite, so that nothing can be counted: look at "
                        "its weights and at the images")
    return logits


def untied(logits: Tensor) -> Tensor:
    """The class that is answered leads, if only by the last digit: pyautoattack takes a tie for a wrong answer, and has
    nothing left to attack, which it does not expect, where all are tied."""
    first = logits.argmax(1, keepdim=True)
    highest = logits.gather(1, first).detach()
    tied = (logits == highest).sum(1, keepdim=True) > 1
    step = highest.nextafter(torch.full_like(highest, torch.inf)) - highest
    return torch.where(tied, logits.scatter_add(1, first, step), logits)


def mean_logits(model: nn.Module, images: Tensor, draws: int) -> Tensor:
    """Logits (n, classes) averaged over `draws` forward passes, which differ if the network is random."""
    if draws == 1:
        return finite(model(images).float())
    if one_draw_a_pass(model) or not _known(model):
        return torch.stack([finite(model(images).float()) for _ in range(draws)]).mean(0)
    return finite(model(images.repeat(draws, 1, 1, 1)).float()).unflatten(0, (draws, len(images))).mean(0)


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (n,) of one forward pass in eval mode. `NotFinite` for logits that are not finite."""
    with torch.no_grad(), under_attack(model):
        return finite(model(images)).argmax(1)


def gradient(loss: Tensor, x: Tensor, retain_graph: bool = False) -> Tensor:
    """Gradient of `loss` at the images x (n, c, h, w). Where a loss does not depend on the pixels, as behind `round` or
    `detach`, it is zero, and flagged. An entry that is NaN becomes zero and an infinite one as large as the largest of
    its image, which is flagged; `NotFinite` if that leaves an image no way to go."""
    found = raw_gradient(loss, x, retain_graph)
    if found is None:
        flag(CUT_OFF)
        return torch.zeros_like(x)
    return mended(found)


def raw_gradient(loss: Tensor, x: Tensor, retain_graph: bool = False) -> Tensor | None:
    """Gradient of `loss` at x as it is; None where the loss does not depend on it."""
    return torch.autograd.grad(loss, x, retain_graph=retain_graph, allow_unused=True)[0] if loss.requires_grad else None


def mended(gradient: Tensor) -> Tensor:
    """A gradient (n, ...) whose entries that are not finite are replaced, as `gradient` says."""
    broken = ~gradient.isfinite()
    if not broken.any():
        return gradient
    steepest = gradient.abs().masked_fill(broken, 0).flatten(1).amax(1)
    steepest = torch.where(steepest > 0, steepest, 1.0).view(-1, *[1] * (gradient.dim() - 1))
    usable = gradient.nan_to_num(0.0, torch.inf, -torch.inf).clamp(-steepest, steepest)
    lost = broken.flatten(1).any(1) & ~usable.flatten(1).any(1)
    if lost.any():
        raise NotFinite(f"the gradient at {int(lost.sum())} of {len(lost)} images is not finite in any pixel, so that "
                        "an attack by gradients would stand still: make the network differentiable there, or attack "
                        "it with Square, which needs none")
    flag(MENDED)
    return usable


def _known(model: nn.Module) -> bool:
    """Whether every part of a network, with its hooks, is PyTorch's or this library's, so that it is known how it draws
    chance: in eval mode not at all, but for the noise of this library."""
    def known(part: object) -> bool:
        return str(part.__module__).startswith(("torch.nn.", "sparserobust."))

    hooks = [hook for each in (module, *model.modules()) for held in ("forward_hooks", "forward_pre_hooks")
             for hook in getattr(each, f"_global_{held}" if each is module else f"_{held}").values()]
    return all(map(known, hooks)) and all(
        known(type(m)) and not isinstance(m, (inputs.Function, *CHANCE_IN_EVAL)) and "forward" not in vars(m)
        and not any(callable(held) and held not in CERTAIN for held in vars(m).values())
        for m in model.modules())


def differ(answers: Tensor, others: Tensor, share: float = SAME) -> bool:
    """Whether logits (n, classes) differ by more than rounding explains: by more than `share` of how far those of one
    image lie apart. What all of them have in common is no measure of a difference."""
    apart, largest = (others - others.mean(1, keepdim=True)).abs().max(), others.abs().max()
    return bool(((answers - others).abs() > share * (apart + largest * ROUNDING / SAME)).any())


def is_random(model: nn.Module, images: Tensor) -> bool:
    """Whether a network answers differently when asked again: it has noise of this library, or it is asked some times
    about some of the images (n, c, h, w), unless it is made of parts alone that are known to have no chance in eval
    mode. What happens in one of ten answers, whatever the image, goes unseen once in a hundred times. Torch's chance is
    left as it was."""
    if is_noisy(model):
        return True
    if not len(images) or _known(model):
        return False
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad(), under_attack(model):
        for times, number in ASKED:
            first = finite(model(images[:number]).float())
            if any(differ(finite(model(images[:number]).float()), first) for _ in range(times - 1)):
                return True
    return False
