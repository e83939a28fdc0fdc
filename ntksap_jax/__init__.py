"""Pruning neural networks before training, by the spectrum of their neural tangent kernel.

    network = linen(model, input_shape)                 # a model as pure functions
    score = criteria.ntk_sap(network)                   # what makes a weight worth keeping
    mask, history = prune(key, params, score, density=0.05)
    optimizer = constrain_to_mask(optax.adam(1e-3), mask)   # pruned weights stay 0 in training

Six functions, and the namespaces with everything else.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

# A model as pure functions, the search, and training under its mask.
from ntksap_jax._networks import linen as linen
from ntksap_jax._networks import nnx as nnx
from ntksap_jax._networks import plain as plain

from ntksap_jax._search import prune as prune  # isort: skip
from ntksap_jax._search import find_mask as find_mask  # isort: skip
from ntksap_jax._optim import constrain_to_mask as constrain_to_mask  # isort: skip

# What a search is made of.
from ntksap_jax import criteria as criteria  # isort: skip
from ntksap_jax import schedules as schedules  # isort: skip
from ntksap_jax import scopes as scopes  # isort: skip
from ntksap_jax import masks as masks  # isort: skip
from ntksap_jax import axes as axes  # isort: skip

# What else there is to ask of a network and its mask, and to do with them.
from ntksap_jax import connectivity as connectivity  # isort: skip
from ntksap_jax import flops as flops  # isort: skip
from ntksap_jax import ntk as ntk  # isort: skip
from ntksap_jax import structured as structured  # isort: skip
from ntksap_jax import exchange as exchange  # isort: skip
from ntksap_jax import sharding as sharding  # isort: skip

# Parts for code of your own.
from ntksap_jax import models as models  # isort: skip
from ntksap_jax import ops as ops  # isort: skip
from ntksap_jax import types as types  # isort: skip

if not _TYPE_CHECKING:  # Type checkers know the new names only.
    from ntksap_jax._deprecated import __getattr__ as __getattr__
