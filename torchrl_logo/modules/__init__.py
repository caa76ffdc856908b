"""World models and the networks of policies and critics."""

from torchrl_logo.modules.accumulated_uncertainty import (
    accumulate_along,
    accumulate_uncertainty,
    recover_step_uncertainty,
)
from torchrl_logo.modules.action_values import make_action_value_network
from torchrl_logo.modules.agent_critics import AgentCritic, make_agent_critic, make_agent_value
from torchrl_logo.modules.attention_critic import AttentionCritic, make_latent_critic
from torchrl_logo.modules.categorical_actor import make_categorical_actor
from torchrl_logo.modules.centralized_critic import CentralizedCritic, make_centralized_critic
from torchrl_logo.modules.decentralized_gru import DecentralizedGRU
from torchrl_logo.modules.ensemble_world_model import EnsembleWorldModel
from torchrl_logo.modules.gaussian_actor import make_gaussian_actor
from torchrl_logo.modules.greedy_policy import make_greedy_policy
from torchrl_logo.modules.input_scales import read_on_scales
from torchrl_logo.modules.joint_world_model import JointWorldModel
from torchrl_logo.modules.latent_policy import LatentPolicy, make_latent_actor
from torchrl_logo.modules.linear_mixer import LinearMixer, make_linear_mixer
from torchrl_logo.modules.logo_world_model import LOGOWorldModel
from torchrl_logo.modules.masked_categorical import MaskedCategorical
from torchrl_logo.modules.mixers import make_mixer
from torchrl_logo.modules.normalizer import Normalizer
from torchrl_logo.modules.recurrent_latent_world_model import RecurrentLatentWorldModel
from torchrl_logo.modules.recurrent_network import RecurrentNetwork
from torchrl_logo.modules.recurrent_policies import (
    make_recurrent_action_value_network,
    make_recurrent_categorical_actor,
    make_recurrent_gaussian_actor,
)
from torchrl_logo.modules.vae import make_action_vae, make_perturbation_network
from torchrl_logo.modules.world_model import Prediction, WorldModel

__all__ = [
    "AgentCritic",
    "AttentionCritic",
    "CentralizedCritic",
    "DecentralizedGRU",
    "EnsembleWorldModel",
    "JointWorldModel",
    "LatentPolicy",
    "LinearMixer",
    "LOGOWorldModel",
    "MaskedCategorical",
    "Normalizer",
    "Prediction",
    "RecurrentLatentWorldModel",
    "RecurrentNetwork",
    "WorldModel",
    "accumulate_along",
    "accumulate_uncertainty",
    "make_action_vae",
    "make_action_value_network",
    "make_agent_critic",
    "make_agent_value",
    "make_categorical_actor",
    "make_centralized_critic",
    "make_gaussian_actor",
    "make_greedy_policy",
    "make_latent_actor",
    "make_latent_critic",
    "make_linear_mixer",
    "make_mixer",
    "make_perturbation_network",
    "make_recurrent_action_value_network",
    "make_recurrent_categorical_actor",
    "make_recurrent_gaussian_actor",
    "read_on_scales",
    "recover_step_uncertainty",
]
