"""The mistakes of `tests/mutants.py` can still be made; whether they are noticed takes that script minutes."""

import pytest

from mutants import MUTANTS, PROJECT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_applies(mutant):
    path = mutant.path(PROJECT)
    assert path.read_text().count(mutant.old) == 1 and mutant.new != mutant.old
    compile(mutant.made(), path, "exec")
    assert mutant.tests
    for test in mutant.tests:
        file, *name = test.split("::")
        text = (PROJECT / "tests" / "unit" / file).read_text()
        assert all(f"def {part.split('[')[0]}(" in text for part in name)


def test_there_are_some_all_over_the_library():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) == 62
    assert len({mutant.file for mutant in MUTANTS}) >= 14
