import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mldm_plugin.prepare.label_png import label_png

maps = arrays.arrays(np.uint8, st.tuples(st.integers(1, 70), st.integers(1, 70)))


@given(maps)
@settings(deadline=None, max_examples=100)
def test_pillow_reads_the_same_labels(labels):
    with Image.open(io.BytesIO(label_png(labels))) as read:
        assert read.mode == "L"
        np.testing.assert_array_equal(np.asarray(read), labels)


def test_a_map_of_few_people_is_smaller_than_pillow_makes_it():
    labels = np.zeros((480, 640), np.uint8)
    y, x = np.mgrid[:480, :640]
    for k in range(4):
        labels[((x - 100 - 130 * k) / 60) ** 2 + ((y - 250) / 180) ** 2 < 1] = k + 1
    by_pillow = io.BytesIO()
    Image.fromarray(labels).save(by_pillow, "PNG")
    assert len(label_png(labels)) < by_pillow.tell()
