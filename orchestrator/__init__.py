"""Turn one YAML file into runs, jobs and a verdict."""
