"""The variables of the submitting shell that reach a job: an allow-list, the same for every launcher.

With `sbatch --export=NAMES`, Slurm passes these, but also loads a login environment on the job's node, including all
that `~/.bashrc` exports, and a script submitted by hand may get --export=ALL. A job script therefore first unsets
everything not on the list. What its setup lines (`module load`) set afterwards is kept.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ablatrix.orchestrator.study import secrets

# No proxies, package indexes or HF_ENDPOINT: their URLs may contain passwords, and jobs have no network
ALLOWED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLUMNS"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "MANPATH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
    *("CC", "CXX", "MKLROOT", "GLIBC_TUNABLES", "MALLOC_*", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("SCRATCH", "WORK", "PROJECT", "LOCALSCRATCH"),
    # modules
    *(
        "MODULE*",
        "LMOD_*",
        "__LMOD_*",
        "__MODULES_*",
        "LOADEDMODULES",
        "_LMFILES_*",
        "_ModuleTable*",
        "EBROOT*",
        "EBVERSION*",
        "BASH_ENV",
    ),
    *("BASH_FUNC_module%%", "BASH_FUNC_ml%%", "BASH_FUNC__module_raw%%", "BASH_FUNC_switchml%%"),
    # Python and its environments
    *("PYTHON*", "PYENV_*", "_PYENV_*", "CONDA_*", "_CONDA_*", "_CE_*", "MAMBA_*", "VIRTUAL_ENV"),
    # accelerators, threads and frameworks
    *("CUDA_*", "CUDNN_*", "NCCL_*", "NVIDIA_*", "HIP_*", "HSA_*", "ROCM_*", "ROCR_*", "MIOPEN_*", "UCX_*", "FI_*"),
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "GLOO_*", "TP_SOCKET_IFNAME"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "XLA_*", "JAX_*", "TF_CPP_*", "TF_XLA_FLAGS", "TOKENIZERS_*"),
    # caches and offline modes
    *("HF_HOME", "HF_*_CACHE", "HF_*OFFLINE", "HF_HUB_DISABLE_*", "HUGGINGFACE_HUB_CACHE"),
    *("TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "ABLATRIX_*"),
    *("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_*_DIR", "WANDB_SILENT"),
)
# Set by Slurm, its prolog or the node where the job runs
OF_THE_NODE = (
    *("SLURM*", "PMI*", "OMPI_*", "PRTE_*", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "KRB5CCNAME", "ENVIRONMENT"),
    *("TMPDIR", "TMP", "TEMP", "XDG_RUNTIME_DIR", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_"),
)
# If these were set in the job, each srun would pass this list again, without what the setup lines have set
_NOT_KEPT = ("SLURM_EXPORT_ENV", "SLURM_GET_USER_ENV")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:%%)?")  # allowed in sbatch's list; %%: exported function
_KEYWORDS = ("ALL", "NONE", "NIL")  # keywords of --export, not names
_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")


def checked(entry: str) -> str:
    """Return an entry of `export:`, a name or a prefix with `*`. Raise ValueError for anything else."""
    if not _PATTERN.fullmatch(entry):
        raise ValueError("must be the name of a variable of your shell, or its beginning and a star (`MYLAB_*`)")
    if entry.upper() in _KEYWORDS or entry.startswith(("SLURM_", "SBATCH_", "SRUN_")):
        raise ValueError("reserved for Slurm, cannot be passed to jobs")
    return entry


def names(named: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables of this shell that a job gets: those on the allow-list, and those under `export:`."""
    named = tuple(named)
    usable = (name for name in environ if _NAME.fullmatch(name) and name.upper() not in _KEYWORDS)
    return sorted(name for name in usable if _matches(name, named) or is_allowed(name, environ[name]))


def environment(named: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a job on this machine, without the job id of a surrounding allocation."""
    here = {name for name in environ if _matches(name, OF_THE_NODE) and not secrets.is_secret_name(name)}
    here = {name for name in here if not name.startswith(("SLURM_JOB", "SLURM_ARRAY"))} - set(_NOT_KEPT)
    return {name: environ[name] for name in (*names(named, environ), *here)}


def unset(named: Iterable[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names under `export:` that are not set in this shell."""
    return [name for name in named if not name.endswith("*") and name not in environ]


def option(named: Iterable[str] = ()) -> str:
    """Return the value for sbatch's --export; never empty, as that would mean ALL."""
    return ",".join(names(named)) or "NONE"


def wall(named: Iterable[str] = ()) -> list[str]:
    """Return bash lines that unset every variable not on the allow-list, for the beginning of a job script."""
    kept = [pattern for pattern in (*ALLOWED, *OF_THE_NODE) if not pattern.startswith("BASH_FUNC_")]
    return [
        "# Only these variables reach the runs; `export:` in the experiment file names more",
        "for name in $(compgen -e); do",
        '  case "$name" in',
        *_case(named, ";;"),
        *_case((*_NOT_KEPT, *_SECRETS), 'unset "$name" 2>/dev/null || true ;;'),
        *_case(kept, ";;"),
        '  *) unset "$name" 2>/dev/null || true ;;',  # true: for read-only variables
        "  esac",
        "done",
    ]


_SECRETS = (
    "*TOKEN",
    "*SECRET",
    "*PASSWORD",
    "*PASSWD",
    "*API_KEY",
    "*ACCESS_KEY",
    "*PRIVATE_KEY",
    "*CREDENTIALS",
    "*JWT",
    "*WEBHOOK",
    "*WEBHOOK_URL",
)


def _case(patterns: Iterable[str], action: str) -> list[str]:
    """Return one branch of bash's `case`."""
    words = [shlex.quote(pattern).replace("'", "") for pattern in patterns]
    if not words:
        return []
    lines = textwrap.wrap(" | ".join(words), 110, break_long_words=False, break_on_hyphens=False)
    lines = [f"  {line} \\" if index + 1 < len(lines) else f"  {line}) {action}" for index, line in enumerate(lines)]
    return lines


def is_allowed(name: str, value: str = "") -> bool:
    """True if the variable is on the list and is not a secret matched by a pattern such as NVIDIA_*."""
    if name in ALLOWED:
        return True
    return _matches(name, ALLOWED) and not secrets.is_secret_name(name) and not secrets.find_form(value, name)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
