"""What is written: where each byte goes, the container around it, and making it visible at once."""
