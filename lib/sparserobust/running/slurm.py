"""Workers on a SLURM cluster: one job array, whose element 0 also runs the scheduler."""

import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sparserobust import files, paths
from sparserobust.errors import UserError

# minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds; not zero,
# which SLURM takes for no limit
_TIME = re.compile(r"(?=.*[1-9])(\d+(:\d\d?){0,2}|\d+-\d\d?(:\d\d?){0,2})")

_SCRIPT = """\
#!/bin/bash
{directives}
# Workers of Sparse & Robust. Element 0 also runs the scheduler, and the array lasts as long as that: until there has
# been nothing to do for {idle_minutes} minutes, or until its time limit. Workers die then; what they were training goes
# on from its last epoch when this has been submitted and `sparserobust compute` called again.
{exports}
sparserobust=({command})
file={folder}/scheduler-$SLURM_ARRAY_JOB_ID.json
if [ "$SLURM_ARRAY_TASK_ID" = 0 ]; then
    "${{sparserobust[@]}}" cluster scheduler "$file" --idle-timeout {idle_minutes} &
    trap 'kill $! 2>/dev/null; rm -f "$file"; scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"' EXIT
fi
"${{sparserobust[@]}}" cluster workers "$file" --count {workers}
"""


@dataclass(frozen=True)
class Array:
    """What is asked of SLURM: `gpus` elements of one GPU with `workers_per_gpu` workers each, or `cpus` elements of one
    core and one worker each. `time` is the limit of an element as sbatch takes it, `options` are further options of
    sbatch without their dashes (`account=abc`). `UserError` for what SLURM would not take."""

    gpus: int | None = None
    cpus: int | None = None
    time: str = "4:00:00"
    partition: str | None = None
    workers_per_gpu: int = 1
    options: tuple[str, ...] = ()
    idle_minutes: float = 10

    def __post_init__(self):
        if (self.gpus is None) == (self.cpus is None):
            raise UserError("say how many GPUs or else how many cores: --gpus 8, or --cpus 64")
        for option, value in {"--gpus": self.gpus, "--cpus": self.cpus,
                              "--workers-per-gpu": self.workers_per_gpu}.items():
            if value is not None and value < 1:
                raise UserError(f"{option} should be 1 or more, not {value}")
        if not 0 < self.idle_minutes < math.inf:
            raise UserError(f"--idle-timeout should be minutes, more than 0, not {self.idle_minutes:g}")
        if not _TIME.fullmatch(self.time):
            raise UserError("--time should be minutes, hours:minutes:seconds or days-hours, such as 4:00:00, "
                            f"not {self.time!r}")
        if self.partition is not None and not re.fullmatch(r"\w[\w.,-]*", self.partition):
            raise UserError(f"--partition should be a name (sinfo lists them), not {self.partition!r}")
        for each in self.options:
            if not re.fullmatch(r"[\w-].*", each):
                raise UserError(f"--sbatch should be one option of sbatch, such as account=abc, not {each!r}")

    def script(self, folder: Path) -> str:
        """What `sbatch` runs. Logs and the scheduler file go into `folder`, which all nodes see."""
        if re.search(r"[\n\\]", str(folder)):
            raise UserError(f"--folder should have no line break and no backslash in its name, not {str(folder)!r}")
        elements, workers = self.gpus or self.cpus or 1, self.workers_per_gpu if self.gpus else 1
        logs = str(folder).replace("%", "%%").replace('"', r"\"")
        options = ["job-name=sparserobust", f"array=0-{elements - 1}", "nodes=1", "ntasks=1",
                   f"cpus-per-task={workers}", *(["gres=gpu:1"] if self.gpus else []), f"time={self.time}",
                   *([f"partition={self.partition}"] if self.partition else []), f'output="{logs}/%A_%a.log"',
                   *(option.removeprefix("--") for option in self.options)]
        own = {name: value for name, value in sorted(os.environ.items()) if name.startswith("SPARSEROBUST_")}
        return _SCRIPT.format(
            directives="\n".join(f"#SBATCH --{option}" for option in options), idle_minutes=f"{self.idle_minutes:g}",
            exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in own.items()),
            command=shlex.join([sys.executable, "-P", "-m", "sparserobust.cli"]), folder=shlex.quote(str(folder)),
            workers=workers)

    def write(self, folder: Path | None = None) -> Path:
        """Write the script into a folder, by default `cluster` beside the data sets, and return its path."""
        folder = paths.writable((folder or paths.data_folder() / "cluster").absolute())
        path = folder / "workers.sbatch"
        files.write(path, self.script(folder).encode())
        return path


def submit(script: Path) -> str:
    """Hand a script to SLURM; returns the array's job id. `UserError` if there is no SLURM, or it refuses."""
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"there is no sbatch here: call this on a login node, or hand {script} to it there") from None
    if done.returncode:
        raise UserError(f"SLURM refuses {script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().split(";")[0]


def scheduler_file(script: Path, job: str) -> Path:
    """What the scheduler of a submitted script writes as soon as it runs."""
    return script.with_name(f"scheduler-{job}.json")
