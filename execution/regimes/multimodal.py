"""The multi-modal analysis example: several encoders, cross-attention between the modalities, fusion, heads.

A batch carries every modality in a fixed signature, as exported models do, and `present` says which rows have which:
what is absent is zero. `MultiModalAnalysis.forward` is the reference, written as a person would: it encodes all that it
is given and masks what is absent. Nothing in it knows of regimes.

    model = MultiModalAnalysis(seed=0)
    answer = model(*sample_batch(Mix(("text", "vision")), rows=4, text_tokens=32, seed=1))

Cross-attention for each ordered pair of sequence modalities follows MulT (Tsai et al., 2019); one small tower for each
scalar feature follows neural additive models (Agarwal et al., 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MODALITIES = ("vision", "audio", "text", "sensor", "tabular")
SEQUENCES = ("vision", "audio", "text")
"""Modalities that are encoded to several tokens and attend to each other."""


@dataclass(frozen=True, slots=True)
class MultiModalConfig:
    """Sizes of the example; the defaults make a step of some milliseconds to tens of milliseconds on one core."""

    width: int = 128
    heads: int = 4
    layers: int = 2
    """Blocks of each sequence encoder."""
    image_pixels: int = 32
    patch_pixels: int = 4
    audio_bins: int = 40
    audio_frames: int = 128
    vocabulary: int = 1000
    longest_text_tokens: int = 256
    sensor_channels: int = 16
    sensor_steps: int = 64
    features: int = 24
    tower_width: int = 64
    classes: int = 10
    embedding: int = 64


class Attention(nn.Module):
    """Multi-head attention from one sequence to another, or to itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(B, N, width) attends to (B, M, width); `mask` (B, M) says which of the context's tokens count."""
        rows, length, width = x.shape
        head = width // self.heads
        q = self.query(x).view(rows, length, self.heads, head).transpose(1, 2)
        k = self.key(context).view(rows, -1, self.heads, head).transpose(1, 2)
        v = self.value(context).view(rows, -1, self.heads, head).transpose(1, 2)
        # A row with no token to attend to attends to all: a softmax over nothing is NaN. It is masked later.
        allowed = mask | ~mask.any(dim=1, keepdim=True)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None, None, :])
        out: Tensor = self.out(y.transpose(1, 2).reshape(rows, length, width))
        return out


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, width) -> the same shape."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, mask)
        y: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return y


class Encoder(nn.Module):
    """Blocks over tokens with learned positions."""

    def __init__(self, config: MultiModalConfig, longest: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(longest, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, width) -> the same shape."""
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        y: Tensor = self.norm(x)
        return y


class Towers(nn.Module):
    """One small network for each of many alike signals."""

    def __init__(self, count: int, inputs: int, hidden: int, width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(inputs, hidden) for _ in range(count))
        self.second = nn.ModuleList(nn.Linear(hidden, width) for _ in range(count))

    def forward(self, signals: Sequence[Tensor]) -> Tensor:
        """One (B, inputs) a tower -> (B, count, width)."""
        hidden = [functional.gelu(first(signal)) for first, signal in zip(self.first, signals, strict=True)]
        return torch.stack([second(h) for second, h in zip(self.second, hidden, strict=True)], dim=1)


class Head(nn.Module):
    """A two-layer head."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, outputs)."""
        y: Tensor = self.out(functional.gelu(self.hidden(x)))
        return y


class MultiModalAnalysis(nn.Module):
    """The example model; weights from the seed alone."""

    def __init__(self, config: MultiModalConfig | None = None, *, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__()
            self.config = config = config or MultiModalConfig()
            width = config.width
            self.patch = nn.Conv2d(3, width, config.patch_pixels, stride=config.patch_pixels)
            self.frames = nn.Conv1d(config.audio_bins, width, 4, stride=4)
            self.words = nn.Embedding(config.vocabulary, width)
            patches = (config.image_pixels // config.patch_pixels) ** 2
            longest = {
                "vision": patches,
                "audio": config.audio_frames // 4,
                "text": config.longest_text_tokens,
            }
            self.encoders = nn.ModuleDict({name: Encoder(config, longest[name]) for name in SEQUENCES})
            self.channels = Towers(config.sensor_channels, config.sensor_steps, config.tower_width, width)
            self.columns = Towers(config.features, 1, config.tower_width, width)
            self.cross = nn.ModuleDict(
                {f"{a}_{b}": Attention(width, config.heads) for a in SEQUENCES for b in SEQUENCES if a != b}
            )
            self.cross_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in SEQUENCES})
            self.fusion = Block(width, config.heads)
            self.kinds = nn.Parameter(torch.randn(len(MODALITIES), width) * 0.02)
            self.heads = nn.ModuleDict(
                {
                    "classes": Head(width, config.classes),
                    "sentiment": Head(width, 1),
                    "safety": Head(width, 2),
                    "embedding": Head(width, config.embedding),
                }
            )
        self.eval()

    def forward(  # noqa: PLR0917 a modality each
        self, vision: Tensor, audio: Tensor, text: Tensor, sensor: Tensor, tabular: Tensor, present: Tensor
    ) -> tuple[Tensor, ...]:
        """The four heads' answers: (B, classes), (B, 1), (B, 2), (B, embedding).

        vision (B, 3, pixels, pixels), audio (B, frames, bins), text (B, tokens) of ids with 0 as padding, sensor
        (B, channels, steps), tabular (B, features), present (B, 5) bool in the order of MODALITIES.
        """
        tokens, masks = self.encode_sequences(vision, audio, text, present)
        pooled = [self.pool(name, tokens, masks) for name in SEQUENCES]
        pooled.append(self.channels(sensor.unbind(1)).mean(1) * present[:, 3:4])
        pooled.append(self.columns(torch.split(tabular, 1, dim=1)).mean(1) * present[:, 4:5])
        return self.conclude(torch.stack(pooled, dim=1), present)

    def encode_sequences(
        self, vision: Tensor, audio: Tensor, text: Tensor, present: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tokens and masks of the three sequence modalities."""
        embedded = {
            "vision": self.patch(vision).flatten(2).transpose(1, 2),
            "audio": self.frames(audio.transpose(1, 2)).transpose(1, 2),
            "text": self.words(text),
        }
        masks = {}
        for i, name in enumerate(SEQUENCES):
            masks[name] = present[:, i : i + 1].expand(-1, embedded[name].shape[1])
        masks["text"] = masks["text"] & (text != 0)
        return {name: self.encoders[name](embedded[name], masks[name]) for name in SEQUENCES}, masks

    def pool(self, name: str, tokens: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """One vector for a sequence modality: its tokens with what they see in the others', averaged."""
        x = tokens[name]
        own = self.cross_norm[name](x)
        for other in SEQUENCES:
            if other != name:
                seen = self.cross[f"{name}_{other}"](own, tokens[other], masks[other])
                x = x + seen * masks[other].any(dim=1)[:, None, None]
        weights = masks[name].to(x.dtype)[:, :, None]
        return (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)

    def conclude(self, pooled: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """(B, 5, width) of pooled modalities -> the heads' answers."""
        fused = self.fusion(pooled + self.kinds, present)
        weights = present.to(fused.dtype)[:, :, None]
        summary = (fused * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return tuple(head(summary) for head in self.heads.values())


def sample_batch(
    config: MultiModalConfig, mixes: Sequence[str], text_tokens: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Inputs of one batch: a row for each mix, `10100` telling which modalities it has; absent ones are zero."""
    rows = len(mixes)
    present = torch.tensor([[letter == "1" for letter in mix] for mix in mixes])

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    lengths = torch.randint(max(1, text_tokens // 2), text_tokens + 1, (rows, 1), generator=generator)
    lengths[0] = text_tokens  # a batch is as long as its longest text
    words = torch.randint(1, config.vocabulary, (rows, text_tokens), generator=generator)
    values = [
        normal(3, config.image_pixels, config.image_pixels),
        normal(config.audio_frames, config.audio_bins),
        words * (torch.arange(text_tokens) < lengths),
        normal(config.sensor_channels, config.sensor_steps),
        normal(config.features),
    ]
    masked = [v * present[:, i].view(-1, *(1,) * (v.dim() - 1)).to(v.dtype) for i, v in enumerate(values)]
    return (*masked, present)
