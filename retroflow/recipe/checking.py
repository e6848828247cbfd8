"""Complete a tree of values with defaults, and check it against its options."""

from retroflow.options.fitting import Complaint, Fitting, hint, nearest
from retroflow.options.types import REQUIRED, Block, Option, OptionType, block_of
from retroflow.recipe.problems import COMMAND_LINE, DEFAULT, Problems
from retroflow.recipe.tree import Node, plant

MISSING = "???"  # OmegaConf's marker for a value that a recipe which extends this one must set


def complete(node: Node, option_type: OptionType) -> Node:
    """Return node with the defaults of absent options, including those of nested sections."""
    block = block_of(option_type)
    if block is None or not node.is_mapping:
        return node
    items: dict[str, Node] = {}
    for key, option in block.options.items():
        if key in node.value:
            items[key] = complete(node.value[key], option.type)
        elif option.default is not REQUIRED:
            items[key] = complete(plant(_default(option), DEFAULT), option.type)
    unknown = {key: child for key, child in node.value.items() if key not in items}
    return Node(items | unknown, node.origin)


def _default(option: Option) -> object:
    """Return an option's default. For `build: Build | None = None`, null means the section's own defaults.

    They are written out, so that a stored recipe is still true when a default changes.
    """
    block = block_of(option.type)
    if option.default is None and block is not None:
        inner = [one.default for one in block.options.values()]
        return None if any(default is REQUIRED for default in inner) else {}
    return option.default


def check(tree: Node, layout: Block, problems: Problems, derived: frozenset[str]) -> Node:
    """Return a completed tree with its values in their final form; record what does not fit.

    Args:
        tree: of the whole recipe.
        layout: its options.
        problems: collects the problems.
        derived: dotted keys that follow from other values and cannot be set.
    """
    fitting = Fitting(placeholder=MISSING)
    values = fitting.fit(tree.plain(), layout)
    for complaint in fitting.complaints:
        origin, key = tree.nearest(complaint.path).origin, complaint.key()
        if complaint.type is None:
            text = _unknown(complaint, layout, derived)
        else:
            text = complaint.text + hint(complaint, key, in_shell=origin == COMMAND_LINE)
        problems.add(origin, key, text)
    return tree.with_values(values)


def _unknown(complaint: Complaint, layout: Block, derived: frozenset[str]) -> str:
    """Return why a key is unknown, and which one may be meant."""
    *owner, part = complaint.path
    if complaint.key() in derived:
        return "follows from other parts of the recipe and cannot be given; remove it."
    if part == "<<":
        return "is YAML's merge key, which recipes do not have; use `extends:` or write the keys out."
    if "." in str(part):
        return "has dots, which only overrides on the command line have; nest the mappings instead."
    block = layout
    for step in owner:
        block = block_of(block.options[str(step)].type) or block
    is_recipe = "recipe_version" in layout.options  # else the options of one component
    known = [*block.options, *(["extends"] if is_recipe and not owner else [])]
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(_dotted_keys(layout))}
    near = elsewhere.get(str(part)) or nearest(str(part), known) or elsewhere.get(nearest(str(part), elsewhere) or "")
    meant = f' Did you mean "{near}"?' if near else ""
    whole = ".".join(map(str, owner)) or ("a recipe" if is_recipe else "the component")
    return f"is not a known key.{meant} Keys of {whole}: {', '.join(known) or 'none'}."


def _dotted_keys(option_type: OptionType, key: str = "") -> list[str]:
    """Return the dotted key of every option, including nested sections."""
    found: list[str] = []
    block = block_of(option_type)
    for part, option in block.options.items() if block is not None else ():
        dotted = f"{key}.{part}" if key else part
        found += [dotted, *_dotted_keys(option.type, dotted)]
    return found
