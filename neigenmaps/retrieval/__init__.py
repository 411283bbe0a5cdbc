"""Search among codes cut to the length one can pay for. Start at `index`, then `funnel`."""

from neigenmaps.retrieval.funnel import FunnelRecall, FunnelSearch
from neigenmaps.retrieval.index import TruncatedIndex
from neigenmaps.retrieval.lengths import DimSuggestion, suggest_dim
from neigenmaps.retrieval.quantize import CodeQuantizer, allot_bits
from neigenmaps.retrieval.scoring import SearchResult
from neigenmaps.retrieval.store import CodeStore, fingerprint_model

__all__ = [
    "CodeQuantizer",
    "CodeStore",
    "DimSuggestion",
    "FunnelRecall",
    "FunnelSearch",
    "SearchResult",
    "TruncatedIndex",
    "allot_bits",
    "fingerprint_model",
    "suggest_dim",
]
