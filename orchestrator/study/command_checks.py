"""Check an experiment whose runs start a command."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.study import command, command_flags, command_template, field_checks
from ablatrix.orchestrator.study.command_settings import OWN_KEYS
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Experiment, Loaded
    from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree

# Files of the run folder that only Ablatrix writes
OURS = (run_files.CONFIG, run_files.ARGS, run_files.LOSS, run_files.SUMMARY, run_files.PROVENANCE, run_files.EVENTS)


def setting_problems(data: dict[str, Any], tree: Tree) -> list[str]:
    """Return problems with names and values that cannot be passed to a command, and with features that set nothing."""

    def problem_of(key: str, value: Any) -> str:
        return command_template.key_problem(key) or command_template.value_problem(value)

    return field_checks.block_problems(data, tree, "learning_rate: 1e-3", problem_of)


def problems(loaded: Loaded) -> Iterator[str]:
    """Yield problems with keys that need a command, unknown placeholders, and settings that never reach the command."""
    experiment = loaded.experiment
    if experiment.command is None:
        for key in OWN_KEYS:
            if (key,) in loaded.tree.where:
                yield f"{loaded.at(key)}{key}: only valid with `command:`"
        return
    found = [f"{loaded.at(place)}{place}: {problem}" for place, problem in _text_problems(experiment)]
    yield from found
    if not found:
        yield from _unreached(loaded)
        yield from _unwritable(loaded)
        yield from _unseeded(loaded)
    yield from _key_problems(loaded)


def _text_problems(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for each problem in a string that may contain placeholders."""
    scaled = experiment.scale.settings if experiment.scale else {}
    known = [*experiment.base, *scaled, *command_template.PLACES, command_template.FLAGS]
    switched = {key for level in experiment.all_levels() for key in level.overrides}
    for place, words in _parts(experiment).items():
        if place in ("command", "resume_command"):
            for problem in command_template.word_problems(words):
                yield place, problem
        for name in dict.fromkeys(name for word in words for name in command_template.valid_placeholders(word)):
            if name == command_template.FLAGS and place not in ("command", "resume_command"):
                yield place, "{flags} belongs in `command`"
            elif name not in known and name in switched:
                yield place, f"{{{name}}}: only some features set it; give it a value under base as well"
            elif name not in known:
                yield place, f"{{{name}}}: no such setting{nearest(name, known)}; settings: {', '.join(known)}"
        yield from ((place, problem) for problem in _word_problems(place, words))


def _word_problems(place: str, words: Iterable[str]) -> Iterator[str]:
    """Yield the problems of each word on its own."""
    for word in words:
        try:
            command_template.placeholders(word)
        except ValueError as error:
            if place not in ("command", "resume_command"):
                yield str(error)
        problem = command_template.value_problem(word)
        if problem:
            yield problem


def _parts(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """Return key -> its strings that may contain placeholders."""
    metrics = experiment.metrics
    sources = (metrics.path, metrics.steps, metrics.tokens_per_step) if metrics else ()
    return {
        "command": tuple(experiment.command or ()),
        "resume_command": tuple(experiment.resume_command or ()),
        "checkpoint": (experiment.checkpoint,) if experiment.checkpoint else (),
        "env": tuple(experiment.env.values()),
        "workdir": (experiment.workdir,),
        "metrics": tuple(text for text in sources if isinstance(text, str)),
    }


def _settings(loaded: Loaded) -> list[tuple[KeyPath, str, Any]]:
    """Return (path, key, value) of every setting."""
    levels = loaded.experiment.all_levels()
    found: list[tuple[KeyPath, str, Any]] = [(("base", k), k, value) for k, value in loaded.experiment.base.items()]
    scaled = loaded.experiment.scale.settings if loaded.experiment.scale else {}
    found += [(("scale", key), key, value) for key, values in scaled.items() for value in values]
    found += [((*level.path, key), key, value) for level in levels for key, value in level.overrides.items()]
    return found + [(("base", key), key, value) for key, value in loaded.forced.items()]


def _unreached(loaded: Loaded) -> Iterator[str]:
    """Yield problems with settings that have no placeholder and would change nothing."""
    style, parts = loaded.experiment.flags.style, _parts(loaded.experiment)
    if style == "in-process":
        return
    if style == "config-file" and not _named(parts, "command", "config_file"):
        yield f"{loaded.at('command')}command: no {{config_file}}, which `flags: config-file` writes"
        return
    for line in ("command", "resume_command"):
        if not parts[line] or style == "config-file" or _named(parts, line, command_template.FLAGS):
            continue
        consequence = "" if line == "command" else " (a resumed run would continue without it)"
        for path, key, _ in _settings(loaded):
            if not _named(parts, line, key):
                yield (
                    f"{loaded.at(*path)}{'.'.join(path)}: not passed to the command; put {{{key}}} or {{flags}} into "
                    f"`{line}`{consequence}"
                )


def _unwritable(loaded: Loaded) -> Iterator[str]:
    """Yield problems with settings that cannot be written as flags in this style or that would be the same flag."""
    flags, parts = loaded.experiment.flags, _parts(loaded.experiment)
    lines = [line for line in ("command", "resume_command") if _named(parts, line, command_template.FLAGS)]
    written = [entry for entry in _settings(loaded) if not all(_named(parts, line, entry[1]) for line in lines)]
    for path, key, value in written:
        problem = command_flags.flag_problem(key, value, flags)
        if problem:
            yield f"{loaded.at(*path)}{'.'.join(path)}: {problem}"
    for key, other in command_flags.clashes(dict.fromkeys(key for _, key, _ in _settings(loaded)), flags.style):
        yield f"{loaded.at('flags')}flags: with {flags.style!r}, {key} and {other} are the same flag"


def _named(parts: dict[str, tuple[str, ...]], line: str, name: str) -> bool:
    """True if a command line, its environment or its folder contains this placeholder."""
    texts = (*parts[line], *parts["env"], *parts["workdir"])
    return any(name in command_template.valid_placeholders(text) for text in texts)


def _unseeded(loaded: Loaded) -> Iterator[str]:
    """Yield a problem if there are several seeds but the command does not receive them: its runs would be identical."""
    experiment = loaded.experiment
    several = experiment.seeds_follow_goal or len(experiment.seed_list) > 1
    if experiment.flags.style == "in-process" or not several:
        return
    if not _named(_parts(experiment), "command", "seed"):
        yield (
            f"{loaded.at('seeds')}seeds: not passed to the command, so all runs of a cell would be identical; put "
            "{seed} into `command`, or give one seed"
        )


def _key_problems(loaded: Loaded) -> Iterator[str]:
    """Yield problems with metrics in files that Ablatrix writes, and with keys that require another key."""
    experiment, metrics = loaded.experiment, loaded.experiment.metrics
    if metrics and not metrics.path.startswith(("/", "~")):
        name = os.path.normpath(metrics.path.removeprefix("{run_dir}/"))
        if name in OURS:
            yield (
                f"{loaded.at('metrics')}metrics: {name} is written by Ablatrix in every run's folder; let the command "
                f"write to {{run_dir}}/files/{name}"
            )
    for name, count in (("nodes", experiment.slurm.nodes), ("processes_per_node", experiment.slurm.processes_per_node)):
        if (count or 1) > 1:
            yield (
                f"{loaded.at('slurm', name)}slurm.{name}: a command is started once, on one node; leave it out, "
                "and let the command itself start its processes (torchrun)"
            )
    if metrics and metrics.path == command.HELPER_METRICS and experiment.flags.style != "in-process":
        yield f"{loaded.at('metrics')}metrics: give one source: csv, jsonl, regex, tensorboard or wandb"
    if metrics is None and experiment.flags.style != "in-process":
        yield (
            f"{loaded.at('command')}metrics: missing; say where the losses are (csv, jsonl, or regex over the output), "
            "or set `flags: in-process` for a script that uses ablatrix_run"
        )
    if experiment.checkpoint and not experiment.resume_command:
        yield f"{loaded.at('checkpoint')}checkpoint: only valid with `resume_command:`"
