"""The report of a study: which features helped, by how much, and how sure that is."""
