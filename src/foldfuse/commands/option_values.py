"""Converts and checks the values of options, as the types of `options` name them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cyclopts import Token

from foldfuse.errors import InputError, shown
from foldfuse.recipes import AUTO, AUTO_WORD
from foldfuse.system.durations import duration_option, parse_duration

MAX_COUNT = 10**9  # of steps, boxes, images
MAX_SIZE = 4096  # px of an image, images of a batch
MAX_CLASSES = 100_000
MAX_SEED = 2**32 - 1  # numpy's
MAX_FOLDS = 1000
MAX_WEIGHT = 1e6
BEST_WORDS = ("best", "best-by-class")  # of a score threshold; see `evaluation.thresholds`


def _split_values(tokens: Sequence[Token]) -> list[str]:
    """The values of an option that is given several times, with commas between values, or both."""
    values = [text.strip() for token in tokens for text in token.value.split(",")]
    if not all(values):
        raise InputError("a comma has no value before or after it.")
    return values


def _numbers(kind: type[int] | type[float], values: Sequence[str]) -> tuple[Any, ...]:
    try:
        return tuple(kind(value) for value in values)
    except ValueError:
        name = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{shown(','.join(values))} are not {name} with commas between them.") from None


def to_names(type_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(_split_values(tokens))


def to_counts(type_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    counts: tuple[int, ...] = _numbers(int, _split_values(tokens))
    for count in counts:
        check_size(int, count)
    return counts


def to_image_size(type_: Any, tokens: Sequence[Token]) -> int:
    text = tokens[-1].value.strip()
    if text == AUTO_WORD:
        return AUTO
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise InputError(f"{shown(text)} is neither a whole number nor {AUTO_WORD}.")
    check_size(int, int(text))
    return int(text)


def to_auto_or_image_sizes(type_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    values = _split_values(tokens)
    if AUTO_WORD not in values:
        return to_counts(type_, tokens)
    if len(values) > 1:
        raise InputError(f"{shown(','.join(values))}: {AUTO_WORD} stands alone. Give it, or the sizes in pixels.")
    return (AUTO,)


def to_weights(type_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    weights: tuple[float, ...] = _numbers(float, _split_values(tokens))
    for weight in weights:
        if not 0 <= weight <= MAX_WEIGHT:
            raise InputError(f"the weight {weight:g} is not in 0..{MAX_WEIGHT:g}.")
    return weights


def to_seconds(type_: Any, tokens: Sequence[Token]) -> float:
    return parse_duration(tokens[-1].value)


def to_train_folds(type_: Any, tokens: Sequence[Token]) -> int | Literal["auto"]:
    text = tokens[-1].value
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise InputError(f"--train-folds is auto or a number of folds, 1 or more; got {text!r}.")
    return int(text)


def to_folds(type_: Any, tokens: Sequence[Token]) -> int | Path:
    text = tokens[-1].value
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return Path(text)
    check_num_folds(int, int(text))
    return int(text)


def check_num_folds(type_: Any, num_folds: int | None) -> None:
    if num_folds is not None and num_folds < 2:
        raise InputError(f"{num_folds} folds are too few; expected 2 or more.")
    if num_folds is not None and num_folds > MAX_FOLDS:
        raise InputError(f"{num_folds} folds are too many; expected {MAX_FOLDS} or fewer.")


def to_changes(type_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    for token in tokens:
        if not re.match(r"\w+=", token.value):
            raise InputError(f"{shown(token.value)} is no change to a recipe; write key=value, such as lr=3e-4.")
    return tuple(token.value for token in tokens)


def to_device(type_: Any, tokens: Sequence[Token]) -> str:
    device = tokens[-1].value
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?|mps", device):
        raise InputError(f"no device is called {shown(device)}; expected auto, cpu, cuda, cuda:N or mps.")
    return device


def to_threshold(type_: Any, tokens: Sequence[Token]) -> float | str:
    text = tokens[-1].value.strip()
    if text in BEST_WORDS:
        return text
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{shown(text)} is neither a number in 0..1 nor {' or '.join(BEST_WORDS)}.") from None
    check_fraction(float, value)
    return value


def duration_text(seconds: float | None) -> str | None:
    """Seconds as text that an option accepts: "90s", "10m", "1h30m"; None for None."""
    return None if seconds is None else duration_option(seconds)


def check_fraction(type_: Any, value: float | None) -> None:
    """Raises InputError for a number that is not in 0..1."""
    if value is not None and not 0 <= value <= 1:  # NaN too
        raise InputError(f"{value:g} is not in 0..1.")


def check_finite(type_: Any, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise InputError(f"{value:g} is not a finite number.")


def check_count(type_: Any, value: int | None) -> None:
    check_range(value, 1, MAX_COUNT)


def check_num_classes(type_: Any, value: int) -> None:
    check_range(value, 1, MAX_CLASSES)


def check_size(type_: Any, value: int | None) -> None:
    check_range(value, 1, MAX_SIZE)


def check_seed(type_: Any, value: int | None) -> None:
    check_range(value, 0, MAX_SEED)


def check_range(value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise InputError(f"{shown(value)} is not in {least}..{most}.")
