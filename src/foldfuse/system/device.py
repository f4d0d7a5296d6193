"""The one place that decides which device networks run on."""

from __future__ import annotations

from foldfuse.errors import InputError


def choose_device(name: str = "auto") -> str:
    """The device called `name`: "cpu", "cuda", "cuda:N" or "mps"; for "auto", "cuda" where torch finds a card, else "cpu".

    Raises:
        InputError: there is no such device, or torch cannot use the device here.
    """
    import torch  # an ONNX file predicts without it

    kind, _, index = name.partition(":")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if cards else "cpu"
    if name == "cpu":
        return name
    if name == "mps":
        if torch.backends.mps.is_available():
            return name
        raise InputError("--device mps: torch finds no Apple GPU here. Take --device auto or --device cpu.")
    if kind != "cuda" or (index != "" and not index.isdecimal()):
        raise InputError(f"--device {name}: there is no such device. Expected auto, cpu, cuda, cuda:N or mps.")
    if int(index or 0) >= cards:
        found = f"{cards} CUDA device{'s' if cards > 1 else ''}" if cards else "no CUDA device"
        raise InputError(
            f"--device {name}: torch {torch.__version__} finds {found} here. Take --device auto or --device cpu."
        )
    return name
