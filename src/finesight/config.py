"""Typed, strict configuration: YAML <-> object <-> flags, every problem reported at once.

A configuration is a tree of `Section`s (pydantic models that forbid unknown keys and do not
coerce types). Flags arrive as text and are converted by the type of the option they name.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from finesight.errors import ConfigError

SectionT = typing.TypeVar("SectionT", bound=BaseModel)


class Section(BaseModel):
    """A group of options. Unknown keys and wrong types are errors; objects are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises `ConfigError` naming file, line and cause."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, not a mapping of options.")
    return content


def to_yaml(config: Section) -> str:
    """The configuration as YAML, in the order of its definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def sections(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option of a configuration as (dotted path, field), in order of definition."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from sections(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.lr": 1} -> {"train": {"lr": 1}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path}: {parent!r} is both an option and a group of options.")
        node[last] = value
    return tree


def flatten(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """A configuration as {"train.lr": 1, ...}."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return flat


def merge(base: Mapping[str, Any], over: Mapping[str, Any], whole: Collection[str] = ()) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; those at the paths `whole` take the place of what was there."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and key not in whole:
            inside = {path.removeprefix(f"{key}.") for path in whole if path.startswith(f"{key}.")}
            result[key] = merge(below, value, inside)
        else:
            result[key] = value
    return result


def parse_flags(arguments: list[str], kind: type[BaseModel]) -> dict[str, Any]:
    """`["--train.lr", "0.1"]` -> `{"train": {"lr": 0.1}}`, converted by the type of each option.

    Accepts `--key value` and `--key=value`; a bare `--key` is true for a boolean option. Raises one
    `ConfigError` with every unknown key, missing value and wrong type; its `understood` holds the rest.
    """
    known = dict(sections(kind))
    flat: dict[str, Any] = {}
    problems: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--"):
            problems.append(f"{argument}: an option was expected here, as --name value.")
            continue
        key, equals, text = argument[2:].partition("=")
        key = key.replace("-", "_")
        field = known.get(key)
        following = arguments[position] if position < len(arguments) else None
        has_value = following is not None and not following.startswith("--")
        if not equals:
            boolean = field is not None and field.annotation is bool
            if has_value and not (boolean and following not in ("true", "false")):
                text = typing.cast(str, following)
                position += 1
            elif boolean:
                text = "true"
            elif field is not None:
                problems.append(f"--{key}: a value is missing; give {_type_name(field.annotation)}.")
                continue
        if field is None:
            problems.append(f"--{key}: unknown option{nearest(key, list(known))}.")
            continue
        try:
            flat[key] = _from_text(text, field.annotation)
        except ValueError:
            problems.append(f"--{key}: {text!r} is not {_type_name(field.annotation)}.")
    if problems:
        error = ConfigError(*problems)
        error.understood = nest(flat)
        raise error
    return nest(flat)


def build(kind: type[SectionT], *layers: Mapping[str, Any]) -> SectionT:
    """Validate the layers, later ones over earlier ones; all problems in one `ConfigError`."""
    tree: dict[str, Any] = {}
    for layer in layers:
        tree = merge(tree, layer, [path for path, _ in sections(kind)])
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        known = [path for path, _ in sections(kind)]
        raise ConfigError(*(_explain(problem, known) for problem in error.errors())) from None


def describe(kind: type[BaseModel], defaults: BaseModel | None = None) -> str:
    """Every option with its type, default and meaning, as text for `--help`."""
    lines = []
    for path, field in sections(kind):
        value: Any = defaults
        for name in path.split("."):
            value = None if value is None else getattr(value, name)
        default = value if defaults is not None else field.get_default(call_default_factory=True)
        lines.append(f"  --{path} {_type_name(field.annotation)}")
        lines.append(f"        {field.description or ''} [default: {json.dumps(default, default=str)}]")
    return "\n".join(lines)


def nearest(name: str, known: list[str]) -> str:
    """`"; did you mean 'train.lr'?"`, or nothing when no known name is near."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not matches:
        last = name.rsplit(".", 1)[-1]
        matches = [path for path in known if path.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _explain(problem: Any, known: list[str]) -> str:
    path = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown option{nearest(path, known)}."
    if problem["type"] == "missing":
        return f"{path}: required, and not given."
    shown = "" if isinstance(given, dict) else f" (given: {given!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path or 'configuration'}: {message[:1].lower()}{message[1:]}{shown}."


def _from_text(text: str, annotation: Any) -> Any:
    """Convert a flag's text by the option's type; raises `ValueError`."""
    alternatives = _alternatives(annotation)
    if type(None) in alternatives and text.lower() in ("none", "null", ""):
        return None
    for kind in alternatives:
        if kind is type(None):
            continue
        origin = typing.get_origin(kind)
        try:
            if origin is list:
                (inner,) = typing.get_args(kind)
                parts = json.loads(text) if text.startswith("[") else [part for part in text.split(",") if part]
                return [_from_text(part, inner) if isinstance(part, str) else part for part in parts]
            if origin is dict:
                pairs = [part.partition("=") for part in text.split(",") if part]
                if text.startswith("{"):
                    return TypeAdapter(kind).validate_python(json.loads(text))
                if typing.get_origin(typing.get_args(kind)[1]) is list and all(equals for _, equals, _ in pairs):
                    lists = {key: [value for name, _, value in pairs if name == key] for key, _, _ in pairs}
                    return TypeAdapter(kind).validate_python(lists)
                return TypeAdapter(kind).validate_python(
                    {key: value if equals else None for key, equals, value in pairs}
                )
            return TypeAdapter(kind).validate_strings(text)
        except (ValidationError, ValueError):
            continue
    raise ValueError(text)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _type_name(annotation: Any) -> str:
    names = []
    for kind in _alternatives(annotation):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Literal:
            names.append("|".join(str(value) for value in arguments))
        elif origin is list:
            names.append(f"{_type_name(arguments[0])},...")
        elif origin is dict:
            names.append("NAME=TEXT,...")
        else:
            plain = {type(None): "none", str: "TEXT", int: "INTEGER", float: "NUMBER", bool: "true|false"}
            names.append(plain.get(kind, str(kind)))
    return "|".join(names)
