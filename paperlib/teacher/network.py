"""The teacher MambaIRv2-light ×3 (paper section 2): the published weights, deterministic.

After "MambaIRv2: Attentive State Space Restoration" (Guo et al., CVPR 2025), attribute names as
published. Images are (B, C, H, W), in 0..1 at the ends, tokens (B, L, C) with L = H·W in raster
order. In evaluation every token takes its most likely class, so the same input gives the same bits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from paperlib.data.tiles import run_tiled
from paperlib.errors import UserError
from paperlib.files import reading, sha256_file
from paperlib.settings import SCALE
from paperlib.student import network as student
from paperlib.student.models import load_pickle, load_weights
from paperlib.teacher.scan import scan_backend, selective_scan

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


def to_image(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (B, H·W, C) → image (B, C, H, W); a view in channels-last order."""
    return rearrange(x, "b (h w) c -> b c h w", h=size[0])


def to_tokens(x: Tensor) -> Tensor:
    """Image (B, C, H, W) → tokens (B, H·W, C)."""
    return rearrange(x, "b c h w -> b (h w) c")


class SpatialGate(nn.Module):
    """u·v with v the depthwise 5×5 convolution of the normalised second half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return to_tokens(self.conv(to_image(self.norm(v), size))) * u


class GatedMLP(nn.Module):
    """fc1, GELU, spatial gate, fc2; (B, L, C) → (B, L, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.sg = SpatialGate(dim // 2)
        self.fc2 = nn.Linear(dim // 2, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.fc2(self.sg(F.gelu(self.fc1(x)), size))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned bias by relative position."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """qkv (windows, T, 3C), bias (1, heads, T, T) of all of them → (windows, T, C)."""
        q, k, v = rearrange(qkv, "w t (three h d) -> three w h t d", three=3, h=self.heads)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(rearrange(x, "w h t d -> w t (h d)"))


class SelectiveScan(nn.Module):
    """The scan with parameters from its input; `backend` is that of `selective_scan`."""

    def __init__(self, dim: int, states: int) -> None:
        super().__init__()
        self.states, self.rank, self.backend = states, -(-dim // 16), "auto"
        self.x_proj_weight = nn.Parameter(torch.empty(1, self.rank + 2 * states, dim))
        self.dt_projs_weight = nn.Parameter(torch.empty(1, dim, self.rank))
        # steps start log-uniform in 0.001..0.1; state n decays n times as fast as state 1
        step = torch.exp(torch.rand(1, dim) * 4.6 - 6.9)
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_logs = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(dim, 1))
        self.Ds = nn.Parameter(torch.ones(dim))
        nn.init.uniform_(self.x_proj_weight, -(dim**-0.5), dim**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(self.rank**-0.5), self.rank**-0.5)

    def forward(self, u: Tensor, prompt: Tensor) -> Tensor:
        """u: sorted tokens (B, L, C); prompt (B, L, N) in raster order, as published, for C_t."""
        projected = F.linear(u, self.x_proj_weight[0])
        step, b, c = projected.split([self.rank, self.states, self.states], dim=-1)
        delta, a = F.linear(step, self.dt_projs_weight[0]), -torch.exp(self.A_logs)
        return selective_scan(u, delta, a, b, c + prompt, self.Ds, self.dt_projs_bias[0],
                              self.backend)


def gumbel_one_hot(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """`F.gumbel_softmax(logits, hard=True)`, same shape, with noise from `generator`."""
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    soft = (logits + noise).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


class ASSM(nn.Module):
    """Attentive state-space module: classify each token, sort by class, scan, un-sort.

    In training the classes are drawn with Gumbel noise from `generator`, or from PyTorch's global
    one where that is None; the published code does so in evaluation too.
    """

    def __init__(self, dim: int, states: int, tokens: int, rank: int) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None
        self.selectiveScan = SelectiveScan(dim, states)
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)
        self.in_proj = nn.Sequential(nn.Conv2d(dim, dim, 1))
        self.CPE = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))
        self.embeddingB = nn.Embedding(tokens, rank)
        nn.init.uniform_(self.embeddingB.weight, -1 / tokens, 1 / tokens)
        self.route = nn.Sequential(nn.Linear(dim, dim // 3), nn.GELU(), nn.Linear(dim // 3, tokens))

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class of each token (B, L); in training its one-hot (B, L, tokens), straight-through."""
        # its rounding decides near ties, as in the published code
        logits = F.log_softmax(self.route(x), dim=-1)
        if self.training:
            hot = gumbel_one_hot(logits, self.generator)
            return hot.argmax(-1), hot
        return logits.argmax(-1), None

    def forward(self, x: Tensor, size: tuple[int, int], basis: Tensor) -> Tensor:
        """x (B, L, C); basis: the layer's embeddingA weight (rank, N)."""
        prompts = self.embeddingB.weight @ basis  # (tokens, N)
        chosen, hot = self.classify(x)
        prompt = prompts[chosen] if hot is None else hot @ prompts  # (B, L, N)
        order = torch.argsort(chosen, dim=-1, stable=True)
        first = torch.arange(0, order.numel(), order.shape[1], device=order.device)[:, None]
        # rows of the tokens of all images, in the order of the scan
        places = (order + first).flatten()
        inward = self.in_proj[0]
        # a 1×1 convolution
        image = to_image(F.linear(x, inward.weight.flatten(1), inward.bias), size)
        tokens = to_tokens(image * torch.sigmoid(self.CPE(image)))
        y = self.selectiveScan(tokens.flatten(0, 1)[places].view_as(tokens), prompt)
        y = self.out_proj(self.out_norm(y))
        back = torch.empty_like(places).scatter_(0, places,
                                                 torch.arange(len(places), device=places.device))
        return y.flatten(0, 1)[back].view_as(y)


class Layer(nn.Module):
    """Window attention and MLP, then state-space module and MLP, each with scaled residual."""

    def __init__(self, shape: TeacherShape, shift: int) -> None:
        super().__init__()
        dim, rank, self.window, self.shift = shape.dim, shape.rank, shape.window, shift
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 1e-4)) for _ in range(2))
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.win_mhsa = WindowAttention(dim, shape.heads, shape.window)
        self.assm = ASSM(dim, shape.states, shape.tokens, rank)
        self.convffn1, self.convffn2 = GatedMLP(dim), GatedMLP(dim)
        self.embeddingA = nn.Embedding(rank, shape.states)
        nn.init.uniform_(self.embeddingA.weight, -1 / rank, 1 / rank)

    def attend(self, x: Tensor, size: tuple[int, int], index: Tensor, edges: Tensor) -> Tensor:
        """Tokens (B, L, C) plus the attention inside each window, one row of windows at a time;
        `index` (T, T) and `edges` as `position_index` and `edge_masks`."""
        image = rearrange(x, "b (h w) c -> b h w c", h=size[0])
        if self.shift:
            image = torch.roll(image, (-self.shift, -self.shift), (1, 2))
        rows = rearrange(image, "b (y p) (x q) c -> y b x (p q) c", p=self.window, q=self.window)
        bias = self.win_mhsa.relative_position_bias_table.t()[:, index][None]  # (1, heads, T, T)
        out = []
        for number, row in enumerate(rows):  # (B, X, T, C)
            qkv = self.wqkv(self.norm1(row))
            if self.shift:
                inner, right = (bias + mask for mask in edges[int(number == len(rows) - 1)])
                parts = [self._windows(qkv[:, :-1], inner), self._windows(qkv[:, -1:], right)]
                out.append(torch.cat(parts, 1) + row)
            else:
                out.append(self._windows(qkv, bias) + row)
        image = rearrange(torch.stack(out), "y b x (p q) c -> b (y p) (x q) c", p=self.window)
        if self.shift:
            image = torch.roll(image, (self.shift, self.shift), (1, 2))
        return image.flatten(1, 2)

    def _windows(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """(B, X, T, 3C), with X possibly 0 → (B, X, T, C)."""
        return self.win_mhsa(qkv.flatten(0, 1), bias).unflatten(0, qkv.shape[:2])

    def forward(self, x: Tensor, size: tuple[int, int], index: Tensor, edges: Tensor) -> Tensor:
        a = self.attend(x, size, index, edges)
        a = self.convffn1(self.norm2(a), size) + a
        x = torch.addcmul(a, x, self.scale1)
        b = self.assm(self.norm3(x), size, self.embeddingA.weight) + x
        b = self.convffn2(self.norm4(b), size) + b
        return torch.addcmul(b, x, self.scale2)


def position_index(window: int) -> Tensor:
    """Row of the position table for each pair of tokens in a window, int64 (window², window²)."""
    side = torch.arange(window)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def edge_masks(window: int) -> Tensor:
    """−100 between tokens that a shift by window/2 brought together from opposite ends, else 0;
    (2, 2, window², window²), by whether the window is in the last row, and in the last column."""
    half = torch.arange(window) >= window // 2
    below, right = half.repeat_interleave(window), half.repeat(window)  # (window²,)
    low, far = below[:, None] != below, right[:, None] != right
    masks = torch.stack([torch.zeros_like(low), far, low, low | far])
    return (masks.float() * -100).unflatten(0, (2, 2))


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Images (B, C, H, W) mirrored at bottom and right to multiples of `window`: the border row
    stands twice; where the mirror image ends, its last row is repeated."""
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
            Layer(shape, shift=shape.window // 2 if number % 2 else 0)
            for number in range(shape.layers))
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
    """Let a fresh network start as bilinear upscaling, in place: the first three features carry RGB
    around the body, whose last convolution starts at zero."""
    student.start_bilinear([model.conv_first], model.upsample[0])
    for value in (model.conv_first.bias, *model.conv_after_body.parameters()):
        value.zero_()


def load_teacher(path: str | Path) -> MambaIRv2Light:
    """The published network with the weights of mambairv2_lightSR_x3.pth, evaluation mode."""
    what = "the published teacher"
    with reading(path, what):
        digest = sha256_file(path)
    if digest != PUBLISHED_SHA256:
        raise UserError(f"{path} is not {what}: SHA-256 {digest}, expected {PUBLISHED_SHA256}. "
                        "Download it again.")
    return load_weights(MambaIRv2Light(), load_pickle(path, what)["params"], path)


class TeacherUpscaler:
    """A teacher network as an upscaler: uint8 (h, w, 3) → float32 (3h, 3w, 3) clipped to 0..255.

    Images with a side of more than `TILE` LR pixels are cut into tiles, each scanned by itself,
    which moves its routing slightly. On a CPU it takes half the time after `keep_freed_memory`.
    """

    radius = None  # routing sorts all tokens: every pixel depends on every other
    tile, overlap = TILE, OVERLAP

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
        height, width = (min(side, TILE) for side in lr.shape[:2])
        return run_tiled(self._whole, lr, height, width, OVERLAP)
