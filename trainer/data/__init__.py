"""From a data file to batches: read documents, encode them, and keep a token cache that all jobs share."""
