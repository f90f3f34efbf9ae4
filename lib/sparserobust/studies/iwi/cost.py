"""What training took: passes forward and backward over the training images, each counted by the
multiply-accumulates of its network, with all that a network begins with."""

import pandas

from sparserobust import data
from sparserobust.analysis.cost import macs
from sparserobust.config import Run
from sparserobust.running.experiment import Results
from sparserobust.studies.iwi.report import method_name, network_name, of_inheritance, watched
from sparserobust.studies.iwi.runs import EQUAL, FROM_NATURAL, IWI


class Costs:
    """Costs of runs, in passes of the dense network of their kind: by multiply-accumulates for one
    image. Zeros count in full, since no processor here skips them."""

    def __init__(self, results: Results):
        runs = {row["run"].identity: row["run"] for row in results.experiment.grid}
        measured = results.frame[results.frame["metric"] == "macs"].set_index("run")["value"]
        self._macs = {runs[run].model.identity: float(n) for run, n in measured.items()}
        self.wide = {row["net"]: row["run"] for row in results.experiment.rows(part="dense")}

    def macs(self, run: Run) -> float:
        """Of a run's network; counted here if nobody has measured them, as where a run is known by
        what others began with it."""
        if run.model.identity not in self._macs:
            shape = data.image_shape(run.data)
            self._macs[run.model.identity] = macs(
                run.model.build(shape, data.classes(run.data)), shape)
        return self._macs[run.model.identity]

    def epoch(self, run: Run, net: str) -> float:
        """Of one epoch of a run."""
        return run.objective.cost * self.macs(run) / self.macs(self.wide[net])

    def whole(self, run: Run, net: str) -> float:
        """Of a run and all it begins with."""
        return sum(r.recipe.trained_epochs * self.epoch(r, net) for r in run.lineage)


def table(results: Results) -> pandas.DataFrame:
    """A line per network and method of Table 3, means over seeds: passes, and seconds, of the run
    and all it begins with."""
    costs, experiment = Costs(results), results.experiment
    means = pandas.DataFrame([
        {"line": network_name(row), "passes": costs.whole(row["run"], row["net"]),
         "seconds": sum(results.store.seconds(run) for run in row["run"].lineage)}
        for row in experiment.grid if of_inheritance(row, experiment)
    ]).groupby("line", sort=False).mean()
    return means.assign(passes=means["passes"].map("{:.1f}".format),
                        seconds=means["seconds"].map("{:.0f}".format))


def curves(results: Results) -> pandas.DataFrame:
    """Figure 3: accuracy under attack on the validation split (`value`) after every epoch, against
    what training took until then (`cost`), what came before it included, by `method` and `seed`;
    of the first network."""
    costs, experiment, attacked = Costs(results), results.experiment, watched(results)
    drawn, rows = ("AT", *EQUAL.values(), *IWI.values(), FROM_NATURAL), []
    for row in experiment.rows(net=experiment.nets[0], retraining="adversarial"):
        run, net = row["run"], row["net"]
        if of_inheritance(row, experiment) and method_name(row) in drawn:
            before = costs.whole(run, net) - costs.epoch(run, net) * run.recipe.trained_epochs
            rows += [{"method": method_name(row), "seed": row["seed"], "epoch": epoch,
                      "cost": before + costs.epoch(run, net) * epoch, "value": value}
                     for epoch, value in attacked.get(run.identity, {}).items()]
    return pandas.DataFrame(rows)
