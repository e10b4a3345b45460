"""The tokens that the COCO caption evaluation counts, in plain Python: no Java.

COCO's evaluation runs Stanford's PTBTokenizer (3.4.1, `-preserveLines -lowerCase`) and drops a list of
punctuation tokens. The rules here were written from what that tokeniser prints, not from its source. It
writes brackets as `-lrb-`, `-rrb-`, …; the list has them in capitals and never meets them, so they stay
here as there.

Where they differ by intent: there the captions are lines of one text, and the first word of the next
caption can decide whether "… vitamin C." ends in `c` or `c.`; a line separator within a caption
(U+2028, a form feed) shifts all captions after it. Here a caption stands alone.
"""

import re
from functools import lru_cache

NAME = "ptb-coco"
"""Name of this tokeniser in a signature."""

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that are dropped."""

# Letters as the lexer knows them; superscripts and the signs of Roman numerals are none.
_L = (
    "A-Za-zªµºÀ-ÖØ-öø-\u037d\u0386\u0388-\u0481\u0483-\u0559\u0561-\u0587\u0591-\u05bd\u05d0-\u05f2\u0620-\u0669"
    "\u066e-\u06d3\u0900-\u0963\u0966-\u1fbc\u1fc2-\u1fcc\u1fd0-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ffc\u2071\u207f"
    "\u2090-\u209c\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u2139\u2c00-\u2ce4\u3005"
    "\u3041-\u3096\u30a1-\u30ff\u3105-\u318e\u3400-\u9fcc\ua000-\ua7aa\uac00-\ud7a3\uf900-\ufad9\ufb00-\ufb06"
    "\ufb13-\ufdfb\ufe70-\ufefc\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc"
)
_W = _L + "0-9"
_A = "['’\x92]"
# What the lexer prints nothing for: spaces, control and format characters, hyphens that join nothing,
# rare currencies, Roman numerals, emoji and all else beyond the 65,536th character.
_UNREADABLE = (
    "\x00-\x20\x7f\x81-\x84\x86-\x90\x98-\xa0\u2000-\u2012\u2024\u2025\u2027-\u202f\u203c\u203d\u2043\u2045-\u206f"
    "\u20a1-\u20a3\u20a5-\u20ab\u20ad-\u20ff\u2150-\u2152\u215f-\u2182\u2185-\u218f\u2e80-\u3000\u3003\u3004"
    "\u3007-\u3030\u3200-\u33ff\ud800-\uf8ff\ufe00-\ufe6f\ufeff\uffe2-\U0010ffff"
)
_QUOTES_AND_DASHES = "\"'`‘’‛“”‹›«»\x91-\x97–—―.…\x85,:;-"
_WRITTEN_AS = (
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
    | {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "¢": "cents", "£": "#"}
    | dict.fromkeys("¤₠€\x80", "$")
    | {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
    | dict.fromkeys(("&quot;", "&apos;", "&nbsp;", "&ndash;", "&mdash;"), ".")
)
_CLITICS = {
    word.replace("'", mark): word for word in ("'s", "'d", "'m", "'ll", "'re", "'ve", "n't") for mark in "’\x92"
}

# Words whose period stays: always, only with a capital, only before a number.
_ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf cie cmdr co "
    "col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov "
    "govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle "
    "mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph ph.d plc ppte ppty pres prof profs "
    "pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu "
    "thurs treas tue tues univ va vs vt wed wis wisc wm wyo"
)
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_NUMBERED = "art ca fig figs no nos op pp prop"
# Words before which a letter with a period ends a sentence: "… vitamin C. The …".
_STARTERS = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once "
    "One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)


def _either(words: str) -> str:
    return "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True))


_WORD = rf"[{_L}][{_W}]*(?:[.!?][{_L}][{_W}]*)*"
_PIECE = rf"(?:[dDoOlL]{_A}(?=[{_W}]))?[{_W}]+"
_JOINED = rf"(?:{_PIECE}(?:[-_\u2010\u2011]{_PIECE})+|[{_W}]+)"
_PARTS = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NUMBER = r"[-+]?(?:[0-9]*(?:[.,:][0-9]+)+|[0-9]+)"
_EMAIL = r"[A-Za-z0-9][^\s\"<>|()]*@[^\s\"<>|().]+(?:\.[^\s\"<>|().]+)*"
_SITE = r"(?i:www\.(?:[^\s\"<>|.!?(){},;/]+\.)+[a-z]{2,4}|(?:[^\s\"`'<>|.!?(){},;/$-]+\.)+(?:com|net|org|edu)(?![a-z]))"
_PAGE = r"/[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
_TAG = r"</?[A-Za-z][A-Za-z0-9:._-]*(?: +[A-Za-z][A-Za-z0-9:.-]*(?: *= *(?:\"[^\"]*\"|'[^']*'))?)* */?>"

# (token, what must follow): the longest match with what follows wins, the first rule of equals.
_OF_WORDS = (
    ("(?i:can)", "(?i:not)"),
    ("(?i:gon|wan)", "(?i:na)"),
    ("(?i:got)", "(?i:ta)"),
    ("(?i:gim|lem)", "(?i:me)"),
    ("[A-Za-z]*[A-MO-Za-mo-z]", f"(?i:n{_A}t)"),
    (f"(?i:n{_A}t)", ""),
    ("[A-Za-z][A-Za-z0-9]*", f"{_A}(?i:s|d|m|ll|re|ve)(?![A-Za-z])"),
    (_WORD, ""),
    (_JOINED, ""),
    (rf"(?:{_WORD}|{_JOINED})\.", "(?=[,;:])"),
    (r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9]+))+", ""),
    (rf"{_PARTS}(?:\\?/{_PARTS}){{1,2}}", ""),
    (r"[A-Za-z](?:\.[A-Za-z])+\.", ""),
    (r"[A-Za-z]\.", rf"(?!\s+(?:{_either(_STARTERS)}|{_either(_STARTERS.upper())})\s)"),
    (rf"(?:(?i:{_either(_ABBREVIATIONS)})|{_either(_CAPITAL_ABBREVIATIONS)})\.", ""),
    (rf"(?:{_either(_CAPITAL_ABBREVIATIONS.upper())})\.", ""),
    (rf"(?i:{_either(_NUMBERED)})\.", r"(?=\s?[0-9])"),
    (rf"[dDoOlL](?:{_A}|‘)[{_L}][{_W}]+", ""),
    (rf"[A-HJ-XZn](?:{_A}|‘)[{_L}]{{2,}}", ""),
    (rf"[A-Za-z]+[aeiouyAEIOUY]{_A}[aeiouA-Z][{_L}]*", ""),
    (f"(?i:ol{_A}|e{_A}er|nat{_A}l|cap{_A}n|c{_A}mon)", ""),
    (f"[dDlL]{_A}|[yY]{_A}(?=[{_L}])", ""),
    (r"[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+", ""),
    (r"[A-Z]+\$|[cC]\+\+|[cCfF]#", ""),
    (_EMAIL, ""),
    (_SITE, ""),
    (f"(?:{_SITE}|(?i:https?):/){_PAGE}", ""),
    (_NUMBER, ""),
    (r"[0-9]+(?:\.[0-9]+)*\.[xX](?![A-Za-z0-9])", ""),
)
_OF_SIGNS = (
    (_NUMBER, ""),
    (rf"{_A}(?i:s|d|m)|'(?i:ll|re|ve)(?![A-Za-z])|[’\x92](?i:ll|re|ve)", ""),
    (f"{_A}(?i:n{_A}?|em|til|cause)", ""),
    ("'", "[A-Za-z]{2}"),
    ("'(?i:t)", "(?i:is|was)"),
    (rf"{_A}(?:[2-9]0s|[0-9][0-9](?!\S))", ""),
    (r"-(?i:[lr][rsc]b)-", ""),
    (r"\([0-9]{2,3}\)\s?[0-9]{3,4}[-\s]?[0-9]{3,5}", ""),
    (r"[:;=]'?-?[()\[\]{DPp|](?![A-Za-z0-9])", ""),
    (rf"{_TAG}|<{_EMAIL}>|<[!?][A-Za-z-][^>]*>", ""),
    (f"#[{_L}]+|@[A-Za-z_][A-Za-z0-9_]*", ""),
    (r"[?!]+|\\?\*+|#+|_+|<<|>>|\^_\^|--+|\.{3,}", ""),
    ("&(?:amp|lt|gt|quot|apos|nbsp|[nm]dash|#[0-9]+);", ""),
)


def _compiled(rules: tuple[tuple[str, str], ...]) -> list[re.Pattern[str]]:
    return [re.compile(f"({token})(?:{ahead})") for token, ahead in rules]


_WORD_RULES, _SIGN_RULES = _compiled(_OF_WORDS), _compiled(_OF_SIGNS)
_STARTS_A_WORD = re.compile(f"[{_W}]")
_SILENT = re.compile(rf"[{_UNREADABLE}{_QUOTES_AND_DASHES}]|--+|\.{{3,}}")
# Endings of a piece between spaces whose tokens depend on the next piece, and tags, which hold spaces.
_OPEN = re.compile(rf"<|\([0-9]{{2,3}}\)$|(?<![A-Za-z])(?i:[a-z]|{_either(_NUMBERED)})\.$")


def tokenize(caption: str) -> list[str]:
    """Tokens of a caption in lower case, without punctuation.

    "The dog's 2.5-year-old, isn't it?" gives the, dog, 's, 2.5-year-old, is, n't, it.
    """
    tokens: list[str] = []
    for piece in caption.split():
        found = _of_piece(piece)
        if found is None:
            return _read(caption)
        tokens += found
    return tokens


@lru_cache(maxsize=2**17)
def _of_piece(piece: str) -> tuple[str, ...] | None:
    return None if _OPEN.search(piece) else tuple(_read(piece))


def _read(text: str) -> list[str]:
    text = text.replace("\xad", "")  # a soft hyphen joins
    written: list[str] = []
    position = 0
    while position < len(text):
        is_word = _STARTS_A_WORD.match(text, position)
        stop, longest = position + 1, position
        for rule in _WORD_RULES if is_word else _SIGN_RULES:
            found = rule.match(text, position)
            if found and found.end() > longest:
                stop, longest = found.end(1), found.end()
        token = text[position:stop]
        position = stop
        if is_word or token[0] == "<":
            written.append(token)
        elif token in _WRITTEN_AS:
            written.append(_WRITTEN_AS[token])
        elif not _SILENT.fullmatch(token):
            written.append(token.replace("(", "-lrb-").replace(")", "-rrb-"))
    words = " ".join(written).lower().split()
    return [_CLITICS.get(word, word) for word in words if word not in PUNCTUATION]
