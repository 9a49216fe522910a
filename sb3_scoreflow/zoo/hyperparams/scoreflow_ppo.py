"""The hyperparameters of scoreflow_ppo.yml as a module."""

from sb3_scoreflow.zoo.hyperparameter_files import hyperparams_of

__getattr__ = hyperparams_of("scoreflow_ppo")
