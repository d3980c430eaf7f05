#!/usr/bin/env bash
# A sweep on Slurm: Ray runs on every node of the job while the job runs; the same command goes on where it was left.
#   sbatch docs/cluster/slurm.sh
#SBATCH --job-name=bench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --output=bench-%j.log
#SBATCH --requeue
set -euo pipefail

export BENCH_DATA=${BENCH_DATA:-/shared/data}
export BENCH_CACHE=${BENCH_CACHE:-${TMPDIR:-/tmp}/bench-cache} # each node's own disk
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n') # of this job alone, passed on by srun, in no file
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node do not meet

srun ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_NNODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" -- \
  bench run --sweep study --profile full --out /shared/results
