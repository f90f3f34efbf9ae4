"""The command line: `sparserobust --help`."""

import argparse
import sys

from sparserobust import __version__
from sparserobust.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a mistake of the user is one line on standard error and exit code 1."""
    parser = argparse.ArgumentParser(prog="sparserobust", description="Five papers on pruning and adversarial "
                                     "robustness, as notebooks that run.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    command = commands.add_parser("run", help="execute one notebook")
    command.add_argument("notebook", help="its name, such as 01_fk_resnet")
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="set a parameter, such as -p scale laptop")
    command.add_argument("-o", "--output", help="where the executed copy goes (default: build/<scale>/)")

    command = commands.add_parser("reproduce", help="execute all notebooks, then print the claims ledger")
    command.add_argument("--scale", default="quick")

    command = commands.add_parser("compute", help="train and measure what all notebooks need, and execute none")
    command.add_argument("--scale", default="quick")

    command = commands.add_parser("ledger", help="print the claims ledger of a scale")
    command.add_argument("--scale", default="quick")

    command = commands.add_parser("publish", help="copy the records of a scale's runs into data/published")
    command.add_argument("--scale", required=True)

    command = commands.add_parser("data", help="fetch and check data sets")
    command.add_argument("name", nargs="+", help="such as cifar10")

    command = commands.add_parser("refresh", help="execute the committed notebooks anew, in place")

    chosen = parser.parse_args(arguments)
    try:
        globals()[f"_{chosen.command}"](chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept, the others go on from their last epoch", file=sys.stderr)
        return 130
    return 0


def _run(chosen) -> None:
    from sparserobust import batch

    print(f"executed: {batch.run(chosen.notebook, dict(chosen.parameter), chosen.output)}")


def _reproduce(chosen) -> None:
    from sparserobust import batch, scales

    scales.check(chosen.scale)  # a misspelt scale should not cost the start of a kernel
    lines = batch.reproduce(batch.names(), chosen.scale)
    _ledger(chosen)
    print("\nwhere to look:", *lines, sep="\n  ")


def _ledger(chosen) -> None:
    from sparserobust import artifacts, claims

    ledger = artifacts.ledger(chosen.scale)
    for notebook, rows in ledger.groupby("notebook"):
        known = rows["low"].notna() & (rows["n_seeds"] > 1)
        effect = [f"{row.ours:+.3g}" + (f" [{row.low:+.3g}, {row.high:+.3g}]" if spread else "") + f" {row.unit}"
                  if row.n_seeds else "" for row, spread in zip(rows.itertuples(), known, strict=True)]
        told = rows[["claim", "reported"]].assign(ours=effect, n=rows["n_seeds"], verdict=rows["verdict"],
                                                  where=rows["where"].str.removeprefix(f"{notebook}, "))
        print(f"\nclaims of {notebook}, scale {chosen.scale}:")
        print(told.astype(object).fillna("").to_string(index=False))
    print(f"\n{len(ledger)} comparisons in figures/{chosen.scale}/claims.csv:")
    for notebook, counts in claims.standing({chosen.scale: ledger})[chosen.scale].items():
        print(f"  {notebook}: {counts}")


def _compute(chosen) -> None:
    from sparserobust import batch, papers

    batch.compute(list(papers.modules()), chosen.scale)


def _publish(chosen) -> None:
    from sparserobust import papers
    from sparserobust.runs import Store

    wanted = {row["run"].identity: row["run"] for experiment in papers.experiments(chosen.scale).values()
              for row in experiment.grid}
    written = Store().publish(list(wanted.values()), chosen.scale)
    print(f"{len(written)} records in {written[0].parent}: commit them, and every figure redraws from them")


def _data(chosen) -> None:
    from sparserobust import data

    for name in chosen.name:
        splits = data.load(name)
        print(f"{name}: {len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test "
              f"images of shape {splits.image_shape}")


def _refresh(chosen) -> None:
    from sparserobust import batch

    for name in batch.names():
        print(f"{batch.refresh(name).name}: executed and written in place")


if __name__ == "__main__":
    sys.exit(main())
