"""The command line: `sparserobust --help`."""

import argparse
import json
import math
import os
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from sparserobust import __version__, files, paths
from sparserobust.errors import UserError, quoted


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the words of a command."""

    def error(self, message: str):
        self.exit(2, f"error: {' '.join(message.split())[:300]}; see {self.prog} --help\n")


def whole(text: str) -> int:
    """A whole number from 1."""
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"should be a whole number from 1, not {quoted(text)}")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"should be a number above 0, not {quoted(text)}")
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Numbers apart by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"should be numbers such as 0.49,0.48,0.45, not {quoted(text)}") from None


FRESH = "train and measure here what is published, too"


def _scale(default: str = "quick") -> str:
    """Help of `--scale`."""
    try:
        from sparserobust.running import scales

        known = ", ".join(scales.names())
    except (UserError, ModuleNotFoundError):  # which any command will say
        known = "those of notebooks/settings/scales.yaml"
    return f"one of {known}" + (f" (default: {default})" if default else "")


KEEPING = {"run", "reproduce", "compute", "evidence", "refresh", "show"}  # commands that keep what they trained


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a mistake of the user is one line on standard error and exit code 1."""
    scale = _scale()
    parser = Parser(prog="sparserobust", description="Five papers on pruning and adversarial robustness, as notebooks "
                    "that run.", formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog="environment variables (docs/variables.md):\n" + "\n".join(
                        f"  {name:26s}{what}" for name, what in paths.DOCUMENTED.items()))
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    command = commands.add_parser("init", help="make a folder to work in, with notebooks and settings, where the "
                                  "library lies in no checkout")
    command.add_argument("folder", help="folder to create; existing files in it are not overwritten")

    command = commands.add_parser("run", help="execute one notebook")
    command.add_argument("notebook", help="its name, such as 01_fk_resnet, or its number")
    command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="set a parameter, such as -p scale laptop")
    command.add_argument("-o", "--output", help="where the executed copy goes (default: build/<scale>/)")
    command.add_argument("--figures", metavar="DIR", help="where figures and tables go (default: figures/, or "
                         "build/figures/ if a parameter other than the scale is set)")

    command = commands.add_parser("reproduce", help="execute all notebooks, then print the claims ledger")
    command.add_argument("--scale", default="quick", help=scale)
    command.add_argument("--redraw", action="store_true", help="also those for which nothing has changed")
    command.add_argument("--fresh", action="store_true", help=FRESH)
    command.add_argument("--figures", metavar="DIR", help="where figures and tables go (default: figures/)")

    command = commands.add_parser("compute", help="train and measure what all notebooks need, and execute none")
    command.add_argument("--scale", default="quick", help=scale)
    command.add_argument("--study", help="only what this study needs, such as iwi")
    command.add_argument("--table", help="only what this table or figure of the study shows, such as 'table 1'")
    command.add_argument("--plan", action="store_true", help="compute nothing: say how much is left to do, how long "
                         "it takes here, how much disk it needs and what is there already")
    command.add_argument("--gpus", type=int, help="with --plan: how long it takes on so many GPUs")
    command.add_argument("--fresh", action="store_true", help=FRESH)

    command = commands.add_parser("ledger", help="print the claims ledger of a scale")
    command.add_argument("--scale", default="quick", help=scale)
    command.add_argument("--readme", action="store_true", help="write them into README.md and docs/results.md, too")
    command.add_argument("--figures", metavar="DIR", help="where the pages were drawn (default: figures/)")

    command = commands.add_parser("publish", help="copy the records of a scale's runs into data/published")
    command.add_argument("--scale", required=True, help=_scale(default=""))
    command.add_argument("--prune", action="store_true",
                         help="remove records from its folder that the scale does not ask for")

    command = commands.add_parser("evidence", help="what each open claim still needs; with --hours, compute it")
    span = command.add_mutually_exclusive_group()
    span.add_argument("--hours", type=positive, help="work for so long, whole units only, at the lowest priority; "
                      "what is finished is published")
    span.add_argument("--minutes", type=positive, help="likewise, in minutes")
    command.add_argument("--workers", type=whole, help="units side by side (default: one per core, or per GPU)")

    for name in ("run", "reproduce", "compute", "evidence"):
        commands.choices[name].add_argument("--scheduler", metavar="WHERE", help="hand the runs to this Dask "
                                            "scheduler: its file, or its address, such as tls://host:8786 (default: "
                                            "worker processes on this machine)")

    _add_cluster(commands.add_parser("cluster", help="schedulers and workers on other machines: see docs/cluster.md"))

    command = commands.add_parser("data", help="fetch and check data sets")
    command.add_argument("name", nargs="+", help="such as cifar10; or one of your own, such as "
                         "my_data.py:name, my_folder/ or my_file.safetensors")

    _add_audit(commands.add_parser("audit", help="audit any network: its robustness, its size, and whether "
                                   "the numbers can be believed"))

    _add_benchmark_row(commands.add_parser("benchmark-row", help="what the Adversarial Pruning Benchmark asks its "
                                           "contributors for, of runs or of a network that comes along"))

    command = commands.add_parser("show", help="one run: settings with defaults, history, every number with its "
                                  "counts, machine; or the runs of a study")
    command.add_argument("run", nargs="?", help="its identity, such as c347900f026e, or how that begins")
    command.add_argument("--scale", default="quick", help=scale)
    command.add_argument("--study", help="in place of an identity: the runs of this study, such as rsr")
    command.add_argument("-l", "--label", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="only its runs with this label, such as -l seed 0; may be given several times")
    command.add_argument("--again", action="store_true", help="compute every number anew, in a store of its own, and "
                         "show both")

    command = commands.add_parser("networks", help="list the trained networks that are included")
    command.add_argument("--export", metavar="FOLDER", help="write each into a folder there, as model hubs lay it out: "
                         "config.json, model.safetensors, README.md")

    _add_teaching(commands)

    command = commands.add_parser("refresh", help="execute the committed notebooks anew, in place")

    chosen = parser.parse_args(arguments)
    try:
        _check(sys.argv[1:] if arguments is None else arguments, chosen)
        globals()[f"_{chosen.command.replace('-', '_')}"](chosen)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        print(f"error: this command needs {error.name}, which is not installed here: pip install 'sparserobust[lab]'",
              file=sys.stderr)
        return 1
    except (UserError, OSError) as error:  # an OSError says which file, and what is the matter with it
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as end:
        from sparserobust.running.progress import INTERRUPTED

        notes = getattr(end, "__notes__", [])
        lost = notes[-1] if notes else "interrupted: what was not written yet is lost"  # an audit says what it keeps
        if INTERRUPTED not in notes:  # else the sweep's bar has ended with that line
            print(INTERRUPTED if chosen.command in KEEPING else lost, file=sys.stderr)
        return 130
    return 0


def _check(words: list[str], chosen: argparse.Namespace) -> None:
    """What all commands have in common, before anything is made or read; kernels and workers inherit the environment,
    and start in other folders."""
    from sparserobust.running import cluster, scales

    for word in words:
        if re.search(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", word):
            raise UserError(f"an argument contains characters that are not valid text: {quoted(word)}")
    for name in paths.VARIABLES:
        if folder := os.environ.get(name):
            os.environ[name] = str(Path(folder).absolute())
    if hasattr(chosen, "scale"):
        scales.check(chosen.scale)
    where = getattr(chosen, "scheduler", None)
    if where == "":
        raise UserError("--scheduler should be the file of a scheduler, or its address, such as tls://host:8786")
    if where := where or cluster.given():
        os.environ[cluster.ADDRESS] = where if "://" in where else str(Path(where).absolute())


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    """The commands of `sparserobust cluster`."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="part")

    part = parts.add_parser("certificates", help="create, once, the certificate by which this user's schedulers, "
                            "workers and drivers authenticate")
    part.set_defaults(do=_cluster_certificates)

    part = parts.add_parser("scheduler", help="start a scheduler, here")
    part.add_argument("file", help="the file to write, by which workers and drivers find it")
    part.add_argument("--host", help="address of this machine to listen at (default: all that it has)")
    part.add_argument("--port", type=int, default=0, help="(default: any that is free)")
    part.add_argument("--idle-timeout", type=float, metavar="MINUTES", help="end after so long without work "
                      "(default: never)")
    part.set_defaults(do=_cluster_scheduler)

    part = parts.add_parser("workers", help="start worker processes, here: one per GPU, or else per core")
    part.add_argument("file", help="of the scheduler; or its address")
    part.add_argument("--count", type=int, help="so many in place of one per GPU or core")
    part.add_argument("--per-gpu", type=int, default=1, metavar="N", help="workers that share a GPU: small runs do not "
                      "fill one")
    part.set_defaults(do=_cluster_workers)

    _add_slurm(parts)
    _add_kubernetes(parts)


def _add_slurm(parts) -> None:
    part = parts.add_parser("slurm", help="write a job array of workers for SLURM; with --submit, hand it to sbatch")
    part.add_argument("--gpus", type=int, help="elements of the array, each with one GPU")
    part.add_argument("--cpus", type=int, help="likewise, each with one core and no GPU")
    part.add_argument("--time", default="4:00:00", help="limit of each element, as sbatch takes it (default: 4:00:00)")
    part.add_argument("--partition", help="default: the cluster's")
    part.add_argument("--workers-per-gpu", type=int, default=1, metavar="K", help="runs that share a GPU (default: 1)")
    part.add_argument("--sbatch", action="append", default=[], metavar="OPTION",
                      help="a further option of sbatch, such as --sbatch account=abc; may be given several times")
    part.add_argument("--idle-timeout", type=float, default=10, metavar="MINUTES",
                      help="the array ends when there has been nothing to do for so long (default: 10)")
    part.add_argument("--folder", help="where script, scheduler file and logs lie; all nodes must see it (default: "
                      "cluster/ beside the data sets)")
    part.add_argument("--submit", action="store_true", help="hand the script to sbatch")
    part.set_defaults(do=_cluster_slurm)


def _add_kubernetes(parts) -> None:
    part = parts.add_parser("kubernetes", help="print a manifest of a scheduler and workers (checked by schema only)")
    part.add_argument("--image", required=True, help="container image in which sparserobust is installed")
    part.add_argument("--volume", required=True, metavar="CLAIM", help="claim of a volume that all nodes may write")
    part.add_argument("--gpus", type=int, required=True, help="pods of workers, each with one GPU")
    part.add_argument("--workers-per-gpu", type=int, default=1, metavar="K", help="runs that share a GPU (default: 1)")
    part.set_defaults(do=_cluster_kubernetes)


def _add_audit(command) -> None:
    command.add_argument("network", help="what builds it, such as my_net.py:build or "
                         "'torchvision.models:resnet18(num_classes=10)'")
    command.add_argument("--weights", metavar="FILE", help="safetensors, or what torch.save wrote")
    command.add_argument("--data", default="cifar10", help="a data set by name, or one of your own (default: cifar10)")
    command.add_argument("--epsilon", default="8/255", metavar="RADIUS", help="(default: 8/255)")
    command.add_argument("--norm", default="linf", help="linf or l2 (default: linf)")
    command.add_argument("--images", type=whole, default=1000, help="test images, drawn at random (default: 1000)")
    command.add_argument("--few", type=whole, default=100, help="of these for the costly measurements: accuracy "
                         "against radius, distances, the certificate (default: 100)")
    command.add_argument("--queries", type=whole, default=1000, help="query budget of the Square attack, per image "
                         "(default: 1000)")
    command.add_argument("--no-autoattack", action="store_true", help="skip AutoAttack, the most expensive attack")
    for name in ("mean", "std"):
        command.add_argument(f"--{name}", type=numbers, default=(), metavar="A,B,C", help="of the images that the "
                             "network expects, channel by channel, for pixels in [0, 1]")
    command.add_argument("--name", help="what the network is called (default: after its file)")
    command.add_argument("-o", "--output", metavar="FOLDER", help="where NAME.html and NAME.json go, or NAME-2 and "
                         "so on beside another audit's, and the attacks that an interrupted audit has finished "
                         "(default: build/audits)")


def _add_benchmark_row(command) -> None:
    command.add_argument("run", nargs="?", help="the identity of a run that the scale asks for, such as c347900f026e")
    command.add_argument("--scale", default="quick", help=_scale())
    command.add_argument("--study", help="only what this study runs, such as side_by_side")
    command.add_argument("-l", "--label", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="only its runs with this label, such as -l method lasso; may be given several times")
    command.add_argument("--network", metavar="NAME", help="in place of runs, a network that comes along, such as "
                         "lasso")
    command.add_argument("--images", type=whole, help="test images, at most 10,000 (default: as many as "
                         "AutoAttack gets at the scale)")
    command.add_argument("-o", "--output", metavar="FOLDER", help="where NAME.json and NAME.md go (default: "
                         "build/benchmark)")
    command.set_defaults(table=None)


def _add_teaching(commands) -> None:
    """The two commands of docs/teaching.md."""
    command = commands.add_parser("handout", help="a page for a class, without outputs and solutions, and the "
                                  "teacher's edition, as an nbgrader course")
    command.add_argument("notebook", help="its name, such as 04_sparsity_theory, or its number")
    command.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the course: the page goes into its "
                         "release/, the teacher's edition into source/")

    command = commands.add_parser("grade", help="run the checks over a folder of submissions: who solved what (Linux)")
    command.add_argument("folder", help="with files NAME.ipynb or folders NAME, or an nbgrader course with submitted/")
    command.add_argument("--page", help="which page was handed out (default: what most submissions say)")
    command.add_argument("--seconds", type=positive, default=60, help="time limit of a cell; a submission gets three "
                         "times as long (default: 60)")
    command.add_argument("--memory", type=positive, default=2, metavar="GB", help="memory limit of a submission, in "
                         "addition to the page's own (default: 2)")
    command.add_argument("--workers", type=whole, help="submissions side by side (default: one per core)")
    command.add_argument("--no-sandbox", action="store_true", help="where the system has none: submissions can then do "
                         "whatever you can")
    command.add_argument("-o", "--output", metavar="FILE", help="where the table goes, with the checks' words "
                         "(default: grades.csv in the folder)")


def _benchmark_row(chosen) -> None:
    from sparserobust import networks, studies
    from sparserobust.reporting import pruning_benchmark
    from sparserobust.running.store import Store

    folder = paths.writable(Path(chosen.output) if chosen.output else paths.build_folder() / "benchmark")
    store, of_run, of_network = Store(), pruning_benchmark.of_run, pruning_benchmark.of_network
    if chosen.network is None:
        entries = [of_run(run, store, chosen.images or usual) for run, usual in _benchmark_runs(chosen)]
    elif chosen.run or chosen.study or chosen.label:
        raise UserError("--network names an included network and cannot be combined with a run, --study or --label")
    else:
        card = networks.card(chosen.network)
        experiment = studies.modules()[card["study"]].experiment(card["scale"])
        usual = pruning_benchmark.usual_images(experiment.measurements.values())
        entries = [of_network(chosen.network, store, chosen.images or usual)]
    text = pruning_benchmark.markdown(entries)
    print(text)
    name = entries[0]["name"] if len(entries) == 1 else chosen.study
    for ending, content in (("json", json.dumps(entries, indent=1, allow_nan=False)), ("md", text)):
        files.write(folder / f"{name}.{ending}", f"{content}\n".encode())
    print(f"\nwritten: {folder / name}.json and .md")


def _labels(given: list[list[str]]) -> dict[str, str]:
    """Of --label. `UserError` if a name has two values: no run has both."""
    for name, value in (labels := dict(given)).items():
        if others := [other for label, other in given if label == name and other != value]:
            raise UserError(f"label {quoted(name)} is given as {quoted(others[0])} and as {quoted(value)}: no run has "
                            "both")
    return labels


def _benchmark_runs(chosen) -> list[tuple]:
    """The runs that are meant, each once, and how many images AutoAttack usually gets with them. `UserError` where none
    is."""
    from sparserobust.reporting.pruning_benchmark import usual_images
    from sparserobust.running import scales

    if not (chosen.run or chosen.study):
        raise UserError("say which runs: by identity, by --study and --label, or --network for one that comes along")
    wanted = _labels(chosen.label)
    found: dict[str, tuple] = {}
    for name, experiment in _chosen_experiments(chosen).items():
        if chosen.study:
            scales.checked([wanted], experiment.grid, f"{name} at scale {chosen.scale}")
        for row in experiment.grid:
            if (chosen.run in (None, row["run"].identity)
                    and all(str(row.get(label)) == value for label, value in wanted.items())):
                found.setdefault(row["run"].identity, (row["run"], usual_images(experiment.measurements.values())))
    if not found:
        raise UserError(f"scale {chosen.scale} asks for no such run: sparserobust compute --plan lists its studies")
    return list(found.values())


def _audit(chosen) -> None:
    from sparserobust.auditing import audited

    folder = paths.writable(Path(chosen.output) if chosen.output else paths.audits_folder())
    report, kept = audited(chosen.network, chosen.data, chosen.epsilon, chosen.images, weights=chosen.weights,
                           mean=chosen.mean, std=chosen.std, name=chosen.name, norm=chosen.norm, few=chosen.few,
                           queries=chosen.queries, autoattack=not chosen.no_autoattack, keep=folder)
    written = report.save(folder)
    kept.forget()
    print(report)
    print("\nwritten:", *written)


def _cluster(chosen) -> None:
    chosen.do(chosen)


def _cluster_certificates(chosen) -> None:
    from sparserobust.running import cluster

    made = cluster.make_certificates(cluster.certificates_folder())
    print(f"made {' and '.join(map(str, made))}: copy this folder to each machine that takes part, and to nobody else")


def _cluster_scheduler(chosen) -> None:
    from sparserobust.running import cluster

    cluster.run_scheduler(chosen.file, chosen.host, chosen.port, chosen.idle_timeout)


def _cluster_workers(chosen) -> None:
    from sparserobust.running import cluster

    cluster.run_workers(chosen.file, chosen.count, chosen.per_gpu)


def _cluster_slurm(chosen) -> None:
    from sparserobust.running import cluster, slurm

    array = slurm.Array(chosen.gpus, chosen.cpus, chosen.time, chosen.partition, chosen.workers_per_gpu,
                        tuple(chosen.sbatch), chosen.idle_timeout)
    cluster.security()  # not found out by a job that has waited for hours
    script = array.write(chosen.folder and Path(chosen.folder))
    job = slurm.submit(script) if chosen.submit else "JOB"
    file = shlex.quote(str(slurm.scheduler_file(script, job)))
    print(f"submitted as job {job}: squeue --me shows it, scancel {job} ends it" if chosen.submit
          else f"written: {script}; sbatch hands it in, and says the number of its JOB")
    print(f"until [ -s {file} ]; do sleep 5; done; sparserobust compute --scale paper --scheduler {file}")


def _cluster_kubernetes(chosen) -> None:
    from sparserobust.running import cluster, kubernetes

    manifest = kubernetes.Manifest(chosen.image, chosen.volume, chosen.gpus, chosen.workers_per_gpu)
    print(manifest.text(str(cluster.certificates_folder())), end="")


def _init(chosen) -> None:
    made = paths.init(Path(chosen.folder))
    print(f"{len(made)} files written: go there by cd {shlex.quote(chosen.folder)}, then sparserobust run 00 or "
          f"jupyter lab notebooks; data sets and trained runs lie in {paths.data_folder()}")


def _run(chosen) -> None:
    from sparserobust import notebook_runner
    from sparserobust.reporting import artifacts

    names = [name for name, _ in chosen.parameter]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"parameter {quoted(twice[0])} is given twice")
    given, page = dict(chosen.parameter), notebook_runner.find(chosen.notebook).stem
    scale, as_it_stands = given.get("scale", "quick"), given.keys() <= {"scale"}
    with paths.figures_in(_figures(chosen.figures) if as_it_stands or chosen.figures else None):
        copy = notebook_runner.run(chosen.notebook, given, chosen.output)
        artifacts.write_ledger(scale)
        print(f"executed: {copy}, figures and tables in {paths.short(paths.figures_folder(scale, page))}/")


def _reproduce(chosen) -> None:
    from sparserobust import freshness, notebook_runner
    from sparserobust.reporting import artifacts
    from sparserobust.running import scales

    names = notebook_runner.names()
    with paths.figures_in(_figures(chosen.figures)):
        lines = notebook_runner.reproduce(names, chosen.scale, chosen.redraw, chosen.fresh)
        artifacts.write_ledger(chosen.scale)
        _tell_ledger(chosen.scale)
        print("\nwhere to look:", *lines, sep="\n  ")
        made = [name for name in names if scales.has(chosen.scale, name.split("_", 1)[1])]
        print("", *freshness.compared(made, chosen.scale), sep="\n")


def _figures(given: str | None, written: bool = True) -> Path | None:
    """Where a scale as it stands is drawn: `given`, or what the environment says (None), or `figures/` of the project;
    if that is to be written and cannot be, where all else is drawn (None)."""
    if given:
        return Path(given)
    if os.environ.get("SPARSEROBUST_FIGURES"):
        return None
    folder = paths.committed_figures()
    try:
        return paths.writable(folder) if written else folder
    except UserError:
        print(f"{folder} cannot be written: figures and tables go to {paths.build_folder() / 'figures'}")
        return None


def _ledger(chosen) -> None:
    from sparserobust import evidence
    from sparserobust.reporting import artifacts, claims

    with paths.figures_in(_figures(chosen.figures, written=False)):
        _tell_ledger(chosen.scale)
        if chosen.readme:
            told = artifacts.told_elsewhere()
            told["docs/results.md"]["effort"] = evidence.effort_table()
            for name, parts in told.items():
                text = (paths.PROJECT / name).read_text(encoding="utf-8")
                for part, made in parts.items():
                    text = claims.with_part(text, part, made)
                files.write(paths.PROJECT / name, text.encode())
                print(f"{name}: its {' and '.join(parts)} are written anew")


def _tell_ledger(scale: str) -> None:
    from sparserobust.reporting import artifacts, claims

    lines = artifacts.ledger(scale)
    for notebook, rows in lines.groupby("notebook"):
        print(f"\n{notebook}, scale {scale}:")
        for verdict in claims.SHORT:
            for row in rows[rows["verdict"] == verdict].to_dict("records"):
                print(f"  {verdict:14s} {claims.sentence(row)}")
    folder = paths.short(paths.figures_folder(scale, "."))
    print(f"\n{len(lines)} claims in {folder}/: each page's ledger.csv has all numbers, its claims.csv all comparisons")
    for notebook, counts in claims.verdict_counts({scale: lines})[scale].items():
        print(f"  {notebook}: {counts}")


def _compute(chosen) -> None:
    from sparserobust.running import forecast, sweep
    from sparserobust.running.progress import duration
    from sparserobust.running.store import Store

    if chosen.gpus is not None and not chosen.plan:
        raise UserError("--gpus goes with --plan: workers are on GPUs where there are some")
    experiments = _chosen_experiments(chosen)
    store = Store(use_published=not chosen.fresh)
    if chosen.plan:
        for line in forecast.told(experiments, store, chosen.gpus):
            print(line)
        return
    grid = [{"paper": name} | row for name, experiment in experiments.items() for row in experiment.grid]
    jobs, begun = sweep.missing(grid, {}, store), time.monotonic()
    runs = forecast.untrained(jobs, store)
    try:
        sweep.compute(grid, {}, store)
    finally:
        if jobs:
            seconds = forecast.spent(jobs, runs, store)
            print(f"it took {duration(time.monotonic() - begun)}, and {duration(seconds)} by all processes together")


def _chosen_experiments(chosen) -> dict:
    """What to compute, by study. `UserError` for a study or table that there is not."""
    from sparserobust import studies
    from sparserobust.settings import unknown

    experiments = studies.experiments(chosen.scale)
    if chosen.study is None:
        if chosen.table is not None:
            raise UserError("--table goes with --study, since many have a table 1")
        return experiments
    if chosen.study not in experiments:
        unknown("study", chosen.study, f"scale {chosen.scale}", experiments)
    experiment = experiments[chosen.study]
    if chosen.table is None:
        return {chosen.study: experiment}
    if chosen.table not in experiment.tables:
        unknown("table", chosen.table, f"{chosen.study} at scale {chosen.scale}", experiment.tables)
    return {chosen.study: replace(experiment, grid=experiment.tables[chosen.table])}


def _publish(chosen) -> None:
    from sparserobust import studies
    from sparserobust.running import scales, sweep
    from sparserobust.running.store import Store

    scale, store, experiments = chosen.scale, Store(), studies.experiments(chosen.scale).values()
    asked = {run.identity for experiment in experiments for row in experiment.grid for run in row["run"].lineage}
    if not asked:
        raise UserError(f"scale {scale} asks for no runs, so nothing is published")
    runs = {row["run"].identity: row["run"] for experiment in experiments for row in experiment.known(store).grid}
    grid = [row for experiment in experiments for row in experiment.grid]
    in_part = {job["run"].identity for job in sweep.missing(grid, {}, store) if store.trained(job["run"])}
    written = store.publish(list(runs.values()), scale, in_part)
    folder = paths.published_folder() / scale
    if left_out := [name for name in studies.modules() if not scales.has(scale, name)]:
        print(f"scale {scale} has no settings for {', '.join(left_out)}: left out")
    print(f"{len(written)} records in {folder}: commit them, and every figure redraws from them")
    if in_part:
        print(f"{len(in_part)} runs that are trained here are not measured as a whole: what was published of other "
              f"weights stays. sparserobust compute --scale {scale} measures them")
    if others := sorted(path for path in folder.glob("*.json") if path.stem not in asked):
        told = f"{len(others)} more records that scale {scale} does not ask for, such as {others[0].name}"
        if chosen.prune:
            for path in others:
                path.unlink()
            print(f"{told}: removed")
        else:
            print(f"{told}: kept; sparserobust publish --scale {scale} --prune removes them")


def _evidence(chosen) -> None:
    from sparserobust import evidence
    from sparserobust.reporting import claims

    queue = evidence.Queue(workers=chosen.workers)
    if minutes := chosen.minutes or 60 * (chosen.hours or 0):
        if hasattr(os, "nice"):
            os.nice(19)
        for line in queue.work(60 * minutes):
            print(line, flush=True)
        print()
    table = queue.table()
    print(table.to_string(index=False))
    for scale, rows in table.groupby("scale"):
        print(f"\nscale {scale}: {claims.counted(rows['verdict'])}")


def _data(chosen) -> None:
    from sparserobust import data

    for name in chosen.name:
        splits = data.load(name)
        print(f"{name}: {len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test "
              f"images of shape {splits.image_shape}")


def _show(chosen) -> None:
    from sparserobust import showing
    from sparserobust.running.store import Store

    if (chosen.run is None) == (chosen.study is None):
        raise UserError("say which run: how its identity begins, or --study and --label")
    if chosen.run and chosen.label:
        raise UserError("labels go with --study: a run that is named by its identity needs none")
    store = Store()
    again = Store(paths.build_folder() / "again", use_published=False) if chosen.again else None
    if chosen.run:
        run = showing.find(chosen.run, store)
    else:
        found = showing.chosen(chosen.scale, chosen.study, _labels(chosen.label))
        if len(found) > 1 and again:
            raise UserError(f"{len(found)} runs have these labels: add some, until one is left to compute --again")
        if len(found) > 1:
            print(showing.listed(found))
            return
        run = found.popitem()[1]["run"]
    for line in showing.told(run, store, again):
        print(line)


def _networks(chosen) -> None:
    import pandas

    from sparserobust import networks

    if chosen.export:
        for name in networks.names():
            made = networks.for_hub(name, Path(chosen.export) / name)
            print(f"{made[0].parent}: {', '.join(path.name for path in made)}")
        return
    lines = []
    for name in networks.names():
        card = networks.card(name)
        rates = {key: f"{100 * m['count'] / m['total']:.1f} [{100 * m['low']:.1f}, {100 * m['high']:.1f}]"
                 for key, m in card["measured"].items()}
        lines.append({"network": name, "clean [%]": rates["clean"], "PGD-20 [%]": rates["pgd"],
                      "weights left": f"{card['weights_left']:,} of {card['weights']:,}",
                      "size [kB]": f"{card['bytes'] / 1000:.0f}", "run": card["identity"], "paper": card["paper"]})
    print(pandas.DataFrame(lines).to_string(index=False))
    print("\nright on 10,000 CIFAR-10 test images, and under PGD at 8/255 on 1,000 of them, with 95 % intervals; "
          'load one with sr.networks.load("dense")')


def _handout(chosen) -> None:
    from sparserobust.teaching import handout

    page, teachers = handout.write(chosen.notebook, Path(chosen.output))
    print(f"for the class: {page}\nwith solutions: {teachers}\nput what comes back into "
          f"{Path(chosen.output) / 'submitted'}/NAME/, then: sparserobust grade {shlex.quote(chosen.output)}")


def _grade(chosen) -> None:
    import pandas

    if sys.platform != "linux":
        raise UserError("submissions are graded on Linux, such as in WSL or a container, where they can be confined")
    from sparserobust.provenance import cores
    from sparserobust.teaching import grading, sandbox

    why, folder, begun = sandbox.possible(), Path(chosen.folder), time.monotonic()
    if why and not chosen.no_sandbox:
        raise UserError(f"no sandbox for submissions: {why}; grade them on another machine or in a virtual one, or say "
                        "--no-sandbox, and they can do whatever you can")
    limits = grading.Limits(chosen.seconds, int(chosen.memory * 2**30), not chosen.no_sandbox)
    own, *rows = grading.grade(folder, chosen.page, limits, chosen.workers or cores())
    if wrong := [f"{row['exercise']} ({row['words']})" for row in own if row["outcome"] not in ("right", "by hand")]:
        print(f"the page's own solutions are not right here, of exercise {'; '.join(wrong)}")
    frame = pandas.DataFrame([row for of_one in rows for row in of_one])
    table, output = grading.table(frame), Path(chosen.output) if chosen.output else folder / "grades.csv"
    files.write(output, frame.sort_values(["submission", "exercise"]).to_csv(index=False).encode())
    print(table.to_string(), "", *grading.said(frame), "", sep="\n")
    print(f"{own[0]['submission']}: {len(table)} submissions in {time.monotonic() - begun:.0f} s; as a table of all "
          f"answers: {output}")


def _refresh(chosen) -> None:
    from sparserobust import notebook_runner
    from sparserobust.reporting import artifacts

    with paths.figures_in(_figures(None)):
        for name in notebook_runner.names():
            print(f"{notebook_runner.refresh(name).name}: executed and written in place")
        artifacts.write_ledger("quick")


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working folder, which `python -m` puts there
    sys.exit(main())
