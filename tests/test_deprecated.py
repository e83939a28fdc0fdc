"""The names of version 0.1 work, and say what they are called now."""

import operator

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


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match="'ntksap_jax' has no attribute 'research'"):
        nts.research  # noqa: B018
    with pytest.raises(AttributeError, match="'ntksap_jax.search' has no attribute 'prone'"):
        nts.search.prone  # noqa: B018
