"""CIFAR-10 with ResNet-20 at density 0.05, in a few epochs on a CPU.

    python -m experiments.cifar short
    python -m experiments.cifar short --compare random dense

The paper's rounds and samples, by the exact directional derivative (for the authors' estimator add
`--estimator finite_difference --calibrate two_pass`), then 3 epochs with a learning rate that rises
over the first and falls to 0. With seed 0, on images re-encoded as JPEG: 64.7 % test accuracy, and
60.9 % by random pruning (drawn in 20 rounds then, in one now). On two cores of a shared machine 5
minutes of search, 11 minutes an epoch.
"""

from experiments.cifar.config import Config, TrainingConfig

CONFIG = Config(training=TrainingConfig(epochs=3, lr_schedule="cosine", warmup_epochs=1))
