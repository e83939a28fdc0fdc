"""Masks and pruned networks that travel: into files, to PyTorch and jaxpruner, into a program.

`save_mask` and `load_mask` keep a mask with where it comes from. `to_torch` and `from_torch` speak
PyTorch's names and layouts, `to_jaxpruner` and `from_jaxpruner` jaxpruner's masks; `nnx_params` and
`nnx_batch_stats` take an existing `flax.nnx` model apart. `save_packed`
stores a pruned network in the space of what is left of it; `export` makes it a program that runs
without its code. Nothing here is pickled, and nothing imports PyTorch.
"""

from ntksap_jax._networks import nnx_batch_stats as nnx_batch_stats
from ntksap_jax._networks import nnx_params as nnx_params
from ntksap_jax.exchange._exporting import export as export
from ntksap_jax.exchange._jaxpruner import from_jaxpruner as from_jaxpruner
from ntksap_jax.exchange._jaxpruner import to_jaxpruner as to_jaxpruner
from ntksap_jax.exchange._layer_pairing import pair_layers as pair_layers
from ntksap_jax.exchange._mask_files import MaskInfo as MaskInfo
from ntksap_jax.exchange._mask_files import load_mask as load_mask
from ntksap_jax.exchange._mask_files import save_mask as save_mask
from ntksap_jax.exchange._packed import load_packed as load_packed
from ntksap_jax.exchange._packed import save_packed as save_packed
from ntksap_jax.exchange._torch_states import from_torch as from_torch
from ntksap_jax.exchange._torch_states import to_torch as to_torch
