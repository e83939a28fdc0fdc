"""The names of version 0.1 work, and say what they are called now."""

import operator

import jax
import jax.numpy as jnp
import pytest

import ntksap_jax as nts
from ntksap_jax import _deprecated


@pytest.mark.parametrize(("old", "new"), _deprecated.RENAMED.items())
def test_an_old_name_is_the_new_one_and_says_so(old, new):
    with pytest.warns(
        DeprecationWarning, match=f"ntksap_jax.{old} is deprecated.*use ntksap_jax.{new}"
    ):
        found = operator.attrgetter(old)(nts)
    assert found is operator.attrgetter(new)(nts)


def test_old_modules_can_be_imported():
    import ntksap_jax.networks

    from ntksap_jax import search

    with pytest.warns(DeprecationWarning, match="use ntksap_jax.linen"):
        assert ntksap_jax.networks.linen is nts.linen
    with pytest.warns(DeprecationWarning, match="use ntksap_jax.prune"):
        from ntksap_jax.search import prune
    with pytest.warns(DeprecationWarning, match="use ntksap_jax.find_mask"):
        assert (prune, search.find_mask) == (nts.prune, nts.find_mask)


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match="'ntksap_jax' has no attribute 'research'"):
        nts.research  # noqa: B018
    with pytest.raises(AttributeError, match="'ntksap_jax.search' has no attribute 'prone'"):
        nts.search.prone  # noqa: B018


@pytest.mark.parametrize("find", [nts.prune, nts.find_mask])
def test_floors_beside_the_scope_are_those_of_the_global_one(find):
    params = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.full((4, 4), 0.1)}}
    arguments = (jax.random.key(0), params, nts.criteria.magnitude(), 0.5)
    with pytest.warns(DeprecationWarning, match=r"min_weights=3 .*scopes.Global\(min_weights=3\)"):
        old, _ = find(*arguments, min_weights=3)
    new, _ = find(*arguments, scope=nts.scopes.Global(min_weights=3))
    assert nts.masks.digest(old) == nts.masks.digest(new)
    assert nts.masks.num_kept(old["b"]) == 3
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match="scope='global'"):
        find(*arguments, scope="layer", min_weights=3)
