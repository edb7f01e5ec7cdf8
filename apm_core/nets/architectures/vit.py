"""The small vision transformer (Dosovitskiy et al., ICLR 2021) of APM (Chen et al., 2023).

Patches of 4 pixels at every resolution, 3 pre-norm blocks of width 512, 4 heads of width 64.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apm_core.nets.base import Shape, multiple_of

PATCH, WIDTH, BLOCKS, HEADS, HEAD_WIDTH, DROPOUT = 4, 512, 3, 4, 64, 0.1


class Attention(nn.Module):
    """Pre-norm self-attention on tokens (N, T, WIDTH); dropout on its output only."""

    def __init__(self) -> None:
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * inner, bias=False)
        self.project = nn.Linear(inner, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, WIDTH) to their update (N, T, WIDTH)."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, HEAD_WIDTH))  # (N, T, 3, H, W)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (N, H, T, W)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.dropout(self.project(y.transpose(1, 2).flatten(2)))  # (N, T, H * W) inside


class Block(nn.Module):
    """Attention, then a two-layer perceptron of the same width; a residual around each."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, WIDTH),
            nn.Dropout(DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, WIDTH) to tokens (N, T, WIDTH)."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class ViT(nn.Module):
    """Reads any resolution that is a multiple of 4, as (S/4)^2 patches and one class token.

    Class token and position table start at N(0, 1), not at the usual 0.02, as in the APM networks.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        patches = (shape.resolution // PATCH) ** 2
        self.patch_embedding = nn.Linear(PATCH * PATCH * shape.channels, WIDTH)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, WIDTH))
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.classifier = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, shape.classes))

    @staticmethod
    def why_not(shape: Shape) -> str | None:
        """Why `shape` does not fit, or None."""
        return multiple_of(PATCH, shape.resolution)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, S, S) to logits (N, classes)."""
        x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (N, C, rows, p1, columns, p2)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (N, rows * columns, p1 * p2 * C)
        x = self.patch_embedding(x)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)  # (N, patches + 1, W)
        x = self.blocks(self.dropout(x + self.positions))
        return self.classifier(x[:, 0])


NETWORK = ViT
