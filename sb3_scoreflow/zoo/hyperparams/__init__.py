"""
Hyperparameters by algorithm, as files for ``--conf-file``, and as modules: ``--conf-file sb3_scoreflow.zoo.hyperparams.rldt``.
"""
