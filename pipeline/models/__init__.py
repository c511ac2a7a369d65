"""Trained networks as functions from pictures to lesion probabilities, one file per file format behind one protocol."""
