"""Keeps models: a content-addressed store on local disk and the sources that fill it."""
