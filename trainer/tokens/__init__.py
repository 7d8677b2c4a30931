"""From a data file to tokens: reading lines, encoding them, and the cache of their ids that all jobs share."""
