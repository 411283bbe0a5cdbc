"""Search among codes cut to the length one can pay for. Start at `index`, then `funnel`."""

from neigenmaps.retrieval.funnel import FunnelRecall, FunnelSearch
from neigenmaps.retrieval.index import TruncatedIndex
from neigenmaps.retrieval.scoring import SearchResult
from neigenmaps.retrieval.store import CodeStore, fingerprint_model

__all__ = [
    "CodeStore",
    "FunnelRecall",
    "FunnelSearch",
    "SearchResult",
    "TruncatedIndex",
    "fingerprint_model",
]
