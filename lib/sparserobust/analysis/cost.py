"""What a network costs: where it is deployed, multiply-accumulates, bytes, time; where it is trained, a step."""

import re
import statistics
import time
import zlib
from collections import Counter
from copy import deepcopy

import torch
from torch import Tensor, nn

from sparserobust import files, inputs, sparsity
from sparserobust.analysis.shapes import each_operation
from sparserobust.analysis.tracing import ulp
from sparserobust.attacks import under_attack
from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError
from sparserobust.models import compact, noise_off
from sparserobust.models.compact import plain_copy
from sparserobust.provenance import device
from sparserobust.seeding import global_seed, stream
from sparserobust.settings import settings
from sparserobust.training import TrainingState, fastest_layout

WARM_UP = 3  # untimed passes before the timed ones
PRODUCTS = {"addmm", "addmv", "baddbmm", "bmm", "dot", "mm", "mv", "vdot"}
# Names of operations of ATen in which products of matrices are done out of sight.
HIDING = re.compile("rnn|lstm|gru|attention|transformer|conv|matmul|_mm|addb?mm|fft|cdist|sparse|^_trilinear"
                    "|^linalg_(?!vector_norm)|mkldnn|fbgemm|dtypes_linear")
COMPARED = 100  # test images on which the compact network must agree with the dense one


def macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of all convolutions and products of matrices for one image (c, h, w), called as layers or as
    functions, with those inside attention and its two products: 40,813,184 for ResNet20 and 3x32x32. Those with padding
    count; norms, additions and noise do not. The model comes back as it was. `UserError` for an operation that may hide
    others."""
    total = 0

    def count(operation, args, found):
        nonlocal total
        name = operation.overloadpacket.__name__.removesuffix("_")  # which writes into its first argument
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            total += (x if transposed else found).numel() * weight[0].numel()
        elif name.lstrip("_") in PRODUCTS:
            left = args[1] if name.startswith(("add", "badd")) else args[0]
            total += found.numel() * left.shape[-1]
        elif HIDING.search(name) or (operation.namespace != "aten" and isinstance(found, Tensor)):
            raise UserError(f"the multiply-accumulates of {operation.namespace}.{name} are not known here")

    each_operation(model, image_shape, count)
    return total


@settings
class MACs(Measurement, kind="macs"):
    """Multiply-accumulates for one image, as `macs` counts them."""

    def __call__(self, model, splits):
        return {"value": macs(model, splits.image_shape)}


@settings
class Deployable(Measurement, kind="deployable"):
    """What is left of a network when the channels that are zero are really removed (`models.compact`, which says what
    networks it knows), before and after: parameters, multiply-accumulates for one image (their share left is the
    value), bytes of the weights as safetensors, and milliseconds of one forward pass of `images` images, the median of
    `repeats`, noise included. Zeros scattered over kernels save nothing here; masks that a network was pruned with
    count neither before nor after. `RuntimeError` if the two networks do not agree."""

    images: int = 1
    repeats: int = 30

    def check(self):
        self.require(self.images > 0 and self.repeats > 0, "images and repeats must be positive")

    def __call__(self, model, splits):
        images, shape, model = splits.test.images, splits.image_shape, plain_copy(model)
        inputs.asked(model, images[:1])  # which says in one line that it does not take them
        with under_attack(model), global_seed(0, "deployable", self.identity):
            small = compact(model, image_shape=shape)
            batch = images[torch.arange(self.images) % len(images)].contiguous(memory_format=torch.channels_last)
            latency, latency_left = _milliseconds([model, small], batch, self.repeats)
            difference = _largest_difference(model, small, images[:COMPARED])
        total, left = macs(model, shape), macs(small, shape)
        if not total:
            raise UserError(f"{self.kind} knows networks with a convolution or a product of matrices: "
                            f"{type(model).__name__} has none")
        return {
            "value": left / total, "count": left, "total": total, "macs": total, "macs_left": left,
            "parameters": sparsity.parameters(model), "parameters_left": sparsity.parameters(small),
            "bytes": len(_file(model)), "bytes_left": len(_file(small)),
            "latency_ms": latency, "latency_ms_left": latency_left, "threads": torch.get_num_threads(),
            "largest_difference": difference,
        }


@settings
class FileSize(Measurement, kind="file_size"):
    """Bytes of the weights and buffers as a safetensors file packed by DEFLATE (zlib, level 9), after zero channels are
    removed (`models.compact`): scattered zeros save bytes here, while nothing runs faster for them. Part `unpacked`:
    the same file as it is."""

    def __call__(self, model, splits):
        content = _file(compact(model, image_shape=splits.image_shape))
        return {"value": len(zlib.compress(content, 9)), "parts": {"unpacked": len(content)}}


@torch.inference_mode()
def _milliseconds(models: list[nn.Module], images: Tensor, repeats: int) -> list[float]:
    """Median time of a forward pass of each model; they take turns, so that a busy machine slows all of them alike."""
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(WARM_UP + repeats):
        for model, taken in zip(models, seconds, strict=True):
            begun = time.perf_counter()
            model(images).cpu()  # which waits for a GPU to finish
            taken.append(time.perf_counter() - begun)
    return [1000 * statistics.median(taken[WARM_UP:]) for taken in seconds]


@torch.inference_mode()
def _largest_difference(model: nn.Module, small: nn.Module, images: Tensor) -> float:
    """Between the logits of the two without noise; taken on the CPU, since a GPU rounds convolutions to 10 bits."""
    with noise_off(deepcopy(model).cpu()) as model, noise_off(deepcopy(small).cpu()) as small:
        logits, logits_left = model(images.cpu()), small(images.cpu())
    difference, spread = float((logits - logits_left).abs().max()), float(logits.sub(logits.mean(1, True)).abs().max())
    if not difference <= 1e-5 * max(spread, 1.0) + float(ulp(logits).max()):  # so written, it holds for nan too
        raise RuntimeError(f"the compact network is wrong: its logits differ by up to {difference:g}, where they lie "
                           f"up to {spread:g} from their mean")
    return difference


def _file(model: nn.Module) -> bytes:
    """The weights and buffers as a safetensors file; what has several names is in it once."""
    if odd := [name for name, t in model.state_dict().items() if not isinstance(t, Tensor)]:
        raise UserError(f"the size of {odd[0]} is not known here, since it is no tensor")
    held = {(t.data_ptr(), t.shape): (name, t) for name, t in reversed(model.state_dict().items())}
    return files.packed(dict(reversed(held.values())))


def step_costs(runs: dict[str, Run], image_shape: tuple[int, int, int], classes: int, repeats: int = 10) -> dict:
    """Name to what one step of training costs, on a batch of random images (batch_size, *image_shape): `seconds`, the
    least of `repeats`, which other work on the machine disturbs least, the runs taking turns; and `kept_bytes`, the
    most that is kept at a time for a backward pass, the weights themselves aside. Networks begin untrained; of runs
    that start from another only the network is built."""
    chance = stream(0, "step costs", device=device())
    jobs, kept = {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        with global_seed(0, "step costs"):
            model = run.model.build(image_shape, classes)
            layout = fastest_layout(model, device())
            model = model.to(device(), memory_format=layout).train()  # type: ignore[call-overload]  # not in its stubs
            images = torch.rand(run.recipe.batch_size, *image_shape).to(device(), memory_format=layout)
        labels = (torch.arange(len(images)) % classes).to(device())
        jobs[name] = TrainingState(run, model, ()), images, labels
    for number in range(WARM_UP + repeats):
        for name, (job, images, labels) in jobs.items():
            begun, watch = time.perf_counter(), Kept(job.model)
            if number:
                job.step(job.run.objective, images, labels, chance, 1e-3).cpu()  # which waits for a GPU to finish
                seconds[name].append(time.perf_counter() - begun)
            else:
                with torch.autograd.graph.saved_tensors_hooks(watch.pack, watch.unpack):
                    job.step(job.run.objective, images, labels, chance, 1e-3)
                kept[name] = watch.peak
    return {name: {"seconds": min(taken[WARM_UP - 1:]), "kept_bytes": kept[name]}
            for name, taken in seconds.items()}


class Kept:
    """Watches, as hooks of autograd, how many bytes are kept for backward passes: `peak` is the most at a time. What is
    kept several times over counts once, the parameters of `model` not at all."""

    def __init__(self, model: nn.Module):
        self.spared = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.holders: Counter[int] = Counter()  # by address of what is kept
        self.bytes, self.peak = 0, 0

    def pack(self, tensor: Tensor) -> "_Held":
        return _Held(self, tensor)

    def unpack(self, held: "_Held") -> Tensor:
        return held.tensor


class _Held:
    def __init__(self, watch: Kept, tensor: Tensor):
        storage = tensor.untyped_storage()
        self.watch, self.tensor, self.key, self.size = watch, tensor, storage.data_ptr(), storage.nbytes()
        if self.key in watch.spared:
            self.size = 0
        if not watch.holders[self.key]:
            watch.bytes += self.size
            watch.peak = max(watch.peak, watch.bytes)
        watch.holders[self.key] += 1

    def __del__(self):
        self.watch.holders[self.key] -= 1
        if not self.watch.holders[self.key]:
            self.watch.bytes -= self.size
