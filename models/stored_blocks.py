"""How a source says that a weight is stored in blocks of codes: keys of ``tensor.meta``, and their contract.

Whoever can multiply by codes finds under one of the keys an object with

* ``form``: bits of a code, elements of a block, and what a block's values are counted from: its
  ``MINIMUM`` (value = code * step + minimum), its ``ZERO`` point (value = (code - zero) * step), or the
  ``MIDDLE`` code of all blocks (value = (code - 2 ** (bits - 1)) * step);
* ``order``: None, or int64 [K]: which column of the weight each column of the codes is;
* ``read()``: codes uint8 [N, K], steps float32 [N, K / block], and float32 minimums or uint8 zero points
  [N, K / block] where the form has them, else None.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

STORED_BLOCKS: Final = "stored_blocks"
"""Key for the blocks of a tensor [N, K]."""
STORED_BLOCKS_TURNED: Final = "stored_blocks_turned"
"""The same for a tensor [K, N] whose blocks lie along K."""

MIDDLE: Final = "middle"
ZERO: Final = "zero"
MINIMUM: Final = "minimum"

Coded = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | NDArray[np.uint8] | None]
