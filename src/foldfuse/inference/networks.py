"""Opens the network of a run's folder: in PyTorch, or in ONNX Runtime where the folder holds an ONNX file, without torch."""

from __future__ import annotations

from foldfuse.inference.network_predictor import NetworkPredictor
from foldfuse.inference.onnx_predictor import load_onnx
from foldfuse.storage.run import Run

NETWORK = "network.onnx"  # in the folder of a run, in place of its weights


def load_network(run: Run, *, device: str = "auto", engine: str = "auto") -> NetworkPredictor:
    """The predictor of a detector's run.

    Args:
        run: the run.
        device, engine: see `predictor.load`.

    Raises:
        InputError: the folder holds no trained run, or that of a classifier; or there is no such device or engine.
    """
    if has_onnx(run):
        return load_onnx(run.folder / NETWORK, device=device, run=run)
    from foldfuse.inference.run_predictor import load_run

    return load_run(run, device=device, engine=engine)


def has_onnx(run: Run) -> bool:
    """Whether the folder of a run holds its network as an ONNX file."""
    return (run.folder / NETWORK).is_file()
