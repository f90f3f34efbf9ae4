"""What the checks of all exercises have in common: an answer goes in, a line comes out that says "right" or why not.
And what a page says of a prediction that its reader made before running on."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparserobust.config import Measurement, Run
from sparserobust.errors import quoted
from sparserobust.running import sweep
from sparserobust.running.store import Store


class Verdict(str):
    """A line that a notebook shows as it is, without quotes."""

    def __repr__(self):
        return str(self)


OPEN = Verdict("not answered yet: replace the three dots")


def right(why: str) -> Verdict:
    """The answer is right, and that matters because of `why`."""
    return Verdict(f"right: {why}")


def not_yet(why: str) -> Verdict:
    """The answer is not right, and `why` not."""
    return Verdict(f"not yet: {why}")


def exercise(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """A check whose first argument is the answer: three dots are none, and nothing is computed for them."""
    @functools.wraps(check)
    def checked(answer: Any, *rest: Any) -> Verdict:
        return OPEN if answer is ... else check(answer, *rest)

    return checked


def number(answer: Any, correct: float, why: str, slips: Mapping[float, str], tolerance: float = 0.01,
           within: float = 0.0) -> Verdict:
    """Whether a number is `correct`, to a share `tolerance` of it, or `within` so much. Of the `slips`, what a known
    mistake leads to and what to say of it, the first that fits is told, then what can go wrong with any number (sign,
    percent); else whether it is too large or too small."""
    value = _number(answer)
    if value is None:
        return not_yet(f"a number is expected, not {_called(answer)}")

    def close(target: float, within: float = within) -> bool:
        return abs(value - target) <= max(tolerance * abs(target), within, 1e-12)

    def slipped(target: float) -> bool:  # what is read from a figure is the less exact the larger it is
        return close(target, within * min(1, abs(target / correct)) if correct else within)

    if close(correct):
        return right(why)
    share = 0 < abs(correct) <= 1
    usual = {-correct: "the sign should be the other one",
             100 * correct: "that is in percent: a share, between 0 and 1, is expected" if share else
                            "that is a hundred times as much: is it in percent, where a plain number is expected?"}
    if not share:
        usual[correct / 100] = "that is a hundredth of it: is it a share, and percent or points are expected?"
    known = next((said for slip, said in (*slips.items(), *usual.items()) if slipped(slip)), None)
    return not_yet(known or f"{value:.6g} is too {'large' if value > correct else 'small'}")


def choice(answer: Any, correct: str, why: str, slips: Mapping[str, str]) -> Verdict:
    """Whether a word is the `correct` one; `slips` are the other options, and why not them."""
    options = {option.lower(): said for option, said in slips.items()}
    word = answer.strip().lower() if isinstance(answer, str) else None
    if word == correct.lower():
        return right(why)
    if word not in options:
        given = quoted(answer) if isinstance(answer, str) else _called(answer)
        return not_yet(f"one of {', '.join(map(repr, sorted({correct, *slips})))} is expected, not {given}")
    return not_yet(options[word])


def chosen_run(answer: Any, correct: Run, why: Callable[[], str], slips: Mapping[Run, str]) -> Verdict:
    """Whether a run, or the grid row that holds it, is the `correct` one. `why` is asked only then, as it may train;
    of another run that is not among the `slips` it is told which of its parts differ."""
    given = answer.get("run") if isinstance(answer, dict) else answer
    if not isinstance(given, Run):
        return not_yet(f"a run is expected, such as replace(row['run'], seed=7), not {_called(answer)}")
    if given == correct:
        return right(why())
    parts = [part for part in Run.__dataclass_fields__ if getattr(given, part) != getattr(correct, part)]
    return not_yet(slips.get(given) or f"its {' and its '.join(parts)} should be another")


def predicted(prediction: Any, found: float | str, unit: str = "") -> Verdict:
    """How a prediction that was made before running on compares with what was `found`: a number in `unit` (such as
    "points", "%"), or one of some words. Nothing is right or wrong here; three dots are no prediction."""
    if isinstance(found, str):
        told = f"'{found}'"
        if prediction is ...:
            return Verdict(f"no prediction; it is {told}")
        if not isinstance(prediction, str):
            return Verdict(f"it is {told}; a prediction would be a word like that, not {_called(prediction)}")
        same = prediction.strip().lower() == found.lower()
        return Verdict(f"predicted {quoted(prediction.strip())}, and {'so it is' if same else f'it is {told}'}")
    told = f"{found:.3g} {unit}".rstrip()
    if prediction is ...:
        return Verdict(f"no prediction; it is {told}")
    value = _number(prediction)
    if value is None:
        return Verdict(f"it is {told}; a prediction would be a number, not {_called(prediction)}")
    return Verdict(f"predicted {f'{value:.3g} {unit}'.rstrip()}, and it is {told}")


def tensors(answer: Any, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors of a network that has all those of `like` and no others, each in the precision that it has there;
    None for anything else, and for a network whose tensors have no values yet (lazy layers, no device)."""
    given = answer.state_dict() if isinstance(answer, nn.Module) else {}
    if given.keys() != like.keys() or any(is_lazy(t) or t.is_meta or t.shape != like[n].shape
                                          for n, t in given.items()):
        return None
    return {name: tensor.detach().to(like[name]) for name, tensor in given.items()}


def rates(runs: Mapping[str, Run], measurements: Mapping[str, Measurement], store: Store) -> str:
    """What some runs reach, in words: each rate, and of which run. Trains and measures what is not known yet."""
    frame = sweep.sweep([{"name": name, "run": run} for name, run in runs.items()], dict(measurements), store)
    reached = {metric: rows.set_index("name")["value"] for metric, rows in frame.groupby("metric", sort=False)}
    return "; ".join(f"{metric} " + ", ".join(f"{100 * rate:.0f} % ({name})" for name, rate in reached[metric].items())
                     for metric in measurements)


def _number(answer: Any) -> float | None:
    """A finite number, or a scalar of numpy, tensor, array or column with one in it; None for anything else. An integer
    beyond all floats is infinite."""
    answer = _single(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        try:
            return float(answer)
        except OverflowError:
            return math.inf if answer > 0 else -math.inf
    return float(answer) if isinstance(answer, float) and math.isfinite(answer) else None


def _single(answer: Any) -> Any:
    """What a scalar of numpy, or a tensor, array or column with one value in it, holds; else the answer itself."""
    try:
        return answer.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return answer


def _called(answer: Any) -> str:
    """What kind of thing an answer is; of a number that is not finite, what it is."""
    if isinstance(answer, str):
        return "text"
    single = _single(answer)
    if isinstance(single, float) and not math.isfinite(single):
        return str(single)
    name = type(answer).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
