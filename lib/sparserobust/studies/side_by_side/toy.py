"""One network, cut by hand."""

from copy import deepcopy

import pandas
import torch
from torch import Tensor, nn

from sparserobust import data
from sparserobust.running.experiment import Experiment
from sparserobust.seeding import global_seed
from sparserobust.sparsifiers import Magnitude
from sparserobust.sparsity import prunable
from sparserobust.studies.side_by_side.runs import SideBySideSettings

SCOPES = {"magnitude, global": "global", "magnitude, layer by layer": "layerwise"}


def network(experiment: Experiment[SideBySideSettings]) -> nn.Module:
    """The network of the page as it begins, the same at every call."""
    own = experiment.settings
    with global_seed(0, "toy"):
        return own.model.build(data.image_shape(own.data), data.classes(own.data))


def cuts(whole: nn.Module, share: float) -> dict[str, nn.Module]:
    """Copies of a network without that share of its weights, by how the smallest are found."""
    copies = {name: deepcopy(whole) for name in SCOPES}
    for name, copy in copies.items():
        Magnitude(sparsity=share, scope=SCOPES[name]).start(copy)
    return copies


def kept(model: nn.Module) -> Tensor:
    """Which of all weights (n,) are not zero."""
    return torch.cat([weight.detach().flatten() != 0 for weight in prunable(model).values()])


def left_by_layer(whole: nn.Module, share: float) -> pandas.DataFrame:
    """For `plots.layerwise`: what each of the `cuts` (`series`) leaves of each `layer` [%]."""
    return pandas.DataFrame([
        {"series": name, "layer": layer.removeprefix("members.0.").removesuffix(".weight"),
         "value": 100 * float((weight != 0).double().mean())}
        for name, copy in cuts(whole, share).items() for layer, weight in prunable(copy).items()])
