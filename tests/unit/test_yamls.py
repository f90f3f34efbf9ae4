"""YAML that people write: what is read is what `yaml.safe_load` reads, all else is one line and takes no time."""

import time

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparserobust import UserError, yamls

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True))
PIECES = st.sampled_from([
    *"abn01.-+:?,[]{}#&*!|>%@`~'\"= \n\t_\\xe", "\n  ", "\n- ", ": ", "&a ", "*a", "<<: ", "on", "yes", "no", "null",
    "true", ".inf", ".nan", "1e3", "1.0e-6", "010", "0x1f", "1:30", "2020-01-01", "!!str ", "!!python/object:a.b ",
    "---\n", "...\n", "\r\n", "\x00", "é", "\u2028", "\ufeff", "\ud800", "? ", "99999999999"])
KEYS = st.text("abc on01.é:", max_size=4) | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=30)


@given(DATA, st.booleans(), st.booleans())
def test_what_was_written_comes_back(data, flow, unicode):
    """In the order and of the types that it had."""
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=flow, allow_unicode=unicode)
    try:
        assert repr(yamls.parsed(text, "x")) == repr(yaml.safe_load(text))
    except UserError as error:  # a key with a line break, say
        assert "key" in str(error)


@settings(max_examples=1500)
@given(st.lists(PIECES, max_size=24).map("".join))
@example("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: {z: 0, <<: [{b: 4, q: 5}, *x]}")
@example("? a\n: b\n? &k c\n: *k")
@example("")
@example("# nothing")
@example("--- 1\n...\n")
@example("\ufeffa: 1")
def test_any_text_is_read_as_yaml_reads_it_or_refused_in_one_line(text):
    try:
        found = yamls.parsed(text, "x.yaml")
    except UserError as error:
        assert str(error).startswith("x.yaml") and len(str(error).splitlines()) == 1
    else:
        assert repr(found) == repr(yaml.load(text, yamls._Loader))


@pytest.mark.parametrize(("text", "said"), [
    (BOMB, "line 6: more than 100,000 values, each alias counted as what it stands for"),
    ("a: &a {" + ", ".join(f"k{n}: 1" for n in range(500)) + "}\nb: [" + "{<<: *a}, " * 500 + "]",
     "line 2: more than 100,000 values"),
    ("[" * 100_000, "line 1: more than 50 lists and mappings, one in another"),
    ("a:\n" + "".join(" " * n + "- \n" for n in range(1, 60)), "more than 50 lists"),
    ("a: " + "x" * 1_000_000, "more than 1,000,000 bytes of YAML"),
    ("a: [" + "1, " * 200_000 + "]", "more than 100,000 values"),
    ("a: &a [1, *a]", "line 1: alias 'a' stands inside itself"),
    ("a: &a {b: *a}", "line 1: alias 'a' stands inside itself"),
    ("a: *b", "line 1: alias 'b' is unknown"),
    ("a: &a 1\nb: &a 2", "line 2: anchor 'a' is given twice"),
    ("a: 1\nb: 2\na: 3", "line 3: key 'a' is given twice"),
    ("1: a\n1.0: b", "line 2: key 1.0 is given twice"),
    ("a: {<<: {b: 1}, <<: {c: 1}}", "line 1: key '<<' is given twice"),
    ("a: {<<: 3}", "line 1: << needs a mapping"),
    ("on: a", "line 1: key 'on' is read as True: keys are text (write it in quotes) or numbers"),
    ("YES: a", "key 'YES' is read as True"),
    ("~: a", "key '~' is read as None"),
    ("? [1, 2]\n: a", "line 1: key 'of this kind'"),
    ('"a\\nb": 1', "line 1: key 'a\\nb' has more in it than letters"),
    ("a: 2020-01-01", "line 1: '2020-01-01' is neither text nor a number: if it is text, write it in quotes"),
    ("a: 2020-99-99", "'2020-99-99' is neither text nor a number"),
    ("a: <<", "'<<' is neither text nor a number"),
    ("a: .nan", "line 1: '.nan' is no finite number"),
    ("a: -.inf", "line 1: '-.inf' is no finite number"),
    ("a: 1.0e+999", "is no finite number"),
    (f"a: {'9' * 5000}", "is no finite number"),
    (f"a: 0x{'f' * 5000}", "is no finite number"),
    ("a: 010", "line 1: '010' is read as the number 8"),
    ("a: 1:30", "line 1: '1:30' is read as the number 90"),
    ("a: 1\n---\nb: 2", "line 2: a second document begins, only one is read"),
    ("a: !!python/object/apply:os.system [echo]", "tags such as 'tag:yaml.org,2002:python/object/apply:os.system'"),
    ("a: !!int 3", "tags such as"),
    ("a: !mine {b: 1}", "tags such as '!mine'"),
    ("a:\n\tb: 1", "line 2: not valid YAML, found character"),
    ("a: \x00", "not valid YAML"),
    ("a: \ud800", "not valid YAML"),
    ("a: [1", "not valid YAML"),
])
def test_what_is_no_plain_data_is_refused_at_once(text, said, refusal):
    start = time.process_time()
    message = refusal(yamls.parsed, text, "x.yaml")
    assert message.startswith("x.yaml") and said in message and len(message) < 250
    assert time.process_time() - start < 5


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, refusal):
    path = tmp_path / "x.yaml"
    assert "x.yaml cannot be read (No such file or directory)" in refusal(yamls.text, path)
    assert refusal(yamls.text, tmp_path).startswith(f"{tmp_path.name} cannot be read (Is a directory)")
    path.write_bytes("a: é".encode("latin-1"))
    assert refusal(yamls.text, path) == "x.yaml cannot be read: byte 3 is no UTF-8, save it as UTF-8"
    path.write_text("a: é" + "é" * yamls.LARGEST)
    assert refusal(yamls.text, path) == "x.yaml: more than 1,000,000 bytes of YAML"
    path.write_text("a: b" + " " * yamls.LARGEST)
    assert refusal(yamls.text, path) == "x.yaml: more than 1,000,000 bytes of YAML"
    path.write_text("a: é", encoding="utf-8")
    assert yamls.parsed(yamls.text(path), "x.yaml") == {"a": "é"}


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="there is only one parser here")
@settings(max_examples=400)
@given(st.lists(PIECES, max_size=16).map("".join))
def test_both_parsers_give_the_same(text):
    """Which of them is there depends on how PyYAML was installed; either may refuse what the other reads."""
    def read(loader):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(yamls, "_Loader", loader)
            try:
                return repr(yamls.parsed(text, "x"))
            except UserError:
                return None

    one, other = read(yaml.CSafeLoader), read(yaml.SafeLoader)
    assert one is None or other is None or one == other
