"""Criteria: rules that score the weights. Each function returns a `ScoreFn`.

A `ScoreFn` is `score(key, params, mask, batch) -> (scores, metrics)`, pure. Your own criterion is
any function of that form: see `criteria/magnitude.py` for the smallest one.
"""

from ntksap_jax.criteria.magnitude import magnitude as magnitude
from ntksap_jax.criteria.ntk_sap import ntk_sap as ntk_sap
from ntksap_jax.criteria.random import random as random
