"""From one YAML file to runs, to jobs, to a verdict."""
