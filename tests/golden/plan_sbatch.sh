#!/bin/bash
# One array task per run. To resubmit it by hand: sbatch THIS_FILE
# (runs that are done, or that another job is working on, are skipped).
# To try one run on this machine: SLURM_ARRAY_TASK_ID=0 bash THIS_FILE
#SBATCH --job-name=golden
#SBATCH --array=0-3%3
#SBATCH --output=/FOLDER/out/golden/logs/%A_%a.out
#SBATCH --open-mode=append
#SBATCH --ntasks=1
#SBATCH --nodes=1
#SBATCH --comment=ablatrix:TOKEN
#SBATCH --export=COLUMNS,HOME,LANG,OMP_NUM_THREADS,PATH,PYTHONPATH,TZ
#SBATCH --requeue
#SBATCH --partition=gpu
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1G
#SBATCH --time=00:10:00
#SBATCH --reservation=course
# Signal the run this many seconds before its time limit or preemption, so that it writes a checkpoint
#SBATCH --signal=USR2@120

set -euo pipefail
# Only these variables reach the runs; `export:` in the experiment file names more
for name in $(compgen -e); do
  case "$name" in
  SLURM_EXPORT_ENV | SLURM_GET_USER_ENV | *TOKEN | *SECRET | *PASSWORD | *PASSWD | *API_KEY | *ACCESS_KEY | \
  *PRIVATE_KEY | *CREDENTIALS | *JWT | *WEBHOOK | *WEBHOOK_URL) unset "$name" 2>/dev/null || true ;;
  PATH | HOME | USER | LOGNAME | SHELL | LANG | LANGUAGE | LC_* | TZ | TERM | COLUMNS | LD_LIBRARY_PATH | \
  LD_PRELOAD | LIBRARY_PATH | CPATH | MANPATH | XDG_CACHE_HOME | XDG_CONFIG_HOME | CC | CXX | MKLROOT | \
  GLIBC_TUNABLES | MALLOC_* | SSL_CERT_FILE | SSL_CERT_DIR | SCRATCH | WORK | PROJECT | LOCALSCRATCH | MODULE* | \
  LMOD_* | __LMOD_* | __MODULES_* | LOADEDMODULES | _LMFILES_* | _ModuleTable* | EBROOT* | EBVERSION* | BASH_ENV \
  | PYTHON* | PYENV_* | _PYENV_* | CONDA_* | _CONDA_* | _CE_* | MAMBA_* | VIRTUAL_ENV | CUDA_* | CUDNN_* | \
  NCCL_* | NVIDIA_* | HIP_* | HSA_* | ROCM_* | ROCR_* | MIOPEN_* | UCX_* | FI_* | OMP_* | GOMP_* | KMP_* | MKL_* \
  | OPENBLAS_* | NUMEXPR_* | GLOO_* | TP_SOCKET_IFNAME | TORCH* | PYTORCH_* | TRITON_* | XLA_* | JAX_* | \
  TF_CPP_* | TF_XLA_FLAGS | TOKENIZERS_* | HF_HOME | HF_*_CACHE | HF_*OFFLINE | HF_HUB_DISABLE_* | \
  HUGGINGFACE_HUB_CACHE | TRANSFORMERS_CACHE | TRANSFORMERS_OFFLINE | ABLATRIX_* | WANDB_MODE | WANDB_DIR | \
  WANDB_PROJECT | WANDB_ENTITY | WANDB_*_DIR | WANDB_SILENT | SLURM* | PMI* | OMPI_* | PRTE_* | \
  GPU_DEVICE_ORDINAL | ZE_AFFINITY_MASK | KRB5CCNAME | ENVIRONMENT | TMPDIR | TMP | TEMP | XDG_RUNTIME_DIR | \
  HOSTNAME | PWD | OLDPWD | SHLVL | _) ;;
  *) unset "$name" 2>/dev/null || true ;;
  esac
done
cd /FOLDER
export HF_HUB_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
export TOKENIZERS_PARALLELISM=false
export PYTHONPATH=/FOLDER/out/.snapshots/CODE_SNAPSHOT:/FOLDER/code
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK=1
# slurm.setup: a line that fails does not end the job unless you say so (`module load cuda || exit 1`)
ablatrix_srun=$(command -v srun || true)
trap 'code=$?; echo "slurm.setup ended the job before its run started (exit code $code)" >&2; exit $((code ? code : 1))' EXIT
set +euo pipefail
export SITE=golden
# Back to the job's own settings, whatever the lines above changed; `module purge` may remove srun from PATH
trap - EXIT
unset IFS
set -euo pipefail
[ -z "$ablatrix_srun" ] || command -v srun >/dev/null || export PATH="$PATH:${ablatrix_srun%/*}"
case "${PYTHONPATH-}:" in /FOLDER/out/.snapshots/CODE_SNAPSHOT:*) ;; *) export PYTHONPATH=/FOLDER/out/.snapshots/CODE_SNAPSHOT${PYTHONPATH:+:$PYTHONPATH} ;; esac
command cd /FOLDER

[ "${SLURM_JOB_NODELIST-}" ] && srun=srun || srun=  # without srun outside of a job
case "$SLURM_ARRAY_TASK_ID" in
0) exec $srun PYTHON -P -m ablatrix.orchestrator.job.task out/golden/baseline-seed1-9f98ebea:1 ;;
1) exec $srun PYTHON -P -m ablatrix.orchestrator.job.task out/golden/wide-seed1-1e6149b1:1 ;;
2) exec $srun PYTHON -P -m ablatrix.orchestrator.job.task out/golden/baseline-seed2-539681a2:1 ;;
3) exec $srun PYTHON -P -m ablatrix.orchestrator.job.task out/golden/wide-seed2-6a975eb0:1 ;;
*) echo "no run has the number $SLURM_ARRAY_TASK_ID" >&2; exit 1 ;;
esac

