"""FlowMatchingPolicy, the base of all policies: observation -> features -> velocity field -> action."""

from typing import Any, ClassVar, Literal, NoReturn, get_args

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import (
    get_action_dim,
    is_image_space,
    preprocess_obs,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.action_space import check_action_space, decode_action
from sb3_scoreflow.common.averaging import AveragedActor
from sb3_scoreflow.common.encoders import ViTExtractor, default_arguments, random_shift
from sb3_scoreflow.common.net_arch import resolve_net_arch
from sb3_scoreflow.common.networks import ObservationNormalizer, VelocityField
from sb3_scoreflow.common.observations import batch_size, blocks, image_keys, take
from sb3_scoreflow.common.ppo_only import spread_arguments
from sb3_scoreflow.common.saved_policy import SavedPolicy
from sb3_scoreflow.common.utils import DivergenceError, check_choice, check_whole_numbers, non_finite_parameter

ObservationNormalization = Literal["auto", "running", "fixed", "none"]

#: Deterministic actions are computed in blocks of exactly this many rows: for other batch sizes, matrix libraries choose other
#: kernels with other rounding, so only a fixed shape makes an action independent of its batch.
_DETERMINISTIC_BLOCK = 8

#: Number of images per call of an extractor without gradients, so that memory does not grow with the batch.
_IMAGE_BLOCK = 256


class FlowMatchingPolicy(AveragedActor, SavedPolicy):
    """
    A flow-matching policy for Box actions of any shape with finite bounds.

    Actions are generated in [-1, 1] per dimension by integrating a velocity field from ``x_0`` at ``t = 0`` to the action at
    ``t = 1`` and are rescaled to the bounds. ``predict(deterministic=True)`` starts from ``x_0 = 0`` and is bit-identical from
    call to call and over batch compositions; otherwise ``x_0 ~ N(0, I)``. While a clone is fine-tuned, deterministic actions
    may come from averaged weights (:class:`~sb3_scoreflow.common.averaging.AveragedActor`).

    :param observation_space: observation space
    :param action_space: Box with finite bounds, float32 or float64
    :param lr_schedule: learning rate schedule, used by the subclasses that own an optimizer
    :param net_arch: hidden widths, a list for every network or a dictionary (``pi``: velocity field, ``vf``: critic,
        ``noise``: noise net); default ``dict(pi=[256, 256], vf=[256, 256])``
    :param activation_fn: activation function of the velocity field
    :param denoising_steps: Euler steps ``K`` per action, at least 1
    :param inference_steps: Euler steps of the deterministic sampler, which may be changed after training; None:
        ``denoising_steps``
    :param time_embedding_dim: width of the time embedding, an even number
    :param prior_std: standard deviation of the Gaussian distribution that the flow of an untrained policy generates, in
        normalized action units, positive
    :param observation_normalization: "fixed": only :func:`~sb3_scoreflow.pretrain_bc` fits the statistics; "running": every
        rollout also updates them; "auto": "running" until pretraining has fitted them, then "fixed"; "none": observations
        are not normalized
    :param use_sde: part of Stable-Baselines3's interface; must be False
    :param features_extractor_class: class of the features extractor; None: chosen by the observation space (see
        ``policy_aliases`` of the algorithms)
    :param features_extractor_kwargs: keyword arguments of the features extractor
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: optimizer
    :param optimizer_kwargs: keyword arguments of the optimizer, without the learning rate
    :raises ValueError: if an argument is invalid; the message names it
    """

    #: Features extractor of the alias; None chooses by observation space.
    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor] | None] = None
    #: Networks that ``net_arch`` may have, the required two first
    net_arch_parts: ClassVar[tuple[str, ...]] = ("pi", "vf")
    #: Alternative to methods that need likelihoods, as the end of a message
    _instead_of_likelihoods: ClassVar[str] = ""
    pretrained: th.Tensor
    _inference_steps: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        denoising_steps: int = 4,
        inference_steps: int | None = None,
        time_embedding_dim: int = 16,
        prior_std: float = 0.2,
        observation_normalization: ObservationNormalization = "auto",
        use_sde: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if use_sde:
            raise ValueError(
                f"use_sde=True is not supported: leave it out. How far {type(self).__name__} explores is set by "
                f"{spread_arguments(type(self))}."
            )
        check_action_space(action_space)
        check_choice("observation_normalization", observation_normalization, get_args(ObservationNormalization))
        if features_extractor_class is None:
            features_extractor_class = self._choose_features_extractor(observation_space, normalize_images)
        if optimizer_kwargs is None:
            # The small default epsilon of Adam can give NaN (as in Stable-Baselines3's policies). Fused, a step passes over
            # the weights once.
            adam = issubclass(optimizer_class, (th.optim.Adam, th.optim.AdamW))
            optimizer_kwargs = {"eps": 1e-5, "fused": True} if adam else {}
        features_extractor_kwargs = {**default_arguments(features_extractor_class), **(features_extractor_kwargs or {})}
        if issubclass(features_extractor_class, ViTExtractor) and not normalize_images:
            features_extractor_kwargs["normalized_image"] = True  # as Stable-Baselines3 does for its own extractors
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.net_arch = resolve_net_arch([256, 256] if net_arch is None else net_arch, self.net_arch_parts)
        self.activation_fn = activation_fn
        self.action_dim = get_action_dim(action_space)
        check_whole_numbers(dict(denoising_steps=denoising_steps, inference_steps=inference_steps))
        flow.time_grid(denoising_steps)  # raises if impossible
        self.denoising_steps = denoising_steps
        self.time_embedding_dim = time_embedding_dim
        self.prior_std = prior_std
        self.observation_normalization = observation_normalization

        self.image_keys = image_keys(observation_space, normalize_images)
        expects_statistics = observation_normalization in ("auto", "running")
        self.normalizer = ObservationNormalizer(observation_space, expects_statistics=expects_statistics)
        self.features_extractor = self.make_features_extractor()
        self.features_dim = self.features_extractor.features_dim
        self.velocity_field = VelocityField(
            self.features_dim, self.action_dim, self.net_arch["pi"], activation_fn, time_embedding_dim, prior_std
        )
        self.register_module("averaged", None)
        # Flags and counts are floats, because users may average the tensors of state dicts or add noise to all of them.
        self.register_buffer("pretrained", th.zeros(()))
        # In the state dict, so that a model saved after changing it acts as it did; 0 follows denoising_steps.
        self.register_buffer("_inference_steps", th.zeros(()))
        if inference_steps is not None:
            self.inference_steps = inference_steps

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """
        :return: name of a parameter group -> its parameters; every trained parameter is in one of them
        """
        raise NotImplementedError

    def _build_optimizer(self, lr_schedule: Schedule) -> None:
        """Build the optimizer of :meth:`parameter_groups`; all networks must exist."""
        rate = lr_schedule(1)
        groups = self.parameter_groups().items()
        self.optimizer = self.optimizer_class(
            [dict(params=parameters, name=name, lr=rate) for name, parameters in groups if parameters],
            lr=rate,  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    @classmethod
    def _choose_features_extractor(cls, space: spaces.Space, normalize_images: bool) -> type[BaseFeaturesExtractor]:
        if cls.default_features_extractor_class is not None:
            return cls.default_features_extractor_class
        if isinstance(space, spaces.Dict):
            return CombinedExtractor
        return NatureCNN if is_image_space(space, normalized_image=not normalize_images) else FlattenExtractor

    @property
    def inference_steps(self) -> int:
        """Euler steps of the deterministic sampler; may be set at any time."""
        return self._given_inference_steps or self.denoising_steps

    @inference_steps.setter
    def inference_steps(self, value: int) -> None:
        if value < 1:
            raise ValueError(f"inference_steps must be at least 1, got {value}.")
        self._inference_steps.fill_(value)

    @property
    def _given_inference_steps(self) -> int | None:
        return max(round(float(self._inference_steps)), 0) or None

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,  # not needed for acting
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            denoising_steps=self.denoising_steps,
            inference_steps=self._given_inference_steps,
            time_embedding_dim=self.time_embedding_dim,
            prior_std=self.prior_std,
            observation_normalization=self.observation_normalization,
            use_sde=False,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )
        return data

    # ------------------------------------------------------------------ features

    def preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        """
        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :return: float observations: images scaled, discrete ones one-hot, vectors standardized
        """
        return self.normalizer(preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images))

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None) -> th.Tensor:
        """
        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param features_extractor: features extractor; None: the actor's
        :return: features, shape ``(batch, features_dim)``
        """
        extractor = self.features_extractor if features_extractor is None else features_extractor
        if th.is_grad_enabled() or not self.image_keys:
            return extractor(self.preprocess(obs))
        rows = th.arange(batch_size(obs)).split(_IMAGE_BLOCK)
        return th.cat([extractor(self.preprocess(take(obs, block))) for block in rows])

    def augment(self, obs: PyTorchObs, pixels: int, generator: th.Generator | None = None) -> PyTorchObs:
        """
        Shift every image at random (see :func:`~sb3_scoreflow.common.encoders.random_shift`), each camera separately.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param pixels: largest shift in pixels; 0: no shift
        :param generator: random number generator of the shifts; None: torch's global generator
        :return: observations with the same shapes and dtypes; only images are changed
        """
        if pixels == 0 or not self.image_keys:
            return obs
        if not isinstance(obs, dict):
            return random_shift(obs, pixels, generator)
        return {key: random_shift(part, pixels, generator) if key in self.image_keys else part for key, part in obs.items()}

    @property
    def updates_observation_statistics(self) -> bool:
        """Whether rollouts update the observation statistics (see ``observation_normalization``)."""
        mode = self.observation_normalization
        return mode == "running" or (mode == "auto" and not bool(self.pretrained > 0.5))

    def share_actor_features(self) -> None:
        """Called after cloning; subclasses with further features extractors copy the actor's into them."""

    # ------------------------------------------------------------------ flow

    def velocity(self, obs: PyTorchObs, x: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        The velocity field in normalized action space.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param x: points on the path, shape ``(batch, action_dim)``
        :param t: times in [0, 1], shape ``(batch,)`` or ``()``
        :return: velocity, shape ``(batch, action_dim)``
        """
        field = self.velocity_field
        return field(x, field.time_features(t), field.condition(self.extract_features(obs)))

    def flow_matching_loss(self, obs: PyTorchObs, actions: th.Tensor, noise: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        Squared error of the velocity on the linear path (arXiv 2210.02747, Eq. 23), per element, not reduced.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param actions: normalized actions, shape ``(batch, action_dim)``
        :param noise: ``x_0``, same shape
        :param t: times in [0, 1], shape ``(batch,)``
        :return: shape ``(batch, action_dim)``
        """
        x = flow.interpolate(noise, actions, t.unsqueeze(-1))
        return (self.velocity(obs, x, t) - flow.velocity_target(noise, actions)).pow(2)

    def sample_ode(self, obs: PyTorchObs, noise: th.Tensor, denoising_steps: int | None = None) -> th.Tensor:
        """
        Integrate the flow with Euler steps and clamp the result, as in the method's deterministic sampler.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param noise: ``x_0``, shape ``(batch, action_dim)``
        :param denoising_steps: number of steps; None: the policy's
        :return: normalized actions in [-1, 1], shape ``(batch, action_dim)``
        """
        features = self.extract_features(obs)
        return self._integrate(self.velocity_field, features, noise, denoising_steps or self.denoising_steps)

    @staticmethod
    def _integrate(field: VelocityField, features: th.Tensor, noise: th.Tensor, steps: int) -> th.Tensor:
        condition = field.condition(features)
        times = field.time_features(flow.time_grid(steps, dtype=noise.dtype, device=noise.device)).steps()
        return flow.chain(lambda x, time: x + field(x, time, condition) / steps, noise, times)[-1].clamp(-1.0, 1.0)

    # ------------------------------------------------------------------ actions

    def set_training_mode(self, mode: bool) -> None:
        """
        Set the mode, as in Stable-Baselines3. ``predict`` calls this method for every action, so it does nothing if the mode
        is already set.

        :param mode: True: training mode, False: evaluation mode
        """
        # Setting the mode of all modules would take a large part of the time of an action.
        if any(module.training != mode for module in self.modules()):
            super().set_training_mode(mode)

    def _deterministic_action(self, features: th.Tensor, noise: th.Tensor, denoising_steps: int) -> th.Tensor:
        """
        Deterministic actions for the (averaged) features of a block of observations, starting from ``noise``, which is 0.
        Subclasses with other dynamics override this method.
        """
        return self._integrate(self.acting("velocity_field"), features, noise, denoising_steps)

    def _stochastic_action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """Stochastic actions, starting from ``noise ~ N(0, I)``; subclasses with noisy steps override this method."""
        return self.sample_ode(obs, noise)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        batch = batch_size(observation)
        if not deterministic:
            return self._stochastic_action(observation, th.randn(batch, self.action_dim, device=self.device))
        noise = th.zeros(_DETERMINISTIC_BLOCK, self.action_dim, device=self.device)
        steps = self.inference_steps
        rows, extractor = blocks(observation, _DETERMINISTIC_BLOCK), self.acting("features_extractor")
        features = [self.extract_features(block, extractor) for block in rows]
        return th.cat([self._deterministic_action(block, noise, steps) for block in features])[:batch]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param deterministic: whether to start from ``x_0 = 0``
        :return: normalized actions, shape ``(batch, action_dim)``
        """
        return self._predict(obs, deterministic)

    def get_distribution(self, obs: PyTorchObs) -> NoReturn:
        """
        :param obs: unnormalized observations
        :raises NotImplementedError: always: a flow policy has no distribution of actions in closed form
        """
        raise NotImplementedError(
            "get_distribution: a flow policy has no distribution of actions in closed form. Draw actions with predict(obs, "
            f"deterministic=False), as many as you need{self._instead_of_likelihoods}."
        )

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> Any:
        """
        :param obs: unnormalized observations
        :param actions: actions
        :raises NotImplementedError: always, except in subclasses whose records can be scored
        """
        raise NotImplementedError(
            "evaluate_actions: a flow policy gives no probability of an action. Draw actions with predict(obs, "
            f"deterministic=False), as many as you need{self._instead_of_likelihoods}."
        )

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        :param action: actions within the bounds, shape ``(..., *action_shape)``
        :return: actions in [-1, 1], same shape
        """
        low, high, _ = self._bounds()
        return 2.0 * ((action - low) / (high - low)) - 1.0

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        Rescale actions from [-1, 1] to the bounds. If the argument has records of actions, such as flattened denoising chains,
        their last part is rescaled (see :func:`~sb3_scoreflow.common.action_space.decode_action`).

        :param scaled_action: shape ``(batch, *action_shape)``, ``action_shape``, or records of shape ``(batch, width)``
        :return: actions within the bounds, in the action space's dtype, shape ``(batch, *action_shape)`` or ``action_shape``
        :raises DivergenceError: if an action is NaN or infinite, before the environment sees it
        """
        single = scaled_action.shape == self.action_space.shape
        records = scaled_action[None] if single else scaled_action
        if not np.isfinite(records[..., -self.action_dim :]).all():
            culprit = non_finite_parameter(self)
            cause = f"the policy's parameter '{culprit}' is" if culprit else "an observation, or an output of the networks, is"
            raise DivergenceError(
                f"The policy produced a NaN or infinite action: {cause} not finite. Go back to the last checkpoint."
            )
        low, high, dtype = self._bounds()
        action = decode_action(records, low, high).astype(dtype, copy=False)
        return action[0] if single else action

    def _bounds(self) -> tuple[np.ndarray, np.ndarray, np.dtype]:
        """Bounds with sufficient precision for computations (not float16), and the action space's dtype."""
        space = self.action_space
        assert isinstance(space, spaces.Box) and space.dtype is not None
        dtype = np.result_type(space.dtype, np.float32)
        return space.low.astype(dtype, copy=False), space.high.astype(dtype, copy=False), space.dtype
