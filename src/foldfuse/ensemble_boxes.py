"""The public name of the drop-in for the package ensemble-boxes; see `foldfuse.fusion.ensemble_boxes`."""

from foldfuse.fusion.ensemble_boxes import *  # noqa: F403
