"""What the last page shows of the networks that it judges."""

from collections.abc import Callable, Mapping

import pandas
import torch
from torch import Tensor, nn

from sparserobust import data, paths
from sparserobust.analysis import Deployable
from sparserobust.analysis.masking import MEANS
from sparserobust.auditing import audit
from sparserobust.errors import UserError
from sparserobust.inputs import Function
from sparserobust.models.compact import plain_copy
from sparserobust.reporting.audits import Report, beside
from sparserobust.running.experiment import Results
from sparserobust.studies.your_network.runs import ADVERSARIAL, AUDIT, NATURAL

MASKED = "with masked gradients"
LEVELS, SHARPNESS = 4, 1e4  # of pixels, and of logits, in the network that is masked
REMOVED = {"parameters": "parameters", "multiply-accumulates": "macs", "file [bytes]": "bytes"}
MACHINE = ("latency [ms]",)  # lines that differ from machine to machine


class Masked(nn.Module):
    """A network whose pixels are rounded to `LEVELS` steps and whose logits are multiplied by `SHARPNESS`: nearly the
    same answers, and no gradient."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor] = lambda x: (x * LEVELS).round() / LEVELS,
                 after: Callable[[Tensor], Tensor] = lambda logits: SHARPNESS * logits):
        super().__init__()
        self.net, self.before, self.after = net, Function(before), Function(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def network(results: Results, net: str = ADVERSARIAL) -> nn.Module:
    """A trained network of the first seed, on the CPU."""
    return results.store.model(results.experiment.row(net=net, seed=results.experiment.seeds[0])["run"]).cpu()


def judged(results: Results) -> dict[str, Report]:
    """The audits of the page's own networks, first seed, by how they were trained."""
    own = results.experiment.settings
    found = results.details(AUDIT, seed=results.experiment.seeds[0])
    return {row["net"]: Report(own.audit, result, row["net"], {"architecture": "MobileNetV2", "data": own.data.name})
            for row, result in found}


def masked(results: Results, before: Callable[[Tensor], Tensor] | None = None) -> Report:
    """The audit, taken now, of the network trained as usual with its gradients masked: by `Masked`, or by what
    `before` does to images (n, 1, 8, 8)."""
    own, net = results.experiment.settings, network(results, NATURAL)
    model = Masked(net) if before is None else Masked(net, before, lambda logits: logits)
    return audit(model.eval(), own.data, own.audit.epsilon, own.audit.images, few=own.audit.few,
                 queries=own.audit.queries, autoattack=False, name=MASKED, progress=False)


def yours(results: Results, builder: str, weights: str, data_set: str, epsilon: str) -> dict[str, Report]:
    """The audit of the network that a reader names; none for no name. Where `data_set` or `epsilon` are not given they
    are the page's."""
    if not builder:
        if weights or data_set or epsilon:
            raise UserError("weights, data and epsilon are those of a network: name its builder, too")
        return {}
    own = results.experiment.settings
    report = audit(builder, data_set or own.data, epsilon or own.audit.epsilon, own.audit.images,
                   weights=weights or None, few=own.audit.few, queries=own.audit.queries, name=builder,
                   keep=paths.audits_folder())
    return {builder: report}


def images(results: Results) -> data.Split:
    """Test images of the page: those that an audit asks the dearest questions about."""
    own = results.experiment.settings
    return data.load(own.data).test.sample(own.audit.few)


def flags(reports: Mapping[str, Report]) -> pandas.DataFrame:
    """A line for each flag: of which network, what was found, and what that means."""
    lines = [{"network": name, "flag": flag["kind"], "found": flag["found"], "means": flag["means"]}
             for name, report in reports.items() for flag in report.flags]
    return pandas.DataFrame(lines, columns=["network", "flag", "found", "means"]).set_index("network")


def flags_known() -> pandas.DataFrame:
    """Every flag that an audit can raise, and what it says."""
    return pandas.DataFrame({"flag": MEANS.keys(), "means": MEANS.values()}).set_index("flag")


def verdicts(reports: Mapping[str, Report]) -> str:
    """A sentence for each network."""
    return "\n\n".join(f"*{name}*: {report.verdict()}" for name, report in reports.items())


def sizes(report: Report) -> pandas.DataFrame:
    """What a network weighs, without what differs from machine to machine."""
    return report.size().drop(list(MACHINE), errors="ignore")


def beside_the_others(reports: Mapping[str, Report], scale: str) -> pandas.DataFrame:
    """The rows of table 1 of notebook 06 at a scale, as it was drawn last, and one for each of these networks."""
    drawn = paths.contest_table(scale)
    if not drawn.exists():
        raise UserError(f"{paths.short(drawn)} is not here: run 06_side_by_side at scale {scale} first")
    table = pandas.read_csv(drawn, dtype=str, keep_default_na=False).set_index("method")
    return beside(table, *reports.values())


def halved(net: nn.Module) -> nn.Module:
    """A copy of a MobileNetV2 of which half of the channels within each block are zero: those whose depthwise filter
    has the smallest l1 norm."""
    net = plain_copy(net)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.no_grad():
        for layer, norm, reader in zip(layers, layers[1:], layers[2:], strict=False):
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                gone = layer.weight.abs().flatten(1).sum(1).argsort()[: layer.out_channels // 2]
                layer.weight[gone], reader.weight[:, gone] = 0, 0
                for t in norm.parameters():
                    t[gone] = 0
    return net


def removed(results: Results) -> pandas.DataFrame:
    """What is left of a network when the channels that `halved` has set to zero are really removed (`models.compact`,
    whose logits are compared): parameters, multiply-accumulates, bytes of the weights."""
    found = Deployable(repeats=1)(halved(network(results)), data.load(results.experiment.settings.data))
    return pandas.DataFrame({what: {"channels zero": f"{found[key]:,}", "channels removed": f"{found[f'{key}_left']:,}"}
                             for what, key in REMOVED.items()}).T
