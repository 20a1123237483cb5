"""The loop, the optimizer, schedules, checkpoints. It does not know any method, objective or data format by name."""
