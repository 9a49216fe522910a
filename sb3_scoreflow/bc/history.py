"""The log of a cloning run."""

from collections import defaultdict

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import configure_logger

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.html import html_table


class Metrics(dict[str, list[float]]):
    """Metric -> its values, one per log point; notebooks display the first and the last value of each metric."""

    def _repr_html_(self) -> str:
        rows = [(name, f"{values[0]:.4g}", f"{values[-1]:.4g}") for name, values in self.items() if values]
        return html_table(["", "first", "last"], rows)


class History:
    """Stores the metrics of every log point and sends them to a logger."""

    def __init__(self, logger: Logger | None) -> None:
        self.metrics: dict[str, list[float]] = defaultdict(list)
        self.logger = logger

    def record(self, batch: int, metrics: dict[str, float]) -> None:
        if not self.metrics["batch"] or self.metrics["batch"][-1] != batch:
            self.metrics["batch"].append(batch)
        for name, value in metrics.items():
            self.metrics[name].append(value)
            if self.logger is not None:
                self.logger.record(name, value)
        if self.logger is not None:
            self.logger.dump(step=batch)


def logger_of(algorithm: FlowAlgorithm | None) -> Logger | None:
    """The model's logger, created here if ``learn`` has not created one yet; None for a policy without an algorithm."""
    if algorithm is None:
        return None
    return getattr(algorithm, "_logger", None) or configure_logger(algorithm.verbose, algorithm.tensorboard_log, "BC", True)
