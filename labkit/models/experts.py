"""Several language models as one: mixtures of their probabilities, and who decides the weights.

    tokens ──> expert 1 .. K ──> log p_k(next token) ─┐
          └──> weights w_k: fixed · posterior · router ┴──> log sum_k w_k p_k

    Ensemble            fixed weights                               K experts run
    BayesianEnsemble    w_k ~ prior_k p_k(the context so far)       K experts run
    SoftRouting         w_k = router(the context so far)            K experts run
    HardRouting         the router reads a few tokens, then chooses 1 expert runs

All return `.logits`: here normalised log-probabilities, which any softmax leaves as they are. The
weights at position t depend on tokens up to t and never on the token that is to be predicted.

Legend: K experts, B batch, T positions, V vocabulary, D width of the router.

Sources: Jacobs et al. 1991, "Adaptive Mixtures of Local Experts"; Li et al. 2022, arXiv:2208.03306
(branch-train-merge: the posterior over experts); Gururangan et al. 2023, arXiv:2303.14177.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.models.counts import flops_per_token, forward_flops
from labkit.models.transformer import Transformer

# --- in log space ------------------------------------------------------------------------------


def mix(log_p_K: Tensor, log_w_K: Tensor) -> Tensor:
    """The log-probability of a mixture, log sum_k w_k p_k, without leaving log space.

    Args:
        log_p_K: (K, ...) log-probabilities that each expert gives.
        log_w_K: log-weights that sum to 1 over k, of a shape that broadcasts to `log_p_K`.

    Returns:
        (...) log-probabilities.

    >>> mix(torch.tensor([-1000.0, -1000.0]), torch.tensor([0.5, 0.5]).log()).item()
    -1000.0
    """
    return torch.logsumexp(log_p_K + log_w_K, dim=0)


def responsibilities(log_p_K: Tensor, log_w_K: Tensor) -> Tensor:
    """How much each expert deserves of an outcome: r_k = w_k p_k / sum_j w_j p_j.

    It is the posterior of "expert k wrote it", and gives the gradient of the mixture's loss by the
    logits z of the weights w = softmax(z): d/dz_k (-log sum_j w_j p_j) = w_k - r_k.

    Args:
        log_p_K, log_w_K: as in `mix`.

    Returns:
        (K, ...) probabilities that sum to 1 over k.

    Source: Jacobs et al. 1991, equation 1.4.
    """
    return torch.softmax(log_p_K + log_w_K, dim=0)


def posterior_log_weights(log_p_KBT: Tensor, log_prior_K: Tensor) -> Tensor:
    """Weights before each token, from how well each expert predicted the tokens before it.

    w_k(t) ~ prior_k prod_{s < t} p_k(x_s | x_<s)

    By Bayes' rule the mixture then pays for a text exactly -log sum_k prior_k p_k(text): at most
    -log prior_k more than expert k, whichever k is best.

    Args:
        log_p_KBT: (K, B, T) log-probability that each expert gave to token t.
        log_prior_K: (K,) log of the weights before the first token.

    Returns:
        (K, B, T) log-weights that sum to 1 over k; those of token t have not seen it.

    Source: Li et al. 2022, section 3.1.
    """
    before_KBT = log_p_KBT.cumsum(-1) - log_p_KBT
    return torch.log_softmax(before_KBT + log_prior_K[:, None, None], dim=0)


# --- mixtures as models ------------------------------------------------------------------------


class Mixed(NamedTuple):
    """What a mixture returns."""

    logits: Tensor
    """(B, T, V) log-probabilities of the next token."""
    weights: Tensor
    """(B, T, K) weight of each expert at each position; each sums to 1."""


class Ensemble(nn.Module):
    """A mixture with fixed weights: log sum_k w_k p_k(token).

    Args:
        experts: language models with one vocabulary.
        weights: w_k, 0 or more, divided by their sum; None: all alike.

    Raises:
        LabError: no expert, different vocabularies, or weights that do not fit.
    """

    log_weights: Tensor

    def __init__(self, experts: Sequence[Transformer], weights: Sequence[float] | None = None):
        super().__init__()
        _check_experts(experts)
        self.experts = nn.ModuleList(experts)
        shares_K = torch.as_tensor(weights or [1.0] * len(experts), dtype=torch.float64)
        if len(shares_K) != len(experts) or not (shares_K.min() >= 0 and shares_K.sum() > 0):
            raise LabError(
                f"weights {weights} for {len(experts)} experts: give one for each, 0 or more, and "
                "not all 0"
            )
        self.register_buffer("log_weights", (shares_K / shares_K.sum()).log().float())

    def forward(self, input_ids: Tensor) -> Mixed:
        """(B, T) token ids -> log-probabilities (B, T, V) and the weights in use (B, T, K)."""
        log_p_KBTV = _log_probabilities(self.experts, input_ids)
        return _mixed(log_p_KBTV, self._log_weights(log_p_KBTV, input_ids))

    def _log_weights(self, log_p_KBTV: Tensor, input_ids: Tensor) -> Tensor:
        return self.log_weights[:, None, None].expand(-1, *input_ids.shape)

    def flops_per_token(self, length: int) -> float:
        """FLOPs of the matrix products for one token of a text of `length`: every expert runs."""
        return sum(_cost(expert, length) for expert in self.experts)


class BayesianEnsemble(Ensemble):
    """A mixture whose weights are the posterior of each expert given the context so far.

    It needs no training: the experts' own losses decide (`posterior_log_weights`). The first token
    of a window is given, not predicted, and does not count.

    Args:
        experts: language models with one vocabulary.
        weights: the prior, 0 or more, divided by their sum; None: all alike.

    Raises:
        LabError: as for `Ensemble`.

    Source: Li et al. 2022, section 3.1.
    """

    def _log_weights(self, log_p_KBTV: Tensor, input_ids: Tensor) -> Tensor:
        next_1BT1 = input_ids[:, 1:, None].unsqueeze(0).expand(len(self.experts), -1, -1, -1)
        of_next_KBT = log_p_KBTV[:, :, :-1].gather(-1, next_1BT1).squeeze(-1)
        # Position t has read tokens 0 .. t; the predictions of tokens 1 .. t stand at 0 .. t - 1.
        padded_KBT = nn.functional.pad(of_next_KBT, (0, 1))
        return posterior_log_weights(padded_KBT, self.log_weights)


# --- routing -----------------------------------------------------------------------------------


class Router(nn.Module):
    """A small classifier of the context so far: mean of embeddings, then a linear layer.

    logits_t = W mean(e(x_0), .., e(x_t)) + b

    Args:
        vocab_size: V of the tokenizer.
        num_experts: K.
        d_model: D, width of its embeddings.
    """

    def __init__(self, vocab_size: int, num_experts: int, d_model: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.head = nn.Linear(d_model, num_experts)
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor) -> "Routes":
        """(B, T) token ids -> logits (B, T, K): row t has read tokens 0 .. t and no other."""
        sums_BTD = self.embedding(input_ids).cumsum(1)
        counts_T1 = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)[:, None]
        return Routes(self.head(sums_BTD / counts_T1))

    def flops_per_token(self) -> float:
        """FLOPs of the matrix product for one token; looking up an embedding costs none."""
        return 2.0 * self.head.in_features * self.head.out_features


class Routes(NamedTuple):
    """What a router returns."""

    logits: Tensor
    """(B, T, K) scores of the experts after each token."""


class SoftRouting(Ensemble):
    """A mixture whose weights a router gives anew after each token; every expert runs.

    Args:
        experts: language models with one vocabulary.
        router: scores as many experts.

    Raises:
        LabError: as for `Ensemble`, or a router of another number of experts.
    """

    def __init__(self, experts: Sequence[Transformer], router: Router):
        super().__init__(experts)
        _check_router(router, len(experts))
        self.router = router

    def _log_weights(self, log_p_KBTV: Tensor, input_ids: Tensor) -> Tensor:
        return self.router(input_ids).logits.float().log_softmax(-1).movedim(-1, 0)

    def flops_per_token(self, length: int) -> float:
        """FLOPs of the matrix products for one token: every expert, and the router."""
        return super().flops_per_token(length) + self.router.flops_per_token()


class HardRouting(nn.Module):
    """The router reads `read` tokens, then one expert goes on alone; until then all are mixed.

    Args:
        experts: language models with one vocabulary.
        router: scores as many experts.
        read: tokens before the choice, at least 1.

    Raises:
        LabError: as for `SoftRouting`, or `read` below 1.
    """

    def __init__(self, experts: Sequence[Transformer], router: Router, read: int = 8):
        super().__init__()
        if read < 1:
            raise LabError(f"read is {read}: the router must see at least 1 token to choose")
        self.soft = SoftRouting(experts, router)
        self.read, self.vocab_size = read, experts[0].config.vocab_size

    def choose(self, input_ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B,) the expert of each text, from its first `read` tokens."""
        return self.soft.router(input_ids[:, : self.read]).logits[:, -1].argmax(-1)

    def forward(self, input_ids: Tensor) -> Mixed:
        """(B, T) token ids -> log-probabilities (B, T, V) and the weights in use (B, T, K)."""
        early = min(self.read - 1, input_ids.shape[1])
        parts = [self.soft(input_ids[:, :early])] if early else []
        if early < input_ids.shape[1]:
            parts.append(self._alone(input_ids, early))
        return Mixed(
            torch.cat([part.logits for part in parts], dim=1),
            torch.cat([part.weights for part in parts], dim=1),
        )

    def _alone(self, input_ids: Tensor, start: int) -> Mixed:
        choice_B = self.choose(input_ids)
        experts = self.soft.experts
        weights_BK = nn.functional.one_hot(choice_B, len(experts)).float()
        length = input_ids.shape[1] - start
        log_p_BTV = weights_BK.new_empty(len(input_ids), length, self.vocab_size)
        for k, expert in enumerate(experts):
            mine = choice_B == k
            if mine.any():
                logits = expert(input_ids[mine]).logits[:, start:]
                log_p_BTV[mine] = logits.float().log_softmax(-1)
        return Mixed(log_p_BTV, weights_BK[:, None].expand(-1, length, -1))

    def flops_per_token(self, length: int) -> float:
        """FLOPs for one token: one expert, all of them on the first tokens, and the router."""
        early = min(self.read - 1, length)
        experts = [expert for expert in self.soft.experts if isinstance(expert, Transformer)]
        first = sum(forward_flops(it.config, 1, early) for it in experts) if early else 0
        router = self.soft.router.flops_per_token() * (early + min(self.read, length))
        return _cost(experts[0], length) + (first + router) / length


def _log_probabilities(experts: nn.ModuleList, input_ids: Tensor) -> Tensor:
    """(K, B, T, V), in float32."""
    return torch.stack([expert(input_ids).logits.float().log_softmax(-1) for expert in experts])


def _mixed(log_p_KBTV: Tensor, log_w_KBT: Tensor) -> Mixed:
    return Mixed(mix(log_p_KBTV, log_w_KBT.unsqueeze(-1)), log_w_KBT.exp().movedim(0, -1))


def _cost(expert: nn.Module, length: int) -> float:
    assert isinstance(expert, Transformer)
    return flops_per_token(expert.config, length, training=False)


def _check_experts(experts: Sequence[Transformer]) -> None:
    sizes = sorted({expert.config.vocab_size for expert in experts})
    if len(sizes) != 1:
        raise LabError(
            f"{len(experts)} experts with vocabularies {sizes}: give at least 1, all of one "
            "tokenizer, or their probabilities are of different things"
        )


def _check_router(router: Router, count: int) -> None:
    if router.head.out_features != count:
        raise LabError(
            f"the router scores {router.head.out_features} experts and there are {count}: build it "
            f"with num_experts={count}"
        )
