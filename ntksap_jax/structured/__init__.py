"""Structured pruning: whole filters go, and the network really gets smaller.

`prune_model` does it in one call. Step by step: `trace` finds which filters a model has and what
goes with each; scores (`l1`, or any criterion through `by_gate`) and `select`, `select_global` or
`prune` decide which to keep; `zero_out` and `shrink` make the smaller model. `tpp` is the training
in between that keeps a trained network trainable; `baselines` are what it is compared with,
`trainability` measures it.

A *filter* is one output channel of a layer: one index of the axis of its kernel that counts
outputs, or a head of an attention. A `Keep` says which stay: kernel path to booleans.
"""

from ntksap_jax.structured import baselines as baselines
from ntksap_jax.structured import tpp as tpp
from ntksap_jax.structured import tpp_presets as tpp_presets
from ntksap_jax.structured import trainability as trainability
from ntksap_jax.structured.channels import Channels as Channels
from ntksap_jax.structured.channels import expand as expand
from ntksap_jax.structured.channels import groups as groups
from ntksap_jax.structured.costs import Cost as Cost
from ntksap_jax.structured.costs import cost as cost
from ntksap_jax.structured.filter_selection import ratios as ratios
from ntksap_jax.structured.filter_selection import select as select
from ntksap_jax.structured.filters import by_gate as by_gate
from ntksap_jax.structured.filters import l1 as l1
from ntksap_jax.structured.filters import to_mask as to_mask
from ntksap_jax.structured.global_selection import select_global as select_global
from ntksap_jax.structured.network_files import load as load
from ntksap_jax.structured.network_files import save as save
from ntksap_jax.structured.pruning import prune as prune
from ntksap_jax.structured.pruning import prune_model as prune_model
from ntksap_jax.structured.shrinking import shrink as shrink
from ntksap_jax.structured.shrinking import zero_out as zero_out
from ntksap_jax.structured.tracing import trace as trace
from ntksap_jax.structured.types import FilterLayer as FilterLayer
from ntksap_jax.structured.types import FilterScores as FilterScores
from ntksap_jax.structured.types import Keep as Keep
