"""Trainers of world models and policies, on TorchRL's own trainer."""

from torchrl_logo.trainers.imagined_transitions import ImaginationError, ImaginedTransitions
from torchrl_logo.trainers.no_collection import NoCollection
from torchrl_logo.trainers.offline import OfflineResult, OfflineTrainer
from torchrl_logo.trainers.tracked_training import TrackedResult, train_tracked
from torchrl_logo.trainers.uncertainty_threshold import measure_uncertainty
from torchrl_logo.trainers.world_model import WorldModelTrainer, WorldModelTrainingResult

__all__ = [
    "ImaginationError",
    "ImaginedTransitions",
    "NoCollection",
    "OfflineResult",
    "OfflineTrainer",
    "TrackedResult",
    "WorldModelTrainer",
    "WorldModelTrainingResult",
    "measure_uncertainty",
    "train_tracked",
]
