"""The documentation's pages: their Python runs, their links lead somewhere, nothing is left out."""

import doctest
import importlib.util
import re
import urllib.parse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import test_criteria

from ntksap_jax import masks, structured

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [*PAGES, ROOT / ".github" / "CONTRIBUTING.md", ROOT / "README.md"]
SMALLER = {
    "num_samples=5, batch_size=100": "num_samples=1, batch_size=4",
    "num_samples=8": "num_samples=8, batch_size=4",
    "rounds=20": "rounds=2",
}
"""What makes the README's examples, which some pages include, quick."""
INCLUDE = re.compile(r"^```\{include\} (\S+)\n((?::.*\n)*)```$", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def included(page, path, options):
    """The part of another file that a page shows."""
    text = (page.parent / path).read_text()
    marks = dict(re.findall(r'^:([\w-]+): "?(.*?)"?$', options, re.MULTILINE))
    for mark in marks.values():
        assert text.count(mark) == 1, f"{page.name} includes {path} from or to {mark!r}"
    text = text.partition(marks["start-after"])[2] if "start-after" in marks else text
    return text.partition(marks["end-before"])[0] if "end-before" in marks else text


def expanded(page):
    return INCLUDE.sub(lambda match: included(page, *match.groups()), page.read_text())


def headings(text):
    """The anchors that MyST makes of headings, as GitHub does."""
    text = re.sub(r"^(```+|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def run_python(text, monkeypatch, folder):
    """Runs all blocks of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(folder)
    names = {"__name__": "page"}
    for block in PYTHON.findall(text):
        if "import torch" in block and not importlib.util.find_spec("torch"):
            continue
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, "page", "exec", dont_inherit=True), names)
    return names


# -- Python ----------------------------------------------------------------------------------------


def test_start_prunes_and_trains(monkeypatch, tmp_path):
    names = run_python(expanded(DOCS / "start.md"), monkeypatch, tmp_path)
    mask, params = names["mask"], names["params"]
    assert masks.num_kept(mask) == round(0.05 * masks.num_prunable(mask))
    assert np.isfinite(names["loss"])
    for m, p in zip(
        masks.leaf_paths(mask).values(),
        masks.leaf_paths(masks.map_prunable(lambda m, p: p, mask, params)).values(),
        strict=True,
    ):
        assert not np.any(np.asarray(p)[~np.asarray(m)])
        assert np.any(p)


@pytest.mark.long
def test_recipes_do_what_they_say(monkeypatch, tmp_path):
    # What it includes of the README is run by test_readme.py.
    names = run_python((DOCS / "recipes.md").read_text(), monkeypatch, tmp_path)
    dense, kept = (structured.cost(names["channels"], keep) for keep in (None, names["keep"]))
    assert kept.flops <= 0.25 * dense.flops
    if importlib.util.find_spec("torch"):
        kept = [m.weight for m in names["theirs"] if hasattr(m, "weight_mask")]
        assert sum(int((weight != 0).sum()) for weight in kept) == masks.num_kept(names["mask"])


def test_the_authors_code_in_our_words(monkeypatch, tmp_path):
    names = run_python((DOCS / "faithful.md").read_text(), monkeypatch, tmp_path)
    params = names["network"].init(test_criteria.KEY)
    scores, metrics = names["score"](test_criteria.KEY, params, masks.create(params), None)
    assert metrics["trace"] > 0 and jnp.any(scores["layers_0"]["kernel"])


def test_the_new_criterion_is_one(monkeypatch, tmp_path):
    names = run_python((DOCS / "adding_a_criterion.md").read_text(), monkeypatch, tmp_path)
    lamp = names["lamp"]
    example = doctest.DocTestParser().get_doctest(lamp.__doc__, names, "lamp", None, None)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
    # The contract that its listing would have it tested by.
    score = lamp()
    test_criteria.test_jit_gives_the_same_scores(score)
    test_criteria.test_legacy_keys_are_as_good(score)
    test_criteria.test_arguments_are_left_alone(score)
    test_criteria.test_count_is_exact_after_selection(score)
    # The formula, slowly; and what its source proves.
    scores, _ = score(None, test_criteria.PARAMS, test_criteria.MASK, None)
    for path, m in masks.leaf_paths(test_criteria.MASK).items():
        weights = np.asarray(masks.leaf_paths(test_criteria.PARAMS)[path])[np.asarray(m)] ** 2
        want = [w / np.sum(weights[weights >= w]) for w in weights]
        got = np.asarray(masks.leaf_paths(scores)[path])
        np.testing.assert_allclose(got[np.asarray(m)], want, rtol=1e-5)
        assert not np.any(got[~np.asarray(m)]) and np.isclose(got.max(), 1)


def test_no_page_has_python_that_is_not_run():
    run = {"start.md", "recipes.md", "faithful.md", "adding_a_criterion.md"}
    assert {page.name for page in PAGES if PYTHON.search(expanded(page))} == run


def test_a_strangers_three_tasks_take_under_ten_lines():
    """Prune my model, add my criterion, load my mask in PyTorch: as the README shows them."""
    prune, criterion, *_, load = PYTHON.findall((ROOT / "README.md").read_text())
    assert "nts.prune(" in prune and "def user_criterion(" in criterion and "torch" in load
    own_model = re.sub(r"^model = .*\n", "", prune, flags=re.MULTILINE)
    own_criterion = criterion.partition("\n\n")[0]
    for block in (own_model, own_criterion, load):
        assert 0 < len([line for line in block.splitlines() if line.strip()]) < 10


# -- Links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        url = urllib.parse.urlsplit(target)
        if url.scheme:
            assert url.scheme == "https" and re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", url.netloc)
            continue
        file = page.parent / url.path if url.path else page
        assert file.exists(), target
        if url.fragment:
            assert url.fragment in headings(file.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_include_has_no_links_of_its_own_folder(page):
    for match in INCLUDE.finditer(page.read_text()):
        assert not re.search(r"\]\((?!https:)", included(page, *match.groups()))


def test_every_page_is_in_the_contents():
    listed = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    entries = [line for block in listed for line in block.splitlines() if line[:1] not in ("", ":")]
    assert sorted(entries) == sorted(["api/index", *(p.stem for p in PAGES if p.stem != "index")])


# -- The API reference -----------------------------------------------------------------------------
