"""The loop, the optimizer, schedules, checkpoints. It knows no method, no objective and no data format by name."""
