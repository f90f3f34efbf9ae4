"""An audit against direct counts, its certificate against exact radii, and the report that tells it."""

import json
import re
import sys
import threading
import warnings
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sparserobust as sr
from scaffolding import splits_of
from sparserobust import auditing, files
from sparserobust.analysis import audit as parts
from sparserobust.analysis.audit import NETWORK, Audit
from sparserobust.analysis.linear import exact_radii
from sparserobust.attacks import PGD
from sparserobust.cli import main
from sparserobust.data import Split, Splits
from sparserobust.evaluation import Accuracy
from sparserobust.imagewise import unpack
from sparserobust.reporting.audits import Report, beside
from sparserobust.reporting.estimates import binomial_interval

QUICK = Audit(epsilon=0.08, images=60, few=20, queries=30, autoattack=False)


@pytest.fixture(scope="module")
def result(net, digits):
    return QUICK(net, digits)


@pytest.fixture
def report(result):
    return Report(QUICK, result, "a net", {"architecture": "Net", "data": "digits"})


def test_what_an_audit_counts_is_what_accuracy_counts(result, net, digits):
    asked = QUICK.accuracies(random=False)
    assert list(result["attacks"]) == list(asked) and "PGD-20, averaged gradients" not in asked
    for name in ("clean", "one step", "PGD-20", "PGD-20, margin loss"):
        assert result["attacks"][name]["count"] == asked[name](net, digits)["count"], name
    right = {name: unpack(text) > 0 for name, text in result["each"].items()}
    worst = np.logical_and.reduce([hits for name, hits in right.items() if name])
    assert (right[""] == worst).all() and result["count"] == worst.sum() == round(60 * result["value"])
    assert 0 < result["count"] < result["attacks"]["clean"]["count"]


def test_the_first_attack_is_run_once(net, digits, monkeypatch):
    """And once more where it is asked for again; each that follows it counts as if it had run it itself."""
    audit, begun, call = Audit(epsilon=0.1, images=30, few=5, queries=5, autoattack=False), [], PGD.__call__

    def counted(self, model, images, *more):
        begun.append((self, len(images)))
        return call(self, model, images, *more)

    monkeypatch.setattr(PGD, "__call__", counted)
    result = audit(net, digits)
    assert [images for attack, images in begun if attack == audit.pgd()].count(30) == 1
    for name, measure in audit.accuracies(random=False).items():
        alone = measure(net, digits)
        assert result["attacks"][name].items() <= alone.items() and result["each"][name] == alone["each"][""], name


def test_a_curve_falls_from_the_clean_answers_to_nothing(result, net, digits):
    counts = [row["count"] for row in result["curve"]]
    assert counts[0] == Accuracy(images=20)(net, digits)["count"] and counts[-1] == 0
    assert counts == sorted(counts, reverse=True)
    assert [row["radius"] for row in result["curve"]] == pytest.approx([0, 0.02, 0.04, 0.08, 0.16, 0.32, 1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_certificate_of_a_linear_network_is_exact(norm):
    torch.manual_seed(0)
    weights, images = torch.randn(3, 36), 0.3 + 0.4 * torch.rand(40, 1, 6, 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(weights)
        labels = model(images).argmax(1)
        radii = exact_radii(weights, torch.zeros(3), images.flatten(1), labels, norm)
    epsilon = float(radii.sort().values[19:21].mean())
    result = replace(QUICK, epsilon=epsilon, norm=norm, images=40, few=40)(model, splits_of(images, labels, classes=3))
    assert result["certificate"]["count"] == int((radii >= epsilon).sum()) <= result["count"]
    assert result["count"] - result["certificate"]["count"] <= 3  # attacks find what the proof leaves


def test_a_proof_that_an_attack_refutes_is_an_error(net, digits, monkeypatch):
    monkeypatch.setattr(parts, "guaranteed_radius", lambda model, images, *_: torch.ones(len(images)))
    with pytest.raises(RuntimeError, match="the bound is wrong"):
        QUICK(net, digits)


def test_what_could_not_be_measured_is_said_and_is_no_number(net, digits, monkeypatch):
    model = nn.Sequential(net, nn.GroupNorm(1, 10)).eval()  # of which no bound is known
    found = QUICK(model, digits)
    assert found["certificate"] is None and "group_norm" in found["not_measured"]["certificate"]
    assert "not measured" not in {flag["kind"] for flag in found["flags"]}  # honest networks have none either


class NoWayBack(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()


class Forward(nn.Module):
    """A network that fails, in one way or another, where gradients are asked for."""

    def __init__(self, net, error=None):
        super().__init__()
        self.net, self.error = net, error

    def forward(self, x):
        if self.error and x.requires_grad:
            raise self.error
        return self.net(NoWayBack.apply(x))


def test_a_network_that_no_gradient_attack_could_try_is_not_to_be_relied_on(net, digits):
    """It withstands all that was tried, which was noise and a few queries."""
    found = QUICK(Forward(net).eval(), digits)
    kinds = {flag["kind"] for flag in found["flags"]}
    assert {"not attacked", "not looked at"} <= kinds and "PGD-20" in found["not_measured"]
    assert "Not to be relied on" in Report(QUICK, found, "a net", {}).verdict()
    assert found["count"] > QUICK(net, digits)["count"]


def test_an_audit_for_which_memory_does_not_suffice_says_so_and_counts_nothing(net, digits, refusal):
    model = Forward(net, torch.OutOfMemoryError("out of memory")).eval()
    assert "memory ran out in 'one step'" in refusal(QUICK, model, digits)


def test_a_network_that_is_not_finite_is_not_judged(digits, refusal):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    nn.init.constant_(model[1].weight, torch.nan)
    assert "cannot be judged: the network answers with numbers that are not finite" in refusal(QUICK, model, digits)


def test_images_that_were_scaled_are_refused(net, digits, refusal):
    split = Split(2 * digits.test.images - 1, digits.test.labels)
    data = Splits(split, split, split, digits.classes)
    assert "normalisation belongs into the network" in refusal(sr.audit, net, data)


def test_the_table_has_each_attack_in_order_with_wilsons_interval(report, result):
    stored = json.loads(json.dumps(result, sort_keys=True))  # as a store keeps it
    for each in (report, replace(report, result=stored)):
        table = each.attacks()
        assert list(table.index) == [*result["attacks"], "all of these"]
        low, high = binomial_interval(result["count"], 60)
        assert table.loc["all of these", "95 % interval"] == f"[{100 * low:.1f}, {100 * high:.1f}]"
        assert table.loc["clean", "images"] == f"{result['attacks']['clean']['count']} of 60"


def test_the_figure_shows_the_counts(report, result):
    bars, line = report.figure().axes
    assert [text.get_text() for text in bars.get_yticklabels()] == list(report.attacks().index)
    shares = [100 * row["count"] / 60 for row in result["attacks"].values()]
    dots = [float(each.get_xdata()[0]) for each in bars.lines]
    assert dots == pytest.approx([*shares, 100 * result["value"]])
    assert line.lines[0].get_ydata() == pytest.approx([5 * row["count"] for row in result["curve"]])


def test_a_page_needs_nothing_from_elsewhere_and_hides_no_flag(report):
    flag = {"kind": "black box", "found": "<script>", "means": "it misleads"}
    flagged = replace(report, result=report.result | {"flags": [flag], "not_measured": {"certificate": "no & why"}})
    for each, words in ((report, "no proof"), (flagged, "Not to be relied on")):
        page = each.page()
        assert words in page and each.name in page
        assert all(link.startswith("data:") for link in re.findall(r"(?:src|href)='([^']*)'", page))
    assert "&lt;script&gt;" in page and "<script" not in page and "no &amp; why" in page
    assert flagged.unreliable and not report.unreliable and "black box" in str(flagged)


def test_a_record_has_the_keys_of_robustbench(report, result, tmp_path):
    page, path = report.save(tmp_path / "out")
    record = json.loads(path.read_text())
    assert page.suffix == ".html" and path.name == "a_net.json"
    assert record["clean_acc"] == f"{100 * result['attacks']['clean']['value']:.2f}" and "autoattack_acc" not in record
    assert (record["eps"], record["dataset"], record["unreliable"]) == ("0.08", "digits", False)
    assert record["audit"]["count"] == result["count"]
    tried = replace(report, settings=replace(QUICK, epsilon=8 / 255), result=result | {"attacks": result["attacks"] | {
        "AutoAttack": {"value": 0.5, "count": 30, "total": 60}}})
    assert (tried.record()["eps"], tried.record()["autoattack_acc"]) == ("8/255", "50.00")


def test_no_audit_replaces_another(report, tmp_path):
    first = report.save(tmp_path)
    assert replace(report, result=report.result | {"value": 0.5}).save(tmp_path) == first  # the same once more
    others = [replace(report, settings=replace(report.settings, epsilon=0.2)),
              replace(report, about=report.about | {"content": "other weights"}), replace(report, name="a_net")]
    assert [path.stem for each in others for path in each.save(tmp_path)] == [
        "a_net-2", "a_net-2", "a_net-3", "a_net-3", "a_net", "a_net"]
    (tmp_path / "a_net-4.html").write_text("somebody's")
    assert replace(others[1], about=report.about | {"images": 7}).save(tmp_path)[0].stem == "a_net-5"
    assert len(replace(report, name="n" * 300).save(tmp_path)[0].stem) == 100


def test_a_row_stands_beside_those_of_another_table(report):
    table = pandas.DataFrame({"clean [%]": ["90.0"], "PGD, averaged [%]": ["50.0"], "kappa": ["3.0"]}, index=["dense"])
    both = beside(table, report)
    assert list(both.index) == ["dense", "a net"] and list(both.columns) == list(table.columns)
    assert both.loc["a net", "clean [%]"].startswith(f"{100 * report.result['attacks']['clean']['value']:.1f} [")
    assert both.loc["a net", "kappa"] == "" and both.loc["dense", "kappa"] == "3.0"


# --- the door

BUILDER = '''
from torch import nn
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
'''


@pytest.fixture
def checkpoint(tmp_path, monkeypatch, digits):
    """A folder with `judged_net.py` and its weights, as DataParallel names them; the network itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judged_net.py").write_text(BUILDER)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    train = sr.data.load("digits").train
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net((train.images - 0.5) / 0.25), train.labels).backward()
        optimiser.step()
    files.save_tensors(tmp_path / "my.safetensors", {f"module.{n}": t for n, t in net.state_dict().items()})
    return net.eval()


ASKED = {"images": 40, "few": 10, "queries": 10, "autoattack": False, "progress": False}
QUICK_ASKED = Audit(epsilon=0.1, images=40, few=10, queries=10, autoattack=False)


def test_a_checkpoint_is_judged_as_the_network_itself_and_left_as_it_is(checkpoint):
    scales = {"mean": (0.5,), "std": (0.25,)}
    before = {name: t.clone() for name, t in checkpoint.state_dict().items()}
    named = sr.audit("judged_net.py:build", "digits", "0.1", weights="my.safetensors", **scales, **ASKED)
    held = sr.audit(checkpoint, "digits", 0.1, **scales, **ASKED)
    without = sr.audit(checkpoint, "digits", 0.1, **ASKED)
    assert named.result["each"] == held.result["each"] != without.result["each"]
    assert named.about["content"] == held.about["content"] != without.about["content"]
    assert (named.name, held.name) == ("my", "Sequential")
    assert all(torch.equal(t, before[name]) for name, t in checkpoint.state_dict().items())


def test_the_command_prints_and_writes_what_the_call_finds(checkpoint, tmp_path, capsys):
    words = ["audit", "judged_net.py:build", "--weights", "my.safetensors", "--data", "digits", "--epsilon", "0.1",
             "--images", "40", "--few", "10", "--queries", "10", "--no-autoattack", "--mean", "0.5", "--std", "0.25",
             "--name", "mine", "-o", "told"]
    assert main(words) == 0
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "told" / "mine.json").read_text())
    found = sr.audit("judged_net.py:build", "digits", 0.1, weights="my.safetensors", mean=(0.5,), std=(0.25,), **ASKED)
    assert record["audit"]["each"] == found.result["each"] and (tmp_path / "told" / "mine.html").exists()
    assert found.verdict() in told and "mine.json" in told


@pytest.mark.parametrize("with_weights", [True, False])
@pytest.mark.parametrize("masked", [
    lambda layer: prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_behind_pytorchs_own_masks_and_norms_are_judged(masked, with_weights, checkpoint, digits, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked(checkpoint[1])
    files.save_tensors(tmp_path / "masked.safetensors", dict(checkpoint.state_dict()))
    found = sr.audit(checkpoint, "digits", 0.1, **ASKED, **(
        {"weights": tmp_path / "masked.safetensors"} if with_weights else {}))
    assert found.result["each"] == QUICK_ASKED(checkpoint, digits)["each"]


def test_what_was_measured_is_kept_until_the_report_is_written(checkpoint, tmp_path, taken, monkeypatch, capsys):
    """A full disk at the end of hours, say."""
    words = ["audit", "judged_net.py:build", "--weights", "my.safetensors", "--data", "digits", "--epsilon", "0.1",
             "--images", "40", "--few", "10", "--queries", "10", "--no-autoattack", "-o", "told"]
    with monkeypatch.context() as patch:
        patch.setattr(Report, "save", lambda *_: (_ for _ in ()).throw(sr.UserError("no space left")))
        assert main(words) == 1
    measured = len(taken)
    assert measured and main(words) == 0 and len(taken) == measured
    assert sorted(path.name for path in (tmp_path / "told").iterdir()) == ["my.html", "my.json"]


def test_what_a_report_needs_is_looked_for_before_anything_is_measured(checkpoint, taken, monkeypatch):
    monkeypatch.setitem(sys.modules, "sparserobust.reporting.audits", None)
    with pytest.raises(ImportError):
        sr.audit(checkpoint, "digits", 0.1, **ASKED)
    assert not taken


class Draws(nn.Module):
    """Linear, with noise from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.head, self.chance = nn.Linear(64, 10), torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.head(x.flatten(1) + 0.3 * torch.randn(64, generator=self.chance))


class Dropping(nn.Module):
    """Linear, with a module in a list that torch does not see."""

    def __init__(self):
        super().__init__()
        self.head, self.hidden = nn.Linear(64, 10), [nn.Dropout(0.9)]

    def forward(self, x):
        return self.head(self.hidden[0](x.flatten(1)))


class Taken(list):
    """The accuracies that were measured; the next is not where there are `enough`."""

    enough: int | None = None


@pytest.fixture
def taken(monkeypatch):
    found, measure = Taken(), Accuracy.__call__

    def counted(*of, **named):
        if len(found) == found.enough:
            raise KeyboardInterrupt
        found.append(of[0])
        return measure(*of, **named)

    monkeypatch.setattr(Accuracy, "__call__", counted)
    return found


@pytest.fixture
def interrupted(taken):
    """Called with a function: it is interrupted at the n-th accuracy, and the error is given back."""
    def call(function, n=7):
        taken.clear()
        taken.enough = n - 1
        with pytest.raises(KeyboardInterrupt) as caught:
            function()
        taken.enough = None
        return caught.value

    return call


def _without_time(result: dict) -> str:
    return json.dumps(result | {"network": {name: {key: value for key, value in found.items() if "latency" not in key}
                                            for name, found in result["network"].items()}})


def test_an_audit_that_was_interrupted_goes_on_with_the_attack_in_its_middle(
        net, digits, taken, interrupted, tmp_path, caplog):
    torch.manual_seed(0)
    noisy = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10))  # in training mode: random
    for model, n in ((net, 3), (net, 11), (noisy, 8)):
        whole = sr.audit(model, digits, 0.08, **ASKED)
        all_of_it = [measure.identity for measure in taken]
        end = interrupted(lambda model=model: sr.audit(model, digits, 0.08, keep=tmp_path, **ASKED), n)
        assert f"{n - 1} results are kept in {next(tmp_path.iterdir())}" in end.__notes__[0]
        taken.clear()
        resumed = sr.audit(model, digits, 0.08, keep=tmp_path, **ASKED)
        assert [measure.identity for measure in taken] == all_of_it[n - 1:]
        assert _without_time(resumed.result) == _without_time(whole.result)
        assert not list(tmp_path.iterdir()) and "takes up what was interrupted" in caplog.text
        taken.clear()


def test_only_the_same_audit_goes_on(checkpoint, digits, taken, interrupted, monkeypatch, tmp_path):
    asked, keep = ASKED | {"few": 5}, tmp_path / "kept"

    def judged(net=checkpoint, images=digits, radius=0.1, **more):
        taken.clear()
        sr.audit(net, images, radius, keep=keep, **asked | more)
        return len(taken)

    class Other(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * scale

    def broken():
        interrupted(judged, 9)
        assert len(list(keep.iterdir())) == 1

    whole = 15
    assert judged() == whole
    turned = replace(digits, test=Split(digits.test.images.flip(-1), digits.test.labels))
    named = replace(digits, test=Split(digits.test.images, 9 - digits.test.labels))
    others = [{"images": turned}, {"images": named}, {"net": nn.Sequential(checkpoint, nn.Identity())},
              {"mean": (0.5,), "std": (0.3,)}]
    broken()
    for other in others:
        assert judged(**other) == whole, other
    assert judged() == whole - 8
    broken()
    assert judged(radius=0.2) == whole - 1  # clean answers are the same, and go with this audit
    assert judged() == whole - 7
    for what in ("packages", "machine"):
        broken()
        with monkeypatch.context() as patch:
            patch.setattr(auditing, what, lambda *_: "another")
            assert judged() == whole
        assert judged() == whole - 8
    broken()
    with monkeypatch.context() as patch:
        patch.setattr(auditing, "CODE", "another")
        assert judged() == whole
    with torch.no_grad():
        checkpoint[1].weight.mul_(2)
    assert judged() == whole
    scale = 1
    dropping, scaled = Dropping(), Other(*checkpoint)
    interrupted(lambda: judged(dropping))
    dropping.hidden[0].eval()  # what the network holds out of sight, and what its code reads elsewhere
    assert judged(dropping) == whole
    interrupted(lambda: judged(scaled))
    scale = -1
    assert judged(scaled) == whole


def test_damaged_results_are_measured_anew(checkpoint, digits, taken, interrupted, tmp_path, caplog):
    keep = tmp_path / "kept"
    interrupted(lambda: sr.audit(checkpoint, digits, 0.1, keep=keep, **ASKED))
    first, second, *_ = sorted(next(keep.iterdir()).iterdir())
    first.write_text(first.read_text().replace('"count": ', '"count": 1'))
    second.write_text("{")
    taken.clear()
    sr.audit(checkpoint, digits, 0.1, keep=keep, **ASKED)
    assert len(taken) == 15 - 6 + 2 and caplog.text.count("it is measured anew") == 2


def test_a_network_with_chance_of_its_own_keeps_nothing(digits, interrupted, tmp_path):
    end = interrupted(lambda: sr.audit(Draws(), digits, 0.1, keep=tmp_path, **ASKED))
    assert end.__notes__ == ["interrupted: nothing was kept"]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_kept_is_said_once_and_the_audit_goes_on(checkpoint, digits, monkeypatch, tmp_path, capsys):
    def full(path, content):
        with files.one_line(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(auditing.files, "write_json", full)
    monkeypatch.setattr("logging.root.handlers", [])
    found = sr.audit(checkpoint, digits, 0.1, keep=tmp_path, **ASKED | {"progress": True})
    told = capsys.readouterr().err
    assert told.count("cannot be written (No space left on device)") == 1
    assert _without_time(found.result) == _without_time(sr.audit(checkpoint, digits, 0.1, **ASKED).result)


@pytest.mark.parametrize("answer", [lambda x: (x, x), lambda x: None, lambda x: x.flatten(1) / 0, lambda x: x])
def test_a_network_that_is_refused_is_refused_alike_where_results_are_kept(answer, digits, refusal, tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return answer(x)

    assert refusal(sr.audit, Odd(), digits, 0.1, keep=tmp_path, **ASKED) == refusal(
        sr.audit, Odd(), digits, 0.1, **ASKED)


@pytest.mark.parametrize("keep", [3, True, b"x", ["a"]])
def test_a_folder_that_is_none_is_one_line(keep, checkpoint, digits, refusal):
    assert "folder" in refusal(sr.audit, checkpoint, digits, 0.1, keep=keep, **ASKED)


def test_an_interrupted_command_says_where_it_goes_on(checkpoint, monkeypatch, taken, capsys, tmp_path):
    words = ["audit", "judged_net.py:build", "--weights", "my.safetensors", "--data", "digits", "--epsilon", "0.1",
             "--images", "40", "--few", "10", "--queries", "10", "--no-autoattack", "-o", "told"]
    with monkeypatch.context() as patch:
        patch.setattr(auditing.Audit, "_curve", interrupt)
        assert main(words) == 130
    assert "8 results are kept in told/interrupted-" in capsys.readouterr().err
    taken.clear()
    assert main(words) == 0 and len(taken) == 15 - 8
    assert sorted(path.name for path in (tmp_path / "told").iterdir()) == ["my.html", "my.json"]


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("changed", [
    {"judged_net.py:build": "judged_net.py:built"}, {"my.safetensors": "yours.safetensors"}, {"digits": "digit"},
    {"0.1": "8"}, {"0.1": "a lot"}, {"0.5": "a,b"}, {"0.25": "0"}, {"0.25": "0.1,0.2"}])
def test_a_mistake_on_the_command_line_is_one_line(changed, checkpoint, capsys):
    words = ["audit", "judged_net.py:build", "--weights", "my.safetensors", "--data", "digits", "--epsilon", "0.1",
             "--mean", "0.5", "--std", "0.25"]
    try:
        code = main([changed.get(word, word) for word in words])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code and error.startswith("error: ") and "\n" not in error


@pytest.mark.parametrize(("what", "given"), [
    ("not of type Split", {"data": lambda d: d.test}), ("not of type tuple", {"data": lambda d: (d.test, d.classes)}),
    ("not of type dict", {"data": lambda d: {"name": "digits"}}), ("not of type NoneType", {"data": lambda d: None}),
    ("should be data.Split(images, labels)", {"data": lambda d: replace(d, test=(d.test.images, 1))}),
    ("images should be a tensor", {"data": lambda d: replace(d, test=replace(d.test, images=[]))}),
    ("mean and std go together", {"mean": 0.5, "std": 0.5}), ("mean and std go together", {"mean": ("a",), "std": "b"}),
    ("mean and std go together", {"mean": (float("nan"),), "std": (1,)}),
    ("the images have 1 channels", {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
    ("weights are named by their file", {"weights": {"weight": torch.zeros(1)}}),
    ("no weights yet", {"net": nn.Sequential(nn.Flatten(), nn.LazyLinear(10))}),
    ("no weights yet", {"net": nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta"))})])
def test_what_cannot_be_judged_is_one_line(what, given, net, digits, refusal):
    told = {"net": net, "data": digits, "epsilon": 0.1, **ASKED} | given
    if callable(given.get("data")):
        told["data"] = given["data"](digits)
    assert what in refusal(sr.audit, **told)


def test_test_images_alone_are_enough_and_numbers_may_be_arrays(net, digits):
    whole = sr.audit(net, digits, 0.1, mean=(0.1,), std=(0.9,), **ASKED)
    alone = Splits(None, None, digits.test, ())  # type: ignore[arg-type]
    found = sr.audit(net, alone, 0.1, mean=np.array([0.1]), std=torch.tensor([0.9]), **ASKED)
    assert found.result["each"] == whole.result["each"] and found.result["network"].keys() == whole.result[
        "network"].keys()
    assert not {"training mode", "classes"} & {flag["kind"] for flag in found.flags + whole.flags}


class Memory(nn.Module):
    """The nearest of some images: a network without parameters and layers."""

    def __init__(self, split: Split):
        super().__init__()
        self.images, self.answers = split.images.flatten(1), nn.functional.one_hot(split.labels, 10).float()

    def forward(self, x):
        return (-5 * torch.cdist(x.flatten(1), self.images)).softmax(1) @ self.answers


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.lock = net, threading.Lock()

    def forward(self, x):
        return self.net(x)


def test_what_a_network_refers_to_is_looked_at_before_it_is_judged(digits, monkeypatch, refusal):
    monkeypatch.setitem(globals(), "stream_of_numbers", (i for i in range(3)))  # of which nothing can be told

    class Refers(nn.Module):
        def forward(self, x):
            return stream_of_numbers if x is None else x.flatten(1)[:, :10]  # noqa: F821

    monkeypatch.setattr(Audit, "__call__", lambda *given: pytest.fail("it was judged"))
    assert "of type generator" in refusal(sr.audit, Refers(), digits, 0.1, **ASKED)


@pytest.mark.parametrize("build", [
    lambda net: Memory(sr.data.load("digits").train), Locked, lambda net: torch.jit.trace(net, torch.rand(2, 1, 8, 8)),
    lambda net: torch.compile(net, backend="eager"), nn.DataParallel],
    ids=["memory", "locked", "traced", "compiled", "parallel"])
def test_networks_of_odd_kinds_have_a_page_and_a_record_that_say_what_is_missing(build, net, digits, tmp_path):
    with torch.inference_mode():
        report = sr.audit(build(net), digits, 0.1, keep=tmp_path, **ASKED)
    page, record = report.save(tmp_path)
    assert json.loads(record.read_text())["audit"]["count"] == report.result["count"] and page.stat().st_size > 10_000
    assert set(NETWORK) == report.result["network"].keys() | report.result["not_measured"].keys() & set(NETWORK)
    assert str(report) and len(report.row()) == 1
    blind = "PGD-20" in report.result["not_measured"]
    assert report.unreliable == blind == (report.about["architecture"] == "Memory")
