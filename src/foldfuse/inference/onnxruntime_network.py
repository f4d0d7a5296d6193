"""A detector's network in ONNX Runtime: float32 on a CPU, a batch at a time."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldfuse.detections import Array
from foldfuse.inference.onnx_export import PACKAGES, decoding_of, for_export, write_onnx
from foldfuse.inference.onnx_library_decoding import decoded_network
from foldfuse.inference.onnx_predictor import network_inputs

RUNTIME = "onnxruntime"


def is_installed() -> bool:
    """Whether networks can be written as ONNX and run."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def version() -> str:
    """The installed version of ONNX Runtime."""
    return importlib.metadata.version(RUNTIME)


class OnnxRuntimeNetwork:
    """A network as an ONNX file, for images of any size.

    Args:
        content: the file's bytes.
        threads: threads to compute with.
    """

    def __init__(self, content: bytes, *, threads: int) -> None:
        import onnxruntime  # an optional extra

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about constants that it does not fold
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._content = content
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    @staticmethod
    def convert(net: Any, canvas: tuple[int, int], *, threads: int) -> OnnxRuntimeNetwork:
        """The network of a detector in eval mode on the CPU, checked at sizes near (height, width) `canvas` or larger.

        Raises:
            InputError: the network cannot be written as ONNX.
            RuntimeError: it can be written for images of one size alone.
        """
        own = copy.deepcopy(net)  # its memory format is changed
        size = max(min(canvas), decoded_network(for_export(own), decoding_of(own)).example_size)
        with tempfile.TemporaryDirectory(prefix="foldfuse-onnx-") as temporary:
            path = Path(temporary) / "network.onnx"
            takes = write_onnx(own, path, image_size=size, metadata={})
            if not takes.startswith("any"):
                raise RuntimeError(f"ONNX takes {takes}")
            return OnnxRuntimeNetwork.load(path, threads=threads)

    @staticmethod
    def load(path: Path, *, threads: int) -> OnnxRuntimeNetwork:
        """The network in a file that `save` wrote. Raises an exception of the runtime for a file that is broken."""
        return OnnxRuntimeNetwork(path.read_bytes(), threads=threads)

    def save(self, path: Path) -> None:
        """Write the ONNX file."""
        path.write_bytes(self._content)

    def __call__(self, images: Array) -> list[Tensor]:
        """(B, H, W, 3) uint8 -> the tensors of the raw output, with the batch first."""
        name: Any = self._session.get_inputs()[0].name
        return [torch.from_numpy(array) for array in self._session.run(None, {name: network_inputs(images)})]
