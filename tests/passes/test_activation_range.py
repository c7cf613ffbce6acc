"""The range that follows from what calibration saw, or from what a calibrator chose of it."""

import numpy as np
import pytest

from onnxforge.passes.activation_range import ActivationRange


def seen(low, high, **chosen):
    return ActivationRange(np.array(low, np.float32), np.array(high, np.float32), 1.0, **chosen)


@pytest.mark.parametrize(
    ("found", "bounds"),
    [
        (seen([-1, -2], [3, 1]), (-2, 3)),
        (seen([1, 2], [3, 4]), (0, 4)),
        (seen([-3, -4], [-1, -2]), (-4, 0)),
        (seen([-1, -2], [3, 1], chosen=(-1.0, 1.5)), (-1, 1.5)),
        (seen([-1, -2], [3, 1], chosen=(0.5, 1.5)), (0, 1.5)),
        (seen([0, 0], [0, 0]), (0, 0)),
    ],
)
def test_zero_is_inside_and_a_chosen_range_goes_first(found, bounds):
    assert found.bounds == bounds


def test_a_chosen_range_leaves_the_channels_as_they_were_seen():
    found = seen([-1, -2], [3, 1], chosen=(-0.5, 0.5))
    np.testing.assert_array_equal(found.largest, [3, 2])
    divided = found.divided(np.array([2, 4], np.float32))
    assert divided.bounds == (-0.5, 1.5)  # chosen of other values: not carried over
