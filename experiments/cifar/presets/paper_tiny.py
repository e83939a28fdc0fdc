"""The paper's set-up for Tiny-ImageNet: ResNet-18 with ImageNet's stem, 200 epochs.

    python -m experiments.cifar paper-tiny --data-dir FOLDER_AROUND_tiny-imagenet-200
    python -m experiments.cifar paper-tiny --data-dir ... --density 0.107 --data-workers 8

NTK-SAP (ICLR 2023): the search is the authors', with finite differences of standard deviation 0.01,
batch statistics in two passes, and 100 rounds. A round looks at 2000 Gaussian inputs: here
8 samples of 250, in the authors' code 7 batches of 256 and one of 208. The 64x64 images go through
the stem for 224x224 (7x7 convolution, stride 2, and pooling); with a 3x3 stem
(`resnet18_small_stem`) others report 10 points more: do not compare across stems. Densities in the
paper are 0.8^k for k = 2, 4, ..., 18; see `paper_cifar10`.

Published validation accuracy (the paper's Table 14, mean and deviation over seeds):

    density    0.64         0.262        0.107        0.0440       0.0180
    accuracy   51.89±.38    52.69±.14    51.90±.12    49.29±.15    43.92±.39

Hardware: a GPU, and about as many `--data-workers` as there are cores.
"""

from experiments.cifar.config import Config, SearchConfig, TrainingConfig

CONFIG = Config(
    dataset="tiny_imagenet",
    model="resnet18",
    search=SearchConfig(
        density=0.8**14,
        rounds=100,
        estimator="finite_difference",
        num_samples=8,
        noise_batch_size=250,
        calibrate="two_pass",
    ),
    training=TrainingConfig(epochs=200, batch_size=256, learning_rate=0.2, drop_epochs=(100, 150)),
)
