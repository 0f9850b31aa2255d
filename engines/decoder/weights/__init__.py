"""Readers of weight files: foreign tensor names and layouts to our parameter tree."""
