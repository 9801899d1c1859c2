"""A checkpoint of another version, or an edited one, is read as far as it can be, and the rest is announced."""

import pytest

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._state import SavedState, count, count_or_none, figures


@pytest.mark.parametrize(
    ("read", "value"),
    [(count, True), (count, 1.0), (count, -1), (count_or_none, "2"), (figures, [1.0]), (figures, {"a": "b"})],
)
def test_what_cannot_be_read_is_the_default_and_is_said(read, value):
    with pytest.warns(UserWarning, match="has an unreadable 'key'"):
        assert SavedState({"key": value}, Announcer("Monitor")).get("key", read, "default") == "default"


def test_what_is_no_dict_or_lacks_a_key():
    with pytest.warns(UserWarning, match="state of Monitor is a list where a dict was expected"):
        saved = SavedState([1, 2], Announcer("Monitor"))
    assert saved.get("key", count, 7, since="0.2.0") == 7
    with pytest.warns(UserWarning, match="has no 'key'"):
        assert SavedState({}, Announcer("Monitor")).get("key", count, 7) == 7


@pytest.mark.parametrize(("read", "value"), [(count, 3), (count_or_none, None), (figures, {"a": 2.0})])
def test_what_was_saved_is_read(read, value):
    assert SavedState({"key": value}, Announcer("Monitor")).get("key", read, "default") == value
