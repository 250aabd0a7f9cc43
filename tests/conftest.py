"""Shared fixtures: a small network, data that it can learn in seconds, real data where they are at hand."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from promises import assert_says
from tiny import ROOT, TinyResNet, plain_network, quadrants, vary
from torch import nn

from core import prepared
from core.bundles import DatasetBundle, Setting, data_directory
from core.errors import UnsupportedModelError
from core.recipe import COMPRESSORS, Recipe, compress


def pytest_configure() -> None:
    torch.set_num_threads(1)  # bits do not depend on the machine, and parallel tests do not fight


@pytest.fixture
def tiny_model() -> nn.Module:
    """A small residual network in eval mode, frozen, with batch norms that differ by channel."""
    torch.manual_seed(0)
    return vary(TinyResNet()).eval().requires_grad_(False)


@pytest.fixture
def plain_model() -> nn.Module:
    """A small network without shortcuts: biases, a convolution without batch norm, two linear layers."""
    torch.manual_seed(0)
    return vary(plain_network()).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_data() -> DatasetBundle:
    return DatasetBundle(
        name="quadrants",
        train=quadrants(48, seed=1),
        validation=quadrants(24, seed=2),
        test=quadrants(24, seed=3),
        classes=("top left", "top right", "bottom left", "bottom right"),
        licence="made here",
        source="made here",
    )


@pytest.fixture
def setting(tiny_model: nn.Module, tiny_data: DatasetBundle) -> Setting:
    return Setting(tiny_data.train, tiny_data.validation, tiny_model)


class _Forgetful:
    """In the place of a `Memory`: everything is computed anew."""

    def get(self, key: object) -> None:
        return None

    def put(self, key: object, value: object) -> None:
        pass


@pytest.fixture
def forgetful(monkeypatch) -> None:
    """No map, gradient or logit is remembered, so that equal results have been computed twice."""
    monkeypatch.setattr(prepared, "_REMEMBERED", _Forgetful())


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with CIFAR-10, MNIST and Fashion-MNIST; tests that need it are skipped without it."""
    folder = data_directory()
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 in {folder}: set PRUNESCOPE_DATA to a folder that has it")
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with published weights; tests that need it are skipped without it."""
    folder = Path(os.environ.get("PRUNESCOPE_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no published weights in {folder}: set PRUNESCOPE_SHARED to the folder that has them")
    return folder


@pytest.fixture(scope="session")
def refusals() -> dict[str, bool]:
    """Compressor -> does it say that it is not for residual networks?, filled by `suitable`."""
    return {}


@pytest.fixture
def suitable(plain_model, setting, refusals):
    """Compressor -> a setting whose teacher it works on: the residual network, else the plain one."""

    def choose(name: str) -> Setting:
        if name not in refusals:
            try:
                compress(setting.teacher, setting, Recipe((COMPRESSORS[name](),)))
            except UnsupportedModelError as error:
                assert_says(r"must .*, got ", error)
                refusals[name] = True
            else:
                refusals[name] = False
        return replace(setting, teacher=plain_model) if refusals[name] else setting

    return choose
