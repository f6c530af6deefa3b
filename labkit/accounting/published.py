"""Published runs beside what `accounting.cluster` says about them.

    a run's plan ──> `predict_update` ──> tokens a second and GPU, against what was measured

Two runs set a constant (`sets`): the products' share of the peak of each GPU. All others are
predictions. Where an author leaves something out, the plan has the plainest choice: micro-batches
of 1, no interleaved stages.

Sources: MosaicML, llm-foundry, scripts/train/benchmarking/README.md (MPT, FSDP); Narayanan et al.
2021, arXiv:2104.04473, tables 1 and 2 (Megatron, and DeepSpeed's ZeRO-3); PyTorch, torchtitan,
docs/performance.md (Llama, FSDP).
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
LLAMA_3_70B = TransformerConfig.llama(
    vocab_size=128256, context_length=8192, d_model=8192, num_layers=80, num_heads=64,
    num_kv_heads=8, d_ff=28672, tied_embeddings=False,
)  # fmt: skip


def _mosaic(
    size: str, gpu: str, dp: int, micro: int, accumulated: int, again: bool, tokens: float,
    sets: bool = False,
) -> Published:  # fmt: skip
    plan = Plan(dp=dp, zero=3, micro_batch=micro, checkpointing=again)
    name = f"MPT {size}, {dp} x {gpu}"
    return Published(name, MPT[size], gpu, plan, dp * micro * accumulated, 2048, tokens, sets)


def _megatron(
    heads: int, d_model: int, layers: int, tp: int, pp: int, devices: int, batch: int, tera: float,
    zero: int = 0, micro: int = 1,
) -> Published:  # fmt: skip
    """A row of tables 1 and 2; FLOPs by equation 3, which counts the recomputation."""
    config = TransformerConfig.gpt2(
        vocab_size=51200, context_length=2048, d_model=d_model, num_layers=layers,
        num_heads=heads, dropout=0.0,
    )  # fmt: skip
    T, V = 2048, 51200
    per_token = 96 * layers * d_model**2
    per_token *= 1 + T / (6 * d_model) + V / (16 * layers * d_model)
    plan = Plan(
        dp=devices // tp // pp, tp=tp, pp=pp, zero=zero, micro_batch=micro, checkpointing=True,
        fused_attention=False, overlap=False,
    )  # fmt: skip
    billions = 12 * layers * d_model**2 * (1 + 13 / 12 / d_model + (V + T) / 12 / layers / d_model)
    who = "DeepSpeed ZeRO-3" if zero else "Megatron"
    name = f"{who} {billions / 1e9:.1f}B, {devices} x A100 (tp {tp}, pp {pp})"
    return Published(name, config, "A100 (80 GB)", plan, batch, T, tera * 1e12 / per_token)


RUNS: tuple[Published, ...] = (
    _mosaic("7B", "A100 (80 GB)", 8, 6, 2, False, 4641, sets=True),
    _mosaic("30B", "A100 (80 GB)", 8, 3, 21, True, 916),
    _mosaic("70B", "A100 (80 GB)", 64, 8, 4, True, 410),
    _mosaic("13B", "A100 (40 GB)", 128, 16, 1, True, 1972),
    _mosaic("7B", "H100 (80 GB)", 8, 6, 1, False, 10643, sets=True),
    _mosaic("30B", "H100 (80 GB)", 32, 14, 3, True, 2308),
    _mosaic("70B", "H100 (80 GB)", 64, 8, 4, True, 1039),
    _mosaic("13B", "H100 (80 GB)", 64, 2, 1, False, 4800),
    Published(
        "torchtitan Llama 2 13B, 64 x A100", LLAMA_2_13B, "A100 (80 GB)",
        Plan(dp=64, zero=3, micro_batch=2), 128, 4096, 2162,
    ),
    Published(
        "torchtitan Llama 3 70B, 64 x A100", LLAMA_3_70B, "A100 (80 GB)",
        Plan(dp=64, zero=3, micro_batch=1, checkpointing=True), 64, 8192, 331,
    ),
    _megatron(32, 4096, 36, 4, 1, 128, 512, 142),
    _megatron(64, 8192, 48, 8, 2, 512, 1536, 138),
    _megatron(96, 12288, 80, 8, 8, 1536, 2304, 148),
    _megatron(128, 20480, 105, 8, 35, 2520, 2520, 163),
    _megatron(160, 25600, 128, 8, 64, 3072, 3072, 163),
)  # fmt: skip

BEYOND: tuple[Published, ...] = (_megatron(96, 12288, 96, 1, 1, 1536, 1536, 44, zero=3),)
"""Runs that are *not* predicted: their gathers neither overlapped nor used all network cards."""
