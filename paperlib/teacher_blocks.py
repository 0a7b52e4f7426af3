"""Building blocks of MambaIRv2-light: window attention, gated MLP, attentive state-space module (paper section 2).

After "MambaIRv2: Attentive State Space Restoration" (Guo et al., CVPR 2025). Attribute names are those of the published
weights. Tokens are (B, L, C) with L = H·W in raster order; images (B, C, H, W).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from paperlib.scan import selective_scan


def to_image(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (B, H·W, C) → image (B, C, H, W); a view in channels-last order."""
    return rearrange(x, "b (h w) c -> b c h w", h=size[0])


def to_tokens(x: Tensor) -> Tensor:
    """Image (B, C, H, W) → tokens (B, H·W, C)."""
    return rearrange(x, "b c h w -> b (h w) c")


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ) from vectorised pieces; several times faster on a CPU than PyTorch's own, and as exact."""
    return F.relu(x) + torch.log1p(torch.exp(-x.abs()))


class SpatialGate(nn.Module):
    """u·v with v the depthwise 5×5 convolution of the normalised second half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * to_tokens(self.conv(to_image(self.norm(v), size)))


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
    """Multi-head self-attention inside windows with a learnt bias by relative position."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """qkv (B·windows, T, 3C), index (T, T), mask (windows, T, T) of 0 and −100 or None → (B·windows, T, C)."""
        tokens = qkv.shape[1]
        q, k, v = rearrange(qkv, "w t (three h d) -> three w h t d", three=3, h=self.heads)
        bias = self.relative_position_bias_table[index.flatten()].reshape(tokens, tokens, self.heads)
        bias = bias.permute(2, 0, 1)[None]  # (1, heads, T, T)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(len(qkv) // len(mask), 1, 1, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(rearrange(x, "w h t d -> w t (h d)"))


class SelectiveScan(nn.Module):
    """Input-dependent parameters of the scan, and the scan; (B, L, C) → (B, L, C)."""

    def __init__(self, dim: int, states: int) -> None:
        super().__init__()
        self.states, self.rank = states, -(-dim // 16)
        self.x_proj_weight = nn.Parameter(torch.empty(1, self.rank + 2 * states, dim))
        self.dt_projs_weight = nn.Parameter(torch.empty(1, dim, self.rank))
        # Steps start log-uniform in 0.001..0.1, and state n decays n times as fast as state 1 (Gu and Dao, 2023).
        step = torch.exp(torch.rand(1, dim) * 4.6 - 6.9)
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_logs = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(dim, 1))
        self.Ds = nn.Parameter(torch.ones(dim))
        nn.init.uniform_(self.x_proj_weight, -(dim**-0.5), dim**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(self.rank**-0.5), self.rank**-0.5)

    def forward(self, u: Tensor, prompt: Tensor) -> Tensor:
        """u: sorted tokens (B, L, C); prompt (B, L, N) is added to C_t in raster order, as the weights were trained."""
        projected = F.linear(u, self.x_proj_weight[0])
        step, b, c = projected.split([self.rank, self.states, self.states], dim=-1)
        delta = softplus(F.linear(step, self.dt_projs_weight[0], self.dt_projs_bias[0]))
        return selective_scan(u, delta, -torch.exp(self.A_logs), b, c + prompt, self.Ds)


class ASSM(nn.Module):
    """Attentive state-space module: classify each token, sort by class, scan, un-sort.

    `noise` draws the classes with Gumbel noise also in evaluation, as the published code does; default off.
    """

    def __init__(self, dim: int, states: int, tokens: int, rank: int) -> None:
        super().__init__()
        self.tokens, self.noise = tokens, False
        self.selectiveScan = SelectiveScan(dim, states)
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)
        self.in_proj = nn.Sequential(nn.Conv2d(dim, dim, 1))
        self.CPE = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))
        self.embeddingB = nn.Embedding(tokens, rank)
        nn.init.uniform_(self.embeddingB.weight, -1 / tokens, 1 / tokens)
        self.route = nn.Sequential(nn.Linear(dim, dim // 3), nn.GELU(), nn.Linear(dim // 3, tokens))

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class of each token (B, L), and in training the one-hot (B, L, tokens) with straight-through gradient."""
        logits = F.log_softmax(self.route(x), dim=-1)
        if self.training or self.noise:
            hot = F.gumbel_softmax(logits, hard=True, dim=-1)
            return hot.argmax(-1), hot
        return logits.argmax(-1), None

    def forward(self, x: Tensor, size: tuple[int, int], basis: Tensor) -> Tensor:
        """x (B, L, C); basis: the layer's embeddingA weight (rank, N)."""
        prompts = self.embeddingB.weight @ basis  # (tokens, N)
        chosen, hot = self.classify(x)
        prompt = prompts[chosen] if hot is None else hot @ prompts  # (B, L, N)
        order = torch.argsort(chosen, dim=-1, stable=True)
        image = self.in_proj(to_image(x, size))
        image = image * torch.sigmoid(self.CPE(image))
        tokens = to_tokens(image)
        place = order[..., None].expand_as(tokens)
        y = self.selectiveScan(torch.gather(tokens, 1, place), prompt)
        y = self.out_proj(self.out_norm(y))
        return torch.zeros_like(y).scatter(1, place, y)


class Layer(nn.Module):
    """One layer: window attention and gated MLP, then state-space module and gated MLP, each with scaled residual."""

    def __init__(self, dim: int, heads: int, window: int, states: int, tokens: int, rank: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.scale1, self.scale2 = nn.Parameter(torch.full((dim,), 1e-4)), nn.Parameter(torch.full((dim,), 1e-4))
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.win_mhsa = WindowAttention(dim, heads, window)
        self.assm = ASSM(dim, states, tokens, rank)
        self.convffn1, self.convffn2 = GatedMLP(dim), GatedMLP(dim)
        self.embeddingA = nn.Embedding(rank, states)
        nn.init.uniform_(self.embeddingA.weight, -1 / rank, 1 / rank)

    def attend(self, x: Tensor, size: tuple[int, int], index: Tensor, mask: Tensor | None) -> Tensor:
        """Window attention of normalised tokens (B, L, C), windows shifted where the layer shifts."""
        qkv = rearrange(self.wqkv(x), "b (h w) c -> b h w c", h=size[0])
        if self.shift:
            qkv = torch.roll(qkv, (-self.shift, -self.shift), (1, 2))
        windows = rearrange(qkv, "b (y p) (x q) c -> (b y x) (p q) c", p=self.window, q=self.window)
        out = self.win_mhsa(windows, index, mask if self.shift else None)
        out = rearrange(out, "(b y x) (p q) c -> b (y p) (x q) c", y=size[0] // self.window, x=size[1] // self.window,
                        p=self.window)
        if self.shift:
            out = torch.roll(out, (self.shift, self.shift), (1, 2))
        return out.flatten(1, 2)

    def forward(self, x: Tensor, size: tuple[int, int], index: Tensor, mask: Tensor) -> Tensor:
        a = self.attend(self.norm1(x), size, index, mask) + x
        a = self.convffn1(self.norm2(a), size) + a
        x = x * self.scale1 + a
        b = self.assm(self.norm3(x), size, self.embeddingA.weight) + x
        b = self.convffn2(self.norm4(b), size) + b
        return x * self.scale2 + b
