"""Learning from another model's answers: its whole distribution at a temperature, not one label.

    batch ──> teacher ──> softmax(u / T) = p ─┐
          └─> model ────> softmax(z / T) = q ─┴─> T^2 KL(p || q)     d / dz = T (q - p)

    share of it + (1 - share) of the labels' cross-entropy, at the positions that count

The teacher may be larger (compression), or the model itself before it learned something new
(learning without forgetting: the new data then ask for the old answers).

Legend: N positions, V vocabulary or classes.

Sources: Hinton et al. 2015, arXiv:1503.02531, section 2 (temperature, T^2); Li & Hoiem 2016,
arXiv:1606.09282 (the old model as teacher).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.batches import IGNORE_INDEX, Batch
from labkit.errors import LabError
from labkit.objectives.losses import cross_entropy


def soft_targets(
    logits_NV: Float[Tensor, "N V"],
    teacher_NV: Float[Tensor, "N V"],
    targets_N: Int[Tensor, " N"],
    temperature: float = 1.0,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """T^2 KL(softmax(u / T) || softmax(z / T)), summed over the positions that count.

    The factor T^2 keeps the gradient's size: for large T it tends to (z - u) / V.

    Args:
        logits_NV: z, of the model that learns.
        teacher_NV: u, of the teacher; no gradient goes there.
        targets_N: `IGNORE_INDEX` where a position does not count; other values are not looked at.
        temperature: T, above 0.

    Returns:
        (sum in nats, count). With no valid target: (0, 0). 0 where both agree.

    Raises:
        LabError: the temperature is out of range, or the shapes differ.

    Source: Hinton et al. 2015, section 2.
    """
    if not 0 < temperature < math.inf:
        raise LabError(f"temperature {temperature} is out of range: choose a number above 0")
    if logits_NV.shape != teacher_NV.shape:
        raise LabError(
            f"the teacher's logits have shape {tuple(teacher_NV.shape)} and the model's "
            f"{tuple(logits_NV.shape)}: both need one vocabulary"
        )
    valid_N = targets_N != IGNORE_INDEX
    z, u = logits_NV[valid_N], teacher_NV[valid_N].detach()
    if z.dtype != torch.float64:
        z, u = z.float(), u.float()
    log_q, log_p = (z / temperature).log_softmax(-1), (u / temperature).log_softmax(-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(), valid_N.sum()


class Distilled:
    """The labels and a teacher's soft targets together, while the model trains.

    In evaluation mode it is the cross-entropy of the labels alone. Serves classifiers and language
    models; holds the B x T x V logits of both.
    """

    def __init__(self, teacher: nn.Module, share: float = 0.5, temperature: float = 2.0):
        """
        Args:
            teacher: a model with the same outputs, on the same device. It is put into evaluation
                mode and gets no gradient; it must be another object than the model that trains.
            share: of the teacher's targets in the loss, 0 to 1; 1 looks at no label.
            temperature: T, above 0.

        Raises:
            LabError: share or temperature out of range.
        """
        if not 0 <= share <= 1:
            raise LabError(f"share {share} is out of range: choose 0 to 1")
        if not 0 < temperature < math.inf:
            raise LabError(f"temperature {temperature} is out of range: choose a number above 0")
        self.teacher, self.share, self.temperature = teacher.eval(), share, temperature

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum in nats, count of labels that count).

        Raises:
            LabError: the teacher is the model itself, or has another vocabulary.
        """
        if self.teacher is model:
            raise LabError(
                "the teacher is the model that trains, and would move along: give a copy "
                "(copy.deepcopy), made before the training"
            )
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits, labels_N = model(**inputs).logits, batch["labels"].flatten()
        logits_NV = logits.flatten(0, -2)
        hard, count = cross_entropy(logits_NV, labels_N)
        if not model.training or not self.share:
            return hard, count
        with torch.no_grad():
            teacher_NV = self.teacher(**inputs).logits.flatten(0, -2)
        soft, _ = soft_targets(logits_NV, teacher_NV, labels_N, self.temperature)
        return (1 - self.share) * hard + self.share * soft, count
