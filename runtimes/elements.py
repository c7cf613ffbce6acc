"""Element types of a graph's tensors as numpy holds them: bfloat16, which numpy lacks, as its 16 bits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_BFLOAT16 = 16
"""``TensorProto.BFLOAT16``."""
_BITS = 16


@dataclass(frozen=True)
class Element:
    """One element type: what memory for it is made of, and what ONNX Runtime is told that it holds."""

    storage: np.dtype[np.number]
    """float32, float16 or int8; uint16 for bfloat16."""
    is_bfloat16: bool = False

    @property
    def bound(self) -> type[np.number] | int:
        """The type that an IO binding takes for memory of it."""
        return _BFLOAT16 if self.is_bfloat16 else self.storage.type

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.storage.itemsize

    @property
    def is_float(self) -> bool:
        """Whether it holds numbers as they are, without scales."""
        return self.is_bfloat16 or self.storage.kind == "f"

    def to_float32(self, values: npt.NDArray[np.number]) -> Floats:
        """`values` of :attr:`storage` as float32, any shape; those that are float32 already are not copied.

        A bfloat16 is the upper half of the float32 of the same value.
        """
        if not self.is_bfloat16:
            return values.astype(np.float32, copy=False)
        return (values.astype(np.uint32) << _BITS).view(np.float32)


ELEMENTS: dict[str, Element] = {
    "tensor(float)": Element(np.dtype(np.float32)),
    "tensor(float16)": Element(np.dtype(np.float16)),
    "tensor(bfloat16)": Element(np.dtype(np.uint16), is_bfloat16=True),
    "tensor(int8)": Element(np.dtype(np.int8)),
}
"""By ONNX Runtime's name of the type: what a cache may be of, and logits too if it is a float."""
