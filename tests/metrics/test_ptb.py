"""Tokens of captions: the rules one by one, what is left to the next caption, and agreement with the Java original."""

import csv
import json
import shutil
import time
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from finesight.metrics import ptb
from finesight.metrics.ptb import tokenize

# Every expectation was printed by Stanford's PTBTokenizer 3.4.1 and stripped of punctuation.
RULES = {
    "contractions": ("I don't, can't and won't: it's", "i do n't ca n't and wo n't it 's"),
    "more contractions": ("They've I'm he'd we'll couldn't've", "they 've i 'm he 'd we 'll could n't 've"),
    "joined words": ("cannot gonna wanna gotta", "can not gon na wan na got ta"),
    "more joined words": ("lemme gimme 'tis 'twas", "lem me gim me 't is 't was"),
    "possessives": ("the dogs' and John's MRI’s boss's", "the dogs and john 's mri 's boss 's"),
    "apostrophes inside": ("O'Neil o'clock d'Artagnan ma'am y'all 'em", "o'neil o'clock d'artagnan ma'am y' all 'em"),
    "curly apostrophes": ("don’t O’Neil it’s ’tis", "do n't o’neil it 's tis"),
    "decades": ("the '90s in '95 and '5", "the '90s in '95 and 5"),
    "titles": ("Dr. Smith met Mrs. Jones vs. Prof. X", "dr. smith met mrs. jones vs. prof. x"),
    "latin": ("e.g. this, i.e., that etc. and et al. too", "e.g. this i.e. that etc. and et al. too"),
    "acronyms": ("the U.S. and U.S.-based U.K. Ph.D. at 5 p.m.", "the u.s. and u.s.-based u.k. ph.d. at 5 p.m."),
    "no abbreviation": ("approx. 3 cm. wide vol. 5", "approx 3 cm wide vol 5"),
    "before a number": ("Fig. 3 and fig. A, no. 5, no. of pp. 12", "fig. 3 and fig a no. 5 no of pp. 12"),
    "before a comma": ("the mm., the x-ray., and 5.; but mm.) not", "the mm. the x-ray. and 5. but mm -rrb- not"),
    "last period": ("A mass is seen. The arrow.", "a mass is seen the arrow"),
    "letter, sentence": ("vitamin C. The next line", "vitamin c the next line"),
    "letter, no sentence": ("vitamin C. then A. Smith", "vitamin c. then a. smith"),
    "no space": ("end.Next one!two 5cm.The foo,bar", "end.next one!two 5cm the foo bar"),
    "numbers": ("3.5 2,000 1,000,000.50 .5 -5 +5.5 1.5.2", "3.5 2,000 1,000,000.50 .5 -5 +5.5 1.5.2"),
    "numbers in words": ("a1 18F T2 1.5T 5cm L5.3 5+5", "a1 18f t2 1.5 t 5cm l5 .3 5 +5"),
    "times and ratios": ("at 12:30pm 1:1000 a:5", "at 12:30 pm 1:1000 a :5"),
    "dates": ("12/3/2014 2014-03-12 12.12.2012", "12/3/2014 2014-03-12 12.12.2012"),
    "fractions": ("1/2 and 1 1/2 and ½", "1/2 and 1 1/2 and 1/2"),
    "hyphens": ("non-small-cell T2-weighted L4-L5 1.5-T 2.5-3.5", "non-small-cell t2-weighted l4-l5 1.5-t 2.5-3 .5"),
    "loose hyphens": ("pre- and post-, a -b --c x - y", "pre and post a b c x y"),
    "unicode dashes": ("L4–L5, 5—6 and a‐b", "l4 l5 5 6 and a‐b"),
    "slashes": ("and/or A/P PET/CT L1/L2/L3 a/b/c/d mg/ x", "and/or a/p pet/ct l1/l2/l3 a/b/c / d mg / x"),
    "quotes": ("\"a\" 'b' ``c'' “d” ‘e’ «f»", "a b c d e f"),
    "brackets": ("(a) [b] {c} (arrow)", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- -lrb- arrow -rrb-"),
    "ellipses": ("wait... what… and . . .", "wait what and"),
    "question marks": ("what? no! what?! really!!", "what no what ?! really !!"),
    "ampersands": ("a & b, H&E AT&T a&b &amp;", "a & b h&e at&t a & b &"),
    "percent": ("50% and 10%-20%", "50 % and 10 % -20 %"),
    "money": ("$5.00 US$5 €5 £5 5¢", "$ 5.00 us$ 5 $ 5 # 5 5 cents"),
    "units": ("37°C 5µm 5×3 ±2 ≥5 cm²", "37 ° c 5µm 5 × 3 ± 2 ≥ 5 cm ²"),
    "signs": ("p<0.05 a=b a_b #1 #tag @me * ** 5~6", "p < 0.05 a = b a_b # 1 #tag @me * ** 5 ~ 6"),
    "accents": ("Müller's naïve œdème TNF-α", "müller 's naïve œdème tnf-α"),
    "smileys": ("(arrow:) and :-( here", "-lrb- arrow :-rrb- and :--lrb- here"),
    "tags": ("a <b>bold</b> <a href=\"x y\">link</a>", "a <b> bold </b> <a href=\"x y\"> link </a>"),
    "addresses": ("see http://a.org/b, www.abc.de/fg or me@x.org", "see http://a.org/b www.abc.de/fg or me@x.org"),
    "telephone": ("call (650) 555-1234 (5) 12", "call -lrb-650-rrb- 555-1234 -lrb- 5 -rrb- 12"),
    "thin spaces": ("5\u2009mm\u00a0wide\u200bx", "5 mm wide x"),
    "soft hyphen and emoji": ("tu\u00admour 😀 here", "tumour here"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_rule(rule: str) -> None:
    text, expected = RULES[rule]
    assert tokenize(text) == expected.split()


def test_nothing_gives_nothing() -> None:
    assert tokenize("") == tokenize("  \n") == tokenize(' . , -- "…"') == []


def test_a_caption_stands_alone_and_pieces_are_remembered_rightly() -> None:
    alone = tokenize("vitamin C.")
    assert alone == ["vitamin", "c."]
    assert tokenize("vitamin C. The line") == ["vitamin", "c", "the", "line"]
    assert tokenize("vitamin C.") == alone
    assert tokenize("Fig. 3") == ["fig.", "3"]
    assert tokenize("Fig. three") == ["fig", "three"]


def test_a_line_separator_stays_within_its_caption() -> None:
    assert tokenize("one\u2028two\x0cthree\x85four") == ["one", "two", "three", "four"]


@pytest.mark.parametrize("text", ["a.", "www.a.", "a,", "a-", "a'", "<a ", "a@", "('", "x/", "<!a"])
def test_a_model_that_repeats_itself_costs_no_more_than_its_length(text: str) -> None:
    # A pattern that tries every way to cut such a text would not end in the age of the universe.
    start = time.process_time()
    tokenize(f"{text * 400}!")
    assert time.process_time() - start < 5


def original(captions: list[str]) -> list[list[str]]:
    """Tokens by `pycocoevalcap`, which joins the captions to one text and calls Java. Unreadable characters warn."""
    rows = PTBTokenizer().tokenize({row: [{"caption": caption}] for row, caption in enumerate(captions)})
    return [rows[row][0].split() for row in range(len(captions))]


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="the original tokeniser is Java")


@needs_java
def test_the_rules_are_those_of_the_original() -> None:
    # "q" before and after keeps each from seeing the next one's first word.
    texts = [text for text, _ in RULES.values()]
    found = original([line for text in texts for line in (text, "q")])[::2]
    assert found == [expected.split() for _, expected in RULES.values()]


@needs_java
def test_agreement_on_real_radiology_captions_is_99_9_percent(real_data: Path) -> None:
    with (real_data / "roco_text" / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["Caption"] for row in csv.DictReader(file)]
    assert len(captions) == 8180
    ours, theirs = [tokenize(caption) for caption in captions], original(captions)
    differing = [row for row in range(len(captions)) if ours[row] != theirs[row]]
    assert 1 - len(differing) / len(captions) >= 0.999
    # The one: "… the ratio of B to A." before a caption that begins with "The".
    assert len(differing) == 1
    assert theirs[differing[0]] == [*ours[differing[0]][:-1], "a"]


@needs_java
def test_tokenised_captions_stay_as_they_are(real_data: Path) -> None:
    texts = json.loads((real_data / "caption_metrics" / "gts.json").read_text())
    captions = [caption for found in texts.values() for caption in found]
    assert [tokenize(caption) for caption in captions] == original(captions)


def test_a_split_at_spaces_is_another_tokenisation(real_data: Path) -> None:
    with (real_data / "roco_text" / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["Caption"] for row in csv.DictReader(file)][:500]
    assert sum(tokenize(caption) != caption.lower().split() for caption in captions) > 400


def test_brackets_stay_as_words_as_in_coco() -> None:
    assert not {"-lrb-", "-rrb-"} & ptb.PUNCTUATION
