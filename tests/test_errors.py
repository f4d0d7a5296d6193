"""An unknown name is answered with the nearest known one."""

from __future__ import annotations

from foldfuse.errors import InputError, unknown_name


def test_the_nearest_name_is_suggested() -> None:
    error = unknown_name("recipe", "efficientdet_lit0", ["tiny", "efficientdet_lite0"])
    assert isinstance(error, InputError)
    assert str(error) == (
        "no recipe is called 'efficientdet_lit0'. Did you mean 'efficientdet_lite0'? Known: efficientdet_lite0, tiny."
    )


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert str(unknown_name("recipe", "xyz", ["tiny"])) == "no recipe is called 'xyz'. Known: tiny."
