"""Pure functions: tensors in, tensors or NamedTuples out; torch and nothing else. Start at `eigenmap`."""
