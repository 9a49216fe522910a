"""``benchmarks.averaging``: one run measures all horizons."""

from typing import Any

import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import averaging, study
from benchmarks.averaging import HORIZONS, Averages, main, statistics
from sb3_scoreflow import FPO, pretrain_bc
from tests.conformance.envs import make_toy
from tests.conformance.test_defaults import demonstrations


@pytest.mark.parametrize("label", ["10000", "40000 to 10000"])
@pytest.mark.filterwarnings("ignore:The environment's 'observations' do not resemble")
def test_averages_are_those_of_the_algorithm(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And evaluations change nothing of what is learned."""
    monkeypatch.setattr(averaging, "N_EPISODES", 2)

    def trained(callback: Averages | None) -> Any:
        arguments: dict[str, Any] = dict(n_steps=16, batch_size=16, n_epochs=1, rollback=False, seed=0, device="cpu")
        arguments |= dict(averaging_horizon=HORIZONS[label], policy_kwargs=dict(net_arch=[8]))
        model = FPO("FlowPolicy", make_toy(n_envs=2), **arguments)
        pretrain_bc(model, demonstrations(), n_batches=2, critic_batches=0, seed=0)
        return model.learn(4 * 32, callback=callback)

    callback = Averages(make_toy(n_envs=2), seed=0, eval_every=4 * 64)
    model, alone = trained(callback), trained(None)
    kept = callback.averages[label]
    assert kept is not None and callback.averages["0"] is None
    own, others = model.policy.averaged.state_dict(), alone.policy.averaged.state_dict()
    for name, average in kept.state_dict().items():
        assert th.equal(average, own[name]) and th.equal(average, others[name])
    assert [row["timesteps"] for row in callback.rows] == [0, 64, 128]
    for horizon in HORIZONS:
        model.policy.averaged = callback.averages[horizon]
        callback.eval_env.seed(0)
        returns = evaluate_policy(model, callback.eval_env, 2)[0]
        assert callback.rows[-1][horizon] == pytest.approx(returns, abs=0.005)
    assert len({callback.rows[-1][horizon] for horizon in HORIZONS}) > 1


def test_statistics() -> None:
    rows = [[dict.fromkeys(("0", "10000"), value) for value in values] for values in ((4.0, 1.0, 8.0), (2.0, 3.0, 4.0))]
    rows[1] = [{**row, "20000": 0.0} for row in rows[1]]  # an average that another run did not keep
    found = statistics({str(seed): {"rows": of} for seed, of in enumerate(rows)})
    assert set(found) == {"0", "10000"}
    assert found["0"]["lowest_over_clone"] == [0.25, 1.0] and found["0"]["end"]["mean"] == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:learn.* ends within the critics' warm-up")
def test_study(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "N_EPISODES", 2)
    main(["--task", "push-v3", "--seeds", "0", "--timesteps", "1000", "--output", str(tmp_path)])
    summary = study.read_summary(tmp_path)["push-v3"]
    assert len(summary["runs"]["rldt"]["0"]["rows"]) == 2 and (tmp_path / "figure.png").exists()
