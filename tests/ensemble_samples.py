"""Members of an ensemble for tests, good and bad."""

from __future__ import annotations

from score_samples import noisy


def some_members(truth, *, digits=None):
    """Four members, good and bad, with the images in different orders."""
    made = {
        "a": noisy(truth, 1, digits=digits),
        "b": noisy(truth, 2, jitter=0.07, digits=digits),
        "c": noisy(truth, 3, keep=0.5, digits=digits),
        "d": noisy(truth, 4, extra=15, jitter=0.2, digits=digits),
    }
    return made | {"c": made["c"].select_images(truth.image_ids[::-1])}
