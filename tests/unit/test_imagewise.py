"""Values of single images: packed into text and back, and damaged texts refused."""

import string

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparserobust import UserError, imagewise
from sparserobust.imagewise import FIRST, is_sample, pack, unpack

ANSWERS = arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 70)))
NUMBERS = arrays(float, st.integers(1, 40),
                 elements=st.floats(-1e30, 1e30) | st.just(np.nan) | st.floats(-1, 1))
PACKED = [pack(np.arange(60).reshape(3, 20) % 7 < 3), pack(np.sqrt(np.arange(20)) - 2)]


def whole(text: str) -> np.ndarray | None:
    """The values of a text; None if it is refused, in one line that says what to do."""
    try:
        return unpack(text)
    except UserError as error:
        assert "damaged" in str(error) and "measure anew" in str(error) and "\n" not in str(error)
        return None


# --------------------------------------------------------------------------------- there and back


@given(ANSWERS)
def test_answers_come_back_exactly_as_the_share_of_trials(answers):
    found = unpack(pack(answers))
    trials, images = answers.shape
    assert found.dtype == float and found.shape == (images,)
    by_hand = [sum(answers[t, i] for t in range(trials)) / trials for i in range(images)]
    assert found == pytest.approx(by_hand, abs=1e-15)
    assert np.array_equal(unpack(pack(answers[0])), answers[0])  # one trial may have no axis


@given(NUMBERS)
def test_numbers_come_back_to_a_thousandth_of_the_largest_and_missing_ones_stay_missing(values):
    found = unpack(pack(values))
    assert found.dtype == float and np.array_equal(np.isnan(found), np.isnan(values))
    largest = max((abs(v) for v in values if not np.isnan(v)), default=0.0)
    known = ~np.isnan(values)
    assert (abs(found - values)[known] <= 1e-3 * largest).all()
    assert (np.sign(found) == np.sign(values))[known & (abs(values) > 1e-3 * largest)].all()


def test_zeros_missing_values_and_infinity_stay_what_they_are():
    assert unpack(pack([0.0, 0.0])).tolist() == [0, 0]
    assert np.isnan(unpack(pack([np.nan] * 3))).all()
    assert unpack(pack([2.0, np.inf, -np.inf])).tolist() == [2, np.inf, -np.inf]


@given(st.sampled_from([1e-300, 1e-20, 1.0, 1e20, 1e300]),
       st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_no_size_is_too_large_or_too_small(size, shares):
    values = size * np.array([1.0, *shares])
    assert abs(unpack(pack(values)) - values).max() <= 1e-3 * size


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_whole_numbers_and_tensors_are_packed_as_arrays_are(values):
    assert pack(values) == pack(np.array(values)) == pack(torch.tensor(values))
    answers = [v > 4 for v in values]
    assert pack(answers) == pack(np.array(answers)) == pack(torch.tensor(answers))
    assert unpack(pack(answers)).tolist() == answers


def test_no_images_are_no_values():
    assert len(unpack(pack([]))) == len(unpack(pack(np.zeros((2, 0), bool)))) == 0


def test_a_text_is_short_and_can_stand_in_json():
    answers, values = np.random.default_rng(0).random((2, 10_000))
    assert len(pack(answers < 0.5)) < 1.3 * 10_000 / 8  # a bit each, and a quarter more for letters
    assert len(pack(values)) < 1.3 * 2 * 10_000
    for text in (pack(answers < 0.5), pack(values)):
        assert text.isascii() and text.isprintable()


# ----------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("text", PACKED, ids=["answers", "numbers"])
@given(st.data())
def test_a_text_that_was_cut_is_refused(text, data):
    assert whole(text[:data.draw(st.integers(0, len(text) - 1))]) is None
    assert whole(text[data.draw(st.integers(1, len(text))):]) is None


@pytest.mark.parametrize("text", PACKED, ids=["answers", "numbers"])
@given(st.data())
def test_a_changed_letter_gives_no_other_values(text, data):
    """Their sum is checked, and so is their number; the last letters may be written in two ways."""
    first = text.rindex(" ") + 1
    place = data.draw(st.integers(first, len(text) - 1))
    letter = data.draw(st.characters(codec="ascii") | st.characters())
    found = whole(text[:place] + letter + text[place + 1:])
    assert found is None or np.array_equal(found, unpack(text))


@pytest.mark.parametrize("text", PACKED, ids=["answers", "numbers"])
@given(st.data())
def test_lost_and_moved_letters_give_no_other_values(text, data):
    first = text.rindex(" ") + 1
    places = st.lists(st.integers(first, len(text)), min_size=2, max_size=2, unique=True)
    one, other = sorted(data.draw(places))
    for changed in (text[:one] + text[other:], text[:first] + text[one:] + text[first:one]):
        found = whole(changed)
        assert found is None or np.array_equal(found, unpack(text))


@pytest.mark.parametrize("shape", ["2x20", "3x25", "3x10", "0x60", "-3x-20", "3", "3x20x1", "x",
                                   "axb", "3x", "3.0x20"])
def test_a_number_of_images_that_are_not_there_is_refused(shape):
    kind, _, content = PACKED[0].split(" ")
    assert whole(f"{kind} {shape} {content}") is None


@pytest.mark.parametrize("shape", ["19x1", "21x1", "0x1", "-20x1", "20x0", "20x-1", "20xnan",
                                   "20xinf", "20x1e999", "20", "20x1x1", "20xlarge", "x1"])
def test_numbers_of_another_size_or_count_are_refused(shape):
    kind, _, content = PACKED[1].split(" ")
    assert whole(f"{kind} {shape} {content}") is None


def test_one_kind_is_not_taken_for_the_other():
    (bits, shape, content), (numbers, size, values) = (text.split(" ") for text in PACKED)
    for text in (f"{numbers} {shape} {content}", f"{bits} {size} {values}",
                 f"other {size} {values}", f"{numbers}  {size} {values}", FIRST + PACKED[0]):
        assert whole(text) is None


@given(st.text(max_size=30) | st.text(alphabet=string.printable, max_size=30))
@example("")
@example("bits 1x1 ")
@example("1 2\n3")
@example("bits 1x8 \u00e9")
def test_a_foreign_text_is_refused(text):
    assume(not text.startswith(FIRST))
    assert whole(text) is None


def test_the_refusal_names_what_is_damaged(refusal):
    message = refusal(unpack, "bits 1x500 " + "a" * 1000)
    assert "'bits 1x500 aaaa" in message and len(message) < 300


# ------------------------------------------------------------- the first images of a test set


@given(st.text("01", max_size=40))
def test_answers_on_the_first_images_are_read_and_are_no_sample(answers):
    text = imagewise.FIRST + answers
    assert unpack(text).tolist() == [float(a) for a in answers]
    assert not is_sample(text)


@given(st.text(min_size=1, max_size=20).filter(lambda text: set(text) - {"0", "1"}))
@example("012")
@example("1 0")
@example("\u0661")  # a digit, but none of ours
def test_other_letters_are_no_answers(answers):
    assert whole(FIRST + answers) is None


@given(ANSWERS, NUMBERS)
def test_what_is_packed_is_of_a_sample(answers, values):
    assert is_sample(pack(answers)) and is_sample(pack(values))
