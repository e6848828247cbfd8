"""The options of a recipe as a JSON Schema (draft 2020-12), from which editors complete and check YAML files.

A recipe that extends another may leave everything out, and any value may be a reference (`${data.chunk_length}`) or
`???`. Everything else is as `recipe check` has it, but for values that do not fit each other.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from retroflow.errors import RetroflowError
from retroflow.options.types import (
    REQUIRED,
    Block,
    Choice,
    Either,
    Fixed,
    Limits,
    Listed,
    Mapped,
    Option,
    OptionType,
    Scalar,
)
from retroflow.recipe.database_key import KEY
from retroflow.recipe.schema import RECIPE_VERSION, RecipeSchema, Slot
from retroflow.recipe.signatures import read_block

_KINDS = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "None": "null"}
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_REFERENCE = {"$ref": "#/$defs/reference"}

Schema = dict[str, Any]


def json_schema(schema: RecipeSchema, named: Mapping[str, str] | None = None) -> Schema:
    """Return the JSON Schema of recipes.

    Args:
        schema: what a recipe may contain.
        named: the component of each section whose options alone are wanted, such as {"retriever": "faiss"}; every
            component where a section is not in it.

    Returns:
        Plain values, for `json.dumps`.
    """
    seed = Option(Scalar("int", Limits(ge=0)), 1, "fixes the order of the data, dropout and initial weights")
    properties: Schema = {
        "recipe_version": {"const": RECIPE_VERSION, "description": "version of the format of recipes"},
        "extends": {"type": "string", "minLength": 1, "description": "another recipe, relative to this file"},
        "seed": _property(seed),
    }
    needed: Schema = {}
    for name, section in schema.sections.items():
        if isinstance(section, Slot):
            blocks = _blocks(section, (named or {}).get(name))
            properties[name], needed[name] = _slot(section, blocks), _needed(section, blocks)
        else:
            properties[name] = _block(read_block(section.target, "retroflow"))
    required = [name for name in needed if schema.slots[name].default is None]
    complete = [{"required": ["extends"]}]
    if schema.database:
        properties[KEY] = {
            "type": "string",
            "minLength": 1,
            "description": "folder of a database, in place of corpus, embedder and retriever",
        }
        complete.append({"required": [KEY]})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of retroflow",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "if": {"not": {"anyOf": complete}},
        "then": {"required": ["recipe_version", *required], "properties": needed},
        "$defs": {
            "reference": {
                "type": "string",
                "pattern": r"^\?\?\?$|\$\{",
                "description": "the value of another key, as ${data.chunk_length}; ??? for one still to be given",
            }
        },
    }


def _blocks(slot: Slot, only: str | None) -> dict[str, Block | None]:
    """Return the options of each component of a slot; None for a plugin's that cannot be read here."""
    found: dict[str, Block | None] = {}
    for name in slot.registry.names() if only is None else [only]:
        found[name] = None
        with suppress(RetroflowError):
            entry = slot.registry.entry(name)
            found[name] = read_block(entry.target, entry.owner, frozenset(slot.derived))
    return found


def _slot(slot: Slot, blocks: Mapping[str, Block | None]) -> Schema:
    """Return the schema of a section whose `name` decides which other keys it may have."""
    kind = slot.registry.kind
    names = [{"const": name, "description": block.description if block else ""} for name, block in blocks.items()]
    known = sorted({option for block in blocks.values() if block is not None for option in block.options})
    cases: list[Schema] = []
    for name, block in blocks.items():
        then = _block(block) if block is not None else {}
        then.get("properties", {})["name"] = True
        cases.append({"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": then})
    if all(block is not None for block in blocks.values()):
        cases.append({"if": {"not": {"required": ["name"]}}, "then": {"propertyNames": {"enum": known}}})
    described = {"description": f"which {kind}, and its options"}
    default = {"default": slot.default} if slot.default is not None else {}
    return {"type": "object", "properties": {"name": {"oneOf": names} | default}, "allOf": cases} | described


def _needed(slot: Slot, blocks: Mapping[str, Block | None]) -> Schema:
    """Return what a section must have in a recipe that extends no other."""
    cases = []
    for name, block in blocks.items():
        required = [key for key, option in block.options.items() if option.default is REQUIRED] if block else []
        if required:
            is_named = {"properties": {"name": {"const": name}}, "required": ["name"]}
            cases.append({"if": is_named, "then": {"required": required}})
    return ({"allOf": cases} if cases else {}) | ({"required": ["name"]} if slot.default is None else {})


def _block(block: Block) -> Schema:
    properties = {name: _property(option) for name, option in block.options.items()}
    described = {"description": block.description} if block.description else {}
    return {"type": "object", **described, "properties": properties, "additionalProperties": False}


def _property(option: Option) -> Schema:
    found: Schema = {"description": option.description} if option.description else {}
    if option.default is not REQUIRED:
        found["default"] = option.default
    return found | _typed(option.type)


def _typed(option_type: OptionType) -> Schema:
    """Return the schema of a type's values; those that are no text may be a reference."""
    plain = _plain(option_type)
    takes_text = plain.get("type") == "string" or "properties" in plain
    if takes_text and "minLength" not in plain:
        return plain
    return {"anyOf": [*plain.get("anyOf", [plain]), _REFERENCE]}


def _plain(option_type: OptionType) -> Schema:
    if isinstance(option_type, Scalar):
        limits = option_type.limits
        bounds = {word: getattr(limits, name) for name, word in _LIMITS.items() if getattr(limits, name) is not None}
        shortest = {"minLength": limits.min_length} if limits.min_length else {}
        return {"type": _KINDS[option_type.kind], **bounds, **shortest}
    if isinstance(option_type, Choice):
        return {"enum": list(option_type.values)}
    if isinstance(option_type, Listed):
        shortest = {"minItems": option_type.limits.min_length} if option_type.limits.min_length else {}
        return {"type": "array", "items": _typed(option_type.item), **shortest}
    if isinstance(option_type, Fixed):
        items = [_typed(item) for item in option_type.items]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if isinstance(option_type, Mapped):
        return {"type": "object", "additionalProperties": _typed(option_type.value)}
    if isinstance(option_type, Either):
        return {"anyOf": [_plain(arm) for arm in option_type.arms]}
    return _block(option_type) if isinstance(option_type, Block) else {}
