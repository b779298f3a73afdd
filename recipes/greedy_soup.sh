#!/usr/bin/env bash
# A greedy soup of fine-tuned models (Wortsman et al. 2022): starting with the best one, each is taken in if the
# average does not get worse. A recipe describes averages whose members are known beforehand, and here each step
# depends on the one before: so this is a command of its own. A soup that was interrupted goes on where it was.
set -euo pipefail

swatool soup 'finetuned/*.safetensors' \
    -o soup.safetensors \
    --eval 'python evaluate.py {path}' `# prints a number, or a JSON object of numbers, for a file` \
    --mode max
