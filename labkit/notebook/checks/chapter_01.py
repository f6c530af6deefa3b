"""Checkers of chapter 01, language models."""

import math

import torch

from labkit.notebook.exercises import Fresh, compare, exercise, require


@exercise("01.1", title="the chain rule")
def text_log_probability(attempt, fresh: Fresh) -> None:
    V = 5
    weight_VV = fresh.normal(V, V)
    ids = fresh.integers(0, V, 6).tolist()

    def next_probabilities(before):
        logits_V = weight_VV[before].sum(0) if before else torch.zeros(V, dtype=torch.float64)
        return logits_V.softmax(-1)

    steps = torch.stack([next_probabilities(ids[:t])[w] for t, w in enumerate(ids)])
    seen = torch.stack([next_probabilities(ids[: t + 1])[w] for t, w in enumerate(ids)])
    last = torch.stack([next_probabilities(ids[max(0, t - 1) : t])[w] for t, w in enumerate(ids)])
    compare(
        attempt(next_probabilities, ids),
        steps.log().sum(),
        {
            "the probability itself: return its logarithm, the sum of the logarithms": steps.prod(),
            "a sum of probabilities: multiply them, or add their logarithms": steps.sum(),
            "of the right text with the answer in sight: the token itself belongs not to what "
            "stands before it": seen.log().sum(),
            "without the first token: it has a probability too, after nothing": steps[1:]
            .log()
            .sum(),
            "in bits: use the natural logarithm": steps.log2().sum(),
            "a mean over the tokens: the chain rule is a sum": steps.log().mean(),
            "of the wrong sign: a log-probability is not positive": -steps.log().sum(),
            "read from the last token alone: give next_probabilities everything before": (
                last.log().sum()
            ),
        },
    )
    none = attempt(next_probabilities, [])
    compare(none, 0.0, what="The log-probability of the empty text")


@exercise("01.2", title="add-k")
def add_k(attempt, fresh: Fresh) -> None:
    for V, k in ((7, 1.0), (12, 0.05)):
        counts_V = fresh.integers(1, 9, V).double()
        counts_V[fresh.permutation(V)[: V // 2]] = 0
        total, types = counts_V.sum(), int((counts_V > 0).sum())
        compare(
            attempt(counts_V, k),
            (counts_V + k) / (total + k * V),
            {
                "without k above the line: unseen tokens still have probability 0": (
                    counts_V / (total + k * V)
                ),
                "not smoothed: k is missing": counts_V / total,
                "raised by k once below the line: all V tokens were raised, so the total grows by "
                "k V, and the result now sums to more than 1": (counts_V + k) / (total + k),
                "divided by the old total: the probabilities sum to more than 1": (
                    (counts_V + k) / total
                ),
                "with the number of seen tokens for V: every token of the vocabulary was raised, "
                "seen or not": (counts_V + k) / (total + k * types),
            },
            what=f"The distribution for k = {k}",
        )
    got = attempt(torch.zeros(4, dtype=torch.float64), 0.5)
    compare(got, torch.full((4,), 0.25), what="The distribution of a history that never occurred")


@exercise("01.3", title="perplexity to bits per byte")
def to_bits_per_byte(attempt, fresh: Fresh) -> None:
    for _ in range(2):
        perplexity = float(fresh.uniform(1, low=5.0, high=60.0))
        tokens = fresh.integer(20, 60)
        num_bytes = tokens * fresh.integer(2, 5) + 1
        compare(
            attempt(perplexity, tokens, num_bytes),
            math.log2(perplexity) * tokens / num_bytes,
            {
                "in nats: take the logarithm to base 2": (
                    math.log(perplexity) * tokens / num_bytes
                ),
                "bits per token: a token is not a byte": math.log2(perplexity),
                "perplexity spread over the bytes: it is not a length, its logarithm is": (
                    perplexity * tokens / num_bytes
                ),
                "upside down: bits of the whole text over its bytes, not the reverse": (
                    math.log2(perplexity) * num_bytes / tokens
                ),
                "missing the number of tokens: the logarithm is the mean over tokens": (
                    math.log2(perplexity) / num_bytes
                ),
            },
        )


@exercise("01.4", title="continuation counts")
def continuation(attempt, fresh: Fresh) -> None:
    for N, V in ((40, 6), (60, 9)):
        tokens = fresh.integers(0, V - 1, N)  # the last id never occurs
        pairs = torch.unique(torch.stack((tokens[:-1], tokens[1:])), dim=1)
        before = torch.bincount(pairs[1], minlength=V).double()
        after = torch.bincount(pairs[0], minlength=V).double()
        often = torch.bincount(tokens, minlength=V).double()
        second = torch.bincount(tokens[1:], minlength=V).double()
        compare(
            attempt(tokens, V),
            before / before.sum(),
            {
                "plain frequency: count different tokens before w, each once": often / N,
                "the frequency of w as second of a pair: count each different pair once": (
                    second / (N - 1)
                ),
                "the number of different tokens after w: look at what stands before it": (
                    after / after.sum()
                ),
                "divided by the number of places: divide by the number of different pairs, so that "
                "the shares sum to 1": before / (N - 1),
                "divided by V: divide by the number of different pairs": before / V,
                "counts: divide by their sum": before,
            },
            what=f"The distribution for {N} tokens",
        )


@exercise("01.5", title="discount and interpolate")
def discounted(attempt, fresh: Fresh) -> None:
    for V, D in ((8, 0.75), (11, 0.4)):
        counts_V = fresh.integers(1, 7, V).double()
        counts_V[fresh.permutation(V)[: V // 2]] = 0
        lower_V = fresh.probabilities(V)
        total, types = counts_V.sum(), int((counts_V > 0).sum())
        own = (counts_V - D).clamp(min=0) / total
        left = D * types / total
        rest = lower_V * (counts_V == 0)
        compare(
            attempt(counts_V, lower_V, D),
            own + left * lower_V,
            {
                "negative where a token was not seen: nothing can be taken from a count of 0": (
                    (counts_V - D) / total + left * lower_V
                ),
                "missing mass: D was taken from each of the seen tokens, so D times their number "
                "goes to the shorter history": own + D / total * lower_V,
                "without the shorter history: what was taken must be handed on": own,
                "of sum larger than 1: the shorter history gets only the mass that was taken": (
                    own + lower_V
                ),
                "without the discount: both parts together sum to more than 1": (
                    counts_V / total + left * lower_V
                ),
                "back-off, not interpolation: seen tokens get their part of the shorter history "
                "too": own + left * rest / rest.sum(),
                "short of mass: D V was handed on, also for tokens that had nothing to give": (
                    own + D * V / total * lower_V
                ),
            },
            what=f"The distribution for D = {D}",
            tolerance=1e-6,  # D times a whole-number tensor is float32 in torch
        )
    lower_V = fresh.probabilities(5)
    got = attempt(torch.zeros(5, dtype=torch.float64), lower_V, 0.75)
    require(
        isinstance(got, torch.Tensor) and bool(torch.isfinite(got).all()),
        "After a history that never occurred the total is 0: return the shorter history's "
        "distribution unchanged.",
    )
    compare(got, lower_V, what="The distribution of a history that never occurred")


@exercise("01.6", title="one step of an LSTM")
def lstm_step(attempt, fresh: Fresh) -> None:
    for D, H in ((3, 4), (5, 5)):
        x, h, c = fresh.normal(D), fresh.normal(H), fresh.normal(H)
        W, U, b = fresh.normal(4 * H, D), fresh.normal(4 * H, H), fresh.normal(4 * H)
        z_i, z_f, z_g, z_o = (W @ x + U @ h + b).chunk(4)
        i, f, g, o = z_i.sigmoid(), z_f.sigmoid(), z_g.tanh(), z_o.sigmoid()
        c_new = f * c + i * g
        got = attempt(x, h, c, W, U, b)
        require(
            isinstance(got, (tuple, list)) and len(got) == 2,
            "Return a pair: the new h and the new c.",
        )
        no_state = (W @ x + b).chunk(4)
        compare(
            got[1],
            c_new,
            {
                "with input and forget gate exchanged: the rows stand in the order i, f, g, o": (
                    i * c + f * g
                ),
                "without tanh: the candidate g goes through tanh": f * c + i * z_g,
                "made with a sigmoid for g: a candidate may be negative, so tanh": (
                    f * c + i * z_g.sigmoid()
                ),
                "without memory: f * c is missing": i * g,
                "without a forget gate": c + i * g,
                "blind to h: the recurrent weights U are missing": (
                    no_state[1].sigmoid() * c + no_state[0].sigmoid() * no_state[2].tanh()
                ),
                "the new h: return h first, then c": o * c_new.tanh(),
            },
            what="The new c",
        )
        compare(
            got[0],
            o * c_new.tanh(),
            {
                "without tanh: h is o * tanh(c)": o * c_new,
                "made from the old c": o * c.tanh(),
                "without the output gate": c_new.tanh(),
            },
            what="The new h",
        )
