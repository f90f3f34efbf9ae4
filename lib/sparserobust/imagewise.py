"""What a measurement found on each test image, packed into a short text that is stored and published with its result.

Answers (right or wrong, in one or several trials) take one bit an image, other values (distances, margins) sixteen,
as a share of the largest.
`pack` and `unpack` are inverse but for those sixteen bits; images stand in the order of `data.Split.sample`, so that
the first n of them are the sample of n images.
"""

import base64
import zlib

import numpy as np

from sparserobust.errors import UserError

FIRST = "first:"  # before answers of published results that took the first images of a test set, not a sample


def pack(values) -> str:
    """Answers (trials, n) or (n,) of booleans, or other values (n,) as numbers; nan says that an image has none."""
    values = np.atleast_1d(np.asarray(values))
    if values.dtype == bool:
        trials, n = np.atleast_2d(values).shape
        return f"bits {trials}x{n} {_text(np.packbits(values).tobytes())}"
    size = np.abs(values[np.isfinite(values)]).max(initial=0) or 1.0
    return f"numbers {len(values)}x{size:.9g} {_text((values / size).astype('<f2').tobytes())}"


def unpack(text: str) -> np.ndarray:
    """Values (n,), float64: of several trials the share of right answers. `UserError` for a text that is not whole."""
    answers = text.removeprefix(FIRST)
    if answers != text and set(answers) <= {"0", "1"}:
        return np.array(list(answers), float)
    try:
        kind, shape, content = text.split(" ")
        one, other = shape.split("x")
        data = np.frombuffer(zlib.decompress(base64.b85decode(content)), np.uint8)
        if kind == "bits" and int(one) > 0 and len(data) == -(-int(one) * int(other) // 8):
            return np.unpackbits(data, count=int(one) * int(other)).reshape(int(one), int(other)).mean(0)
        if kind == "numbers" and len(data) == 2 * int(one) and 0 < float(other) < np.inf:
            return data.view("<f2").astype(float) * float(other)
        raise ValueError("neither bits nor numbers of the length that is said")
    except (ValueError, zlib.error) as error:
        raise UserError(f"values of images are damaged ({error}): delete the result that holds {text[:30]!r}... and "
                        "measure anew") from None


def is_sample(text: str) -> bool:
    """Whether the images were drawn (`data.Split.sample`), not taken from the beginning of the test set."""
    return not text.startswith(FIRST)


def _text(data: bytes) -> str:
    return base64.b85encode(zlib.compress(data, 9)).decode()
