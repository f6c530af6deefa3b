"""Prompt tuning and prefix tuning: learned positions before every text; the model stays frozen.

    prompt   p_1 .. p_n | x_1 .. x_T ──> every block         n vectors, as if they were words
    prefix              | x_1 .. x_T ──> block 1 ──> block 2 ──> ...
                                           ^            ^
                                 n keys and values each, as if n positions had been read

Both stand at positions 0 .. n - 1, so the text begins at position n; nothing is predicted at them.
A prefix reaches every block directly, a prompt only through the blocks below. Neither is an
adapter: no weight inside the blocks is new.

    labkit         `Transformer.before` is called between embedding and blocks
    transformers   a hook before the base model puts the same in its inputs

Legend: B batch, T positions of the text, S positions so far, N learned ones, D model width,
L blocks, G key/value heads, K head width.

Sources: Lester et al. 2021, arXiv:2104.08691 (prompt; begun from words); Li & Liang 2021,
arXiv:2101.00190 (prefix; its net of two layers, section 4.3; begun from words, section 7.4).
"""

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.adapting.places import body
from labkit.models.adapting.settings import Strategy
from labkit.models.kv_cache import KVCache
from labkit.models.transformer import Transformer

Pairs = list[tuple[Tensor, Tensor]]


class Past(KVCache):
    """Keys and values that stand before the text, in the place of a cache; gradients pass through.

    Args:
        pairs: keys and values (B, G, N, K) of each block; none: it only listens, in `seen`.
    """

    def __init__(self, pairs: Pairs):
        self.pairs, self.seen = pairs, []
        self.length = pairs[0][0].shape[2] if pairs else 0
        self.source = {}

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with those before them; nothing is kept of the text."""
        if not self.pairs:
            self.seen.append((k_BGTK, v_BGTK))
            return k_BGTK, v_BGTK
        k_BGNK, v_BGNK = (x.to(k_BGTK.dtype) for x in self.pairs[layer])
        return torch.cat((k_BGNK, k_BGTK), dim=2), torch.cat((v_BGNK, v_BGTK), dim=2)

    def advance(self, positions: int) -> None:
        """Nothing: a text is read once."""


class Inputs(NamedTuple):
    """What goes into the blocks."""

    x_BTD: Tensor
    mask_BS: Tensor | None
    positions_BT: Tensor | None
    cache: Any


class Prompt(nn.Module):
    """N vectors in front of the embedded text.

    Args:
        vectors_ND: how they begin.
    """

    def __init__(self, vectors_ND: Float[Tensor, "N D"]):
        super().__init__()
        self.vectors = nn.Parameter(vectors_ND.clone())

    @property
    def length(self) -> int:
        """N."""
        return len(self.vectors)

    def forward(
        self, x_BTD: Tensor, mask_BS: Tensor | None, positions_BT: Tensor | None, cache: Any
    ) -> Inputs:
        """What the blocks read instead; with a cache, the vectors stand before the first token."""
        if cache is None or _read(cache) == 0:
            vectors_BND = self.vectors.to(x_BTD.dtype).expand(len(x_BTD), -1, -1)
            x_BTD = torch.cat((vectors_BND, x_BTD), dim=1)
            if positions_BT is not None:
                own = torch.arange(-self.length, 0, device=x_BTD.device)
                positions_BT = torch.cat((own.expand(len(positions_BT), -1), positions_BT), dim=1)
        return Inputs(x_BTD, *_moved(mask_BS, positions_BT, self.length), cache)


class Prefix(nn.Module):
    """N keys and values in front of those of each block.

    Args:
        table: (N, L·2·G·K), how they begin; or None, with `inner`.
        shape: (L, G, K).
        inner: (N, width): the table comes from N vectors of this width through a net of two layers,
            as long as it is trained; what is saved is the table.
        generator: draws the vectors and the net.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        table: Tensor | None = None,
        inner: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.shape = shape
        self.net: nn.Sequential | None = None
        if inner is None:
            assert table is not None
            self.vectors = nn.Parameter(table.clone())
            return
        layers, heads, width = shape
        self.vectors = nn.Parameter(torch.empty(inner).normal_(generator=generator))
        self.net = nn.Sequential(
            nn.Linear(inner[1], inner[1]),
            nn.Tanh(),
            nn.Linear(inner[1], layers * 2 * heads * width),
        )
        for p in self.net.parameters():
            nn.init.normal_(p, std=inner[1] ** -0.5 if p.ndim == 2 else 0.0, generator=generator)

    @property
    def length(self) -> int:
        """N."""
        return len(self.vectors)

    def table(self) -> Float[Tensor, "N W"]:
        """(N, L·2·G·K): of each position the key of block 1, its value, the key of block 2, ..."""
        return self.vectors if self.net is None else self.net(self.vectors)

    def pairs(self, batch: int) -> Pairs:
        """Keys and values (B, G, N, K) of each block."""
        L, G, K = self.shape
        table_LPGNK = self.table().view(self.length, L, 2, G, K).permute(1, 2, 3, 0, 4)
        return [tuple(x.expand(batch, -1, -1, -1) for x in pair) for pair in table_LPGNK]  # type: ignore

    def forward(
        self, x_BTD: Tensor, mask_BS: Tensor | None, positions_BT: Tensor | None, cache: Any
    ) -> Inputs:
        """The same text, after a past; a cache begins with the learned keys and values."""
        pairs = self.pairs(len(x_BTD)) if cache is None or _read(cache) == 0 else []
        if cache is None:
            cache = Past(pairs)
        elif pairs:
            for layer, pair in enumerate(pairs):
                cache.append(layer, *pair)
            cache.advance(self.length)
        return Inputs(x_BTD, *_moved(mask_BS, positions_BT, self.length), cache)


def _read(cache: Any) -> int:
    """Positions that a cache holds, labkit's or transformers'."""
    return cache.get_seq_length() if hasattr(cache, "get_seq_length") else cache.length


def _moved(
    mask_BS: Tensor | None, positions_BT: Tensor | None, length: int
) -> tuple[Tensor | None, Tensor | None]:
    """Mask and positions of a text that stands behind `length` real positions."""
    mask_BS = None if mask_BS is None else F.pad(mask_BS, (length, 0), value=1)
    return mask_BS, None if positions_BT is None else positions_BT + length


def before(model: nn.Module) -> Prompt | Prefix | None:
    """The prompt or prefix of a model, if it has one."""
    found = getattr(body(model), "before", None)
    return found if isinstance(found, Prompt | Prefix) else None


@torch.no_grad()
def add(model: nn.Module, strategy: Strategy) -> None:
    """Put a prompt or a prefix before every text that a model reads; in place.

    A prompt begins as the embeddings of words drawn by chance, a prefix as the keys and values of
    such words; a prefix with a net begins from noise.

    Args:
        model: labkit's decoder or encoder, or a transformers model whose base model takes
            `inputs_embeds` and `past_key_values`.
        strategy: its name, `length`, `projection`, `seed`.

    Raises:
        LabError: another kind of model, or no room in its context.
    """
    base: Any = body(model)
    config = base.config if hasattr(base, "config") else None
    if not _takes(base) or getattr(config, "is_encoder_decoder", False):
        raise LabError(
            f"{strategy.name!r} puts positions before a text that {type(model).__name__} does not "
            "take: choose a decoder, an encoder, or another strategy"
        )
    limit = getattr(config, "context_length", None) or getattr(
        config, "max_position_embeddings", strategy.length + 1
    )
    if strategy.length >= limit:
        raise LabError(
            f"length {strategy.length} leaves no room for a text: choose less than the model's "
            f"context of {limit}"
        )
    generator = torch.Generator().manual_seed(strategy.seed)
    embedding = base.get_input_embeddings()
    like: Tensor = embedding.weight
    words_N = torch.randint(len(like), (strategy.length,), generator=generator).to(like.device)
    if strategy.name == "prompt":
        learned: nn.Module = Prompt(like[words_N])
    elif strategy.projection:
        shape = _shape(config)
        inner = (strategy.length, shape[1] * shape[2])
        learned = Prefix(shape, inner=inner, generator=generator)
    else:
        pairs = _activations(base, words_N[None])
        stacked_NLPGK = torch.stack([torch.stack(pair)[:, 0] for pair in pairs]).permute(
            3, 0, 1, 2, 4
        )
        learned = Prefix(_shape(config), stacked_NLPGK.reshape(strategy.length, -1))
    put(model, learned)


def put(model: nn.Module, learned: nn.Module) -> None:
    """Make a model read every text after a prompt or prefix."""
    base: Any = body(model)
    base.before = learned.to(base.get_input_embeddings().weight.device)
    if not isinstance(base, Transformer):
        base.register_forward_pre_hook(_read_after, with_kwargs=True)
        base.register_forward_hook(_cut)


def remove(model: nn.Module) -> None:
    """Let a model read its texts as before."""
    base: Any = body(model)
    if before(model) is None:
        return
    if isinstance(base, Transformer):
        base.before = None
    else:
        del base.before
    for hooks, ours in ((base._forward_pre_hooks, _read_after), (base._forward_hooks, _cut)):
        for key in [key for key, hook in hooks.items() if hook is ours]:
            del hooks[key]
            base._forward_pre_hooks_with_kwargs.pop(key, None)


def _takes(base: Any) -> bool:
    if isinstance(base, Transformer):
        return True
    names = inspect.signature(base.forward).parameters if hasattr(base, "config") else {}
    return "inputs_embeds" in names and "past_key_values" in names


def _shape(config: Any) -> tuple[int, int, int]:
    """Blocks, key/value heads and head width."""
    if hasattr(config, "kv_heads"):
        return config.num_layers, config.kv_heads, config.head_width
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return (
        config.num_hidden_layers,
        getattr(config, "num_key_value_heads", None) or heads,
        width,
    )


def _activations(base: Any, ids_1N: Tensor) -> Pairs:
    """Keys and values (1, G, N, K) that each block makes of a text."""
    was_training = base.training
    base.eval()
    try:
        if isinstance(base, Transformer):
            past = Past([])
            base._hidden(ids_1N, None, None, None, None, past)
            return past.seen
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        base(input_ids=ids_1N, past_key_values=cache)
        return [(layer.keys, layer.values) for layer in cache.layers]
    finally:
        base.train(was_training)


def _read_after(base: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Before a base model of transformers reads: its inputs, behind what was learned."""
    from transformers import DynamicCache

    if args:
        given = {**given, "input_ids": args[0]}
    ids, x_BTD = given.pop("input_ids", None), given.pop("inputs_embeds", None)
    x_BTD = base.get_input_embeddings()(ids) if x_BTD is None else x_BTD
    past = given.get("past_key_values")
    inputs = base.before(x_BTD, given.get("attention_mask"), given.get("position_ids"), past)
    given = {**given, "attention_mask": inputs.mask_BS, "position_ids": inputs.positions_BT}
    if isinstance(inputs.cache, Past):
        given["past_key_values"] = DynamicCache(inputs.cache.pairs)
    kinds = given.get("token_type_ids")
    if kinds is not None and inputs.x_BTD.shape[1] > kinds.shape[1]:
        given["token_type_ids"] = F.pad(kinds, (base.before.length, 0))
    base.before.put = inputs.x_BTD.shape[1] - x_BTD.shape[1]
    return (), {**given, "inputs_embeds": inputs.x_BTD}


def _cut(base: Any, args: Any, output: Any) -> Any:
    """Nothing is predicted at the learned positions; a pooler reads the first one, as in `peft`."""
    if base.before.put and getattr(base, "pooler", None) is None:
        output.last_hidden_state = output.last_hidden_state[:, base.before.put :]
    return output
