"""Numbers of others: every cell of the file comes out once, with its source, and mistakes in it are found."""

import re

import pytest

from sparserobust import yamls
from sparserobust.reporting import anchors
from sparserobust.reporting.reported import GRADES

ENTRY = {"source": "somebody, table 1", "grade": "code", "data": "CIFAR-10", "epsilon": "8/255", "structure": "weights",
         "columns": {"ResNet-18": [90, 95]}, "rows": {"A": [[80, 40], None], "B": [[70, 30.5, 0.2], [60, 20]]}}


def test_every_cell_of_the_file_is_a_row_with_its_source():
    found, text = anchors.table(), anchors.FILE.read_text()
    assert len(found) == len(re.findall(r"\[[\d.]+, [\d.]+(?:, [\d.]+)?\]", re.sub(r"columns:.*|#.*", "", text)))
    assert not found.duplicated(["method", "architecture", "data", "structure", "sparsity", "epsilon"]).any()
    assert found["source"].str.len().min() > 20 and set(found["grade"]) <= set(GRADES)
    assert not found.drop(columns="autoattack_sd").isna().any(axis=None)
    for row in found.to_dict("records"):
        assert 0.1 < row["autoattack"] < row["clean"] < 1 and 0 <= row["sparsity"] < 1
        assert (row["structure"] == "none") == (row["sparsity"] == 0)
        assert f"[{100 * row['clean']:.2f}, {100 * row['autoattack']:.2f}" in text


def test_tables_are_those_that_the_ring_is_held_against():
    sizes = anchors.table(data="CIFAR-10").groupby(["structure", "architecture", "sparsity"]).size()
    for architecture in ("ResNet-18", "VGG-16"):
        assert sizes["weights", architecture].index.tolist() == [0.9, 0.95, 0.99]
        assert sizes["channels", architecture].index.tolist() == [0.5, 0.75, 0.9]
        assert set(sizes["weights", architecture]) == {10} and set(sizes["channels", architecture]) == {4}
    assert {"HARP", "FlyingBird", "HYDRA"} <= set(anchors.table(structure="weights")["method"])
    assert {"PGD-AT", "PGD-AT + WA", "N-FGSM", "FGSM-RS"} == set(anchors.table(structure="none")["method"])
    assert anchors.table(structure="none")["autoattack_sd"].notna().all()


def test_labels_choose_rows():
    found = anchors.table(architecture="ResNet-18", structure="weights", sparsity=0.95)
    assert found["method"].is_unique and len(found) == 10
    assert found.index.tolist() == list(range(10))
    assert found.set_index("method")["autoattack"].idxmax() == "FlyingBird"


def test_a_table_in_the_file_becomes_rows():
    first, second, third = anchors.Anchors.parse(ENTRY).lines()
    assert first == {"method": "A", "architecture": "ResNet-18", "data": "CIFAR-10", "structure": "weights",
                     "sparsity": 0.9, "epsilon": 8 / 255, "clean": 0.8, "autoattack": 0.4, "autoattack_sd": None,
                     "source": "somebody, table 1", "grade": "code"}
    assert (second["method"], second["clean"], second["autoattack_sd"]) == ("B", 0.7, 0.002)
    assert (third["method"], third["sparsity"], third["autoattack"]) == ("B", 0.95, 0.2)


@pytest.mark.parametrize(("changes", "said"), [
    ({"source": ""}, "source"), ({"grade": "hearsay"}, "grade"), ({"structure": "filters"}, "structure"),
    ({"rows": {"A": [[80, 40]]}}, "1 cells for 2 columns"), ({"rows": {"A": [[40, 80], None]}}, "no \\[clean"),
    ({"rows": {"A": [[80], None]}}, "no \\[clean"), ({"rows": {"A": [[101, 40], None]}}, "no \\[clean"),
    ({"columns": {"ResNet-18": [0.9, 195]}}, "percent"), ({"epsilon": 8}, "radius"), ({"year": 2024}, "year"),
])  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(changes, said, refusal):
    assert re.search(said, refusal(anchors.Anchors.parse, ENTRY | changes))


def test_a_label_that_there_is_not_is_one_line(refusal, monkeypatch, tmp_path):
    assert "archi" in refusal(anchors.table, archi="ResNet-18")
    assert "ResNet-18, VGG-16" in refusal(anchors.table, architecture="ResNet-20")
    monkeypatch.setattr(anchors, "FILE", tmp_path / "anchors.yaml")
    anchors.FILE.write_text("- source: x\n")
    assert "anchors.yaml" in refusal(anchors.table)
    assert yamls.parsed(anchors.FILE.read_text(), "x") == [{"source": "x"}]
