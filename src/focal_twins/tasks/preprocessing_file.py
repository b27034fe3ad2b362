"""Reads how an image becomes an input from the description beside an exported file."""

from dataclasses import fields
from typing import Any

from focal_twins.data.decoding import Reading
from focal_twins.errors import UserError


def read_preprocessing(content: dict, preparation: type, rule: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values that a description has for the fields of a preparation, and for those of its rule.

    Args:
        content: the description, in which the rule's fields stand beside the preparation's own.
        preparation: a dataclass with the fields `rule`, which is left out, and `reading`.
        rule: a dataclass.

    Raises:
        UserError: it lacks something.
    """
    try:
        of_rule = {field.name: content[field.name] for field in fields(rule)}
        own = {field.name: content[field.name] for field in fields(preparation) if field.name != "rule"}
    except KeyError as error:
        raise UserError(f"the description of the model lacks preprocessing.{error.args[0]}; export again") from error
    return own | {"reading": Reading.from_dict(own["reading"])}, of_rule
