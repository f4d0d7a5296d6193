"""What runs a converted network on a CPU in PyTorch's place: OpenVINO and ONNX Runtime, each an extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from foldfuse.inference import onnxruntime_network, openvino_network


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        name: the engine's name.
        title: the runtime's name in sentences.
        extra: the extra of this package that installs it.
        module: has `is_installed` and `version`.
        network: the class of a converted network: `convert`, `load`, `save`, and a call with images.
        file: name of the file of a converted network.
        speedup: expected, over PyTorch.
        convert_seconds: of importing, converting and comparing.
        load_seconds: of a network that was converted before.
    """

    name: str
    title: str
    extra: str
    module: ModuleType
    network: Any
    file: str
    speedup: float
    convert_seconds: float
    load_seconds: float

    def is_installed(self) -> bool:
        """Whether it can be used here."""
        return bool(self.module.is_installed())

    def version(self) -> str:
        """The installed version."""
        return str(self.module.version())

    def saved_seconds(self, seconds: float) -> float:
        """Seconds that it saves of those that PyTorch would take, without those of converting."""
        return seconds * (1 - 1 / self.speedup)


# In the order in which they are tried.
RUNTIMES: Mapping[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "openvino",
            "OpenVINO",
            "openvino",
            openvino_network,
            openvino_network.OpenVINONetwork,
            "network.xml",
            speedup=1.8,
            convert_seconds=10.0,
            load_seconds=1.5,
        ),
        Runtime(
            "onnxruntime",
            "ONNX Runtime",
            "export",
            onnxruntime_network,
            onnxruntime_network.OnnxRuntimeNetwork,
            "network.onnx",
            speedup=1.1,
            convert_seconds=40.0,
            load_seconds=1.0,
        ),
    )
}


def installed_runtimes() -> list[Runtime]:
    """The runtimes that can be used here, in the order in which they are tried."""
    return [runtime for runtime in RUNTIMES.values() if runtime.is_installed()]
