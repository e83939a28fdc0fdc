"""The paper's set-up for CIFAR-10: ResNet-20, 160 epochs (NTK-SAP, ICLR 2023).

    python -m experiments.cifar paper-cifar10
    python -m experiments.cifar paper-cifar10 --density 0.107 --seed 1

The search is the authors': finite differences with standard deviation 0.01, batch statistics in two
passes, 20 rounds of 5 samples of 100 Gaussian inputs. Densities in the paper are 0.8^k for
k = 2, 4, ..., 18: 0.64, 0.41, 0.262, 0.168, 0.107, 0.0687, 0.0440, 0.0281, 0.0180.

Published test accuracy (the paper's Table 12, mean and deviation over seeds):

    density    0.64         0.262        0.107        0.0440       0.0180
    accuracy   91.36±.41    90.04±.23    87.86±.13    83.84±.28    77.66±.50

Hardware: a GPU; on two CPU cores the 160 epochs take ten hours.
"""

from experiments.cifar.config import Config, SearchConfig

# All else is as in the paper by default.
CONFIG = Config(
    search=SearchConfig(density=0.8**14, estimator="finite_difference", calibrate="two_pass")
)
