"""The project itself: layers, dependencies, files that must stay in step."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from itertools import chain, takewhile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from sparserobust.paths import PROJECT, committed_figures, figures_in
from sparserobust.provenance import git


def test_every_module_has_its_layer_here_and_in_the_guide():
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" : ")) for layer in contracts[0]["layers"]]
    guide = (PROJECT / "CONTRIBUTING.md").read_text()
    paragraph = re.search(r"\*\*The layers\*\*.*?\n\n", guide, re.DOTALL)[0]
    assert [set(re.findall(r"`(\w+)/?`", layer)) for layer in re.split(r" -\s", paragraph)] == layers


# ------------------------------------------------------------------------------------------------- packages

UNSEEN = {  # declared, but no import names them: why they are needed
    "bokeh": "the dashboard of a cluster", "cryptography": "its certificates", "tabulate": "pandas' to_markdown",
    "jupyterlab": "`make lab`", "pytest-xdist": "pytest -n", "nbval": "notebooks against their stored outputs",
    "onnx": "what torch.onnx writes", "ruff": "style", "import-linter": "layers",
    "myst-nb": "notebooks in the book", "sphinx-book-theme": "its looks", "hatchling": "the wheel"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, set[str]]:
    """Names of the packages in pyproject.toml: of the core, and of each extra."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    parts = {"core": project["dependencies"]} | project["optional-dependencies"]
    return {part: {normal(Requirement(text).name) for text in wanted} for part, wanted in parts.items()}


def imported(*folders: str) -> dict[str, str]:
    """The packages that Python files and notebooks' cells import, anywhere in them, each with one such file."""
    files = [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.*"))
             if path.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in path.parts]
    own = {path.stem for path in files} | {"sparserobust", "my_own_file"}
    found: dict[str, str] = {}
    packages = metadata.packages_distributions()
    for path in files:
        sources = [path.read_text()] if path.suffix == ".py" else [
            re.sub(r"^\s*[%!].*", "", "".join(cell["source"]), flags=re.MULTILINE)
            for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        for node in (node for source in sources for node in ast.walk(ast.parse(source))):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                       [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for module in {module.split(".")[0] for module in modules} - own - sys.stdlib_module_names:
                found |= dict.fromkeys(map(normal, packages.get(module, [module])),
                                       str(path.relative_to(PROJECT)))
    return found


def needed(names: Iterable[str]) -> set[str]:
    """These packages and all that they need, on any platform, as what is installed here says."""
    found: set[str] = set()
    todo = [Requirement(name) for name in names]
    seen = set()
    while todo:
        wanted = todo.pop()
        if (key := (normal(wanted.name), frozenset(wanted.extras))) in seen:
            continue
        seen.add(key)
        found.add(normal(wanted.name))
        with suppress(metadata.PackageNotFoundError):  # of another platform
            for text in metadata.requires(wanted.name) or []:
                more = Requirement(text)
                extras = re.findall(r"extra == [\"']([^\"']+)", str(more.marker))
                if not extras or wanted.extras & set(extras):
                    todo.append(more)
    return found


def test_whatever_is_imported_is_declared_and_the_other_way_round():
    parts = declared()
    for folders, known in ((["lib"], parts["core"] | parts["lab"] | parts["onnx"]),
                           (["notebooks"], parts["core"] | parts["lab"]),
                           (["lib", "notebooks", "tests", "benchmarks", "docs"], set.union(*parts.values()))):
        missing = {name: path for name, path in imported(*folders).items() if name not in known}
        assert not missing, "declare it in pyproject.toml, then `make lock`"
    every = imported("lib", "notebooks", "tests", "benchmarks", "docs")
    assert set.union(*parts.values()) - every.keys() == UNSEEN.keys()
    assert not parts["test"] & imported("lib", "notebooks").keys()


def test_every_package_of_the_lock_is_needed_by_one_that_is_declared():
    """What a package of another platform or Python needs, only the lock's own comments say."""
    lock = (PROJECT / "requirements.lock").read_text()
    pinned = {normal(block.split("==")[0]): {normal(name) for name in re.findall(r"#(?: via|  ) +(\S+)", block)}
              for block in re.split(r"\n(?=[a-z])", lock)[1:]}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    reached = needed([*project["dependencies"], *chain(*project["optional-dependencies"].values())])
    elsewhere = pinned.keys() - {normal(found.metadata["Name"]) for found in metadata.distributions()}
    while more := {name for name in pinned.keys() - reached if pinned[name] & reached & elsewhere}:
        reached |= more
    assert len(pinned) > 100 and pinned.keys() <= reached


def test_the_core_needs_torch_and_numpy_only():
    """All modules of the three lowest layers, where only these two and what they need can be imported; YAML apart."""
    own = needed(["torch", "numpy"])
    known = sorted({"sparserobust"} | {module for module, packages in metadata.packages_distributions().items()
                                       if own & set(map(normal, packages))})
    layers = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    modules = sorted({name for layer in layers[-3:] for name in layer.split(" : ")} - {"yamls"})
    code = f"""
import importlib, pkgutil, sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {{*{known}, *sys.stdlib_module_names}}:
            raise ModuleNotFoundError(f"{{name}} is not of the core", name=name)
sys.meta_path.insert(0, Only())
for name in {modules}:
    module = importlib.import_module(f"sparserobust.{{name}}")
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"sparserobust.{{name}}."):
        importlib.import_module(found.name)
import sparserobust as sr
import torch
m = sr.models.PreActResNet(depth=8, width=2).build((1, 8, 8), 10)
print(sr.attacks.FGSM(epsilon=8 / 255)(m, torch.rand(2, 1, 8, 8), torch.tensor([0, 1])).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([2, 1, 8, 8])", done.stderr


def test_evidence_needs_little_more_than_torch_and_numpy(tmp_path):
    """What docs/cluster.md says has to be carried to a machine without internet; Dask and all else are not there."""
    text = (PROJECT / "docs" / "cluster.md").read_text()
    named = re.search("it needs ([^;]*); AutoAttack", text.replace("\n", " "))[1].replace(" and ", ", ").split(", ")
    allowed = needed(["torch", "numpy", *named]) | {"sparserobust"}
    others = sorted(module for module, packages in metadata.packages_distributions().items()
                    if not allowed & set(map(normal, packages)))
    assert {"distributed", "seaborn", "torchvision"} < set(others)
    code = f"""
import importlib.util, sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {others}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)
sys.meta_path.insert(0, Only())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] in {others} else found(name, *more)
from sparserobust import cli
sys.exit(cli.main(["evidence", "--minutes", "0.001"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {
        "SPARSEROBUST_STORE": str(tmp_path / "store")})
    assert done.returncode == 0 and "scale laptop" in done.stdout, done.stderr[-2000:]


def test_environment_and_lock_are_in_step_with_the_project():
    parts = declared()
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    python = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"python{python}" in environment and "pip" in environment
    assert {"pip": [f"-e .[{','.join(part for part in parts if part != 'core')}]"]} in environment
    lock = (PROJECT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[a-z])", lock)[1:]
    assert {normal(block.split("==")[0]) for block in blocks if "(pyproject.toml)" in block} == set.union(
        *parts.values())
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_pythons_that_are_named_are_those_that_may_install_it():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    named = [Version(text.rsplit(" ", 1)[1]) for text in project["classifiers"] if "Python :: 3" in text]
    container = json.loads((PROJECT / ".devcontainer" / "devcontainer.json").read_text())
    assert len(named) == 3 and all(version in SpecifierSet(project["requires-python"]) for version in named)
    assert Version(re.search(r"python:([\d.]+)", container["image"])[1]) in named
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.MULTILINE)


def test_nothing_is_committed_beside_what_is_meant_to_be():
    listed = git("ls-files")
    if listed is None:
        pytest.skip("this is no checkout of git")
    seen = {path.split("/")[0] for path in listed.splitlines()}
    assert {name for name in seen if not name.startswith(".")} == {
        "notebooks", "lib", "figures", "data", "environment.yml", "tests", "docs", "benchmarks", "Makefile",
        "pyproject.toml", "requirements.lock", "hubconf.py", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
        "CITATION.cff", "LICENSE"}


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


def test_readme_and_results_show_the_ledger():
    from sparserobust import evidence
    from sparserobust.reporting import artifacts, claims

    with figures_in(committed_figures()):
        told = artifacts.told_elsewhere()
        told["docs/results.md"]["effort"] = evidence.effort_table()
    assert told["README.md"]["findings"].count("\n- ") == len(artifacts.FINDINGS) - 1
    for name, parts in told.items():
        text = (PROJECT / name).read_text()
        for part, made in parts.items():
            assert claims.with_part(text, part, made) == text, "run sparserobust ledger --readme"


def test_the_readme_can_be_read_in_a_minute():
    assert 90 <= len((PROJECT / "README.md").read_text().splitlines()) <= 120


def test_tables_of_the_readme_have_as_many_columns_in_every_line():
    lines = (PROJECT / "README.md").read_text().splitlines()
    rules = [n for n, line in enumerate(lines) if re.fullmatch(r"\|( *:?-+:? *\|)+", line)]
    assert rules
    for n in rules:
        rows = list(takewhile(lambda line: line.startswith("|"), lines[n - 1:]))
        columns = [len(re.split(r"(?<!\\)\|", row.rstrip())) for row in rows]
        assert len(rows) > 2 and len(set(columns)) == 1, rows[0]
