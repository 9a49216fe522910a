"""The registry of algorithms. Examples, benchmarks and tests iterate over it; a new algorithm adds one line."""

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.fpo import FPO
from sb3_scoreflow.rldt import RLDT
from sb3_scoreflow.scoreflow_ppo import ScoReFlowPPO

#: Name (on the command line and in file names) -> class
ALGORITHMS: dict[str, type[FlowAlgorithm]] = {
    "scoreflow_ppo": ScoReFlowPPO,
    "rldt": RLDT,
    "fpo": FPO,
}
