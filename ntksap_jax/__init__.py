"""Pruning neural networks before training, by the spectrum of their neural tangent kernel.

Read it as a table of contents: `networks` makes a model into pure functions, `criteria` score its
weights, `search` prunes round by round down to a density that `schedules` sets, `masks` holds what
is left, `optim` keeps it so in training. `structured` removes whole filters,
`exchange` takes masks and networks to PyTorch, into files and out as programs.
"""

from ntksap_jax import connectivity as connectivity
from ntksap_jax import criteria as criteria
from ntksap_jax import draws as draws
from ntksap_jax import exchange as exchange
from ntksap_jax import masks as masks
from ntksap_jax import models as models
from ntksap_jax import networks as networks
from ntksap_jax import ntk as ntk
from ntksap_jax import ops as ops
from ntksap_jax import optim as optim
from ntksap_jax import paths as paths
from ntksap_jax import schedules as schedules
from ntksap_jax import scopes as scopes
from ntksap_jax import search as search
from ntksap_jax import selection as selection
from ntksap_jax import sharding as sharding
from ntksap_jax import structured as structured
from ntksap_jax import subsets as subsets
from ntksap_jax import types as types
