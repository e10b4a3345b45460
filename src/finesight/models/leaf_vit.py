"""The small vision transformer over overlapping patches of S11 (report 004)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, WIDTH, HEADS, HEAD_WIDTH = 100, 64, 4, 64
PATCHES = {64: (8, 6), 256: (32, 24)}  # image size -> (patch, stride), 10 x 10 patches either way


class LeafViT(nn.Module):
    """Overlapping patches to 100 tokens of 64, one encoder block, flatten, 2048, 1024, classes (report 004).

    images: float32 [B, 3, S, S] with S = 64 (patch 8, stride 6; 15,319,754 parameters for 10 classes) or
    256 (patch 32, stride 24; 15,504,074). Returns logits [B, classes]. Raises `ValueError` for another size.
    """

    def __init__(
        self, image_size: int = 64, classes: int = 10, dropout: float = 0.5, encoder_dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.backbone = LeafBackbone(image_size, dropout, encoder_dropout)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(1024, classes))
        self.apply(_initialise)

    def tokens(self, images: Tensor) -> Tensor:
        """The patch-and-position layer: [B, 3, S, S] -> [B, 100, 64]."""
        return self.backbone.tokens(images)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 1024]."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, classes]."""
        return self.head(self.features(images))


class LeafBackbone(nn.Module):
    """All of `LeafViT` but its last layer: [B, 3, S, S] -> [B, 1024]."""

    def __init__(self, image_size: int, dropout: float, encoder_dropout: float) -> None:
        super().__init__()
        if image_size not in PATCHES:
            raise ValueError(f"image_size {image_size}: LeafViT is defined for {' and '.join(map(str, PATCHES))}")
        patch, stride = PATCHES[image_size]
        self.patches = nn.Conv2d(3, WIDTH, patch, stride)
        self.position = nn.Parameter(torch.empty(TOKENS, WIDTH).uniform_(-0.05, 0.05))
        self.block = EncoderBlock(encoder_dropout)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.drop = nn.Dropout(dropout)
        self.wide = nn.Linear(TOKENS * WIDTH, 2048)
        self.narrow = nn.Linear(2048, 1024)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 100, 64], row by row from the top left."""
        return self.patches(images).flatten(2).transpose(1, 2) + self.position

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 1024]."""
        tokens = self.norm(self.block(self.tokens(images)))  # [B, 100, 64]
        flat = self.drop(tokens.flatten(1))  # [B, 6400]
        return F.gelu(self.narrow(self.drop(F.gelu(self.wide(flat)))))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP on [B, N, 64]; 83,200 parameters, the attention 4 x 64 = 256 wide inside."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.query = nn.Linear(WIDTH, HEADS * HEAD_WIDTH)
        self.key = nn.Linear(WIDTH, HEADS * HEAD_WIDTH)
        self.value = nn.Linear(WIDTH, HEADS * HEAD_WIDTH)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, 64] -> [B, N, 64]."""
        tokens = tokens + self._attend(self.norm1(tokens))
        hidden = self.drop(F.gelu(self.up(self.norm2(tokens))))
        return tokens + self.drop(F.gelu(self.down(hidden)))

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        query, key, value = (
            layer(tokens).view(batch, count, HEADS, HEAD_WIDTH).transpose(1, 2)  # [B, 4, N, 64]
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.drop.p if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _initialise(module: nn.Module) -> None:
    # The report's model is Keras': Glorot uniform weights and zero biases.
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
