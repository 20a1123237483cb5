"""The distillation loss between a student's and a teacher's logits (Hinton et al. 2015)."""

from torch import Tensor
from torch.nn import functional


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, label_weight: float
) -> Tensor:
    """Σᵢ (1 − λ) T² KL(softmax(tᵢ / T) ‖ softmax(sᵢ / T)) − λ log softmax(sᵢ)[yᵢ].

    T² keeps the gradient's size as T grows (Hinton et al. 2015, section 2).

    Args:
        student, teacher: logits (rows, vocab), fp32 or wider.
        labels: (rows,) int64.
        temperature: T, divides both models' logits.
        label_weight: λ, the share of the loss on the labels.

    Returns:
        Scalar: the sum over rows, in nats.
    """
    loss = student.new_zeros(())
    if label_weight < 1:
        student_log_p, teacher_log_p = (
            functional.log_softmax(logits / temperature, -1) for logits in (student, teacher)
        )
        divergence = functional.kl_div(student_log_p, teacher_log_p, reduction="sum", log_target=True)
        loss = loss + (1 - label_weight) * temperature**2 * divergence
    if label_weight > 0:
        loss = loss + label_weight * functional.cross_entropy(student, labels, reduction="sum")
    return loss
