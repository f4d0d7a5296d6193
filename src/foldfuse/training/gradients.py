"""The gradients of a step: forward pass, loss and backward pass, over several processes and in parts where memory is short."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foldfuse.recipes import ClassifierRecipe, Recipe
from foldfuse.system.device import is_out_of_memory
from foldfuse.system.processes import World
from foldfuse.training.distributed import distributed_network, loss_terms, sum_over_processes
from foldfuse.training.memory import InParts, NotEnoughMemory, half_micro_batch, num_parts
from foldfuse.training.precision import ComputeConfig
from foldfuse.training.readback import Readback
from foldfuse.training.snapshot import Snapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step and its terms, on their way to the host."""

    names: tuple[str, ...]
    values: Readback

    def read(self) -> dict[str, float]:
        """{"loss": their sum, name: term}, of the whole batch."""
        return dict(zip(("loss", *self.names), self.values.read(), strict=True))


class Gradients:
    """Computes the gradients of the steps of a training.

    A step that does not fit in memory is repeated in parts of half as many images, and so are the steps after it.

    Args:
        model: a model with the detector contract, its stages frozen.
        recipe: its recipe.
        config: the settings of the forward pass.
        scaler: scales the loss.
        world: the processes that share each batch.
        micro_batch: images that this process computes at a time; 0 for all of its share.
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe | ClassifierRecipe,
        config: ComputeConfig,
        scaler: torch.amp.GradScaler,
        *,
        world: World,
        micro_batch: int,
    ) -> None:
        self._model, self._recipe, self._config, self._scaler, self._world = model, recipe, config, scaler, world
        graphed = config.graphed and world.size == 1
        self._parts = InParts(model, micro_batch, world, compiled=config.compiled, graphed=graphed)
        self._network = distributed_network(self._parts, world)
        self._before, self._after = Snapshot(model), Snapshot(model)

    @property
    def micro_batch(self) -> int:
        """Images that are computed at a time; 0 for all of this process's share."""
        return self._parts.micro_batch

    def record(self, images: Tensor) -> None:
        """Records the CUDA graph of batches like `images` where the configuration asks for one; see `InParts.record`."""
        with self._config.autocast(images.device):
            self._parts.record(images)

    def compute(self, images: Tensor, targets: Sequence[Any]) -> StepLoss:
        """Gives every trained parameter its gradient, scaled by the scaler; the gradients of an earlier step are dropped.

        Args:
            images: (b, 3, H, W) in 0..1, this process's share of the batch.
            targets: of these b images.

        Raises:
            NotEnoughMemory: not even the smallest part of the batch fits in memory.
        """
        self._before.take()
        while True:
            try:
                return self._compute(images, targets)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._halve(len(images))  # not within `except`, where the error references the failed step and its memory
            self._before.restore()

    def undo_forward(self) -> None:
        """Give the model's buffers, such as the statistics of batch norms, the values from before the last step."""
        self._before.restore_buffers()

    def _compute(self, images: Tensor, targets: Sequence[Any]) -> StepLoss:
        self._parts.zero_grad(set_to_none=True)
        with self._config.autocast(images.device):
            raw = self._network(images)
        terms = loss_terms(self._model, raw, targets, self._world)
        loss: Any = sum(terms.values())
        values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        step_loss = StepLoss(tuple(terms), Readback(sum_over_processes(values, self._world)))
        in_parts = num_parts(len(images), self.micro_batch) > 1
        if in_parts:
            self._after.take()
        # The processes' gradients are averaged, and are to be summed.
        self._scaler.scale(loss * self._world.size if self._world.size > 1 else loss).backward()
        if in_parts:
            self._after.restore_buffers()  # the parts were computed a second time, which moved the statistics again
        return step_loss

    def _halve(self, batch_size: int) -> None:
        """Take half the micro-batch.

        Raises:
            NotEnoughMemory: it cannot be halved, or the other processes would have to as well.
        """
        size, world = self._recipe.image_size, self._world
        smaller = half_micro_batch(batch_size, self.micro_batch, image_size=size)
        now = min(self.micro_batch or batch_size, batch_size)
        if smaller is None:
            raise NotEnoughMemory(
                f"{_images(now)} at {size} px does not fit in memory, and a part of a batch cannot be smaller. "
                "Take a smaller image_size, or a smaller network."
            )
        if world.size > 1:
            raise NotEnoughMemory(
                f"batches of {now} images at {size} px do not fit in the memory of process {world.rank}. "
                f"Take --set micro_batch={smaller}."
            )
        self._parts.micro_batch = smaller
        if self._before.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            f"{_images(now)} at {size} px {'do' if now > 1 else 'does'} not fit in memory. A step computes {smaller} at a "
            f"time from now on, and takes longer; its loss is that of the whole batch of {self._recipe.batch_size}, but batch "
            "norms see fewer images."
        )


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"
