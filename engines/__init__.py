"""Turns tokens into tokens. One process per set of loaded weights; knows integers, never text."""
