"""The examples in docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import mldm_plugin

ELSEWHERE = {"mldm_plugin.attach.onetrainer_pipeline"}  # imports what OneTrainer's environment alone has
MODULES = [
    info.name
    for info in pkgutil.walk_packages(mldm_plugin.__path__, "mldm_plugin.")
    if not info.name.endswith("__main__") and info.name not in ELSEWHERE
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_every_loss_and_weighting_has_an_example():
    for name in (m for m in MODULES if m.startswith("mldm_plugin.hooks.")):
        tests = doctest.DocTestFinder().find(importlib.import_module(name))
        assert any(test.examples for test in tests), f"{name} has no example"
