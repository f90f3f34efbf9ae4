"""Networks from outside the library, and weights from a file, as models: to be trained, pruned and measured."""

from weakref import WeakSet

import torch

from sparserobust import foreign
from sparserobust.config import Model
from sparserobust.errors import UserError
from sparserobust.outside import Code, File
from sparserobust.settings import settings

_handed_out: WeakSet[torch.nn.Module] = WeakSet()  # networks that code of somebody else has built


@settings
class Foreign(Model, kind="foreign"):
    """A network that code of somebody else builds, named as `my_net.py:build`, `my_net.py:Net(width=8)` or
    `torchvision.models:resnet18(num_classes=10)`. A builder that has a parameter `image_shape` (c, h, w),
    `in_channels`, `classes` or `num_classes` gets it from the data, unless the name gives it; one that has none of
    them must fit the data as it is. With `mean` and `std`, a number for each channel, in units of [0, 1], images are
    normalised in a first layer of their own. What a builder draws, it should draw from torch's global generator."""

    builder: Code
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def check(self):
        self.require(len(self.mean) == len(self.std), "mean and std go together, a number per channel")
        self.require(min(self.std, default=1.0) > 0, "every number in std must be positive")

    @property
    def cost(self) -> float:
        return 1.0  # unknown

    def fits(self, other):
        return self.identity == other.identity  # the place of a file does not count

    def build(self, image_shape, classes):
        channels = image_shape[0]
        self.require(len(self.mean) in (0, channels), f"the images have {channels} channels: give mean and std that "
                     f"many numbers each, not {len(self.mean)}")
        net = foreign.built(self.builder, image_shape=image_shape, in_channels=channels, classes=classes,
                            num_classes=classes)
        self.require(net not in _handed_out, f"{self.builder} gives the same network again, which other runs have "
                     "trained: build a new one at each call")
        _handed_out.add(net)
        net = foreign.normalised(net, self.mean, self.std)
        for name, held in net.state_dict().items():
            self.require(isinstance(held, torch.Tensor), f"{name} of {self.builder} is no tensor, and what is stored "
                         "of a network are its tensors: leave get_extra_state out of it")
        like = next(net.parameters(), torch.zeros(()))
        try:
            with torch.no_grad():
                logits = net.eval()(torch.zeros(2, *image_shape, device=like.device, dtype=like.dtype))
        except Exception as error:  # whatever a network of somebody else raises
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.label()}: {self.builder} takes no images of shape {image_shape}: {why[:200]}"
                            ) from error
        shape = tuple(getattr(logits, "shape", ()))
        self.require(shape == (2, classes), f"{self.builder} should give logits of shape (n, {classes}), not "
                     f"{shape or type(logits).__name__}; give the number of classes in its name, as in "
                     f"build(num_classes={classes})")
        return net.train()


@settings
class Pretrained(Model, kind="pretrained"):
    """Any model that begins with the weights in a file, as `foreign.state` reads them: with 0 epochs the network of
    the file itself, else one that is trained on. The file is named as `my_weights.pt`, or `my_weights.pt:ema` for one
    part of it. Its content counts, not its place; it must be there whenever the network is built."""

    model: Model
    weights: File

    @property
    def cost(self) -> float:
        return self.model.cost

    def fits(self, other):
        return self.model.fits(other.model if isinstance(other, Pretrained) else other)

    def build(self, image_shape, classes):
        net = self.model.build(image_shape, classes)
        foreign.load(net, foreign.state(self.weights))
        return net
