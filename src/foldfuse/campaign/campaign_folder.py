"""The folder of a campaign, as Python and notebooks see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldfuse.display import note_html, table_html, value_html
from foldfuse.errors import InputError
from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.storage import notes


@dataclass(frozen=True)
class Campaign:
    """The folder of a campaign; `foldfuse.load` takes it as a predictor."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    def __fspath__(self) -> str:
        """The folder: a Campaign can be given wherever a path is expected."""
        return str(self.folder)

    @property
    def submission(self) -> Path:
        """The submission: submission.csv."""
        return self.folder / "submission.csv"

    @property
    def submission_json(self) -> Path:
        """The submission as COCO results."""
        return self.folder / "submission.json"

    @property
    def report(self) -> Path:
        """The HTML page on the campaign."""
        return self.folder / "report.html"

    @property
    def score(self) -> float | None:
        """The out-of-fold score of the submission by the campaign's metric; None before the first submission.

        Raises:
            InputError: the folder holds no campaign, or its content cannot be read.
        """
        scores = notes.submission_scores(self._facts)
        return scores[-1] if scores else None

    @property
    def metric(self) -> str:
        """The metric of the score. Raises InputError as `score` does."""
        return str((self._facts.get("request") or {}).get("metric", "ap50"))

    @property
    def state(self) -> str:
        """running, finished, interrupted or failed. Raises InputError as `score` does."""
        return str(self._facts.get("state", "unknown"))

    @property
    def _facts(self) -> dict[str, Any]:
        return notes.read_snapshot(self.folder)

    def __repr__(self) -> str:
        return f"Campaign({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the score, and where the submission and the report are."""
        try:
            score, metric, state = self.score, self.metric, self.state
        except InputError as error:
            return value_html(repr(self), note_html(str(error)))
        rows: list[tuple[str, object]] = [("state", state), (f"out-of-fold {metric_label(metric)}", score)]
        rows += [(path.name, str(path)) for path in (self.submission, self.submission_json, self.report)]
        return value_html(repr(self), table_html(["", ""], [(name, _shown(value)) for name, value in rows]))


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "none yet" if value is None else str(value)
