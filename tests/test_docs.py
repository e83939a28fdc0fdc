"""The documentation: its Python runs, its links lead somewhere, nothing public is left out."""

import doctest
import importlib.util
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import public_api
import pytest
import test_criteria

from ntksap_jax import masks, structured

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / ".github" / "CONTRIBUTING.md", ROOT / "README.md"]
SMALLER = {
    "ntk_sap(network)": "ntk_sap(network, num_samples=1, batch_size=4)",
    "num_samples=5, batch_size=100": "num_samples=1, batch_size=4",
    "num_samples=8, batch_size=100": "num_samples=8, batch_size=4",
    "rounds=20": "rounds=2",
}
"""What makes the examples quick."""


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run_page(name, monkeypatch, folder):
    """Runs all Python of a page in one namespace, in an empty folder."""
    monkeypatch.chdir(folder)
    names = {"__name__": "page"}
    for block in python_blocks(DOCS / name):
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, name, "exec", dont_inherit=True), names)
    return names


# -- Python ----------------------------------------------------------------------------------------


def prunes_and_trains(names):
    mask, params = names["mask"], names["params"]
    assert masks.num_kept(mask) == round(0.05 * masks.num_prunable(mask))
    assert np.isfinite(names["loss"])
    weights = masks.leaf_paths(params)
    for path, m in masks.leaf_paths(mask).items():
        assert not np.any(np.asarray(weights[path])[~np.asarray(m)])
        assert np.any(weights[path])


def chooses(names):
    assert masks.layer_densities(names["dense_head"])["Dense_1/kernel"] == 1
    assert masks.num_kept(names["mask"]) == round(0.2 * masks.num_prunable(names["mask"]))
    assert names["alive"].effective_density < 0.02


def prunes_every_model(names):
    embedding = masks.leaf_paths(names["chosen"])["embed/embedding"]
    assert embedding.size == names["vocabulary"] * 16
    kept = masks.num_kept(names["mask"]) / masks.num_prunable(names["mask"])
    assert kept == pytest.approx(0.3, abs=0.01)
    # The critic's first kernel is divided by its own largest singular value.
    params, x = names["critic_params"], names["example"]
    kernels = [params[name]["kernel"] for name in ("Dense_0", "Dense_2", "Dense_1")]
    kernels[0] = kernels[0] / np.linalg.norm(kernels[0], 2)
    kernels[1] = kernels[1] / np.linalg.norm(kernels[1], axis=0)  # Scales are 1, biases 0.
    want = np.maximum(np.maximum(x @ kernels[0], 0) @ kernels[1], 0) @ kernels[2]
    np.testing.assert_allclose(names["apply_critic"](params, x), want, rtol=0.05)
    assert masks.density(names["critic_mask"]) == pytest.approx(0.3, abs=0.01)


def keeps_to_the_budget(names):
    dense, kept = (structured.cost(names["channels"], keep) for keep in (None, names["keep"]))
    small = structured.cost(structured.trace(names["small"], names["shape"], train=False))
    assert small.flops <= 0.25 * dense.flops and kept.params <= 0.5 * dense.params
    sizes = [leaf.size for leaf in masks.leaf_paths(names["half_variables"]["params"]).values()]
    assert sum(sizes) == kept.params


def splits_over_devices(names):
    assert names["mesh"].axis_names == ("data", "model")
    assert masks.num_kept(names["mask"]) == round(0.1 * masks.num_prunable(names["mask"]))


def takes_the_mask_over(names):
    kept = [m.weight for m in names["model"] if hasattr(m, "weight_mask")]
    assert sum(int((weight != 0).sum()) for weight in kept) == masks.num_kept(names["mask"])


def is_the_authors_code(names):
    params = names["network"].init(test_criteria.KEY)
    scores, metrics = names["score"](test_criteria.KEY, params, masks.create(params), None)
    assert metrics["trace"] > 0 and jnp.any(scores["layers_0"]["kernel"])


def adds_a_criterion(names):
    lamp = names["lamp"]
    example = doctest.DocTestParser().get_doctest(lamp.__doc__, names, "lamp", None, None)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
    # The contract that its listing would have it tested by.
    with pytest.MonkeyPatch.context() as listed:
        listed.setitem(test_criteria.CRITERIA, "lamp", lamp)
        test_criteria.test_jit_gives_the_same_scores("lamp")
        test_criteria.test_arguments_are_left_alone(lamp())
        test_criteria.test_count_is_exact_after_selection(lamp())
    # The formula, slowly; and what its source proves.
    scores, _ = lamp()(None, test_criteria.PARAMS, test_criteria.MASK, None)
    for path, m in masks.leaf_paths(test_criteria.MASK).items():
        weights = np.asarray(masks.leaf_paths(test_criteria.PARAMS)[path])[np.asarray(m)] ** 2
        want = [w / np.sum(weights[weights >= w]) for w in weights]
        got = np.asarray(masks.leaf_paths(scores)[path])
        np.testing.assert_allclose(got[np.asarray(m)], want, rtol=1e-5)
        assert not np.any(got[~np.asarray(m)]) and np.isclose(got.max(), 1)


CHECKS = {
    "start.md": prunes_and_trains,
    "faithful.md": is_the_authors_code,
    "adding_a_criterion.md": adds_a_criterion,
    "choosing.md": chooses,
    "your_model.md": prunes_every_model,
    "structured.md": keeps_to_the_budget,
    "devices.md": splits_over_devices,
    "exchange.md": takes_the_mask_over,
}
SLOW = ("choosing.md", "your_model.md", "structured.md", "devices.md", "exchange.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.long] if p in SLOW else []) for p in CHECKS],
)
def test_the_python_of_a_page_runs(page, monkeypatch, tmp_path):
    if page == "exchange.md" and not importlib.util.find_spec("torch"):
        pytest.skip("needs PyTorch: pip install '.[bench]'")
    CHECKS[page](run_page(page, monkeypatch, tmp_path))


def test_no_page_has_python_that_is_not_run():
    assert {str(p.relative_to(DOCS)) for p in PAGES if python_blocks(p)} == CHECKS.keys()


# -- Links and numbers -----------------------------------------------------------------------------


def headings(text):
    """The anchors that GitHub and mkdocs make of headings."""
    text = re.sub(r"^(```+|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


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


@pytest.mark.parametrize("page", sorted((DOCS / "results").glob("*.md")), ids=lambda p: p.stem)
def test_results_come_with_their_commands(page):
    if page.stem == "index":
        others = {path.name for path in page.parent.glob("*.md")} - {page.name}
        assert others == set(re.findall(r"\]\(([\w-]+\.md)\)", page.read_text()))
        return
    commands = re.findall(
        r"^(?:\w+=\S+ )?(?:python -m (experiments[\w.]*)|pytest (?:-m '' )?(tests/.*))",
        page.read_text(),
        re.MULTILINE,
    )
    assert commands
    for module, files in commands:
        assert (
            importlib.util.find_spec(module)
            if module
            else all((ROOT / file).exists() for file in files.split())
        )


# -- The API reference -----------------------------------------------------------------------------


def test_every_public_module_has_a_page():
    shown = {re.search(r"^::: (\S+)$", p.read_text(), re.M)[1] for p in (DOCS / "api").iterdir()}
    assert shown == set(public_api.modules())


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_without_the_network(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    anchors = set()
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"(https?:)?//", text), page
        anchors |= set(re.findall(r'id="(ntksap_jax[\w.]*)"', text))
    public = {
        f"{public_api.home(module, name)}.{name}"
        for module in public_api.modules()[1:]
        for name in public_api.names(module)
    }
    assert public <= anchors
    assert not {name for name in anchors if re.search(r"\._(?!_)", name)}
