"""The HTML templates of the pages, with their filters, and the versions that a page names."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache

import jinja2
from markupsafe import Markup, escape

from foldfuse.evaluation.custom_metric import metric_label
from foldfuse.reporting.charts import PALETTE_SIZE, duration_text

_PACKAGES = ("foldfuse", "torch", "torchvision", "timm", "numpy", "numba", "hotcoco", "scikit-learn", "pillow")


@cache
def template(name: str) -> jinja2.Template:
    """A page of `templates/`, with the filters that the templates use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("foldfuse.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = lambda value: "–" if value is None else duration_text(value)
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["change"] = lambda value: "–" if value is None else f"{value:+.3f}"
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,.0f}"
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.0f} %"
    environment.filters["moment"] = moment_text
    environment.filters["with_id"] = lambda svg, key: Markup(str(svg).replace("<svg ", f'<svg id="{escape(key)}" ', 1))
    environment.filters["words"] = _words
    environment.filters["metric"] = metric_label
    environment.globals["palette_size"] = PALETTE_SIZE
    return environment.get_template(name)


def moment_text(text: str) -> str:
    """An ISO moment to the minute, in UTC if it has a time zone; any other text unchanged."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else f"{moment:%Y-%m-%d %H:%M}"


def _words(value: object) -> str:
    """A JSON value as text for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def installed_versions() -> list[tuple[str, str]]:
    """(name, version) of Python and of the packages that decide the numbers, as installed where the page is written."""
    versions = [("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
