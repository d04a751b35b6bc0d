"""Corpus: from sources of text to parquet shards of deduplicated, mixed documents.

A source is a sequence of units (`units`), each one parquet file of documents; `python`, `hub` and
`files` say where they come from. `index` notes digest and size of every document, `mixture` decides
from the indexes alone which document goes where, `shards` writes what was decided, `build` conducts.
"""
