"""Suggests the key, section or name that is meant by one that there is not."""

import difflib
from collections.abc import Iterable, Mapping

from focal_twins.config.renamed_keys import RENAMED_KEYS, SYNONYMS


def nearest(key: str, names: Iterable[str]) -> str:
    """Return a hint at the name that is most like one that there is not, or at all names."""
    names = list(names)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"


def meant_key(section: str, local: str, known: Mapping[str, Iterable[str]]) -> str:
    """Return a hint at the key that is meant by one that its section lacks.

    Args:
        known: the keys of each section.
    """
    wanted = SYNONYMS.get(local) or RENAMED_KEYS.get(local)
    name = wanted.partition(".")[2] if wanted else local
    holders = [f"{other}.{name}" for other, keys in known.items() if name in keys]
    if wanted and (wanted in holders or not holders):
        return f"; did you mean {wanted}?"
    return f"; did you mean {' or '.join(holders)}?" if holders else nearest(local, known[section])


def meant_section(section: str, local: str, known: Mapping[str, Iterable[str]]) -> str:
    """Return a hint at what is meant by a key without a section (`section` is empty), or in one that there is not."""
    is_near = difflib.get_close_matches(section, known, n=1, cutoff=0.5)
    wanted = SYNONYMS.get(local) or (None if is_near else RENAMED_KEYS.get(local))
    holders = [f"{other}.{local}" for other, keys in known.items() if local in keys]
    if wanted or (holders and not is_near):
        return f"; did you mean {wanted or ' or '.join(holders)}?"
    return nearest(section or local, known)
