"""Trainers of world models and policies, on TorchRL's own trainer."""

from torchrl_logo.trainers.buffer_training import train_from_buffer
from torchrl_logo.trainers.held_out import find_held_out
from torchrl_logo.trainers.imagined_transitions import ImaginationError, ImaginedTransitions
from torchrl_logo.trainers.latent_world_model import infer_latents, train_latent_world_model
from torchrl_logo.trainers.mamba import (
    BehaviourPenalty,
    MAMBAResult,
    train_in_imagination,
    train_mamba,
)
from torchrl_logo.trainers.no_collection import NoCollection
from torchrl_logo.trainers.number_watch import NonFiniteError, NumberWatch
from torchrl_logo.trainers.offline import OfflineResult, OfflineTrainer
from torchrl_logo.trainers.policy_card import PolicyCard
from torchrl_logo.trainers.stop_signals import StopSignals, TrainingInterrupted
from torchrl_logo.trainers.tracked_training import TrackedResult, train_tracked
from torchrl_logo.trainers.trained_policy import TrainedPolicy
from torchrl_logo.trainers.uncertainty_threshold import find_uncertainty_threshold
from torchrl_logo.trainers.world_model import WorldModelTrainer, WorldModelTrainingResult

__all__ = [
    "BehaviourPenalty",
    "ImaginationError",
    "ImaginedTransitions",
    "MAMBAResult",
    "NoCollection",
    "NonFiniteError",
    "NumberWatch",
    "OfflineResult",
    "OfflineTrainer",
    "PolicyCard",
    "StopSignals",
    "TrackedResult",
    "TrainedPolicy",
    "TrainingInterrupted",
    "WorldModelTrainer",
    "WorldModelTrainingResult",
    "find_held_out",
    "find_uncertainty_threshold",
    "infer_latents",
    "train_from_buffer",
    "train_in_imagination",
    "train_latent_world_model",
    "train_mamba",
    "train_tracked",
]
