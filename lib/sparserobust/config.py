"""The vocabulary: what a run is made of.

    run = data + model + objective (who attacks in training) + sparsifier + recipe + seed [+ start: another run]

`Model`, `Attack`, `Objective`, `Sparsifier` and `Measurement` are families: each member is one small frozen class,
holding its settings and its formula, registered under its `kind`.
"""

import hashlib
from abc import abstractmethod
from dataclasses import field, replace
from functools import cached_property
from typing import ClassVar

from sparserobust import inputs
from sparserobust.outside import DataSet
from sparserobust.settings import Settings, settings, unknown


class Model(Settings):
    """Settings of a network."""

    @abstractmethod
    def build(self, image_shape: tuple[int, int, int], classes: int):
        """A fresh `torch.nn.Module` mapping images (n, c, h, w) in [0, 1] to logits (n, classes), initialised from
        torch's global generator."""

    @property
    @abstractmethod
    def cost(self) -> float:
        """Relative cost of one forward and backward pass; only used to order and to forecast runs."""

    def fits(self, other: "Model") -> bool:
        """Whether this network can take over the weights of the other."""
        return self == other


class Attack(Settings):
    """Settings of an attack; called, it returns the attacked images. What it is called with is checked (`inputs`)."""

    by_seed: ClassVar[bool] = False  # its chance is that of the generator's seed, however much was drawn from it

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            cls.__call__ = inputs.guarded(cls.__call__)  # type: ignore[method-assign]

    @abstractmethod
    def __call__(self, model, images, labels, generator=None):
        """`images` (n, c, h, w) in [0, 1] and `labels` (n,) to adversarial images of the same shape. A pure function:
        the model comes back in the mode, and with the buffers and gradients, in which it went in."""

    @property
    @abstractmethod
    def cost(self) -> float:
        """Gradients taken per image."""


class Objective(Settings):
    """Settings of a training loss; called, it returns the loss of a batch."""

    def at(self, epoch: int) -> "Objective":
        """The loss to train with in this epoch, counted from 0."""
        return self

    @abstractmethod
    def __call__(self, model, images, labels, generator):
        """Scalar loss of a batch, differentiable in the weights of `model`, which is in training mode."""

    @property
    @abstractmethod
    def cost(self) -> float:
        """Forward-backward passes per step."""


class Sparsifier(Settings):
    """Settings of what makes a network sparse. The training loop knows nothing of a sparsifier but these moments.
    `state` is a dictionary of tensors that belongs to the sparsifier and is kept in checkpoints."""

    @property
    def required_runs(self) -> "tuple[Run, ...]":
        """Runs whose trained weights the sparsifier needs besides."""
        return ()

    def start(self, model, *others: dict) -> dict:
        """Before training: the state to begin with. `others` are the weights of those runs, name to tensor."""
        return {}

    def added_loss(self, model, state: dict):
        """What is added to the loss of a batch (a scalar tensor, or 0.0)."""
        return 0.0

    @property
    def passes(self) -> int:
        """How often a step takes the loss: 2 if it is `moved`."""
        return 1

    def moved(self, model, state: dict) -> bool:
        """After `backward`: whether it has moved the network to other weights, where the loss is taken once more,
        attack included, on the same images and with the same chance. Its gradients are those of the step; the loss that
        is reported, and the running statistics of norms, stay those of the network as it was."""
        return False

    def before_step(self, model, state: dict, lr: float) -> None:
        """After the last `backward`, before the optimiser moves."""

    def after_step(self, model, state: dict, lr: float) -> None:
        """After the optimiser has moved."""

    def after_epoch(self, model, state: dict) -> None:
        """After an epoch, before its checkpoint."""

    def sparse_weights(self, model, state: dict) -> dict:
        """Name to tensor: the weights that are validated and handed over at the end, where they differ."""
        return {}


@settings
class Dense(Sparsifier, kind="dense"):
    """No sparsifier."""


class Measurement(Settings):
    """Settings of something that is measured on a trained network; called, it returns JSON-ready results. What it is
    called with is checked, and that it returns finite numbers (`inputs`).

    `revision` is raised when a measurement gives other numbers for the same settings: it enters the identity, so that
    results of an earlier revision are not taken for new ones. `sampled` says that the numbers depend on which images
    were drawn, so that an interval has to know of images; `counts_images`, that what it counts then are images, and not
    units of a network over images, which are not independent."""

    revision: ClassVar[int] = 1
    sampled: ClassVar[bool] = False
    counts_images: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            cls.__call__ = inputs.measured(cls.__call__)  # type: ignore[method-assign]

    @cached_property
    def identity(self) -> str:
        """Twelve hexadecimal digits that name these settings and the revision."""
        if self.revision == 1:
            return self.first_identity
        return hashlib.sha256(f"{self.first_identity} revision {self.revision}".encode()).hexdigest()[:12]

    @property
    def first_identity(self) -> str:
        """The identity that the first revision had."""
        return vars(Settings)["identity"].func(self)

    @property
    def cost(self) -> float:
        """Forward-backward passes in all, in ten thousands of images; only used to order and to forecast jobs."""
        return 0.0

    @property
    def required_runs(self) -> "tuple[Run, ...]":
        """Runs whose trained networks the measurement needs besides."""
        return ()

    @abstractmethod
    def __call__(self, model, splits, *others) -> dict:
        """`model` and the `others` in eval mode, `splits` a `sparserobust.data.Splits`; the result must contain the
        headline number as `value`, and may contain further ones, by name, under `parts`. `each` holds the values of
        single images, packed (`imagewise.pack`): of a part under its name, of the headline number under ""."""


# ----------------------------------------------------------------------------------------------------- the run


@settings
class Data(Settings):
    """A data set, and how training images are varied. Its `name` is one of the library's, or names one of your own
    (`data` says what that may be): code, as `my_data.py:shapes`, a folder, as `my_images/`, or a safetensors file."""

    name: DataSet = "digits"
    classes: tuple[int, ...] = ()  # only these, renumbered from 0 in this order; none given: all
    train_images: int | None = None  # use only this many training images
    crop_padding: int = 0  # random crop out of an image padded by this many zeros
    flip: bool = False  # random horizontal flip

    def check(self):
        self.require(self.crop_padding >= 0, "crop_padding cannot be negative")
        self.require(self.train_images is None or self.train_images > 0, "train_images must be positive")
        self.require(len(set(self.classes)) == len(self.classes) != 1, "classes: two different ones at least, or none")


@settings
class Recipe(Settings):
    """How long and how fast. SGD with Nesterov momentum; weight decay acts on all parameters but scales of noise and
    gates. The last batch has what is left over of the images; a single one joins the batch before it."""

    epochs: int
    batch_size: int = 128
    lr: float = 0.1  # the highest learning rate of the schedule
    schedule: str = "onecycle"  # onecycle (linear up for 40 %, linear down) | multistep | constant
    milestones: tuple[float, ...] = ()  # multistep: epochs at which lr drops
    drop: float = 0.1  # multistep: by this factor
    momentum: float = 0.9
    weight_decay: float = 5e-4
    averaging: float = 0.0  # decay of an exponential moving average of the weights; 0: none
    # Of running statistics, too, and other buffers. Else they are those of the last weights, which fit averaged ones
    # only where the rate has fallen to nearly 0.
    averaged_norms: bool = False
    select: str = "last"  # last epoch | best: highest accuracy in validation, under attack where training is
    watched: bool = False  # accuracy under attack on the validation split after every epoch, not only after the last
    stop: int | None = None  # end after so many epochs of the schedule: the weights that a whole run has by then
    precision: str = "bfloat16"  # bfloat16 autocast where the processor has it | float32
    threads: int = 1  # of a CPU, in training and in measuring: another number adds up in another order

    def check(self):
        self.require(self.threads > 0, "threads start at 1")
        self.require(self.epochs >= 0, "epochs cannot be negative")
        self.require(self.stop is None or 0 <= self.stop <= self.epochs, "stop lies between 0 and epochs")
        self.require(self.batch_size > 0, "batch_size must be positive")
        self.require(self.lr > 0, "lr must be positive")
        self.require(0 <= self.averaging < 1, "averaging must lie in [0, 1)")
        self.require(self.averaging > 0 or not self.averaged_norms, "averaged_norms needs averaging")
        self.require(0 < self.drop <= 1, "drop must lie in (0, 1]")
        self.require(0 <= self.momentum < 1, "momentum must lie in [0, 1)")
        self.require(self.weight_decay >= 0, "weight_decay cannot be negative")
        for key, known in (("schedule", ("onecycle", "multistep", "constant")), ("select", ("last", "best")),
                           ("precision", ("bfloat16", "float32"))):
            if getattr(self, key) not in known:
                unknown(key, getattr(self, key), self.label(), dict.fromkeys(known))
        self.require(bool(self.milestones) == (self.schedule == "multistep"), "milestones go with schedule multistep")

    @property
    def trained_epochs(self) -> int:
        """How many epochs are trained, of which `epochs` is the schedule."""
        return self.epochs if self.stop is None else self.stop


@settings
class Inheritance(Settings):
    """How a network begins that inherits the weights of a smaller one, which is narrower or pruned: weights that were
    pruned, or that read a new channel, begin at `kappa` times their default initialisation (`inheritance.inherit`)."""

    kappa: float = 0.0

    def check(self):
        self.require(self.kappa >= 0, "kappa cannot be negative")


@settings
class Run(Settings):
    """Everything that determines a trained network."""

    data: Data
    model: Model
    objective: Objective
    recipe: Recipe
    sparsifier: Sparsifier = field(default_factory=Dense)
    seed: int = 0
    start: "Run | None" = None  # the run whose weights this one takes over
    inheritance: Inheritance | None = None  # how, where those are of a smaller network

    def check(self):
        self.require(self.seed >= 0, "seed cannot be negative")
        self.require(self.start is not None or self.inheritance is None, "inheritance goes with a start")
        self.require(self.start is None or self.inheritance is not None or self.model.fits(self.start.model),
                     "start: the other run has another model")

    @property
    def cost(self) -> float:
        """Relative cost of training; only used to order and to forecast runs."""
        return self.recipe.trained_epochs * self.objective.cost * self.model.cost * self.sparsifier.passes

    def then(self, **changes) -> "Run":
        """A run that takes over the weights of this one and trains on, with some of its parts changed."""
        return replace(self, **({"start": self, "inheritance": None} | changes))

    @property
    def needs(self) -> "tuple[Run, ...]":
        """Runs whose trained weights this one begins with."""
        return (*(() if self.start is None else (self.start,)), *self.sparsifier.required_runs)

    @property
    def twin(self) -> "Run | None":
        """Of a run that watches every epoch and hands over the last: the one that is trained just so and hands over the
        best. Whoever trains it has the weights of both."""
        if self.recipe.select == "best" or not self.recipe.watched:
            return None
        return replace(self, recipe=replace(self.recipe, select="best"))

    @property
    def lineage(self) -> "list[Run]":
        """This run and all that have to be trained for it, each once, the earliest first."""
        found = {run.identity: run for needed in self.needs for run in needed.lineage}
        return [*found.values(), self]
