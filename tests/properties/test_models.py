"""Models with any arguments come back from a file as they were: arguments, defaults, actions, and how they go on."""

import inspect
import io
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import assume, given
from hypothesis import strategies as st

from sb3_scoreflow import CosineSchedule, HalfLifeSchedule, HoldCosineSchedule
from sb3_scoreflow.rldt import Transport
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import make_toy, observe, some_states
from tests.conformance.saving import assert_same
from tests.properties.strategies import COSTLY, SEEDS

NUMBERS = st.floats(1e-5, 1.0)
RATES = st.one_of(
    NUMBERS,
    NUMBERS.map(lambda rate: f"lin_{rate}"),
    st.builds(CosineSchedule, NUMBERS, NUMBERS, st.floats(0, 0.9)),
    st.builds(HalfLifeSchedule, NUMBERS, NUMBERS, st.floats(1, 1e5)),
)
FRACTIONS = st.floats(0, 1)
STDS = st.floats(0.3, 2.0)

#: Argument of an algorithm -> what it may be. A model is trained with these for an iteration: sizes are small
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = dict(
    learning_rate=st.none() | RATES,
    noise_learning_rate=st.none() | RATES,
    critic_learning_rate=st.none() | RATES,
    encoder_learning_rate=st.none() | RATES,
    n_steps=st.integers(2, 8),
    batch_size=st.integers(2, 8),
    n_epochs=st.integers(1, 2),
    gamma=FRACTIONS,
    gae_lambda=FRACTIONS,
    clip_range=st.none() | st.floats(0.001, 0.09) | st.builds(HalfLifeSchedule, st.floats(0.01, 0.09), NUMBERS, st.just(50)),
    clip_range_vf=st.none() | NUMBERS,
    normalize_advantage=st.booleans(),
    ent_coef=FRACTIONS,
    vf_coef=FRACTIONS,
    max_grad_norm=NUMBERS,
    target_kl=st.none() | NUMBERS,
    stats_window_size=st.integers(1, 50),
    denoising_steps=st.integers(2, 5),
    score_drift=st.sampled_from(["learned", "constant", "none"]),
    noise=st.sampled_from(["learned", "constant", "score_matched"]),
    min_std=st.floats(0.01, 0.3),
    noise_scale=st.floats(0.05, 2.0),
    max_std=st.none() | STDS | st.builds(HoldCosineSchedule, STDS, STDS, st.floats(0, 0.9)),
    single_step_fraction=FRACTIONS,
    critic_warmup_iterations=st.integers(0, 2),
    normalize_reward=st.booleans(),
    bc_coef=st.sampled_from([0.0, 0.1]),
    deterministic_coef=st.sampled_from([0.0, 0.1]),
    validation_fraction=st.sampled_from([0.0, 0.3]),
    averaging_horizon=st.none() | st.floats(0, 1e4),
    log_prob_clip=st.none() | st.floats(0.1, 5),
    n_mc_samples=st.integers(1, 4),
    zero_noise_fraction=st.none() | FRACTIONS,
    ratio=st.sampled_from(["per_sample", "mean"]),
    trust_region=st.sampled_from(["clip", "aspo"]),
    loss_clip=st.floats(0.1, 5),
    critic_steps=st.integers(1, 4),
    n_refreshes=st.integers(1, 2),
    refresh_size=st.integers(1, 40),
    tau=st.floats(0.001, 1),
    td_lambda=FRACTIONS,
    target_clip=st.none() | st.tuples(st.floats(-9, -1), st.floats(1, 9)),
    reward_scale=st.just("ema") | NUMBERS,
    random_shift=st.integers(0, 4),
    critic_warmup_transitions=st.integers(0, 40),
    actor_steps=st.integers(1, 3),
    actor_batch_size=st.integers(1, 8),
    n_particles=st.integers(2, 4),
    transport=st.none() | st.builds(Transport, st.sampled_from(["rbf", "delta"]), st.none() | NUMBERS, NUMBERS),
    consistency_coef=FRACTIONS,
    fisher_coef=FRACTIONS,
    max_shift=st.none() | st.floats(1e-3, 10),
    rollback=st.booleans(),
    learning_rate_warmup_steps=st.integers(0, 9),
    seed=st.none() | st.integers(0, 1000),
)
#: The same of the policies
POLICY_ARGUMENTS: dict[str, st.SearchStrategy[Any]] = dict(
    net_arch=st.lists(st.integers(1, 8), max_size=2)
    | st.fixed_dictionaries(dict(pi=st.lists(st.integers(1, 8), max_size=2), vf=st.lists(st.integers(1, 8), max_size=2))),
    activation_fn=st.sampled_from([th.nn.ReLU, th.nn.Tanh, th.nn.SiLU]),
    inference_steps=st.none() | st.integers(1, 6),
    time_embedding_dim=st.integers(1, 5).map(lambda half: 2 * half),
    prior_std=st.floats(0.05, 2),
    observation_normalization=st.sampled_from(["auto", "running", "none"]),
    optimizer_class=st.sampled_from([th.optim.Adam, th.optim.AdamW, th.optim.RMSprop]),
    score_scale=st.floats(0.1, 2),
    score_clip=st.floats(0.5, 9),
    share_features_extractor=st.booleans(),
    n_critics=st.integers(1, 3),
    n_bootstrap_actions=st.integers(1, 3),
    exploration_scale=FRACTIONS,
    exploration_steps=st.integers(1, 3),
)
#: Not arguments that a run is told by, or given by the test
LEFT_OUT = {"policy", "env", "policy_kwargs", "rollout_buffer_class", "rollout_buffer_kwargs", "tensorboard_log", "verbose"}
LEFT_OUT |= {"device", "_init_setup_model", "moved"}


def chosen(data: st.DataObject, strategies: dict[str, st.SearchStrategy[Any]], names: Any) -> dict[str, Any]:
    """:return: some of the arguments, with values"""
    known = {name: strategy for name, strategy in strategies.items() if name in names}
    return data.draw(st.fixed_dictionaries({}, optional=known))


def resolved(model: Any) -> dict[str, Any]:
    names = {*inspect.signature(type(model)).parameters, *model.defaults["scratch"], *model.sizes} - LEFT_OUT
    built = {**model.policy._get_constructor_parameters(), "lr_schedule": None}
    settings = {name: vars(model)[name] for name in sorted(names) if name in vars(model)}
    rates = {name: model._scheduled(name) for name, value in settings.items() if "learning_rate" in name and callable(value)}
    return dict(settings=settings, rates=rates, policy=built, state=dict(model.policy.state_dict()))


def test_every_argument_is_tried() -> None:
    for algorithm in ALGORITHMS:
        assert inspect.signature(algorithm.cls).parameters.keys() - LEFT_OUT <= ARGUMENTS.keys()


@COSTLY
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@given(data=st.data(), kind=st.sampled_from(["flat", "vectors", "discrete"]), n_envs=st.integers(1, 3), seed=SEEDS)
def test_file(algorithm: Algorithm, data: st.DataObject, kind: str, n_envs: int, seed: int) -> None:
    parameters = inspect.signature(algorithm.cls).parameters
    arguments = {**algorithm.cheap, "n_steps": 4, "batch_size": 4, **chosen(data, ARGUMENTS, parameters)}
    assume((arguments.get("noise"), arguments.get("score_drift")) != ("score_matched", "none"))  # refused: there is no score
    policy = algorithm.cls.policy_aliases["FlowPolicy"]
    policy_kwargs = {"net_arch": [4], **chosen(data, POLICY_ARGUMENTS, inspect.signature(policy).parameters)}
    env = make_toy(kind, n_envs=n_envs)
    model = algorithm.cls("FlowPolicy", env, policy_kwargs=policy_kwargs, device="cpu", **arguments)
    model.learn(data.draw(st.sampled_from([0, 1, model.n_steps * n_envs])))
    states = observe(kind, some_states(5, seed))
    expected = resolved(model), model.predict(states, deterministic=True)[0]
    file = io.BytesIO()
    model.save(file, include=algorithm.resume)
    file.seek(0)
    loaded = algorithm.cls.load(file, make_toy(kind, n_envs=n_envs), device="cpu")
    assert_same(resolved(loaded), expected[0])
    np.testing.assert_array_equal(loaded.predict(states, deterministic=True)[0], expected[1])
    drawn = []
    for each in (model, loaded):
        th.manual_seed(seed)
        drawn.append(each.predict(states)[0])
    np.testing.assert_array_equal(*drawn)
    after = []
    for each in (model, loaded):  # and they go on alike
        each.set_env(make_toy(kind, n_envs=n_envs))
        each.set_random_seed(1)
        each.learn(1, reset_num_timesteps=False)
        after.append(dict(each.policy.state_dict()))
    assert_same(after[1], after[0])
