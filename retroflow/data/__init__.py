"""From artifacts on disk to batches of tensors: chunks, their order, their neighbours."""

from retroflow.data.batch import Batch
from retroflow.data.dataset import SequenceDataset
from retroflow.data.sampler import StepBatches

__all__ = ["Batch", "SequenceDataset", "StepBatches"]
