"""All algorithms of this package by name: what examples, benchmarks and tests iterate over. A new one is a line here."""

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.fpo import FPO
from sb3_scoreflow.rldt import RLDT
from sb3_scoreflow.scoreflow_ppo import ScoReFlowPPO

#: Name, as on the command line and in names of files -> class
ALGORITHMS: dict[str, type[FlowAlgorithm]] = {
    "scoreflow_ppo": ScoReFlowPPO,
    "rldt": RLDT,
    "fpo": FPO,
}
