"""Which class a class folder holds: class names that are given besides are matched with the folders' own names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlp.data.fields import Fields
from vlp.data.labels import Labels
from vlp.data.schema import DataError
from vlp.registry import nearest

SHOWN = 3  # names that a message lists


def label_reader(labels: Labels, folders: Sequence[str] | None, *, where: str) -> Callable[[Fields], int]:
    """What reads the class index of a sample; of class folders among the names that are given, in whatever order."""
    if not folders or labels.field != "cls" or not labels.names:
        return labels.index
    places, plain = class_places(folders, labels.names, where=where), Labels(field=labels.field)
    return lambda fields: places[plain.index(fields)]


def by_order(labels: Labels, folders: Sequence[str] | None) -> str | None:
    """What is to be said where folders have other names than their classes, which are then taken in their order."""
    if not folders or labels.field != "cls" or not labels.names:
        return None
    known = set(map(_plain, labels.names))
    other = [(folder, name) for folder, name in zip(folders, labels.names) if _plain(folder) not in known]
    shown = ", ".join(f"{folder} is {name}" for folder, name in other[:SHOWN])
    more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
    return f"class names are taken in the order of the folders: {shown}{more}" if other else None


def class_places(folders: Sequence[str], names: Sequence[str], *, where: str) -> list[int]:
    """Place among the names of the class of each folder, whose order is the alphabet's.

    By name where every folder has one, capitals, `_` and `-` aside; a name without a folder is a class that no picture
    shows. Else by order, where there are as many names as folders and none stands at another folder's place. DataError
    where neither tells, since every result would be of wrong labels.
    """
    place_of: dict[str, int] = {}
    for place, name in enumerate(names):
        place_of.setdefault(_plain(name), place)
    found = [place_of.get(_plain(folder)) for folder in folders]
    known = [place for place in found if place is not None]
    if len(known) == len(folders):
        return known
    if len(names) == len(folders) and all(place in (None, own) for own, place in enumerate(found)):
        return list(range(len(folders)))
    nameless = [folder for folder, place in zip(folders, found, strict=True) if place is None]
    left = [name for place, name in enumerate(names) if place not in known]
    hint = nearest(_plain(nameless[0]), [_plain(name) for name in left])
    more = f" and {len(nameless) - SHOWN} more" if len(nameless) > SHOWN else ""
    raise DataError(
        f"{where}: no class name for the folder{'s' if len(nameless) > 1 else ''} "
        f"{', '.join(nameless[:SHOWN])}{more} of {len(folders)}"
        f"{hint if hint.startswith('; did') else ''} (names without a folder: {', '.join(left[:SHOWN]) or 'none'}); "
        "rename the folder or the name, take out the folder, or leave the names out: then the folders' names are the "
        "classes"
    )


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
