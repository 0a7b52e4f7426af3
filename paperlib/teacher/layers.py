"""Building blocks of MambaIRv2-light: window attention, gated MLP, state-space module (section 2).

After "MambaIRv2: Attentive State Space Restoration" (Guo et al., CVPR 2025). Attribute names are
the published ones. Tokens are (B, L, C) with L = H·W in raster order; images (B, C, H, W).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from paperlib.teacher.scan import selective_scan


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

    def bias(self, index: Tensor) -> Tensor:
        """The bias of each pair of tokens of a window, (1, heads, T, T); index (T, T)."""
        return self.relative_position_bias_table.t()[:, index][None]

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

    def __init__(self, dim: int, heads: int, window: int, states: int, tokens: int, rank: int,
                 shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 1e-4)) for _ in range(2))
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.win_mhsa = WindowAttention(dim, heads, window)
        self.assm = ASSM(dim, states, tokens, rank)
        self.convffn1, self.convffn2 = GatedMLP(dim), GatedMLP(dim)
        self.embeddingA = nn.Embedding(rank, states)
        nn.init.uniform_(self.embeddingA.weight, -1 / rank, 1 / rank)

    def attend(self, x: Tensor, size: tuple[int, int], index: Tensor, edges: Tensor) -> Tensor:
        """Tokens (B, L, C) plus the attention inside each window, one row of windows at a time.

        Args:
            index: row of the bias table for each pair of tokens (T, T).
            edges: masks (2, 2, T, T) of a shifted window by (in the last row, in the last column).
        """
        image = rearrange(x, "b (h w) c -> b h w c", h=size[0])
        if self.shift:
            image = torch.roll(image, (-self.shift, -self.shift), (1, 2))
        rows = rearrange(image, "b (y p) (x q) c -> y b x (p q) c", p=self.window, q=self.window)
        bias, out = self.win_mhsa.bias(index), []
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
