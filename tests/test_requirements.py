"""The command that installs what is missing."""

import importlib.metadata

import pytest

from mldm_plugin.requirements import packages_of, pip_install

DECLARED = [
    "torch>=2.6",
    'peft>=0.17; extra == "train"',
    "Ray (>=2.40) ; extra == 'cluster'",
    "mldm-plugin[data]; extra == 'cluster'",
]


@pytest.fixture
def declared(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: DECLARED)


def test_packages_are_named_in_the_editions_that_are_asked_for(declared):
    assert pip_install("peft", "torch") == "pip install 'peft>=0.17' 'torch>=2.6'"
    assert pip_install("ray", "other") == "pip install 'Ray>=2.40' other"
    assert packages_of("train") == ["peft"]
    assert packages_of("cluster") == ["Ray"], "not this package, which may be published nowhere"


def test_a_folder_that_was_not_installed_has_names_alone(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert pip_install("peft") == "pip install peft"
