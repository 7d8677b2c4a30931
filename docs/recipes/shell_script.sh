#!/bin/sh
# Any program: this one computes a square root by Newton's method and logs its squared error.
set -eu
out=$1 number=$2 damping=$3 steps=$4
echo step,train_loss > "$out/log.csv"
awk -v n="$number" -v d="$damping" -v steps="$steps" 'BEGIN {
  x = n
  for (i = 1; i <= steps; i++) { x -= d * (x * x - n) / (2 * x); printf "%d,%.12g\n", i, (x * x - n) ^ 2 }
}' >> "$out/log.csv"
