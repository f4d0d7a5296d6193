"""Loads what a card needs for its first training step and its first prediction, while the campaign reads and checks its data.

In a new process CUDA's libraries and kernels are loaded at their first use: on an NVIDIA H200 that first training step took
19 s. The plan's clock would count them as training.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from foldfuse.campaign.compiling import tiny_dataset
from foldfuse.system.device import card_names, choose_device, current_device, release_memory, synchronize

SIDE = 128  # pixels, of the images, which are empty
CLOSE_SECONDS = 30.0

log = logging.getLogger(__name__)


class CardWarmUp:
    """A training step and a prediction of a small network on a card, in a thread; nothing where networks run elsewhere.

    Args:
        device: as `--device` takes it.

    Raises:
        InputError: there is no such device.
    """

    def __init__(self, device: str) -> None:
        self._thread: threading.Thread | None = None
        if card_names(device):  # does not load torch where there is no driver of a card
            self._thread = threading.Thread(target=_quietly, args=(device,), name="card warm-up", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Returns when it is done."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Waits for the thread, which would else use the card while the process ends."""
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)


def warm_up(device: str) -> None:
    """Makes a training step and a prediction of a small network with random weights on a device."""
    import numpy as np
    import torch

    from foldfuse.inference.detector import detect
    from foldfuse.models import make_detector
    from foldfuse.models.cpu.fold_batch_norm import fold_batch_norms
    from foldfuse.training.precision import default_config

    target = torch.device(device)
    targets: list[Any] = [sample.annotations for sample in tiny_dataset().samples]
    config = default_config(target)
    with current_device(device):
        model = make_detector("lite0_fpn", 2, pretrained=False).to(target, memory_format=config.memory_format)
        model.train()
        images = torch.zeros((len(targets), 3, SIDE, SIDE), dtype=torch.uint8)
        with config.autocast(target):
            raw = model(config.network_input(images, target))
        loss: Any = sum(model.loss(raw, targets).values())
        loss.backward()
        folded = fold_batch_norms(model).to(memory_format=torch.channels_last)
        detect(folded, np.zeros((len(targets), SIDE, SIDE, 3), np.uint8))
        synchronize(device)
    del model, raw, loss, folded
    release_memory(device)


def _quietly(device: str) -> None:
    try:
        warm_up(choose_device(device))
    except Exception as error:  # the training, which needs the card too, says it in its own sentence
        log.debug("The card was not warmed up: %s", error)
