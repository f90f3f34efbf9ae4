"""Would the tests notice? Sixty-two small mistakes in the library, of the kind that crashes nothing and falsifies a
published number - a sign, a threshold, a norm, a mask too early, the wrong mode, split or axis - each put alone into a
copy of the package, on which the tests that should catch it are run.

    python tests/mutants.py                  all, in some minutes; exit code 0 if each is caught
    python tests/mutants.py NAME [NAME ...]  only these
    python tests/mutants.py --list           what there is

pytest does not collect this file; `unit/test_mutants.py` checks that the mistakes can still be made.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

PROJECT = Path(__file__).resolve().parents[1]
COPIED = ("pyproject.toml", "lib/sparserobust", "tests", "notebooks/settings", "data/reported", "data/published")


@dataclass(frozen=True)
class Mutant:
    """In `file`, below lib/sparserobust, `old`, which stands there exactly once, becomes `new`; one of `tests`, files
    or pytest node ids below tests/unit, should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def change(self) -> str:
        """In one line."""
        return " -> ".join(" ".join(text.split()) for text in (self.old, self.new))

    def path(self, home: Path) -> Path:
        return home / "lib" / "sparserobust" / self.file

    def made(self, home: Path = PROJECT) -> str:
        """The source of the file with the mistake in it."""
        source = self.path(home).read_text()
        if (times := source.count(self.old)) != 1:
            raise SystemExit(f"{self.name}: {self.file} has moved on, what is to be changed stands there {times} times")
        return source.replace(self.old, self.new)


MUTANTS = (
    Mutant("step_before_the_best", "attacks.py",  # as released, what is kept is where Adam goes from the best iterate
           """\
                optimiser.step(gradient(loss.sum(), x))
                lower = loss < best_loss
                best[lower], best_loss[lower] = x.detach()[lower], loss.detach()[lower]
""",
           """\
                lower = loss < best_loss
                best[lower], best_loss[lower] = x.detach()[lower], loss.detach()[lower]
                optimiser.step(gradient(loss.sum(), x))
""",
           ("test_attacks.py",)),
    Mutant("sign_of_the_confidence", "query_attacks.py",
           "mean_logits(model, queries, 1) + self.confidence", "mean_logits(model, queries, 1) - self.confidence",
           ("test_query_attacks.py",)),
    Mutant("trades_attacks_in_training_mode", "objectives.py",
           "with under_attack(model):\n", "with torch.enable_grad():\n", ("test_objectives.py",)),
    Mutant("pull_scaled_by_lr_twice", "sparsifiers/splitting.py",
           "w.grad.add_(w - u, alpha=self.beta)", "w.grad.add_(w - u, alpha=lr * self.beta)", ("test_sparsifiers.py",)),
    Mutant("threshold_counts_zeros", "sparsifiers/surgery.py",
           "double(w[w != 0].abs())", "double(w.abs())", ("test_surgery.py",)),
    Mutant("scores_see_masked_weights", "sparsifiers/scores.py",  # whose scores would never move again
           "w.grad * state[name] * state[f", "w.grad * w * state[f", ("test_scores.py",)),
    Mutant("sharp_scores_of_a_friend", "sparsifiers/scores.py",  # the perturbation lowers the loss
           "f\"score {name}\": score + z", "f\"score {name}\": score - z",
           ("test_scores.py::test_scores_are_moved_to_where_the_linearised_loss_is_worst",)),
    Mutant("second_loss_with_another_chance", "training.py",
           "            rewind()\n", "", ("test_scores.py::test_within_no_radius_they_are_learned_scores",)),
    Mutant("sharp_scores_stay_moved", "sparsifiers/scores.py",
           "state.pop(f\"unmoved {name}\")", "state[f\"score {name}\"] + 0 * state.pop(f\"unmoved {name}\")",
           ("test_scores.py::test_training_follows_the_algorithm_by_hand",)),
    Mutant("rates_see_kept_weights_alone", "sparsifiers/rates.py",  # so that no rate has a reason to grow
           "double(w.grad) * double(state[name])", "double(w.grad) * double(w)",
           ("test_rates.py::test_training_follows_the_algorithm_by_hand",)),
    Mutant("gamma_grows_on_target", "sparsifiers/rates.py",
           "state[\"epochs\"] += ~state[\"met\"]", "state[\"epochs\"] += 1",
           ("test_rates.py::test_training_follows_the_algorithm_by_hand",)),
    Mutant("rates_handed_over_as_they_are", "sparsifiers/rates.py",  # not scaled to the size that was asked for
           "removed = [size - count for size, count in zip(sizes, kept, strict=True)]",
           "removed = self._removed(state, sizes)",
           ("test_rates.py::test_exactly_so_many_weights_are_zero_and_the_others_as_they_were",)),
    Mutant("density_by_channels_without_kernels", "sparsifiers/rates.py",  # Erdos-Renyi, which knows no kernels
           "[sum(shape) for shape in shapes]", "[sum(shape[:2]) for shape in shapes]", ("test_rates.py",)),
    Mutant("smallest_remainders_first", "sparsifiers/rates.py",
           "key=lambda i: counts[i] - wanted[i]", "key=lambda i: wanted[i] - counts[i]", ("test_rates.py",)),
    Mutant("filters_as_they_are_stored", "sparsifiers/magnitude.py",
           "found[name].filters.shape", "found[name].tensor.shape", ("test_rates.py",)),
    Mutant("no_temperature", "models/gates.py",
           "TEMPERATURE * math.log(-GAMMA / ZETA)", "math.log(-GAMMA / ZETA)", ("test_gates.py",)),
    Mutant("noise_before_the_addition", "models/preact_resnet.py",
           "self.noise(out + residual)", "self.noise(out) + residual", ("test_models.py",)),
    Mutant("mean_without_the_misclassified", "analysis/radii.py",
           "(wrong + int(sloping.sum()))", "int(sloping.sum())", ("test_radii.py",)),
    Mutant("rescaled_before_pruning", "analysis/conditioning.py",
           "pruned * (size / pruned.norm())", "pruned * (size / gaussian.norm())", ("test_conditioning.py",)),
    Mutant("selects_on_the_test_split", "training.py",
           "float(losses) / len(splits.train), splits.validation)", "float(losses) / len(splits.train), splits.test)",
           ("test_training.py",)),
    Mutant("transfer_attack_sees_the_target", "evaluation.py",
           "adversarial = attack(attacked, images", "adversarial = attack(model, images", ("test_evaluation.py",)),
    Mutant("last_crop_never_drawn", "data.py",
           """\
        rows = rows + torch.randint(2 * pad + 1, (n, 1), generator=generator, device=device)
        columns = columns + torch.randint(2 * pad + 1, (n, 1), generator=generator, device=device)
""",
           """\
        rows = rows + torch.randint(2 * pad, (n, 1), generator=generator, device=device)
        columns = columns + torch.randint(2 * pad, (n, 1), generator=generator, device=device)
""",
           ("test_data.py",)),
    Mutant("norm_without_the_root", "sparsity.py",
           ".pow(2).sum((0, *range(2, weight.dim()))).sqrt()", ".pow(2).sum((0, *range(2, weight.dim())))",
           ("test_sparsity.py",)),
    Mutant("mask_on_the_way", "sparsity.py", "            del tensors[i]\n", "", ("test_acting_weights.py",)),
    Mutant("bootstrap_of_single_runs", "reporting/estimates.py",
           "for g in dice.integers(len(groups), size=len(groups))])",
           "for g in range(len(groups))])[dice.integers(len(rows), size=len(rows))]", ("test_conditioning.py",)),
    Mutant("threshold_of_a_decrease", "reporting/claims.py",
           'HOLDS if above != (claim.direction == "decrease") else FAILS', "HOLDS if above else FAILS",
           ("test_claims.py",)),
    Mutant("images_without_a_variance", "reporting/crossed.py",
           "max(self.ms_images - self.ms_residual, 0.0) / values", "0.0", ("test_crossed.py",)),
    Mutant("level_chosen_with_the_judged_seed", "reporting/estimates.py",
           "best_level(validation, without=seed)", "best_level(validation)", ("test_sparsity_theory.py",)),
    Mutant("first_images_in_place_of_a_sample", "evaluation.py",
           "self.split).sample(self.images), self.attack", "self.split).first(self.images), self.attack",
           ("test_evaluation.py",)),
    Mutant("kappa_on_the_wrong_axis", "inheritance.py",
           "large[:, small.shape[1]:] *= settings.kappa", "large[small.shape[0]:] *= settings.kappa",
           ("test_inheritance.py",)),
    Mutant("stop_at_0_is_no_stop", "config.py",
           "return self.epochs if self.stop is None else self.stop", "return self.stop or self.epochs",
           ("test_config.py",)),
    Mutant("published_numbers_of_other_weights", "running/store.py",
           "if known is None or not self._of_these_weights(known, run, measurement):", "if known is None:",
           ("test_store.py",)),
    Mutant("a_changed_result_is_read", "files.py",
           'or content.get("sha256") != _digest(', "or 0 == len(", ("test_store.py",)),
    Mutant("a_result_of_another_measurement_is_read", "running/records.py",
           'if part.get("identity") != identity:', "if not identity:", ("test_store.py",)),
    Mutant("a_changed_checkpoint_is_taken_up", "files.py",
           'if metadata and metadata.pop("sha256", None) != _hash(tensors, metadata):', "if metadata is None:",
           ("test_training.py",)),
    Mutant("threads_of_torch_in_place_of_the_recipe", "training.py",
           "with with_threads(run.recipe.threads), answers_checked", "with torch.enable_grad(), answers_checked",
           ("test_store.py",)),
    Mutant("own_settings_of_a_network_lose", "running/scales.py",
           "merged(section, changes)", "merged(changes, section)",
           ("test_scales.py::test_scales_and_networks_say_only_what_differs",)),
    Mutant("a_tensor_changed_in_part_is_read", "analysis/tracing.py",
           "if tensor.version != self.versions.get(memory(tensor.value), 0):", "if tensor.version is None:",
           ("test_lipschitz.py::test_a_network_of_which_nothing_is_sure_is_refused",)),
    Mutant("transposed_convolutions_by_their_outputs", "analysis/cost.py",
           "(x if transposed else found)", "found", ("test_cost.py",)),
    Mutant("an_attack_stands_still_at_nan", "answers.py",
           "    if lost.any():", "    if lost.sum() < 0:", ("test_answers.py",)),
    Mutant("randomness_is_asked_for_once", "answers.py",
           "for _ in range(times - 1)", "for _ in range(0)", ("test_answers.py",)),
    Mutant("one_attack_withstood_is_enough", "analysis/audit.py",
           "sum(~hits for hits in right.values()) == 0", "sum(hits for hits in right.values()) > 0",
           ("test_audit.py",)),
    Mutant("growth_by_the_signed_gradient", "sparsifiers/dynamic.py",
           "w.grad.abs() if", "w.grad if", ("test_dynamic.py",)),
    Mutant("momentum_of_masked_weights_grows", "sparsifiers/dynamic.py",
           "w.grad.mul_(state[name])", "w.grad.mul_(1.0)", ("test_dynamic.py",)),
    Mutant("the_exchanged_share_does_not_fall", "sparsifiers/dynamic.py",
           "share = self.share / 2 * (1 + math.cos(math.pi * done / self.stop))", "share = self.share",
           ("test_dynamic.py",)),
    Mutant("statistics_of_before_count_as_batches", "sparsifiers/norms.py",
           "norm.num_batches_tracked.zero_()", "norm.num_batches_tracked.add_(0)", ("test_only_norms.py",)),
    Mutant("the_last_batches_count_more", "sparsifiers/norms.py",
           "norm.momentum = None", "norm.momentum = 0.1", ("test_only_norms.py",)),
    Mutant("norms_are_trained_too", "sparsifiers/targets.py",
           "p.grad = None", "p.grad = p.grad if p.dim() == 1 else None", ("test_only_norms.py",)),
    Mutant("chance_knows_nothing_of_layers", "analysis/masks.py",
           'sum(layer["kept"] * layer["other"] / layer["total"] for layer in layers.values())',
           'kept * other_kept / sum(layer["total"] for layer in layers.values())', ("test_mask_overlap.py",)),
    Mutant("overlap_as_a_share_of_the_other", "analysis/masks.py",
           '"value": both / kept', '"value": both / (other_kept or 1)', ("test_mask_overlap.py",)),
    Mutant("what_both_keep_counts_twice", "analysis/masks.py",
           "(kept + other_kept - both)", "(kept + other_kept)", ("test_mask_overlap.py",)),
    Mutant("apgd_goes_on_from_where_it_is", "apgd.py",
           "((best, x), (top_slope, slope)))", "((x, x), (slope, slope)))",
           ("test_apgd.py::test_apgd_is_pyautoattacks_with_the_same_loss_and_start",)),
    Mutant("apgd_counts_the_start_as_a_rise", "apgd.py",
           "loss = -top  #", "loss = top  #",
           ("test_apgd.py::test_apgd_is_pyautoattacks_with_the_same_loss_and_start",)),
    Mutant("apgd_against_its_momentum", "apgd.py",
           "(1 - share) * (x - before)", "(1 - share) * (before - x)",
           ("test_apgd.py::test_apgd_is_pyautoattacks_with_the_same_loss_and_start",)),
    Mutant("targets_by_the_norm_itself", "apgd.py",
           "p=1 if norm == \"linf\" else 2", "p=2 if norm == \"l2\" else torch.inf",
           ("test_apgd.py::test_targets_are_ordered_as_one_class_at_a_time",)),
    Mutant("targets_by_the_logits_alone", "apgd.py",
           "gap.detach() / length", "gap.detach()",
           ("test_apgd.py::test_targets_are_ordered_as_one_class_at_a_time",)),
    Mutant("a_class_that_no_pixel_moves_is_the_first_target", "apgd.py",
           "gap.detach() / length, torch.inf)", "gap.detach() / length, 0.0)",
           ("test_apgd.py::test_a_class_that_no_pixel_moves_is_the_last_target",)),
    Mutant("n_fgsm_is_projected", "objectives.py",
           "(model, begun, labels)), labels)",
           "(model, begun, labels).clamp(images - self.epsilon, images + self.epsilon)), labels)",
           ("test_objectives.py::test_n_fgsm",)),
    Mutant("n_fgsm_with_noise_in_the_ball", "objectives.py",
           "random_in_ball(images, self.noise * self.epsilon", "random_in_ball(images, self.epsilon",
           ("test_objectives.py::test_n_fgsm",)),
    Mutant("n_fgsm_from_the_clean_image", "objectives.py",
           "(model, begun, labels)), labels)", "(model, images, labels)), labels)",
           ("test_objectives.py::test_n_fgsm",)),
    Mutant("seeds_on_the_first_images_hide_those_on_a_sample", "reporting/estimates.py",
           "return pairs if few(len(most)) else most", "return pairs",
           ("test_claims.py::test_of_seeds_on_the_first_images_and_seeds_on_a_sample_the_more_are_compared",)),
    Mutant("whatever_holds_beats_magnitude", "studies/ring/comparisons.py",
           "(asked & lines[\"verdict\"]", "(lines[\"verdict\"]",
           ("test_ring.py::test_the_ledger_holds_the_primary_cut_under_attack_and_what_is_asked_once",)),
)


def copied(home: Path) -> None:
    """What the tests need, in an empty folder."""
    for name in COPIED:
        source, target = PROJECT / name, home / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def python(home: Path, *words: str) -> subprocess.CompletedProcess:
    """This interpreter in the copy, and with the package of the copy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPARSEROBUST_")}
    # no bytecode: it counts as fresh if size and second are those of the source, as they may be for two mutants
    own = {"PYTHONPATH": str(home / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *words], cwd=home, env=kept | own, capture_output=True, text=True)


def failed(home: Path, tests: tuple[str, ...]) -> str | None:
    """The first of these tests that fails; None if all pass."""
    done = python(home, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/unit/{test}" for test in tests))
    if done.returncode == 0:
        return None
    first = re.search(r"^(?:FAILED|ERROR) tests/unit/(\S+::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or first is None:
        raise SystemExit(f"pytest could not run {', '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return first[1]


def tried(mutant: Mutant, home: Path) -> str | None:
    """The test that catches a mutant; None if it survives."""
    path = mutant.path(home)
    source = path.read_text()
    path.write_text(mutant.made(home))
    try:
        return failed(home, mutant.tests)
    finally:
        path.write_text(source)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()
    if unknown := set(options.names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list shows what there is")
    chosen = [mutant for mutant in MUTANTS if mutant.name in options.names or not options.names]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:34} {mutant.file:26} {mutant.change}")
        return 0

    for mutant in chosen:
        mutant.made()  # before minutes are spent
    caught = 0
    with TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        copied(home)
        found = python(home, "-c", "import sparserobust; print(sparserobust.__file__)").stdout
        if not found.startswith(str(home)):
            raise SystemExit(f"the copy is not what is imported: {found.strip()}")
        if test := failed(home, tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))):
            raise SystemExit(f"{test} fails without any mutant")
        for mutant in chosen:
            test = tried(mutant, home)
            caught += test is not None
            print(f"{mutant.name:34} {mutant.file:26} {f'caught by {test}' if test else 'SURVIVED'}\n"
                  f"    {mutant.change}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
