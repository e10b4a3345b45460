"""How much predictions tell, measured without labels."""

import numpy as np
from numpy.typing import NDArray


def information(probabilities: NDArray[np.float64]) -> float:
    """Mutual information of input and prediction over ln C, in [0, 1]: H(mean p) - mean H(p). [N, C]"""

    def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)

    gained = entropy(probabilities.mean(0)) - entropy(probabilities).mean()
    return float(np.clip(gained / np.log(probabilities.shape[1]), 0, 1))
