"""The house itself: floors, dependencies, files that must stay in step."""

import ast
import re
import subprocess
import sys
import tomllib

import pandas
import pytest
import yaml

from sparserobust.paths import PROJECT

LIBRARY = PROJECT / "lib" / "sparserobust"
FLOORS = [  # ground first; a room imports from its own floor and those below
    {"errors", "paths", "files", "environment", "config", "data", "sparsity", "optimisers"},
    {"attacks", "query_attacks", "objectives", "sparsifiers", "models"},
    {"training", "inheritance", "evaluation", "analysis"},
    {"runs", "progress", "worker", "sweep"},
    {"reported", "scales", "estimates", "claims", "tables", "plots", "artifacts", "sliders"},
    {"papers", "exercises"},
    {"batch", "cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path):
    """Rooms of the library that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sparserobust":
            inside = node.module.split(".")[1:]
            yield from inside[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("sparserobust."))


def test_every_room_has_its_floor_here_and_in_the_guide():
    rooms = {path.relative_to(LIBRARY).parts[0].removesuffix(".py") for path in LIBRARY.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)
    guide = (PROJECT / "CONTRIBUTING.md").read_text()
    paragraph = re.search(r"\*\*The rooms\*\*.*?\n\n", guide, re.DOTALL)[0]
    told = [set(re.findall(r"`(\w+)/?`", floor)) for floor in re.split(r" -\s", paragraph)]
    assert told == FLOORS[::-1]


@pytest.mark.parametrize("path", sorted(p for p in LIBRARY.rglob("*.py") if p != LIBRARY / "__init__.py"),
                         ids=lambda p: str(p.relative_to(LIBRARY)))
def test_no_room_imports_upwards(path):
    room = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    above = [other for other in imported_rooms(path) if other in FLOOR and FLOOR[other] > FLOOR[room]]
    assert not above, f"{room} (floor {FLOOR[room]}) imports {above}"


def test_the_core_needs_torch_and_numpy_only():
    blocked = ["pandas", "matplotlib", "seaborn", "sklearn", "scipy", "torchvision", "safetensors", "filelock", "yaml",
               "papermill", "pyautoattack", "art", "foolbox", "tqdm"]
    code = (f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import sparserobust as sr; import torch;"
            "m = sr.models.PreActResNet(depth=8, width=8).build((1, 8, 8), 10); x = torch.rand(2, 1, 8, 8);"
            "print(sr.attacks.FGSM(epsilon=8 / 255)(m, x, torch.tensor([0, 1])).shape)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([2, 1, 8, 8])", done.stderr


def test_environment_and_lock_are_in_step_with_the_project():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    assert f"python{project['requires-python']}" in environment and "pip" in environment
    assert {"pip": [f"-e .[{','.join(project['optional-dependencies'])}]"]} in environment
    lock = (PROJECT / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    assert {re.match(r"[A-Za-z0-9._-]+", d)[0].lower() for d in wanted} <= pinned
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z])", lock)[1:])


def test_no_host_of_a_registry_is_named():
    assert not re.search(r"https?://", (PROJECT / "requirements.lock").read_text())


def test_the_readme_shows_the_ledger():
    from sparserobust import claims, tables

    ledgers = {scale: pandas.read_csv(PROJECT / "figures" / scale / "claims.csv") for scale in ("quick", "laptop")}
    table = tables.markdown(claims.standing(ledgers))
    assert table in (PROJECT / "README.md").read_text(), f"the table under 'The ledger' should be\n{table}"
