"""Any trainer: an experiment whose runs are a command of the user's instead of `python -m trainer`.

command_settings.py is what the experiment file says, command_template.py fills a run's values into the command,
command_config.py is the configuration of such a run. In the job, `python -m ablatrix.orchestrator.job RUN_DIR` starts
the command, reads its losses, and leaves the files that every run folder has. Free of torch.
"""

SPEC = "command.json"  # in a run's folder: what to start, as it was planned
CONFIG_FILE = "settings.json"  # likewise: the settings as nested JSON, for commands that read a file
HELPER = "ablatrix_run.py"  # the module that a training script may import
