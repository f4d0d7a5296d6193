"""Layers that compute better on a CUDA card than PyTorch's own choice."""
