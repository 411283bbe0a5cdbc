"""Numbers about representations: k nearest neighbours, retrieval by code length, rank."""
