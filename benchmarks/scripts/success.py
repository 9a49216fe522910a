"""How often a script succeeds."""

from benchmarks.scripts.script import Script


def success_rate(script: Script, n_episodes: int, seed: int = 0, horizon: int | None = None) -> tuple[float, list[int]]:
    """
    :param script: Who acts
    :param n_episodes: Number of episodes
    :param seed: Of the env
    :param horizon: Steps in an episode, the script's if None
    :return: Share of the episodes that succeed, and the lengths of these
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
