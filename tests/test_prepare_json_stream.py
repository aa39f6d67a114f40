import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mldm_plugin.errors import DataError
from mldm_plugin.prepare import json_stream
from mldm_plugin.prepare.json_stream import items

numbers = st.integers() | st.floats(allow_nan=False) | st.floats(1e15, 1e22)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(values, max_size=6), st.lists(numbers, max_size=20), values, st.integers(1, 40), st.booleans())
@settings(max_examples=300, deadline=None)
def test_items_are_those_that_json_reads(tmp_path_factory, wanted, others, scalar, chunk, indented):
    """However the file is cut into chunks, and whatever else is in it."""
    path = tmp_path_factory.mktemp("json") / "f.json"
    content = {"before": others, "wanted": wanted, "scalar": scalar, "more": wanted, "after": others}
    path.write_text(json.dumps(content, indent=2 if indented else None), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        found = list(items(path, "wanted", "more"))
    assert found == [("wanted", one) for one in wanted] + [("more", one) for one in wanted]


def test_not_a_number_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "f.json").write_text('\ufeff{"a": [NaN, -Infinity]}', encoding="utf-8")
    (_, first), (_, second) = items(tmp_path / "f.json", "a")
    assert math.isnan(first)
    assert second == -math.inf


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2', '{"a": [1 2]}', '{"a": [' + "[" * 100_000, '{"a": [' + "9" * 5000 + "]}"]
)
def test_what_is_no_json_is_told(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(DataError, match="is not JSON"):
        list(items(tmp_path / "f.json", "a"))
