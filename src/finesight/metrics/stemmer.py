"""The English stemmer of METEOR 1.5: Porter's second, known as Snowball "english" (Porter 2001)."""

import re
from functools import lru_cache

_WHOLE = {
    "skis": "ski",
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "idly": "idl",
    "gently": "gentl",
    "ugly": "ugli",
    "early": "earli",
    "only": "onli",
    "singly": "singl",
} | {word: word for word in ("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")}
_AFTER_PLURALS = frozenset(["inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"])

_REGION = re.compile("[aeiouy][^aeiouy]")
_FIRST_REGION = re.compile("gener|commun|arsen|[^aeiouy]*[aeiouy]+[^aeiouy]")
_VOWEL = re.compile("[aeiouy]")
_SHORT_SYLLABLE = re.compile("(?:^[aeiouy][^aeiouy]|[^aeiouy][aeiouy][^aeiouywxY])$")
_DOUBLE = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")

# Longest first: the first that fits is the one.
_DERIVED = (
    ("ization", "ize"),
    ("ational", "ate"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("iveness", "ive"),
    ("tional", "tion"),
    ("biliti", "ble"),
    ("lessli", "less"),
    ("entli", "ent"),
    ("ation", "ate"),
    ("alism", "al"),
    ("aliti", "al"),
    ("ousli", "ous"),
    ("iviti", "ive"),
    ("fulli", "ful"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("abli", "able"),
    ("izer", "ize"),
    ("ator", "ate"),
    ("alli", "al"),
    ("bli", "ble"),
    ("ogi", "og"),
    ("li", ""),
)
_LI_AFTER = frozenset("cdeghkmnrt")
_ADJECTIVES = (
    ("ational", "ate"),
    ("tional", "tion"),
    ("alize", "al"),
    ("icate", "ic"),
    ("iciti", "ic"),
    ("ative", ""),
    ("ical", "ic"),
    ("ness", ""),
    ("ful", ""),
)
_ENDINGS = (
    *("ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism"),
    *("ate", "iti", "ous", "ive", "ize", "ion", "al", "er", "ic"),
)


@lru_cache(maxsize=2**17)
def stem(word: str) -> str:
    """The stem of a word in lower case: "riding" and "rides" give "ride", "wolves" gives "wolv"."""
    if word in _WHOLE:
        return _WHOLE[word]
    if len(word) <= 2:
        return word
    word = re.sub("(^|[aeiouy])y", r"\1Y", word.removeprefix("'"))
    first, second = _regions(word)
    for suffix in ("'s'", "'s", "'"):
        if word.endswith(suffix):
            word = word.removesuffix(suffix)
            break
    word = _plural(word)
    if word in _AFTER_PLURALS:
        return word
    word = _past(word, first)
    if word[-1:] in ("y", "Y") and len(word) > 2 and not _VOWEL.match(word[-2]) and word[-2] != "Y":
        word = word[:-1] + "i"
    word = _derived(word, first)
    word = _adjective(word, first, second)
    word = _ending(word, second)
    return _last_letter(word, first, second).replace("Y", "y")


def _regions(word: str) -> tuple[int, int]:
    """Where R1 and R2 begin: behind the first consonant after a vowel, and there once more."""
    found = _FIRST_REGION.match(word)
    first = found.end() if found else len(word)
    again = _REGION.search(word, first)
    return first, again.end() if again else len(word)


def _plural(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith(("us", "ss")) or not word.endswith("s"):
        return word
    return word[:-1] if _VOWEL.search(word[:-2]) else word


def _past(word: str, first: int) -> str:
    for suffix in ("eedly", "eed"):
        if word.endswith(suffix):
            return word[: -len(suffix)] + "ee" if len(word) - len(suffix) >= first else word
    for suffix in ("ingly", "edly", "ing", "ed"):
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            if not _VOWEL.search(rest):
                return word
            if rest.endswith(("at", "bl", "iz")):
                return rest + "e"
            if rest.endswith(_DOUBLE):
                return rest[:-1]
            return rest + "e" if len(rest) <= first and _SHORT_SYLLABLE.search(rest) else rest
    return word


def _derived(word: str, first: int) -> str:
    for suffix, short in _DERIVED:
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            fits = len(rest) >= first
            if suffix == "ogi":
                fits = fits and rest.endswith("l")
            if suffix == "li":
                fits = fits and rest[-1:] in _LI_AFTER
            return rest + short if fits else word
    return word


def _adjective(word: str, first: int, second: int) -> str:
    for suffix, short in _ADJECTIVES:
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return rest + short if len(rest) >= (second if suffix == "ative" else first) else word
    return word


def _ending(word: str, second: int) -> str:
    for suffix in _ENDINGS:
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            fits = len(rest) >= second and (suffix != "ion" or rest.endswith(("s", "t")))
            return rest if fits else word
    return word


def _last_letter(word: str, first: int, second: int) -> str:
    rest = word[:-1]
    if word.endswith("e"):
        silent = len(rest) >= second or (len(rest) >= first and not _SHORT_SYLLABLE.search(rest))
        return rest if silent else word
    return rest if word.endswith("ll") and len(rest) >= second else word
