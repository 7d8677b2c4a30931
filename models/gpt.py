"""A GPT-2 style language model (Radford et al. 2019) with exchangeable components."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ablatrix.models.attention import CausalSelfAttention
from ablatrix.models.config import GPTConfig, ResolvedGPTConfig, count_parameters, flops_per_token, training_flops
from ablatrix.models.custom import ComponentError
from ablatrix.models.feedforward import build_feedforward
from ablatrix.models.head_loss import head_loss, softmax_gradient, token_losses
from ablatrix.models.layers import Dropout, Embedding, Linear
from ablatrix.models.norms import build_norm
from ablatrix.models.positions import build_positions

INIT_STD = 0.02


class Block(nn.Module):
    """Attention, then the feed-forward layer, each with its residual connection. (B, T, C) -> (B, T, C)

    Norms come before each sublayer (pre) or after the residual sum (post, as in Vaswani et al. 2017); Xiong et al. 2020
    compare the two.
    """

    def __init__(self, config: ResolvedGPTConfig) -> None:
        super().__init__()
        self.recompute = False  # recompute activations in the backward pass instead of storing them
        self.post = config.norm_placement == "post"
        self.ln_1 = build_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = build_norm(config)
        self.mlp = build_feedforward(config)

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        if self.recompute and self.training and torch.is_grad_enabled():
            y: Tensor = checkpoint(self._compute, x, documents, use_reentrant=False)
            return y
        return self._compute(x, documents)

    def _compute(self, x: Tensor, documents: Tensor | None) -> Tensor:
        if self.post:
            x = self.ln_1(x + self.attn(x, documents))
            return self.ln_2(x + self.mlp(x))
        x = x + self.attn(self.ln_1(x), documents)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The model without its output head. Token ids (B, T) -> features (B, T, C)

    separator: the token that starts a document, if attention and positions restart there; None: no restarts.
    """

    separator: int | None = None

    def __init__(self, config: ResolvedGPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = build_positions(config)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # after a post-norm block the features are already normalized
        self.ln_f = build_norm(config) if config.norm_placement == "pre" else nn.Identity()

    def forward(self, idx: Tensor) -> Tensor:
        documents = None if self.separator is None else (idx == self.separator).cumsum(1)  # document of each token
        x = self.embed(idx)
        for block in self.h:
            x = block(x, documents)
        return self.ln_f(x)

    def embed(self, idx: Tensor) -> Tensor:
        """Return the input of the first block. (B, T) -> (B, T, C)"""
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = self.wpe(x) if self.separator is None else self.wpe(x, places(idx, self.separator))
        return self.drop(x)


def places(idx: Tensor, separator: int) -> Tensor:
    """Return each token's distance from the last separator, or from the start of the row. (B, T) -> (B, T)"""
    t = torch.arange(idx.shape[1], device=idx.device).expand_as(idx)
    begins = torch.where(idx == separator, t, 0).cummax(1).values
    return t - begins


class GPT(nn.Module):
    """The language model of a resolved GPTConfig.

    seed: seed of the initial weights. Each parameter is drawn from (seed, name), so that two models that differ in one
    component start with equal weights everywhere else. None: shapes only, on the meta device. Raises ValueError if the
    config is not resolved, ComponentError if a custom component cannot be used.

    `n_parameters` is the number of trainable parameters, `flops_per_token` the FLOPs of a training step per token. Both
    are measured from the modules; models.config computes them without a model if all components are built in.
    """

    def __init__(self, config: GPTConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config = ResolvedGPTConfig.of(config)
        self.pointwise = softmax_gradient
        with torch.device("meta" if seed is None else "cpu"):
            self.transformer = Transformer(config)
            self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        looked_up = sum(t.numel() for t in tables if t is not self.lm_head.weight)
        self.n_parameters = sum(p.numel() for p in self.parameters())
        self.flops_per_token = training_flops(config, self.n_parameters - looked_up)
        if seed is not None:
            self.initialize(seed)

    @classmethod
    def from_state(cls, config: GPTConfig, state: dict[str, Tensor]) -> GPT:
        """Return a model with these weights. Raises RuntimeError if `state` belongs to a different config."""
        model = cls(config)
        model.load_state_dict(state)
        return model

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw GPT-2's weights: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)), norms 1, biases 0.

        These are, by name and shape: matrices, matrices named c_proj, vectors, and vectors named bias. A component with
        a method `initialize(generator)` then sets its own weights. Weights are always drawn on the CPU, so that every
        device starts from the same ones.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            residual = name.endswith("c_proj.weight")
            std = INIT_STD / math.sqrt(2 * self.config.n_layer) if residual else INIT_STD
            draw = torch.empty(parameter.shape).normal_(0.0, std, generator=_generator(seed, name))
            parameter.copy_(draw)
        for name, module in self.transformer.named_modules():
            if hasattr(module, "initialize"):
                module.initialize(_generator(seed, name))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map idx (B, T) to logits (B, T, V) and, with targets (B, T; -1 is not scored), the mean NLL in nats.

        Raises ValueError if T exceeds the block size and the positions cannot extrapolate. Training uses `loss`, which
        never materializes all logits.
        """
        x = self._features(idx)
        loss = None if targets is None else head_loss(x.flatten(0, 1), self.lm_head.weight, targets.flatten())
        return self.lm_head(x), loss

    def loss(self, idx: Tensor, targets: Tensor, divisor: float | Tensor | None = None) -> Tensor:
        """Return the NLL in nats of targets (B, T; -1 is not scored): their sum / divisor, by default the mean.

        The result can be differentiated once, by `backward()`.
        """
        x = self._features(idx)
        return head_loss(x.flatten(0, 1), self.lm_head.weight, targets.flatten(), divisor, self.pointwise)

    def token_losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the NLL in nats of each target, (B, T) float32; 0 where the target is -1. Not differentiable."""
        x = self._features(idx)
        return token_losses(x.flatten(0, 1), self.lm_head.weight, targets.flatten()).view(targets.shape)

    def mask_documents(self, separator: int) -> None:
        """Restart attention and positions at each separator: tokens see only their own document.

        Rotary positions and ALiBi depend on distances alone, so masking the attention is enough for them.
        """
        self.transformer.separator = separator

    def compile_parts(self) -> None:
        """Compile the blocks and the head's pointwise part into fewer kernels, for `loss` on a GPU."""
        self.transformer.compile(dynamic=False)
        self.pointwise = torch.compile(softmax_gradient, dynamic=False)  # three times as fast as with dynamic shapes

    def recompute_blocks(self) -> None:
        """Store only the input of each block for the backward pass, and recompute the rest there.

        Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". Dropout masks are the same both times.
        """
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True

    def _features(self, idx: Tensor) -> Tensor:
        if idx.shape[1] > self.config.block_size and not self.config.extrapolates:
            raise ValueError(
                f"{idx.shape[1]} tokens exceed the model's block_size {self.config.block_size}, and "
                f"{self.config.positions} positions end there"
            )
        return self.transformer(idx)

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        do_sample: bool = False,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        context: int | None = None,
    ) -> Tensor:
        """Extend idx (B, T), T >= 1, to (B, T + max_new_tokens), predicting each token from the last `context` tokens.

        context: the block size by default; it may be larger only if positions extrapolate (else ValueError).

        do_sample: draw from the softmax at `temperature` (over the `top_k` likeliest tokens, if set) instead of taking
        the likeliest; `generator` makes the draw repeatable and leaves the default generator alone. Dropout is
        switched off. Raises ValueError if the temperature or top_k is not positive.
        """
        if temperature <= 0 or (top_k is not None and top_k < 1):
            raise ValueError("temperature and top_k must be positive; for the likeliest token leave do_sample out")
        context = context or self.config.block_size
        was_training = self.training
        self.eval()
        try:
            for _ in range(max_new_tokens):
                x = self._features(idx[:, -context:])[:, -1]  # (B, C)
                logits = self.lm_head(x).float() / temperature  # (B, V)
                if top_k is not None and top_k < logits.shape[-1]:
                    least = logits.topk(top_k).values[:, -1:]
                    logits = logits.masked_fill(logits < least, -math.inf)
                if do_sample:
                    token = torch.multinomial(F.softmax(logits, dim=-1), 1, generator=generator)
                else:
                    token = logits.argmax(dim=-1, keepdim=True)
                idx = torch.cat((idx, token), dim=1)
        finally:
            self.train(was_training)
        return idx


def measure(config: GPTConfig) -> tuple[int, int]:
    """Return (parameters, training FLOPs per token) of a resolved config, custom components included."""
    parameters, flops = count_parameters(config), flops_per_token(config)
    if parameters is not None and flops is not None:
        return parameters, flops
    try:
        model = GPT(config, seed=None)
    except ComponentError:  # custom modules may not support the meta device
        model = GPT(config)
    return model.n_parameters, model.flops_per_token


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
