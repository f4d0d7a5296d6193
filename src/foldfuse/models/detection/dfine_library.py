"""D-FINE N, S and M as the package transformers has them: the sizes, and a network of a size.

Widths and depths of N, S and M are those of the authors' configurations (github.com/Peterande/D-FINE, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foldfuse.models.detection.detr import PRIOR, QUERIES, require_transformers


@dataclass(frozen=True)
class Size:
    """One size of D-FINE.

    Attributes:
        backbone: what the summary calls the HGNetV2 backbone.
        stem: channels of the stem: input, inner, output.
        stages: output channels of the four stages; the inner channels are those of `inner`.
        inner: inner channels of the four stages.
        blocks: blocks of the four stages.
        layers: convolutions of a block.
        strides: of the levels that the decoder looks at.
        width: channels of encoder and decoder.
        ffn: channels of their MLPs.
        points: sampling points of a query's head at each level.
        decoder_layers: L.
        expansion, depth: of the encoder's blocks, as shares of D-FINE-L's.
    """

    backbone: str
    stem: tuple[int, int, int]
    stages: tuple[int, int, int, int]
    inner: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]
    layers: int
    strides: tuple[int, ...]
    width: int
    ffn: int
    points: tuple[int, ...]
    decoder_layers: int
    expansion: float
    depth: float


_B0 = ("HGNetV2-B0", (3, 16, 16), (64, 256, 512, 1024), (16, 32, 64, 128), (1, 1, 2, 1), 3)
_B2 = ("HGNetV2-B2", (3, 24, 32), (96, 384, 768, 1536), (32, 64, 128, 256), (1, 1, 3, 1), 4)
SIZES: Mapping[str, Size] = {
    #                    strides      width ffn   points     L  expansion depth
    "dfine_n": Size(*_B0, (16, 32), 128, 512, (6, 6), 3, 0.34, 0.5),
    "dfine_s": Size(*_B0, (8, 16, 32), 256, 1024, (3, 6, 3), 3, 0.5, 0.34),
    "dfine_m": Size(*_B2, (8, 16, 32), 256, 1024, (3, 6, 3), 4, 1.0, 0.67),
}


def new_library_model(size: Size, num_classes: int) -> Any:
    """transformers' D-FINE of this size with random weights.

    Raises:
        InputError: transformers is not installed.
    """
    require_transformers("D-FINE")
    from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

    backbone = HGNetV2Config(
        hidden_sizes=list(size.stages),
        embedding_size=size.stem[-1],
        stem_channels=list(size.stem),
        stage_in_channels=[size.stem[-1], *size.stages[:-1]],
        stage_mid_channels=list(size.inner),
        stage_out_channels=list(size.stages),
        stage_num_blocks=list(size.blocks),
        stage_downsample=[False, True, True, True],
        stage_light_block=[False, False, True, True],
        stage_kernel_size=[3, 3, 5, 5],
        stage_numb_of_layers=[size.layers] * 4,
        use_learnable_affine_block=True,
        out_indices=list(range(5 - len(size.strides), 5)),
    )
    levels = len(size.strides)
    config = DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        num_labels=num_classes,
        initializer_bias_prior_prob=PRIOR,
        num_denoising=0,
        num_queries=QUERIES,
        num_feature_levels=levels,
        feat_strides=list(size.strides),
        encoder_in_channels=list(size.stages[-levels:]),
        encoder_hidden_dim=size.width,
        encoder_ffn_dim=size.ffn,
        encode_proj_layers=[levels - 1],
        d_model=size.width,
        decoder_in_channels=[size.width] * levels,
        decoder_ffn_dim=size.ffn,
        decoder_n_points=list(size.points),
        decoder_layers=size.decoder_layers,
        hidden_expansion=size.expansion,
        depth_mult=size.depth,
        tie_word_embeddings=False,  # each decoder layer has a class and a box head of its own
    )
    return DFineForObjectDetection(config)
