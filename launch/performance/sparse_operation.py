"""An operation over sparse voxels, as it is handed to whoever measures it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Operation(NamedTuple):
  """One operation with its operands.

  function: of the operands and the tables, traceable. cotangent: of what comes out, zero in
  padding. valid_RV: which slots are voxels. tables: integers that say who sees whom.
  """

  name: str
  function: Callable
  operands: tuple[np.ndarray, ...]
  cotangent: np.ndarray
  valid_RV: np.ndarray
  tables: Any
