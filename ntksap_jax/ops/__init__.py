"""Array primitives whose speed and memory are ours: convolutions and channel sums."""

from ntksap_jax.ops._channel_sums import channel_broadcast as channel_broadcast
from ntksap_jax.ops._channel_sums import channel_sum as channel_sum
from ntksap_jax.ops._convolution import conv2d as conv2d
from ntksap_jax.ops._convolution import conv_general_dilated as conv_general_dilated
from ntksap_jax.ops._onednn import cpu_convolution as cpu_convolution
