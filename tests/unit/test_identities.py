"""No run and no measurement changes its identity unnoticed: published records are found by it."""

import json

import pytest

import golden_identities as golden


@pytest.mark.parametrize(("study", "scale"), golden.STUDIES)
def test_what_is_asked_for_keeps_its_identity(study, scale):
    """If a change is meant: python tests/golden_identities.py, and say in the changelog which records are lost."""
    known, found = json.loads(golden.path(study, scale).read_text()), golden.identities(study, scale)
    assert found["rows"].keys() == known["rows"].keys()
    for labels, (run, number) in found["rows"].items():
        identity, its_set = known["rows"][labels]
        assert run == identity, labels
        assert found["sets"][number] == known["sets"][its_set], labels


def test_there_is_a_file_for_every_study_and_scale_and_no_other():
    assert {path.name for path in golden.FOLDER.glob("*.json")} == {golden.path(*of).name for of in golden.STUDIES}
