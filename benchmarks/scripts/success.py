"""The success rate of a script."""

from benchmarks.scripts.script import Script


def success_rate(script: Script, n_episodes: int, seed: int = 0, horizon: int | None = None) -> tuple[float, list[int]]:
    """
    :param script: script that acts
    :param n_episodes: number of episodes
    :param seed: seed of the environment
    :param horizon: largest number of steps in an episode; None: the script's
    :return: share of the episodes that succeed, and the lengths of these episodes
    """
    from sb3_scoreflow.envs import make_robomimic

    env = make_robomimic(script.task, horizon=horizon or script.horizon)
    lengths = []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        script.reset()
        terminated = truncated = False
        n_steps = 0
        while not (terminated or truncated):
            observation, _, terminated, truncated, _ = env.step(script.act(observation))
            n_steps += 1
        if terminated:
            lengths.append(n_steps)
    env.close()
    return len(lengths) / n_episodes, lengths
