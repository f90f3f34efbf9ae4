"""The project itself: layers, dependencies, files that must stay in step."""

import re
import subprocess
import sys
import tomllib
from itertools import takewhile

import yaml

from sparserobust.paths import PROJECT


def test_every_module_has_its_layer_here_and_in_the_guide():
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" : ")) for layer in contracts[0]["layers"]]
    guide = (PROJECT / "CONTRIBUTING.md").read_text()
    paragraph = re.search(r"\*\*The layers\*\*.*?\n\n", guide, re.DOTALL)[0]
    assert [set(re.findall(r"`(\w+)/?`", layer)) for layer in re.split(r" -\s", paragraph)] == layers


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


def test_every_paper_is_cited_as_it_is_on_record():
    references = yaml.safe_load((PROJECT / "CITATION.cff").read_text())["references"]
    cited = {reference["title"]: reference for reference in references}
    papers = [yaml.safe_load(path.read_text())["citation"]
              for path in sorted((PROJECT / "data" / "reported").glob("*.yaml"))]
    assert papers and cited.keys() == {paper["title"] for paper in papers}
    for paper in papers:
        reference = cited[paper["title"]]
        names = [f"{each['given-names']} {each['family-names']}" for each in reference["authors"]]
        assert (names, reference["year"]) == (paper["authors"], paper["year"])
        assert reference["url"].endswith(f"/{paper['arxiv']}")
        assert paper.get("doi", "") in reference.get("notes", "")


def test_the_readme_shows_the_ledger(monkeypatch):
    from sparserobust.reporting import artifacts, claims

    monkeypatch.delenv("SPARSEROBUST_FIGURES", raising=False)
    readme = (PROJECT / "README.md").read_text()
    assert claims.with_ledger(readme, artifacts.readme_table()) == readme, "run sparserobust ledger --readme"


def test_tables_of_the_readme_have_as_many_columns_in_every_line():
    lines = (PROJECT / "README.md").read_text().splitlines()
    rules = [n for n, line in enumerate(lines) if re.fullmatch(r"\|( *:?-+:? *\|)+", line)]
    assert rules
    for n in rules:
        rows = list(takewhile(lambda line: line.startswith("|"), lines[n - 1:]))
        columns = [len(re.split(r"(?<!\\)\|", row.rstrip())) for row in rows]
        assert len(rows) > 2 and len(set(columns)) == 1, rows[0]
