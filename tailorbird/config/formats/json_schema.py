"""The JSON Schemas that an answer can be constrained to, as a subset whose grammars are exact and
small."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from typing import Any

from tailorbird.config.formats.schema_pattern import exact_pattern

MAX_BYTES = 16_384
MAX_DEPTH = 16
MAX_SUBSCHEMAS = 512
MAX_VALUES = 1024
# of an object; the time to compile a grammar grows with the square of their number
MAX_PROPERTIES = 128
MAX_ALTERNATIVES = 32  # of `anyOf`
MAX_COUNT = 100_000  # of characters or items
MAX_DECIMALS = 6  # of numbers with a limit, in grammars of xgrammar
ANNOTATIONS = frozenset(
    (
        "title",
        "description",
        "default",
        "examples",
        "$schema",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
        "example",
        "externalDocs",
        "nullable",
    )
)
"""Keywords that are ignored, besides `x-...`. OpenAPI's `nullable` does not allow null."""
DEFINITIONS = ("$defs", "definitions")
KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
"""Supported keywords by type. Keywords of another type have no effect in JSON Schema, and are
refused."""
Schema = dict[str, Any] | bool


def supported_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema in which each subschema has one form: `$ref`, `enum`, `anyOf` or a single
    `type`.

    Each value that satisfies the result satisfies the schema. It is the same without annotations
    and, for objects with `properties`, without further properties. Raises ValueError, which names
    the place, for a schema that is too large or has keywords that a grammar cannot express.
    """
    try:
        size = len(json.dumps(schema, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise ValueError(
            "the schema has half of a surrogate pair, which is not a character; remove it"
        ) from None
    if size > MAX_BYTES:
        raise ValueError(
            f"the schema has {size:,} bytes, but at most {MAX_BYTES:,} are supported; shorten it"
        )
    return _Checker(schema).root()


class _Checker:
    """The walk through one schema, which counts its parts."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._num_subschemas = self._num_values = 0
        self._exclusive: dict[str, list[Schema]] = {}  # alternatives of `oneOf`, by path

    def root(self) -> dict[str, Any]:
        definitions: dict[str, dict[str, Schema]] = {}
        by_reference: dict[str, Schema] = {}
        named = {
            part: self._named(part, self._schema) for part in DEFINITIONS if part in self._schema
        }
        for part, values in named.items():
            definitions[part] = {}
            for name, value in values:
                form = self._form(value, f"/{part}/{name}", 1)
                definitions[part][name] = form
                by_reference[f"#/{part}/{name}"] = form
        # Elsewhere, `$id` would change what a reference means.
        without = (*DEFINITIONS, "$id")
        content = {name: value for name, value in self._schema.items() if name not in without}
        root = self._form(content, "", 0)
        assert isinstance(root, dict)  # the schema is an object
        by_reference["#"] = root
        _require_content(by_reference)
        _require_end(by_reference)
        for where, alternatives in self._exclusive.items():
            _require_exclusive(alternatives, by_reference, where)
        return root | definitions

    def _form(self, schema: Any, where: str, depth: int) -> Schema:
        self._num_subschemas += 1
        if self._num_subschemas > MAX_SUBSCHEMAS or depth > MAX_DEPTH:
            raise ValueError(
                f"{where}: the schema has more than {MAX_SUBSCHEMAS} subschemas or {MAX_DEPTH} "
                "levels; simplify it"
            )
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise ValueError(f"{where or 'the schema'}: must be an object, not {_shown(schema)}")
        content = {
            name: value
            for name, value in schema.items()
            if name not in ANNOTATIONS and not name.startswith("x-")
        }
        forms: dict[str, Callable[[Mapping[str, Any], str, int], Schema]] = {
            "$ref": self._reference,
            "const": self._values,
            "enum": self._values,
            "anyOf": self._alternatives,
            "oneOf": self._exclusive_alternatives,
        }
        for name, form in forms.items():
            if name in content:
                return form(content, where, depth)
        return self._typed(content, where, depth)

    def _reference(self, schema: Mapping[str, Any], where: str, depth: int) -> Schema:  # noqa: ARG002
        _require_only(schema, ("$ref",), where)
        target = schema["$ref"]
        parts = target.split("/") if isinstance(target, str) else []
        if target != "#" and not (
            len(parts) == 3
            and parts[0] == "#"
            and parts[1] in DEFINITIONS
            and parts[2] in self._schema.get(parts[1], {})
            and not {"~", "%"} & set(parts[2])
        ):
            raise ValueError(
                f"{where}/$ref: {_shown(target)} is not in the schema's $defs; use '#/$defs/NAME'"
            )
        return {"$ref": target}

    def _values(self, schema: Mapping[str, Any], where: str, depth: int) -> Schema:  # noqa: ARG002
        name = "const" if "const" in schema else "enum"
        _require_only(schema, (name, "type"), where)
        values = [schema["const"]] if name == "const" else schema["enum"]
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}/enum: must be a list of values, not {_shown(values)}")
        types = _types(schema, where) if "type" in schema else list(KEYWORDS)
        for value in values:
            if not isinstance(value, str | int | float | None):
                raise ValueError(
                    f"{where}/{name}: {_shown(value)} is not a text, a number, a boolean or null"
                )
            if isinstance(value, int | float) and not _is_exact(value):
                raise ValueError(
                    f"{where}/{name}: {_shown(value)} is not finite, or an integer beyond 2**53"
                )
            if not any(_is_of(value, each) for each in types):
                raise ValueError(
                    f"{where}/{name}: {_shown(value)} is not of type {' or '.join(types)}"
                )
        self._num_values += len(values)
        if self._num_values > MAX_VALUES:
            raise ValueError(
                f"{where}/{name}: the schema lists more than {MAX_VALUES:,} values; shorten it"
            )
        return {"enum": list(values)}

    def _alternatives(self, schema: Mapping[str, Any], where: str, depth: int) -> Schema:
        _require_only(schema, ("anyOf",), where)
        alternatives = schema["anyOf"]
        if not isinstance(alternatives, list) or not 1 <= len(alternatives) <= MAX_ALTERNATIVES:
            raise ValueError(f"{where}/anyOf: must be a list of 1 to {MAX_ALTERNATIVES} schemas")
        return {
            "anyOf": [
                self._form(value, f"{where}/anyOf/{row}", depth + 1)
                for row, value in enumerate(alternatives)
            ]
        }

    def _exclusive_alternatives(self, schema: Mapping[str, Any], where: str, depth: int) -> Schema:
        _require_only(schema, ("oneOf",), where)
        form = self._alternatives({"anyOf": schema["oneOf"]}, where, depth)
        assert isinstance(form, dict)
        self._exclusive[where] = form["anyOf"]
        return form

    def _typed(self, schema: Mapping[str, Any], where: str, depth: int) -> Schema:
        if not schema:
            return {}
        if "type" not in schema:
            inferred = next(
                (name for name, keywords in KEYWORDS.items() if set(schema) & set(keywords)), None
            )
            schema = {"type": inferred or "object", **schema}
        types = _types(schema, where)
        _require_only(
            schema, ("type", *chain.from_iterable(KEYWORDS[each] for each in types)), where
        )
        builders = {"object": self._object, "array": self._array, "string": self._string}
        forms: list[Schema] = []
        for name in types:
            keywords = {keyword: schema[keyword] for keyword in KEYWORDS[name] if keyword in schema}
            build = builders.get(name)
            forms.append(build(keywords, where, depth) if build else _number(name, keywords, where))
        if len(forms) == 1:
            return forms[0]
        return {"anyOf": forms}

    def _object(self, keywords: Mapping[str, Any], where: str, depth: int) -> Schema:
        named = self._named("properties", keywords, where)
        if len(named) > MAX_PROPERTIES:
            raise ValueError(
                f"{where}: the object has {len(named)} properties, but at most {MAX_PROPERTIES} "
                "can be used"
            )
        properties = {
            name: self._form(value, f"{where}/properties/{name}", depth + 1)
            for name, value in named
        }
        required = keywords.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise ValueError(f"{where}/required: must be a list of names, not {_shown(required)}")
        unknown = [name for name in required if name not in properties]
        if unknown:
            raise ValueError(
                f"{where}/required: {unknown[0]!r} is not in `properties`; add it there"
            )
        if properties:
            form = {"type": "object", "properties": properties, "additionalProperties": False}
            return form | ({"required": list(dict.fromkeys(required))} if required else {})
        other = keywords.get("additionalProperties", True)
        if other is False:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {
            "type": "object",
            "additionalProperties": self._form(other, f"{where}/additionalProperties", depth + 1)
            or True,
        }

    def _array(self, keywords: Mapping[str, Any], where: str, depth: int) -> Schema:
        form = {
            "type": "array",
            "items": self._form(keywords.get("items", True), f"{where}/items", depth + 1),
        }
        return form | _counts(keywords, ("minItems", "maxItems"), where)

    def _string(self, keywords: Mapping[str, Any], where: str, depth: int) -> Schema:  # noqa: ARG002
        counts = _counts(keywords, ("minLength", "maxLength"), where)
        if "pattern" not in keywords:
            # JSON Schema defines `format` as an annotation, so an answer of any format satisfies
            # it.
            return {"type": "string"} | counts
        if len(keywords) > 1:
            raise ValueError(
                f"{where}: a `pattern` cannot be combined with a length or a format; put it into "
                "the pattern"
            )
        try:
            pattern = exact_pattern(keywords["pattern"])
        except ValueError as error:
            raise ValueError(f"{where}/pattern: {error}") from None
        return {"type": "string", "pattern": pattern}

    def _named(
        self, part: str, schema: Mapping[str, Any], where: str = ""
    ) -> list[tuple[str, Any]]:
        value = schema.get(part, {})
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}/{part}: must be an object, not {_shown(value)}")
        return list(value.items())


def _require_exclusive(
    alternatives: Sequence[Schema], forms: Mapping[str, Schema], where: str
) -> None:
    """Raise ValueError unless one required property has other values in each alternative."""
    values = []
    for form in alternatives:
        target = form.get("$ref") if isinstance(form, dict) else None
        values.append(_listed_values(form if target is None else forms[target]))
    for name in set.intersection(*map(set, values)):
        listed = [each[name] for each in values]
        if sum(map(len, listed)) == len(frozenset[str]().union(*listed)):
            return
    raise ValueError(
        f"{where}/oneOf: the alternatives must be objects that require one property in common, "
        "with `const` or `enum` of other texts in each; otherwise use anyOf"
    )


def _listed_values(form: Schema) -> dict[str, frozenset[str]]:
    """Return the texts of each required property of an object that has only certain texts."""
    if not isinstance(form, dict):
        return {}
    values = {}
    for name in form.get("required", ()):
        part = form["properties"][name]
        texts = part.get("enum", ()) if isinstance(part, dict) else ()
        if texts and all(isinstance(text, str) for text in texts):
            values[name] = frozenset(texts)
    return values


def _require_content(forms: Mapping[str, Any]) -> None:
    """Raise ValueError if a schema refers to itself without an object or a list in between; `forms`
    by reference."""
    references = {name: list(_direct_references(form)) for name, form in forms.items()}
    try:
        TopologicalSorter(references).prepare()
    except CycleError as error:
        raise ValueError(
            f"{error.args[1][0]}: the schema refers to itself without an object or a list in "
            "between"
        ) from None


def _direct_references(form: Mapping[str, Any]) -> Iterator[str]:
    """Yield the references of a form outside of its objects and lists."""
    if "$ref" in form:
        yield form["$ref"]
    for alternative in form.get("anyOf", ()):
        yield from _direct_references(alternative)


def _require_end(forms: Mapping[str, Schema]) -> None:
    """Raise ValueError if every value of a schema contains another value of it; `forms` by
    reference."""
    users = defaultdict[str, list[str]](list)
    for name, form in forms.items():
        for reference in _needed_references(form):
            users[reference].append(name)
    ending = set[str]()
    candidates = list(forms)
    while candidates:
        name = candidates.pop()
        if name not in ending and _can_end(forms[name], ending):
            ending.add(name)
            candidates.extend(users[name])
    for name in forms:
        if name not in ending:
            raise ValueError(
                f"{name}: each value would have to contain another one, without end; make the "
                "property or item that refers to the schema optional, or allow null"
            )


def _can_end(form: Schema, ending: Set[str]) -> bool:
    """Return whether a value of the form ends, if those of the references in `ending` do."""
    if not isinstance(form, dict):
        return True
    if "$ref" in form:
        return form["$ref"] in ending
    if "anyOf" in form:
        return any(_can_end(alternative, ending) for alternative in form["anyOf"])
    return all(_can_end(part, ending) for part in _needed_parts(form))


def _needed_references(form: Schema) -> Iterator[str]:
    """Yield the references of a form, except those that a value can be without."""
    if not isinstance(form, dict):
        return
    if "$ref" in form:
        yield form["$ref"]
    for part in chain(form.get("anyOf", ()), _needed_parts(form)):
        yield from _needed_references(part)


def _needed_parts(form: Mapping[str, Any]) -> Iterator[Schema]:
    """Yield the required properties of an object, or the items of a list that is not empty."""
    for name in form.get("required", ()):
        yield form["properties"][name]
    if form.get("minItems", 0) > 0:
        yield form["items"]


def _number(name: str, keywords: Mapping[str, Any], where: str) -> Schema:
    for keyword, value in keywords.items():
        whole = name != "integer" or isinstance(value, int)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not whole
            or not abs(value) <= 2**53
        ):
            kind = "whole number" if name == "integer" else "number"
            raise ValueError(
                f"{where}/{keyword}: must be a {kind} of at most 2**53, not {_shown(value)}"
            )
    scale = 1 if name == "integer" else 10**MAX_DECIMALS
    lows: list[int] = []
    highs: list[int] = []
    for keyword, value in keywords.items():
        limit = Fraction(str(value)) * scale
        if keyword == "minimum":
            lows.append(math.ceil(limit))
        elif keyword == "exclusiveMinimum":
            lows.append(math.floor(limit) + 1)
        elif keyword == "maximum":
            highs.append(math.floor(limit))
        else:
            highs.append(math.ceil(limit) - 1)
    if lows and highs and max(lows) > min(highs):
        raise ValueError(
            f"{where or 'the schema'}: no {name} is in the range; a number has at most "
            f"{MAX_DECIMALS} decimals"
        )
    return {"type": name} | dict(keywords)


def _counts(keywords: Mapping[str, Any], names: tuple[str, str], where: str) -> dict[str, int]:
    counts = {name: keywords[name] for name in names if name in keywords}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
            raise ValueError(
                f"{where}/{name}: must be a whole number from 0 to {MAX_COUNT:,}, not "
                f"{_shown(value)}"
            )
    if len(counts) == 2 and counts[names[0]] > counts[names[1]]:
        raise ValueError(
            f"{where}: {names[0]} {counts[names[0]]} is above {names[1]} {counts[names[1]]}"
        )
    return counts


def _types(schema: Mapping[str, Any], where: str) -> list[str]:
    if isinstance(schema["type"], list):
        types = schema["type"]
    else:
        types = [schema["type"]]
    for name in types:
        if not isinstance(name, str) or name not in KEYWORDS:
            raise ValueError(f"{where}/type: {_shown(name)} is not one of {', '.join(KEYWORDS)}")
    if not types:
        raise ValueError(f"{where}/type: must name a type")
    return list(dict.fromkeys(types))


def _is_exact(value: float) -> bool:
    """Return True for a number that is finite and, as an integer, not changed as a float."""
    if isinstance(value, float):
        return math.isfinite(value)
    return abs(value) <= 2**53


def _is_of(value: object, name: str) -> bool:
    if isinstance(value, bool) or value is None:
        return name == ("null" if value is None else "boolean")
    if isinstance(value, str):
        return name == "string"
    return name == "number" or (name == "integer" and isinstance(value, int))


def _require_only(schema: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for name in schema:
        if name not in allowed:
            raise ValueError(
                f"{where or 'the schema'}: the keyword {name!r} is not supported here; supported "
                f"with it are {', '.join(allowed)}"
            )


def _shown(value: object) -> str:
    """Return a value in a message, shortened."""
    text = repr(value)
    if len(text) <= 40:
        return text
    return f"{text[:40]}..."
