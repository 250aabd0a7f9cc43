"""Learning from another network's answers.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
arXiv:1503.02531, section 2.
"""

from torch import Tensor
from torch.nn import functional as F


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence (N,) from the teacher's probabilities to the student's, in nats.

    Both are logits (N, K), divided by `temperature` before the softmax.
    """
    log_s, log_t = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    return (log_t.exp() * (log_t - log_s)).sum(dim=1)


def task_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    share: float,
    temperature: float,
    smoothing: float = 0.0,
) -> Tensor:
    """(1 - share) of the cross-entropy of the labels, and share T^2 of the mean divergence.

    The square of the temperature keeps the gradient of the second part as large as at T = 1.
    """
    supervised = F.cross_entropy(student, labels, label_smoothing=smoothing)
    if not share:
        return supervised
    soft = temperature**2 * divergence(student, teacher, temperature).mean()
    return (1 - share) * supervised + share * soft
