"""Settings: checked when made, written and read back, named by what they are."""

import copy
import importlib
import json
import linecache
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import MISSING, FrozenInstanceError, fields, replace
from fractions import Fraction
from typing import get_args, get_type_hints

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import sparserobust.running.jobs  # noqa: F401  (registers every kind)
from sparserobust import Data, Recipe, Run, UserError, yamls
from sparserobust.attacks import FGSM, PGD
from sparserobust.config import Attack, Inheritance, Measurement, Model, Objective, Sparsifier
from sparserobust.evaluation import Accuracy
from sparserobust.models import PreActResNet
from sparserobust.objectives import Adversarial, Natural
from sparserobust.paths import PROJECT
from sparserobust.settings import Settings, number, settings, unknown
from sparserobust.sparsifiers import RGSM, RVSM, Dense, Magnitude, Ticket

FAMILIES = (Model, Attack, Objective, Sparsifier, Measurement)
MEMBERS = [c for f in FAMILIES for c in f.family.values() if c.__module__.startswith("sparserobust")]
RUN = Run(data=Data(name="cifar10", crop_padding=4, flip=True), model=PreActResNet(members=2, noise=0.1),
          objective=Adversarial(attack=PGD(epsilon=8 / 255, step_size=2 / 255, steps=10)),
          sparsifier=RVSM(beta=0.1), seed=3,
          recipe=Recipe(epochs=200, schedule="multistep", milestones=(80.0, 120.0), averaging=0.99))


def through_json(thing: Settings) -> dict:
    return json.loads(json.dumps(thing.plain()))


# ----------------------------------------------------------------------------- any settings of any kind


def values(hint, default):
    """Values of a type that a member may or may not accept."""
    if hint is Run:
        return st.sampled_from([RUN, replace(RUN, seed=4)])
    if isinstance(hint, type) and issubclass(hint, Settings):
        return st.sampled_from([c for c in MEMBERS if issubclass(c, hint)]).flatmap(members)
    if get_args(hint) and get_args(hint)[-1] is not Ellipsis:  # X | None
        return st.none() | values(next(h for h in get_args(hint) if h is not type(None)), default)
    if default is MISSING and get_args(hint):  # tuple[float, ...]
        return st.lists(st.floats(0, 1), min_size=1, max_size=4)
    if hint is str and default is MISSING:
        return st.sampled_from(["my_net.py:build@0123456789abcdef", "my_net.py:build(2)@0123456789abcdef"])
    known = {float: st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), bool: st.booleans(),
             int: st.sampled_from([1, 8, 20]) | st.integers(1, 50)}
    return known.get(hint, st.just(default))


@st.composite
def members(draw, kind):
    """One member with some settings at their default and some not."""
    given = {}
    for f in fields(kind):
        required = f.default is f.default_factory  # both missing
        if required or draw(st.booleans()):
            given[f.name] = draw(values(get_type_hints(kind)[f.name], f.default))
    try:
        return kind(**given)
    except UserError:
        assume(False)


@pytest.mark.parametrize("kind", MEMBERS, ids=lambda c: c.kind)
@hypothesis_settings(max_examples=30)
@given(st.data())
def test_every_kind_survives_plain_and_parse(kind, data):
    family = next(f for f in FAMILIES if issubclass(kind, f))
    thing = data.draw(members(kind))
    again = family.parse(through_json(thing))
    assert again == thing
    assert type(again) is kind
    assert again.identity == thing.identity
    explicit = {f.name: getattr(thing, f.name) for f in fields(kind)}
    assert kind(**explicit).identity == thing.identity
    as_written = {k: v.plain() if isinstance(v, Settings) else v for k, v in explicit.items()} | {"kind": kind.kind}
    assert family.parse(as_written).identity == thing.identity


@given(st.data())
def test_different_settings_have_different_identities(data):
    kinds = st.sampled_from(MEMBERS).flatmap(members)
    one, other = data.draw(kinds), data.draw(kinds)
    assert (one == other) == (one.identity == other.identity)


@given(st.integers(0, 2**40), st.floats(1e-9, 1e9), st.lists(st.floats(0, 200), min_size=1))
def test_runs_survive_plain_and_parse(seed, lr, milestones):
    recipe = replace(RUN.recipe, lr=lr, milestones=milestones)
    run = replace(RUN, seed=seed, recipe=recipe, start=replace(RUN, seed=seed + 1, start=RUN))
    again = Run.parse(through_json(run))
    assert again == run
    assert again.identity == run.identity
    assert again.start.start == RUN


# --------------------------------------------------------------------------------------------- identity


def test_identity_is_the_same_in_every_process():
    code = ("import json, sys; import sparserobust.attacks, sparserobust.sparsifiers; from sparserobust import Run;"
            "print(Run.parse(json.loads(sys.argv[1])).identity)")
    told = subprocess.run([sys.executable, "-c", code, json.dumps(RUN.plain())], capture_output=True, text=True,
                          check=True, env={"PYTHONHASHSEED": "1"}).stdout.strip()
    assert told == RUN.identity
    assert len(told) == 12


def test_every_setting_of_a_run_enters_its_identity():
    changed = [
        replace(RUN, seed=4), replace(RUN, data=replace(RUN.data, flip=False)), replace(RUN, sparsifier=Dense()),
        replace(RUN, sparsifier=RVSM(beta=0.2)), replace(RUN, model=replace(RUN.model, noise=0.2)),
        replace(RUN, objective=Natural()), replace(RUN, objective=replace(RUN.objective, clean_weight=0.5)),
        replace(RUN, start=RUN), replace(RUN, start=replace(RUN, seed=4)),
        *(replace(RUN, recipe=replace(RUN.recipe, **{key: value})) for key, value in {
            "epochs": 201, "batch_size": 127, "lr": 0.2, "milestones": (80.0,), "momentum": 0.8, "weight_decay": 0.0,
            "averaging": 0.9, "averaged_norms": True, "select": "best", "precision": "float32", "watched": True,
            "stop": 3}.items()),
        replace(RUN, start=RUN, inheritance=Inheritance()), replace(RUN, start=RUN, inheritance=Inheritance(kappa=0.1)),
    ]  # fmt: skip
    assert len({run.identity for run in [RUN, *changed]}) == len(changed) + 1


def test_a_later_setting_at_its_default_leaves_identities_valid():
    @settings
    class Before(Settings):
        a: float

    @settings
    class After(Settings):
        a: float
        b: int = 3
        c: Data = Data()

    After.__name__ = "Before"
    assert After(a=1).identity == After(a=1, b=3, c=Data(name="digits")).identity == Before(a=1).identity
    assert len({Before(a=1).identity, Before(a=2).identity, After(a=1, b=4).identity}) == 3


@pytest.mark.parametrize(("one", "other"), [
    (Recipe(epochs=1, lr=1), Recipe(epochs=1, lr=1.0)),
    (Recipe(epochs=1, lr="1e-2"), Recipe(epochs=1, lr=0.01)),  # type: ignore[arg-type]
    (Recipe(epochs=1, schedule="multistep", milestones=[80, 120]),  # type: ignore[arg-type]
     Recipe(epochs=1, schedule="multistep", milestones=(80.0, 120.0))),
    (FGSM(epsilon="8/255"), FGSM(epsilon=8 / 255)),  # type: ignore[arg-type]
    (RVSM(beta=1, lam="1e-6"), RVSM(beta=1.0)),  # type: ignore[arg-type]
    (Recipe(epochs=1, weight_decay=0.0), Recipe(epochs=1, weight_decay=-0.0)),
    (Adversarial(attack={"kind": "fgsm", "epsilon": 0.1}),  # type: ignore[arg-type]
     Adversarial(attack=FGSM(epsilon=0.1))),
], ids=["int", "text", "list", "fraction", "default", "minus zero", "mapping"])  # fmt: skip
def test_however_it_is_written_it_is_the_same(one, other):
    assert one == other
    assert one.identity == other.identity


def test_plain_holds_what_differs_from_the_defaults():
    assert Recipe(epochs=3).plain() == {"epochs": 3}
    assert Recipe(epochs=3, lr=0.1, momentum=0.5).plain() == {"epochs": 3, "momentum": 0.5}
    assert Dense().plain() == {"kind": "dense"}
    assert RGSM(lambda1=0.1, beta=1).plain() == {"kind": "rgsm", "lambda1": 0.1}
    assert Accuracy(attack=FGSM(epsilon=0.1)).plain() == {"kind": "accuracy",
                                                          "attack": {"kind": "fgsm", "epsilon": 0.1}}


# ------------------------------------------------------------------- identity: classes of one's own

OWN = """\
from sparserobust.config import Measurement, Sparsifier, settings

SHARE = {share}

@settings
class Mine(Sparsifier, kind="of_my_own"):
    level: float = 0.5

    def start(self, model):
        return {{}}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(text)` imports a file with this text, anew if there was one; its classes are forgotten after the test."""
    for family in FAMILIES:
        monkeypatch.setattr(family, "family", dict(family.family))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a second edit within a second is seen

    names = set()

    def own(text, name="file_of_my_own", folder=tmp_path):
        names.add(name)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield own
    for name in names:
        sys.modules.pop(name, None)


def containing(sparsifier) -> list[str]:
    """Identities of settings that contain this sparsifier."""
    run = replace(RUN, sparsifier=sparsifier)
    pruned = replace(RUN, start=run, sparsifier=Magnitude(sparsity=0.5))
    return [s.identity for s in (sparsifier, run, pruned, replace(RUN, sparsifier=Ticket(pruned=run)))]


def test_identities_of_library_settings_never_change():
    tiny = Run(data=Data(train_images=64), model=PreActResNet(depth=8, width=2), objective=Natural(),
               recipe=Recipe(epochs=2, batch_size=24))
    for thing, identity in [
            (RUN, "26a555035d2e"), (replace(RUN, start=RUN, seed=4), "a0acad5fcdf5"), (tiny, "dddcbf2b2908"),
            (RUN.model, "87604046b394"), (RUN.objective.attack, "f9dde37c8f74"), (Natural(), "789fa34c0838")]:
        assert thing.identity == identity
    published = sorted((PROJECT / "data" / "published").glob("*/*.json"))
    assert published
    for path in published:
        assert Run.parse(json.loads(path.read_text())["record"]["run"]).identity == path.stem


def test_the_source_of_a_class_of_ones_own_enters_whatever_contains_it(own):
    before = containing(own(OWN.format(share=0.5)).Mine())
    assert containing(own(OWN.format(share=0.5)).Mine()) == before
    after = containing(own(OWN.format(share=0.6)).Mine())  # a number outside the class
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert len({*before, *after}) == 2 * len(before)


def test_paths_and_line_endings_do_not_enter(own, tmp_path):
    text = OWN.format(share=0.5)
    before = containing(own(text).Mine())
    for other in (text.replace("\n", "\r\n"), text.rstrip("\n"), "\ufeff" + text):
        assert containing(own(other.encode(), folder=tmp_path / "elsewhere").Mine()) == before


def test_the_source_of_a_base_in_another_file_enters_too(own):
    text = ("from file_of_a_base import Mine\nfrom sparserobust.config import settings\n"
            "@settings\nclass Derived(Mine, kind='derived_of_my_own'):\n    pass\n")
    found = []
    for share in (0.5, 0.6):
        own(OWN.format(share=share), "file_of_a_base")
        found.append(containing(own(text).Derived()))
    assert all(a != b for a, b in zip(*found, strict=True))


def test_two_classes_of_one_file_are_told_apart(own):
    one, two = "@settings\nclass One(Sparsifier):\n    pass\n", "@settings\nclass Two(Sparsifier):\n    pass\n"
    module = own("from sparserobust.config import Sparsifier, settings\n" + one + two)
    assert len({*containing(module.One()), *containing(module.Two())}) == 8


def test_a_file_changed_after_its_import_is_told_to_be_reloaded(own, tmp_path, refusal):
    module = own(OWN.format(share=0.5))
    kept, identity = module.Mine(), module.Mine().identity
    assert importlib.reload(module).Mine().identity == identity  # and registered anew
    assert type(Sparsifier.parse(module.Mine().plain())) is module.Mine
    (tmp_path / "file_of_my_own.py").write_text(OWN.format(share=0.6))
    for thing in (module.Mine(), kept):
        message = refusal(lambda thing=thing: replace(RUN, sparsifier=thing).identity)
        assert "file_of_my_own.Mine" in message and "reload(file_of_my_own)" in message
    assert importlib.reload(module).Mine().identity != identity
    (tmp_path / "file_of_my_own.py").unlink()
    assert "has changed" in refusal(lambda: module.Mine().identity)


@pytest.mark.parametrize("name", [None, "__main__", "nowhere"])
def test_a_class_without_source_is_told_to_move_into_a_file(own, name, refusal, monkeypatch):
    monkeypatch.setitem(linecache.cache, "<string>", (1, None, ["x"], "<string>"))  # as `python -c` does, from 3.13 on
    space = {} if name is None else {"__name__": name}
    exec(OWN.format(share=0.5), space)
    thing = space["Mine"]()
    assert thing.plain() == {"kind": "of_my_own"}
    for container in (thing, replace(RUN, sparsifier=thing)):
        message = refusal(lambda container=container: container.identity)
        assert "Mine" in message and "move the class into a file" in message


def test_a_class_in_a_notebook_cell_has_the_source_of_its_cell(own, monkeypatch):
    def cell(share):
        text, space = OWN.format(share=share), {"__name__": "a_notebook"}
        name = f"<cell {hash(text)}>"  # as in IPython, which keeps the text of cells in linecache
        monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
        exec(compile(text, name, "exec"), space)
        return containing(space["Mine"]())

    first = cell(0.5)
    assert cell(0.5) == first
    assert all(a != b for a, b in zip(first, cell(0.6), strict=True))


def test_two_different_classes_of_one_kind_are_refused(own, refusal):
    first = own(OWN.format(share=0.5)).Mine
    for text, name, other in [(OWN.format(share=0.5), "file_of_another", "file_of_another.Mine"),
                              (OWN.format(share=0.5).replace("Mine", "Yours"), "file_of_my_own",
                               "file_of_my_own.Yours")]:
        message = refusal(own, text, name)
        assert "'of_my_own'" in message and "file_of_my_own.Mine" in message and other in message
        assert Sparsifier.family["of_my_own"] is first
    again = own(OWN.format(share=0.6)).Mine  # the same name: the newer one counts
    assert Sparsifier.family["of_my_own"] is again is not first
    assert "magnitude" in refusal(own, OWN.format(share=0.5).replace("of_my_own", "magnitude"))
    assert Sparsifier.family["magnitude"] is Magnitude


def test_a_class_that_would_be_taken_for_its_base_is_refused(own, refusal):
    text = "from sparserobust.sparsifiers import Magnitude\nclass Mine(Magnitude):\n    pass\n"
    message = refusal(lambda: replace(RUN, sparsifier=own(text).Mine(sparsity=0.5)).identity)
    assert "file_of_my_own.Mine" in message and "class Mine(Magnitude, kind='...')" in message


# --------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("parse", "plain", "named"), [
    (Attack.parse, {"kind": "pdg"}, ["'pdg'", "'pgd'"]),
    (Sparsifier.parse, {"kind": "rvms", "beta": 1}, ["'rvms'", "'rvsm'"]),
    (Objective.parse, {}, ["kind", "natural"]),
    (Objective.parse, {"kind": None}, ["kind", "natural"]),
    (Attack.parse, {"kind": ["pgd"]}, ["kind", "pgd"]),
    (Attack.parse, {"kind": "fgsm", "epsilom": 0.1}, ["'epsilom'", "'epsilon'"]),
    (Attack.parse, {"kind": "fgsm"}, ["'epsilon' is missing"]),
    (Recipe.parse, {"epochs": 1, "learning_rate": 1}, ["'learning_rate'", "known: epochs, "]),
    (Recipe.parse, {"epochs": 1, "weightdecay": 1}, ["'weightdecay'", "'weight_decay'"]),
    (Recipe.parse, {}, ["'epochs' is missing"]),
    (Recipe.parse, "fast", ["Recipe", "'fast'"]),
    (Recipe.parse, None, ["Recipe", "None"]),
    (PGD.parse, {"kind": "fgsm", "epsilon": 0.1, "step_size": 0.1, "steps": 1}, ["kind", "fgsm"]),
    (Run.parse, RUN.plain() | {"model": {"kind": "preact_resnet", "dept": 8}}, ["'dept'", "'depth'"]),
    (Run.parse, RUN.plain() | {"start": {"seed": 1}}, ["'data' is missing"]),
    (Run.parse, RUN.plain() | {"sed": 1}, ["'sed'", "'seed'"]),
])  # fmt: skip
def test_unknown_kinds_and_keys_are_refused_with_the_nearest(parse, plain, named, refusal):
    message = refusal(parse, plain)
    assert all(name in message for name in named)


@pytest.mark.parametrize(("make", "given", "named"), [
    (Recipe, {"epochs": 1.5}, ["epochs", "a whole number", "1.5"]),
    (Recipe, {"epochs": 2.0}, ["epochs", "a whole number"]),
    (Recipe, {"epochs": True}, ["epochs", "a whole number"]),
    (Recipe, {"epochs": "3"}, ["epochs", "a whole number"]),
    (Recipe, {"epochs": 1, "lr": "fast"}, ["lr", "a number", "'fast'"]),
    (Recipe, {"epochs": 1, "lr": None}, ["lr", "a number"]),
    (Recipe, {"epochs": 1, "lr": True}, ["lr", "a number"]),
    (Recipe, {"epochs": 1, "lr": float("nan")}, ["lr", "a number"]),
    (Recipe, {"epochs": 1, "lr": [0.1]}, ["lr", "a number"]),
    *((Recipe, {"epochs": 1, "lr": text}, ["lr", "a number", repr(text)])
      for text in ("1/0", "1/0.0", "nan/1", "inf/1", "1/inf", "1/nan", "1/2/3", "/2", "1/", "a/b", "1e308/1e-308")),
    *((FGSM, {"epsilon": text}, ["epsilon"]) for text in ("-0.5/255", "8/-255", "-1", "0.5/0.25")),
    (Recipe, {"epochs": 1, "lr": "1e400"}, ["lr", "a number"]),
    (Recipe, {"epochs": 1, "lr": float("inf")}, ["lr"]),
    (Recipe, {"epochs": 1, "milestones": 80}, ["milestones"]),
    (Recipe, {"epochs": 1, "milestones": ["a"]}, ["milestones", "a number"]),
    (Recipe, {"epochs": 1, "schedule": "one_cycle"}, ["schedule", "'onecycle'"]),
    (Recipe, {"epochs": 1, "schedule": "multistep"}, ["milestones"]),
    (Recipe, {"epochs": 1, "milestones": [1]}, ["milestones"]),
    (Recipe, {"epochs": -1}, ["epochs"]),
    (Recipe, {"epochs": 1, "batch_size": 0}, ["batch_size"]),
    (Recipe, {"epochs": 1, "lr": 0}, ["lr"]),
    (Recipe, {"epochs": 1, "averaging": 1}, ["averaging"]),
    (Recipe, {"epochs": 1, "averaging": -0.1}, ["averaging"]),
    (Recipe, {"epochs": 1, "averaged_norms": True}, ["averaging"]),
    (Recipe, {"epochs": 1, "momentum": -0.1}, ["momentum"]),
    (Recipe, {"epochs": 1, "weight_decay": -0.1}, ["weight_decay"]),
    (Recipe, {"epochs": 1, "select": "first"}, ["select", "last, best"]),
    (Recipe, {"epochs": 1, "precision": "float16"}, ["precision", "float"]),
    (Data, {"flip": 1}, ["flip", "true or false"]),
    (Data, {"name": 3}, ["name", "text"]),
    (Data, {"crop_padding": -1}, ["crop_padding"]),
    (Data, {"train_images": 0}, ["train_images"]),
    (Adversarial, {"attack": 3}, ["attack", "Attack"]),
    (Adversarial, {"attack": Natural()}, ["attack", "Attack"]),
    (PreActResNet, {"depth": 21}, ["depth", "21"]),
    (PreActResNet, {"members": 0}, ["members"]),
    (PreActResNet, {"noise": -0.1}, ["noise"]),
    (FGSM, {"epsilon": 8}, ["8/255"]),
    (Recipe, {"epochs": 3, "stop": 4}, ["stop"]),
    (Recipe, {"epochs": 3, "stop": -1}, ["stop"]),
    (Inheritance, {"kappa": -0.1}, ["kappa"]),
])  # fmt: skip
def test_wrong_types_and_values_are_refused(make, given, named, refusal):
    message = refusal(make, **given)
    assert all(name in message for name in [make.__name__, *named])


@pytest.mark.parametrize(("text", "value"), [
    ("8/255", 8 / 255), ("0.5/255", 0.5 / 255), ("1.5/255", 1.5 / 255), (".5/255", 0.5 / 255), ("8/255.0", 8 / 255),
    (" 8 / 255 ", 8 / 255), ("5e-1/255", 0.5 / 255), ("1e-3", 0.001), ("0.25", 0.25)])
def test_numbers_may_be_written_as_ratios(text, value):
    assert number(text) == FGSM(epsilon=text).epsilon == value
    assert FGSM.parse(yamls.parsed(f"epsilon: {text}", "a file")).identity == FGSM(epsilon=value).identity


@given(st.integers(0, 2**40), st.integers(1, 2**40))
def test_a_ratio_of_whole_numbers_is_the_nearest_number(top, bottom):
    assert number(f"{top}/{bottom}") == float(Fraction(top, bottom))


@pytest.mark.parametrize("changes", [{"seed": -1}, {"start": replace(RUN, model=PreActResNet(depth=8))}, {"start": 3},
                                     {"sparsifier": None}, {"data": "digits"}, {"inheritance": Inheritance()}])
def test_runs_that_make_no_sense_are_refused(changes, refusal):
    assert next(iter(changes)) in refusal(replace, RUN, **changes)


def test_a_choice_names_what_there_is(refusal):
    assert refusal(Magnitude, sparsity=0.5, scope="local") == (
        "Magnitude (magnitude): scope is global, layerwise or erk, not 'local'")
    assert refusal(RVSM, beta=1.0, replace="never").endswith("replace is end, every_epoch or swap, not 'never'")


def test_another_model_is_inherited_from_only_where_it_is_said_how():
    other = replace(RUN, model=PreActResNet(depth=8))
    assert replace(RUN, start=other, inheritance=Inheritance(kappa=0.1)).needs == (other,)


def test_the_lineage_of_a_run_is_all_that_has_to_be_trained_for_it_each_once():
    early = replace(RUN, recipe=replace(RUN.recipe, stop=2))
    pruned = replace(RUN, start=RUN, sparsifier=Magnitude(sparsity=0.5))
    ticket = replace(RUN, start=early, sparsifier=Ticket(pruned=pruned))
    again = replace(RUN, start=ticket, sparsifier=Ticket(pruned=pruned))
    assert again.lineage == [early, RUN, pruned, ticket, again]
    assert RUN.lineage == [RUN] and RUN.needs == ()
    assert early.cost == RUN.cost * 2 / 200


def test_a_run_may_stop_anywhere_from_its_beginning_to_its_end():
    assert [Recipe(epochs=3, stop=stop).trained_epochs for stop in (0, 1, 3, None)] == [0, 1, 3, 3]


# ----------------------------------------------------------------------------------------- immutability


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        RUN.seed = 4
    with pytest.raises(FrozenInstanceError):
        RUN.recipe.lr = 4.0
    milestones = [80, 120]
    recipe = replace(RUN.recipe, milestones=milestones)
    milestones.append(160)
    assert recipe.milestones == (80, 120)
    assert hash(replace(RUN)) == hash(RUN)
    assert {RUN: 1}[replace(RUN)] == 1


def test_plain_and_parse_leave_each_other_alone():
    plain = RUN.plain()
    kept = copy.deepcopy(plain)
    run = Run.parse(plain)
    assert plain == kept
    plain["recipe"]["epochs"] = 1
    plain["objective"]["attack"]["epsilon"] = 0.5
    assert run == RUN
    assert RUN.plain() == kept
    assert isinstance(kept, Mapping)


def test_changed_copies_have_their_own_identity():
    assert RUN.identity  # computed and kept
    assert replace(RUN, seed=9).identity != RUN.identity
    assert copy.deepcopy(RUN).identity == RUN.identity


def test_magnitude_and_dense_are_found_in_their_family():
    assert Sparsifier.parse({"kind": "magnitude", "sparsity": 0.5}) == Magnitude(sparsity=0.5)
    assert Sparsifier.parse({"kind": "dense"}) == Dense()
    assert "rvsm" not in Attack.family


# ------------------------------------------------------------------------------------------ plain data of a person


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["pgd", "digits", "8/255", "1e999999999", "1/0", "nan", 10**400, 2**63, -1, 1e300, "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "name", "epochs", "seed", "data", "model", "recipe", "depth", "attack", "a\nb"]),
        inner, max_size=4), max_leaves=12)


@given(st.dictionaries(st.sampled_from([f.name for f in fields(Run)]), PLAIN))
def test_settings_of_any_plain_data_are_made_or_refused_in_one_line(changes):
    """Whatever JSON or YAML may hold in the place of a setting."""
    try:
        made = Run.parse(RUN.plain() | changes)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Run.parse(through_json(made)) == made


@pytest.mark.parametrize(("text", "said"), [
    ('{"lr": NaN}', "lr should be a number, not nan"),
    ('{"lr": 1e999}', "lr should be a number, not inf"),
    ('{"lr": "1e999999999"}', "lr should be a number, not '1e999999999'"),
    ('{"lr": "1/0"}', "lr should be a number, not '1/0'"),
    (f'{{"lr": {"9" * 400}}}', "lr should be a number, not 999"),
    (f'{{"epochs": {"9" * 400}}}', "epochs should be a whole number, not 999"),
    ('{"epochs": ' + "[" * 900 + "]" * 900 + "}", "epochs should be a whole number, not [["),
    ('{"epochs": 1e2}', "epochs should be a whole number, not 100.0"),
    ('{"epo\\nchs": 1}', "unknown setting 'epo\\nchs'; did you mean 'epochs'?"),
    ("[1]", "expected settings such as {key: value}, got [1]"),
])
def test_settings_given_as_json_are_refused_in_a_short_line(text, said, refusal):
    content = json.loads(text)
    message = refusal(Recipe.parse, {"epochs": 1} | content if isinstance(content, dict) else content)
    assert said in message and len(message) < 500


def test_what_is_nested_too_deep_to_show_is_refused_all_the_same(refusal):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert refusal(Recipe.parse, {"epochs": deep}) == "Recipe: epochs should be a whole number, not this list"
    assert refusal(Recipe.parse, {"epochs": 16**5000}) == "Recipe: epochs should be a whole number, not this int"
    assert refusal(Recipe.parse, deep) == "Recipe: expected settings such as {key: value}, got this list"


def test_what_is_unknown_among_numbers_is_one_line_too(refusal):
    assert refusal(unknown, "level", 0.2, "x", {0.1: 1, 0.5: 2}) == "x: unknown level '0.2'; did you mean '0.5'?"
