"""What is left of a grid and how long it takes: by hand, from published records that a test writes, and from sizes that
torch counts."""

from dataclasses import replace

import pytest

from scaffolding import published_entry
from sparserobust import cli, data, files, paths
from sparserobust.attacks import PGD
from sparserobust.config import Data, Recipe, Run
from sparserobust.evaluation import Accuracy
from sparserobust.models import PreActResNet, WideResNet
from sparserobust.objectives import Adversarial, Natural
from sparserobust.provenance import provenance
from sparserobust.running import forecast, scales
from sparserobust.running.store import Store

GPU = {"processor": "Some GPU", "device": "cuda"}
CIFAR = Run(data=Data(name="cifar10"), model=PreActResNet(), objective=Natural(), recipe=Recipe(epochs=10))
WIDE = replace(CIFAR, model=WideResNet())
PGD10 = Accuracy(attack=PGD(epsilon=0.1, step_size=0.01, steps=10))


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publishes a run that took so many seconds to train, and as many for each of these measurements."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)

    def publish(run, seconds, made=None, measurements=()):
        where = (made or provenance()) | {"seconds": seconds}
        files.write_json(paths.writable(tmp_path / "data/published/laptop") / f"{run.identity}.json",
                         published_entry(run, {m.identity: (m, {}) for m in measurements}, made=where))

    return publish


def test_without_anything_published_a_unit_of_cost_takes_a_second(publish):
    assert forecast.Pace().training(CIFAR) == pytest.approx(CIFAR.model.cost * 10 * 4.5)
    assert forecast.Pace().measuring(CIFAR, PGD10) == pytest.approx(CIFAR.model.cost * PGD10.cost)


def test_the_median_of_the_nearest_published_runs_counts(publish):
    """First this kind of model on images of this size, then on any, then any model here, then elsewhere."""
    cost, small = CIFAR.model.cost * 10 * 4.5, Data(name="mnist")
    for seed, seconds in enumerate((1, 2, 9)):
        publish(replace(CIFAR, seed=seed), seconds * cost)
    of_small = replace(CIFAR, data=small)
    publish(of_small, 5 * of_small.cost * 5.5)
    publish(replace(WIDE, seed=1), 40 * WIDE.cost * 4.5, GPU)
    pace = forecast.Pace()
    assert pace.training(CIFAR) == pytest.approx(2 * cost)
    assert pace.training(of_small) == pytest.approx(5 * of_small.cost * 5.5)
    other = replace(CIFAR, data=Data(name="digits"))
    assert pace.training(other) == pytest.approx(3.5 * other.cost * 0.12)  # of 1, 2, 5, 9
    assert pace.training(WIDE) == pytest.approx(3.5 * WIDE.cost * 4.5)
    assert pace.measuring(CIFAR, PGD10) == pytest.approx(CIFAR.model.cost * PGD10.cost)  # none measured


def test_other_processors_count_only_if_nothing_is_published_for_this_one(publish):
    publish(CIFAR, 3 * CIFAR.cost * 4.5, GPU, [PGD10])
    assert forecast.Pace().training(CIFAR) == pytest.approx(3 * CIFAR.cost * 4.5)
    assert forecast.Pace().measuring(CIFAR, PGD10) == pytest.approx(3 * CIFAR.cost * 4.5)


def test_a_processor_of_this_name_with_other_instructions_is_another(publish):
    publish(replace(CIFAR, seed=1), 9 * CIFAR.cost * 4.5, provenance() | {"instructions": "other"})
    assert forecast.Pace().training(CIFAR) == pytest.approx(9 * CIFAR.cost * 4.5)
    publish(replace(CIFAR, seed=2), 3 * CIFAR.cost * 4.5)
    assert forecast.Pace().training(CIFAR) == pytest.approx(3 * CIFAR.cost * 4.5)


def test_a_kind_of_model_that_was_never_run_here_takes_as_long_as_on_other_processors(publish):
    """Kinds differ more than processors do."""
    publish(replace(CIFAR, seed=1), 2 * CIFAR.cost * 4.5)
    publish(WIDE, 40 * WIDE.cost * 4.5, GPU)
    assert forecast.Pace().training(WIDE) == pytest.approx(2 * WIDE.cost * 4.5)  # a GPU tells nothing of it
    publish(replace(WIDE, seed=1), 7 * WIDE.cost * 4.5, provenance() | {"processor": "another"})
    assert forecast.Pace().training(WIDE) == pytest.approx(7 * WIDE.cost * 4.5)


def test_sizes_are_those_of_the_network():
    """Multiply-accumulates of ResNet-20 for one image: 40.6 million, of a forward pass and twice as many backward."""
    size, net = forecast.size(CIFAR), CIFAR.model.build((3, 32, 32), 10)
    assert size.bytes == sum(t.numel() * t.element_size() for t in net.state_dict().values())
    assert size.operations == pytest.approx(2 * 3 * 40.6e6, rel=0.02)
    twice = forecast.size(replace(CIFAR, model=PreActResNet(members=2)))
    assert twice.operations == 2 * size.operations and 1.9 < twice.calls / size.calls < 2.1
    assert forecast.size(replace(CIFAR, model=PreActResNet(width=8))).calls == size.calls


def test_on_a_gpu_a_narrow_network_takes_as_long_as_a_narrower_one_and_a_wide_one_as_its_arithmetic(publish):
    publish(CIFAR, 90, GPU, [PGD10])
    pace = forecast.Elsewhere(2)
    assert pace.training(CIFAR) == pytest.approx(90) and pace.share(CIFAR) == 1 / forecast.SHARING
    narrow = replace(CIFAR, model=PreActResNet(width=8))
    assert pace.training(narrow) == pytest.approx(90) and pace.measuring(CIFAR, PGD10) == pytest.approx(90)
    seconds = 10 * 45_000 * forecast.size(WIDE).operations / forecast.ARITHMETIC
    assert pace.training(WIDE) == pytest.approx(seconds) and seconds > 90 and pace.share(WIDE) == 1
    assert pace.training(replace(WIDE, objective=Adversarial(attack=PGD10.attack))) == pytest.approx(11 * seconds)


def test_gpus_of_which_nothing_is_published_are_refused(publish, refusal):
    assert "plan where the GPU is" in refusal(forecast.Elsewhere, 1)
    assert "gpus start at 1" in refusal(lambda: list(forecast.told({}, Store(paths.PROJECT / "runs"), 0)))


def test_a_step_is_timed_of_what_is_not_published_here_once_for_each_network(publish, monkeypatch):
    timed = []

    def step(run, batch):
        timed.append((run.model.kind, run.model.cost, batch))
        return 7.0

    monkeypatch.setattr(forecast, "_timed", step)
    publish(CIFAR, 2 * CIFAR.cost * 4.5)
    pace = forecast.Here()
    assert pace.training(CIFAR) == pytest.approx(2 * CIFAR.cost * 4.5) and not timed
    assert "timed" not in pace.source
    for run in (WIDE, replace(WIDE, seed=1)):
        assert pace.training(run) == pytest.approx(7 * WIDE.cost * 4.5)
    assert pace.measuring(WIDE, PGD10) == pytest.approx(7 * WIDE.model.cost * PGD10.cost)
    assert timed == [("wide_resnet", WIDE.model.cost, batch) for batch in (128, 250)]
    small = replace(WIDE, data=Data(name="digits"))
    assert pace.training(small) == pytest.approx(7 * WIDE.cost * 0.12)
    assert pace.measuring(small, PGD10) == pytest.approx(7 * WIDE.model.cost * PGD10.cost), "a step is as long as it is"
    assert "those of wide_resnet from steps timed now" in pace.source


def test_a_timed_step_is_about_that_of_a_training(tiny_run, digits):
    """Within a factor of ten: the machine may have other work."""
    import time

    from sparserobust import training

    run = tiny_run(epochs=30)
    expected = forecast._timed(run, run.recipe.batch_size) * run.cost * data.training_images(run.data) / 1e4
    begun = time.monotonic()
    training.train(run, digits)
    assert 0.1 < expected / (time.monotonic() - begun) < 10


# ---------------------------------------------------------------------------------------------------- what is left


class Unit(forecast.Pace):
    """Every run and measurement takes a second, of which it keeps half a processor busy."""

    def training(self, run):
        return 1.0

    def measuring(self, run, measurement):
        return 0.25

    def share(self, run):
        return 0.5


def test_a_plan_counts_each_run_once_and_its_longest_chain(tiny_run, tmp_path):
    """first -> second -> third, and other: four to train, one measurement each of third and other, two of second."""
    store, first, other = Store(tmp_path, use_published=False), tiny_run(), tiny_run(seed=1)
    second = first.then(seed=2)
    third = second.then(seed=3)
    clean, attacked = Accuracy(images=8), replace(PGD10, images=8)
    grid = [{"run": third, "measurements": {"clean": clean}}, {"run": other, "measurements": {"clean": clean}},
            {"run": second, "measurements": {"clean": clean, "attacked": attacked}},
            {"run": second, "twice": True, "measurements": {"clean": clean}}]
    plan = forecast.plan(grid, store, Unit())
    assert (plan.runs, plan.trained, plan.to_train, plan.to_measure) == (4, 0, 4, 4)
    assert plan.seconds == pytest.approx(0.5 * (4 + 4 * 0.25)) and plan.longest == pytest.approx(3.25)
    assert plan.wall_time(1) == plan.wall_time(2) == pytest.approx(3.25)
    assert forecast.plan(grid[1:2], store, Unit()).wall_time(1) == pytest.approx(1.25)
    assert plan.bytes == 4 * forecast.size(first).bytes

    store.train(second)
    store.measure(other, clean)
    left = forecast.plan(grid, store, Unit())
    assert (left.runs, left.trained, left.to_train, left.to_measure) == (4, 3, 1, 3)
    assert left.longest == pytest.approx(1.25) and left.bytes == forecast.size(first).bytes


def test_of_twins_one_is_trained(tiny_run, tmp_path):
    best, last = tiny_run(watched=True, select="best"), tiny_run(watched=True)
    grid = [{"run": run, "measurements": {"clean": Accuracy(images=8)}} for run in (last, best)]
    plan = forecast.plan(grid, Store(tmp_path, use_published=False), Unit())
    assert (plan.runs, plan.to_train, plan.to_measure) == (2, 1, 2)
    assert forecast.plan(grid[:1], Store(tmp_path, use_published=False), Unit()).to_train == 1
    store = Store(tmp_path, use_published=False)
    store.train(best)
    assert forecast.plan(grid, store, Unit()).to_train == 0


def test_what_was_spent_is_the_seconds_of_what_is_done(tiny_run, tmp_path):
    store, run, clean = Store(tmp_path, use_published=False), tiny_run(), Accuracy(images=8)
    jobs = [{"run": run, "measurements": [clean, PGD10]}]
    assert forecast.spent(jobs, [run], store) == 0
    store.measure(run, clean)
    assert forecast.spent(jobs, [run], store) == pytest.approx(store.seconds(run) + store.seconds(run, clean))


def test_the_paper_scale_takes_150_gpu_hours(tmp_path):
    from sparserobust import studies

    pace, store = forecast.Elsewhere(1), Store(tmp_path)
    experiments = studies.experiments("paper")
    assert experiments.keys() == {"fk_resnet", "iwi", "rsr", "sparsity_theory", "tscnc"}
    hours = sum(forecast.plan(e.grid, store, pace).seconds for e in experiments.values()) / 3600
    assert 100 < hours <= 150


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_plans_and_computes_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path))
    computed = []
    monkeypatch.setattr("sparserobust.running.sweep.compute", lambda grid, *rest: computed.append(grid))
    assert cli.main(["compute", "--study", "iwi", "--table", "table 1", "--plan", "--fresh"]) == 0
    told = capsys.readouterr().out
    assert "iwi table 1" in " ".join(told.split()) and "0 are trained here" in told and not computed
    assert cli.main(["compute", "--study", "iwi", "--table", "table 1", "--fresh"]) == 0
    (grid,) = computed
    assert {row["part"] for row in grid} == {"dense", "zoo"} and {row["paper"] for row in grid} == {"iwi"}
    assert "by all processes together" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["--table", "table 1"], "--table goes with --study"), (["--study", "iwj"], "did you mean 'iwi'?"),
    (["--study", "iwi", "--table", "tabel 1"], "did you mean 'table 1'?"), (["--gpus", "2"], "--gpus goes with --plan"),
    (["--plan", "--gpus", "0"], "gpus start at 1"), (["--scale", "papr"], "did you mean 'paper'?")])
def test_a_mistake_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path))
    assert cli.main(["compute", *words]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_scale_may_be_based_on_another(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(scales, "settings_folder", lambda: tmp_path)
    (tmp_path / "scales.yaml").write_text("a: x\nb: x\nc: x\n")
    sections = {"shared": {"one": 1, "deep": {"x": 1}}, "a": {"two": 2, "deep": {"y": 2}},
                "b": {"based_on": "a", "two": None, "deep": {"x": 3}}}
    assert scales._section(sections, "a") == {"one": 1, "two": 2, "deep": {"x": 1, "y": 2}}
    assert scales._section(sections, "b") == {"one": 1, "deep": {"x": 3, "y": 2}}
    circle = {"a": {"based_on": "b", "x": 1}, "b": {"based_on": "a", "x": 1}}
    assert "unknown scale 'a'" in refusal(scales._section, circle, "a")
    assert "did you mean 'a'" in refusal(scales._section, {"a": {}, "b": {"based_on": "aa"}}, "b")
