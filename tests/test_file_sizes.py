"""The table of sizes on disk."""

import jax
import jax.numpy as jnp

from experiments.benchmark import file_sizes
from ntksap_jax import masks, scopes


def test_only_what_packs_shrinks_with_the_density():
    params = {"kernel": jax.random.normal(jax.random.key(0), (64, 256)), "bias": jnp.ones(256)}
    scores = {"kernel": jnp.abs(params["kernel"]), "bias": None}
    dense = masks.create(params)
    found = []
    for density in (1.0, 0.5, 0.1):
        mask = scopes.Global().select(scores, dense, density=density)
        found.append(file_sizes.sizes(masks.apply(mask, params), mask))
        kept = masks.num_kept(mask)
        assert 0.8 * 4 * kept < found[-1]["save_packed"] < 4 * (kept + 256) + 64 * 256 / 8 + 3000
    plain = [sizes["np.savez"] for sizes in found]
    assert plain[0] == plain[1] == plain[2] > 4 * 64 * 256
