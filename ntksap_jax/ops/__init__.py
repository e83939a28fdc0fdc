"""Array primitives whose speed we own: convolutions and sums that are fast where XLA's are not."""

from ntksap_jax.ops.channel_sums import channel_broadcast as channel_broadcast
from ntksap_jax.ops.channel_sums import channel_sum as channel_sum
from ntksap_jax.ops.convolution import conv2d as conv2d
from ntksap_jax.ops.convolution import conv_general_dilated as conv_general_dilated
