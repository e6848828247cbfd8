"""What can be said about a faiss factory string without faiss, for `recipe check`.

faiss alone knows its language, and its versions differ; only what has none of its words is refused here. `prepare` asks
faiss itself before it makes anything (`FaissRetriever.check_dimension`).
"""

import re
from collections.abc import Mapping
from typing import Any

from retroflow.errors import RecipeError

# The words that the parts of a factory string begin with, as in faiss 1.15 (index_factory.cpp).
_WORD = re.compile(
    r"\(?(?:Flat|L2[nN]orm|PCA|OPQ|ITQ|RR|HR|Pad|IVF|IMI|Residual|HNSW|NSG|LSH|PQ|SQ|RQ|LSQ|LSCQ|PRQ|PLSQ|ZnLattice|RaBitQ"
    r"|MinMax|IDMap|Refine|RFlat|SVS|[0-9]+x)"
)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse a retriever's options if `build.factory` cannot be a factory string.

    Raises:
        RecipeError: none of its parts begins with a word of faiss.
    """
    factory = (options.get("build") or {}).get("factory", "auto")
    if factory != "auto" and not any(_WORD.match(part.strip()) for part in factory.split(",")):
        raise RecipeError(
            f'retriever.build.factory is "{factory}"; allowed: "auto", or a factory string of faiss such as '
            '"IVF1024,SQfp16" or "HNSW32".'
        )
