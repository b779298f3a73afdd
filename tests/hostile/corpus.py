"""All hostile inputs."""

from hostile import corpus_data, corpus_files, corpus_folders, corpus_torch
from hostile.attacks import attacks_everywhere

CASES = {
    case.name: case
    for wing in (
        corpus_torch.cases(),
        corpus_folders.cases(),
        corpus_files.cases(),
        corpus_data.cases(),
        attacks_everywhere(),
    )
    for case in wing
}
