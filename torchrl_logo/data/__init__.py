"""Offline multi-agent datasets, and the buffers that LOGO trains from."""

from torchrl.data.datasets import register_dataset

from torchrl_logo.data.accidents import Accident, find_accidents
from torchrl_logo.data.card import ActionCoverage, make_card, measure_coverage
from torchrl_logo.data.collection import collect
from torchrl_logo.data.conversion import convert_dataset
from torchrl_logo.data.dataset import OfflineDataset
from torchrl_logo.data.embedded import available_datasets, load_dataset
from torchrl_logo.data.formats import (
    from_arrays,
    write_minari,
    write_pymarl_hdf5,
    write_vault,
)
from torchrl_logo.data.metadata import DatasetMetadata
from torchrl_logo.data.next_actions import add_next_actions
from torchrl_logo.data.real_and_imagined_buffer import (
    RealAndImaginedBuffer,
    real_and_imagined_buffer,
)
from torchrl_logo.data.reference_returns import ReferenceReturns, reference_returns
from torchrl_logo.data.sequences import SequenceSampler, sequence_buffer
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.uncertainty_sampler import UncertaintySampler
from torchrl_logo.data.validation import DatasetError, validate_layout

# torchrl.data.datasets.load_dataset("torchrl_logo:vmas/balance-medium"), too.
register_dataset("torchrl_logo", "torchrl_logo.data:load_dataset", replace=True)

__all__ = [
    "Accident",
    "ActionCoverage",
    "DatasetError",
    "DatasetMetadata",
    "OfflineDataset",
    "RealAndImaginedBuffer",
    "ReferenceReturns",
    "SequenceSampler",
    "TaskSpec",
    "UncertaintySampler",
    "add_next_actions",
    "available_datasets",
    "collect",
    "convert_dataset",
    "find_accidents",
    "from_arrays",
    "load_dataset",
    "make_card",
    "measure_coverage",
    "real_and_imagined_buffer",
    "reference_returns",
    "sequence_buffer",
    "validate_layout",
    "write_minari",
    "write_pymarl_hdf5",
    "write_vault",
]
