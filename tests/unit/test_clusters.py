"""What is handed to SLURM and to Kubernetes. `tests/cluster/` runs the first on a real SLURM."""

import re
import shlex
import socket
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import torch
import yaml
from kubernetes_validate import ValidationError

from sparserobust import cli, provenance
from sparserobust.running import cluster, kubernetes, slurm

ODD = "it's \"$HOME\" 100% `date`"  # a folder whose name needs quotes in bash and in sbatch


# ------------------------------------------------------------------------------------- certificates, addresses, GPUs


@pytest.fixture
def certificates(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPARSEROBUST_CERTIFICATES", str(tmp_path / "certificates"))
    assert cli.main(["cluster", "certificates"]) == 0
    return tmp_path / "certificates"


def test_certificates_are_made_once_and_are_for_this_user_only(certificates, capsys):
    assert certificates.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in certificates.iterdir()} == {
        "cluster.crt": 0o600, "cluster.key": 0o600}
    before = (certificates / "cluster.key").read_bytes()
    capsys.readouterr()
    assert cli.main(["cluster", "certificates"]) == 1
    assert "is there already" in capsys.readouterr().err and (certificates / "cluster.key").read_bytes() == before


def test_without_a_certificate_nothing_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPARSEROBUST_CERTIFICATES", str(tmp_path / "none"))
    for part in ("scheduler", "workers"):
        assert cli.main(["cluster", part, str(tmp_path / "scheduler.json")]) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "`sparserobust cluster certificates` makes it" in told
    assert not (tmp_path / "scheduler.json").exists()


@pytest.mark.parametrize(("content", "told"), [
    (None, "there is no scheduler file"), ("{", "is no scheduler file"), ("[]", "is no scheduler file"),
    ("{}", "is no scheduler file")])
def test_what_is_no_scheduler_file_is_told_in_one_line(content, told, tmp_path, refusal):
    if content:
        (tmp_path / "file").write_text(content)
    assert told in refusal(cluster._address, str(tmp_path / "file"))


def test_workers_wait_for_a_scheduler_file_that_is_just_being_written(tmp_path, monkeypatch):
    file, steps = tmp_path / "file", iter([lambda: file.touch(), lambda: file.write_text('{"address": "tls://a:1"}')])
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: next(steps)())
    assert cluster._address(cluster._there(str(file))) == "tls://a:1"
    assert not list(steps)


def test_an_address_is_one_of_dask(refusal, caplog):
    for wrong in ("http://host:1", "tls://", "tls://host", "tls://[", "tcp://a:b", "tls://a b:1", "tls://h:-1",
                  "tls://:1", "tls://h:999999", "tls://h:1/x", "tls://h:1\n"):
        assert "such as tls://host:8786" in refusal(cluster._address, wrong)
    assert cluster._address("tls://[::1]:1") == "tls://[::1]:1"
    assert cluster._address("tls://host:1") == "tls://host:1" and not caplog.records
    assert cluster._address("tcp://127.0.0.1:1") == "tcp://127.0.0.1:1" and not caplog.records
    assert cluster._address("tcp://host:1") == "tcp://host:1" and "is not encrypted" in caplog.text


def test_a_scheduler_that_does_not_answer_is_told_in_one_line(certificates, monkeypatch, refusal):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        monkeypatch.setenv(cluster.ADDRESS, f"tls://127.0.0.1:{nobody.getsockname()[1]}")
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "ANSWER", 1)
        assert "no scheduler answers at tls://" in refusal(lambda: cluster.connected(1).__enter__())


@pytest.mark.parametrize("words", [["workers", "x", "--count", "0"], ["workers", "x", "--per-gpu", "0"],
                                   ["scheduler", "x", "--idle-timeout", "0"]])
def test_counts_and_times_are_more_than_nothing(words, certificates, capsys):
    assert cli.main(["cluster", *words]) == 1
    assert "from 1" in (told := capsys.readouterr().err) or "more than 0" in told


def test_each_worker_has_a_gpu_to_itself_or_shares_one_as_evenly_as_can_be():
    assert cluster.environments(3, []) == [{}, {}, {}]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in cluster.environments(5, ["2", "GPU-a"])] == [
        "2", "GPU-a", "2", "GPU-a", "2"]
    assert cluster.environments(1, ["2"])[0]["SPARSEROBUST_DEVICE"] == "cuda", "of whatever index it has here"


def test_the_gpus_are_those_that_the_environment_leaves(monkeypatch):
    monkeypatch.setattr(provenance, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert provenance.gpus() == ["0", "1"] and provenance.side_by_side() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert provenance.gpus() == ["3", "5", "7"] and provenance.side_by_side() == 3
    monkeypatch.setattr(provenance, "device", lambda: torch.device("cuda:1"))
    assert provenance.gpus() == ["5"] and provenance.side_by_side() == 1
    monkeypatch.setattr(provenance, "device", lambda: torch.device("cpu"))
    assert provenance.gpus() == [] and provenance.side_by_side() == provenance.cores()


# ------------------------------------------------------------------------------------------------------------- SLURM


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH --(.*)$", script, re.MULTILINE)


def test_an_array_asks_for_one_gpu_an_element_and_a_core_for_each_of_its_workers(tmp_path):
    script = slurm.Array(gpus=8, time="1-12", partition="a100", workers_per_gpu=3,
                         options=("account=abc", "--mail-type=END")).script(tmp_path)
    asked = directives(script)
    assert {"array=0-7", "gres=gpu:1", "nodes=1", "ntasks=1", "cpus-per-task=3", "time=1-12", "partition=a100",
            "account=abc", "mail-type=END"} <= set(asked)
    first = script.splitlines().index(f"#SBATCH --{asked[0]}")
    assert first == 1 and script.splitlines()[first + len(asked)][:8] != "#SBATCH ", "sbatch reads no further"
    assert 'cluster workers "$file" --count 3\n' in script


def test_an_array_for_cores_asks_for_no_gpu_and_starts_one_worker_an_element(tmp_path):
    script = slurm.Array(cpus=64).script(tmp_path)
    assert {"array=0-63", "cpus-per-task=1"} <= set(directives(script))
    assert not re.search(r"gres|gpu|partition", script)
    assert 'cluster workers "$file" --count 1\n' in script


@pytest.fixture
def elements(tmp_path, monkeypatch):
    """Runs an element of an array: what it called, with its arguments, in order."""
    def element(number: int, folder: Path, **asked) -> list[list[str]]:
        calls = tmp_path / f"calls-{number}"
        fake = tmp_path / "fake python"
        told = 'printf "%s\\n" "$(printf "%s\\t"'
        fake.write_text(f'#!/bin/bash\n{told} "$@")" >> {shlex.quote(str(calls))}\n'
                        'if [ "$5" = scheduler ]; then echo > "$6"; else sleep 0.5; fi\n')  # a worker works for a while
        fake.chmod(0o755)
        scancel = tmp_path / "bin" / "scancel"
        scancel.parent.mkdir(exist_ok=True)
        scancel.write_text(f'#!/bin/bash\n{told} scancel "$@")" >> {shlex.quote(str(calls))}\n')
        scancel.chmod(0o755)
        monkeypatch.setattr(slurm.sys, "executable", str(fake))
        script = slurm.Array(gpus=2, **asked).write(folder)
        subprocess.run(["bash", "-n", script], check=True)
        path = f"{scancel.parent}:/usr/bin:/bin"
        subprocess.run(["bash", script], timeout=20, check=False, capture_output=True,
                       env={"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": str(number), "PATH": path})
        return [line.rstrip("\t").split("\t") for line in calls.read_text().splitlines()]

    return element


def test_the_first_element_runs_the_scheduler_and_takes_its_file_and_those_that_still_wait_with_it(elements, tmp_path):
    folder = tmp_path / ODD
    file = str(folder / "scheduler-17.json")
    library = ["-P", "-m", "sparserobust.cli", "cluster"]
    *both, last = elements(0, folder, idle_minutes=7)
    assert sorted(both) == [[*library, "scheduler", file, "--idle-timeout", "7"],
                            [*library, "workers", file, "--count", "1"]]
    assert last == ["scancel", "--state=PENDING", "17"]
    assert not Path(file).exists()


def test_the_other_elements_run_workers_only(elements, tmp_path):
    assert [call[4:] for call in elements(1, tmp_path / ODD, workers_per_gpu=2)] == [
        ["workers", str(tmp_path / ODD / "scheduler-17.json"), "--count", "2"]]


def test_the_name_of_a_log_is_quoted_as_sbatch_reads_it():
    (log,) = [each for each in directives(slurm.Array(cpus=1).script(Path("/a") / ODD)) if each.startswith("output")]
    assert log == 'output="/a/it\'s \\"$HOME\\" 100%% `date`/%A_%a.log"'


def test_a_script_takes_the_settings_of_its_shell_along(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEROBUST_STORE", ODD)
    script = slurm.Array(cpus=1).script(tmp_path)
    assert f"export SPARSEROBUST_STORE={shlex.quote(ODD)}\n" in script


@pytest.mark.parametrize("time", ["90", "30:00", "4:00:00", "1-0", "2-12:30", "1-12:00:00"])
def test_times_as_sbatch_writes_them(time, tmp_path):
    assert f"time={time}" in directives(slurm.Array(cpus=1, time=time).script(tmp_path))


@pytest.mark.parametrize(("wrong", "told"), [
    *(({"time": time}, "--time should be") for time in ("", "4h", "0", "0:00:00", "-5", "4:00:00:00", "1-2-3", "4\n")),
    *(({"cpus": None, option: value}, f"--{option.replace('_', '-')} should be 1 or more, not {value}")
      for option, value in (("gpus", 0), ("gpus", -8))),
    ({"cpus": 0}, "--cpus should be 1 or more, not 0"),
    ({"workers_per_gpu": 0}, "--workers-per-gpu should be 1 or more, not 0"),
    ({"idle_minutes": 0}, "--idle-timeout should be minutes, more than 0, not 0"),
    ({"cpus": None}, "say how many"), ({"gpus": 1}, "say how many"),
    ({"partition": "a b"}, "--partition should be a name (sinfo lists them), not 'a b'"),
    ({"options": ("account=a\ndate",)}, "--sbatch should be one option"),
    ({"options": ("",)}, "--sbatch should be one option"),
])
def test_what_slurm_would_not_take_is_told_in_one_line(wrong, told, refusal):
    assert refusal(lambda: slurm.Array(**{"cpus": 1} | wrong)).startswith(told)


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash"])
def test_a_folder_that_cannot_be_quoted_is_refused(name, tmp_path, refusal):
    assert "--folder should have no line break" in refusal(slurm.Array(cpus=1).script, tmp_path / name)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Puts a command `sbatch` that does this in front of any other."""
    def sbatch(body: str) -> None:
        command = tmp_path / "bin" / "sbatch"
        command.parent.mkdir()
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")

    return sbatch


def test_a_submitted_script_has_a_job_and_its_scheduler_a_file_of_that_name(sbatch, tmp_path):
    sbatch(f'[ "$1" = --parsable ] && cat "$2" > {tmp_path}/seen && echo "4711;cluster"')
    script = slurm.Array(cpus=1).write(tmp_path / "with space")
    job = slurm.submit(script)
    assert (tmp_path / "seen").read_text() == script.read_text()
    assert slurm.scheduler_file(script, job) == tmp_path / "with space" / "scheduler-4711.json"


def test_what_slurm_says_against_a_script_is_one_line(sbatch, refusal, tmp_path):
    sbatch("echo 'sbatch: error: invalid partition'>&2; echo 'sbatch: error: failed' >&2; exit 1")
    script = slurm.Array(cpus=1).write(tmp_path)
    assert refusal(slurm.submit, script).endswith("sbatch: error: invalid partition sbatch: error: failed")


def test_a_machine_without_slurm_says_where_to_go(monkeypatch, refusal, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sbatch here" in refusal(slurm.submit, tmp_path / "workers.sbatch")


def test_the_command_submits_and_says_how_to_go_on(sbatch, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPARSEROBUST_CERTIFICATES", str(tmp_path / "certificates"))
    sbatch(f'echo x >> {tmp_path}/submitted; echo 4711')
    command = ["cluster", "slurm", "--cpus", "2", "--idle-timeout", "0.5", "--folder", str(tmp_path / ODD)]
    assert cli.main([*command, "--submit"]) == 1
    assert "cluster.crt is missing" in capsys.readouterr().err
    cluster.make_certificates(cluster.certificates_folder())
    assert cli.main(command) == 0
    assert not (tmp_path / "submitted").exists()
    assert cli.main([*command, "--submit"]) == 0
    assert (tmp_path / "submitted").read_text() == "x\n"
    first, last = capsys.readouterr().out.splitlines()[-2:]
    assert "job 4711" in first
    assert shlex.split(last)[-1] == str(tmp_path / ODD / "scheduler-4711.json")
    assert '--idle-timeout 0.5 &' in (tmp_path / ODD / "workers.sbatch").read_text()


# -------------------------------------------------------------------------------------------------------- Kubernetes


def checked(entry: dict) -> None:
    kubernetes_validate.validate(entry, kubernetes.SCHEMA, strict=True)


@pytest.fixture
def manifest(capsys) -> str:
    assert cli.main(["cluster", "kubernetes", "--image", "lab/sparserobust:1", "--volume", "claim", "--gpus", "8",
                     "--workers-per-gpu", "2"]) == 0
    return capsys.readouterr().out


def test_a_manifest_has_the_form_that_kubernetes_wants_and_says_that_no_more_was_checked(manifest):
    entries = list(yaml.safe_load_all(manifest))
    assert [entry["kind"] for entry in entries] == ["Deployment", "Service", "Deployment"]
    for entry in entries:
        checked(entry)
    assert "Checked by schema only" in manifest.splitlines()[0]
    misspelt = yaml.safe_load(manifest.split("---")[1].replace("claimName", "claim"))
    with pytest.raises(ValidationError, match="claim"):
        checked(misspelt)


def test_the_parts_of_a_manifest_find_each_other(manifest):
    scheduler, service, workers = yaml.safe_load_all(manifest)
    pods = {part["metadata"]["name"]: part["spec"]["template"] for part in (scheduler, workers)}
    for part in (scheduler, workers):
        assert part["spec"]["selector"]["matchLabels"] == part["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == pods["sparserobust-scheduler"]["metadata"]["labels"]
    assert service["spec"]["selector"] != pods["sparserobust-workers"]["metadata"]["labels"]
    address = f"tls://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (container,) = pods["sparserobust-workers"]["spec"]["containers"]
    assert container["command"] == ["sparserobust", "cluster", "workers", address, "--count", "2"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}} and workers["spec"]["replicas"] == 8
    for pod in pods.values():
        (container,) = pod["spec"]["containers"]
        found = {entry["name"]: entry["value"] for entry in container["env"]}
        volumes, mounts = ({entry["name"]: entry for entry in entries}
                           for entries in (pod["spec"]["volumes"], container["volumeMounts"]))
        assert volumes.keys() == mounts.keys() and container["image"] == "lab/sparserobust:1"
        assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": "claim"}
        assert f"kubectl create secret generic {volumes['certificates']['secret']['secretName']} " in manifest
        assert found == {"DASK_SCHEDULER_ADDRESS": address, "SPARSEROBUST_DATA": mounts["shared"]["mountPath"],
                         "SPARSEROBUST_CERTIFICATES": mounts["certificates"]["mountPath"]}


@pytest.mark.parametrize(("wrong", "told"), [
    ({"gpus": 0}, "--gpus should be 1 or more"), ({"workers_per_gpu": -1}, "--workers-per-gpu should be 1 or more"),
    ({"volume": "My Claim"}, "--volume should be the name of a claim"), ({"image": "a b"}, "--image should be"),
])
def test_what_kubernetes_would_not_take_is_told_in_one_line(wrong, told, refusal):
    assert refusal(lambda: kubernetes.Manifest(**{"image": "i", "volume": "v", "gpus": 1} | wrong)).startswith(told)
