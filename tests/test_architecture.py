"""The rules of docs/architecture.md: which room may import which. Imports for types and in functions count."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from ablatrix.orchestrator.store.code_snapshot import code_root

ROOT = code_root()
# Room -> rooms that it may import besides itself
LAYERS = {
    "study": set(),
    "store": {"study"},
    "slurm": {"study", "store"},
    "job": {"study", "store"},
    "status": {"study", "store", "slurm"},
    "report": {"study", "store", "status"},
    "terminal": {"study", "store", "slurm", "status", "report"},
    "submit": {"study", "store", "slurm", "job", "status", "report", "terminal"},
    "verbs": {"study", "store", "slurm", "status", "report", "terminal", "submit"},
    "cli": {"terminal", "verbs"},
    "api": {"study", "store", "slurm", "status", "report", "terminal", "verbs"},
    "__main__": {"cli"},
}
# What the orchestrator may import of the trainer and the models: what a run is, and the files that it leaves
CONTRACT = (
    "ablatrix.trainer.config",
    "ablatrix.trainer.rundir",
    "ablatrix.trainer.schedules",
    "ablatrix.models.config",
    "ablatrix.models.reference",
)
# Checks before a submission look at the corpus, the tokenizer and the callbacks that the runs would have; a few verbs
# do the trainer's work
EXCEPTIONS = {
    "ablatrix.orchestrator.cli": {"ablatrix.trainer.data.warm_cache"},
    "ablatrix.orchestrator.job.warm_parent": {
        "ablatrix.trainer.cli",
        "ablatrix.trainer.device",
        "ablatrix.trainer.run",
    },
    "ablatrix.orchestrator.report.corpus_notes": {"ablatrix.trainer.data.corpus"},
    "ablatrix.orchestrator.submit.changed_inputs": {"ablatrix.trainer.data.fingerprints"},
    "ablatrix.orchestrator.submit.data_preflight": {
        "ablatrix.trainer.callbacks.custom",
        "ablatrix.trainer.data.batches",
        "ablatrix.trainer.data.corpus_files",
        "ablatrix.trainer.data.corpus_usage",
        "ablatrix.trainer.data.formats",
        "ablatrix.trainer.data.tokenizer",
        "ablatrix.trainer.data.tokens",
    },
    "ablatrix.orchestrator.submit.heldout_preflight": {
        "ablatrix.trainer.data.corpus_files",
        "ablatrix.trainer.data.corpus_usage",
        "ablatrix.trainer.data.heldout",
        "ablatrix.trainer.data.heldout_records",
        "ablatrix.trainer.data.token_store",
    },
    "ablatrix.orchestrator.submit.preflight": {"ablatrix.trainer.data.tokenizer", "ablatrix.trainer.effect_check"},
    "ablatrix.orchestrator.verbs.doctor": {
        "ablatrix.trainer.data.manifest",
        "ablatrix.trainer.data.tokenizer",
        "ablatrix.trainer.data.weights_source",
    },
    "ablatrix.orchestrator.verbs.export": {"ablatrix.trainer.export"},
    "ablatrix.orchestrator.verbs.generate": {"ablatrix.trainer.generation"},
    "ablatrix.orchestrator.verbs.plan": {"ablatrix.trainer.data.corpus_settings"},
}


def modules() -> dict[str, Path]:
    found = (path for top in ("models", "orchestrator", "trainer") for path in (ROOT / top).rglob("*.py"))
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in found}
    return {f"ablatrix.{name}": path for name, path in names.items()}


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else str(node.module) for name in names)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Return the modules that each of our modules imports."""
    return {name: (set(imports(path)) & set(MODULES)) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    """Return `study` for ablatrix.orchestrator.study.matrix."""
    return module.split(".")[2] if module.count(".") > 1 else ""


def test_rooms_of_the_orchestrator_import_downwards() -> None:
    wrong = [
        f"{module} -> {found}"
        for module, all_found in graph().items()
        if module.startswith("ablatrix.orchestrator.")
        for found in all_found
        if found.startswith("ablatrix.orchestrator.") and room(found) not in {room(module), *LAYERS[room(module)]}
    ]
    assert not wrong


def test_the_orchestrator_knows_the_trainer_by_its_contract() -> None:
    wrong = [
        f"{module} -> {found}"
        for module, all_found in graph().items()
        if module.startswith("ablatrix.orchestrator")
        for found in all_found - EXCEPTIONS.get(module, set())
        if not found.startswith(("ablatrix.orchestrator", *CONTRACT)) and found != "ablatrix.trainer"
    ]
    assert not wrong
    unused = [f"{module} -> {found}" for module, names in EXCEPTIONS.items() for found in names - graph()[module]]
    assert not unused, "exceptions that nothing needs any more"


def test_models_and_the_trainer_know_nothing_of_what_is_above() -> None:
    allowed = {"models": ("ablatrix.models",), "trainer": ("ablatrix.models", "ablatrix.trainer")}
    wrong = [
        f"{module} -> {found}"
        for module, all_found in graph().items()
        for found in all_found
        if not found.startswith(allowed.get(module.split(".")[1], ("ablatrix.",)))
    ]
    assert not wrong


def test_the_run_folder_needs_the_standard_library_only() -> None:
    folder = ROOT / "trainer" / "rundir"
    own = ("ablatrix.trainer.rundir", "ablatrix")
    found = {name for path in folder.glob("*.py") for name in imports(path)}
    others = {name.partition(".")[0] for name in found if not name.startswith(own)} - sys.stdlib_module_names
    inward = {name for name in found if name.startswith("ablatrix.") and not name.startswith(own[0])}
    assert not others | inward


def test_there_is_no_circle_of_imports() -> None:
    left = {name: set(found) for name, found in graph().items()}
    while ends := [name for name in left if not left[name] or not any(name in found for found in left.values())]:
        left = {name: found - set(ends) for name, found in left.items() if name not in ends}
    assert not left, "these import each other"


def test_tests_do_not_import_test_modules() -> None:
    found = {path: set(imports(path)) for path in (ROOT / "tests").rglob("*.py")}
    wrong = [
        f"{path.relative_to(ROOT)} -> {name}"
        for path, names in found.items()
        for name in names
        if name.startswith("tests.") and name.split(".")[-1].startswith("test_")
    ]
    assert not wrong
