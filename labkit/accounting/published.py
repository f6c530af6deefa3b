"""Published runs beside what `accounting.cluster` says about them.

    a run's plan ──> `predict_update` ──> tokens a second and GPU, against what was measured

No run was chosen by how it comes out: of MosaicML's tables all in bf16 with 7 billion parameters or
more and texts of 2,048 tokens, of Narayanan et al. all of tables 1 and 2, of PyTorch's page all
that recompute everything or nothing. Two of `RUNS` set a constant (`sets`): the products' share of
the peak of each GPU. The others are predicted to 12 % (A100) and 21 % (H100); those that are not
stand in `BEYOND`.

What the authors leave out: the micro-batch of Narayanan's table 1 (here 1) and how many chunks an
interleaved stage has (here the fewest that divide its layers).

Sources: MosaicML, llm-foundry, scripts/train/benchmarking/README.md (MPT, FSDP); Narayanan et al.
2021, arXiv:2104.04473, tables 1 and 2 (Megatron, and DeepSpeed's ZeRO-3); PyTorch, torchtitan,
docs/performance.md as of 2024 (Llama, FSDP).
"""

from dataclasses import dataclass

from labkit.accounting.cluster import Cost, Plan, predict_update
from labkit.models.config import TransformerConfig


@dataclass(frozen=True)
class Published:
    """One measured run."""

    name: str
    config: TransformerConfig
    gpu: str
    plan: Plan
    global_batch: int
    length: int
    tokens_per_gpu: float
    """Tokens a second and GPU, as published or worked out from the FLOP/s published."""
    sets: bool = False
    """Whether a constant was chosen so that this run comes out."""

    def predicted(self) -> Cost:
        """What `predict_update` says."""
        return predict_update(self.config, self.gpu, self.plan, self.global_batch, self.length)

    def error(self) -> float:
        """Predicted over published speed, minus 1."""
        return self.predicted().tokens_per_gpu / self.tokens_per_gpu - 1


def _mpt(d_model: int, num_layers: int, num_heads: int, length: int = 2048) -> TransformerConfig:
    return TransformerConfig.gpt2(
        vocab_size=50368, context_length=length, d_model=d_model, num_layers=num_layers,
        num_heads=num_heads, dropout=0.0, bias=False,
    )  # fmt: skip


MPT = {
    "7B": _mpt(4096, 32, 32), "13B": _mpt(5120, 40, 40), "30B": _mpt(7168, 48, 56),
    "70B": _mpt(8192, 80, 64),
}  # fmt: skip
LLAMA_2_13B = TransformerConfig.llama(
    vocab_size=32000, context_length=4096, d_model=5120, num_layers=40, num_heads=40, d_ff=13824,
    tied_embeddings=False,
)  # fmt: skip
LLAMA_2_70B = TransformerConfig.llama(
    vocab_size=32000, context_length=4096, d_model=8192, num_layers=80, num_heads=64,
    num_kv_heads=8, d_ff=28672, tied_embeddings=False,
)  # fmt: skip
LLAMA_3_70B = TransformerConfig.llama(
    vocab_size=128256, context_length=8192, d_model=8192, num_layers=80, num_heads=64,
    num_kv_heads=8, d_ff=28672, tied_embeddings=False,
)  # fmt: skip


def _mosaic(
    gpu: str, size: str, dp: int, micro: int, accumulated: int, again: bool, tokens: float,
) -> Published:  # fmt: skip
    plan = Plan(dp=dp, zero=3, micro_batch=micro, checkpointing=again)
    name = f"MPT {size}, {dp} x {gpu}"
    sets = (gpu, size, dp) in (("A100 (80 GB)", "7B", 8), ("H100 (80 GB)", "7B", 8))
    return Published(name, MPT[size], gpu, plan, dp * micro * accumulated, 2048, tokens, sets)


def _torchtitan(
    name: str, config: TransformerConfig, micro: int, again: bool, tokens: float
) -> Published:
    plan = Plan(dp=64, zero=3, micro_batch=micro, checkpointing=again)
    name = f"torchtitan {name}, 64 x A100 (80 GB)"
    length = config.context_length
    return Published(name, config, "A100 (80 GB)", plan, 64 * micro, length, tokens)


def _megatron(
    heads: int, d_model: int, layers: int, tp: int, pp: int, devices: int, batch: int, tera: float,
    zero: int = 0, micro: int = 1,
) -> Published:  # fmt: skip
    """A row of tables 1 and 2; FLOPs by equation 3, which counts the recomputation."""
    config = TransformerConfig.gpt2(
        vocab_size=51200, context_length=2048, d_model=d_model, num_layers=layers,
        num_heads=heads, dropout=0.0,
    )  # fmt: skip
    T, V, own = 2048, 51200, layers // pp
    per_token = 96 * layers * d_model**2
    per_token *= 1 + T / (6 * d_model) + V / (16 * layers * d_model)
    chunks = next(n for n in range(2, own + 1) if own % n == 0) if pp > 1 else 1
    plan = Plan(
        dp=devices // tp // pp, tp=tp, pp=pp, zero=zero, micro_batch=micro, checkpointing=True,
        interleaved=chunks, fused_attention=False, overlap=False,
    )  # fmt: skip
    billions = 12 * layers * d_model**2 * (1 + 13 / 12 / d_model + (V + T) / 12 / layers / d_model)
    who = "DeepSpeed ZeRO-3" if zero else "Megatron"
    name = f"{who} {billions / 1e9:.1f}B, {devices} x A100 (tp {tp}, pp {pp})"
    return Published(name, config, "A100 (80 GB)", plan, batch, T, tera * 1e12 / per_token)


#: size, GPUs, micro-batch, how many of them, recomputed, tokens a second and GPU
_MPT_RUNS = {
    "A100 (80 GB)": (
        ("70B", 64, 8, 4, True, 410), ("70B", 32, 2, 16, True, 373), ("30B", 8, 3, 21, True, 916),
        ("13B", 8, 2, 3, False, 2262), ("7B", 8, 6, 2, False, 4641),
    ),
    "A100 (40 GB)": (
        ("70B", 128, 4, 1, True, 376), ("30B", 128, 6, 1, True, 865), ("30B", 32, 4, 1, True, 857),
        ("13B", 128, 16, 1, True, 1972), ("13B", 64, 16, 1, True, 1976),
        ("13B", 32, 14, 1, True, 1998), ("13B", 16, 10, 1, True, 1993),
        ("13B", 8, 4, 16, True, 1668),
        ("7B", 128, 18, 1, True, 3623), ("7B", 64, 18, 1, True, 3665),
        ("7B", 32, 18, 1, True, 3725), ("7B", 16, 16, 1, True, 3645), ("7B", 8, 12, 4, True, 3679),
    ),
    "H100 (80 GB)": (
        ("70B", 64, 8, 4, True, 1039), ("70B", 32, 2, 16, True, 882),
        ("30B", 32, 14, 3, True, 2308), ("30B", 16, 10, 3, True, 2263),
        ("30B", 8, 3, 21, True, 2002), ("13B", 64, 2, 1, False, 4800),
        ("13B", 32, 2, 1, False, 4811), ("13B", 16, 2, 1, False, 4767),
        ("13B", 8, 2, 1, False, 4792), ("7B", 8, 6, 1, False, 10643),
    ),
}  # fmt: skip

#: heads, D, layers, tp, pp, GPUs, batch, TFLOP/s a GPU
_MEGATRON_RUNS = (
    (24, 2304, 24, 1, 1, 32, 512, 137), (32, 3072, 30, 2, 1, 64, 512, 138),
    (32, 4096, 36, 4, 1, 128, 512, 142), (48, 6144, 40, 8, 1, 256, 1024, 135),
    (64, 8192, 48, 8, 2, 512, 1536, 138), (80, 10240, 60, 8, 4, 1024, 1792, 140),
    (96, 12288, 80, 8, 8, 1536, 2304, 148), (128, 16384, 96, 8, 16, 1920, 2160, 155),
    (128, 20480, 105, 8, 35, 2520, 2520, 163), (160, 25600, 128, 8, 64, 3072, 3072, 163),
    (96, 12288, 96, 8, 12, 384, 1536, 153), (96, 12288, 96, 8, 12, 768, 1536, 149),
    (96, 12288, 96, 8, 12, 1536, 1536, 141), (128, 20480, 105, 8, 35, 560, 2240, 171),
    (128, 20480, 105, 8, 35, 1120, 2240, 167), (128, 20480, 105, 8, 35, 2240, 2240, 159),
)  # fmt: skip

RUNS: tuple[Published, ...] = (
    *(_mosaic(gpu, *row) for gpu, rows in _MPT_RUNS.items() for row in rows),
    _torchtitan("Llama 2 13B", LLAMA_2_13B, 2, False, 2162),
    _torchtitan("Llama 2 70B", LLAMA_2_70B, 2, True, 353),
    _torchtitan("Llama 3 70B", LLAMA_3_70B, 1, True, 331),
    *(_megatron(*row) for row in _MEGATRON_RUNS),
)

BEYOND: tuple[Published, ...] = (
    _mosaic("A100 (40 GB)", "70B", 64, 2, 1, True, 276),
    _megatron(96, 12288, 96, 1, 1, 384, 1536, 144, zero=3, micro=4),
    _megatron(96, 12288, 96, 1, 1, 768, 1536, 88, zero=3, micro=2),
    _megatron(96, 12288, 96, 1, 1, 1536, 1536, 44, zero=3, micro=1),
    _megatron(128, 20480, 105, 1, 1, 640, 2560, 138, zero=3, micro=4),
    _megatron(128, 20480, 105, 1, 1, 1120, 2240, 98, zero=3, micro=2),
    _megatron(128, 20480, 105, 1, 1, 2240, 2240, 48, zero=3, micro=1),
)
"""Runs that are *not* predicted: all were slower. What is said of DeepSpeed's ZeRO-3 of 2021 is 26
to 216 % too fast, the more so the smaller the micro-batch."""
