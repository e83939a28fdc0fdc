"""Image data sets: in memory and augmented on the device, or streamed from files by processes.

`load(name)` never touches the network. `python -m experiments.data prepare NAME` does, when asked.
"""

from experiments.data.augmentation import augment as augment
from experiments.data.augmentation import normalise as normalise
from experiments.data.batching import epoch_batches as epoch_batches
from experiments.data.batching import eval_batches as eval_batches
from experiments.data.loading import load as load
from experiments.data.loading import pruning_batch as pruning_batch
from experiments.data.memory import Dataset as Dataset
from experiments.data.streaming import StreamedDataset as StreamedDataset
from experiments.shell.errors import DataError as DataError
