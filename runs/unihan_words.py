"""English words with Chinese characters for them, as a dictionary for `vlp data gloss --dictionary zh=OUT.tsv`.

python runs/unihan_words.py Unihan_Readings.txt OUT.tsv     (of the Unicode Character Database, UAX 38: kDefinition)
"""

from __future__ import annotations

import bz2
import re
import sys
from collections.abc import Iterator
from pathlib import Path

LONGEST = 2  # words of a definition that is taken for a translation


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    content = bz2.decompress(source.read_bytes()) if source.suffix == ".bz2" else source.read_bytes()
    pairs = list(dict.fromkeys(words(content.decode("utf-8"))))
    out.write_text("".join(f"{word}\t{character}\n" for word, character in pairs), encoding="utf-8")
    print(f"{out}: {len(pairs)} pairs of {len({word for word, _ in pairs})} words")


def words(content: str) -> Iterator[tuple[str, str]]:
    """Each short definition of each character, without remarks, articles and "to"."""
    for line in content.splitlines():
        code, kind, *definition = [*line.split("\t"), ""][:3]
        if kind != "kDefinition":
            continue
        for part in re.split("[;,]", re.sub(r"\([^)]*\)", "", definition[0])):
            word = re.sub(r"^(to|an?|the) ", "", part.strip().lower())
            if word and len(word.split()) <= LONGEST:
                yield word, chr(int(code.removeprefix("U+"), 16))


if __name__ == "__main__":
    main()
