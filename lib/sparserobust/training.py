"""The training loop: one for all methods. It can be killed at any moment and goes on from the last whole epoch, with
the same result bit for bit, because every stream of chance is named by seed and epoch rather than continued."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparserobust import files, inputs
from sparserobust.answers import NotFinite, predicted
from sparserobust.attacks import PGD
from sparserobust.config import Objective, Recipe, Run
from sparserobust.data import Split, Splits, augmented, part
from sparserobust.errors import UserError, quoted
from sparserobust.inheritance import inherit
from sparserobust.models import gated, noise_scales
from sparserobust.optimisers import SGD
from sparserobust.provenance import double, has_bfloat16, with_threads
from sparserobust.seeding import global_seed, rewinder, stream
from sparserobust.sparsity import channel_sparsity, check_hooks, sparsity

log = logging.getLogger("sparserobust")

VALIDATION_IMAGES = 500  # of the validation split, after every epoch


@dataclass(frozen=True)
class TrainingResult:
    """A trained network in eval mode, and one dictionary per epoch of what was seen on the way. Where the network is of
    the best epoch, `last` is the state dictionary of the last one."""

    model: nn.Module
    history: list[dict]
    last: dict[str, Tensor] | None = None


def build(run: Run, splits: Splits) -> nn.Module:
    """The untrained network of a run, on the CPU, initialised from the run's seed."""
    with global_seed(run.seed, "init"):
        return run.model.build(splits.image_shape, len(splits.classes))


def train(run: Run, splits: Splits, start: dict[str, Tensor] | None = None, checkpoint: Path | None = None,
          report: Callable[[float], None] = lambda epochs_done: None,
          others: Sequence[dict[str, Tensor]] = ()) -> TrainingResult:
    """Train a run on the device on which `splits` lies.

    As many threads as the recipe says are used, whatever torch is set to: another number would give another network.
    `start` is a state dictionary to begin from; `checkpoint` a file that is written after each epoch and taken up if it
    is there; `report` is called now and then with the number of epochs done; `others` are the state dictionaries of the
    runs that the sparsifier needs.
    """
    device = splits.train.images.device
    model = build(run, splits)
    if run.inheritance is not None:
        if start is None:
            raise UserError(f"run {run.identity} inherits weights: hand those of the smaller network over as `start`")
        inherit(model, start, run.inheritance, (splits.train or splits.test).images[:2].to(next(model.parameters())))
    elif start is not None:
        try:
            model.load_state_dict(start)
        except RuntimeError as error:
            raise UserError(f"run {run.identity} cannot begin with these weights, which are of another network: "
                            f"{quoted(' '.join(str(error).split()))}") from None
    layout = fastest_layout(model, device)
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]  # not in its stubs
    check_hooks(model, moved=run.recipe.trained_epochs > 0)
    check_fit(model, (splits.train or splits.test).images, len(splits.classes))
    with with_threads(run.recipe.threads), answers_checked(model):
        job = TrainingState(run, model, others)
        job.resume(checkpoint)
        recipe = run.recipe
        if recipe.trained_epochs and not (len(splits.train) and len(splits.validation)):
            raise UserError(f"{run.data.name} has no training images, or none to validate: 0 epochs measure a network "
                            "as it is")
        last_report = time.monotonic()
        for epoch in range(job.epoch, recipe.trained_epochs):
            model.train()
            objective = run.objective.at(epoch)
            order = torch.randperm(len(splits.train), generator=stream(run.seed, "order", epoch)).to(device)
            augmentation = stream(run.seed, "augmentation", epoch, device=device)
            attack = stream(run.seed, "attack", epoch, device=device)
            losses = torch.zeros((), device=device)
            with global_seed(run.seed, "noise", epoch):
                batches = in_batches(order, recipe.batch_size)
                for step, index in enumerate(batches):
                    images = in_layout(augmented(splits.train.images[index], run.data, augmentation), layout)
                    lr = learning_rate(recipe, epoch, step / len(batches))
                    losses += job.step(objective, images, splits.train.labels[index], attack, lr) * len(index)
                    if time.monotonic() - last_report > 2:
                        report(epoch + (step + 1) / len(batches))
                        last_report = time.monotonic()
            job.end_epoch(epoch, float(losses) / len(splits.train), splits.validation)
            if checkpoint is not None:
                job.save(checkpoint)
            report(epoch + 1)
        model.load_state_dict(job.exported_weights(), strict=False)
        last = None
        if job.best:
            last = {name: t.clone() for name, t in model.state_dict().items()}
            model.load_state_dict(job.best)
    return TrainingResult(model.eval(), job.history, last)


def fastest_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """How weights and images lie in memory while a network is trained: channels last, unless gradients would be wrong.
    On processors with AVX2 and without AVX-512, oneDNN (3.14 at least, uxlfoundation/oneDNN issue 6035) then writes
    beyond its buffer where a 1x1 convolution with a stride has fewer than eight inputs: weights get wrong gradients,
    or the process dies. And not on Apple's GPU, whose convolutions have had wrong results so (pytorch issue 180984)."""
    if device.type == "mps":
        return torch.contiguous_format
    usual = usual_layout(model)
    hit = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1)
           and m.in_channels // m.groups < 8]
    if hit and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        return torch.contiguous_format
    return usual


def usual_layout(model: nn.Module) -> torch.memory_format:
    """Channels last, which torch refuses where a tensor has five dimensions."""
    tensors = (*model.parameters(), *model.buffers())
    return torch.contiguous_format if any(t.dim() == 5 for t in tensors) else torch.channels_last


def in_layout(images: Tensor, layout: torch.memory_format) -> Tensor:
    """Images (n, c, h, w) in this layout, down to the strides of a single channel, of which torch says that it has any
    layout, and whose strides then decide for all that follows."""
    return images.clone(memory_format=layout) if layout == torch.contiguous_format else images


def in_batches(order: Tensor, size: int) -> list[Tensor]:
    """Indices (n,), `size` at a time. A single one that is left over joins the batch before it: of one image, a norm
    has no variance to divide by."""
    batches = list(order.split(size))
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def check_fit(model: nn.Module, images: Tensor, classes: int) -> None:
    """`UserError` unless the network has weights to count, and makes one logit for each class of images (n, c, h, w),
    of which it is shown the first."""
    sparsity(model)
    logits = inputs.asked(model, images[:1])
    if not isinstance(logits, Tensor) or logits.shape != (len(images[:1]), classes):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{type(model).__name__} answers an image with {given}, where logits of shape {(1, classes)} "
                        "are needed")


@contextmanager
def answers_checked(model: nn.Module):
    """`UserError` inside the block for a network whose answer is more than logits in training mode alone."""
    def check(module, images, logits):
        if not isinstance(logits, Tensor):
            raise UserError(f"{type(model).__name__} answers with {type(logits).__name__} in training mode, where "
                            "logits are needed: switch off its auxiliary outputs")

    hook = model.register_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def learning_rate(recipe: Recipe, epoch: int, fraction: float) -> float:
    """Learning rate at `fraction` (0 to 1) of an epoch, counted from 0."""
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "multistep":
        return recipe.lr * recipe.drop ** sum(epoch >= m for m in recipe.milestones)
    done = (epoch + fraction) / recipe.epochs
    return recipe.lr * (done / 0.4 if done < 0.4 else (1 - done) / 0.6)


def validation_attack(objective: Objective) -> PGD | None:
    """PGD-10 in the ball of training, or None where training knows no ball."""
    attack = getattr(objective, "attack", objective)
    epsilon = getattr(attack, "epsilon", None)
    if not epsilon:
        return None
    return PGD(epsilon=epsilon, step_size=epsilon / 4, steps=10, norm=getattr(attack, "norm", "linf"))


@contextmanager
def weights_replaced(model: nn.Module, weights: dict[str, Tensor]):
    """Other values for some parameters and buffers inside the block."""
    own = {name: t for name, t in chain(model.named_parameters(), model.named_buffers()) if name in weights}
    kept = {name: t.detach().clone() for name, t in own.items()}
    with torch.no_grad():
        for name, t in own.items():
            t.copy_(weights[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, t in own.items():
                t.copy_(kept[name])


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of running statistics and whatever else is no parameter."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def set_buffers(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Copy running statistics and the like, by name, into a network."""
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


class TrainingState:
    """What changes while a run is trained, and how it is kept in a checkpoint."""

    def __init__(self, run: Run, model: nn.Module, others: Sequence[dict[str, Tensor]]):
        self.run, self.model = run, model
        self.epoch, self.steps = 0, 0
        self.history: list[dict] = []
        self.parameters = dict(model.named_parameters())
        recipe = run.recipe
        # not decayed: noise would only fade, gates would only be drawn to the middle
        spared = {id(p) for p in [*noise_scales(model).values(), *(g.log_alpha for g in gated(model).values())]}
        decay = {name: recipe.weight_decay for name, p in self.parameters.items() if id(p) not in spared}
        self.optimiser = SGD(self.parameters, recipe.momentum, decay)
        with global_seed(run.seed, "sparsifier"):
            self.state = run.sparsifier.start(model, *others)
        averaged = self._averaged() if recipe.averaging else {}
        self.average = {name: torch.zeros_like(t) for name, t in averaged.items()}
        self.best: dict[str, Tensor] = {}
        device = next(model.parameters()).device
        bfloat16 = recipe.precision == "bfloat16" and has_bfloat16(device.type)
        self.autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)

    def step(self, objective: Objective, images, labels, attack, lr: float) -> Tensor:
        """One step of optimiser and sparsifier on `images` (n, c, h, w) with `labels` (n,); `attack` is the generator
        of the attacker's chance. Returns the loss of the objective, a scalar without gradient."""
        run, model = self.run, self.model
        twice = run.sparsifier.passes > 1
        rewind, before = (rewinder(attack), buffers_of(model)) if twice else (None, {})
        loss = self._backward(objective, images, labels, attack)
        if run.sparsifier.moved(model, self.state):
            assert rewind is not None, "a sparsifier that is moved takes the loss twice: say so in its `passes`"
            after = buffers_of(model)
            rewind()
            set_buffers(model, before)
            self._backward(objective, images, labels, attack)
            set_buffers(model, after)
        run.sparsifier.before_step(model, self.state, lr)
        self.optimiser.step(lr)
        run.sparsifier.after_step(model, self.state, lr)
        self.steps += 1
        if self.average:
            with torch.no_grad():
                for name, t in self._averaged().items():
                    self.average[name].lerp_(t, 1 - run.recipe.averaging)
        return loss

    def _averaged(self) -> Mapping[str, Tensor]:
        """What the recipe takes the moving average of."""
        if not self.run.recipe.averaged_norms:
            return self.parameters
        return self.parameters | {n: b for n, b in self.model.named_buffers() if b.is_floating_point()}

    def _backward(self, objective: Objective, images, labels, attack) -> Tensor:
        """Gradients of the loss of the objective and of what the sparsifier adds; returns the former, detached."""
        run, model = self.run, self.model
        model.zero_grad()
        try:
            with self.autocast():
                loss = objective(model, images, labels, attack)
        except NotFinite:
            raise self._diverged(self.epoch, math.nan) from None
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 "):
                raise
            raise UserError(f"a batch of {len(images)} is too small for the norms of this network, which need more "
                            f"than one value for a variance: raise batch_size or train_images") from error
        (loss + run.sparsifier.added_loss(model, self.state)).backward()
        return loss.detach()

    def end_epoch(self, epoch: int, loss: float, validation: Split) -> None:
        """Close an epoch, counted from 0, whose mean training loss was `loss`: let the sparsifier act, validate the
        weights that would be handed over on images (n, c, h, w) of `validation`, add a row to `history`."""
        run, model = self.run, self.model
        run.sparsifier.after_epoch(model, self.state)
        weights = self.exported_weights()
        tensors = [t for t in (*model.state_dict().values(), *weights.values()) if isinstance(t, Tensor)]
        if not (math.isfinite(loss) and all(t.isfinite().all() for t in tensors)):
            raise self._diverged(epoch, loss)
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "gap": self._gap(weights)}
        if scales := noise_scales(model):
            row["noise_scales"] = {name: float(scale.detach().abs().mean()) for name, scale in scales.items()}
        if gates := gated(model):
            row["gates"] = {name: float(gate.open_probability().detach().mean()) for name, gate in gates.items()}
        with weights_replaced(model, weights), self.autocast():
            row |= {"sparsity": sparsity(model), "channel_sparsity": channel_sparsity(model)}
            try:
                row |= self._validated(part(validation, VALIDATION_IMAGES, run.data), epoch)
            except NotFinite:  # with finite weights, which are too large
                raise self._diverged(epoch, loss) from None
            if run.recipe.select == "best" and row["validation"] >= max(
                    (r["validation"] for r in self.history), default=0):
                self.best = {n: t.clone() for n, t in model.state_dict().items()}
        self.history.append(row)
        self.epoch = epoch + 1

    def _diverged(self, epoch: int, loss: float) -> UserError:
        return UserError(f"run {self.run.identity} diverged in epoch {epoch + 1}, with a loss of {loss:.3g}: "
                         "lower lr, or the sparsifier's beta times lr (a pull above 2 diverges)")

    def exported_weights(self) -> dict[str, Tensor]:
        """Parameters as they would be delivered now, where they differ from those being trained."""
        averaged = {}
        if self.average and self.steps:
            correction = 1 - self.run.recipe.averaging**self.steps  # the average began at zero
            averaged = {name: a / correction for name, a in self.average.items()}
        return averaged | self.run.sparsifier.sparse_weights(self.model, self.state)

    def _gap(self, weights: dict[str, Tensor]) -> float:
        """|w - u| / |w|: how much is torn away when the delivered weights replace the trained ones."""
        if not weights:
            return 0.0
        names = [n for n in self.parameters if n in weights]  # one order, before and after an interruption
        trained = torch.cat([self.parameters[n].detach().flatten() for n in names])
        delivered = torch.cat([weights[n].flatten() for n in names])
        if not trained.any():
            return 0.0  # nothing can be torn away
        return float((trained - delivered).norm() / trained.norm())

    def _validated(self, split: Split, epoch: int) -> dict:
        """Accuracies on the validation split; `validation` is the one that selects. The attacked one costs time: it is
        taken after every epoch only where it selects or is watched, else after the last."""
        recipe = self.run.recipe
        wanted = epoch + 1 == recipe.trained_epochs or recipe.select == "best" or recipe.watched
        attack = validation_attack(self.run.objective) if wanted else None
        with global_seed(self.run.seed, "validation noise", epoch):
            clean = float(double(predicted(self.model, split.images) == split.labels).mean())
            if attack is None:
                return {"validation_clean": clean, "validation": clean}
            chance = stream(self.run.seed, "validation", epoch, device=split.images.device)
            attacked = attack(self.model, split.images, split.labels, chance)
            robust = float(double(predicted(self.model, attacked) == split.labels).mean())
        return {"validation_clean": clean, "validation_robust": robust, "validation": robust}

    # ------------------------------------------------------------------------------------------ checkpoints

    def save(self, path: Path) -> None:
        groups = {"model": self.model.state_dict(), "momentum": self.optimiser.buffers, "sparsifier": self.state,
                  "average": self.average, "best": self.best}
        tensors = {f"{group}/{name}": t for group, members in groups.items() for name, t in members.items()}
        metadata = {"run": self.run.identity, "epoch": str(self.epoch), "steps": str(self.steps),
                    "history": json.dumps(self.history)}
        files.save_tensors(path, tensors, metadata)

    def resume(self, path: Path | None) -> None:
        """Take up a checkpoint if there is one; a damaged one is said and thrown away."""
        if path is None or not path.exists():
            return
        try:
            tensors, metadata = files.load_tensors(path)
            if not metadata:
                raise files.Corrupt(f"{path} is no checkpoint")
        except files.Corrupt as error:
            log.warning("run %s: its checkpoint is damaged, training starts anew (%s)", self.run.identity, error)
            files.discard(path)
            return
        if metadata.get("run") != self.run.identity:
            raise UserError(f"{path} belongs to another run: delete it, or name another file")
        groups: dict[str, dict[str, Tensor]] = {}
        for key, t in tensors.items():
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = t

        def like(name: str, t: Tensor) -> Tensor:  # in the memory layout of the parameter that the last word names
            parameter = self.parameters.get(name.rsplit(" ")[-1])
            if parameter is None:
                return t
            return torch.empty_like(parameter).copy_(t) if parameter.shape == t.shape else t.to(parameter.device)

        self.model.load_state_dict(groups["model"])
        self.optimiser.buffers = {n: like(n, t) for n, t in groups.get("momentum", {}).items()}
        self.state = {n: like(n, t) for n, t in groups.get("sparsifier", {}).items()}
        own = self._averaged()
        self.average = {n: torch.empty_like(own[n]).copy_(t) for n, t in groups.get("average", {}).items()}
        self.best = groups.get("best", {})
        self.epoch, self.steps = int(metadata["epoch"]), int(metadata["steps"])
        self.history = json.loads(metadata["history"])
