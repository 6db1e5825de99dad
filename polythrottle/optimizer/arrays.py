"""The physics family's few functions, for numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ArrayOps:
    """Elementwise, broadcasting; `power` needs a base > 0."""

    def maximum(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    def power(self, base: Any, exponent: Any) -> Any:
        # exp(e·log b) is several times faster than np.power in float32, and every base here is positive.
        return np.exp(exponent * np.log(base))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return np.where(condition, a, b)
