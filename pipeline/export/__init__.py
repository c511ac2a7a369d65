"""From a run to a file that other software can run, checked against the original before it is kept."""
