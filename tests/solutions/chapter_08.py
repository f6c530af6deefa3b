"""Reference solutions and usual wrong answers of chapter 08."""

import math

import numpy as np
import torch

# 08.1


def solution_1(tokens_N, T):
    W = (len(tokens_N) - 1) // T
    return tokens_N[: W * T].view(W, T), tokens_N[1 : W * T + 1].view(W, T)


def in_a_loop(tokens_N, T):
    starts = range(0, len(tokens_N) - T, T)
    inputs = [tokens_N[i : i + T].tolist() for i in starts]
    return np.array(inputs), np.array([tokens_N[i + 1 : i + T + 1].tolist() for i in starts])


def by_unfolding(tokens_N, T):
    chunks = tokens_N.unfold(0, T + 1, T)
    return chunks[:, :-1], chunks[:, 1:]


def not_shifted(tokens_N, T):
    return solution_1(tokens_N, T)[0], solution_1(tokens_N, T)[0]


def shifted_twice(tokens_N, T):
    inputs, _ = solution_1(tokens_N, T)
    shifted = torch.cat([tokens_N[2 : inputs.numel() + 1], tokens_N[-1:]])
    return inputs, shifted.view(inputs.shape)


def backwards(tokens_N, T):
    return solution_1(tokens_N, T)[::-1]


def overlapping(tokens_N, T):
    return tokens_N[:-1].unfold(0, T, 1), tokens_N[1:].unfold(0, T, 1)


def short(tokens_N, T):
    inputs, _ = solution_1(tokens_N, T)
    return inputs[:, :-1], inputs[:, 1:]


def step_too_long(tokens_N, T):
    W = len(tokens_N) // (T + 1)
    chunks = tokens_N[: W * (T + 1)].view(W, T + 1)
    return chunks[:, :-1], chunks[:, 1:]


# 08.2


def solution_2(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (devices * peak * utilisation) / 3600


def seconds(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (devices * peak * utilisation)


def forward_only(parameters, tokens, devices, peak, utilisation):
    return 2 * parameters * tokens / (devices * peak * utilisation) / 3600


def at_peak(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (devices * peak) / 3600


def one_device(parameters, tokens, devices, peak, utilisation):
    return 6 * parameters * tokens / (peak * utilisation) / 3600


# 08.3


def solution_3(document_ids_T):
    positions = []
    for t, number in enumerate(document_ids_T.tolist()):
        goes_on = t > 0 and number == document_ids_T[t - 1]
        positions.append(positions[-1] + 1 if goes_on else 0)
    return positions


def at_once(document_ids_T):
    place = torch.arange(len(document_ids_T))
    begins = torch.ones(len(place), dtype=torch.bool)
    begins[1:] = document_ids_T[1:] != document_ids_T[:-1]
    return place - (place * begins).cummax(0).values


def in_numpy(document_ids_T):
    return np.array(solution_3(document_ids_T))


def whole_row(document_ids_T):
    return torch.arange(len(document_ids_T))


def from_one(document_ids_T):
    return at_once(document_ids_T) + 1


def goes_on(document_ids_T):
    ids = document_ids_T.tolist()
    return [ids[:t].count(number) for t, number in enumerate(ids)]


def the_number(document_ids_T):
    return document_ids_T


# 08.4


def solution_4(ours_D, theirs_D, bytes_D):
    saved_D, D = (ours_D - theirs_D) / math.log(2), len(bytes_D)
    without_D = (saved_D.sum() - saved_D) / (bytes_D.sum() - bytes_D)
    error = ((D - 1) / D * ((without_D - without_D.mean()) ** 2).sum()).sqrt()
    return saved_D.sum() / bytes_D.sum(), error


def one_by_one(ours_D, theirs_D, bytes_D):
    def difference(rows):
        nats = sum(float(ours_D[d] - theirs_D[d]) for d in rows)
        return nats / math.log(2) / sum(float(bytes_D[d]) for d in rows)

    D = len(bytes_D)
    left_out = [difference([d for d in range(D) if d != k]) for k in range(D)]
    return difference(range(D)), float(np.std(left_out) * (D - 1) ** 0.5)


def mean_of_documents(ours_D, theirs_D, bytes_D):
    each_D = (ours_D - theirs_D) / math.log(2) / bytes_D
    return each_D.mean(), each_D.std() / len(each_D) ** 0.5


def in_nats(ours_D, theirs_D, bytes_D):
    return tuple(x * math.log(2) for x in solution_4(ours_D, theirs_D, bytes_D))


def other_way_round(ours_D, theirs_D, bytes_D):
    return solution_4(theirs_D, ours_D, bytes_D)


def plain_deviation(ours_D, theirs_D, bytes_D):
    difference, error = solution_4(ours_D, theirs_D, bytes_D)
    D = len(bytes_D)
    return difference, error * (D / (D - 1)) ** 0.5 / (D - 1) ** 0.5


def without_factor(ours_D, theirs_D, bytes_D):
    difference, error = solution_4(ours_D, theirs_D, bytes_D)
    return difference, error * (len(bytes_D) / (len(bytes_D) - 1)) ** 0.5


def no_root(ours_D, theirs_D, bytes_D):
    difference, error = solution_4(ours_D, theirs_D, bytes_D)
    return difference, error**2


# 08.5


def solution_5(step, n, batch_size, seed):
    epoch, place = divmod(step, n // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[place * batch_size : (place + 1) * batch_size].tolist()


def reseeded(step, n, batch_size, seed):
    return np.random.default_rng(seed).permutation(n)[:batch_size].tolist()


def fresh_draw(step, n, batch_size, seed):
    return np.random.default_rng([seed, step]).permutation(n)[:batch_size].tolist()


def global_state(step, n, batch_size, seed):
    return np.random.default_rng().permutation(n)[:batch_size].tolist()


def same_epochs(step, n, batch_size, seed):
    place = step % (n // batch_size)
    order = np.random.default_rng(seed).permutation(n)
    return order[place * batch_size : (place + 1) * batch_size].tolist()


def unshuffled(step, n, batch_size, seed):
    place = step % (n // batch_size)
    return list(range(place * batch_size, (place + 1) * batch_size))


def an_array(step, n, batch_size, seed):
    return np.array(solution_5(step, n, batch_size, seed))


def a_tensor(step, n, batch_size, seed):
    return torch.tensor(solution_5(step, n, batch_size, seed))


SOLUTIONS = {
    "08.1": solution_1,
    "08.2": solution_2,
    "08.3": solution_3,
    "08.4": solution_4,
    "08.5": solution_5,
}

#: Other right answers.
ALSO_RIGHT = {
    "08.1": [in_a_loop, by_unfolding],
    "08.3": [at_once, in_numpy],
    "08.4": [one_by_one],
    "08.5": [an_array, a_tensor],
}

WRONG = {
    "08.1": [
        (not_shifted, "not shifted"),
        (shifted_twice, "shifted twice"),
        (backwards, "wrong way round"),
        (overlapping, "overlapping"),
        (short, "one token short"),
        (step_too_long, "a stride of T + 1"),
    ],
    "08.2": [
        (seconds, "seconds"),
        (forward_only, "forward pass only"),
        (at_peak, "utilisation"),
        (one_device, "one device"),
    ],
    "08.3": [
        (whole_row, "begins again at 0"),
        (from_one, "from 1"),
        (goes_on, "it is a new document"),
        (the_number, "not the place in it"),
    ],
    "08.4": [
        (mean_of_documents, "the mean over documents"),
        (in_nats, "divide by ln 2"),
        (other_way_round, "theirs less ours"),
        (plain_deviation, "plain standard deviation"),
        (without_factor, "without the factor"),
        (no_root, "take the root"),
    ],
    "08.5": [
        (reseeded, "the data repeats"),
        (fresh_draw, "leaves out"),
        (global_state, "answers differently"),
        (same_epochs, "order of the first"),
        (unshuffled, "shuffle"),
    ],
}
