"""What things cost: scripts, and README.md with what they measured."""
