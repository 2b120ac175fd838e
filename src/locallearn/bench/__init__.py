"""Measurements of speed, as ratios within one run. It brings ``locallearn bench``."""

COMMANDS = {"bench": ("locallearn.bench.command", "measure speed against baselines")}
