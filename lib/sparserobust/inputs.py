"""What attacks and measurements are given, checked in one place: images, labels, and a network that takes them."""

from collections.abc import Callable
from functools import wraps

from torch import Tensor

from sparserobust.errors import UserError, quoted


def check(images: Tensor, labels: Tensor, classes: int | None = None) -> None:
    """`UserError` unless the images are (n, c, h, w) in [0, 1] and the labels (n,) whole numbers from 0, below
    `classes` if that is known."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise UserError(f"{name} should be a tensor, not of type {type(given).__name__}")
    if images.dim() != 4 or not images.is_floating_point():
        raise UserError("images should be floats of shape (n, c, h, w), not "
                        f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels should be whole numbers of shape ({len(images)},), not "
                        f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}")
    if images.numel():
        low, high = images.detach().aminmax()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise UserError(f"images should lie in [0, 1], these reach from {low:g} to {high:g}: scale them; "
                            "normalisation belongs into the network")
        if labels.min() < 0:
            raise UserError(f"labels are counted from 0, not from {int(labels.min())}")
        if classes is not None:
            _check_classes(labels, classes)


def _check_classes(labels: Tensor, classes: int) -> None:
    if len(labels) and labels.max() >= classes:
        raise UserError(f"label {int(labels.max())} is none of {classes} classes, counted from 0")


def guarded(call: Callable) -> Callable:
    """The `__call__` of an attack, which checks what it is given; also, at its first answer, whether the network takes
    such images and has as many classes as the labels need."""
    @wraps(call)
    def checked(self, model, images, labels, generator=None):
        check(images, labels)
        asked: list[bool] = []
        answered: list[bool] = []

        def first_answer(module, given, logits):
            if not answered:
                answered.append(True)
                _check_classes(labels, logits.shape[-1])

        hooks = (model.register_forward_pre_hook(lambda *given: asked.append(True)),
                 model.register_forward_hook(first_answer))
        try:
            return call(self, model, images, labels.long(), generator)
        except (RuntimeError, IndexError, ValueError) as error:
            if asked and not answered:
                raise UserError(f"the network takes no {str(images.dtype).removeprefix('torch.')} images of shape "
                                f"{tuple(images.shape[1:])}: {quoted(str(error))}") from error
            raise
        finally:
            for hook in hooks:
                hook.remove()

    return checked
