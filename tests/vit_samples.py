"""Checkpoints as the ViT paper publishes them, made from a model of ours."""

import numpy as np

from foldfuse.models.backbones.vit import ViT


def jax_checkpoint(model: ViT) -> dict[str, np.ndarray]:
    """The arrays of a ViT under the names, and in the shapes, of the paper's checkpoints."""
    state = {key: t.numpy() for key, t in model.state_dict().items()}
    heads, width = model.blocks[0].attn.heads, model.width
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        there, here = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = there + "MultiHeadDotProductAttention_1/"
        for j, name in enumerate(("query", "key", "value")):
            rows = slice(j * width, (j + 1) * width)
            kernel = state[here + "attn.qkv.weight"][rows].T
            arrays[f"{attention}{name}/kernel"] = kernel.reshape(width, heads, -1)
            arrays[f"{attention}{name}/bias"] = state[here + "attn.qkv.bias"][rows].reshape(heads, -1)
        arrays[f"{attention}out/kernel"] = state[here + "attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}out/bias"] = state[here + "attn.proj.bias"]
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{there}{theirs}/scale"] = state[f"{here}{ours}.weight"]
            arrays[f"{there}{theirs}/bias"] = state[f"{here}{ours}.bias"]
        for theirs, ours in (("Dense_0", "mlp.fc1"), ("Dense_1", "mlp.fc2")):
            arrays[f"{there}MlpBlock_3/{theirs}/kernel"] = state[f"{here}{ours}.weight"].T
            arrays[f"{there}MlpBlock_3/{theirs}/bias"] = state[f"{here}{ours}.bias"]
    return arrays
