"""Array primitives whose speed and memory are ours: convolutions, channel sums, the rectifier."""

from ntksap_jax.ops.channel_sums import channel_broadcast as channel_broadcast
from ntksap_jax.ops.channel_sums import channel_sum as channel_sum
from ntksap_jax.ops.convolution import conv2d as conv2d
from ntksap_jax.ops.convolution import conv_general_dilated as conv_general_dilated
from ntksap_jax.ops.rectifier import relu as relu
