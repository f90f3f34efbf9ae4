"""What is written has the modes that the user's umask says: a group may share a store, and 077 keeps all private."""

import os

import pandas
import pytest

from sparserobust import files, paths
from sparserobust.evaluation import Accuracy
from sparserobust.reporting import artifacts, plots
from sparserobust.running import cluster
from sparserobust.running.store import Store


@pytest.fixture(params=[0o002, 0o022, 0o077], ids="{:03o}".format)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder) -> dict:
    return {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o7777 for path in folder.rglob("*")}


def test_files_and_folders_have_the_modes_of_the_umask(umask, tmp_path, monkeypatch, tiny_run):
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path / "figures"))
    run, store = tiny_run(), Store(tmp_path / "store")
    store.train(run)
    store.measure(run, Accuracy(images=20))
    store.publish([run], "quick")
    frame = pandas.DataFrame({"run": [run.identity], "processor": ["P"], "where": ["store"], "a": [0]})
    out = artifacts.Artifacts("quick", "99_test")
    out.figure(plots.curves([0, 1], {"a": [0, 1]}, "x", "y"), "fig", "A line.", frame)
    out.table(frame, "table", "A row.", frame)
    out.finish()
    files.write_json(paths.writable(tmp_path / "other" / "folder") / "x.json", {})
    found = modes(tmp_path)
    for name in ("store/.locks/*.lock", "store/*/model.safetensors", "store/*/measured/*.json",
                 "published/quick/*.json", "figures/quick/99_test/manifest.json", "figures/quick/99_test/*.png",
                 "other/folder/x.json"):
        assert list(tmp_path.glob(name)), name
    for name, mode in found.items():
        assert mode == (0o777 if (tmp_path / name).is_dir() else 0o666) & ~umask, name


def test_certificates_are_private_whatever_the_umask(umask, tmp_path):
    cluster.make_certificates(tmp_path / "certificates")
    assert modes(tmp_path) == {"certificates": 0o700, "certificates/cluster.crt": 0o600,
                               "certificates/cluster.key": 0o600}
