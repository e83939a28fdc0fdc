"""Criteria: rules that score the weights. Each function returns a `ScoreFn`.

A `ScoreFn` is `score(key, params, mask, batch) -> (scores, metrics)`, pure. Your own criterion is
any function of that form: see `criteria/magnitude.py` for the smallest one.

| criterion | needs | source |
|---|---|---|
| `ntk_sap` | nothing (fresh weights, noise) | Wang et al., ICLR 2023 |
| `random`, `layerwise_random`, `erk` | nothing | Frankle et al. 2021; Evci et al. 2020 |
| `magnitude` | weights | Han et al. 2015 |
| `synflow`, `synflow_l2` | weights | Tanaka et al. 2020; Gebhart et al. 2021 |
| `px` | weights, data | Iurada et al. 2024 |
| `snip` | weights, data, labels | Lee et al. 2019 |
| `iterative_snip`, `force` | weights, data, labels | de Jorge et al. 2021 |
| `grasp` | weights, data, labels | Wang et al. 2020 |

`balanced`, `inverted`, `fresh_weights` and `noise_inputs` make one criterion of another;
`class_balanced` draws the examples that most papers score on, `fill_zeros` makes params to score of
ones with factors that are zero.
"""

from ntksap_jax.criteria.balanced import balanced as balanced
from ntksap_jax.criteria.class_balanced import class_balanced as class_balanced
from ntksap_jax.criteria.fill_zeros import fill_zeros as fill_zeros
from ntksap_jax.criteria.force import force as force
from ntksap_jax.criteria.grasp import grasp as grasp
from ntksap_jax.criteria.iterative_snip import iterative_snip as iterative_snip
from ntksap_jax.criteria.layerwise_random import erk as erk
from ntksap_jax.criteria.layerwise_random import layerwise_random as layerwise_random
from ntksap_jax.criteria.magnitude import magnitude as magnitude
from ntksap_jax.criteria.ntk_sap import ntk_sap as ntk_sap
from ntksap_jax.criteria.px import px as px
from ntksap_jax.criteria.random import random as random
from ntksap_jax.criteria.snip import snip as snip
from ntksap_jax.criteria.synflow import synflow as synflow
from ntksap_jax.criteria.synflow import synflow_l2 as synflow_l2
from ntksap_jax.criteria.variants import fresh_weights as fresh_weights
from ntksap_jax.criteria.variants import inverted as inverted
from ntksap_jax.criteria.variants import noise_inputs as noise_inputs
