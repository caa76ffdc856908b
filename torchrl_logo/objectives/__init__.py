"""Losses of world models and policies: each is a :class:`torchrl.objectives.LossModule`."""

from torchrl_logo.objectives.bc import BCLoss
from torchrl_logo.objectives.cfcql import CFCQLLoss
from torchrl_logo.objectives.discrete_cfcql import DiscreteCFCQLLoss
from torchrl_logo.objectives.discrete_mabcq import DiscreteMABCQLoss
from torchrl_logo.objectives.discrete_macql import DiscreteMACQLLoss
from torchrl_logo.objectives.discrete_maicq import DiscreteMAICQLoss
from torchrl_logo.objectives.mabcq import MABCQLoss
from torchrl_logo.objectives.macql import MACQLLoss
from torchrl_logo.objectives.maicq import MAICQLoss
from torchrl_logo.objectives.matd3bc import MATD3BCLoss
from torchrl_logo.objectives.omar import OMARLoss
from torchrl_logo.objectives.omiga import OMIGALoss
from torchrl_logo.objectives.recurrent_latent_world_model import RecurrentLatentWorldModelLoss
from torchrl_logo.objectives.world_model import (
    EnsembleWorldModelLoss,
    JointWorldModelLoss,
    LOGOWorldModelLoss,
    make_world_model_loss,
)

__all__ = [
    "BCLoss",
    "CFCQLLoss",
    "DiscreteCFCQLLoss",
    "DiscreteMABCQLoss",
    "DiscreteMACQLLoss",
    "DiscreteMAICQLoss",
    "EnsembleWorldModelLoss",
    "JointWorldModelLoss",
    "LOGOWorldModelLoss",
    "MABCQLoss",
    "MACQLLoss",
    "MAICQLoss",
    "MATD3BCLoss",
    "OMARLoss",
    "OMIGALoss",
    "RecurrentLatentWorldModelLoss",
    "make_world_model_loss",
]
