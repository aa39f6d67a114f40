"""A preset's settings as flags of a command line."""

from mldm_plugin.preset_flags import REPEATED, as_flags, fills
from mldm_plugin.training.command_line import TRAINERS


def test_flags():
    given = {"rank": 4, "on": True, "off": False, "unset": None, "rate": 1e-4, "seed": 0, "several": ["a b", "c"]}
    said = ["--rank", "4", "--on", "--rate", "0.0001", "--seed", "0", "--several", "a b", "c"]
    assert as_flags(given) == said
    assert as_flags({"words": [], "set": []}) == []


def test_flags_that_are_given_once_for_each_value_are_those_of_the_trainers():
    fields = [(name, field) for kind in TRAINERS for name, field in kind.model_fields.items()]
    assert {name for name, field in fields if "repeated" in field.metadata} == REPEATED


def test_a_length_that_was_given_is_the_only_one():
    section = {"max_train_steps": 500, "rank": 4}
    assert fills(section, {"num_train_epochs"}) == {"rank": 4}
    assert fills(section, {"rank"}) == {"max_train_steps": 500}
