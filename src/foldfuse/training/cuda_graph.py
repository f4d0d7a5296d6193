"""A network as a CUDA graph: its kernels are recorded once, and repeated without the host's work of launching each.

A small network on a fast card waits for the host: of the 48 ms of a step of lite0_fpn (8 images of 640 px) on an NVIDIA H200, 27
were kernels. A graph is of one size of batch. PyTorch records forward and backward pass (`torch.cuda.make_graphed_callables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from foldfuse.training.snapshot import Snapshot

_TENSOR = object()  # stands for a tensor among the outputs


class GraphedNetwork:
    """A network whose forward and backward pass are recorded at the first batch, and repeated for the next ones.

    Args:
        model: (B, 3, H, W) -> raw: tensors in tuples, lists and dicts, beside numbers. In the training mode that it keeps.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._flat: _Flat | None = None
        self._recorded: Any = None

    def __call__(self, images: Tensor) -> Any:
        """Raw outputs, which hold until the next call.

        Args:
            images: (B, 3, H, W), of the same size at each call.

        Raises:
            RuntimeError: the network cannot be recorded, such as one that waits for the card within.
        """
        if self._recorded is None:
            self.record(images)
        assert self._flat is not None
        return self._flat.joined(self._recorded(images))

    def record(self, images: Tensor) -> None:
        """Records the network, while no other thread uses the card; buffers and torch's random state stay as they are.

        Raises:
            RuntimeError: as above.
        """
        before = Snapshot(self._model)
        flat = _Flat(self._model)
        # PyTorch records outside of autocast alone; `flat` has its own, which casts the weights anew in each step.
        with torch.autocast(images.device.type, enabled=False):
            recorded = torch.cuda.make_graphed_callables(flat, (images.detach().clone(),), allow_unused_input=True)
        before.restore()
        self._flat, self._recorded = flat, recorded


class _Flat(nn.Module):
    """The tensors of a network's raw outputs as a tuple; `joined` puts them back in their places."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        device = next(model.parameters()).device.type
        self._device, self._half = device, torch.is_autocast_enabled(device)
        self._dtype = torch.get_autocast_dtype(device)
        self._spec: TreeSpec | None = None
        self._leaves: list[Any] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the tensors among the raw outputs."""
        with torch.autocast(self._device, self._dtype, enabled=self._half, cache_enabled=False):
            leaves, self._spec = tree_flatten(self.model(images))
        self._leaves = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def joined(self, tensors: Sequence[Tensor]) -> Any:
        """The raw outputs with these tensors."""
        assert self._spec is not None
        rest = iter(tensors)
        return tree_unflatten([next(rest) if leaf is _TENSOR else leaf for leaf in self._leaves], self._spec)
