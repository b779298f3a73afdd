"""What lies on disk: opening checkpoints, and finding in them what is to be averaged."""
