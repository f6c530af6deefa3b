"""A run on many GPUs before it is started: seconds, bytes held and bytes sent, from a plan.

    model, GPU, plan (dp, tp, pp, cp, ZeRO), batch
        ──> products at the rate the GPU sustains + memory traffic of all the rest   compute
        ──> sums inside a layer (tp), of keys and values (cp), between stages (pp)   waited for
        ──> weights and gradients (dp)        only what compute does not cover       waited for
        ──> micro-batches x the slowest stage + the bubble + the step                seconds

What is left out: latency, slow ranks, data loading, evaluation, checkpoints, and that a small
product runs at a lower rate than a large one. Two numbers are not from data sheets: the share of
the peak that products sustain (`GPU.sustained`, set by *one* published run of each GPU) and the
share of a link that collectives reach (`LINK`). `accounting.published` holds published runs beside
what this file says about them.

Legend: B sequences of a micro-batch, T positions, N tokens of a micro-batch on one rank, D width,
V vocabulary, m micro-batches of an update on one rank, P parameters.

Sources: Rajbhandari et al. 2020, arXiv:1910.02054 (bytes of the states); Narayanan et al. 2021,
arXiv:2104.04473 (bubble, interleaved stages); Korthikanti et al. 2022, arXiv:2205.05198 (bytes of
activations under tensor, sequence and interleaved pipeline parallel).
"""

from dataclasses import dataclass
from typing import NamedTuple

from labkit.accounting.memory import kept_bytes
from labkit.errors import LabError
from labkit.models.config import TransformerConfig
from labkit.models.counts import flops_per_token, forward_flops, parameters

LINK = 0.8
"""Share of a link's rate that a ring reaches; an estimate."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU in nodes of eight."""

    peak: float
    """FLOP/s of dense products in bf16, of the data sheet."""
    sustained: float
    """Share of the peak that products reach in training."""
    memory: float
    """Bytes."""
    memory_rate: float
    """Bytes/s to its own memory."""
    link: float
    """Bytes/s to the others of the node, one direction."""
    network: float
    """Bytes/s to other nodes, each GPU's own card, one direction."""
    node: int = 8


GPUS = {
    "A100 (40 GB)": GPU(312e12, 0.70, 40 * 2**30, 1.555e12, 300e9, 25e9),
    "A100 (80 GB)": GPU(312e12, 0.70, 80 * 2**30, 2.039e12, 300e9, 25e9),
    "H100 (80 GB)": GPU(989e12, 0.52, 80 * 2**30, 3.35e12, 450e9, 50e9),
}


@dataclass(frozen=True)
class Plan:
    """Who does what: dp · cp · tp · pp GPUs."""

    dp: int = 1
    """Ranks that each have other sequences."""
    tp: int = 1
    """Ranks that cut every matrix; inside a node, so 1, 2, 4 or 8."""
    pp: int = 1
    """Stages."""
    cp: int = 1
    """Ranks that share a sequence (ring attention)."""
    zero: int = 0
    """0 to 3: what the dp · cp ranks divide; see `labkit.parallel.zero`."""
    sequence: bool = False
    """Cut norms and residual stream by position among the tp ranks."""
    micro_batch: int = 1
    """B, sequences at a time."""
    checkpointing: bool = False
    """Compute every block again in the backward pass."""
    interleaved: int = 1
    """Chunks of layers a stage has: the bubble is shorter by this factor, more is sent."""
    fused_attention: bool = True
    """No T x T scores in memory."""
    overlap: bool = True
    """Gradients and weights travel while the passes run."""

    @property
    def devices(self) -> int:
        """How many GPUs."""
        return self.dp * self.tp * self.pp * self.cp


class States(NamedTuple):
    """Bytes that the fullest GPU holds."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)


class Cost(NamedTuple):
    """What an update takes."""

    compute: float
    """Seconds of products and memory traffic."""
    bubble: float
    """Seconds of waiting for the first and for the last micro-batch."""
    tensor: float
    """Seconds of sums inside layers, and of keys and values that compute does not cover."""
    pipeline: float
    """Seconds of sending between stages."""
    data: float
    """Seconds of weights and gradients that compute does not cover."""
    step: float
    """Seconds of the optimiser."""
    sent: dict[str, float]
    """Bytes that a GPU sends in an update, by kind: tensor, context, pipeline, data."""
    held: States
    tokens: int
    """Of an update, over all GPUs."""
    devices: int
    model_flops: float
    """FLOPs of an update by the usual count: nothing twice."""

    @property
    def seconds(self) -> float:
        """Of an update."""
        return sum((self.compute, self.bubble, self.tensor, self.pipeline, self.data, self.step))

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens a second and GPU."""
        return self.tokens / self.seconds / self.devices

    def utilisation(self, gpu: GPU) -> float:
        """Model FLOPs in a second over the peak of all GPUs."""
        return self.model_flops / self.seconds / self.devices / gpu.peak


def states(
    count: float, plan: Plan, weights: float = 2, gradients: float = 2, optimizer: float = 12
) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimiser on one GPU, for `count` parameters in all.

    Args:
        weights, gradients, optimizer: bytes a parameter; mixed precision has 2, 2 and 12 (a copy in
            fp32 and two moments).

    >>> [round(sum(states(7.5e9, Plan(dp=64, zero=z))) / 1e9, 1) for z in range(4)]
    [120.0, 31.4, 16.6, 1.9]
    """
    own = count / plan.tp / plan.pp
    share = plan.dp * plan.cp
    return (
        weights * own / (share if plan.zero >= 3 else 1),
        gradients * own / (share if plan.zero >= 2 else 1),
        optimizer * own / (share if plan.zero >= 1 else 1),
    )


def predict_update(
    config: TransformerConfig, gpu: str | GPU, plan: Plan, global_batch: int, length: int
) -> Cost:
    """Seconds, bytes sent and bytes held of one update in bf16 with AdamW.

    Args:
        config: a decoder.
        gpu: one of `GPUS`, or another.
        plan: who does what.
        global_batch: sequences of an update, a multiple of dp · micro_batch.
        length: T, a multiple of cp.

    Raises:
        LabError: an unknown GPU, or a plan that does not divide the model or the batch.
    """
    if isinstance(gpu, str):
        if gpu not in GPUS:
            raise LabError(f"GPU {gpu!r} is unknown: choose {', '.join(GPUS)}")
        gpu = GPUS[gpu]
    _check(config, gpu, plan, global_batch, length)
    layers, micros = config.num_layers / plan.pp, global_batch // (plan.dp * plan.micro_batch)
    tokens = plan.micro_batch * length // plan.cp
    stream = 2.0 * tokens * config.d_model
    passes = 4 if plan.checkpointing else 3  # forward passes' worth of a block; its backward is 2

    block, head = _block_seconds(config, gpu, plan, length)
    sums = _sums(plan) * stream * layers
    cost_of_sums = sums / _rate(gpu, plan.tp, plan.tp)
    keys = 2 * stream * config.kv_heads / config.num_heads / plan.tp * layers
    visits = (plan.cp - 1) * (passes - 2) + (2 * plan.cp - 1 if plan.cp > 1 else 0)
    ring = visits * keys / _rate(gpu, plan.cp * plan.tp, plan.cp)
    compute = passes * layers * block + 3 * head
    attention = passes * layers * _attention_flops(config, plan, length) / gpu.peak / gpu.sustained
    waited = cost_of_sums + max(0.0, ring - attention)
    hops = 2 * plan.interleaved if plan.pp > 1 else 0
    handed_on = hops * stream / plan.tp
    handing_on = handed_on / (gpu.network * LINK)
    micro = compute + waited + handing_on
    bubble = (plan.pp - 1) / plan.interleaved * micro

    data_sent, data = _data(config, gpu, plan, micros, compute)
    count = parameters(config) / plan.tp / plan.pp
    updated = count / (plan.dp * plan.cp if plan.zero else 1)
    step = 30 * updated / gpu.memory_rate  # four fp32 tensors read, three and a bf16 one written
    sent = {
        "tensor": micros * sums,
        "context": micros * visits * keys,
        "pipeline": micros * handed_on,
        "data": data_sent,
    }
    held = States(*states(parameters(config), plan), _activations(config, plan, length, micros))
    seconds = micros * compute, bubble, micros * waited, micros * handing_on, data, step
    update = global_batch * length
    flops = update * flops_per_token(config, length)
    return Cost(*seconds, sent, held, update, plan.devices, flops)


def _check(config: TransformerConfig, gpu: GPU, plan: Plan, global_batch: int, length: int) -> None:
    def demand(good: bool, what: str, remedy: str) -> None:
        if not good:
            raise LabError(f"{what}: choose {remedy}")

    demand(config.kind == "decoder", f"kind is {config.kind!r}", "a decoder")
    sizes = ("dp", "tp", "pp", "cp", "micro_batch", "interleaved")
    for name in sizes:
        size = getattr(plan, name)
        demand(size >= 1, f"{name} {size} is out of range", "at least 1")
    demand(0 <= plan.zero <= 3, f"zero {plan.zero} is out of range", "0 to 3")
    demand(plan.tp <= gpu.node, f"tp {plan.tp} leaves the node", f"at most {gpu.node}")
    demand(
        config.num_heads % plan.tp == 0,
        f"{config.num_heads} heads do not divide among tp {plan.tp}",
        "a divisor",
    )
    demand(
        plan.pp * plan.interleaved <= config.num_layers,
        f"{config.num_layers} layers are too few for pp {plan.pp} x interleaved {plan.interleaved}",
        "fewer stages",
    )
    share = plan.dp * plan.micro_batch
    demand(
        global_batch % share == 0 and global_batch >= share,
        f"global_batch {global_batch} does not divide among dp {plan.dp} x {plan.micro_batch}",
        f"a multiple of {share}",
    )
    demand(length % plan.cp == 0, f"length {length} does not divide among cp {plan.cp}", "another")


def _attention_flops(config: TransformerConfig, plan: Plan, length: int) -> float:
    tokens = plan.micro_batch * length / plan.cp
    return 4 * tokens * length * config.d_model / plan.tp


def _block_seconds(
    config: TransformerConfig, gpu: GPU, plan: Plan, length: int
) -> tuple[float, float]:
    """A forward pass of one micro-batch through one block, and through the head."""
    rate = gpu.peak * gpu.sustained
    whole = forward_flops(config, plan.micro_batch, length) / plan.cp / plan.tp
    head = 2 * plan.micro_batch * length * config.vocab_size * config.d_model / plan.cp / plan.tp
    # What is kept was written once and is read once; little is written that is not kept.
    traffic = 2 * _block_kept(config, plan, length) / gpu.memory_rate
    return (whole - head) / config.num_layers / rate + traffic, head / rate


def _block_kept(config: TransformerConfig, plan: Plan, length: int) -> float:
    """Bytes that one block keeps of one micro-batch on one rank."""
    kept = kept_bytes(config, plan.micro_batch, length, "bf16", device="cuda").block
    # Of 34 bytes a position and width, tensor parallel cuts 24; with sequence parallel all.
    share = 1 / plan.tp if plan.sequence else (10 + 24 / plan.tp) / 34
    bytes_ = kept * share
    if not plan.fused_attention:
        bytes_ += 5 * plan.micro_batch * config.num_heads * length**2 / plan.tp
    return bytes_ / plan.cp


def _sums(plan: Plan) -> float:
    """Streams that a rank sends for the tp sums of one block: two each way, and recomputed."""
    if plan.tp == 1:
        return 0.0
    halves = (6 if plan.checkpointing else 4) * 2
    if plan.sequence:
        halves += 2  # column layers gather their input again
    return halves * (plan.tp - 1) / plan.tp


def _rate(gpu: GPU, spread: int, members: int) -> float:
    """Bytes/s of a ring of `members`, whose ranks lie in a block of `spread` neighbours.

    Inside a node its links; beyond, a ring enters and leaves a node through the network cards of
    all its members there.
    """
    if spread <= gpu.node:
        return gpu.link * LINK
    inside = max(1, gpu.node * members // spread)
    return min(gpu.link, gpu.network * inside) * LINK


def _data(
    config: TransformerConfig, gpu: GPU, plan: Plan, micros: int, compute: float
) -> tuple[float, float]:
    """Bytes of weights and gradients that a GPU sends in an update, and seconds waited for them."""
    members = plan.dp * plan.cp
    if members == 1:
        return 0.0, 0.0
    half = 2 * parameters(config) / plan.tp / plan.pp * (members - 1) / members
    rate = _rate(gpu, members * plan.tp, members)
    if plan.zero < 3:
        sent = 2 * half
        hidden = compute * 2 / 3 if plan.overlap else 0.0  # behind the last backward pass
        return sent, max(0.0, sent / rate - hidden)
    forward = compute / (4 if plan.checkpointing else 3)
    before, behind = (forward, compute - forward) if plan.overlap else (0.0, 0.0)
    waited = max(0.0, half / rate - before) + max(0.0, 2 * half / rate - behind)
    return 3 * half * micros, micros * waited


def _activations(config: TransformerConfig, plan: Plan, length: int, micros: int) -> float:
    """Bytes on the first stage, which keeps the most micro-batches (1F1B)."""
    layers, block = config.num_layers / plan.pp, _block_kept(config, plan, length)
    waiting = min(plan.pp, micros)
    if plan.interleaved > 1:
        waiting *= 1 + (plan.pp - 1) / plan.pp / plan.interleaved
    if not plan.checkpointing:
        return waiting * layers * block
    kept = kept_bytes(config, plan.micro_batch, length, "bf16", device="cuda", weight_bytes=2)
    share = plan.tp if plan.sequence else 1
    return waiting * layers * kept.block_input / plan.cp / share + block
