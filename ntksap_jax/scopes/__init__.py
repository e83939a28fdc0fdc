"""Scopes: what one threshold ranges over, and which weights live or die together.

Selection is exact: after a round at density d, round(d · N) of the N prunable weights are kept,
ties included. (The authors' code prunes `score <= threshold`, hence every tie, and quits if the
count is off by five.) The other scopes count in each layer, filter, group or block instead.

A leaf may hold a stack of layers, and have its inputs and outputs anywhere: see `axes`. What a
scope says of layers, filters, inputs and outputs holds for each layer of a stack, as if each had a
leaf of its own. Among equal scores the earlier leaf is kept first, and in it the earlier layer.
"""

from ntksap_jax.scopes._base import Scope as Scope
from ntksap_jax.scopes._base import ScopeLike as ScopeLike
from ntksap_jax.scopes._blocks import Block as Block
from ntksap_jax.scopes._global import Global as Global
from ntksap_jax.scopes._groups import Filter as Filter
from ntksap_jax.scopes._groups import Layer as Layer
from ntksap_jax.scopes._groups import NofM as NofM
