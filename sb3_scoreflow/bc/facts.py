"""Facts about a model's cloning, which are saved with the model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_scoreflow.common.utils import without_folders
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.demonstrations.description import describe


def cloning_facts(
    demonstrations: Demonstrations, settings: Mapping[str, Any], history: Mapping[str, list[float]]
) -> dict[str, Any]:
    """
    :param demonstrations: demonstrations of the clone
    :param settings: arguments of the cloning
    :param history: metrics of the cloning; the last value of each metric is kept
    :return: "demonstrations" (the text of :meth:`~sb3_scoreflow.Demonstrations.describe`, without images, which may not fit
        into memory, and without folders of files), "settings" and "results"; all values are plain numbers and strings, so that
        saved files stay readable
    """
    vectors = {name: a for name, a in demonstrations._task_arrays().items() if isinstance(a, np.ndarray) and a.ndim < 4}
    metadata = {
        key: without_folders(value) if isinstance(value, str) else value for key, value in demonstrations.metadata.items()
    }
    return dict(
        demonstrations=describe(vectors, demonstrations.statistics(), metadata),
        settings={name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()},
        results={name: float(values[-1]) for name, values in history.items() if name != "bc/time_elapsed"},
    )
