"""Exact selection in every scope, against a stable sort in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import flat as join

from ntksap_jax import masks
from ntksap_jax.scopes import Block, Filter, Global, Layer, NofM, Scope, _host_selection

GLOBAL = Global()
AXES = {"conv|low|high": "ppio", "dense|narrow|large": "io", "small": "pio"}


@functools.partial(jax.jit, static_argnames="scope")
def keep_top(scores, mask, counts, scope=GLOBAL):
    return scope.keep_top(scores, mask, counts, axes=AXES)


# Few distinct values make ties; the others reach into both tails, subnormal numbers and zeros.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -1.0]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def oracle(scores, mask, count):
    """Keeps the `count` best kept entries of a flat array, earlier ones first among equals."""
    order = np.argsort(-scores, kind="stable")
    order = order[mask[order]]
    new = np.zeros_like(mask)
    new[order[:count]] = True
    return new


@st.composite
def problems(draw):
    """Scores and a mask over two leaves, and how many to keep."""
    scores = draw(hnp.arrays(np.float32, 11, elements=VALUES))
    mask = draw(hnp.arrays(bool, 11, elements=st.booleans()))
    return scores, mask, draw(st.integers(0, 11))


def split(flat):
    return {"a": jnp.asarray(flat[:5]), "b": {"c": jnp.asarray(flat[5:]).reshape(2, 3), "d": None}}


@pytest.mark.parametrize("keep", [keep_top, Global().keep_top_concrete])
@given(problem=problems())
def test_global_selection_is_a_stable_sort(keep, problem):
    scores, mask, count = problem
    new, threshold = keep(split(scores), split(mask), count)
    want = oracle(scores, mask, count)
    np.testing.assert_array_equal(join(new), want)
    assert threshold == (scores[want].min() if want.any() else np.inf)


@pytest.mark.parametrize("order", ["random", "few values", "sorted", "periodic"])
@pytest.mark.parametrize("sampled", [2, 8])
def test_selection_from_a_sample_is_a_stable_sort(order, sampled, monkeypatch):
    """A sample tells where the threshold is, or, where it is unlike the rest, is found to be so."""
    monkeypatch.setattr(_host_selection, "SAMPLED", sampled)
    random = np.random.default_rng(0)
    flat = random.standard_normal(6000).astype(np.float32)
    mask = random.random(6000) < 0.9
    if order == "few values":
        flat = np.round(flat)
    elif order == "sorted":
        flat = np.sort(flat)
    elif order == "periodic":
        mask[:] = True
        flat[::sampled] -= 100  # all that is sampled
    pieces, masks_ = np.split(flat, [1234]), np.split(mask, [1234])
    for count in (1, 300, 3000, 5000):
        kept, lowest = _host_selection.keep_highest(pieces, masks_, count)
        want = oracle(flat, mask, count)
        np.testing.assert_array_equal(np.concatenate(kept), want)
        assert lowest == flat[want].min()


@given(problems(), st.integers(0, 5), st.integers(0, 6))
def test_layer_selection_is_a_stable_sort_in_each_layer(problem, count_a, count_c):
    scores, mask, _ = problem
    counts = {"a": count_a, "b": {"c": count_c, "d": None}}
    new, _ = keep_top(split(scores), split(mask), counts, Layer())
    want = [oracle(scores[:5], mask[:5], count_a), oracle(scores[5:], mask[5:], count_c)]
    np.testing.assert_array_equal(join(new), np.concatenate(want))


@pytest.mark.parametrize("ties", [False, True])
def test_selection_among_many_weights_is_a_stable_sort(ties):
    """Beyond 2^16 entries, with many ties: where a float count or threshold would be off."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 7, 50), "b": (9999, 13), "c": (17,)}
    scores = {name: jnp.float32(rng.standard_normal(shape)) for name, shape in shapes.items()}
    if ties:
        scores = jax.tree.map(jnp.round, scores)
    mask = jax.tree.map(lambda s: jnp.asarray(rng.random(s.shape) < 0.7), scores)
    for count in (0, 70_001, 10_000_000):
        compiled, threshold = keep_top(scores, mask, count)
        on_host, same = Global().keep_top_concrete(scores, mask, count)
        want = oracle(join(scores), join(mask), count)
        np.testing.assert_array_equal(join(compiled), want)
        np.testing.assert_array_equal(join(on_host), want)
        assert threshold == same and threshold.dtype == same.dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        # These two differ in float64 only.
        scores = jnp.array([1.0, 1.0 + 1e-12, -3.0], dtype)
        new, threshold = keep_top([scores], [jnp.ones(3, bool)], 1)
        best = 1 if dtype == "float64" else 0
        assert np.flatnonzero(new[0]).tolist() == [best]
        assert float(threshold) == float(scores[best])


def test_nan_ranks_lowest_and_infinity_highest():
    scores = [jnp.array([jnp.nan, -jnp.inf, 0.0, jnp.inf])]
    kept = [keep_top(scores, [jnp.ones(4, bool)], count)[0][0].tolist() for count in (1, 2, 3)]
    assert [np.flatnonzero(k).tolist() for k in kept] == [[3], [2, 3], [1, 2, 3]]


@pytest.mark.parametrize("scope", [Layer(), Filter()])
def test_a_low_density_empties_no_layer_and_no_filter(scope):
    mask = {"small": jnp.ones((1, 2, 3), bool), "large": jnp.ones((64, 10), bool)}
    scores = {
        name: jnp.arange(1.0, 1 + leaf.size).reshape(leaf.shape) for name, leaf in mask.items()
    }
    kept = scope.select(scores, mask, density=0.05, axes=AXES)
    counts = (int(kept["small"].sum()), int(kept["large"].sum()))
    assert counts == {Layer(): (1, 32), Filter(): (3, 30)}[scope]


DENSE = {"a": jnp.ones(3, bool), "b": jnp.ones(2, bool)}


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        ({"a": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.ones(2)}, "2 of 3 entries of leaf 'a'"),
        ({"a": jnp.ones(3), "b": jnp.zeros(2)}, "all zero in leaf 'b'"),
        ({"a": jnp.zeros(3), "b": jnp.zeros(2)}, "all zero in leaf 'a'"),
        ({"a": jnp.ones(3), "b": jnp.ones(3)}, r"leaf 'b' has shape \(3,\), the mask \(2,\)"),
        ({"a": jnp.ones(3)}, "leaf 'b' has shape None"),
    ],
)
def test_useless_scores_are_errors_that_name_the_leaf(scores, match):
    with pytest.raises(ValueError, match=match):
        Global().select(scores, DENSE, density=0.5)


def test_a_layer_that_earlier_rounds_cut_off_may_score_zero():
    mask = {"a": jnp.ones(3, bool), "b": jnp.array([True, False])}
    new = Global().select({"a": jnp.ones(3), "b": jnp.zeros(2)}, mask, density=0.6)
    assert masks.layer_densities(new) == {"a": 1.0, "b": 0.0}


# -- Scopes: a convolution of 2 x 1 positions, 4 inputs and 6 outputs, and a dense layer ---------

SHAPES = {"conv": (2, 1, 4, 6), "dense": (8, 4)}
SMALL_NUMBERS = st.integers(-3, 3).map(float)  # their sums are exact, and full of ties


def layers(elements, dtype=np.float32):
    return st.fixed_dictionaries(
        {name: hnp.arrays(dtype, shape, elements=elements) for name, shape in SHAPES.items()}
    )


def groups(scope, shape):
    """Lists of flat indices, in order: what has one threshold, or what a block holds."""
    index = np.arange(np.prod(shape)).reshape(-1, *shape[-2:])
    positions, inputs, outputs = index.shape
    if scope == Filter():
        return [index[..., o].ravel() for o in range(outputs)]
    if isinstance(scope, NofM):
        starts = itertools.product(range(positions), range(0, inputs, scope.m), range(outputs))
        return [index[p, i : i + scope.m, o].ravel() for p, i, o in starts]
    rows, columns = scope.inputs or inputs, scope.outputs or outputs
    spans = [[p] for p in range(positions)]
    if scope.inputs is None or scope.outputs is None:
        spans = [list(range(positions))]
    starts = itertools.product(spans, range(0, inputs, rows), range(0, outputs, columns))
    return [index[span, i : i + rows, o : o + columns].ravel() for span, i, o in starts]


@pytest.mark.parametrize("scope", [Filter(), NofM(2, 4)], ids=str)
@given(layers(VALUES), layers(st.booleans(), bool), st.floats(0.5, 1.0))
def test_each_group_keeps_its_share_by_a_stable_sort(scope, scores, mask, density):
    counts = scope.counts(mask, density, axes=AXES)
    size, least = (8, 1) if scope == Filter() else (scope.m, scope.n)
    assert counts == dict.fromkeys(SHAPES, max(least, round(density * size)))
    new, threshold = keep_top(scores, mask, counts, scope)
    for name, shape in SHAPES.items():
        for group in groups(scope, shape):
            s, m = scores[name].ravel()[group], mask[name].ravel()[group]
            got = np.asarray(new[name]).ravel()[group]
            np.testing.assert_array_equal(got, oracle(s, m, counts[name]))
    kept = join(new)
    assert threshold == (join(scores)[kept].min() if kept.any() else np.inf)


def test_the_n_of_m_pattern_holds_in_every_group():
    """Written without the library's or the oracle's grouping: m consecutive inputs, n True."""
    n, m = 4, 8
    random = np.random.default_rng(0)
    scores = {"conv": random.normal(size=(3, 3, 16, 5)), "dense": random.normal(size=(24, 7))}
    dense = masks.create(scores, include=".")
    new = NofM(n, m).select(scores, dense, density=n / m, axes=AXES)
    for start in range(0, 16, m):
        assert np.all(np.sum(new["conv"][:, :, start : start + m, :], axis=2) == n)
    for start in range(0, 24, m):
        assert np.all(np.sum(new["dense"][start : start + m, :], axis=0) == n)
    assert masks.density(new) == n / m


@pytest.mark.parametrize(
    "block", [Block(2, 2), Block(4, 1), Block(None, 1), Block(2, None)], ids=str
)
@given(layers(SMALL_NUMBERS), layers(st.booleans(), bool), st.integers(16, 80))
def test_blocks_are_kept_from_the_best_on_while_they_fit(block, scores, mask, count):
    new, threshold = keep_top(scores, mask, count, block)
    blocks = []
    for name, shape in SHAPES.items():
        for group in groups(block, shape):
            live = group[mask[name].ravel()[group]]
            if live.size:
                blocks.append((scores[name].ravel()[live].sum(), name, live))
    want = {name: np.zeros(np.prod(shape), bool) for name, shape in SHAPES.items()}
    room, worst = count, np.inf
    for score, name, live in sorted(blocks, key=lambda block: -block[0]):  # a stable sort
        if live.size > room:
            break
        want[name][live] = True
        room, worst = room - live.size, score
    np.testing.assert_array_equal(join(new), join(want))
    assert threshold == worst


def test_blocks_of_one_size_fill_the_count_exactly():
    scores = {name: np.random.default_rng(0).normal(size=shape) for name, shape in SHAPES.items()}
    dense = masks.create(scores, include=".")
    for density in (0.1, 0.33, 0.5, 1.0):
        new = Block(2, 2).select(scores, dense, density=density, axes=AXES)
        assert masks.num_kept(new) == round(density * 80) // 4 * 4
        assert masks.num_kept(new) in Block(2, 2).num_kept(round(density * 80), dense, axes=AXES)


def test_whole_filters_are_output_channels_at_all_positions():
    scores = {"conv": np.ones((3, 3, 2, 4)) * [1.0, 4.0, 2.0, 3.0]}
    dense = masks.create(scores, include=".")
    new = Block(None, 1).select(scores, dense, density=0.5, axes=AXES)
    assert np.all(np.asarray(new["conv"]) == [False, True, False, True])


@pytest.mark.parametrize("scope", [Global(), Filter(), NofM(1, 4), Block(2, 2)], ids=str)
@given(layers(SMALL_NUMBERS))
def test_selecting_in_steps_is_selecting_at_once(scope, scores):
    dense = {name: np.ones(shape, bool) for name, shape in SHAPES.items()}
    half, quarter = (scope.counts(dense, d, axes=AXES) for d in (0.5, 0.25))
    halfway, _ = keep_top(scores, dense, half, scope)
    twice, _ = keep_top(scores, halfway, quarter, scope)
    once, _ = keep_top(scores, dense, quarter, scope)
    if not isinstance(scope, Block):  # whose score, a sum, changes as weights go; here none does
        assert masks.num_kept(once) == 20
    np.testing.assert_array_equal(join(twice), join(once))


@pytest.mark.parametrize("scope", [Filter(), NofM(1, 4), NofM(2, 4), Block(2, 4), Block(None, 1)])
def test_a_scope_is_exact_with_nan_and_traced_counts(scope):
    """NofM(2, 4) and Block(2, 4) hold the same numbers: no compiled program may confuse them."""
    scores = {"w": jnp.array([[jnp.nan, 1.0, 5.0, 5.0]] * 2 + [[jnp.nan, 2.0, 5.0, 4.0]] * 2)}
    dense = masks.create(scores, include=".")
    counts = scope.counts(dense, 0.5)
    new, _ = keep_top(scores, dense, counts, scope)
    want = {
        Block(2, 4): [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        Block(None, 1): [[0, 0, 1, 1]] * 4,
    }
    of_groups = [[1, 0, 1, 1], [1, 0, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert np.asarray(new["w"], int).tolist() == want.get(scope, of_groups)


# -- Errors --------------------------------------------------------------------------------------

ONES = {name: jnp.ones(shape, bool) for name, shape in SHAPES.items()}
TEN, BIAS = [jnp.ones(10, bool)], {"bias": jnp.ones(8, bool)}


@pytest.mark.parametrize(
    ("scope", "mask", "density", "match"),
    [
        *[(Global(), TEN, d, r"density: .*\(0, 1\]") for d in (0.0, -0.1, 1.01, float("nan"))],
        (Global(), TEN, 0.04, r"rounds to none.*density >= 0.1"),
        (NofM(2, 3), ONES, 0.9, r"NofM\(n=2, m=3\) .* 'conv', whose 4 inputs .* of 3.*exclude="),
        (NofM(4, 8), ONES, 0.9, r"does not fit leaf 'conv', whose 4 inputs are no multiple of 8"),
        (Block(4, 4), ONES, 0.9, r"does not fit leaf 'conv', whose 6 outputs are no multiple of 4"),
        (Block(3, None), ONES, 0.9, r"does not fit leaf 'conv', whose 4 inputs"),
        *[
            (scope, BIAS, 0.5, r"axes: scope .* leaf 'bias' of shape \(8,\) mean.*axes.of")
            for scope in (Filter(), NofM(2, 4), Block(None, 1), Global(min_channels=1))
        ],
        (NofM(2, 4), ONES, 0.4, r"density: got 0.4, but NofM\(n=2, m=4\) keeps 0.5 of the weights"),
        (Block(None, 1), ONES, 0.09, r"is 7, which is less than one block of leaf 'conv' \(8 we"),
        (Global(min_weights=21), ONES, 0.5, "may take 42 weights in 2 layers, but only 40 are"),
        # 4 + 6 and 8 + 4 channels are all:
        (Global(min_channels=20), ONES, 0.25, "may take 22 weights"),
    ],
    ids=str,
)
def test_what_a_scope_cannot_keep_is_an_error(scope, mask, density, match):
    with pytest.raises(ValueError, match=match):
        scope.counts(mask, density, axes=AXES)


def test_shorthands():
    found = [Scope.of(name) for name in ("global", "layer", "filter")]
    assert found == [Global(), Layer(), Filter()]
    for scope in ("locally", (2, 4), None):
        with pytest.raises(ValueError, match=r"scope: got .* expected .*NofM"):
            Scope.of(scope)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NofM(0, 4), r"scope: got NofM"),
        (lambda: NofM(5, 4), r"scope: got NofM"),
        (lambda: NofM(2, 4.0), r"scope: got NofM"),
        (lambda: Block(0, 1), r"scope: got Block"),
        (lambda: Block(4, "all"), r"scope: got Block"),
        (lambda: Global(min_weights=-1), "min_weights: got -1, expected an integer of at least 0"),
        (lambda: Global(min_channels=0.5), "min_channels: got 0.5"),
    ],
)
def test_impossible_scopes_cannot_be_made(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("scope", [Layer(), Filter(), NofM(2, 4)], ids=str)
def test_a_group_with_too_few_weights_left_is_an_error(scope):
    lost = np.s_[2:] if scope == Layer() else np.s_[1:, 2]
    mask = ONES | {"dense": ONES["dense"].at[lost].set(False)}
    scores = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match=r"asks for \d+ .*only \d left in .*'dense'"):
        scope.select(scores, mask, density=0.5, axes=AXES)


@pytest.mark.parametrize(
    ("counts", "scope"),
    [
        (0.5, Global()),
        (3, Filter()),
        (3, NofM(2, 4)),
        ({"w": 3}, Global()),
        ({"w": 3}, Block(1, 1)),
        ({"v": 3}, Layer()),
        ({"w": 0.5}, Layer()),
    ],
)
def test_counts_of_another_scope_are_an_error(counts, scope):
    mask = {"w": jnp.ones((4, 4), bool)}
    with pytest.raises(TypeError, match=r"counts: got .*, expected numbers of weights"):
        scope.keep_top({"w": jnp.ones((4, 4))}, mask, counts)


# -- Floors --------------------------------------------------------------------------------------


def protected_by_hand(scores, mask, min_weights, min_channels):
    """What the floors keep of one leaf: the best weights of the best channels, then the best."""
    keep = np.zeros_like(mask)
    for axis in (-1, -2):
        views = [np.moveaxis(x, axis, 0) for x in (scores, mask, keep)]
        live = [c for c in range(len(views[0])) if views[1][c].any()]
        sums = {c: views[0][c][views[1][c]].sum() for c in live}
        for c in sorted(live, key=lambda c: -sums[c])[:min_channels]:
            best = np.where(views[1][c], views[0][c], -np.inf).argmax()
            views[2][c][np.unravel_index(best, views[2][c].shape)] = True
    order = np.lexsort((-scores.ravel(), ~keep.ravel()))  # protected ones first, then the best
    order = [i for i in order if mask.ravel()[i]]
    keep.ravel()[order[:min_weights]] = True
    return keep


@pytest.mark.parametrize(("min_weights", "min_channels"), [(5, 0), (0, 3), (9, 2)])
@given(layers(SMALL_NUMBERS), layers(st.booleans(), bool), st.integers(20, 70))
def test_floors_protect_the_best_and_leave_the_total_exact(
    min_weights, min_channels, scores, mask, count
):
    floors = {"min_weights": min_weights, "min_channels": min_channels}
    new, threshold = keep_top(scores, mask, count, Global(**floors))
    protected = {n: protected_by_hand(scores[n], mask[n], **floors) for n in SHAPES}
    boosted = {n: np.where(protected[n], np.inf, scores[n]) for n in SHAPES}
    want = oracle(join(boosted), join(mask), count)
    np.testing.assert_array_equal(join(new), want)
    assert threshold == (join(scores)[want].min() if want.any() else np.inf)


def connected(leaf):
    """Number of output and of input channels that keep a weight."""
    flat = np.asarray(leaf).reshape(-1, *leaf.shape[-2:])
    return np.count_nonzero(flat.any((0, 1))), np.count_nonzero(flat.any((0, 2)))


def test_floors_hold_where_a_global_threshold_cuts_a_layer_off():
    random = np.random.default_rng(0)
    scores = {
        "low": random.uniform(size=(3, 3, 8, 16)) * 1e-3,
        "high": random.uniform(size=(3, 3, 16, 16)) + 1,
        "narrow": random.uniform(size=(2, 10)) * 1e-3,
    }
    dense = masks.create(scores, include=".")
    bare = Global().select(scores, dense, density=0.05)
    assert masks.num_kept(bare["low"]) == masks.num_kept(bare["narrow"]) == 0
    floors = Global(min_weights=12, min_channels=5)
    new = floors.select(scores, dense, density=0.05, axes=AXES)
    assert masks.num_kept(new) == masks.num_kept(bare) == round(0.05 * masks.num_prunable(dense))
    assert masks.num_kept(new["low"]) == masks.num_kept(new["narrow"]) == 12
    assert min(connected(new["low"])) >= 5
    assert connected(new["narrow"])[0] >= 5
    assert connected(new["narrow"])[1] == 2  # all that there are
