"""The five architectures in torch. Each maps a batch of preprocessed rows to outputs [N, K]: logits, or one standardised number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}


def build(architecture: str, params: Mapping[str, Any], kind: str, shape: Sequence[int], outputs: int, tokens: int = 0) -> nn.Module:
    """A module with fresh weights from torch's random generator.

    params: complete (`spec.complete_params`). kind: the preprocessing's, "table", "text", "bytes" or "image". shape: of one row.
    tokens: for texts, how many token numbers there are.
    """
    if architecture == "linear":
        return nn.Linear(shape[0], outputs)
    if architecture == "mlp":
        return _mlp(shape[0], outputs, params)
    if kind == "bytes":
        return Decoder(tokens, shape[0], outputs, params)
    if architecture == "cnn":
        return Cnn(shape, outputs, params["channels"], params["dropout"])
    width = params["embedding"] if architecture == "rnn" else params["width"]
    embed = TokenEmbedding(tokens, width) if kind == "text" else ColumnEmbedding(shape[0], width)
    if architecture == "rnn":
        return Rnn(embed, outputs, params)
    return Transformer(embed, shape[0], outputs, params)


def _mlp(features: int, outputs: int, params: Mapping[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    for width in params["hidden"]:
        layers += [nn.Linear(features, width), _ACTIVATIONS[params["activation"]]()]
        layers += [nn.Dropout(params["dropout"])] if params["dropout"] else []
        features = width
    return nn.Sequential(*layers, nn.Linear(features, outputs))


class Cnn(nn.Module):
    """Blocks of convolution, batch norm and ReLU, halving the picture while it is at least 4 a side. Input [N, channels, H, W]."""

    def __init__(self, shape: Sequence[int], outputs: int, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        depth, height, width = shape
        layers: list[nn.Module] = []
        for after in channels:
            layers += [nn.Conv2d(depth, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if min(height, width) >= 4:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            depth = after
        if height * width > 64:
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(depth * height * width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class TokenEmbedding(nn.Module):
    """Token numbers [N, L] to vectors [N, L, width] and a mask [N, L, 1] that is 0 at the padding."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width, padding_idx=0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.table(x)
        return vectors, (x != 0).unsqueeze(-1).to(vectors.dtype)


class ColumnEmbedding(nn.Module):
    """A table's row [N, F] read as a sequence: each value times its column's direction plus its column's place, [N, F, width]."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(features, width))
        self.place = nn.Parameter(torch.randn(features, width) * 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.unsqueeze(-1) * self.direction + self.place, torch.ones_like(x).unsqueeze(-1)


def _mean(sequence: Tensor, mask: Tensor) -> Tensor:
    """[N, width]: the mean over the positions that are no padding."""
    return (sequence * mask).sum(1) / mask.sum(1).clamp(min=1)


class Rnn(nn.Module):
    """LSTM or GRU over a sequence; its outputs' mean goes to one affine layer."""

    def __init__(self, embed: nn.Module, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        cell = nn.LSTM if params["cell"] == "lstm" else nn.GRU
        between = params["dropout"] if params["layers"] > 1 else 0.0
        self.embed = embed
        self.cell = cell(params["embedding"], params["hidden"], params["layers"], batch_first=True, dropout=between)
        self.head = nn.Sequential(nn.Dropout(params["dropout"]), nn.Linear(params["hidden"], outputs))

    def pool(self, x: Tensor) -> Tensor:
        """[N, hidden]: what the head sees of each row."""
        vectors, mask = self.embed(x)
        return _mean(self.cell(vectors)[0], mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(x))


class Transformer(nn.Module):
    """Encoder with self-attention (pre-norm); the mean over positions goes to one affine layer."""

    def __init__(self, embed: nn.Module, length: int, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        width = params["width"]
        self.embed = embed
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, params["heads"], params["dropout"]) for _ in range(params["layers"]))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(params["dropout"]), nn.Linear(width, outputs))

    def pool(self, x: Tensor) -> Tensor:
        """[N, width]: what the head sees of each row."""
        vectors, mask = self.embed(x)
        vectors = vectors + self.place
        seen = mask.reshape(-1, 1, 1, mask.shape[1])
        for block in self.blocks:
            vectors = block(vectors, seen)
        return _mean(vectors, mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(x))


class Decoder(nn.Module):
    """Each place of a text sees itself and what is before it. Outputs [N, K] for what follows the last token that is no padding.

    While `everywhere`, as it is trained: [N, K, L] for what follows each.
    """

    seen: Tensor

    def __init__(self, tokens: int, length: int, outputs: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        width = params["width"]
        self.everywhere = False
        self.embed = TokenEmbedding(tokens, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, params["heads"], params["dropout"]) for _ in range(params["layers"]))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        self.register_buffer("seen", torch.ones(length, length).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        vectors, mask = self.embed(x)
        vectors = vectors + self.place
        for block in self.blocks:
            vectors = block(vectors, self.seen)
        if self.everywhere:
            return self.head(vectors).transpose(1, 2)
        last = (mask.sum(1, keepdim=True).long() - 1).clamp(min=0)
        return self.head(vectors.gather(1, last.expand(-1, -1, vectors.shape[2])).squeeze(1))

    def fold(self) -> "Decoder":
        """As it is served."""
        self.everywhere = False
        return self


class Block(nn.Module):
    """Attention and two affine layers, each added to its input. `seen`: 1 where a place may see another, as [N, heads, L, L] broadcasts."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.merge(self._attend(self.norm(x), seen))
        return x + self.think(x)

    def _attend(self, x: Tensor, seen: Tensor) -> Tensor:
        length, width = x.shape[1], x.shape[2]
        size = width // self.heads
        parts = self.project(x).reshape(-1, length, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        # Written out, with a large number for infinity: exports alike in single and double, and a text of padding alone stays finite.
        scores = query @ key.transpose(-2, -1) / math.sqrt(size) + (seen - 1) * 1e9
        return (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, length, width)
