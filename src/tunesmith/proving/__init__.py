"""The parity gate: whether two forms of a model are still the same one."""
