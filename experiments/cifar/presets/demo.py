"""Handwritten digits, a small network, no download: the whole job in a few minutes.

    python -m experiments.cifar demo

Much of the time is compilation. Test accuracy with seed 0 at density 0.05: 98.1 % by NTK-SAP,
97.3 % by SynFlow, 97.0 % by SNIP, 94.0 % by random pruning; 98.9 % dense. One of the 364 test
images is 0.27 %.
"""

from experiments.cifar.config import Config, TrainingConfig

CONFIG = Config(
    dataset="digits",
    model="resnet8",
    training=TrainingConfig(epochs=15, batch_size=64, lr_schedule="cosine", warmup_epochs=1),
    compare=("synflow", "snip", "random", "dense"),
)
