"""Synonyms from a WordNet that is already on this machine (Miller 1995); nothing is downloaded."""

import os
import re
import sys
import zipfile
from functools import lru_cache
from pathlib import Path

from finesight.errors import DataError

VARIABLE = "FINESIGHT_WORDNET"
"""Environment variable: the folder of WordNet's `index.noun`, or an NLTK data folder."""

_ENDINGS = {
    "noun": "s:|ses:s|xes:x|zes:z|ches:ch|shes:sh|men:man|ies:y",
    "verb": "s:|ies:y|es:e|es:|ed:e|ed:|ing:e|ing:",
    "adj": "er:|est:|er:e|est:e",
    "adv": "",
}
"""Inflections by part of speech, ending:replacement (`morphy` of WordNet's manual)."""

Folder = Path | zipfile.Path


class WordNet:
    """Which words share a set of synonyms. `version` is what the files say of themselves, such as "3.0".

    `folder` holds `index.*` and `*.exc` for noun, verb, adj and adv. Raises `DataError` where a file is missing.
    """

    def __init__(self, folder: Folder) -> None:
        self._senses: dict[str, dict[str, frozenset[str]]] = {}
        self._irregular: dict[str, dict[str, list[str]]] = {}
        for part in _ENDINGS:
            text = _text(folder, f"index.{part}")
            self._senses[part] = _index(text)
            lines = (line.split() for line in _text(folder, f"{part}.exc").splitlines())
            self._irregular[part] = {line[0]: line[1:] for line in lines if line}
        found = re.search(r"WordNet (\d+(?:\.\d+)*)", text)
        self.version = found.group(1) if found else "of unknown version"
        self.synonyms = lru_cache(maxsize=2**16)(self._synonyms)

    def _synonyms(self, word: str) -> frozenset[str]:
        """Names of all sets of synonyms that the word or a base form of it belongs to, of any part of speech."""
        found: set[str] = set()
        for part, senses in self._senses.items():
            for base in (word, *self._irregular[part].get(word, ()), *_bases(word, part)):
                found.update(part + offset for offset in senses.get(base, ()))
        return frozenset(found)


@lru_cache(maxsize=1)
def local() -> WordNet | None:
    """The WordNet of this machine, read once in about a second, or None where there is none.

    It is looked for in `FINESIGHT_WORDNET`, in `NLTK_DATA`, and where NLTK and Debian put it; there it may be
    NLTK's unopened `wordnet.zip`. Raises `DataError` where `FINESIGHT_WORDNET` is set and holds none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        folder = _in(Path(named))
        if folder is None:
            raise DataError(
                f"{VARIABLE} = {named}: no WordNet there. It needs the file index.noun, corpora/wordnet/index.noun or "
                "corpora/wordnet.zip; unset the variable to match captions without synonyms."
            )
        return WordNet(folder)
    usual = (Path.home() / "nltk_data", Path(sys.prefix, "nltk_data"), Path("/usr/share/nltk_data"))
    more = (Path("/usr/local/share/nltk_data"), Path("/usr/lib/nltk_data"), Path("/usr/share/wordnet"))
    given = [Path(path) for path in os.environ.get("NLTK_DATA", "").split(os.pathsep) if path]
    folders = (_in(root) for root in (*given, *usual, *more))
    return next((WordNet(folder) for folder in folders if folder is not None), None)


def _in(root: Path) -> Folder | None:
    for folder in (root, root / "corpora" / "wordnet"):
        if (folder / "index.noun").is_file():
            return folder
    packed = root / "corpora" / "wordnet.zip"
    return zipfile.Path(packed, "wordnet/") if packed.is_file() else None


def _text(folder: Folder, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, KeyError) as problem:
        raise DataError(f"{folder}: this WordNet has no {name} ({problem}). Install it again, whole.") from problem


def _index(text: str) -> dict[str, frozenset[str]]:
    """Offsets of sets by lemma. A line is: lemma, part, sets, pointers (p), p symbols, sets, tagged, offsets."""
    senses = {}
    for line in text.splitlines():
        if line.startswith(" ") or "_" in line.partition(" ")[0]:
            continue
        fields = line.split()
        senses[fields[0]] = frozenset(fields[-int(fields[2]) :])
    return senses


def _bases(word: str, part: str) -> list[str]:
    rules = (rule.split(":") for rule in _ENDINGS[part].split("|") if rule)
    return [word.removesuffix(ending) + base for ending, base in rules if word.endswith(ending)]
