"""Engines that people already operate: Ray clusters, SLURM job arrays."""
