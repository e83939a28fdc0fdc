"""CIFAR-10 with ResNet-20 at density 0.05, in a few epochs on a CPU.

    python -m experiments.cifar short
    python -m experiments.cifar short --compare random dense

The paper's rounds and samples, by the exact directional derivative (for the authors' estimator add
`--estimator finite_difference --calibrate two_pass`), then 3 epochs with a learning rate that rises
over the first and falls to 0. With seed 0, on images re-encoded as JPEG: 64.7 % test accuracy, and
60.9 % by random pruning (drawn in 20 rounds then, in one now). On two cores of a shared machine 5
minutes of search, 11 minutes an epoch.
"""

from experiments.cifar.config import Config, SearchConfig, TrainingConfig

CONFIG = Config(
    dataset="cifar10",
    model="resnet20",
    search=SearchConfig(density=0.05, rounds=20, num_samples=5, noise_batch_size=100),
    training=TrainingConfig(
        epochs=3,
        batch_size=128,
        learning_rate=0.1,
        lr_schedule="cosine",
        warmup_epochs=1,
        weight_decay=1e-4,
    ),
)
