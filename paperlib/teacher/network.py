"""The teacher MambaIRv2-light ×3 (paper section 2): the published weights, deterministic.

Images are (B, 3, H, W) in 0..1 inside, uint8 (h, w, 3) as an upscaler. In evaluation every token
takes its most likely class, so the same input gives the same bits; in training the class is drawn
(hard Gumbel-softmax, straight-through).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.errors import UserError
from paperlib.files import reading, sha256_file
from paperlib.settings import SCALE
from paperlib.student import network as student
from paperlib.student.models import load_pickle, load_weights
from paperlib.teacher.layers import ASSM, Layer, to_image, to_tokens
from paperlib.teacher.scan import scan_backend

PUBLISHED_SHA256 = "01f418f30a7205eeee6e48ebf7151556c22f7cd615d8824cb2221ed285f011e9"
MEAN = (0.4488, 0.4371, 0.4040)
TILE, OVERLAP = 720, 32
"""LR pixels: longest side that goes through the network whole, and what two tiles share."""


@dataclass(frozen=True)
class TeacherShape:
    """Size of the network; by default that of the published weights (780,587 parameters)."""

    dim: int = 48
    groups: int = 4
    layers: int = 5
    heads: int = 4
    window: int = 16
    states: int = 8
    tokens: int = 64
    rank: int = 32


def position_index(window: int) -> Tensor:
    """Row of the position table for each pair of tokens in a window, int64 (window², window²)."""
    side = torch.arange(window)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def edge_masks(window: int) -> Tensor:
    """−100 between tokens that a shift by window/2 brought together from opposite ends, else 0.

    (2, 2, window², window²): by whether the window is in the last row, and in the last column.
    """
    half = torch.arange(window) >= window // 2
    below, right = half.repeat_interleave(window), half.repeat(window)  # (window²,)
    low, far = below[:, None] != below, right[:, None] != right
    masks = torch.stack([torch.zeros_like(low), far, low, low | far])
    return (masks.float() * -100).unflatten(0, (2, 2))


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Images (B, C, H, W) mirrored at bottom and right to multiples of `window`.

    The border row stands twice; where the mirror image ends, its last row is repeated.
    """
    height, width = x.shape[-2:]
    high, wide = height + -height % window, width + -width % window
    x = torch.cat([x, x.flip(2)], 2)[:, :, :high] if high > height else x
    x = torch.cat([x, x.flip(3)], 3)[:, :, :, :wide] if wide > width else x
    missing = (0, wide - x.shape[-1], 0, high - x.shape[-2])
    return F.pad(x, missing, mode="replicate") if any(missing) else x


class _Group(nn.Module):
    """Five layers, a 3×3 convolution, and the group's input added."""

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.residual_group = nn.Module()
        self.residual_group.layers = nn.ModuleList(
            Layer(shape.dim, shape.heads, shape.window, shape.states, shape.tokens, shape.rank,
                  shift=shape.window // 2 if number % 2 else 0) for number in range(shape.layers))
        self.conv = nn.Conv2d(shape.dim, shape.dim, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int], index: Tensor, edges: Tensor) -> Tensor:
        y = x
        for layer in self.residual_group.layers:
            y = layer(y, size, index, edges)
        return to_tokens(self.conv(to_image(y, size))) + x


class MambaIRv2Light(nn.Module):
    """The network; (B, 3, H, W) in 0..1 → (B, 3, 3H, 3W), around 0..1; the published keys."""

    def __init__(self, shape: TeacherShape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or TeacherShape()
        self.register_buffer("relative_position_index_SA", position_index(shape.window))
        self.register_buffer("edges", edge_masks(shape.window), persistent=False)
        self.conv_first = nn.Conv2d(3, shape.dim, 3, padding=1)
        self.patch_embed = nn.Module()
        self.patch_embed.norm = nn.LayerNorm(shape.dim)
        self.layers = nn.ModuleList(_Group(shape) for _ in range(shape.groups))
        self.norm = nn.LayerNorm(shape.dim)
        self.conv_after_body = nn.Conv2d(shape.dim, shape.dim, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(shape.dim, 3 * SCALE**2, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = pad_to_windows(x, self.shape.window)
        size = (x.shape[-2], x.shape[-1])
        mean = x.new_tensor(MEAN).reshape(1, 3, 1, 1)
        first = self.conv_first(x - mean)
        tokens = self.patch_embed.norm(to_tokens(first))
        for group in self.layers:
            tokens = group(tokens, size, self.relative_position_index_SA, self.edges)
        deep = self.conv_after_body(to_image(self.norm(tokens), size)) + first
        sr = F.pixel_shuffle(self.upsample(deep), SCALE) + mean
        return sr[:, :, : SCALE * height, : SCALE * width]

    def set_noise(self, seed: int) -> None:
        """Let all routing noise from here on follow from `seed` alone."""
        generator = torch.Generator(self.conv_first.weight.device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, ASSM):
                module.generator = generator


@torch.no_grad()
def start_bilinear(model: MambaIRv2Light) -> None:
    """Let a fresh network start as bilinear upscaling, in place.

    The first three features carry RGB around the body, whose last convolution starts at zero.
    """
    student.start_bilinear([model.conv_first], model.upsample[0])
    for value in (model.conv_first.bias, *model.conv_after_body.parameters()):
        value.zero_()


def load_teacher(path: str | Path,
                 expected_sha256: str | None = PUBLISHED_SHA256) -> MambaIRv2Light:
    """The published network with the weights of mambairv2_lightSR_x3.pth, evaluation mode.

    Any file with another hash than `expected_sha256` is refused; None accepts any of this layout.
    """
    what = "a MambaIRv2 checkpoint"
    with reading(path, what):
        digest = sha256_file(path)
    if expected_sha256 not in (None, digest):
        raise UserError(f"{path} is not the published teacher: SHA-256 {digest}, "
                        f"expected {expected_sha256}. Download it again.")
    with reading(path, what):
        tensors = load_pickle(path, what)["params"]
    return load_weights(MambaIRv2Light(), tensors, path)


class TeacherUpscaler:
    """A teacher network as an upscaler: uint8 (h, w, 3) → float32 (3h, 3w, 3) clipped to 0..255.

    Images with a side of more than `TILE` LR pixels are cut into tiles, each scanned by itself,
    which moves its routing slightly. On a CPU it takes half the time after `keep_freed_memory`.
    """

    radius = None  # routing sorts all tokens: every pixel depends on every other

    def __init__(self, model: MambaIRv2Light, name: str = "teacher", sha256: str = "") -> None:
        self.model, self.name, self.sha256 = model.eval(), name, sha256

    @property
    def about(self) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        return {"model": self.name, "sha256": self.sha256, "scan": scan_backend(device),
                "tile": TILE, "routing": "arg-max", "threads": torch.get_num_threads()}

    @torch.inference_mode()
    def _whole(self, lr: np.ndarray) -> np.ndarray:
        device = next(self.model.parameters()).device
        x = torch.from_numpy(lr.astype(np.float32)).permute(2, 0, 1)[None].to(device) / 255
        return (self.model(x)[0].clamp(0, 1) * 255).permute(1, 2, 0).contiguous().cpu().numpy()

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        if max(lr.shape[:2]) <= TILE:
            return self._whole(lr)
        from paperlib.data.tiles import run_tiled

        height, width = (min(side, TILE) for side in lr.shape[:2])
        return run_tiled(self._whole, lr, height, width, OVERLAP)
