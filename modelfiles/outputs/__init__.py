"""Turns generated text into answers: stop strings, thinking, tool calls. Sans-IO filters."""
