"""NaN in rewards, losses and parameters: what is named, and that nothing has changed by then."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import ScoReFlowPPO
from tests.ppo.helpers import SIZE, TinyEnv, collect, make_model, moved_in, rooms_of, state_of


class BrokenEnv(TinyEnv):
    """Returns NaN once, as a reward."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, float("nan") if len(self.history) == 3 else reward, terminated, truncated, info


def test_nan_reward_stops_training_before_the_update() -> None:
    model = ScoReFlowPPO("FlowPolicy", BrokenEnv(), n_steps=8, batch_size=8, seed=0, policy_kwargs=dict(net_arch=[8]))
    before = state_of(model.policy)
    with pytest.raises(FloatingPointError, match=r"Environment 0 returned a NaN or infinite reward \(nan\)"):
        model.learn(8)
    assert not moved_in(model.policy, before)


def test_nan_parameter_is_named_and_not_saved(tmp_path: Path) -> None:
    model = make_model()
    model.learn(SIZE)
    model.save(tmp_path / "model.zip")
    good = (tmp_path / "model.zip").read_bytes()
    with th.no_grad():
        model.policy.get_parameter("noise_net.net.0.weight")[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"'noise_net\.net\.0\.weight'"):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_non_finite_loss_is_named_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    collect(model)
    before = state_of(model.policy)
    monkeypatch.setattr(model, "_value_loss", lambda *args: th.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match=r"value_loss.*\binf\b.*iteration 1\b"):
        model.train()
    # All but the critic's last layer, which the change of unit has rescaled
    assert rooms_of(moved_in(model.policy, before)) <= {"value_net"}
