"""The loop, the optimiser, schedules, checkpoints. It knows no method, no objective and no data format by name."""
