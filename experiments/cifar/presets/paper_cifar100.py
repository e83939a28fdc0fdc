"""The paper's set-up for CIFAR-100: VGG-16 with batch normalisation, 160 epochs.

    python -m experiments.cifar paper-cifar100
    python -m experiments.cifar paper-cifar100 --density 0.107 --seed 1

NTK-SAP (ICLR 2023): the search is the authors', with finite differences of standard deviation 0.01,
batch statistics in two passes, and 100 rounds. A round looks at 1000 Gaussian inputs: here
4 samples of 250, in the authors' code batches of 256, 256, 256 and 232. Momentum is Nesterov's.
Densities in the paper are 0.8^k for k = 2, 4, ..., 18; see `paper_cifar10`.

Published test accuracy (the paper's Table 13, mean and deviation over seeds):

    density    0.64         0.262        0.107        0.0440       0.0180
    accuracy   74.10±.37    74.12±.19    73.28±.32    71.85±.41    69.27±.39

Hardware: a GPU.
"""

from experiments.cifar.config import Config, SearchConfig, TrainingConfig

CONFIG = Config(
    dataset="cifar100",
    model="vgg16_bn",
    search=SearchConfig(
        density=0.8**14,
        rounds=100,
        estimator="finite_difference",
        num_samples=4,
        noise_batch_size=250,
        calibrate="two_pass",
    ),
    training=TrainingConfig(drop_epochs=(60, 120), nesterov=True, weight_decay=5e-4),
)
