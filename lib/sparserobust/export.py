"""Networks as files for other programs: safetensors with a card that says what they are, and ONNX."""

import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparserobust import data, files, sparsity
from sparserobust.config import Model, Run
from sparserobust.errors import UserError, quoted
from sparserobust.models import is_noisy
from sparserobust.models.compact import plain_copy
from sparserobust.models.removal import Trial, spread
from sparserobust.models.winners import KWinners
from sparserobust.provenance import commit
from sparserobust.seeding import global_seed, stream

FORMAT = 1  # of the card
TRIED = 3  # random images on which a network and its ONNX file have to answer alike, beside a dark and a bright one
TOLERANCE = 1e-4  # how far the answers may be apart, as a share of how far the logits of an image are (`spread`)


def save(model: nn.Module, path: Path | str, card: dict, run: Run | None = None) -> tuple[Path, Path]:
    """Write the weights and buffers to NAME.safetensors and the card to NAME.json, and return both paths; `path` is
    NAME, with or without `.safetensors`. Masks and parametrisations are multiplied into the weights.

    `card` says under `licence` what may be done with the weights; beside it may stand what was measured, with its
    counts, and whatever else a reader should know. Added are `run`, the settings of the run that the network came out
    of, if it is given; counts of parameters; versions; `load`, the lines that load it again; and hashes of the weights
    and of the card.

    `UserError` for a card without a licence, with a number that is not finite or with a key that is added here, and for
    a run that the weights do not fit, and what `plain_copy` does not know."""
    weights, about = _paths(path)
    if not isinstance(card, dict) or not card.get("licence"):
        raise UserError("say in the card what may be done with the weights, such as card={'licence': 'MIT'}")
    net = plain_copy(model)
    lines = ["import sparserobust as sr", f"model = ...  # a network of class {type(net).__name__}",
             f"model = sr.export.load({weights.name!r}, into=model)"]
    added: dict[str, Any] = {}
    if run is not None:
        splits = data.load(run.data)
        added = {"run": run.plain(), "identity": run.identity, "image_shape": list(splits.image_shape),
                 "classes": len(splits.classes)}
        _fill(_built(added), net.state_dict(), f"the run {run.identity}")
        lines[1:] = [f"model = sr.export.load({weights.name!r})",
                     "logits = model(images)  # images (n, c, h, w) in [0, 1] to logits (n, classes)"]
    rows = all(p.is_contiguous() for p in net.parameters())
    added |= {
        "format": FORMAT, "network": type(net).__name__,
        "memory_format": "contiguous_format" if rows else "channels_last",
        "parameters": sparsity.parameters(net), "remaining_parameters": sparsity.remaining_parameters(net),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "commit": commit()},
        "load": lines, "weights": weights.name, "weights_sha256": ""}
    if taken := sorted(added.keys() & card.keys()):
        raise UserError(f"'{taken[0]}' is written into the card by itself: leave it out")
    files.sealed(card, "the card")  # before anything is written
    tensors = net.state_dict()
    if odd := [name for name, t in tensors.items() if not isinstance(t, torch.Tensor)]:
        raise UserError(f"{odd[0]} of the network is no tensor, and what is stored are tensors: leave get_extra_state "
                        "out of it")
    files.save_tensors(weights, {name: t.clone() for name, t in tensors.items()})
    files.write_json(about, files.sealed(card | added | {"weights_sha256": files.sha256(weights)}, "the card"))
    return weights, about


def load(path: Path | str, into: nn.Module | None = None) -> nn.Module:
    """The network that `save` wrote, bit for bit, on the CPU in eval mode: built from the settings of its run, or else
    with its weights put `into` a network that was built as it was. `Corrupt` if a file is missing or was altered;
    `UserError` if there is nothing to put the weights into, or they do not fit."""
    if into is not None and not isinstance(into, nn.Module):
        raise UserError(f"weights are put into a network that was built, a torch.nn.Module, not into {quoted(into)}")
    weights, about = _paths(path)
    card = files.check_seal(files.read_json(about), about)
    if card.get("format") != FORMAT:
        raise UserError(f"{about} has format {card.get('format')}, this library reads format {FORMAT}")
    if files.sha256(weights) != card["weights_sha256"]:
        raise files.Corrupt(f"{weights} is not what {about.name} speaks of")
    if into is None and "run" not in card:
        raise UserError(f"{weights} did not come out of a run: build a {card['network']} as it was, and load into it")
    model = _fill(_built(card) if into is None else into, files.load_tensors(weights)[0], weights)
    for t in (*model.parameters(), *model.buffers()):
        if t.dim() == 4:  # torch knows no such layout of five dimensions
            t.data = t.data.to(memory_format=getattr(torch, card["memory_format"]))
    return model.eval()


def onnx(model: nn.Module, path: Path | str, image_shape: tuple[int, int, int]) -> Path:
    """Write the network in eval mode as ONNX, images (n, c, h, w) of any number to logits (n, classes), single
    precision, and return the path. It is run on random images before: `RuntimeError` if it does not answer as the
    network does. `UserError` without the extra `onnx`, for a network that answers at random or not with finite logits,
    for k-winners, and for what ONNX does not know."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # which PyTorch needs
    except ImportError as error:
        raise UserError(f"writing ONNX needs {error.name}: pip install 'sparserobust[onnx]'") from None
    net = plain_copy(model).to("cpu", torch.float32).eval()
    if is_noisy(net):
        raise UserError("a noisy network is not written as ONNX, which would draw other noise: write it inside "
                        "`with sr.models.noise_off(model)`")
    if any(isinstance(layer, KWinners) for layer in net.modules()):
        raise UserError("k-winners are not written as ONNX: rounded in another way, others would win")
    Trial(net, image_shape)
    images = torch.rand(TRIED, *image_shape, generator=stream(0, "onnx"))
    images = torch.cat([images, images[:1] / 8, 1 - images[:1] / 8])
    try:
        with torch.no_grad():
            expected = net(images)
        written = torch.onnx.export(net, (images,), dynamo=True, verbose=False, input_names=["images"],
                                    output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("n")},))
        content = written.model_proto.SerializeToString()  # type: ignore[union-attr]
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # a network from elsewhere may stop it in any way
        raise UserError(f"{type(net).__name__} cannot be written as ONNX ({type(error).__name__}: "
                        f"{quoted(str(error))})") from error
    for count in (len(images), 1):
        logits = torch.from_numpy(session.run(None, {"images": images[:count].numpy()})[0])
        difference = float((logits - expected[:count]).abs().max())
        if not difference <= spread(expected, TOLERANCE):  # so written, it holds for nan too
            raise RuntimeError(f"the ONNX file of {type(net).__name__} is wrong: its logits differ by up to "
                               f"{difference:g}")
    files.write(Path(path), content)
    return Path(path)


def _paths(path: Path | str) -> tuple[Path, Path]:
    """Of the weights and of the card."""
    path = Path(path)
    name = path.name.removesuffix(".safetensors")
    return path.with_name(f"{name}.safetensors"), path.with_name(f"{name}.json")


def _built(card: dict) -> nn.Module:
    """The network of a run, without its weights."""
    with global_seed(0, "export"):
        return Model.parse(card["run"]["model"]).build(tuple(card["image_shape"]), card["classes"])


def _fill(model: nn.Module, weights: dict[str, torch.Tensor], what: object) -> nn.Module:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{type(model).__name__} does not fit the weights of {what}: "
                        f"{quoted(' '.join(str(error).split()))}") from None
    return model
