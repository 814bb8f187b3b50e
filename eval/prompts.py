"""The class names and templates of a benchmark: from the suite, else from the data set's folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from eval.data import locate
from eval.view import View
from vlp.text.templates import checked, checked_names, read_names, read_templates, template_set

FILES = (".txt", ".json")


def _names(given: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
    return checked_names(given, where="entry") if isinstance(given, tuple) else given


def _templates(given: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
    if isinstance(given, tuple):
        return checked(given, where="entry")
    if given is not None and not given.endswith(FILES):
        template_set(given)
    return given


Names = Annotated[tuple[str, ...] | str | None, AfterValidator(_names)]  # in label order, or a file with them
Templates = Annotated[tuple[str, ...] | str | None, AfterValidator(_templates)]  # a set's name, a file, or themselves


def class_names(given: tuple[str, ...] | str | None, view: View) -> tuple[str, ...]:
    """The names given or in the file given, else those of the data set's folder."""
    if isinstance(given, str):
        return read_names(locate(given, folders=view.folders))
    names = given or view.opened.names
    if not names:
        raise ValueError(
            f"{view.dataset}: no class names: the data set's folder has none (classnames.txt), so give "
            "`names: [...]` or `names: FILE` in the suite"
        )
    if len(names) < 2:
        raise ValueError(f'{view.dataset}: a single class, "{names[0]}"; there is nothing to tell it from: add another')
    return names


def class_templates(given: tuple[str, ...] | str | None, view: View) -> tuple[str, ...]:
    """The templates, or set or file of them, given, else those of the data set's folder, else `photo`."""
    if given is None:
        return view.opened.templates or template_set("photo")
    if isinstance(given, str):
        return read_templates(locate(given, folders=view.folders)) if given.endswith(FILES) else template_set(given)
    return checked(given, where=f"{view.dataset}: templates")
