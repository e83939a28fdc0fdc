"""Models as `Network`s, the pure functions that criteria work on. Only these files know Flax.

`linen` and `nnx` make one of a Flax model, `plain` of two functions, and so of any other framework.
All three give the same scores. Batch normalisation uses the statistics of each batch, held constant
under differentiation.
"""

from ntksap_jax._networks._checks import are_finite as are_finite
from ntksap_jax._networks._checks import check_are_finite as check_are_finite
from ntksap_jax._networks._checks import check_one_output as check_one_output
from ntksap_jax._networks._inputs import check_shape as check_shape
from ntksap_jax._networks._linen import linen as linen
from ntksap_jax._networks._nnx import nnx as nnx
from ntksap_jax._networks._nnx import nnx_batch_stats as nnx_batch_stats
from ntksap_jax._networks._nnx import nnx_params as nnx_params
from ntksap_jax._networks._plain import plain as plain
