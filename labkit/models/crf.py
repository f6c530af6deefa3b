"""A linear-chain conditional random field: one score for a whole row of tags.

                 emissions_BTK, from a net                    what each word looks like
    start_K  +  e[0, y0]  +  step[y0, y1]  +  e[1, y1]  +  ...  +  end_K    = score(y)

    log_partition   log of the sum of exp(score) over all K^T rows: the forward algorithm
    loss            log_partition - score of the right row = -ln p(right row)
    marginals       p(tag k at word t): forwards times backwards, or d log_partition / d emissions
    decode          the row with the highest score: Viterbi, the same recursion with max

A softmax on each word chooses tags one by one; here a tag also answers for its neighbours. Tags
that cannot stand side by side (`bio_constraints`) score minus infinity: no path takes them, and no
gradient comes from them. Padding stands at the right and changes nothing.

Sums over words run in float64: at 512 words with scores of 10,000 the log-partition is some
millions, where a float32 is a half apart from its neighbour, and the loss is a difference of two
such numbers.

Legend: B rows, T words, K tags.

Sources: Lafferty, McCallum and Pereira 2001, "Conditional Random Fields"; Rabiner 1989 (forward,
backward, Viterbi); Lample et al. 2016, arXiv:1603.01360 (on top of a net, with start and end).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from labkit.batches.types import IGNORE_INDEX
from labkit.errors import LabError
from labkit.text.bio import may_follow

NEVER = -torch.inf


class Constraints(NamedTuple):
    """Which tags can begin a row, and which can follow which."""

    start_K: Tensor
    """(K,) bool."""
    step_KK: Tensor
    """(K, K) bool: row i, column j: j may stand right after i."""


def bio_constraints(tags: Sequence[str]) -> Constraints:
    """I-X only after B-X or I-X, and not at the beginning.

    Args:
        tags: names of the K tags, in the order of the scores.
    """
    return Constraints(
        torch.tensor([may_follow(None, tag) for tag in tags]),
        torch.tensor([[may_follow(before, tag) for tag in tags] for before in tags]),
    )


class LinearChainCRF(nn.Module):
    """Start, end and transition scores; all begin at 0, where the field is a softmax a word.

    Args:
        num_tags: K, at least 1.
        constraints: what cannot stand side by side; None: nothing is forbidden.
        rate: the scores are `rate` times what is trained. Adam moves every number by about its
            learning rate an update, however large it should become: at a rate made for a
            pretrained net, transitions would stay where they began.

    Raises:
        LabError: no tag, a rate of 0 or less, constraints of another shape, or a tag after which
            nothing may follow.
    """

    start_allowed_K: Tensor
    step_allowed_KK: Tensor

    def __init__(self, num_tags: int, constraints: Constraints | None = None, rate: float = 1.0):
        super().__init__()
        if num_tags < 1 or not rate > 0:
            raise LabError(f"num_tags {num_tags} and rate {rate} must be above 0")
        if constraints is None:
            everything = torch.ones(num_tags, num_tags, dtype=torch.bool)
            constraints = Constraints(everything[0], everything)
        if constraints.start_K.shape != (num_tags,) or constraints.step_KK.shape != (num_tags,) * 2:
            shapes = tuple(constraints.start_K.shape), tuple(constraints.step_KK.shape)
            raise LabError(
                f"constraints have shapes {shapes[0]} and {shapes[1]}: {num_tags} tags need "
                f"({num_tags},) and ({num_tags}, {num_tags})"
            )
        if not bool(constraints.start_K.any()) or not bool(constraints.step_KK.any(1).all()):
            raise LabError("the constraints leave no way to begin or to go on: allow some tag")
        self.num_tags, self.rate = num_tags, rate
        self.start_K = nn.Parameter(torch.zeros(num_tags))
        self.end_K = nn.Parameter(torch.zeros(num_tags))
        self.transitions_KK = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.register_buffer("start_allowed_K", constraints.start_K.clone(), persistent=False)
        self.register_buffer("step_allowed_KK", constraints.step_KK.clone(), persistent=False)

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """start (K,), end (K,) and step (K, K), minus infinity where the constraints forbid."""
        return (
            (self.rate * self.start_K).masked_fill(~self.start_allowed_K, NEVER),
            self.rate * self.end_K,
            (self.rate * self.transitions_KK).masked_fill(~self.step_allowed_KK, NEVER),
        )

    def forward(
        self,
        emissions_BTK: Float[Tensor, "B T K"],
        tags_BT: Int[Tensor, "B T"],
        mask_BT: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """-ln p(right row | emissions), summed over the rows, and the number of *words*.

        The count is that of a softmax on each word: both losses are nats a word, a long row weighs
        as its words do, and one learning rate serves both.

        Args:
            emissions_BTK: scores of a net; computed on in at least float32, also under autocast.
            tags_BT: the right tags, 0 .. K - 1; what stands in padding does not matter.
            mask_BT: True: a word, False: padding, at the right only; None: all words.

        Returns:
            (sum in nats, count). A row without a word adds exactly nothing.

        Raises:
            LabError: a tag out of range, a right row that the constraints forbid, or a mask with
                holes.

        Source: Lafferty et al. 2001, section 3.
        """
        mask_BT = self._mask(emissions_BTK, mask_BT)
        right_B = self.score(emissions_BTK, tags_BT, mask_BT)
        if _readable(right_B) and bool((right_B == NEVER).any()):
            row = int((right_B == NEVER).nonzero()[0])
            raise LabError(
                f"the tags of row {row} break the constraints, so their loss is infinite: correct "
                "them, or build the field without constraints"
            )
        total = (self.log_partition(emissions_BTK, mask_BT) - right_B).sum()
        return total.to(_at_least_fp32(emissions_BTK).dtype), mask_BT.sum()

    def score(
        self,
        emissions_BTK: Float[Tensor, "B T K"],
        tags_BT: Int[Tensor, "B T"],
        mask_BT: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"]:
        """The score of given rows, float64; minus infinity where the constraints forbid one.

        Arguments and errors as in `forward`.
        """
        mask_BT = self._mask(emissions_BTK, mask_BT)
        tags_BT = tags_BT.masked_fill(~mask_BT, 0)
        if _readable(tags_BT) and tags_BT.numel():
            worst = int(tags_BT.min()) if int(tags_BT.min()) < 0 else int(tags_BT.max())
            if not 0 <= worst < self.num_tags:
                raise LabError(f"tag {worst} is out of range: use 0 to {self.num_tags - 1}")
        start_K, end_K, step_KK = self.scores()
        emissions_BTK = _at_least_fp32(emissions_BTK)
        last_B = (mask_BT.sum(1) - 1).clamp(min=0)
        own_BT = emissions_BTK.gather(2, tags_BT.unsqueeze(2)).squeeze(2)
        steps_BT = step_KK[tags_BT[:, :-1], tags_BT[:, 1:]]
        ends_B = start_K[tags_BT[:, 0]].double() + end_K[tags_BT.gather(1, last_B[:, None])[:, 0]]
        # Where, not times 0: 0 times a score that is infinite or broken is not nothing.
        own_B = torch.where(mask_BT, own_BT, 0.0).double().sum(1)
        steps_B = torch.where(mask_BT[:, 1:], steps_BT, 0.0).double().sum(1)
        return torch.where(mask_BT[:, 0], own_B + steps_B + ends_B, 0.0)

    def log_partition(
        self,
        emissions_BTK: Float[Tensor, "B T K"],
        mask_BT: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, " B"]:
        """ln of the sum of exp(score) over all rows of tags, float64: the forward algorithm.

        alpha_t[j] = e_t[j] + logsumexp_i(alpha_{t-1}[i] + step[i, j]), over words of each row.

        Cost: T K^2 for each row, instead of K^T.
        """
        mask_BT = self._mask(emissions_BTK, mask_BT)
        alpha_BTK, offset_BT = self._forwards(_at_least_fp32(emissions_BTK), mask_BT)
        _, end_K, _ = self.scores()
        final_B = logsumexp(alpha_BTK[:, -1] + end_K, dim=1).double() + offset_BT[:, -1]
        return torch.where(mask_BT[:, 0], final_B, 0.0)

    def marginals(
        self,
        emissions_BTK: Float[Tensor, "B T K"],
        mask_BT: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T K"]:
        """p(tag k at word t), over all rows of tags: forwards and backwards; 0 in padding.

        p_t[k] is proportional to exp(alpha_t[k] + beta_t[k]).

        Source: Rabiner 1989, equations 24 to 27.
        """
        mask_BT = self._mask(emissions_BTK, mask_BT)
        emissions_BTK = _at_least_fp32(emissions_BTK)
        alpha_BTK, _ = self._forwards(emissions_BTK, mask_BT)
        beta_BTK = self._backwards(emissions_BTK, mask_BT)
        # Forwards repeats the last word's alpha in padding; there beta is the end, too.
        return (alpha_BTK + beta_BTK).softmax(-1) * mask_BT.unsqueeze(-1)

    def marginals_by_gradient(
        self,
        emissions_BTK: Float[Tensor, "B T K"],
        mask_BT: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T K"]:
        """The same: d log_partition / d emissions. The backward pass *is* the backward algorithm.

        Source: Eisner 2016, "Inside-Outside and Forward-Backward Algorithms Are Just Backprop".
        """
        with torch.enable_grad():
            free_BTK = _at_least_fp32(emissions_BTK.detach()).requires_grad_()
            total = self.log_partition(free_BTK, mask_BT).sum()
            (marginals_BTK,) = torch.autograd.grad(total, free_BTK)
        return marginals_BTK

    @torch.no_grad()
    def decode(
        self,
        emissions_BTK: Float[Tensor, "B T K"],
        mask_BT: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Int[Tensor, "B T"], Float[Tensor, " B"]]:
        """The row of tags with the highest score, and that score (float64): Viterbi.

        Returns:
            tags (B, T), `IGNORE_INDEX` in padding; scores (B,), 0 of a row without a word.

        Source: Viterbi 1967; Rabiner 1989, section III.B.
        """
        mask_BT = self._mask(emissions_BTK, mask_BT)
        emissions_BTK = _at_least_fp32(emissions_BTK)
        start_K, end_K, step_KK = self.scores()
        stay_K = torch.arange(self.num_tags, device=emissions_BTK.device)
        best_BK = start_K + emissions_BTK[:, 0]
        offset_B = torch.zeros(len(best_BK), dtype=torch.float64, device=best_BK.device)
        came_from = []
        for t in range(1, emissions_BTK.shape[1]):
            here_B1 = mask_BT[:, t, None]
            top_B1 = best_BK.amax(1, keepdim=True)  # keeps the numbers small: only sums grow
            best_BK, offset_B = best_BK - top_B1, offset_B + top_B1[:, 0].double()
            reached_BK, from_BK = (best_BK.unsqueeze(2) + step_KK).max(1)
            best_BK = torch.where(here_B1, reached_BK + emissions_BTK[:, t], best_BK)
            came_from.append(torch.where(here_B1, from_BK, stay_K))
        score_B, tag_B = (best_BK + end_K).max(1)
        tags = [tag_B]
        for from_BK in reversed(came_from):
            tags.append(from_BK.gather(1, tags[-1][:, None])[:, 0])
        tags_BT = torch.stack(tags[::-1], 1).masked_fill(~mask_BT, IGNORE_INDEX)
        return tags_BT, torch.where(mask_BT[:, 0], score_B.double() + offset_B, 0.0)

    def _forwards(self, emissions_BTK: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (B, T, K) less its own maximum, and what was taken off until then, (B, T).

        The maximum counts as a constant: it is taken off and added again, so it has no gradient.
        """
        start_K, _, step_KK = self.scores()
        alpha_BK = start_K + emissions_BTK[:, 0]
        offset_B = torch.zeros(len(alpha_BK), dtype=torch.float64, device=alpha_BK.device)
        alphas, offsets = [], []
        for t in range(emissions_BTK.shape[1]):
            if t:
                reached_BK = logsumexp(alpha_BK.unsqueeze(2) + step_KK, dim=1)
                reached_BK = reached_BK + emissions_BTK[:, t]
                alpha_BK = torch.where(mask_BT[:, t, None], reached_BK, alpha_BK)
            top_B1 = alpha_BK.detach().amax(1, keepdim=True)
            alpha_BK, offset_B = alpha_BK - top_B1, offset_B + top_B1[:, 0].double()
            alphas.append(alpha_BK)
            offsets.append(offset_B)
        return torch.stack(alphas, 1), torch.stack(offsets, 1)

    def _backwards(self, emissions_BTK: Tensor, mask_BT: Tensor) -> Tensor:
        """beta_t[i] = logsumexp_j(step[i, j] + e_{t+1}[j] + beta_{t+1}[j]), less its maximum."""
        _, end_K, step_KK = self.scores()
        beta_BK = end_K.expand(len(emissions_BTK), -1)
        betas = [beta_BK]
        for t in range(emissions_BTK.shape[1] - 1, 0, -1):
            after_BK = emissions_BTK[:, t] + beta_BK
            reached_BK = logsumexp(step_KK + after_BK.unsqueeze(1), dim=2)
            reached_BK = reached_BK - reached_BK.detach().amax(1, keepdim=True)
            beta_BK = torch.where(mask_BT[:, t, None], reached_BK, beta_BK)
            betas.append(beta_BK)
        return torch.stack(betas[::-1], 1)

    def _mask(self, emissions_BTK: Tensor, mask_BT: Tensor | None) -> Tensor:
        B, T, K = emissions_BTK.shape
        if self.num_tags != K or T < 1:
            raise LabError(
                f"emissions have {K} tags at {T} places: give {self.num_tags} tags, and a place"
            )
        if mask_BT is None:
            return torch.ones(B, T, dtype=torch.bool, device=emissions_BTK.device)
        mask_BT = mask_BT.bool()
        if mask_BT.shape != (B, T):
            raise LabError(f"the mask has shape {tuple(mask_BT.shape)}: give ({B}, {T})")
        if _readable(mask_BT) and bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
            row = int((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any(1).nonzero()[0])
            raise LabError(
                f"the mask of row {row} has padding before a word: gather the words at the left"
            )
        return mask_BT


def logsumexp(scores: Tensor, dim: int) -> Tensor:
    """ln of the sum of exp(scores), whose gradient is 0, not NaN, where all are minus infinity."""
    top = scores.detach().amax(dim, keepdim=True)
    top = torch.where(top == NEVER, 0.0, top)
    total = (scores - top).exp().sum(dim)
    some = total > 0
    # The inner where keeps ln 0 out of the graph; the outer one alone would let its NaN through.
    return torch.where(some, torch.where(some, total, 1.0).log(), NEVER) + top.squeeze(dim)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _readable(x: Tensor) -> bool:
    """Reading a value would stall a GPU or break a compiled graph."""
    return not (x.is_cuda or torch.compiler.is_compiling())
