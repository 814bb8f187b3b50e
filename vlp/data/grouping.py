"""Members of a tar to samples: by key, with everything that is no sample counted by reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from vlp.data.tarwalk import Member

KeySplit = Literal["first-dot", "last-dot"]


@dataclass(frozen=True, slots=True)
class Note:
    """A reason, how often it was met, and the first example of it."""

    reason: str
    count: int
    example: str


@dataclass(slots=True)
class Group:
    """One sample: its key, and extension -> (offset, size)."""

    key: str
    members: dict[str, tuple[int, int]]


class _Notes:
    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, example: str) -> None:
        count, first = self.seen.get(reason, (0, example))
        self.seen[reason] = (count + 1, first)

    def all(self) -> tuple[Note, ...]:
        return tuple(Note(reason, *found) for reason, found in self.seen.items())


def groups(members: Iterable[Member], *, key_split: KeySplit) -> tuple[list[Group], tuple[Note, ...]]:
    """Samples in order of their first member, and notes.

    `dup_key`: the first sample with a key wins. `orphan_member`: files of one sample that are not adjacent; they are
    joined here, but a streaming reader would tear them apart. Links, devices and paths that leave the archive never
    become samples.
    """
    notes = _Notes()
    found: dict[str, Group] = {}
    for key, run in groupby(_usable(members, key_split, notes), key=lambda item: item[0]):
        for group in _split_repeats(key, run):
            _join(found, group, notes)
    for group in found.values():
        _note_dots(group, notes)
    return list(found.values()), notes.all()


def split_name(name: str, key_split: KeySplit) -> tuple[str, str]:
    """Key and extension (lower case) of a member's name; either may be empty."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".") if key_split == "first-dot" else base.rpartition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), extension.lower()


def _usable(members: Iterable[Member], key_split: KeySplit, notes: _Notes) -> Iterator[tuple[str, str, Member]]:
    for member in members:
        name = member.name
        while name.startswith("./"):
            name = name[2:]
        if member.kind == "folder":
            continue
        if member.kind != "file":
            notes.add("hostile_member", f"{member.name} ({member.kind})")
        elif name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            notes.add("hostile_member", f"{member.name} (path)")
        elif name.rsplit("/", 1)[-1].startswith("__"):
            notes.add("meta_member", name)  # webdataset's own
        else:
            key, extension = split_name(name, key_split)
            if key and extension:
                yield key, extension, member
            else:
                notes.add("no_key", name)


def _split_repeats(key: str, run: Iterable[tuple[str, str, Member]]) -> Iterator[Group]:
    """A run of adjacent members of one key, cut where an extension comes again."""
    group = Group(key, {})
    for _, extension, member in run:
        if extension in group.members:
            yield group
            group = Group(key, {})
        group.members[extension] = (member.offset, member.size)
    yield group


def _join(found: dict[str, Group], group: Group, notes: _Notes) -> None:
    first = found.get(group.key)
    if first is None:
        found[group.key] = group
    elif first.members.keys() & group.members.keys():
        bytes_of = [next(iter(item.members.values()))[0] for item in (first, group)]
        notes.add("dup_key", f"{group.key} at bytes {bytes_of[0]} and {bytes_of[1]}")
    else:
        first.members.update(group.members)
        notes.add("orphan_member", group.key)


def _note_dots(group: Group, notes: _Notes) -> None:
    """Two compound extensions with one last part and no plain one: probably two samples with dots in their names."""
    if len(group.members) < 2:
        return
    compound = [e for e in group.members if "." in e and not e.endswith((".npy", ".npz"))]  # arrays have names
    lasts = [extension.rpartition(".")[2] for extension in compound]
    for extension, last in zip(compound, lasts):
        if last not in group.members and lasts.count(last) > 1:
            other = next(e for e in compound if e != extension and e.endswith(f".{last}"))
            notes.add("dotted_key", f"{group.key}: {extension} and {other}; is it `key_split: last-dot`?")
            return
