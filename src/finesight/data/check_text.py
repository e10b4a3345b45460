"""What `finesight data check` prints: short, aligned, with a verdict and what to do about it."""

import shlex
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finesight.data.check_report import Alike, CheckReport

SHOWN = 10
_BAR = 24
_NAME = 40


def lines(report: "CheckReport") -> list[str]:
    """The whole text, line by line."""
    text = [f"{_clean(report.path)}: {_images(_total(report))}, {_count(len(report.classes), 'class', 'classes')}", ""]
    text += _table(report)
    text += ["", *facts(report), ""]
    text += _section("Corrupt files", [f"{entry['id']}: {entry['reason']}" for entry in report.corrupt], None)
    if report.odd:
        text += _section("Unusual files", [f"{entry['id']}: {entry['reason']}" for entry in report.odd])
    if report.blank:
        text += _section("Nearly blank, not compared", report.blank)
    text += _duplicates("Exact duplicates", report.exact, report.given)
    text += _duplicates("Near duplicates", report.near, report.given)
    if report.groups["count"] is not None:
        text += _groups(report)
    text += [f"Error: {_clean(problem)}" for problem in report.errors]
    text += [f"Warning: {_clean(problem)}" for problem in report.warnings + imbalance(report)]
    return [*text, "", verdict(report), *remedies(report)]


def verdict(report: "CheckReport") -> str:
    """One sentence: what matters most."""
    found = []
    exact, near = (sum(alike.across for alike in some) for some in (report.exact, report.near))
    if exact:
        found.append(f"{_count(exact, 'image')} in two splits, byte for byte")
    if near:
        found.append(f"{_count(near, 'near-duplicate pair')} across splits")
    if report.groups["across"]:
        found.append(f"{_count(len(report.groups['across']), 'group')} across splits")
    parts = [f"LEAK: {', '.join(found)}. Scores on the held-out images would be too good."] if found else []
    if report.corrupt:
        parts.append(f"CORRUPT: {_count(len(report.corrupt), 'file')} cannot be read.")
    if report.errors:
        parts.append(f"UNFIT: training would refuse this for {_count(len(report.errors), 'reason')} (see above).")
    if parts:
        return " ".join(parts)
    if report.given:
        return "OK: every file can be read, and no image was found in two splits."
    return "OK: every file can be read. The source has no splits of its own that could leak."


def remedies(report: "CheckReport") -> list[str]:
    """What to do, one line per cause; empty where there is nothing to do."""
    made = []
    run = f"finesight run classify --data.root {shlex.quote(report.path)}"
    if report.group:
        run += f" --data.group {shlex.quote(report.group)}"
    if report.leaks:
        made.append(
            f"Remedy: split anew, same images together: {run} --data.splits new --data.near_duplicates group; "
            "or remove the images listed from the training split."
        )
    elif (report.exact or report.near) and not report.given:
        made.append(f"Advice: keep duplicates in one split: {run} --data.near_duplicates group")
    if any(alike.conflicting for alike in report.exact + report.near):
        made.append("Remedy: give the same image the same class, or remove it; of two classes one is wrong.")
    if report.corrupt:
        made.append(
            "Remedy: replace or remove the corrupt files, or leave them out: "
            f"{run} --data.skip_bad {len(report.corrupt)}"
        )
    return made


def _total(report: "CheckReport") -> int:
    return sum(sum(counts.values()) for counts in report.splits.values())


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _images(number: int) -> str:
    return _count(number, "image")


def _clean(text: object) -> str:
    """One line without control characters, whatever a file is called."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def _width(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean letters take two."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _padded(text: str, width: int) -> str:
    return text + " " * max(0, width - _width(text))


def _short(name: str) -> str:
    name = _clean(name)
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 1]}…{name[-_NAME // 2 :]}"


def _table(report: "CheckReport") -> list[str]:
    """Images per class and split, with a bar for all of a class."""
    columns = list(report.splits)
    rows = [(_short(name), [report.splits[split][name] for split in columns]) for name in report.classes]
    totals = [sum(report.splits[split].values()) for split in columns]
    name_width = max(_width(name) for name, _ in [*rows, ("all classes", [])])
    widths = [max(len(split), len(f"{total:,}")) for split, total in zip(columns, totals, strict=True)]
    most = max(sum(counts) for _, counts in rows)

    def line(name: str, cells: list[str]) -> str:
        return _padded(name, name_width) + "".join(
            f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
        )

    made = [line("class", columns)]
    for name, counts in rows:
        bar = "█" * max(round(_BAR * sum(counts) / most), int(sum(counts) > 0))
        made.append(f"{line(name, [f'{count:,}' for count in counts])}  {bar}".rstrip())
    return [*made, line("all classes", [f"{total:,}" for total in totals])]


def facts(report: "CheckReport") -> list[str]:
    sizes = report.sizes
    made = []
    if "width" in sizes:
        sides = [f"{name} {_range(sizes[name])}" for name in ("width", "height")]
        made.append(f"Sizes: {', '.join(sides)} pixels")
    if sizes["kinds"]:
        made.append(f"Kinds: {', '.join(f'{count:,} {kind}' for kind, count in sizes['kinds'].items())}")
    return made


def _range(side: dict[str, Any]) -> str:
    if side["min"] == side["max"]:
        return f"{side['min']:,}"
    return f"{side['min']:,} to {side['max']:,} (median {side['median']:,.0f})"


def _section(title: str, entries: list[str], shown: int | None = SHOWN) -> list[str]:
    """The number of entries, and the first of them; None shows all."""
    if not entries:
        return [f"{title}: none"]
    listed = entries if shown is None else entries[:shown]
    made = [f"{title}: {len(entries):,}", *(f"  {_clean(entry)}" for entry in listed)]
    if len(listed) < len(entries):
        made.append(f"  and {len(entries) - len(listed):,} more (--json lists all)")
    return made


def _duplicates(title: str, found: list["Alike"], given: bool) -> list[str]:
    """Counts, and those that matter: across splits, then with two classes; the others only as a number."""
    if not found:
        return [f"{title}: none"]
    across = [alike for alike in found if alike.across]
    conflicting = [alike for alike in found if alike.conflicting and not alike.across]
    counts = [f"{len(across):,} across splits"] if given else []
    counts.append(f"{sum(alike.conflicting for alike in found):,} with different classes")
    unit = "set" if found[0].how == "equal bytes" else "pair"
    made = [f"{title}: {_count(len(found), unit)} of {_images(_involved(found))} ({', '.join(counts)})"]
    for name, some in (("across splits", across), ("different classes", conflicting)):
        if some:
            made.append(f"  {name}:")
            made += [f"    {line}" for line in _pairs(some)]
    return made


def _involved(found: list["Alike"]) -> int:
    return len({row for alike in found for row in alike.rows})


def _pairs(found: list["Alike"]) -> list[str]:
    made = []
    for alike in sorted(found, key=lambda alike: -alike.similarity)[:SHOWN]:
        how = "" if alike.how == "equal bytes" else f"{alike.similarity:.3f}  {alike.how}: "
        ids = [_clean(name) for name in alike.ids[:4]]
        more = f" and {len(alike.ids) - 4} more" if len(alike.ids) > 4 else ""
        sides = "" if alike.across and alike.ids[0].startswith(alike.splits[0]) else _labels(alike)
        made.append(f"{how}{' = '.join(ids)}{more}{sides}")
    if len(found) > SHOWN:
        made.append(f"and {len(found) - SHOWN:,} more (--json lists all, --output shows them)")
    return made


def _labels(alike: "Alike") -> str:
    """The splits, or else the classes, where the names do not say them."""
    told = alike.splits if alike.across else alike.classes
    return f"  ({' / '.join(_clean(name) for name in dict.fromkeys(told))})"


def _groups(report: "CheckReport") -> list[str]:
    across = [
        f"{entry['group']}: {', '.join(f'{count} in {split}' for split, count in entry['splits'].items())}"
        for entry in report.groups["across"]
    ]
    head = f"Groups: {report.groups['count']:,}"
    return [f"{head}, none across splits"] if not across else [head, *_section("Groups across splits", across)]


def imbalance(report: "CheckReport") -> list[str]:
    from finesight.data.check import UNEVEN

    found = report.imbalance
    if not found or found["ratio"] < UNEVEN:
        return []
    largest, smallest = found["largest"], found["smallest"]
    return [
        f"The classes are uneven: {largest['images']:,} images of {largest['class']!r}, {smallest['images']:,} of "
        f"{smallest['class']!r} ({found['ratio']:.1f} times). --train.balance N shows N of each per epoch."
    ]
