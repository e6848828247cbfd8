"""The options of faiss, in a separate file, so that `recipe check` can try them without the library."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from retroflow.errors import UsageError
from retroflow.options import checked_options

# Beginnings of the parts of a factory string in faiss 1.15 (index_factory.cpp). Other versions may have more, so a
# string is refused only if it has none of them; `FaissRetriever.check_vectors` asks faiss itself.
_WORD = re.compile(
    r"\(?(?:Flat|L2[nN]orm|PCA|OPQ|ITQ|RR|HR|Pad|IVF|IMI|Residual|HNSW|NSG|LSH|PQ|SQ|RQ|LSQ|LSCQ|PRQ|PLSQ|ZnLattice|RaBitQ"
    r"|MinMax|IDMap|Refine|RFlat|SVS|[0-9]+x)"
)

_ZERO = re.compile(r"(?<![0-9])0+(?![0-9])")  # HNSW0 ends the process within faiss

_SELECTABLE, _UNSELECTABLE = ("IVF", "IMI", "HNSW", "Flat", "SQ"), ("NSG", "RQ", "LSQ", "PRQ", "PLSQ")


@checked_options("retriever.build")
@dataclass(frozen=True, kw_only=True)
class FaissBuild:
    """Options that change the index.

    Attributes:
        factory: a faiss factory string such as "IVF1024,SQfp16" or "HNSW32", or "auto": chosen by N
            (`auto_factory`).
        metric: "l2" (minus the squared distance) or "inner_product".
        train_sample: training vectors for k-means and quantisers, spread over the source; 0 = 40 per list,
            at least 65,536, at most 1 GiB of float32; for plain inverted lists at most 24 MiB, or 8 per list.
        seed: of k-means.
        device: for k-means; "auto" uses a GPU if faiss-gpu is installed and finds one.
    """

    factory: str = "auto"
    metric: Literal["l2", "inner_product"] = "l2"
    train_sample: Annotated[int, Ge(0)] = 0
    seed: Annotated[int, Ge(0), Le(2_147_483_647)] = 1234
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        is_known = any(_WORD.match(part.strip()) for part in self.factory.split(","))
        if self.factory != "auto" and (not is_known or _ZERO.search(self.factory)):
            raise UsageError(
                f'retriever.build.factory is "{self.factory}"; allowed: "auto", or a factory string of faiss such as '
                '"IVF1024,SQfp16" or "HNSW32", with numbers of at least 1.'
            )


@checked_options("retriever.search")
@dataclass(frozen=True, kw_only=True)
class FaissSearch:
    """Options that change recall and speed of a search, never the index. Those an index does not have are ignored.

    Attributes:
        nprobe: inverted lists visited (IVF).
        ef_search: candidates kept while walking the graph (HNSW); at least k is used.
        refine_candidates: candidates whose distance is recomputed from full vectors (RFlat, Refine).
        num_threads: OpenMP threads; 0 = faiss's own choice, 1 on macOS.
        device: for searches; "auto" uses a GPU if faiss-gpu finds one and it supports the index.
    """

    nprobe: Annotated[int, Ge(1)] = 64
    ef_search: Annotated[int, Ge(1)] = 64
    refine_candidates: Annotated[int, Ge(1)] = 64
    num_threads: Annotated[int, Ge(0), Le(1024)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def times(self, factor: float) -> "FaissSearch":
        """Return options for an index in which one of `factor` vectors counts: as many of these are visited."""
        nprobe, ef_search = math.ceil(self.nprobe * factor), math.ceil(self.ef_search * factor)
        refine_candidates = math.ceil(self.refine_candidates * factor)
        return replace(self, nprobe=nprobe, ef_search=ef_search, refine_candidates=refine_candidates)


def searches_a_selection(factory: str) -> bool:
    """Return whether an index can be searched without some of its vectors, which is how they are removed.

    Faiss 1.15 can with all kinds that have inverted lists, an HNSW graph or plain vectors, but for additive quantisers;
    it cannot with NSG graphs, and with product quantisers and hashes alone.
    """
    parts = [part.strip() for part in factory.split(",")]
    can, cannot = (any(part.startswith(kinds) for part in parts) for kinds in (_SELECTABLE, _UNSELECTABLE))
    return factory == "auto" or (can and not cannot)


def check_options(options: Mapping[str, Any]) -> None:
    """Try the retriever's options, nested as in a recipe.

    Raises:
        UsageError: no index can be made with them.
    """
    FaissBuild(**(options.get("build") or {}))
