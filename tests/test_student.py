"""The student: as wide as asked, untaught, teachable."""

import pytest
import torch
from tiny import TinyResNet, quadrants, vary

from core.bundles import Setting
from core.evaluation import evaluate
from core.methods.fine_tuning import FineTuning
from core.methods.prune_weights import PruneWeights
from core.methods.student import Student
from core.recipe import Recipe, compress


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    teacher = vary(TinyResNet()).eval().requires_grad_(False)
    return Setting(quadrants(48, seed=1), quadrants(24, seed=2), teacher)


@pytest.mark.parametrize(
    ("width", "expected"), [(0.01, (1, 1)), (0.25, (2, 4)), (0.5, (4, 8)), (1.0, (8, 16))]
)
def test_every_group_keeps_its_share(setting, width, expected):
    student = compress(setting.teacher, setting, Recipe((Student(width=width),))).model
    assert (student.conv1.out_channels, student.layer2[0].conv1.out_channels) == expected
    assert student.linear.out_features == 4
    assert student(setting.validation.images).isfinite().all()


def test_weights_are_new_and_those_of_the_seed(setting):
    made = [
        compress(setting.teacher, setting, Recipe((Student(width=1.0),), seed=s)).model for s in (0, 0, 1)
    ]
    weights = [network.layer2[1].conv1.weight for network in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)
    assert (made[0].bn1.weight == 1).all()
    assert (made[0].bn1.running_var == 1).all()
    assert (made[0].linear.bias == 0).all()


def test_masks_are_forgotten_and_it_can_be_taught(setting):
    steps = (
        PruneWeights(sparsity=0.9),
        Student(width=0.5),
        FineTuning(epochs=12, learning_rate=0.1, batch_size=8, crop=0),
    )
    taught = compress(setting.teacher, setting, Recipe(steps)).model
    assert (taught.layer1[0].conv1.weight != 0).all()
    assert evaluate(taught, quadrants(60, seed=3)).accuracy > 0.8
