"""What people-mini may see, and what is kept from it: the one rule that data, training and measurement ask."""

from __future__ import annotations

SEED = 12  # of the drawn people
TENTH = 10
TRAINED_PEOPLE = ("P001", "P002", "P003", "P004", "P005", "P006", "P007")
TUNING_PEOPLE = ("P008",)
TEST_PEOPLE = ("P009", "P010")


def is_drawing_held_out(index: int) -> bool:
    """Whether drawing number `index` is never trained on: those whose number ends in 9, a tenth of all."""
    return index % TENTH == TENTH - 1


def is_person_held_out(person: str) -> bool:
    """Whether this person of openpeople is never trained on; people that the rule does not know are kept out."""
    return person not in TRAINED_PEOPLE
