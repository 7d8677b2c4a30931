"""What is to be run: the experiment file, merged, validated and expanded into runs. Pure: no Slurm, no writes."""
