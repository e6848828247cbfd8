"""What the sources of text share: the annotation of a share, and a check of what was read."""

from typing import Annotated

from annotated_types import Ge, Lt

from retroflow.errors import DamagedDataError

ValidShare = Annotated[float, Ge(0), Lt(1)]
LEAST_VOCABULARY = 257  # of a trained tokenizer: 256 bytes and the end of text


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
