"""Learning from answers: the divergence is torch's, and the two parts of the loss are mixed as written."""

import pytest
import torch
from torch.nn import functional as F

from core.distillation import divergence, task_loss


def logits(seed):
    return 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_torchs(temperature):
    student, teacher = logits(0), logits(1)
    log_s, log_t = ((x / temperature).log_softmax(1) for x in (student, teacher))
    expected = F.kl_div(log_s, log_t, log_target=True, reduction="none").sum(1)
    assert torch.allclose(divergence(student, teacher, temperature), expected)
    assert (divergence(student, teacher, temperature) > 0).all()
    assert torch.allclose(divergence(teacher + 7, teacher, temperature), torch.zeros(6).double(), atol=1e-12)


def test_a_known_answer():
    """Student logits (1, -2), teacher (3, -1), T = 4: T^2 KL = 0.101984."""
    found = divergence(torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[3.0, -1.0]]).double(), 4.0)
    assert 16 * found.item() == pytest.approx(0.101984, abs=1e-6)


def test_share_mixes_labels_and_answers():
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 4, 0])
    parts = {
        share: task_loss(student, teacher, labels, share=share, temperature=2.0) for share in (0, 0.3, 1)
    }
    assert torch.allclose(parts[0], F.cross_entropy(student, labels))
    assert torch.allclose(parts[1], 4 * divergence(student, teacher, 2.0).mean())
    assert torch.allclose(parts[0.3], 0.7 * parts[0] + 0.3 * parts[1])
