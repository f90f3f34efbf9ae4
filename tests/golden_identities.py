"""What every study asks for at every scale, by name: the run of each grid row and what is measured on it.

    python tests/golden_identities.py

writes a file for each study and scale (its first two seeds) into `identities/`; `test_identities` compares it with what
the library says. A run or measurement whose identity changes loses its published record: a change of these files is a
decision.
"""

import json
from pathlib import Path

from sparserobust import studies
from sparserobust.running import scales

FOLDER = Path(__file__).parent / "identities"
STUDIES = [(study, scale) for study in studies.modules() for scale in scales.names() if scales.has(scale, study)]


def identities(study: str, scale: str) -> dict:
    """`sets` of measurements, each with the identities of its members; `rows`: labels to the run's identity and the
    number of its set."""
    experiment = studies.modules()[study].experiment(scale, [0, 1])
    sets: dict[str, int] = {}
    rows = {}
    for row in experiment.grid:
        measured = {name: m.identity for name, m in row["measurements"].items()}
        labels = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("run", "measurements"))
        rows[labels] = [row["run"].identity, sets.setdefault(json.dumps(measured, sort_keys=True), len(sets))]
    assert len(rows) == len(experiment.grid)  # no two rows have the same labels
    return {"sets": [json.loads(text) for text in sets], "rows": rows}


def path(study: str, scale: str) -> Path:
    return FOLDER / f"{study}-{scale}.json"


if __name__ == "__main__":
    for study, scale in STUDIES:
        found = identities(study, scale)
        lines = [f"  {json.dumps(labels)}: {json.dumps(named)}" for labels, named in found["rows"].items()]
        sets = [f"  {json.dumps(one)}" for one in found["sets"]]
        path(study, scale).write_text('{"sets": [\n' + ",\n".join(sets) + '\n ],\n "rows": {\n' + ",\n".join(lines)
                                      + "\n }\n}\n")
        print(f"{path(study, scale).name}: {len(lines)} rows")
