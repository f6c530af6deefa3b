"""Reference and wrong answers of chapter 07, pretraining objectives."""

import torch
import torch.nn.functional as F

# --- 07.1 --------------------------------------------------------------------------------------


def apply_masks(ids, chosen, fate, others, mask_id):
    inputs, labels = ids.clone(), torch.full_like(ids, -100)
    for place, u, other in zip(chosen.tolist(), fate.tolist(), others.tolist(), strict=True):
        labels[place] = ids[place]
        if u < 0.1:
            inputs[place] = other
        elif u < 0.9:
            inputs[place] = mask_id
    return inputs, labels


def always_hides(ids, chosen, fate, others, mask_id):
    inputs, labels = apply_masks(ids, chosen, fate, others, mask_id)
    inputs[chosen] = mask_id
    return inputs, labels


def asks_for_everything(ids, chosen, fate, others, mask_id):
    return apply_masks(ids, chosen, fate, others, mask_id)[0], ids


def does_not_ask_the_kept(ids, chosen, fate, others, mask_id):
    inputs, labels = apply_masks(ids, chosen, fate, others, mask_id)
    return inputs, torch.where(inputs != ids, labels, -100)


def changes_the_text(ids, chosen, fate, others, mask_id):
    inputs, labels = apply_masks(ids, chosen, fate, others, mask_id)
    ids[:] = inputs
    return ids, labels


def zero_for_nothing(ids, chosen, fate, others, mask_id):
    inputs, labels = apply_masks(ids, chosen, fate, others, mask_id)
    return inputs, labels.clamp(min=0)


# --- 07.2 --------------------------------------------------------------------------------------


def corrupt(ids, spans, sentinels):
    source, target = list(ids), []
    for (start, stop), sentinel in reversed(list(zip(spans, sentinels, strict=False))):
        target = [sentinel, *ids[start:stop], *target]
        source[start:stop] = [sentinel]
    return source, [*target, sentinels[len(spans)]]


def forgets_the_last_sentinel(ids, spans, sentinels):
    source, target = corrupt(ids, spans, sentinels)
    return source, target[:-1]


def one_sentinel_a_token(ids, spans, sentinels):
    source = list(ids)
    for (start, stop), sentinel in zip(spans, sentinels, strict=False):
        source[start:stop] = [sentinel] * (stop - start)
    return source, corrupt(ids, spans, sentinels)[1]


def includes_stop(ids, spans, sentinels):
    longer = [(start, stop + 1) for start, stop in spans]
    return corrupt(ids, spans, sentinels)[0], corrupt(ids, longer, sentinels)[1]


def loses_the_rest(ids, spans, sentinels):
    source, target = corrupt(ids, spans, sentinels)
    return source[: source.index(sentinels[len(spans) - 1]) + 1], target


# --- 07.3 --------------------------------------------------------------------------------------


def restore(source, target, sentinels):
    whole = []
    for token in source:
        if token not in sentinels:
            whole.append(token)
        elif token in target:
            rest = target[target.index(token) + 1 :]
            ends = [i for i, t in enumerate(rest) if t in sentinels]
            whole += rest[: ends[0]] if ends else rest
    return whole


def keeps_sentinels(source, target, sentinels):
    return source


def fills_in_order(source, target, sentinels):
    spans, current = [], None
    for token in target:
        if token in sentinels:
            current = []
            spans.append(current)
        else:
            current.append(token)
    queue = iter(spans)
    return [p for t in source for p in (next(queue) if t in sentinels else [t])]


def keeps_what_was_forgotten(source, target, sentinels):
    whole = []
    for token in source:
        known = token in target or token not in sentinels
        whole += restore([token], target, sentinels) if known else [token]
    return whole


# --- 07.4 --------------------------------------------------------------------------------------


def info_nce(a, b, temperature):
    scores = F.cosine_similarity(a[:, None], b[None], dim=-1) / temperature
    return F.cross_entropy(scores, torch.arange(len(a)), reduction="sum"), len(a)


def takes_the_mean(a, b, temperature):
    total, count = info_nce(a, b, temperature)
    return total / count, count


def dot_products(a, b, temperature):
    scores = a @ b.T / temperature
    return F.cross_entropy(scores, torch.arange(len(a)), reduction="sum"), len(a)


def wrong_axis(a, b, temperature):
    return info_nce(b, a, temperature)


def no_temperature(a, b, temperature):
    return info_nce(a, b, 1.0)


def without_the_partner(a, b, temperature):
    scores = F.cosine_similarity(a[:, None], b[None], dim=-1) / temperature
    others = scores - torch.diag(torch.full((len(a),), torch.inf))
    return (others.logsumexp(1) - scores.diagonal()).sum(), len(a)


# --- 07.5 --------------------------------------------------------------------------------------


def span_lengths(n, d, m):
    return n * (1 - d + d / m), n * (d + d / m) + 1


def without_sentinels(n, d, m):
    return n * (1 - d), n * d


def forgets_the_end(n, d, m):
    return span_lengths(n, d, m)[0], n * (d + d / m)


def reads_everything(n, d, m):
    return float(n), span_lengths(n, d, m)[1]


def last_sentinel_on_both_sides(n, d, m):
    read, written = span_lengths(n, d, m)
    return read + 1, written


SOLUTIONS = {
    "07.1": apply_masks,
    "07.2": corrupt,
    "07.3": restore,
    "07.4": info_nce,
    "07.5": span_lengths,
}

WRONG = {
    "07.1": [
        (always_hides, "hidden at every chosen place"),
        (asks_for_everything, "asking for every token"),
        (does_not_ask_the_kept, "they are asked, too"),
        (changes_the_text, "changes its input in place"),
        (zero_for_nothing, "0 is a token id"),
    ],
    "07.2": [
        (forgets_the_last_sentinel, "missing the sentinel at the end"),
        (one_sentinel_a_token, "a whole span leaves one"),
        (includes_stop, "stop is not part of the span"),
        (loses_the_rest, "the rest of the text follows"),
    ],
    "07.3": [
        (keeps_sentinels, "still holding sentinels"),
        (fills_in_order, "look the span up by its sentinel"),
        (keeps_what_was_forgotten, "its span is empty"),
    ],
    "07.4": [
        (takes_the_mean, "The sum is a mean"),
        (dot_products, "divide each vector by its length"),
        (wrong_axis, "over the wrong axis"),
        (no_temperature, "without the temperature"),
        (without_the_partner, "missing the partner"),
    ],
    "07.5": [
        (without_sentinels, "each span leaves one in the input"),
        (forgets_the_end, "ends with one more sentinel"),
        (reads_everything, "the spans are cut out"),
        (last_sentinel_on_both_sides, "stands in the target only"),
    ],
}
