"""The decoder: pure-JAX functions over pytrees for the Gemma family and its kin."""
