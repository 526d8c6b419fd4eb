"""Published experiments, run again: many small networks, their results and what repeats."""
