"""What is done with checkpoints: schemes, the plan, and the one loop that carries it out."""
