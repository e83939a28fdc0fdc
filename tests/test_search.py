"""The search: exact counts, the driver against the traced form, resuming, reports, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import criteria, masks, schedules, scopes

KEY = jax.random.key(5)
RANDOM = criteria.random()  # Made once: compiled once.


@pytest.fixture(scope="module")
def problem():
    network = oracles.smooth_mlp()
    params = network.init(jax.random.key(0))
    return params, criteria.ntk_sap(network, num_samples=2, batch_size=4)


def test_every_round_keeps_exactly_its_share_of_the_last(problem):
    params, score = problem
    given = jax.tree.map(np.array, params)
    schedule = schedules.exponential(0.1, rounds=4)
    seen = []
    mask, history = nts.prune(
        KEY, params, score, schedule=schedule, on_round=lambda info, mask: seen.append((info, mask))
    )
    total = masks.num_prunable(mask)
    assert [info.num_kept for info in history] == [round(d * total) for d in schedule]
    assert [info.round for info in history] == [1, 2, 3, 4]
    assert [info for info, _ in seen] == history
    assert masks.digest(seen[-1][1]) == masks.digest(mask)
    for (_, before), (_, after) in zip(seen, seen[1:], strict=False):
        assert not np.any(oracles.flat(after) & ~oracles.flat(before))
    chex.assert_trees_all_equal(given, params)


def test_reports_say_what_happened(problem):
    params, score = problem
    [info] = nts.prune(KEY, params, score, schedule=[0.4])[1]
    dense = masks.create(params)
    scores, metrics = score(jax.random.fold_in(KEY, 0), params, dense, None)
    mask = scopes.Global().select(scores, dense, density=0.4)
    assert info.density == masks.density(mask)
    assert info.layer_densities == masks.layer_densities(mask)
    assert info.threshold == oracles.flat(scores)[oracles.flat(mask)].min()
    assert info.metrics == {"trace": pytest.approx(float(metrics["trace"]))}
    assert info.seconds > 0


def test_same_key_same_mask_under_the_callers_jit(problem):
    """The same search, traced whole by the caller as a function of key and params."""
    params, score = problem
    schedule = schedules.exponential(0.2, rounds=2)
    driven, history = nts.prune(KEY, params, score, schedule=schedule)
    again, _ = nts.prune(KEY, params, score, schedule=schedule)
    assert masks.digest(again) == masks.digest(driven)

    @jax.jit
    def traced(key, params):
        return nts.find_mask(key, params, score, schedule=schedule)

    mask, metrics = traced(KEY, params)
    assert masks.digest(mask) == masks.digest(driven)
    np.testing.assert_allclose(metrics["threshold"], [i.threshold for i in history], rtol=1e-4)
    np.testing.assert_allclose(metrics["trace"], [i.metrics["trace"] for i in history], rtol=1e-4)
    other, _ = traced(jax.random.key(6), params)
    assert masks.digest(other) != masks.digest(driven)


def test_the_traced_search_can_be_vmapped_over_keys():
    params = {"kernel": jnp.ones((20, 20))}
    found = jax.vmap(lambda key: nts.find_mask(key, params, criteria.random(), schedule=[0.1])[0])(
        jax.random.split(KEY, 3)
    )
    assert np.sum(found["kernel"], axis=(1, 2)).tolist() == [40, 40, 40]


def test_a_resumed_search_ends_as_the_undisturbed_one(problem):
    params, score = problem
    schedule = schedules.exponential(0.1, rounds=3)
    saved = {}

    def save(info, mask):
        saved[info.round] = mask

    whole, history = nts.prune(KEY, params, score, schedule=schedule, on_round=save)
    for done in (1, 2, 3):
        resumed, rest = nts.prune(
            KEY, params, score, schedule=schedule, mask=saved[done], start_round=done
        )
        assert masks.digest(resumed) == masks.digest(whole)
        assert [i.num_kept for i in rest] == [i.num_kept for i in history[done:]]


def test_a_density_alone_is_reached_in_twenty_exponential_rounds():
    schedule = schedules.exponential(0.05, rounds=20)
    mask, history = nts.prune(KEY, EVEN, criteria.magnitude(), 0.05)
    same, _ = nts.prune(KEY, EVEN, criteria.magnitude(), schedule=schedule)
    traced, _ = nts.find_mask(KEY, EVEN, criteria.magnitude(), density=0.05)
    assert len(history) == 20
    assert masks.digest(mask) == masks.digest(same) == masks.digest(traced)


EVEN = {
    "conv": {"kernel": np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)},
    "head": {"kernel": np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)},
}


@pytest.mark.parametrize(
    "scope",
    [
        *("layer", scopes.NofM(2, 4), scopes.Block(2, 2)),
        scopes.Global(min_weights=20, min_channels=3),
    ],
    ids=str,
)
def test_the_scope_is_that_of_every_round_in_the_driver_and_in_the_traced_search(scope):
    options = {"schedule": [0.75, 0.5], "scope": scope}
    driven, history = nts.prune(KEY, EVEN, RANDOM, **options)
    traced, _ = jax.jit(lambda key: nts.find_mask(key, EVEN, RANDOM, **options))(KEY)
    assert masks.digest(traced) == masks.digest(driven)
    assert [info.num_kept for info in history] == [240, 160]

    mask = masks.create(EVEN)
    for t, d in enumerate(options["schedule"]):
        scores, _ = RANDOM(jax.random.fold_in(KEY, t), EVEN, mask, None)
        mask = scopes.Scope.of(scope).select(scores, mask, density=d)
    assert masks.digest(mask) == masks.digest(driven)


def test_floors_hold_in_a_search():
    weak = {"strong": {"kernel": jnp.ones((9, 9))}, "weak": {"kernel": jnp.full((9, 9), 1e-3)}}
    for floors, least in (({}, 0), ({"min_weights": 7}, 7), ({"min_channels": 4}, 4)):
        scope = scopes.Global(**floors)
        mask, _ = nts.prune(KEY, weak, criteria.magnitude(), schedule=[0.5, 0.1], scope=scope)
        assert masks.num_kept(mask) == 16
        assert masks.num_kept(mask["weak"]) >= least
        assert (masks.num_kept(mask["weak"]) > 0) == bool(floors)


def swinging(key, params, mask, batch):
    """Prefers the first half of the weights after one round, and the second after the next."""
    del key, params, batch
    size = masks.num_prunable(mask)
    first = 1.0 + (jnp.arange(size) < size // 2)
    second = 1.0 + (jnp.arange(size) >= size // 2)
    dense = jnp.all(mask["kernel"])
    return {"kernel": jnp.where(dense, first, second)}, {}


def test_regrowth_ranks_all_weights_again():
    params = {"kernel": jnp.ones(8)}
    mask = {"kernel": jnp.ones(8, bool)}
    left, right = [True] * 4 + [False] * 4, [False] * 4 + [True] * 4
    for find in (nts.prune, nts.find_mask):
        found = [
            find(KEY, params, swinging, schedule=[0.5, 0.5], mask=mask, regrow=regrow)[0]
            for regrow in (False, True)
        ]
        assert [m["kernel"].tolist() for m in found] == [left, right]
    half = {"kernel": jnp.array(left)}
    again, _ = nts.find_mask(KEY, params, swinging, schedule=[6 / 8], mask=half, regrow=True)
    assert again["kernel"].tolist() == [True] * 2 + [False] * 2 + [True] * 4


def test_a_search_with_regrowth_can_be_resumed_and_start_from_fewer_weights():
    half, after_one = ({"kernel": jnp.arange(8) < kept} for kept in (4, 6))
    for mask, start in ((half, 0), (after_one, 1)):
        options = {"schedule": [0.75, 0.25], "mask": mask, "start_round": start, "regrow": True}
        found, _ = nts.prune(KEY, {"kernel": jnp.ones(8)}, swinging, **options)
        assert found["kernel"].tolist() == [False] * 4 + [True] * 2 + [False] * 2


def test_regrowth_by_a_criterion_that_ignores_pruned_weights_is_an_error():
    with pytest.raises(ValueError, match="round 2 of 2: regrow: .* every pruned weight 0"):
        nts.prune(KEY, EVEN, criteria.magnitude(), schedule=[0.5, 0.2], regrow=True)


def test_a_search_by_blocks_can_be_resumed():
    options = {"schedule": [0.6, 0.3], "scope": scopes.Block(None, 1)}
    saved = []
    options["on_round"] = lambda info, mask: saved.append(mask)
    whole, _ = nts.prune(KEY, EVEN, RANDOM, **options)
    assert 0.3 * 320 - 36 < masks.num_kept(whole) <= 0.3 * 320
    resumed, _ = nts.prune(KEY, EVEN, RANDOM, mask=saved[0], start_round=1, **options)
    assert masks.digest(resumed) == masks.digest(whole)
    with pytest.raises(ValueError, match="keeps 320 weights, but .* the schedule keeps 157 to 192"):
        nts.prune(KEY, EVEN, RANDOM, mask=masks.create(EVEN), start_round=1, **options)


@pytest.mark.parametrize("scope", ["filter", scopes.NofM(2, 4)], ids=str)
def test_resuming_counts_the_weights_of_all_groups(scope):
    options = {"schedule": [0.75, 0.5], "scope": scope}
    last, _ = nts.prune(KEY, EVEN, criteria.magnitude(), **options)
    with pytest.raises(ValueError, match="keeps 160 weights, but .* the schedule keeps 240"):
        nts.prune(KEY, EVEN, criteria.magnitude(), mask=last, start_round=1, **options)


def test_a_search_may_start_from_a_mask_of_the_users(problem):
    params, score = problem
    first = masks.create(params, exclude="Dense_0")
    mask, _ = nts.prune(KEY, params, score, schedule=[0.5], mask=first)
    assert masks.leaf_paths(mask).keys() == masks.leaf_paths(first).keys()


def test_a_mask_sparser_than_the_schedule_is_an_error():
    mask = {"kernel": jnp.ones((2, 3), bool).at[0].set(False)}
    with pytest.raises(ValueError, match="asks for 5 weights to be kept, but the mask has only 3"):
        nts.prune(KEY, TINY, criteria.random(), schedule=[0.9], mask=mask)
    with pytest.raises(ValueError, match="left in leaf 'kernel'"):
        nts.prune(KEY, TINY, criteria.random(), schedule=[0.9], mask=mask, scope="layer")


def test_calls_that_cannot_be_answered():
    with pytest.raises(TypeError, match="Use ntksap_jax.find_mask"):
        jax.jit(lambda: nts.prune(KEY, TINY, criteria.random(), schedule=[0.5])[0])()
    options = {"schedule": [0.5, 0.3]}
    for start in (-1, 3):
        with pytest.raises(ValueError, match=f"start_round: got {start}"):
            nts.prune(KEY, TINY, criteria.random(), start_round=start, **options)
    with pytest.raises(ValueError, match="keeps 6 weights, but after round 1 the schedule keeps 3"):
        nts.prune(KEY, TINY, criteria.random(), start_round=1, **options)
    for find in (nts.prune, nts.find_mask):
        for key in (0, jnp.zeros(3), jax.random.split(KEY)):
            with pytest.raises(TypeError, match="expected one PRNG key"):
                find(key, TINY, criteria.random(), **options)


TINY = {"kernel": jnp.ones((2, 3))}


OF_SHAPE = {"kernel": jnp.ones((3, 2), bool)}
OF_FLOATS = {"kernel": jnp.ones((2, 3))}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schedule": [0.5, 1.2]}, r"schedule: .*in \(0, 1\]"),
        ({"schedule": [0.5, 0.6]}, "never rise"),
        ({"schedule": [0.9] * 7}, "schedule: got 7 rounds for 6 prunable weights"),
        (
            {"density": 0.5},
            r"density: 0.5, to be .* 20 rounds for 6 .*exponential\(0.5, rounds=6\)",
        ),
        ({"schedule": [0.05]}, "rounds to none"),
        ({"schedule": [0.5], "scope": "filters"}, "scope: got 'filters'"),
        (
            {"schedule": [0.8, 0.6], "scope": scopes.NofM(1, 2)},
            r"density: the search ends at 0.6, but scope NofM\(n=1, m=2\) keeps 1 of every 2",
        ),
        ({"density": 0.4, "scope": scopes.NofM(1, 2)}, "density: "),
        ({"schedule": [0.5], "scope": scopes.NofM(2, 4)}, "'kernel', whose 2 in"),
        ({"schedule": [0.5], "scope": scopes.Block(1, 2)}, "'kernel', whose 3 out"),
        ({"schedule": [0.9, 0.5], "scope": scopes.Global(4)}, "may take 4 .* only 3 are"),
        ({"density": 0.5, "schedule": [0.5]}, "expected one of the two"),
        ({}, "density: got density=None and schedule=None"),
        ({"density": 1.5}, "density: got 1.5"),
        ({"schedule": [0.5], "mask": OF_SHAPE}, "'kernel' has"),
        ({"schedule": [0.5], "mask": OF_FLOATS}, "'kernel' is float32"),
    ],
)
def test_bad_arguments_raise_before_anything_is_scored(options, match):
    def score(*_):
        raise AssertionError("scored")

    for find in (nts.prune, nts.find_mask):
        with pytest.raises((ValueError, TypeError), match=match):
            find(KEY, TINY, score, **options)


def test_params_in_another_byte_order_and_kernels_without_entries():
    """As files of other programs hold them, and as layers of no features have them."""
    big = {"kernel": EVEN["head"]["kernel"].astype(">f4"), "none": {"kernel": np.ones((3, 0))}}
    wanted, _ = nts.prune(KEY, EVEN["head"], criteria.magnitude(), schedule=[0.5])
    for find in (nts.prune, nts.find_mask):
        mask, _ = find(KEY, big, criteria.magnitude(), schedule=[0.5])
        np.testing.assert_array_equal(mask["kernel"], wanted["kernel"])
        assert mask["none"]["kernel"] is None


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn])
def test_magnitudes_of_eight_bits_are_compared_in_more(dtype):
    """|-128| is no int8; 8-bit floats are not promoted by themselves."""
    params = {"kernel": jnp.array([[-128, 112, 3]], dtype)}
    mask, history = nts.prune(KEY, params, criteria.magnitude(), schedule=[1 / 3])
    assert mask["kernel"].tolist() == [[True, False, False]]
    assert history[0].threshold == 128


def test_a_score_that_is_not_finite_names_round_and_leaf():
    def score(key, params, mask, batch):
        del key, batch
        bad = jnp.where(masks.density(mask) < 1, jnp.nan, 1.0)
        return masks.map_prunable(lambda m, p: p * m * bad, mask, params), {}

    with pytest.raises(ValueError, match="round 2 of 2: scores: 6 of 6 entries of leaf 'kernel'"):
        nts.prune(KEY, TINY, score, schedule=[0.5, 0.3])


def test_a_network_whose_outputs_are_not_finite_is_an_error():
    network = nts.plain(lambda key: TINY, lambda p, x: jnp.log(x @ p["kernel"] * 0 - 1), (2,))
    with pytest.raises(ValueError, match="outputs are not finite"):
        nts.prune(KEY, TINY, criteria.ntk_sap(network, reinit=False), schedule=[0.5])
