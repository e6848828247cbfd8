"""Components for tests/test_components.py."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Build:
    sizes: tuple[int, ...] = ()


class Oak:
    def __init__(self, *, build: Build | None = None, tags: list[str] | None = None, height: int) -> None:
        self.build, self.tags, self.height = build, tags, height


def pine(*, width: int) -> int:
    return width
