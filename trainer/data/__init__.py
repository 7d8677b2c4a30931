"""From a data file to batches: reading documents, encoding them, and the token cache that all jobs share."""
