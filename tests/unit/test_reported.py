import math
import re

import pandas
import pytest
import yaml

from sparserobust import UserError
from sparserobust.reporting import reported

PAPERS = ["fk_resnet", "iwi", "rsr", "sparsity_theory", "tscnc"]
GROUPS = {"ResNet20": 675, "En2ResNet20": 1350, "En5ResNet20": 3375, "ResNet38": 1347}  # input channels
OWN = {  # all that is on record of these papers' own numbers; who adds one adds its id or key here, on purpose
    "iwi": set(),
    "rsr": {"C1", "C2", "C3", "T0", "sparsity_resnet18_percent"},
    "sparsity_theory": {"C7"},
    "tscnc": set(),
}
CITATION = {"title": "x", "authors": ["A. Toy"], "year": 2026}
CLAIM = {
    "id": "C1", "statement": "s", "quantity": "q", "unit": "percent", "direction": "increase", "value": 1.5,
    "kind": "reported", "grade": "paper", "source": "Table 9",
}  # fmt: skip
TABLE = {
    "id": "T1", "caption": "c", "kind": "reported", "grade": "paper", "source": "Table 9", "unit": None,
    "columns": ["net", "beta", "A1"], "rows": [["a", None, 1], ["a", 0.1, 2.0]], "notes": [],
}  # fmt: skip
LINE = {"id": "one", "claim": "C1", "words": "a is more than b", "primary": "C1 {net}"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Put a file x.yaml with these claims, tables and lines of a ledger (or this text) where the library looks."""
    monkeypatch.setattr(reported, "FOLDER", tmp_path)

    def write(claims=(CLAIM,), tables=(TABLE,), text=None, **sections):
        data = {"paper": "x", "citation": CITATION, "claims": list(claims), "tables": list(tables),
                "hyperparameters": {}, "ledger": [LINE]}
        data |= sections
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(data) if text is None else text)

    return write


def all_claims():
    return [(paper, claim) for paper in PAPERS for claim in reported.load(paper).claims.values()]


# --- the five files


def test_the_five_papers_are_there():
    assert reported.papers() == PAPERS


def test_table_1_of_fk_resnet():
    table = reported.load("fk_resnet").reported_table("T1")
    assert len(table) == 8
    assert list(table.columns) == ["net", "beta", "lambda", "A1", "A2", "A3", "A4", "sparsity"]
    assert list(table.sparsity) == [0, 80.91, 56.88, 39.92, 0, 89.86, 70.55, 56.34]
    assert list(table.A3) == [47.25, 43.79, 45.79, 46.67, 50.02, 46.62, 49.26, 49.54]


def test_number_of_claims_and_tables():
    counts = {paper: (len(reported.load(paper).claims), len(reported.load(paper).tables)) for paper in PAPERS}
    assert counts == {
        "fk_resnet": (44, 10), "iwi": (7, 3), "rsr": (12, 14), "sparsity_theory": (9, 8), "tscnc": (9, 7),
    }  # fmt: skip


def test_differences_equal_their_operands():
    pairs = [(paper, claim) for paper, claim in all_claims() if len(claim.operands) == 2 and claim.id != "C3.ratio"]
    assert {claim.id for _, claim in all_claims() if claim.derived} <= {claim.id for _, claim in pairs}
    assert len(pairs) == 43  # 38 derived ones and the two headlines of fk_resnet, three of PNI
    for paper, claim in pairs:
        treatment, reference = claim.operands.values()
        assert claim.value == pytest.approx(treatment - reference, abs=0.005), (paper, claim.id)


def test_headline_ratio_is_a_lower_bound():
    claim = reported.load("fk_resnet").claim("C3.ratio")
    pruned_ensemble, pruned_single = claim.operands.values()
    assert claim.lower_bound and claim.reported == 2.0
    assert pruned_ensemble / pruned_single == pytest.approx(2.11, abs=0.005)


def test_operands_are_cells_of_the_table_they_cite():
    record = reported.load("fk_resnet")
    cited = [(claim, re.search(r"Table (\d)", claim.source)) for claim in record.claims.values() if claim.operands]
    assert sum(table is None for _, table in cited) == 1  # C1 stands in the running text
    for claim, table in cited:
        cells = record.reported_table(f"T{table[1]}" if table else "F1").to_numpy().ravel()
        assert set(claim.operands.values()) <= set(cells), claim.id


def test_printed_channel_sparsity_is_a_count_of_groups():
    record = reported.load("fk_resnet")
    nets = pandas.concat([record.reported_table("T2"), record.reported_table("T3")])
    printed = list(zip(nets.net, nets.channel_sparsity, strict=True))
    channel = record.reported_table("T4").query("granularity == 'channel'")
    printed += [("ResNet20", percent) for percent in channel.sparsity]
    assert len(printed) == 9 + 6 + 2
    for net, percent in printed:
        removed = round(percent / 100 * GROUPS[net])
        assert round(100 * removed / GROUPS[net], 2) == percent, (net, percent)


def test_derived_group_counts():
    _, table = reported.load("fk_resnet").other_table("D1")
    assert list(table.groups_total) == [GROUPS[net] for net in table.net]
    assert list((100 * table.groups_removed / table.groups_total).round(2)) == list(table.percent)


def test_layer_totals_of_the_public_sparse_models():
    _, table = reported.load("sparsity_theory").other_table("T7")
    assert table.groupby("network")[["nonzero", "total"]].sum().to_numpy().tolist() == [[4952, 266200], [3977, 430500]]


@pytest.mark.parametrize(("paper", "kind", "tables"), [
    ("fk_resnet", "companion", ["T5"]),
    ("fk_resnet", "derived", ["D1", "parameters"]),
    ("rsr", "companion", [
        "README_resnet20", "P1", "P1_alpha", "P2", "P3", "P4", "P5", "P6", "P_fig3_eps", "P_fig3_steps",
    ]),
    ("sparsity_theory", "derived", ["T6", "T7", "T8"]),
    ("tscnc", "anchor", ["T2", "T2b", "T3.c10_unstructured", "T3.c10_structured", "T3.svhn_unstructured"]),
    ("tscnc", "derived", ["T4"]),
])  # fmt: skip
def test_foreign_tables(paper, kind, tables):
    assert [name for name, table in reported.load(paper).tables.items() if table.kind == kind] == tables


@pytest.mark.parametrize("paper", PAPERS)
def test_foreign_tables_are_refused_as_the_papers(paper, refusal):
    record = reported.load(paper)
    foreign = [table for table in record.tables.values() if table.kind != "reported"]
    assert foreign
    for table in foreign:
        message = refusal(record.reported_table, table.id)
        assert f"kind {table.kind}" in message and f"other_table('{table.id}')" in message
        assert refusal(record.reported_row, table.id) == message
        heading, frame = record.other_table(table.id)
        assert heading.startswith(f"{table.kind}: ") and heading.endswith("not this paper's numbers")
        assert len(frame) == len(table.rows)


def test_foreign_claims_have_no_reported_number():
    claim = reported.load("rsr").claim("C7.PGD")
    assert (claim.value, claim.reported) == (9.26, None)


@pytest.mark.parametrize("paper", OWN)
def test_no_other_number_is_said_to_be_the_papers(paper):
    record = reported.load(paper)
    own = {claim.id for claim in record.claims.values() if claim.reported is not None}
    own |= {table.id for table in record.tables.values() if table.kind == "reported"}
    for section in record.hyperparameters.values():
        if section["kind"] == "reported":
            own |= {key for key, value in section.items() if value is not None and key != "kind"}
    assert own == OWN[paper]


def test_the_few_numbers_of_rsr_and_sparsity_theory():
    record = reported.load("rsr")
    assert [record.claim(name).reported for name in ("C1", "C2", "C3")] == [0.68, 8.72, 85]
    row = record.reported_row("T0", network="ResNet-18")
    assert (row["sparsity_percent"], row["delta_clean"], row["delta_perturbed"]) == (85, 0.68, 8.72)
    assert reported.load("sparsity_theory").claim("C7").reported == 90


def test_every_section_of_hyperparameters_has_a_kind():
    kinds = [section["kind"] for paper in PAPERS for section in reported.load(paper).hyperparameters.values()]
    assert len(kinds) == 16 and set(kinds) <= set(reported.KINDS)


def test_no_cell_is_a_number_read_as_text():
    """YAML takes 1e-6 for text; only net names and column heads may look like numbers."""
    texts = {cell for paper in PAPERS for table in reported.load(paper).tables.values()
             for row in table.rows for cell in row if isinstance(cell, str)}  # fmt: skip
    assert {text for text in texts if re.fullmatch(r"[-+.\deE]+", text)} == {"20", "32", "44", "56"}


def test_margins_are_in_the_unit_of_their_claim_and_have_a_reason():
    for paper, claim in all_claims():
        if claim.margin is not None:
            assert claim.margin > 0 and len(claim.margin_why) > 20, (paper, claim.id)
        if claim.unit == "percentage points" and claim.direction:
            assert 0 < (claim.margin or 1) <= 2, (paper, claim.id)  # no claim is small beside its own margin
            assert claim.reported is None or claim.direction == "no worse" or claim.margin is not None
    margins = {(paper, claim.margin_why, claim.margin) for paper, claim in all_claims() if claim.margin}
    assert len(margins) == len({(paper, why) for paper, why, _ in margins}) > 0  # for one reason one margin


# --- asking


def test_reported_row(refusal):
    record = reported.load("fk_resnet")
    assert record.reported_row("T1", net="ResNet20", beta=None)["A1"] == 76.07
    assert record.reported_row("T1", net="En2ResNet20", beta=0.1 + 1e-17, **{"lambda": 1e-6})["sparsity"] == 70.55
    assert record.reported_row("T2", net="ResNet20", lambda1=0.02) is None
    assert "4 rows" in refusal(record.reported_row, "T1", net="ResNet20")
    assert "no column gamma" in refusal(record.reported_row, "T1", gamma=1)


def test_unknown_names_list_the_known_ones(refusal):
    message = refusal(reported.load, "resnet")
    assert "'resnet'" in message and all(paper in message for paper in PAPERS)
    record = reported.load("iwi")
    assert "C1, C2, C3, C4, C5, C6, C7" in refusal(record.claim, "C8")
    assert "T1, T2, T3" in refusal(record.reported_table, "T9")
    assert "reported_table('T1')" in refusal(reported.load("fk_resnet").other_table, "T1")


def test_how_to_add(refusal):
    claim, table = reported.how_to_add("iwi", "C4"), reported.how_to_add("iwi", "T3")
    assert "data/reported/iwi.yaml" in claim and "`value`" in claim and "`rows`" not in claim
    assert "id: T3" in table and "`rows`" in table and "`source`" in table
    assert "companion" in refusal(reported.how_to_add, "rsr", "P3")
    assert "no entry Z" in refusal(reported.how_to_add, "rsr", "Z")


def test_following_how_to_add_adds_the_number(write):
    blank = CLAIM | {"kind": "open", "grade": "open", "value": None, "source": None}
    write(claims=[blank])
    assert reported.load("x").claim("C1").reported is None
    write(claims=[blank | {"value": 3.25, "source": "p. 4", "kind": "reported", "grade": "paper"}])
    assert reported.load("x").claim("C1").reported == 3.25


def test_a_file_is_read_once(write):
    write()
    assert reported.load("x") is reported.load("x")


# --- mistakes in a file


@pytest.mark.parametrize(("change", "words"), [
    ({"kind": "printed"}, ["claim C1", "'printed'", "reported, companion"]),
    ({"kind": ["reported"]}, ["claim C1", "kind"]),
    ({"grade": "code"}, ["claim C1", "grade paper", "'code'"]),
    ({"companion": True}, ["claim C1", "companion"]),
    ({"anchor": True}, ["claim C1", "anchor"]),
    ({"kind": "companion"}, ["claim C1", "companion"]),
    ({"source": None}, ["claim C1", "source"]),
    ({"kind": "open"}, ["claim C1", "open"]),
    ({"value": "1e-6"}, ["claim C1", "'1e-6' is not a number but text"]),
    ({"value": True}, ["claim C1", "value should be a number, not True"]),
    ({"value": math.nan}, [".nan' is no finite number"]),
    ({"value": math.inf}, [".inf' is no finite number"]),
    ({"direction": "increases"}, ["claim C1", "'increases'", "increase, decrease, no worse"]),
    ({"direction": None}, ["claim C1", "quantity and direction"]),
    ({"quantity": None}, ["claim C1", "quantity and direction"]),
    ({"unit": None}, ["claim C1", "no unit"]),
    ({"unit": "percents"}, ["claim C1", "unit 'percents' is none of percentage points"]),
    ({"unit": 3}, ["claim C1", "unit should be text"]),
    ({"grade": "papers"}, ["claim C1", "grade 'papers' is none of paper"]),
    ({"lower_bound": True, "value": None}, ["claim C1", "a lower bound needs its value"]),
    ({"lower_bound": "no"}, ["claim C1", "lower_bound should be true or false, not 'no'"]),
    ({"derived": 1}, ["claim C1", "derived should be true or false, not 1"]),
    ({"derived": True}, ["claim C1", "two operands"]),
    ({"operands": {"a": 3.5}}, ["claim C1", "operands are two"]),
    ({"operands": {"a": 3.5, "b": "2"}}, ["claim C1", "'2' is not a number but text"]),
    ({"operands": {"a": 3.5, "b": True}}, ["claim C1", "operands: b should be a number"]),
    ({"operands": {"a": 3.51, "b": 2.0}}, ["claim C1", "value is 1.5, but 3.51 minus 2 is 1.51"]),
    ({"operands": {"a": 3.4, "b": 2.0}, "lower_bound": True}, ["claim C1", "value is 1.5, but 3.4 minus 2 is 1.4"]),
    ({"operands": {"a": 3.5, "b": 2.0}, "value": None}, ["claim C1", "operands are two"]),
    ({"operands": {"a": 3.5, "b": 2.0}, "unit": "ratio"}, ["claim C1", "3.5 divided by 2 is 1.75"]),
    ({"id": ""}, ["id is empty"]),
    ({"statement": ["s"]}, ["claim C1", "statement should be text"]),
    ({"direction": ["increase"]}, ["claim C1", "direction should be text"]),
    ({"margin": "1", "margin_why": "w"}, ["claim C1", "'1' is not a number but text"]),
    ({"margin": math.nan, "margin_why": "w"}, [".nan' is no finite number"]),
    ({"margin": 0, "margin_why": "w"}, ["claim C1", "margin is positive"]),
    ({"margin": -1.0, "margin_why": "w"}, ["claim C1", "margin is positive"]),
    ({"margin": 1.0}, ["claim C1", "margin_why", "reason"]),
    ({"margin": 1.0, "margin_why": ""}, ["claim C1", "margin_why is empty"]),
    ({"margin_why": "because"}, ["claim C1", "margin", "reason"]),
    ({"direction": "no worse"}, ["claim C1", "no worse", "needs a margin"]),
    ({"vaule": 3}, ["claim C1", "vaule"]),
])  # fmt: skip
def test_wrong_claim(write, change, words, refusal):
    write(claims=[CLAIM | change])
    message = refusal(reported.load, "x")
    assert all(word in message for word in ["x.yaml", *words])


@pytest.mark.parametrize(("change", "words"), [
    ({"kind": "printed"}, ["table T1", "'printed'"]),
    ({"grade": "derived"}, ["table T1", "grade paper"]),
    ({"companion": True}, ["table T1", "companion"]),
    ({"source": ""}, ["table T1", "source"]),
    ({"kind": "open"}, ["table T1", "open"]),
    ({"rows": [["a", 1, 2], ["a", 1]]}, ["table T1", "row 2", "2 cells", "3 columns"]),
    ({"rows": None}, ["table T1"]),
    ({"rows": [1]}, ["table T1"]),
    ({"rows": [["a", 1, True]]}, ["table T1", "rows should be", "True"]),
    ({"rows": [["a", 1, [2]]]}, ["table T1", "rows should be", "[2]"]),
    ({"rows": [["a", 1, math.inf]]}, [".inf' is no finite number"]),
    ({"columns": ["net", "beta", "beta"]}, ["table T1", "columns"]),
    ({"rows": []}, ["table T1", "kind reported has rows"]),
    ({"columns": [], "rows": [[]]}, ["table T1", "columns"]),
    ({"columns": "net"}, ["table T1", "columns"]),
    ({"notes": "none"}, ["table T1", "notes"]),
    ({"approximate": "no"}, ["table T1", "approximate should be true or false"]),
    ({"unit": "percents"}, ["table T1", "unit"]),
])  # fmt: skip
def test_wrong_table(write, change, words, refusal):
    write(tables=[TABLE | change])
    message = refusal(reported.load, "x")
    assert all(word in message for word in ["x.yaml", *words])


def test_a_margin_and_the_lines_of_a_ledger_are_read(write):
    write(claims=[CLAIM | {"direction": "no worse", "margin": 1, "margin_why": "seeds"}], ledger=[LINE, LINE | {
        "id": "two"}])
    record = reported.load("x")
    assert (record.claim("C1").margin, record.claim("C1").margin_why) == (1, "seeds")
    assert record.ledger == (reported.Line(**LINE), reported.Line(**LINE | {"id": "two"}))
    write()
    assert reported.load("x").claim("C1").margin is None


@pytest.mark.parametrize(("lines", "words"), [
    (None, ["ledger should be"]),
    ({"one": LINE}, ["ledger should be"]),
    (["C1"], ["line 1 of the ledger"]),
    ([LINE, {k: v for k, v in LINE.items() if k != "words"}], ["line one of the ledger", "'words' is missing"]),
    ([LINE | {"why": "because"}], ["line one of the ledger", "'why'"]),
    ([LINE | {"claim": "C9"}], ["line one of the ledger", "no claim C9"]),
    ([LINE | {"claim": "T1"}], ["line one of the ledger", "no claim T1"]),
    ([LINE | {"primary": "C2 {net}"}], ["line one of the ledger", "no comparison of claim C1"]),
    ([LINE | {"primary": "C10 {net}"}], ["line one of the ledger", "no comparison of claim C1"]),
    ([], ["ledger has no line"]),
    ([LINE | {"primary": "C1 {net"}], ["line one of the ledger", "brace"]),
    ([LINE | {"primary": "C1 {net.name}"}], ["line one of the ledger", "brace"]),
    ([LINE, LINE], ["line one of the ledger", "used twice"]),
    ([LINE | {"words": ""}], ["line one of the ledger", "words is empty"]),
    ([LINE | {"primary": None}], ["line one of the ledger", "primary should be text"]),
    ([LINE | {"id": 1}], ["of the ledger", "id should be text"]),
    ([LINE | {"id": ["one"]}], ["of the ledger", "id should be text"]),
])  # fmt: skip
def test_wrong_ledger(write, lines, words, refusal):
    write(ledger=lines)
    message = refusal(reported.load, "x")
    assert all(word in message for word in ["x.yaml", *words]), message


def test_ids_are_unique(write, refusal):
    write(claims=[CLAIM, CLAIM])
    assert refusal(reported.load, "x") == "x.yaml, claim C1: id C1 is used twice"
    write(tables=[TABLE | {"id": "C1"}])
    assert refusal(reported.load, "x") == "x.yaml, table C1: id C1 is used twice"


@pytest.mark.parametrize(("text", "word"), [
    ("", "expected settings"),
    ("- 1", "expected settings"),
    (f"paper: x\ncitation: {CITATION}\nclaims: {{}}\ntables: []\nledger: []\nhyperparameters: {{}}\n",
     "claims should be"),
    (f"paper: x\ncitation: {CITATION}\nclaims: []\ntables: []\nledger: []\n", "'hyperparameters' is missing"),
    (f"paper: x\ncitation: {CITATION}\nclaims: [3]\ntables: []\nledger: []\nhyperparameters: {{}}\n", "claim 1"),
    (f"paper: x\ncitation: {CITATION}\nclaims: []\ntables: []\nledger: []\nhyperparameters: {{a: {{}}}}\n",
     "hyperparameters, a: kind None"),
    (f"paper: x\ncitation: {CITATION}\nclaim: []\ntables: []\nledger: []\nhyperparameters: {{}}\n",
     "'claim'; did you mean 'claims'?"),
    (f"paper: y\ncitation: {CITATION}\nclaims: []\ntables: []\nledger: []\nhyperparameters: {{}}\n",
     "this is the file of paper 'y'"),
    ("citation: {title: [}\n", "line 1"),
    ("citation: {date: 2020-99-99}\n", "line 1"),
])  # fmt: skip
def test_broken_file(write, text, word, refusal):
    write(text=text)
    message = refusal(reported.load, "x")
    assert "x.yaml" in message and word in message


def test_missing_files(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(reported, "FOLDER", tmp_path / "nowhere")
    assert reported.papers() == []
    assert "no YAML file" in refusal(reported.load, "iwi")


def test_unreadable_file(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(reported, "FOLDER", tmp_path)
    (tmp_path / "x.yaml").mkdir()
    assert "x.yaml cannot be read" in refusal(reported.load, "x")
    (tmp_path / "y.yaml").write_bytes(b"\xff\xfe\xff")
    assert "y.yaml cannot be read" in refusal(reported.load, "y")


def places(content, path=()):
    """The paths of all keys, in lists, too."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(content, dict):
            yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def misspelt(mapping, key):
    mapping[f"{key}x"] = mapping.pop(key)


def nulled(mapping, key):
    mapping[key] = None


def emptied(mapping, key):
    mapping[key] = type(mapping[key])() if isinstance(mapping[key], str | list | dict) else []


def retyped(mapping, key):
    mapping[key] = [mapping[key]] if isinstance(mapping[key], str | None) else str(mapping[key])


def lost(mapping, key):
    del mapping[key]


def decisive(record):
    """What verdicts and reported numbers depend on."""
    return (record.ledger, [(c.id, c.direction, c.reported, c.lower_bound, c.margin, c.kind)
                            for c in record.claims.values()],
            [(t.id, t.kind, t.rows) for t in record.tables.values()])


ALLOWED = {  # what nothing else in the file gives away: a number is not on record, a bound is none
    ("rsr", nulled): {("claims", number, "value") for number in range(3)},
    ("sparsity_theory", lost): {("claims", 8, "lower_bound")},
}


@pytest.mark.parametrize("change", [misspelt, nulled, emptied, retyped, lost])
@pytest.mark.parametrize("paper", PAPERS)
def test_whatever_is_wrong_in_a_file_no_verdict_changes_without_a_word(paper, change, monkeypatch):
    """One key after another; of claims and tables that are alike in what is known of them, only one has its turn."""
    content = yaml.safe_load((reported.FOLDER / f"{paper}.yaml").read_text())
    monkeypatch.setattr(reported.yamls, "parsed", lambda text, where: content)
    before, turn, accepted, refused = decisive(reported.load(paper)), set(), [], 0
    for *path, key in list(places(content)):
        mapping = content
        for step in path:
            mapping = mapping[step]
        kind = (*(step for step in path if isinstance(step, str)), key,
                *(str(type(value)) for value in mapping.values() if path and path[0] in ("claims", "ledger", "tables")))
        if kind in turn:
            continue
        turn.add(kind)
        kept = dict(mapping)
        change(mapping, key)
        try:
            after = decisive(reported._from_text.__wrapped__(paper, ""))
            accepted += [] if after == before else [(*path, key)]
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{paper}.yaml") and len(str(error).splitlines()) == 1
        mapping.clear()
        mapping.update(kept)
    assert refused > len(turn) / 4  # most of what is left are sections of hyperparameters, whose keys are free
    assert set(accepted) <= ALLOWED.get((paper, change), set()) | {("tables",)}
