"""`warm-cache --weights NAME`: download a model's weights from the hub, for `model.init_from`."""

from __future__ import annotations

from pathlib import Path

from ablatrix.trainer.config.tokenizer_names import canonical, is_folder, repository
from ablatrix.trainer.data import hub
from ablatrix.trainer.data.data_sets import now
from ablatrix.trainer.data.manifest import MODEL_FILES, SAFETENSORS, FileFacts, WeightsEntry, add_entry
from ablatrix.trainer.data.tokenizer import folder_name
from ablatrix.trainer.data.weights_source import cached_folder, find_source, read_huggingface
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.console import say
from ablatrix.trainer.rundir.errors import OfflineCacheError, UserError
from ablatrix.trainer.rundir.files import make_folder, remove
from ablatrix.trainer.rundir.owners import personal


def warm_weights(name: str, cache_dir: Path, force: bool = False) -> None:
    """Download config.json and model.safetensors of a repository unless they are already there and complete.

    Raises UserError for a model that cannot be trained here; otherwise raises like `hub.fetch`.
    """
    if is_folder(name):
        raise UserError(f"--weights {name}: a folder; set model.init_from to it")
    name = canonical(name)
    folder, repo = cached_folder(folder_name(name, "--weights"), cache_dir), repository(name)
    if not force and _is_there(name, cache_dir):
        say(f"weights of {name}: already in {cache_dir}")
        return
    staging, files, commit = personal(folder.with_name(f".{folder.name}.download")), {}, "main"
    make_folder(folder.parent, parents=True)
    for file in reversed(MODEL_FILES):  # config.json first: an unsupported model then costs no download
        say(f"weights of {name}: {file} from {repo}")
        try:
            got = hub.fetch(repo, file, staging, revision=commit)
        except hub.MissingFileError:
            raise UserError(f"{repo}: no {file}; choose a GPT-2 repository in that format") from None
        files[file], commit = FileFacts(size=got.size, sha256=got.sha256), got.commit or commit
        if file == run_files.CONFIG:
            read_huggingface(run_files.read_json(got.path) or {}, Path(repo) / file)
    make_folder(folder)
    for file in MODEL_FILES:
        (staging / file).replace(folder / file)
    remove(staging)
    entry = WeightsEntry(source=f"hub:{repo}", revision="main", commit=commit, files=files, date=now())
    add_entry(cache_dir, name, entry)
    say(f"weights of {name}: {files[SAFETENSORS].size / 1e6:.1f} MB, verified, in {folder}")


def _is_there(name: str, cache_dir: Path) -> bool:
    try:
        find_source(name, cache_dir)
    except OfflineCacheError:
        return False
    return True
