"""Reference solutions and usual wrong answers of chapter 22."""

import math
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from labkit.notebook.projects import smallest_project

# 22.1


def solution_1(differences, reach):
    s = np.std(differences, ddof=1)
    return max(2, math.ceil((1.96 * s / reach) ** 2))


def with_torch(differences, reach):
    s = torch.tensor(differences, dtype=torch.float64).std()
    return torch.tensor(max(2, int(torch.ceil((1.96 * s / reach) ** 2))))


def of_all_values(differences, reach):
    return max(2, math.ceil((1.96 * np.std(differences) / reach) ** 2))


def of_the_whole_width(differences, reach):
    return max(2, math.ceil((1.96 * np.std(differences, ddof=1) / (2 * reach)) ** 2))


def one_standard_error(differences, reach):
    return max(2, math.ceil((np.std(differences, ddof=1) / reach) ** 2))


def not_squared(differences, reach):
    return max(2, math.ceil(1.96 * np.std(differences, ddof=1) / reach))


def without_two(differences, reach):
    return math.ceil((1.96 * np.std(differences, ddof=1) / reach) ** 2)


# 22.2


def _families(count, pairs):
    family = list(range(count))
    for a, b in pairs:
        old, new = family[b], family[a]
        family = [new if f == old else f for f in family]
    return [[i for i in range(count) if family[i] == f] for f in sorted(set(family))]


def solution_2(word_counts, pairs):
    families = _families(len(word_counts), pairs)
    stays = {max(members, key=lambda i: (word_counts[i], -i)) for members in families}
    return [i for i in range(len(word_counts)) if i not in stays]


def with_an_array(word_counts, pairs):
    return np.array(solution_2(word_counts, pairs), dtype=int)


def the_first_stays(word_counts, pairs):
    stays = {min(members) for members in _families(len(word_counts), pairs)}
    return [i for i in range(len(word_counts)) if i not in stays]


def the_last_longest(word_counts, pairs):
    families = _families(len(word_counts), pairs)
    stays = {max(members, key=lambda i: (word_counts[i], i)) for members in families}
    return [i for i in range(len(word_counts)) if i not in stays]


def the_second_goes(word_counts, pairs):
    return sorted({b for _, b in pairs})


def the_stayers(word_counts, pairs):
    gone = solution_2(word_counts, pairs)
    return [i for i in range(len(word_counts)) if i not in gone]


# 22.3


def solution_3(drawn, holds):
    test = set(drawn)
    while True:
        back = {i for i in test if any(j != i and j not in test for j in holds[i])}
        if not back:
            return sorted(test)
        test -= back


def with_arrays(drawn, holds):
    return np.array(solution_3(drawn, holds), dtype=int)


def looked_once(drawn, holds):
    test = set(drawn)
    return sorted(i for i in test if all(j in test for j in holds[i] - {i}))


def no_passage_at_all(drawn, holds):
    return sorted(i for i in drawn if not holds[i] - {i})


def nobody_goes(drawn, holds):
    return sorted(drawn)


def in_the_order_drawn(drawn, holds):
    stays = solution_3(drawn, holds)
    return [i for i in drawn if i in stays]


# 22.4


def solution_4(card_text, measured):
    found = re.findall(r"-?\d+\.\d+", card_text)

    def known(figure):
        digits = len(figure.partition(".")[2])
        return any(f"{x:.{digits}f}" == figure for x in measured)

    return [figure for figure in found if not known(figure)]


def close_enough(card_text, measured):
    found = re.findall(r"-?\d+\.\d+", card_text)
    return [f for f in found if all(abs(float(f) - x) > 0.01 for x in measured)]


def without_signs(card_text, measured):
    found = re.findall(r"\d+\.\d+", card_text)
    digits = [len(f.partition(".")[2]) for f in found]
    return [
        f for f, n in zip(found, digits, strict=True) if all(f"{x:.{n}f}" != f for x in measured)
    ]


def each_once(card_text, measured):
    return list(dict.fromkeys(solution_4(card_text, measured)))


def as_numbers(card_text, measured):
    return [float(figure) for figure in solution_4(card_text, measured)]


# 22.5: folders

GOOD = smallest_project()


class Project(str):
    """A folder's path, which differs from run to run, with a name for the test that does not."""

    __name__ = ""


def _without(*parts):
    project = Path(tempfile.mkdtemp()) / "mine"
    shutil.copytree(GOOD, project)
    (project.joinpath(*parts)).unlink()
    found = Project(project)
    found.__name__ = f"without {'/'.join(parts)}"
    return found


SOLUTIONS = {
    "22.1": solution_1,
    "22.2": solution_2,
    "22.3": solution_3,
    "22.4": solution_4,
    "22.5": str(GOOD),
}

WRONG = {
    "22.1": [
        (of_all_values, "divides by all values"),
        (of_the_whole_width, "to both sides"),
        (one_standard_error, "without the 1.96"),
        (not_squared, "four times"),
        (without_two, "below two"),
    ],
    "22.2": [
        (the_first_stays, "the longest should"),
        (the_last_longest, "the first should"),
        (the_second_goes, "go"),
        (the_stayers, "go"),
    ],
    "22.3": [
        (looked_once, "you looked once"),
        (no_passage_at_all, "may share one"),
        (nobody_goes, "nobody went back"),
        (in_the_order_drawn, "in order"),
    ],
    "22.4": [
        (close_enough, "close is not equal"),
        (without_signs, "sign"),
        (each_once, "as often as it stands"),
        (as_numbers, "as they are written"),
    ],
    "22.5": [
        (_without("README.md"), "no README.md"),
        (_without("evaluation.json"), "no evaluation.json"),
        (_without("compressed", "model.gguf"), "no compressed/model.gguf"),
        ("runs/nothing_of_the_kind", "is no folder"),
        (4, "path of your project folder"),
    ],
}

ALSO_RIGHT = {
    "22.1": [with_torch],
    "22.2": [with_an_array],
    "22.3": [with_arrays],
}
