"""The glossary, its pictures, and the links to it."""

import re

import pytest
import torch
from PIL import Image

import glossary
import glossary_pictures
from sparserobust import notebook_runner
from sparserobust.paths import PROJECT

TERMS = glossary.entries()
PAGES = {path.stem: [cell.source for cell in cells] for path, _, cells in glossary.pages()}
TOY = "../docs/glossary.md#"


def pictures() -> list[tuple[str, str, str]]:
    """Term, alternative text and file of every picture."""
    return [(term, alt, file) for term, text in TERMS.items() for alt, file in re.findall(r"!\[(.*?)\]\((.*?)\)", text)]


def test_there_are_thirty_terms_with_two_sentences_each():
    assert len(TERMS) == 30
    for term, text in TERMS.items():
        definition = re.sub(r"^\*Also: .*?\.\*$|^!\[.*|^\*.*\.\*$", "", text, flags=re.MULTILINE).strip()
        assert "\n\n" not in definition, f"{term}: one paragraph, one picture, one caption"
        assert len(re.findall(r"[.?!](?=\s|$)", definition)) == 2, f"{term}: {definition}"
        assert 20 <= len(definition.split()) <= 60, term


def test_each_form_leads_to_one_term_and_each_anchor_is_there_once():
    text = glossary.GLOSSARY.read_text()
    headings = [glossary.anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    assert len(set(headings)) == len(headings)
    given = [form for term, text in TERMS.items() if (also := re.match(r"\*Also: (.*?)\.\*", text, re.DOTALL))
             for form in (term, *re.split(r",\s+", also[1]))]
    assert len(set(given)) == len(given), "a word that leads to two terms"
    assert set(glossary.forms().values()) <= set(headings)


def test_pictures_are_those_of_the_script_and_small():
    files = {path.stem: path for path in glossary_pictures.FOLDER.glob("*")}
    assert {file: glossary.anchor(term) for term, _, file in pictures()} == {
        f"glossary/{name}.png": name for name in glossary_pictures.DRAWN}
    assert files.keys() == glossary_pictures.DRAWN.keys() and len(files) == len(pictures())
    assert 8 <= len(files) <= 14
    assert max(path.stat().st_size for path in files.values()) < 40_000
    for path in files.values():
        assert Image.open(path).width <= 800


def test_a_picture_shows_what_the_library_computes():
    for name, jump in (("lasso", 0), ("relaxed-splitting", 0.4)):
        unchanged, after = glossary_pictures.DRAWN[name]().axes[0].lines
        x, y = (torch.tensor(values) for values in after.get_data())
        known = y.isfinite()
        expected = x.sign() * (x.abs() - 0.4 + jump) * (x.abs() > 0.4)
        assert known.float().mean() > 0.99 and torch.allclose(y[known], expected[known], atol=1e-6)
        assert (unchanged.get_xdata() == unchanged.get_ydata()).all()


def test_a_picture_says_in_words_what_it_shows_and_has_a_caption():
    """The alternative text describes the picture, the caption says what it means."""
    text = glossary.GLOSSARY.read_text()
    for term, alt, file in pictures():
        caption = re.search(rf"\({re.escape(file)}\)\n\n\*([^*\n]+\.)\*$", text, re.MULTILINE)
        assert caption, f"{term}: a caption of one line beneath"
        assert 60 <= len(alt) <= 230 and alt.endswith(".") and not re.search(r"[\[\]\n]", alt), term
        assert 40 <= len(caption[1]) <= 150, term
        assert not re.match("(image|picture|figure|plot) of", alt, re.IGNORECASE), term
        assert caption[1] != alt, f"{term}: the caption repeats the alternative text"


# ----------------------------------------------------------------------------------------------------- links


LINKED = {  # cells of a page, before and after
    "once, at the first use": (
        ["A mask.", "A mask, a seed."], [f"A [mask]({TOY}pruning).", f"A mask, a [seed]({TOY}seed)."]),
    "the longest form": (
        ["Robust overfitting of seeds."], [f"[Robust overfitting]({TOY}robust-overfitting) of [seeds]({TOY}seed)."]),
    "over two lines": (
        ["the fast gradient\nsign method"], [f"the [fast gradient\nsign method]({TOY}fast-gradient-sign-method)"]),
    "with its number": (["PGD-20 and *I-FGSM20*"], [f"[PGD-20]({TOY}projected-gradient-descent) and *I-FGSM20*"]),
    "no part of a word": (["unpruned, seedless, a lasso-like, AT-2x; at"],) * 2,
    "not in a heading, code, formula or link": (
        ["# A seed\n`a seed` and $seed$\n\n$$\\text{seed}$$\n\n```\nseed\n```\n\n[seed](#seed) ![seed](a.png)"],) * 2,
    "not in a citation": (
        ["*A seed of\nrobust nets*, [arXiv 1](https://arxiv.org/abs/1),\n2018.\n\nA seed."],
        [f"*A seed of\nrobust nets*, [arXiv 1](https://arxiv.org/abs/1),\n2018.\n\nA [seed]({TOY}seed)."]),
    "folded only where nothing else uses it": (
        ["<details><summary>a seed</summary>\n\na seed, a mask\n\n</details>\n\na seed"],
        [f"<details><summary>a seed</summary>\n\na seed, a [mask]({TOY}pruning)\n\n</details>\n\na [seed]({TOY}seed)"]),
    "moved to what has become the first use": (["a seed", f"a [seed]({TOY}seed)"], [f"a [seed]({TOY}seed)", "a seed"]),
}


@pytest.mark.parametrize("case", LINKED)
def test_a_term_is_linked(case):
    before, after = LINKED[case]
    assert glossary.linked(before) == after
    assert glossary.linked(after) == after


def test_jupyterlab_serves_the_folder_to_which_links_lead():
    """Of a file outside it JupyterLab says nothing: a click on its link does nothing."""
    folder = re.search(r"--notebook-dir=(\S+)", (PROJECT / "Makefile").read_text())[1]
    assert (PROJECT / folder).resolve() in glossary.GLOSSARY.parents


def test_pages_are_all_looked_at():
    assert list(PAGES) == notebook_runner.names() and all(PAGES.values())


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_to_the_glossary_point_to_its_terms(page):
    anchors = set(map(glossary.anchor, TERMS))
    for cell in PAGES[page]:
        assert set(re.findall(r"glossary\.md#([^)\s]*)", cell)) <= anchors


@pytest.mark.parametrize("page", PAGES)
def test_a_page_links_each_term_at_its_first_use_and_nothing_else_changes(page):
    cells = PAGES[page]
    found = glossary.linked(cells)
    plain = [[re.sub(r"\[([^]]*)\]\(\.\./docs/glossary\.md#[\w-]+\)", r"\1", cell) for cell in some]
             for some in (found, cells)]
    assert plain[0] == plain[1]
    assert found == cells, "run python docs/glossary.py"
