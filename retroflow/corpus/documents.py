"""What the sources of text share: the annotation of a share, and how a row becomes a document."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from retroflow.corpus.compressed import too_long
from retroflow.errors import DamagedDataError
from retroflow.protocols import Document, Split

ValidShare = Annotated[float, Ge(0), Lt(1)]
LEAST_VOCABULARY = 257  # of a trained tokenizer: 256 bytes and the end of text
LARGEST_VOCABULARY = 1_048_576


def check_unicode(place: str, *values: tuple[str, str]) -> None:
    """Refuse (key, value) pairs with a lone surrogate in the value; JSON can represent one, UTF-8 cannot."""
    for key, value in values:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DamagedDataError(
                f'{place}: "{key}" has half a surrogate pair (\\u{ord(value[error.start]):04x}) at character '
                f"{error.start + 1}, which no UTF-8 text can hold. Remove it, or repair it where the file was written."
            ) from error


@dataclass(frozen=True)
class TextColumns:
    """Which values of a row make a document: keys of a JSON object, or columns of a table.

    Attributes:
        text, id, title: their keys.
        max_bytes: of the longest text that is taken.
    """

    text: str
    id: str
    title: str
    max_bytes: int

    @property
    def keys(self) -> list[str]:
        """The three keys."""
        return [self.text, self.id, self.title]

    def document(
        self, values: tuple[str, object, object], *, name: str, place: str, split_of: Callable[[str], Split]
    ) -> Document:
        """Make the document of a row from its text, id and title.

        Without an id its name in the source is the id, without a title the id is the title. The id chooses its split.

        Raises:
            DamagedDataError: a value that UTF-8 cannot hold, or a text that is too long; names the place.
        """
        text, id, title = values
        id = name if id is None else str(id)
        title = title if isinstance(title, str) and title else id
        check_unicode(place, (self.text, text), (self.id, id), (self.title, title))
        if (num_bytes := len(text.encode())) > self.max_bytes:
            raise too_long(place, num_bytes, self.max_bytes)
        return Document(id, title, text, name, split_of(id))
