"""A detector's network in OpenVINO: float32 on a CPU, one image in each of its streams at a time.

The package reports every `import openvino` and every conversion by its own converter to its makers. Neither happens here: the
module that reports is hidden while the package is imported, so that the package takes its own empty stand-in; and networks are
converted by the front end for PyTorch, which reports nothing.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foldfuse.detections import Array
from foldfuse.inference.onnx_export import for_export, named_tensors

TELEMETRY = "openvino_telemetry"


def is_installed() -> bool:
    """Whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def version() -> str:
    """The installed version of OpenVINO."""
    return importlib.metadata.version("openvino")


def import_openvino() -> Any:
    """The package `openvino`, imported without its telemetry."""
    if "openvino" not in sys.modules:
        known = sys.modules.get(TELEMETRY)
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it fails
        try:
            import openvino  # noqa: F401  # an optional extra
        finally:
            del sys.modules[TELEMETRY]
            if known is not None:
                sys.modules[TELEMETRY] = known
    return sys.modules["openvino"]


class _BatchOutputs(nn.Module):
    """A network whose outputs are the tensors in its raw output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, H, W) -> the tensors with the batch first; a trace makes tensors without sides of the sizes of levels."""
        return tuple(tensor for _, tensor in named_tensors(self.net(images)) if tensor.ndim)


class OpenVINONetwork:
    """A converted network, compiled for each size of its input when that size first comes.

    Args:
        converted: the network as `openvino.Model`, for any sizes that it allows.
        threads: threads to compute with; as many images are computed at a time.
    """

    def __init__(self, converted: Any, *, threads: int) -> None:
        self._converted, self._threads = converted, threads
        self._queues: dict[tuple[int, int], Any] = {}

    @staticmethod
    def convert(net: Any, canvas: tuple[int, int], *, threads: int) -> OpenVINONetwork:
        """The network of a detector in eval mode on the CPU, converted from a trace at an input of (height, width) `canvas`.

        Raises:
            Exception: the network cannot be traced, or has an operation that OpenVINO lacks.
        """
        import_openvino()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        flat = _BatchOutputs(for_export(copy.deepcopy(net))).eval().requires_grad_(False)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of sizes that the trace fixes: outputs are compared for each size
            decoder = TorchScriptPythonDecoder(
                flat, example_input=torch.zeros(1, 3, *canvas), trace_kwargs={"check_trace": False}
            )
            front_end = FrontEndManager().load_by_framework("pytorch")
            converted = front_end.convert(front_end.load(decoder))
        return OpenVINONetwork(converted, threads=threads)

    @staticmethod
    def load(path: Path, *, threads: int) -> OpenVINONetwork:
        """The network in a file that `save` wrote. Raises RuntimeError for a file that is broken."""
        return OpenVINONetwork(import_openvino().Core().read_model(path), threads=threads)

    def save(self, path: Path) -> None:
        """Write network.xml and, beside it, the weights in float32."""
        import_openvino().save_model(self._converted, path, compress_to_fp16=False)

    def __call__(self, images: Array) -> list[Tensor]:
        """(B, H, W, 3) uint8 -> the tensors of the raw output, with the batch first."""
        canvas = (images.shape[1], images.shape[2])
        if canvas not in self._queues:
            self._queues[canvas] = self._compiled(canvas)
        queue, found = self._queues[canvas], [None] * len(images)

        def keep(request: Any, index: int) -> None:
            found[index] = [np.array(output.data) for output in request.output_tensors]  # type: ignore[call-overload]

        queue.set_callback(keep)
        for i in range(len(images)):
            queue.start_async({0: images[i : i + 1]}, i)
        queue.wait_all()
        return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True)]

    def _compiled(self, canvas: tuple[int, int]) -> Any:
        openvino = import_openvino()
        model = self._converted.clone()
        model.reshape({model.inputs[0]: openvino.PartialShape([1, 3, *canvas])})
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
        config = {
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": self._threads,
        }
        return openvino.AsyncInferQueue(openvino.Core().compile_model(steps.build(), "CPU", config), self._threads)
